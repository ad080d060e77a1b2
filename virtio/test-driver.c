/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest's half of a virtqueue, on the thread of the device's loop: calls here and turns of the
 * loop alternate, so nothing is concurrent.
 */
#include "virtio/test-driver.h"

#include <criterion/criterion.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>

#include "base/atomic.h"
#include "base/fd.h"
#include "devices/registers.h"

#define WAIT_NS 10000000000u

void test_driver_init(struct test_driver *driver)
{
	const struct memory_options options = {.kind = MEMORY_PRIVATE};
	const struct memory_range ranges[] = {{0, TEST_DRIVER_MEMORY}};
	const struct loop_options loop_options = {.name = "test"};
	struct error err = ERROR_NULL;

	*driver = (struct test_driver){.next = GUEST_PAGE_SIZE};
	cr_assert_eq(memory_init(&driver->memory, &options, ranges, 1, &err), 0, "%s", err.text);
	cr_assert_eq(loop_new(&driver->loop, &loop_options, &err), 0, "%s", err.text);
	cr_assert_eq(loop_enable(driver->loop), 0);
}

void test_driver_deinit(struct test_driver *driver)
{
	for (uint32_t i = 0; i < TEST_DRIVER_QUEUES; i++)
		if (driver->rings[i].size)
			driver->rings[i].call_fd = fd_close(driver->rings[i].call_fd);
	driver->loop = loop_free(driver->loop);
	memory_deinit(&driver->memory);
}

gpa_t test_driver_alloc(struct test_driver *driver, uint64_t size, uint64_t align)
{
	gpa_t gpa = align_up(driver->next, align);

	cr_assert_leq(gpa + size, TEST_DRIVER_MEMORY, "the test's guest memory is full");
	driver->next = gpa + size;
	memset(test_driver_at(driver, gpa), 0, size);
	return gpa;
}

void *test_driver_at(struct test_driver *driver, gpa_t gpa)
{
	void *host;

	cr_assert_eq(memory_translate(&driver->memory, gpa, 1, &host), 0);
	return host;
}

struct test_buffer test_driver_put(struct test_driver *driver, const void *data, uint32_t size)
{
	struct test_buffer buffer = {test_driver_alloc(driver, size, 16), size};

	memcpy(test_driver_at(driver, buffer.gpa), data, size);
	return buffer;
}

/* Places a ring and tells the device's queue where, as the transport would. */
static void ring_init(struct test_driver *driver, uint32_t i)
{
	struct virtqueue *queue = &driver->virtio->queues[i].ring;
	struct test_ring *ring = &driver->rings[i];
	uint16_t size = queue->size_max;

	if (ring->size)
		fd_close(ring->call_fd);
	*ring = (struct test_ring){.size = size, .n_free = size};
	queue->state = (struct virtqueue_state){
		.size = size,
		.enabled = true,
		.descriptors = test_driver_alloc(driver, 16ull * size, 16),
		.available = test_driver_alloc(driver, 6 + 2ull * size, 2),
		.used = test_driver_alloc(driver, 6 + 8ull * size, 4),
		.vector = VIRTQUEUE_NO_VECTOR,
	};
	ring->descriptors = test_driver_at(driver, queue->state.descriptors);
	ring->available = test_driver_at(driver, queue->state.available);
	ring->used = test_driver_at(driver, queue->state.used);
	for (uint16_t j = 0; j < size; j++)
		ring->descriptors[j].next = j + 1;
	ring->call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	atomic_store(&queue->call_fd, ring->call_fd);
}

