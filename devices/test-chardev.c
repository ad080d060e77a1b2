/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host's end of a console against real sockets, files and ptys, with its loop turned by hand.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "devices/chardev.h"

static struct loop *loop;
static struct chardev chardev;
static int peer = -1; /* the other side of the chardev's peer */

/* A consumer with as much room as the test says. */
static struct {
	struct chardev_consumer ops;
	size_t room, n_asked;
	char text[65536];
	size_t length;
} consumer;

static size_t consumer_room(struct chardev_consumer *ops _unused_)
{
	consumer.n_asked++;
	return consumer.room;
}

static void consumer_input(struct chardev_consumer *ops _unused_, const uint8_t *data, size_t size)
{
	cr_assert_leq(size, consumer.room);
	cr_assert_leq(size, sizeof(consumer.text) - consumer.length);
	memcpy(consumer.text + consumer.length, data, size);
	consumer.length += size;
	consumer.room -= size;
}

static void set_up(void)
{
	const struct loop_options options = {.name = "test"};
	struct error err = ERROR_NULL;

	signal(SIGPIPE, SIG_IGN);
	cr_assert_eq(loop_new(&loop, &options, &err), 0, "%s", err.text);
	cr_assert_eq(loop_enable(loop), 0);
	cr_assert_eq(chardev_init(&chardev, loop, -1, &err), 0, "%s", err.text);
	consumer.ops = (struct chardev_consumer){consumer_room, consumer_input};
	consumer.room = sizeof(consumer.text);
	consumer.length = consumer.n_asked = 0;
	chardev.consumer = &consumer.ops;
}

static void tear_down(void)
{
	peer = fd_close(peer);
	chardev_deinit(&chardev);
	loop = loop_free(loop);
}

TestSuite(chardev, .init = set_up, .fini = tear_down);

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Turns of the loop, each waiting for its next event, until `condition` holds or 10 s are over. */
#define TURN_UNTIL(condition)                                                    \
	do {                                                                     \
		uint64_t _end = now_ns() + 10000000000u;                         \
		while (!(condition) && now_ns() < _end)                          \
			cr_assert_eq(loop_turn(loop, now_ns() + 100000000u), 0); \
		cr_assert(condition, "not within ten seconds");                  \
	} while (0)

/* What is there to do without waiting. */
static void turn(void)
{
	for (int i = 0; i < 4; i++)
		cr_assert_eq(loop_turn(loop, 0), 0);
}

static void attach_socket(void)
{
	int ends[2];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
	fd_close(peer);
	peer = ends[0];
	chardev_attach(&chardev, ends[1]);
	turn();
}

/* All that has come out at the other side by now, as text. */
static const char *printed(void)
{
	static char text[1 << 20];
	size_t length = 0;
	ssize_t n;

	while ((n = read(peer, text + length, sizeof(text) - 1 - length)) > 0)
		length += (size_t)n;
	text[length] = '\0';
	return text;
}

static void say(const char *text)
{
	chardev_write(&chardev, text, strlen(text));
}

Test(chardev, output_goes_out_at_once)
{
	attach_socket();
	say("hello");
	cr_assert_str_eq(printed(), "hello");
}

Test(chardev, input_reaches_the_consumer)
{
	attach_socket();
	cr_assert_eq(write(peer, "keys", 4), 4);
	TURN_UNTIL(consumer.length == 4);
	cr_assert_arr_eq(consumer.text, "keys", 4);
}

Test(chardev, input_waits_for_room)
{
	consumer.room = 3;
	attach_socket();
	cr_assert_eq(write(peer, "abcdef", 6), 6);
	TURN_UNTIL(consumer.length == 3 && atomic_load(&chardev.throttled));
	consumer.n_asked = 0;
	turn();
	cr_assert_eq(consumer.n_asked, 0, "a full consumer is not asked again");
	consumer.room = 100;
	chardev_ready(&chardev);
	TURN_UNTIL(consumer.length == 6);
	cr_assert_arr_eq(consumer.text, "abcdef", 6);
}

