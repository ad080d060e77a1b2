/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the bytes of one operation on a qcow2 image are, as its channel goes about them: parts in
 * the guest's order, each with its own buffers. No memory but the struct's, no waiting.
 */
#pragma once

#include "block/qcow2.h"

#define QCOW2_PARTS_MAX 32
#define QCOW2_ROWS_MAX  160 /* of iovecs, where an operation had to be cut */
/* What is done of an operation in one go; the rest is for who sent it to ask for again, as with any
 * engine. So no guest keeps the loop at filling in zeroes. */
#define QCOW2_STEP_MAX (16u << 20)

enum qcow2_part_kind {
	QCOW2_PART_FILE,    /* on the ring, at `place` in the file; holds the epoch */
	QCOW2_PART_BACKING, /* at the backing image's channel; `place` is the guest's */
	QCOW2_PART_ZEROES,  /* filled in */
	QCOW2_PART_FLUSH,   /* on the ring, and all there is */
	QCOW2_PART_NONE,    /* for one who may wait */
};

struct qcow2_part {
	enum qcow2_part_kind kind;
	int32_t result;
	uint64_t place, length;
	const struct iovec *iov; /* the operation's, or rows; borrowed */
	uint32_t n_iov;
	bool submitted;
};

struct qcow2_parts {
	uint32_t n, n_rows;
	struct qcow2_part list[QCOW2_PARTS_MAX];
	struct iovec rows[QCOW2_ROWS_MAX];
};

/* First of all: leaves the first QCOW2_STEP_MAX bytes of a longer `op`. Returns how many those are.
 */
uint64_t qcow2_parts_shorten(struct qcow2_parts *parts, struct io_op *op, uint64_t bytes);

/*
 * A READ or WRITE, in an epoch. Zeroes are filled in. False: it is for one who may wait, as a
 * whole. `with_backing`: what is absent is read there.
 */
bool qcow2_parts_find(struct qcow2_parts *parts, struct qcow2 *qcow2, const struct io_op *op,
		      uint64_t bytes, bool with_backing) __must_check;

/* All have ended: how far it got, as an engine would say it. *ret_short: and no further, without an
 * error. */
int32_t qcow2_parts_result(const struct qcow2_parts *parts, bool *ret_short);