void test_driver_start(struct test_driver *driver, struct virtio_device *virtio, uint64_t features)
{
	cr_assert_leq(virtio->n_queues, TEST_DRIVER_QUEUES);
	cr_assert_eq(features & ~virtio->offered, 0, "the device does not offer that");
	driver->virtio = virtio;
	for (uint32_t i = 0; i < virtio->n_queues; i++)
		ring_init(driver, i);
	pthread_mutex_lock(&virtio->device->lock);
	virtio->accepted = features | VIRTIO_F_VERSION_1;
	atomic_store(&virtio->status, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER |
					      VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_DRIVER_OK);
	virtio_start(virtio);
	pthread_mutex_unlock(&virtio->device->lock);
	test_driver_turn(driver);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void test_driver_reset(struct test_driver *driver)
{
	uint64_t end = now_ns() + WAIT_NS;

	pthread_mutex_lock(&driver->virtio->device->lock);
	virtio_reset(driver->virtio);
	pthread_mutex_unlock(&driver->virtio->device->lock);
	while (atomic_load(&driver->virtio->status) != 0 && now_ns() < end)
		cr_assert_eq(loop_turn(driver->loop, now_ns() + 100000000u), 0);
	cr_assert_eq(atomic_load(&driver->virtio->status), 0, "the reset does not end");
}

/* One descriptor off the free list, filled. */
static uint16_t take_descriptor(struct test_ring *ring, const struct test_buffer *buffer,
				uint16_t flags)
{
	uint16_t i = ring->first_free;

	cr_assert_gt(ring->n_free, 0, "the test's ring is full");
	ring->n_free--;
	ring->first_free = ring->descriptors[i].next;
	ring->descriptors[i].address = buffer->gpa;
	ring->descriptors[i].length = buffer->length;
	ring->descriptors[i].flags = flags;
	return i;
}

static uint16_t add_direct(struct test_ring *ring, const struct test_buffer *out, uint32_t n_out,
			   const struct test_buffer *in, uint32_t n_in)
{
	uint32_t n = n_out + n_in;
	uint16_t head = 0, last = 0;

	for (uint32_t i = 0; i < n; i++) {
		uint16_t flags =
			(i >= n_out ? TEST_DESC_WRITE : 0) | (i + 1 < n ? TEST_DESC_NEXT : 0);
		uint16_t at = take_descriptor(ring, i < n_out ? &out[i] : &in[i - n_out], flags);

		if (i == 0)
			head = at;
		else
			ring->descriptors[last].next = at;
		last = at;
	}
	return head;
}

static uint16_t add_indirect(struct test_driver *driver, struct test_ring *ring,
			     const struct test_buffer *out, uint32_t n_out,
			     const struct test_buffer *in, uint32_t n_in)
{
	uint32_t n = n_out + n_in;
	struct test_buffer table = {test_driver_alloc(driver, 16ull * n, 16), 16 * n};
	struct test_descriptor *descriptors = test_driver_at(driver, table.gpa);

	for (uint32_t i = 0; i < n; i++) {
		const struct test_buffer *buffer = i < n_out ? &out[i] : &in[i - n_out];

		descriptors[i] = (struct test_descriptor){
			.address = buffer->gpa,
			.length = buffer->length,
			.flags = (i >= n_out ? TEST_DESC_WRITE : 0) |
				 (i + 1 < n ? TEST_DESC_NEXT : 0),
			.next = (uint16_t)(i + 1),
		};
	}
	return take_descriptor(ring, &table, TEST_DESC_INDIRECT);
}

uint16_t test_driver_add(struct test_driver *driver, uint32_t queue, const struct test_buffer *out,
			 uint32_t n_out, const struct test_buffer *in, uint32_t n_in, bool indirect)
{
	struct test_ring *ring = &driver->rings[queue];
	uint16_t head;

	cr_assert_gt(n_out + n_in, 0);
	if (indirect)
		head = add_indirect(driver, ring, out, n_out, in, n_in);
	else
		head = add_direct(ring, out, n_out, in, n_in);
	ring->available->ring[ring->available->index % ring->size] = head;
	store_release(&ring->available->index, (uint16_t)(ring->available->index + 1));
	return head;
}

void test_driver_kick(struct test_driver *driver, uint32_t queue)
{
	event_signal(driver->virtio->queues[queue].kick_fd);
}

/* The chain's descriptors go back to the free list. */
static void release(struct test_ring *ring, uint16_t head)
{
	uint16_t last = head, n = 1;

	while (ring->descriptors[last].flags & TEST_DESC_NEXT) {
		last = ring->descriptors[last].next;
		n++;
	}
	ring->descriptors[last].next = ring->first_free;
	ring->first_free = head;
	ring->n_free += n;
}

bool test_driver_reap(struct test_driver *driver, uint32_t queue, uint16_t *ret_head,
		      uint32_t *ret_length)
{
	struct test_ring *ring = &driver->rings[queue];
	uint32_t at = ring->seen % ring->size;

	if (load_acquire(&ring->used->index) == ring->seen)
		return false;
	*ret_head = (uint16_t)ring->used->ring[at].id;
	*ret_length = ring->used->ring[at].length;
	release(ring, *ret_head);
	ring->seen++;
	/* With event-idx: tell me of the next one, too. */
	ring->available->ring[ring->size] = ring->seen;
	return true;
}

void test_driver_turn(struct test_driver *driver)
{
	for (int i = 0; i < 8; i++)
		cr_assert_eq(loop_turn(driver->loop, 0), 0);
}

uint32_t test_driver_wait(struct test_driver *driver, uint32_t queue)
{
	uint64_t end = now_ns() + WAIT_NS;
	uint32_t length;
	uint16_t head;

	while (!test_driver_reap(driver, queue, &head, &length)) {
		cr_assert_lt(now_ns(), end, "queue %u gives nothing back", queue);
		cr_assert_eq(loop_turn(driver->loop, now_ns() + 100000000u), 0);
	}
	return length;
}
