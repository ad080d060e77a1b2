/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a block device makes of a driver's requests, good and bad. At the end the real thing: a raw
 * image, eight queues, four loops with their threads.
 */
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fd.h"
#include "virtio/test-blk-disk.h"

TestSuite(blk, .init = set_up, .fini = tear_down);
TestSuite(blk_readonly, .init = set_up_readonly, .fini = tear_down);

/* What a request does */

Test(blk, a_read_gives_the_sectors)
{
	struct test_buffer data = room(3 * SECTOR), status;

	start();
	status = offer(0, T_IN, 5, &data);
	kick();
	cr_assert_eq(fake.n_ops, 1);
	cr_assert_eq(fake.ops[0].kind, IO_READ);
	cr_assert_eq(fake.ops[0].offset, 5 * SECTOR);
	cr_assert_eq(byte_at(status, 0), UNTOUCHED, "not before it is done");
	end_all();
	cr_assert_eq(test_driver_wait(&driver, 0), 3 * SECTOR + 1);
	cr_assert_eq(byte_at(status, 0), S_OK);
	cr_assert_eq(memcmp(test_driver_at(&driver, data.gpa), fake.disk + 5 * SECTOR, 3 * SECTOR),
		     0);
}

Test(blk, a_write_changes_the_sectors)
{
	struct test_buffer data = room(2 * SECTOR), status;

	start();
	memset(test_driver_at(&driver, data.gpa), 0x5a, data.length);
	status = offer(0, T_OUT, CAPACITY - 2, &data);
	kick();
	end_all();
	cr_assert_eq(test_driver_wait(&driver, 0), 1);
	cr_assert_eq(byte_at(status, 0), S_OK);
	cr_assert_eq(fake.disk[DISK_SIZE - 1], 0x5a);
	cr_assert_eq(fake.disk[DISK_SIZE - 2 * SECTOR], 0x5a);
	cr_assert_neq(fake.disk[DISK_SIZE - 2 * SECTOR - 1], 0x5a);
	cr_assert_eq(fake.n_ops, 1, "no flush unasked");
}

Test(blk, a_flush_flushes)
{
	start();
	cr_assert_eq(ask(T_FLUSH, 0, NULL), S_OK);
	cr_assert_eq(fake.n_ops, 1);
	cr_assert_eq(fake.ops[0].kind, IO_FLUSH);
}

Test(blk, the_whole_disk_can_be_read)
{
	struct test_buffer data = room(DISK_SIZE);

	start();
	cr_assert_eq(ask(T_IN, 0, &data), S_OK);
	cr_assert_eq(memcmp(test_driver_at(&driver, data.gpa), fake.disk, DISK_SIZE), 0);
}

Test(blk, the_id_is_the_serial_padded)
{
	struct test_buffer data = room(20);

	start();
	cr_assert_eq(ask(T_GET_ID, 0, &data), S_OK);
	cr_assert_eq(
		memcmp(test_driver_at(&driver, data.gpa), "a serial\0\0\0\0\0\0\0\0\0\0\0\0", 20),
		0);
}

Test(blk, an_id_fits_the_buffer)
{
	struct test_buffer small = room(4), large = room(64);

	start();
	cr_assert_eq(ask(T_GET_ID, 0, &small), S_OK);
	cr_assert_eq(memcmp(test_driver_at(&driver, small.gpa), "a se\0", 5), 0);
	memset(test_driver_at(&driver, large.gpa), 'x', 64);
	cr_assert_eq(ask(T_GET_ID, 0, &large), S_OK);
	cr_assert_eq(byte_at(large, 19), 0);
	cr_assert_eq(byte_at(large, 20), 'x');
	cr_assert_eq(ask(T_GET_ID, 0, NULL), S_OK, "status alone");
}

struct range {
	uint64_t sector;
	uint32_t n_sectors, flags;
};

static uint8_t ask_ranges(uint32_t type, const struct range *ranges, uint32_t size)
{
	struct test_buffer data = test_driver_put(&driver, ranges, size);

	return ask(type, 0, &data);
}

Test(blk, a_discard_gives_the_range_up)
{
	const struct range range = {16, 8, 0};

	start();
	cr_assert_eq(ask_ranges(T_DISCARD, &range, 16), S_OK);
	cr_assert_eq(fake.n_ops, 1);
	cr_assert_eq(fake.ops[0].kind, IO_DISCARD);
	cr_assert_eq(fake.ops[0].offset, 16 * SECTOR);
	cr_assert_eq(fake.ops[0].length, 8 * SECTOR);
}

Test(blk, zeroes_are_written_with_or_without_the_space)
{
	const struct range keep = {16, 8, 0}, unmap = {32, 8, 1};

	start();
	cr_assert_eq(ask_ranges(T_WRITE_ZEROES, &keep, 16), S_OK);
	cr_assert_eq(fake.ops[0].kind, IO_ZERO_KEEP);
	cr_assert_eq(ask_ranges(T_WRITE_ZEROES, &unmap, 16), S_OK);
	cr_assert_eq(fake.ops[1].kind, IO_ZERO);
	cr_assert_eq(fake.ops[1].offset, 32 * SECTOR);
}

