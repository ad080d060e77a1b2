/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread that owns a loop, and so the virtqueues that live on it. Created parked; runs from
 * io_thread_run until the loop is stopped.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>

#include "base/error.h"
#include "base/loop.h"
#include "base/macros.h"

/* Work that only the loop's owner may do. Lives until it has been run. */
struct io_call {
	void (*run)(struct io_call *call); /* on the thread */
	struct io_call *next;              /* the thread's */
};

struct io_thread {
	char name[16];
	struct loop *loop;        /* owned */
	struct loop_source calls; /* the loop's */
	pthread_t thread;
	bool has_thread;
	int (*seal)(void);
	pthread_mutex_t lock; /* the rest */
	pthread_cond_t changed;
	bool sealed;
	bool go;
	struct io_call *first_call, **last_call; /* weak; in their order */
};

int io_thread_init(struct io_thread *io, const char *name, void (*worker_start)(void *),
		   struct error *err) __must_check;
/* Starts the thread, parked; it calls `seal` first. */
int io_thread_create(struct io_thread *io, int (*seal)(void), struct error *err) __must_check;
void io_thread_run(struct io_thread *io);
/* Has the thread run it once, after what it was asked before. Any thread. A call that has not begun
 * when the thread ends is dropped. */
void io_thread_call(struct io_thread *io, struct io_call *call);
/* Ends and joins the thread; the loop stays, so that sources can leave it. */
void io_thread_end(struct io_thread *io);
void io_thread_deinit(struct io_thread *io);
