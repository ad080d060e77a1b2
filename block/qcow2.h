/* SPDX-License-Identifier: Apache-2.0 */
/*
 * qcow2 images, from the inside: what the files qcow2-*.c share. Outsiders use block/block.h and,
 * to make images, block/create.h.
 *
 * Where a guest's offset is in the file stands in L2 tables. They are kept in slices of
 * QCOW2_SLICE_BYTES, in memory as in the file (big-endian), in a directory with a pointer a slice.
 * Loops look up there without a lock (qcow2_lookup); whatever they find mapped and writable goes to
 * their ring. All else is for those who may wait: they hold `lock` to load slices, allocate,
 * change entries.
 *
 * Order on the way to the file, so that it is a valid image after a crash anywhere, whatever was
 * not yet flushed being lost or not, in any order:
 *   1. the data of new clusters, their refcounts, new L2 tables as a whole; then a flush;
 *   2. entries in old L2 tables, L1 entries of new tables; then a flush;
 *   3. refcounts of clusters that nothing points to any more. Only now may they be used again.
 * Changes are kept in memory until qcow2_commit does this: when the guest flushes, when there are
 * too many, when the image is closed. A crash may lose clusters (leaks, which check finds); it
 * never leaves two owners of one, or an entry that points to what is not there.
 *
 * A cluster that is given up may still be under way in a ring: it is used again only when every
 * operation has ended that was submitted before it was unlinked (qcow2_grace).
 *
 * Lock order: an image's `lock` before its backing image's.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "base/macros.h"
#include "block/block.h"
#include "block/qcow2-format.h"

#define QCOW2_SLICE_BYTES   4096u
#define QCOW2_SLICE_ENTRIES (QCOW2_SLICE_BYTES / 8)
/* Memory for slices, an image: what 256 GiB of 64 KiB clusters need. */
#define QCOW2_CACHE_BYTES     (UINT64_C(32) << 20)
#define QCOW2_CHANNELS_MAX    64
#define QCOW2_CHANNEL_WAITING (QCOW2_CHANNELS_MAX - 1) /* of all who may wait */

/*
 * Slices are given another number, never freed, while the image is open: a loop may read one that
 * is just being evicted. `turn` tells it (odd: the content changes as a whole; another value than
 * before: it did).
 */
struct qcow2_slice {
	_Atomic uint64_t entries[QCOW2_SLICE_ENTRIES];  /* as in the file: big-endian */
	_Atomic uint64_t bad[QCOW2_SLICE_ENTRIES / 64]; /* a bit an entry that makes no sense */
	_Atomic uint64_t number;                        /* in the directory */
	atomic_uint turn;
	atomic_bool exclusive;          /* its table is ours alone, its refcounts were looked at */
	atomic_bool used;               /* since the last look for one to evict */
	bool dirty;                     /* under `lock` */
	struct qcow2_slice *next_dirty; /* weak */
};

/* How many operations a channel has under way, by the epoch they began in. Written by its loop. */
struct qcow2_inflight {
	_Atomic uint32_t n[2];
	_Atomic bool taken; /* by a channel */
} __attribute__((aligned(64)));

struct qcow2_refcounts; /* qcow2-refcount.c */
struct qcow2_map;       /* qcow2-map.c */
struct qcow2_places;    /* qcow2-places.c */

struct qcow2 {
	struct block_image image;
	struct qcow2_header header;
	uint32_t cluster_bits;
	uint64_t cluster_size;
	bool repair;       /* opened to be put in order */
	char trouble[160]; /* what was found to be corrupt */

	uint32_t slice_bits; /* entries of a slice: 9, fewer where a table has fewer */
	uint32_t slices_max; /* in memory; more only while they are dirty. Tests make it small */

