/* SPDX-License-Identifier: Apache-2.0 */
/*
 * I/O on descriptors that are not to wait. Where the ring takes RWF_NOWAIT for them (sockets and
 * taps from Linux 6.4 or so on) it is asked to; O_NONBLOCK alone would leave a read with the
 * kernel, armed. Elsewhere a read or write is done where it is submitted, and its result posted to
 * the same loop, so that a source sees it as it would from the ring: later, and in order.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/uio.h>

#include "base/io.h"
#include "base/loop-engine.h"

/* Done in place in one turn, as the ring's room is for all its users. */
#define OPERATIONS_MAX 512

struct direct_file {
	int fd;        /* borrowed, -1 where free */
	bool in_place; /* the ring cannot */
	uint64_t dry;  /* turn in which a read found nothing, + 1 */
};

struct io_direct {
	struct io io;
	struct loop *loop; /* borrowed */
	struct io *ring;   /* owned; NULL on a loop without */
	struct direct_file files[LOOP_FILES_MAX];
	uint64_t turn; /* that `n_done` is of */
	uint32_t n_done;
	bool reserved; /* room for posts */
};

static struct io_direct *to_direct(struct io *io)
{
	return container_of(io, struct io_direct, io);
}

/* A write that cannot be: what is wrong with it is found after what is wrong with the flag. */
static bool takes_nowait(int fd)
{
	const struct iovec nothing = {(void *)1, 1};

	return pwritev2(fd, &nothing, 1, -1, RWF_NOWAIT) >= 0 || errno != EOPNOTSUPP;
}

static int take_file(struct io_direct *direct, int fd, uint32_t *ret_file)
{
	if (direct->ring)
		return io_file_add(direct->ring, fd, ret_file);
	for (uint32_t i = 0; i < LOOP_FILES_MAX; i++) {
		if (direct->files[i].fd >= 0)
			continue;
		*ret_file = i;
		return 0;
	}
	return -EMFILE;
}

/* What is done in place is posted, and a post must not need memory. */
static int reserve(struct io_direct *direct)
{
	int r = direct->reserved ? 0 : loop_reserve_posts(direct->loop, 2 * OPERATIONS_MAX);

	direct->reserved |= r >= 0;
	return r;
}

static void direct_file_remove(struct io *io, uint32_t file)
{
	struct io_direct *direct = to_direct(io);

	direct->files[file].fd = -1;
	if (direct->ring)
		io_file_remove(direct->ring, file);
}

static int direct_file_add(struct io *io, int fd, uint32_t *ret_file)
{
	struct io_direct *direct = to_direct(io);
	int r = take_file(direct, fd, ret_file);

	if (r < 0)
		return r;
	direct->files[*ret_file] = (struct direct_file){
		.fd = fd,
		.in_place = !direct->ring || !takes_nowait(fd),
	};
	r = direct->files[*ret_file].in_place ? reserve(direct) : 0;
	if (r < 0)
		direct_file_remove(io, *ret_file);
	return r;
}

/* What was posted in a turn is delivered in it or the next: posts of two turns are in memory. */
static bool take_place(struct io_direct *direct)
{
	const uint64_t turn = direct->loop->counters.turns;

	if (direct->turn != turn)
		direct->n_done = 0;
	direct->turn = turn;
	return direct->n_done++ < OPERATIONS_MAX;
}

/* The rest of a batch of reads need not ask again whether there is nothing. */
static int32_t perform(struct io_direct *direct, struct direct_file *file, const struct io_op *op)
{
	const uint64_t turn = direct->loop->counters.turns + 1;
	ssize_t n;

	if (op->kind == IO_READ && file->dry == turn)
		return -EAGAIN;
	direct->loop->counters.enters++;
	if (op->kind == IO_WRITE)
		n = writev(file->fd, op->iov, (int)op->n_iov);
	else
		n = readv(file->fd, op->iov, (int)op->n_iov);
	if (n >= 0)
		return (int32_t)n;
	if (op->kind == IO_READ && errno == EAGAIN)
		file->dry = turn;
	return -errno;
}

static int direct_submit(struct io *io, uint32_t file, const struct io_op *op,
			 struct loop_source *source, uint32_t arg)
{
	struct io_direct *direct = to_direct(io);
	struct io_op no_wait = *op;

	if (!io_op_is_valid(op) || (op->kind != IO_READ && op->kind != IO_WRITE))
		return -EINVAL;
	if (!direct->files[file].in_place) {
		no_wait.no_wait = true;
		return io_submit(direct->ring, file, &no_wait, source, arg);
	}
	if (!take_place(direct)) {
		loop_batch(source);
		return -EBUSY;
	}
	direct->loop->counters.operations++;
	loop_post_cookie(direct->loop, loop_cookie(source, LOOP_IO, arg),
			 perform(direct, &direct->files[file], op));
	return 0;
}

static struct io *direct_free(struct io *io)
{
	struct io_direct *direct = to_direct(io);

	io_free(direct->ring);
	free(direct);
	return NULL;
}

static const struct io_ops direct_ops = {
	.name = "direct",
	.file_add = direct_file_add,
	.file_remove = direct_file_remove,
	.submit = direct_submit,
	.free = direct_free,
};

int io_direct_new(struct io **ret_io, struct loop *loop)
{
	struct io_direct *direct = calloc(1, sizeof(*direct));
	int r = 0;

	if (!direct)
		return -ENOMEM;
	direct->io.ops = &direct_ops;
	direct->loop = loop;
	for (uint32_t i = 0; i < LOOP_FILES_MAX; i++)
		direct->files[i].fd = -1;
	if (loop_has_uring(loop))
		r = io_new(&direct->ring, loop);
	if (r < 0) {
		direct_free(&direct->io);
		return r;
	}
	*ret_io = &direct->io;
	return 0;
}

bool io_direct_is_in_place(struct io *io, uint32_t file)
{
	return to_direct(io)->files[file].in_place;
}
