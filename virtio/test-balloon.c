/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The balloon against a driver in memory: what is given up reads as zeroes afterwards, what is not
 * stays as it was, and no amount of it holds the loop.
 */
#include <criterion/criterion.h>
#include <endian.h>
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "devices/registers.h"
#include "devices/test-board.h"
#include "virtio/balloon.h"
#include "virtio/test-driver.h"

#define F_STATS      (1ull << 1)
#define F_REPORTING  (1ull << 5)
#define PAGE         BALLOON_PAGE_SIZE
#define PAGES        (TEST_DRIVER_MEMORY / PAGE)
#define CONFIG       0x2000 /* in BAR 0 */
#define WINDOW       0xc0000000u
#define STAT_SWAP_IN 0
#define STAT_FREE    4

static const struct pci_layout layout = {
	.ecam = 0xe0000000, .window = WINDOW, .window_size = 1 << 20};

static struct test_board board;
static struct test_driver driver;
static struct pci_root root;
static struct balloon balloon;

static void set_up(void)
{
	struct error err = ERROR_NULL;

	test_board_init(&board);
	test_driver_init(&driver);
	cr_assert_eq(pci_root_init(&root, &layout, &board.io, &board.mmio, &board.irqs,
				   &board.kicks, &err),
		     0, "%s", err.text);
	cr_assert_eq(balloon_init(&balloon, &root, 1, "balloon", &driver.memory, driver.loop, &err),
		     0, "%s", err.text);
}

static void tear_down(void)
{
	balloon.pci.function.device.ops->deinit(&balloon.pci.function.device);
	test_driver_deinit(&driver);
	test_board_deinit(&board);
}

TestSuite(balloon, .init = set_up, .fini = tear_down);

static void start(uint64_t features)
{
	test_driver_start(&driver, &balloon.virtio, features);
}

/* `n` pages full of 'x'. */
static gpa_t filled(uint32_t n)
{
	gpa_t gpa = test_driver_alloc(&driver, (uint64_t)n * PAGE, PAGE);

	memset(test_driver_at(&driver, gpa), 'x', (size_t)n * PAGE);
	return gpa;
}

/* Bytes of `n` pages that are not `byte`. */
static uint64_t others(gpa_t gpa, uint32_t n, char byte)
{
	const char *bytes = test_driver_at(&driver, gpa);
	uint64_t count = 0;

	for (uint64_t i = 0; i < (uint64_t)n * PAGE; i++)
		count += bytes[i] != byte;
	return count;
}

static struct test_buffer numbers(uint32_t first, uint32_t n, int32_t step)
{
	struct test_buffer buffer = {test_driver_alloc(&driver, 4ull * n, 4), 4 * n};
	uint32_t *list = test_driver_at(&driver, buffer.gpa);

	for (uint32_t i = 0; i < n; i++)
		list[i] = htole32(first + (uint32_t)step * i);
	return buffer;
}

static void send(uint32_t queue, const struct test_buffer *buffer)
{
	test_driver_add(&driver, queue, buffer, 1, NULL, 0, false);
	test_driver_kick(&driver, queue);
	cr_assert_eq(test_driver_wait(&driver, queue), 0);
}

static uint32_t config_read(uint32_t offset)
{
	uint32_t value = 0;

	bus_read(&board.mmio, WINDOW + CONFIG + offset, &value, 4);
	return value;
}

static json_t *counters(void)
{
	struct device *device = &balloon.pci.function.device;
	json_t *object = json_object();

	device->ops->counters(device, object);
	return object;
}

static json_int_t counter(const char *name)
{
	json_t *object = counters();
	json_t *value = json_object_get(object, name);
	json_int_t n;

	cr_assert(json_is_integer(value), "no counter \"%s\"", name);
	n = json_integer_value(value);
	json_decref(object);
	return n;
}

Test(balloon, pages_given_up_are_discarded)
{
	gpa_t gpa = filled(8);
	struct test_buffer list = numbers((uint32_t)(gpa / PAGE) + 2, 4, 1);

	start(0);
	send(BALLOON_INFLATE, &list);
	cr_assert_eq(others(gpa, 2, 'x'), 0);
	cr_assert_eq(others(gpa + 2 * PAGE, 4, 0), 0);
	cr_assert_eq(others(gpa + 6 * PAGE, 2, 'x'), 0);
	cr_assert_eq(counter("given"), 4 * PAGE);
	cr_assert_eq(counter("discarded"), 4 * PAGE);
}

