/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A turn of the loop, whatever engine is under it: submit and wait, read the clock, deliver what
 * came, then deadlines, posts and the batch list. Here too: the slots that tell a completion's
 * source, and a source that was given up from the one that took its place.
 */
#include "base/loop.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>

#include "base/atomic.h"
#include "base/error.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/loop-engine.h"

static uint64_t clock_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

void loop_deliver(struct loop *loop, struct loop_source *source, enum loop_event_kind kind,
		  uint32_t arg, int32_t result)
{
	const struct loop_event event = {
		.kind = kind,
		.arg = arg,
		.result = result,
		.now = loop->now,
	};

	source->on_event(source, &event);
}

union loop_cookie loop_cookie(const struct loop_source *source, uint8_t kind, uint32_t arg)
{
	return (union loop_cookie){
		.arg = arg,
		.slot = (uint16_t)source->slot,
		.generation = source->generation,
		.kind = kind,
	};
}

struct loop_source *loop_cookie_source(struct loop *loop, union loop_cookie cookie)
{
	const struct loop_slot *slot = &loop->slots[cookie.slot % LOOP_SOURCES_MAX];
	struct loop_source *source = slot->source;

	if (!source || slot->generation != cookie.generation)
		return NULL;
	if (cookie.kind == LOOP_READY && (!source->watching || source->watch_serial != cookie.arg))
		return NULL;
	return source;
}

void loop_deliver_io(struct loop *loop, union loop_cookie cookie, int32_t result)
{
	struct loop_source *source = loop_cookie_source(loop, cookie);

	loop->io_ended = true;
	if (source)
		loop_deliver(loop, source, LOOP_IO, cookie.arg, result);
}

/* Called at the end of a turn: what was asked for during the round waits for the next one. */
static void run_batch(struct loop *loop)
{
	loop->batched = take_ptr(loop->batch);
	while (loop->batched) {
		struct loop_source *source = loop->batched;

		loop->batched = source->next_batch;
		source->in_batch = false;
		loop_deliver(loop, source, LOOP_POST, LOOP_BATCH, 0);
	}
}

void loop_batch(struct loop_source *source)
{
	struct loop *loop = source->loop;

	if (source->in_batch)
		return;
	source->in_batch = true;
	source->next_batch = loop->batch;
	loop->batch = source;
}

static bool unlink_batch(struct loop_source **list, struct loop_source *source)
{
	for (; *list; list = &(*list)->next_batch) {
		if (*list == source) {
			*list = source->next_batch;
			return true;
		}
	}
	return false;
}

void loop_wait_for_room(struct loop_source *source)
{
	if (source->waits_for_room)
		return;
	source->waits_for_room = true;
	source->loop->n_waiting++;
}

/* Rare, so a scan: all who wait try again, and who finds no room waits again. */
static void call_waiting(struct loop *loop)
{
	for (uint32_t i = 0; i < loop->n_slots && loop->n_waiting; i++) {
		struct loop_source *source = loop->slots[i].source;

		if (!source || !source->waits_for_room)
			continue;
		source->waits_for_room = false;
		loop->n_waiting--;
		loop_batch(source);
	}
}

int loop_turn(struct loop *loop, uint64_t deadline)
{
	int r;

	deadline = MIN(deadline, loop_next_deadline(loop));
	if (loop->batch || load_acquire(&loop->posted) || load_acquire(&loop->stopping))
		deadline = 0;
	loop->counters.turns++;
	r = loop->engine->wait(loop, deadline);
	if (r < 0)
		return r;
	loop->now = clock_now();
	loop->io_ended = false;
	loop->engine->dispatch(loop);
	loop_fire_timers(loop);
	loop_drain_posts(loop);
	if (loop->io_ended && loop->n_waiting)
		call_waiting(loop);
	run_batch(loop);
	return 0;
}

int loop_run(struct loop *loop)
{
	while (!load_acquire(&loop->stopping)) {
		int r = loop_turn(loop, UINT64_MAX);

		if (r < 0)
			return r;
	}
	store_release(&loop->stopping, false);
	return 0;
}

/*
 * A slot rests behind this many others before it is used again, so that its generation, eight bits,
 * does not come round while an old completion may still be under way.
 */
#define SLOTS_RESTING 64

static int take_slot(struct loop *loop)
{
	int slot;

	if (loop->n_slots < LOOP_SOURCES_MAX && loop->n_free < SLOTS_RESTING)
		return (int)loop->n_slots++;
	if (!loop->n_free)
		return -ENOSPC;
	slot = loop->free_first;
	loop->free_first = loop->slots[slot].next_free;
	loop->n_free--;
	return slot;
}

static void give_slot(struct loop *loop, uint16_t slot)
{
	loop->slots[slot].source = NULL;
	loop->slots[slot].generation++;
	if (loop->n_free++)
		loop->slots[loop->free_last].next_free = slot;
	else
		loop->free_first = slot;
	loop->free_last = slot;
}

