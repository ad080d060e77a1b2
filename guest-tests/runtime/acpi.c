/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Walks RSDP, XSDT (or RSDT), MADT, MCFG and FADT, and checks every table's checksum and length on
 * the way, so that each guest test is a test of the tables too. Power-off and reset are here
 * because the FADT says how.
 */
#include "guest-tests/runtime/acpi.h"

#include "guest-tests/runtime/board.h"

#define MADT_LAPIC           0
#define MADT_IOAPIC          1
#define MADT_X2APIC          9
#define MADT_CPU_ENABLED     0x1

#define FADT_DSDT            40
#define FADT_PM1A_CONTROL    64
#define FADT_PM_TIMER        76
#define FADT_FLAGS           112
#define FADT_RESET           116
#define FADT_RESET_VALUE     128
#define FADT_X_DSDT          140
#define FADT_X_PM_TIMER      208
#define FADT_SLEEP_CONTROL   244
#define FADT_FLAG_RESET      (1u << 10)
#define FADT_FLAG_HW_REDUCED (1u << 20)

#define SLEEP_ENABLE         0x20
#define PM1_SLEEP_ENABLE     0x2000

struct acpi_header {
	char signature[4];
	uint32_t length;
	uint8_t revision, checksum;
	char oem[6], oem_table[8];
	uint32_t oem_revision, creator, creator_revision;
} __attribute__((packed));

static struct acpi_info info;

const struct acpi_info *acpi_info(void)
{
	return &info;
}

static uint32_t get32(const uint8_t *p)
{
	uint32_t v;

	__builtin_memcpy(&v, p, sizeof(v));
	return v;
}

static uint64_t get64(const uint8_t *p)
{
	return get32(p) | (uint64_t)get32(p + 4) << 32;
}

static bool sums_to_zero(const uint8_t *p, size_t len)
{
	uint8_t sum = 0;

	while (len--)
		sum += *p++;
	return sum == 0;
}

static gpa_t rsdp_scan(void)
{
	for (gpa_t at = 0xe0000; at < 0x100000; at += 16) {
		const uint8_t *p = (const uint8_t *)at;

		if (memcmp(p, "RSD PTR ", 8) == 0 && sums_to_zero(p, 20))
			return at;
	}
	return 0;
}

static void add_cpu(uint32_t id, uint32_t flags)
{
	if (!(flags & MADT_CPU_ENABLED))
		return;
	GUEST_ASSERT(info.n_cpus < MAX_CPUS, "more CPUs than the runtime holds");
	info.cpu_apic_ids[info.n_cpus++] = id;
}

static void read_madt(const uint8_t *t, uint32_t len)
{
	for (uint32_t at = 44; at + 2 <= len; at += t[at + 1]) {
		const uint8_t *e = t + at;

		GUEST_ASSERT(e[1] >= 2 && e[1] <= len - at, "MADT entry at %u: length %u", at,
			     e[1]);
		if (e[0] == MADT_LAPIC)
			add_cpu(e[3], get32(e + 4));
		else if (e[0] == MADT_X2APIC)
			add_cpu(get32(e + 4), get32(e + 8));
		else if (e[0] == MADT_IOAPIC && !info.ioapic)
			info.ioapic = get32(e + 4);
	}
}

static void read_mcfg(const uint8_t *t, uint32_t len)
{
	if (len < 44 + 16)
		return;
	info.ecam = get64(t + 44);
	info.ecam_first_bus = t[54];
	info.ecam_last_bus = t[55];
	info.has_ecam = true;
	mem_map(info.ecam, ((uint64_t)info.ecam_last_bus + 1) << 20);
}

static struct acpi_register get_register(const uint8_t *gas)
{
	return (struct acpi_register){gas[0], get64(gas + 4)};
}

static void read_dsdt(gpa_t gpa)
{
	const struct acpi_header *h = (const void *)gpa;

	GUEST_ASSERT(memcmp(h->signature, "DSDT", 4) == 0, "no DSDT at 0x%lx", gpa);
	info.dsdt = (const uint8_t *)gpa;
	info.dsdt_len = h->length;
}

