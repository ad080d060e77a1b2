/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who counts a file's clusters: the refcount table and its blocks, which come to memory as they are
 * needed, and on top of them allocation. Everything is changed in memory first and written by a
 * commit. All of it under the image's lock.
 *
 * Where a new cluster comes from: what was given up since the image was opened; else the lowest
 * cluster that counts as free, looked for a few blocks at a time so that no request pays for the
 * whole file; else the file's end. Behind the end nothing was ever written, so a regular file reads
 * as zeroes there.
 *
 * A block that is not there yet is put at the beginning of what is about to be allocated. Nothing
 * may point to it before it is in the file (a flush of its own: step 0). The table, when it is
 * full, moves to a larger place at the end, with blocks for that place in front of it.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2.h"

#define PIECE_BITS         12 /* of a block: what is written at once */
#define PIECES_MAX         (1u << (QCOW2_CLUSTER_BITS_MAX - PIECE_BITS))
#define BLOCK_CACHE_BYTES  (UINT64_C(16) << 20)
#define BLOCK_CACHE_LEAST  16
#define SCAN_BLOCKS        4 /* read for one allocation */
#define FREE_MAX           65536
#define GONE_DUE           16384
#define SECTOR_ENTRIES     (BLOCK_SECTOR / 8)
#define TABLE_OFFSET_MASK  (~UINT64_C(0x1ff))
#define CLUSTER_OFFSET_END (UINT64_C(1) << 56)

/* Clusters, by number. */
struct run {
	uint64_t first, n;
};

struct runs {
	struct run *list; /* owned */
	uint32_t n, room;
};

struct block {
	uint64_t index; /* in the table */
	bool used;
	bool listed; /* in `dirty` */
	struct block *next_dirty;
	uint64_t dirty[PIECES_MAX / 64];
	uint8_t data[] __attribute__((aligned(8)));
};

struct qcow2_refcounts {
	uint32_t order;        /* of a count's width in bits */
	uint32_t entries_bits; /* counts of a block */
	uint64_t max_count;

	uint64_t *table;       /* owned; host order */
	struct block **blocks; /* owned, and what is in it; beside `table` */
	uint64_t n_table;
	uint64_t table_from, table_to; /* what of `table` is not in the file */
	bool table_moved;              /* the header does not say so yet */
	uint64_t table_place;

	struct block **cached; /* owned; for the clock */
	uint32_t n_cached, room, hand, max;
	bool keep; /* nothing is evicted */
	struct block *dirty;

	uint64_t next;  /* no cluster below is free but those in `free` */
	uint64_t end;   /* nothing was ever allocated from here on */
	uint64_t limit; /* there are no clusters from here on */
	struct runs free, gone;
	bool lazy;
};

/* Lists of runs */

static int runs_add(struct runs *runs, uint64_t first, uint64_t n)
{
	struct run *last = runs->n ? &runs->list[runs->n - 1] : NULL;

	if (last && last->first + last->n == first) {
		last->n += n;
		return 0;
	}
	if (runs->n == runs->room) {
		const uint32_t room = MAX(64u, 2 * runs->room);
		void *list = realloc(runs->list, room * sizeof(*runs->list));

		if (!list)
			return -ENOMEM;
		runs->list = list;
		runs->room = room;
	}
	runs->list[runs->n++] = (struct run){first, n};
	return 0;
}

static void free_add(struct qcow2 *qcow2, uint64_t first)
{
	struct qcow2_refcounts *counts = qcow2->refcounts;

	if (qcow2->packed_next >> qcow2->cluster_bits == first)
		qcow2->packed_next = 0;
	/* What does not fit is found again by looking for it. */
	if (counts->free.n >= FREE_MAX || runs_add(&counts->free, first, 1) < 0)
		counts->next = MIN(counts->next, first);
}

/* Counts in a block */

static uint64_t count_get(const struct qcow2_refcounts *counts, const struct block *block,
			  uint64_t i)
{
	const uint8_t *data = block->data;

	switch (counts->order) {
	case 3:
		return data[i];
	case 4:
		return be16toh(((const uint16_t *)data)[i]);
	case 5:
		return be32toh(((const uint32_t *)data)[i]);
	case 6:
		return be64toh(((const uint64_t *)data)[i]);
	default: {
		const uint64_t bit = i << counts->order;

		return data[bit / 8] >> (bit % 8) & counts->max_count;
	}
	}
}

static void block_list(struct qcow2_refcounts *counts, struct block *block)
{
	if (block->listed)
		return;
	block->listed = true;
	block->next_dirty = counts->dirty;
	counts->dirty = block;
}

