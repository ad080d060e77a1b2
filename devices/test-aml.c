/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The AML builder against encodings worked out by hand from the specification. Whether whole tables
 * make sense is for iasl to say (vmm/x86/test-acpi.c).
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "devices/aml.h"

static uint8_t buffer[65536];

static struct aml start(void)
{
	memset(buffer, 0xee, sizeof(buffer));
	return aml_writer(buffer, sizeof(buffer));
}

/* What was written is these bytes. */
static void is(const struct aml *aml, const char *bytes, size_t size)
{
	cr_assert_eq(aml_status(aml), 0);
	cr_assert_eq(aml->out.at, size, "%zu bytes instead of %zu", aml->out.at, size);
	cr_assert_arr_eq(buffer, bytes, size);
}
#define IS(aml, text) is((aml), (text), sizeof(text) - 1)

Test(aml, integers_take_the_shortest_form)
{
	struct aml aml = start();

	aml_integer(&aml, 0);
	aml_integer(&aml, 1);
	aml_integer(&aml, 2);
	aml_integer(&aml, 0xff);
	aml_integer(&aml, 0x100);
	aml_integer(&aml, 0x10000);
	aml_integer(&aml, 0x100000000);
	IS(&aml, "\x00\x01\x0a\x02\x0a\xff\x0b\x00\x01\x0c\x00\x00\x01\x00"
		 "\x0e\x00\x00\x00\x00\x01\x00\x00\x00");
}

Test(aml, paths_have_segments_of_four)
{
	struct aml aml = start();

	aml_path(&aml, "A");
	aml_path(&aml, "\\_SB");
	aml_path(&aml, "^^AB1");
	aml_path(&aml, "\\_SB.PCI0");
	aml_path(&aml, "A.BC.DEF");
	IS(&aml, "A___"
		 "\\_SB_"
		 "^^AB1_"
		 "\\\x2e_SB_PCI0"
		 "\x2f\x03"
		 "A___BC__DEF_");
}

Test(aml, eisa_ids_are_packed)
{
	struct aml aml = start();

	aml_name_eisa_id(&aml, "_HID", "PNP0A08");
	IS(&aml, "\x08_HID\x0c\x41\xd0\x0a\x08");
}

Test(aml, block_lengths_count_themselves)
{
	struct aml aml = start();

	aml_scope(&aml, "\\_SB");
	aml_device(&aml, "DEV0");
	aml_name_integer(&aml, "_UID", 1);
	aml_end(&aml);
	aml_end(&aml);
	IS(&aml, "\x10\x13\\_SB_"
		 "\x5b\x82\x0b"
		 "DEV0"
		 "\x08_UID\x01");
}

/* Around every change of the length's own size: the length read back covers exactly what is there.
 */
Test(aml, block_lengths_grow)
{
	static const size_t sizes[] = {1,    57,   58,   59,   60,   61,    4087, 4088,
				       4089, 4090, 4091, 4092, 4093, 40000, 65000};

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct aml aml = start();
		uint32_t n, length;

		aml_scope(&aml, "ABCD");
		for (size_t k = 0; k < sizes[i]; k++)
			aml_integer(&aml, 1);
		aml_end(&aml);
		cr_assert_eq(aml_status(&aml), 0);
		n = buffer[1] >> 6;
		length = n == 0 ? buffer[1] & 0x3f : buffer[1] & 0xf;
		for (uint32_t k = 0; k < n; k++)
			length |= buffer[2 + k] << (4 + 8 * k);
		cr_assert_eq(length, aml.out.at - 1);
		cr_assert_eq(length, 1 + n + 4 + sizes[i]);
		cr_assert_eq(memcmp(buffer + 2 + n, "ABCD\x01", 5), 0);
		cr_assert_eq(buffer[aml.out.at - 1], 1);
		cr_assert_eq(buffer[aml.out.at], 0xee);
	}
}

