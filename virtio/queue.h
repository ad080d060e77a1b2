/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A split virtqueue (virtio 1.2, 2.7), seen from the device. Chains of descriptors come out of the
 * available ring as iovecs that were checked against guest memory; used elements go back, published
 * and announced once per batch. A queue belongs to exactly one loop: every function here runs on
 * that loop's thread and takes no lock.
 *
 * The ring and the descriptors are the guest's and may change at any moment: each field is read
 * once, and only the copy is used.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/table.h"
#include "devices/memory.h"

#define VIRTQUEUE_SIZE_MAX  1024
#define VIRTQUEUE_NO_VECTOR 0xffff

/* Migrates. Written by the driver through the transport while the queue does not run; the two
 * positions by the queue. */
struct virtqueue_state {
	uint16_t size; /* a power of two, at most `size_max` */
	bool enabled;
	uint64_t descriptors; /* guest-physical, 16-aligned */
	uint64_t available;   /* 2-aligned */
	uint64_t used;        /* 4-aligned */
	uint16_t vector;      /* MSI-X, VIRTQUEUE_NO_VECTOR for none */
	uint16_t next_available;
	uint16_t next_used;
};
extern const struct table virtqueue_state_table;

struct virtqueue_ring_descriptor;
struct virtqueue_ring_available;
struct virtqueue_ring_used;

struct virtqueue {
	struct virtqueue_state state;
	uint16_t size_max;
	uint16_t index; /* within its device */

	struct guest_memory *memory; /* borrowed */
	const struct virtqueue_ring_descriptor
		*descriptors; /* borrowed, in guest memory; NULL while not mapped */
	const struct virtqueue_ring_available *available_ring; /* likewise */
	struct virtqueue_ring_used *used_ring;                 /* likewise */

	bool event_index;   /* VIRTIO_F_EVENT_IDX was negotiated */
	bool broken;        /* the guest broke the rules; nothing comes out any more */
	uint16_t seen;      /* avail.idx as last read */
	uint16_t published; /* used.idx as the guest last saw it */
	uint32_t in_flight; /* popped, not pushed */
	uint64_t heads[VIRTQUEUE_SIZE_MAX / 64]; /* in-flight heads, one bit each */
	_Atomic int call_fd; /* borrowed eventfd of the vector, -1: no interrupt */

	uint64_t n_kicks, n_chains, n_calls; /* counters */
};

/* What the driver offered as one request. `iov` holds first what the device reads, then what it
 * writes. */
struct virtqueue_chain {
	uint16_t head;
	uint16_t n_out; /* iovecs the device may read */
	uint16_t n_in;  /* iovecs the device may write, after them */
	uint64_t out_bytes, in_bytes;
	struct iovec *iov; /* the caller's array */
	uint16_t iov_max;
};

/* Finds the rings in guest memory. -EINVAL: addresses or size are not what the specification
 * allows. */
int virtqueue_map(struct virtqueue *queue) __must_check;
void virtqueue_unmap(struct virtqueue *queue);

/*
 * Takes the next chain. Returns 1 with `chain` filled (its iov and iov_max are set by the caller),
 * 0 when there is none, -EBADMSG when the guest broke the rules: then the queue is broken.
 */
int virtqueue_pop(struct virtqueue *queue, struct virtqueue_chain *chain) __must_check;
/* Puts the chain taken last back, as if it had not been taken. */
void virtqueue_unpop(struct virtqueue *queue, const struct virtqueue_chain *chain);

/*
 * Of a chain that is neither done nor to be put back, since later ones are done: the queue forgets
 * it, and may rest, be saved and loaded without it. Who set it aside keeps its head and takes it
 * again by that, once the queue runs; until then the guest sees it under way. As virtqueue_pop
 * otherwise.
 */
void virtqueue_set_aside(struct virtqueue *queue, uint16_t head);
int virtqueue_pop_again(struct virtqueue *queue, uint16_t head,
			struct virtqueue_chain *chain) __must_check;

/* Hands a chain back, `written` bytes of it filled. Seen by the guest after virtqueue_publish. */
void virtqueue_push(struct virtqueue *queue, uint16_t head, uint32_t written);

/* Publishes what was pushed and interrupts the guest if it asked to be. Once per batch. */
void virtqueue_publish(struct virtqueue *queue);

/*
 * Kicks wanted or not. Turning them on returns true when chains came in meanwhile: the caller goes
 * on draining. The pattern is: off, drain, on, and again while it says true.
 */
void virtqueue_kicks_off(struct virtqueue *queue);
bool virtqueue_kicks_on(struct virtqueue *queue);

/* Copies between a chain's side and a buffer, `offset` bytes in. Returns the bytes copied. */
size_t chain_read(const struct virtqueue_chain *chain, uint64_t offset, void *data, size_t size);
size_t chain_write(const struct virtqueue_chain *chain, uint64_t offset, const void *data,
		   size_t size);
