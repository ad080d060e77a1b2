/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2-counts.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#define SLOTS_MIN UINT64_C(64)

/* Whoever made the image chose the numbers: they must not know where these meet. */
static int seed(struct counts *counts)
{
	if (counts->seed)
		return 0;
	if (getrandom(&counts->seed, sizeof(counts->seed), 0) != sizeof(counts->seed))
		return -EIO;
	counts->seed |= 1;
	return 0;
}

static uint64_t mix(uint64_t number, uint64_t seed_value)
{
	number ^= seed_value;
	number *= UINT64_C(0x9e3779b97f4a7c15);
	number ^= number >> 32;
	number *= seed_value;
	return number ^ number >> 29;
}

void counts_deinit(struct counts *counts)
{
	for (uint64_t i = 0; i < counts->n_slots; i++)
		free(counts->slots[i]);
	free(counts->slots);
	free(counts->order);
	*counts = (struct counts){0};
}

/* Where the chunk is, or would be: there is always a free slot. */
static uint64_t slot_find(struct counts_chunk **slots, uint64_t n_slots, uint64_t seed_value,
			  uint64_t number)
{
	uint64_t i = mix(number, seed_value);

	for (;; i++) {
		const struct counts_chunk *chunk = slots[i & (n_slots - 1)];

		if (!chunk || chunk->number == number)
			return i & (n_slots - 1);
	}
}

static int grow(struct counts *counts)
{
	uint64_t n_slots = MAX(counts->n_slots * 2, SLOTS_MIN);
	struct counts_chunk **slots = calloc(n_slots, sizeof(struct counts_chunk *));

	if (!slots)
		return -ENOMEM;
	for (uint64_t i = 0; i < counts->n_slots; i++)
		if (counts->slots[i])
			slots[slot_find(slots, n_slots, counts->seed, counts->slots[i]->number)] =
				counts->slots[i];
	free(counts->slots);
	counts->slots = slots;
	counts->n_slots = n_slots;
	return 0;
}

uint32_t *counts_find(struct counts *counts, uint64_t cluster)
{
	const uint64_t number = cluster / COUNTS_CHUNK;
	struct counts_chunk *chunk = counts->last;

	if (!chunk || chunk->number != number) {
		if (!counts->n)
			return NULL;
		chunk = counts->slots[slot_find(counts->slots, counts->n_slots, counts->seed,
						number)];
		if (!chunk)
			return NULL;
		counts->last = chunk;
	}
	return &chunk->words[cluster % COUNTS_CHUNK];
}

static int chunk_new(struct counts *counts, uint64_t number, struct counts_chunk **ret_chunk)
{
	struct counts_chunk *chunk;
	int r = seed(counts);

	if (r < 0)
		return r;
	if (counts->n >= counts->n_max)
		return -EFBIG;
	if (counts->n * 2 >= counts->n_slots)
		r = grow(counts);
	chunk = r < 0 ? NULL : calloc(1, sizeof(*chunk));
	if (!chunk)
		return -ENOMEM;
	chunk->number = number;
	counts->slots[slot_find(counts->slots, counts->n_slots, counts->seed, number)] = chunk;
	counts->n++;
	*ret_chunk = chunk;
	return 0;
}

int counts_add(struct counts *counts, uint64_t cluster, uint32_t n, uint32_t flags,
	       uint32_t *ret_before)
{
	uint32_t *word = counts_find(counts, cluster), count;
	struct counts_chunk *chunk;

	if (!word) {
		int r = chunk_new(counts, cluster / COUNTS_CHUNK, &chunk);

		if (r < 0)
			return r;
		word = &chunk->words[cluster % COUNTS_CHUNK];
	}
	if (ret_before)
		*ret_before = *word;
	count = *word & COUNTS_MAX;
	count = n < COUNTS_MAX - count ? count + n : COUNTS_MAX;
	*word = (*word & ~COUNTS_MAX) | count | flags;
	return 0;
}

static int compare(const void *a, const void *b)
{
	const struct counts_chunk *const *x = a, *const *y = b;

	return ((*x)->number > (*y)->number) - ((*x)->number < (*y)->number);
}

int counts_sort(struct counts *counts)
{
	uint64_t n = 0;

	free(counts->order);
	counts->order = calloc(MAX(counts->n, UINT64_C(1)), sizeof(struct counts_chunk *));
	if (!counts->order)
		return -ENOMEM;
	for (uint64_t i = 0; i < counts->n_slots; i++)
		if (counts->slots[i])
			counts->order[n++] = counts->slots[i];
	qsort(counts->order, n, sizeof(struct counts_chunk *), compare);
	return 0;
}

uint64_t counts_order_find(const struct counts *counts, uint64_t number)
{
	uint64_t from = 0, to = counts->n;

	while (from < to) {
		uint64_t middle = from + (to - from) / 2;

		if (counts->order[middle]->number < number)
			from = middle + 1;
		else
			to = middle;
	}
	return from;
}
