/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A block device whose store fails, whose guest is held back, or whose image changes: what was
 * asked is neither lost nor done twice as the guest sees it.
 */
#include "virtio/test-blk-disk.h"

#define NEXT 5 /* sectors the requests of a batch are apart */

static uint32_t n_failed, n_written;

static void on_failed(struct blk_listener *listener _unused_, struct blk *of _unused_)
{
	n_failed++;
}

static void on_written(struct blk_listener *listener _unused_, struct blk *of _unused_)
{
	n_written++;
}

static struct blk_listener listener = {on_failed, on_written};

static void set_up_pausing(void)
{
	wanted.on_error = BLK_ERROR_PAUSE;
	wanted.listener = &listener;
	set_up();
}

static void set_up_full(void)
{
	wanted.listener = &listener;
	set_up();
}

static void set_up_reporting(void)
{
	wanted.on_error = BLK_ERROR_REPORT;
	wanted.listener = &listener;
	set_up();
}

TestSuite(pausing, .init = set_up_pausing, .fini = tear_down);
TestSuite(full, .init = set_up_full, .fini = tear_down);
TestSuite(reporting, .init = set_up_reporting, .fini = tear_down);

static uint32_t n_done;

static void on_done(struct device_waiter *waiter _unused_, struct device *device _unused_)
{
	n_done++;
}

static struct device_waiter waiter = {on_done};

static void rest(void)
{
	uint32_t before = n_done;

	virtio_pause(&blk.virtio, &waiter);
	test_driver_turn(&driver);
	cr_assert_eq(n_done, before + 1, "it does not come to rest");
}

static void go_on(void)
{
	blk_trouble_forget(&blk);
	virtio_resume(&blk.virtio);
	test_driver_turn(&driver);
}

static uint32_t ring_used(void)
{
	return driver.rings[0].used->index;
}

/* A write of one sector of `byte`, under way. */
static struct test_buffer write_begin(uint64_t sector, uint8_t byte)
{
	struct test_buffer data = room(SECTOR), status;

	memset(test_driver_at(&driver, data.gpa), byte, SECTOR);
	status = offer(0, T_OUT, sector, &data);
	kick();
	return status;
}

/* Set aside */

Test(pausing, a_failed_write_is_tried_again_after_the_pause)
{
	struct test_buffer status;

	start();
	status = write_begin(3, 0x33);
	end(0, -ENOSPC);
	test_driver_turn(&driver);
	cr_assert_eq(n_failed, 1);
	cr_assert_eq(blk_trouble(&blk).code, -ENOSPC);
	cr_assert_eq(blk_trouble(&blk).operation, BLK_WRITE);
	cr_assert_eq(ring_used(), 0, "the guest still waits");
	rest();
	cr_assert_eq(byte_at(status, 0), UNTOUCHED);
	go_on();
	cr_assert_eq(fake.n_ops, 2, "once more");
	cr_assert_eq(fake.ops[1].offset, 3 * SECTOR);
	end_all();
	cr_assert_eq(test_driver_wait(&driver, 0), 1);
	cr_assert_eq(byte_at(status, 0), S_OK);
	cr_assert_eq(fake.disk[3 * SECTOR + 17], 0x33);
	cr_assert_eq(blk_trouble(&blk).code, 0);
}

Test(pausing, what_fails_again_is_told_again)
{
	start();
	write_begin(1, 1);
	for (uint32_t i = 0; i < 3; i++) {
		end(i, i % 2 ? -EIO : -ENOSPC);
		test_driver_turn(&driver);
		cr_assert_eq(n_failed, i + 1);
		rest();
		go_on();
	}
	end_all();
	cr_assert_eq(given_back(), 1);
}

Test(pausing, of_many_failures_one_is_told_and_none_is_lost)
{
	struct test_buffer status[8];

	start();
	for (uint32_t i = 0; i < 8; i++)
		status[i] = write_begin(i * NEXT, (uint8_t)(i + 1));
	for (uint32_t i = 0; i < 8; i++)
		i % 2 ? end_well(i) : end(i, -ENOSPC);
	test_driver_turn(&driver);
	cr_assert_eq(n_failed, 1);
	cr_assert_eq(ring_used(), 4, "others go on");
	rest();
	go_on();
	cr_assert_eq(fake.n_ops, 12);
	end_all();
	cr_assert_eq(given_back(), 8);
	for (uint32_t i = 0; i < 8; i++) {
		cr_assert_eq(byte_at(status[i], 0), S_OK);
		cr_assert_eq(fake.disk[i * NEXT * SECTOR], i + 1);
	}
}

