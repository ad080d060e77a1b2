/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The event loop of one thread. What goes in: descriptors to watch, deadlines, messages from other
 * threads, asynchronous I/O (base/io.h). What comes out: calls to a source's `on_event`, always on
 * the loop's own thread, with the time read once per turn.
 *
 * One io_uring a loop: created disabled with a sparse table of files, restricted to the operations
 * below, enabled by the thread that runs it. Where io_uring is forbidden the same interface runs on
 * poll(2) and worker threads, said in one log line. Only the owner thread may call anything here,
 * except `loop_post` and `loop_stop`, which any thread may.
 *
 * A completion carries a cookie, not a pointer: the source's slot, the slot's generation, and a
 * 32-bit value of the source's own. A completion for a slot that was given up is dropped.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/macros.h"

struct loop;
struct error;

enum loop_event_kind {
	LOOP_READY, /* the watched descriptor is ready; `result` holds poll(2) bits */
	LOOP_TIMER, /* the deadline has passed */
	LOOP_POST,  /* another thread posted `arg` */
	LOOP_IO,    /* an operation ended: `arg` as submitted, `result` bytes or -errno */
};

struct loop_event {
	enum loop_event_kind kind;
	uint32_t arg;
	int32_t result;
	uint64_t now; /* CLOCK_MONOTONIC ns, read once per turn */
};

/* Embedded in its owner, which gets back to itself by container_of. Zero-initialised before
 * loop_add. */
struct loop_source {
	void (*on_event)(struct loop_source *source, const struct loop_event *event);
	struct loop *loop; /* weak; NULL when not added */
	uint32_t slot;     /* the rest belongs to the loop */
	uint8_t generation;
	bool watching;
	bool timer_armed;
	bool in_batch;
	int watch_fd;   /* borrowed */
	int file_index; /* of watch_fd in the ring's file table, -1 if none */
	uint32_t watch_events;
	uint64_t deadline;
	struct loop_source *next_batch; /* weak */
};

union loop_cookie {
	uint64_t u64;
	struct {
		uint32_t arg;
		uint16_t slot;
		uint8_t generation;
		uint8_t kind;
	};
};
_Static_assert(sizeof(union loop_cookie) == 8, "a cookie is the ring's user_data");

#define LOOP_SOURCES_MAX 1024
#define LOOP_FILES_MAX   1024

struct loop_options {
	uint32_t depth;     /* submission entries, a power of two; 0: 128 */
	bool without_uring; /* take the poll(2) engine even where io_uring would do */
	const char *name;   /* for log lines and the thread; borrowed */
};

/* Creates the loop, disabled. Any thread. Without io_uring on the host it falls back by itself. */
int loop_new(struct loop **ret_loop, const struct loop_options *options,
	     struct error *err) __must_check;
/* Sources must have been removed. NULL is fine. Returns NULL. */
struct loop *loop_free(struct loop *loop);

/* The owner thread calls this once before anything else: enables the ring for itself. */
int loop_enable(struct loop *loop) __must_check;

/* Runs turns until loop_stop. Returns 0, or -errno when the kernel refuses to go on. */
int loop_run(struct loop *loop) __must_check;
/* One turn: submit, wait (until `deadline`, UINT64_MAX for ever, 0 not at all), dispatch. For tests
 * and benchmarks. */
int loop_turn(struct loop *loop, uint64_t deadline) __must_check;
void loop_stop(struct loop *loop);

bool loop_has_uring(const struct loop *loop);
uint64_t loop_now(const struct loop *loop);
/* Counters: turns, kernel entries, operations submitted. */
struct loop_counters {
	uint64_t turns, enters, operations, posts;
};
struct loop_counters loop_counters(const struct loop *loop);

int loop_add(struct loop *loop, struct loop_source *source) __must_check;
/* Stops watch and timer; completions of I/O still under way are dropped, so its buffers must
 * outlive it: drain first. */
void loop_remove(struct loop_source *source);

/*
 * Watches `fd` (borrowed, open until unwatched) for poll(2) `events`. Level-triggered as seen by
 * the source: if it does not take all there is, it is called again next turn.
 */
int loop_watch(struct loop_source *source, int fd, uint32_t events) __must_check;
void loop_unwatch(struct loop_source *source);

/*
 * Watches an eventfd: the loop itself reads the counter, so a burst of signals is one call, and no
 * system call of the source's own is needed. `on_event` gets LOOP_READY.
 */
int loop_watch_eventfd(struct loop_source *source, int fd) __must_check;

/* One deadline a source, absolute; UINT64_MAX disarms. */
void loop_timer(struct loop_source *source, uint64_t deadline);

/* Any thread: `on_event` gets LOOP_POST with `arg` on the owner's thread. Never fails, keeps order
 * per poster. */
void loop_post(struct loop_source *source, uint32_t arg);

/*
 * Asks for one more call at the end of this turn, after every event of the turn has been delivered:
 * `source->on_event` with LOOP_POST and `arg` LOOP_BATCH. Where a device wakes its guest once for a
 * whole batch of completions.
 */
#define LOOP_BATCH UINT32_MAX
void loop_batch(struct loop_source *source);
