/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The entries of L1 and L2 tables. A first pass counts what they point to; a second one, when it is
 * known who else points there and what the refcounts are, judges each, and mends it if that is
 * what the scan is for.
 */
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2-scan.h"

#define PIECE       (64u << 10)
#define L2_RESERVED UINT64_C(0x3f000000000001fe)

struct entry {
	uint64_t place, size; /* 0: none */
	const char *fault;    /* why it cannot be */
	uint64_t stray;       /* bits that must not be set */
	bool packed, zero;
};

static struct entry l2_entry(const struct scan *scan, uint64_t raw)
{
	struct entry entry = {0};

	if (raw & QCOW2_COMPRESSED) {
		uint32_t bits = 62 - (scan->cluster_bits - 8);
		uint64_t sectors =
			(raw >> bits & ((UINT64_C(1) << (scan->cluster_bits - 8)) - 1)) + 1;

		entry.packed = true;
		entry.place = raw & ((UINT64_C(1) << bits) - 1);
		entry.size = sectors * BLOCK_SECTOR - entry.place % BLOCK_SECTOR;
		entry.stray = raw & QCOW2_COPIED;
	} else {
		entry.place = raw & QCOW2_OFFSET_MASK;
		entry.size = entry.place ? scan->cluster_size : 0;
		entry.zero = raw & QCOW2_ZERO;
		entry.stray =
			raw & (scan->header.version >= 3 ? L2_RESERVED : L2_RESERVED | QCOW2_ZERO);
		if (entry.place & (scan->cluster_size - 1))
			entry.fault = "is not where a cluster begins";
	}
	/* The last cluster may be there in part. */
	if (entry.size && (entry.place >= scan->file_size ||
			   (entry.place + entry.size > scan->file_size &&
			    entry.place + entry.size - scan->file_size >= scan->cluster_size)))
		entry.fault = "is behind the file's end";
	return entry;
}

static struct entry l1_entry(const struct scan *scan, uint64_t raw)
{
	struct entry entry = {
		.place = raw & QCOW2_OFFSET_MASK,
		.size = scan->cluster_size,
		.stray = raw & SCAN_L1_RESERVED,
	};

	if (!entry.place || entry.place & (scan->cluster_size - 1))
		entry.fault = "is not where a cluster begins";
	else if (entry.place >= scan->file_size)
		entry.fault = "is behind the file's end";
	return entry;
}

/* First pass */

struct table_sum {
	uint64_t n, nonsense;
	uint64_t allocated, compressed;
};

static int data_add(struct scan *scan, const struct entry *entry, uint32_t n)
{
	uint64_t end = (entry->place + entry->size - 1) >> scan->cluster_bits;
	int r = 0;

	for (uint64_t i = entry->place >> scan->cluster_bits; r >= 0 && i <= end; i++)
		r = scan_add(scan, i, n, COUNTS_DATA, NULL);
	return r;
}

static int table_count(struct scan *scan, const struct scan_table *table, const uint64_t *raw,
		       struct table_sum *sum)
{
	int r = 0;

	for (uint64_t i = 0; r >= 0 && i < scan->cluster_size / 8; i++) {
		struct entry entry;

		if (!raw[i])
			continue;
		entry = l2_entry(scan, be64toh(raw[i]));
		sum->n++;
		sum->allocated += entry.size != 0;
		sum->compressed += entry.packed;
		if (!entry.fault && entry.size &&
		    scan_owners(scan, entry.place, entry.size) & COUNTS_TABLE)
			entry.fault = "is a table";
		sum->nonsense += entry.fault || entry.stray;
		if (!entry.fault && entry.size)
			r = data_add(scan, &entry, table->n);
	}
	return r;
}