	/* Written under `lock`, read by anyone. */
	_Atomic(struct qcow2_slice *)
		*slices; /* owned mapping, a pointer a slice of the guest's size */
	uint64_t n_slices;
	atomic_uint epoch; /* the parity new operations begin in */
	struct qcow2_inflight inflight[QCOW2_CHANNELS_MAX];
	atomic_bool dirty;   /* there is something to commit: a flush has to come by the lock */
	atomic_bool corrupt; /* found so: nothing is written any more, reads go on */
	atomic_uint flushing, flushes_failed; /* of loops: qcow2_flush_begin */

	pthread_mutex_t lock;              /* guards all below */
	uint64_t *l1;                      /* owned; host byte order, flags too */
	struct qcow2_map *map;             /* owned */
	struct qcow2_refcounts *refcounts; /* owned; NULL: read only */
	struct qcow2_places *places;       /* owned; as long as `refcounts` */
	uint64_t file_end; /* of what may be pointed to: the file's size, or what was allocated */
	uint32_t flushes_failed_seen;
	uint64_t packed_next; /* where compressed bytes may follow others; 0: nowhere */
	bool ordered;     /* a flush must come between what was written and what will point there */
	bool sync_failed; /* outside a flush: the next one tells it */
};

static inline struct qcow2 *to_qcow2(struct block_image *image)
{
	return container_of(image, struct qcow2, image);
}

/* qcow2-open.c */
extern const struct block_ops qcow2_ops;
/*
 * Takes over `file`, also on failure, which closes it; the file is locked by now. Sets ops, file,
 * size, io_block, discard_block and can_discard, and readonly and inactive as `open` has them;
 * worker and, if it is not set, name are set by block.c afterwards, and the backing image is
 * opened there, from header.backing_name and backing_format. qcow2_ops.close frees the image but
 * neither closes the file nor frees the name.
 */
int qcow2_open(struct block_image **ret_image, struct block_file *file,
	       const struct block_open *open, struct error *err) __must_check;
/* Under `lock` or alone: these fields of `header` go to the file: the three feature words, size,
 * L1, refcount table. Not flushed. */
int qcow2_header_write(struct qcow2 *qcow2) __must_check;
/* The image reads by another L1 table from now on (a snapshot's), as a disk of `size`. Read only;
 * nothing is under way. */
int qcow2_view(struct qcow2 *qcow2, uint64_t l1_offset, uint32_t l1_entries, uint64_t size,
	       struct error *err) __must_check;
/* What we found cannot be: says so in the log, once, and nothing is written any more. While the
 * image is being opened it is in `trouble` only. -EIO. */
int qcow2_set_corrupt(struct qcow2 *qcow2, const char *format, ...) __printf(2, 3);
/* Under `lock`, or alone. All is in the file, lazy refcounts too, and the dirty bit is not set any
 * more. */
int qcow2_settle(struct qcow2 *qcow2) __must_check;

/* What a loop is told about a range. */
enum qcow2_lookup_kind {
	QCOW2_MISSING, /* the slice is not in memory, or the entry makes no sense: ask one who may
			  wait */
	QCOW2_ABSENT,  /* the backing image has it, or it reads as zeroes */
	QCOW2_ZEROES,  /* reads as zeroes */
	QCOW2_MAPPED,  /* at `place`; may be written there */
	QCOW2_SHARED,  /* at `place`; to be copied before it is written */
	QCOW2_PACKED,  /* compressed */
};
struct qcow2_lookup {
	enum qcow2_lookup_kind kind;
	uint64_t length; /* from the offset asked for: as far as it is the same, and one row in the
			    file */
	uint64_t place;  /* MAPPED, SHARED: of `offset`; ZEROES: of space kept for it, 0: none;
			    PACKED: the entry, see qcow2_packed_place */
};

/* Where compressed bytes begin, and how many there may be: whole sectors from there on. */
static inline uint64_t qcow2_packed_place(const struct qcow2 *qcow2, uint64_t entry,
					  uint64_t *ret_size)
{
	const uint32_t bits = 62 - (qcow2->cluster_bits - 8);
	const uint64_t place = entry & ((UINT64_C(1) << bits) - 1);
	const uint64_t sectors = ((entry & (QCOW2_COMPRESSED - 1)) >> bits) + 1;

	*ret_size = sectors * BLOCK_SECTOR - place % BLOCK_SECTOR;
	return place;
}

