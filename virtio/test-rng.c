/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The entropy device against a driver in memory.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "devices/test-board.h"
#include "virtio/rng.h"
#include "virtio/test-driver.h"

static struct test_board board;
static struct test_driver driver;
static struct pci_root root;
static struct rng rng;

static void set_up(void)
{
	static const struct pci_layout layout = {
		.ecam = 0xe0000000, .window = 0xc0000000, .window_size = 1 << 20};
	struct error err = ERROR_NULL;

	test_board_init(&board);
	test_driver_init(&driver);
	cr_assert_eq(pci_root_init(&root, &layout, &board.io, &board.mmio, &board.irqs,
				   &board.kicks, &err),
		     0, "%s", err.text);
	cr_assert_eq(rng_init(&rng, &root, 1, "rng", &driver.memory, driver.loop, &err), 0, "%s",
		     err.text);
}

static void tear_down(void)
{
	rng.pci.function.device.ops->deinit(&rng.pci.function.device);
	test_driver_deinit(&driver);
	test_board_deinit(&board);
}

TestSuite(rng, .init = set_up, .fini = tear_down);

static uint32_t ask(const struct test_buffer *in, uint32_t n_in, bool indirect)
{
	test_driver_add(&driver, 0, NULL, 0, in, n_in, indirect);
	test_driver_kick(&driver, 0);
	return test_driver_wait(&driver, 0);
}

static struct test_buffer room(uint32_t size)
{
	return (struct test_buffer){test_driver_alloc(&driver, size, 16), size};
}

/* Values seen in a buffer: a broken source gives one or a few. */
static uint32_t distinct(struct test_buffer buffer)
{
	const uint8_t *data = test_driver_at(&driver, buffer.gpa);
	bool seen[256] = {false};
	uint32_t n = 0;

	for (uint32_t i = 0; i < buffer.length; i++) {
		n += !seen[data[i]];
		seen[data[i]] = true;
	}
	return n;
}

Test(rng, fills_what_it_says_and_no_more)
{
	struct test_buffer all = room(4096), middle = {all.gpa + 1024, 2048};
	const uint8_t *bytes = test_driver_at(&driver, all.gpa);

	test_driver_start(&driver, &rng.virtio, 0);
	cr_assert_eq(ask(&middle, 1, false), 2048);
	cr_assert_gt(distinct(middle), 200);
	for (uint32_t i = 0; i < 1024; i++)
		cr_assert(bytes[i] == 0 && bytes[3072 + i] == 0);
}

Test(rng, interrupts_once_a_batch)
{
	struct test_buffer buffer = room(64);

	test_driver_start(&driver, &rng.virtio, VIRTIO_F_EVENT_IDX);
	for (int i = 0; i < 8; i++)
		test_driver_add(&driver, 0, NULL, 0, &buffer, 1, false);
	test_driver_kick(&driver, 0);
	for (int i = 0; i < 8; i++)
		cr_assert_eq(test_driver_wait(&driver, 0), 64);
	cr_assert_eq(test_eventfd_take(driver.rings[0].call_fd), 1);
}

Test(rng, fills_each_piece_of_a_chain)
{
	struct test_buffer pieces[3] = {room(100), room(1), room(300)};

	test_driver_start(&driver, &rng.virtio, VIRTIO_F_INDIRECT_DESC);
	cr_assert_eq(ask(pieces, 3, true), 401);
	cr_assert_gt(distinct(pieces[0]), 40);
	cr_assert_gt(distinct(pieces[2]), 100);
}

Test(rng, a_large_request_gets_a_part)
{
	struct test_buffer large = room(RNG_REQUEST_MAX + 4096);
	const uint8_t *bytes = test_driver_at(&driver, large.gpa);

	test_driver_start(&driver, &rng.virtio, 0);
	cr_assert_eq(ask(&large, 1, false), RNG_REQUEST_MAX);
	for (uint32_t i = 0; i < 4096; i++)
		cr_assert_eq(bytes[RNG_REQUEST_MAX + i], 0);
}

Test(rng, a_greedy_guest_does_not_hold_the_loop)
{
	struct test_buffer large = room(RNG_REQUEST_MAX);
	uint16_t head;
	uint32_t length;

	test_driver_start(&driver, &rng.virtio, VIRTIO_F_EVENT_IDX);
	test_driver_turn(&driver);
	for (int i = 0; i < 16; i++)
		test_driver_add(&driver, 0, NULL, 0, &large, 1, false);
	test_driver_kick(&driver, 0);
	while (!test_driver_reap(&driver, 0, &head, &length))
		cr_assert_eq(loop_turn(driver.loop, UINT64_MAX), 0);
	cr_assert_lt(driver.rings[0].used->index, 16, "all in one turn");
	for (int i = 0; i < 15; i++)
		cr_assert_eq(test_driver_wait(&driver, 0), RNG_REQUEST_MAX);
}

Test(rng, buffers_it_cannot_write_are_given_back_empty)
{
	struct test_buffer buffer = test_driver_put(&driver, "fixed", 5);

	test_driver_start(&driver, &rng.virtio, 0);
	test_driver_add(&driver, 0, &buffer, 1, NULL, 0, false);
	test_driver_kick(&driver, 0);
	cr_assert_eq(test_driver_wait(&driver, 0), 0);
	cr_assert_eq(memcmp(test_driver_at(&driver, buffer.gpa), "fixed", 5), 0);
}

Test(rng, a_buffer_outside_memory_needs_a_reset)
{
	struct test_buffer outside = {TEST_DRIVER_MEMORY - 8, 64}, good = room(64);

	test_driver_start(&driver, &rng.virtio, 0);
	test_driver_add(&driver, 0, NULL, 0, &outside, 1, false);
	test_driver_kick(&driver, 0);
	test_driver_turn(&driver);
	cr_assert(atomic_load(&rng.virtio.status) & VIRTIO_STATUS_NEEDS_RESET);
	test_driver_reset(&driver);
	test_driver_start(&driver, &rng.virtio, 0);
	cr_assert_eq(ask(&good, 1, false), 64, "a reset mends it");
}
