/* SPDX-License-Identifier: Apache-2.0 */
/*
 * First C of the boot CPU: copies what the VMM handed over, brings up text, interrupts and ACPI,
 * runs the test and powers off. Also the report lines of a test's cases.
 */
#include "guest-tests/runtime/acpi.h"
#include "guest-tests/runtime/guest.h"

#define START_INFO_MAGIC 0x336ec578
#define MEMMAP_RAM       1
#define RAM_BASE         0x100000

struct start_info {
	uint32_t magic, version, flags, n_modules;
	uint64_t modules, cmdline, rsdp;
	uint64_t memmap; /* from version 1 */
	uint32_t n_memmap, reserved;
};

struct memmap_entry {
	uint64_t base, size;
	uint32_t type, reserved;
};

static struct guest_boot boot;
static bool skipped;

void guest_boot_cpu(const struct start_info *info);

static void read_memmap(const struct start_info *info)
{
	const struct memmap_entry *map = (const void *)info->memmap;

	for (uint32_t i = 0; info->version >= 1 && i < info->n_memmap; i++) {
		if (map[i].type == MEMMAP_RAM && map[i].base <= RAM_BASE &&
		    map[i].base + map[i].size > RAM_BASE)
			boot.ram_end = map[i].base + map[i].size;
	}
}

static void read_start_info(const struct start_info *info)
{
	const char *cmdline = (const char *)info->cmdline;

	GUEST_ASSERT(info->magic == START_INFO_MAGIC, "start info at %p: magic 0x%x", info,
		     info->magic);
	boot.rsdp = info->rsdp;
	for (size_t i = 0; cmdline && cmdline[i] && i < sizeof(boot.cmdline) - 1; i++)
		boot.cmdline[i] = cmdline[i];
	read_memmap(info);
}

void guest_boot_cpu(const struct start_info *info)
{
	serial_init();
	irq_init();
	read_start_info(info);
	acpi_init(boot.rsdp);
	apic_init_cpu();
	irq_enable();
	guest_main(&boot);
	power_off();
}

/* Points behind "key" or "key=" at the start of a word, or NULL. */
static const char *cmdline_find(const struct guest_boot *b, const char *key)
{
	size_t len = strlen(key);

	for (const char *s = b->cmdline; *s; s++) {
		if ((s == b->cmdline || s[-1] == ' ') && strncmp(s, key, len) == 0)
			return s + len;
	}
	return NULL;
}

bool cmdline_has(const struct guest_boot *b, const char *word)
{
	const char *end = cmdline_find(b, word);

	return end && (*end == 0 || *end == ' ');
}

uint64_t cmdline_number(const struct guest_boot *b, const char *key, uint64_t otherwise)
{
	const char *s = cmdline_find(b, key);
	uint64_t value = 0;
	unsigned int base = 10;

	if (!s || *s++ != '=')
		return otherwise;
	if (s[0] == '0' && s[1] == 'x') {
		base = 16;
		s += 2;
	}
	for (;; s++) {
		if (*s >= '0' && *s <= '9')
			value = value * base + (*s - '0');
		else if (base == 16 && *s >= 'a' && *s <= 'f')
			value = value * base + (*s - 'a' + 10);
		else
			return value;
	}
}

void guest_skip(const char *why)
{
	skipped = true;
	print("SKIP %s\n", why);
}

void guest_case(const char *name, void (*run)(struct guest_boot *b), struct guest_boot *b)
{
	skipped = false;
	print("TEST %s\n", name);
	run(b);
	if (!skipped)
		print("PASS\n");
}