Test(blk, ranges_go_one_after_the_other)
{
	struct range ranges[16];

	start();
	for (uint32_t i = 0; i < 16; i++)
		ranges[i] = (struct range){i * 100, i + 1, 0};
	cr_assert_eq(ask_ranges(T_DISCARD, ranges, sizeof(ranges)), S_OK);
	cr_assert_eq(fake.n_ops, 16);
	for (uint32_t i = 0; i < 16; i++) {
		cr_assert_eq(fake.ops[i].offset, i * 100 * SECTOR);
		cr_assert_eq(fake.ops[i].length, (i + 1) * SECTOR);
	}
}

Test(blk, the_first_range_that_fails_ends_it)
{
	const struct range ranges[] = {{0, 1, 0}, {1, 1, 0}, {2, 1, 0}};
	struct test_buffer data = test_driver_put(&driver, ranges, sizeof(ranges)), status;

	start();
	status = offer(0, T_DISCARD, 0, &data);
	kick();
	end(0, 0);
	end(1, -EIO);
	test_driver_turn(&driver);
	cr_assert_eq(fake.n_ops, 2);
	cr_assert_eq(byte_at(status, 0), S_IOERR);
}

/* Shapes */

Test(blk, the_status_may_be_the_last_byte_of_the_data)
{
	struct test_buffer out = header(T_IN, 1), in = room(SECTOR + 1);

	start();
	*(uint8_t *)test_driver_at(&driver, in.gpa + SECTOR) = UNTOUCHED;
	test_driver_add(&driver, 0, &out, 1, &in, 1, false);
	kick();
	cr_assert_eq(fake.ops[0].length, SECTOR);
	end_all();
	cr_assert_eq(test_driver_wait(&driver, 0), SECTOR + 1);
	cr_assert_eq(byte_at(in, SECTOR), S_OK);
	cr_assert_eq(memcmp(test_driver_at(&driver, in.gpa), fake.disk + SECTOR, SECTOR), 0);
}

Test(blk, the_header_may_be_cut)
{
	struct test_buffer whole = header(T_OUT, 3), data = room(SECTOR), status = status_room();
	struct test_buffer out[] = {{whole.gpa, 1}, {whole.gpa + 1, 7}, {whole.gpa + 8, 8}, data};

	start();
	memset(test_driver_at(&driver, data.gpa), 0x77, SECTOR);
	test_driver_add(&driver, 0, out, 4, &status, 1, true);
	kick();
	end_all();
	cr_assert_eq(byte_at(status, 0), S_OK);
	cr_assert_eq(fake.disk[3 * SECTOR], 0x77);
	cr_assert_eq(fake.disk[4 * SECTOR - 1], 0x77);
}

Test(blk, header_and_data_may_share_a_buffer)
{
	struct test_buffer out = room(16 + SECTOR), status = status_room();

	start();
	memset(test_driver_at(&driver, out.gpa), 0x66, out.length);
	memset(test_driver_at(&driver, out.gpa), 0, 16);
	*(uint8_t *)test_driver_at(&driver, out.gpa) = T_OUT;
	test_driver_add(&driver, 0, &out, 1, &status, 1, false);
	kick();
	end_all();
	cr_assert_eq(byte_at(status, 0), S_OK);
	cr_assert_eq(fake.disk[0], 0x66);
	cr_assert_eq(fake.disk[SECTOR - 1], 0x66);
	cr_assert_neq(fake.disk[SECTOR], 0x66);
}

Test(blk, data_may_be_cut_anywhere)
{
	struct test_buffer out = header(T_IN, 2), whole = room(SECTOR), status = status_room();
	struct test_buffer in[] = {
		{whole.gpa, 1}, {whole.gpa + 1, 300}, {whole.gpa + 301, 211}, status};

	start();
	test_driver_add(&driver, 0, &out, 1, in, 4, false);
	kick();
	end_all();
	cr_assert_eq(byte_at(status, 0), S_OK);
	cr_assert_eq(memcmp(test_driver_at(&driver, whole.gpa), fake.disk + 2 * SECTOR, SECTOR), 0);
}

/* A read of `n` segments. */
static struct test_buffer read_in_segments(uint32_t n)
{
	static struct test_buffer in[256];
	struct test_buffer out = header(T_IN, 0);

	for (uint32_t i = 0; i < n; i++)
		in[i] = room(SECTOR);
	in[n] = status_room();
	test_driver_add(&driver, 0, &out, 1, in, n + 1, true);
	kick();
	return in[n];
}

Test(blk, as_many_segments_as_promised)
{
	uint32_t seg_max;
	struct test_buffer status;

	start();
	blk.virtio.ops->config_read(&blk.virtio, 12, &seg_max, 4);
	status = read_in_segments(seg_max);
	end_all();
	cr_assert_eq(byte_at(status, 0), S_OK);
	cr_assert_eq(fake.ops[0].n_iov, seg_max);
}

