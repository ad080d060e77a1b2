/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations on a qcow2 image by whoever may wait: the worker for the loops, tools for themselves.
 * What is mapped is transferred without the lock, as loops do it. All that changes a mapping is
 * done under it, data first, the entry last; so nobody sees a cluster before its bytes are there.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2.h"

#define IOV_ON_STACK 16
#define ZEROES_SIZE  (64u << 10)
#define ZEROES_ROW   16 /* of them written at once */

/* One operation's buffers and how far it has come. */
struct walk {
	struct qcow2 *qcow2;
	const struct iovec *iov;
	uint32_t n_iov;
	uint64_t skip; /* of the first buffer */
	uint64_t offset, length;
	struct iovec *part; /* room for n_iov + 2 */
	struct iovec on_stack[IOV_ON_STACK];
};

static int walk_init(struct walk *walk, struct qcow2 *qcow2, const struct io_op *op)
{
	walk->qcow2 = qcow2;
	walk->iov = op->iov;
	walk->n_iov = op->n_iov;
	walk->skip = 0;
	walk->offset = op->offset;
	walk->length = 0;
	for (uint32_t i = 0; i < op->n_iov; i++)
		walk->length += op->iov[i].iov_len;
	walk->part = walk->on_stack;
	if (op->n_iov + 2 > IOV_ON_STACK)
		walk->part = malloc((op->n_iov + UINT64_C(2)) * sizeof(*walk->part));
	return walk->part ? 0 : -ENOMEM;
}

static void walk_deinit(struct walk *walk)
{
	if (walk->part != walk->on_stack)
		free(walk->part);
}

/* The next `length` bytes of the buffers, in `part`, the first place of which stays free. */
static uint32_t walk_part(struct walk *walk, uint64_t length)
{
	const struct iovec *iov = walk->iov;
	uint64_t skip = walk->skip;
	uint32_t n = 0;

	for (; length; iov++) {
		uint64_t here = MIN(length, (uint64_t)iov->iov_len - skip);

		if (here)
			walk->part[++n] =
				(struct iovec){(uint8_t *)iov->iov_base + skip, (size_t)here};
		length -= here;
		skip = 0;
	}
	return n;
}

static void walk_advance(struct walk *walk, uint64_t n)
{
	walk->offset += n;
	walk->length -= n;
	walk->skip += n;
	while (walk->n_iov && walk->skip >= walk->iov->iov_len) {
		walk->skip -= walk->iov->iov_len;
		walk->iov++;
		walk->n_iov--;
	}
}

static void fill_zeroes(const struct iovec *iov, uint32_t n, uint64_t skip)
{
	for (uint32_t i = 0; i < n; i++) {
		if (skip >= iov[i].iov_len) {
			skip -= iov[i].iov_len;
			continue;
		}
		memset((uint8_t *)iov[i].iov_base + skip, 0, iov[i].iov_len - skip);
		skip = 0;
	}
}

static void fill_from(const struct iovec *iov, uint32_t n, const uint8_t *data)
{
	for (uint32_t i = 0; i < n; i++) {
		memcpy(iov[i].iov_base, data, iov[i].iov_len);
		data += iov[i].iov_len;
	}
}

/* Reading */

/* Bytes of a range that the backing image has; behind its end, and the image's own, are zeroes. */
static uint64_t backing_bytes(const struct qcow2 *qcow2, uint64_t offset, uint64_t length)
{
	const struct block_image *backing = qcow2->image.backing;
	uint64_t end = backing ? MIN(backing->size, qcow2->image.size) : 0;

	return offset < end ? MIN(length, end - offset) : 0;
}

static int read_backing(struct qcow2 *qcow2, const struct iovec *iov, uint32_t n_iov,
			uint64_t offset, uint64_t length)
{
	const uint64_t there = backing_bytes(qcow2, offset, length);
	struct iovec last = {0};
	uint64_t bytes = 0;
	uint32_t n = 0;
	int r;

	fill_zeroes(iov, n_iov, there);
	if (!there)
		return 0;
	while (bytes < there)
		bytes += iov[n++].iov_len;
	if (bytes == there)
		return block_do(
			qcow2->image.backing,
			&(struct io_op){.kind = IO_READ, .iov = iov, .n_iov = n, .offset = offset});
	/* The backing image ends within a buffer. */
	last = iov[n - 1];
	last.iov_len -= bytes - there;
	bytes -= iov[n - 1].iov_len;
	r = n == 1 ? 0
		   : block_do(qcow2->image.backing, &(struct io_op){.kind = IO_READ,
								    .iov = iov,
								    .n_iov = n - 1,
								    .offset = offset});
	if (r < 0)
		return r;
	return block_do(qcow2->image.backing, &(struct io_op){.kind = IO_READ,
							      .iov = &last,
							      .n_iov = 1,
							      .offset = offset + bytes});
}

