/* SPDX-License-Identifier: Apache-2.0 */
/* File I/O, each behaviour on the ring and on worker threads. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/io.h"
#include "base/loop-engine.h"

#define BLOCK      4096
#define N_BLOCKS   64
#define DEPTH      16
#define RESULTS    4096
#define UNFINISHED INT32_MAX

static int engines[] = {0, 1};

static struct criterion_test_params both(void)
{
	return cr_make_param_array(int, engines, ARRAY_SIZE(engines));
}

#define BOTH(name)                            \
	ParameterizedTestParameters(io, name) \
	{                                     \
		return both();                \
	}                                     \
	ParameterizedTest(int *without_uring, io, name)

/* A loop, its I/O, a file, and a source that keeps each result under its operation's number. */
struct bed {
	struct loop *loop;
	struct io *io;
	struct loop_source source;
	uint32_t file;
	int fd;
	int32_t results[RESULTS];
	uint32_t n_results;
	uint32_t n_batches;
};

static void on_bed(struct loop_source *source, const struct loop_event *event)
{
	struct bed *bed = container_of(source, struct bed, source);

	if (event->kind == LOOP_POST && event->arg == LOOP_BATCH) {
		bed->n_batches++;
		return;
	}
	cr_assert(eq(int, event->kind, LOOP_IO));
	cr_assert(lt(u32, event->arg, RESULTS));
	cr_assert(eq(int, bed->results[event->arg], UNFINISHED));
	bed->results[event->arg] = event->result;
	bed->n_results++;
}

static void make_bed_on(struct bed *bed, int fd, const struct loop_options *options)
{
	cr_assert(ge(int, fd, 0));
	bed->fd = fd;
	for (uint32_t i = 0; i < RESULTS; i++)
		bed->results[i] = UNFINISHED;
	cr_assert(eq(int, loop_new(&bed->loop, options, NULL), 0));
	if (!options->without_uring && !loop_has_uring(bed->loop))
		cr_skip_test("this host has no io_uring");
	cr_assert(eq(int, loop_enable(bed->loop), 0));
	cr_assert(eq(int, io_new(&bed->io, bed->loop), 0));
	bed->source.on_event = on_bed;
	cr_assert(eq(int, loop_add(bed->loop, &bed->source), 0));
	cr_assert(eq(int, io_file_add(bed->io, fd, &bed->file), 0));
}

static void make_bed(struct bed *bed, int without_uring)
{
	const struct loop_options options = {
		.depth = DEPTH,
		.without_uring = without_uring,
		.name = "test",
	};
	int fd = memfd_create("disk", MFD_CLOEXEC);

	cr_assert(eq(int, ftruncate(fd, N_BLOCKS * BLOCK), 0));
	make_bed_on(bed, fd, &options);
}

static void tear_down(struct bed *bed)
{
	io_file_remove(bed->io, bed->file);
	loop_remove(&bed->source);
	io_free(bed->io);
	loop_free(bed->loop);
	close(bed->fd);
}

static void wait_for(struct bed *bed, uint32_t n_results)
{
	while (bed->n_results < n_results)
		cr_assert(eq(int, loop_turn(bed->loop, UINT64_MAX), 0));
}

static int submit(struct bed *bed, const struct io_op *op, uint32_t number)
{
	return io_submit(bed->io, bed->file, op, &bed->source, number);
}

static int32_t run(struct bed *bed, const struct io_op *op)
{
	static uint32_t number;
	uint32_t n = bed->n_results;

	cr_assert(eq(int, submit(bed, op, number), 0));
	wait_for(bed, n + 1);
	return bed->results[number++];
}

static struct io_op transfer(enum io_kind kind, const struct iovec *iov, uint32_t n_iov,
			     uint64_t offset)
{
	return (struct io_op){.kind = kind, .iov = iov, .n_iov = n_iov, .offset = offset};
}

static struct io_op range(enum io_kind kind, uint64_t offset, uint64_t length)
{
	return (struct io_op){.kind = kind, .offset = offset, .length = length};
}

BOTH(what_is_written_is_read_back)
{
	struct bed bed = {0};
	char out[BLOCK], in[BLOCK] = "";
	const struct iovec out_iov = {out, sizeof(out)}, in_iov = {in, sizeof(in)};
	struct io_op write = transfer(IO_WRITE, &out_iov, 1, 3 * BLOCK);
	struct io_op read = transfer(IO_READ, &in_iov, 1, 3 * BLOCK);
	struct io_op flush = {.kind = IO_FLUSH};

	make_bed(&bed, *without_uring);
	memset(out, 0x5a, sizeof(out));
	cr_assert(eq(int, run(&bed, &write), BLOCK));
	cr_assert(eq(int, run(&bed, &flush), 0));
	cr_assert(eq(int, run(&bed, &read), BLOCK));
	cr_assert(eq(int, memcmp(in, out, BLOCK), 0));
	cr_assert(eq(u64, loop_counters(bed.loop).operations, 3));
	tear_down(&bed);
}

