/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The generic event device (ACPI 6.5, 5.6.9): events from the host's side come in from any thread,
 * an edge on one interrupt line goes out, and the guest's AML reads from one byte which they were.
 * Reading clears. Events the guest has not read yet migrate.
 */
#pragma once

#include "devices/bus.h"

#define GED_PORT 0x610
#define GED_GSI  9

/* Bits of the byte; part of the board. */
#define GED_POWER_BUTTON 0x01
#define GED_GENERATION   0x04 /* the VM generation id has changed */
#define GED_PCI_HOTPLUG  0x08 /* a PCI slot was filled, or is to be given up */

struct ged {
	struct device device; /* first */
	int line;             /* borrowed eventfd */

	/* Migrates. Lock. */
	struct ged_state {
		uint8_t pending;
	} state;
};

int ged_init(struct ged *ged, struct bus *io, struct irq_host *irqs,
	     struct error *err) __must_check;

/* Any thread; takes the device's lock. */
void ged_raise(struct ged *ged, uint8_t events);