Test(balloon, pages_may_be_given_up_in_any_order)
{
	gpa_t gpa = filled(16);
	uint32_t first = (uint32_t)(gpa / PAGE);
	struct test_buffer down = numbers(first + 7, 8, -1), apart = numbers(first + 8, 4, 2);

	start(0);
	send(BALLOON_INFLATE, &down);
	cr_assert_eq(others(gpa, 8, 0), 0);
	cr_assert_eq(others(gpa + 8 * PAGE, 8, 'x'), 0);
	send(BALLOON_INFLATE, &apart);
	for (uint32_t i = 8; i < 16; i++)
		cr_assert_eq(others(gpa + i * PAGE, 1, i % 2 ? 'x' : 0), 0, "page %u", i);
}

Test(balloon, numbers_may_lie_in_pieces)
{
	gpa_t gpa = filled(4);
	struct test_buffer list = numbers((uint32_t)(gpa / PAGE), 4, 1);
	struct test_buffer pieces[] = {
		{list.gpa, 3}, {list.gpa + 3, 7}, {list.gpa + 10, 6}, {list.gpa, 2}};

	start(VIRTIO_F_INDIRECT_DESC);
	test_driver_add(&driver, BALLOON_INFLATE, pieces, 4, NULL, 0, true);
	test_driver_kick(&driver, BALLOON_INFLATE);
	test_driver_wait(&driver, BALLOON_INFLATE);
	cr_assert_eq(others(gpa, 4, 0), 0);
	cr_assert_eq(counter("given"), 4 * PAGE, "half a number is none");
}

Test(balloon, numbers_outside_memory_are_ignored_and_counted)
{
	gpa_t gpa = filled(1);
	struct test_buffer list = numbers(0, 5, 0);
	uint32_t *all = test_driver_at(&driver, list.gpa);

	all[0] = htole32(PAGES);
	all[1] = htole32(UINT32_MAX);
	all[2] = htole32((uint32_t)(gpa / PAGE));
	all[3] = htole32(0x000c0000);
	all[4] = htole32(PAGES + 1);
	start(0);
	send(BALLOON_INFLATE, &list);
	cr_assert_eq(others(gpa, 1, 0), 0);
	cr_assert_eq(counter("ignored"), 4);
	cr_assert_eq(counter("given"), PAGE);
	cr_assert_not(atomic_load(&balloon.virtio.status) & VIRTIO_STATUS_NEEDS_RESET);
}

/* The guest's own rings may be among what it gives up: its loss alone. */
Test(balloon, all_of_memory_may_be_given_up)
{
	struct test_buffer list = numbers(0, PAGES, 1);

	start(0);
	test_driver_add(&driver, BALLOON_INFLATE, &list, 1, NULL, 0, false);
	test_driver_kick(&driver, BALLOON_INFLATE);
	test_driver_turn(&driver);
	cr_assert_geq(counter("given"), 1);
}

Test(balloon, pages_taken_back_are_counted_and_kept)
{
	gpa_t gpa = filled(4);
	struct test_buffer list = numbers((uint32_t)(gpa / PAGE), 4, 1);

	start(0);
	send(BALLOON_DEFLATE, &list);
	cr_assert_eq(others(gpa, 4, 'x'), 0);
	cr_assert_eq(counter("taken-back"), 4 * PAGE);
}

static void reports_on(uint32_t queue, uint64_t features)
{
	gpa_t gpa = filled(16);
	struct test_buffer ranges[] = {{gpa + PAGE, 4 * PAGE},
				       {gpa + 6 * PAGE + 1, 2 * PAGE},
				       {gpa + 10 * PAGE, PAGE - 1}};

	start(features);
	test_driver_add(&driver, queue, NULL, 0, ranges, 3, false);
	test_driver_kick(&driver, queue);
	cr_assert_eq(test_driver_wait(&driver, queue), 0);
	cr_assert_eq(others(gpa, 1, 'x'), 0);
	cr_assert_eq(others(gpa + PAGE, 4, 0), 0);
	cr_assert_eq(others(gpa + 5 * PAGE, 2, 'x'), 0);
	cr_assert_eq(others(gpa + 7 * PAGE, 1, 0), 0, "the one whole page");
	cr_assert_eq(others(gpa + 8 * PAGE, 8, 'x'), 0);
	cr_assert_eq(counter("reported"), 5 * PAGE);
	cr_assert_eq(counter("discarded"), 5 * PAGE);
}

Test(balloon, free_ranges_are_discarded_where_linux_reports)
{
	reports_on(BALLOON_REPORTING_LINUX, F_STATS | F_REPORTING);
}

