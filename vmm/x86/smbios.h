/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What dmidecode says of the machine: an SMBIOS 3.0 anchor where firmware and kernels look for it,
 * and the least structures that name vendor and product.
 */
#pragma once

#include <stddef.h>

#include "base/error.h"
#include "devices/memory.h"

/* Anchor and structures as they will lie at `gpa`. -ENOSPC. */
int smbios_encode(gpa_t gpa, void *data, size_t size, size_t *ret_used) __must_check;

/* Puts them at LAYOUT_SMBIOS. */
int smbios_write(struct guest_memory *memory, struct error *err) __must_check;
