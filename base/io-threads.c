/* SPDX-License-Identifier: Apache-2.0 */
/*
 * File I/O by worker threads, for a host without io_uring: a bounded queue in, ordinary blocking
 * calls, completions posted to the loop. The workers block every signal, begin with the loop's
 * `thread_start`, and touch nothing but the queue and the buffers of their operation.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/io.h"
#include "base/loop-engine.h"

#define REQUESTS_MAX 256
#define STACK_SIZE   (256 * 1024)

struct request {
	struct io_op op;
	int fd;
	union loop_cookie cookie;
};

struct io_threads {
	struct io io;
	struct loop *loop;       /* borrowed */
	int fds[LOOP_FILES_MAX]; /* owner of the loop; borrowed, -1 where free */
	void (*thread_start)(void *arg);
	void *thread_arg;
	pthread_t *threads; /* owned */
	uint32_t n_threads;

	pthread_mutex_t lock;
	pthread_cond_t work;
	struct request requests[REQUESTS_MAX]; /* lock; a ring */
	uint32_t first;                        /* lock */
	uint32_t n_queued;                     /* lock */
	uint32_t n_under_way;                  /* lock; queued or at a worker */
	bool stopping;                         /* lock */
};

static struct io_threads *to_threads(struct io *io)
{
	return container_of(io, struct io_threads, io);
}

static ssize_t perform(const struct request *request)
{
	const struct io_op *op = &request->op;

	switch (op->kind) {
	case IO_READ:
		return preadv(request->fd, op->iov, (int)op->n_iov, (off_t)op->offset);
	case IO_WRITE:
		return pwritev(request->fd, op->iov, (int)op->n_iov, (off_t)op->offset);
	case IO_FLUSH:
		return fdatasync(request->fd);
	case IO_DISCARD:
	case IO_ZERO:
	case IO_ZERO_KEEP:
		return fallocate(request->fd, io_fallocate_mode(op->kind), (off_t)op->offset,
				 (off_t)op->length);
	}
	return -1;
}

/* False when there is nothing left and the threads are to end. */
static bool take_request(struct io_threads *threads, struct request *ret_request)
{
	while (!threads->n_queued) {
		if (threads->stopping)
			return false;
		pthread_cond_wait(&threads->work, &threads->lock);
	}
	*ret_request = threads->requests[threads->first];
	threads->first = (threads->first + 1) % REQUESTS_MAX;
	threads->n_queued--;
	return true;
}

static void *work(void *arg)
{
	struct io_threads *threads = arg;
	struct request request;

	pthread_setname_np(pthread_self(), "io-worker");
	if (threads->thread_start)
		threads->thread_start(threads->thread_arg);
	pthread_mutex_lock(&threads->lock);
	while (take_request(threads, &request)) {
		ssize_t result;

		pthread_mutex_unlock(&threads->lock);
		result = perform(&request);
		if (result < 0)
			result = -errno;
		pthread_mutex_lock(&threads->lock);
		/* Before the post: who is told of this one may queue the next. */
		threads->n_under_way--;
		pthread_mutex_unlock(&threads->lock);
		loop_post_cookie(threads->loop, request.cookie, (int32_t)result);
		pthread_mutex_lock(&threads->lock);
	}
	pthread_mutex_unlock(&threads->lock);
	return NULL;
}

static int threads_file_add(struct io *io, int fd, uint32_t *ret_file)
{
	struct io_threads *threads = to_threads(io);

	for (uint32_t i = 0; i < LOOP_FILES_MAX; i++) {
		if (threads->fds[i] >= 0)
			continue;
		threads->fds[i] = fd;
		*ret_file = i;
		return 0;
	}
	return -EMFILE;
}

static void threads_file_remove(struct io *io, uint32_t file)
{
	to_threads(io)->fds[file] = -1;
}

static int threads_submit(struct io *io, uint32_t file, const struct io_op *op,
			  struct loop_source *source, uint32_t arg)
{
	struct io_threads *threads = to_threads(io);
	const struct request request = {
		.op = *op,
		.fd = threads->fds[file],
		.cookie = loop_cookie(source, LOOP_IO, arg),
	};
	bool room;

	if (!io_op_is_valid(op))
		return -EINVAL;
	pthread_mutex_lock(&threads->lock);
	room = threads->n_under_way < REQUESTS_MAX;
	if (room) {
		uint32_t place = (threads->first + threads->n_queued++) % REQUESTS_MAX;

		threads->requests[place] = request;
		threads->n_under_way++;
		pthread_cond_signal(&threads->work);
	}
	pthread_mutex_unlock(&threads->lock);
	if (!room) {
		loop_wait_for_room(source);
		return -EBUSY;
	}
	threads->loop->counters.operations++;
	return 0;
}

/* The buffers of what is queued are ours to the end: it is done, not dropped. */
static struct io *threads_free(struct io *io)
{
	struct io_threads *threads = to_threads(io);

	pthread_mutex_lock(&threads->lock);
	threads->stopping = true;
	pthread_cond_broadcast(&threads->work);
	pthread_mutex_unlock(&threads->lock);
	for (uint32_t i = 0; i < threads->n_threads; i++)
		pthread_join(threads->threads[i], NULL);
	pthread_cond_destroy(&threads->work);
	pthread_mutex_destroy(&threads->lock);
	free(threads->threads);
	free(threads);
	return NULL;
}

static const struct io_ops threads_ops = {
	.name = "threads",
	.file_add = threads_file_add,
	.file_remove = threads_file_remove,
	.submit = threads_submit,
	.free = threads_free,
};

static int start_threads(struct io_threads *threads, uint32_t n_threads)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	int r = 0;

	sigfillset(&all);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_SIZE);
	/* A new thread has its creator's mask from its first instruction on. */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (!r && threads->n_threads < n_threads) {
		r = pthread_create(&threads->threads[threads->n_threads], &attributes, work,
				   threads);
		if (!r)
			threads->n_threads++;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	return -r;
}

int io_threads_new(struct io **ret_io, struct loop *loop, uint32_t n_threads)
{
	struct io_threads *threads = calloc(1, sizeof(*threads));
	int r;

	if (!threads)
		return -ENOMEM;
	threads->io.ops = &threads_ops;
	threads->loop = loop;
	threads->thread_start = loop->options.thread_start;
	threads->thread_arg = loop->options.thread_arg;
	for (uint32_t i = 0; i < LOOP_FILES_MAX; i++)
		threads->fds[i] = -1;
	pthread_mutex_init(&threads->lock, NULL);
	pthread_cond_init(&threads->work, NULL);
	threads->threads = calloc(n_threads, sizeof(*threads->threads));
	r = threads->threads ? loop_reserve_posts(loop, REQUESTS_MAX) : -ENOMEM;
	if (r >= 0)
		r = start_threads(threads, n_threads);
	if (r < 0) {
		threads_free(&threads->io);
		return r;
	}
	*ret_io = &threads->io;
	return 0;
}
