/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ELF loader, on images made by hand: the two ways to enter one, and one refusal each.
 */
#include <criterion/criterion.h>
#include <errno.h>

#include "vmm/x86/elf.h"
#include "vmm/x86/test-image.h"

static int parse(const struct test_elf *elf, size_t size, struct elf_image *ret, struct error *err)
{
	int fd = test_file(elf, size);
	int r = elf_parse(fd, size, ret, err);

	close(fd);
	return r;
}

static void refused(const struct test_elf *elf, const char *words)
{
	struct error err = ERROR_NULL;
	struct elf_image image;

	cr_assert_eq(parse(elf, sizeof(*elf), &image, &err), -ENOEXEC);
	cr_assert(strstr(err.text, words), "\"%s\" is not in \"%s\"", words, err.text);
}

Test(elf, pvh_note_says_entry)
{
	struct test_elf elf = test_elf();
	struct elf_image image;

	cr_assert_eq(parse(&elf, sizeof(elf), &image, NULL), 0);
	cr_assert(image.pvh);
	cr_assert_eq(image.entry, TEST_ELF_CODE + 16);
	cr_assert_eq(image.n_segments, 2);
	cr_assert_eq(image.end, TEST_ELF_DATA + 8192);
}

Test(elf, pvh_note_may_have_four_bytes_and_an_i386_machine)
{
	struct test_elf elf = test_elf();
	struct elf_image image;

	elf.note.desc_size = 4;
	elf.programs[2].p_filesz = 20;
	elf.header.e_machine = EM_386;
	cr_assert_eq(parse(&elf, sizeof(elf), &image, NULL), 0);
	cr_assert(image.pvh);
	cr_assert_eq(image.entry, TEST_ELF_CODE + 16);
}

Test(elf, other_notes_are_not_pvh)
{
	struct test_elf elf = test_elf();
	struct elf_image image;

	elf.note.type = 17;
	cr_assert_eq(parse(&elf, sizeof(elf), &image, NULL), 0);
	cr_assert(!image.pvh);
	elf = test_elf();
	memcpy(elf.note.name, "GNU", 4);
	cr_assert_eq(parse(&elf, sizeof(elf), &image, NULL), 0);
	cr_assert(!image.pvh);
	elf = test_elf();
	elf.note.desc_size = 0xfffffff0;
	cr_assert_eq(parse(&elf, sizeof(elf), &image, NULL), 0);
	cr_assert(!image.pvh);
}

Test(elf, without_note_entry_is_physical_or_virtual)
{
	struct test_elf elf = test_elf();
	struct elf_image image;

	elf.header.e_phnum = 2;
	cr_assert_eq(parse(&elf, sizeof(elf), &image, NULL), 0);
	cr_assert(!image.pvh);
	cr_assert_eq(image.entry, TEST_ELF_CODE);
	elf.header.e_entry = 0xffffffff80000000 + TEST_ELF_CODE + 32;
	cr_assert_eq(parse(&elf, sizeof(elf), &image, NULL), 0);
	cr_assert_eq(image.entry, TEST_ELF_CODE + 32);
}

Test(elf, refuses_other_machines)
{
	struct test_elf elf = test_elf();

	elf.header.e_ident[EI_CLASS] = ELFCLASS32;
	refused(&elf, "32-bit ELF");
	elf = test_elf();
	elf.header.e_ident[EI_DATA] = ELFDATA2MSB;
	refused(&elf, "big-endian");
	elf = test_elf();
	elf.header.e_machine = EM_AARCH64;
	refused(&elf, "arm64");
	elf = test_elf();
	elf.header.e_machine = EM_RISCV;
	refused(&elf, "ELF number 243");
	elf = test_elf();
	elf.header.e_machine = EM_386;
	elf.header.e_phnum = 2;
	refused(&elf, "without a PVH entry");
}

Test(elf, refuses_other_kinds_of_files)
{
	struct test_elf elf = test_elf();

	elf.header.e_type = ET_REL;
	refused(&elf, "object file");
	elf = test_elf();
	elf.header.e_type = ET_CORE;
	refused(&elf, "not a program");
	elf = test_elf();
	elf.programs[2].p_type = PT_INTERP;
	refused(&elf, "a program for Linux");
}

