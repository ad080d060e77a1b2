/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The console against a driver in memory and sockets as terminals: data both ways, the control
 * protocol as Linux speaks it, and as nobody should.
 */
#include <criterion/criterion.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "devices/test-board.h"
#include "virtio/console.h"
#include "virtio/test-driver.h"

static struct test_board board;
static struct test_driver driver;
static struct pci_root root;
static struct chardev chardevs[2];
static int terminals[2]; /* the other ends */
static struct virtio_console console;
static struct device *device;

static void set_up(void)
{
	static const struct pci_layout layout = {
		.ecam = 0xe0000000, .window = 0xc0000000, .window_size = 1 << 20};
	struct error err = ERROR_NULL;

	signal(SIGPIPE, SIG_IGN);
	test_board_init(&board);
	test_driver_init(&driver);
	for (int i = 0; i < 2; i++) {
		int ends[2];

		cr_assert_eq(chardev_init(&chardevs[i], driver.loop, -1, &err), 0, "%s", err.text);
		cr_assert_eq(
			socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends),
			0);
		terminals[i] = ends[0];
		chardev_attach(&chardevs[i], ends[1]);
	}
	cr_assert_eq(pci_root_init(&root, &layout, &board.io, &board.mmio, &board.irqs,
				   &board.kicks, &err),
		     0, "%s", err.text);
	cr_assert_eq(virtio_console_init(&console, &root, 1, "console", &driver.memory, driver.loop,
					 &chardevs[0], &err),
		     0, "%s", err.text);
	device = &console.pci.function.device;
}

static void tear_down(void)
{
	device->ops->deinit(device);
	for (int i = 0; i < 2; i++) {
		fd_close(terminals[i]);
		chardev_deinit(&chardevs[i]);
	}
	test_driver_deinit(&driver);
	test_board_deinit(&board);
}

TestSuite(console, .init = set_up, .fini = tear_down);

static const char *printed(int terminal)
{
	static char text[1 << 20];
	size_t length = 0;
	ssize_t n;

	test_driver_turn(&driver);
	while ((n = read(terminals[terminal], text + length, sizeof(text) - 1 - length)) > 0)
		length += (size_t)n;
	text[length] = '\0';
	return text;
}

static void type(int terminal, const char *keys)
{
	cr_assert_eq(write(terminals[terminal], keys, strlen(keys)), (ssize_t)strlen(keys));
	test_driver_turn(&driver);
}

static void print(uint32_t queue, const char *text)
{
	struct test_buffer out = test_driver_put(&driver, text, (uint32_t)strlen(text));

	test_driver_add(&driver, queue, &out, 1, NULL, 0, false);
	test_driver_kick(&driver, queue);
	cr_assert_eq(test_driver_wait(&driver, queue), 0);
}

static gpa_t offer(uint32_t queue, uint32_t size)
{
	struct test_buffer in = {test_driver_alloc(&driver, size, 16), size};

	test_driver_add(&driver, queue, NULL, 0, &in, 1, false);
	test_driver_kick(&driver, queue);
	test_driver_turn(&driver);
	return in.gpa;
}

Test(console, output_reaches_the_terminal)
{
	test_driver_start(&driver, &console.virtio, 0);
	print(CONSOLE_TX0, "hello\n");
	cr_assert_str_eq(printed(0), "hello\n");
}

Test(console, output_of_several_pieces_keeps_its_order)
{
	struct test_buffer out[3] = {test_driver_put(&driver, "one ", 4),
				     test_driver_put(&driver, "two ", 4),
				     test_driver_put(&driver, "three", 5)};

	test_driver_start(&driver, &console.virtio, VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX);
	test_driver_add(&driver, CONSOLE_TX0, out, 3, NULL, 0, true);
	test_driver_kick(&driver, CONSOLE_TX0);
	(void)test_driver_wait(&driver, CONSOLE_TX0);
	cr_assert_str_eq(printed(0), "one two three");
}

Test(console, input_waits_for_a_buffer)
{
	gpa_t gpa;

	test_driver_start(&driver, &console.virtio, VIRTIO_F_EVENT_IDX);
	type(0, "keys");
	cr_assert_eq(chardevs[0].bytes_in, 0, "not read before there is a place for it");
	gpa = offer(CONSOLE_RX0, 64);
	cr_assert_eq(test_driver_wait(&driver, CONSOLE_RX0), 4);
	cr_assert_eq(memcmp(test_driver_at(&driver, gpa), "keys", 4), 0);
	cr_assert_gt(test_eventfd_take(driver.rings[CONSOLE_RX0].call_fd), 0);
}

