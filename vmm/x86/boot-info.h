/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a kernel is told at its entry, in either of two shapes: Linux's zero page (struct
 * boot_params, Documentation/arch/x86/zero-page.rst) and PVH's struct hvm_start_info, version 1
 * (Xen public headers).
 */
#pragma once

#include <stdint.h>

#include "devices/memory.h"

struct boot_info {
	gpa_t rsdp;
	gpa_t command_line;
	gpa_t initrd;
	uint64_t initrd_size; /* 0: no initrd */
	uint64_t memory_size;
	const uint8_t *setup_header; /* borrowed; of a bzImage, NULL for an ELF kernel */
	uint32_t setup_header_size;
};

/* At LAYOUT_ZERO_PAGE. */
int zero_page_write(const struct boot_info *info, struct guest_memory *memory) __must_check;

/* At LAYOUT_START_INFO, with module list and memory map in the same page. */
int start_info_write(const struct boot_info *info, struct guest_memory *memory) __must_check;
