/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The virtio devices of the board as one kind of thing, for tests that do the same to each:
 * start it, fill it with work, see that it works.
 */
#pragma once

#include "guest-tests/runtime/guest.h"
#include "guest-tests/runtime/virtio.h"

struct test_device {
	const char *name;
	struct virtio_device *dev;
	/* Fresh from reset up to DRIVER_OK. */
	void (*start)(void);
	/* Hands it requests and does not wait. */
	void (*load)(void);
	/* Waits for what load() left, where the device answers by itself. */
	void (*settle)(void);
	/* One piece of work done and checked; fails the test otherwise. */
	void (*check)(void);
	/* Hands it one request, the end of which it announces in this queue. */
	void (*request)(void);
	struct virtq *announces;
	/* Takes what was announced. */
	void (*collect)(void);
	/* Memory the device may write to under load(). */
	uint8_t *buffer;
	size_t buffer_len;
};

#define N_TEST_DEVICES 6

/* A request of an idle device whose end is announced by the queue's own interrupt, or the test
 * fails. */
void test_device_interrupt(const struct test_device *d);

/*
 * Finds disk, console, rng in this order, then balloon, net and vsock as far as they are there. The
 * disk's sector 0 must hold the bytes 0, 1, 2 …; the card's host sends every frame back.
 */
struct test_device *test_devices(void);
unsigned int test_device_count(void);
/* NULL: there is none of that name. */
struct test_device *test_device_find(const char *name);