BOTH(several_buffers_are_one_operation)
{
	struct bed bed = {0};
	char in[6] = "", out[6] = "hello";
	const struct iovec out_iov[2] = {{out, 2}, {out + 2, 4}};
	const struct iovec in_iov[3] = {{in, 1}, {in + 1, 1}, {in + 2, 4}};
	struct io_op write = transfer(IO_WRITE, out_iov, 2, 100);
	struct io_op read = transfer(IO_READ, in_iov, 3, 100);

	make_bed(&bed, *without_uring);
	cr_assert(eq(int, run(&bed, &write), 6));
	cr_assert(eq(int, run(&bed, &read), 6));
	cr_assert(eq(str, in, "hello"));
	tear_down(&bed);
}

BOTH(read_across_the_end_is_short)
{
	struct bed bed = {0};
	char in[BLOCK];
	const struct iovec iov = {in, sizeof(in)};
	struct io_op across = transfer(IO_READ, &iov, 1, N_BLOCKS * BLOCK - 100);
	struct io_op beyond = transfer(IO_READ, &iov, 1, N_BLOCKS * BLOCK);

	make_bed(&bed, *without_uring);
	cr_assert(eq(int, run(&bed, &across), 100));
	cr_assert(eq(int, run(&bed, &beyond), 0));
	tear_down(&bed);
}

static void fill(struct bed *bed)
{
	static char data[N_BLOCKS * BLOCK];

	memset(data, 0xff, sizeof(data));
	cr_assert(eq(int, fd_write_full(bed->fd, data, sizeof(data)), 0));
}

static uint32_t count_zeroes(struct bed *bed)
{
	static char data[N_BLOCKS * BLOCK];
	uint32_t n = 0;

	cr_assert(eq(int, (int)pread(bed->fd, data, sizeof(data), 0), (int)sizeof(data)));
	for (uint32_t i = 0; i < sizeof(data); i++)
		n += !data[i];
	return n;
}

static uint64_t allocated(struct bed *bed)
{
	struct stat stat;

	cr_assert(eq(int, fstat(bed->fd, &stat), 0));
	return (uint64_t)stat.st_blocks * 512;
}

BOTH(discard_and_zero_give_space_back_and_read_as_zeroes)
{
	struct bed bed = {0};
	struct io_op discard = range(IO_DISCARD, 0, 2 * BLOCK);
	struct io_op zero = range(IO_ZERO, 10 * BLOCK, BLOCK + 10);
	uint64_t before;

	make_bed(&bed, *without_uring);
	fill(&bed);
	before = allocated(&bed);
	cr_assert(eq(int, run(&bed, &discard), 0));
	cr_assert(eq(int, run(&bed, &zero), 0));
	cr_assert(eq(u32, count_zeroes(&bed), 3 * BLOCK + 10));
	cr_assert(eq(u64, before - allocated(&bed), 3 * BLOCK));
	tear_down(&bed);
}

/* tmpfs has no way to zero a range that stays allocated. */
BOTH(what_the_kernel_cannot_do_is_passed_up)
{
	struct bed bed = {0};
	struct io_op zero = range(IO_ZERO_KEEP, 0, BLOCK);

	make_bed(&bed, *without_uring);
	cr_assert(eq(int, run(&bed, &zero), -EOPNOTSUPP));
	tear_down(&bed);
}

BOTH(zero_keep_stays_allocated)
{
	const struct loop_options options = {.without_uring = *without_uring};
	struct bed bed = {0};
	struct io_op zero = range(IO_ZERO_KEEP, BLOCK, 4 * BLOCK);
	char path[] = "/var/tmp/corral-test-XXXXXX";
	uint64_t before;
	int32_t r;

	make_bed_on(&bed, mkostemp(path, O_CLOEXEC), &options);
	unlink(path);
	fill(&bed);
	cr_assert(eq(int, fsync(bed.fd), 0));
	before = allocated(&bed);
	r = run(&bed, &zero);
	if (r == -EOPNOTSUPP)
		cr_skip_test("the file system of /var/tmp has no FALLOC_FL_ZERO_RANGE");
	cr_assert(eq(int, r, 0));
	cr_assert(eq(u32, count_zeroes(&bed), 4 * BLOCK));
	cr_assert(ge(u64, allocated(&bed), before));
	tear_down(&bed);
}

