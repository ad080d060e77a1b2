/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads that sleep until there is work. They live as long as the process.
 */
#include "disk/crew.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>

#define THREADS_MIN 6
#define THREADS_MAX 8
#define STACK_SIZE  (256u << 10)

struct crew {
	pthread_mutex_t lock; /* guards the rest */
	pthread_cond_t begin, end;
	uint32_t n_threads;
	int32_t n_busy; /* below 0 while they start */
	uint64_t round; /* counts calls of crew_run */
	void (*each)(void *arg);
	void *arg;
};

static void *crew_thread(void *arg)
{
	struct crew *crew = arg;
	uint64_t seen = 0;

	pthread_mutex_lock(&crew->lock);
	for (;;) {
		if (--crew->n_busy == 0)
			pthread_cond_signal(&crew->end);
		while (crew->round == seen)
			pthread_cond_wait(&crew->begin, &crew->lock);
		seen = crew->round;
		pthread_mutex_unlock(&crew->lock);
		crew->each(crew->arg);
		pthread_mutex_lock(&crew->lock);
	}
	return NULL;
}

/* Of this process, not of the host: a container may have few. */
static uint32_t processors(void)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof(set), &set) < 0 ? 1 : (uint32_t)CPU_COUNT(&set);
}

int crew_new(struct crew **ret_crew, struct error *err)
{
	uint32_t wanted = MAX(processors() + 1, (uint32_t)THREADS_MIN);
	struct crew *crew = calloc(1, sizeof(*crew));
	pthread_attr_t attr;
	int r = 0;

	if (!crew)
		return error_set(err, -ENOMEM, "cannot start threads: out of memory");
	pthread_mutex_init(&crew->lock, NULL);
	pthread_cond_init(&crew->begin, NULL);
	pthread_cond_init(&crew->end, NULL);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, MAX((size_t)STACK_SIZE, (size_t)PTHREAD_STACK_MIN));
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	while (crew->n_threads < MIN(wanted, (uint32_t)THREADS_MAX) && r == 0) {
		pthread_t thread;

		r = pthread_create(&thread, &attr, crew_thread, crew);
		crew->n_threads += r == 0;
	}
	pthread_attr_destroy(&attr);
	if (!crew->n_threads) {
		free(crew);
		return error_set(err, -r, "cannot start a thread: %s", strerror(r));
	}
	/* What libc asks for at a thread's start has been asked: the list of calls may come. */
	pthread_mutex_lock(&crew->lock);
	crew->n_busy += (int32_t)crew->n_threads;
	while (crew->n_busy)
		pthread_cond_wait(&crew->end, &crew->lock);
	pthread_mutex_unlock(&crew->lock);
	*ret_crew = crew;
	return 0;
}

void crew_run(struct crew *crew, void (*each)(void *arg), void *arg)
{
	if (!crew) {
		each(arg);
		return;
	}
	pthread_mutex_lock(&crew->lock);
	crew->each = each;
	crew->arg = arg;
	crew->n_busy = (int32_t)crew->n_threads;
	crew->round++;
	pthread_cond_broadcast(&crew->begin);
	while (crew->n_busy)
		pthread_cond_wait(&crew->end, &crew->lock);
	pthread_mutex_unlock(&crew->lock);
}
