/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Everything another thread may do to a loop, all at once, for the thread sanitizer: loops that are
 * made here, run elsewhere, posted to and stopped by several threads, with workers doing I/O
 * beside. Exits 0 when every post and every operation has arrived. Usage: stress-loop [ROUNDS].
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/io.h"

#define LOOPS      2
#define POSTERS    3
#define POSTS      3000
#define OPERATIONS 1000
#define SIGNALS    500

#define check(condition)                                                                         \
	do {                                                                                     \
		if (!(condition)) {                                                              \
			fprintf(stderr, "stress-loop: line %d: not %s\n", __LINE__, #condition); \
			exit(1);                                                                 \
		}                                                                                \
	} while (0)

struct worker {
	struct loop *loop;
	struct io *io;
	struct loop_source posts, ticks, files, kicks;
	struct worker *peer; /* is sent every post once more */
	pthread_t thread;
	int fd, kick_fd;
	uint32_t file;
	uint32_t next[POSTERS];
	uint32_t n_posts, n_forwarded, n_ticks, n_operations, n_submitted, n_kicks;
	bool last_kick;
	char bytes[POSTERS];
	struct iovec iovs[POSTERS];
};

struct poster {
	struct worker *worker;
	pthread_t thread;
	uint32_t number;
};

#define FORWARDED (1U << 31)
#define LAST_KICK (1U << 30)

static void on_post(struct loop_source *source, const struct loop_event *event)
{
	struct worker *worker = container_of(source, struct worker, posts);

	if (event->arg & FORWARDED) {
		worker->n_forwarded++;
		return;
	}
	check((event->arg & 0xffffff) == worker->next[event->arg >> 24]++);
	worker->n_posts++;
	loop_post(&worker->peer->posts, event->arg | FORWARDED);
}

static void on_tick(struct loop_source *source, const struct loop_event *event)
{
	struct worker *worker = container_of(source, struct worker, ticks);

	worker->n_ticks++;
	loop_timer(source, event->now + 50000);
}

static void submit(struct worker *worker, uint32_t place)
{
	const struct io_op op = {
		.kind = worker->n_submitted % 2 ? IO_READ : IO_WRITE,
		.n_iov = 1,
		.iov = &worker->iovs[place],
	};

	if (worker->n_submitted == OPERATIONS)
		return;
	check(io_submit(worker->io, worker->file, &op, &worker->files, place) == 0);
	worker->n_submitted++;
}

static void on_file(struct loop_source *source, const struct loop_event *event)
{
	struct worker *worker = container_of(source, struct worker, files);

	check(event->kind == LOOP_POST || event->result == 1);
	worker->n_operations += event->kind == LOOP_IO;
	submit(worker, event->arg);
}

static void on_kick(struct loop_source *source, const struct loop_event *event _unused_)
{
	container_of(source, struct worker, kicks)->n_kicks++;
}

static void *run_loop(void *arg)
{
	struct worker *worker = arg;

	check(loop_enable(worker->loop) == 0);
	loop_timer(&worker->ticks, 1);
	check(loop_run(worker->loop) == 0);
	return NULL;
}

static void *post_all(void *arg)
{
	const struct poster *poster = arg;
	const uint64_t one = 1;

	loop_post(&poster->worker->files, poster->number);
	for (uint32_t i = 0; i < POSTS; i++) {
		loop_post(&poster->worker->posts, poster->number << 24 | i);
		if (i < SIGNALS)
			check(write(poster->worker->kick_fd, &one, sizeof(one)) == sizeof(one));
	}
	return NULL;
}

static void start_worker(struct worker *worker, bool without_uring, bool threads)
{
	const struct loop_options options = {.without_uring = without_uring, .name = "stress"};
	struct loop_source *sources[] = {&worker->posts, &worker->ticks, &worker->files,
					 &worker->kicks};

	worker->posts.on_event = on_post;
	worker->ticks.on_event = on_tick;
	worker->files.on_event = on_file;
	worker->kicks.on_event = on_kick;
	for (uint32_t i = 0; i < POSTERS; i++)
		worker->iovs[i] = (struct iovec){&worker->bytes[i], 1};
	worker->fd = memfd_create("stress", MFD_CLOEXEC);
	worker->kick_fd = eventfd(0, EFD_CLOEXEC);
	check(pwrite(worker->fd, "", 1, 0) == 1);
	check(loop_new(&worker->loop, &options, NULL) == 0);
	check((threads ? io_threads_new(&worker->io, worker->loop, 3)
		       : io_new(&worker->io, worker->loop)) == 0);
	check(io_file_add(worker->io, worker->fd, &worker->file) == 0);
	for (uint32_t i = 0; i < ARRAY_SIZE(sources); i++)
		check(loop_add(worker->loop, sources[i]) == 0);
	check(loop_watch_eventfd(&worker->kicks, worker->kick_fd) == 0);
}

static void *stop(void *loop)
{
	loop_stop(loop);
	return NULL;
}

/* The owner runs on until it is stopped; then this thread is the only one left, and finishes. */
static void finish(struct worker *worker)
{
	pthread_t stoppers[2];

	for (int i = 0; i < 2; i++)
		pthread_create(&stoppers[i], NULL, stop, worker->loop);
	for (int i = 0; i < 2; i++)
		pthread_join(stoppers[i], NULL);
	pthread_join(worker->thread, NULL);
}

static void end(struct worker *worker)
{
	io_free(worker->io);
	loop_remove(&worker->posts);
	loop_remove(&worker->ticks);
	loop_remove(&worker->files);
	loop_remove(&worker->kicks);
	loop_free(worker->loop);
	close(worker->fd);
	close(worker->kick_fd);
}

/* Ends the run when everything has come: asked by post, answered from the worker's own thread. */
struct question {
	struct loop_source source;
	struct worker *worker;
	pthread_mutex_t lock;
	pthread_cond_t answered;
	bool yes, asked;
};

static void on_question(struct loop_source *source, const struct loop_event *event _unused_)
{
	struct question *question = container_of(source, struct question, source);
	const struct worker *worker = question->worker;

	pthread_mutex_lock(&question->lock);
	question->yes = worker->n_posts == POSTERS * POSTS &&
			worker->n_forwarded == POSTERS * POSTS &&
			worker->n_operations == OPERATIONS && worker->n_kicks && worker->n_ticks;
	question->asked = false;
	pthread_cond_signal(&question->answered);
	pthread_mutex_unlock(&question->lock);
}

static void wait_until_all_came(struct question *question)
{
	pthread_mutex_lock(&question->lock);
	while (!question->yes) {
		question->asked = true;
		loop_post(&question->source, 0);
		while (question->asked)
			pthread_cond_wait(&question->answered, &question->lock);
	}
	pthread_mutex_unlock(&question->lock);
}

static void run_round(bool without_uring, bool threads)
{
	struct worker workers[LOOPS] = {0};
	struct poster posters[LOOPS][POSTERS];
	struct question questions[LOOPS] = {0};

	for (uint32_t i = 0; i < LOOPS; i++) {
		start_worker(&workers[i], without_uring, threads);
		workers[i].peer = &workers[(i + 1) % LOOPS];
		questions[i].worker = &workers[i];
		questions[i].source.on_event = on_question;
		pthread_mutex_init(&questions[i].lock, NULL);
		pthread_cond_init(&questions[i].answered, NULL);
		check(loop_add(workers[i].loop, &questions[i].source) == 0);
	}
	for (uint32_t i = 0; i < LOOPS; i++) {
		check(!pthread_create(&workers[i].thread, NULL, run_loop, &workers[i]));
		for (uint32_t j = 0; j < POSTERS; j++) {
			posters[i][j] = (struct poster){.worker = &workers[i], .number = j};
			check(!pthread_create(&posters[i][j].thread, NULL, post_all,
					      &posters[i][j]));
		}
	}
	for (uint32_t i = 0; i < LOOPS; i++) {
		for (uint32_t j = 0; j < POSTERS; j++)
			pthread_join(posters[i][j].thread, NULL);
	}
	for (uint32_t i = 0; i < LOOPS; i++)
		wait_until_all_came(&questions[i]);
	for (uint32_t i = 0; i < LOOPS; i++)
		finish(&workers[i]);
	for (uint32_t i = 0; i < LOOPS; i++) {
		loop_remove(&questions[i].source);
		end(&workers[i]);
	}
}

int main(int argc, char **argv)
{
	int rounds = argc > 1 ? atoi(argv[1]) : 3;

	for (int i = 0; i < rounds; i++) {
		run_round(false, false);
		run_round(false, true);
		run_round(true, true);
	}
	return 0;
}