int scan_data_count(struct scan *scan)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < scan->n_tables; i++) {
		const struct scan_table table = scan->tables[i];
		struct table_sum sum = {0};
		uint32_t *word;
		int r = scan_read(scan, scan->buffer, scan->cluster_size,
				  table.cluster << scan->cluster_bits);

		if (r == 0)
			r = table_count(scan, &table, (uint64_t *)scan->buffer, &sum);
		if (r >= 0)
			r = MIN(scan_progress(scan, 1), r);
		if (r < 0)
			return r;
		word = counts_find(&scan->counts, table.cluster);
		if (sum.nonsense * 2 > sum.n)
			*word |= COUNTS_IMPLAUSIBLE;
		if (*word & COUNTS_ACTIVE) {
			scan->allocated += sum.allocated;
			scan->compressed += sum.compressed;
		}
		/* The second pass has nothing to do for empty ones. */
		if (sum.n)
			scan->tables[n++] = table;
	}
	scan->n_tables = n;
	return 0;
}

/* Second pass */

/* An L2 table that is somebody's data: what most of its entries say cannot be. */
static bool is_condemned(uint32_t word)
{
	const uint32_t all = COUNTS_L2 | COUNTS_DATA | COUNTS_IMPLAUSIBLE;

	return (word & (all | COUNTS_TABLE)) == all;
}

/* What was changed in a piece of a table. */
struct change {
	uint64_t *raw;
	uint64_t from, to; /* entries */
};

static void change_note(struct change *change, uint64_t i, uint64_t value)
{
	change->raw[i] = htobe64(value);
	if (change->from == change->to)
		change->from = i;
	change->to = i + 1;
}

static int change_write(struct scan *scan, const struct change *change, uint64_t place)
{
	int r;

	if (change->from == change->to)
		return 0;
	r = block_file_write(scan->file, change->raw + change->from,
			     (change->to - change->from) * 8, place + change->from * 8);
	if (r < 0)
		return error_set(scan->err, r, "cannot repair \"%s\": writing failed: %s",
				 scan->name, strerror(-r));
	return 0;
}

/* The flag that says "refcount is 1", where it is known. */
static bool flag_is_wrong(struct scan *scan, uint64_t raw, uint64_t place)
{
	const uint32_t *word = counts_find(&scan->counts, place >> scan->cluster_bits);
	uint32_t stored = word ? COUNTS_STORED(*word) : COUNTS_STORED_UNKNOWN;

	return stored != COUNTS_STORED_UNKNOWN &&
	       (stored == COUNTS_STORED_1) != !!(raw & QCOW2_COPIED);
}

/* An L1 table being judged. */
struct l1 {
	uint64_t place;
	uint32_t n_entries;
	const char *snapshot; /* NULL: the active one */
	uint64_t next_table;  /* of the scan's, when active */
};

static const char *l1_conflict(struct scan *scan, const struct entry *entry)
{
	const uint32_t *word = counts_find(&scan->counts, entry->place >> scan->cluster_bits);

	if (word && *word & COUNTS_TABLE)
		return "is a table of another kind";
	if (word && is_condemned(*word))
		return "is guest data and makes no sense as a table";
	return NULL;
}

static void l1_found(struct scan *scan, const struct l1 *l1, uint64_t i, const struct entry *entry)
{
	const char *repair = "repair empties it, the data behind it is lost";
	unsigned long long size = scan->cluster_size / 8 * scan->cluster_size;

	if (!entry->fault)
		repair = "repair clears them";
	if (l1->snapshot)
		scan_found(scan, SCAN_ENTRY, 1,
			   "entry %llu of the L1 table of snapshot \"%s\" %s%s: %s",
			   (unsigned long long)i, l1->snapshot,
			   entry->fault ? "points to what " : "has bits that are reserved",
			   entry->fault ? entry->fault : "", repair);
	else
		scan_found(
			scan, SCAN_ENTRY, 1,
			"entry %llu of the L1 table (%llu bytes from guest offset 0x%llx) %s%s: %s",
			(unsigned long long)i, size, (unsigned long long)i * size,
			entry->fault ? "points to what " : "has bits that are reserved",
			entry->fault ? entry->fault : "", repair);
}

