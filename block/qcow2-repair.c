/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing refcounts and tables by what a scan found. What replaces something is written where
 * nothing is, flushed, and only then does the header point there. Each function leaves a file that
 * the next scan understands no worse than before, whatever of its last writes is lost.
 */
#include <endian.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2-scan.h"

static int failed(struct scan *scan, int code)
{
	return error_set(scan->err, code, "cannot repair \"%s\": %s", scan->name, strerror(-code));
}

static int put(struct scan *scan, const void *data, uint64_t size, uint64_t place)
{
	int r = block_file_write(scan->file, data, size, place);

	return r < 0 ? failed(scan, r) : 0;
}

static int flush(struct scan *scan)
{
	int r = block_file_sync(scan->file);

	return r < 0 ? failed(scan, r) : 0;
}

int repair_header(struct scan *scan, uint64_t offset, const void *data, size_t size)
{
	int r = flush(scan);

	if (r >= 0)
		r = put(scan, data, size, offset);
	return r < 0 ? r : flush(scan);
}

/* Refcounts where they are */

/* 64 of them, against the chunk's counts. */
static bool mend_chunk(struct scan *scan, const struct counts_chunk *chunk, uint8_t *block,
		       uint64_t n, bool raise, bool lower)
{
	uint32_t order = scan->header.refcount_order;
	bool changed = false;

	for (uint32_t j = 0; j < n; j++) {
		uint64_t stored = scan_refcount_get(block, order, j);
		uint64_t count = chunk ? chunk->words[j] & COUNTS_MAX : 0;

		if (count == COUNTS_MAX || stored == count || !(stored < count ? raise : lower))
			continue;
		scan_refcount_set(block, order, j, count);
		changed = true;
	}
	return changed;
}

static int mend_block(struct scan *scan, uint64_t place, uint64_t from, uint64_t to, bool raise,
		      bool lower)
{
	uint64_t bytes = COUNTS_CHUNK << scan->header.refcount_order >> 3, at = 0;
	uint64_t first = UINT64_MAX, last = 0;
	uint64_t i = counts_order_find(&scan->counts, from / COUNTS_CHUNK);
	int r = scan_read(scan, scan->buffer, scan->cluster_size, place);

	if (r < 0)
		return r;
	if (r == 1)
		memset(scan->buffer, 0, scan->cluster_size);
	for (; from < to; from += COUNTS_CHUNK, at += bytes) {
		const struct counts_chunk *chunk =
			i < scan->counts.n ? scan->counts.order[i] : NULL;

		if (chunk && chunk->number == from / COUNTS_CHUNK)
			i++;
		else
			chunk = NULL;
		if (!mend_chunk(scan, chunk, scan->buffer + at,
				MIN(to - from, (uint64_t)COUNTS_CHUNK), raise, lower))
			continue;
		first = MIN(first, at);
		last = at + bytes;
	}
	return last ? put(scan, scan->buffer + first, last - first, place + first) : 0;
}

int repair_refcounts(struct scan *scan, bool raise, bool lower)
{
	uint64_t per_block = scan->cluster_size * 8 >> scan->header.refcount_order, first = 0;
	int r = 0;

	for (uint32_t i = 0; r >= 0 && i < scan->n_reftable && first < scan->n_clusters;
	     i++, first += per_block)
		if (scan->reftable[i])
			r = mend_block(scan, scan->reftable[i], first,
				       MIN(first + per_block, scan->n_clusters), raise, lower);
	return r < 0 ? r : flush(scan);
}

/* New ones */

struct rebuild {
	struct scan *scan; /* borrowed */
	uint32_t order;
	uint64_t per_block;
	uint64_t *old;      /* owned; which blocks there must be for what there is, in order */
	uint64_t n_old;     /* those before `low` */
	uint64_t low, high; /* blocks for where table and blocks come to lie */
	uint64_t start;     /* cluster */
	uint64_t n_table, n_block; /* clusters */
};

static uint64_t chunk_highest(const struct counts_chunk *chunk)
{
	for (uint32_t j = COUNTS_CHUNK; j > 0; j--)
		if (chunk->words[j - 1] & COUNTS_MAX)
			return chunk->number * COUNTS_CHUNK + j;
	return 0;
}

