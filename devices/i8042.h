/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is left of a keyboard controller: its pulse on the reset line, and status reads that end the
 * wait for it. No keyboard, no mouse, no interrupt. Port 0x61 (speaker and timer gate) is here too,
 * because it is the same ancient chip set and old calibration loops wait on it.
 */
#pragma once

#include "devices/bus.h"
#include "devices/machine-events.h"

#define I8042_DATA_PORT    0x60
#define I8042_GATE_PORT    0x61
#define I8042_COMMAND_PORT 0x64
#define I8042_RESET        0xfe

struct i8042 {
	struct device device;          /* first */
	struct machine_events *events; /* borrowed */

	/* Migrates. Lock. */
	struct i8042_state {
		uint8_t gate; /* the two writable bits of port 0x61 */
	} state;
};

int i8042_init(struct i8042 *i8042, struct bus *io, struct machine_events *events,
	       struct error *err) __must_check;
