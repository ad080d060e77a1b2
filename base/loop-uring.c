/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loop's io_uring engine. The ring is created disabled, gets a sparse table of files and a list
 * of the few operations it will ever do, all of them on files of that table, and is enabled by its
 * owner. A turn enters the kernel at most once: what was queued while dispatching goes in with the
 * next wait. Only a full submission queue is submitted in place.
 */
#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "base/atomic.h"
#include "base/loop-engine.h"

#define DEPTH_DEFAULT 128
#define DEPTH_MAX     4096
/* Completions the ring holds, per submission entry. Half are for I/O, the rest for watches. */
#define COMPLETIONS_PER_ENTRY 8
/* Kernel threads for what would block: flushes, discards, file systems without asynchrony. */
#define WORKERS_FILES 8
#define WORKERS_OTHER 1

struct loop_uring {
	struct loop loop;
	struct io_uring ring;
	uint64_t files[LOOP_FILES_MAX / 64]; /* places in use */
	uint32_t n_files;
	uint32_t n_under_way;
	uint32_t n_under_way_max;
	bool has_ring;
	bool single_issuer;
	bool enabled;
	bool unarmed; /* a watch could not be armed for want of an entry */
};

static struct loop_uring *to_uring(const struct loop *loop)
{
	return container_of((struct loop *)loop, struct loop_uring, loop);
}

/* -EINTR, -ETIME: the wait has ended. -EAGAIN, -EBUSY: the kernel takes no more until completions
 * have been read; what was not taken stays queued. */
static int entered(struct loop_uring *uring, int r)
{
	uring->loop.counters.enters++;
	return r == -EINTR || r == -ETIME || r == -EAGAIN || r == -EBUSY ? 0 : MIN(r, 0);
}

static struct io_uring_sqe *take_entry(struct loop_uring *uring)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);

	if (sqe || !uring->enabled)
		return sqe;
	if (entered(uring, io_uring_submit(&uring->ring)) < 0)
		return NULL;
	return io_uring_get_sqe(&uring->ring);
}

static void arm(struct loop_uring *uring, struct loop_source *source)
{
	struct io_uring_sqe *sqe = take_entry(uring);

	source->watch_armed = sqe;
	if (!sqe) {
		uring->unarmed = true;
		return;
	}
	if (source->watch_eventfd)
		io_uring_prep_poll_multishot(sqe, source->file_index, POLLIN);
	else
		io_uring_prep_poll_add(sqe, source->file_index, source->watch_events);
	sqe->flags |= IOSQE_FIXED_FILE;
	sqe->user_data = loop_cookie(source, LOOP_READY, source->watch_serial).u64;
}

static void arm_rest(struct loop_uring *uring)
{
	struct loop *loop = &uring->loop;

	uring->unarmed = false;
	for (uint32_t i = 0; i < loop->n_slots; i++) {
		struct loop_source *source = loop->slots[i].source;

		if (source && source->watching && !source->watch_armed)
			arm(uring, source);
	}
}

static void cancel(struct loop_uring *uring, union loop_cookie cookie)
{
	struct io_uring_sqe *sqe = take_entry(uring);

	/* Not cancelled, a poll is found stale at its next completion, and cancelled then. */
	if (!sqe)
		return;
	io_uring_prep_cancel64(sqe, cookie.u64, 0);
	sqe->flags |= IOSQE_FIXED_FILE;
	sqe->user_data = (union loop_cookie){.kind = LOOP_COOKIE_CANCEL}.u64;
}

int loop_uring_file_add(struct loop *loop, int fd, uint32_t *ret_index)
{
	struct loop_uring *uring = to_uring(loop);

	for (uint32_t i = 0; i < uring->n_files; i++) {
		int r;

		if (uring->files[i / 64] & (1ULL << i % 64))
			continue;
		r = io_uring_register_files_update(&uring->ring, i, &fd, 1);
		if (r < 0)
			return r;
		uring->files[i / 64] |= 1ULL << i % 64;
		*ret_index = i;
		return 0;
	}
	return -EMFILE;
}

void loop_uring_file_remove(struct loop *loop, uint32_t index)
{
	struct loop_uring *uring = to_uring(loop);
	int none = -1;

	/* Nothing to do about a failure: the file stays open a little longer. */
	(void)io_uring_register_files_update(&uring->ring, index, &none, 1);
	uring->files[index / 64] &= ~(1ULL << index % 64);
}

static int uring_watch(struct loop *loop, struct loop_source *source)
{
	uint32_t index;
	int r;

	r = loop_uring_file_add(loop, source->watch_fd, &index);
	if (r < 0)
		return r;
	source->file_index = (int)index;
	arm(to_uring(loop), source);
	return 0;
}

static void uring_unwatch(struct loop *loop, struct loop_source *source)
{
	if (source->watch_armed)
		cancel(to_uring(loop), loop_cookie(source, LOOP_READY, source->watch_serial));
	loop_uring_file_remove(loop, (uint32_t)source->file_index);
}

