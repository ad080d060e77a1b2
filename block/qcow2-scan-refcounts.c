/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the file says of refcounts, against what was counted.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2-scan.h"

#define RESERVED UINT64_C(0x1ff)

uint64_t scan_refcount_get(const uint8_t *block, uint32_t order, uint64_t index)
{
	uint32_t bits = 1u << order;
	uint64_t value = 0;

	if (bits < 8)
		return block[index * bits / 8] >> index * bits % 8 & ((1u << bits) - 1);
	for (uint32_t i = 0; i < bits / 8; i++)
		value = value << 8 | block[index * (bits / 8) + i];
	return value;
}

void scan_refcount_set(uint8_t *block, uint32_t order, uint64_t index, uint64_t value)
{
	uint32_t bits = 1u << order;

	if (bits < 8) {
		uint8_t *byte = &block[index * bits / 8];
		uint32_t shift = index * bits % 8, mask = ((1u << bits) - 1) << shift;

		*byte = (uint8_t)((*byte & ~mask) | (value << shift & mask));
		return;
	}
	for (uint32_t i = bits / 8; i > 0; i--, value >>= 8)
		block[index * (bits / 8) + i - 1] = (uint8_t)value;
}

/* Table and blocks */

static int structure_broken(struct scan *scan, const char *what, uint64_t place)
{
	scan_found(scan, SCAN_STRUCTURE, 1,
		   "the refcount %s 0x%llx: repair counts anew and writes new ones", what,
		   (unsigned long long)place);
	scan->must_rebuild = true;
	return 0;
}

static int claim_block(struct scan *scan, uint32_t i)
{
	uint64_t place = scan->reftable[i] & ~RESERVED;
	uint32_t owners;
	int r;

	if (scan->reftable[i] & RESERVED)
		structure_broken(scan, "table has reserved bits with the block at", place);
	scan->reftable[i] = place;
	if (!place)
		return 0;
	scan->broken[i / 64] |= UINT64_C(1) << i % 64;
	if (place & (scan->cluster_size - 1))
		return structure_broken(scan, "table names a block that begins no cluster, at",
					place);
	if (place >= scan->file_size)
		return structure_broken(scan, "table names a block behind the file's end, at",
					place);
	r = scan_claim(scan, place, scan->cluster_size, COUNTS_REFCOUNTS, &owners);
	if (r < 0 || owners)
		return r < 0 ? r
			     : structure_broken(scan, "block lies on something else, at", place);
	scan->broken[i / 64] &= ~(UINT64_C(1) << i % 64);
	return 0;
}

static int read_reftable(struct scan *scan)
{
	uint64_t size = (uint64_t)scan->header.reftable_clusters << scan->cluster_bits;
	uint32_t owners;
	int r = scan_claim(scan, scan->header.reftable_offset, size, COUNTS_REFCOUNTS, &owners);

	if (r < 0)
		return r;
	if (owners)
		structure_broken(scan, "table lies on something else, at",
				 scan->header.reftable_offset);
	scan->n_reftable = (uint32_t)(size / 8);
	scan->reftable = calloc(scan->n_reftable, sizeof(*scan->reftable));
	scan->broken = calloc(scan->n_reftable / 64 + 1, sizeof(*scan->broken));
	if (!scan->reftable || !scan->broken)
		return error_set(scan->err, -ENOMEM, "cannot check \"%s\": out of memory",
				 scan->name);
	r = scan_read(scan, scan->reftable, size, scan->header.reftable_offset);
	for (uint32_t i = 0; r >= 0 && i < scan->n_reftable; i++) {
		scan->reftable[i] = be64toh(scan->reftable[i]);
		if (scan->reftable[i])
			r = claim_block(scan, i);
	}
	return MIN(r, 0);
}

/* Comparing */

/* Clusters in a row of which the same is to be said. */
struct run {
	uint64_t first, n;
	uint64_t stored, count;
};

static void run_end(struct scan *scan, struct run *run)
{
	unsigned long long n = run->n, place = run->first << scan->cluster_bits;
	const char *s = n == 1 ? "" : "s";

	if (!run->n)
		return;
	if (!run->count)
		scan_found(scan, SCAN_LEAK, n,
			   "%llu cluster%s from 0x%llx on: nothing points there, the refcount is "
			   "%llu: repair frees the space",
			   n, s, place, (unsigned long long)run->stored);
	else
		scan_found(scan, run->stored > run->count ? SCAN_LEAK : SCAN_COUNT, n,
			   "%llu cluster%s from 0x%llx on: the refcount is %llu, but %llu point "
			   "there: repair sets it to that",
			   n, s, place, (unsigned long long)run->stored,
			   (unsigned long long)run->count);
	run->n = 0;
}

static void compare_one(struct scan *scan, struct run *run, uint64_t cluster, uint64_t stored,
			uint32_t count)
{
	scan->max_count = MAX(scan->max_count, count);
	if (stored || count)
		scan->highest = MAX(scan->highest, cluster + 1);
	/* What cannot be counted any more is at least that. */
	if (count == COUNTS_MAX && stored > count)
		stored = count;
	if (run->n && (cluster != run->first + run->n || stored != run->stored ||
		       count != run->count || stored == count))
		run_end(scan, run);
	if (stored == count)
		return;
	if (!run->n)
		*run = (struct run){cluster, 0, stored, count};
	run->n++;
}