static void read_fadt(const uint8_t *t, uint32_t len)
{
	uint32_t flags = get32(t + FADT_FLAGS);

	info.hardware_reduced = flags & FADT_FLAG_HW_REDUCED;
	info.has_reset = flags & FADT_FLAG_RESET;
	info.reset = get_register(t + FADT_RESET);
	info.reset_value = t[FADT_RESET_VALUE];
	info.pm1a_control = (uint16_t)get32(t + FADT_PM1A_CONTROL);
	info.pm_timer = (uint16_t)get32(t + FADT_PM_TIMER);
	if (!info.pm_timer && len >= FADT_X_PM_TIMER + 12)
		info.pm_timer = (uint16_t)get_register(t + FADT_X_PM_TIMER).at;
	if (!info.pm_timer && info.hardware_reduced)
		info.pm_timer = BOARD_PM_TIMER_PORT;
	if (len >= FADT_SLEEP_CONTROL + 12)
		info.sleep_control = get_register(t + FADT_SLEEP_CONTROL);
	if (len >= FADT_X_DSDT + 8 && get64(t + FADT_X_DSDT))
		read_dsdt(get64(t + FADT_X_DSDT));
	else
		read_dsdt(get32(t + FADT_DSDT));
}

static void read_table(gpa_t gpa)
{
	const struct acpi_header *h = (const void *)gpa;
	const uint8_t *t = (const uint8_t *)gpa;

	mem_map(gpa, sizeof(*h));
	GUEST_ASSERT(h->length >= sizeof(*h) && h->length < 1 << 20, "table at 0x%lx: length %u",
		     gpa, h->length);
	GUEST_ASSERT(sums_to_zero(t, h->length), "table at 0x%lx: checksum", gpa);
	if (memcmp(h->signature, "APIC", 4) == 0)
		read_madt(t, h->length);
	else if (memcmp(h->signature, "MCFG", 4) == 0)
		read_mcfg(t, h->length);
	else if (memcmp(h->signature, "FACP", 4) == 0)
		read_fadt(t, h->length);
}

void acpi_init(gpa_t rsdp)
{
	const uint8_t *p, *root;
	uint32_t len;
	bool wide;

	if (!rsdp)
		rsdp = rsdp_scan();
	GUEST_ASSERT(rsdp, "no ACPI");
	p = (const uint8_t *)rsdp;
	GUEST_ASSERT(memcmp(p, "RSD PTR ", 8) == 0 && sums_to_zero(p, 20), "RSDP at 0x%lx", rsdp);
	wide = p[15] >= 2 && get64(p + 24);
	root = (const uint8_t *)(wide ? get64(p + 24) : get32(p + 16));
	GUEST_ASSERT(memcmp(root, wide ? "XSDT" : "RSDT", 4) == 0, "root table at %p", root);
	len = get32(root + 4);
	GUEST_ASSERT(len < 4096 && sums_to_zero(root, len), "root table: checksum");
	for (uint32_t at = 36; at < len; at += wide ? 8 : 4)
		read_table(wide ? get64(root + at) : get32(root + at));
	GUEST_ASSERT(info.n_cpus, "no CPU in the MADT");
	GUEST_ASSERT(info.dsdt, "no FADT");
}

void acpi_register_write(const struct acpi_register *reg, uint8_t value)
{
	if (reg->space == 1)
		outb((uint16_t)reg->at, value);
	else
		mmio_write8(reg->at, value);
}

bool acpi_dsdt_mentions(const char *text)
{
	size_t len = strlen(text);

	for (uint32_t i = 0; i + len <= info.dsdt_len; i++) {
		if (memcmp(info.dsdt + i, text, len) == 0)
			return true;
	}
	return false;
}

static void __attribute__((noreturn)) halt_for_ever(void)
{
	for (;;) {
		irq_disable();
		__asm__ volatile("hlt");
	}
}

void power_off(void)
{
	if (info.hardware_reduced)
		acpi_register_write(&info.sleep_control, BOARD_S5_SLP_TYP << 2 | SLEEP_ENABLE);
	else if (info.pm1a_control)
		outw(info.pm1a_control, PM1_SLEEP_ENABLE | BOARD_S5_SLP_TYP_PM1 << 10);
	halt_for_ever();
}

void reset_by_acpi(void)
{
	acpi_register_write(&info.reset, info.reset_value);
	halt_for_ever();
}

void reset_by_i8042(void)
{
	outb(BOARD_I8042_PORT, BOARD_I8042_RESET);
	halt_for_ever();
}
