/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stream port against the other end of a socket pair, well-behaved and not, and against passt.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "virtio/test-net-port.h"

#define MOST   65554 /* bytes of a frame */
#define QUEUED 256   /* frames the port takes in before it says -EBUSY */

static struct test_card *card;
static int peer = -1;

static void make_stream_of(int without_uring, int fd)
{
	struct error err = ERROR_NULL;
	struct net_port *port;

	card = card_new(without_uring);
	cr_assert(eq(int, net_stream_new(&port, card->loop, fd, false, &err), 0), "%s", err.text);
	card_plug(card, port);
	cr_assert(eq(u32, port->offloads, 0));
	port->ops->start(port, 0);
}

static void make_stream(int without_uring)
{
	int ends[2];

	cr_assert(eq(int, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0));
	peer = ends[1];
	cr_assert(eq(int, fcntl(peer, F_SETFL, O_NONBLOCK), 0));
	make_stream_of(without_uring, ends[0]);
}

static void tear_down(void)
{
	fd_close(peer);
	card_free(card);
}

static void make_frame(uint8_t *frame, uint32_t size, uint32_t number)
{
	memcpy(frame, &number, 4);
	for (uint32_t i = 4; i < size; i++)
		frame[i] = (uint8_t)(i * 13 + number);
}

/* Sizes from the least to the most, most of them small. */
static uint32_t size_of(uint32_t number)
{
	if (number % 16 == 15)
		return MOST - number % 100;
	return 14 + number * 37 % 1500;
}

static uint32_t put_frame(uint8_t *stream, uint32_t size, uint32_t number)
{
	const uint32_t length = htonl(size);

	memcpy(stream, &length, 4);
	make_frame(stream + 4, size, number);
	return 4 + size;
}

static uint8_t *make_row(uint32_t n, uint32_t first, uint32_t *ret_size)
{
	uint8_t *stream = malloc((size_t)n * (MOST + 4));

	*ret_size = 0;
	for (uint32_t i = first; i < first + n; i++)
		*ret_size += put_frame(stream + *ret_size, size_of(i), i);
	return stream;
}

static void check_row(uint32_t n)
{
	static const uint8_t no_header[NET_HEADER_SIZE];
	static uint8_t wanted[MOST];

	for (uint32_t i = 0; i < n; i++) {
		const struct test_frame *frame = &card->frames[i];

		make_frame(wanted, size_of(i), i);
		cr_assert(eq(u32, frame->size, NET_HEADER_SIZE + size_of(i)), "frame %u", i);
		cr_assert(eq(int, memcmp(frame->data, no_header, NET_HEADER_SIZE), 0));
		cr_assert(eq(int, memcmp(frame->data + NET_HEADER_SIZE, wanted, size_of(i)), 0),
			  "frame %u differs", i);
	}
}

/* Writes what the socket takes, turns the loop, and so on; `chunk` bytes at once. */
static void feed(const uint8_t *data, uint32_t size, uint32_t chunk)
{
	for (uint32_t done = 0; done < size;) {
		ssize_t n = write(peer, data + done, MIN(chunk, size - done));

		cr_assert(n > 0 || errno == EAGAIN);
		done += (uint32_t)MAX(n, 0);
		cr_assert(eq(int, loop_turn(card->loop, 0), 0));
	}
}

static void come_in(int without_uring, uint32_t n, uint32_t chunk)
{
	uint32_t size;
	uint8_t *row;

	make_stream(without_uring);
	row = make_row(n, 0, &size);
	feed(row, size, chunk);
	UNTIL(card, card->n_frames == n);
	check_row(n);
	cr_assert(eq(u64, card->port->n_reads, n));
	card_settle(card);
	free(row);
	tear_down();
}

BOTH(stream, frames_come_in_however_they_are_split)
{
	come_in(*without_uring, 10, 1);
}

BOTH(stream, frames_come_in_in_chunks_of_an_odd_size)
{
	come_in(*without_uring, 200, 1009);
}

BOTH(stream, frames_come_in_many_at_once)
{
	come_in(*without_uring, 1000, UINT32_MAX);
}

