/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether a qcow2 file is in order, and putting it in order. A witness of its own: it reads the
 * file, and shares with the engine only the format. The file is locked by the caller, nothing of it
 * is kept in memory elsewhere, or is read again afterwards.
 */
#pragma once

#include "block/create.h"
#include "block/file.h"

struct qcow2_check_options {
	bool fix_leaks;     /* refcounts that are too high */
	bool fix_refcounts; /* too low, not there at all; flags that go with them */
	bool fix_entries;   /* what points nowhere, or at what is not its own: data is lost */
	void (*report)(void *arg, const char *sentence); /* NULL: only counted */
	void *arg;
	struct block_progress *progress; /* NULL: nobody asks */
};

/*
 * Fills `ret_check`: what is wrong with the file as it is left, and how much of it was put in
 * order. 0 also when much is wrong. -EINVAL, -ENOTSUP: not a qcow2 image that can be looked at;
 * -ECANCELED by `progress`; else what the store said. Memory: 5 bytes for each cluster that
 * something points to (where these stand together; 290 where each is alone), 16 for an L2 table,
 * and the L1 and refcount tables.
 */
int qcow2_check(const struct block_file *file, const char *name,
		const struct qcow2_check_options *options, struct block_check *ret_check,
		struct error *err) __must_check;

/*
 * For opening an image whose writer died with refcounts owed (QCOW2_INCOMPATIBLE_DIRTY): counts
 * again, writes refcounts and flags, clears the bit, flushes. -EIO with a sentence if more is wrong
 * than refcounts: that is left for a person to decide.
 */
int qcow2_repair_dirty(const struct block_file *file, const char *name,
		       struct error *err) __must_check;
