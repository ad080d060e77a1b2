/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A qcow2 image on another, on a raw one, used by several loops at once and by a thread that waits,
 * for the thread sanitizer and for what only shows under load. Each loop has blocks of its own, so
 * that clusters are shared and blocks are not; each block says whose it is and how often it was
 * written, and what is read is held against that, at the end once more through a fresh open. Exits
 * 0 when all was right. Usage: stress-qcow2 [OPERATIONS [CLUSTER-BITS [FILE]]].
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "block/block.h"
#include "block/create.h"
#include "block/qcow2.h"
#include "block/worker.h"

#define LOOPS        3
#define DEPTH        24
#define BLOCK        4096u
#define BLOCKS       6144u
#define SIZE         ((uint64_t)BLOCKS * BLOCK)
#define BACKING_SIZE (SIZE / 2 + 512)
#define OPERATIONS   20000
#define MANY         64         /* blocks of the longest read */
#define EMPTY        UINT32_MAX /* of a block's count: it reads as anything */

#define check(condition)                                                                          \
	do {                                                                                      \
		if (!(condition)) {                                                               \
			fprintf(stderr, "stress-qcow2: line %d: not %s\n", __LINE__, #condition); \
			exit(1);                                                                  \
		}                                                                                 \
	} while (0)

struct stamp {
	uint32_t block, count;
};

/* What a block holds, by its owner's knowledge. */
struct block {
	uint32_t count; /* of writes; 0: as in the backing image */
	bool zero;
	bool busy;
};

struct slot {
	struct io_op op;
	struct iovec iov[2];
	uint8_t *data; /* owned */
	uint32_t block;
	bool busy;
};

struct user {
	uint32_t number;
	struct loop *loop;
	struct block_channel *channel;
	struct loop_source source;
	pthread_t thread;
	struct slot slots[DEPTH];
	uint64_t random;
	uint32_t n_left, n_busy;
};

static struct block blocks[BLOCKS]; /* each its owner's */
static struct user users[LOOPS];
static struct block_image *image;
static _Atomic bool over;
static int image_fd, middle_fd, backing_fd;

static uint32_t any(struct user *user, uint32_t below)
{
	user->random ^= user->random << 13;
	user->random ^= user->random >> 7;
	user->random ^= user->random << 17;
	return (uint32_t)(user->random >> 20) % below;
}

static void stamp(uint8_t *data, uint32_t block, uint32_t count)
{
	const struct stamp stamp = {block, count};

	for (uint32_t i = 0; i < BLOCK; i += sizeof(stamp))
		memcpy(data + i, &stamp, sizeof(stamp));
}

static bool is_stamped(const uint8_t *data, uint32_t size, struct stamp stamp)
{
	for (uint32_t i = 0; i < size; i += sizeof(stamp))
		if (memcmp(data + i, &stamp, sizeof(stamp)) != 0)
			return false;
	return true;
}

static bool is_right(const uint8_t *data, uint32_t number)
{
	const struct block *block = &blocks[number];
	const uint64_t at = (uint64_t)number * BLOCK;
	const struct stamp zeroes = {0}, written = {number, block->count};

	if (block->count == EMPTY)
		return true;
	if (block->zero)
		return is_stamped(data, BLOCK, zeroes);
	if (block->count)
		return is_stamped(data, BLOCK, written);
	if (at >= BACKING_SIZE)
		return is_stamped(data, BLOCK, zeroes);
	if (BACKING_SIZE - at >= BLOCK)
		return is_stamped(data, BLOCK, written);
	return is_stamped(data, 512, written) && is_stamped(data + 512, BLOCK - 512, zeroes);
}

static void submit(struct user *user, struct slot *slot)
{
	int r = block_submit(user->channel, &slot->op, &user->source,
			     (uint32_t)(slot - user->slots));

	check(r == 0);
}

/* A block of the user's own with nothing under way. */
static uint32_t own_block(struct user *user)
{
	uint32_t block;

	do
		block = any(user, BLOCKS / LOOPS) * LOOPS + user->number;
	while (blocks[block].busy);
	blocks[block].busy = true;
	return block;
}

/* In two buffers, cut anywhere. */
static void start_transfer(struct user *user, struct slot *slot, enum io_kind kind)
{
	uint32_t cut = any(user, BLOCK);

	slot->iov[0] = (struct iovec){slot->data, cut};
	slot->iov[1] = (struct iovec){slot->data + cut, BLOCK - cut};
	slot->op = (struct io_op){.kind = kind, .iov = slot->iov, .n_iov = 2};
	if (kind == IO_WRITE) {
		blocks[slot->block].count = blocks[slot->block].count == EMPTY
						    ? 1000000
						    : blocks[slot->block].count + 1;
		blocks[slot->block].zero = false;
		stamp(slot->data, slot->block, blocks[slot->block].count);
	} else {
		memset(slot->data, 0xee, BLOCK);
	}
}

static void start(struct user *user, struct slot *slot)
{
	uint32_t what = any(user, 100);

	slot->busy = true;
	slot->block = own_block(user);
	if (what < 45) {
		start_transfer(user, slot, IO_WRITE);
	} else if (what < 90) {
		start_transfer(user, slot, IO_READ);
	} else if (what < 94) {
		slot->op =
			(struct io_op){.kind = what < 92 ? IO_ZERO : IO_ZERO_KEEP, .length = BLOCK};
		blocks[slot->block].zero = true;
		blocks[slot->block].count = MIN(blocks[slot->block].count, EMPTY - 1);
	} else if (what < 98) {
		slot->op = (struct io_op){.kind = IO_DISCARD, .length = BLOCK};
		blocks[slot->block].count = EMPTY;
		blocks[slot->block].zero = false;
	} else {
		slot->op = (struct io_op){.kind = IO_FLUSH};
	}
	slot->op.offset = slot->op.kind == IO_FLUSH ? 0 : (uint64_t)slot->block * BLOCK;
	user->n_busy++;
	submit(user, slot);
}

static void refill(struct user *user)
{
	for (uint32_t i = 0; i < DEPTH && user->n_left; i++) {
		if (user->slots[i].busy)
			continue;
		user->n_left--;
		start(user, &user->slots[i]);
	}
	if (!user->n_busy)
		loop_stop(user->loop);
}

static void on_event(struct loop_source *source, const struct loop_event *event)
{
	struct user *user = container_of(source, struct user, source);
	struct slot *slot = &user->slots[event->arg % DEPTH];

	if (event->kind == LOOP_POST) {
		refill(user);
		return;
	}
	check(event->kind == LOOP_IO && slot->busy);
	if (slot->op.kind == IO_READ || slot->op.kind == IO_WRITE)
		check(event->result == BLOCK);
	else
		check(event->result == 0);
	if (slot->op.kind == IO_READ)
		check(is_right(slot->data, slot->block));
	blocks[slot->block].busy = false;
	slot->busy = false;
	user->n_busy--;
	loop_batch(source);
}

static void *run_user(void *arg)
{
	struct user *user = arg;

	check(loop_enable(user->loop) == 0);
	refill(user);
	check(loop_run(user->loop) == 0);
	return NULL;
}

/* Reads what others write, long and across clusters; only looks whether it can be. */
static void *run_waiting(void *arg)
{
	static uint8_t data[MANY * BLOCK];
	struct user self = {.random = 77777};
	struct block_extent extent;

	while (!over) {
		uint32_t n = 1 + any(&self, MANY), first = any(&self, BLOCKS - n);

		check(block_read(image, data, (size_t)n * BLOCK, (uint64_t)first * BLOCK) == 0);
		check(block_map(image, (uint64_t)first * BLOCK, (uint64_t)n * BLOCK, &extent) == 0);
		check(extent.length && extent.length <= (uint64_t)n * BLOCK);
		if (any(&self, 20) == 0)
			check(block_flush(image) == 0);
		usleep(1000);
	}
	return arg;
}

static struct error err;

#define check_call(call)                                                                    \
	do {                                                                                \
		if ((call) < 0) {                                                           \
			fprintf(stderr, "stress-qcow2: line %d: %s: %s\n", __LINE__, #call, \
				err.text);                                                  \
			exit(1);                                                            \
		}                                                                           \
	} while (0)

static int open_fd(struct block_opener *opener, const char *name, const char *format,
		   const char **ret_format, struct error *e)
{
	(void)opener, (void)e;
	*ret_format = format;
	return fcntl(!strcmp(name, "middle") ? middle_fd : backing_fd, F_DUPFD_CLOEXEC, 0);
}

static void open_image(int fd, struct block_worker *worker, bool readonly)
{
	struct block_opener opener = {open_fd};
	const struct block_open open = {
		.format = "qcow2",
		.name = "stress",
		.opener = &opener,
		.worker = worker,
		.readonly = readonly,
		.no_lock = true,
	};

	check_call(block_open(&image, fcntl(fd, F_DUPFD_CLOEXEC, 0), &open, &err));
	for (struct block_image *each = image; each; each = each->backing)
		if (each->ops == &qcow2_ops)
			to_qcow2(each)->slices_max = 4; /* so that some are missing */
}

static void make_backing(void)
{
	uint8_t data[BLOCK];

	backing_fd = memfd_create("backing", MFD_CLOEXEC);
	for (uint32_t i = 0; i < BLOCKS / 2; i++) {
		stamp(data, i, 0);
		check(pwrite(backing_fd, data, BLOCK, (off_t)i * BLOCK) == BLOCK);
	}
	stamp(data, BLOCKS / 2, 0);
	check(pwrite(backing_fd, data, 512, (off_t)BLOCKS / 2 * BLOCK) == 512);
}

static void make_qcow2(int fd, uint32_t cluster_bits, const char *stands_on, const char *format)
{
	const struct block_create create = {
		.format = "qcow2",
		.size = SIZE,
		.cluster_bits = cluster_bits,
		.backing_name = stands_on,
		.backing_format = format,
	};

	check(fd >= 0);
	check_call(block_create(fd, &create, "stress", &err));
}

/* The same as is under it, but some of it in its own clusters. */
static void make_middle(uint32_t cluster_bits)
{
	uint8_t data[BLOCK];

	middle_fd = memfd_create("middle", MFD_CLOEXEC);
	make_qcow2(middle_fd, cluster_bits, "backing", "raw");
	open_image(middle_fd, NULL, false);
	for (uint32_t i = 0; i < BLOCKS / 2; i += 7) {
		stamp(data, i, 0);
		check(block_write(image, data, BLOCK, (uint64_t)i * BLOCK) == 0);
	}
	image = block_close(image);
}

static void start_user(struct user *user, uint32_t number, uint32_t operations)
{
	const struct loop_options options = {.name = "stress",
					     .without_uring = number == LOOPS - 1};

	user->number = number;
	user->random = 88172645463325252ull + number * 12345;
	user->n_left = operations;
	user->source.on_event = on_event;
	for (uint32_t i = 0; i < DEPTH; i++)
		check((user->slots[i].data = aligned_alloc(BLOCK, BLOCK)) != NULL);
	check_call(loop_new(&user->loop, &options, &err));
	check(loop_add(user->loop, &user->source) == 0);
	check(block_channel_open(&user->channel, image, user->loop) == 0);
	check(pthread_create(&user->thread, NULL, run_user, user) == 0);
}

static void end_user(struct user *user)
{
	pthread_join(user->thread, NULL);
	user->channel = block_channel_close(user->channel);
	loop_remove(&user->source);
	user->loop = loop_free(user->loop);
	for (uint32_t i = 0; i < DEPTH; i++)
		free(user->slots[i].data);
}

static void check_all(void)
{
	uint8_t data[BLOCK];

	for (uint32_t i = 0; i < BLOCKS; i++) {
		check(block_read(image, data, BLOCK, (uint64_t)i * BLOCK) == 0);
		if (!is_right(data, i)) {
			fprintf(stderr, "stress-qcow2: block %u is not as it was written\n", i);
			exit(1);
		}
	}
}

int main(int argc, char **argv)
{
	const struct block_worker_options options = {.name = "worker"};
	uint32_t operations = argc > 1 ? strtoul(argv[1], NULL, 0) : OPERATIONS;
	uint32_t cluster_bits = argc > 2 ? strtoul(argv[2], NULL, 0) : 16;
	struct block_worker *worker = NULL;
	pthread_t waiting;

	make_backing();
	make_middle(cluster_bits);
	image_fd = argc > 3 ? open(argv[3], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)
			    : memfd_create("image", MFD_CLOEXEC);
	make_qcow2(image_fd, cluster_bits, "middle", "qcow2");
	check_call(block_worker_new(&worker, &options, &err));
	open_image(image_fd, worker, false);
	for (uint32_t i = 0; i < LOOPS; i++)
		start_user(&users[i], i, operations / LOOPS);
	check(pthread_create(&waiting, NULL, run_waiting, NULL) == 0);
	for (uint32_t i = 0; i < LOOPS; i++)
		end_user(&users[i]);
	over = true;
	pthread_join(waiting, NULL);
	check_all();
	image = block_close(image);
	open_image(image_fd, worker, true);
	check_all();
	image = block_close(image);
	worker = block_worker_free(worker);
	close(image_fd);
	close(middle_fd);
	close(backing_fd);
	return 0;
}
