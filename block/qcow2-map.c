/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a guest's offset is in the file: L2 tables in slices, looked up by loops without a lock,
 * changed under it, and brought to the file in the order that qcow2.h lays down.
 */
#include <endian.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/atomic.h"
#include "block/qcow2.h"

/* Of the directory of slices: 512 TiB of disk at 4 KiB a cluster. */
#define DIRECTORY_BYTES_MAX (UINT64_C(2) << 30)
#define L1_SECTOR_ENTRIES   (BLOCK_SECTOR / 8)

/* Of an L2 table, kept beside its L1 entry. */
enum {
	TABLE_DIRTY = 1, /* the L1 entry is not in the file as it is in memory */
	TABLE_NEW = 2,   /* nothing in the file points to the table yet */
};

struct qcow2_map {
	struct qcow2_slice **cached; /* owned, and what is in it */
	uint32_t n_cached, room, hand;
	bool keep;                 /* nothing is evicted */
	struct qcow2_slice *empty; /* owned; stands for all slices of tables that do not exist */
	struct qcow2_slice *dirty; /* list */
	uint32_t n_dirty;
	uint8_t *tables;               /* owned; TABLE_*, one an L1 entry */
	uint32_t dirty_from, dirty_to; /* of `tables`: outside there is nothing */
	size_t directory_bytes;
};

static uint32_t slice_entries(const struct qcow2 *qcow2)
{
	return 1u << qcow2->slice_bits;
}

static uint64_t slice_number(const struct qcow2 *qcow2, uint64_t offset)
{
	return offset >> (qcow2->cluster_bits + qcow2->slice_bits);
}

/* Bits of a slice's number that say which it is of its table. */
static uint32_t table_slice_bits(const struct qcow2 *qcow2)
{
	return qcow2->cluster_bits - 3 - qcow2->slice_bits;
}

static uint32_t slice_table(const struct qcow2 *qcow2, uint64_t number)
{
	return (uint32_t)(number >> table_slice_bits(qcow2));
}

/* Where a slice is in the file, its table being there. */
static uint64_t slice_place(const struct qcow2 *qcow2, uint64_t number)
{
	const uint64_t in_table = number & ((UINT64_C(1) << table_slice_bits(qcow2)) - 1);
	const uint64_t table = qcow2->l1[slice_table(qcow2, number)] & QCOW2_OFFSET_MASK;

	return table + (in_table << (qcow2->slice_bits + 3));
}

static uint64_t slice_entry(const struct qcow2_slice *slice, uint32_t i)
{
	return be64toh(atomic_load_explicit(&slice->entries[i], memory_order_relaxed));
}

static bool is_bad(const struct qcow2_slice *slice, uint32_t i)
{
	return atomic_load_explicit(&slice->bad[i / 64], memory_order_relaxed) >> (i % 64) & 1;
}

/* Looking up */

/* What one entry says, of one whole cluster. */
static struct qcow2_lookup describe(const struct qcow2 *qcow2, const struct qcow2_slice *slice,
				    uint32_t i, bool exclusive)
{
	const uint64_t entry = slice_entry(slice, i);
	struct qcow2_lookup lookup = {.length = qcow2->cluster_size};

	if (is_bad(slice, i))
		return lookup; /* MISSING */
	if (entry & QCOW2_COMPRESSED) {
		lookup.kind = QCOW2_PACKED;
		lookup.place = entry;
		return lookup;
	}
	lookup.place = entry & QCOW2_OFFSET_MASK;
	if (entry & QCOW2_ZERO)
		lookup.kind = QCOW2_ZEROES;
	else if (!lookup.place)
		lookup.kind = QCOW2_ABSENT;
	else
		lookup.kind = entry & QCOW2_COPIED && exclusive ? QCOW2_MAPPED : QCOW2_SHARED;
	return lookup;
}

static bool goes_on(const struct qcow2_lookup *first, const struct qcow2_lookup *next,
		    uint64_t length)
{
	if (next->kind != first->kind || first->kind == QCOW2_PACKED ||
	    first->kind == QCOW2_MISSING)
		return false;
	return next->place == (first->place ? first->place + length : 0);
}

