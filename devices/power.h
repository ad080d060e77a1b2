/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ways out of a machine with hardware-reduced ACPI, and its timer: a byte that is sleep
 * control, sleep status and reset register at once, as CloudHv firmware expects it, and the ACPI
 * PM timer (ACPI 6.5, 4.8.3.3), 32 bits wide. The timer's age migrates, so it never goes back.
 */
#pragma once

#include "devices/bus.h"
#include "devices/machine-events.h"

#define POWER_PORT          0x600
#define POWER_PORT_SIZE     4
#define POWER_SLEEP_ENABLE  0x20 /* SLP_EN */
#define POWER_SLEEP_TYPE_S5 5    /* SLP_TYP, bits 2 to 4 */
#define POWER_RESET_VALUE   1

#define PM_TIMER_PORT       0x608
#define PM_TIMER_PORT_SIZE  4
#define PM_TIMER_HZ         3579545

struct power {
	struct device device;          /* first */
	struct machine_events *events; /* borrowed */
	uint64_t timer_start; /* CLOCK_MONOTONIC ns at which the timer read 0, mod 2^64; lock */

	/* Migrates; brought up to date for a save. */
	struct power_state {
		uint64_t timer_age; /* ns since the timer read 0 */
	} state;
};

int power_init(struct power *power, struct bus *io, struct machine_events *events,
	       struct error *err) __must_check;