/* What is behind the last cluster in use; a file can grow, so there its end. */
static uint64_t free_start(const struct scan *scan)
{
	return scan->file->block_device ? scan->highest : scan->n_clusters;
}

static int find_blocks(struct rebuild *rebuild)
{
	const struct counts *counts = &rebuild->scan->counts;

	rebuild->old = calloc(counts->n + 1, sizeof(*rebuild->old));
	if (!rebuild->old)
		return failed(rebuild->scan, -ENOMEM);
	for (uint64_t i = 0; i < counts->n; i++) {
		uint64_t block = counts->order[i]->number * COUNTS_CHUNK / rebuild->per_block;

		if (chunk_highest(counts->order[i]) &&
		    (!rebuild->n_old || rebuild->old[rebuild->n_old - 1] != block))
			rebuild->old[rebuild->n_old++] = block;
	}
	return 0;
}

/* The new clusters want blocks too, and those a table: until it comes out even. */
static void lay_out(struct rebuild *rebuild)
{
	uint64_t n_blocks = 0, n_table = 0, all = rebuild->n_old;

	rebuild->low = rebuild->start / rebuild->per_block;
	while (all && rebuild->old[all - 1] >= rebuild->low)
		all--;
	rebuild->n_old = all;
	do {
		rebuild->n_block = n_blocks;
		rebuild->n_table = n_table;
		rebuild->high = (rebuild->start + MAX(n_blocks + n_table, UINT64_C(1)) - 1) /
				rebuild->per_block;
		n_blocks = all + rebuild->high - rebuild->low + 1;
		n_table = (rebuild->high + 1) * 8;
		n_table =
			(n_table + rebuild->scan->cluster_size - 1) >> rebuild->scan->cluster_bits;
	} while (n_blocks != rebuild->n_block || n_table != rebuild->n_table);
}

static int check_room(struct rebuild *rebuild)
{
	struct scan *scan = rebuild->scan;
	uint64_t end = rebuild->start + rebuild->n_table + rebuild->n_block;

	if (rebuild->n_table << scan->cluster_bits > QCOW2_REFTABLE_BYTES_MAX)
		return error_set(scan->err, -EFBIG,
				 "cannot repair \"%s\": its refcounts would want a table of more "
				 "than 8 MiB; copy the disk out by corral disk convert",
				 scan->name);
	if (scan->file->block_device && end > scan->n_clusters)
		return error_set(scan->err, -ENOSPC,
				 "cannot repair \"%s\": there is no room behind its last cluster "
				 "for new refcounts; make the device larger",
				 scan->name);
	return 0;
}

static uint64_t block_number(const struct rebuild *rebuild, uint64_t i)
{
	return i < rebuild->n_old ? rebuild->old[i] : rebuild->low + i - rebuild->n_old;
}

static int write_block(struct rebuild *rebuild, uint64_t i)
{
	struct scan *scan = rebuild->scan;
	uint64_t first = block_number(rebuild, i) * rebuild->per_block;
	uint64_t end = first + rebuild->per_block;
	uint64_t new_end = rebuild->start + rebuild->n_table + rebuild->n_block;

	memset(scan->buffer, 0, scan->cluster_size);
	for (uint64_t at = counts_order_find(&scan->counts, first / COUNTS_CHUNK);
	     at < scan->counts.n; at++) {
		const struct counts_chunk *chunk = scan->counts.order[at];
		uint64_t base = chunk->number * COUNTS_CHUNK;

		if (base >= end)
			break;
		for (uint32_t j = 0; j < COUNTS_CHUNK; j++)
			if (chunk->words[j] & COUNTS_MAX)
				scan_refcount_set(scan->buffer, rebuild->order, base + j - first,
						  chunk->words[j] & COUNTS_MAX);
	}
	for (uint64_t at = MAX(first, rebuild->start); at < MIN(end, new_end); at++)
		scan_refcount_set(scan->buffer, rebuild->order, at - first, 1);
	return put(scan, scan->buffer, scan->cluster_size,
		   (rebuild->start + rebuild->n_table + i) << scan->cluster_bits);
}