static int unpack(struct qcow2 *qcow2, uint64_t entry, void *cluster)
{
	uint64_t size;
	const uint64_t place = qcow2_packed_place(qcow2, entry, &size);
	_cleanup_(freep) void *packed = malloc(size);
	int r = packed ? block_file_read(&qcow2->image.file, packed, size, place) : -ENOMEM;

	if (r < 0)
		return r;
	return compress_unpack(qcow2->header.compression, packed, size, cluster,
			       qcow2->cluster_size);
}

static int read_packed(struct qcow2 *qcow2, const struct iovec *iov, uint32_t n_iov,
		       uint64_t offset, uint64_t entry)
{
	_cleanup_(freep) uint8_t *cluster = malloc(qcow2->cluster_size);
	int r = cluster ? unpack(qcow2, entry, cluster) : -ENOMEM;

	if (r >= 0)
		fill_from(iov, n_iov, cluster + (offset & (qcow2->cluster_size - 1)));
	return r;
}

static int read_part(struct qcow2 *qcow2, const struct iovec *iov, uint32_t n_iov, uint64_t offset,
		     const struct qcow2_lookup *lookup)
{
	switch (lookup->kind) {
	case QCOW2_MAPPED:
	case QCOW2_SHARED:
		return block_file_readv(&qcow2->image.file, iov, n_iov, lookup->place);
	case QCOW2_PACKED:
		return read_packed(qcow2, iov, n_iov, offset, lookup->place);
	case QCOW2_ZEROES:
		fill_zeroes(iov, n_iov, 0);
		return 0;
	case QCOW2_ABSENT:
		return read_backing(qcow2, iov, n_iov, offset, lookup->length);
	default:
		return -EIO;
	}
}

/* What is there, with the slice loaded if need be. The caller is between enter and leave then. */
static int look_and_enter(struct qcow2 *qcow2, uint64_t offset, uint64_t length,
			  struct qcow2_lookup *ret_lookup, uint32_t *ret_epoch)
{
	int r = 0;

	*ret_epoch = qcow2_enter(qcow2, QCOW2_CHANNEL_WAITING);
	*ret_lookup = qcow2_lookup(qcow2, offset, length);
	if (ret_lookup->kind != QCOW2_MISSING)
		return 0;
	/* Not while waiting for the lock: who has it may wait for us. */
	qcow2_leave(qcow2, QCOW2_CHANNEL_WAITING, *ret_epoch);
	pthread_mutex_lock(&qcow2->lock);
	*ret_epoch = qcow2_enter(qcow2, QCOW2_CHANNEL_WAITING);
	r = qcow2_look(qcow2, offset, length, ret_lookup);
	pthread_mutex_unlock(&qcow2->lock);
	if (r < 0)
		qcow2_leave(qcow2, QCOW2_CHANNEL_WAITING, *ret_epoch);
	return r;
}

static int read_some(struct walk *walk)
{
	struct qcow2_lookup lookup;
	uint32_t epoch, n;
	int r = look_and_enter(walk->qcow2, walk->offset, walk->length, &lookup, &epoch);

	if (r < 0)
		return r;
	n = walk_part(walk, lookup.length);
	r = read_part(walk->qcow2, walk->part + 1, n, walk->offset, &lookup);
	qcow2_leave(walk->qcow2, QCOW2_CHANNEL_WAITING, epoch);
	walk_advance(walk, lookup.length);
	return r;
}

/* Writing */

/* What a cluster holds beside the bytes that are written: before them and after them. */
struct sides {
	uint64_t head, tail; /* bytes to be written before and after */
	uint8_t *data;       /* owned; head, then tail */
	uint8_t *tail_data;  /* in it */
};

