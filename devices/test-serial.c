/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The serial port as a driver sees it, with a socket as the terminal.
 */
#include <criterion/criterion.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "devices/serial-registers.h"
#include "devices/serial.h"
#include "devices/test-board.h"

static struct test_board board;
static struct loop *loop;
static struct chardev chardev;
static struct serial serial;
static int terminal;

static void set_up(void)
{
	const struct loop_options options = {.name = "test"};
	struct error err = ERROR_NULL;
	int ends[2];

	test_board_init(&board);
	cr_assert_eq(loop_new(&loop, &options, &err), 0, "%s", err.text);
	cr_assert_eq(loop_enable(loop), 0);
	cr_assert_eq(chardev_init(&chardev, loop, -1, &err), 0, "%s", err.text);
	cr_assert_eq(serial_init(&serial, &board.io, &board.irqs, loop, &chardev, &err), 0, "%s",
		     err.text);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
	terminal = ends[0];
	chardev_attach(&chardev, ends[1]);
}

static void tear_down(void)
{
	serial.device.ops->deinit(&serial.device);
	chardev_deinit(&chardev);
	fd_close(terminal);
	loop = loop_free(loop);
	test_board_deinit(&board);
}

TestSuite(serial, .init = set_up, .fini = tear_down);

static uint8_t in(uint8_t offset)
{
	return (uint8_t)test_board_in(&board, SERIAL_PORT + offset, 1);
}

static void out(uint8_t offset, uint8_t value)
{
	test_board_out(&board, SERIAL_PORT + offset, value, 1);
}

