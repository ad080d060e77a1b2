/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A block device over an image of the tests' own: it records each operation, and completes it when
 * the test says so, in the order and with the result the test says. And the requests of a driver.
 */
#pragma once

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "base/atomic.h"
#include "devices/registers.h"
#include "devices/test-board.h"
#include "virtio/blk.h"
#include "virtio/test-driver.h"

#define SECTOR         BLOCK_SECTOR
#define CAPACITY       2048u /* sectors */
#define DISK_SIZE      (CAPACITY * SECTOR)
#define OPS_MAX        2048

#define F_RO           (1ull << 5)
#define F_FLUSH        (1ull << 9)
#define F_MQ           (1ull << 12)
#define F_DISCARD      (1ull << 13)
#define F_WRITE_ZEROES (1ull << 14)

enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };
enum { S_OK = 0, S_IOERR = 1, S_UNSUPPORTED = 2, UNTOUCHED = 0xee };

/* The image */

struct op {
	enum io_kind kind;
	uint64_t offset, length; /* of all kinds but FLUSH */
	const struct iovec *iov;
	uint32_t n_iov;
	struct loop_source *source;
	uint32_t arg;
	bool ended;
	const struct block_image *image;
};

static struct fake {
	struct block_image image;
	uint8_t disk[DISK_SIZE];
	struct op ops[OPS_MAX]; /* in the order of submission */
	uint32_t n_ops, n_under_way, n_busy;
	uint32_t room;        /* under way at most */
	int submit_error;     /* every submission fails with it */
	uint32_t greedy_left; /* each failing submission offers the same request once more */
	uint32_t n_greedy;
	struct loop_source *waiting; /* was told -EBUSY */
} fake;

static struct test_board board;
static struct test_driver driver;
static struct pci_root root;
static struct blk blk;
static struct blk_options wanted; /* what a test says beforehand stays */

static _unused_ int fake_submit(struct block_channel *channel, const struct io_op *op,
				struct loop_source *source, uint32_t arg)
{
	struct op *record = &fake.ops[fake.n_ops];

	if (fake.greedy_left > 0) {
		struct test_available *available = driver.rings[0].available;

		fake.greedy_left--;
		fake.n_greedy++;
		store_release(&available->index, (uint16_t)(available->index + 1));
	}
	if (fake.submit_error)
		return fake.submit_error;
	if (fake.n_under_way >= fake.room) {
		fake.n_busy++;
		fake.waiting = source;
		return -EBUSY;
	}
	cr_assert_lt(fake.n_ops, OPS_MAX);
	*record = (struct op){op->kind, op->offset, op->length, op->iov,       op->n_iov,
			      source,   arg,        false,      channel->image};
	if (op->kind == IO_READ || op->kind == IO_WRITE) {
		for (uint32_t i = 0; i < op->n_iov; i++)
			record->length += op->iov[i].iov_len;
		cr_assert_gt(record->length, 0);
	}
	if (op->kind != IO_FLUSH)
		cr_assert(record->length <= DISK_SIZE &&
				  record->offset <= DISK_SIZE - record->length,
			  "an operation outside of the image");
	fake.n_ops++;
	fake.n_under_way++;
	return 0;
}

static _unused_ int fake_channel_open(struct block_channel **ret_channel,
				      struct block_image *image _unused_,
				      struct loop *loop _unused_)
{
	*ret_channel = calloc(1, sizeof(**ret_channel));
	return *ret_channel ? 0 : -ENOMEM;
}

static _unused_ void fake_channel_close(struct block_channel *channel)
{
	free(channel);
}

static struct block_worker *const never_called = (void *)&fake;

static const struct block_ops fake_ops = {
	.format = "fake",
	.channel_open = fake_channel_open,
	.channel_close = fake_channel_close,
	.submit = fake_submit,
};

/* Moves `n` bytes between the disk and the operation's buffers. */
static _unused_ void transfer(const struct op *op, uint64_t n)
{
	uint8_t *disk = fake.disk + op->offset;

	for (uint32_t i = 0; n > 0; i++) {
		uint64_t here = MIN((uint64_t)op->iov[i].iov_len, n);

		cr_assert_lt(i, op->n_iov);
		if (op->kind == IO_READ)
			memcpy(op->iov[i].iov_base, disk, here);
		else
			memcpy(disk, op->iov[i].iov_base, here);
		disk += here;
		n -= here;
	}
}

/* Ends operation `i` with `result`; what it moves is moved. The loop is not turned. */
static _unused_ void end(uint32_t i, int32_t result)
{
	struct op *op = &fake.ops[i];
	struct loop_event event = {.kind = LOOP_IO,
				   .arg = op->arg,
				   .result = result,
				   .now = loop_now(op->source->loop)};

	cr_assert_lt(i, fake.n_ops);
	cr_assert_not(op->ended);
	op->ended = true;
	if ((op->kind == IO_READ || op->kind == IO_WRITE) && result > 0)
		transfer(op, result);
	if ((op->kind == IO_ZERO || op->kind == IO_ZERO_KEEP) && result == 0)
		memset(fake.disk + op->offset, 0, op->length);
	fake.n_under_way--;
	op->source->on_event(op->source, &event);
	if (fake.waiting)
		loop_batch(take_ptr(fake.waiting));
}

