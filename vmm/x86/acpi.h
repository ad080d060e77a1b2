/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ACPI tables of the board, hardware-reduced: RSDP, XSDT, FADT, MADT, MCFG, DSDT. They depend
 * on the number of vCPUs, on how much RAM there is and on what the devices say of themselves; same
 * input, same bytes.
 */
#pragma once

#include <stddef.h>

#include "base/error.h"
#include "devices/memory.h"
#include "vmm/x86/dsdt.h"

/* Encodes the tables as they will lie at `gpa` into a buffer; the RSDP is the first of them.
 * -ENOSPC. */
int acpi_encode(const struct dsdt_board *board, gpa_t gpa, void *data, size_t size,
		size_t *ret_used) __must_check;

/* Puts the tables of `memory`'s board into it at LAYOUT_ACPI. `ret_rsdp` goes to the loader. */
int acpi_write(struct guest_memory *memory, uint32_t n_cpus, struct device *const *devices,
	       uint32_t n_devices, gpa_t *ret_rsdp, struct error *err) __must_check;
