/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A loop's way through a qcow2 image, over a map, an I/O engine and a slow path of this file's own:
 * the engine keeps each operation until the test ends it, in the order and with the result the test
 * says, and then moves the bytes; the slow path runs on a real worker. The backing image is a raw
 * one on the same engine.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <semaphore.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/loop-engine.h"
#include "block/qcow2-parts.h"
#include "block/worker.h"

#define CLUSTER      4096u
#define CLUSTERS     16384u
#define SLICE        64u /* clusters that a lookup sees at once */
#define SIZE         ((uint64_t)CLUSTERS * CLUSTER)
#define OPS_MAX      4096
#define FILES_MAX    16
#define REQUESTS_MAX 256u /* as in qcow2-channel.c */
#define BACKING_SIZE (CLUSTER * 8192u + 512u)
#define WORKER_ERROR (-ENOSPC)
#define ANY          UINT32_MAX

/* The engine */

struct op {
	struct io_op op;
	uint64_t length;
	int fd;
	struct loop_source *source;
	union loop_cookie cookie;
	bool ended;
};

static struct engine {
	struct io io;
	int fds[FILES_MAX];
	struct op ops[OPS_MAX]; /* in the order of submission */
	uint32_t n_ops, n_under_way;
	uint32_t room;         /* under way at most */
	uint32_t backing_room; /* … on the backing image */
	uint32_t n_backing;
	int submit_error;
	uint32_t fail_at; /* submission that fails with it, ANY: none */
} engine;

static struct loop *loop;
static int image_fd, backing_fd;

static uint64_t iov_bytes(const struct iovec *iov, uint32_t n)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < n; i++)
		bytes += iov[i].iov_len;
	return bytes;
}

static int engine_file_add(struct io *io _unused_, int fd, uint32_t *ret_file)
{
	for (uint32_t i = 0; i < FILES_MAX; i++) {
		if (engine.fds[i] >= 0)
			continue;
		engine.fds[i] = fd;
		*ret_file = i;
		return 0;
	}
	return -EMFILE;
}

static void engine_file_remove(struct io *io _unused_, uint32_t file)
{
	engine.fds[file] = -1;
}

static int engine_submit(struct io *io _unused_, uint32_t file, const struct io_op *op,
			 struct loop_source *source, uint32_t arg)
{
	const bool backing = engine.fds[file] == backing_fd;

	cr_assert_geq(engine.fds[file], 0);
	cr_assert_lt(engine.n_ops, OPS_MAX);
	if (engine.n_ops == engine.fail_at) {
		engine.fail_at = ANY;
		return engine.submit_error;
	}
	if (engine.n_under_way >= engine.room ||
	    (backing && engine.n_backing >= engine.backing_room)) {
		loop_wait_for_room(source);
		return -EBUSY;
	}
	cr_assert(io_op_is_valid(op));
	engine.ops[engine.n_ops++] = (struct op){
		.op = *op,
		.length = iov_bytes(op->iov, op->n_iov),
		.fd = engine.fds[file],
		.source = source,
		.cookie = loop_cookie(source, LOOP_IO, arg),
	};
	engine.n_under_way++;
	engine.n_backing += backing;
	return 0;
}

static struct io *engine_free(struct io *io _unused_)
{
	return NULL;
}

static const struct io_ops engine_ops = {
	.name = "test",
	.file_add = engine_file_add,
	.file_remove = engine_file_remove,
	.submit = engine_submit,
	.free = engine_free,
};

/* In the place of the one in base/. */
int io_new(struct io **ret_io, struct loop *of _unused_)
{
	engine.io.ops = &engine_ops;
	*ret_io = &engine.io;
	return 0;
}

/* Moves `n` bytes of the operation. */
static void move(const struct op *op, uint64_t n)
{
	uint64_t at = op->op.offset;

	for (uint32_t i = 0; n; i++) {
		uint64_t here = MIN(n, (uint64_t)op->op.iov[i].iov_len);
		ssize_t r;

		cr_assert_lt(i, op->op.n_iov);
		if (op->op.kind == IO_READ)
			r = pread(op->fd, op->op.iov[i].iov_base, here, at);
		else
			r = pwrite(op->fd, op->op.iov[i].iov_base, here, at);
		cr_assert_eq(r, here);
		at += here;
		n -= here;
	}
}

static void turn(void)
{
	cr_assert_eq(loop_turn(loop, 0), 0);
}

/* Ends operation `i`. What follows of it in the loop has happened when this returns. */
static void end(uint32_t i, int32_t result)
{
	struct op *op = &engine.ops[i];

	cr_assert_lt(i, engine.n_ops);
	cr_assert_not(op->ended);
	if (op->op.kind != IO_FLUSH && result > 0)
		move(op, result);
	op->ended = true;
	engine.n_under_way--;
	engine.n_backing -= op->fd == backing_fd;
	loop_post_cookie(loop, op->cookie, result);
	turn();
}

static void end_well(uint32_t i)
{
	end(i, (int32_t)engine.ops[i].length);
}

static void end_all(void)
{
	for (uint32_t i = 0; i < engine.n_ops; i++)
		if (!engine.ops[i].ended)
			end_well(i);
}

/* The map */

static struct fake {
	struct qcow2 qcow2;
	struct {
		enum qcow2_lookup_kind kind;
		uint64_t place;
	} clusters[CLUSTERS];
	uint32_t n_entered, n_held, n_channels;
	uint32_t n_flushing;
	int flushed; /* the last */
	uint64_t n_lookups;
} fake;

struct qcow2_lookup qcow2_lookup(struct qcow2 *qcow2, uint64_t offset, uint64_t length)
{
	uint64_t first = offset / CLUSTER, in = offset % CLUSTER, i = first;
	struct qcow2_lookup lookup;

	cr_assert_eq(qcow2, &fake.qcow2);
	cr_assert_gt(fake.n_held, 0, "who looks up has entered");
	cr_assert(length && length <= SIZE && offset <= SIZE - length);
	fake.n_lookups++;
	lookup = (struct qcow2_lookup){
		.kind = fake.clusters[first].kind,
		.place = fake.clusters[first].place + in,
	};
	while (i < CLUSTERS && i / SLICE == first / SLICE && fake.clusters[i].kind == lookup.kind &&
	       (!fake.clusters[i].place ||
		fake.clusters[i].place == fake.clusters[first].place + (i - first) * CLUSTER))
		i++;
	lookup.length = MIN(length, (i - first) * CLUSTER - in);
	if (lookup.kind == QCOW2_MISSING)
		lookup = (struct qcow2_lookup){.kind = QCOW2_MISSING};
	return lookup;
}

uint32_t qcow2_enter(struct qcow2 *qcow2 _unused_, uint32_t channel)
{
	cr_assert_lt(channel, fake.n_channels);
	fake.n_held++;
	return fake.n_entered++ % 2;
}