static void count_set(struct qcow2_refcounts *counts, struct block *block, uint64_t i,
		      uint64_t value)
{
	const uint64_t bit = i << counts->order, piece = bit >> (PIECE_BITS + 3);
	uint8_t *data = block->data;

	switch (counts->order) {
	case 3:
		data[i] = (uint8_t)value;
		break;
	case 4:
		((uint16_t *)data)[i] = htobe16((uint16_t)value);
		break;
	case 5:
		((uint32_t *)data)[i] = htobe32((uint32_t)value);
		break;
	case 6:
		((uint64_t *)data)[i] = htobe64(value);
		break;
	default:
		data[bit / 8] &= (uint8_t) ~(counts->max_count << (bit % 8));
		data[bit / 8] |= (uint8_t)(value << (bit % 8));
	}
	block->dirty[piece / 64] |= UINT64_C(1) << (piece % 64);
	block_list(counts, block);
}

static uint64_t in_block(const struct qcow2_refcounts *counts, uint64_t cluster)
{
	return cluster & ((UINT64_C(1) << counts->entries_bits) - 1);
}

/* Blocks in memory */

static void evict(struct qcow2_refcounts *counts)
{
	for (uint32_t i = 0; i < 2 * counts->n_cached; i++) {
		struct block *block;

		counts->hand %= counts->n_cached;
		block = counts->cached[counts->hand];
		if (!block->listed && !block->used) {
			counts->blocks[block->index] = NULL;
			counts->cached[counts->hand] = counts->cached[--counts->n_cached];
			free(block);
			return;
		}
		block->used = false;
		counts->hand++;
	}
}

/* An empty one, in memory only. */
static struct block *block_new(struct qcow2 *qcow2, uint64_t index)
{
	struct qcow2_refcounts *counts = qcow2->refcounts;
	struct block *block;

	if (counts->n_cached >= counts->max && !counts->keep)
		evict(counts);
	if (counts->n_cached == counts->room) {
		const uint32_t room = MAX(64u, 2 * counts->room);
		void *cached = realloc(counts->cached, room * sizeof(*counts->cached));

		if (!cached)
			return NULL;
		counts->cached = cached;
		counts->room = room;
	}
	block = calloc(1, sizeof(*block) + qcow2->cluster_size);
	if (block)
		block->index = index;
	return block;
}

static void block_keep(struct qcow2_refcounts *counts, struct block *block)
{
	block->used = true;
	counts->cached[counts->n_cached++] = block;
	counts->blocks[block->index] = block;
}

/* Whether what lies at `offset` counts as used where this block counts it. */
static bool counts_range(const struct qcow2 *qcow2, const struct block *block, uint64_t offset,
			 uint64_t bytes)
{
	const struct qcow2_refcounts *counts = qcow2->refcounts;
	const uint64_t from = block->index << counts->entries_bits;
	const uint64_t to = from + (UINT64_C(1) << counts->entries_bits);
	const uint64_t last = (offset + bytes + qcow2->cluster_size - 1) >> qcow2->cluster_bits;

	for (uint64_t i = MAX(from, offset >> qcow2->cluster_bits); i < MIN(to, last); i++)
		if (!count_get(counts, block, in_block(counts, i)))
			return false;
	return true;
}

/* A block that says of header or tables that they are free would give them away. */
static int block_check_tables(struct qcow2 *qcow2, const struct block *block, uint64_t place)
{
	const struct qcow2_header *header = &qcow2->header;

	if (counts_range(qcow2, block, 0, 1) &&
	    counts_range(qcow2, block, header->l1_offset, header->l1_entries * UINT64_C(8)) &&
	    counts_range(qcow2, block, header->reftable_offset,
			 (uint64_t)header->reftable_clusters << header->cluster_bits) &&
	    counts_range(qcow2, block, place, 1))
		return 0;
	return qcow2_set_corrupt(qcow2,
				 "header or tables count as free in the refcount block at "
				 "%#llx",
				 (unsigned long long)place);
}

static int block_read_in(struct qcow2 *qcow2, struct block *block)
{
	const struct qcow2_header *header = &qcow2->header;
	const uint64_t entry = qcow2->refcounts->table[block->index];
	const uint64_t place = entry & TABLE_OFFSET_MASK, size = qcow2->cluster_size;
	const uint64_t l1_end = header->l1_offset + header->l1_entries * UINT64_C(8);
	const uint64_t table_end = header->reftable_offset + header->reftable_clusters * size;
	int r;

	if (entry & (size - 1) || place >= qcow2->file_end ||
	    (place < l1_end && header->l1_offset < place + size) ||
	    (place < table_end && header->reftable_offset < place + size))
		return qcow2_set_corrupt(qcow2, "refcount table entry %llu is %#llx",
					 (unsigned long long)block->index,
					 (unsigned long long)entry);
	r = block_file_read(&qcow2->image.file, block->data, size, place);
	return r < 0 ? r : block_check_tables(qcow2, block, place);
}