Test(pausing, a_submission_that_fails_at_once_waits_for_the_pause)
{
	struct test_buffer status;

	start();
	fake.submit_error = -ENOSPC;
	status = write_begin(3, 0x44);
	test_driver_turn(&driver);
	cr_assert_eq(n_failed, 1);
	rest();
	go_on();
	cr_assert_eq(n_failed, 2, "tried once, not again and again");
	rest();
	fake.submit_error = 0;
	go_on();
	end_all();
	cr_assert_eq(byte_at(status, 0), S_OK);
}

Test(pausing, one_that_failed_half_way_is_done_whole)
{
	struct test_buffer data = room(2 * SECTOR), status;

	start();
	memset(test_driver_at(&driver, data.gpa), 0x77, 2 * SECTOR);
	status = offer(0, T_OUT, 0, &data);
	kick();
	end(0, SECTOR);
	test_driver_turn(&driver);
	end(1, -EIO);
	rest();
	memset(fake.disk, 0, SECTOR);
	go_on();
	cr_assert_eq(fake.ops[2].length, 2 * SECTOR);
	end_all();
	cr_assert_eq(byte_at(status, 0), S_OK);
	cr_assert_eq(fake.disk[0], 0x77);
}

Test(pausing, a_file_cut_short_is_an_error_of_the_store)
{
	struct test_buffer data = room(SECTOR);

	start();
	offer(0, T_IN, 0, &data);
	kick();
	end(0, 0);
	cr_assert_eq(blk_trouble(&blk).code, -EIO);
	cr_assert_eq(blk_trouble(&blk).operation, BLK_READ);
}

/* A guest that could stop its own VM by a bad request would be no better than a crash. */
Test(pausing, what_the_image_cannot_do_is_told)
{
	struct test_buffer data = room(SECTOR), status;

	start();
	status = offer(0, T_OUT, 0, &data);
	kick();
	end(0, -EINVAL);
	cr_assert_eq(byte_at(status, 0), S_IOERR);
	status = offer(0, T_OUT, 0, &data);
	kick();
	end(1, -EOPNOTSUPP);
	cr_assert_eq(byte_at(status, 0), S_UNSUPPORTED);
	cr_assert_eq(n_failed, 0);
}

/* The page cache forgets what it could not write: the next flush would lie. */
Test(pausing, a_flush_of_a_raw_file_is_not_tried_again)
{
	static struct block_ops raw_like;
	struct test_buffer status;

	raw_like = fake_ops;
	raw_like.format = "raw";
	fake.image.ops = &raw_like;
	start();
	status = offer(0, T_FLUSH, 0, NULL);
	kick();
	end(0, -EIO);
	test_driver_turn(&driver);
	cr_assert_eq(byte_at(status, 0), S_IOERR);
	cr_assert_eq(n_failed, 0);
	fake.image.file.direct = true;
	offer(0, T_FLUSH, 0, NULL);
	kick();
	end(1, -EIO);
	cr_assert_eq(n_failed, 1, "there is no page cache between");
}

Test(full, only_a_full_store_pauses)
{
	static const int full[] = {-ENOSPC, -EDQUOT};
	struct test_buffer data = room(SECTOR), status;

	start();
	status = offer(0, T_OUT, 0, &data);
	kick();
	end(0, -EIO);
	test_driver_turn(&driver);
	cr_assert_eq(byte_at(status, 0), S_IOERR);
	cr_assert_eq(n_failed, 0);
	for (uint32_t i = 0; i < ARRAY_SIZE(full); i++) {
		write_begin(1, 1);
		end(fake.n_ops - 1, full[i]);
		cr_assert_eq(n_failed, i + 1);
		rest();
		go_on();
		end_all();
	}
}