static bool reads_as_zeroes(const struct qcow2 *qcow2, enum qcow2_lookup_kind kind, uint64_t offset,
			    uint64_t length)
{
	if (offset >= qcow2->image.size || !length || kind == QCOW2_ZEROES)
		return true;
	if (kind != QCOW2_ABSENT)
		return false;
	/* Opened without what is under it: anything may be there. */
	if (!qcow2->image.backing)
		return !qcow2->header.backing_name;
	return !backing_bytes(qcow2, offset, length);
}

/* What a range of one cluster read as before, as far as the image goes. `lookup` is of `at`. */
static int read_side(struct qcow2 *qcow2, uint8_t *data, uint64_t offset, uint64_t length,
		     uint64_t at, const struct qcow2_lookup *lookup)
{
	struct qcow2_lookup here = *lookup;
	const uint64_t size = qcow2->image.size;
	const uint64_t inside = offset < size ? MIN(length, size - offset) : 0;

	memset(data + inside, 0, length - inside);
	if (!inside || reads_as_zeroes(qcow2, lookup->kind, offset, inside)) {
		memset(data, 0, inside);
		return 0;
	}
	if (lookup->kind == QCOW2_ABSENT && !qcow2->image.backing)
		return -EIO;
	if (lookup->kind != QCOW2_PACKED)
		here.place += offset - at;
	here.length = inside;
	return read_part(qcow2, &(struct iovec){data, inside}, 1, offset, &here);
}

static bool is_zero(const uint8_t *data, uint64_t n)
{
	return !n || (!data[0] && !memcmp(data, data + 1, n - 1));
}

/* `lookup` is of `offset`; the clusters that `offset` and `length` touch are written whole but for
 * what reads as zeroes in a fresh one anyway. */
static int sides_read(struct qcow2 *qcow2, struct sides *sides, uint64_t offset, uint64_t length,
		      const struct qcow2_lookup *lookup, bool fresh)
{
	const uint64_t mask = qcow2->cluster_size - 1, end = offset + length;
	const uint64_t head = offset & mask, tail = -end & mask;
	uint64_t head_size;
	int r = 0;

	*sides = (struct sides){.head = head, .tail = tail};
	if (fresh && reads_as_zeroes(qcow2, lookup->kind, offset - head, head))
		sides->head = 0;
	if (fresh && reads_as_zeroes(qcow2, lookup->kind, end, tail))
		sides->tail = 0;
	if (!sides->head && !sides->tail)
		return 0;
	sides->data = aligned_alloc(4096, align_up(sides->head + sides->tail, 4096));
	if (!sides->data)
		return -ENOMEM;
	head_size = sides->head;
	if (sides->head)
		r = read_side(qcow2, sides->data, offset - head, head, offset, lookup);
	if (r >= 0 && sides->tail)
		r = read_side(qcow2, sides->data + head_size, end, tail, offset, lookup);
	/* A backing image has holes too. */
	sides->tail_data = sides->data + head_size;
	if (fresh && is_zero(sides->data, sides->head))
		sides->head = 0;
	if (fresh && is_zero(sides->tail_data, sides->tail))
		sides->tail = 0;
	return r;
}

/* One write of what was there, what is new, what was there. `place` is of `offset`. */
static int write_with_sides(struct walk *walk, uint64_t length, uint64_t place,
			    const struct qcow2_lookup *lookup, bool fresh)
{
	struct qcow2 *qcow2 = walk->qcow2;
	struct sides sides;
	struct iovec *iov = walk->part + 1;
	uint32_t n;
	int r = sides_read(qcow2, &sides, walk->offset, length, lookup, fresh);

	if (r >= 0) {
		n = walk_part(walk, length);
		if (sides.tail)
			iov[n++] = (struct iovec){sides.tail_data, sides.tail};
		if (sides.head) {
			*--iov = (struct iovec){sides.data, sides.head};
			n++;
		}
		r = block_file_writev(&qcow2->image.file, iov, n, place - sides.head);
	}
	free(sides.data);
	return r;
}

static uint64_t clusters_of(const struct qcow2 *qcow2, uint64_t offset, uint64_t length)
{
	return ((offset + length - 1) >> qcow2->cluster_bits) - (offset >> qcow2->cluster_bits) + 1;
}

