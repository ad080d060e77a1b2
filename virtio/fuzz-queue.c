/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzes a virtqueue. The bytes are the guest and the device in turn: memory, descriptors and
 * indexes written, chains taken, given back, put back. Whatever the guest does, a chain lies inside
 * its memory, its head is in flight once, and the rings are not left. Guest memory comes from the
 * heap, so that the sanitizer sees a byte too far.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/cursor.h"
#include "virtio/queue.h"

#define LOW_SIZE   0x6000u
#define HIGH_START 0x8000u
#define HIGH_SIZE  0x1000u
#define SIZE_MAX_2 64
#define IOV_MAX_   20

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum action {
	WRITE_MEMORY,
	DESCRIBE,
	OFFER,
	SET_INDEX,
	POP,
	UNPOP,
	PUSH,
	PUBLISH,
	KICKS_OFF,
	KICKS_ON,
	COPY,
	MAP_AGAIN,
	N_ACTIONS,
};

static struct guest_memory memory;
static struct virtqueue queue;
static struct iovec iov[IOV_MAX_];
static struct virtqueue_chain chain;
static uint16_t held[SIZE_MAX_2];
static uint32_t n_held;
static bool last_is_fresh; /* the chain taken last may be put back */

static void memory_make(void)
{
	memory = (struct guest_memory){.kind = MEMORY_PRIVATE, .n_regions = 2};
	memory.regions[0] =
		(struct memory_region){.size = LOW_SIZE, .host = calloc(1, LOW_SIZE), .fd = -1};
	memory.regions[1] = (struct memory_region){
		.start = HIGH_START, .size = HIGH_SIZE, .host = calloc(1, HIGH_SIZE), .fd = -1};
	assert(memory.regions[0].host && memory.regions[1].host);
}

static void memory_drop(void)
{
	memory_track_stop(&memory);
	for (uint32_t i = 0; i < memory.n_regions; i++)
		free(memory.regions[i].host);
}

static bool inside(const struct iovec *piece)
{
	for (uint32_t i = 0; i < memory.n_regions; i++) {
		const struct memory_region *region = &memory.regions[i];
		uint64_t at = (uintptr_t)piece->iov_base - (uintptr_t)region->host;

		if (at < region->size && piece->iov_len <= region->size - at)
			return true;
	}
	return false;
}

static void chain_check(void)
{
	uint64_t out = 0, in = 0;

	assert(chain.head < queue.state.size);
	assert((uint32_t)chain.n_out + chain.n_in <= chain.iov_max);
	for (uint32_t i = 0; i < (uint32_t)chain.n_out + chain.n_in; i++) {
		assert(iov[i].iov_len > 0 && inside(&iov[i]));
		*(i < chain.n_out ? &out : &in) += iov[i].iov_len;
	}
	assert(out == chain.out_bytes && in == chain.in_bytes);
	for (uint32_t i = 0; i < n_held; i++)
		assert(held[i] != chain.head);
}

static void pop(void)
{
	int r = virtqueue_pop(&queue, &chain);

	assert(r == 0 || r == 1 || r == -EBADMSG);
	last_is_fresh = r == 1;
	if (r == -EBADMSG)
		assert(queue.broken && virtqueue_pop(&queue, &chain) == 0);
	if (r != 1)
		return;
	chain_check();
	assert(n_held < queue.state.size);
	held[n_held++] = chain.head;
}

static void push(struct cursor *in)
{
	uint32_t i = cursor_get_u8(in);

	if (n_held == 0)
		return;
	i %= n_held;
	virtqueue_push(&queue, held[i], cursor_get_u8(in));
	held[i] = held[--n_held];
	last_is_fresh = false;
}

static void unpop(void)
{
	if (!last_is_fresh)
		return;
	virtqueue_unpop(&queue, &chain);
	last_is_fresh = false;
	n_held--;
}

static void copy(struct cursor *in)
{
	uint8_t bytes[64];
	uint64_t offset = cursor_get_u16(in);
	size_t n;

	if (!last_is_fresh)
		return;
	n = chain_read(&chain, offset, bytes, sizeof(bytes));
	assert(n <= sizeof(bytes) && (n == 0 || offset + n <= chain.out_bytes));
	n = chain_write(&chain, offset, bytes, sizeof(bytes));
	assert(n <= sizeof(bytes) && (n == 0 || offset + n <= chain.in_bytes));
}