Test(reporting, nothing_pauses)
{
	struct test_buffer status;

	start();
	status = write_begin(0, 1);
	end(0, -ENOSPC);
	test_driver_turn(&driver);
	cr_assert_eq(byte_at(status, 0), S_IOERR);
	cr_assert_eq(n_failed, 0);
	cr_assert_eq(blk_trouble(&blk).code, 0);
}

Test(pausing, a_reset_forgets_what_was_set_aside)
{
	struct test_buffer data = room(SECTOR);

	start();
	write_begin(3, 0x33);
	end(0, -ENOSPC);
	pthread_mutex_lock(&blk.pci.function.device.lock);
	virtio_reset(&blk.virtio);
	pthread_mutex_unlock(&blk.pci.function.device.lock);
	test_driver_turn(&driver);
	cr_assert_eq(atomic_load(&blk.virtio.status), 0);
	start();
	test_driver_turn(&driver);
	cr_assert_eq(fake.n_ops, 1, "nothing of the life before");
	cr_assert_eq(ask(T_IN, 7, &data), S_OK);
}

/* What a save keeps and a load brings. */

static uint8_t stream[1 << 16];

static size_t save(void)
{
	struct cursor out = cursor_writer(stream, sizeof(stream));

	cr_assert_eq(device_save(&blk.pci.function.device, &out), 0);
	return out.at;
}

static int load(size_t size)
{
	struct cursor in = cursor_reader(stream, size);
	struct error err = ERROR_NULL;

	return device_load(&blk.pci.function.device, &in, &err);
}

/* The driver skips the transport; what that would have put into the state is put there. */
static void transport_knows(void)
{
	blk.pci.state.status = atomic_load(&blk.virtio.status);
	blk.pci.state.driver_features = blk.virtio.accepted;
}

Test(pausing, what_is_set_aside_outlasts_a_save_and_a_load)
{
	struct test_buffer status[3];
	size_t size;

	start();
	for (uint32_t i = 0; i < 3; i++)
		status[i] = write_begin(i * NEXT, (uint8_t)(i + 1));
	end_well(1);
	end(0, -ENOSPC);
	end(2, -ENOSPC);
	rest();
	transport_knows();
	size = save();
	blk.pci.function.device.ops->reset(&blk.pci.function.device);
	for (uint32_t i = 0; i < BLK_QUEUE_SIZE / 8; i++)
		cr_assert_eq(blk.state.aside[0][i], 0);
	cr_assert_eq(load(size), 0);
	go_on();
	cr_assert_eq(fake.n_ops, 5);
	end_all();
	for (uint32_t i = 0; i < 3; i++) {
		cr_assert_eq(byte_at(status[i], 0), S_OK);
		cr_assert_eq(fake.disk[i * NEXT * SECTOR], i + 1);
	}
	cr_assert_eq(ring_used(), 3);
}

Test(pausing, a_state_with_a_request_of_no_queue_is_refused)
{
	size_t size;

	start();
	rest();
	transport_knows();
	blk.state.aside[1][0] = 1;
	size = save();
	cr_assert_eq(load(size), -EBADMSG);
}

/* Limits: requests wait in the ring. */

static void set_up_limited(void)
{
	wanted.limits.writes.operations = 20; /* two at once, then one in 50 ms */
	wanted.listener = &listener;
	set_up();
}

TestSuite(limited, .init = set_up_limited, .fini = tear_down, .timeout = 60);

static void turn_until_ops(uint32_t n)
{
	for (uint32_t i = 0; fake.n_ops < n; i++) {
		cr_assert_lt(i, 100, "the timer does not come");
		cr_assert_eq(loop_turn(driver.loop, loop_now(driver.loop) + 1000000000u), 0);
	}
}