void qcow2_leave(struct qcow2 *qcow2 _unused_, uint32_t channel, uint32_t epoch)
{
	cr_assert_lt(channel, fake.n_channels);
	cr_assert_lt(epoch, 2);
	cr_assert_gt(fake.n_held, 0);
	fake.n_held--;
}

bool qcow2_flush_begin(struct qcow2 *qcow2)
{
	fake.n_flushing += !qcow2->dirty;
	return !qcow2->dirty;
}

void qcow2_flush_end(struct qcow2 *qcow2 _unused_, int result)
{
	cr_assert_gt(fake.n_flushing, 0);
	fake.n_flushing--;
	fake.flushed = result;
}

int qcow2_inflight_take(struct qcow2 *qcow2 _unused_, uint32_t *ret_channel)
{
	*ret_channel = fake.n_channels++;
	return 0;
}

void qcow2_inflight_give(struct qcow2 *qcow2 _unused_, uint32_t channel _unused_)
{
}

/* The slow path: writes a pattern, or takes it, and says what the test says. */

struct job {
	struct io_op op;
	uint64_t length;
};

static struct slow {
	struct job jobs[OPS_MAX];
	_Atomic uint32_t n_jobs;
	_Atomic int result;
	_Atomic bool gated;
	sem_t gate;
	uint8_t pattern;
} slow;

int qcow2_run(struct block_image *image, const struct io_op *op)
{
	struct job *job;

	cr_assert_eq(image, &fake.qcow2.image);
	if (slow.gated)
		sem_wait(&slow.gate);
	job = &slow.jobs[slow.n_jobs];
	*job = (struct job){*op, op->length};
	if (op->kind == IO_READ || op->kind == IO_WRITE)
		job->length = iov_bytes(op->iov, op->n_iov);
	for (uint32_t i = 0; op->kind == IO_READ && i < op->n_iov; i++)
		memset(op->iov[i].iov_base, slow.pattern, op->iov[i].iov_len);
	slow.n_jobs++;
	return slow.result;
}

/* block.c knows it. */
const struct block_ops qcow2_ops = {
	.format = "qcow2",
	.channel_open = qcow2_channel_open,
	.channel_close = qcow2_channel_close,
	.submit = qcow2_submit,
	.run = qcow2_run,
};
int qcow2_open(struct block_image **ret_image _unused_, struct block_file *file _unused_,
	       const struct block_open *open _unused_, struct error *err _unused_)
{
	return -ENOTSUP;
}

/* Who waits */

static struct waiter {
	struct loop_source source;
	int32_t results[OPS_MAX]; /* by arg */
	uint32_t told[OPS_MAX];   /* times */
	uint32_t order[OPS_MAX];
	uint32_t n_told, n_batches;
	void (*on_told)(uint32_t arg);
} waiter;

static struct block_channel *channel;
static struct block_image *backing;
static struct block_worker *worker;
static uint8_t *memory; /* of the guest */
static uint32_t next_arg;

static void on_event(struct loop_source *source _unused_, const struct loop_event *event)
{
	if (event->kind == LOOP_POST) {
		cr_assert_eq(event->arg, LOOP_BATCH);
		waiter.n_batches++;
		return;
	}
	cr_assert_eq(event->kind, LOOP_IO);
	waiter.results[event->arg] = event->result;
	cr_assert_eq(waiter.told[event->arg]++, 0, "told twice");
	waiter.order[waiter.n_told++] = event->arg;
	if (waiter.on_told)
		waiter.on_told(event->arg);
}

static uint8_t byte_at(uint64_t offset, uint8_t salt)
{
	return (uint8_t)(offset / 512 * 31 + offset / CLUSTER * 7 + salt);
}

static void fill(int fd, uint64_t size, uint8_t salt)
{
	uint8_t *data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	cr_assert_neq(data, MAP_FAILED);
	for (uint64_t i = 0; i < size; i++)
		data[i] = byte_at(i, salt);
	munmap(data, size);
}

static void make_backing(void)
{
	const struct block_open open = {
		.format = "raw", .name = "backing", .readonly = true, .no_lock = true};
	struct error err = ERROR_NULL;

	backing_fd = memfd_create("backing", MFD_CLOEXEC);
	cr_assert_eq(ftruncate(backing_fd, BACKING_SIZE), 0);
	cr_assert_eq(block_open(&backing, backing_fd, &open, &err), 0, "%s", err.text);
	fake.qcow2.image.backing = backing;
}

static void open_channel(void)
{
	cr_assert_eq(block_channel_open(&channel, &fake.qcow2.image, loop), 0);
}

