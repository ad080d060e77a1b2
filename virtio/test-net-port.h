/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A card for tests of ports: keeps what it is given and told, and lends and takes only as much as
 * the test says. Each test of a port runs on both engines of the loop.
 */
#pragma once

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <criterion/parameterized.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/macros.h"
#include "virtio/net-port.h"

#define TEST_FRAMES 8192
#define TEST_SENT   (1 << 16)
#define TEST_WAIT   (20ull * 1000000000)
#define UNSENT      INT32_MAX

static int engines[] = {0, 1};

static inline struct criterion_test_params both_engines(void)
{
	return cr_make_param_array(int, engines, ARRAY_SIZE(engines));
}

#define BOTH(suite, name)                        \
	ParameterizedTestParameters(suite, name) \
	{                                        \
		return both_engines();           \
	}                                        \
	ParameterizedTest(int *without_uring, suite, name)

struct test_frame {
	uint8_t *data; /* owned */
	uint32_t size;
	bool lent; /* came by `filled` */
};

struct test_card {
	struct net_client client;
	struct net_port *port;
	struct loop *loop;
	uint32_t may_lend, may_receive; /* frames */
	uint8_t lent[NET_FRAME_MAX];
	bool is_lent;
	struct test_frame frames[TEST_FRAMES];
	uint32_t n_frames, n_lends, n_refused;
	int32_t *results; /* owned; by argument, UNSENT: under way */
	uint32_t n_sent, n_rooms, n_batches, n_links;
	uint32_t n_called; /* since the last batch */
	bool stopped;
	char why[200];
};

static inline struct test_card *to_card(struct net_client *client)
{
	return container_of(client, struct test_card, client);
}

static inline void keep_frame(struct test_card *card, const void *data, uint32_t size, bool lent)
{
	struct test_frame *frame = &card->frames[card->n_frames++];

	cr_assert(lt(u32, card->n_frames, TEST_FRAMES));
	frame->data = malloc(size);
	memcpy(frame->data, data, size);
	frame->size = size;
	frame->lent = lent;
}

static inline void card_sent(struct net_client *client, uint32_t arg, int result)
{
	struct test_card *card = to_card(client);

	cr_assert(lt(u32, arg, TEST_SENT));
	cr_assert(eq(i32, card->results[arg], UNSENT));
	cr_assert(le(i32, result, 0));
	card->results[arg] = result;
	card->n_sent++;
	card->n_called++;
}

static inline void card_room(struct net_client *client)
{
	to_card(client)->n_rooms++;
}

/* Pieces of odd sizes, the first smaller than the header. */
static inline uint32_t card_lend(struct net_client *client, struct iovec *iov, uint32_t iov_max)
{
	struct test_card *card = to_card(client);

	cr_assert(not(card->stopped));
	cr_assert(not(card->is_lent));
	cr_assert(ge(u32, iov_max, 3));
	if (!card->may_lend)
		return 0;
	card->may_lend--;
	card->n_lends++;
	card->is_lent = true;
	iov[0] = (struct iovec){card->lent, 7};
	iov[1] = (struct iovec){card->lent + 7, 1001};
	iov[2] = (struct iovec){card->lent + 1008, sizeof(card->lent) - 1008};
	return 3;
}

static inline void card_filled(struct net_client *client, uint32_t size)
{
	struct test_card *card = to_card(client);

	cr_assert(card->is_lent);
	card->is_lent = false;
	card->n_called++;
	if (size)
		keep_frame(card, card->lent, size, true);
	else
		card->may_lend++;
}

static inline bool card_receive(struct net_client *client, const void *frame, uint32_t size)
{
	struct test_card *card = to_card(client);

	cr_assert(not(card->stopped));
	cr_assert(not(card->is_lent));
	card->n_called++;
	if (!card->may_receive) {
		card->n_refused++;
		return false;
	}
	card->may_receive--;
	keep_frame(card, frame, size, false);
	return true;
}

static inline void card_batch(struct net_client *client)
{
	to_card(client)->n_batches++;
	to_card(client)->n_called = 0;
}

static inline void card_link(struct net_client *client, bool up, const char *why)
{
	struct test_card *card = to_card(client);

	cr_assert(not(up));
	card->n_links++;
	snprintf(card->why, sizeof(card->why), "%s", why);
}

static const struct net_client_ops card_ops = {
	.sent = card_sent,
	.room = card_room,
	.lend = card_lend,
	.filled = card_filled,
	.receive = card_receive,
	.batch = card_batch,
	.link = card_link,
};

static inline struct test_card *card_new(int without_uring)
{
	const struct loop_options options = {.without_uring = without_uring, .name = "test"};
	struct test_card *card = calloc(1, sizeof(*card));

	signal(SIGPIPE, SIG_IGN);
	card->client.ops = &card_ops;
	card->may_lend = card->may_receive = UINT32_MAX / 2;
	card->results = malloc(TEST_SENT * sizeof(*card->results));
	for (uint32_t i = 0; i < TEST_SENT; i++)
		card->results[i] = UNSENT;
	cr_assert(eq(int, loop_new(&card->loop, &options, NULL), 0));
	if (!without_uring && !loop_has_uring(card->loop))
		cr_skip_test("this host has no io_uring");
	cr_assert(eq(int, loop_enable(card->loop), 0));
	return card;
}

static inline void card_plug(struct test_card *card, struct net_port *port)
{
	card->port = port;
	port->client = &card->client;
}

static inline void card_free(struct test_card *card)
{
	cr_assert(not(card->is_lent));
	cr_assert(eq(u32, card->n_called, 0));
	if (card->port)
		card->port->ops->free(card->port);
	loop_free(card->loop);
	for (uint32_t i = 0; i < card->n_frames; i++)
		free(card->frames[i].data);
	free(card->results);
	free(card);
}

/* Turns the loop until something is so; a test that waits for ever is one that failed. */
#define UNTIL(card, what)                                                                          \
	do {                                                                                       \
		uint64_t give_up = loop_now((card)->loop) + TEST_WAIT;                             \
		while (!(what)) {                                                                  \
			cr_assert(eq(int, loop_turn((card)->loop, give_up), 0));                   \
			cr_assert(lt(u64, loop_now((card)->loop), give_up), "waiting for " #what); \
		}                                                                                  \
	} while (0)

/* Everything that was going to happen has. */
static inline void card_settle(struct test_card *card)
{
	for (int i = 0; i < 8; i++)
		cr_assert(eq(int, loop_turn(card->loop, 0), 0));
}
