/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One CPU starts where the PVH entry says, in the state it says, finds its memory map and its
 * tables, sleeps and wakes, prints, and powers off.
 */
#ifdef GUEST

#include "guest-tests/runtime/acpi.h"

static void hello(struct guest_boot *boot)
{
	note("cpus %u", acpi_info()->n_cpus);
	note("ram-end 0x%lx", boot->ram_end);
	GUEST_ASSERT(boot->ram_end > 0x1000000, "0x%lx", boot->ram_end);
	GUEST_ASSERT(acpi_info()->n_cpus == 1, "%u", acpi_info()->n_cpus);
	GUEST_ASSERT(apic_id() == acpi_info()->cpu_apic_ids[0], "%u", apic_id());
}

static void command_line(struct guest_boot *boot)
{
	GUEST_ASSERT(cmdline_number(boot, "number", 0) == 0x1234, "%s", boot->cmdline);
	GUEST_ASSERT(cmdline_has(boot, "word"), "%s", boot->cmdline);
	GUEST_ASSERT(!cmdline_has(boot, "wor"), "%s", boot->cmdline);
}

/* The last page of the RAM that the map promises is memory of its own. */
static void memory(struct guest_boot *boot)
{
	volatile uint64_t *last = (uint64_t *)(boot->ram_end - 8), *middle;

	middle = (uint64_t *)(boot->ram_end / 2 & ~7ull);
	*last = 0x1122334455667788;
	*middle = 0x99;
	GUEST_ASSERT(*last == 0x1122334455667788 && *middle == 0x99, "0x%lx 0x%lx", *last, *middle);
}

static void sleep_and_wake(struct guest_boot *boot)
{
	(void)boot;
	sleep_ms(2);
	GUEST_ASSERT(!WAIT_UNTIL(false, 2), "a wait for nothing ended early");
}

void guest_main(struct guest_boot *boot)
{
	guest_case("hello", hello, boot);
	guest_case("command-line", command_line, boot);
	guest_case("memory", memory, boot);
	guest_case("sleep-and-wake", sleep_and_wake, boot);
}

#else

#include "guest-tests/host/harness.h"

int main(int argc, char **argv)
{
	struct vm_config config = {.append = "x=1 number=0x1234 word"};

	test_init(argc, argv);
	return vm_judge(vm_start(&config));
}

#endif
