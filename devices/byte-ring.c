/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes in at the head, out at the tail; two running counters tell full from empty.
 */
#include "devices/byte-ring.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int byte_ring_init(struct byte_ring *ring, uint32_t size)
{
	assert(size > 0 && (size & (size - 1)) == 0);
	*ring = (struct byte_ring){.data = malloc(size), .size = size};
	return ring->data ? 0 : -ENOMEM;
}

void byte_ring_deinit(struct byte_ring *ring)
{
	free(ring->data);
	*ring = (struct byte_ring){0};
}

static void copy_in(struct byte_ring *ring, const uint8_t *data, uint32_t size)
{
	uint32_t at = ring->head & (ring->size - 1);
	uint32_t first = MIN(size, ring->size - at);

	memcpy(ring->data + at, data, first);
	memcpy(ring->data, data + first, size - first);
	ring->head += size;
}

size_t byte_ring_put(struct byte_ring *ring, const void *data, size_t size)
{
	const uint8_t *bytes = data;
	size_t dropped = 0;
	uint32_t room;

	if (size > ring->size) {
		dropped = size - ring->size;
		bytes += dropped;
		size = ring->size;
	}
	room = ring->size - byte_ring_used(ring);
	if (size > room) {
		dropped += size - room;
		ring->tail += (uint32_t)size - room;
	}
	copy_in(ring, bytes, (uint32_t)size);
	return dropped;
}

uint32_t byte_ring_peek(const struct byte_ring *ring, const uint8_t **ret_data)
{
	uint32_t at = ring->tail & (ring->size - 1);

	*ret_data = ring->data + at;
	return MIN(byte_ring_used(ring), ring->size - at);
}

void byte_ring_skip(struct byte_ring *ring, uint32_t size)
{
	assert(size <= byte_ring_used(ring));
	ring->tail += size;
}