/* Both in order: by cluster the tables, not so the entries. */
static void table_index(struct scan *scan, uint64_t cluster, uint64_t index)
{
	uint64_t from = 0, to = scan->n_tables;

	while (from < to) {
		uint64_t middle = from + (to - from) / 2;

		if (scan->tables[middle].cluster < cluster)
			from = middle + 1;
		else
			to = middle;
	}
	if (from < scan->n_tables && scan->tables[from].cluster == cluster)
		scan->tables[from].index = (uint32_t)MIN(index, (uint64_t)scan->tables[from].index);
}

static void l1_judge_one(struct scan *scan, const struct l1 *l1, uint64_t i, struct change *change,
			 uint64_t at)
{
	uint64_t raw = be64toh(change->raw[at]);
	struct entry entry = l1_entry(scan, raw);

	if (!entry.fault)
		entry.fault = l1_conflict(scan, &entry);
	if (entry.fault || entry.stray) {
		l1_found(scan, l1, i, &entry);
		raw = entry.fault ? 0 : raw & ~entry.stray;
		if (scan->fix_entries)
			change_note(change, at, raw);
	}
	if (entry.fault || l1->snapshot)
		return;
	table_index(scan, entry.place >> scan->cluster_bits, i);
	if (!flag_is_wrong(scan, raw, entry.place))
		return;
	scan_found(scan, SCAN_FLAG, 1,
		   "entry %llu of the L1 table is wrong about its table's refcount being 1: repair "
		   "puts that right",
		   (unsigned long long)i);
	if (scan->fix_flags)
		change_note(change, at, raw ^ QCOW2_COPIED);
}

static int l1_judge(struct scan *scan, const struct l1 *l1)
{
	_cleanup_(freep) uint64_t *piece = malloc(PIECE);
	uint64_t n = PIECE / 8;
	int r = piece ? 0 : error_set(scan->err, -ENOMEM, "out of memory");

	for (uint64_t i = 0; r >= 0 && i < l1->n_entries; i += n) {
		struct change change = {.raw = piece};

		n = MIN(l1->n_entries - i, (uint64_t)PIECE / 8);
		r = scan_read(scan, piece, n * 8, l1->place + i * 8);
		for (uint64_t at = 0; r == 0 && at < n; at++)
			if (piece[at])
				l1_judge_one(scan, l1, i + at, &change, at);
		if (r == 0)
			r = change_write(scan, &change, l1->place + i * 8);
	}
	return MIN(r, 0);
}

static const char *l2_conflict(struct scan *scan, const struct entry *entry)
{
	uint64_t end = (entry->place + entry->size - 1) >> scan->cluster_bits;

	for (uint64_t i = entry->place >> scan->cluster_bits; i <= end; i++) {
		const uint32_t *word = counts_find(&scan->counts, i);

		if (word && *word & COUNTS_TABLE)
			return "is a table";
		if (word && *word & COUNTS_L2 && !is_condemned(*word))
			return "is an L2 table";
	}
	return NULL;
}

static void where(const struct scan *scan, const struct scan_table *table, uint64_t i, char *text,
		  size_t size)
{
	if (table->index == UINT32_MAX)
		snprintf(text, size, "entry %llu of the L2 table at 0x%llx, of a snapshot,",
			 (unsigned long long)i,
			 (unsigned long long)table->cluster << scan->cluster_bits);
	else
		snprintf(text, size, "the entry of guest offset 0x%llx",
			 ((unsigned long long)table->index * (scan->cluster_size / 8) + i)
				 << scan->cluster_bits);
}