BOTH(stream, largest_and_smallest_frames)
{
	static uint8_t data[MOST + 4 + 18];
	uint32_t size;

	make_stream(*without_uring);
	size = put_frame(data, MOST, 1);
	size += put_frame(data + size, 14, 2);
	feed(data, size, UINT32_MAX);
	UNTIL(card, card->n_frames == 2);
	cr_assert(eq(u32, card->frames[0].size, NET_FRAME_MAX));
	cr_assert(eq(u32, card->frames[1].size, NET_FRAME_MIN));
	card_settle(card);
	tear_down();
}

static struct iovec out_iovs[TEST_SENT][4];
static uint8_t out_header[NET_HEADER_SIZE] = {0xee, 0xee};

/* A header that must not go out, and the frame in three pieces, one of them empty. */
static int send_frame(uint32_t number, uint32_t size)
{
	struct iovec *iov = out_iovs[number];
	uint8_t *frame = malloc(size);

	make_frame(frame, size, number);
	iov[0] = (struct iovec){out_header, NET_HEADER_SIZE};
	iov[1] = (struct iovec){frame, 5};
	iov[2] = (struct iovec){frame + 5, 0};
	iov[3] = (struct iovec){frame + 5, size - 5};
	return card->port->ops->send(card->port, iov, 4, NET_HEADER_SIZE + size, number);
}

static void free_frames(uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		free(out_iovs[i][1].iov_base);
}

/* Takes what has come, and the loop a turn at a time. */
static void drain(uint8_t *data, uint32_t size)
{
	uint64_t give_up = loop_now(card->loop) + TEST_WAIT;

	for (uint32_t done = 0; done < size;) {
		ssize_t n = read(peer, data + done, MIN(size - done, 50000u));

		cr_assert(n > 0 || errno == EAGAIN);
		done += (uint32_t)MAX(n, 0);
		cr_assert(eq(int, loop_turn(card->loop, 0), 0));
		cr_assert(lt(u64, loop_now(card->loop), give_up), "%u of %u bytes came", done,
			  size);
	}
}

BOTH(stream, frames_of_a_batch_go_out_in_one_call)
{
	static uint8_t wanted[100 * 104], got[100 * 104 + 1];
	uint64_t enters;

	make_stream(*without_uring);
	card_settle(card);
	enters = loop_counters(card->loop).enters;
	for (uint32_t i = 0; i < 100; i++) {
		cr_assert(eq(int, send_frame(i, 100), 0));
		put_frame(wanted + (size_t)i * 104, 100, i);
	}
	card->port->ops->flush(card->port);
	UNTIL(card, card->n_sent == 100);
	cr_assert(le(u64, loop_counters(card->loop).enters - enters, 2));
	cr_assert(eq(u64, card->port->n_write_calls, 1));
	cr_assert(eq(u64, card->port->n_writes, 100));
	cr_assert(eq(int, (int)read(peer, got, sizeof(got)), (int)sizeof(wanted)));
	cr_assert(eq(int, memcmp(got, wanted, sizeof(wanted)), 0));
	card_settle(card);
	free_frames(100);
	tear_down();
}

/* Of what passt would send to the host's own services, nothing reaches passt. */
BOTH(stream, frames_to_the_loopback_are_lost)
{
	static const struct {
		bool ipv6, lost;
		uint8_t to[16];
	} cases[] = {
		{false, true, {127, 0, 0, 1}},
		{false, true, {127, 0, 0, 53}},
		{false, true, {0, 0, 0, 0}},
		{false, false, {192, 0, 2, 1}},
		{false, false, {128, 0, 0, 1}},
		{true, true, {0}},
		{true, true, {[15] = 1}},
		{true, true, {[10] = 0xff, 0xff, 127, 0, 0, 1}},
		{true, false, {0x20, 0x01, [15] = 1}},
		{true, false, {0, 0x64, 0xff, 0x9b, [12] = 127, 0, 0, 1}},
	};
	uint8_t header[NET_HEADER_SIZE] = {0}, frame[60] = {0};
	struct iovec iov[] = {{header, sizeof(header)}, {frame, 20}, {frame + 20, 40}};
	uint32_t n_kept = 0;

	make_stream(*without_uring);
	for (uint32_t i = 0; i < ARRAY_SIZE(cases); i++) {
		memcpy(frame + 12, cases[i].ipv6 ? "\x86\xdd" : "\x08\x00", 2);
		memcpy(frame + 14 + (cases[i].ipv6 ? 24 : 16), cases[i].to, 16);
		cr_assert(eq(int,
			     card->port->ops->send(card->port, iov, 3, NET_HEADER_SIZE + 60, i),
			     cases[i].lost ? -EACCES : 0),
			  "case %u", i);
		n_kept += !cases[i].lost;
	}
	card->port->ops->flush(card->port);
	UNTIL(card, card->n_sent == n_kept);
	card_settle(card);
	tear_down();
}