/* qcow2-map.c */

/* Any thread, no lock, never waits. Between qcow2_enter and qcow2_leave of the operation that uses
 * what it says; those who hold the lock need neither. Looks at one slice at most. A slice in which
 * nothing was written yet says SHARED where it might say MAPPED: the first write of each goes by
 * the lock. */
struct qcow2_lookup qcow2_lookup(struct qcow2 *qcow2, uint64_t offset, uint64_t length);
/* Under `lock`: loads the slice first, so never MISSING; -errno, -EIO for an entry that makes no
 * sense. */
int qcow2_look(struct qcow2 *qcow2, uint64_t offset, uint64_t length,
	       struct qcow2_lookup *ret_lookup) __must_check;
/* Under `lock`: the slice of an offset, with its L2 table made (or copied, if shared) for writing.
 */
int qcow2_slice_writable(struct qcow2 *qcow2, uint64_t offset,
			 struct qcow2_slice **ret_slice) __must_check;
/* Under `lock`: sets the entry of the cluster at `offset`; `entry` in host order. */
void qcow2_entry_set(struct qcow2 *qcow2, struct qcow2_slice *slice, uint64_t offset,
		     uint64_t entry);
/* Under `lock`: everything in memory goes to the file in its order, flushed. */
int qcow2_commit(struct qcow2 *qcow2) __must_check;
/* Under `lock`: a commit if so much has gathered that one is due. */
int qcow2_commit_if_due(struct qcow2 *qcow2) __must_check;
/* Under `lock`: flushes the file; fails too if a loop's flush took away the kernel's word of a
 * failure. */
int qcow2_sync(struct qcow2 *qcow2) __must_check;
/* Under `lock`, nothing dirty, nothing under way: forgets all slices. */
void qcow2_forget(struct qcow2 *qcow2);
/* Under `lock`: from now on there is something to commit. Before the first byte is written. */
void qcow2_set_dirty(struct qcow2 *qcow2);
/* A new map for header.size and the L1 table. */
int qcow2_map_open(struct qcow2 *qcow2, struct error *err) __must_check;
void qcow2_map_close(struct qcow2 *qcow2);
/* Under `lock`, nothing under way: room for a disk of `size`, whose L1 table has `l1_entries`. */
int qcow2_map_grow(struct qcow2 *qcow2, uint64_t size, uint32_t l1_entries) __must_check;
/* Under `lock`: bytes from `offset` on whose L2 tables do not exist, `length` at most. Loads
 * nothing. */
uint64_t qcow2_no_table(struct qcow2 *qcow2, uint64_t offset, uint64_t length);

/*
 * A loop's flush. true: a plain flush of the file does it; tell what came of it by qcow2_flush_end.
 * false: it has to go to one who may wait (qcow2_run), and there is no end to tell. Never waits.
 */
bool qcow2_flush_begin(struct qcow2 *qcow2) __must_check;
void qcow2_flush_end(struct qcow2 *qcow2, int result);

/*
 * A loop's operation begins and ends; the channel's number was taken by qcow2_inflight_take. What
 * is between them ends by itself: a transfer in the ring, never something that waits for the lock
 * or for the worker.
 */
uint32_t qcow2_enter(struct qcow2 *qcow2, uint32_t channel);
void qcow2_leave(struct qcow2 *qcow2, uint32_t channel, uint32_t epoch);
int qcow2_inflight_take(struct qcow2 *qcow2, uint32_t *ret_channel) __must_check;
void qcow2_inflight_give(struct qcow2 *qcow2, uint32_t channel);
/* Under `lock`. Returns when every operation has ended that had begun before the call. */
void qcow2_grace(struct qcow2 *qcow2);

/* qcow2-refcount.c. All under `lock`. */

