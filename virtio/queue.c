/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chains out of the available ring, used elements back into the used ring. Runs on the queue's
 * loop. Migrates: virtqueue_state. Layout and rules: virtio 1.2, 2.7.
 */
#include "virtio/queue.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/atomic.h"

#define DESCRIPTOR_NEXT        1u
#define DESCRIPTOR_WRITE       2u
#define DESCRIPTOR_INDIRECT    4u
#define AVAILABLE_NO_INTERRUPT 1u
#define USED_NO_NOTIFY         1u

/* All little-endian, as this host is (x86-64, arm64). */
struct virtqueue_ring_descriptor {
	uint64_t address;
	uint32_t length;
	uint16_t flags;
	uint16_t next;
};
struct virtqueue_ring_available {
	uint16_t flags;
	uint16_t index;
	uint16_t ring[]; /* then used_event */
};
struct virtqueue_ring_used_element {
	uint32_t id;
	uint32_t length;
};
struct virtqueue_ring_used {
	uint16_t flags;
	uint16_t index;
	struct virtqueue_ring_used_element ring[]; /* then available_event */
};
_Static_assert(sizeof(struct virtqueue_ring_descriptor) == 16, "virtio 1.2, 2.7.5");
_Static_assert(sizeof(struct virtqueue_ring_used_element) == 8, "virtio 1.2, 2.7.8");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are little-endian");

static const struct field state_fields[] = {
	FIELD(struct virtqueue_state, size, FIELD_U16, "size", "entries",
	      .max = VIRTQUEUE_SIZE_MAX),
	FIELD(struct virtqueue_state, enabled, FIELD_BOOL, "enabled", "the driver set it up"),
	FIELD(struct virtqueue_state, descriptors, FIELD_U64, "descriptors", "guest address"),
	FIELD(struct virtqueue_state, available, FIELD_U64, "available", "guest address"),
	FIELD(struct virtqueue_state, used, FIELD_U64, "used", "guest address"),
	FIELD(struct virtqueue_state, vector, FIELD_U16, "vector", "MSI-X vector, 65535 for none"),
	FIELD(struct virtqueue_state, next_available, FIELD_U16, "next-available",
	      "chains taken, modulo 2^16"),
	FIELD(struct virtqueue_state, next_used, FIELD_U16, "next-used",
	      "chains given back, modulo 2^16"),
};
const struct table virtqueue_state_table =
	TABLE(struct virtqueue_state, "virtqueue", "a split virtqueue", state_fields);

/* The two event words stand behind the rings of the other side. */
static uint16_t *used_event(const struct virtqueue *queue)
{
	return (uint16_t *)&queue->available_ring->ring[queue->state.size];
}

static uint16_t *available_event(struct virtqueue *queue)
{
	return (uint16_t *)&queue->used_ring->ring[queue->state.size];
}

int virtqueue_map(struct virtqueue *queue)
{
	const struct virtqueue_state *state = &queue->state;
	uint64_t size = state->size;
	void *descriptors, *available, *used;

	if (size == 0 || size > queue->size_max || (size & (size - 1)) != 0)
		return -EINVAL;
	if (state->descriptors % 16 != 0 || state->available % 2 != 0 || state->used % 4 != 0)
		return -EINVAL;
	if (memory_translate(queue->memory, state->descriptors, 16 * size, &descriptors) < 0 ||
	    memory_translate(queue->memory, state->available, 6 + 2 * size, &available) < 0 ||
	    memory_translate(queue->memory, state->used, 6 + 8 * size, &used) < 0)
		return -EINVAL;
	queue->descriptors = descriptors;
	queue->available_ring = available;
	queue->used_ring = used;
	queue->broken = false;
	queue->seen = state->next_available;
	queue->published = state->next_used;
	queue->in_flight = 0;
	memset(queue->heads, 0, sizeof(queue->heads));
	return 0;
}

void virtqueue_unmap(struct virtqueue *queue)
{
	queue->descriptors = NULL;
	queue->available_ring = NULL;
	queue->used_ring = NULL;
}

static bool head_in_flight(const struct virtqueue *queue, uint16_t head)
{
	return queue->heads[head / 64] & (1ull << (head % 64));
}