Test(chardev, a_slow_peer_gets_it_all_in_order)
{
	char line[64];
	size_t expected = 0, got = 0;
	int i;

	attach_socket();
	/* Until the socket takes no more, and half the backlog further. */
	for (i = 0; byte_ring_used(&chardev.backlog) < CHARDEV_BACKLOG / 2; i++) {
		snprintf(line, sizeof(line), "line %08d\n", i);
		say(line);
		expected += 14;
	}
	for (int next = 0; got < expected;) {
		const char *text = printed();

		for (; *text; text += 14, got += 14, next++) {
			snprintf(line, sizeof(line), "line %08d\n", next);
			cr_assert_eq(strncmp(text, line, 14), 0, "at %d: %.14s", next, text);
		}
		turn();
	}
	cr_assert_eq(chardev.bytes_dropped, 0);
}

Test(chardev, a_stuck_peer_loses_the_oldest)
{
	static char page[4096];
	uint64_t sent = 0;
	size_t got = 0;
	const char *text;

	attach_socket();
	memset(page, 'x', sizeof(page));
	while (chardev.bytes_dropped == 0) {
		chardev_write(&chardev, page, sizeof(page));
		sent += sizeof(page);
	}
	say("the end");
	sent += 7;
	for (;;) {
		text = printed();
		if (*text == '\0')
			break;
		got += strlen(text);
		if (got == sent - chardev.bytes_dropped)
			break;
		turn();
	}
	cr_assert_eq(got, sent - chardev.bytes_dropped);
	cr_assert_gt(chardev.bytes_dropped, 0);
	cr_assert_str_eq(text + strlen(text) - 7, "the end");
}

Test(chardev, a_vanished_peer_is_closed)
{
	attach_socket();
	peer = fd_close(peer);
	TURN_UNTIL(chardev.peer < 0);
	say("nobody listens");
	attach_socket();
	cr_assert_str_eq(printed(), "nobody listens");
}

Test(chardev, a_peer_that_vanishes_unread_is_closed_by_the_next_write)
{
	consumer.room = 0;
	attach_socket();
	cr_assert_eq(write(peer, "x", 1), 1);
	TURN_UNTIL(atomic_load(&chardev.throttled));
	peer = fd_close(peer);
	say("anybody?");
	cr_assert(chardev.lost);
	TURN_UNTIL(chardev.peer < 0);
	cr_assert_not(chardev.lost);
}

Test(chardev, a_peer_may_stop_sending_and_still_see)
{
	attach_socket();
	cr_assert_eq(write(peer, "bye", 3), 3);
	cr_assert_eq(shutdown(peer, SHUT_WR), 0);
	TURN_UNTIL(chardev.input_ended);
	cr_assert_eq(consumer.length, 3);
	say("still there");
	cr_assert_str_eq(printed(), "still there");
}

Test(chardev, a_new_peer_replaces_the_old)
{
	int old;

	attach_socket();
	old = dup(peer);
	say("one\n");
	attach_socket();
	say("two\n");
	cr_assert_str_eq(printed(), "one\ntwo\n", "history first");
	char text[16];
	cr_assert_eq(read(old, text, sizeof(text)), 4);
	cr_assert_eq(read(old, text, sizeof(text)), 0, "the old one is closed");
	fd_close(old);
}

/* The loop may sleep for long after that. */
Test(chardev, a_replaced_peer_sees_the_end_at_once)
{
	int ends[2];
	char byte;

	attach_socket();
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	chardev_attach(&chardev, ends[1]);
	cr_assert_eq(recv(peer, &byte, 1, MSG_DONTWAIT), 0, "%s", strerror(errno));
	fd_close(ends[0]);
}

/* A peer that has said all it will, and does not read either. */
static void fill_half_shut_peer(void)
{
	static char bytes[8192];

	attach_socket();
	cr_assert_eq(shutdown(peer, SHUT_WR), 0);
	TURN_UNTIL(chardev.input_ended);
	memset(bytes, 'x', sizeof(bytes));
	while (byte_ring_used(&chardev.backlog) == 0)
		chardev_write(&chardev, bytes, sizeof(bytes));
	turn();
}

