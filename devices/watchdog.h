/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The watchdog timer of Intel's 6300ESB (PCI 8086:25ab, datasheet 300641, chapter 16), which stock
 * guests have a driver for. Two stages count down; the guest reloads them; when the second runs out
 * the machine hears MACHINE_WATCHDOG once. It counts on a loop, and not while the VM is paused.
 */
#pragma once

#include "base/loop.h"
#include "devices/machine-events.h"
#include "devices/pci.h"

struct watchdog {
	struct pci_function function;
	struct machine_events *events; /* borrowed */
	struct loop_source source;

	/* Migrates, beside configuration space; device's lock. */
	struct watchdog_state {
		uint32_t preload[2]; /* 20 bits each: stage lengths in units of the prescaler */
		uint8_t unlock;      /* how far the guest is in the unlock sequence */
		uint8_t stage;       /* 1 or 2 while it counts, 0 while it does not */
		bool timed_out;      /* until the guest clears it: a reset does not */
		uint64_t left_ns;    /* of the stage, while paused */
	} state;
	uint64_t deadline; /* of the stage, absolute; UINT64_MAX while paused or not counting; lock
			    */
	uint64_t armed;    /* when the loop looks next; lock */
	bool posted;       /* the loop was told to look earlier; lock */
	uint64_t n_reloads, n_expired; /* counters; lock */
};

int watchdog_init(struct watchdog *watchdog, struct pci_root *root, uint32_t slot, const char *name,
		  struct loop *loop, struct machine_events *events, struct error *err) __must_check;