bool loop_uring_room(const struct loop *loop)
{
	const struct loop_uring *uring = to_uring(loop);

	return uring->n_under_way < uring->n_under_way_max;
}

struct io_uring_sqe *loop_uring_operation(struct loop *loop, struct loop_source *source,
					  uint32_t arg)
{
	struct loop_uring *uring = to_uring(loop);
	struct io_uring_sqe *sqe = take_entry(uring);

	if (!sqe)
		return NULL;
	sqe->user_data = loop_cookie(source, LOOP_IO, arg).u64;
	uring->n_under_way++;
	loop->counters.operations++;
	return sqe;
}

/*
 * The end of a multishot poll may hide a signal, so it is one. Every completion of this turn came
 * before the first call, which therefore answers them all (kernels before 6.1 make one a signal).
 */
static void eventfd_ready(struct loop_uring *uring, struct loop_source *source, int32_t result,
			  bool more)
{
	const uint32_t turn = (uint32_t)uring->loop.counters.turns;

	if (!more)
		arm(uring, source);
	if (source->watch_turn == turn)
		return;
	source->watch_turn = turn;
	loop_deliver(&uring->loop, source, LOOP_READY, 0, result);
}

static void ready(struct loop_uring *uring, union loop_cookie cookie, int32_t result, bool more)
{
	struct loop_source *source = loop_cookie_source(&uring->loop, cookie);

	if (result < 0)
		result = POLLERR;
	if (!source) {
		if (more)
			cancel(uring, cookie);
		return;
	}
	if (source->watch_eventfd) {
		eventfd_ready(uring, source, result, more);
		return;
	}
	source->watch_armed = false;
	loop_deliver(&uring->loop, source, LOOP_READY, 0, result);
	/* Level-triggered: a new poll answers at once if something is left. */
	source = loop_cookie_source(&uring->loop, cookie);
	if (source && !source->watch_armed)
		arm(uring, source);
}

static void complete(struct loop_uring *uring, union loop_cookie cookie, int32_t result,
		     uint32_t flags)
{
	switch (cookie.kind) {
	case LOOP_IO:
		uring->n_under_way--;
		loop_deliver_io(&uring->loop, cookie, result);
		break;
	case LOOP_READY:
		ready(uring, cookie, result, flags & IORING_CQE_F_MORE);
		break;
	default:
		break;
	}
}

static void uring_dispatch(struct loop *loop)
{
	struct loop_uring *uring = to_uring(loop);
	const struct io_uring_cq *cq = &uring->ring.cq;
	uint32_t n = io_uring_cq_ready(&uring->ring);

	for (; n; n--) {
		uint32_t place = *cq->khead & *cq->kring_mask;
		const struct io_uring_cqe cqe = cq->cqes[place];

		/* Read, so its place is free: what is submitted below may complete into it. */
		io_uring_cq_advance(&uring->ring, 1);
		complete(uring, (union loop_cookie){.u64 = cqe.user_data}, cqe.res, cqe.flags);
	}
}

