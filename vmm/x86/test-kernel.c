/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernel, initrd and command line together: what the guest is told, and what is refused. Real
 * kernels are tried where the machine has some.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>

#include "vmm/x86/kernel.h"
#include "vmm/x86/test-image.h"

static const struct boot_tables tables = {.rsdp = LAYOUT_ACPI};

static uint8_t *host(const struct guest_memory *memory, gpa_t gpa, uint64_t len)
{
	void *at;

	cr_assert_eq(memory_translate(memory, gpa, len, &at), 0);
	return at;
}

static int load(const void *kernel, size_t size, int initrd_fd, const char *line,
		struct guest_memory *memory, struct boot_entry *ret, struct error *err)
{
	struct boot_source source = {
		.kernel_fd = test_file(kernel, size), .initrd_fd = initrd_fd, .command_line = line};

	return kernel_load(&source, memory, &tables, ret, err);
}

Test(kernel, bzimage_gets_a_zero_page)
{
	struct test_bzimage image = test_bzimage();
	const struct boot_params *params;
	struct guest_memory memory;
	struct boot_entry entry;

	test_memory(&memory, 4096 * MIB);
	memset(host(&memory, LAYOUT_ZERO_PAGE, 4096), 0xff, 4096);
	cr_assert_eq(load(&image, sizeof(image), -1, "quiet", &memory, &entry, NULL), 0);
	cr_assert_eq(entry.protocol, BOOT_LINUX64);
	cr_assert_eq(entry.entry, 16 * MIB + 0x200);
	cr_assert_eq(entry.info, LAYOUT_ZERO_PAGE);
	params = (void *)host(&memory, LAYOUT_ZERO_PAGE, 4096);
	cr_assert_eq(params->hdr.header, 0x53726448);
	cr_assert_eq(params->hdr.pref_address, 16 * MIB);
	cr_assert_eq(params->hdr.type_of_loader, 0xff);
	cr_assert_eq(params->hdr.setup_data, 0);
	cr_assert_eq(params->hdr.ramdisk_size, 0);
	cr_assert_eq(params->sentinel, 0);
	cr_assert_eq(params->acpi_rsdp_addr, LAYOUT_ACPI);
	cr_assert_eq(params->hdr.cmd_line_ptr, LAYOUT_COMMAND_LINE);
	cr_assert_str_eq((char *)host(&memory, LAYOUT_COMMAND_LINE, 6), "quiet");
	cr_assert_eq(params->e820_entries, 7);
	cr_assert_eq(params->e820_table[6].addr, 4096 * MIB);
	cr_assert_eq(params->e820_table[6].size, 1024 * MIB);
}

Test(kernel, initrd_is_as_high_as_it_may_be)
{
	struct test_bzimage image = test_bzimage();
	const struct boot_params *params;
	struct guest_memory memory;
	struct boot_entry entry;
	uint8_t initrd[5000];
	int fd;

	memset(initrd, 0xab, sizeof(initrd));
	fd = test_file(initrd, sizeof(initrd));
	test_memory(&memory, 64 * MIB);
	cr_assert_eq(load(&image, sizeof(image), fd, "", &memory, &entry, NULL), 0);
	cr_assert_eq(entry.initrd, 64 * MIB - 8192);
	params = (void *)host(&memory, LAYOUT_ZERO_PAGE, 4096);
	cr_assert_eq(params->hdr.ramdisk_image, entry.initrd);
	cr_assert_eq(params->hdr.ramdisk_size, sizeof(initrd));
	cr_assert_arr_eq(host(&memory, entry.initrd, sizeof(initrd)), initrd, sizeof(initrd));

	image.header.initrd_addr_max = 0x1ffffff;
	cr_assert_eq(load(&image, sizeof(image), fd, "", &memory, &entry, NULL), 0);
	cr_assert_eq(entry.initrd, 32 * MIB - 8192);
}

Test(kernel, initrd_must_fit_beside_the_kernel)
{
	struct test_bzimage image = test_bzimage();
	struct error err = ERROR_NULL;
	struct guest_memory memory;
	struct boot_entry entry;
	int fd = test_file("x", 1);

	test_memory(&memory, 20 * MIB);
	cr_assert_eq(load(&image, sizeof(image), fd, "", &memory, &entry, &err), -E2BIG);
	cr_assert_str_eq(err.text, "cannot load the initrd: it needs 22 MiB, the VM has 20: give "
				   "--memory at least 22M");
	image.header.init_size = 4 * MIB - 4096;
	cr_assert_eq(load(&image, sizeof(image), fd, "", &memory, &entry, &err), 0);
	cr_assert_eq(entry.initrd, 20 * MIB - 4096);
	image.header.initrd_addr_max = 20 * MIB - 4097;
	cr_assert_eq(load(&image, sizeof(image), fd, "", &memory, &entry, &err), -E2BIG);
	cr_assert(strstr(err.text, "more than this kernel takes"), "%s", err.text);
}