static struct qcow2_lookup walk(const struct qcow2 *qcow2, const struct qcow2_slice *slice,
				uint64_t offset, uint64_t length)
{
	const bool exclusive = atomic_load_explicit(&slice->exclusive, memory_order_relaxed);
	const uint64_t inside = offset & (qcow2->cluster_size - 1);
	uint32_t i = (offset >> qcow2->cluster_bits) & (slice_entries(qcow2) - 1);
	struct qcow2_lookup lookup = describe(qcow2, slice, i, exclusive);

	while (lookup.length < inside + length && ++i < slice_entries(qcow2)) {
		struct qcow2_lookup next = describe(qcow2, slice, i, exclusive);

		if (!goes_on(&lookup, &next, lookup.length))
			break;
		lookup.length += next.length;
	}
	lookup.length = MIN(lookup.length - inside, length);
	if (lookup.place && lookup.kind != QCOW2_PACKED)
		lookup.place += inside;
	return lookup;
}

/*
 * A slice that is being given to another number has an odd `turn` before its content changes, and
 * a new even one after. What was read in between counts only if `turn` is the same before and after
 * and the number is the one asked for.
 */
struct qcow2_lookup qcow2_lookup(struct qcow2 *qcow2, uint64_t offset, uint64_t length)
{
	const uint64_t number = slice_number(qcow2, offset);
	const struct qcow2_lookup missing = {.kind = QCOW2_MISSING, .length = length};
	struct qcow2_lookup lookup;
	struct qcow2_slice *slice;
	unsigned int turn;

	if (number >= qcow2->n_slices)
		return missing;
	slice = atomic_load_explicit(&qcow2->slices[number], memory_order_acquire);
	if (!slice)
		return missing;
	turn = atomic_load_explicit(&slice->turn, memory_order_acquire);
	if (turn & 1)
		return missing;
	if (slice != qcow2->map->empty &&
	    atomic_load_explicit(&slice->number, memory_order_relaxed) != number)
		return missing;
	lookup = walk(qcow2, slice, offset, length);
	atomic_thread_fence(memory_order_acquire);
	if (atomic_load_explicit(&slice->turn, memory_order_relaxed) != turn)
		return missing;
	if (!atomic_load_explicit(&slice->used, memory_order_relaxed))
		atomic_store_explicit(&slice->used, true, memory_order_relaxed);
	return lookup;
}

/* Slices in memory */

static void turn_begin(struct qcow2_slice *slice)
{
	const unsigned int turn = atomic_load_explicit(&slice->turn, memory_order_relaxed);

	if (turn & 1)
		return; /* a load that failed */
	atomic_store_explicit(&slice->turn, turn + 1, memory_order_relaxed);
	/* Before anything of the content. */
	atomic_thread_fence(memory_order_release);
}

static void turn_end(struct qcow2_slice *slice)
{
	atomic_store_explicit(&slice->turn,
			      atomic_load_explicit(&slice->turn, memory_order_relaxed) + 1,
			      memory_order_release);
}

/* One that was not looked at since the hand last came by; NULL: all are in use or dirty. */
static struct qcow2_slice *evict(struct qcow2 *qcow2)
{
	struct qcow2_map *map = qcow2->map;

	for (uint32_t i = 0; i < 2 * map->n_cached; i++) {
		struct qcow2_slice *slice = map->cached[map->hand];

		map->hand = (map->hand + 1) % map->n_cached;
		if (slice->dirty)
			continue;
		if (atomic_load_explicit(&slice->used, memory_order_relaxed)) {
			atomic_store_explicit(&slice->used, false, memory_order_relaxed);
			continue;
		}
		if (!(atomic_load_explicit(&slice->turn, memory_order_relaxed) & 1))
			atomic_store(&qcow2->slices[atomic_load_explicit(&slice->number,
									 memory_order_relaxed)],
				     NULL);
		turn_begin(slice);
		return slice;
	}
	return NULL;
}

static struct qcow2_slice *slice_new(struct qcow2_map *map)
{
	struct qcow2_slice *slice;

	if (map->n_cached == map->room) {
		const uint32_t room = MAX(64u, 2 * map->room);
		void *cached = realloc(map->cached, room * sizeof(*map->cached));

		if (!cached)
			return NULL;
		map->cached = cached;
		map->room = room;
	}
	slice = calloc(1, sizeof(*slice));
	if (!slice)
		return NULL;
	turn_begin(slice);
	map->cached[map->n_cached++] = slice;
	return slice;
}

