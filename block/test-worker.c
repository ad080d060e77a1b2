/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker: jobs in their order, from any thread, all of them done before it ends.
 */
#include <criterion/criterion.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "block/worker.h"

#define JOBS 1000

struct job {
	struct block_job job;
	uint32_t number;
};

static struct block_worker *worker;
static struct job jobs[4][JOBS];
static uint32_t order[4 * JOBS]; /* the worker's until it has ended */
static uint32_t n_done;
static sem_t gate, done;

static void job_run(struct block_job *base)
{
	struct job *job = container_of(base, struct job, job);

	order[n_done++] = job->number;
	memset(base, 0xee, sizeof(*base)); /* it is its owner's again */
}

static void job_wait(struct block_job *base _unused_)
{
	sem_wait(&gate);
}

static void start(const struct block_worker_options *options)
{
	struct error err = ERROR_NULL;

	sem_init(&gate, 0, 0);
	sem_init(&done, 0, 0);
	cr_assert_eq(block_worker_new(&worker, options, &err), 0, "%s", err.text);
	for (uint32_t i = 0; i < 4; i++)
		for (uint32_t j = 0; j < JOBS; j++)
			jobs[i][j] = (struct job){.job.run = job_run, .number = i * JOBS + j};
}

static void set_up(void)
{
	start(&(struct block_worker_options){.name = "worker"});
}

static void tear_down(void)
{
	worker = block_worker_free(worker);
}

TestSuite(worker, .init = set_up, .fini = tear_down, .timeout = 30);
TestSuite(worker_start, .fini = tear_down, .timeout = 30);

Test(worker, jobs_are_done_in_their_order)
{
	for (uint32_t i = 0; i < JOBS; i++)
		block_worker_post(worker, &jobs[0][i].job);
	worker = block_worker_free(worker);
	cr_assert_eq(n_done, JOBS, "all that was queued");
	for (uint32_t i = 0; i < JOBS; i++)
		cr_assert_eq(order[i], i);
}

Test(worker, lists_keep_theirs)
{
	struct block_job first = {.run = job_wait};

	block_worker_post(worker, &first);
	block_worker_post(worker, &jobs[0][0].job);
	for (uint32_t i = 1; i + 1 < JOBS; i++)
		jobs[0][i].job.next = &jobs[0][i + 1].job;
	block_worker_post_list(worker, &jobs[0][1].job);
	block_worker_post_list(worker, NULL);
	block_worker_post(worker, &jobs[1][0].job);
	sem_post(&gate);
	worker = block_worker_free(worker);
	cr_assert_eq(n_done, JOBS + 1);
	for (uint32_t i = 0; i <= JOBS; i++)
		cr_assert_eq(order[i], i);
}

static void *post_all(void *arg)
{
	struct job *own = arg;

	for (uint32_t i = 0; i < JOBS; i++)
		block_worker_post(worker, &own[i].job);
	return NULL;
}

Test(worker, many_threads_post)
{
	uint32_t next[4] = {0};
	pthread_t threads[4];

	for (uint32_t i = 0; i < 4; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, post_all, jobs[i]), 0);
	for (uint32_t i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	worker = block_worker_free(worker);
	cr_assert_eq(n_done, 4 * JOBS);
	for (uint32_t i = 0; i < 4 * JOBS; i++)
		cr_assert_eq(order[i] % JOBS, next[order[i] / JOBS]++, "each in its own order");
}

static void job_again(struct block_job *base)
{
	struct job *job = container_of(base, struct job, job);

	if (job->number++ < 10)
		block_worker_post(worker, base);
	else
		sem_post(&done);
}

Test(worker, a_job_may_queue_itself_again)
{
	struct job job = {.job.run = job_again};

	block_worker_post(worker, &job.job);
	sem_wait(&done);
	cr_assert_eq(job.number, 11);
}

static char name[16];
static bool all_blocked, started;

static void on_start(void *arg)
{
	sigset_t blocked;

	pthread_sigmask(SIG_BLOCK, NULL, &blocked);
	all_blocked = sigismember(&blocked, SIGTERM) && sigismember(&blocked, SIGUSR1);
	pthread_getname_np(pthread_self(), name, sizeof(name));
	*(bool *)arg = true;
}

Test(worker_start, the_thread_begins_where_it_gives_up_rights)
{
	start(&(struct block_worker_options){.name = "a-name-that-is-too-long",
					     .thread_start = on_start,
					     .thread_arg = &started});
	worker = block_worker_free(worker);
	cr_assert(started);
	cr_assert(all_blocked);
	cr_assert_str_eq(name, "a-name-that-is-");
}

Test(worker, freeing_none_is_fine)
{
	cr_assert_null(block_worker_free(NULL));
}
