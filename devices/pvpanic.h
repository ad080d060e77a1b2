/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One port by which a guest says that its kernel panicked. Nothing migrates: what was said has been
 * acted upon.
 */
#pragma once

#include "devices/bus.h"
#include "devices/machine-events.h"

#define PVPANIC_PORT         0x505
#define PVPANIC_PANICKED     0x01
#define PVPANIC_CRASH_LOADED 0x02

struct pvpanic {
	struct device device;          /* first */
	struct machine_events *events; /* borrowed */
};

int pvpanic_init(struct pvpanic *pvpanic, struct bus *io, struct machine_events *events,
		 struct error *err) __must_check;