int qcow2_refcounts_open(struct qcow2 *qcow2, struct error *err) __must_check;
void qcow2_refcounts_close(struct qcow2 *qcow2);
/* `*n` clusters in a row, fewer if that is all there is together; *ret_fresh: they were never
 * written, so they read as zeroes. -ENOSPC, -EFBIG, -EIO. */
int qcow2_allocate(struct qcow2 *qcow2, uint32_t *n, uint64_t *ret_place,
		   bool *ret_fresh) __must_check;
/* As many as that, together. */
int qcow2_allocate_row(struct qcow2 *qcow2, uint32_t n, uint64_t *ret_place) __must_check;
/* Nothing points there any more once the next commit is done. `n` clusters. */
int qcow2_give_up(struct qcow2 *qcow2, uint64_t place, uint32_t n) __must_check;
/* Takes back an allocation that nothing came to point to. */
void qcow2_unallocate(struct qcow2 *qcow2, uint64_t place, uint32_t n);
int qcow2_refcount(struct qcow2 *qcow2, uint64_t place, uint64_t *ret_count) __must_check;
/* How many more owners a cluster gets: compressed clusters share theirs. -ERANGE: not so many. */
int qcow2_refcount_add(struct qcow2 *qcow2, uint64_t place, uint32_t n) __must_check;
/* Step 1 of a commit; `_written` when the flush after it was done. Step 3. */
int qcow2_refcounts_write(struct qcow2 *qcow2) __must_check;
void qcow2_refcounts_written(struct qcow2 *qcow2);
int qcow2_refcounts_release(struct qcow2 *qcow2) __must_check;
/* So many clusters are given up that a commit is due. */
bool qcow2_refcounts_due(const struct qcow2 *qcow2);
/* Writes what lazy refcounts left in memory. */
int qcow2_refcounts_settle(struct qcow2 *qcow2) __must_check;

/* qcow2-places.c. All under `lock`. */

int qcow2_places_open(struct qcow2 *qcow2) __must_check;
void qcow2_places_close(struct qcow2 *qcow2);
/* There is an L2 table now, or a refcount block. */
void qcow2_place_note(struct qcow2 *qcow2, uint64_t place);
/* No guest's data is to be written there, whatever tables and refcounts say. */
bool qcow2_is_table(struct qcow2 *qcow2, uint64_t place);
/* qcow2-refcount.c: the second half of it. */
bool qcow2_is_refcount_block(struct qcow2 *qcow2, uint64_t place);

/* qcow2-run.c: operations that may wait; takes the lock itself. */
int qcow2_run(struct block_image *image, const struct io_op *op) __must_check;
/* Under `lock`: the range reads as zeroes (`discard`: has no space either), for another size. */
int qcow2_clear(struct qcow2 *qcow2, uint64_t from, uint64_t to, bool discard) __must_check;
/* Under `lock`: the clusters of a range of one kind, as qcow2_look said, are given up. */
int qcow2_give_up_range(struct qcow2 *qcow2, uint64_t offset,
			const struct qcow2_lookup *lookup) __must_check;

/* qcow2-channel.c: a loop's way through the image. */
int qcow2_channel_open(struct block_channel **ret_channel, struct block_image *image,
		       struct loop *loop);
void qcow2_channel_close(struct block_channel *channel);
int qcow2_submit(struct block_channel *channel, const struct io_op *op, struct loop_source *source,
		 uint32_t arg);

/* compress.c: zlib and zstd, loaded when an image that may need them is opened. */
int compress_load(uint32_t type, struct error *err) __must_check;
/* This process is about to lose the right to open files: what has not been loaded never is. */
void compress_settle(void);
/* Exactly `out_size` bytes must come out. -EIO otherwise. */
int compress_unpack(uint32_t type, const void *in, size_t in_size, void *out,
		    size_t out_size) __must_check;
/* The size, or 0 if it is not smaller than `out_size`. */
size_t compress_pack(uint32_t type, const void *in, size_t in_size, void *out, size_t out_size);