/* Completions the kernel keeps back until it is entered. */
static bool kernel_holds(const struct io_uring *ring)
{
	return IO_URING_READ_ONCE(*ring->sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

/* The kernel counts a timeout from its entry, hence the clock once more, if there is a deadline. */
static struct __kernel_timespec time_left(uint64_t deadline)
{
	struct timespec now;
	uint64_t at, left;

	clock_gettime(CLOCK_MONOTONIC, &now);
	at = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
	left = deadline > at ? deadline - at : 0;
	return (struct __kernel_timespec){
		.tv_sec = (int64_t)(left / 1000000000),
		.tv_nsec = (long long)(left % 1000000000),
	};
}

static int uring_wait(struct loop *loop, uint64_t deadline)
{
	struct loop_uring *uring = to_uring(loop);
	struct io_uring *ring = &uring->ring;
	struct __kernel_timespec left;
	struct io_uring_cqe *cqe;

	if (uring->unarmed)
		arm_rest(uring);
	if (!deadline || io_uring_cq_ready(ring)) {
		if (!io_uring_sq_ready(ring) && (io_uring_cq_ready(ring) || !kernel_holds(ring)))
			return 0;
		return entered(uring, io_uring_submit_and_get_events(ring));
	}
	if (deadline != UINT64_MAX)
		left = time_left(deadline);
	return entered(uring, io_uring_submit_and_wait_timeout(
				      ring, &cqe, 1, deadline != UINT64_MAX ? &left : NULL, NULL));
}

static int uring_enable(struct loop *loop)
{
	struct loop_uring *uring = to_uring(loop);
	uint32_t workers[2] = {WORKERS_FILES, WORKERS_OTHER};
	int r;

	/* Both only make things cheaper. */
	if (uring->single_issuer)
		(void)io_uring_register_ring_fd(&uring->ring);
	(void)io_uring_register_iowq_max_workers(&uring->ring, workers);
	r = io_uring_register((uint32_t)uring->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
	if (r < 0)
		return r;
	uring->enabled = true;
	return 0;
}

static void uring_free(struct loop *loop)
{
	struct loop_uring *uring = to_uring(loop);
	const uint64_t owner = load_acquire(&loop->owner);

	/* The registered descriptor is a place in its owner's own table: another thread would give
	 * up a ring of its own by that number. It ends with the owner. */
	if (owner != (uint64_t)pthread_self()) {
		uring->ring.int_flags = 0;
		uring->ring.enter_ring_fd = uring->ring.ring_fd;
	}
	if (uring->has_ring)
		io_uring_queue_exit(&uring->ring);
	loop_deinit(loop);
	free(uring);
}

/* Newest first; what an older kernel does not know it refuses with -EINVAL. */
static const uint32_t setup_flags[] = {
	IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN |
		IORING_SETUP_TASKRUN_FLAG,
	IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
	IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
};

static int set_up(struct loop_uring *uring, uint32_t depth)
{
	int r = -EINVAL;

	for (uint32_t i = 0; r == -EINVAL && i < ARRAY_SIZE(setup_flags); i++) {
		struct io_uring_params params = {
			.flags = setup_flags[i] | IORING_SETUP_R_DISABLED | IORING_SETUP_CLAMP |
				 IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE,
			.cq_entries = depth * COMPLETIONS_PER_ENTRY,
		};

		r = io_uring_queue_init_params(depth, &uring->ring, &params);
		if (r < 0)
			continue;
		uring->single_issuer = params.flags & IORING_SETUP_SINGLE_ISSUER;
		uring->n_under_way_max = params.cq_entries / 2;
		/* Without, a timeout would be an operation, and a lost completion lost. */
		if (!(params.features & IORING_FEAT_EXT_ARG) ||
		    !(params.features & IORING_FEAT_NODROP))
			r = -ENOSYS;
		if (r < 0)
			io_uring_queue_exit(&uring->ring);
		uring->has_ring = r >= 0;
	}
	return r;
}

static int restrict_ring(struct loop_uring *uring)
{
	static const uint8_t registers[] = {
		IORING_REGISTER_FILES_UPDATE,
		IORING_UNREGISTER_RING_FDS,
	};
	static const uint8_t operations[] = {
		IORING_OP_READ,  IORING_OP_WRITE,     IORING_OP_READV,    IORING_OP_WRITEV,
		IORING_OP_FSYNC, IORING_OP_FALLOCATE, IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL,
	};
	struct io_uring_restriction list[ARRAY_SIZE(registers) + ARRAY_SIZE(operations) + 1] = {
		{
			.opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED,
			.sqe_flags = IOSQE_FIXED_FILE,
		},
	};
	uint32_t n = 1;

	for (uint32_t i = 0; i < ARRAY_SIZE(registers); i++, n++) {
		list[n].opcode = IORING_RESTRICTION_REGISTER_OP;
		list[n].register_op = registers[i];
	}
	for (uint32_t i = 0; i < ARRAY_SIZE(operations); i++, n++) {
		list[n].opcode = IORING_RESTRICTION_SQE_OP;
		list[n].sqe_op = operations[i];
	}
	return io_uring_register((uint32_t)uring->ring.ring_fd, IORING_REGISTER_RESTRICTIONS, list,
				 n);
}

static int register_table(struct loop_uring *uring)
{
	struct rlimit limit;
	int r;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return -errno;
	uring->n_files = (uint32_t)MIN(limit.rlim_cur, (rlim_t)LOOP_FILES_MAX);
	r = io_uring_register_files_sparse(&uring->ring, uring->n_files);
	return r < 0 ? r : restrict_ring(uring);
}

static const struct loop_engine uring_engine = {
	.name = "io_uring",
	.enable = uring_enable,
	.wait = uring_wait,
	.dispatch = uring_dispatch,
	.watch = uring_watch,
	.unwatch = uring_unwatch,
	.free = uring_free,
};

int loop_uring_new(struct loop **ret_loop, const struct loop_options *options)
{
	uint32_t depth = MIN(options->depth ?: DEPTH_DEFAULT, (uint32_t)DEPTH_MAX);
	struct loop_uring *uring;
	int r;

	assert(!(depth & (depth - 1)));
	uring = calloc(1, sizeof(*uring));
	if (!uring)
		return -ENOMEM;
	r = loop_init(&uring->loop, &uring_engine, options);
	if (r >= 0)
		r = set_up(uring, depth);
	if (r >= 0)
		r = register_table(uring);
	if (r < 0) {
		uring_free(&uring->loop);
		return r;
	}
	*ret_loop = &uring->loop;
	return 0;
}
