/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages between broker and sealed process: what is sent is what arrives, and what nobody would
 * send is refused.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "disk/copy.h"
#include "disk/link.h"

static int pair[2];
static uint8_t bytes[LINK_MESSAGE_MAX];

static void init(void)
{
	cr_assert(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
}

static void deinit(void)
{
	close(pair[0]);
	close(pair[1]);
}

TestSuite(link, .init = init, .fini = deinit, .timeout = 60);

static size_t receive(struct link_message *message)
{
	size_t n_fds;
	ssize_t n = fd_receive(pair[1], bytes, sizeof(bytes), NULL, 0, &n_fds);

	cr_assert_gt(n, 0);
	cr_assert_eq(link_parse(bytes, (size_t)n, message), 0);
	return (size_t)n;
}

Test(link, a_question_arrives)
{
	struct link_message message;

	cr_assert_eq(link_send_open(pair[0], 1, true, "qcow2", "base.qcow2"), 0);
	receive(&message);
	cr_expect_eq(message.kind, LINK_OPEN);
	cr_expect_eq(message.which, 1);
	cr_expect(message.writable);
	cr_expect_eq(message.format_size, 5);
	cr_expect_eq(message.text_size, 10);
	cr_expect(!memcmp(message.text, "base.qcow2", 10));
	cr_assert_eq(link_send_open(pair[0], 0, false, NULL, ""), 0);
	receive(&message);
	cr_expect_eq(message.format_size, 0);
	cr_expect_eq(message.text_size, 0);
}

Test(link, a_failure_arrives)
{
	struct link_message message;

	cr_assert_eq(link_send_text(pair[0], LINK_FAILED, -EIO, "it is broken", -1), 0);
	receive(&message);
	cr_expect_eq(message.kind, LINK_FAILED);
	cr_expect_eq(message.code, -EIO);
	cr_expect_eq(message.text_size, 12);
}

Test(link, an_item_arrives)
{
	struct copy_item item = {1, 2, 3, 4, 5}, back;
	struct link_message message;

	cr_assert_eq(link_send_item(pair[0], bytes, 2, &copy_item_table, &item), 0);
	receive(&message);
	cr_expect_eq(message.which, 2);
	struct cursor in = cursor_reader(message.data, message.data_size);
	cr_assert_eq(table_init(&copy_item_table, &back), 0);
	cr_expect_eq(table_decode(&copy_item_table, 0, &back, &in), 0);
	cr_expect(!memcmp(&item, &back, sizeof(item)));
}

/* Cut short or with something behind it: but an item's length is its table's business. */
Test(link, what_is_cut_or_too_long_is_refused)
{
	struct link_message message;
	size_t n;

	cr_assert_eq(link_send_open(pair[0], 0, false, "raw", "some name"), 0);
	n = receive(&message);
	for (size_t i = 0; i < n; i++)
		cr_expect_eq(link_parse(bytes, i, &message), -EBADMSG, "%zu", i);
	bytes[n] = 0;
	cr_expect_eq(link_parse(bytes, n + 1, &message), -EBADMSG);
}

Test(link, any_bytes_at_all)
{
	struct link_message message;
	unsigned int seed = 1;

	for (int i = 0; i < 200000; i++) {
		size_t n = (size_t)rand_r(&seed) % 64;

		for (size_t k = 0; k < n; k++)
			bytes[k] = (uint8_t)(k ? rand_r(&seed) % 7 : rand_r(&seed) % 9);
		if (link_parse(bytes, n, &message) == 0 && message.kind != LINK_ITEM) {
			cr_assert_leq(message.text_size, n);
			cr_assert(!message.text_size || (const uint8_t *)message.text >= bytes);
		}
	}
}