/* A slice whose `turn` is odd: for the caller to fill, end and publish. */
static struct qcow2_slice *slice_take(struct qcow2 *qcow2)
{
	struct qcow2_slice *slice = NULL;

	if (qcow2->map->n_cached >= qcow2->slices_max && !qcow2->map->keep)
		slice = evict(qcow2);
	return slice ? slice : slice_new(qcow2->map);
}

static bool overlaps(uint64_t place, uint64_t size, uint64_t from, uint64_t bytes)
{
	return place < from + bytes && from < place + size;
}

/* A cluster in the file that is neither header, L1 nor refcount table. */
static bool is_place(struct qcow2 *qcow2, uint64_t place)
{
	const struct qcow2_header *header = &qcow2->header;
	const uint64_t size = qcow2->cluster_size;

	if (!place || place & (size - 1))
		return false;
	if (overlaps(place, size, header->l1_offset, header->l1_entries * UINT64_C(8)) ||
	    overlaps(place, size, header->reftable_offset, header->reftable_clusters * size))
		return false;
	if (place >= qcow2->file_end && qcow2->image.readonly) {
		/* A reader of what somebody else writes. */
		int64_t now = block_file_size(&qcow2->image.file);

		if (now > 0)
			qcow2->file_end = MAX(qcow2->file_end, (uint64_t)now);
	}
	return place < qcow2->file_end;
}

static bool makes_sense(struct qcow2 *qcow2, uint64_t entry)
{
	uint64_t size;

	if (entry & QCOW2_COMPRESSED)
		return qcow2_packed_place(qcow2, entry, &size) < qcow2->file_end;
	if (entry & QCOW2_ZERO && qcow2->header.version < 3)
		return false;
	return !(entry & QCOW2_OFFSET_MASK) || is_place(qcow2, entry & QCOW2_OFFSET_MASK);
}

static void slice_fill(struct qcow2 *qcow2, struct qcow2_slice *slice, uint64_t number,
		       const uint64_t *entries)
{
	uint64_t bad[ARRAY_SIZE(slice->bad)] = {0};

	for (uint32_t i = 0; i < slice_entries(qcow2); i++) {
		if (entries[i] && !makes_sense(qcow2, be64toh(entries[i])))
			bad[i / 64] |= UINT64_C(1) << (i % 64);
		atomic_store_explicit(&slice->entries[i], entries[i], memory_order_relaxed);
	}
	for (uint32_t i = 0; i < ARRAY_SIZE(bad); i++)
		atomic_store_explicit(&slice->bad[i], bad[i], memory_order_relaxed);
	atomic_store_explicit(&slice->number, number, memory_order_relaxed);
	atomic_store_explicit(&slice->exclusive, false, memory_order_relaxed);
	atomic_store_explicit(&slice->used, true, memory_order_relaxed);
	turn_end(slice);
}

static void publish(struct qcow2 *qcow2, uint64_t number, struct qcow2_slice *slice)
{
	atomic_store_explicit(&qcow2->slices[number], slice, memory_order_release);
}

/* The slice comes to memory, from the file or, if it was never written, as zeroes. */
static int slice_load(struct qcow2 *qcow2, uint64_t number, bool zeroes,
		      struct qcow2_slice **ret_slice)
{
	const uint32_t bytes = slice_entries(qcow2) * 8;
	uint64_t entries[QCOW2_SLICE_ENTRIES] = {0};
	struct qcow2_slice *slice;
	int r;

	if (!zeroes) {
		if (!is_place(qcow2, qcow2->l1[slice_table(qcow2, number)] & QCOW2_OFFSET_MASK))
			return -EIO;
		r = block_file_read(&qcow2->image.file, entries, bytes, slice_place(qcow2, number));
		if (r < 0)
			return r;
	}
	slice = slice_take(qcow2);
	if (!slice)
		return -ENOMEM;
	slice_fill(qcow2, slice, number, entries);
	publish(qcow2, number, slice);
	*ret_slice = slice;
	return 0;
}

static int slice_get(struct qcow2 *qcow2, uint64_t number, struct qcow2_slice **ret_slice)
{
	struct qcow2_slice *slice =
		atomic_load_explicit(&qcow2->slices[number], memory_order_relaxed);

	if (!slice && !(qcow2->l1[slice_table(qcow2, number)] & QCOW2_OFFSET_MASK)) {
		slice = qcow2->map->empty;
		publish(qcow2, number, slice);
	}
	if (!slice)
		return slice_load(qcow2, number, false, ret_slice);
	*ret_slice = slice;
	return 0;
}