Test(kernel, elf_with_note_gets_a_start_info)
{
	struct test_elf elf = test_elf();
	struct guest_memory memory;
	struct boot_entry entry;
	const uint64_t *info, *module;
	int fd = test_file("initrd", 6);

	test_memory(&memory, 16 * MIB);
	cr_assert_eq(load(&elf, sizeof(elf), fd, "words", &memory, &entry, NULL), 0);
	cr_assert_eq(entry.protocol, BOOT_PVH32);
	cr_assert_eq(entry.entry, TEST_ELF_CODE + 16);
	cr_assert_eq(entry.info, LAYOUT_START_INFO);
	info = (void *)host(&memory, entry.info, 56);
	cr_assert_eq(info[0], 0x1336ec578);
	cr_assert_eq(info[1], 0x100000000);
	module = (void *)host(&memory, info[2], 32);
	cr_assert_eq(module[0], 16 * MIB - 4096);
	cr_assert_eq(module[1], 6);
	cr_assert_str_eq((char *)host(&memory, info[3], 6), "words");
	cr_assert_eq(info[4], LAYOUT_ACPI);
	cr_assert_eq(info[6], 6);
	/* The fifth of the memory map: RAM from 1 MiB on. */
	cr_assert_eq(*(uint64_t *)(void *)host(&memory, info[5] + 4 * 24, 8), LAYOUT_HIGH);
	cr_assert_eq(*(uint64_t *)(void *)host(&memory, info[5] + 4 * 24 + 8, 8), 15 * MIB);
	cr_assert_eq(*(uint64_t *)(void *)host(&memory, info[5] + 4 * 24 + 16, 8), LAYOUT_RAM);
}

Test(kernel, elf_without_note_gets_a_zero_page)
{
	struct test_elf elf = test_elf();
	const struct boot_params *params;
	struct guest_memory memory;
	struct boot_entry entry;

	elf.header.e_phnum = 2;
	test_memory(&memory, 16 * MIB);
	cr_assert_eq(load(&elf, sizeof(elf), -1, "", &memory, &entry, NULL), 0);
	cr_assert_eq(entry.protocol, BOOT_LINUX64);
	params = (void *)host(&memory, LAYOUT_ZERO_PAGE, 4096);
	cr_assert_eq(params->hdr.header, 0x53726448);
	cr_assert_eq(params->hdr.boot_flag, 0xaa55);
	cr_assert_eq(params->acpi_rsdp_addr, LAYOUT_ACPI);
}

Test(kernel, command_line_has_the_kernels_limit)
{
	struct test_bzimage image = test_bzimage();
	struct error err = ERROR_NULL;
	struct guest_memory memory;
	struct boot_entry entry;

	image.header.cmdline_size = 4;
	test_memory(&memory, 32 * MIB);
	cr_assert_eq(load(&image, sizeof(image), -1, "four", &memory, &entry, &err), 0);
	cr_assert_eq(load(&image, sizeof(image), -1, "fives", &memory, &entry, &err), -E2BIG);
	cr_assert_str_eq(err.text, "the kernel command line has 5 bytes, this kernel takes at most "
				   "4");
}

Test(kernel, strangers_are_called_by_name)
{
	static const struct {
		const char *start, *words;
	} cases[] = {
		{"\x1f\x8b\x08", "gzip"},
		{"\xfd"
		 "7zXZ",
		 "xz data"},
		{"MZ\x90", "PE"},
		{"#!/bin/sh\n", "script"},
		{"QFI\xfb", "qcow2"},
		{"070701", "cpio"},
		{"hello", "neither a bzImage nor an ELF"},
	};
	struct guest_memory memory;
	struct boot_entry entry;

	test_memory(&memory, 2 * MIB);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char file[1024] = {0};
		struct error err = ERROR_NULL;

		memcpy(file, cases[i].start, strlen(cases[i].start));
		cr_assert_eq(load(file, sizeof(file), -1, "", &memory, &entry, &err), -ENOEXEC);
		cr_assert(strstr(err.text, cases[i].words), "%s", err.text);
	}
}

Test(kernel, needs_a_file_that_can_be_read)
{
	struct error err = ERROR_NULL;
	struct guest_memory memory;
	struct boot_entry entry;
	struct boot_source source = {.initrd_fd = -1, .command_line = ""};
	int ends[2];

	test_memory(&memory, 2 * MIB);
	cr_assert_eq(load("", 0, -1, "", &memory, &entry, &err), -ENOEXEC);
	cr_assert(strstr(err.text, "empty"), "%s", err.text);
	cr_assert_eq(pipe(ends), 0);
	source.kernel_fd = ends[0];
	cr_assert_eq(kernel_load(&source, &memory, &tables, &entry, &err), -EINVAL);
	cr_assert(strstr(err.text, "not a regular file"), "%s", err.text);
	source.kernel_fd = open("/dev/null", O_WRONLY);
	cr_assert_eq(kernel_load(&source, &memory, &tables, &entry, &err), -EINVAL);
}

/* Every kernel of this machine, at the least memory that the refusal names. */
Test(kernel, loads_distribution_kernels)
{
	struct guest_memory small, memory;
	glob_t kernels;

	if (glob("/boot/vmlinuz-*", 0, NULL, &kernels) != 0)
		cr_skip("no kernel under /boot\n");
	test_memory(&small, 2 * MIB);
	for (size_t i = 0; i < kernels.gl_pathc; i++) {
		struct boot_source source = {.initrd_fd = -1, .command_line = "console=ttyS0"};
		struct error err = ERROR_NULL;
		struct boot_entry entry;
		const char *at_least;

		source.kernel_fd = open(kernels.gl_pathv[i], O_RDONLY);
		cr_assert_geq(source.kernel_fd, 0);
		cr_assert_eq(kernel_load(&source, &small, &tables, &entry, &err), -E2BIG);
		at_least = strstr(err.text, "at least ");
		cr_assert(at_least, "%s", err.text);
		test_memory(&memory, strtoull(at_least + 9, NULL, 10) * MIB);
		cr_assert_eq(kernel_load(&source, &memory, &tables, &entry, &err), 0, "%s",
			     err.text);
		cr_assert_eq(entry.protocol, BOOT_LINUX64);
		memory_deinit(&memory);
		close(source.kernel_fd);
	}
	globfree(&kernels);
}