BOTH(write_to_a_file_opened_for_reading)
{
	const struct loop_options options = {.without_uring = *without_uring};
	struct bed bed = {0};
	char byte = 1;
	const struct iovec iov = {&byte, 1};
	struct io_op write = transfer(IO_WRITE, &iov, 1, 0);

	make_bed_on(&bed, open("/proc/self/exe", O_RDONLY | O_CLOEXEC), &options);
	cr_assert(eq(int, run(&bed, &write), -EBADF));
	tear_down(&bed);
}

BOTH(nonsense_is_refused_before_the_kernel_sees_it)
{
	struct bed bed = {0};
	char byte;
	const struct iovec iov = {&byte, 1};
	const struct io_op ops[] = {
		transfer(IO_READ, &iov, 1, UINT64_MAX), transfer(IO_WRITE, &iov, 0, 0),
		transfer(IO_READ, &iov, 1025, 0),       range(IO_DISCARD, 0, 0),
		range(IO_ZERO, INT64_MAX, 1),           range(IO_ZERO_KEEP, 0, UINT64_MAX),
	};

	make_bed(&bed, *without_uring);
	for (uint32_t i = 0; i < ARRAY_SIZE(ops); i++)
		cr_assert(eq(int, submit(&bed, &ops[i], 0), -EINVAL));
	cr_assert(eq(u64, loop_counters(bed.loop).operations, 0));
	tear_down(&bed);
}

BOTH(too_many_is_busy_until_one_has_ended)
{
	struct bed bed = {0}, other = {0};
	char in[1];
	const struct iovec iov = {in, 1};
	struct io_op read = transfer(IO_READ, &iov, 1, 0);
	uint32_t n = 0, n_other = 0;
	int r;

	make_bed(&bed, *without_uring);
	other.source.on_event = on_bed;
	for (uint32_t i = 0; i < RESULTS; i++)
		other.results[i] = UNFINISHED;
	cr_assert(eq(int, loop_add(bed.loop, &other.source), 0));
	/* Workers end operations when they like: it is full when both were refused in a row. */
	do {
		while (!(r = submit(&bed, &read, n)))
			n++;
		cr_assert(eq(int, r, -EBUSY));
		r = io_submit(bed.io, bed.file, &read, &other.source, n_other);
		n_other += r == 0;
	} while (r == 0);
	cr_assert(eq(int, r, -EBUSY));
	cr_assert(ge(u32, n, DEPTH));
	/* Who was refused hears of it when an operation has ended, even without one of its own. */
	while (!bed.n_batches || !other.n_batches)
		cr_assert(eq(int, loop_turn(bed.loop, UINT64_MAX), 0));
	cr_assert(gt(u32, bed.n_results + other.n_results, 0));
	/* Who finds no room then is told again. */
	while ((r = io_submit(bed.io, bed.file, &read, &other.source, n_other)) == -EBUSY)
		cr_assert(eq(int, loop_turn(bed.loop, UINT64_MAX), 0));
	cr_assert(eq(int, r, 0));
	wait_for(&bed, n);
	while (other.n_results < n_other + 1)
		cr_assert(eq(int, loop_turn(bed.loop, UINT64_MAX), 0));
	loop_remove(&other.source);
	tear_down(&bed);
}

BOTH(completion_of_a_removed_source_is_dropped)
{
	struct bed bed = {0};
	char in = 0;
	const struct iovec iov = {&in, 1};
	struct io_op read = transfer(IO_READ, &iov, 1, 5);

	make_bed(&bed, *without_uring);
	fill(&bed);
	cr_assert(eq(int, submit(&bed, &read, 0), 0));
	loop_remove(&bed.source);
	/* In the place the old one had in memory, and with the same number. */
	cr_assert(eq(int, loop_add(bed.loop, &bed.source), 0));
	while (!*(volatile char *)&in)
		cr_assert(eq(int, loop_turn(bed.loop, loop_now(bed.loop) + 1000000), 0));
	bed.io = io_free(bed.io);
	cr_assert(eq(int, loop_turn(bed.loop, 0), 0));
	cr_assert(eq(u32, bed.n_results, 0));
	loop_remove(&bed.source);
	loop_free(bed.loop);
	close(bed.fd);
}