Test(console, long_input_takes_buffer_after_buffer)
{
	gpa_t first, second;

	test_driver_start(&driver, &console.virtio, 0);
	first = offer(CONSOLE_RX0, 3);
	second = offer(CONSOLE_RX0, 100);
	type(0, "abcdef");
	cr_assert_eq(test_driver_wait(&driver, CONSOLE_RX0), 3);
	cr_assert_eq(test_driver_wait(&driver, CONSOLE_RX0), 3);
	cr_assert_eq(memcmp(test_driver_at(&driver, first), "abc", 3), 0);
	cr_assert_eq(memcmp(test_driver_at(&driver, second), "def", 3), 0);
}

Test(console, no_buffer_is_held_while_waiting)
{
	test_driver_start(&driver, &console.virtio, 0);
	(void)offer(CONSOLE_RX0, 64);
	type(0, "x");
	(void)test_driver_wait(&driver, CONSOLE_RX0);
	(void)offer(CONSOLE_RX0, 64);
	cr_assert_eq(console.virtio.queues[CONSOLE_RX0].ring.in_flight, 0);
	test_driver_reset(&driver);
}

struct control {
	uint32_t port;
	uint16_t event, value;
};

enum { READY, ADD, REMOVE, PORT_READY, CONSOLE, RESIZE, OPEN, NAME };

static void say(uint32_t port, uint16_t event, uint16_t value)
{
	struct control message = {port, event, value};
	struct test_buffer out = test_driver_put(&driver, &message, sizeof(message));

	test_driver_add(&driver, CONSOLE_CONTROL_TX, &out, 1, NULL, 0, false);
	test_driver_kick(&driver, CONSOLE_CONTROL_TX);
	(void)test_driver_wait(&driver, CONSOLE_CONTROL_TX);
	test_driver_turn(&driver);
}

/* Offers a buffer for the next control message; returns its size, 0 if none comes. */
static uint32_t hear(struct control *ret_message, void *rest)
{
	gpa_t gpa = offer(CONSOLE_CONTROL_RX, 128);
	uint8_t *data = test_driver_at(&driver, gpa);
	uint32_t length;
	uint16_t head;

	if (!test_driver_reap(&driver, CONSOLE_CONTROL_RX, &head, &length))
		return 0;
	memcpy(ret_message, data, sizeof(*ret_message));
	if (rest)
		memcpy(rest, data + sizeof(*ret_message), 120);
	return length;
}

static void expect(uint32_t port, uint16_t event, uint16_t value)
{
	struct control message = {0};

	cr_assert_eq(hear(&message, NULL), sizeof(message), "event %u of port %u", event, port);
	cr_assert_eq(message.port, port);
	cr_assert_eq(message.event, event);
	cr_assert_eq(message.value, value);
}

static void expect_size(uint16_t columns, uint16_t rows)
{
	struct control message = {0};
	uint16_t size[60];

	cr_assert_eq(hear(&message, size), sizeof(message) + 4);
	cr_assert_eq(message.event, RESIZE);
	cr_assert_eq(size[0], columns, "the specification has columns first");
	cr_assert_eq(size[1], rows);
}

static void add_agent_port(void)
{
	cr_assert_eq(virtio_console_add_port(&console, "org.corral.agent", &chardevs[1], NULL), 0);
}

Test(console, ports_are_announced_and_named)
{
	struct control message = {0};
	char name[120];

	add_agent_port();
	test_driver_start(&driver, &console.virtio, CONSOLE_F_MULTIPORT);
	say(0, READY, 1);
	expect(0, ADD, 1);
	expect(1, ADD, 1);
	say(0, PORT_READY, 1);
	expect(0, CONSOLE, 1);
	expect(0, OPEN, 1);
	say(1, PORT_READY, 1);
	cr_assert_eq(hear(&message, name), sizeof(message) + 16);
	cr_assert_eq(message.event, NAME);
	cr_assert_eq(memcmp(name, "org.corral.agent", 16), 0);
	expect(1, OPEN, 1);
}

