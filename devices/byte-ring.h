/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bounded stream of bytes that never refuses any: when it is full the oldest make room. Not
 * locked.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"

struct byte_ring {
	uint8_t *data; /* owned */
	uint32_t size; /* a power of two */
	uint32_t head; /* bytes ever put in, modulo 2^32 */
	uint32_t tail; /* likewise taken out or dropped */
};

int byte_ring_init(struct byte_ring *ring, uint32_t size) __must_check;
void byte_ring_deinit(struct byte_ring *ring);

static inline uint32_t byte_ring_used(const struct byte_ring *ring)
{
	return ring->head - ring->tail;
}

/* Returns how many bytes had to go, of those in it and of `data`. */
size_t byte_ring_put(struct byte_ring *ring, const void *data, size_t size);

/* The oldest bytes, as many as lie in one piece: returns how many, 0 when it is empty. */
uint32_t byte_ring_peek(const struct byte_ring *ring, const uint8_t **ret_data);
void byte_ring_skip(struct byte_ring *ring, uint32_t size);