static void set_up_bare(void)
{
	const struct block_worker_options worker_options = {.name = "worker"};
	const struct loop_options options = {.name = "test"};
	struct error err = ERROR_NULL;

	engine.room = engine.backing_room = 4096;
	engine.fail_at = ANY;
	memset(engine.fds, 0xff, sizeof(engine.fds));
	cr_assert_eq(loop_new(&loop, &options, &err), 0, "%s", err.text);
	cr_assert_eq(loop_enable(loop), 0);
	cr_assert_eq(block_worker_new(&worker, &worker_options, &err), 0, "%s", err.text);
	cr_assert_eq(sem_init(&slow.gate, 0, 0), 0);
	slow.pattern = 0xcc;
	image_fd = memfd_create("image", MFD_CLOEXEC);
	cr_assert_eq(ftruncate(image_fd, 64 << 20), 0);
	backing_fd = -1;
	fake.qcow2.image = (struct block_image){
		.ops = &qcow2_ops,
		.file = {.fd = image_fd, .align = 1},
		.worker = worker,
		.size = SIZE,
		.io_block = BLOCK_SECTOR,
		.can_discard = true,
	};
	for (uint32_t i = 0; i < CLUSTERS; i++)
		fake.clusters[i].kind = QCOW2_ABSENT;
	waiter.source.on_event = on_event;
	cr_assert_eq(loop_add(loop, &waiter.source), 0);
	memory = mmap(NULL, 64 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cr_assert_neq(memory, MAP_FAILED);
}

static void set_up(void)
{
	set_up_bare();
	make_backing();
	open_channel();
}

static void set_up_alone(void)
{
	set_up_bare();
	open_channel();
}

static void tear_down(void)
{
	cr_assert_eq(engine.n_under_way, 0);
	cr_assert_eq(fake.n_held, 0, "every epoch was left");
	cr_assert_eq(fake.n_flushing, 0);
	channel = block_channel_close(channel);
	loop_remove(&waiter.source);
	loop = loop_free(loop);
	worker = block_worker_free(worker);
	backing = block_close(backing);
	for (uint32_t i = 0; i < FILES_MAX; i++)
		cr_assert_eq(engine.fds[i], -1, "every file was removed");
	munmap(memory, 64 << 20);
	fd_close(image_fd);
}

TestSuite(qcow2_channel, .init = set_up, .fini = tear_down, .timeout = 60);
TestSuite(qcow2_channel_alone, .init = set_up_alone, .fini = tear_down, .timeout = 60);

static void map(uint32_t cluster, uint32_t n, enum qcow2_lookup_kind kind, uint32_t place)
{
	bool placed = kind == QCOW2_MAPPED || kind == QCOW2_SHARED;

	for (uint32_t i = 0; i < n; i++) {
		fake.clusters[cluster + i].kind = kind;
		fake.clusters[cluster + i].place = placed ? (place + i) * (uint64_t)CLUSTER : 0;
	}
}

/* Submits; returns the argument it will come back with. */
static uint32_t submit(enum io_kind kind, const struct iovec *iov, uint32_t n_iov, uint64_t offset)
{
	const struct io_op op = {.kind = kind, .iov = iov, .n_iov = n_iov, .offset = offset};

	cr_assert_eq(block_submit(channel, &op, &waiter.source, next_arg), 0);
	cr_assert_eq(waiter.told[next_arg], 0, "who submits is not told before it is back");
	return next_arg++;
}

static uint32_t submit_range(enum io_kind kind, uint64_t offset, uint64_t length)
{
	const struct io_op op = {.kind = kind, .offset = offset, .length = length};

	cr_assert_eq(block_submit(channel, &op, &waiter.source, next_arg), 0);
	return next_arg++;
}

/* One buffer, at the same place in the guest's memory as on the disk. */
static struct iovec *whole(uint64_t offset, uint64_t length)
{
	static struct iovec rows[OPS_MAX];
	static uint32_t n;
	struct iovec *iov = &rows[n++ % OPS_MAX];

	*iov = (struct iovec){memory + offset, length};
	return iov;
}

static uint32_t submit_whole(enum io_kind kind, uint64_t offset, uint64_t length)
{
	return submit(kind, whole(offset, length), 1, offset);
}

static void wait_told(uint32_t arg)
{
	turn();
	while (!waiter.told[arg])
		cr_assert_eq(loop_turn(loop, UINT64_MAX), 0);
}

static void check_op(uint32_t i, enum io_kind kind, int fd, uint64_t offset, uint64_t length)
{
	const struct op *op = &engine.ops[i];

	cr_assert_lt(i, engine.n_ops);
	cr_assert_eq(op->op.kind, kind);
	cr_assert_eq(op->fd, fd);
	cr_assert_eq(op->op.offset, offset, "operation %u is at %llu", i,
		     (unsigned long long)op->op.offset);
	cr_assert_eq(op->length, length, "operation %u has %llu bytes", i,
		     (unsigned long long)op->length);
}

static void check_job(uint32_t i, enum io_kind kind, uint64_t offset, uint64_t length)
{
	const struct job *job = &slow.jobs[i];

	cr_assert_lt(i, slow.n_jobs);
	cr_assert_eq(job->op.kind, kind);
	cr_assert_eq(job->op.offset, offset);
	cr_assert_eq(job->length, length);
}

static void check_bytes(uint64_t at, uint64_t length, uint8_t value)
{
	for (uint64_t i = 0; i < length; i++)
		cr_assert_eq(memory[at + i], value, "byte %llu", (unsigned long long)(at + i));
}

static void check_pattern(uint64_t at, uint64_t length, uint64_t place, uint8_t salt)
{
	for (uint64_t i = 0; i < length; i++)
		cr_assert_eq(memory[at + i], byte_at(place + i, salt), "byte %llu",
			     (unsigned long long)(at + i));
}

/* The ring */

Test(qcow2_channel, what_is_mapped_goes_to_the_ring_as_it_is)
{
	struct iovec *iov = whole(CLUSTER + 512, 1024);
	uint32_t a;

	fill(image_fd, 1 << 20, 1);
	map(1, 1, QCOW2_MAPPED, 7);
	a = submit(IO_READ, iov, 1, CLUSTER + 512);
	cr_assert_eq(engine.n_ops, 1);
	check_op(0, IO_READ, image_fd, 7 * CLUSTER + 512, 1024);
	cr_assert_eq(engine.ops[0].op.iov, iov, "nothing is copied");
	cr_assert_eq(fake.n_held, 1);
	end_well(0);
	cr_assert_eq(fake.n_held, 0);
	cr_assert_eq(waiter.results[a], 1024);
	check_pattern(CLUSTER + 512, 1024, 7 * CLUSTER + 512, 1);
}

Test(qcow2_channel, writes_to_what_is_mapped_do_too)
{
	uint8_t back[CLUSTER];
	uint32_t a;

	map(3, 1, QCOW2_MAPPED, 9);
	memset(memory + 3 * CLUSTER, 0x77, CLUSTER);
	a = submit_whole(IO_WRITE, 3 * CLUSTER, CLUSTER);
	check_op(0, IO_WRITE, image_fd, 9 * CLUSTER, CLUSTER);
	end_well(0);
	cr_assert_eq(waiter.results[a], CLUSTER);
	cr_assert_eq(pread(image_fd, back, CLUSTER, 9 * CLUSTER), CLUSTER);
	cr_assert_eq(memcmp(back, memory + 3 * CLUSTER, CLUSTER), 0);
}

Test(qcow2_channel, one_row_in_the_file_is_one_operation)
{
	map(0, 4 * SLICE, QCOW2_MAPPED, 100);
	submit_whole(IO_WRITE, 512, 3 * SLICE * CLUSTER);
	cr_assert_eq(fake.n_lookups, 4);
	cr_assert_eq(engine.n_ops, 1, "though it took a lookup a slice");
	check_op(0, IO_WRITE, image_fd, 100 * CLUSTER + 512, 3 * SLICE * CLUSTER);
	end_well(0);
}

Test(qcow2_channel, rows_apart_are_operations_with_buffers_of_their_own)
{
	struct iovec iov[4] = {
		{memory, 100},
		{memory + 100, 2 * CLUSTER},
		{memory + 100 + 2 * CLUSTER, 0},
		{memory + 100 + 2 * CLUSTER, CLUSTER - 100},
	};
	uint32_t a;

	fill(image_fd, 1 << 20, 2);
	map(0, 1, QCOW2_MAPPED, 20);
	map(1, 1, QCOW2_MAPPED, 5);
	map(2, 1, QCOW2_SHARED, 50);
	a = submit(IO_READ, iov, 4, 0);
	cr_assert_eq(engine.n_ops, 3);
	check_op(0, IO_READ, image_fd, 20 * CLUSTER, CLUSTER);
	check_op(1, IO_READ, image_fd, 5 * CLUSTER, CLUSTER);
	check_op(2, IO_READ, image_fd, 50 * CLUSTER, CLUSTER);
	cr_assert_eq(engine.ops[0].op.n_iov, 2);
	cr_assert_eq(engine.ops[1].op.n_iov, 1);
	end_well(1);
	end_well(2);
	cr_assert_eq(waiter.told[a], 0);
	cr_assert_eq(fake.n_held, 1);
	end_well(0);
	cr_assert_eq(waiter.results[a], 3 * CLUSTER);
	check_pattern(0, CLUSTER, 20 * CLUSTER, 2);
	check_pattern(CLUSTER, CLUSTER, 5 * CLUSTER, 2);
	check_pattern(2 * CLUSTER, CLUSTER, 50 * CLUSTER, 2);
}

/* Zeroes and the backing image */

Test(qcow2_channel_alone, what_nobody_has_reads_as_zeroes)
{
	uint32_t a, b;

	memset(memory, 0xff, 4 * CLUSTER);
	map(1, 1, QCOW2_ZEROES, 0);
	a = submit_whole(IO_READ, 0, 3 * CLUSTER);
	b = submit_whole(IO_READ, 3 * CLUSTER, 512);
	cr_assert_eq(engine.n_ops, 0);
	cr_assert_eq(fake.n_held, 0);
	turn();
	cr_assert_eq(waiter.results[a], 3 * CLUSTER);
	cr_assert_eq(waiter.results[b], 512);
	check_bytes(0, 3 * CLUSTER + 512, 0);
	check_bytes(3 * CLUSTER + 512, 512, 0xff);
	cr_assert_eq(slow.n_jobs, 0);
}

Test(qcow2_channel, what_is_absent_is_read_from_the_backing_image)
{
	uint32_t a;

	fill(backing_fd, BACKING_SIZE, 3);
	a = submit_whole(IO_READ, 5 * CLUSTER, 2 * CLUSTER);
	cr_assert_eq(engine.n_ops, 1);
	check_op(0, IO_READ, backing_fd, 5 * CLUSTER, 2 * CLUSTER);
	cr_assert_eq(fake.n_held, 0, "nothing of this image is in use");
	end_well(0);
	cr_assert_eq(waiter.results[a], 2 * CLUSTER);
	check_pattern(5 * CLUSTER, 2 * CLUSTER, 5 * CLUSTER, 3);
}

Test(qcow2_channel, zeroes_hide_the_backing_image)
{
	uint32_t a;

	memset(memory, 0xff, CLUSTER);
	map(0, 1, QCOW2_ZEROES, 0);
	a = submit_whole(IO_READ, 0, CLUSTER);
	turn();
	cr_assert_eq(engine.n_ops, 0);
	cr_assert_eq(waiter.results[a], CLUSTER);
	check_bytes(0, CLUSTER, 0);
}

Test(qcow2_channel, behind_the_backing_image_are_zeroes)
{
	const uint64_t at = BACKING_SIZE - 512;
	uint32_t a, b;

	fill(backing_fd, BACKING_SIZE, 4);
	memset(memory + at, 0xff, 4 * CLUSTER);
	a = submit_whole(IO_READ, at, CLUSTER);
	b = submit_whole(IO_READ, BACKING_SIZE, CLUSTER);
	cr_assert_eq(engine.n_ops, 1);
	check_op(0, IO_READ, backing_fd, at, 512);
	turn();
	cr_assert_eq(waiter.results[b], CLUSTER);
	end_well(0);
	cr_assert_eq(waiter.results[a], CLUSTER);
	check_pattern(at, 512, at, 4);
	check_bytes(BACKING_SIZE, CLUSTER, 0);
}

Test(qcow2_channel, all_kinds_in_one_read)
{
	struct iovec iov[] = {{memory, 700}, {memory + 700, 6 * CLUSTER - 700}};
	uint32_t a;

	fill(image_fd, 1 << 20, 5);
	fill(backing_fd, BACKING_SIZE, 6);
	memset(memory, 0xff, 7 * CLUSTER);
	map(0, 1, QCOW2_ZEROES, 0);
	map(1, 1, QCOW2_MAPPED, 11);
	map(3, 1, QCOW2_SHARED, 4);
	map(4, 1, QCOW2_ZEROES, 0);
	a = submit(IO_READ, iov, 2, 0);
	cr_assert_eq(engine.n_ops, 4);
	check_op(0, IO_READ, image_fd, 11 * CLUSTER, CLUSTER);
	check_op(1, IO_READ, image_fd, 4 * CLUSTER, CLUSTER);
	check_op(2, IO_READ, backing_fd, 2 * CLUSTER, CLUSTER);
	check_op(3, IO_READ, backing_fd, 5 * CLUSTER, CLUSTER);
	end_all();
	cr_assert_eq(waiter.results[a], 6 * CLUSTER);
	check_bytes(0, CLUSTER, 0);
	check_pattern(CLUSTER, CLUSTER, 11 * CLUSTER, 5);
	check_pattern(2 * CLUSTER, CLUSTER, 2 * CLUSTER, 6);
	check_pattern(3 * CLUSTER, CLUSTER, 4 * CLUSTER, 5);
	check_bytes(4 * CLUSTER, CLUSTER, 0);
	check_pattern(5 * CLUSTER, CLUSTER, 5 * CLUSTER, 6);
	check_bytes(6 * CLUSTER, CLUSTER, 0xff);
}

/* The worker */

Test(qcow2_channel, what_may_wait_goes_to_the_worker_whole)
{
	static const enum qcow2_lookup_kind slow_reads[] = {QCOW2_MISSING, QCOW2_PACKED};
	static const enum qcow2_lookup_kind slow_writes[] = {
		QCOW2_MISSING, QCOW2_ABSENT, QCOW2_ZEROES, QCOW2_SHARED, QCOW2_PACKED};
	uint32_t n = 0;

	map(0, 1, QCOW2_MAPPED, 1);
	for (uint32_t i = 0; i < ARRAY_SIZE(slow_reads); i++, n++) {
		uint32_t a;

		map(1, 1, slow_reads[i], 3);
		a = submit_whole(IO_READ, 0, 2 * CLUSTER);
		wait_told(a);
		cr_assert_eq(waiter.results[a], 2 * CLUSTER);
		check_job(n, IO_READ, 0, 2 * CLUSTER);
		check_bytes(0, 2 * CLUSTER, 0xcc);
	}
	for (uint32_t i = 0; i < ARRAY_SIZE(slow_writes); i++, n++) {
		uint32_t a;

		map(1, 1, slow_writes[i], 3);
		a = submit_whole(IO_WRITE, 512, 2 * CLUSTER - 512);
		cr_assert_eq(fake.n_held, 0, "the worker may wait for all who hold an epoch");
		wait_told(a);
		cr_assert_eq(waiter.results[a], 2 * CLUSTER - 512);
		check_job(n, IO_WRITE, 512, 2 * CLUSTER - 512);
	}
	cr_assert_eq(engine.n_ops, 0);
}

Test(qcow2_channel, the_workers_errors_come_up)
{
	uint32_t a;

	slow.result = WORKER_ERROR;
	a = submit_whole(IO_WRITE, 0, 512);
	wait_told(a);
	cr_assert_eq(waiter.results[a], WORKER_ERROR);
}

Test(qcow2_channel, discards_and_zeroes_are_the_workers)
{
	static const enum io_kind kinds[] = {IO_DISCARD, IO_ZERO, IO_ZERO_KEEP};

	for (uint32_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		uint32_t a = submit_range(kinds[i], CLUSTER, 3 * CLUSTER);

		wait_told(a);
		cr_assert_eq(waiter.results[a], 0);
		check_job(i, kinds[i], CLUSTER, 3 * CLUSTER);
	}
	slow.result = WORKER_ERROR;
	wait_told(submit_range(IO_DISCARD, 0, 512));
	cr_assert_eq(waiter.results[3], WORKER_ERROR);
}

Test(qcow2_channel, discards_that_are_not_wanted_do_nothing)
{
	uint32_t a;

	fake.qcow2.image.can_discard = false;
	a = submit_range(IO_DISCARD, 0, CLUSTER);
	turn();
	cr_assert_eq(waiter.told[a], 1);
	cr_assert_eq(waiter.results[a], 0);
	cr_assert_eq(slow.n_jobs, 0);
	wait_told(submit_range(IO_ZERO, 0, CLUSTER));
	cr_assert_eq(slow.n_jobs, 1, "zeroes are data");
}

Test(qcow2_channel, the_worker_does_jobs_in_their_order_and_so_they_are_told)
{
	uint32_t last = 0;

	slow.gated = true;
	for (uint32_t i = 0; i < 40; i++)
		last = submit_whole(IO_WRITE, i * 512, 512);
	turn();
	cr_assert_eq(slow.n_jobs, 0);
	for (uint32_t i = 0; i < 40; i++)
		sem_post(&slow.gate);
	wait_told(last);
	for (uint32_t i = 0; i < 40; i++) {
		check_job(i, IO_WRITE, i * 512, 512);
		cr_assert_eq(waiter.order[i], i);
	}
}

Test(qcow2_channel, many_ends_are_one_post)
{
	uint64_t before;

	slow.gated = true;
	for (uint32_t i = 0; i < 40; i++)
		submit_whole(IO_WRITE, i * 512, 512);
	turn();
	for (uint32_t i = 0; i < 40; i++)
		sem_post(&slow.gate);
	while (slow.n_jobs < 40)
		usleep(100);
	usleep(10000); /* the last has been put into the list, most probably */
	before = loop_counters(loop).posts;
	wait_told(39);
	cr_assert_leq(loop_counters(loop).posts - before, 2);
}

Test(qcow2_channel, a_corrupt_image_is_read_and_not_written)
{
	uint32_t a;

	map(0, 1, QCOW2_MAPPED, 1);
	fake.qcow2.corrupt = true;
	slow.result = -EIO;
	a = submit_whole(IO_WRITE, 0, 512);
	cr_assert_eq(engine.n_ops, 0);
	wait_told(a);
	cr_assert_eq(waiter.results[a], -EIO, "as the worker says");
	a = submit_whole(IO_READ, 0, 512);
	cr_assert_eq(engine.n_ops, 1);
	end_well(0);
	cr_assert_eq(waiter.results[a], 512);
}

/* Limits */

Test(qcow2_channel, as_many_parts_as_there_are_places_for)
{
	uint32_t a;

	for (uint32_t i = 0; i < QCOW2_PARTS_MAX + 1; i++)
		map(i, 1, QCOW2_MAPPED, 2 * i + 1);
	a = submit_whole(IO_WRITE, 0, QCOW2_PARTS_MAX * CLUSTER);
	cr_assert_eq(engine.n_ops, QCOW2_PARTS_MAX);
	end_all();
	cr_assert_eq(waiter.results[a], QCOW2_PARTS_MAX * CLUSTER);
	a = submit_whole(IO_WRITE, 0, (QCOW2_PARTS_MAX + 1) * CLUSTER);
	cr_assert_eq(engine.n_ops, QCOW2_PARTS_MAX, "one more is the worker's");
	wait_told(a);
	check_job(0, IO_WRITE, 0, (QCOW2_PARTS_MAX + 1) * CLUSTER);
}

Test(qcow2_channel, more_buffers_than_there_are_rows_for)
{
	struct iovec iov[QCOW2_ROWS_MAX + 1];
	uint32_t a;

	for (uint32_t i = 0; i <= QCOW2_ROWS_MAX; i++)
		iov[i] = (struct iovec){memory + i * 512, 512};
	map(0, 64, QCOW2_MAPPED, 1);
	a = submit(IO_READ, iov, QCOW2_ROWS_MAX + 1, 0);
	cr_assert_eq(engine.n_ops, 1, "one part needs no rows");
	end_all();
	map(1, 1, QCOW2_MAPPED, 100);
	a = submit(IO_READ, iov, QCOW2_ROWS_MAX + 1, 0);
	cr_assert_eq(engine.n_ops, 1);
	cr_assert_eq(fake.n_held, 0);
	wait_told(a);
	check_job(0, IO_READ, 0, (QCOW2_ROWS_MAX + 1) * 512);
	a = submit(IO_READ, iov, QCOW2_ROWS_MAX, 0);
	cr_assert_eq(engine.n_ops, 4);
	end_all();
	cr_assert_eq(waiter.results[a], QCOW2_ROWS_MAX * 512);
}

Test(qcow2_channel, a_long_operation_is_done_in_steps)
{
	struct iovec iov[3] = {
		{memory, 1 << 20}, {memory + (1 << 20), 15 << 20}, {memory, 20 << 20}};
	uint32_t a;

	map(0, CLUSTERS, QCOW2_MAPPED, 0);
	a = submit(IO_READ, iov, 3, 0);
	check_op(0, IO_READ, image_fd, 0, QCOW2_STEP_MAX);
	end_well(0);
	cr_assert_eq(waiter.results[a], QCOW2_STEP_MAX);
	map(5, 1, QCOW2_PACKED, 0);
	iov[1].iov_len = 30 << 20;
	a = submit(IO_READ, iov, 2, 0);
	wait_told(a);
	cr_assert_eq(waiter.results[a], QCOW2_STEP_MAX);
	check_job(0, IO_READ, 0, QCOW2_STEP_MAX);
	map(5, 1, QCOW2_MAPPED, 3);
	a = submit(IO_READ, iov, 2, 0);
	cr_assert_eq(engine.n_ops, 4);
	check_op(3, IO_READ, image_fd, 6 * CLUSTER, QCOW2_STEP_MAX - 6 * CLUSTER);
	end_all();
	cr_assert_eq(waiter.results[a], QCOW2_STEP_MAX);
}

Test(qcow2_channel, what_is_no_operation_is_refused_at_once)
{
	struct iovec iov = {memory, 512};
	const struct io_op bad[] = {
		{.kind = IO_READ, .iov = &iov, .n_iov = 0},
		{.kind = IO_READ, .iov = &iov, .n_iov = 1, .offset = 100},
		{.kind = IO_READ, .iov = &iov, .n_iov = 1, .offset = SIZE},
		{.kind = IO_WRITE, .iov = &iov, .n_iov = 1, .offset = UINT64_MAX - 511},
		{.kind = IO_DISCARD, .offset = 0, .length = SIZE + 512},
		{.kind = IO_ZERO, .offset = 512, .length = SIZE},
		{.kind = IO_ZERO, .offset = 512, .length = 0},
	};
	struct io_op write = {.kind = IO_WRITE, .iov = &iov, .n_iov = 1};

	for (uint32_t i = 0; i < ARRAY_SIZE(bad); i++)
		cr_assert_eq(block_submit(channel, &bad[i], &waiter.source, 0), -EINVAL, "%u", i);
	iov.iov_len = 100;
	cr_assert_eq(block_submit(channel, &write, &waiter.source, 0), -EINVAL);
	iov.iov_len = 512;
	fake.qcow2.image.readonly = true;
	cr_assert_eq(block_submit(channel, &write, &waiter.source, 0), -EROFS);
	fake.qcow2.image.readonly = false;
	fake.qcow2.image.inactive = true;
	cr_assert_eq(block_submit(channel, &write, &waiter.source, 0), -EROFS);
}

Test(qcow2_channel, under_o_direct_the_worker_takes_what_is_not_aligned)
{
	struct iovec iov[2] = {{memory + 8, 512}, {memory + 1024, 512}};
	uint32_t a;

	map(0, 1, QCOW2_MAPPED, 1);
	fake.qcow2.image.file.align = 512;
	a = submit(IO_READ, iov, 2, 0);
	cr_assert_eq(engine.n_ops, 0);
	cr_assert_eq(fake.n_held, 0);
	wait_told(a);
	iov[0].iov_base = memory;
	a = submit(IO_READ, iov, 2, 0);
	cr_assert_eq(engine.n_ops, 1);
	end_all();
	fake.qcow2.image.file.align = 4096;
	wait_told(submit(IO_READ, iov, 2, 512));
	cr_assert_eq(slow.n_jobs, 2);
	fake.qcow2.image.file.align = 1;
	backing->file.align = 4096;
	wait_told(submit(IO_READ, iov, 2, CLUSTER));
	cr_assert_eq(slow.n_jobs, 3, "and so for the backing image");
	backing->file.align = 1;
}

/* Flushes */

Test(qcow2_channel, a_flush_of_data_only_is_the_rings)
{
	uint32_t a = submit_range(IO_FLUSH, 0, 0), b;

	cr_assert_eq(engine.n_ops, 1);
	check_op(0, IO_FLUSH, image_fd, 0, 0);
	end(0, 0);
	cr_assert_eq(waiter.results[a], 0);
	b = submit_range(IO_FLUSH, 0, 0);
	cr_assert_eq(fake.n_flushing, 1);
	end(1, -EIO);
	cr_assert_eq(waiter.results[b], -EIO);
	cr_assert_eq(fake.flushed, -EIO, "the commit is told what it will not be");
	cr_assert_eq(slow.n_jobs, 0);
}

Test(qcow2_channel, a_flush_of_what_is_in_memory_is_the_workers)
{
	uint32_t a;

	fake.qcow2.dirty = true;
	a = submit_range(IO_FLUSH, 0, 0);
	cr_assert_eq(engine.n_ops, 0);
	wait_told(a);
	cr_assert_eq(waiter.results[a], 0);
	check_job(0, IO_FLUSH, 0, 0);
	slow.result = -EIO;
	a = submit_range(IO_FLUSH, 0, 0);
	wait_told(a);
	cr_assert_eq(waiter.results[a], -EIO);
}

/* A write that ended before the flush came has its job done before the flush's. */
Test(qcow2_channel, a_flush_comes_behind_the_workers_writes)
{
	fake.qcow2.dirty = true;
	slow.gated = true;
	submit_whole(IO_WRITE, 0, 512);
	submit_range(IO_FLUSH, 0, 0);
	sem_post(&slow.gate);
	sem_post(&slow.gate);
	wait_told(1);
	check_job(0, IO_WRITE, 0, 512);
	check_job(1, IO_FLUSH, 0, 0);
}

/* Ends */

Test(qcow2_channel, a_write_that_ends_short_is_passed_up)
{
	uint32_t a;

	map(0, 4, QCOW2_MAPPED, 1);
	a = submit_whole(IO_WRITE, 0, 4 * CLUSTER);
	end(0, CLUSTER + 512);
	cr_assert_eq(waiter.results[a], CLUSTER + 512);
	a = submit_whole(IO_WRITE, 0, CLUSTER);
	end(1, 0);
	cr_assert_eq(waiter.results[a], 0);
	a = submit_whole(IO_WRITE, 0, CLUSTER);
	end(2, -ENOSPC);
	cr_assert_eq(waiter.results[a], -ENOSPC);
	cr_assert_eq(slow.n_jobs, 0);
}

/* Every way for three parts to end, in every order. */
Test(qcow2_channel, what_is_behind_a_gap_does_not_count)
{
	static const int32_t ends[] = {CLUSTER, 512, 0, -EIO};
	static const uint8_t orders[][3] = {{0, 1, 2}, {2, 1, 0}, {1, 2, 0}};

	map(0, 1, QCOW2_MAPPED, 1);
	map(1, 1, QCOW2_MAPPED, 10);
	map(2, 1, QCOW2_MAPPED, 20);
	for (uint32_t way = 0; way < 4 * 4 * 4 * 3; way++) {
		const int32_t each[] = {ends[way % 4], ends[way / 4 % 4], ends[way / 16 % 4]};
		uint32_t first = engine.n_ops, a = submit_whole(IO_WRITE, 0, 3 * CLUSTER);
		int32_t expected = 0;

		for (uint32_t i = 0; i < 3; i++) {
			uint32_t part = orders[way / 64][i];

			cr_assert_eq(waiter.told[a], 0);
			end(first + part, each[part]);
		}
		for (uint32_t i = 0; i < 3; i++) {
			if (each[i] == CLUSTER) {
				expected += CLUSTER;
				continue;
			}
			if (each[i] > 0 || !expected)
				expected += each[i];
			break;
		}
		cr_assert_eq(waiter.results[a], expected, "way %u: %d, not %d", way,
			     waiter.results[a], expected);
	}
}

Test(qcow2_channel, a_read_that_ends_short_is_done_again_by_one_who_knows_why)
{
	uint32_t a;

	map(0, 1, QCOW2_MAPPED, 1);
	map(1, 1, QCOW2_MAPPED, 10);
	a = submit_whole(IO_READ, 0, 2 * CLUSTER);
	end(0, 512);
	end_well(1);
	cr_assert_eq(waiter.told[a], 0);
	cr_assert_eq(fake.n_held, 0);
	wait_told(a);
	check_job(0, IO_READ, 0, 2 * CLUSTER);
	cr_assert_eq(waiter.results[a], 2 * CLUSTER);
	check_bytes(0, 2 * CLUSTER, 0xcc);
	/* Nothing at all, from a file that ends before it. */
	a = submit_whole(IO_READ, 0, CLUSTER);
	end(2, 0);
	wait_told(a);
	cr_assert_eq(waiter.results[a], CLUSTER);
	/* Of the backing image. */
	a = submit_whole(IO_READ, 2 * CLUSTER, CLUSTER);
	end(3, 1024);
	wait_told(a);
	cr_assert_eq(slow.n_jobs, 3);
}

Test(qcow2_channel, a_read_that_fails_is_not)
{
	uint32_t a;

	map(0, 1, QCOW2_MAPPED, 1);
	map(1, 1, QCOW2_MAPPED, 10);
	a = submit_whole(IO_READ, 0, 2 * CLUSTER);
	end(0, -EIO);
	end_well(1);
	cr_assert_eq(waiter.results[a], -EIO);
	a = submit_whole(IO_READ, 0, 2 * CLUSTER);
	end_well(2);
	end(3, -EIO);
	cr_assert_eq(waiter.results[a], CLUSTER, "what came before it did come");
	cr_assert_eq(slow.n_jobs, 0);
}

Test(qcow2_channel, a_part_that_cannot_be_submitted_fails)
{
	uint32_t a;

	map(0, 1, QCOW2_MAPPED, 1);
	engine.fail_at = 0;
	engine.submit_error = -EINVAL;
	a = submit_whole(IO_READ, 0, CLUSTER);
	cr_assert_eq(fake.n_held, 0);
	turn();
	cr_assert_eq(waiter.results[a], -EINVAL);
	map(1, 1, QCOW2_MAPPED, 10);
	engine.fail_at = 0;
	a = submit_whole(IO_READ, 0, 2 * CLUSTER);
	cr_assert_eq(engine.n_ops, 1, "the other is on its way");
	end_well(0);
	cr_assert_eq(waiter.results[a], -EINVAL);
	engine.fail_at = 1;
	a = submit_range(IO_FLUSH, 0, 0);
	turn();
	cr_assert_eq(waiter.results[a], -EINVAL);
	cr_assert_eq(fake.flushed, -EINVAL);
}

static void submit_next(uint32_t arg)
{
	if (arg < 5)
		submit_whole(IO_READ, (arg & 1) * CLUSTER, CLUSTER);
}

Test(qcow2_channel, who_is_told_may_submit)
{
	map(0, 1, QCOW2_MAPPED, 1);
	map(1, 1, QCOW2_PACKED, 0);
	waiter.on_told = submit_next;
	submit_whole(IO_READ, 0, CLUSTER);
	while (!waiter.told[5]) {
		end_all();
		turn();
	}
	cr_assert_eq(waiter.n_told, 6);
}

Test(qcow2_channel, who_has_gone_is_not_told)
{
	map(0, 1, QCOW2_MAPPED, 1);
	submit_whole(IO_READ, 0, CLUSTER);
	submit_whole(IO_WRITE, CLUSTER, CLUSTER);
	loop_remove(&waiter.source);
	end_well(0);
	while (slow.n_jobs < 1)
		turn();
	turn();
	cr_assert_eq(loop_add(loop, &waiter.source), 0);
	wait_told(submit_whole(IO_WRITE, CLUSTER, CLUSTER));
	cr_assert_eq(waiter.n_told, 1);
}

/* Room */

Test(qcow2_channel, what_finds_no_room_goes_on_when_there_is)
{
	uint32_t a;

	for (uint32_t i = 0; i < 4; i++)
		map(i, 1, QCOW2_MAPPED, 2 * i + 1);
	engine.room = 1;
	a = submit_whole(IO_WRITE, 0, 4 * CLUSTER);
	for (uint32_t i = 0; i < 4; i++) {
		cr_assert_eq(engine.n_ops, i + 1);
		cr_assert_eq(fake.n_held, 1, "until the last place was written");
		check_op(i, IO_WRITE, image_fd, (2 * i + 1) * CLUSTER, CLUSTER);
		end_well(i);
	}
	cr_assert_eq(waiter.results[a], 4 * CLUSTER);
	engine.room = 0;
	a = submit_range(IO_FLUSH, 0, 0);
	turn();
	cr_assert_eq(engine.n_ops, 4);
	engine.room = 1;
	/* Any end will do. */
	loop_post_cookie(loop, (union loop_cookie){.kind = LOOP_IO, .slot = 1000}, 0);
	turn();
	end(4, 0);
	cr_assert_eq(waiter.told[a], 1);
}

Test(qcow2_channel, waiting_for_the_backing_image_keeps_nothing_from_the_ring)
{
	uint32_t a, b;

	map(1, 1, QCOW2_MAPPED, 1);
	map(3, 1, QCOW2_MAPPED, 9);
	engine.backing_room = 0;
	a = submit_whole(IO_READ, 0, 4 * CLUSTER);
	b = submit_whole(IO_READ, CLUSTER, CLUSTER);
	cr_assert_eq(engine.n_ops, 3);
	end_all();
	cr_assert_eq(fake.n_held, 0, "and then it holds no place of the file");
	cr_assert_eq(waiter.told[b], 1);
	cr_assert_eq(waiter.told[a], 0);
	engine.backing_room = 1;
	wait_told(submit_whole(IO_WRITE, 2 * CLUSTER, 512));
	turn();
	cr_assert_eq(engine.n_ops, 4, "the worker's end made it try again");
	end_all();
	cr_assert_eq(waiter.results[a], 4 * CLUSTER);
}

Test(qcow2_channel, a_full_channel_says_so_and_when_it_is_not)
{
	const struct io_op op = {.kind = IO_READ, .iov = whole(0, 512), .n_iov = 1};

	map(0, 1, QCOW2_MAPPED, 1);
	map(1, 1, QCOW2_PACKED, 0);
	slow.gated = true;
	for (uint32_t i = 0; i < REQUESTS_MAX; i++)
		submit_whole(IO_READ, i == 0 ? 0 : CLUSTER, 512);
	cr_assert_eq(block_submit(channel, &op, &waiter.source, 999), -EBUSY);
	turn();
	cr_assert_eq(waiter.n_batches, 0);
	end_well(0);
	cr_assert_eq(waiter.n_batches, 1);
	cr_assert_eq(block_submit(channel, &op, &waiter.source, next_arg++), 0);
	cr_assert_eq(block_submit(channel, &op, &waiter.source, 999), -EBUSY);
	turn();
	cr_assert_eq(waiter.n_batches, 1);
	/* The worker's ends count, too. */
	sem_post(&slow.gate);
	wait_told(1);
	cr_assert_eq(waiter.n_batches, 2);
	for (uint32_t i = 0; i < REQUESTS_MAX; i++)
		sem_post(&slow.gate);
	end_all();
	while (waiter.n_told < REQUESTS_MAX + 1)
		cr_assert_eq(loop_turn(loop, UINT64_MAX), 0);
}

/* Several channels */

Test(qcow2_channel, channels_of_one_image_know_their_own)
{
	struct block_channel *second, *first = channel;
	uint32_t a, b;

	cr_assert_eq(block_channel_open(&second, &fake.qcow2.image, loop), 0);
	map(0, 1, QCOW2_MAPPED, 1);
	a = submit_whole(IO_WRITE, 0, 512);
	channel = second;
	b = submit_whole(IO_WRITE, 512, 512);
	submit_whole(IO_WRITE, CLUSTER, 512);
	end_well(1);
	cr_assert_eq(waiter.told[b], 1);
	cr_assert_eq(waiter.told[a], 0);
	end_well(0);
	wait_told(2);
	channel = first;
	block_channel_close(second);
	wait_told(submit_whole(IO_WRITE, CLUSTER, 512));
}

Test(qcow2_channel, closed_and_opened_again)
{
	for (uint32_t i = 0; i < 200; i++) {
		wait_told(submit_whole(IO_WRITE, CLUSTER, 512));
		channel = block_channel_close(channel);
		open_channel();
	}
}

Test(qcow2_channel, without_a_worker_there_is_no_channel)
{
	struct block_channel *none = NULL;

	fake.qcow2.image.worker = NULL;
	cr_assert_eq(block_channel_open(&none, &fake.qcow2.image, loop), -EINVAL);
	cr_assert_null(none);
	fake.qcow2.image.worker = worker;
}

/* Any map, any operation, any order and way of ending: what comes back is right. */

static uint64_t seed = 88172645463325252ull;

static uint32_t any(uint32_t below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)(seed >> 20) % below;
}