static void l2_found(struct scan *scan, const struct scan_table *table, uint64_t i,
		     const struct entry *entry)
{
	const char *repair = "repair makes it read as zeroes, its data is lost";
	char text[100];

	if (scan->quiet) {
		scan_found(scan, SCAN_ENTRY, 1, "%s", "");
		return;
	}
	where(scan, table, i, text, sizeof(text));
	if (entry->zero && !entry->packed)
		repair = "repair drops the place, it reads as zeroes as before";
	else if (scan->header.version < 3)
		repair = "repair empties it, its data is lost";
	if (entry->fault)
		scan_found(scan, SCAN_ENTRY, 1, "%s points to 0x%llx, which %s: %s", text,
			   (unsigned long long)entry->place, entry->fault, repair);
	else
		scan_found(scan, SCAN_ENTRY, 1, "%s has bits that are reserved: repair clears them",
			   text);
}

static void l2_judge_one(struct scan *scan, const struct scan_table *table, struct change *change,
			 uint64_t i, bool active)
{
	uint64_t raw = be64toh(change->raw[i]);
	struct entry entry = l2_entry(scan, raw);

	if (!entry.fault && entry.size)
		entry.fault = l2_conflict(scan, &entry);
	if (entry.fault || entry.stray) {
		l2_found(scan, table, i, &entry);
		raw &= ~entry.stray;
		if (entry.fault)
			raw = scan->header.version >= 3 ? QCOW2_ZERO : 0;
		if (scan->fix_entries)
			change_note(change, i, raw);
	}
	if (entry.fault || entry.packed || !entry.size || !active ||
	    !flag_is_wrong(scan, raw, entry.place))
		return;
	if (!scan->quiet) {
		char text[100];

		where(scan, table, i, text, sizeof(text));
		scan_found(scan, SCAN_FLAG, 1,
			   "%s is wrong about its cluster's refcount being 1: repair puts that "
			   "right",
			   text);
	} else {
		scan_found(scan, SCAN_FLAG, 1, "%s", "");
	}
	if (scan->fix_flags)
		change_note(change, i, raw ^ QCOW2_COPIED);
}

static int l2_judge(struct scan *scan, const struct scan_table *table)
{
	uint32_t word = *counts_find(&scan->counts, table->cluster);
	uint64_t place = table->cluster << scan->cluster_bits;
	struct change change = {.raw = (uint64_t *)scan->buffer};
	int r;

	if (is_condemned(word) || word & COUNTS_TABLE)
		return 0;
	r = scan_read(scan, scan->buffer, scan->cluster_size, place);
	for (uint64_t i = 0; r == 0 && i < scan->cluster_size / 8; i++)
		if (change.raw[i])
			l2_judge_one(scan, table, &change, i, word & COUNTS_ACTIVE);
	return r == 0 ? change_write(scan, &change, place) : MIN(r, 0);
}

static int l1s_judge(struct scan *scan)
{
	struct l1 l1 = {.place = scan->header.l1_offset, .n_entries = scan->header.l1_entries};
	int r = l1_judge(scan, &l1);

	for (uint32_t i = 0; r >= 0 && i < scan->snapshots.n; i++) {
		const struct qcow2_snapshot *snapshot = &scan->snapshots.list[i];

		l1 = (struct l1){
			.place = snapshot->l1_offset,
			.n_entries = snapshot->l1_entries,
			.snapshot = snapshot->name,
		};
		if (scan->keep[i])
			r = l1_judge(scan, &l1);
	}
	return r;
}

int scan_entries_judge(struct scan *scan)
{
	int r;

	if (scan->without_refcounts)
		return 0;
	r = l1s_judge(scan);
	for (uint64_t i = 0; r >= 0 && i < scan->n_tables; i++) {
		r = l2_judge(scan, &scan->tables[i]);
		if (r >= 0)
			r = scan_progress(scan, 1);
	}
	if (r >= 0 && (scan->fix_entries || scan->fix_flags)) {
		r = block_file_sync(scan->file);
		if (r < 0)
			return error_set(scan->err, r, "cannot repair \"%s\": flushing failed: %s",
					 scan->name, strerror(-r));
	}
	return r;
}