/* *ret_block is NULL where there is none: all is free. */
static int block_get(struct qcow2 *qcow2, uint64_t index, struct block **ret_block)
{
	struct qcow2_refcounts *counts = qcow2->refcounts;
	struct block *block = NULL;
	int r;

	if (index < counts->n_table)
		block = counts->blocks[index];
	if (block || index >= counts->n_table || !counts->table[index]) {
		if (block)
			block->used = true;
		*ret_block = block;
		return 0;
	}
	block = block_new(qcow2, index);
	if (!block)
		return -ENOMEM;
	r = block_read_in(qcow2, block);
	if (r < 0) {
		free(block);
		return r;
	}
	block_keep(counts, block);
	*ret_block = block;
	return 0;
}

/* The table has a block more, at cluster `at`, which the caller counts. */
static void block_add(struct qcow2 *qcow2, struct block *block, uint64_t at)
{
	struct qcow2_refcounts *counts = qcow2->refcounts;
	const uint64_t index = block->index;

	block_keep(counts, block);
	block_list(counts, block);
	counts->table[index] = at << qcow2->cluster_bits;
	qcow2_place_note(qcow2, counts->table[index]);
	if (counts->table_from >= counts->table_to) {
		counts->table_from = index;
		counts->table_to = index + 1;
	}
	counts->table_from = MIN(counts->table_from, index);
	counts->table_to = MAX(counts->table_to, index + 1);
	/* What was there before is not to be read as counts. */
	if (at < counts->end || !qcow2->image.file.holes)
		memset(block->dirty, 0xff, sizeof(block->dirty));
}

/* The count of a cluster whose block is in memory. */
static void count_known(struct qcow2_refcounts *counts, uint64_t cluster, uint64_t value)
{
	count_set(counts, counts->blocks[cluster >> counts->entries_bits],
		  in_block(counts, cluster), value);
}

static void end_move(struct qcow2 *qcow2, uint64_t end)
{
	struct qcow2_refcounts *counts = qcow2->refcounts;

	counts->end = MAX(counts->end, end);
	qcow2->file_end = MAX(qcow2->file_end, counts->end << qcow2->cluster_bits);
}

/* A row at the end of the file, and a table large enough for it */

/* How many blocks have to be made for `n` clusters from `first` on and for the blocks themselves,
 * which come before them. */
static uint64_t blocks_for(const struct qcow2_refcounts *counts, uint64_t first, uint64_t n)
{
	uint64_t needed = 0, before;

	do {
		const uint64_t last = first + needed + n - 1;

		before = needed;
		needed = 0;
		for (uint64_t i = first >> counts->entries_bits; i <= last >> counts->entries_bits;
		     i++)
			needed += i >= counts->n_table || !counts->table[i];
	} while (needed != before);
	return needed;
}

static void blocks_free(struct block **blocks, uint64_t n)
{
	for (uint64_t i = 0; blocks && i < n; i++)
		free(blocks[i]);
	free(blocks);
}

/* Blocks for the clusters [first, last], those that exist in memory, the others in a list. */
static int blocks_prepare(struct qcow2 *qcow2, uint64_t first, uint64_t last, uint64_t n,
			  struct block ***ret_blocks)
{
	struct qcow2_refcounts *counts = qcow2->refcounts;
	struct block **blocks = calloc(n + 1, sizeof(struct block *)), *block;
	uint64_t made = 0;

	if (!blocks)
		return -ENOMEM;
	for (uint64_t i = first >> counts->entries_bits; i <= last >> counts->entries_bits; i++) {
		int r = block_get(qcow2, i, &block);

		if (r >= 0 && !block && !(blocks[made++] = block_new(qcow2, i)))
			r = -ENOMEM;
		if (r < 0) {
			blocks_free(blocks, n);
			return r;
		}
	}
	*ret_blocks = blocks;
	return 0;
}