int qcow2_look(struct qcow2 *qcow2, uint64_t offset, uint64_t length,
	       struct qcow2_lookup *ret_lookup)
{
	struct qcow2_lookup lookup;
	struct qcow2_slice *slice;
	int r;

	if (slice_number(qcow2, offset) >= qcow2->n_slices)
		return -EINVAL;
	r = slice_get(qcow2, slice_number(qcow2, offset), &slice);
	if (r < 0)
		return r;
	lookup = walk(qcow2, slice, offset, length);
	if (lookup.kind == QCOW2_MISSING)
		return -EIO;
	atomic_store_explicit(&slice->used, true, memory_order_relaxed);
	*ret_lookup = lookup;
	return 0;
}

uint64_t qcow2_no_table(struct qcow2 *qcow2, uint64_t offset, uint64_t length)
{
	const uint32_t bits = 2 * qcow2->cluster_bits - 3;
	uint64_t end = offset;

	while (end < offset + length && !(qcow2->l1[end >> bits] & QCOW2_OFFSET_MASK))
		end = ((end >> bits) + 1) << bits;
	return MIN(end - offset, length);
}

/* Changing */

void qcow2_set_dirty(struct qcow2 *qcow2)
{
	/* Sequentially consistent: see qcow2_flush_begin. */
	if (!atomic_load_explicit(&qcow2->dirty, memory_order_relaxed))
		atomic_store(&qcow2->dirty, true);
}

static void table_set(struct qcow2 *qcow2, uint32_t table, uint64_t entry, uint8_t state)
{
	struct qcow2_map *map = qcow2->map;

	qcow2_set_dirty(qcow2);
	qcow2->l1[table] = entry;
	if (map->dirty_from >= map->dirty_to) {
		map->dirty_from = table;
		map->dirty_to = table + 1;
	}
	map->dirty_from = MIN(map->dirty_from, table);
	map->dirty_to = MAX(map->dirty_to, table + 1);
	map->tables[table] |= TABLE_DIRTY | state;
	qcow2_place_note(qcow2, entry & QCOW2_OFFSET_MASK);
}

static void slice_set_dirty(struct qcow2_map *map, struct qcow2_slice *slice)
{
	if (slice->dirty)
		return;
	slice->dirty = true;
	slice->next_dirty = map->dirty;
	map->dirty = slice;
	map->n_dirty++;
}

void qcow2_entry_set(struct qcow2 *qcow2, struct qcow2_slice *slice, uint64_t offset,
		     uint64_t entry)
{
	const uint32_t i = (offset >> qcow2->cluster_bits) & (slice_entries(qcow2) - 1);

	qcow2_set_dirty(qcow2);
	atomic_store_explicit(&slice->entries[i], htobe64(entry), memory_order_release);
	slice_set_dirty(qcow2->map, slice);
}

/* All slices of a table, or of one that is about to be made, come to memory. */
static int table_load(struct qcow2 *qcow2, uint32_t table, bool zeroes)
{
	struct qcow2_map *map = qcow2->map;
	const uint64_t first = (uint64_t)table << table_slice_bits(qcow2);
	const uint64_t n = UINT64_C(1) << table_slice_bits(qcow2);
	int r = 0;

	map->keep = true;
	for (uint64_t i = first; r >= 0 && i < first + n; i++) {
		struct qcow2_slice *slice = atomic_load(&qcow2->slices[i]);

		if (!slice || slice == map->empty)
			r = slice_load(qcow2, i, zeroes, &slice);
	}
	map->keep = false;
	return r;
}

/*
 * The L2 table has a new place. What is in memory of it is all that counts: it is written as a
 * whole by the next commit, and again if that fails, because what a failed flush left behind is
 * not known.
 */
static void table_place(struct qcow2 *qcow2, uint32_t table, uint64_t place)
{
	const uint64_t first = (uint64_t)table << table_slice_bits(qcow2);
	const uint64_t n = UINT64_C(1) << table_slice_bits(qcow2);

	table_set(qcow2, table, place | QCOW2_COPIED, TABLE_NEW);
	for (uint64_t i = first; i < first + n; i++) {
		struct qcow2_slice *slice = atomic_load(&qcow2->slices[i]);

		if (slice && slice != qcow2->map->empty)
			slice_set_dirty(qcow2->map, slice);
	}
}