BOTH(stream, a_frame_goes_where_it_went_when_it_was_judged)
{
	uint8_t header[NET_HEADER_SIZE] = {0}, frame[60] = {0}, got[64 + 1];
	struct iovec iov[] = {{header, sizeof(header)}, {frame, sizeof(frame)}};

	make_stream(*without_uring);
	frame[12] = 0x08;
	frame[30] = 192;
	cr_assert(eq(int, card->port->ops->send(card->port, iov, 2, NET_HEADER_SIZE + 60, 0), 0));
	frame[30] = 127;
	frame[59] = 1;
	card->port->ops->flush(card->port);
	UNTIL(card, card->n_sent == 1);
	cr_assert(eq(int, (int)read(peer, got, sizeof(got)), 64));
	cr_assert(eq(int, got[4 + 30], 192));
	cr_assert(eq(int, got[4 + 59], 1), "the rest is sent from where the guest has it");
	card_settle(card);
	tear_down();
}

/* The other end reads slowly: writes are partial, wait, and go on in the middle of a frame. */
BOTH(stream, frames_go_out_to_a_slow_reader)
{
	uint32_t size, n = QUEUED;
	uint8_t *wanted, *got;

	make_stream(*without_uring);
	wanted = make_row(n, 0, &size);
	got = malloc(size);
	for (uint32_t i = 0; i < n; i++)
		cr_assert(eq(int, send_frame(i, size_of(i)), 0));
	card->port->ops->flush(card->port);
	card_settle(card);
	cr_assert(lt(u32, card->n_sent, n));
	drain(got, size);
	cr_assert(eq(int, memcmp(got, wanted, size), 0));
	UNTIL(card, card->n_sent == n);
	for (uint32_t i = 0; i < n; i++)
		cr_assert(eq(i32, card->results[i], 0));
	card_settle(card);
	free(wanted);
	free(got);
	free_frames(n);
	tear_down();
}

static void send_all(uint32_t n, uint32_t size)
{
	for (uint32_t i = 0; i < n; i++)
		cr_assert(eq(int, send_frame(i, size), 0));
	card->port->ops->flush(card->port);
}

static uint32_t count_waiting(void)
{
	int n;

	cr_assert(eq(int, ioctl(peer, FIONREAD, &n), 0));
	return (uint32_t)n;
}

/* The kernel keeps no more than that together, and passt is out of step if it does not. */
BOTH(stream, a_write_is_whole_frames_and_32_kib_at_most)
{
	static uint8_t got[100 * 1004];
	uint32_t n_waiting = 0;

	make_stream(*without_uring);
	send_all(100, 1000);
	while (card->n_sent < 100) {
		const uint64_t n_calls = card->port->n_write_calls;
		const uint32_t before = n_waiting;

		cr_assert(eq(int, loop_turn(card->loop, UINT64_MAX), 0));
		n_waiting = count_waiting();
		cr_assert(eq(u32, n_waiting % 1004, 0), "a frame is cut");
		cr_assert(le(u64, n_waiting - before,
			     32768 * (1 + card->port->n_write_calls - n_calls)));
	}
	cr_assert(eq(u64, card->port->n_write_calls, 4), "they are still written together");
	drain(got, sizeof(got));
	card_settle(card);
	free_frames(100);
	tear_down();
}

