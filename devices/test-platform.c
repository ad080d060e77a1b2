/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The devices of a register or two: event device, keyboard controller, panic port, generation id.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "devices/ged.h"
#include "devices/generation.h"
#include "devices/i8042.h"
#include "devices/pvpanic.h"
#include "devices/test-board.h"

#define GUID_GPA 0x1000

static struct test_board board;
static struct ged ged;
static struct i8042 i8042;
static struct pvpanic pvpanic;

static void set_up(void)
{
	test_board_init(&board);
	cr_assert_eq(ged_init(&ged, &board.io, &board.irqs, NULL), 0);
	cr_assert_eq(i8042_init(&i8042, &board.io, &board.events, NULL), 0);
	cr_assert_eq(pvpanic_init(&pvpanic, &board.io, &board.events, NULL), 0);
}

static void tear_down(void)
{
	ged.device.ops->deinit(&ged.device);
	i8042.device.ops->deinit(&i8042.device);
	pvpanic.device.ops->deinit(&pvpanic.device);
	test_board_deinit(&board);
}

TestSuite(platform, .init = set_up, .fini = tear_down);

Test(platform, ged_read_tells_and_clears)
{
	ged_raise(&ged, GED_POWER_BUTTON);
	ged_raise(&ged, GED_GENERATION);
	cr_assert_eq(test_board_edges(&board, 9), 2);
	cr_assert_eq(test_board_in(&board, 0x610, 1), 0x05);
	cr_assert_eq(test_board_in(&board, 0x610, 1), 0);
	cr_assert_eq(test_board_edges(&board, 9), 0);
}

Test(platform, ged_event_survives_a_move_and_is_raised_again)
{
	struct test_board other;
	struct ged loaded;

	test_board_init(&other);
	cr_assert_eq(ged_init(&loaded, &other.io, &other.irqs, NULL), 0);
	ged_raise(&ged, GED_POWER_BUTTON);
	test_board_move(&ged.device, &loaded.device);
	cr_assert_eq(test_board_edges(&other, 9), 1);
	cr_assert_eq(test_board_in(&other, 0x610, 1), GED_POWER_BUTTON);
	loaded.device.ops->deinit(&loaded.device);
	test_board_deinit(&other);
}

Test(platform, ged_reset_forgets)
{
	ged_raise(&ged, GED_POWER_BUTTON);
	ged.device.ops->reset(&ged.device);
	cr_assert_eq(test_board_in(&board, 0x610, 1), 0);
}

Test(platform, i8042_pulse_resets)
{
	test_board_out(&board, 0x64, 0xfe, 1);
	cr_assert_eq(board.n_events, 1);
	cr_assert_eq(board.last_event, MACHINE_RESET);
}

Test(platform, i8042_status_ends_every_wait)
{
	cr_assert_eq(test_board_in(&board, 0x64, 1) & 0x03, 0, "input or output buffer full");
	cr_assert_neq(test_board_in(&board, 0x64, 1), 0xff, "not there");
	cr_assert_eq(test_board_in(&board, 0x60, 1), 0);
	cr_assert_eq(test_board_in(&board, 0x61, 1) & 0x20, 0x20, "timer never runs out");
}

Test(platform, i8042_other_commands_do_nothing)
{
	for (uint32_t value = 0; value < 256; value++) {
		if (value != 0xfe)
			test_board_out(&board, 0x64, value, 1);
		test_board_out(&board, 0x60, value, 1);
	}
	cr_assert_eq(board.n_events, 0);
}

Test(platform, i8042_gate_keeps_two_bits)
{
	test_board_out(&board, 0x61, 0xff, 1);
	cr_assert_eq(test_board_in(&board, 0x61, 1), 0x23);
	i8042.device.ops->reset(&i8042.device);
	cr_assert_eq(test_board_in(&board, 0x61, 1), 0x20);
}

Test(platform, pvpanic_says_what_it_knows)
{
	cr_assert_eq(test_board_in(&board, 0x505, 1), 3);
	test_board_out(&board, 0x505, 0, 1);
	cr_assert_eq(board.n_events, 0);
}

Test(platform, pvpanic_writes_are_events)
{
	test_board_out(&board, 0x505, 1, 1);
	cr_assert_eq(board.last_event, MACHINE_PANIC);
	test_board_out(&board, 0x505, 2, 1);
	cr_assert_eq(board.last_event, MACHINE_CRASH_LOADED);
	cr_assert_eq(board.n_events, 2);
}

struct second_life {
	struct guest_memory memory;
	struct generation generation;
};

static void life_init(struct second_life *life)
{
	const struct memory_options options = {.kind = MEMORY_PRIVATE};
	const struct memory_range ranges[] = {{0, 16 * GUEST_PAGE_SIZE}};

	cr_assert_eq(memory_init(&life->memory, &options, ranges, 1, NULL), 0);
	cr_assert_eq(generation_init(&life->generation, &life->memory, GUID_GPA, &ged, NULL), 0);
}

static void life_deinit(struct second_life *life)
{
	life->generation.device.ops->deinit(&life->generation.device);
	memory_deinit(&life->memory);
}

static void guid_of(const struct second_life *life, uint8_t guid[GENERATION_SIZE])
{
	cr_assert_eq(memory_read(&life->memory, GUID_GPA, guid, GENERATION_SIZE), 0);
}

Test(platform, generation_changes_and_tells)
{
	uint8_t first[GENERATION_SIZE], second[GENERATION_SIZE], zero[GENERATION_SIZE] = {0};
	struct second_life life;

	life_init(&life);
	guid_of(&life, first);
	cr_assert_neq(memcmp(first, zero, sizeof(zero)), 0);
	cr_assert_eq(test_board_in(&board, 0x610, 1), 0, "a first life is no change");
	cr_assert_eq(generation_change(&life.generation), 0);
	guid_of(&life, second);
	cr_assert_neq(memcmp(first, second, sizeof(first)), 0);
	cr_assert_eq(test_board_in(&board, 0x610, 1), GED_GENERATION);
	life_deinit(&life);
}

Test(platform, generation_stays_over_reset_and_load)
{
	uint8_t first[GENERATION_SIZE], later[GENERATION_SIZE], zero[GENERATION_SIZE] = {0};
	struct second_life life, other;

	life_init(&life);
	life_init(&other);
	guid_of(&life, first);
	cr_assert_eq(memory_write(&life.memory, GUID_GPA, zero, sizeof(zero)), 0);
	life.generation.device.ops->reset(&life.generation.device);
	guid_of(&life, later);
	cr_assert_arr_eq(first, later, sizeof(first));
	test_board_move(&life.generation.device, &other.generation.device);
	guid_of(&other, later);
	cr_assert_arr_eq(first, later, sizeof(first));
	life_deinit(&life);
	life_deinit(&other);
}

Test(platform, generation_outside_memory_is_refused)
{
	const struct memory_options options = {.kind = MEMORY_PRIVATE};
	const struct memory_range ranges[] = {{0, GUEST_PAGE_SIZE}};
	struct error err = ERROR_NULL;
	struct generation generation;
	struct guest_memory memory;

	cr_assert_eq(memory_init(&memory, &options, ranges, 1, NULL), 0);
	cr_assert_lt(generation_init(&generation, &memory, GUEST_PAGE_SIZE - 8, &ged, &err), 0);
	cr_assert_neq(err.text[0], '\0');
	memory_deinit(&memory);
}
