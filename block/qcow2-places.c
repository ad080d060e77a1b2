/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which clusters are L2 tables or refcount blocks: asked of each cluster that a guest is to write
 * to for the first time or that is to be given to it, in case the image's tables or refcounts lie.
 * A filter of bits says "no" at a glance; what it does not know is looked for. Places that are
 * tables no more stay in it until the image is opened again.
 */
#include <errno.h>
#include <stdlib.h>

#include "block/qcow2.h"

#define FILTER_BITS_LEAST (UINT64_C(1) << 16)
#define FILTER_BITS_MOST  (UINT64_C(1) << 26)
#define BITS_PER_PLACE    16u

struct qcow2_places {
	uint64_t mask; /* of a bit's number */
	uint64_t bits[];
};

static uint64_t bit_of(const struct qcow2 *qcow2, uint64_t place)
{
	uint64_t x = (place >> qcow2->cluster_bits) * UINT64_C(0x9e3779b97f4a7c15);

	return (x ^ x >> 32) & qcow2->places->mask;
}

void qcow2_place_note(struct qcow2 *qcow2, uint64_t place)
{
	uint64_t bit;

	if (!qcow2->places)
		return;
	bit = bit_of(qcow2, place);
	qcow2->places->bits[bit / 64] |= UINT64_C(1) << (bit % 64);
}

int qcow2_places_open(struct qcow2 *qcow2)
{
	uint64_t n = 0, n_bits = FILTER_BITS_LEAST;

	for (uint32_t i = 0; i < qcow2->header.l1_entries; i++)
		n += qcow2->l1[i] != 0;
	while (n_bits < n * BITS_PER_PLACE && n_bits < FILTER_BITS_MOST)
		n_bits *= 2;
	qcow2->places = calloc(1, sizeof(*qcow2->places) + n_bits / 8);
	if (!qcow2->places)
		return -ENOMEM;
	qcow2->places->mask = n_bits - 1;
	for (uint32_t i = 0; i < qcow2->header.l1_entries; i++)
		if (qcow2->l1[i])
			qcow2_place_note(qcow2, qcow2->l1[i] & QCOW2_OFFSET_MASK);
	return 0;
}

void qcow2_places_close(struct qcow2 *qcow2)
{
	free(qcow2->places);
	qcow2->places = NULL;
}

bool qcow2_is_table(struct qcow2 *qcow2, uint64_t place)
{
	uint64_t bit;

	if (!qcow2->places)
		return false;
	bit = bit_of(qcow2, place);
	if (!(qcow2->places->bits[bit / 64] >> (bit % 64) & 1))
		return false;
	for (uint32_t i = 0; i < qcow2->header.l1_entries; i++)
		if ((qcow2->l1[i] & QCOW2_OFFSET_MASK) == place)
			return true;
	return qcow2_is_refcount_block(qcow2, place);
}
