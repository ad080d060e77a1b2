/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes images, and what only tools do with them. All of it waits; none of it is in corral-vmm.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "block/block.h"

struct block_create {
	const char *format;         /* "raw" or "qcow2" */
	uint64_t size;              /* bytes, whole sectors */
	uint32_t cluster_bits;      /* qcow2: 12 to 21; 0: 16 */
	uint32_t compression;       /* QCOW2_ZLIB, QCOW2_ZSTD */
	bool lazy_refcounts;        /* qcow2 */
	const char *backing_name;   /* qcow2: written as it is; NULL: none */
	const char *backing_format; /* "raw" or "qcow2", with backing_name */
};

/* Makes an image in the empty file `fd` (borrowed); flushed when it returns. */
int block_create(int fd, const struct block_create *create, const char *name,
		 struct error *err) __must_check;

/* One internal snapshot of a qcow2 image, as it stands in its table. Strings are owned. */
struct block_snapshot {
	char *id, *name;
	uint64_t seconds; /* since 1970 */
	uint64_t size;    /* of the disk then */
	uint64_t vm_state_size;
};
struct block_snapshots {
	struct block_snapshot *list; /* owned */
	uint32_t n;
};
int block_snapshots_read(struct block_image *image, struct block_snapshots *ret_snapshots,
			 struct error *err) __must_check;
void block_snapshots_free(struct block_snapshots *snapshots);
/* From now on the image, opened read-only, reads as the snapshot of this id or name did. */
int block_snapshot_view(struct block_image *image, const char *id, struct error *err) __must_check;

/* What `check` finds in one image (its backing images are not looked at). */
struct block_check {
	uint64_t corruptions;                  /* after these, data is lost or may be overwritten */
	uint64_t leaks;                        /* clusters that nothing points to */
	uint64_t allocated, compressed, total; /* guest clusters */
	uint64_t end;                          /* of the last used cluster, bytes */
	uint64_t fixed_corruptions, fixed_leaks;
};
struct block_progress {
	/* Now and then, `done` of `total` in bytes or clusters; false: stop, -ECANCELED. */
	bool (*at)(struct block_progress *progress, uint64_t done, uint64_t total);
};
/* `report` is told each finding in a sentence, a thousand at most. Raw images: the file's size
 * only.
 */
int block_check(struct block_image *image, bool repair_leaks, bool repair_all,
		void (*report)(void *arg, const char *sentence), void *arg,
		struct block_progress *progress, struct block_check *ret_check,
		struct error *err) __must_check;

/* Writes the cluster-sized block at `offset` compressed; the image's range was absent. For convert.
 */
int block_write_packed(struct block_image *image, const void *data, uint64_t offset) __must_check;
/* Forgets the backing image, or names another. Its content must read the same. */
int block_set_backing(struct block_image *image, const char *name, const char *format,
		      struct error *err) __must_check;