BOTH(stream, a_large_frame_is_alone_in_its_write)
{
	static uint8_t wanted[104 + MOST + 4 + 104], got[sizeof(wanted)];
	uint32_t size = 0;

	make_stream(*without_uring);
	for (uint32_t i = 0; i < 3; i++) {
		cr_assert(eq(int, send_frame(i, i == 1 ? MOST : 100), 0));
		size += put_frame(wanted + size, i == 1 ? MOST : 100, i);
	}
	card->port->ops->flush(card->port);
	UNTIL(card, card->n_sent == 3);
	cr_assert(eq(u64, card->port->n_write_calls, 3));
	drain(got, size);
	cr_assert(eq(int, memcmp(got, wanted, size), 0));
	card_settle(card);
	free_frames(3);
	tear_down();
}

BOTH(stream, a_full_socket_cuts_no_frame)
{
	static uint8_t got[QUEUED * 1504];

	make_stream(*without_uring);
	send_all(QUEUED, 1500);
	card_settle(card);
	cr_assert(gt(u32, card->n_sent, 0));
	cr_assert(lt(u32, card->n_sent, QUEUED));
	cr_assert(eq(u32, count_waiting(), card->n_sent * 1504));
	drain(got, sizeof(got));
	UNTIL(card, card->n_sent == QUEUED);
	card_settle(card);
	free_frames(QUEUED);
	tear_down();
}

static void check_idle(void)
{
	uint64_t turns = loop_counters(card->loop).turns, end = loop_now(card->loop) + 20000000;

	while (loop_now(card->loop) < end)
		cr_assert(eq(int, loop_turn(card->loop, end), 0));
	cr_assert(le(u64, loop_counters(card->loop).turns - turns, 5));
}

BOTH(stream, too_many_frames_wait_for_room)
{
	static uint8_t got[(QUEUED + 1) * 1004];
	uint32_t n = 0;

	make_stream(*without_uring);
	while (send_frame(n, 1000) == 0)
		n++;
	cr_assert(eq(u32, n, QUEUED));
	card->port->ops->flush(card->port);
	UNTIL(card, card->n_rooms == 1);
	free(out_iovs[n][1].iov_base);
	cr_assert(eq(int, send_frame(n, 1000), 0));
	card->port->ops->flush(card->port);
	drain(got, sizeof(got));
	UNTIL(card, card->n_sent == n + 1);
	card_settle(card);
	check_idle();
	free_frames(n + 1);
	tear_down();
}

static int fill_socket(void)
{
	int n = 0;

	do {
		for (; n < TEST_SENT && send_frame((uint32_t)n, 60000) == 0; n++)
			;
		card->port->ops->flush(card->port);
		card_settle(card);
	} while (card->n_sent == (uint32_t)n);
	free(out_iovs[n][1].iov_base);
	return n;
}

/* The other end takes nothing: the guest's pieces come back, and the stream stays in step. */
BOTH(stream, stop_gives_all_back_and_the_stream_stays_in_step)
{
	static uint8_t got[4 << 20], wanted[60004];
	uint32_t n, n_whole = 0, size;

	make_stream(*without_uring);
	n = (uint32_t)fill_socket();
	check_idle();
	card->port->ops->stop(card->port);
	card_settle(card);
	cr_assert(eq(u32, card->n_sent, n));
	free_frames(n);
	for (uint32_t i = 0; i < n; i++)
		n_whole += card->results[i] == 0;
	cr_assert(gt(u32, n_whole, 0));
	cr_assert(lt(u32, n_whole, n));
	card->port->ops->start(card->port, 0);
	cr_assert(eq(int, send_frame(n, 100), 0));
	card->port->ops->flush(card->port);
	size = n_whole * 60004 + 104;
	drain(got, size);
	for (uint32_t i = 0; i < n_whole; i++) {
		put_frame(wanted, 60000, i);
		cr_assert(eq(int, memcmp(got + (size_t)i * 60004, wanted, 60004), 0));
	}
	put_frame(wanted, 100, n);
	cr_assert(eq(int, memcmp(got + (size_t)n_whole * 60004, wanted, 104), 0));
	UNTIL(card, card->n_sent == n + 1);
	card_settle(card);
	free(out_iovs[n][1].iov_base);
	tear_down();
}

