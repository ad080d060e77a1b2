/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest can do to its whole machine by touching a register. A device calls `event` on a vCPU
 * thread with its own lock held; whoever implements it only posts a message and makes the vCPU
 * stop, and calls no device back.
 */
#pragma once

enum machine_event {
	MACHINE_POWER_OFF,
	MACHINE_RESET,
	MACHINE_PANIC,        /* the guest says that its kernel panicked */
	MACHINE_CRASH_LOADED, /* likewise, and that it is dumping itself: it goes on running */
	MACHINE_WATCHDOG,     /* the guest no longer feeds its watchdog; the description says what
				 follows.     From the watchdog's loop, without its lock */
};

struct machine_events {
	void (*event)(struct machine_events *events, enum machine_event event);
};

static inline void machine_event(struct machine_events *events, enum machine_event event)
{
	events->event(events, event);
}