/* The table has room for all of it. */
static int row_take(struct qcow2 *qcow2, uint64_t n, uint64_t *ret_first)
{
	struct qcow2_refcounts *counts = qcow2->refcounts;
	const uint64_t first = counts->end, n_blocks = blocks_for(counts, first, n);
	const uint64_t last = first + n_blocks + n - 1;
	struct block **blocks;
	int r;

	if (last >= counts->limit)
		return -ENOSPC;
	/* Room in `cached` too is had before anything is changed. */
	counts->keep = true;
	while (counts->n_cached + n_blocks + (last >> counts->entries_bits) -
		       (first >> counts->entries_bits) + 1 >
	       counts->room) {
		const uint32_t room = MAX(64u, 2 * counts->room);
		void *cached = realloc(counts->cached, room * sizeof(*counts->cached));

		if (!cached)
			return -ENOMEM;
		counts->cached = cached;
		counts->room = room;
	}
	r = blocks_prepare(qcow2, first, last, n_blocks, &blocks);
	counts->keep = false;
	if (r < 0)
		return r;
	for (uint64_t i = 0; i < n_blocks; i++)
		block_add(qcow2, blocks[i], first + i);
	for (uint64_t i = first; i <= last; i++)
		count_known(counts, i, 1);
	free(blocks);
	end_move(qcow2, last + 1);
	*ret_first = first + n_blocks;
	return 0;
}

/* Entries of a table that counts `clusters` at the end of the file, and itself. */
static uint64_t table_size_for(const struct qcow2 *qcow2, uint64_t clusters, uint64_t *ret_clusters)
{
	const struct qcow2_refcounts *counts = qcow2->refcounts;
	const uint32_t cluster_entries_bits = qcow2->cluster_bits - 3;
	uint64_t entries = counts->n_table + counts->n_table / 2, needed = 0;

	for (;;) {
		const uint64_t own = (MAX(entries, needed) >> cluster_entries_bits) + 1;
		const uint64_t last = counts->end + 2 * (clusters + own) + 2;

		entries = own << cluster_entries_bits;
		needed = (last >> counts->entries_bits) + 2;
		*ret_clusters = own;
		if (needed <= entries)
			return entries;
	}
}

static int table_resize(struct qcow2_refcounts *counts, uint64_t entries)
{
	uint64_t *table = realloc(counts->table, entries * sizeof(*table));
	struct block **blocks;

	if (!table)
		return -ENOMEM;
	counts->table = table;
	blocks = realloc(counts->blocks, entries * sizeof(struct block *));
	if (!blocks)
		return -ENOMEM;
	counts->blocks = blocks;
	memset(table + counts->n_table, 0, (entries - counts->n_table) * sizeof(*table));
	memset(blocks + counts->n_table, 0, (entries - counts->n_table) * sizeof(struct block *));
	return 0;
}

/* The table gets room for `clusters` more at the end of the file. */
static int table_grow(struct qcow2 *qcow2, uint64_t clusters)
{
	struct qcow2_refcounts *counts = qcow2->refcounts;
	const uint64_t old_entries = counts->n_table, old_place = counts->table_place;
	const uint64_t old_clusters = old_entries >> (qcow2->cluster_bits - 3);
	uint64_t own, first, entries = table_size_for(qcow2, clusters, &own);
	int r;

	if (entries * 8 > QCOW2_REFTABLE_BYTES_MAX)
		return -EFBIG;
	r = table_resize(counts, entries);
	if (r < 0)
		return r;
	/* Once the header says otherwise. */
	r = qcow2_give_up(qcow2, old_place, (uint32_t)old_clusters);
	if (r < 0)
		return r;
	counts->n_table = entries;
	r = row_take(qcow2, own, &first);
	if (r < 0) {
		counts->n_table = old_entries;
		counts->gone.list[counts->gone.n - 1].n -= old_clusters;
		return r;
	}
	counts->table_moved = true;
	counts->table_place = first << qcow2->cluster_bits;
	return 0;
}

static int row_at_end(struct qcow2 *qcow2, uint64_t n, uint64_t *ret_first)
{
	struct qcow2_refcounts *counts = qcow2->refcounts;
	uint64_t last = counts->end + n + blocks_for(counts, counts->end, n) - 1;

	if (last >= counts->limit)
		return -ENOSPC;
	if (last >= CLUSTER_OFFSET_END >> qcow2->cluster_bits)
		return -EFBIG;
	if (last >> counts->entries_bits >= counts->n_table) {
		int r = table_grow(qcow2, n);

		if (r < 0)
			return r;
	}
	return row_take(qcow2, n, ret_first);
}

/* Allocation */

