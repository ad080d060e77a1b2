/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The watchdog through its BAR and configuration space, on a loop that turns when a test says so.
 * The shortest stages take 10 ms each.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <time.h>

#include "devices/registers.h"
#include "devices/test-board.h"
#include "devices/watchdog.h"

#define ECAM         0xe0000000u
#define WINDOW       0xc0000000u
#define SLOT         5
#define CONFIG       0x60
#define LOCK         0x68
#define PRELOAD_1    0x0
#define PRELOAD_2    0x4
#define RELOAD       0xc
#define MS           1000000ull
#define FAR_AWAY     0xfffff /* of either prescaler: a second and more */
#define WAIT_MS      10000
#define OUTPUT_OFF   0x20
#define FAST         0x04
#define ENABLE       2
#define LOCKED       1
#define FREE_RUNNING 4
#define RELOAD_NOW   0x100
#define TIMED_OUT    0x200

static const struct pci_layout layout = {.ecam = ECAM, .window = WINDOW, .window_size = 1 << 20};

/* A machine with a watchdog. */
struct set {
	struct test_board board;
	struct pci_root root;
	struct loop *loop;
	struct watchdog watchdog;
	int n_rested;
	struct device_waiter waiter;
};
static struct set set, other;

static void rested(struct device_waiter *waiter, struct device *device _unused_)
{
	container_of(waiter, struct set, waiter)->n_rested++;
}

static void set_init(struct set *s)
{
	const struct loop_options options = {.name = "test"};
	struct error err = ERROR_NULL;

	*s = (struct set){.waiter.done = rested};
	test_board_init(&s->board);
	cr_assert_eq(loop_new(&s->loop, &options, &err), 0, "%s", err.text);
	cr_assert_eq(loop_enable(s->loop), 0);
	cr_assert_eq(pci_root_init(&s->root, &layout, &s->board.io, &s->board.mmio, &s->board.irqs,
				   &s->board.kicks, &err),
		     0, "%s", err.text);
	cr_assert_eq(watchdog_init(&s->watchdog, &s->root, SLOT, "watchdog", s->loop,
				   &s->board.events, &err),
		     0, "%s", err.text);
}

static void set_deinit(struct set *s)
{
	s->watchdog.function.device.ops->deinit(&s->watchdog.function.device);
	s->loop = loop_free(s->loop);
	test_board_deinit(&s->board);
}

static void set_up(void)
{
	set_init(&set);
}

static void tear_down(void)
{
	set_deinit(&set);
}

TestSuite(watchdog, .init = set_up, .fini = tear_down);

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void config_write(uint32_t offset, uint32_t value, uint32_t len)
{
	bus_write(&set.board.mmio, ECAM + (SLOT << 15) + offset, &value, len);
}

static uint32_t config_read(uint32_t offset, uint32_t len)
{
	uint32_t value = 0;

	bus_read(&set.board.mmio, ECAM + (SLOT << 15) + offset, &value, len);
	return value;
}

static void locked_write(uint32_t offset, uint32_t value, uint32_t len)
{
	bus_write(&set.board.mmio, WINDOW + offset, &value, len);
}

static uint32_t bar_read(uint32_t offset, uint32_t len)
{
	uint32_t value = 0;

	bus_read(&set.board.mmio, WINDOW + offset, &value, len);
	return value;
}

static void unlocked_write(uint32_t offset, uint32_t value, uint32_t len)
{
	locked_write(RELOAD, 0x80, 2);
	locked_write(RELOAD, 0x86, 2);
	locked_write(offset, value, len);
}

static void stages(uint32_t first, uint32_t second)
{
	unlocked_write(PRELOAD_1, first, 4);
	unlocked_write(PRELOAD_2, second, 4);
}

static void start(uint32_t first, uint32_t second)
{
	stages(first, second);
	config_write(LOCK, ENABLE, 1);
}

/* Turns the loop until there is an event, or the time is over. */
static bool heard(unsigned int ms)
{
	uint64_t end = now_ns() + ms * MS;

	while (set.board.n_events == 0 && now_ns() < end)
		cr_assert_eq(loop_turn(set.loop, MIN(end, now_ns() + 100 * MS)), 0);
	return set.board.n_events > 0;
}

static void stays_quiet(unsigned int ms)
{
	uint64_t end = now_ns() + ms * MS;

	while (now_ns() < end)
		cr_assert_eq(loop_turn(set.loop, end), 0);
	cr_assert_eq(set.board.n_events, 0);
}

Test(watchdog, is_what_drivers_look_for)
{
	cr_assert_eq(config_read(0, 4), 0x25ab8086);
	cr_assert_eq(config_read(0x10, 4), WINDOW);
	cr_assert_eq(config_read(LOCK, 1), 0);
	cr_assert_eq(bar_read(PRELOAD_1, 4), 0xfffff);
	cr_assert_eq(bar_read(RELOAD, 2), 0);
}