Test(blk, more_segments_than_promised_need_a_reset)
{
	uint32_t seg_max;

	start();
	blk.virtio.ops->config_read(&blk.virtio, 12, &seg_max, 4);
	read_in_segments(seg_max + 1);
	cr_assert(needs_reset());
	cr_assert_eq(fake.n_ops, 0);
}

/* Refusals */

Test(blk, sectors_outside_of_the_disk_are_refused)
{
	static const uint64_t sectors[] = {CAPACITY,           CAPACITY - 1, 1ull << 55,
					   1ull << 63,         UINT64_MAX,   UINT64_MAX - 1,
					   UINT64_MAX / SECTOR};
	struct test_buffer data = room(2 * SECTOR);

	start();
	for (uint32_t i = 0; i < ARRAY_SIZE(sectors); i++) {
		cr_assert_eq(ask(T_IN, sectors[i], &data), S_IOERR);
		cr_assert_eq(ask(T_OUT, sectors[i], &data), S_IOERR);
	}
	cr_assert_eq(fake.n_ops, 0);
}

Test(blk, parts_of_sectors_are_refused)
{
	static const uint32_t lengths[] = {1, SECTOR - 1, SECTOR + 1, 2 * SECTOR - 16};

	start();
	for (uint32_t i = 0; i < ARRAY_SIZE(lengths); i++) {
		struct test_buffer data = room(lengths[i]);

		cr_assert_eq(ask(T_IN, 0, &data), S_IOERR);
		cr_assert_eq(ask(T_OUT, 0, &data), S_IOERR);
	}
	cr_assert_eq(fake.n_ops, 0);
}

Test(blk, a_transfer_of_nothing_reaches_no_image)
{
	start();
	ask(T_IN, 0, NULL);
	ask(T_OUT, 0, NULL);
	cr_assert_eq(fake.n_ops, 0);
	cr_assert_not(needs_reset());
}

Test(blk, an_unknown_type_is_unsupported)
{
	static const uint32_t types[] = {2, 3, 5, 7, 9, 10, 12, 14, 24, UINT32_MAX};
	struct test_buffer data = room(SECTOR);

	start();
	for (uint32_t i = 0; i < ARRAY_SIZE(types); i++)
		cr_assert_eq(ask(types[i], 0, &data), S_UNSUPPORTED, "type %u", types[i]);
	cr_assert_eq(fake.n_ops, 0);
}

Test(blk, bad_ranges_are_refused_before_any_is_touched)
{
	static const struct {
		struct range ranges[2];
		uint32_t size;
		uint8_t status;
	} cases[] = {
		{{{0, 8, 0}, {CAPACITY, 1, 0}}, 32, S_IOERR},
		{{{0, 8, 0}, {CAPACITY - 1, 2, 0}}, 32, S_IOERR},
		{{{0, 8, 0}, {1ull << 63, 8, 0}}, 32, S_IOERR},
		{{{0, 8, 0}, {UINT64_MAX, 1, 0}}, 32, S_IOERR},
		{{{0, 8, 0}, {0, 0, 0}}, 32, S_IOERR},
		{{{0, 8, 0}, {0, UINT32_MAX, 0}}, 32, S_IOERR},
		{{{0, 8, 0}, {8, 8, 2}}, 32, S_UNSUPPORTED},
		{{{0, 8, 0x80000000}}, 16, S_UNSUPPORTED},
		{{{0, 8, 0}}, 15, S_IOERR},
		{{{0, 8, 0}}, 17, S_IOERR},
	};

	start();
	for (uint32_t i = 0; i < ARRAY_SIZE(cases); i++) {
		cr_assert_eq(ask_ranges(T_DISCARD, cases[i].ranges, cases[i].size), cases[i].status,
			     "discard %u", i);
		cr_assert_eq(ask_ranges(T_WRITE_ZEROES, cases[i].ranges, cases[i].size),
			     cases[i].status, "zeroes %u", i);
	}
	cr_assert_eq(ask(T_DISCARD, 0, NULL), S_IOERR);
	cr_assert_eq(fake.n_ops, 0);
}

Test(blk, a_discard_knows_no_unmap)
{
	const struct range range = {0, 8, 1};

	start();
	cr_assert_eq(ask_ranges(T_DISCARD, &range, 16), S_UNSUPPORTED);
}

Test(blk, more_ranges_than_promised_are_refused)
{
	struct range ranges[17];

	start();
	for (uint32_t i = 0; i < 17; i++)
		ranges[i] = (struct range){i, 1, 0};
	cr_assert_eq(ask_ranges(T_DISCARD, ranges, sizeof(ranges)), S_IOERR);
	cr_assert_eq(fake.n_ops, 0);
}

Test(blk, a_request_without_status_needs_a_reset)
{
	struct test_buffer out = header(T_FLUSH, 0);

	start();
	test_driver_add(&driver, 0, &out, 1, NULL, 0, false);
	kick();
	cr_assert(needs_reset());
}