/* A run that was given up and is free still: others find it too. */
static int find_given_up(struct qcow2 *qcow2, uint64_t want, struct run *ret_run)
{
	struct qcow2_refcounts *counts = qcow2->refcounts;

	while (counts->free.n) {
		struct run *last = &counts->free.list[counts->free.n - 1];
		uint64_t n = 0;

		while (n < MIN(want, last->n)) {
			uint64_t count;
			int r = qcow2_refcount(qcow2, (last->first + n) << qcow2->cluster_bits,
					       &count);

			if (r < 0)
				return r;
			if (count)
				break;
			n++;
		}
		*ret_run = (struct run){last->first, n};
		/* What was taken, or found to be used. */
		last->first += MAX(n, UINT64_C(1));
		last->n -= MAX(n, UINT64_C(1));
		if (!last->n)
			counts->free.n--;
		if (n)
			return 0;
	}
	ret_run->n = 0;
	return 0;
}

/* The first run in one block, from `next` on, which goes behind it. */
static void find_in_block(struct qcow2_refcounts *counts, const struct block *block, uint64_t want,
			  struct run *ret_run)
{
	const uint64_t base = counts->next - in_block(counts, counts->next);
	const uint64_t end = MIN(counts->end, base + (UINT64_C(1) << counts->entries_bits));
	uint64_t at = counts->next, n = 0;

	while (block && at < end && count_get(counts, block, at - base))
		at++;
	while (at + n < end && n < want && (!block || !count_get(counts, block, at + n - base)))
		n++;
	counts->next = at + n;
	*ret_run = (struct run){at, n};
}

static int find_below_end(struct qcow2 *qcow2, uint64_t want, bool far, struct run *ret_run)
{
	struct qcow2_refcounts *counts = qcow2->refcounts;
	uint32_t n_read = 0;

	ret_run->n = 0;
	while (!ret_run->n && counts->next < counts->end) {
		const uint64_t index = counts->next >> counts->entries_bits;
		const bool read =
			index < counts->n_table && counts->table[index] && !counts->blocks[index];
		struct block *block;
		int r;

		if (read && n_read++ == SCAN_BLOCKS && !far)
			return 0;
		r = block_get(qcow2, index, &block);
		if (r < 0)
			return r;
		find_in_block(counts, block, want, ret_run);
	}
	return 0;
}

/* Counts a run of free clusters within one block's. A block that has to be made takes the first. */
static int run_take(struct qcow2 *qcow2, struct run *run)
{
	struct qcow2_refcounts *counts = qcow2->refcounts;
	const uint64_t index = run->first >> counts->entries_bits;
	struct block *block;
	int r = 0;

	for (uint64_t i = 0; i < run->n; i++)
		if (qcow2_is_table(qcow2, (run->first + i) << qcow2->cluster_bits))
			return qcow2_set_corrupt(qcow2, "the table at %#llx counts as free",
						 (unsigned long long)(run->first + i)
							 << qcow2->cluster_bits);
	if (index >= counts->n_table)
		r = table_grow(qcow2, run->n);
	if (r >= 0)
		r = block_get(qcow2, index, &block);
	if (r >= 0 && !block) {
		block = block_new(qcow2, index);
		if (!block)
			return -ENOMEM;
		block_add(qcow2, block, run->first);
		count_known(counts, run->first, 1);
		run->first++;
		run->n--;
	}
	for (uint64_t i = 0; r >= 0 && i < run->n; i++)
		count_known(counts, run->first + i, 1);
	return r;
}

/* One of the three places, `n` 0: a block took it all, or the table moved; look again. */
static int find(struct qcow2 *qcow2, uint64_t want, struct run *run, bool *ret_fresh)
{
	struct qcow2_refcounts *counts = qcow2->refcounts;
	const uint64_t in_one = UINT64_C(1) << counts->entries_bits;
	uint64_t end;
	int r = find_given_up(qcow2, want, run);

	*ret_fresh = false;
	if (r >= 0 && !run->n)
		r = find_below_end(qcow2, want, counts->end >= counts->limit, run);
	if (r < 0)
		return r;
	if (run->n)
		return run_take(qcow2, run);
	end = counts->end;
	if (end >= counts->limit)
		return -ENOSPC;
	if (end >= CLUSTER_OFFSET_END >> qcow2->cluster_bits)
		return -EFBIG;
	*run = (struct run){end, MIN(want, in_one - in_block(counts, end))};
	run->n = MIN(run->n, counts->limit - end);
	if (end >> counts->entries_bits >= counts->n_table) {
		run->n = 0;
		return table_grow(qcow2, want);
	}
	r = run_take(qcow2, run);
	if (r < 0)
		return r;
	if (counts->next == end)
		counts->next = run->first + run->n;
	*ret_fresh = qcow2->image.file.holes;
	end_move(qcow2, run->first + run->n);
	return 0;
}

