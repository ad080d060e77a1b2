/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a vCPU's port or memory access goes: a sorted table of ranges, filled before vCPUs run and
 * never changed after, so a look-up takes no lock. What moves at run time (PCI BARs) moves behind
 * one fixed range that its owner, the PCI root, resolves.
 */
#pragma once

#include "devices/device.h"

#define BUS_RANGES_MAX 48

struct bus_range {
	uint64_t start, size;
	struct device *device; /* borrowed */
	uint32_t region;       /* handed to the device's read and write */
};

struct bus {
	const char *name; /* "io", "mmio" */
	uint32_t n_ranges;
	struct bus_range ranges[BUS_RANGES_MAX];
};

/* -EEXIST when it overlaps another, -ENOSPC when the table is full. */
int bus_add(struct bus *bus, uint64_t start, uint64_t size, struct device *device,
	    uint32_t region) __must_check;

/* vCPU threads. Reads of nobody's addresses give all ones, writes go nowhere; false says so. `len`
 * <= 8. */
bool bus_read(const struct bus *bus, uint64_t address, void *data, uint32_t len);
bool bus_write(const struct bus *bus, uint64_t address, const void *data, uint32_t len);