BOTH(stream, frames_that_the_card_refuses_are_kept_in_order)
{
	const uint32_t n = 300;
	uint32_t size;
	uint8_t *row;

	make_stream(*without_uring);
	card->may_receive = 0;
	row = make_row(n, 0, &size);
	for (uint32_t done = 0; card->n_frames < n;) {
		ssize_t written = write(peer, row + done, size - done);

		done += (uint32_t)MAX(written, (ssize_t)0);
		card_settle(card);
		if (done == size && card->n_frames == 100)
			check_idle();
		card->may_receive = 5;
		card->port->ops->ready(card->port);
		card_settle(card);
	}
	check_row(n);
	cr_assert(gt(u32, card->n_refused, 50));
	card_settle(card);
	check_idle();
	free(row);
	tear_down();
}

BOTH(stream, a_stop_in_the_middle_of_a_frame_loses_nothing)
{
	uint32_t size;
	uint8_t *row;

	make_stream(*without_uring);
	row = make_row(20, 0, &size);
	for (uint32_t at = 0; at < size; at += 4001) {
		feed(row + at, MIN(size - at, 4001u), 4001);
		card->port->ops->stop(card->port);
		card->stopped = true;
		cr_assert(eq(int, loop_turn(card->loop, 0), 0));
		card->stopped = false;
		card->port->ops->start(card->port, 0);
	}
	UNTIL(card, card->n_frames == 20);
	check_row(20);
	card_settle(card);
	free(row);
	tear_down();
}

/* One turn is two helpings at most, however much is there. */
BOTH(stream, a_flood_is_bounded_work_a_turn)
{
	static uint8_t flood[18 * 8000];
	uint32_t n = 0, n_turns = 0;

	make_stream(*without_uring);
	for (uint32_t i = 0; i < 8000; i++)
		put_frame(flood + (size_t)i * 18, 14, i);
	cr_assert(eq(int, (int)write(peer, flood, sizeof(flood)), (int)sizeof(flood)));
	while (card->n_frames < 8000) {
		cr_assert(eq(int, loop_turn(card->loop, UINT64_MAX), 0));
		cr_assert(le(u32, card->n_frames - n, 512));
		cr_assert(eq(u32, card->n_called, 0));
		n = card->n_frames;
		n_turns++;
	}
	cr_assert(ge(u32, n_turns, 8000 / 512));
	card_settle(card);
	tear_down();
}

static void check_gone(const char *why)
{
	UNTIL(card, card->n_links);
	cr_assert(eq(str, card->why, (char *)why));
	for (uint32_t i = 0; i < 3; i++)
		cr_assert(eq(int, send_frame(i, 100), 0));
	card->port->ops->flush(card->port);
	cr_assert(eq(u32, card->n_sent, 0));
	UNTIL(card, card->n_sent == 3);
	for (uint32_t i = 0; i < 3; i++)
		cr_assert(eq(i32, card->results[i], -EPIPE));
	card->port->ops->ready(card->port);
	card->port->ops->stop(card->port);
	card->port->ops->start(card->port, 0);
	card_settle(card);
	check_idle();
	cr_assert(eq(u32, card->n_links, 1));
	free_frames(3);
	tear_down();
}

static void lie(int without_uring, uint32_t length, const char *why)
{
	uint32_t size;
	uint8_t *row;

	make_stream(without_uring);
	row = make_row(3, 0, &size);
	length = htonl(length);
	cr_assert(eq(int, (int)write(peer, row, size), (int)size));
	cr_assert(eq(int, (int)write(peer, &length, 4), 4));
	cr_assert(eq(int, (int)write(peer, row, size), (int)size));
	UNTIL(card, card->n_links);
	/* What came before is what it was, and nothing comes after. */
	cr_assert(eq(u32, card->n_frames, 3));
	check_row(3);
	free(row);
	check_gone(why);
}

BOTH(stream, length_of_nothing)
{
	lie(*without_uring, 0, "the other end of its stream sent a frame of 0 bytes");
}

BOTH(stream, length_below_an_ethernet_header)
{
	lie(*without_uring, 13, "the other end of its stream sent a frame of 13 bytes");
}

BOTH(stream, length_above_the_most)
{
	lie(*without_uring, MOST + 1, "the other end of its stream sent a frame of 65555 bytes");
}

BOTH(stream, length_beyond_all_measure)
{
	lie(*without_uring, UINT32_MAX,
	    "the other end of its stream sent a frame of 4294967295 bytes");
}