/* Lazy refcounts: the file says that they are not to be trusted before they are not. */
static int lazy_begin(struct qcow2 *qcow2)
{
	int r;

	if (!qcow2->refcounts->lazy || qcow2->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY)
		return 0;
	qcow2->header.incompatible |= QCOW2_INCOMPATIBLE_DIRTY;
	r = qcow2_header_write(qcow2);
	if (r >= 0)
		r = qcow2_sync(qcow2);
	if (r < 0)
		qcow2->header.incompatible &= ~(uint64_t)QCOW2_INCOMPATIBLE_DIRTY;
	return r;
}

static int may_allocate(struct qcow2 *qcow2)
{
	int r;

	if (!qcow2->refcounts || atomic_load(&qcow2->corrupt))
		return -EIO;
	r = lazy_begin(qcow2);
	if (r < 0)
		return r;
	qcow2_set_dirty(qcow2);
	qcow2->ordered = true;
	return 0;
}

int qcow2_allocate(struct qcow2 *qcow2, uint32_t *n, uint64_t *ret_place, bool *ret_fresh)
{
	struct run run = {0};
	int r = may_allocate(qcow2);

	while (r >= 0 && !run.n)
		r = find(qcow2, *n, &run, ret_fresh);
	if (r < 0)
		return r;
	*n = (uint32_t)run.n;
	*ret_place = run.first << qcow2->cluster_bits;
	return 0;
}

int qcow2_allocate_row(struct qcow2 *qcow2, uint32_t n, uint64_t *ret_place)
{
	uint64_t first;
	int r = may_allocate(qcow2);

	if (r >= 0)
		r = row_at_end(qcow2, n, &first);
	if (r >= 0)
		*ret_place = first << qcow2->cluster_bits;
	return r;
}

void qcow2_unallocate(struct qcow2 *qcow2, uint64_t place, uint32_t n)
{
	struct qcow2_refcounts *counts = qcow2->refcounts;

	for (uint64_t i = place >> qcow2->cluster_bits; n; i++, n--) {
		struct block *block;

		/* Dirty since it was allocated, so in memory; a leak otherwise. */
		if (block_get(qcow2, i >> counts->entries_bits, &block) < 0 || !block)
			continue;
		count_set(counts, block, in_block(counts, i), 0);
		free_add(qcow2, i);
	}
}

int qcow2_refcount(struct qcow2 *qcow2, uint64_t place, uint64_t *ret_count)
{
	const struct qcow2_refcounts *counts = qcow2->refcounts;
	const uint64_t cluster = place >> qcow2->cluster_bits;
	struct block *block;
	int r;

	if (!counts)
		return -EIO;
	r = block_get(qcow2, cluster >> counts->entries_bits, &block);
	if (r < 0)
		return r;
	*ret_count = block ? count_get(counts, block, in_block(counts, cluster)) : 0;
	return 0;
}

int qcow2_refcount_add(struct qcow2 *qcow2, uint64_t place, uint32_t n)
{
	const uint64_t cluster = place >> qcow2->cluster_bits;
	struct qcow2_refcounts *counts = qcow2->refcounts;
	uint64_t count;
	int r = may_allocate(qcow2);

	if (r >= 0)
		r = qcow2_refcount(qcow2, place, &count);
	if (r < 0)
		return r;
	if (!count || n > counts->max_count - count)
		return -ERANGE;
	count_known(counts, cluster, count + n);
	return 0;
}

int qcow2_give_up(struct qcow2 *qcow2, uint64_t place, uint32_t n)
{
	const uint64_t first = place >> qcow2->cluster_bits;

	if (atomic_load(&qcow2->corrupt))
		return -EIO;
	for (uint64_t i = 0; i < n; i++) {
		uint64_t count;
		int r = qcow2_refcount(qcow2, (first + i) << qcow2->cluster_bits, &count);

		if (r < 0)
			return r;
		if (!count)
			return qcow2_set_corrupt(qcow2, "the cluster at %#llx counts as free",
						 (unsigned long long)(first + i)
							 << qcow2->cluster_bits);
	}
	qcow2_set_dirty(qcow2);
	return runs_add(&qcow2->refcounts->gone, first, n);
}

bool qcow2_refcounts_due(const struct qcow2 *qcow2)
{
	return qcow2->refcounts && qcow2->refcounts->gone.n > GONE_DUE;
}

/* To the file */

static int block_write_pieces(struct qcow2 *qcow2, const struct block *block)
{
	const uint64_t place = qcow2->refcounts->table[block->index] & TABLE_OFFSET_MASK;
	const uint64_t size = MIN(UINT64_C(1) << PIECE_BITS, qcow2->cluster_size);
	const uint64_t n = qcow2->cluster_size / size;
	int r = 0;

	for (uint64_t i = 0, from; r >= 0 && i < n; i++) {
		for (from = i; i < n && block->dirty[i / 64] >> (i % 64) & 1;)
			i++;
		if (i > from)
			r = block_file_write(&qcow2->image.file, block->data + from * size,
					     (i - from) * size, place + from * size);
	}
	return r;
}