Test(watchdog, runs_out_after_both_stages)
{
	uint64_t before = now_ns();

	start(20, 30); /* of some 0.98 ms */
	cr_assert(heard(WAIT_MS));
	cr_assert_eq(set.board.last_event, MACHINE_WATCHDOG);
	cr_assert_geq(now_ns() - before, 50 * 983040ull);
	cr_assert_eq(bar_read(RELOAD, 2), TIMED_OUT);
}

Test(watchdog, the_other_prescaler_is_a_thousand_times_faster)
{
	config_write(CONFIG, 3 | FAST, 2);
	cr_assert_eq(config_read(CONFIG, 2), 3 | FAST);
	start(20000, 20000); /* of some 0.96 us, or else of 20 s */
	cr_assert(heard(WAIT_MS));
}

Test(watchdog, speaks_once)
{
	start(1, 1);
	cr_assert(heard(WAIT_MS));
	set.board.n_events = 0;
	stays_quiet(60);
}

Test(watchdog, counts_again_when_reloaded)
{
	start(1, 1);
	cr_assert(heard(WAIT_MS));
	set.board.n_events = 0;
	unlocked_write(RELOAD, RELOAD_NOW, 2);
	cr_assert(heard(WAIT_MS));
}

Test(watchdog, is_quiet_while_it_is_fed)
{
	uint64_t end;

	start(100, 1);
	end = now_ns() + 400 * MS;
	while (now_ns() < end) {
		unlocked_write(RELOAD, RELOAD_NOW, 2);
		cr_assert_eq(loop_turn(set.loop, now_ns() + MS), 0);
	}
	cr_assert_eq(set.board.n_events, 0);
	cr_assert(heard(WAIT_MS), "it was fed no longer");
}

Test(watchdog, feeding_it_in_the_second_stage_is_in_time)
{
	start(1, FAR_AWAY);
	while (set.watchdog.state.stage != 2)
		cr_assert_eq(loop_turn(set.loop, now_ns() + 100 * MS), 0);
	stages(FAR_AWAY, 1);
	unlocked_write(RELOAD, RELOAD_NOW, 2);
	stays_quiet(40);
	cr_assert_eq(set.watchdog.state.stage, 1);
}

Test(watchdog, a_reload_costs_the_loop_nothing)
{
	struct loop_counters before;

	start(FAR_AWAY, FAR_AWAY);
	stays_quiet(1);
	before = loop_counters(set.loop);
	for (int i = 0; i < 10000; i++)
		unlocked_write(RELOAD, RELOAD_NOW, 2);
	stays_quiet(1);
	cr_assert_eq(loop_counters(set.loop).posts, before.posts);
}

Test(watchdog, changes_of_mind_are_told_once_a_turn)
{
	struct loop_counters before = loop_counters(set.loop);

	for (int i = 0; i < 1000; i++) {
		start(i % 2 ? FAR_AWAY : 1000, 1);
		config_write(LOCK, 0, 1);
	}
	stays_quiet(20);
	cr_assert_eq(loop_counters(set.loop).posts - before.posts, 1);
}

Test(watchdog, a_shorter_deadline_is_kept)
{
	start(FAR_AWAY, 1);
	stays_quiet(5); /* the loop sleeps for long now */
	stages(1, 1);
	unlocked_write(RELOAD, RELOAD_NOW, 2);
	cr_assert(heard(WAIT_MS));
}

Test(watchdog, nothing_is_written_without_unlocking)
{
	locked_write(PRELOAD_1, 1, 4);
	cr_assert_eq(bar_read(PRELOAD_1, 4), 0xfffff);
	locked_write(RELOAD, 0x86, 2);
	locked_write(PRELOAD_1, 1, 4);
	cr_assert_eq(bar_read(PRELOAD_1, 4), 0xfffff);
	locked_write(RELOAD, 0x80, 2);
	locked_write(PRELOAD_1, 1, 4);
	locked_write(RELOAD, 0x86, 2);
	locked_write(PRELOAD_1, 1, 4);
	cr_assert_eq(bar_read(PRELOAD_1, 4), 0xfffff, "something came between");
	unlocked_write(PRELOAD_1, 0xff000001, 4);
	cr_assert_eq(bar_read(PRELOAD_1, 4), 1);
	locked_write(PRELOAD_1, 2, 4);
	cr_assert_eq(bar_read(PRELOAD_1, 4), 1, "unlocked for one write only");
}

Test(watchdog, a_reload_of_a_locked_register_feeds_nothing)
{
	start(1, 1);
	locked_write(RELOAD, RELOAD_NOW, 2);
	cr_assert_eq(set.watchdog.n_reloads, 0);
	cr_assert(heard(WAIT_MS));
}

Test(watchdog, does_not_count_until_enabled)
{
	stages(1, 1);
	unlocked_write(RELOAD, RELOAD_NOW, 2);
	stays_quiet(40);
}

Test(watchdog, can_be_turned_off)
{
	start(20, 1);
	config_write(LOCK, 0, 1);
	stays_quiet(60);
	cr_assert_eq(config_read(LOCK, 1), 0);
}