#define AREA 48u /* clusters; more than there are parts for */

static void any_map(void)
{
	for (uint32_t i = 0; i < AREA; i++) {
		uint32_t n = 1 + any(4), what = any(20);
		enum qcow2_lookup_kind kind = what < 9    ? QCOW2_MAPPED
					      : what < 12 ? QCOW2_SHARED
					      : what < 15 ? QCOW2_ABSENT
					      : what < 19 ? QCOW2_ZEROES
							  : QCOW2_PACKED;

		n = MIN(n, AREA - i);
		map(i, n, kind, 1 + any(200));
		i += n - 1;
	}
}

static uint8_t right_byte(uint64_t offset)
{
	uint64_t cluster = offset / CLUSTER;

	switch (fake.clusters[cluster].kind) {
	case QCOW2_MAPPED:
	case QCOW2_SHARED:
		return byte_at(fake.clusters[cluster].place + offset % CLUSTER, 8);
	case QCOW2_ABSENT:
		return offset < backing->size ? byte_at(offset, 9) : 0;
	default:
		return 0;
	}
}

/* Cut into buffers anyhow, some empty. */
static uint32_t any_iov(struct iovec *iov, uint64_t offset, uint64_t length)
{
	uint32_t n = 0;

	while (length && n < 100) {
		uint64_t here = MIN(length, (uint64_t)any(n % 3 ? 3 * CLUSTER : 700));

		iov[n++] = (struct iovec){memory + offset, here};
		offset += here;
		length -= here;
	}
	if (length)
		iov[n++] = (struct iovec){memory + offset, length};
	return n;
}