static int blocks_write(struct qcow2 *qcow2)
{
	const struct block *block = qcow2->refcounts->dirty;
	int r = 0;

	for (; r >= 0 && block; block = block->next_dirty)
		r = block_write_pieces(qcow2, block);
	return r;
}

static void blocks_clean(struct qcow2_refcounts *counts)
{
	while (counts->dirty) {
		struct block *block = counts->dirty;

		counts->dirty = block->next_dirty;
		block->listed = false;
		memset(block->dirty, 0, sizeof(block->dirty));
	}
}

/* Entries from `from` to `to`, whole sectors. */
static int table_write(struct qcow2 *qcow2, uint64_t place, uint64_t from, uint64_t to)
{
	const uint64_t *table = qcow2->refcounts->table;
	uint64_t entries[SECTOR_ENTRIES];
	int r = 0;

	for (from -= from % SECTOR_ENTRIES; r >= 0 && from < to; from += SECTOR_ENTRIES) {
		for (uint64_t i = 0; i < SECTOR_ENTRIES; i++)
			entries[i] = htobe64(table[from + i]);
		r = block_file_write(&qcow2->image.file, entries, sizeof(entries),
				     place + from * 8);
	}
	return r;
}

/* New blocks, and a new table, are in the file for good before anything points to them. */
static int tables_write(struct qcow2 *qcow2)
{
	struct qcow2_refcounts *counts = qcow2->refcounts;
	struct qcow2_header *header = &qcow2->header;
	int r = 0;

	if (counts->table_moved)
		r = table_write(qcow2, counts->table_place, 0, counts->n_table);
	if (r >= 0)
		r = qcow2_sync(qcow2);
	if (r < 0)
		return r;
	if (!counts->table_moved)
		return table_write(qcow2, counts->table_place, counts->table_from,
				   counts->table_to);
	header->reftable_offset = counts->table_place;
	header->reftable_clusters = (uint32_t)(counts->n_table >> (qcow2->cluster_bits - 3));
	return qcow2_header_write(qcow2);
}

static int write_all(struct qcow2 *qcow2)
{
	const struct qcow2_refcounts *counts = qcow2->refcounts;
	int r = blocks_write(qcow2);

	if (r >= 0 && (counts->table_moved || counts->table_from < counts->table_to))
		r = tables_write(qcow2);
	return r;
}

static void all_written(struct qcow2_refcounts *counts)
{
	blocks_clean(counts);
	counts->table_moved = false;
	counts->table_from = counts->table_to = 0;
}

int qcow2_refcounts_write(struct qcow2 *qcow2)
{
	if (!qcow2->refcounts)
		return -EIO;
	return qcow2->refcounts->lazy ? 0 : write_all(qcow2);
}

void qcow2_refcounts_written(struct qcow2 *qcow2)
{
	if (!qcow2->refcounts->lazy)
		all_written(qcow2->refcounts);
}

int qcow2_refcounts_settle(struct qcow2 *qcow2)
{
	int r = write_all(qcow2);

	if (r >= 0)
		r = qcow2_sync(qcow2);
	if (r >= 0)
		all_written(qcow2->refcounts);
	return r;
}

/* Space is given back to the store. That may fail, which costs space. */
static void punch(struct qcow2 *qcow2, struct run *run)
{
	if (run->n && qcow2->image.can_discard &&
	    block_file_discard(&qcow2->image.file, run->first << qcow2->cluster_bits,
			       run->n << qcow2->cluster_bits) < 0)
		run->n = 0;
	run->n = 0;
}

static int release_one(struct qcow2 *qcow2, uint64_t cluster, struct run *run)
{
	struct qcow2_refcounts *counts = qcow2->refcounts;
	struct block *block;
	uint64_t count = 0;
	int r = block_get(qcow2, cluster >> counts->entries_bits, &block);

	if (r < 0)
		return r;
	if (block)
		count = count_get(counts, block, in_block(counts, cluster));
	if (!count)
		return qcow2_set_corrupt(qcow2,
					 "the cluster at %#llx is given up once more than it "
					 "counts",
					 (unsigned long long)cluster << qcow2->cluster_bits);
	count_set(counts, block, in_block(counts, cluster), count - 1);
	if (count > 1)
		return 0;
	if (run->first + run->n != cluster) {
		punch(qcow2, run);
		run->first = cluster;
	}
	run->n++;
	free_add(qcow2, cluster);
	return 0;
}

