/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernels for tests: small images made by hand in anonymous files, right in every field unless a
 * test changes one.
 */
#pragma once

#include <asm/bootparam.h>
#include <elf.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/macros.h"
#include "devices/memory.h"
#include "vmm/x86/layout.h"

#define MIB ((uint64_t)1 << 20)

/* An anonymous file with these bytes; the test process owns it to its end. */
static inline int test_file(const void *data, size_t size)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	if (fd < 0 || (size > 0 && pwrite(fd, data, size, 0) != (ssize_t)size))
		abort();
	return fd;
}

static inline void test_memory(struct guest_memory *memory, uint64_t size)
{
	struct memory_options options = {.kind = MEMORY_PRIVATE};
	struct memory_range ranges[2];
	uint32_t n = layout_ram(size, ranges);

	if (memory_init(memory, &options, ranges, n, NULL) < 0)
		abort();
}

/* A bzImage with one setup sector beside the first and a page of code, all of it 0x90. */
#define TEST_SETUP 1024u
#define TEST_CODE  4096u
struct test_bzimage {
	union {
		uint8_t setup[TEST_SETUP];
		struct {
			uint8_t before[0x1f1];
			struct setup_header header;
		} __attribute__((packed));
	};
	uint8_t code[TEST_CODE];
};

static inline struct test_bzimage test_bzimage(void)
{
	struct test_bzimage image = {0};

	image.header = (struct setup_header){
		.setup_sects = TEST_SETUP / 512 - 1,
		.syssize = TEST_CODE / 16,
		.boot_flag = 0xaa55,
		.jump = 0x6aeb, /* over the header, to 0x26c */
		.header = 0x53726448,
		.version = 0x20f,
		.loadflags = LOADED_HIGH,
		.initrd_addr_max = 0x7fffffff,
		.kernel_alignment = 2 * MIB,
		.relocatable_kernel = 1,
		.xloadflags = XLF_KERNEL_64,
		.cmdline_size = 2047,
		.pref_address = 16 * MIB,
		.init_size = 4 * MIB,
		.setup_data = 0x1234,
	};
	memset(image.code, 0x90, sizeof(image.code));
	return image;
}

/* An ELF with two segments (a page of code, a page of data with a page of zeroes behind) and a PVH
 * note. */
#define TEST_ELF_CODE (2 * MIB)
#define TEST_ELF_DATA (3 * MIB)
struct test_elf {
	Elf64_Ehdr header;
	Elf64_Phdr programs[3];
	struct {
		uint32_t name_size, desc_size, type;
		char name[4];
		uint64_t entry;
	} note;
	uint8_t code[4096];
	uint8_t data[4096];
};

static inline struct test_elf test_elf(void)
{
	struct test_elf elf = {
		.header =
			{
				.e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64,
					    ELFDATA2LSB, EV_CURRENT},
				.e_type = ET_EXEC,
				.e_machine = EM_X86_64,
				.e_version = EV_CURRENT,
				.e_entry = TEST_ELF_CODE,
				.e_phoff = offsetof(struct test_elf, programs),
				.e_ehsize = sizeof(Elf64_Ehdr),
				.e_phentsize = sizeof(Elf64_Phdr),
				.e_phnum = 3,
			},
		.programs =
			{
				{
					.p_type = PT_LOAD,
					.p_offset = offsetof(struct test_elf, code),
					.p_vaddr = 0xffffffff80000000 + TEST_ELF_CODE,
					.p_paddr = TEST_ELF_CODE,
					.p_filesz = 4096,
					.p_memsz = 4096,
				},
				{
					.p_type = PT_LOAD,
					.p_offset = offsetof(struct test_elf, data),
					.p_vaddr = 0xffffffff80000000 + TEST_ELF_DATA,
					.p_paddr = TEST_ELF_DATA,
					.p_filesz = 4096,
					.p_memsz = 8192,
				},
				{
					.p_type = PT_NOTE,
					.p_offset = offsetof(struct test_elf, note),
					.p_filesz = sizeof(elf.note),
					.p_memsz = sizeof(elf.note),
					.p_align = 4,
				},
			},
		.note = {.name_size = 4,
			 .desc_size = 8,
			 .type = 18,
			 .name = "Xen",
			 .entry = TEST_ELF_CODE + 16},
	};

	memset(elf.code, 0x90, sizeof(elf.code));
	memset(elf.data, 0x55, sizeof(elf.data));
	return elf;
}