Test(balloon, free_ranges_are_discarded_where_the_specification_reports)
{
	reports_on(BALLOON_REPORTING, F_STATS | F_REPORTING);
}

Test(balloon, free_ranges_are_discarded_where_linux_reports_without_statistics)
{
	reports_on(BALLOON_STATISTICS, F_REPORTING);
}

Test(balloon, ranges_the_device_must_not_write_are_kept)
{
	gpa_t gpa = filled(2);
	struct test_buffer range = {gpa, 2 * PAGE};

	start(F_STATS | F_REPORTING);
	send(BALLOON_REPORTING, &range);
	cr_assert_eq(others(gpa, 2, 'x'), 0);
}

Test(balloon, nothing_is_reported_without_the_feature)
{
	gpa_t gpa = filled(2);
	struct test_buffer range = {gpa, 2 * PAGE};

	start(F_STATS);
	test_driver_add(&driver, BALLOON_REPORTING, NULL, 0, &range, 1, false);
	test_driver_kick(&driver, BALLOON_REPORTING);
	test_driver_turn(&driver);
	cr_assert_eq(others(gpa, 2, 'x'), 0);
}

/* Every second page: each a discard of its own. One chain is more than a turn's share. */
Test(balloon, a_long_list_does_not_hold_the_loop)
{
	gpa_t gpa = filled(512);
	struct test_buffer list = numbers((uint32_t)(gpa / PAGE), 256, 2), all[16];
	int turns = 0;

	for (uint32_t i = 0; i < ARRAY_SIZE(all); i++)
		all[i] = list;
	start(VIRTIO_F_EVENT_IDX);
	test_driver_add(&driver, BALLOON_INFLATE, all, 16, NULL, 0, false);
	test_driver_kick(&driver, BALLOON_INFLATE);
	for (; driver.rings[BALLOON_INFLATE].used->index == 0 && turns < 1000; turns++)
		cr_assert_eq(loop_turn(driver.loop, 0), 0);
	cr_assert_gt(turns, 4, "all in %d turns", turns);
	cr_assert_eq(test_driver_wait(&driver, BALLOON_INFLATE), 0);
	cr_assert_eq(counter("given"), 16 * 256 * PAGE, "each once");
	for (uint32_t i = 0; i < 512; i++)
		cr_assert_eq(others(gpa + i * PAGE, 1, i % 2 ? 'x' : 0), 0, "page %u", i);
}

Test(balloon, many_reports_do_not_hold_the_loop)
{
	struct test_buffer all[100];
	gpa_t gpa = filled(256);
	int turns = 0;

	for (uint32_t i = 0; i < ARRAY_SIZE(all); i++)
		all[i] = (struct test_buffer){gpa, 256 * PAGE};
	start(F_STATS | F_REPORTING);
	test_driver_add(&driver, BALLOON_REPORTING, NULL, 0, all, ARRAY_SIZE(all), false);
	test_driver_kick(&driver, BALLOON_REPORTING);
	for (; driver.rings[BALLOON_REPORTING].used->index == 0 && turns < 1000; turns++)
		cr_assert_eq(loop_turn(driver.loop, 0), 0);
	cr_assert_gt(turns, 1);
	cr_assert_eq(counter("reported"), ARRAY_SIZE(all) * 256 * PAGE, "each once");
}

/* Half a chain served, the rest never: the next life begins at the beginning. */
Test(balloon, a_reset_in_the_middle_of_a_list_forgets_it)
{
	gpa_t gpa = filled(512);
	struct test_buffer list = numbers((uint32_t)(gpa / PAGE), 256, 2), all[16];

	for (uint32_t i = 0; i < ARRAY_SIZE(all); i++)
		all[i] = list;
	start(0);
	test_driver_add(&driver, BALLOON_INFLATE, all, 16, NULL, 0, false);
	test_driver_kick(&driver, BALLOON_INFLATE);
	while (balloon.done[BALLOON_INFLATE] == 0)
		cr_assert_eq(loop_turn(driver.loop, 0), 0);
	test_driver_reset(&driver);
	start(0);
	cr_assert_eq(balloon.done[BALLOON_INFLATE], 0);
	gpa = filled(1);
	list = numbers((uint32_t)(gpa / PAGE), 1, 1);
	send(BALLOON_INFLATE, &list);
	cr_assert_eq(others(gpa, 1, 0), 0);
}

