/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Thread and loop of one set of virtqueues.
 */
#include "vmm/io-thread.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "vmm/promptness.h"

#define STACK_SIZE (128u << 10)
#define LOOP_DEPTH 512

int io_thread_init(struct io_thread *io, const char *name, void (*worker_start)(void *),
		   struct error *err)
{
	struct loop_options options = {
		.depth = LOOP_DEPTH, .name = io->name, .thread_start = worker_start};

	*io = (struct io_thread){0};
	snprintf(io->name, sizeof(io->name), "%s", name);
	pthread_mutex_init(&io->lock, NULL);
	pthread_cond_init(&io->changed, NULL);
	return loop_new(&io->loop, &options, err);
}

static void *io_thread_main(void *argument)
{
	struct io_thread *io = argument;
	int r;

	/* Sealed, a thread can name nobody, itself included. */
	pthread_setname_np(pthread_self(), io->name);
	promptness_ask();
	if (io->seal && io->seal() < 0)
		abort(); /* a thread that cannot be sealed must not run */
	pthread_mutex_lock(&io->lock);
	io->sealed = true;
	pthread_cond_broadcast(&io->changed);
	while (!io->go)
		pthread_cond_wait(&io->changed, &io->lock);
	pthread_mutex_unlock(&io->lock);
	r = loop_enable(io->loop);
	if (r == 0)
		r = loop_run(io->loop);
	if (r < 0) {
		log_error("%s: the kernel refuses to serve its event loop: %s", io->name,
			  strerror(-r));
		abort();
	}
	return NULL;
}

int io_thread_create(struct io_thread *io, int (*seal)(void), struct error *err)
{
	pthread_attr_t attributes;
	int r;

	io->seal = seal;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_SIZE);
	r = pthread_create(&io->thread, &attributes, io_thread_main, io);
	pthread_attr_destroy(&attributes);
	if (r != 0)
		return error_set(err, -r, "cannot start I/O thread %s: %s", io->name, strerror(r));
	io->has_thread = true;
	pthread_mutex_lock(&io->lock);
	while (!io->sealed)
		pthread_cond_wait(&io->changed, &io->lock);
	pthread_mutex_unlock(&io->lock);
	return 0;
}

void io_thread_run(struct io_thread *io)
{
	pthread_mutex_lock(&io->lock);
	io->go = true;
	pthread_cond_broadcast(&io->changed);
	pthread_mutex_unlock(&io->lock);
}

void io_thread_end(struct io_thread *io)
{
	if (!io->has_thread)
		return;
	loop_stop(io->loop);
	io_thread_run(io);
	pthread_join(io->thread, NULL);
	io->has_thread = false;
}

void io_thread_deinit(struct io_thread *io)
{
	io_thread_end(io);
	io->loop = loop_free(io->loop);
}
