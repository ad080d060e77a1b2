/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The block layer by itself, with no device above it, as qemu-img bench has none: requests through
 * one channel of an image, some at a time, stepping through the disk as qemu-img bench -S does.
 * Prints requests per second and, per request, kernel entries and posts of the loop.
 *
 *   qcow2-path FORMAT FILE read|write [requests [depth [size [step [first [span]]]]]]
 *
 * Of `span` bytes from `first` on: so a raw run can use the very pages in which an image has them.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "block/block.h"
#include "block/worker.h"

#define DEPTH_MAX 256u

struct bench {
	struct loop *loop;
	struct loop_source source;
	struct block_image *image;
	struct block_channel *channel;
	enum io_kind kind;
	uint64_t first, span; /* of the disk */
	uint64_t next, step, left, n_done;
	uint32_t size;
	struct iovec iov;
};

static void __attribute__((noreturn)) die(const char *what, int r)
{
	fprintf(stderr, "qcow2-path: cannot %s: %s\n", what, strerror(-r));
	exit(1);
}

static void submit_next(struct bench *bench, uint32_t i)
{
	const struct io_op op = {.kind = bench->kind,
				 .iov = &bench->iov,
				 .n_iov = 1,
				 .offset = bench->first + bench->next};
	int r = block_submit(bench->channel, &op, &bench->source, i);

	if (r < 0)
		die("submit", r);
	bench->left--;
	bench->next = (bench->next + bench->step) % bench->span;
	if (bench->next > bench->span - bench->size)
		bench->next = 0;
}

static void on_event(struct loop_source *source, const struct loop_event *event)
{
	struct bench *bench = container_of(source, struct bench, source);

	if (event->kind != LOOP_IO)
		return;
	if (event->result != (int64_t)bench->size)
		die("do a request", event->result < 0 ? event->result : -EIO);
	bench->n_done++;
	if (bench->left)
		submit_next(bench, event->arg);
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static void open_all(struct bench *bench, const char *format, const char *path,
		     struct block_worker *worker)
{
	const struct loop_options options = {.name = "bench", .depth = 512};
	const struct block_open how = {
		.format = format,
		.name = path,
		.worker = worker,
		.readonly = bench->kind == IO_READ,
	};
	struct error err = ERROR_NULL;
	int r, fd = open(path, (how.readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC);

	if (fd < 0)
		die("open the file", -errno);
	if (block_open(&bench->image, fd, &how, &err) < 0 ||
	    loop_new(&bench->loop, &options, &err) < 0) {
		fprintf(stderr, "qcow2-path: %s\n", err.text);
		exit(1);
	}
	bench->source.on_event = on_event;
	r = loop_enable(bench->loop);
	if (r >= 0)
		r = loop_add(bench->loop, &bench->source);
	if (r >= 0)
		r = block_channel_open(&bench->channel, bench->image, bench->loop);
	if (r < 0)
		die("set up the loop", r);
}

static uint64_t number(int argc, char **argv, int i, uint64_t otherwise)
{
	return argc > i ? strtoull(argv[i], NULL, 0) : otherwise;
}

/* One buffer for all, as qemu-img bench has: more of them would be more for the caches to hold. */
static void start(struct bench *bench, uint32_t depth)
{
	bench->iov = (struct iovec){aligned_alloc(4096, align_up(bench->size, 4096)), bench->size};
	if (!bench->iov.iov_base)
		die("get memory", -ENOMEM);
	memset(bench->iov.iov_base, 1, bench->size);
	for (uint32_t i = 0; i < depth; i++)
		submit_next(bench, i);
}

int main(int argc, char **argv)
{
	const struct block_worker_options options = {.name = "worker"};
	uint64_t requests = number(argc, argv, 4, 500000), depth = number(argc, argv, 5, 32);
	struct bench bench = {.left = requests};
	struct block_worker *worker = NULL;
	struct loop_counters counters;
	double begin, took;

	bench.size = (uint32_t)number(argc, argv, 6, 4096);
	bench.step = number(argc, argv, 7, bench.size);
	if (argc < 4 || !depth || depth > MIN(DEPTH_MAX, requests) || bench.size % 512 != 0 ||
	    !bench.size || bench.step % 512 != 0) {
		fprintf(stderr, "usage: qcow2-path FORMAT FILE read|write "
				"[requests [depth [size [step [first [span]]]]]]\n");
		return 2;
	}
	bench.kind = strcmp(argv[3], "write") ? IO_READ : IO_WRITE;
	if (block_worker_new(&worker, &options, NULL) < 0)
		die("start a worker", -EAGAIN);
	open_all(&bench, argv[1], argv[2], worker);
	bench.first = number(argc, argv, 8, 0);
	bench.span = number(argc, argv, 9, bench.image->size - bench.first);

	begin = seconds();
	start(&bench, (uint32_t)depth);
	while (bench.n_done < requests) {
		int r = loop_turn(bench.loop, UINT64_MAX);

		if (r < 0)
			die("run the loop", r);
	}
	took = seconds() - begin;
	counters = loop_counters(bench.loop);
	printf("requests %" PRIu64 " seconds %.3f iops %.0f\n", requests, took, requests / took);
	printf("per request: kernel entries of the loop %.4f, posts %.4f (%s)\n",
	       (double)counters.enters / requests, (double)counters.posts / requests,
	       loop_has_uring(bench.loop) ? "io_uring" : "threads");
	block_channel_close(bench.channel);
	block_close(bench.image);
	block_worker_free(worker);
	return 0;
}