static _unused_ void end_well(uint32_t i)
{
	bool moves = fake.ops[i].kind == IO_READ || fake.ops[i].kind == IO_WRITE;

	end(i, moves ? (int32_t)fake.ops[i].length : 0);
}

/* Ends all there is and all that follows from it. */
static _unused_ void end_all(void)
{
	for (uint32_t i = 0; i < fake.n_ops; i++) {
		if (!fake.ops[i].ended)
			end_well(i);
		if (i + 1 == fake.n_ops)
			test_driver_turn(&driver);
	}
	cr_assert_eq(fake.n_under_way, 0);
}

/* The device */

static _unused_ void make(uint32_t n_queues, struct loop *const *loops, uint32_t n_loops,
			  struct block_image *image)
{
	static const struct pci_layout layout = {
		.ecam = 0xe0000000, .window = 0xc0000000, .window_size = 1 << 20};
	struct error err = ERROR_NULL;

	cr_assert_eq(pci_root_init(&root, &layout, &board.io, &board.mmio, &board.irqs,
				   &board.kicks, &err),
		     0, "%s", err.text);
	wanted.name = "disk0";
	wanted.image = image;
	wanted.serial = "a serial";
	wanted.n_queues = n_queues;
	wanted.loops = loops;
	wanted.n_loops = n_loops;
	cr_assert_eq(blk_init(&blk, &root, 1, &driver.memory, &wanted, &err), 0, "%s", err.text);
}

static _unused_ void set_up_with(bool readonly)
{
	fake = (struct fake){
		.image = {.ops = &fake_ops,
			  .worker = never_called,
			  .size = DISK_SIZE,
			  .io_block = SECTOR,
			  .readonly = readonly,
			  .can_discard = !readonly},
		.room = 256,
	};
	for (uint32_t i = 0; i < DISK_SIZE; i++)
		fake.disk[i] = (uint8_t)(i / SECTOR * 7 + i);
	test_board_init(&board);
	test_driver_init(&driver);
	make(1, &driver.loop, 1, &fake.image);
}

static _unused_ void set_up(void)
{
	set_up_with(false);
}

static _unused_ void set_up_readonly(void)
{
	set_up_with(true);
}

static _unused_ void tear_down(void)
{
	blk.pci.function.device.ops->deinit(&blk.pci.function.device);
	test_driver_deinit(&driver);
	test_board_deinit(&board);
}

static _unused_ void start(void)
{
	test_driver_start(&driver, &blk.virtio, F_FLUSH | VIRTIO_F_INDIRECT_DESC);
}

static _unused_ struct test_buffer room(uint32_t size)
{
	return (struct test_buffer){test_driver_alloc(&driver, size, 16), size};
}

static _unused_ struct test_buffer header(uint32_t type, uint64_t sector)
{
	struct {
		uint32_t type, reserved;
		uint64_t sector;
	} bytes = {type, 0x12345678, sector};

	return test_driver_put(&driver, &bytes, sizeof(bytes));
}

static _unused_ struct test_buffer status_room(void)
{
	uint8_t status = UNTOUCHED;

	return test_driver_put(&driver, &status, 1);
}

static _unused_ uint8_t byte_at(struct test_buffer buffer, uint32_t offset)
{
	return *(uint8_t *)test_driver_at(&driver, buffer.gpa + offset);
}

/* One request with one data buffer in the usual shape; returns its status buffer. */
static _unused_ struct test_buffer offer(uint32_t queue, uint32_t type, uint64_t sector,
					 const struct test_buffer *data)
{
	struct test_buffer out[2] = {header(type, sector)}, in[2];
	uint32_t n_out = 1, n_in = 0;
	struct test_buffer status = status_room();

	if (data && (type == T_IN || type == T_GET_ID))
		in[n_in++] = *data;
	else if (data)
		out[n_out++] = *data;
	in[n_in++] = status;
	test_driver_add(&driver, queue, out, n_out, in, n_in, false);
	return status;
}

static _unused_ void kick(void)
{
	test_driver_kick(&driver, 0);
	test_driver_turn(&driver);
}

/* The request goes through; its status. */
static _unused_ uint8_t ask(uint32_t type, uint64_t sector, const struct test_buffer *data)
{
	struct test_buffer status = offer(0, type, sector, data);

	kick();
	end_all();
	cr_assert_gt(driver.rings[0].used->index, driver.rings[0].seen);
	test_driver_wait(&driver, 0);
	return byte_at(status, 0);
}

static _unused_ uint32_t given_back(void)
{
	uint32_t n = 0, length;
	uint16_t head;

	while (test_driver_reap(&driver, 0, &head, &length))
		n++;
	return n;
}

static _unused_ bool needs_reset(void)
{
	return atomic_load(&blk.virtio.status) & VIRTIO_STATUS_NEEDS_RESET;
}