Test(blk, a_request_without_a_whole_header_needs_a_reset)
{
	struct test_buffer out = {header(T_FLUSH, 0).gpa, 15}, status = status_room();

	start();
	test_driver_add(&driver, 0, &out, 1, &status, 1, false);
	kick();
	cr_assert(needs_reset());
	cr_assert_eq(byte_at(status, 0), UNTOUCHED);
}

Test(blk, a_broken_queue_finishes_what_was_under_way_and_a_reset_mends_it)
{
	struct test_buffer data = room(SECTOR), status, out = header(T_FLUSH, 0);

	start();
	status = offer(0, T_IN, 0, &data);
	kick();
	test_driver_add(&driver, 0, &out, 1, NULL, 0, false);
	kick();
	cr_assert(needs_reset());
	end_all();
	cr_assert_eq(byte_at(status, 0), S_OK);
	test_driver_reset(&driver);
	start();
	cr_assert_eq(ask(T_IN, 0, &data), S_OK);
}

Test(blk_readonly, changes_are_refused)
{
	struct test_buffer data = room(SECTOR);
	const struct range range = {0, 1, 0};

	start();
	cr_assert_eq(ask(T_OUT, 0, &data), S_IOERR);
	cr_assert_eq(ask_ranges(T_DISCARD, &range, 16), S_IOERR);
	cr_assert_eq(ask_ranges(T_WRITE_ZEROES, &range, 16), S_IOERR);
	cr_assert_eq(fake.n_ops, 0);
}

Test(blk_readonly, reading_works)
{
	struct test_buffer data = room(SECTOR);

	start();
	cr_assert_eq(ask(T_IN, 0, &data), S_OK);
	cr_assert_eq(ask(T_GET_ID, 0, &data), S_OK);
	cr_assert_eq(ask(T_FLUSH, 0, NULL), S_OK);
}

Test(blk_readonly, the_driver_is_told)
{
	cr_assert_eq(blk.virtio.offered & (F_RO | F_DISCARD | F_WRITE_ZEROES), F_RO);
}

Test(blk_readonly, an_unknown_type_is_unsupported_on_a_read_only_disk_too)
{
	start();
	cr_assert_eq(ask(99, 0, NULL), S_UNSUPPORTED);
}

/* What the image answers */

Test(blk, a_short_read_goes_on_where_it_stopped)
{
	struct test_buffer data = room(4 * SECTOR), status;

	start();
	status = offer(0, T_IN, 8, &data);
	kick();
	end(0, SECTOR + 100);
	cr_assert_eq(fake.n_ops, 2);
	cr_assert_eq(fake.ops[1].offset, 9 * SECTOR + 100);
	cr_assert_eq(fake.ops[1].length, 3 * SECTOR - 100);
	end(1, 1);
	end_all();
	cr_assert_eq(test_driver_wait(&driver, 0), 4 * SECTOR + 1);
	cr_assert_eq(byte_at(status, 0), S_OK);
	cr_assert_eq(memcmp(test_driver_at(&driver, data.gpa), fake.disk + 8 * SECTOR, 4 * SECTOR),
		     0);
}

Test(blk, a_short_write_goes_on_across_segments)
{
	struct test_buffer out[4] = {header(T_OUT, 0)}, status = status_room();

	start();
	for (uint8_t i = 1; i < 4; i++) {
		out[i] = room(SECTOR);
		memset(test_driver_at(&driver, out[i].gpa), i, SECTOR);
	}
	test_driver_add(&driver, 0, out, 4, &status, 1, false);
	kick();
	end(0, SECTOR);
	end(1, SECTOR + 1);
	cr_assert_eq(fake.ops[2].n_iov, 1);
	cr_assert_eq(fake.ops[2].length, SECTOR - 1);
	end_all();
	cr_assert_eq(byte_at(status, 0), S_OK);
	for (uint32_t i = 0; i < 3 * SECTOR; i++)
		cr_assert_eq(fake.disk[i], i / SECTOR + 1);
}

Test(blk, an_end_of_file_is_an_error)
{
	struct test_buffer data = room(SECTOR), status;

	start();
	status = offer(0, T_IN, 0, &data);
	kick();
	end(0, 0);
	test_driver_turn(&driver);
	cr_assert_eq(byte_at(status, 0), S_IOERR);
	cr_assert_eq(fake.n_ops, 1, "and not asked again");
}

Test(blk, an_error_is_an_error)
{
	static const uint32_t types[] = {T_IN, T_OUT, T_FLUSH};
	struct test_buffer data = room(SECTOR);

	start();
	for (uint32_t i = 0; i < ARRAY_SIZE(types); i++) {
		struct test_buffer status =
			offer(0, types[i], 0, types[i] == T_FLUSH ? NULL : &data);

		kick();
		end(i, -EIO);
		test_driver_turn(&driver);
		cr_assert_eq(byte_at(status, 0), S_IOERR);
	}
	cr_assert_eq(given_back(), 3);
	cr_assert_not(needs_reset());
}