static int table_make(struct qcow2 *qcow2, uint32_t table)
{
	uint64_t place;
	uint32_t n = 1;
	bool fresh;
	int r = qcow2_allocate(qcow2, &n, &place, &fresh);

	if (r < 0)
		return r;
	/* A fresh cluster is a hole, and reads as zeroes where no slice is written. */
	if (!fresh)
		r = table_load(qcow2, table, true);
	if (r < 0) {
		qcow2_unallocate(qcow2, place, 1);
		return r;
	}
	table_place(qcow2, table, place);
	return 0;
}

/* A snapshot has the table too: from now on we have our own. */
static int table_copy(struct qcow2 *qcow2, uint32_t table)
{
	const uint64_t old = qcow2->l1[table] & QCOW2_OFFSET_MASK;
	uint64_t place;
	uint32_t n = 1;
	bool fresh;
	int r = qcow2_allocate(qcow2, &n, &place, &fresh);

	if (r < 0)
		return r;
	r = table_load(qcow2, table, false);
	if (r >= 0)
		r = qcow2_give_up(qcow2, old, 1);
	if (r < 0) {
		qcow2_unallocate(qcow2, place, 1);
		return r;
	}
	table_place(qcow2, table, place);
	return 0;
}

static int table_writable(struct qcow2 *qcow2, uint32_t table)
{
	const uint64_t entry = qcow2->l1[table], place = entry & QCOW2_OFFSET_MASK;
	uint64_t count;
	int r;

	if (!place)
		return table_make(qcow2, table);
	if (!is_place(qcow2, place))
		return qcow2_set_corrupt(qcow2, "L1 entry %u points to %#llx", table,
					 (unsigned long long)place);
	r = qcow2_refcount(qcow2, place, &count);
	if (r < 0)
		return r;
	if (count == 0)
		return qcow2_set_corrupt(qcow2, "the L2 table at %#llx counts as free",
					 (unsigned long long)place);
	if (count > 1)
		return table_copy(qcow2, table);
	if (!(entry & QCOW2_COPIED))
		table_set(qcow2, table, place | QCOW2_COPIED, 0);
	return 0;
}

/* The clusters of a slice that nothing was written in yet: a guest is not to write into what counts
 * as free, nor into what a snapshot has too. */
static int slice_check(struct qcow2 *qcow2, struct qcow2_slice *slice, uint64_t number)
{
	const uint64_t base = number << (qcow2->cluster_bits + qcow2->slice_bits);

	for (uint32_t i = 0; i < slice_entries(qcow2); i++) {
		const uint64_t entry = slice_entry(slice, i), place = entry & QCOW2_OFFSET_MASK;
		uint64_t count;
		int r;

		if (!place || entry & QCOW2_COMPRESSED || is_bad(slice, i))
			continue;
		if (qcow2_is_table(qcow2, place))
			return qcow2_set_corrupt(qcow2, "the data cluster at %#llx is a table",
						 (unsigned long long)place);
		r = qcow2_refcount(qcow2, place, &count);
		if (r < 0)
			return r;
		if (count == 0)
			return qcow2_set_corrupt(qcow2, "the data cluster at %#llx counts as free",
						 (unsigned long long)place);
		if (count > 1 && entry & QCOW2_COPIED)
			qcow2_entry_set(qcow2, slice, base + ((uint64_t)i << qcow2->cluster_bits),
					entry & ~QCOW2_COPIED);
	}
	return 0;
}

int qcow2_slice_writable(struct qcow2 *qcow2, uint64_t offset, struct qcow2_slice **ret_slice)
{
	const uint64_t number = slice_number(qcow2, offset);
	struct qcow2_slice *slice;
	int r;

	if (atomic_load(&qcow2->corrupt))
		return -EIO;
	slice = atomic_load_explicit(&qcow2->slices[number], memory_order_relaxed);
	if (slice && atomic_load_explicit(&slice->exclusive, memory_order_relaxed)) {
		*ret_slice = slice;
		return 0;
	}
	r = table_writable(qcow2, slice_table(qcow2, number));
	if (r < 0)
		return r;
	slice = atomic_load_explicit(&qcow2->slices[number], memory_order_relaxed);
	/* Said to be empty before its table was made, and never written since. */
	if (!slice || slice == qcow2->map->empty)
		r = slice_load(qcow2, number, !!slice, &slice);
	if (r >= 0)
		r = slice_check(qcow2, slice, number);
	if (r < 0)
		return r;
	atomic_store_explicit(&slice->exclusive, true, memory_order_release);
	*ret_slice = slice;
	return 0;
}