/* Found by fuzzing: the lie is seen while the rest of a frame that was taken back goes out. */
BOTH(stream, length_that_lies_while_the_rest_of_a_frame_goes_out)
{
	static uint8_t got[1 << 20];
	const uint32_t lie = 0;
	uint32_t n;

	make_stream(*without_uring);
	n = (uint32_t)fill_socket();
	card->port->ops->stop(card->port);
	card_settle(card);
	cr_assert(eq(u32, card->n_sent, n));
	card->port->ops->start(card->port, 0);
	card_settle(card);
	cr_assert(eq(int, (int)write(peer, &lie, 4), 4));
	while (read(peer, got, sizeof(got)) > 0)
		;
	UNTIL(card, card->n_links == 1);
	card_settle(card);
	cr_assert(eq(u32, card->n_sent, n));
	check_idle();
	free_frames(n);
	tear_down();
}

BOTH(stream, end_of_stream)
{
	make_stream(*without_uring);
	card_settle(card);
	peer = fd_close(peer);
	check_gone("the other end of its stream has gone");
}

BOTH(stream, end_of_stream_in_the_middle_of_a_frame)
{
	uint8_t data[104];

	make_stream(*without_uring);
	put_frame(data, 100, 0);
	cr_assert(eq(int, (int)write(peer, data, 50), 50));
	card_settle(card);
	peer = fd_close(peer);
	check_gone("the other end of its stream has gone");
}

BOTH(stream, end_of_stream_while_the_card_has_no_buffers)
{
	uint8_t data[104];

	make_stream(*without_uring);
	card->may_receive = 0;
	put_frame(data, 100, 0);
	cr_assert(eq(int, (int)write(peer, data, 104), 104));
	card_settle(card);
	peer = fd_close(peer);
	card_settle(card);
	check_idle();
	card->may_receive = 1;
	card->port->ops->ready(card->port);
	UNTIL(card, card->n_links);
	cr_assert(eq(u32, card->n_frames, 1));
	card_settle(card);
	tear_down();
}

BOTH(stream, end_of_stream_while_frames_wait_to_go_out)
{
	uint32_t n;

	make_stream(*without_uring);
	n = (uint32_t)fill_socket();
	cr_assert(lt(u32, card->n_sent, n));
	peer = fd_close(peer);
	UNTIL(card, card->n_sent == n);
	UNTIL(card, card->n_links == 1);
	cr_assert(lt(i32, card->results[n - 1], 0));
	card_settle(card);
	check_idle();
	free_frames(n);
	tear_down();
}

static void refuse(int fd, const char *sentence)
{
	struct error err = ERROR_NULL;
	struct net_port *port = NULL;

	cr_assert(lt(int, net_stream_new(&port, card->loop, fd, false, &err), 0));
	cr_assert(port == NULL);
	cr_assert(strstr(err.text, sentence) != NULL, "%s", err.text);
	cr_assert(eq(int, fcntl(fd, F_GETFD), -1));
}

Test(stream, what_is_no_stream_is_refused_and_closed)
{
	card = card_new(0);
	refuse(open("/dev/null", O_RDWR | O_CLOEXEC), "as a stream socket");
	refuse(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), "but not a stream");
	tear_down();
}

Test(stream, frames_that_are_none_are_refused)
{
	uint8_t byte[14];
	struct iovec iov[2] = {{out_header, NET_HEADER_SIZE}, {byte, sizeof(byte)}};

	make_stream(0);
	cr_assert(eq(int, card->port->ops->send(card->port, iov, 1, NET_HEADER_SIZE, 0), -EINVAL));
	cr_assert(
		eq(int, card->port->ops->send(card->port, iov, 2, NET_FRAME_MIN - 1, 0), -EINVAL));
	cr_assert(
		eq(int, card->port->ops->send(card->port, iov, 2, NET_FRAME_MAX + 1, 0), -EINVAL));
	card_settle(card);
	tear_down();
}

static bool has_default_route(void)
{
	FILE *file = fopen("/proc/net/route", "re");
	char line[256];
	bool found = false;

	while (file && fgets(line, sizeof(line), file))
		found |= strstr(line, "\t00000000\t") != NULL;
	if (file)
		fclose(file);
	return found;
}