Test(blk, what_the_image_cannot_do_is_unsupported)
{
	const struct range range = {0, 8, 0};
	struct test_buffer data = test_driver_put(&driver, &range, 16), status;

	start();
	status = offer(0, T_DISCARD, 0, &data);
	kick();
	end(0, -EOPNOTSUPP);
	test_driver_turn(&driver);
	cr_assert_eq(byte_at(status, 0), S_UNSUPPORTED);
}

Test(blk, a_refused_submission_is_an_error_and_the_next_goes_on)
{
	struct test_buffer data = room(SECTOR), status;

	start();
	fake.submit_error = -EINVAL;
	status = offer(0, T_IN, 0, &data);
	kick();
	cr_assert_eq(byte_at(status, 0), S_IOERR);
	cr_assert_eq(given_back(), 1);
	fake.submit_error = 0;
	cr_assert_eq(ask(T_IN, 0, &data), S_OK);
}

Test(blk, requests_end_in_the_order_of_the_image)
{
	struct test_buffer data[4], status[4];

	start();
	for (uint32_t i = 0; i < 4; i++) {
		data[i] = room(SECTOR);
		status[i] = offer(0, T_IN, i, &data[i]);
	}
	kick();
	for (uint32_t i = 4; i-- > 0;) {
		end_well(i);
		test_driver_turn(&driver);
		cr_assert_eq(byte_at(status[i], 0), S_OK);
		cr_assert_eq(driver.rings[0].used->index, 4 - i);
	}
}

Test(blk, what_ends_in_one_turn_is_one_interrupt)
{
	struct test_buffer data = room(SECTOR);

	start();
	for (uint32_t i = 0; i < 8; i++)
		offer(0, T_IN, i, &data);
	kick();
	test_eventfd_take(driver.rings[0].call_fd);
	for (uint32_t i = 0; i < 8; i++)
		end_well(i);
	cr_assert_eq(driver.rings[0].used->index, 0);
	test_driver_turn(&driver);
	cr_assert_eq(driver.rings[0].used->index, 8);
	cr_assert_eq(test_eventfd_take(driver.rings[0].call_fd), 1);
}

/* Durable writes */

static void start_writethrough(void)
{
	test_driver_start(&driver, &blk.virtio, 0);
}

Test(blk, without_flush_each_write_is_made_durable)
{
	struct test_buffer data = room(SECTOR), status;

	start_writethrough();
	status = offer(0, T_OUT, 0, &data);
	kick();
	cr_assert_eq(fake.n_ops, 1);
	end_well(0);
	test_driver_turn(&driver);
	cr_assert_eq(fake.n_ops, 2);
	cr_assert_eq(fake.ops[1].kind, IO_FLUSH);
	cr_assert_eq(byte_at(status, 0), UNTOUCHED);
	end_well(1);
	test_driver_turn(&driver);
	cr_assert_eq(byte_at(status, 0), S_OK);
}

Test(blk, without_flush_a_flush_that_fails_fails_the_write)
{
	struct test_buffer data = room(SECTOR), status;

	start_writethrough();
	status = offer(0, T_OUT, 0, &data);
	kick();
	end_well(0);
	end(1, -EIO);
	test_driver_turn(&driver);
	cr_assert_eq(byte_at(status, 0), S_IOERR);
}

Test(blk, without_flush_zeroes_are_made_durable)
{
	const struct range range = {0, 8, 0};

	start_writethrough();
	cr_assert_eq(ask_ranges(T_WRITE_ZEROES, &range, 16), S_OK);
	cr_assert_eq(fake.n_ops, 2);
	cr_assert_eq(fake.ops[1].kind, IO_FLUSH);
}

Test(blk, without_flush_reads_are_just_reads)
{
	struct test_buffer data = room(SECTOR);

	start_writethrough();
	cr_assert_eq(ask(T_IN, 0, &data), S_OK);
	cr_assert_eq(fake.n_ops, 1);
}

Test(blk, a_negotiation_is_forgotten_at_a_reset)
{
	struct test_buffer data = room(SECTOR);

	start_writethrough();
	test_driver_reset(&driver);
	start();
	cr_assert_eq(ask(T_OUT, 0, &data), S_OK);
	cr_assert_eq(fake.n_ops, 1);
}

/* A full engine */

Test(blk, a_full_engine_delays_and_loses_nothing)
{
	struct test_buffer data[60], status[60];

	start();
	fake.room = 3;
	for (uint32_t i = 0; i < 60; i++) {
		data[i] = room(SECTOR);
		status[i] = offer(0, T_IN, i, &data[i]);
	}
	kick();
	cr_assert_eq(fake.n_under_way, 3);
	end_all();
	cr_assert_gt(fake.n_busy, 0);
	cr_assert_eq(given_back(), 60);
	for (uint32_t i = 0; i < 60; i++) {
		cr_assert_eq(byte_at(status[i], 0), S_OK);
		cr_assert_eq(fake.ops[i].offset, i * SECTOR, "in order, each once");
	}
}