Test(console, a_further_port_carries_data_when_open)
{
	gpa_t gpa;

	add_agent_port();
	test_driver_start(&driver, &console.virtio, CONSOLE_F_MULTIPORT);
	gpa = offer(CONSOLE_RX1, 64);
	type(1, "to agent");
	cr_assert_eq(chardevs[1].bytes_in, 0, "nobody has it open");
	say(1, OPEN, 1);
	cr_assert_eq(test_driver_wait(&driver, CONSOLE_RX1), 8);
	cr_assert_eq(memcmp(test_driver_at(&driver, gpa), "to agent", 8), 0);
	print(CONSOLE_TX1, "from agent");
	cr_assert_str_eq(printed(1), "from agent");
	cr_assert_str_eq(printed(0), "");
	say(1, OPEN, 0);
	(void)offer(CONSOLE_RX1, 64);
	type(1, "closed");
	cr_assert_eq(chardevs[1].bytes_in, 8);
}

Test(console, a_channel_makes_its_guest_wait_and_loses_nothing)
{
	enum { PIECE = 32768, PIECES = 40 };
	static char piece[PIECE], taken[PIECE];
	struct chardev channel;
	size_t sent = 0, received = 0;
	int ends[2];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	cr_assert_eq(chardev_init_channel(&channel, driver.loop, NULL), 0);
	chardev_attach(&channel, ends[1]);
	cr_assert_eq(virtio_console_add_port(&console, "channel", &channel, NULL), 0);
	test_driver_start(&driver, &console.virtio, CONSOLE_F_MULTIPORT);
	say(1, OPEN, 1);
	memset(piece, 'c', sizeof(piece));
	for (int i = 0; i < PIECES; i++, sent += PIECE) {
		struct test_buffer out = test_driver_put(&driver, piece, PIECE);

		test_driver_add(&driver, CONSOLE_TX1, &out, 1, NULL, 0, false);
	}
	test_driver_kick(&driver, CONSOLE_TX1);
	test_driver_turn(&driver);
	cr_assert_lt(channel.bytes_out, sent, "nobody reads, so the guest keeps the rest");
	while (received < sent) {
		ssize_t n = recv(ends[0], taken, sizeof(taken), MSG_DONTWAIT);

		if (n > 0)
			received += (size_t)n;
		else
			test_driver_turn(&driver);
	}
	cr_assert_eq(channel.bytes_dropped, 0);
	chardev_deinit(&channel);
	console.ports[1].chardev = NULL;
	fd_close(ends[0]);
}

/* Longer than a channel's backlog and its socket's together. */
Test(console, a_channel_takes_a_long_buffer_in_parts)
{
	enum { SIZE = 1 << 20 };
	static char whole[SIZE], taken[SIZE + 1];
	struct test_buffer out;
	struct chardev channel;
	size_t received = 0;
	int ends[2];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	cr_assert_eq(chardev_init_channel(&channel, driver.loop, NULL), 0);
	chardev_attach(&channel, ends[1]);
	cr_assert_eq(virtio_console_add_port(&console, "channel", &channel, NULL), 0);
	test_driver_start(&driver, &console.virtio, CONSOLE_F_MULTIPORT);
	say(1, OPEN, 1);
	for (int i = 0; i < SIZE; i++)
		whole[i] = (char)(i * 2654435761u >> 13);
	out = test_driver_put(&driver, whole, SIZE);
	test_driver_add(&driver, CONSOLE_TX1, &out, 1, NULL, 0, false);
	test_driver_kick(&driver, CONSOLE_TX1);
	test_driver_turn(&driver);
	for (int idle = 0; idle < 1000 && received <= SIZE;) {
		ssize_t n = recv(ends[0], taken + received, sizeof(taken) - received, MSG_DONTWAIT);

		received += n > 0 ? (size_t)n : 0;
		idle = n > 0 ? 0 : idle + 1;
		if (n <= 0)
			test_driver_turn(&driver);
	}
	cr_assert_eq(received, SIZE, "%zu bytes came", received);
	cr_assert_eq(memcmp(whole, taken, SIZE), 0);
	cr_assert_eq(test_driver_wait(&driver, CONSOLE_TX1), 0);
	chardev_deinit(&channel);
	console.ports[1].chardev = NULL;
	fd_close(ends[0]);
}

Test(console, too_many_ports_are_refused)
{
	struct error err = ERROR_NULL;

	for (int i = 1; i < CONSOLE_PORTS_MAX; i++)
		cr_assert_eq(virtio_console_add_port(&console, "further", NULL, &err), 0);
	cr_assert_lt(virtio_console_add_port(&console, "one more", NULL, &err), 0);
	cr_assert_neq(err.text[0], '\0');
}