Test(elf, refuses_damaged_headers)
{
	struct test_elf elf = test_elf();

	elf.header.e_phnum = 0;
	refused(&elf, "damaged");
	elf = test_elf();
	elf.header.e_phentsize = 32;
	refused(&elf, "damaged");
	elf = test_elf();
	elf.header.e_phoff = UINT64_MAX - 8;
	refused(&elf, "truncated");
	elf = test_elf();
	elf.programs[0].p_filesz = elf.programs[0].p_memsz + 1;
	refused(&elf, "sizes");
	elf = test_elf();
	elf.programs[0].p_paddr = UINT64_MAX - 4095;
	elf.programs[0].p_memsz = 4096;
	refused(&elf, "sizes");
	elf = test_elf();
	elf.programs[0].p_type = elf.programs[1].p_type = PT_NULL;
	refused(&elf, "no ELF segment");
}

Test(elf, refuses_truncated_file)
{
	struct test_elf elf = test_elf();
	struct elf_image image;

	for (size_t size = 1; size < sizeof(elf); size += size < 512 ? 1 : 509) {
		struct error err = ERROR_NULL;

		cr_assert_eq(parse(&elf, size, &image, &err), -ENOEXEC, "%zu", size);
		cr_assert(strstr(err.text, "truncated"), "%zu: %s", size, err.text);
	}
}

Test(elf, refuses_overlapping_segments)
{
	struct test_elf elf = test_elf();

	elf.programs[1].p_paddr = TEST_ELF_CODE + 4095;
	refused(&elf, "overlap");
}

Test(elf, refuses_entry_outside_of_what_is_loaded)
{
	struct test_elf elf = test_elf();

	elf.note.entry = TEST_ELF_DATA + 4096;
	refused(&elf, "entry point");
	elf = test_elf();
	elf.header.e_phnum = 2;
	elf.header.e_entry = 0;
	refused(&elf, "entry point");
}

static int load(const struct test_elf *elf, struct guest_memory *memory, struct error *err)
{
	struct elf_image image;

	cr_assert_eq(parse(elf, sizeof(*elf), &image, err), 0);
	return elf_load(&image, test_file(elf, sizeof(*elf)), memory, err);
}

Test(elf, loads_segments_and_clears_behind_them)
{
	struct test_elf elf = test_elf();
	struct guest_memory memory;
	uint8_t zeroes[4096] = {0};
	uint8_t *at;

	test_memory(&memory, 4 * MIB);
	cr_assert_eq(memory_translate(&memory, 0, 4 * MIB, (void **)&at), 0);
	memset(at, 0xff, 4 * MIB);
	cr_assert_eq(load(&elf, &memory, NULL), 0);
	cr_assert_arr_eq(at + TEST_ELF_CODE, elf.code, 4096);
	cr_assert_arr_eq(at + TEST_ELF_DATA, elf.data, 4096);
	cr_assert_arr_eq(at + TEST_ELF_DATA + 4096, zeroes, 4096);
	cr_assert_eq(at[TEST_ELF_DATA + 8192], 0xff);
	cr_assert_eq(at[TEST_ELF_CODE - 1], 0xff);
}

Test(elf, refuses_segments_outside_of_memory)
{
	struct test_elf elf = test_elf();
	struct error err = ERROR_NULL;
	struct guest_memory memory;

	test_memory(&memory, 4 * MIB);
	elf.programs[1].p_paddr = 4 * MIB - 4096;
	cr_assert_eq(load(&elf, &memory, &err), -E2BIG);
	cr_assert(strstr(err.text, "at least 6M"), "%s", err.text);
	elf.programs[1].p_paddr = LAYOUT_HOLE - 4096;
	cr_assert_eq(load(&elf, &memory, &err), -E2BIG);
	cr_assert(strstr(err.text, "of any size"), "%s", err.text);
	elf.programs[1].p_paddr = 0x7000;
	cr_assert_eq(load(&elf, &memory, &err), -ENOEXEC);
	cr_assert(strstr(err.text, "first MiB"), "%s", err.text);
}
