/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the event loop share, and nobody else includes: the loop's own state, and the
 * contract of its two engines, io_uring and poll(2). An engine waits, says which of its watches and
 * operations have ended, and arms them again; slots, deadlines, posts and the batch list are the
 * same under both.
 */
#pragma once

#include <pthread.h>
#include <stdint.h>

#include "base/loop.h"

struct io_uring_sqe;

/* A kind of cookie beside enum loop_event_kind: the answer to a cancellation, of no interest. */
#define LOOP_COOKIE_CANCEL 0xff

struct loop_slot {
	struct loop_source *source; /* weak, NULL while free */
	uint16_t next_free;
	uint8_t generation; /* of the source here now or next */
};

struct loop_post {
	union loop_cookie cookie;
	int32_t result; /* LOOP_IO from a worker thread */
};

struct loop_post_list {
	struct loop_post *posts; /* owned */
	uint32_t n_posts;
	uint32_t capacity;
};

struct loop_engine {
	const char *name;
	int (*enable)(struct loop *loop);
	/* Submits what is queued and waits until something has come or `deadline` (0: do not wait)
	 * has passed. */
	int (*wait)(struct loop *loop, uint64_t deadline);
	/* Delivers what has come up to now, and no more. */
	void (*dispatch)(struct loop *loop);
	/* Arms source->watch_fd; sets file_index. */
	int (*watch)(struct loop *loop, struct loop_source *source);
	void (*unwatch)(struct loop *loop, struct loop_source *source);
	void (*free)(struct loop *loop);
};

struct loop {
	const struct loop_engine *engine;
	struct loop_options options;
	struct loop_counters counters; /* owner */
	uint64_t now;                  /* owner */
	struct loop_source wake;       /* owner; an eventfd that ends a wait */
	int wake_fd;                   /* owned */

	struct loop_slot slots[LOOP_SOURCES_MAX]; /* owner */
	uint32_t n_slots;                         /* ever used */
	uint32_t n_sources;
	uint16_t free_first, free_last; /* a queue, so that a slot rests before it is used again */
	uint32_t n_free;
	uint32_t next_serial;

	struct loop_source *timers[LOOP_SOURCES_MAX]; /* owner; heap, earliest first */
	uint32_t n_timers;
	bool firing;

	struct loop_source *batch;   /* owner; asked for since the last round */
	struct loop_source *batched; /* owner; the rest of this round */
	uint32_t n_waiting;          /* owner; sources that wait for room */
	bool io_ended;               /* owner; an operation has ended in this turn */

	uint64_t owner; /* pthread_t, 0 before loop_enable */
	bool stopping;
	bool posted; /* `filling` is not empty */
	pthread_mutex_t lock;
	pthread_cond_t drained;
	struct loop_post_list filling;  /* lock */
	struct loop_post_list draining; /* owner */
};

/* loop.c: for the engines. */
int loop_init(struct loop *loop, const struct loop_engine *engine,
	      const struct loop_options *options) __must_check;
void loop_deinit(struct loop *loop);
/* NULL when the slot has been given up since, or its watch replaced. */
struct loop_source *loop_cookie_source(struct loop *loop, union loop_cookie cookie);
void loop_deliver(struct loop *loop, struct loop_source *source, enum loop_event_kind kind,
		  uint32_t arg, int32_t result);
/* A LOOP_IO completion; dropped if its source has gone. */
void loop_deliver_io(struct loop *loop, union loop_cookie cookie, int32_t result);
/* The source was told -EBUSY. */
void loop_wait_for_room(struct loop_source *source);
union loop_cookie loop_cookie(const struct loop_source *source, uint8_t kind, uint32_t arg);
/* Room for `n` more posts, so that they need no memory when they come. */
int loop_reserve_posts(struct loop *loop, uint32_t n) __must_check;

/* loop-timer.c */
uint64_t loop_next_deadline(const struct loop *loop);
void loop_fire_timers(struct loop *loop);

/* loop-post.c */
void loop_post_cookie(struct loop *loop, union loop_cookie cookie, int32_t result);
void loop_drain_posts(struct loop *loop);
void loop_wake(struct loop *loop);

/* The engines. */
int loop_uring_new(struct loop **ret_loop, const struct loop_options *options) __must_check;
int loop_poll_new(struct loop **ret_loop, const struct loop_options *options) __must_check;

/* loop-uring.c, for io-uring.c. A place in the submission queue, NULL when the kernel takes no more
 * now. `loop_uring_room` says whether one more operation may be under way. */
bool loop_uring_room(const struct loop *loop);
struct io_uring_sqe *loop_uring_operation(struct loop *loop, struct loop_source *source,
					  uint32_t arg);
int loop_uring_file_add(struct loop *loop, int fd, uint32_t *ret_index) __must_check;
void loop_uring_file_remove(struct loop *loop, uint32_t index);