Test(aml, resources_are_a_buffer_with_an_end_tag)
{
	struct aml aml = start();

	aml_name(&aml, "_CRS");
	aml_resources(&aml);
	aml_io(&aml, 0x3f8, 8);
	aml_interrupt_edge(&aml, 4);
	aml_memory32(&aml, 0xe8000000, 0x100000);
	aml_end(&aml);
	IS(&aml, "\x08_CRS\x11\x22\x0a\x1f"
		 "\x47\x01\xf8\x03\xf8\x03\x01\x08"
		 "\x89\x06\x00\x03\x01\x04\x00\x00\x00"
		 "\x86\x09\x00\x01\x00\x00\x00\xe8\x00\x00\x10\x00"
		 "\x79\x00");
}

Test(aml, windows_have_first_last_and_size)
{
	struct aml aml = start();

	aml_bus_window(&aml, 0, 0);
	aml_io_window(&aml, 0x1000, 0xffff);
	aml_memory32_window(&aml, 0xc0000000, 0xe7ffffff);
	IS(&aml, "\x88\x0d\x00\x02\x0c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00"
		 "\x88\x0d\x00\x01\x0c\x03\x00\x00\x00\x10\xff\xff\x00\x00\x00\xf0"
		 "\x87\x17\x00\x00\x0c\x01\x00\x00\x00\x00\x00\x00\x00\xc0\xff\xff\xff\xe7"
		 "\x00\x00\x00\x00\x00\x00\x00\x28");
}

Test(aml, fields_count_bits)
{
	struct aml aml = start();

	aml_port_region(&aml, "REGN", 0x610, 1);
	aml_field(&aml, "REGN");
	aml_field_bits(&aml, "ABCD", 8);
	aml_field_bits(&aml, "EFGH", 64);
	aml_end(&aml);
	IS(&aml, "\x5b\x80REGN\x01\x0b\x10\x06\x01"
		 "\x5b\x81\x11REGN\x01"
		 "ABCD\x08"
		 "EFGH\x40\x04");
}

Test(aml, fields_of_words)
{
	struct aml aml = start();

	aml_field32(&aml, "REGN");
	aml_field_bits(&aml, "ABCD", 32);
	aml_end(&aml);
	IS(&aml, "\x5b\x81\x0bREGN\x43"
		 "ABCD\x20");
}

Test(aml, methods_hold_operators)
{
	struct aml aml = start();

	aml_method(&aml, "_EVT", 1, true);
	aml_operator(&aml, AML_STORE);
	aml_arg(&aml, 0);
	aml_local(&aml, 1);
	aml_if(&aml);
	aml_operator(&aml, AML_AND);
	aml_local(&aml, 1);
	aml_integer(&aml, 4);
	aml_nowhere(&aml);
	aml_notify(&aml, "ABCD", 0x80);
	aml_end(&aml);
	aml_else(&aml);
	aml_operator(&aml, AML_RETURN);
	aml_integer(&aml, 0);
	aml_end(&aml);
	aml_end(&aml);
	IS(&aml, "\x14\x1b_EVT\x09"
		 "\x70\x68\x61"
		 "\xa0\x0d\x7b\x61\x0a\x04\x00"
		 "\x86"
		 "ABCD\x0a\x80"
		 "\xa1\x03\xa4\x00");
}

Test(aml, full_buffer_is_reported_once)
{
	for (size_t size = 0; size < 24; size++) {
		struct aml aml;

		memset(buffer, 0xee, sizeof(buffer));
		aml = aml_writer(buffer, size);
		aml_device(&aml, "DEV0");
		aml_name(&aml, "_CRS");
		aml_resources(&aml);
		aml_io(&aml, 0x70, 2);
		aml_end(&aml);
		aml_end(&aml);
		cr_assert_eq(aml_status(&aml), size < 24 ? -ENOSPC : 0);
		cr_assert_eq(buffer[size], 0xee);
	}
}
