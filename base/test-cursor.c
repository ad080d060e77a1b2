/* SPDX-License-Identifier: Apache-2.0 */
/* Byte order, bounds, and the memory of the first failure. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <string.h>

#include "base/cursor.h"

Test(cursor, writes_little_endian)
{
	static const uint8_t expected[] = {0x01, 0x03, 0x02, 0x07, 0x06, 0x05, 0x04, 0x0f,
					   0x0e, 0x0d, 0x0c, 0x0b, 0x0a, 0x09, 0x08};
	uint8_t bytes[sizeof(expected)];
	struct cursor c = cursor_writer(bytes, sizeof(bytes));

	cursor_put_u8(&c, 0x01);
	cursor_put_u16(&c, 0x0203);
	cursor_put_u32(&c, 0x04050607);
	cursor_put_u64(&c, 0x08090a0b0c0d0e0f);
	cr_assert(eq(int, cursor_status(&c), 0));
	cr_assert(eq(sz, cursor_left(&c), 0));
	cr_assert(memcmp(bytes, expected, sizeof(bytes)) == 0);
}

Test(cursor, reads_what_it_wrote)
{
	uint8_t bytes[64];
	char text[3];
	struct cursor c = cursor_writer(bytes, sizeof(bytes));

	cursor_put_u8(&c, 0xfe);
	cursor_put_u16(&c, 0xfedc);
	cursor_put_u32(&c, 0xfedcba98);
	cursor_put_u64(&c, 0xfedcba9876543210);
	cursor_put_bytes(&c, "abc", 3);
	c = cursor_reader(bytes, c.at);
	cr_assert(eq(u8, cursor_get_u8(&c), 0xfe));
	cr_assert(eq(u16, cursor_get_u16(&c), 0xfedc));
	cr_assert(eq(u32, cursor_get_u32(&c), 0xfedcba98));
	cr_assert(eq(u64, cursor_get_u64(&c), 0xfedcba9876543210));
	cursor_get_bytes(&c, text, 3);
	cr_assert(memcmp(text, "abc", 3) == 0);
	cr_assert(eq(int, cursor_status(&c), 0));
}

Test(cursor, reading_past_the_end_gives_zero_and_stays_failed)
{
	static const uint8_t bytes[] = {1, 2, 3};
	struct cursor c = cursor_reader(bytes, sizeof(bytes));

	cr_assert(eq(u32, cursor_get_u32(&c), 0));
	cr_assert(eq(int, cursor_status(&c), -EBADMSG));
	cr_assert(eq(u8, cursor_get_u8(&c), 0), "a byte is left, but the cursor has failed");
	cr_assert(eq(sz, cursor_left(&c), 0));
}

Test(cursor, bytes_past_the_end_are_zeroed)
{
	char text[4] = "xyz";
	struct cursor c = cursor_reader("a", 1);

	cursor_get_bytes(&c, text, sizeof(text));
	cr_assert(memcmp(text, "\0\0\0\0", sizeof(text)) == 0);
	cr_assert(eq(int, cursor_status(&c), -EBADMSG));
}

Test(cursor, writing_past_the_end_writes_nothing)
{
	uint8_t bytes[4] = {9, 9, 9, 9};
	struct cursor c = cursor_writer(bytes, 3);

	cursor_put_u32(&c, 0);
	cursor_put_u8(&c, 0);
	cr_assert(eq(int, cursor_status(&c), -ENOSPC));
	cr_assert(memcmp(bytes, "\x09\x09\x09\x09", 4) == 0);
}

Test(cursor, a_view_points_inside)
{
	static const char text[] = "abcdef";
	struct cursor c = cursor_reader(text, 6);

	cursor_get_u16(&c);
	cr_assert(eq(ptr, (void *)cursor_get_view(&c, 3), (void *)(text + 2)));
	cr_assert(eq(sz, cursor_left(&c), 1));
}

Test(cursor, a_view_of_a_huge_size_does_not_wrap)
{
	struct cursor c = cursor_reader("abcdef", 6);

	cursor_get_u16(&c);
	cr_assert(cursor_get_view(&c, SIZE_MAX) == NULL);
	cr_assert(eq(int, cursor_status(&c), -EBADMSG));
}

Test(cursor, nothing_can_be_read_from_nothing)
{
	struct cursor c = cursor_reader(NULL, 0);

	cursor_get_bytes(&c, NULL, 0);
	cr_assert(eq(int, cursor_status(&c), 0));
	cr_assert(eq(u8, cursor_get_u8(&c), 0));
	cr_assert(eq(int, cursor_status(&c), -EBADMSG));
}