static pid_t start_passt(int without_uring)
{
	int ends[2];
	pid_t pid;

	if (access("/usr/bin/passt", X_OK) < 0)
		cr_skip_test("passt is not installed");
	if (!has_default_route())
		cr_skip_test("passt needs a default route on this host");
	cr_assert(eq(int, socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0));
	pid = fork();
	cr_assert(ge(int, pid, 0));
	if (!pid) {
		int null = open("/dev/null", O_RDWR);
		char fd[12];

		close(ends[0]);
		dup2(null, 1);
		dup2(null, 2);
		snprintf(fd, sizeof(fd), "%d", ends[1]);
		execl("/usr/bin/passt", "passt", "--foreground", "--fd", fd, NULL);
		_exit(127);
	}
	close(ends[1]);
	make_stream_of(without_uring, ends[0]);
	return pid;
}

static void put16(uint8_t *at, uint32_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

/* Ethernet, IPv4, UDP from port 68 to 67, and a DHCP DISCOVER with nothing else in it. */
#define DISCOVER_SIZE (14 + 20 + 8 + 244)
static void make_discover(uint8_t *frame)
{
	static const uint8_t mac[6] = {0x52, 0x54, 0, 1, 2, 3};
	uint8_t *ip = frame + 14, *udp = ip + 20, *dhcp = udp + 8;
	uint32_t sum = 0;

	memset(frame, 0, DISCOVER_SIZE);
	memset(frame, 0xff, 6);
	memcpy(frame + 6, mac, 6);
	put16(frame + 12, 0x0800);
	ip[0] = 0x45;
	put16(ip + 2, DISCOVER_SIZE - 14);
	ip[8] = 64;
	ip[9] = 17;
	memset(ip + 16, 0xff, 4);
	for (uint32_t i = 0; i < 20; i += 2)
		sum += (uint32_t)(ip[i] << 8 | ip[i + 1]);
	put16(ip + 10, ~((sum & 0xffff) + (sum >> 16)) & 0xffff);
	put16(udp, 68);
	put16(udp + 2, 67);
	put16(udp + 4, DISCOVER_SIZE - 34);
	dhcp[0] = dhcp[1] = 1;
	dhcp[2] = 6;
	put16(dhcp + 4, 0x1234);
	put16(dhcp + 10, 0x8000);
	memcpy(dhcp + 28, mac, 6);
	memcpy(dhcp + 236, (const uint8_t[]){0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255}, 8);
}

/* The value of DHCP option 53, which may be any of them. */
static int message_type(const uint8_t *options, const uint8_t *end)
{
	while (end - options >= 3 && *options != 255) {
		if (*options == 53)
			return options[2];
		options += 2 + options[1];
	}
	return -1;
}

static bool is_offer(const struct test_frame *frame)
{
	const uint8_t *dhcp = frame->data + NET_HEADER_SIZE + 42;

	return frame->size > NET_HEADER_SIZE + 42 + 240 && dhcp[-8] == 0 && dhcp[-7] == 67 &&
	       dhcp[0] == 2 && dhcp[4] == 0x12 && dhcp[5] == 0x34 &&
	       message_type(dhcp + 240, frame->data + frame->size) == 2;
}

static bool has_offer(void)
{
	for (uint32_t i = 0; i < card->n_frames; i++) {
		if (is_offer(&card->frames[i]))
			return true;
	}
	return false;
}

BOTH(stream, passt_offers_an_address_and_its_death_is_told)
{
	static uint8_t discover[DISCOVER_SIZE];
	pid_t pid = start_passt(*without_uring);
	struct iovec iov[2] = {{out_header, NET_HEADER_SIZE}, {discover, sizeof(discover)}};

	make_discover(discover);
	cr_assert(
		eq(int,
		   card->port->ops->send(card->port, iov, 2, NET_HEADER_SIZE + sizeof(discover), 0),
		   0));
	card->port->ops->flush(card->port);
	UNTIL(card, has_offer());
	cr_assert(eq(i32, card->results[0], 0));
	cr_assert(eq(u32, card->n_links, 0));
	kill(pid, SIGKILL);
	UNTIL(card, card->n_links == 1);
	cr_assert(eq(int, waitpid(pid, NULL, 0), pid));
	card_settle(card);
	check_idle();
	tear_down();
}