Test(limited, writes_wait_in_their_order_and_all_are_done)
{
	struct test_buffer status[6];

	start();
	for (uint32_t i = 0; i < 6; i++)
		status[i] = write_begin(i, (uint8_t)(i + 1));
	cr_assert_eq(fake.n_ops, 2);
	cr_assert_eq(blk.virtio.queues[0].ring.in_flight, 2, "the others are in the ring");
	for (uint32_t n = 3; n <= 6; n++) {
		uint64_t before = loop_now(driver.loop);

		turn_until_ops(n);
		cr_assert_eq(fake.n_ops, n, "one at a time");
		cr_assert_eq(fake.ops[n - 1].offset, (n - 1) * SECTOR);
		cr_assert_leq(loop_now(driver.loop) - before, 10000000000u);
	}
	end_all();
	for (uint32_t i = 0; i < 6; i++)
		cr_assert_eq(byte_at(status[i], 0), S_OK);
}

Test(limited, reads_are_free_until_they_stand_behind_a_write)
{
	struct test_buffer data = room(SECTOR);

	start();
	for (uint32_t i = 0; i < 50; i++)
		cr_assert_eq(ask(T_IN, 0, &data), S_OK);
	for (uint32_t i = 0; i < 3; i++)
		write_begin(i, 1);
	offer(0, T_IN, 9, &data);
	kick();
	cr_assert_eq(fake.n_ops, 52);
	turn_until_ops(54);
	cr_assert_eq(fake.ops[53].kind, IO_READ);
}

Test(limited, a_pause_leaves_what_waits_and_a_resume_goes_on)
{
	start();
	for (uint32_t i = 0; i < 4; i++)
		write_begin(i, 1);
	end_all();
	rest();
	cr_assert_eq(ring_used(), 2);
	cr_assert_eq(loop_turn(driver.loop, loop_now(driver.loop) + 200000000u), 0);
	cr_assert_eq(fake.n_ops, 2, "its timer is off");
	go_on();
	turn_until_ops(4);
	end_all();
	cr_assert_eq(given_back(), 4);
}

Test(limited, a_reset_leaves_what_waits)
{
	struct test_buffer data = room(SECTOR);

	start();
	for (uint32_t i = 0; i < 4; i++)
		write_begin(i, 1);
	end_all();
	pthread_mutex_lock(&blk.pci.function.device.lock);
	virtio_reset(&blk.virtio);
	pthread_mutex_unlock(&blk.pci.function.device.lock);
	test_driver_turn(&driver);
	cr_assert_eq(atomic_load(&blk.virtio.status), 0);
	start();
	cr_assert_eq(ask(T_IN, 7, &data), S_OK);
}

/* What is taken from a limit and then finds the engine full is not taken twice. */
Test(limited, a_full_engine_costs_nothing)
{
	start();
	fake.room = 1;
	write_begin(0, 1);
	write_begin(1, 1);
	cr_assert_eq(fake.n_busy, 1);
	end_well(0);
	test_driver_turn(&driver);
	cr_assert_eq(fake.n_ops, 2, "without waiting");
	end_all();
}

/* Latencies and what is written */

Test(full, latencies_are_counted_by_kind)
{
	struct test_buffer data = room(SECTOR);
	json_t *counters = json_object();
	static const struct {
		const char *key;
		uint32_t n;
	} wants[] = {{"read-latency", 2}, {"write-latency", 1}, {"flush-latency", 3}};

	start();
	for (uint32_t i = 0; i < 2; i++)
		ask(T_IN, 0, &data);
	ask(T_OUT, 0, &data);
	for (uint32_t i = 0; i < 3; i++)
		ask(T_FLUSH, 0, NULL);
	blk.pci.function.device.ops->counters(&blk.pci.function.device, counters);
	for (uint32_t i = 0; i < ARRAY_SIZE(wants); i++) {
		const json_t *list = json_object_get(counters, wants[i].key);
		json_int_t sum = 0;

		for (size_t j = 0; j < json_array_size(list); j++)
			sum += json_integer_value(json_array_get(list, j));
		cr_assert_eq(sum, wants[i].n, "%s", wants[i].key);
	}
	json_decref(counters);
}

Test(full, writing_is_told_once_a_second)
{
	struct test_buffer data = room(SECTOR);

	start();
	for (uint32_t i = 0; i < 20; i++)
		ask(T_IN, 0, &data);
	cr_assert_eq(n_written, 0);
	for (uint32_t i = 0; i < 20; i++)
		ask(T_OUT, 0, &data);
	cr_assert_eq(n_written, 1);
	atomic_store(&blk.written_told, loop_now(driver.loop) - BLK_WRITTEN_NS);
	ask(T_OUT, 0, &data);
	cr_assert_eq(n_written, 2);
}

