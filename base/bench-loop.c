/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random 4 KiB reads of a file through the loop, as fast as it answers: what the block path can
 * reach at most. Usage: bench-loop FILE [COUNT [DEPTH [direct|cached [threads]]]]. Prints requests
 * a second and kernel entries a request.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"

#define BLOCK     4096
#define DEPTH_MAX 1024

struct bench {
	struct loop_source source;
	struct io *io;
	uint32_t file;
	uint64_t n_blocks;
	uint64_t seed;
	uint64_t n_submitted, n_done, n_requests;
	uint8_t *buffers;
	struct iovec iovs[DEPTH_MAX];
};

static uint64_t next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static void submit_read(struct bench *bench, uint32_t place)
{
	const struct io_op op = {
		.kind = IO_READ,
		.n_iov = 1,
		.iov = &bench->iovs[place],
		.offset = next_random(&bench->seed) % bench->n_blocks * BLOCK,
	};

	if (bench->n_submitted == bench->n_requests)
		return;
	if (io_submit(bench->io, bench->file, &op, &bench->source, place) < 0) {
		fprintf(stderr, "bench-loop: the queue is full\n");
		exit(1);
	}
	bench->n_submitted++;
}

static void on_event(struct loop_source *source, const struct loop_event *event)
{
	struct bench *bench = container_of(source, struct bench, source);

	if (event->result != BLOCK) {
		fprintf(stderr, "bench-loop: a read ended in %d\n", event->result);
		exit(1);
	}
	if (++bench->n_done == bench->n_requests)
		loop_stop(source->loop);
	submit_read(bench, event->arg);
}

static int run(struct bench *bench, struct loop *loop, int fd, uint32_t depth)
{
	uint64_t start, nanoseconds;
	int r;

	bench->source.on_event = on_event;
	r = io_new(&bench->io, loop);
	if (r >= 0)
		r = loop_add(loop, &bench->source);
	if (r >= 0)
		r = io_file_add(bench->io, fd, &bench->file);
	if (r < 0)
		return r;
	start = loop_now(loop);
	for (uint32_t i = 0; i < depth; i++) {
		bench->iovs[i] = (struct iovec){bench->buffers + i * BLOCK, BLOCK};
		submit_read(bench, i);
	}
	r = loop_run(loop);
	if (r < 0)
		return r;
	nanoseconds = loop_now(loop) - start;
	printf("%s: %.0f requests/s, %.3f kernel entries/request\n", bench->io->ops->name,
	       (double)bench->n_done * 1e9 / (double)nanoseconds,
	       (double)loop_counters(loop).enters / (double)bench->n_done);
	loop_remove(&bench->source);
	return 0;
}

int main(int argc, char **argv)
{
	const bool direct = argc > 4 && !strcmp(argv[4], "direct");
	struct loop_options options = {.without_uring = argc > 5, .name = "bench"};
	struct bench bench = {.seed = 88172645463325252};
	uint32_t depth = argc > 3 ? (uint32_t)atoi(argv[3]) : 32;
	struct loop *loop;
	struct stat stat;
	int fd, r;

	bench.n_requests = argc > 2 ? strtoull(argv[2], NULL, 0) : 200000;
	fd = argc > 1 ? open(argv[1], O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0)) : -1;
	if (fd < 0 || fstat(fd, &stat) < 0 || stat.st_size < BLOCK || !depth || depth > DEPTH_MAX) {
		fprintf(stderr, "usage: bench-loop FILE [COUNT [DEPTH [direct|cached "
				"[threads]]]]\n");
		return 2;
	}
	bench.n_blocks = (uint64_t)stat.st_size / BLOCK;
	bench.buffers = aligned_alloc(BLOCK, (size_t)depth * BLOCK);
	if (!bench.buffers)
		return 1;
	memset(bench.buffers, 0, (size_t)depth * BLOCK);
	r = loop_new(&loop, &options, NULL);
	if (r >= 0)
		r = loop_enable(loop);
	if (r >= 0)
		r = run(&bench, loop, fd, depth);
	if (r < 0) {
		fprintf(stderr, "bench-loop: %s\n", strerror(-r));
		return 1;
	}
	io_free(bench.io);
	loop_free(loop);
	free(bench.buffers);
	close(fd);
	return 0;
}
