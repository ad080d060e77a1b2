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

struct io_thread {
	char name[16];
	struct loop *loop; /* owned */
	pthread_t thread;
	bool has_thread;
	int (*seal)(void);
	pthread_mutex_t lock; /* sealed, go */
	pthread_cond_t changed;
	bool sealed;
	bool go;
};

int io_thread_init(struct io_thread *io, const char *name, void (*worker_start)(void *),
		   struct error *err) __must_check;
/* Starts the thread, parked; it calls `seal` first. */
int io_thread_create(struct io_thread *io, int (*seal)(void), struct error *err) __must_check;
void io_thread_run(struct io_thread *io);
/* Ends and joins the thread; the loop stays, so that sources can leave it. */
void io_thread_end(struct io_thread *io);
void io_thread_deinit(struct io_thread *io);