/* Chains the guest has made available and we have not taken. -EBADMSG when it claims more than fit.
 */
static int chains_waiting(struct virtqueue *queue)
{
	uint16_t waiting = queue->seen - queue->state.next_available;

	if (waiting == 0) {
		queue->seen = load_acquire(&queue->available_ring->index);
		waiting = queue->seen - queue->state.next_available;
		if (waiting > queue->state.size) {
			queue->broken = true;
			return -EBADMSG;
		}
	}
	return waiting;
}

/* One descriptor of the chain: checked against memory, added to the right side. */
static int chain_add(struct virtqueue *queue, struct virtqueue_chain *chain,
		     const struct virtqueue_ring_descriptor *descriptor)
{
	uint32_t n = (uint32_t)chain->n_out + chain->n_in;
	bool in = descriptor->flags & DESCRIPTOR_WRITE;
	void *host;

	if (n >= chain->iov_max || (!in && chain->n_in > 0))
		return -EBADMSG;
	if (memory_translate(queue->memory, descriptor->address, descriptor->length, &host) < 0)
		return -EBADMSG;
	chain->iov[n] = (struct iovec){host, descriptor->length};
	if (in) {
		chain->n_in++;
		chain->in_bytes += descriptor->length;
	} else {
		chain->n_out++;
		chain->out_bytes += descriptor->length;
	}
	return 0;
}

/* Walks a table of descriptors from `at`; the table is the queue's or an indirect one. */
static int chain_walk(struct virtqueue *queue, struct virtqueue_chain *chain,
		      const struct virtqueue_ring_descriptor *table, uint32_t n_table, uint32_t at,
		      bool indirect)
{
	for (uint32_t steps = 0; steps < n_table; steps++) {
		struct virtqueue_ring_descriptor descriptor;
		void *inner;
		int r;

		memcpy(&descriptor, &table[at], sizeof(descriptor));
		if (descriptor.flags & DESCRIPTOR_INDIRECT) {
			if (indirect || descriptor.flags & DESCRIPTOR_NEXT ||
			    descriptor.length == 0 || descriptor.length % sizeof(descriptor) != 0 ||
			    memory_translate(queue->memory, descriptor.address, descriptor.length,
					     &inner) < 0)
				return -EBADMSG;
			return chain_walk(queue, chain, inner,
					  descriptor.length / sizeof(descriptor), 0, true);
		}
		r = chain_add(queue, chain, &descriptor);
		if (r < 0)
			return r;
		if (!(descriptor.flags & DESCRIPTOR_NEXT))
			return 0;
		at = descriptor.next;
		if (at >= n_table)
			return -EBADMSG;
	}
	return -EBADMSG; /* a loop: more steps than entries */
}

/* The chain that begins there becomes ours. */
static int chain_take(struct virtqueue *queue, uint16_t head, struct virtqueue_chain *chain)
{
	int r;

	chain->head = head;
	chain->n_out = chain->n_in = 0;
	chain->out_bytes = chain->in_bytes = 0;
	if (head >= queue->state.size || head_in_flight(queue, head))
		r = -EBADMSG;
	else
		r = chain_walk(queue, chain, queue->descriptors, queue->state.size, head, false);
	if (r < 0) {
		queue->broken = true;
		return r;
	}
	queue->heads[head / 64] |= 1ull << (head % 64);
	queue->in_flight++;
	queue->n_chains++;
	return 1;
}

int virtqueue_pop(struct virtqueue *queue, struct virtqueue_chain *chain)
{
	uint16_t mask = queue->state.size - 1;
	uint16_t head;
	int r;

	if (queue->broken || !queue->available_ring)
		return 0;
	r = chains_waiting(queue);
	if (r <= 0)
		return r;
	head = load_relaxed(&queue->available_ring->ring[queue->state.next_available & mask]);
	r = chain_take(queue, head, chain);
	if (r > 0)
		queue->state.next_available++;
	return r;
}

int virtqueue_pop_again(struct virtqueue *queue, uint16_t head, struct virtqueue_chain *chain)
{
	if (queue->broken || !queue->available_ring)
		return 0;
	return chain_take(queue, head, chain);
}