int qcow2_give_up_range(struct qcow2 *qcow2, uint64_t offset, const struct qcow2_lookup *lookup)
{
	const uint64_t inside = offset & (qcow2->cluster_size - 1);
	uint64_t place = lookup->place, size;

	if (lookup->kind == QCOW2_ABSENT || !place)
		return 0;
	if (lookup->kind != QCOW2_PACKED)
		return qcow2_give_up(qcow2, place - inside,
				     (uint32_t)clusters_of(qcow2, offset, lookup->length));
	/* Whole sectors count for a compressed cluster. */
	place = qcow2_packed_place(qcow2, place, &size);
	return qcow2_give_up(qcow2, align_down(place, qcow2->cluster_size),
			     (uint32_t)clusters_of(qcow2, place, size));
}

static void entries_set(struct qcow2 *qcow2, struct qcow2_slice *slice, uint64_t offset,
			uint64_t length, uint64_t place, uint64_t flags)
{
	const uint64_t n = clusters_of(qcow2, offset, length);

	for (uint64_t i = 0; i < n; i++) {
		const uint64_t at = i << qcow2->cluster_bits;

		qcow2_entry_set(qcow2, slice, offset + at, (place ? place + at : 0) | flags);
	}
}

/* Clusters of their own for a range of one kind. How much of it there was room for in a row. */
static int write_new(struct walk *walk, struct qcow2_slice *slice, struct qcow2_lookup *lookup)
{
	struct qcow2 *qcow2 = walk->qcow2;
	const uint64_t inside = walk->offset & (qcow2->cluster_size - 1);
	uint32_t n = (uint32_t)clusters_of(qcow2, walk->offset, lookup->length);
	uint64_t place;
	bool fresh;
	int r = qcow2_allocate(qcow2, &n, &place, &fresh);

	if (r < 0)
		return r;
	lookup->length = MIN(lookup->length, ((uint64_t)n << qcow2->cluster_bits) - inside);
	r = write_with_sides(walk, lookup->length, place + inside, lookup, fresh);
	if (r >= 0)
		r = qcow2_give_up_range(qcow2, walk->offset, lookup);
	if (r < 0) {
		qcow2_unallocate(qcow2, place, n);
		return r;
	}
	entries_set(qcow2, slice, walk->offset, lookup->length, place, QCOW2_COPIED);
	return 0;
}

/* Into space that was kept for clusters that read as zeroes. What is there now must not be seen:
 * the flush before the entry's. */
static int write_kept(struct walk *walk, struct qcow2_slice *slice,
		      const struct qcow2_lookup *lookup)
{
	struct qcow2 *qcow2 = walk->qcow2;
	const uint64_t inside = walk->offset & (qcow2->cluster_size - 1);
	int r;

	qcow2_set_dirty(qcow2);
	qcow2->ordered = true;
	r = write_with_sides(walk, lookup->length, lookup->place, lookup, false);
	if (r >= 0)
		entries_set(qcow2, slice, walk->offset, lookup->length, lookup->place - inside,
			    QCOW2_COPIED);
	return r;
}

/* The first clusters of a range that nobody has but us, so that they need no copy. */
static int own_clusters(struct qcow2 *qcow2, uint64_t offset, const struct qcow2_lookup *lookup,
			uint64_t *ret_n)
{
	const uint64_t first = align_down(lookup->place, qcow2->cluster_size);
	const uint64_t n = clusters_of(qcow2, offset, lookup->length);
	uint64_t own = 0;

	for (; own < n; own++) {
		uint64_t count;
		int r = qcow2_refcount(qcow2, first + (own << qcow2->cluster_bits), &count);

		if (r < 0)
			return r;
		if (count != 1)
			break;
	}
	*ret_n = own;
	return 0;
}

/* Something has a place in the file but cannot be written there as it is. */
static int write_placed(struct walk *walk, struct qcow2_slice *slice, struct qcow2_lookup *lookup)
{
	struct qcow2 *qcow2 = walk->qcow2;
	const uint64_t inside = walk->offset & (qcow2->cluster_size - 1);
	uint64_t own;
	int r = own_clusters(qcow2, walk->offset, lookup, &own);

	if (r < 0)
		return r;
	if (!own) {
		/* One at a time: the next may be our own. */
		lookup->length = MIN(lookup->length, qcow2->cluster_size - inside);
		return write_new(walk, slice, lookup);
	}
	lookup->length = MIN(lookup->length, (own << qcow2->cluster_bits) - inside);
	if (lookup->kind == QCOW2_ZEROES)
		return write_kept(walk, slice, lookup);
	entries_set(qcow2, slice, walk->offset, lookup->length, lookup->place - inside,
		    QCOW2_COPIED);
	return block_file_writev(&qcow2->image.file, walk->part + 1,
				 walk_part(walk, lookup->length), lookup->place);
}