int loop_add(struct loop *loop, struct loop_source *source)
{
	int slot = take_slot(loop);

	if (slot < 0)
		return slot;
	assert(!source->loop && source->on_event);
	source->loop = loop;
	source->slot = (uint32_t)slot;
	source->generation = loop->slots[slot].generation;
	source->watching = source->watch_armed = source->timer_armed = false;
	source->in_batch = source->waits_for_room = false;
	source->file_index = -1;
	source->watch_fd = -1;
	loop->slots[slot].source = source;
	loop->n_sources++;
	return 0;
}

void loop_remove(struct loop_source *source)
{
	struct loop *loop = source->loop;

	if (!loop)
		return;
	loop_unwatch(source);
	loop_timer(source, UINT64_MAX);
	if (source->in_batch && !unlink_batch(&loop->batch, source))
		unlink_batch(&loop->batched, source);
	if (source->waits_for_room)
		loop->n_waiting--;
	source->in_batch = source->waits_for_room = false;
	give_slot(loop, (uint16_t)source->slot);
	loop->n_sources--;
	source->loop = NULL;
}

static int watch(struct loop_source *source, int fd, uint32_t events, bool eventfd)
{
	struct loop *loop = source->loop;
	int r;

	assert(!source->watching);
	source->watch_fd = fd;
	source->watch_events = events;
	source->watch_eventfd = eventfd;
	source->watch_serial = loop->next_serial++;
	/* Not this turn: a new watch may be of another eventfd. */
	source->watch_turn = (uint32_t)loop->counters.turns - 1;
	source->watching = true;
	r = loop->engine->watch(loop, source);
	if (r < 0)
		source->watching = false;
	return r;
}

int loop_watch(struct loop_source *source, int fd, uint32_t events)
{
	return watch(source, fd, events, false);
}

int loop_watch_eventfd(struct loop_source *source, int fd)
{
	return watch(source, fd, 0, true);
}

void loop_unwatch(struct loop_source *source)
{
	if (!source->watching)
		return;
	source->loop->engine->unwatch(source->loop, source);
	source->watching = source->watch_armed = false;
	source->watch_fd = source->file_index = -1;
}

bool loop_has_uring(const struct loop *loop)
{
	return !strcmp(loop->engine->name, "io_uring");
}

uint64_t loop_now(const struct loop *loop)
{
	return loop->now;
}

struct loop_counters loop_counters(const struct loop *loop)
{
	return loop->counters;
}

int loop_enable(struct loop *loop)
{
	int r = loop->engine->enable(loop);

	if (r < 0)
		return r;
	store_release(&loop->owner, (uint64_t)pthread_self());
	return 0;
}

/* The wait has ended, which is all a wake is for. */
static void on_wake(struct loop_source *source _unused_, const struct loop_event *event _unused_)
{
}

int loop_init(struct loop *loop, const struct loop_engine *engine,
	      const struct loop_options *options)
{
	loop->engine = engine;
	loop->options = *options;
	loop->now = clock_now();
	pthread_mutex_init(&loop->lock, NULL);
	pthread_cond_init(&loop->drained, NULL);
	loop->wake.on_event = on_wake;
	loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (loop->wake_fd < 0)
		return -errno;
	return loop_reserve_posts(loop, 64);
}

void loop_deinit(struct loop *loop)
{
	free(loop->filling.posts);
	free(loop->draining.posts);
	loop->wake_fd = fd_close(loop->wake_fd);
	pthread_cond_destroy(&loop->drained);
	pthread_mutex_destroy(&loop->lock);
}

static int start(struct loop *loop)
{
	int r = loop_add(loop, &loop->wake);

	return r < 0 ? r : loop_watch_eventfd(&loop->wake, loop->wake_fd);
}

int loop_new(struct loop **ret_loop, const struct loop_options *options, struct error *err)
{
	struct loop *loop = NULL;
	int r = -ENOSYS;

	if (!options->without_uring) {
		r = loop_uring_new(&loop, options);
		if (r < 0)
			log_info("loop %s: no io_uring here (%s), using poll and worker threads",
				 options->name ?: "-", strerror(-r));
	}
	if (r < 0)
		r = loop_poll_new(&loop, options);
	if (r >= 0)
		r = start(loop);
	if (r < 0) {
		loop_free(loop);
		return error_set(err, r, "cannot create an event loop: %s", strerror(-r));
	}
	*ret_loop = loop;
	return 0;
}

struct loop *loop_free(struct loop *loop)
{
	if (!loop)
		return NULL;
	loop_remove(&loop->wake);
	assert(!loop->n_sources);
	loop->engine->free(loop);
	return NULL;
}