/* A value of the guest's choosing, often a sensible one: small, or near the top. */
static uint64_t address(struct cursor *in)
{
	uint16_t value = cursor_get_u16(in);

	return value & 0x8000 && value >= 0xff00 ? (uint64_t)(int64_t)(int16_t)value : value;
}

static void guest_write(gpa_t gpa, const void *data, size_t n)
{
	int r = memory_write(&memory, gpa, data, n);

	assert(r == 0 || r == -EFAULT);
}

static void write_memory(struct cursor *in)
{
	gpa_t gpa = address(in);
	size_t n = MIN((size_t)cursor_get_u8(in), cursor_left(in));
	const void *bytes = cursor_get_view(in, n);

	if (bytes)
		guest_write(gpa, bytes, n);
}

static void describe(struct cursor *in)
{
	gpa_t table = queue.state.descriptors;
	uint8_t i = cursor_get_u8(in), flags = cursor_get_u8(in), next = cursor_get_u8(in);
	uint64_t place = address(in);
	uint32_t length = cursor_get_u16(in);
	struct {
		uint64_t address;
		uint32_t length;
		uint16_t flags, next;
	} descriptor = {place, length, flags & 7, next};

	if (flags & 0x80) /* an indirect table of its own, high in memory */
		table = HIGH_START;
	if (flags & 0x40)
		descriptor.length <<= 16;
	guest_write(table + 16 * i, &descriptor, sizeof(descriptor));
}

static void offer(struct cursor *in)
{
	uint16_t index, head = cursor_get_u8(in);

	if (memory_read(&memory, queue.state.available + 2, &index, 2) < 0)
		return;
	guest_write(queue.state.available + 4 + index % queue.state.size * 2, &head, 2);
	index++;
	guest_write(queue.state.available + 2, &index, 2);
}

static void map_again(struct cursor *in)
{
	uint16_t position = cursor_get_u16(in);

	if (n_held > 0)
		return;
	virtqueue_unmap(&queue);
	queue.state.next_available = queue.state.next_used = position;
	guest_write(queue.state.available + 2, &position, 2);
	last_is_fresh = false;
	assert(virtqueue_map(&queue) == 0);
}

static void act(struct cursor *in)
{
	uint16_t index;

	switch (cursor_get_u8(in) % N_ACTIONS) {
	case WRITE_MEMORY:
		write_memory(in);
		break;
	case DESCRIBE:
		describe(in);
		break;
	case OFFER:
		offer(in);
		break;
	case SET_INDEX:
		index = cursor_get_u16(in);
		guest_write(queue.state.available + 2, &index, 2);
		break;
	case POP:
		pop();
		break;
	case UNPOP:
		unpop();
		break;
	case PUSH:
		push(in);
		break;
	case PUBLISH:
		virtqueue_publish(&queue);
		break;
	case KICKS_OFF:
		virtqueue_kicks_off(&queue);
		break;
	case KICKS_ON:
		if (virtqueue_kicks_on(&queue))
			pop();
		break;
	case COPY:
		copy(in);
		break;
	case MAP_AGAIN:
		map_again(in);
		break;
	}
	assert(queue.in_flight == n_held);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct cursor in = cursor_reader(data, size);
	uint8_t flags = cursor_get_u8(&in);
	static int call_fd = -1;
	int r;

	if (call_fd < 0)
		call_fd = eventfd(0, EFD_NONBLOCK);
	memory_make();
	n_held = 0;
	last_is_fresh = false;
	chain = (struct virtqueue_chain){.iov = iov, .iov_max = IOV_MAX_};
	queue = (struct virtqueue){.size_max = SIZE_MAX_2, .memory = &memory};
	queue.event_index = flags & 1;
	queue.state.size = flags & 2 ? 1u << (flags >> 4 & 7) : cursor_get_u16(&in);
	queue.state.descriptors = flags & 4 ? 0x1000 : address(&in);
	queue.state.available = flags & 4 ? 0x2000 : address(&in);
	queue.state.used = flags & 4 ? 0x3000 : address(&in);
	queue.state.next_available = queue.state.next_used = cursor_get_u16(&in);
	atomic_store(&queue.call_fd, call_fd);
	r = flags & 8 ? memory_track_start(&memory) : 0;
	assert(r == 0);
	r = virtqueue_map(&queue);
	assert(r == 0 || r == -EINVAL);
	while (r == 0 && cursor_left(&in) > 0)
		act(&in);
	memory_drop();
	return 0;
}