void virtqueue_unpop(struct virtqueue *queue, const struct virtqueue_chain *chain)
{
	queue->heads[chain->head / 64] &= ~(1ull << (chain->head % 64));
	queue->state.next_available--;
	queue->in_flight--;
	queue->n_chains--;
}

void virtqueue_set_aside(struct virtqueue *queue, uint16_t head)
{
	assert(head_in_flight(queue, head));
	queue->heads[head / 64] &= ~(1ull << (head % 64));
	queue->in_flight--;
	queue->n_chains--;
}

void virtqueue_push(struct virtqueue *queue, uint16_t head, uint32_t written)
{
	struct virtqueue_ring_used_element *element;

	assert(head_in_flight(queue, head));
	element = &queue->used_ring->ring[queue->state.next_used & (queue->state.size - 1)];
	element->id = head;
	element->length = written;
	queue->heads[head / 64] &= ~(1ull << (head % 64));
	queue->state.next_used++;
	queue->in_flight--;
}

/* virtio 1.2, 2.7.7.2: with event-idx the driver names the element at which it wants to hear. */
static bool call_wanted(struct virtqueue *queue, uint16_t old)
{
	uint16_t new = queue->state.next_used;

	full_fence();
	if (!queue->event_index)
		return !(load_relaxed(&queue->available_ring->flags) & AVAILABLE_NO_INTERRUPT);
	return (uint16_t)(new - load_relaxed(used_event(queue)) - 1) < (uint16_t)(new - old);
}

/* After the ring was written, index and all: a copy taken before this is taken again. */
static void mark_used(struct virtqueue *queue)
{
	memory_mark(queue->memory, queue->state.used, 6 + 8ull * queue->state.size);
}

void virtqueue_publish(struct virtqueue *queue)
{
	uint16_t old = queue->published;
	uint64_t one = 1;
	int fd;

	if (queue->state.next_used == old || !queue->used_ring)
		return;
	store_release(&queue->used_ring->index, queue->state.next_used);
	mark_used(queue);
	queue->published = queue->state.next_used;
	if (!call_wanted(queue, old))
		return;
	fd = atomic_load_explicit(&queue->call_fd, memory_order_acquire);
	queue->n_calls++;
	/* An eventfd refuses a write only when its counter is full: then the interrupt is pending
	 * anyway. */
	if (fd >= 0 && write(fd, &one, sizeof(one)) < 0)
		return;
}

void virtqueue_kicks_off(struct virtqueue *queue)
{
	/* With event-idx it is enough to leave the event behind. */
	if (!queue->event_index && queue->used_ring)
		store_release(&queue->used_ring->flags, USED_NO_NOTIFY);
}

bool virtqueue_kicks_on(struct virtqueue *queue)
{
	if (queue->broken || !queue->used_ring)
		return false;
	if (queue->event_index)
		store_release(available_event(queue), queue->state.next_available);
	else
		store_release(&queue->used_ring->flags, 0);
	mark_used(queue);
	full_fence();
	return load_acquire(&queue->available_ring->index) != queue->state.next_available;
}

/* Copies between `data` and the iovecs, starting `offset` bytes into them. */
static size_t iov_copy(const struct iovec *iov, uint32_t n, uint64_t offset, uint8_t *data,
		       size_t size, bool into_iov)
{
	size_t done = 0;

	for (uint32_t i = 0; i < n && done < size; i++) {
		size_t here;

		if (offset >= iov[i].iov_len) {
			offset -= iov[i].iov_len;
			continue;
		}
		here = MIN(size - done, iov[i].iov_len - offset);
		if (into_iov)
			memcpy((uint8_t *)iov[i].iov_base + offset, data + done, here);
		else
			memcpy(data + done, (uint8_t *)iov[i].iov_base + offset, here);
		done += here;
		offset = 0;
	}
	return done;
}

size_t chain_read(const struct virtqueue_chain *chain, uint64_t offset, void *data, size_t size)
{
	return iov_copy(chain->iov, chain->n_out, offset, data, size, false);
}

size_t chain_write(const struct virtqueue_chain *chain, uint64_t offset, const void *data,
		   size_t size)
{
	return iov_copy(chain->iov + chain->n_out, chain->n_in, offset, (uint8_t *)(uintptr_t)data,
			size, true);
}