/* To the file */

static int slices_write(struct qcow2 *qcow2, bool of_new_tables)
{
	const struct qcow2_map *map = qcow2->map;
	int r = 0;

	for (struct qcow2_slice *slice = map->dirty; r >= 0 && slice; slice = slice->next_dirty) {
		const uint64_t number = atomic_load_explicit(&slice->number, memory_order_relaxed);
		const bool new = map->tables[slice_table(qcow2, number)] & TABLE_NEW;

		if (new == of_new_tables)
			r = block_file_write(&qcow2->image.file, slice->entries,
					     slice_entries(qcow2) * 8, slice_place(qcow2, number));
	}
	return r;
}

/* Of new tables, or all. */
static void slices_clean(struct qcow2 *qcow2, bool of_new_tables)
{
	struct qcow2_map *map = qcow2->map;
	struct qcow2_slice **at = &map->dirty;

	while (*at) {
		struct qcow2_slice *slice = *at;
		const uint32_t table = slice_table(
			qcow2, atomic_load_explicit(&slice->number, memory_order_relaxed));

		if (of_new_tables && !(map->tables[table] & TABLE_NEW)) {
			at = &slice->next_dirty;
			continue;
		}
		*at = slice->next_dirty;
		slice->dirty = false;
		map->n_dirty--;
	}
}

static void tables_clean(struct qcow2_map *map, uint8_t state)
{
	for (uint32_t i = map->dirty_from; i < map->dirty_to; i++)
		map->tables[i] &= (uint8_t)~state;
}

/* One sector of the L1 table, so far as it goes. */
static int l1_write_sector(struct qcow2 *qcow2, uint32_t first)
{
	const uint32_t n = MIN(L1_SECTOR_ENTRIES, qcow2->header.l1_entries - first);
	uint64_t entries[L1_SECTOR_ENTRIES];

	for (uint32_t i = 0; i < n; i++)
		entries[i] = htobe64(qcow2->l1[first + i]);
	return block_file_write(&qcow2->image.file, entries, n * sizeof(*entries),
				qcow2->header.l1_offset + first * UINT64_C(8));
}

static int l1_write(struct qcow2 *qcow2)
{
	const struct qcow2_map *map = qcow2->map;
	uint32_t i = map->dirty_from;
	int r = 0;

	while (r >= 0 && i < map->dirty_to) {
		if (!(map->tables[i] & TABLE_DIRTY)) {
			i++;
			continue;
		}
		i -= i % L1_SECTOR_ENTRIES;
		r = l1_write_sector(qcow2, i);
		i += L1_SECTOR_ENTRIES;
	}
	return r;
}

/* Until nobody is counted any more. */
static void wait_for_none(atomic_uint *n)
{
	for (uint32_t i = 0; atomic_load(n); i++) {
		const struct timespec pause = {.tv_nsec = 20 * 1000};

		if (i < 16)
			sched_yield();
		else
			nanosleep(&pause, NULL);
	}
}

int qcow2_sync(struct qcow2 *qcow2)
{
	int r = block_file_sync(&qcow2->image.file);
	unsigned int failed;

	/* The kernel tells a failure once: to us, or to a loop's flush that began before there was
	 * anything to commit. */
	wait_for_none(&qcow2->flushing);
	failed = atomic_load(&qcow2->flushes_failed);
	if (failed != qcow2->flushes_failed_seen) {
		qcow2->flushes_failed_seen = failed;
		r = MIN(r, -EIO);
	}
	return r;
}

/* What nothing points to yet. After the flush the new tables count as old ones: their L1 entries
 * may be in the file from now on, also if what follows fails. */
