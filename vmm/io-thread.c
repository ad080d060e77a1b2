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

static struct io_call *call_take(struct io_thread *io)
{
	struct io_call *call;

	pthread_mutex_lock(&io->lock);
	call = io->first_call;
	if (call)
		io->first_call = call->next;
	if (!io->first_call)
		io->last_call = &io->first_call;
	pthread_mutex_unlock(&io->lock);
	return call;
}

static void on_calls(struct loop_source *source, const struct loop_event *event _unused_)
{
	struct io_thread *io = container_of(source, struct io_thread, calls);
	struct io_call *call;

	while ((call = call_take(io)))
		call->run(call);
}

void io_thread_call(struct io_thread *io, struct io_call *call)
{
	call->next = NULL;
	pthread_mutex_lock(&io->lock);
	*io->last_call = call;
	io->last_call = &call->next;
	pthread_mutex_unlock(&io->lock);
	loop_post(&io->calls, 0);
}

int io_thread_init(struct io_thread *io, const char *name, void (*worker_start)(void *),
		   struct error *err)
{
	struct loop_options options = {
		.depth = LOOP_DEPTH, .name = io->name, .thread_start = worker_start};

	int r;

	*io = (struct io_thread){.calls.on_event = on_calls, .last_call = &io->first_call};
	snprintf(io->name, sizeof(io->name), "%s", name);
	pthread_mutex_init(&io->lock, NULL);
	pthread_cond_init(&io->changed, NULL);
	r = loop_new(&io->loop, &options, err);
	if (r < 0)
		return r;
	r = loop_add(io->loop, &io->calls);
	return r < 0 ? error_set(err, r, "cannot start I/O thread %s: %s", name, strerror(-r)) : 0;
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
	if (io->calls.loop)
		loop_remove(&io->calls);
	io->loop = loop_free(io->loop);
}