int qcow2_refcounts_release(struct qcow2 *qcow2)
{
	struct qcow2_refcounts *counts = qcow2->refcounts;
	struct runs *gone = &counts->gone;
	struct run freed = {0};
	int r = 0;

	if (gone->n)
		qcow2_grace(qcow2);
	while (r >= 0 && gone->n) {
		struct run *run = &gone->list[gone->n - 1];

		for (; r >= 0 && run->n; run->n -= r >= 0, run->first += r >= 0)
			r = release_one(qcow2, run->first, &freed);
		if (!run->n)
			gone->n--;
	}
	punch(qcow2, &freed);
	if (r < 0 || counts->lazy)
		return r;
	/* Not flushed: what is lost of it counts too high, which is a leak. */
	r = blocks_write(qcow2);
	if (r >= 0)
		blocks_clean(counts);
	return r;
}

/* Beginning and end */

static int table_read(struct qcow2 *qcow2)
{
	struct qcow2_refcounts *counts = qcow2->refcounts;
	int r;

	counts->table_place = qcow2->header.reftable_offset;
	counts->n_table = (uint64_t)qcow2->header.reftable_clusters << (qcow2->cluster_bits - 3);
	counts->table = malloc(counts->n_table * sizeof(*counts->table));
	counts->blocks = calloc(counts->n_table, sizeof(struct block *));
	if (!counts->table || !counts->blocks)
		return -ENOMEM;
	r = block_file_read(&qcow2->image.file, counts->table,
			    counts->n_table * sizeof(*counts->table), counts->table_place);
	if (r >= 0)
		r = qcow2_places_open(qcow2);
	for (uint64_t i = 0; r >= 0 && i < counts->n_table; i++) {
		counts->table[i] = be64toh(counts->table[i]);
		if (counts->table[i])
			qcow2_place_note(qcow2, counts->table[i] & TABLE_OFFSET_MASK);
	}
	return r;
}

int qcow2_refcounts_open(struct qcow2 *qcow2, struct error *err)
{
	struct qcow2_refcounts *counts = calloc(1, sizeof(*counts));
	int64_t size = block_file_size(&qcow2->image.file);
	struct block *block;
	int r;

	if (!counts)
		return error_set(err, -ENOMEM, "out of memory");
	qcow2->refcounts = counts;
	counts->order = qcow2->header.refcount_order;
	counts->entries_bits = qcow2->cluster_bits + 3 - counts->order;
	counts->max_count =
		counts->order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << counts->order)) - 1;
	counts->max = (uint32_t)MAX(BLOCK_CACHE_BYTES >> qcow2->cluster_bits,
				    (uint64_t)BLOCK_CACHE_LEAST);
	counts->lazy = qcow2->header.compatible & QCOW2_COMPATIBLE_LAZY;
	counts->limit = qcow2->image.file.block_device
				? (uint64_t)MAX(size, INT64_C(0)) >> qcow2->cluster_bits
				: UINT64_MAX;
	counts->end =
		((uint64_t)MAX(size, INT64_C(0)) + qcow2->cluster_size - 1) >> qcow2->cluster_bits;
	counts->end = MIN(counts->end, counts->limit);
	r = size < 0 ? (int)size : table_read(qcow2);
	if (r >= 0)
		r = block_get(qcow2, 0, &block);
	if (r >= 0 && !block)
		r = qcow2_set_corrupt(qcow2, "nothing is counted");
	if (r >= 0)
		return 0;
	qcow2_refcounts_close(qcow2);
	return error_set(err, r, "its refcounts cannot be used: %s; corral disk repair may help",
			 qcow2->trouble[0] ? qcow2->trouble : strerror(-r));
}

bool qcow2_is_refcount_block(struct qcow2 *qcow2, uint64_t place)
{
	const struct qcow2_refcounts *counts = qcow2->refcounts;

	for (uint64_t i = 0; i < counts->n_table; i++)
		if ((counts->table[i] & TABLE_OFFSET_MASK) == place)
			return true;
	return false;
}

void qcow2_refcounts_close(struct qcow2 *qcow2)
{
	struct qcow2_refcounts *counts = take_ptr(qcow2->refcounts);

	qcow2_places_close(qcow2);
	if (!counts)
		return;
	for (uint32_t i = 0; i < counts->n_cached; i++)
		free(counts->cached[i]);
	free(counts->cached);
	free(counts->table);
	free(counts->blocks);
	free(counts->free.list);
	free(counts->gone.list);
	free(counts);
}
