/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VM generation id: sixteen random bytes in guest memory that change when the guest finds
 * itself in a second life (restored, cloned), so that it throws away what must not be used twice.
 * No registers; a change is announced through the generic event device. The bytes migrate, the
 * place is the board's.
 */
#pragma once

#include "devices/device.h"
#include "devices/ged.h"

#define GENERATION_SIZE 16

struct generation {
	struct device device;        /* first */
	struct guest_memory *memory; /* borrowed */
	struct ged *ged;             /* borrowed */
	gpa_t gpa;

	/* Migrates. Lock. */
	struct generation_state {
		uint8_t guid[GENERATION_SIZE];
	} state;
};

/* Makes an id and puts it at `gpa`, which must be RAM that the firmware tables keep reserved. */
int generation_init(struct generation *generation, struct guest_memory *memory, gpa_t gpa,
		    struct ged *ged, struct error *err) __must_check;

/* A new life: new bytes, and the guest is told. Main thread. */
int generation_change(struct generation *generation) __must_check;
