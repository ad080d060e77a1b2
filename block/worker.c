/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker's queue: jobs are linked by themselves, so posting needs no memory, and waking costs a
 * system call only where the thread sleeps. The thread blocks every signal.
 */
#include "block/worker.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>

/* Reads go down a chain of images, one call within the other. */
#define STACK_SIZE (1u << 20)

struct block_worker {
	struct block_worker_options options;
	char name[16];
	pthread_t thread;

	pthread_mutex_t lock;
	pthread_cond_t work;
	struct block_job *first; /* lock; weak */
	struct block_job **last; /* lock; where the next is linked */
	bool stopping;           /* lock */
};

/* All that is queued, NULL when the thread is to end. */
static struct block_job *take_jobs(struct block_worker *worker)
{
	struct block_job *first;

	pthread_mutex_lock(&worker->lock);
	while (!worker->first && !worker->stopping)
		pthread_cond_wait(&worker->work, &worker->lock);
	first = take_ptr(worker->first);
	worker->last = &worker->first;
	pthread_mutex_unlock(&worker->lock);
	return first;
}

static void *work(void *arg)
{
	struct block_worker *worker = arg;
	struct block_job *job;

	pthread_setname_np(pthread_self(), worker->name);
	if (worker->options.thread_start)
		worker->options.thread_start(worker->options.thread_arg);
	while ((job = take_jobs(worker)) != NULL) {
		while (job) {
			/* It may be gone, or queued again, once it has run. */
			struct block_job *next = job->next;

			job->run(job);
			job = next;
		}
	}
	return NULL;
}

void block_worker_post_list(struct block_worker *worker, struct block_job *first)
{
	struct block_job *last = first;

	if (!first)
		return;
	while (last->next)
		last = last->next;
	pthread_mutex_lock(&worker->lock);
	*worker->last = first;
	worker->last = &last->next;
	pthread_cond_signal(&worker->work);
	pthread_mutex_unlock(&worker->lock);
}

void block_worker_post(struct block_worker *worker, struct block_job *job)
{
	job->next = NULL;
	block_worker_post_list(worker, job);
}

static int start(struct block_worker *worker)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	int r;

	sigfillset(&all);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_SIZE);
	/* A new thread has its creator's mask from its first instruction on. */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(&worker->thread, &attributes, work, worker);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	return -r;
}

static void destroy(struct block_worker *worker)
{
	pthread_cond_destroy(&worker->work);
	pthread_mutex_destroy(&worker->lock);
	free(worker);
}

int block_worker_new(struct block_worker **ret_worker, const struct block_worker_options *options,
		     struct error *err)
{
	struct block_worker *worker = calloc(1, sizeof(*worker));
	int r;

	if (!worker)
		return error_set(err, -ENOMEM, "cannot start a disk's worker: out of memory");
	worker->options = *options;
	strncpy(worker->name, options->name, sizeof(worker->name) - 1);
	worker->last = &worker->first;
	pthread_mutex_init(&worker->lock, NULL);
	pthread_cond_init(&worker->work, NULL);
	r = start(worker);
	if (r < 0) {
		destroy(worker);
		return error_set(err, r, "cannot start a disk's worker: %s", strerror(-r));
	}
	*ret_worker = worker;
	return 0;
}

struct block_worker *block_worker_free(struct block_worker *worker)
{
	if (!worker)
		return NULL;
	pthread_mutex_lock(&worker->lock);
	worker->stopping = true;
	pthread_cond_signal(&worker->work);
	pthread_mutex_unlock(&worker->lock);
	pthread_join(worker->thread, NULL);
	destroy(worker);
	return NULL;
}