static int write_locked(struct walk *walk, uint64_t *ret_done)
{
	struct qcow2 *qcow2 = walk->qcow2;
	struct qcow2_lookup lookup;
	struct qcow2_slice *slice;
	int r = qcow2_slice_writable(qcow2, walk->offset, &slice);

	if (r >= 0)
		r = qcow2_look(qcow2, walk->offset, walk->length, &lookup);
	if (r < 0)
		return r;
	switch (lookup.kind) {
	case QCOW2_MAPPED:
		r = block_file_writev(&qcow2->image.file, walk->part + 1,
				      walk_part(walk, lookup.length), lookup.place);
		break;
	case QCOW2_SHARED:
		r = write_placed(walk, slice, &lookup);
		break;
	case QCOW2_ZEROES:
		r = lookup.place ? write_placed(walk, slice, &lookup)
				 : write_new(walk, slice, &lookup);
		break;
	default:
		r = write_new(walk, slice, &lookup);
		break;
	}
	*ret_done = lookup.length;
	return r;
}

static int write_some(struct walk *walk)
{
	struct qcow2 *qcow2 = walk->qcow2;
	const uint32_t epoch = qcow2_enter(qcow2, QCOW2_CHANNEL_WAITING);
	struct qcow2_lookup lookup = qcow2_lookup(qcow2, walk->offset, walk->length);
	uint64_t done = lookup.length;
	int r = 0;

	if (lookup.kind == QCOW2_MAPPED)
		r = block_file_writev(&qcow2->image.file, walk->part + 1,
				      walk_part(walk, lookup.length), lookup.place);
	qcow2_leave(qcow2, QCOW2_CHANNEL_WAITING, epoch);
	if (lookup.kind != QCOW2_MAPPED) {
		pthread_mutex_lock(&qcow2->lock);
		r = write_locked(walk, &done);
		if (r >= 0)
			r = qcow2_commit_if_due(qcow2);
		pthread_mutex_unlock(&qcow2->lock);
	}
	if (r >= 0)
		walk_advance(walk, done);
	return r;
}

static int run_transfer(struct qcow2 *qcow2, const struct io_op *op)
{
	struct walk walk;
	int r = walk_init(&walk, qcow2, op);

	if (r < 0)
		return r;
	walk_advance(&walk, 0);
	while (r >= 0 && walk.length)
		r = op->kind == IO_READ ? read_some(&walk) : write_some(&walk);
	walk_deinit(&walk);
	return r;
}

/* Zeroes and discards */

static uint8_t zeroes[ZEROES_SIZE] __attribute__((aligned(4096)));

/* As data. Under the lock. */
static int write_zeroes(struct qcow2 *qcow2, uint64_t offset, uint64_t length)
{
	struct iovec iov[ZEROES_ROW];
	struct walk walk;
	int r = 0;

	while (r >= 0 && length) {
		struct io_op op = {.iov = iov, .offset = offset};
		uint64_t done = 0;

		for (; op.n_iov < ZEROES_ROW && done < length; op.n_iov++) {
			iov[op.n_iov] =
				(struct iovec){zeroes, MIN(length - done, (uint64_t)ZEROES_SIZE)};
			done += iov[op.n_iov].iov_len;
		}
		r = walk_init(&walk, qcow2, &op);
		if (r < 0)
			return r;
		r = write_locked(&walk, &done);
		walk_deinit(&walk);
		offset += done;
		length -= done;
	}
	return r;
}

/* What becomes of whole clusters. */
enum change {
	CHANGE_NONE,   /* they are as they should be */
	CHANGE_ABSENT, /* no entry, no space */
	CHANGE_ZEROES, /* the zero flag, no space */
	CHANGE_KEEP,   /* the zero flag, space kept */
	CHANGE_WRITE,  /* zeroes are written: version 2 has no flag */
	CHANGE_FILE,   /* zeroes in the file where they are */
};