Test(chardev, a_peer_that_stopped_sending_does_not_keep_the_loop_busy)
{
	uint64_t turns, end;

	fill_half_shut_peer();
	turns = loop_counters(loop).turns;
	end = now_ns() + 100000000u;
	while (now_ns() < end)
		cr_assert_eq(loop_turn(loop, end), 0);
	cr_assert_lt(loop_counters(loop).turns - turns, 50, "%llu turns in 100 ms",
		     (unsigned long long)(loop_counters(loop).turns - turns));
}

Test(chardev, a_peer_that_stopped_sending_gets_the_rest)
{
	size_t got = 0;

	fill_half_shut_peer();
	TURN_UNTIL((got += strlen(printed())) == chardev.bytes_out);
}

static void become_channel(void)
{
	struct error err = ERROR_NULL;

	chardev_deinit(&chardev);
	cr_assert_eq(chardev_init_channel(&chardev, loop, &err), 0, "%s", err.text);
	chardev.consumer = &consumer.ops;
}

/* Its next client would be told that somebody is there already. */
Test(chardev, a_channel_peer_that_ends_unread_is_closed)
{
	become_channel();
	consumer.room = 0;
	attach_socket();
	cr_assert_eq(write(peer, "x", 1), 1);
	TURN_UNTIL(atomic_load(&chardev.throttled));
	peer = fd_close(peer);
	TURN_UNTIL(!chardev_attached(&chardev));
	cr_assert_eq(consumer.length, 0);
}

Test(chardev, a_channel_peer_that_ends_in_two_steps_is_closed)
{
	become_channel();
	attach_socket();
	cr_assert_eq(shutdown(peer, SHUT_WR), 0);
	TURN_UNTIL(chardev.input_ended);
	say("answer");
	cr_assert_str_eq(printed(), "answer");
	peer = fd_close(peer);
	TURN_UNTIL(!chardev_attached(&chardev));
}

Test(chardev, a_channel_peer_that_stops_sending_unread_is_heard)
{
	become_channel();
	consumer.room = 0;
	attach_socket();
	cr_assert_eq(write(peer, "order", 5), 5);
	cr_assert_eq(shutdown(peer, SHUT_WR), 0);
	TURN_UNTIL(atomic_load(&chardev.throttled) && chardev.half_shut);
	consumer.room = 100;
	chardev_ready(&chardev);
	TURN_UNTIL(chardev.input_ended);
	cr_assert_arr_eq(consumer.text, "order", 5);
	cr_assert(chardev_attached(&chardev));
}

Test(chardev, history_starts_with_a_whole_line)
{
	char line[32];
	const char *text;

	for (int i = 0; i < 1000; i++) {
		snprintf(line, sizeof(line), "line %04d\n", i);
		say(line);
	}
	attach_socket();
	text = printed();
	cr_assert_leq(strlen(text), CHARDEV_HISTORY);
	cr_assert_gt(strlen(text), CHARDEV_HISTORY - 10);
	cr_assert_eq(strncmp(text, "line ", 5), 0);
	cr_assert_str_eq(text + strlen(text) - 10, "line 0999\n");
}

Test(chardev, panic_is_remembered_until_forgotten)
{
	char text[PANIC_TEXT_SIZE];

	cr_assert_not(chardev_panic_text(&chardev, text));
	say("[ 1.0] Kernel pan");
	say("ic - not syncing: Attempted to kill init!\n");
	cr_assert(chardev_panic_text(&chardev, text));
	cr_assert_str_eq(text, "Attempted to kill init!");
	chardev_panic_forget(&chardev);
	cr_assert_not(chardev_panic_text(&chardev, text));
}

Test(chardev, a_file_gets_output_and_gives_no_input)
{
	int file = memfd_create("console", MFD_CLOEXEC);
	char text[16] = {0};

	chardev_attach(&chardev, dup(file));
	turn();
	say("to a file\n");
	cr_assert_eq(pread(file, text, sizeof(text), 0), 10);
	cr_assert_str_eq(text, "to a file\n");
	cr_assert_eq(consumer.n_asked, 0);
	fd_close(file);
}

