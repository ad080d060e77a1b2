/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest's ACPI namespace: processors, PCI root and reserved ranges, which are the board's own,
 * and what each device says of itself (device_ops.describe), in the order of the board's list.
 */
#pragma once

#include <stdint.h>

struct aml;
struct device;

struct dsdt_board {
	uint32_t n_cpus;
	uint64_t memory_size;
	struct device *const *devices; /* borrowed */
	uint32_t n_devices;
};

/* The body of the DSDT. */
void dsdt_write(struct aml *aml, const struct dsdt_board *board);