Test(blk, a_later_step_waits_for_room)
{
	struct test_buffer data = room(2 * SECTOR), status;

	start();
	status = offer(0, T_IN, 0, &data);
	kick();
	fake.room = 0; /* somebody else took it */
	end(0, SECTOR);
	test_driver_turn(&driver);
	cr_assert_eq(byte_at(status, 0), UNTOUCHED);
	fake.room = 1;
	loop_batch(take_ptr(fake.waiting));
	test_driver_turn(&driver);
	end_all();
	cr_assert_eq(byte_at(status, 0), S_OK);
	cr_assert_eq(memcmp(test_driver_at(&driver, data.gpa), fake.disk, 2 * SECTOR), 0);
}

Test(blk, steps_of_all_kinds_wait_for_room)
{
	const struct range ranges[] = {{0, 1, 0}, {1, 1, 0}};
	struct test_buffer out = test_driver_put(&driver, ranges, sizeof(ranges)), data, status[3];

	start_writethrough();
	data = room(SECTOR);
	status[0] = offer(0, T_DISCARD, 0, &out);
	status[1] = offer(0, T_OUT, 1, &data);
	status[2] = offer(0, T_OUT, 2, &data);
	kick();
	fake.room = 0;
	for (uint32_t i = 0; i < 3; i++)
		end_well(i);
	test_driver_turn(&driver);
	fake.room = 1;
	loop_batch(take_ptr(fake.waiting));
	test_driver_turn(&driver);
	end_all();
	for (uint32_t i = 0; i < 3; i++)
		cr_assert_eq(byte_at(status[i], 0), S_OK, "request %u", i);
	cr_assert_eq(given_back(), 3);
}

Test(blk, a_reset_waits_for_steps_that_wait_for_room)
{
	struct test_buffer data = room(2 * SECTOR);

	start();
	offer(0, T_IN, 0, &data);
	kick();
	fake.room = 0;
	end(0, SECTOR);
	test_driver_turn(&driver);
	pthread_mutex_lock(&blk.pci.function.device.lock);
	virtio_reset(&blk.virtio);
	pthread_mutex_unlock(&blk.pci.function.device.lock);
	test_driver_turn(&driver);
	cr_assert_neq(atomic_load(&blk.virtio.status), 0);
	fake.room = 1;
	loop_batch(take_ptr(fake.waiting));
	test_driver_turn(&driver);
	end_all();
	cr_assert_eq(atomic_load(&blk.virtio.status), 0);
}

/* Requests that end at once, offered as fast as they are taken. */
Test(blk, a_greedy_guest_does_not_hold_the_loop)
{
	struct test_buffer data = room(SECTOR), out = header(T_IN, 0);
	struct test_buffer in[] = {data, status_room()};
	uint16_t head;

	start();
	fake.submit_error = -EINVAL;
	fake.greedy_left = 20000;
	head = test_driver_add(&driver, 0, &out, 1, in, 2, false);
	for (uint32_t i = 0; i < driver.rings[0].size; i++)
		driver.rings[0].available->ring[i] = head;
	test_driver_kick(&driver, 0);
	while (fake.n_greedy == 0)
		cr_assert_eq(loop_turn(driver.loop, UINT64_MAX), 0);
	cr_assert_leq(fake.n_greedy, 4 * driver.rings[0].size, "all in one turn");
	while (fake.greedy_left > 0)
		cr_assert_eq(loop_turn(driver.loop, UINT64_MAX), 0);
	test_driver_turn(&driver);
	cr_assert_eq(driver.rings[0].used->index, 20001);
}

/* Reset and pause */

Test(blk, a_reset_is_over_when_the_last_request_is)
{
	struct test_buffer data = room(SECTOR);

	start();
	for (uint32_t i = 0; i < 5; i++)
		offer(0, i % 2 ? T_IN : T_OUT, i, &data);
	kick();
	pthread_mutex_lock(&blk.pci.function.device.lock);
	virtio_reset(&blk.virtio);
	pthread_mutex_unlock(&blk.pci.function.device.lock);
	test_driver_turn(&driver);
	for (uint32_t n = 0; n < 5; n++) {
		cr_assert_neq(atomic_load(&blk.virtio.status), 0);
		end_well((n * 3 + 1) % 5);
		test_driver_turn(&driver);
	}
	cr_assert_eq(atomic_load(&blk.virtio.status), 0);
	start();
	cr_assert_eq(ask(T_IN, 7, &data), S_OK);
}

Test(blk, a_reset_leaves_what_was_not_taken)
{
	struct test_buffer data = room(SECTOR), status = {0};

	start();
	fake.room = 1;
	for (uint32_t i = 0; i < 4; i++)
		status = offer(0, T_OUT, i, &data);
	kick();
	pthread_mutex_lock(&blk.pci.function.device.lock);
	virtio_reset(&blk.virtio);
	pthread_mutex_unlock(&blk.pci.function.device.lock);
	test_driver_turn(&driver);
	end_all();
	cr_assert_eq(atomic_load(&blk.virtio.status), 0);
	cr_assert_eq(fake.n_ops, 1);
	cr_assert_eq(byte_at(status, 0), UNTOUCHED);
}