static enum change change_for_discard(const struct qcow2 *qcow2, const struct qcow2_lookup *lookup)
{
	if (lookup->kind == QCOW2_ABSENT || (lookup->kind == QCOW2_ZEROES && !lookup->place))
		return CHANGE_NONE;
	if (!qcow2->header.backing_name)
		return CHANGE_ABSENT;
	/* What is under it should not come to light. */
	return qcow2->header.version < 3 ? CHANGE_NONE : CHANGE_ZEROES;
}

static enum change change_for(const struct qcow2 *qcow2, enum io_kind kind, uint64_t offset,
			      const struct qcow2_lookup *lookup)
{
	const bool flag = qcow2->header.version >= 3;

	if (kind == IO_DISCARD)
		return change_for_discard(qcow2, lookup);
	if (reads_as_zeroes(qcow2, lookup->kind, offset, lookup->length))
		return kind == IO_ZERO && lookup->place ? CHANGE_ZEROES : CHANGE_NONE;
	if (kind == IO_ZERO_KEEP && lookup->kind == QCOW2_MAPPED)
		return flag ? CHANGE_KEEP : CHANGE_FILE;
	if (flag)
		return CHANGE_ZEROES;
	return qcow2->header.backing_name ? CHANGE_WRITE : CHANGE_ABSENT;
}

static int change(struct qcow2 *qcow2, enum change what, struct qcow2_slice *slice, uint64_t offset,
		  const struct qcow2_lookup *lookup)
{
	int r;

	switch (what) {
	case CHANGE_NONE:
		return 0;
	case CHANGE_WRITE:
		return write_zeroes(qcow2, offset, lookup->length);
	case CHANGE_FILE:
		return block_file_zero(&qcow2->image.file, lookup->place, lookup->length, true);
	case CHANGE_KEEP:
		entries_set(qcow2, slice, offset, lookup->length, lookup->place,
			    QCOW2_COPIED | QCOW2_ZERO);
		return 0;
	case CHANGE_ABSENT:
	case CHANGE_ZEROES:
		r = qcow2_give_up_range(qcow2, offset, lookup);
		if (r >= 0)
			entries_set(qcow2, slice, offset, lookup->length, 0,
				    what == CHANGE_ZEROES ? QCOW2_ZERO : 0);
		return r;
	}
	return -EINVAL;
}

/* Where the backing image ends, one kind ends. */
static int look_to_change(struct qcow2 *qcow2, uint64_t offset, uint64_t length,
			  struct qcow2_lookup *ret_lookup)
{
	uint64_t there;
	int r;

	*ret_lookup = (struct qcow2_lookup){.kind = QCOW2_ABSENT};
	ret_lookup->length = qcow2_no_table(qcow2, offset, length);
	if (!ret_lookup->length) {
		r = qcow2_look(qcow2, offset, length, ret_lookup);
		if (r < 0)
			return r;
	}
	there = backing_bytes(qcow2, offset, ret_lookup->length);
	if (ret_lookup->kind == QCOW2_ABSENT && there)
		ret_lookup->length = MIN(ret_lookup->length, align_up(there, qcow2->cluster_size));
	return 0;
}

/* Whole clusters from `offset` on, as many as are of one kind. */
static int change_some(struct qcow2 *qcow2, enum io_kind kind, uint64_t offset, uint64_t length,
		       uint64_t *ret_done)
{
	struct qcow2_lookup lookup;
	struct qcow2_slice *slice = NULL;
	enum change what;
	int r = look_to_change(qcow2, offset, length, &lookup);

	if (r < 0)
		return r;
	what = change_for(qcow2, kind, offset, &lookup);
	if (what != CHANGE_NONE) {
		r = qcow2_slice_writable(qcow2, offset, &slice);
		/* Now within one slice, and what looked shared may be our own. */
		if (r >= 0)
			r = look_to_change(qcow2, offset, length, &lookup);
		if (r < 0)
			return r;
		what = change_for(qcow2, kind, offset, &lookup);
	}
	r = change(qcow2, what, slice, offset, &lookup);
	*ret_done = lookup.length;
	return r;
}

static int change_clusters(struct qcow2 *qcow2, enum io_kind kind, uint64_t from, uint64_t to)
{
	int r = 0;

	while (r >= 0 && from < to) {
		uint64_t done = 0;

		r = change_some(qcow2, kind, from, to - from, &done);
		if (r >= 0)
			r = qcow2_commit_if_due(qcow2);
		from += done;
	}
	return r;
}

