/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Power control and the PM timer, through the bus.
 */
#include <criterion/criterion.h>
#include <time.h>

#include "devices/power.h"
#include "devices/test-board.h"

static struct test_board board;
static struct power power;

static void set_up(void)
{
	test_board_init(&board);
	cr_assert_eq(power_init(&power, &board.io, &board.events, NULL), 0);
}

static void tear_down(void)
{
	power.device.ops->deinit(&power.device);
	test_board_deinit(&board);
}

TestSuite(power, .init = set_up, .fini = tear_down);

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

Test(power, s5_powers_off)
{
	test_board_out(&board, 0x600, 0x20 | 5 << 2, 1);
	cr_assert_eq(board.n_events, 1);
	cr_assert_eq(board.last_event, MACHINE_POWER_OFF);
}

Test(power, one_resets)
{
	test_board_out(&board, 0x600, 1, 1);
	cr_assert_eq(board.n_events, 1);
	cr_assert_eq(board.last_event, MACHINE_RESET);
}

Test(power, other_writes_do_nothing)
{
	for (uint32_t value = 0; value < 256; value++) {
		if (value != 1 && value != 0x34)
			test_board_out(&board, 0x600, value, 1);
		test_board_out(&board, 0x601, value, 1);
		test_board_out(&board, 0x608, value, 4);
	}
	cr_assert_eq(board.n_events, 0);
}

Test(power, sleep_status_reads_zero)
{
	cr_assert_eq(test_board_in(&board, 0x600, 1), 0);
	cr_assert_eq(test_board_in(&board, 0x600, 4), 0);
}

Test(power, timer_runs_at_its_rate)
{
	uint64_t before = now_ns(), after, least, most;
	uint32_t first = test_board_in(&board, 0x608, 4), ticks;

	do
		ticks = test_board_in(&board, 0x608, 4) - first;
	while (ticks < 10000);
	after = now_ns();
	/* 3.579545 MHz: the loop has taken at least that long, and ended no later than now. */
	least = 10000ull * 1000000000u / 3579545 - 1000;
	most = (after - before) * 3579545 / 1000000000u + 2;
	cr_assert_geq(after - before, least);
	cr_assert_leq(ticks, most);
}

Test(power, timer_has_thirty_two_bits)
{
	power.timer_start = now_ns() - 4000ull * 1000000000u; /* 14,318,180,000 ticks */
	cr_assert_geq(test_board_in(&board, 0x608, 4), (uint32_t)(4000ull * 3579545));
	cr_assert_lt(test_board_in(&board, 0x608, 4), (uint32_t)(4010ull * 3579545));
}

Test(power, timer_goes_on_after_load)
{
	struct test_board other;
	struct power loaded;
	uint32_t before;

	power.timer_start = now_ns() - 100ull * 1000000000u;
	test_board_init(&other);
	cr_assert_eq(power_init(&loaded, &other.io, &other.events, NULL), 0);
	before = test_board_in(&board, 0x608, 4);
	test_board_move(&power.device, &loaded.device);
	cr_assert_geq(test_board_in(&other, 0x608, 4), before);
	cr_assert_lt(test_board_in(&other, 0x608, 4), before + 60 * 3579545);
	loaded.device.ops->deinit(&loaded.device);
	test_board_deinit(&other);
}
