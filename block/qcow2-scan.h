/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One look through all metadata of a qcow2 file; what the files qcow2-scan*.c, qcow2-check.c and
 * qcow2-repair.c share. Whatever stands in the file may lie. So nothing is read twice because two
 * tables point to it: an L2 table counts as often as it is pointed to but is read once, and of any
 * two other tables that overlap the second is not followed. Holes are skipped. The time of a scan
 * is thereby that of the metadata which really is in the file, and memory follows it.
 *
 * Who is right where two claim a cluster: the header, then the active L1 table; a snapshot's L1
 * table against an L2 table by what both look like; an L2 table against guest data, unless most of
 * its entries are nonsense; guest data against guest data: both, they share it; anything against
 * refcounts, which can be counted again.
 */
#pragma once

#include "block/qcow2-check.h"
#include "block/qcow2-counts.h"
#include "block/qcow2-format.h"
#include "block/qcow2-snapshots.h"

enum scan_class {
	SCAN_LEAK,
	SCAN_ENTRY, /* of an L1 or L2 table: points where it must not, or has bits it must not */
	SCAN_COUNT, /* a refcount that is too low */
	SCAN_STRUCTURE, /* refcount table and blocks */
	SCAN_FLAG,      /* COPIED */
	SCAN_SNAPSHOT,
	SCAN_AUTOCLEAR, /* of the header: bitmaps, and what else is valid only with its bit */
	SCAN_CLASSES,
};

/* Autoclear bits: of bitmaps, that they are as they should be; that guest data is a raw image in a
 * file of its own. */
#define QCOW2_AUTOCLEAR_BITMAPS UINT64_C(1)
#define QCOW2_AUTOCLEAR_RAW     UINT64_C(2)
/* Bits of an L1 entry that are not to be set. */
#define SCAN_L1_RESERVED UINT64_C(0x7f000000000001ff)

/* An L2 table: once, however often it is pointed to. */
struct scan_table {
	uint64_t cluster;
	uint32_t n;     /* references to it */
	uint32_t index; /* in the active L1 table, UINT32_MAX: only snapshots have it */
};

struct scan {
	const struct block_file *file;             /* borrowed */
	const char *name;                          /* borrowed */
	const struct qcow2_check_options *options; /* borrowed */
	struct error *err;                         /* borrowed */

	/* What this scan is for. */
	bool quiet;             /* findings are counted only */
	bool fix_entries;       /* as they are found */
	bool fix_flags;         /* likewise */
	bool without_refcounts; /* counts as if there were no refcount structures */
	bool lowered;           /* a repair has set refcounts down before it */

	struct qcow2_header header;
	uint64_t file_size, n_clusters;
	uint32_t cluster_bits;
	uint64_t cluster_size;
	struct counts counts;
	struct scan_table *tables; /* owned; by cluster */
	uint64_t n_tables;
	struct qcow2_snapshots snapshots;
	bool *keep; /* owned; a snapshot each: its L1 table can be used */
	bool rewrite_snapshots, forget_snapshots;
	uint64_t drop_autoclear; /* bits */
	uint64_t *reftable;      /* owned; host order, offsets only. 0: no block */
	uint64_t *broken;        /* owned; a bit an entry: what it points to is no block */
	uint32_t n_reftable;
	uint8_t *buffer; /* owned, a cluster */
	uint64_t read;   /* bytes of metadata */
	uint64_t chunks_least;
	uint64_t done, total;

	/* What it found. */
	uint64_t found[SCAN_CLASSES];
	uint64_t n_reported;
	bool must_rebuild; /* the refcount structures do not do */
	uint32_t max_count;
	uint64_t highest; /* cluster in use, + 1 */
	uint64_t allocated, compressed;
};

/* The caller has set what it is for, in a struct else zero. Fails only if it cannot go on. */
int scan_run(struct scan *scan) __must_check;
void scan_deinit(struct scan *scan);
uint64_t scan_corruptions(const struct scan *scan);

/* qcow2-scan.c, for its other half */

/* `n` findings of one kind in a sentence. */
void scan_found(struct scan *scan, enum scan_class class, uint64_t n, const char *format, ...)
	__printf(4, 5);
/* 0; 1: it is all a hole, and `data` was not touched. */
int scan_read(struct scan *scan, void *data, uint64_t size, uint64_t place) __must_check;
int scan_add(struct scan *scan, uint64_t cluster, uint32_t n, uint32_t flags,
	     uint32_t *ret_before) __must_check;
/* All clusters of a table, which lies in the file; *ret_before: the owners they had. */
int scan_claim(struct scan *scan, uint64_t place, uint64_t size, uint32_t flags,
	       uint32_t *ret_before) __must_check;
/* The owners that the clusters have. */
uint32_t scan_owners(struct scan *scan, uint64_t place, uint64_t size);
bool scan_is_in_file(const struct scan *scan, uint64_t place, uint64_t size);
int scan_l1_count(struct scan *scan, uint64_t place, uint32_t n_entries,
		  uint32_t flags) __must_check;
int scan_progress(struct scan *scan, uint64_t n) __must_check;

/* qcow2-scan-extras.c: snapshots; bitmaps. */
int scan_snapshots(struct scan *scan) __must_check;
int scan_bitmaps(struct scan *scan) __must_check;

/* qcow2-scan-entries.c: the entries of L1 and L2 tables. */
int scan_data_count(struct scan *scan) __must_check;
int scan_entries_judge(struct scan *scan) __must_check;

/* qcow2-scan-refcounts.c */
int scan_refcounts(struct scan *scan) __must_check;
uint64_t scan_refcount_get(const uint8_t *block, uint32_t order, uint64_t index);
void scan_refcount_set(uint8_t *block, uint32_t order, uint64_t index, uint64_t value);

/* qcow2-repair.c: what is written, by what a scan found. All end flushed. */
int repair_header(struct scan *scan, uint64_t offset, const void *data, size_t size) __must_check;
int repair_refcounts(struct scan *scan, bool raise, bool lower) __must_check;
/* After a scan without refcounts. */
int repair_rebuild(struct scan *scan) __must_check;
int repair_snapshots(struct scan *scan) __must_check;