static void put_stat(uint8_t *at, uint16_t tag, uint64_t value)
{
	tag = htole16(tag);
	value = htole64(value);
	memcpy(at, &tag, sizeof(tag));
	memcpy(at + sizeof(tag), &value, sizeof(value));
}

static struct test_buffer statistics(uint64_t free_bytes)
{
	struct test_buffer buffer = {test_driver_alloc(&driver, 35, 2), 35};
	uint8_t *at = test_driver_at(&driver, buffer.gpa);

	put_stat(at, STAT_SWAP_IN, 7);
	put_stat(at + 10, STAT_FREE, free_bytes);
	put_stat(at + 20, 999, 1); /* of a later specification; then half an entry */
	return buffer;
}

static void offer(const struct test_buffer *buffer)
{
	test_driver_add(&driver, BALLOON_STATISTICS, buffer, 1, NULL, 0, false);
	test_driver_kick(&driver, BALLOON_STATISTICS);
	test_driver_turn(&driver);
}

/* Of the figures there are now; -1: not given. */
static json_int_t figure(const char *name)
{
	json_t *object = counters();
	json_t *value = json_object_get(json_object_get(object, "statistics"), name);
	json_int_t n = value ? json_integer_value(value) : -1;

	json_decref(object);
	return n;
}

static bool gave_back(void)
{
	const struct test_ring *ring = &driver.rings[BALLOON_STATISTICS];

	return ring->used->index != ring->seen;
}

Test(balloon, statistics_are_kept_until_somebody_looks)
{
	struct test_buffer buffer = statistics(12345);

	start(F_STATS | F_REPORTING);
	cr_assert_eq(figure("free"), -1);
	test_driver_turn(&driver);
	offer(&buffer);
	cr_assert_not(gave_back());
	cr_assert_eq(figure("free"), 12345);
	test_driver_turn(&driver);
	cr_assert(gave_back(), "to be asked is to get the buffer back");
	cr_assert_eq(figure("swap-in"), 7);
	cr_assert_eq(figure("total"), -1);
	test_driver_wait(&driver, BALLOON_STATISTICS);
	put_stat((uint8_t *)test_driver_at(&driver, buffer.gpa) + 10, STAT_FREE, 54321);
	offer(&buffer);
	cr_assert_not(gave_back(), "what came after the question is the answer to it");
	cr_assert_eq(figure("free"), 54321);
}

Test(balloon, one_statistics_buffer_is_held_and_no_more)
{
	struct test_buffer buffer = statistics(1), next = statistics(2);

	start(F_STATS | F_REPORTING);
	offer(&buffer);
	for (int i = 0; i < 20; i++)
		offer(&next);
	cr_assert_not(gave_back());
	cr_assert_eq(balloon.virtio.queues[BALLOON_STATISTICS].ring.in_flight, 1);
	cr_assert_eq(figure("free"), 1);
	test_driver_turn(&driver);
	cr_assert_eq(test_driver_wait(&driver, BALLOON_STATISTICS), 0);
	cr_assert_eq(figure("free"), 2);
}

Test(balloon, a_reset_ends_though_statistics_are_held)
{
	struct test_buffer buffer = statistics(1);

	start(F_STATS);
	offer(&buffer);
	test_driver_reset(&driver);
	cr_assert_not(balloon.holds);
	cr_assert_eq(figure("free"), -1);
	start(F_STATS);
	buffer = statistics(3);
	offer(&buffer);
	cr_assert_eq(figure("free"), 3);
}

static void rested(struct device_waiter *waiter _unused_, struct device *device _unused_)
{
}

Test(balloon, a_pause_keeps_the_statistics_buffer_the_devices)
{
	struct device *device = &balloon.pci.function.device;
	struct device_waiter waiter = {.done = rested};
	struct test_buffer buffer = statistics(1);

	start(F_STATS);
	offer(&buffer);
	device->ops->pause(device, &waiter);
	test_driver_turn(&driver);
	cr_assert_eq(balloon.virtio.queues[BALLOON_STATISTICS].ring.in_flight, 0);
	cr_assert_eq(figure("free"), 1); /* and nothing is asked of a guest that stands still */
	device->ops->resume(device);
	test_driver_turn(&driver);
	cr_assert(balloon.holds);
	cr_assert_not(gave_back());
	cr_assert_eq(figure("free"), 1);
	test_driver_turn(&driver);
	cr_assert(gave_back());
}

