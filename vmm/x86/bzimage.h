/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Linux kernels as distributions ship them. In: the first bytes of a file. Out: where its
 * protected-mode part goes, how much memory it wants, and the setup header that travels on to the
 * guest in the zero page. Only kernels with the 64-bit entry point (boot protocol 2.12, Linux 3.8);
 * source: Documentation/arch/x86/boot.rst.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "devices/memory.h"

#define BZIMAGE_HEAD          0x290 /* bytes of the file that bzimage_parse looks at */
#define BZIMAGE_HEADER        0x1f1 /* where the setup header starts, in file and zero page */
#define BZIMAGE_HEADER_MAX    (BZIMAGE_HEAD - BZIMAGE_HEADER)
#define BZIMAGE_ENTRY64       0x200 /* of the 64-bit entry point in the protected-mode part */
#define BZIMAGE_ALIGNMENT_MAX (1u << 30)

struct bzimage {
	uint16_t version;     /* of the boot protocol, 0x20f is 2.15 */
	uint64_t code_offset; /* protected-mode part in the file */
	uint64_t code_size;
	gpa_t load;
	uint64_t init_size;   /* from `load`: what it needs before it can read a memory map */
	uint32_t initrd_max;  /* highest address an initrd's last byte may have */
	uint32_t command_max; /* bytes of command line without NUL */
	uint32_t header_size; /* of `header` that are the kernel's */
	uint8_t header[BZIMAGE_HEADER_MAX];
};

/* Does the file say "HdrS", whatever else is wrong with it? */
bool bzimage_is(const uint8_t *head, size_t size);

/* Reads nothing but `head`, the first bytes (BZIMAGE_HEAD if there are as many) of a file. */
int bzimage_parse(const uint8_t *head, size_t size, uint64_t file_size, struct bzimage *ret,
		  struct error *err) __must_check;

/* Checks what was parsed against the VM's memory and reads the kernel into it. */
int bzimage_load(const struct bzimage *image, int fd, struct guest_memory *memory,
		 struct error *err) __must_check;