/* Another image */

static int swap_result = 1;

static void on_swapped(struct blk_swap *swap _unused_, int r)
{
	swap_result = r;
}

static struct block_image other;

static int no_channel(struct block_channel **ret_channel _unused_,
		      struct block_image *image _unused_, struct loop *loop _unused_)
{
	return -ENOMEM;
}

Test(full, another_image_serves_what_comes_after)
{
	struct blk_swap swap = {.image = &other, .done = on_swapped};
	struct test_buffer data = room(SECTOR), status;

	other = fake.image;
	start();
	offer(0, T_OUT, 1, &data);
	kick();
	virtio_hold(&blk.virtio, &waiter);
	test_driver_turn(&driver);
	status = offer(0, T_OUT, 2, &data);
	kick();
	cr_assert_eq(n_done, 0);
	end_well(0);
	test_driver_turn(&driver);
	cr_assert_eq(n_done, 1);
	cr_assert_eq(fake.n_ops, 1, "the second waits in the ring");
	cr_assert_eq(blk_swap(&blk, &swap), 0);
	test_driver_turn(&driver);
	cr_assert_eq(swap_result, 0);
	cr_assert_eq(blk.image, &other);
	virtio_release(&blk.virtio);
	test_driver_turn(&driver);
	cr_assert_eq(fake.ops[0].image, &fake.image);
	cr_assert_eq(fake.ops[1].image, &other);
	end_all();
	cr_assert_eq(byte_at(status, 0), S_OK);
	cr_assert_eq(given_back(), 2);
}

Test(full, an_image_that_cannot_be_used_changes_nothing)
{
	struct block_ops ops = fake_ops;
	struct blk_swap swap = {.image = &other, .done = on_swapped};
	struct test_buffer data = room(SECTOR);

	ops.channel_open = no_channel;
	other = fake.image;
	other.ops = &ops;
	start();
	virtio_hold(&blk.virtio, &waiter);
	test_driver_turn(&driver);
	cr_assert_eq(blk_swap(&blk, &swap), 0);
	test_driver_turn(&driver);
	cr_assert_eq(swap_result, -ENOMEM);
	virtio_release(&blk.virtio);
	cr_assert_eq(ask(T_IN, 0, &data), S_OK);
	cr_assert_eq(fake.ops[0].image, &fake.image);
	other.size += SECTOR;
	cr_assert_eq(blk_swap(&blk, &swap), -EINVAL);
	other.size -= SECTOR;
	other.io_block = 4096;
	cr_assert_eq(blk_swap(&blk, &swap), -EINVAL);
}

Test(full, a_larger_image_is_seen_by_the_guest)
{
	struct test_buffer data = room(SECTOR);
	uint8_t generation = atomic_load(&blk.virtio.config_generation);
	uint64_t capacity = 0;

	start();
	fake.image.size = DISK_SIZE / 2;
	blk_resized(&blk);
	cr_assert_neq(atomic_load(&blk.virtio.config_generation), generation);
	blk.virtio.ops->config_read(&blk.virtio, 0, &capacity, 8);
	cr_assert_eq(capacity, CAPACITY / 2);
	cr_assert_eq(ask(T_IN, CAPACITY / 2, &data), S_IOERR);
	fake.image.size = DISK_SIZE;
	blk_resized(&blk);
	cr_assert_eq(ask(T_IN, CAPACITY / 2, &data), S_OK);
}

/* An image that is another host's is not touched; what waits for it is served by the claim. */
Test(full, an_inactive_image_leaves_all_in_the_ring)
{
	struct test_buffer data = room(SECTOR), status;

	fake.image.inactive = true;
	start();
	status = offer(0, T_IN, 0, &data);
	kick();
	cr_assert_eq(fake.n_ops, 0);
	rest();
	fake.image.inactive = false;
	go_on();
	end_all();
	cr_assert_eq(byte_at(status, 0), S_OK);
}