Test(balloon, the_target_is_what_the_guest_shall_do_without)
{
	cr_assert_eq(config_read(0), 0);
	balloon_set(&balloon, TEST_DRIVER_MEMORY - 10 * PAGE);
	cr_assert_eq(config_read(0), 10);
	cr_assert_eq(counter("target"), 10 * PAGE);
	balloon_set(&balloon, TEST_DRIVER_MEMORY - 1);
	cr_assert_eq(config_read(0), 0);
	balloon_set(&balloon, 0);
	cr_assert_eq(config_read(0), PAGES);
	balloon_set(&balloon, UINT64_MAX);
	cr_assert_eq(config_read(0), 0);
}

Test(balloon, a_new_target_is_told_by_an_interrupt)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	start(0);
	atomic_store(&balloon.virtio.config_fd, fd);
	balloon_set(&balloon, 0);
	cr_assert_eq(test_eventfd_take(fd), 1);
	atomic_store(&balloon.virtio.config_fd, -1);
	close(fd);
}

Test(balloon, only_the_actual_size_can_be_written)
{
	uint32_t value = 77;

	balloon_set(&balloon, TEST_DRIVER_MEMORY - 10 * PAGE);
	bus_write(&board.mmio, WINDOW + CONFIG, &value, 4);
	bus_write(&board.mmio, WINDOW + CONFIG + 4, &value, 4);
	cr_assert_eq(config_read(0), 10);
	cr_assert_eq(config_read(4), 77);
	value = 1;
	bus_write(&board.mmio, WINDOW + CONFIG + 5, &value, 1);
	cr_assert_eq(config_read(4), 256 + 77);
	cr_assert_eq(counter("actual"), (256 + 77) * PAGE);
}

Test(balloon, a_reset_forgets_what_the_guest_gave_and_keeps_the_target)
{
	uint32_t value = 77;

	balloon_set(&balloon, TEST_DRIVER_MEMORY - 10 * PAGE);
	start(0);
	bus_write(&board.mmio, WINDOW + CONFIG + 4, &value, 4);
	test_driver_reset(&driver);
	cr_assert_eq(config_read(4), 0);
	cr_assert_eq(config_read(0), 10);
}

Test(balloon, a_buffer_outside_memory_needs_a_reset)
{
	struct test_buffer outside = {TEST_DRIVER_MEMORY - 8, 64};

	for (uint32_t queue = 0; queue < BALLOON_QUEUES; queue++) {
		start(F_STATS | F_REPORTING);
		test_driver_add(&driver, queue, NULL, 0, &outside, 1, false);
		test_driver_kick(&driver, queue);
		test_driver_turn(&driver);
		cr_assert(atomic_load(&balloon.virtio.status) & VIRTIO_STATUS_NEEDS_RESET, "%u",
			  queue);
		test_driver_reset(&driver);
	}
	start(0);
	outside = numbers(1, 1, 1);
	send(BALLOON_DEFLATE, &outside);
}

Test(balloon, moves)
{
	struct device *device = &balloon.pci.function.device;
	struct device_waiter waiter = {.done = rested};
	static struct balloon copy;
	static struct pci_root other;
	struct error err = ERROR_NULL;
	struct test_board elsewhere;

	test_board_init(&elsewhere);
	cr_assert_eq(pci_root_init(&other, &layout, &elsewhere.io, &elsewhere.mmio, &elsewhere.irqs,
				   &elsewhere.kicks, &err),
		     0, "%s", err.text);
	cr_assert_eq(balloon_init(&copy, &other, 1, "balloon", &driver.memory, driver.loop, &err),
		     0, "%s", err.text);
	balloon_set(&balloon, TEST_DRIVER_MEMORY - 10 * PAGE);
	balloon.state.actual = 5;
	device->ops->pause(device, &waiter);
	test_board_move(device, &copy.pci.function.device);
	cr_assert_eq(copy.state.target, 10);
	cr_assert_eq(copy.state.actual, 5);
	copy.pci.function.device.ops->deinit(&copy.pci.function.device);
	test_board_deinit(&elsewhere);
}

Test(balloon, a_target_beyond_memory_is_refused)
{
	static uint8_t stream[16384];
	struct cursor out = cursor_writer(stream, sizeof(stream)), in;
	struct device *device = &balloon.pci.function.device;
	struct error err = ERROR_NULL;

	balloon.state.target = PAGES + 1;
	cr_assert_eq(device_save(device, &out), 0);
	in = cursor_reader(stream, out.at);
	cr_assert_eq(device_load(device, &in, &err), -EBADMSG);
	cr_assert_neq(err.text[0], '\0');
}