Test(chardev, a_pipe_is_output_only_and_never_waited_for)
{
	static char page[4096];
	int ends[2];

	cr_assert_eq(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
	peer = ends[0];
	cr_assert_eq(fcntl(ends[1], F_SETFL, 0), 0); /* as a launcher would hand it over */
	chardev_attach(&chardev, ends[1]);
	turn();
	while (chardev.bytes_dropped == 0)
		chardev_write(&chardev, page, sizeof(page));
	cr_assert_eq(consumer.n_asked, 0);
	peer = fd_close(peer);
	TURN_UNTIL(chardev.peer < 0);
}

Test(chardev, a_pty_survives_its_user)
{
	struct termios raw;
	int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC), slave;
	char text[16] = {0};

	cr_assert_geq(master, 0);
	cr_assert_eq(grantpt(master), 0);
	cr_assert_eq(unlockpt(master), 0);
	cr_assert_eq(tcgetattr(master, &raw), 0);
	cfmakeraw(&raw);
	cr_assert_eq(tcsetattr(master, TCSANOW, &raw), 0);
	slave = open(ptsname(master), O_RDWR | O_NOCTTY | O_CLOEXEC);
	cr_assert_geq(slave, 0);
	chardev_attach(&chardev, dup(master));
	cr_assert_eq(write(slave, "in", 2), 2);
	TURN_UNTIL(consumer.length == 2);
	fd_close(slave);
	TURN_UNTIL(chardev.hung_up);
	slave = open(ptsname(master), O_RDWR | O_NOCTTY | O_CLOEXEC);
	cr_assert_eq(write(slave, "again", 5), 5);
	TURN_UNTIL(consumer.length == 7);
	say("out");
	cr_assert_eq(read(slave, text, sizeof(text)), 3);
	cr_assert_str_eq(text, "out");
	fd_close(slave);
	fd_close(master);
}

static int log_file(void)
{
	char path[] = "/tmp/console-log-XXXXXX";
	int fd = mkostemp(path, O_APPEND | O_CLOEXEC);

	cr_assert_geq(fd, 0);
	unlink(path);
	return fd;
}

Test(chardev, the_log_starts_over_when_it_is_long)
{
	static char page[65536], text[CHARDEV_LOG_MAX + 1];
	static const char notice[] = "[... earlier output dropped]\n";
	struct chardev logged;
	int log = log_file();
	struct stat st;

	cr_assert_eq(chardev_init(&logged, loop, dup(log), NULL), 0);
	memset(page, 'x', sizeof(page));
	chardev_write(&logged, "first", 5);
	cr_assert_eq(pread(log, text, sizeof(text), 0), 5);
	for (uint32_t i = 0; i < CHARDEV_LOG_MAX / sizeof(page) + 4; i++) {
		chardev_write(&logged, page, sizeof(page));
		turn();
	}
	chardev_write(&logged, "last", 4);
	cr_assert_eq(fstat(log, &st), 0);
	cr_assert_leq(st.st_size, CHARDEV_LOG_MAX);
	cr_assert_eq(pread(log, text, sizeof(text), 0), st.st_size);
	cr_assert_eq(strncmp(text, notice, strlen(notice)), 0);
	cr_assert_eq(strncmp(text + st.st_size - 4, "last", 4), 0);
	chardev_deinit(&logged);
	fd_close(log);
}

struct reader {
	int fd;
	size_t bytes;
};

static void *read_slowly(void *arg)
{
	struct reader *reader = arg;
	char page[4096];
	ssize_t n;

	while ((n = read(reader->fd, page, sizeof(page))) > 0)
		reader->bytes += (size_t)n;
	return NULL;
}

Test(chardev, last_words_wait_for_a_slow_peer)
{
	static char page[4096];
	struct chardev ending;
	struct reader reader = {0};
	pthread_t thread;
	int ends[2];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	cr_assert_eq(chardev_init(&ending, loop, -1, NULL), 0);
	chardev_attach(&ending, ends[1]);
	reader.fd = ends[0];
	while (byte_ring_used(&ending.backlog) < CHARDEV_BACKLOG)
		chardev_write(&ending, page, sizeof(page));
	cr_assert_eq(pthread_create(&thread, NULL, read_slowly, &reader), 0);
	chardev_deinit(&ending);
	pthread_join(thread, NULL);
	cr_assert_eq(reader.bytes, ending.bytes_out - ending.bytes_dropped);
	fd_close(ends[0]);
}
