/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A driver for unit tests of virtio devices: guest memory, rings in it, and the guest's side of
 * them. It skips the transport: what a driver would negotiate by registers is put where the
 * transport would put it. The rings may be reached directly, for guests that break the rules.
 */
#pragma once

#include "virtio/device.h"

#define TEST_DRIVER_MEMORY (4u << 20)
#define TEST_DRIVER_QUEUES 16

#define TEST_DESC_NEXT     1
#define TEST_DESC_WRITE    2
#define TEST_DESC_INDIRECT 4

struct test_descriptor {
	uint64_t address;
	uint32_t length;
	uint16_t flags, next;
};
struct test_available {
	uint16_t flags, index, ring[];
};
struct test_used {
	uint16_t flags, index;
	struct {
		uint32_t id, length;
	} ring[];
};

struct test_ring {
	uint16_t size;
	struct test_descriptor *descriptors; /* the rest point into guest memory */
	struct test_available *available;
	struct test_used *used;
	uint16_t n_free, first_free; /* descriptors, chained by `next` */
	uint16_t seen;               /* used elements reaped */
	int call_fd;                 /* owned: interrupts of the queue */
};

struct test_driver {
	struct guest_memory memory;
	gpa_t next; /* where the next allocation goes */
	struct virtio_device *virtio;
	struct loop *loop; /* owned, enabled */
	struct test_ring rings[TEST_DRIVER_QUEUES];
};

struct test_buffer {
	gpa_t gpa;
	uint32_t length;
};

void test_driver_init(struct test_driver *driver);
/* The device has been taken down. */
void test_driver_deinit(struct test_driver *driver);

/* Guest memory, zeroed. A test may put `next` back to use it again. */
gpa_t test_driver_alloc(struct test_driver *driver, uint64_t size, uint64_t align);
void *test_driver_at(struct test_driver *driver, gpa_t gpa);
/* A buffer with these bytes in it. */
struct test_buffer test_driver_put(struct test_driver *driver, const void *data, uint32_t size);

/* Sets up all queues of the device, negotiates `features` and starts it. */
void test_driver_start(struct test_driver *driver, struct virtio_device *virtio, uint64_t features);
/* Resets the device and waits until it is over. */
void test_driver_reset(struct test_driver *driver);

/* Offers a chain of what the device reads, then what it writes; returns its head. The ring must
 * have room. */
uint16_t test_driver_add(struct test_driver *driver, uint32_t queue, const struct test_buffer *out,
			 uint32_t n_out, const struct test_buffer *in, uint32_t n_in,
			 bool indirect);
void test_driver_kick(struct test_driver *driver, uint32_t queue);
/* Takes the next chain the device gave back; false if there is none. */
bool test_driver_reap(struct test_driver *driver, uint32_t queue, uint16_t *ret_head,
		      uint32_t *ret_length);
/* Turns the loop until a chain is back, 10 s at most; returns the bytes the device says it wrote.
 */
uint32_t test_driver_wait(struct test_driver *driver, uint32_t queue);
/* Turns of the loop as long as there is something to do at once. */
void test_driver_turn(struct test_driver *driver);