Test(console, messages_wait_for_buffers_and_do_not_pile_up)
{
	struct control message;

	test_driver_start(&driver, &console.virtio, CONSOLE_F_MULTIPORT | CONSOLE_F_SIZE);
	for (int i = 0; i < 1000; i++)
		say(0, i % 2 ? READY : PORT_READY, 1);
	virtio_console_resize(&console, 80, 25);
	virtio_console_resize(&console, 132, 43);
	expect(0, ADD, 1);
	expect(0, CONSOLE, 1);
	expect_size(132, 43);
	expect(0, OPEN, 1);
	cr_assert_eq(hear(&message, NULL), 0);
}

Test(console, a_new_size_is_told_both_ways)
{
	uint8_t generation = atomic_load(&console.virtio.config_generation);
	uint16_t size[2];

	virtio_console_resize(&console, 80, 25);
	test_driver_start(&driver, &console.virtio, CONSOLE_F_MULTIPORT | CONSOLE_F_SIZE);
	say(0, PORT_READY, 1);
	expect(0, CONSOLE, 1);
	expect_size(80, 25);
	expect(0, OPEN, 1);
	virtio_console_resize(&console, 100, 1u << 20);
	expect_size(100, UINT16_MAX);
	console.virtio.ops->config_read(&console.virtio, 0, size, sizeof(size));
	cr_assert_eq(size[0], 100);
	cr_assert_eq(size[1], UINT16_MAX);
	cr_assert_neq(atomic_load(&console.virtio.config_generation), generation);
}

Test(console, emergency_writes_need_no_queue)
{
	uint32_t value = 'E' | 0xffffff00;

	console.virtio.ops->config_write(&console.virtio, 8, &value, 4);
	cr_assert_str_eq(printed(0), "E");
}

Test(console, senseless_messages_are_ignored)
{
	static const uint16_t events[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 0xffff};
	struct test_buffer out = test_driver_put(&driver, "short", 5);
	struct control message;

	test_driver_start(&driver, &console.virtio, CONSOLE_F_MULTIPORT);
	for (uint32_t i = 0; i < ARRAY_SIZE(events); i++) {
		say(1, events[i], events[i] == 0 ? 0 : 1);
		say(CONSOLE_PORTS_MAX, events[i], 0);
		say(UINT32_MAX, events[i], events[i] == 0 ? 7 : 0xffff);
	}
	test_driver_add(&driver, CONSOLE_CONTROL_TX, &out, 1, NULL, 0, false);
	test_driver_kick(&driver, CONSOLE_CONTROL_TX);
	(void)test_driver_wait(&driver, CONSOLE_CONTROL_TX);
	cr_assert_eq(hear(&message, NULL), 0, "event %u of port %u", message.event, message.port);
	cr_assert_not(atomic_load(&console.virtio.status) & VIRTIO_STATUS_NEEDS_RESET);
}

Test(console, a_huge_write_needs_a_reset)
{
	struct test_buffer out[2] = {{0, 1u << 20}, {0, 1u << 20}};

	test_driver_start(&driver, &console.virtio, 0);
	test_driver_add(&driver, CONSOLE_TX0, out, 2, NULL, 0, false);
	test_driver_kick(&driver, CONSOLE_TX0);
	test_driver_turn(&driver);
	cr_assert(atomic_load(&console.virtio.status) & VIRTIO_STATUS_NEEDS_RESET);
	test_driver_reset(&driver);
	test_driver_start(&driver, &console.virtio, 0);
	print(CONSOLE_TX0, "mended");
	cr_assert_str_eq(printed(0), "mended");
}

Test(console, an_input_buffer_without_room_needs_a_reset)
{
	struct test_buffer out = test_driver_put(&driver, "read-only", 9);

	test_driver_start(&driver, &console.virtio, 0);
	test_driver_add(&driver, CONSOLE_RX0, &out, 1, NULL, 0, false);
	test_driver_kick(&driver, CONSOLE_RX0);
	type(0, "x");
	cr_assert(atomic_load(&console.virtio.status) & VIRTIO_STATUS_NEEDS_RESET);
	test_driver_reset(&driver);
}

Test(console, much_output_takes_several_turns)
{
	struct test_buffer out = {0, 64u << 10};

	test_driver_start(&driver, &console.virtio, 0);
	for (int i = 0; i < 32; i++)
		test_driver_add(&driver, CONSOLE_TX0, &out, 1, NULL, 0, false);
	test_driver_kick(&driver, CONSOLE_TX0);
	while (driver.rings[CONSOLE_TX0].used->index == 0)
		cr_assert_eq(loop_turn(driver.loop, UINT64_MAX), 0);
	cr_assert_lt(driver.rings[CONSOLE_TX0].used->index, 32, "all in one turn");
	for (int i = 0; i < 32; i++)
		(void)test_driver_wait(&driver, CONSOLE_TX0);
	cr_assert_eq(chardevs[0].bytes_out, 32u * (64u << 10));
}

