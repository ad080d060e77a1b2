/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a kernel file, an initrd and a command line to guest memory that can be entered. In: open
 * descriptors, which are only read (pread). Out: guest memory filled in, and what the first vCPU's
 * registers must say (vmm/x86/entry.h). May be called again for a reset: every byte the guest may
 * rely on is written anew.
 */
#pragma once

#include "base/error.h"
#include "devices/memory.h"

struct boot_source {
	int kernel_fd;            /* borrowed */
	int initrd_fd;            /* borrowed, -1: none */
	const char *command_line; /* borrowed */
};

/* What the board has put into memory for the guest to find. */
struct boot_tables {
	gpa_t rsdp; /* 0: none */
};

enum boot_protocol {
	BOOT_LINUX64, /* 64-bit, paging on, RSI: struct boot_params */
	BOOT_PVH32,   /* 32-bit, paging off, EBX: struct hvm_start_info */
};

struct boot_entry {
	enum boot_protocol protocol;
	gpa_t entry;
	gpa_t info; /* zero page or start info */
	/* For tests and log lines: */
	gpa_t kernel_end; /* of what the kernel occupies before it reads the memory map */
	gpa_t initrd;     /* 0: none */
	uint64_t initrd_size;
};

/* -ENOEXEC: not a kernel we can boot; -E2BIG: does not fit into the VM. */
int kernel_load(const struct boot_source *source, struct guest_memory *memory,
		const struct boot_tables *tables, struct boot_entry *ret,
		struct error *err) __must_check;
