/* SPDX-License-Identifier: Apache-2.0 */
/*
 * File I/O on the loop's own ring: an operation becomes one submission entry that goes to the
 * kernel with the loop's next turn. The cookie is all that is remembered here; nothing is
 * allocated.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>

#include "base/io.h"
#include "base/loop-engine.h"

/* What one read(2) or write(2) moves at most. */
#define TRANSFER_MAX 0x7ffff000U

struct io_on_ring {
	struct io io;
	struct loop *loop; /* borrowed */
};

static struct loop *to_loop(struct io *io)
{
	return container_of(io, struct io_on_ring, io)->loop;
}

static int ring_file_add(struct io *io, int fd, uint32_t *ret_file)
{
	return loop_uring_file_add(to_loop(io), fd, ret_file);
}

static void ring_file_remove(struct io *io, uint32_t file)
{
	loop_uring_file_remove(to_loop(io), file);
}

/* One buffer goes without the kernel copying an iovec. */
static void prepare_transfer(struct io_uring_sqe *sqe, int file, const struct io_op *op)
{
	const bool write = op->kind == IO_WRITE;
	const uint32_t size = (uint32_t)MIN(op->iov->iov_len, (size_t)TRANSFER_MAX);

	if (op->n_iov == 1 && write)
		io_uring_prep_write(sqe, file, op->iov->iov_base, size, op->offset);
	else if (op->n_iov == 1)
		io_uring_prep_read(sqe, file, op->iov->iov_base, size, op->offset);
	else if (write)
		io_uring_prep_writev(sqe, file, op->iov, op->n_iov, op->offset);
	else
		io_uring_prep_readv(sqe, file, op->iov, op->n_iov, op->offset);
	sqe->rw_flags = op->no_wait ? RWF_NOWAIT : 0;
}

static void prepare(struct io_uring_sqe *sqe, int file, const struct io_op *op)
{
	const uint64_t cookie = sqe->user_data;

	switch (op->kind) {
	case IO_READ:
	case IO_WRITE:
		prepare_transfer(sqe, file, op);
		break;
	case IO_FLUSH:
		io_uring_prep_fsync(sqe, file, IORING_FSYNC_DATASYNC);
		break;
	case IO_DISCARD:
	case IO_ZERO:
	case IO_ZERO_KEEP:
		io_uring_prep_fallocate(sqe, file, io_fallocate_mode(op->kind), (off_t)op->offset,
					(off_t)op->length);
		break;
	}
	sqe->flags |= IOSQE_FIXED_FILE;
	sqe->user_data = cookie;
}

static int ring_submit(struct io *io, uint32_t file, const struct io_op *op,
		       struct loop_source *source, uint32_t arg)
{
	struct loop *loop = to_loop(io);
	struct io_uring_sqe *sqe;

	if (!io_op_is_valid(op))
		return -EINVAL;
	if (!loop_uring_room(loop)) {
		loop_wait_for_room(source);
		return -EBUSY;
	}
	sqe = loop_uring_operation(loop, source, arg);
	if (!sqe) {
		/* Short of memory in the kernel: nothing need be under way that could end. */
		loop_batch(source);
		return -EBUSY;
	}
	prepare(sqe, (int)file, op);
	return 0;
}

static struct io *ring_free(struct io *io)
{
	free(container_of(io, struct io_on_ring, io));
	return NULL;
}

static const struct io_ops ring_ops = {
	.name = "io_uring",
	.file_add = ring_file_add,
	.file_remove = ring_file_remove,
	.submit = ring_submit,
	.free = ring_free,
};

static int ring_new(struct io **ret_io, struct loop *loop)
{
	struct io_on_ring *ring = calloc(1, sizeof(*ring));

	if (!ring)
		return -ENOMEM;
	ring->io.ops = &ring_ops;
	ring->loop = loop;
	*ret_io = &ring->io;
	return 0;
}

int io_new(struct io **ret_io, struct loop *loop)
{
	if (loop_has_uring(loop))
		return ring_new(ret_io, loop);
	return io_threads_new(ret_io, loop, IO_THREADS);
}