static int commit_new(struct qcow2 *qcow2)
{
	int r = qcow2_refcounts_write(qcow2);

	if (r >= 0)
		r = slices_write(qcow2, true);
	if (r >= 0 && qcow2->ordered)
		r = qcow2_sync(qcow2);
	if (r < 0)
		return r;
	qcow2->ordered = false;
	qcow2_refcounts_written(qcow2);
	slices_clean(qcow2, true);
	tables_clean(qcow2->map, TABLE_NEW);
	return 0;
}

static int commit_links(struct qcow2 *qcow2)
{
	struct qcow2_map *map = qcow2->map;
	int r = slices_write(qcow2, false);

	if (r >= 0)
		r = l1_write(qcow2);
	if (r >= 0)
		r = qcow2_sync(qcow2);
	if (r < 0)
		return r;
	slices_clean(qcow2, false);
	tables_clean(map, TABLE_DIRTY);
	map->dirty_from = map->dirty_to = 0;
	return 0;
}

int qcow2_commit(struct qcow2 *qcow2)
{
	int r;

	if (!atomic_load(&qcow2->dirty))
		return qcow2_sync(qcow2);
	if (atomic_load(&qcow2->corrupt))
		return -EIO;
	r = commit_new(qcow2);
	if (r >= 0)
		r = commit_links(qcow2);
	if (r < 0)
		return r;
	/* What the guest was promised is in the file; what follows gives back space. If it fails
	 * it is done again with the next commit. */
	if (qcow2_refcounts_release(qcow2) >= 0)
		atomic_store(&qcow2->dirty, false);
	return 0;
}

int qcow2_commit_if_due(struct qcow2 *qcow2)
{
	int r;

	if (qcow2->map->n_dirty <= qcow2->slices_max / 2 && !qcow2_refcounts_due(qcow2))
		return 0;
	r = qcow2_commit(qcow2);
	if (r < 0 && r != -ENOSPC)
		qcow2->sync_failed = true;
	return r;
}

/* A loop's flush looks at `dirty` after it has announced itself; who sets `dirty` looks for
 * announced flushes (qcow2_sync) after that. Both in one order: one sees the other. */
bool qcow2_flush_begin(struct qcow2 *qcow2)
{
	atomic_fetch_add(&qcow2->flushing, 1);
	if (!atomic_load(&qcow2->dirty))
		return true;
	atomic_fetch_sub(&qcow2->flushing, 1);
	return false;
}

void qcow2_flush_end(struct qcow2 *qcow2, int result)
{
	if (result < 0)
		atomic_fetch_add(&qcow2->flushes_failed, 1);
	atomic_fetch_sub(&qcow2->flushing, 1);
}

/* Operations under way */

/*
 * Why a cluster is not used again too early. An operation counts itself, passes a full fence, and
 * only then looks at an entry. Who gives a cluster up changes the entry, passes a full fence in
 * qcow2_grace, and only then looks at the counts. Of the two fences one comes first. If it is the
 * operation's, its count is seen until it has left; if it is the other, the operation sees the
 * changed entry and does not go there. Each count is seen at 0 once after that fence, so whoever
 * had the old entry has left; the acquire there pairs with the release in qcow2_leave. Two counts
 * and an epoch are there only so that new operations do not keep the old ones' count above 0; the
 * epoch an operation read may be old, which costs time and is not wrong.
 */
uint32_t qcow2_enter(struct qcow2 *qcow2, uint32_t channel)
{
	const uint32_t epoch = atomic_load_explicit(&qcow2->epoch, memory_order_relaxed) & 1;

	atomic_fetch_add_explicit(&qcow2->inflight[channel].n[epoch], 1, memory_order_relaxed);
	full_fence();
	return epoch;
}

void qcow2_leave(struct qcow2 *qcow2, uint32_t channel, uint32_t epoch)
{
	atomic_fetch_sub_explicit(&qcow2->inflight[channel].n[epoch], 1, memory_order_release);
}

void qcow2_grace(struct qcow2 *qcow2)
{
	full_fence();
	for (uint32_t i = 0; i < 2; i++) {
		const uint32_t old = atomic_fetch_add(&qcow2->epoch, 1) & 1;

		for (uint32_t channel = 0; channel < QCOW2_CHANNELS_MAX; channel++)
			wait_for_none(&qcow2->inflight[channel].n[old]);
	}
}