static int n_done;

static void on_done(struct device_waiter *waiter _unused_, struct device *device _unused_)
{
	n_done++;
}

Test(blk, a_pause_waits_and_a_resume_goes_on)
{
	static struct device_waiter waiter = {on_done};
	struct test_buffer data = room(SECTOR);

	start();
	fake.room = 2;
	for (uint32_t i = 0; i < 6; i++)
		offer(0, T_IN, i, &data);
	kick();
	virtio_pause(&blk.virtio, &waiter);
	test_driver_turn(&driver);
	cr_assert_eq(n_done, 0);
	end_all();
	cr_assert_eq(n_done, 1);
	cr_assert_eq(fake.n_ops, 2, "nothing is taken on the way to rest");
	cr_assert_eq(driver.rings[0].used->index, 2);
	virtio_resume(&blk.virtio);
	test_driver_turn(&driver);
	end_all();
	cr_assert_eq(given_back(), 6);
}

/* A reset while the flush behind a write is to come: the write was promised durable. */
Test(blk, a_reset_between_the_steps_of_a_request)
{
	struct test_buffer data = room(SECTOR);

	start_writethrough();
	offer(0, T_OUT, 0, &data);
	kick();
	pthread_mutex_lock(&blk.pci.function.device.lock);
	virtio_reset(&blk.virtio);
	pthread_mutex_unlock(&blk.pci.function.device.lock);
	test_driver_turn(&driver);
	end_well(0);
	test_driver_turn(&driver);
	cr_assert_neq(atomic_load(&blk.virtio.status), 0);
	end_all();
	cr_assert_eq(atomic_load(&blk.virtio.status), 0);
}

/* The rest */

static uint64_t config(uint32_t offset, uint32_t len)
{
	uint64_t value = 0;

	blk.virtio.ops->config_read(&blk.virtio, offset, &value, len);
	return value;
}

Test(blk, configuration_describes_the_disk)
{
	cr_assert_eq(config(0, 8), CAPACITY);
	cr_assert_eq(config(20, 4), SECTOR);
	cr_assert_eq(config(32, 1), 1, "write-back");
	cr_assert_eq(config(34, 2), 1, "queues");
	cr_assert_geq(config(36, 4), 1);
	cr_assert_eq(config(40, 4), 16);
	cr_assert_geq(config(48, 4), 1);
	cr_assert_eq(config(52, 4), 16);
	cr_assert_leq(blk.virtio.config_size, 60);
}

static bool page_marked(gpa_t gpa)
{
	uint64_t bits[TEST_DRIVER_MEMORY / GUEST_PAGE_SIZE / 64] = {0};
	uint64_t page = gpa / GUEST_PAGE_SIZE;

	memory_track_take(&driver.memory, 0, bits, ARRAY_SIZE(bits));
	return bits[page / 64] & 1ull << page % 64;
}

Test(blk, what_a_read_writes_is_marked)
{
	struct test_buffer data = {test_driver_alloc(&driver, SECTOR, GUEST_PAGE_SIZE), SECTOR};

	start();
	test_driver_alloc(&driver, GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);
	cr_assert_eq(memory_track_start(&driver.memory), 0);
	cr_assert_eq(ask(T_IN, 0, &data), S_OK);
	cr_assert(page_marked(data.gpa));
	cr_assert_eq(ask(T_OUT, 0, &data), S_OK);
	cr_assert_not(page_marked(data.gpa), "a write only reads memory");
}

Test(blk, an_id_is_marked)
{
	struct test_buffer data = {test_driver_alloc(&driver, 20, GUEST_PAGE_SIZE), 20};

	start();
	test_driver_alloc(&driver, GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);
	cr_assert_eq(memory_track_start(&driver.memory), 0);
	cr_assert_eq(ask(T_GET_ID, 0, &data), S_OK);
	cr_assert(page_marked(data.gpa));
}

Test(blk, counters_count)
{
	struct test_buffer data = room(SECTOR);
	json_t *counters = json_object();

	start();
	ask(T_IN, 0, &data);
	ask(T_OUT, 0, &data);
	ask(T_FLUSH, 0, NULL);
	ask(T_IN, CAPACITY, &data);
	blk.pci.function.device.ops->counters(&blk.pci.function.device, counters);
	cr_assert_eq(json_integer_value(json_object_get(counters, "reads")), 1);
	cr_assert_eq(json_integer_value(json_object_get(counters, "writes")), 1);
	cr_assert_eq(json_integer_value(json_object_get(counters, "flushes")), 1);
	cr_assert_eq(json_integer_value(json_object_get(counters, "errors")), 1);
	cr_assert_eq(json_integer_value(json_object_get(counters, "read-bytes")), SECTOR);
	json_decref(counters);
}

/* A raw image on the loops' real engine */

#define QUEUES    8
#define LOOPS     4
#define PER_QUEUE 64

