/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How often each cluster of a qcow2 file is pointed to, and by what: a word a cluster, in small
 * chunks behind a hash, so that memory follows what is pointed to and not how far apart it lies.
 * One thread.
 */
#pragma once

#include <stdint.h>

#include "base/macros.h"

#define COUNTS_CHUNK 64u /* clusters */

/* A word: how often, and what it is to those that point there. */
#define COUNTS_MAX         UINT32_C(0xffffff)  /* or more */
#define COUNTS_TABLE       (UINT32_C(1) << 24) /* header, L1, snapshots, bitmaps */
#define COUNTS_L2          (UINT32_C(1) << 25)
#define COUNTS_DATA        (UINT32_C(1) << 26)
#define COUNTS_REFCOUNTS   (UINT32_C(1) << 27) /* refcount table or block */
#define COUNTS_IMPLAUSIBLE (UINT32_C(1) << 28) /* as an L2 table it makes little sense */
#define COUNTS_ACTIVE      (UINT32_C(1) << 29) /* an L2 table of the disk as it is now */
#define COUNTS_OWNERS      (COUNTS_TABLE | COUNTS_L2 | COUNTS_DATA | COUNTS_REFCOUNTS)
/* What the file says of the refcount. */
#define COUNTS_STORED(word) ((word) >> 30)
enum { COUNTS_STORED_0, COUNTS_STORED_1, COUNTS_STORED_MORE, COUNTS_STORED_UNKNOWN };

struct counts_chunk {
	uint64_t number;
	uint32_t words[COUNTS_CHUNK];
};

struct counts {
	struct counts_chunk **slots; /* owned, as what they point to; a power of two, NULL: free */
	uint64_t n_slots, n, seed;
	uint64_t n_max;              /* chunks; beyond it counts_add says -EFBIG */
	struct counts_chunk **order; /* owned; by number, after counts_sort */
	struct counts_chunk *last;   /* weak; the one found last: tables mostly go on in it */
};

void counts_deinit(struct counts *counts);
/* NULL: nothing points to any cluster near. */
uint32_t *counts_find(struct counts *counts, uint64_t cluster);
/* `n` more references of `flags` kind. *ret_before: the word before. -ENOMEM, -EFBIG. */
int counts_add(struct counts *counts, uint64_t cluster, uint32_t n, uint32_t flags,
	       uint32_t *ret_before) __must_check;
/* Makes `order`; counts_add makes it void. */
int counts_sort(struct counts *counts) __must_check;
/* The first place in `order` whose chunk is `number` or behind it. */
uint64_t counts_order_find(const struct counts *counts, uint64_t number);

static inline void counts_store(uint32_t *word, uint32_t stored)
{
	*word = (*word & ~(UINT32_C(3) << 30)) | stored << 30;
}