/* More than one submission queue full, each block with its own number in it. */
BOTH(many_operations_each_get_their_own_answer)
{
	static uint32_t out[N_BLOCKS][BLOCK / 4], in[N_BLOCKS][BLOCK / 4];
	static struct iovec iovs[2][N_BLOCKS];
	struct bed bed = {0};

	make_bed(&bed, *without_uring);
	for (uint32_t i = 0; i < N_BLOCKS; i++) {
		struct io_op write;

		out[i][0] = out[i][BLOCK / 4 - 1] = i + 1;
		iovs[0][i] = (struct iovec){out[i], BLOCK - i};
		iovs[1][i] = (struct iovec){in[i], BLOCK - i};
		write = transfer(IO_WRITE, &iovs[0][i], 1, (uint64_t)i * BLOCK);
		cr_assert(eq(int, submit(&bed, &write, i), 0));
	}
	wait_for(&bed, N_BLOCKS);
	for (uint32_t i = 0; i < N_BLOCKS; i++) {
		uint64_t at = (uint64_t)(N_BLOCKS - 1 - i) * BLOCK;
		struct io_op read = transfer(IO_READ, &iovs[1][i], 1, at);

		cr_assert(eq(int, submit(&bed, &read, N_BLOCKS + i), 0));
	}
	wait_for(&bed, 2 * N_BLOCKS);
	for (uint32_t i = 0; i < N_BLOCKS; i++) {
		cr_assert(eq(int, bed.results[i], (int)(BLOCK - i)));
		cr_assert(eq(int, bed.results[N_BLOCKS + i], (int)(BLOCK - i)));
		cr_assert(eq(u32, in[i][0], N_BLOCKS - i));
	}
	tear_down(&bed);
}

/*
 * As cached reads do on most file systems, writes to a file opened for reading end while they are
 * submitted: a round of them is one kernel entry.
 */
Test(io, ring_enters_once_for_a_round_of_operations)
{
	const struct loop_options options = {.depth = DEPTH};
	struct bed bed = {0};
	char byte = 0;
	const struct iovec iov = {&byte, 1};
	struct io_op write = transfer(IO_WRITE, &iov, 1, 0);
	uint64_t before;

	make_bed_on(&bed, open("/proc/self/exe", O_RDONLY | O_CLOEXEC), &options);
	cr_assert(eq(int, loop_turn(bed.loop, 0), 0));
	before = loop_counters(bed.loop).enters;
	for (uint32_t round = 0; round < 8; round++) {
		for (uint32_t i = 0; i < DEPTH; i++)
			cr_assert(eq(int, submit(&bed, &write, bed.n_results + i), 0));
		wait_for(&bed, (round + 1) * DEPTH);
	}
	cr_assert(eq(u64, loop_counters(bed.loop).enters - before, 8));
	tear_down(&bed);
}

/* A socket, its other end in `ret_peer`, on what io_direct_new makes of the loop. */
static void make_stream(struct bed *bed, int without_uring, int *ret_peer)
{
	const struct loop_options options = {
		.depth = DEPTH,
		.without_uring = without_uring,
	};
	int ends[2];

	signal(SIGPIPE, SIG_IGN);
	cr_assert(eq(int, socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends),
		     0));
	make_bed_on(bed, ends[0], &options);
	io_file_remove(bed->io, bed->file);
	io_free(bed->io);
	cr_assert(eq(int, io_direct_new(&bed->io, bed->loop), 0));
	cr_assert(eq(int, io_file_add(bed->io, ends[0], &bed->file), 0));
	*ret_peer = ends[1];
}

BOTH(what_has_no_offset_and_never_waits_is_read_and_written)
{
	struct bed bed = {0};
	char in[8] = "", peer_in[8] = "";
	const struct iovec iov[2] = {{in, 3}, {in + 3, 5}}, one = {in, sizeof(in)};
	const struct iovec out[2] = {{"he", 2}, {"llo", 4}};
	struct io_op read2 = transfer(IO_READ, iov, 2, 0), read1 = transfer(IO_READ, &one, 1, 0);
	struct io_op write = transfer(IO_WRITE, out, 2, 0);
	int peer;

	make_stream(&bed, *without_uring, &peer);
	cr_assert(eq(int, run(&bed, &read1), -EAGAIN));
	cr_assert(eq(int, run(&bed, &read2), -EAGAIN));
	cr_assert(eq(int, run(&bed, &write), 6));
	cr_assert(eq(int, (int)read(peer, peer_in, sizeof(peer_in)), 6));
	cr_assert(eq(str, peer_in, "hello"));
	cr_assert(eq(int, fd_write_full(peer, "abcdef", 7), 0));
	cr_assert(eq(int, run(&bed, &read2), 7));
	cr_assert(eq(str, in, "abcdef"));
	close(peer);
	cr_assert(eq(int, run(&bed, &read1), 0));
	cr_assert(eq(int, run(&bed, &write), -EPIPE));
	tear_down(&bed);
}

