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
 * loop_add. Owner: the loop's thread. */
struct loop_source {
	void (*on_event)(struct loop_source *source, const struct loop_event *event);
	struct loop *loop; /* weak; NULL when not added */
	uint32_t slot;     /* the rest belongs to the loop */
	uint8_t generation;
	bool watching;
	bool watch_eventfd;
	bool watch_armed; /* the engine holds a poll of this watch */
	bool timer_armed;
	bool in_batch;
	bool waits_for_room;  /* was told -EBUSY, gets LOOP_BATCH when an operation has ended */
	uint16_t timer_place; /* in the heap */
	int watch_fd;         /* borrowed */
	int file_index;       /* of watch_fd in the engine's table, -1 if none */
	uint32_t watch_events;
	uint32_t watch_serial; /* tells this watch from the source's earlier ones */
	uint32_t watch_turn;   /* of the last signal delivered */
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
	const char *name;   /* for log lines; borrowed, NULL is fine */
	/*
	 * Runs first in each worker thread that stands in for io_uring (io_threads_new), with all
	 * signals blocked: where the thread gives up rights. It may wait there as long as it needs.
	 */
	void (*thread_start)(void *arg);
	void *thread_arg;
};

/*
 * Creates the loop, disabled. Any thread. Without io_uring on the host it falls back by itself,
 * with one log line. Until loop_enable the creator may add, watch and register files as if it were
 * the owner.
 */
int loop_new(struct loop **ret_loop, const struct loop_options *options,
	     struct error *err) __must_check;
/* Sources must have been removed, by now the owner has ended or is the caller. NULL is fine.
 * Returns NULL. */
struct loop *loop_free(struct loop *loop);

/* The owner thread calls this once before anything else: enables the ring for itself. */
int loop_enable(struct loop *loop) __must_check;

/* Runs turns until loop_stop, also one called before. Returns 0, or -errno when the kernel refuses
 * to go on. */
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
 * the source: if it does not take all there is, it is called again next turn. One watch a source.
 * The ring keeps the file open until the turn after loop_unwatch. If the kernel cannot poll it,
 * `result` is POLLNVAL or POLLERR.
 */
int loop_watch(struct loop_source *source, int fd, uint32_t events) __must_check;
void loop_unwatch(struct loop_source *source);

/*
 * Watches an eventfd: a burst of signals is one call, and no system call of the source's own is
 * needed. `on_event` gets LOOP_READY. The counter's value means nothing: the ring never reads it (a
 * multishot poll sees each signal, at three quarters of the cost of a read), so a watch of an
 * eventfd that was ever signalled begins with one call, signalled since or not.
 */
int loop_watch_eventfd(struct loop_source *source, int fd) __must_check;

/* One deadline a source, absolute; UINT64_MAX disarms. */
void loop_timer(struct loop_source *source, uint64_t deadline);

/*
 * Any thread: `on_event` gets LOOP_POST with `arg` (not LOOP_BATCH) on the owner's thread. Never
 * fails, keeps order per poster. Takes a lock and may grow the queue: not for the data path.
 * Posters must have stopped when the source is removed; what they posted is dropped.
 */
void loop_post(struct loop_source *source, uint32_t arg);

/*
 * Asks for one more call at the end of this turn, after every event of the turn has been delivered:
 * `source->on_event` with LOOP_POST and `arg` LOOP_BATCH. Where a device wakes its guest once for a
 * whole batch of completions.
 */
#define LOOP_BATCH UINT32_MAX
void loop_batch(struct loop_source *source);