int qcow2_inflight_take(struct qcow2 *qcow2, uint32_t *ret_channel)
{
	for (uint32_t i = 0; i < QCOW2_CHANNEL_WAITING; i++)
		if (!atomic_exchange(&qcow2->inflight[i].taken, true)) {
			*ret_channel = i;
			return 0;
		}
	return -EMFILE;
}

void qcow2_inflight_give(struct qcow2 *qcow2, uint32_t channel)
{
	atomic_store(&qcow2->inflight[channel].taken, false);
}

/* Beginning and end */

/* Of whole tables: what is behind the disk's end is copied with the rest. */
static uint64_t slices_for(const struct qcow2 *qcow2, uint64_t size)
{
	const uint32_t bits = 2 * qcow2->cluster_bits - 3;
	const uint64_t tables = (size >> bits) + !!(size & ((UINT64_C(1) << bits) - 1));

	return tables << table_slice_bits(qcow2);
}

static size_t directory_bytes(uint64_t n_slices)
{
	return (size_t)align_up(MAX(n_slices, UINT64_C(1)) * sizeof(struct qcow2_slice *), 4096);
}

int qcow2_map_open(struct qcow2 *qcow2, struct error *err)
{
	struct qcow2_map *map = calloc(1, sizeof(*map));
	void *directory;

	if (!map)
		return error_set(err, -ENOMEM, "out of memory");
	qcow2->map = map;
	qcow2->n_slices = slices_for(qcow2, qcow2->image.size);
	map->directory_bytes = directory_bytes(qcow2->n_slices);
	if (map->directory_bytes > DIRECTORY_BYTES_MAX)
		return error_set(err, -EFBIG, "it is too large for its clusters' size");
	map->empty = calloc(1, sizeof(*map->empty));
	map->tables = calloc(MAX(qcow2->header.l1_entries, 1u), 1);
	directory = mmap(NULL, map->directory_bytes, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (directory == MAP_FAILED || !map->empty || !map->tables) {
		if (directory != MAP_FAILED)
			munmap(directory, map->directory_bytes);
		return error_set(err, -ENOMEM, "out of memory");
	}
	qcow2->slices = directory;
	return 0;
}

void qcow2_map_close(struct qcow2 *qcow2)
{
	struct qcow2_map *map = qcow2->map;

	if (!map)
		return;
	for (uint32_t i = 0; i < map->n_cached; i++)
		free(map->cached[i]);
	if (qcow2->slices)
		munmap((void *)qcow2->slices, map->directory_bytes);
	free(map->cached);
	free(map->empty);
	free(map->tables);
	free(map);
	qcow2->slices = NULL;
	qcow2->map = NULL;
}

int qcow2_map_grow(struct qcow2 *qcow2, uint64_t size, uint32_t l1_entries)
{
	struct qcow2_map *map = qcow2->map;
	const uint64_t n_slices = slices_for(qcow2, size);
	const size_t bytes = directory_bytes(n_slices);
	uint8_t *tables;
	void *directory;

	if (bytes > DIRECTORY_BYTES_MAX)
		return -EFBIG;
	tables = realloc(map->tables, MAX(l1_entries, 1u));
	if (!tables)
		return -ENOMEM;
	map->tables = tables;
	if (l1_entries > qcow2->header.l1_entries)
		memset(tables + qcow2->header.l1_entries, 0, l1_entries - qcow2->header.l1_entries);
	if (bytes > map->directory_bytes) {
		directory =
			mremap((void *)qcow2->slices, map->directory_bytes, bytes, MREMAP_MAYMOVE);
		if (directory == MAP_FAILED)
			return -ENOMEM;
		qcow2->slices = directory;
		map->directory_bytes = bytes;
	}
	qcow2->n_slices = MAX(qcow2->n_slices, n_slices);
	return 0;
}

void qcow2_forget(struct qcow2 *qcow2)
{
	struct qcow2_map *map = qcow2->map;

	for (uint32_t i = 0; i < map->n_cached; i++)
		free(map->cached[i]);
	map->n_cached = map->hand = 0;
	map->dirty = NULL;
	map->n_dirty = 0;
	memset(map->tables, 0, qcow2->header.l1_entries);
	map->dirty_from = map->dirty_to = 0;
	/* All pointers of it, those to `empty` too. */
	(void)madvise((void *)qcow2->slices, map->directory_bytes, MADV_DONTNEED);
}
