/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ELF images: an uncompressed Linux kernel, firmware, or a bare-metal guest. In: a file. Out: the
 * segments it wants in memory and where it is entered: as PVH says if it carries the note
 * (XEN_ELFNOTE_PHYS32_ENTRY), else as a 64-bit Linux at its entry point.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "devices/memory.h"

#define ELF_SEGMENTS_MAX 32
#define ELF_HEADERS_MAX  64
#define ELF_NOTES_MAX    65536 /* bytes of one note segment that are searched */

struct elf_segment {
	uint64_t offset; /* in the file */
	uint64_t file_size;
	gpa_t gpa;
	uint64_t size; /* in memory; the rest is zeroes */
	uint64_t virtual;
};

struct elf_image {
	bool pvh;
	gpa_t entry;
	gpa_t end; /* of the highest segment */
	uint32_t n_segments;
	struct elf_segment segments[ELF_SEGMENTS_MAX];
};

bool elf_is(const uint8_t *head, size_t size);

int elf_parse(int fd, uint64_t file_size, struct elf_image *ret, struct error *err) __must_check;

/* Checks what was parsed against the VM's memory and reads the segments into it. */
int elf_load(const struct elf_image *image, int fd, struct guest_memory *memory,
	     struct error *err) __must_check;
