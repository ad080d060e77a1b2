/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Finds the parts of an operation: asks the map along the range, joins what is one row, then cuts
 * the buffers as the parts are.
 */
#include "block/qcow2-parts.h"

#include <assert.h>
#include <string.h>

uint64_t qcow2_parts_shorten(struct qcow2_parts *parts, struct io_op *op, uint64_t bytes)
{
	uint64_t left = QCOW2_STEP_MAX;

	if (bytes <= QCOW2_STEP_MAX || op->n_iov > QCOW2_ROWS_MAX)
		return bytes;
	while (left) {
		struct iovec *row = &parts->rows[parts->n_rows];

		*row = op->iov[parts->n_rows++];
		row->iov_len = MIN((uint64_t)row->iov_len, left);
		left -= row->iov_len;
	}
	op->iov = parts->rows;
	op->n_iov = parts->n_rows;
	return QCOW2_STEP_MAX;
}

/* Clips the range to where it is the same for us, too. */
static enum qcow2_part_kind classify(const struct block_image *backing, bool write, uint64_t offset,
				     struct qcow2_lookup *lookup)
{
	if (lookup->kind == QCOW2_MAPPED)
		return QCOW2_PART_FILE;
	if (write)
		return QCOW2_PART_NONE;
	switch (lookup->kind) {
	case QCOW2_SHARED:
		return QCOW2_PART_FILE;
	case QCOW2_ZEROES:
		return QCOW2_PART_ZEROES;
	case QCOW2_ABSENT:
		if (!backing || offset >= backing->size)
			return QCOW2_PART_ZEROES;
		lookup->length = MIN(lookup->length, backing->size - offset);
		lookup->place = offset;
		return QCOW2_PART_BACKING;
	default:
		return QCOW2_PART_NONE;
	}
}

/* False: more parts than there are places for. */
static bool add(struct qcow2_parts *parts, enum qcow2_part_kind kind,
		const struct qcow2_lookup *lookup)
{
	struct qcow2_part *last = parts->n ? &parts->list[parts->n - 1] : NULL;

	if (last && last->kind == kind &&
	    (kind == QCOW2_PART_ZEROES || last->place + last->length == lookup->place)) {
		last->length += lookup->length;
		return true;
	}
	if (parts->n == QCOW2_PARTS_MAX)
		return false;
	parts->list[parts->n++] = (struct qcow2_part){
		.kind = kind,
		.place = lookup->place,
		.length = lookup->length,
	};
	return true;
}

static bool find(struct qcow2_parts *parts, struct qcow2 *qcow2, const struct block_image *backing,
		 const struct io_op *op, uint64_t bytes)
{
	uint64_t offset = op->offset;

	while (bytes) {
		struct qcow2_lookup lookup = qcow2_lookup(qcow2, offset, bytes);
		enum qcow2_part_kind kind =
			classify(backing, op->kind == IO_WRITE, offset, &lookup);

		assert(lookup.length <= bytes && (lookup.length || kind == QCOW2_PART_NONE));
		if (kind == QCOW2_PART_NONE || !add(parts, kind, &lookup))
			return false;
		offset += lookup.length;
		bytes -= lookup.length;
	}
	return true;
}

/* Where cutting stands in the operation's buffers. */
struct cut {
	const struct iovec *iov;
	size_t skip;
};

/* The next buffer's part of `left` bytes; none if that buffer has no length. */
static struct iovec cut_next(struct cut *cut, uint64_t left)
{
	struct iovec row = {
		(uint8_t *)cut->iov->iov_base + cut->skip,
		MIN(left, (uint64_t)cut->iov->iov_len - cut->skip),
	};

	cut->skip += row.iov_len;
	if (cut->skip == cut->iov->iov_len) {
		cut->iov++;
		cut->skip = 0;
	}
	return row;
}

static void fill(const struct qcow2_part *part, struct cut *cut)
{
	for (uint64_t left = part->length; left;) {
		struct iovec row = cut_next(cut, left);

		if (row.iov_len)
			memset(row.iov_base, 0, row.iov_len);
		left -= row.iov_len;
	}
}

/* False: more rows than there are places for. */
static bool cut_rows(struct qcow2_parts *parts, struct qcow2_part *part, struct cut *cut)
{
	part->iov = &parts->rows[parts->n_rows];
	for (uint64_t left = part->length; left;) {
		struct iovec row = cut_next(cut, left);

		if (!row.iov_len)
			continue;
		if (parts->n_rows == QCOW2_ROWS_MAX)
			return false;
		parts->rows[parts->n_rows++] = row;
		part->n_iov++;
		left -= row.iov_len;
	}
	return true;
}

static bool cut_all(struct qcow2_parts *parts, const struct io_op *op)
{
	struct cut cut = {op->iov, 0};

	if (parts->n == 1 && parts->list[0].kind != QCOW2_PART_ZEROES) {
		parts->list[0].iov = op->iov;
		parts->list[0].n_iov = op->n_iov;
		return true;
	}
	for (uint32_t i = 0; i < parts->n; i++) {
		struct qcow2_part *part = &parts->list[i];

		if (part->kind == QCOW2_PART_ZEROES)
			fill(part, &cut);
		else if (!cut_rows(parts, part, &cut))
			return false;
	}
	return true;
}

/* Under O_DIRECT the ring takes what is aligned; the worker takes all. */
static bool is_aligned(const struct qcow2_part *part, uint32_t align)
{
	uint64_t bits = part->place;

	if (align <= 1)
		return true;
	for (uint32_t i = 0; i < part->n_iov; i++)
		bits |= (uintptr_t)part->iov[i].iov_base | part->iov[i].iov_len;
	return bits % align == 0;
}

static bool all_aligned(const struct qcow2_parts *parts, const struct block_image *image)
{
	for (uint32_t i = 0; i < parts->n; i++) {
		const struct qcow2_part *part = &parts->list[i];

		if (part->kind == QCOW2_PART_FILE && !is_aligned(part, image->file.align))
			return false;
		if (part->kind == QCOW2_PART_BACKING &&
		    !is_aligned(part, image->backing->file.align))
			return false;
	}
	return true;
}

bool qcow2_parts_find(struct qcow2_parts *parts, struct qcow2 *qcow2, const struct io_op *op,
		      uint64_t bytes, bool with_backing)
{
	const struct block_image *backing = with_backing ? qcow2->image.backing : NULL;

	return find(parts, qcow2, backing, op, bytes) && cut_all(parts, op) &&
	       all_aligned(parts, &qcow2->image);
}

int32_t qcow2_parts_result(const struct qcow2_parts *parts, bool *ret_short)
{
	uint64_t bytes = 0;

	*ret_short = false;
	for (uint32_t i = 0; i < parts->n; i++) {
		const struct qcow2_part *part = &parts->list[i];

		if (part->result == (int64_t)part->length) {
			bytes += part->length;
			continue;
		}
		/* What is behind the gap does not count. */
		*ret_short = part->result >= 0;
		if (part->result > 0)
			bytes += (uint32_t)part->result;
		return bytes ? (int32_t)bytes : part->result;
	}
	return (int32_t)bytes;
}