static void end_any(bool well)
{
	while (engine.n_under_way || fake.n_held) {
		uint32_t i = any(engine.n_ops);
		int32_t length;

		if (engine.ops[i].ended)
			continue;
		length = (int32_t)engine.ops[i].length;
		if (any(8) == 0)
			engine.room = any(4) ? 4096 : engine.n_under_way;
		end(i, well || any(4) ? length : any(2) ? (int32_t)any(length / 512) * 512 : -EIO);
	}
	engine.room = 4096;
}

Test(qcow2_channel, reads_of_any_kind_in_any_order)
{
	struct iovec iov[128];

	fill(image_fd, 2 << 20, 8);
	fill(backing_fd, BACKING_SIZE, 9);
	backing->size = 20 * CLUSTER + 512;
	for (uint32_t round = 0; round < 3000; round++) {
		uint64_t offset = any(AREA * 8) * 512ull;
		uint64_t length = 512 * (1ull + any(AREA * 8 - offset / 512));
		bool well = any(4);
		uint32_t a, n, jobs = slow.n_jobs;

		engine.n_ops = 0;
		next_arg = 0;
		waiter.n_told = waiter.told[0] = 0;
		slow.n_jobs = jobs = 0;
		any_map();
		memset(memory, 0xee, AREA * CLUSTER + CLUSTER);
		engine.room = any(4) ? 4096 : any(3);
		n = any_iov(iov, offset, length);
		a = submit(IO_READ, iov, n, offset);
		if (!engine.n_under_way && fake.n_held) {
			engine.room = 4096;
			loop_post_cookie(loop, (union loop_cookie){.kind = LOOP_IO, .slot = 1000},
					 0);
			turn();
		}
		engine.room = 4096;
		end_any(well);
		while (!waiter.told[a]) {
			if (engine.n_under_way)
				end_any(well);
			loop_post_cookie(loop, (union loop_cookie){.kind = LOOP_IO, .slot = 1000},
					 0);
			cr_assert_eq(loop_turn(loop, UINT64_MAX), 0);
		}
		cr_assert(!well || waiter.results[a] == length);
		if (slow.n_jobs > jobs) {
			check_job(0, IO_READ, offset, length);
			check_bytes(offset, length, 0xcc);
		} else {
			for (int64_t i = 0; i < waiter.results[a]; i++)
				cr_assert_eq(memory[offset + i], right_byte(offset + i),
					     "round %u, byte %lld", round, (long long)i);
		}
		check_bytes(offset + length, 512, 0xee);
		cr_assert(offset == 0 || memory[offset - 1] == 0xee);
	}
	backing->size = BACKING_SIZE;
}