static int write_table(struct rebuild *rebuild)
{
	struct scan *scan = rebuild->scan;
	uint64_t size = rebuild->n_table << scan->cluster_bits;
	_cleanup_(freep) uint64_t *table = calloc(1, size);

	if (!table)
		return failed(scan, -ENOMEM);
	for (uint64_t i = 0; i < rebuild->n_block; i++)
		table[block_number(rebuild, i)] =
			htobe64((rebuild->start + rebuild->n_table + i) << scan->cluster_bits);
	return put(scan, table, size, rebuild->start << scan->cluster_bits);
}

/* Where the table is, how large and how wide its refcounts: in one sector. */
static int switch_table(struct rebuild *rebuild)
{
	struct scan *scan = rebuild->scan;
	struct qcow2_disk_header disk;
	size_t size = scan->header.version >= 3 ? QCOW2_HEADER_V3_SIZE : QCOW2_HEADER_V2_SIZE;
	int r = block_file_read(scan->file, &disk, size, 0);

	if (r < 0)
		return failed(scan, r);
	disk.reftable_offset = htobe64(rebuild->start << scan->cluster_bits);
	disk.reftable_clusters = htobe32((uint32_t)rebuild->n_table);
	if (scan->header.version >= 3)
		disk.refcount_order = htobe32(rebuild->order);
	return repair_header(scan, 0, &disk, size);
}

static int find_width(struct rebuild *rebuild)
{
	struct scan *scan = rebuild->scan;
	uint32_t max = 1;

	for (uint64_t i = 0; i < scan->counts.n; i++)
		for (uint32_t j = 0; j < COUNTS_CHUNK; j++)
			max = MAX(max, scan->counts.order[i]->words[j] & COUNTS_MAX);
	rebuild->order = scan->header.refcount_order;
	while (rebuild->order < 5 && max >> (1u << rebuild->order))
		rebuild->order++;
	if (max == COUNTS_MAX || (scan->header.version < 3 && rebuild->order > 4))
		return error_set(scan->err, -EFBIG,
				 "cannot repair \"%s\": more point to one cluster than can be "
				 "counted; copy the disk out by corral disk convert",
				 scan->name);
	rebuild->per_block = scan->cluster_size * 8 >> rebuild->order;
	return 0;
}

int repair_rebuild(struct scan *scan)
{
	struct rebuild rebuild = {.scan = scan, .start = free_start(scan)};
	int r = find_width(&rebuild);

	if (r >= 0)
		r = find_blocks(&rebuild);
	if (r >= 0) {
		lay_out(&rebuild);
		r = check_room(&rebuild);
	}
	for (uint64_t i = 0; r >= 0 && i < rebuild.n_block; i++)
		r = write_block(&rebuild, i);
	if (r >= 0)
		r = write_table(&rebuild);
	if (r >= 0)
		r = switch_table(&rebuild);
	free(rebuild.old);
	return r;
}

/* Snapshots */

static int switch_snapshots(struct scan *scan, uint32_t n, uint64_t place)
{
	struct {
		uint32_t n;
		uint64_t place;
	} __attribute__((packed)) disk = {htobe32(n), htobe64(place)};

	return repair_header(scan, offsetof(struct qcow2_disk_header, n_snapshots), &disk,
			     sizeof(disk));
}

int repair_snapshots(struct scan *scan)
{
	_cleanup_(freep) uint8_t *data = NULL;
	uint64_t size = 0, place = free_start(scan) << scan->cluster_bits;
	uint32_t n = 0;
	int r;

	for (uint32_t i = 0; i < scan->snapshots.n; i++)
		n += scan->keep[i];
	if (scan->forget_snapshots || !n)
		return switch_snapshots(scan, 0, 0);
	r = qcow2_snapshots_encode(&scan->snapshots, scan->keep, &data, &size);
	if (r < 0)
		return failed(scan, r);
	if (scan->file->block_device && (size > scan->file_size || place > scan->file_size - size))
		return failed(scan, -ENOSPC);
	r = put(scan, data, size, place);
	return r < 0 ? r : switch_snapshots(scan, n, place);
}
