/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asynchronous file I/O. An operation goes in with the source that waits for it and a 32-bit value;
 * out comes LOOP_IO on that source's loop, in any order. Iovecs and buffers belong to the kernel
 * from submission to completion: nobody frees or reuses them before, not even on a device reset.
 *
 * Engines behind one table: the loop's own ring; without io_uring, worker threads for files and
 * plain calls for what never waits; and a recorder that keeps every write and flush for crash
 * tests.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/loop.h"
#include "base/macros.h"

enum io_kind {
	IO_READ,
	IO_WRITE,
	IO_FLUSH,     /* fdatasync */
	IO_DISCARD,   /* the range may read as anything afterwards; space is given back */
	IO_ZERO,      /* the range reads as zeroes; space may be given back */
	IO_ZERO_KEEP, /* the range reads as zeroes and stays allocated */
};

struct io_op {
	enum io_kind kind;
	uint32_t n_iov;          /* READ, WRITE */
	const struct iovec *iov; /* borrowed until completion */
	uint64_t offset;
	uint64_t length; /* DISCARD, ZERO */
	bool no_wait;    /* READ, WRITE on the ring: RWF_NOWAIT; io_direct_new sees to it */
};

struct io;

/*
 * For the engines. A negative offset would mean "where the file stands" to the kernel.
 * The range of a DISCARD or ZERO that the file or device cannot do so ends in -EOPNOTSUPP.
 */
bool io_op_is_valid(const struct io_op *op);
int io_fallocate_mode(enum io_kind kind);

/*
 * One file on one loop. `file` numbers are given by io_file_add, which registers the descriptor
 * (borrowed, kept open by the caller until io_file_remove).
 */
struct io_ops {
	const char *name;
	int (*file_add)(struct io *io, int fd, uint32_t *ret_file);
	void (*file_remove)(struct io *io, uint32_t file);
	/*
	 * Queues one operation; it goes to the kernel with the loop's next turn. -EBUSY: too many
	 * under way; the source gets a LOOP_BATCH call once an operation, its own or another's, has
	 * ended. What the kernel answers (a short read, -EOPNOTSUPP) comes up unchanged.
	 */
	int (*submit)(struct io *io, uint32_t file, const struct io_op *op,
		      struct loop_source *source, uint32_t arg);
	struct io *(*free)(struct io *io);
};

struct io {
	const struct io_ops *ops;
};

/*
 * For descriptors that have no offset and are not to wait: taps, sockets, with O_NONBLOCK, which
 * the caller has made sure of. READ and WRITE only, `offset` 0; what cannot go on ends in -EAGAIN,
 * at the latest in the next turn, so nothing stays with the kernel. Operations of one file are
 * done, and end, in the order they were submitted. On the ring where the kernel can do so, else by
 * readv(2) and writev(2) in place, a system call each (io_direct_is_in_place). SIGPIPE is ignored
 * by the process.
 */
int io_direct_new(struct io **ret_io, struct loop *loop) __must_check;
bool io_direct_is_in_place(struct io *io, uint32_t file);

/* The engine that fits the loop: its ring, or IO_THREADS threads. Freed before the loop; freeing
 * the threads waits for what is under way. The threads start with the loop's `thread_start`. */
#define IO_THREADS 4
int io_new(struct io **ret_io, struct loop *loop) __must_check;
int io_threads_new(struct io **ret_io, struct loop *loop, uint32_t n_threads) __must_check;

static inline int io_file_add(struct io *io, int fd, uint32_t *ret_file)
{
	return io->ops->file_add(io, fd, ret_file);
}
static inline void io_file_remove(struct io *io, uint32_t file)
{
	io->ops->file_remove(io, file);
}
static inline int io_submit(struct io *io, uint32_t file, const struct io_op *op,
			    struct loop_source *source, uint32_t arg)
{
	return io->ops->submit(io, file, op, source, arg);
}
static inline struct io *io_free(struct io *io)
{
	return io ? io->ops->free(io) : NULL;
}