/* More than a submission queue full; each datagram's place is its number. */
BOTH(what_never_waits_ends_in_order_and_later)
{
	static char numbers[4 * DEPTH], in[4 * DEPTH];
	static struct iovec iovs[2][4 * DEPTH];
	struct bed bed = {0};
	int peer;

	make_stream(&bed, *without_uring, &peer);
	for (uint32_t i = 0; i < 4 * DEPTH; i++) {
		struct io_op write;

		numbers[i] = (char)i;
		iovs[0][i] = (struct iovec){&numbers[i], 1};
		write = transfer(IO_WRITE, &iovs[0][i], 1, 0);
		cr_assert(eq(int, submit(&bed, &write, i), 0));
	}
	cr_assert(eq(u32, bed.n_results, 0));
	wait_for(&bed, 4 * DEPTH);
	cr_assert(eq(int, fd_read_full(peer, in, sizeof(in)), 0));
	cr_assert(eq(int, memcmp(in, numbers, sizeof(in)), 0));
	memset(in, 0, sizeof(in));
	cr_assert(eq(int, fd_write_full(peer, numbers, sizeof(numbers)), 0));
	for (uint32_t i = 0; i < 4 * DEPTH; i++) {
		struct io_op read;

		iovs[1][i] = (struct iovec){&in[i], 1};
		read = transfer(IO_READ, &iovs[1][i], 1, 0);
		cr_assert(eq(int, submit(&bed, &read, 4 * DEPTH + i), 0));
	}
	wait_for(&bed, 8 * DEPTH);
	cr_assert(eq(int, memcmp(in, numbers, sizeof(in)), 0));
	close(peer);
	tear_down(&bed);
}

BOTH(too_many_that_never_wait_are_busy_until_the_next_turn)
{
	struct bed bed = {0};
	char in;
	const struct iovec iov = {&in, 1};
	struct io_op read = transfer(IO_READ, &iov, 1, 0), flush = {.kind = IO_FLUSH};
	uint32_t n = 0;
	int r, peer;

	make_stream(&bed, *without_uring, &peer);
	if (*without_uring)
		cr_assert(eq(int, submit(&bed, &flush, 0), -EINVAL));
	while (!(r = submit(&bed, &read, n)))
		cr_assert(lt(u32, ++n, RESULTS));
	cr_assert(eq(int, r, -EBUSY));
	while (!bed.n_batches)
		cr_assert(eq(int, loop_turn(bed.loop, UINT64_MAX), 0));
	cr_assert(eq(int, submit(&bed, &read, n), 0));
	wait_for(&bed, n + 1);
	close(peer);
	tear_down(&bed);
}

struct starts {
	pthread_mutex_t lock;
	pthread_cond_t go;
	bool gone;
	uint32_t n_starts, n_masked;
};

static void note_start(void *arg)
{
	struct starts *starts = arg;
	sigset_t mask;

	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	pthread_mutex_lock(&starts->lock);
	starts->n_starts++;
	starts->n_masked += sigismember(&mask, SIGTERM) && sigismember(&mask, SIGSEGV);
	while (!starts->gone)
		pthread_cond_wait(&starts->go, &starts->lock);
	pthread_mutex_unlock(&starts->lock);
}

Test(io, workers_begin_with_the_start_hook_and_may_wait_in_it)
{
	struct starts starts = {.lock = PTHREAD_MUTEX_INITIALIZER, .go = PTHREAD_COND_INITIALIZER};
	const struct loop_options options = {
		.without_uring = true,
		.thread_start = note_start,
		.thread_arg = &starts,
	};
	struct bed bed = {0};
	struct io_op flush = {.kind = IO_FLUSH};

	make_bed_on(&bed, memfd_create("disk", MFD_CLOEXEC), &options);
	cr_assert(eq(int, submit(&bed, &flush, 0), 0));
	cr_assert(eq(int, loop_turn(bed.loop, loop_now(bed.loop) + 2000000), 0));
	cr_assert(eq(u32, bed.n_results, 0));
	pthread_mutex_lock(&starts.lock);
	starts.gone = true;
	pthread_cond_broadcast(&starts.go);
	pthread_mutex_unlock(&starts.lock);
	wait_for(&bed, 1);
	tear_down(&bed);
	cr_assert(eq(u32, starts.n_starts, IO_THREADS));
	cr_assert(eq(u32, starts.n_masked, IO_THREADS));
}