/* A part of a cluster. */
static int zero_part(struct qcow2 *qcow2, uint64_t from, uint64_t to)
{
	struct qcow2_lookup lookup;
	int r;

	if (from >= to)
		return 0;
	r = qcow2_look(qcow2, from, to - from, &lookup);
	if (r < 0 || reads_as_zeroes(qcow2, lookup.kind, from, to - from))
		return r;
	return write_zeroes(qcow2, from, to - from);
}

/* The image's last cluster is whole where the image ends. */
static int zero(struct qcow2 *qcow2, enum io_kind kind, uint64_t from, uint64_t to)
{
	const uint64_t size = qcow2->cluster_size;
	const uint64_t first = align_up(from, size);
	const uint64_t last = to == qcow2->image.size ? to : align_down(to, size);
	int r = 0;

	if (kind != IO_DISCARD)
		r = zero_part(qcow2, from, MIN(first, to));
	if (r >= 0 && first < last)
		r = change_clusters(qcow2, kind, first, last);
	if (r >= 0 && kind != IO_DISCARD && last >= first)
		r = zero_part(qcow2, last, to);
	return r;
}

/* Without a zero flag: nobody will read there. */
static int cut_some(struct qcow2 *qcow2, uint64_t offset, uint64_t length, uint64_t *ret_done)
{
	struct qcow2_lookup lookup;
	struct qcow2_slice *slice;
	int r;

	*ret_done = qcow2_no_table(qcow2, offset, length);
	if (*ret_done)
		return 0;
	r = qcow2_slice_writable(qcow2, offset, &slice);
	if (r >= 0)
		r = qcow2_look(qcow2, offset, length, &lookup);
	if (r < 0)
		return r;
	*ret_done = lookup.length;
	return lookup.kind == QCOW2_ABSENT ? 0
					   : change(qcow2, CHANGE_ABSENT, slice, offset, &lookup);
}

int qcow2_clear(struct qcow2 *qcow2, uint64_t from, uint64_t to, bool discard)
{
	int r = 0;

	if (!discard)
		return zero(qcow2, IO_ZERO, from, to);
	from = align_up(from, qcow2->cluster_size);
	while (r >= 0 && from < to) {
		uint64_t done = 0;

		r = cut_some(qcow2, from, to - from, &done);
		if (r >= 0)
			r = qcow2_commit_if_due(qcow2);
		from += done;
	}
	return r;
}

/* A long range leaves others a chance in between. */
static int run_range(struct qcow2 *qcow2, const struct io_op *op)
{
	const uint64_t step = qcow2->cluster_size << qcow2->slice_bits;
	const uint64_t end = op->offset + op->length;
	uint64_t from = op->offset;
	int r = 0;

	if (op->kind == IO_DISCARD && !qcow2->image.can_discard)
		return 0;
	while (r >= 0 && from < end) {
		uint64_t to, none;

		pthread_mutex_lock(&qcow2->lock);
		none = qcow2_no_table(qcow2, from, end - from);
		to = MIN(end, align_down(from, step) + step);
		if (none > to - from &&
		    (op->kind == IO_DISCARD || reads_as_zeroes(qcow2, QCOW2_ABSENT, from, none)))
			to = from + none;
		else
			r = zero(qcow2, op->kind, from, to);
		pthread_mutex_unlock(&qcow2->lock);
		from = to;
	}
	return r;
}

static int run_flush(struct qcow2 *qcow2)
{
	int r;

	if (qcow2->image.readonly)
		return 0;
	pthread_mutex_lock(&qcow2->lock);
	r = qcow2_commit(qcow2);
	/* What was lost before is told once. */
	if (r >= 0 && qcow2->sync_failed)
		r = -EIO;
	qcow2->sync_failed = false;
	pthread_mutex_unlock(&qcow2->lock);
	return r;
}

int qcow2_run(struct block_image *image, const struct io_op *op)
{
	struct qcow2 *qcow2 = to_qcow2(image);

	if (op->kind != IO_READ && op->kind != IO_FLUSH && atomic_load(&qcow2->corrupt))
		return -EIO;
	switch (op->kind) {
	case IO_READ:
	case IO_WRITE:
		return run_transfer(qcow2, op);
	case IO_FLUSH:
		return run_flush(qcow2);
	case IO_DISCARD:
	case IO_ZERO:
	case IO_ZERO_KEEP:
		return run_range(qcow2, op);
	}
	return -EINVAL;
}
