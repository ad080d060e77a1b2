/* SPDX-License-Identifier: Apache-2.0 */
/* The binary form: its bytes, older versions, and streams that lie. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>

#include "base/test-table.h"

static struct sample sample;

static void setup(void)
{
	cr_assert(eq(int, table_init(&sample_table, &sample), 0));
}

static void teardown(void)
{
	table_deinit(&sample_table, &sample);
}

TestSuite(binary, .init = setup, .fini = teardown);

struct stream {
	uint8_t bytes[1024];
	size_t size;
};

/* A sample with something in every field. */
static struct stream encode_sample(void)
{
	struct stream stream;
	struct cursor out = cursor_writer(stream.bytes, sizeof(stream.bytes));

	cr_assert(eq(int,
		     sample_read(&sample,
				 "{\"tiny\": 1, \"medium\": 258, \"text\": \"abc\", \"key\": "
				 "\"00ff10ab\", " SAMPLE_BOX
				 ", \"parts\": [{\"label\": \"x\", \"weight\": 7}]}",
				 NULL),
		     0));
	cr_assert(eq(int, table_encode(&sample_table, &sample, &out), 0));
	stream.size = out.at;
	return stream;
}

static int decode(uint16_t version, const void *bytes, size_t size)
{
	struct cursor in = cursor_reader(bytes, size);

	return table_decode(&sample_table, version, &sample, &in);
}

static const uint8_t part_stream[] = {1, 0, 0, 0, 'x', 7, 0, 0, 0, 22, 0};

Test(binary, bytes_are_as_the_format_says)
{
	struct sample_part part = {.label = (char *)"x", .weight = 7, .added = 22};
	uint8_t bytes[64];
	struct cursor out = cursor_writer(bytes, sizeof(bytes));

	cr_assert(eq(int, table_encode(&sample_part_table, &part, &out), 0));
	cr_assert(eq(sz, out.at, sizeof(part_stream)));
	cr_assert(memcmp(bytes, part_stream, sizeof(part_stream)) == 0);
}

Test(binary, lists_carry_their_count_and_absent_text_its_mark)
{
	struct stream s = encode_sample();
	/* on, tiny, small, medium, large, size, colour: 1 + 1 + 2 + 4 + 8 + 8 + 4; "abc": 4 + 3;
	 * "plain": 4 + 5; key: 4; box: 1 + (4 + 1 + 4 + 2) */
	size_t list = 28 + 7 + 9 + 4 + 12;

	cr_assert(memcmp(s.bytes + 4, "\x02\x01\0\0", 4) == 0, "medium is 258");
	cr_assert(memcmp(s.bytes + list, "\1\0\0\0\1\0\0\0x\7\0\0\0", 13) == 0);
	free(sample.text);
	sample.text = NULL;
	s.size = 0;
	struct cursor out = cursor_writer(s.bytes, sizeof(s.bytes));
	cr_assert(eq(int, table_encode(&sample_table, &sample, &out), 0));
	cr_assert(memcmp(s.bytes + 28, "\xff\xff\xff\xff", 4) == 0);
}

Test(binary, what_was_encoded_decodes_to_the_same)
{
	struct stream s = encode_sample(), again;
	struct cursor out = cursor_writer(again.bytes, sizeof(again.bytes));

	teardown();
	setup();
	cr_assert(eq(int, decode(2, s.bytes, s.size), 0));
	cr_assert(eq(str, sample.parts[0].label, "x"));
	cr_assert(eq(u32, sample.hidden, 7));
	cr_assert(eq(int, table_encode(&sample_table, &sample, &out), 0));
	cr_assert(eq(sz, out.at, s.size));
	cr_assert(memcmp(again.bytes, s.bytes, s.size) == 0);
}

Test(binary, decoding_replaces_what_was_there)
{
	struct stream s = encode_sample();

	cr_assert(eq(int, decode(2, s.bytes, s.size), 0));
	cr_assert(eq(int, decode(2, s.bytes, s.size), 0));
	cr_assert(eq(u32, sample.n_parts, 1));
}

Test(binary, too_small_a_buffer_is_enospc)
{
	struct stream s = encode_sample();
	struct cursor out;

	for (size_t size = 0; size < s.size; size++) {
		out = cursor_writer(s.bytes, size);
		cr_assert(eq(int, table_encode(&sample_table, &sample, &out), -ENOSPC), "%zu",
			  size);
	}
}

