/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest that writes anything anywhere on the platform devices, and states that are anything:
 * nothing breaks (the sanitizers look on), and a reset brings the board back to power-on.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "devices/ged.h"
#include "devices/i8042.h"
#include "devices/pci-hotplug.h"
#include "devices/power.h"
#include "devices/pvpanic.h"
#include "devices/rtc.h"
#include "devices/serial.h"
#include "devices/test-board.h"

#define ROUNDS 100000

static struct test_board board;
static struct loop *loop;
static struct chardev chardev;
static int terminal;
static struct serial serial;
static struct power power;
static struct ged ged;
static struct i8042 i8042;
static struct rtc rtc;
static struct pvpanic pvpanic;
static struct pci_hotplug hotplug;
static struct device *const devices[] = {&serial.device, &power.device, &ged.device,
					 &i8042.device,  &rtc.device,   &pvpanic.device,
					 &hotplug.device};
static uint64_t seed;

static void set_up(void)
{
	const struct loop_options options = {.name = "test"};
	int ends[2];

	signal(SIGPIPE, SIG_IGN);
	seed = 0x9e3779b97f4a7c15;
	test_board_init(&board);
	cr_assert_eq(loop_new(&loop, &options, NULL), 0);
	cr_assert_eq(loop_enable(loop), 0);
	cr_assert_eq(chardev_init(&chardev, loop, -1, NULL), 0);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
	terminal = ends[0];
	chardev_attach(&chardev, ends[1]);
	cr_assert_eq(serial_init(&serial, &board.io, &board.irqs, loop, &chardev, NULL), 0);
	cr_assert_eq(power_init(&power, &board.io, &board.events, NULL), 0);
	cr_assert_eq(ged_init(&ged, &board.io, &board.irqs, NULL), 0);
	cr_assert_eq(i8042_init(&i8042, &board.io, &board.events, NULL), 0);
	cr_assert_eq(rtc_init(&rtc, &board.io, NULL), 0);
	cr_assert_eq(pvpanic_init(&pvpanic, &board.io, &board.events, NULL), 0);
	cr_assert_eq(pci_hotplug_init(&hotplug, &board.io, &ged, NULL), 0);
}

static void tear_down(void)
{
	for (uint32_t i = 0; i < ARRAY_SIZE(devices); i++)
		devices[i]->ops->deinit(devices[i]);
	fd_close(terminal);
	chardev_deinit(&chardev);
	loop = loop_free(loop);
	test_board_deinit(&board);
}

TestSuite(garbage, .init = set_up, .fini = tear_down);

static uint32_t random_below(uint32_t n)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)(seed >> 32) % n;
}

static void random_access(void)
{
	const struct bus_range *range = &board.io.ranges[random_below(board.io.n_ranges)];
	uint16_t port = (uint16_t)(range->start + random_below((uint32_t)range->size));
	uint32_t len = 1u << random_below(3);

	if (random_below(3) == 0)
		(void)test_board_in(&board, port, len);
	else
		test_board_out(&board, port, random_below(UINT32_MAX), len);
}

static void host_does_something(void)
{
	char text[256];

	if (random_below(2) == 0 && write(terminal, "typed", 5) < 0)
		cr_assert_eq(errno, EAGAIN);
	if (random_below(2) == 0 && read(terminal, text, sizeof(text)) < 0)
		cr_assert_eq(errno, EAGAIN);
	if (random_below(8) == 0)
		ged_raise(&ged, GED_POWER_BUTTON);
	if (random_below(8) == 0)
		pci_hotplug_added(&hotplug, 1 + random_below(31));
	if (random_below(8) == 0)
		pci_hotplug_ask(&hotplug, 1 + random_below(31));
	cr_assert_eq(loop_turn(loop, 0), 0);
}

Test(garbage, accesses)
{
	for (uint32_t i = 0; i < ROUNDS; i++) {
		random_access();
		if (i % 64 == 0)
			host_does_something();
		cr_assert_leq(serial.state.n_received, SERIAL_FIFO);
		cr_assert_lt(serial.n_batch, SERIAL_BATCH);
	}
	cr_assert_gt(board.n_events, 0, "that many writes hit no power control");
	for (uint32_t i = 0; i < ARRAY_SIZE(devices); i++)
		devices[i]->ops->reset(devices[i]);
	cr_assert_eq(test_board_in(&board, SERIAL_PORT + 1, 1), 0);
	cr_assert_eq(test_board_in(&board, SERIAL_PORT + 3, 1), 3);
	cr_assert_eq(test_board_in(&board, GED_PORT, 1), 0);
	cr_assert_eq(test_board_in(&board, PCI_HOTPLUG_PORT + PCI_HOTPLUG_UP, 4), 0);
}

/* Each byte of each device's saved state is changed in turn: the state is refused or works. */
Test(garbage, states)
{
	static uint8_t good[8192], bad[8192];
	uint32_t n_refused = 0, n_taken = 0;

	for (uint32_t i = 0; i < ARRAY_SIZE(devices); i++) {
		struct cursor out = cursor_writer(good, sizeof(good));

		cr_assert_eq(device_save(devices[i], &out), 0);
		for (size_t at = 0; at < out.at; at++) {
			struct cursor in = cursor_reader(bad, out.at);

			memcpy(bad, good, out.at);
			bad[at] ^= (uint8_t)(1 + random_below(255));
			if (device_load(devices[i], &in, NULL) < 0)
				n_refused++;
			else
				n_taken++;
			for (int j = 0; j < 32; j++)
				random_access();
			host_does_something();
			devices[i]->ops->reset(devices[i]);
		}
	}
	cr_assert_gt(n_refused, 50);
	cr_assert_gt(n_taken, 50);
}