static uint64_t edges(void)
{
	return test_board_edges(&board, SERIAL_GSI);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void type(const char *keys)
{
	cr_assert_eq(write(terminal, keys, strlen(keys)), (ssize_t)strlen(keys));
}

/* Lets the loop run until the receiver holds `n` bytes. */
static void receive(uint32_t n)
{
	uint64_t end = now_ns() + 10000000000u;

	while (serial.state.n_received < n && now_ns() < end)
		cr_assert_eq(loop_turn(loop, now_ns() + 100000000u), 0);
	cr_assert_eq(serial.state.n_received, n);
}

static void turn(void)
{
	for (int i = 0; i < 4; i++)
		cr_assert_eq(loop_turn(loop, 0), 0);
}

static const char *printed(void)
{
	static char text[4096];
	ssize_t n = read(terminal, text, sizeof(text) - 1);

	text[n > 0 ? n : 0] = '\0';
	return text;
}

static void print(const char *text)
{
	for (; *text; text++)
		out(SERIAL_DATA, (uint8_t)*text);
}

Test(serial, power_on)
{
	cr_assert_eq(in(SERIAL_IER), 0);
	cr_assert_eq(in(SERIAL_IIR), IIR_NONE);
	cr_assert_eq(in(SERIAL_LSR), LSR_EMPTY);
	cr_assert_eq(in(SERIAL_MSR), MSR_CTS | MSR_DSR | MSR_DCD);
	cr_assert_eq(edges(), 0);
}

Test(serial, registers_keep_what_they_have_bits_for)
{
	out(SERIAL_IER, 0xff);
	out(SERIAL_LCR, 0x7f);
	out(SERIAL_MCR, 0xef);
	out(SERIAL_SCR, 0xa5);
	cr_assert_eq(in(SERIAL_IER), 0x0f);
	cr_assert_eq(in(SERIAL_LCR), 0x7f);
	cr_assert_eq(in(SERIAL_MCR), 0x0f);
	cr_assert_eq(in(SERIAL_SCR), 0xa5);
}

Test(serial, the_divisor_is_behind_its_bit)
{
	out(SERIAL_LCR, 0x83);
	out(SERIAL_DATA, 0x34);
	out(SERIAL_IER, 0x12);
	cr_assert_eq(in(SERIAL_DATA), 0x34);
	cr_assert_eq(in(SERIAL_IER), 0x12);
	out(SERIAL_LCR, 0x03);
	cr_assert_eq(in(SERIAL_IER), 0);
	cr_assert_str_eq(printed(), "");
}

/* What Linux does to tell a 16550A from its kin. */
Test(serial, linux_finds_a_16550a)
{
	out(SERIAL_MCR, MCR_LOOP | MCR_OUT2 | MCR_RTS);
	cr_assert_eq(in(SERIAL_MSR)&0xf0, MSR_DCD | MSR_CTS);
	out(SERIAL_MCR, 0);
	out(SERIAL_FCR, FCR_ENABLE);
	cr_assert_eq(in(SERIAL_IIR) >> 6, 3);
	out(SERIAL_LCR, 0x80);
	cr_assert_neq(in(SERIAL_IIR), 0, "no extended feature register");
	out(SERIAL_FCR, FCR_ENABLE | 0x20);
	cr_assert_eq(in(SERIAL_IIR) >> 5, 6, "no 64-byte FIFO");
	out(SERIAL_FCR, 0);
	cr_assert_eq(in(SERIAL_IIR) >> 6, 0);
}

Test(serial, enabling_an_empty_transmitter_interrupts)
{
	out(SERIAL_IER, IER_TRANSMITTER);
	cr_assert_eq(edges(), 1);
	cr_assert_eq(in(SERIAL_IIR), IIR_TRANSMITTER);
	cr_assert_eq(in(SERIAL_IIR), IIR_NONE, "reading IIR ends it");
	out(SERIAL_IER, IER_TRANSMITTER);
	cr_assert_eq(edges(), 0, "it was on already");
	out(SERIAL_IER, 0);
	out(SERIAL_IER, IER_TRANSMITTER);
	cr_assert_eq(edges(), 1);
}

Test(serial, each_byte_interrupts_without_fifo)
{
	out(SERIAL_IER, IER_TRANSMITTER);
	(void)edges();
	out(SERIAL_DATA, 'a');
	cr_assert_eq(edges(), 1);
	out(SERIAL_DATA, 'b');
	cr_assert_eq(edges(), 1, "even of a driver that never reads IIR");
}

Test(serial, a_batch_interrupts_once_with_fifo)
{
	out(SERIAL_FCR, FCR_ENABLE);
	out(SERIAL_IER, IER_TRANSMITTER);
	cr_assert_eq(in(SERIAL_IIR), IIR_FIFO | IIR_TRANSMITTER);
	(void)edges();
	print("sixteen bytes...");
	cr_assert_eq(edges(), 1);
	cr_assert_eq(in(SERIAL_IIR), IIR_FIFO | IIR_TRANSMITTER);
	print("more");
	cr_assert_eq(edges(), 1);
	(void)in(SERIAL_LSR);
	cr_assert_eq(edges(), 0, "looking raises nothing");
	print("and more");
	cr_assert_eq(edges(), 1);
}

Test(serial, input_interrupts_and_is_read)
{
	out(SERIAL_IER, IER_RECEIVED);
	type("ok");
	receive(1); /* one at a time without the FIFO */
	cr_assert_eq(edges(), 1);
	cr_assert_eq(in(SERIAL_IIR), IIR_RECEIVED);
	cr_assert_eq(in(SERIAL_LSR), LSR_EMPTY | LSR_RECEIVED);
	cr_assert_eq(in(SERIAL_DATA), 'o');
	cr_assert_eq(in(SERIAL_LSR), LSR_EMPTY);
	cr_assert_eq(in(SERIAL_IIR), IIR_NONE);
	receive(1);
	cr_assert_eq(edges(), 1);
	cr_assert_eq(in(SERIAL_DATA), 'k');
	cr_assert_eq(in(SERIAL_DATA), 0, "nothing left");
}

Test(serial, the_fifo_says_when_it_is_filling)
{
	out(SERIAL_FCR, FCR_ENABLE | 0x80); /* trigger at 8 */
	out(SERIAL_IER, IER_RECEIVED);
	type("1234567");
	receive(7);
	cr_assert_eq(in(SERIAL_IIR), IIR_FIFO | IIR_TIMEOUT);
	type("8");
	receive(8);
	cr_assert_eq(in(SERIAL_IIR), IIR_FIFO | IIR_RECEIVED);
	out(SERIAL_FCR, FCR_ENABLE | FCR_CLEAR_RX);
	cr_assert_eq(in(SERIAL_LSR), LSR_EMPTY);
}

Test(serial, input_never_overruns)
{
	static const char keys[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJ";
	char got[sizeof(keys)] = {0};

	out(SERIAL_FCR, FCR_ENABLE);
	type(keys);
	receive(16);
	turn();
	cr_assert_eq(serial.state.n_received, 16);
	for (uint32_t i = 0; i < strlen(keys); i++) {
		if (serial.state.n_received == 0)
			receive((uint32_t)strlen(keys) - i < 16 ? (uint32_t)strlen(keys) - i : 16);
		cr_assert_eq(in(SERIAL_LSR)&LSR_OVERRUN, 0);
		got[i] = (char)in(SERIAL_DATA);
	}
	cr_assert_str_eq(got, keys);
}

Test(serial, loop_back_hears_itself)
{
	out(SERIAL_FCR, FCR_ENABLE);
	out(SERIAL_MCR, MCR_LOOP);
	out(SERIAL_IER, IER_LINE | IER_RECEIVED);
	for (int i = 0; i < 17; i++)
		out(SERIAL_DATA, (uint8_t)i);
	cr_assert_eq(in(SERIAL_IIR), IIR_FIFO | IIR_LINE, "one too many");
	cr_assert_eq(in(SERIAL_LSR)&LSR_OVERRUN, LSR_OVERRUN);
	cr_assert_eq(in(SERIAL_LSR)&LSR_OVERRUN, 0, "reading clears");
	for (int i = 0; i < 16; i++)
		cr_assert_eq(in(SERIAL_DATA), i);
	cr_assert_str_eq(printed(), "", "nothing is sent");
	type("x");
	turn();
	cr_assert_eq(serial.state.n_received, 0);
	out(SERIAL_MCR, 0);
	receive(1);
}

Test(serial, modem_lines_tell_their_changes)
{
	out(SERIAL_IER, IER_MODEM);
	out(SERIAL_MCR, MCR_LOOP | MCR_OUT1);
	cr_assert_eq(edges(), 1);
	cr_assert_eq(in(SERIAL_IIR), IIR_MODEM);
	cr_assert_eq(in(SERIAL_MSR), MSR_RING | 0x0b);
	cr_assert_eq(in(SERIAL_MSR), MSR_RING);
	out(SERIAL_MCR, MCR_LOOP);
	cr_assert_eq(in(SERIAL_MSR), MSR_DELTA_RING);
	cr_assert_eq(in(SERIAL_IIR), IIR_NONE);
}

Test(serial, the_first_byte_goes_at_once_and_a_line_in_one_piece)
{
	print("H");
	cr_assert_str_eq(printed(), "H");
	serial.last_flush = now_ns() + 3600ull * 1000000000u; /* the next is not a first one */
	serial.ticking = true;
	print("ello,");
	cr_assert_str_eq(printed(), "");
	print(" world\n");
	cr_assert_str_eq(printed(), "ello, world\n");
}

Test(serial, a_prompt_without_newline_comes_soon)
{
	uint64_t end = now_ns() + 10000000000u;
	const char *text = "";

	print("login: ");
	(void)printed();
	print("password: ");
	while (strstr(text, ": ") == NULL && now_ns() < end) {
		cr_assert_eq(loop_turn(loop, now_ns() + 100000000u), 0);
		text = printed();
	}
	cr_assert_str_eq(text + strlen(text) - 2, ": ");
	while (serial.ticking && now_ns() < end)
		cr_assert_eq(loop_turn(loop, now_ns() + 100000000u), 0);
	cr_assert_not(serial.ticking, "the ticking ends with the output");
}

static void rests(struct device_waiter *waiter _unused_, struct device *device)
{
	cr_assert_eq(device, &serial.device);
}

Test(serial, a_paused_port_takes_no_input)
{
	struct device_waiter waiter = {rests};

	print("x");
	print("unfinished");
	serial.device.ops->pause(&serial.device, &waiter);
	cr_assert_eq(serial.n_batch, 0, "output is not left behind");
	type("k");
	turn();
	cr_assert_eq(serial.state.n_received, 0);
	serial.device.ops->resume(&serial.device);
	receive(1);
}

Test(serial, state_moves_and_interrupts_again)
{
	struct test_board other;
	struct serial loaded;

	test_board_init(&other);
	cr_assert_eq(serial_init(&loaded, &other.io, &other.irqs, loop, NULL, NULL), 0);
	out(SERIAL_FCR, FCR_ENABLE);
	out(SERIAL_LCR, 0x1b);
	type("abc");
	receive(3);
	out(SERIAL_IER, IER_RECEIVED | IER_TRANSMITTER);
	test_board_move(&serial.device, &loaded.device);
	cr_assert_eq(test_board_edges(&other, SERIAL_GSI), 1);
	cr_assert_eq(test_board_in(&other, SERIAL_PORT + SERIAL_LCR, 1), 0x1b);
	cr_assert_eq(test_board_in(&other, SERIAL_PORT + SERIAL_IIR, 1), IIR_FIFO | IIR_RECEIVED);
	for (const char *c = "abc"; *c; c++)
		cr_assert_eq(test_board_in(&other, SERIAL_PORT, 1), (uint32_t)*c);
	cr_assert_eq(test_board_in(&other, SERIAL_PORT + SERIAL_IIR, 1),
		     IIR_FIFO | IIR_TRANSMITTER);
	loaded.device.ops->deinit(&loaded.device);
	test_board_deinit(&other);
}

Test(serial, a_receiver_fuller_than_it_can_be_is_refused)
{
	static uint8_t stream[4096];
	struct cursor to = cursor_writer(stream, sizeof(stream)), from;
	struct error err = ERROR_NULL;

	serial.state.n_received = 2; /* without FIFO it holds one */
	cr_assert_eq(device_save(&serial.device, &to), 0);
	from = cursor_reader(stream, to.at);
	cr_assert_lt(device_load(&serial.device, &from, &err), 0);
	cr_assert_neq(err.text[0], '\0');
	serial.state.n_received = 0;
}

Test(serial, wide_accesses_touch_each_register_once)
{
	test_board_out(&board, SERIAL_PORT + SERIAL_LCR, 0x0a1b, 2);
	cr_assert_eq(in(SERIAL_LCR), 0x1b);
	cr_assert_eq(in(SERIAL_MCR), 0x0a);
	cr_assert_eq(test_board_in(&board, SERIAL_PORT + SERIAL_LCR, 2), 0x0a1b);
}