Test(binary, every_truncation_is_ebadmsg)
{
	struct stream s = encode_sample();

	for (size_t size = 0; size < s.size; size++)
		cr_assert(eq(int, decode(2, s.bytes, size), -EBADMSG), "%zu", size);
}

Test(binary, a_newer_version_is_refused)
{
	struct stream s = encode_sample();

	cr_assert(eq(int, decode(3, s.bytes, s.size), -ENOTSUP));
}

/* Version 1 of a part ends after its weight. */
Test(binary, an_older_version_leaves_newer_fields_initial)
{
	static const uint8_t stream[] = {
		1,                                       /* on */
		2,                                       /* tiny */
		10,   0,                                 /* small */
		0,    0,    0,    0,                     /* medium */
		0,    0,    0,    0,    0,   0, 0, 0,    /* large */
		0,    0,    1,    0,    0,   0, 0, 0,    /* size */
		0,    0,    0,    0,                     /* colour */
		0xff, 0xff, 0xff, 0xff,                  /* text */
		1,    0,    0,    0,    'k',             /* kind */
		1,    2,    3,    4,                     /* key */
		0,                                       /* box.open */
		1,    0,    0,    0,    'b', 9, 0, 0, 0, /* box.best, without added */
		1,    0,    0,    0,                     /* one part */
		1,    0,    0,    0,    'x', 7, 0, 0, 0, /* without added */
		3,    0,    0,    0,                     /* hidden */
		4,    0,    0,    0,                     /* late */
	};
	struct cursor in = cursor_reader(stream, sizeof(stream));

	cr_assert(eq(int, table_decode(&sample_table, 1, &sample, &in), 0));
	cr_assert(eq(sz, cursor_left(&in), 0));
	cr_assert(eq(u32, sample.late, 4));
	cr_assert(eq(str, sample.later, "two"), "initial");
	cr_assert(eq(u16, sample.parts[0].added, 22), "initial");
	/* Version 0 had no `late` either. */
	teardown();
	setup();
	cr_assert(eq(int, decode(0, stream, sizeof(stream) - 4), 0));
	cr_assert(eq(u32, sample.late, 11), "initial");
}

/* Each lie in place of one byte of a good stream. */
static void refuses(size_t at, uint8_t byte)
{
	struct stream s = encode_sample();

	cr_assert(ne(u8, s.bytes[at], byte));
	s.bytes[at] = byte;
	cr_assert(eq(int, decode(2, s.bytes, s.size), -EBADMSG));
}

Test(binary, a_switch_is_zero_or_one)
{
	refuses(0, 2);
}

Test(binary, a_number_out_of_range_is_refused)
{
	refuses(2, 9);
	refuses(2, 21);
}

Test(binary, an_unknown_choice_is_refused)
{
	refuses(24, 3);
}

Test(binary, too_long_a_text_is_refused)
{
	refuses(28, 17);
	refuses(31, 0x80);
}

Test(binary, a_text_with_a_nul_is_refused)
{
	refuses(33, 0);
}

Test(binary, a_text_that_is_not_utf8_is_refused)
{
	refuses(33, 0xff);
}

Test(binary, a_list_longer_than_its_places_is_refused)
{
	struct stream s = encode_sample(), longer = s;
	size_t list = 60, part = 11, rest = s.size - list - 4 - part;

	for (uint8_t n = SAMPLE_PARTS_MAX; n <= SAMPLE_PARTS_MAX + 1; n++) {
		longer.bytes[list] = n;
		for (size_t i = 0; i < n; i++)
			memcpy(longer.bytes + list + 4 + i * part, s.bytes + list + 4, part);
		longer.size = list + 4 + n * part + rest;
		memcpy(longer.bytes + longer.size - rest, s.bytes + s.size - rest, rest);
		cr_assert(eq(int, decode(2, longer.bytes, longer.size),
			     n == SAMPLE_PARTS_MAX ? 0 : -EBADMSG));
	}
}

Test(binary, a_required_text_cannot_be_absent)
{
	uint8_t bytes[sizeof(part_stream) - 1] = {0xff, 0xff, 0xff, 0xff, 7, 0, 0, 0, 22, 0};
	struct cursor in = cursor_reader(bytes, sizeof(bytes));
	struct sample_part part;

	cr_assert(eq(int, table_init(&sample_part_table, &part), 0));
	cr_assert(eq(int, table_decode(&sample_part_table, 0, &part, &in), -EBADMSG));
}
