/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ways out of a machine: power-off by ACPI, reset by the FADT's register and by the i8042's
 * reset byte, and the power button that arrives through the generic event device. One program,
 * one mode a run; a machine that was reset starts again and finds on its disk that it has been
 * here.
 */
#define DISK_SIZE 4096
#define MARK      "was reset"

#ifdef GUEST

#include "guest-tests/runtime/acpi.h"
#include "guest-tests/runtime/blk.h"
#include "guest-tests/runtime/board.h"

#define TIMEOUT_MS 20000

static struct blk disk;
static uint8_t sector[BLK_SECTOR];
static volatile unsigned int n_ged;
static volatile uint8_t ged_events;

/* Ends this boot unless it is the second one. */
static void reset_once(void (*reset)(void))
{
	struct virtq *q = &disk.queues[0];

	GUEST_ASSERT(blk_find(&disk, 0), "no disk");
	blk_start(&disk, BLK_FEATURES, false);
	GUEST_ASSERT(blk_do(q, BLK_IN, 0, sector, sizeof(sector)) == BLK_OK, "read");
	if (memcmp(sector, MARK, sizeof(MARK)) == 0)
		return;
	memcpy(sector, MARK, sizeof(MARK));
	GUEST_ASSERT(blk_do(q, BLK_OUT, 0, sector, sizeof(sector)) == BLK_OK, "write");
	GUEST_ASSERT(blk_do(q, BLK_FLUSH, 0, NULL, 0) == BLK_OK, "flush");
	note("resetting");
	reset();
}

static void by_acpi(void)
{
	GUEST_ASSERT(acpi_info()->has_reset, "the FADT has no reset register");
	reset_by_acpi();
}

static void by_i8042(void)
{
	reset_by_i8042();
}

static void reset_acpi(struct guest_boot *boot)
{
	(void)boot;
	reset_once(by_acpi);
}

static void reset_i8042(struct guest_boot *boot)
{
	(void)boot;
	reset_once(by_i8042);
}

static void power_off_acpi(struct guest_boot *boot)
{
	if (!cmdline_has(boot, "peer"))
		GUEST_ASSERT(acpi_info()->hardware_reduced && acpi_info()->sleep_control.at,
			     "FADT");
	/* The end of guest_main does it. */
}

static void ged(void *arg)
{
	(void)arg;
	ged_events = inb(BOARD_GED_PORT);
	n_ged++;
}

static void power_button(struct guest_boot *boot)
{
	(void)boot;
	if (!acpi_dsdt_mentions(BOARD_GED_HID))
		GUEST_SKIP("no generic event device in the DSDT");
	GUEST_ASSERT(acpi_dsdt_mentions(BOARD_POWER_BUTTON_HID), "no power button in the DSDT");
	GUEST_ASSERT(inb(BOARD_GED_PORT) == 0, "an event before there was one");
	ioapic_route(BOARD_GED_GSI, irq_alloc(ged, NULL), apic_id());
	for (unsigned int i = 1; i <= 2; i++) {
		note("press %u", i);
		GUEST_ASSERT(WAIT_UNTIL(n_ged == i, TIMEOUT_MS), "press %u: no interrupt", i);
		GUEST_ASSERT(ged_events == BOARD_GED_POWER_BUTTON, "events 0x%x", ged_events);
		GUEST_ASSERT(inb(BOARD_GED_PORT) == 0, "reading does not clear");
	}
}

void guest_main(struct guest_boot *boot)
{
	if (cmdline_has(boot, "reset-acpi"))
		guest_case("reset-acpi", reset_acpi, boot);
	else if (cmdline_has(boot, "reset-i8042"))
		guest_case("reset-i8042", reset_i8042, boot);
	else if (cmdline_has(boot, "power-button"))
		guest_case("power-button", power_button, boot);
	else
		guest_case("power-off", power_off_acpi, boot);
}

#else

#include "guest-tests/host/harness.h"

static struct vm_config config;

/* Each needs a disk that has no mark yet. */
static struct vm *start(const char *mode)
{
	file_count_up(test_file("disk"), DISK_SIZE);
	config.disks[0].path = test_file("disk");
	config.append = mode;
	return vm_start(&config);
}

static void run_reset(const char *mode)
{
	struct vm *vm = start(mode);

	vm_note(vm, "resetting");
	CHECK(vm_judge(vm) == TEST_PASS, "%s", mode);
}

static void run_power_button(void)
{
	struct vm *vm = start("power-button");

	if (!vm_is_peer()) {
		vm_note(vm, "press 1");
		json_decref(vm_call(vm, "power-button", NULL));
		vm_note(vm, "press 2");
		json_decref(vm_call(vm, "power-button", NULL));
	}
	CHECK(vm_judge(vm) == (vm_is_peer() ? TEST_SKIP : TEST_PASS), "power button");
}

int main(int argc, char **argv)
{
	test_init(argc, argv);
	CHECK(vm_judge(start("power-off")) == TEST_PASS, "power-off");
	run_reset("reset-acpi");
	run_reset("reset-i8042");
	run_power_button();
	return TEST_PASS;
}

#endif
