/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bzImage loader, on images made by hand: what is taken from the header, and one refusal each.
 */
#include <criterion/criterion.h>
#include <errno.h>

#include "vmm/x86/bzimage.h"
#include "vmm/x86/test-image.h"

static int parse(const struct test_bzimage *image, struct bzimage *ret, struct error *err)
{
	return bzimage_parse((const uint8_t *)image, BZIMAGE_HEAD, sizeof(*image), ret, err);
}

/* The image is refused, with these words in the sentence. */
static void refused(const struct test_bzimage *image, const char *words)
{
	struct error err = ERROR_NULL;
	struct bzimage parsed;

	cr_assert_eq(parse(image, &parsed, &err), -ENOEXEC);
	cr_assert(strstr(err.text, words), "\"%s\" is not in \"%s\"", words, err.text);
}

Test(bzimage, takes_placement_from_header)
{
	struct test_bzimage image = test_bzimage();
	struct bzimage parsed;

	cr_assert_eq(parse(&image, &parsed, NULL), 0);
	cr_assert_eq(parsed.version, 0x20f);
	cr_assert_eq(parsed.code_offset, TEST_SETUP);
	cr_assert_eq(parsed.code_size, TEST_CODE);
	cr_assert_eq(parsed.load, 16 * MIB);
	cr_assert_eq(parsed.init_size, 4 * MIB);
	cr_assert_eq(parsed.initrd_max, 0x7fffffff);
	cr_assert_eq(parsed.command_max, 2047);
	cr_assert_eq(parsed.header_size, 0x26c - 0x1f1);
}

Test(bzimage, zero_setup_sectors_mean_four)
{
	struct test_bzimage image = test_bzimage();
	struct bzimage parsed;

	image.header.setup_sects = 0;
	image.header.syssize = 0x90;
	cr_assert_eq(parse(&image, &parsed, NULL), 0);
	cr_assert_eq(parsed.code_offset, 5 * 512);
	cr_assert_eq(parsed.code_size, 0x900);
}

Test(bzimage, leaves_out_what_follows_the_code)
{
	struct test_bzimage image = test_bzimage();
	struct bzimage parsed;

	image.header.syssize = TEST_CODE / 16 - 10;
	cr_assert_eq(parse(&image, &parsed, NULL), 0);
	cr_assert_eq(parsed.code_size, TEST_CODE - 160);
}

Test(bzimage, last_step_of_code_may_be_short)
{
	struct test_bzimage image = test_bzimage();
	struct bzimage parsed;

	cr_assert_eq(
		bzimage_parse((uint8_t *)&image, BZIMAGE_HEAD, sizeof(image) - 15, &parsed, NULL),
		0);
	cr_assert_eq(parsed.code_size, TEST_CODE - 15);
	cr_assert_eq(
		bzimage_parse((uint8_t *)&image, BZIMAGE_HEAD, sizeof(image) - 16, &parsed, NULL),
		-ENOEXEC);
}

Test(bzimage, refuses_kernel_without_64_bit_entry)
{
	struct test_bzimage image = test_bzimage();

	image.header.xloadflags = 0;
	refused(&image, "no 64-bit entry point");
	image = test_bzimage();
	image.header.version = 0x20b;
	refused(&image, "boot protocol 2.11");
}

Test(bzimage, refuses_zimage)
{
	struct test_bzimage image = test_bzimage();

	image.header.loadflags = 0;
	refused(&image, "zImage");
}

Test(bzimage, refuses_damaged_header)
{
	struct test_bzimage image = test_bzimage();

	image.header.boot_flag = 0;
	refused(&image, "damaged");
	image = test_bzimage();
	image.header.jump = 0x10eb;
	refused(&image, "truncated or too old");
}

Test(bzimage, refuses_truncated_header)
{
	struct test_bzimage image = test_bzimage();
	struct bzimage parsed;

	for (size_t size = 0; size < 0x26c; size++)
		cr_assert_eq(bzimage_parse((uint8_t *)&image, size, size, &parsed, NULL), -ENOEXEC);
}

Test(bzimage, refuses_truncated_code)
{
	struct test_bzimage image = test_bzimage();

	image.header.syssize = TEST_CODE / 16 + 1;
	refused(&image, "truncated");
	image = test_bzimage();
	image.header.setup_sects = 255;
	refused(&image, "truncated");
}

Test(bzimage, refuses_code_larger_than_its_memory)
{
	struct test_bzimage image = test_bzimage();

	image.header.init_size = TEST_CODE - 1;
	refused(&image, "do not go into");
	image = test_bzimage();
	image.header.syssize = 0x20;
	refused(&image, "damaged");
}

Test(bzimage, refuses_address_that_does_not_suit_alignment)
{
	struct test_bzimage image = test_bzimage();

	image.header.pref_address = 17 * MIB;
	refused(&image, "alignment");
	image = test_bzimage();
	image.header.kernel_alignment = 3 * MIB;
	refused(&image, "alignment");
	image = test_bzimage();
	image.header.kernel_alignment = 0;
	refused(&image, "alignment");
}

static int load(const struct test_bzimage *image, uint64_t memory_size, struct guest_memory *memory,
		struct error *err)
{
	struct bzimage parsed;

	cr_assert_eq(parse(image, &parsed, NULL), 0);
	test_memory(memory, memory_size);
	return bzimage_load(&parsed, test_file(image, sizeof(*image)), memory, err);
}

Test(bzimage, loads_code_where_it_belongs)
{
	struct test_bzimage image = test_bzimage();
	struct guest_memory memory;
	void *code;

	cr_assert_eq(load(&image, 20 * MIB, &memory, NULL), 0);
	cr_assert_eq(memory_translate(&memory, 16 * MIB, TEST_CODE, &code), 0);
	cr_assert_arr_eq(code, image.code, TEST_CODE);
}

Test(bzimage, says_how_much_memory_it_needs)
{
	struct test_bzimage image = test_bzimage();
	struct error err = ERROR_NULL;
	struct guest_memory memory;

	image.header.init_size = 4 * MIB + 1;
	cr_assert_eq(load(&image, 20 * MIB, &memory, &err), -E2BIG);
	cr_assert_str_eq(err.text, "cannot load the kernel: it needs 22 MiB, the VM has 20: give "
				   "--memory at least 22M");
}

Test(bzimage, refuses_address_no_vm_has)
{
	struct test_bzimage image = test_bzimage();
	struct error err = ERROR_NULL;
	struct guest_memory memory;

	image.header.pref_address = 0xffffffffffe00000;
	cr_assert_eq(load(&image, 20 * MIB, &memory, &err), -ENOEXEC);
	image.header.pref_address = 0x100000000;
	cr_assert_eq(load(&image, 20 * MIB, &memory, &err), -E2BIG);
	cr_assert(strstr(err.text, "in a VM of any size"), "%s", err.text);
	image.header.pref_address = 0;
	cr_assert_eq(load(&image, 20 * MIB, &memory, &err), -ENOEXEC);
	cr_assert(strstr(err.text, "first MiB"), "%s", err.text);
}
