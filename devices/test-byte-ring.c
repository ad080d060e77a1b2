/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ring of bytes: order is kept over its end, and only the oldest go.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "devices/byte-ring.h"

static struct byte_ring ring;

static void set_up(void)
{
	cr_assert_eq(byte_ring_init(&ring, 16), 0);
}

static void tear_down(void)
{
	byte_ring_deinit(&ring);
}

TestSuite(byte_ring, .init = set_up, .fini = tear_down);

/* Takes out all there is, as text. */
static const char *rest(void)
{
	static char text[64];
	uint32_t at = 0, n;
	const uint8_t *data;

	while ((n = byte_ring_peek(&ring, &data)) > 0) {
		memcpy(text + at, data, n);
		at += n;
		byte_ring_skip(&ring, n);
	}
	text[at] = '\0';
	return text;
}

Test(byte_ring, keeps_order_over_its_end)
{
	cr_assert_eq(byte_ring_put(&ring, "0123456789", 10), 0);
	byte_ring_skip(&ring, 8);
	cr_assert_eq(byte_ring_put(&ring, "abcdefghijklmn", 14), 0);
	cr_assert_eq(byte_ring_used(&ring), 16);
	cr_assert_str_eq(rest(), "89abcdefghijklmn");
}

Test(byte_ring, the_oldest_make_room)
{
	cr_assert_eq(byte_ring_put(&ring, "0123456789", 10), 0);
	cr_assert_eq(byte_ring_put(&ring, "abcdefghij", 10), 4);
	cr_assert_str_eq(rest(), "456789abcdefghij");
}

Test(byte_ring, more_than_it_holds_leaves_the_end)
{
	byte_ring_put(&ring, "xyz", 3);
	cr_assert_eq(byte_ring_put(&ring, "0123456789abcdefghij", 20), 7);
	cr_assert_str_eq(rest(), "456789abcdefghij");
}

Test(byte_ring, counters_may_wrap)
{
	ring.head = ring.tail = UINT32_MAX - 2;
	cr_assert_eq(byte_ring_put(&ring, "0123456789", 10), 0);
	cr_assert_eq(byte_ring_used(&ring), 10);
	cr_assert_str_eq(rest(), "0123456789");
}