Test(console, reset_forgets_the_driver_but_not_the_size)
{
	struct control message;

	virtio_console_resize(&console, 80, 25);
	test_driver_start(&driver, &console.virtio, CONSOLE_F_MULTIPORT);
	say(0, READY, 1);
	say(0, OPEN, 1);
	test_driver_reset(&driver);
	cr_assert_eq(console.state.columns, 80);
	test_driver_start(&driver, &console.virtio, CONSOLE_F_MULTIPORT);
	cr_assert_eq(hear(&message, NULL), 0, "what was due is not any more");
	cr_assert_not(console_port_is_open(&console.ports[0]));
}

static void rests(struct device_waiter *waiter _unused_, struct device *rested)
{
	cr_assert_eq(rested, device);
}

Test(console, what_is_due_survives_pause_save_and_load)
{
	static uint8_t stream[65536];
	struct device_waiter waiter = {rests};
	struct cursor to = cursor_writer(stream, sizeof(stream)), from;
	struct error err = ERROR_NULL;

	test_driver_start(&driver, &console.virtio, CONSOLE_F_MULTIPORT | CONSOLE_F_SIZE);
	console.pci.state.driver_features = console.virtio.accepted; /* the transport's part */
	say(0, PORT_READY, 1);
	say(0, OPEN, 1);
	device->ops->pause(device, &waiter);
	test_driver_turn(&driver);
	virtio_console_resize(&console, 90, 30);
	cr_assert_eq(device_save(device, &to), 0);
	memset(&console.state, 0, sizeof(console.state));
	from = cursor_reader(stream, to.at);
	cr_assert_eq(device_load(device, &from, &err), 0, "%s", err.text);
	device->ops->resume(device);
	test_driver_turn(&driver);
	expect(0, CONSOLE, 1);
	expect_size(90, 30);
	expect(0, OPEN, 1);
	cr_assert(console_port_is_open(&console.ports[0]));
}

static uint64_t seed = 0x9e3779b97f4a7c15;

static uint32_t random_below(uint32_t n)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)(seed >> 32) % n;
}

/* Anything a ring can hold, most of it near to something that makes sense. */
static void scramble(struct test_ring *ring)
{
	for (uint16_t i = 0; i < ring->size; i++) {
		ring->descriptors[i] = (struct test_descriptor){
			.address = random_below(8) ? random_below(TEST_DRIVER_MEMORY) : seed,
			.length = random_below(8) ? random_below(300) : random_below(UINT32_MAX),
			.flags = (uint16_t)random_below(random_below(4) ? 4 : 65536),
			.next = (uint16_t)random_below(ring->size + 2u),
		};
		ring->available->ring[i] = (uint16_t)random_below(ring->size + 1u);
	}
	ring->available->flags = (uint16_t)random_below(2);
	ring->available->index = (uint16_t)(ring->available->index + random_below(ring->size + 2u));
}

Test(console, scrambled_rings_cost_a_reset_and_no_more)
{
	gpa_t mark = driver.next;
	uint32_t n_broken = 0;

	add_agent_port();
	for (int round = 0; round < 400; round++) {
		driver.next = mark;
		test_driver_start(&driver, &console.virtio,
				  (random_below(4) ? CONSOLE_F_MULTIPORT : 0) |
					  (random_below(2) ? VIRTIO_F_EVENT_IDX : 0));
		for (uint32_t i = 0; i < CONSOLE_QUEUES; i++) {
			scramble(&driver.rings[i]);
			test_driver_kick(&driver, i);
		}
		if (write(terminals[0], "typed", 5) < 0 || random_below(4) == 0)
			virtio_console_resize(&console, random_below(200), 25);
		test_driver_turn(&driver);
		n_broken += (atomic_load(&console.virtio.status) & VIRTIO_STATUS_NEEDS_RESET) != 0;
		test_driver_reset(&driver);
		(void)printed(0);
		(void)printed(1);
	}
	cr_assert_gt(n_broken, 100);
	driver.next = mark;
	test_driver_start(&driver, &console.virtio, 0);
	print(CONSOLE_TX0, "still here");
	(void)offer(CONSOLE_RX0, 64);
	cr_assert_str_eq(strstr(printed(0), "still"), "still here");
}