/* Where there is no block, or nothing in it, the refcounts are 0. */
static void compare_without(struct scan *scan, struct run *run, uint64_t from, uint64_t to,
			    bool missing)
{
	for (uint64_t i = counts_order_find(&scan->counts, from / COUNTS_CHUNK); i < scan->counts.n;
	     i++) {
		const struct counts_chunk *chunk = scan->counts.order[i];
		uint64_t first = chunk->number * COUNTS_CHUNK;

		if (first >= to)
			break;
		for (uint32_t j = 0; j < COUNTS_CHUNK; j++) {
			uint32_t count = chunk->words[j] & COUNTS_MAX;

			if (!count)
				continue;
			compare_one(scan, run, first + j, 0, count);
			if (missing)
				scan->must_rebuild = true;
		}
	}
}

static bool is_zero(const uint8_t *data, uint64_t size)
{
	return !data[0] && !memcmp(data, data + 1, size - 1);
}

static void compare_chunk(struct scan *scan, struct run *run, struct counts_chunk *chunk,
			  uint64_t first, uint64_t n, const uint8_t *block)
{
	for (uint32_t j = 0; j < n; j++) {
		uint64_t stored = scan_refcount_get(block, scan->header.refcount_order, j);

		compare_one(scan, run, first + j, stored, chunk ? chunk->words[j] & COUNTS_MAX : 0);
		if (chunk)
			counts_store(&chunk->words[j],
				     (uint32_t)MIN(stored, (uint64_t)COUNTS_STORED_MORE));
	}
}

static void compare_block(struct scan *scan, struct run *run, uint64_t from, uint64_t to)
{
	uint64_t bytes = COUNTS_CHUNK << scan->header.refcount_order >> 3;
	uint64_t at = counts_order_find(&scan->counts, from / COUNTS_CHUNK);
	const uint8_t *block = scan->buffer;

	for (; from < to; from += COUNTS_CHUNK, block += bytes) {
		struct counts_chunk *chunk = at < scan->counts.n ? scan->counts.order[at] : NULL;

		if (chunk && chunk->number == from / COUNTS_CHUNK)
			at++;
		else
			chunk = NULL;
		if (chunk || !is_zero(block, bytes))
			compare_chunk(scan, run, chunk, from,
				      MIN(to - from, (uint64_t)COUNTS_CHUNK), block);
	}
}

static void mark_unknown(struct scan *scan, uint64_t from, uint64_t to)
{
	for (uint64_t i = counts_order_find(&scan->counts, from / COUNTS_CHUNK); i < scan->counts.n;
	     i++) {
		struct counts_chunk *chunk = scan->counts.order[i];

		if (chunk->number * COUNTS_CHUNK >= to)
			return;
		for (uint32_t j = 0; j < COUNTS_CHUNK; j++) {
			counts_store(&chunk->words[j], COUNTS_STORED_UNKNOWN);
			if (chunk->words[j] & COUNTS_MAX)
				scan->highest =
					MAX(scan->highest, chunk->number * COUNTS_CHUNK + j + 1);
		}
	}
}

static int compare(struct scan *scan)
{
	uint64_t per_block = scan->cluster_size * 8 >> scan->header.refcount_order, first = 0;
	struct run run = {0};
	int r = 0;

	for (uint32_t i = 0; r >= 0 && i < scan->n_reftable && first < scan->n_clusters;
	     i++, first += per_block) {
		uint64_t end = MIN(first + per_block, scan->n_clusters);

		if (scan->broken[i / 64] >> i % 64 & 1) {
			mark_unknown(scan, first, end);
			continue;
		}
		r = 1;
		if (scan->reftable[i])
			r = scan_read(scan, scan->buffer, scan->cluster_size, scan->reftable[i]);
		if (r == 0)
			compare_block(scan, &run, first, end);
		else if (r == 1)
			compare_without(scan, &run, first, end, !scan->reftable[i]);
	}
	if (r >= 0 && first < scan->n_clusters)
		compare_without(scan, &run, first, scan->n_clusters, true);
	run_end(scan, &run);
	return MIN(r, 0);
}

static void check_width(struct scan *scan)
{
	uint32_t bits = 1u << scan->header.refcount_order;

	if (bits < 32 && scan->max_count >> bits)
		scan->must_rebuild = true;
	/* Which will say that it cannot. */
	if (scan->found[SCAN_COUNT] && scan->max_count == COUNTS_MAX)
		scan->must_rebuild = true;
}

int scan_refcounts(struct scan *scan)
{
	int r = scan->without_refcounts ? 0 : read_reftable(scan);

	if (r >= 0) {
		r = counts_sort(&scan->counts);
		if (r < 0)
			error_set(scan->err, r, "cannot check \"%s\": out of memory", scan->name);
	}
	if (r < 0 || scan->without_refcounts)
		return r;
	r = compare(scan);
	check_width(scan);
	return r;
}