static struct loop *loops[LOOPS];
static pthread_t threads[LOOPS];
static struct block_image *raw;

static void *run_loop(void *arg)
{
	int r = loop_enable(arg);

	return (void *)(intptr_t)(r < 0 ? r : loop_run(arg));
}

static void set_up_loops(void)
{
	const struct block_open open = {.format = "raw", .name = "disk"};
	struct error err = ERROR_NULL;
	int fd = memfd_create("disk", MFD_CLOEXEC);

	cr_assert_eq(ftruncate(fd, DISK_SIZE), 0);
	cr_assert_eq(block_open(&raw, fd, &open, &err), 0, "%s", err.text);
	test_board_init(&board);
	test_driver_init(&driver);
	for (uint32_t i = 0; i < LOOPS; i++) {
		const struct loop_options options = {.name = "io"};

		cr_assert_eq(loop_new(&loops[i], &options, &err), 0, "%s", err.text);
	}
	make(QUEUES, loops, LOOPS, raw);
	for (uint32_t i = 0; i < LOOPS; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, run_loop, loops[i]), 0);
}

static void tear_down_loops(void)
{
	for (uint32_t i = 0; i < LOOPS; i++) {
		void *result;

		loop_stop(loops[i]);
		cr_assert_eq(pthread_join(threads[i], &result), 0);
		cr_assert_null(result);
	}
	blk.pci.function.device.ops->deinit(&blk.pci.function.device);
	for (uint32_t i = 0; i < LOOPS; i++)
		loops[i] = loop_free(loops[i]);
	raw = block_close(raw);
	test_driver_deinit(&driver);
	test_board_deinit(&board);
}

TestSuite(blk_loops, .init = set_up_loops, .fini = tear_down_loops, .timeout = 60);

/* Waits for the queue's interrupt until `n` chains are back. */
static void collect(uint32_t queue, uint32_t n)
{
	uint32_t length;
	uint16_t head;

	while (n > 0) {
		struct pollfd call = {.fd = driver.rings[queue].call_fd, .events = POLLIN};

		while (n > 0 && test_driver_reap(&driver, queue, &head, &length))
			n--;
		if (n == 0)
			return;
		cr_assert_eq(poll(&call, 1, 20000), 1, "queue %u gives nothing back", queue);
		test_eventfd_take(call.fd);
	}
}

Test(blk_loops, eight_queues_on_four_loops)
{
	struct test_buffer data[QUEUES][PER_QUEUE], status[QUEUES][PER_QUEUE];
	gpa_t mark;

	test_driver_start(&driver, &blk.virtio, F_FLUSH | F_MQ);
	for (uint32_t q = 0; q < QUEUES; q++)
		for (uint32_t i = 0; i < PER_QUEUE; i++) {
			data[q][i] = room(SECTOR);
			memset(test_driver_at(&driver, data[q][i].gpa), q * 31 + i, SECTOR);
		}
	mark = driver.next;
	for (uint32_t round = 0; round < 4; round++) {
		driver.next = mark;
		for (uint32_t q = 0; q < QUEUES; q++) {
			for (uint32_t i = 0; i < PER_QUEUE; i++)
				status[q][i] = offer(q, T_OUT, q * PER_QUEUE + i, &data[q][i]);
			test_driver_kick(&driver, q);
		}
		for (uint32_t q = 0; q < QUEUES; q++)
			collect(q, PER_QUEUE);
	}
	/* Each queue reads what another wrote. */
	for (uint32_t q = 0; q < QUEUES; q++) {
		for (uint32_t i = 0; i < PER_QUEUE; i++) {
			cr_assert_eq(byte_at(status[q][i], 0), S_OK);
			offer(q, T_IN, (q + 3) % QUEUES * PER_QUEUE + i, &data[q][i]);
		}
		test_driver_kick(&driver, q);
	}
	for (uint32_t q = 0; q < QUEUES; q++)
		collect(q, PER_QUEUE);
	for (uint32_t q = 0; q < QUEUES; q++)
		for (uint32_t i = 0; i < PER_QUEUE; i++)
			cr_assert_eq(byte_at(data[q][i], SECTOR - 1),
				     (uint8_t)((q + 3) % QUEUES * 31 + i));
}

Test(blk_loops, a_reset_with_all_queues_busy)
{
	struct test_buffer data = room(64 * SECTOR);

	for (uint32_t round = 0; round < 20; round++) {
		driver.next = 0x100000;
		test_driver_start(&driver, &blk.virtio, round % 2 ? F_FLUSH : 0);
		for (uint32_t q = 0; q < QUEUES; q++) {
			for (uint32_t i = 0; i < 32; i++)
				offer(q, i % 2 ? T_IN : T_OUT, i, &data);
			test_driver_kick(&driver, q);
		}
		pthread_mutex_lock(&blk.pci.function.device.lock);
		virtio_reset(&blk.virtio);
		pthread_mutex_unlock(&blk.pci.function.device.lock);
		while (atomic_load(&blk.virtio.status) != 0)
			sched_yield();
	}
}
