/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loop's engine where io_uring is forbidden: poll(2) over the watched descriptors. The place in
 * the array is the source's slot; poll passes over the places not in use.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/loop-engine.h"

struct loop_poll {
	struct loop loop;
	struct pollfd fds[LOOP_SOURCES_MAX]; /* by slot; fd -1 while not watched */
	uint32_t n_fds;                      /* places filled in */
	int n_ready;
};

static struct loop_poll *to_poll(struct loop *loop)
{
	return container_of(loop, struct loop_poll, loop);
}

static int poll_enable(struct loop *loop _unused_)
{
	return 0;
}

static int poll_watch(struct loop *loop, struct loop_source *source)
{
	struct loop_poll *poll = to_poll(loop);

	while (poll->n_fds <= source->slot)
		poll->fds[poll->n_fds++].fd = -1;
	poll->fds[source->slot] = (struct pollfd){
		.fd = source->watch_fd,
		.events = source->watch_eventfd ? POLLIN : (short)source->watch_events,
	};
	source->watch_armed = true;
	return 0;
}

static void poll_unwatch(struct loop *loop, struct loop_source *source)
{
	to_poll(loop)->fds[source->slot] = (struct pollfd){.fd = -1};
}

static struct timespec time_left(const struct loop *loop _unused_, uint64_t deadline)
{
	struct timespec now;
	uint64_t at, left;

	clock_gettime(CLOCK_MONOTONIC, &now);
	at = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
	left = deadline > at ? deadline - at : 0;
	return (struct timespec){
		.tv_sec = (time_t)(left / 1000000000),
		.tv_nsec = (long)(left % 1000000000),
	};
}

static int poll_wait(struct loop *loop, uint64_t deadline)
{
	struct loop_poll *poll = to_poll(loop);
	struct timespec left;

	if (deadline != UINT64_MAX)
		left = time_left(loop, deadline);
	loop->counters.enters++;
	poll->n_ready = ppoll(poll->fds, poll->n_fds, deadline != UINT64_MAX ? &left : NULL, NULL);
	if (poll->n_ready < 0 && errno != EINTR)
		return -errno;
	return 0;
}

static void ready(struct loop_poll *poll, struct loop_source *source, short events)
{
	uint64_t count;

	/* One reader, and it is there to read: this cannot block. */
	if (source->watch_eventfd && (events & POLLIN)) {
		poll->loop.counters.enters++;
		(void)!read(source->watch_fd, &count, sizeof(count));
	}
	loop_deliver(&poll->loop, source, LOOP_READY, 0, events);
}

static void poll_dispatch(struct loop *loop)
{
	struct loop_poll *poll = to_poll(loop);

	/* A watch made or ended by a call has no events left here. */
	for (uint32_t i = 0; poll->n_ready > 0 && i < poll->n_fds; i++) {
		short events = poll->fds[i].revents;

		if (!events)
			continue;
		poll->fds[i].revents = 0;
		ready(poll, loop->slots[i].source, events);
	}
}

static void poll_free(struct loop *loop)
{
	loop_deinit(loop);
	free(to_poll(loop));
}

static const struct loop_engine poll_engine = {
	.name = "poll",
	.enable = poll_enable,
	.wait = poll_wait,
	.dispatch = poll_dispatch,
	.watch = poll_watch,
	.unwatch = poll_unwatch,
	.free = poll_free,
};

int loop_poll_new(struct loop **ret_loop, const struct loop_options *options)
{
	struct loop_poll *poll = calloc(1, sizeof(*poll));
	int r;

	if (!poll)
		return -ENOMEM;
	r = loop_init(&poll->loop, &poll_engine, options);
	if (r < 0) {
		poll_free(&poll->loop);
		return r;
	}
	*ret_loop = &poll->loop;
	return 0;
}
