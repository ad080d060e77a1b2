/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loop and its file I/O under the seals: both engines, owned by an I/O thread and by main. Each
 * kind of operation, an eventfd, a message and a deadline go through; what the lists refuse would
 * kill the process. A plain program for test-sealed.c's reason, 0 passed, 1 failed.
 */
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "base/io.h"
#include "base/loop.h"
#include "vmm/sandbox.h"
#include "vmm/seccomp/test-child.h"

#define BLOCK 4096

struct session {
	struct loop_source source;
	struct loop *loop;
	struct io *io;
	enum sandbox_thread kind;
	bool without_uring;
	int empty_fd;
	int event_fd;
	uint32_t file;
	uint32_t next; /* operation to submit */
	bool failed;
	bool posted;
	char out[BLOCK], in[BLOCK];
	struct iovec iov[2]; /* one for `out`, one for `in` */
};

static const enum io_kind script[] = {IO_WRITE,     IO_READ,    IO_FLUSH,
				      IO_ZERO_KEEP, IO_DISCARD, IO_ZERO};

static void submit_next(struct session *s)
{
	enum io_kind kind = script[s->next];
	struct io_op op = {
		.kind = kind,
		.n_iov = kind == IO_WRITE || kind == IO_READ ? 1 : 0,
		.iov = &s->iov[kind == IO_READ],
		.length = BLOCK,
	};

	if (io_submit(s->io, s->file, &op, &s->source, s->next) < 0) {
		s->failed = true;
		loop_stop(s->loop);
	}
}

static void operation_done(struct session *s, const struct loop_event *event)
{
	enum io_kind kind = script[s->next];
	int expected = kind == IO_WRITE || kind == IO_READ ? BLOCK : 0;

	/* A memfd's pages cannot be zeroed in place. */
	if (event->arg != s->next ||
	    (event->result != expected &&
	     !(event->result == -EOPNOTSUPP && (kind == IO_ZERO || kind == IO_ZERO_KEEP)))) {
		fprintf(stderr, "operation %u: %d\n", s->next, event->result);
		s->failed = true;
	}
	if (++s->next < ARRAY_SIZE(script))
		submit_next(s);
	else if (eventfd_write(s->event_fd, 1) < 0)
		s->failed = true;
}

/* Operations one after the other, then the eventfd, a message, a deadline. */
static void on_event(struct loop_source *source, const struct loop_event *event)
{
	struct session *s = container_of(source, struct session, source);

	switch (event->kind) {
	case LOOP_IO:
		operation_done(s, event);
		break;
	case LOOP_READY:
		loop_post(source, 7);
		break;
	case LOOP_POST:
		s->posted = event->arg == 7;
		loop_timer(source, event->now + 1000000);
		break;
	case LOOP_TIMER:
		loop_stop(s->loop);
		break;
	}
}

static void seal_worker(void *unused)
{
	(void)unused;
	if (sandbox_thread(SANDBOX_WORKER) < 0)
		abort();
}

static int run_sealed(struct session *s, int fd)
{
	CHECK(sandbox_thread(s->kind) == 0);
	CHECK(loop_enable(s->loop) == 0);
	CHECK(loop_add(s->loop, &s->source) == 0);
	CHECK(loop_watch_eventfd(&s->source, s->event_fd) == 0);
	CHECK(io_file_add(s->io, fd, &s->file) == 0);
	submit_next(s);
	CHECK(loop_run(s->loop) == 0);
	CHECK(!s->failed && s->posted && s->next == ARRAY_SIZE(script));
	CHECK(memcmp(s->in, s->out, BLOCK) == 0);
	io_file_remove(s->io, s->file);
	loop_unwatch(&s->source);
	loop_remove(&s->source);
	return 0;
}

static int memory_file = -1;

static void *io_thread(void *arg)
{
	return (void *)(intptr_t)run_sealed(arg, memory_file);
}

static int run_owned(struct session *s)
{
	pthread_t thread;
	void *result;

	if (s->kind == SANDBOX_MAIN)
		return run_sealed(s, memory_file);
	CHECK(pthread_create(&thread, NULL, io_thread, s) == 0);
	CHECK(sandbox_thread(SANDBOX_MAIN) == 0);
	CHECK(pthread_join(thread, &result) == 0);
	return result ? 1 : 0;
}

static int live(const void *arg)
{
	struct session s = *(const struct session *)arg;
	struct sandbox_options sandbox = {.empty_fd = s.empty_fd};
	struct loop_options options = {
		.without_uring = s.without_uring,
		.name = "sealed",
		.thread_start = seal_worker,
	};
	struct sandbox_status status;
	struct error err = ERROR_NULL;

	memset(s.out, 0x5a, sizeof(s.out));
	s.iov[0] = (struct iovec){s.out, BLOCK};
	s.iov[1] = (struct iovec){s.in, BLOCK};
	s.source.on_event = on_event;
	s.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	memory_file = memfd_create("test", MFD_CLOEXEC);
	CHECK(s.event_fd >= 0 && memory_file >= 0 && ftruncate(memory_file, 4L * BLOCK) == 0);
	CHECK(sandbox_enter(&sandbox, &status, &err) == 0);
	CHECK(loop_new(&s.loop, &options, &err) == 0);
	CHECK(s.without_uring == !loop_has_uring(s.loop));
	CHECK(io_new(&s.io, s.loop) == 0);
	CHECK(run_owned(&s) == 0);
	io_free(s.io);
	loop_free(s.loop);
	table_deinit(&sandbox_status_table, &status);
	return 0;
}

int main(void)
{
	struct session s = {.empty_fd = make_empty()};
	bool all = true;

	for (int engine = 0; engine < 2; engine++)
		for (int owner = 0; owner < 2; owner++) {
			s.without_uring = engine == 1;
			s.kind = owner ? SANDBOX_IO : SANDBOX_MAIN;
			int status = in_child(live, &s);

			if (!passed(status))
				fprintf(stderr, "%s on %s: wait status %#x\n",
					engine ? "poll" : "io_uring", owner ? "io" : "main",
					(unsigned int)status);
			all &= passed(status);
		}
	return all ? 0 : 1;
}