Test(watchdog, cannot_be_turned_off_once_locked)
{
	stages(1, 1);
	config_write(LOCK, ENABLE | LOCKED, 1);
	config_write(LOCK, 0, 1);
	config_write(LOCK, 0, 4);
	config_write(LOCK & ~3, 0, 4);
	cr_assert_eq(config_read(LOCK, 1), ENABLE | LOCKED);
	cr_assert(heard(WAIT_MS));
}

Test(watchdog, without_an_output_only_the_flag_tells)
{
	config_write(CONFIG, 3 | OUTPUT_OFF, 2);
	start(1, 1);
	stays_quiet(60);
	cr_assert_eq(bar_read(RELOAD, 2), TIMED_OUT);
}

Test(watchdog, free_running_has_the_second_stage_only)
{
	stages(FAR_AWAY, 1);
	config_write(LOCK, ENABLE | FREE_RUNNING, 1);
	cr_assert(heard(WAIT_MS));
}

Test(watchdog, the_flag_outlives_a_reset_and_goes_when_acknowledged)
{
	struct device *device = &set.watchdog.function.device;

	start(1, 1);
	cr_assert(heard(WAIT_MS));
	device->ops->pause(device, &set.waiter);
	device->ops->reset(device);
	device->ops->resume(device);
	cr_assert_eq(bar_read(RELOAD, 2), TIMED_OUT);
	cr_assert_eq(config_read(LOCK, 1), 0);
	cr_assert_eq(bar_read(PRELOAD_1, 4), 0xfffff);
	unlocked_write(RELOAD, TIMED_OUT | RELOAD_NOW, 2);
	cr_assert_eq(bar_read(RELOAD, 2), 0);
	set.board.n_events = 0;
	stays_quiet(40);
}

Test(watchdog, a_reset_unlocks)
{
	struct device *device = &set.watchdog.function.device;

	config_write(LOCK, ENABLE | LOCKED, 1);
	device->ops->pause(device, &set.waiter);
	device->ops->reset(device);
	device->ops->resume(device);
	config_write(LOCK, FREE_RUNNING, 1);
	cr_assert_eq(config_read(LOCK, 1), FREE_RUNNING);
}

Test(watchdog, does_not_count_while_paused)
{
	struct device *device = &set.watchdog.function.device;

	start(20, 1);
	device->ops->pause(device, &set.waiter);
	cr_assert_eq(set.n_rested, 1);
	stays_quiet(80);
	device->ops->resume(device);
	cr_assert(heard(WAIT_MS));
}

/* What is left of the stage goes on on the other side. */
Test(watchdog, moves_while_it_counts)
{
	struct device *device = &set.watchdog.function.device;
	uint64_t left;

	set_init(&other);
	start(1, 100);
	while (set.watchdog.state.stage != 2)
		cr_assert_eq(loop_turn(set.loop, now_ns() + 100 * MS), 0);
	device->ops->pause(device, &set.waiter);
	left = set.watchdog.state.left_ns;
	test_board_move(device, &other.watchdog.function.device);
	cr_assert_eq(other.watchdog.state.stage, 2);
	cr_assert_leq(other.watchdog.deadline, now_ns() + left);
	while (other.board.n_events == 0)
		cr_assert_eq(loop_turn(other.loop, now_ns() + 100 * MS), 0);
	cr_assert_eq(other.board.last_event, MACHINE_WATCHDOG);
	set_deinit(&other);
}

Test(watchdog, refuses_a_state_that_cannot_be)
{
	static uint8_t stream[4096];
	struct cursor out = cursor_writer(stream, sizeof(stream)), in;
	struct device *device = &set.watchdog.function.device;
	struct error err = ERROR_NULL;

	set.watchdog.state.stage = 1; /* and not enabled */
	cr_assert_eq(device_save(device, &out), 0);
	set.watchdog.state.stage = 0;
	in = cursor_reader(stream, out.at);
	cr_assert_eq(device_load(device, &in, &err), -EBADMSG);
	cr_assert_neq(err.text[0], '\0');
}

/* Any register, any value, any time: it stays a watchdog. */
Test(watchdog, takes_garbage)
{
	struct device *device = &set.watchdog.function.device;
	uint64_t random = 0x9e3779b97f4a7c15;

	for (int i = 0; i < 100000; i++) {
		uint32_t len = 1u << (random >> 33) % 3, at = random >> 40;

		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		if (random % 8 == 0)
			config_write((at % 2 ? LOCK : CONFIG & ~(len - 1)), random & 0xfe, len);
		else if (random % 8 == 1)
			unlocked_write(at % 16, (uint32_t)random, len);
		else if (random % 8 == 2)
			(void)bar_read(at % 4096, len);
		else
			locked_write(at % 32, (uint32_t)random & 0xff, len);
		if (i % 1000 == 0)
			cr_assert_eq(loop_turn(set.loop, 0), 0);
	}
	device->ops->pause(device, &set.waiter);
	device->ops->reset(device);
	device->ops->resume(device);
	set.board.n_events = 0;
	start(1, 1);
	cr_assert(heard(WAIT_MS));
}
