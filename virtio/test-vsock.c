/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The socket device against a driver in memory and clients of its listening socket: connections
 * both ways, credit, every way to end, and guests and hosts that do not keep to the rules.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "devices/registers.h"
#include "devices/test-board.h"
#include "virtio/test-driver.h"
#include "virtio/vsock-connection.h"

#define CID       42u
#define BUFFER    4096u
#define N_BUFFERS 32
#define WAIT_NS   10000000000u

enum { RX, TX, EVENT };

static struct test_board board;
static struct test_driver driver;
static struct pci_root root;
static struct vsock *vsock;
static struct sockaddr_un address;
static socklen_t address_size;
static gpa_t scratch; /* of what a test sends */

static void set_up(void)
{
	static const struct pci_layout layout = {
		.ecam = 0xe0000000, .window = 0xc0000000, .window_size = 1 << 20};
	struct error err = ERROR_NULL;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	signal(SIGPIPE, SIG_IGN);
	test_board_init(&board);
	test_driver_init(&driver);
	/* The kernel picks a name that is no path. */
	address = (struct sockaddr_un){.sun_family = AF_UNIX};
	cr_assert_eq(bind(fd, (struct sockaddr *)&address, sizeof(sa_family_t)), 0);
	address_size = sizeof(address);
	cr_assert_eq(getsockname(fd, (struct sockaddr *)&address, &address_size), 0);
	cr_assert_eq(listen(fd, 128), 0);
	cr_assert_eq(pci_root_init(&root, &layout, &board.io, &board.mmio, &board.irqs,
				   &board.kicks, &err),
		     0, "%s", err.text);
	cr_assert_eq(
		vsock_new(&vsock, &root, 4, "vsock", &driver.memory, driver.loop, CID, fd, &err), 0,
		"%s", err.text);
}

static void tear_down(void)
{
	vsock = vsock_free(vsock);
	test_driver_deinit(&driver);
	test_board_deinit(&board);
}

TestSuite(vsock, .init = set_up, .fini = tear_down);

/* ---- the guest's side ---- */

static void offer(uint32_t queue, uint32_t n, uint32_t size)
{
	for (uint32_t i = 0; i < n; i++) {
		struct test_buffer in = {test_driver_alloc(&driver, size, 16), size};

		test_driver_add(&driver, queue, NULL, 0, &in, 1, false);
	}
	test_driver_kick(&driver, queue);
}

static void start(uint64_t features)
{
	test_driver_start(&driver, &vsock->virtio, features);
	offer(RX, N_BUFFERS, BUFFER);
	offer(EVENT, 4, 8);
	scratch = driver.next;
	test_driver_turn(&driver);
}

static struct vsock_header to_host(uint16_t op, uint32_t guest_port, uint32_t host_port)
{
	return (struct vsock_header){
		.src_cid = CID,
		.dst_cid = VSOCK_HOST_CID,
		.src_port = guest_port,
		.dst_port = host_port,
		.type = VSOCK_TYPE_STREAM,
		.op = op,
		.buf_alloc = 1 << 20,
	};
}

/* In two pieces: the header may end anywhere. */
static void post_packet(const struct vsock_header *header, const void *data, uint32_t size)
{
	struct test_buffer out[2];
	gpa_t at;

	driver.next = scratch;
	at = test_driver_alloc(&driver, sizeof(*header) + size, 16);
	memcpy(test_driver_at(&driver, at), header, sizeof(*header));
	if (size > 0)
		memcpy((uint8_t *)test_driver_at(&driver, at) + sizeof(*header), data, size);
	out[0] = (struct test_buffer){at, 20};
	out[1] = (struct test_buffer){at + 20, (uint32_t)sizeof(*header) - 20 + size};
	test_driver_add(&driver, TX, out, 2, NULL, 0, false);
	test_driver_kick(&driver, TX);
}

static void send_packet(const struct vsock_header *header, const void *data)
{
	post_packet(header, data, header->len);
	(void)test_driver_wait(&driver, TX);
	test_driver_turn(&driver);
}

static void send_op(uint16_t op, uint32_t guest_port, uint32_t host_port)
{
	struct vsock_header header = to_host(op, guest_port, host_port);

	send_packet(&header, NULL);
}

static void send_data(uint32_t guest_port, uint32_t host_port, const void *data, uint32_t size)
{
	struct vsock_header header = to_host(VSOCK_OP_RW, guest_port, host_port);

	header.len = size;
	send_packet(&header, data);
}

static void send_shutdown(uint32_t guest_port, uint32_t host_port, uint32_t flags)
{
	struct vsock_header header = to_host(VSOCK_OP_SHUTDOWN, guest_port, host_port);

	header.flags = flags;
	send_packet(&header, NULL);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* A packet that has come, its payload to `data`; its buffer is offered again. */
static bool take_packet(struct vsock_header *header, uint8_t *data)
{
	const struct test_ring *ring = &driver.rings[RX];
	struct test_buffer in;
	uint32_t length;
	uint16_t head;

	if (!test_driver_reap(&driver, RX, &head, &length))
		return false;
	in = (struct test_buffer){ring->descriptors[head].address, ring->descriptors[head].length};
	cr_assert_geq(length, sizeof(*header));
	memcpy(header, test_driver_at(&driver, in.gpa), sizeof(*header));
	cr_assert_eq(header->len, length - sizeof(*header));
	cr_assert_eq(header->dst_cid, CID);
	if (data)
		memcpy(data, (uint8_t *)test_driver_at(&driver, in.gpa) + sizeof(*header),
		       header->len);
	test_driver_add(&driver, RX, NULL, 0, &in, 1, false);
	test_driver_kick(&driver, RX);
	return true;
}

/* The next one, whatever it is. */
static struct vsock_header receive(uint8_t *data)
{
	uint64_t end = now_ns() + WAIT_NS;
	struct vsock_header header;

	while (!take_packet(&header, data)) {
		cr_assert_lt(now_ns(), end, "no packet comes");
		cr_assert_eq(loop_turn(driver.loop, now_ns() + 1000000), 0);
	}
	return header;
}

static struct vsock_header expect(uint16_t op, uint8_t *data)
{
	struct vsock_header header = receive(data);

	cr_assert_eq(header.op, op, "op %u, not %u", header.op, op);
	return header;
}

static void expect_nothing(void)
{
	struct vsock_header header;

	test_driver_turn(&driver);
	cr_assert_not(take_packet(&header, NULL), "op %u", header.op);
}

/* ---- the host's side ---- */

static int client(const char *line)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	cr_assert_eq(connect(fd, (struct sockaddr *)&address, address_size), 0);
	cr_assert_eq(write(fd, line, strlen(line)), (ssize_t)strlen(line));
	test_driver_turn(&driver);
	return fd;
}

/* Turns the loop until `size` bytes have come, or the end. */
static size_t host_read(int fd, void *data, size_t size)
{
	uint64_t end = now_ns() + WAIT_NS;
	size_t done = 0;

	while (done < size) {
		ssize_t n = read(fd, (uint8_t *)data + done, size - done);

		if (n > 0) {
			done += (size_t)n;
			continue;
		}
		if (n == 0 || (errno != EAGAIN && errno != EINTR))
			break;
		cr_assert_lt(now_ns(), end, "%zu of %zu bytes", done, size);
		cr_assert_eq(loop_turn(driver.loop, now_ns() + 1000000), 0);
	}
	return done;
}

static void expect_text(int fd, const char *text)
{
	char buffer[64] = "";

	cr_assert_eq(host_read(fd, buffer, strlen(text)), strlen(text));
	cr_assert_str_eq(buffer, text);
}

static void expect_end(int fd)
{
	char byte;

	cr_assert_eq(host_read(fd, &byte, 1), 0);
	fd_close(fd);
}

static void expect_answer(int fd, const char *text)
{
	expect_text(fd, text);
	expect_end(fd);
}

static uint64_t counter(const char *name)
{
	struct device *device = vsock_device(vsock);
	json_t *all = json_object();
	uint64_t value;

	device->ops->counters(device, all);
	value = (uint64_t)json_integer_value(json_object_get(all, name));
	json_decref(all);
	return value;
}

/* A client's connection to `guest_port`, taken; returns the socket and the host's port. */
static int open_to_guest(uint32_t guest_port, uint32_t *ret_host_port)
{
	struct vsock_header header;
	char line[32];
	int fd;

	snprintf(line, sizeof(line), "CONNECT %u\n", guest_port);
	fd = client(line);
	header = expect(VSOCK_OP_REQUEST, NULL);
	cr_assert_eq(header.dst_port, guest_port);
	cr_assert_eq(header.src_cid, VSOCK_HOST_CID);
	*ret_host_port = header.src_port;
	send_op(VSOCK_OP_RESPONSE, guest_port, header.src_port);
	snprintf(line, sizeof(line), "OK %u\n", header.src_port);
	expect_text(fd, line);
	return fd;
}

/* What the guest opened: the stream's descriptor, as the listener gets it. */
static int accept_stream(int listener, uint32_t guest_port)
{
	char line[VSOCK_LINE_MAX + 1] = "", wanted[VSOCK_LINE_MAX];
	uint64_t end = now_ns() + WAIT_NS;
	size_t n_fds = 0;
	ssize_t n;
	int fd = -1;

	snprintf(wanted, sizeof(wanted), "ACCEPT %u\n", guest_port);
	while ((n = fd_receive(listener, line, strlen(wanted), &fd, 1, &n_fds)) == -EAGAIN) {
		cr_assert_lt(now_ns(), end);
		cr_assert_eq(loop_turn(driver.loop, now_ns() + 1000000), 0);
	}
	cr_assert_eq(n, (ssize_t)strlen(wanted), "%zd", n);
	cr_assert_str_eq(line, wanted);
	cr_assert_eq(n_fds, 1);
	cr_assert_eq(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
	return fd;
}

static int listen_on(uint32_t port)
{
	char line[32];
	int fd;

	snprintf(line, sizeof(line), "LISTEN %u\n", port);
	fd = client(line);
	snprintf(line, sizeof(line), "OK %u\n", port);
	expect_text(fd, line);
	return fd;
}

static int open_from_guest(int listener, uint32_t guest_port, uint32_t host_port)
{
	int fd;

	send_op(VSOCK_OP_REQUEST, guest_port, host_port);
	fd = accept_stream(listener, guest_port);
	(void)expect(VSOCK_OP_RESPONSE, NULL);
	return fd;
}

static void host_write(int fd, const void *data, size_t size)
{
	cr_assert_eq(write(fd, data, size), (ssize_t)size);
	test_driver_turn(&driver);
}

static void fill_pattern(uint8_t *data, size_t size, uint32_t seed)
{
	for (size_t i = 0; i < size; i++)
		data[i] = (uint8_t)((i * 2654435761u + seed) >> 13);
}

/* ---- both directions ---- */

Test(vsock, tells_the_guest_its_cid)
{
	struct device *device = vsock_device(vsock);
	struct virtio_device *virtio = &vsock->virtio;
	uint64_t cid = 0;

	cr_assert_eq(virtio->config_size, 8);
	virtio->ops->config_read(virtio, 0, &cid, 8);
	cr_assert_eq(cid, CID);
	cr_assert_str_eq(device->name, "vsock");
}

Test(vsock, a_client_reaches_a_port_of_the_guest)
{
	uint8_t data[16];
	uint32_t port;
	int fd;

	start(VIRTIO_F_EVENT_IDX);
	fd = open_to_guest(5000, &port);
	host_write(fd, "hello", 5);
	cr_assert_eq(expect(VSOCK_OP_RW, data).len, 5);
	cr_assert_arr_eq(data, "hello", 5);
	send_data(5000, port, "and back", 8);
	expect_text(fd, "and back");
	fd_close(fd);
}

Test(vsock, what_follows_the_line_is_the_streams)
{
	uint8_t data[16];
	int fd;

	start(0);
	fd = client("CONNECT 7\nearly");
	send_op(VSOCK_OP_RESPONSE, 7, expect(VSOCK_OP_REQUEST, NULL).src_port);
	cr_assert_eq(expect(VSOCK_OP_RW, data).len, 5);
	cr_assert_arr_eq(data, "early", 5);
	fd_close(fd);
}

Test(vsock, a_line_may_come_in_pieces)
{
	int fd;

	start(0);
	fd = client("CONN");
	host_write(fd, "ECT 7", 5);
	expect_nothing();
	host_write(fd, "7\n", 2);
	cr_assert_eq(expect(VSOCK_OP_REQUEST, NULL).dst_port, 77);
	fd_close(fd);
}

Test(vsock, nobody_listens_in_the_guest)
{
	uint32_t port;
	int fd;

	start(0);
	fd = client("CONNECT 9\n");
	port = expect(VSOCK_OP_REQUEST, NULL).src_port;
	send_op(VSOCK_OP_RST, 9, port);
	expect_answer(fd, "REFUSED\n");
	cr_assert_eq(counter("connections"), 0);
}

Test(vsock, without_a_driver_there_is_no_connection)
{
	expect_answer(client("CONNECT 9\n"), "NODRIVER\n");
}

Test(vsock, lines_that_make_no_sense)
{
	static const char *const lines[] = {
		"\n",
		"CONNECT\n",
		"CONNECT \n",
		"CONNECT -1\n",
		"CONNECT 4294967295\n",
		"CONNECT 99999999999999999\n",
		"CONNECT 5 \n",
		"connect 5\n",
		"LISTEN 5x\n",
		"HELLO 5\n",
		"a line that goes on and on and on",
	};
	int fd;

	start(0);
	for (size_t i = 0; i < ARRAY_SIZE(lines); i++)
		expect_answer(client(lines[i]), "BAD\n");
	fd = client("CONNECT 5");
	host_write(fd, "\0 and more\n", 11);
	expect_answer(fd, "BAD\n");
	expect_nothing();
}

Test(vsock, the_guest_reaches_who_listens)
{
	uint8_t data[16];
	int listener, fd;

	start(VIRTIO_F_EVENT_IDX);
	listener = listen_on(80);
	fd = open_from_guest(listener, 1234, 80);
	send_data(1234, 80, "request", 7);
	expect_text(fd, "request");
	host_write(fd, "reply", 5);
	cr_assert_eq(expect(VSOCK_OP_RW, data).len, 5);
	cr_assert_arr_eq(data, "reply", 5);
	/* Who listened may go; the stream stays. */
	fd_close(listener);
	test_driver_turn(&driver);
	cr_assert_eq(counter("listeners"), 0);
	host_write(fd, "more", 4);
	cr_assert_eq(expect(VSOCK_OP_RW, data).len, 4);
	fd_close(fd);
}

Test(vsock, one_listens_on_a_port_at_a_time)
{
	int first;

	start(0);
	first = listen_on(80);
	expect_answer(client("LISTEN 80\n"), "BUSY\n");
	fd_close(first);
	test_driver_turn(&driver);
	fd_close(listen_on(80));
}

Test(vsock, a_listener_that_speaks_is_sent_away)
{
	int listener;

	start(0);
	listener = listen_on(80);
	host_write(listener, "?", 1);
	expect_end(listener);
	cr_assert_eq(counter("listeners"), 0);
}

Test(vsock, nobody_listens_on_the_host)
{
	struct vsock_header header;

	start(0);
	send_op(VSOCK_OP_REQUEST, 1234, 81);
	header = expect(VSOCK_OP_RST, NULL);
	cr_assert_eq(header.src_port, 81);
	cr_assert_eq(header.dst_port, 1234);
	cr_assert_eq(header.src_cid, VSOCK_HOST_CID);
}

/* ---- credit ---- */

Test(vsock, the_guests_credit_is_kept_to)
{
	struct vsock_header header = to_host(VSOCK_OP_REQUEST, 1, 80);
	uint8_t data[BUFFER];
	int listener, fd;

	start(0);
	listener = listen_on(80);
	/* Counters near their end: 16 bytes are under way before the first was sent. */
	header.buf_alloc = 26;
	header.fwd_cnt = 0xfffffff0;
	send_packet(&header, NULL);
	fd = accept_stream(listener, 1);
	(void)expect(VSOCK_OP_RESPONSE, NULL);
	host_write(fd, "0123456789abcdefghij", 20);
	cr_assert_eq(expect(VSOCK_OP_RW, data).len, 10);
	(void)expect(VSOCK_OP_CREDIT_REQUEST, NULL);
	expect_nothing();
	header.op = VSOCK_OP_CREDIT_UPDATE;
	header.fwd_cnt = 0xfffffff4;
	send_packet(&header, NULL);
	cr_assert_eq(expect(VSOCK_OP_RW, data).len, 4);
	cr_assert_arr_eq(data, "abcd", 4);
	(void)expect(VSOCK_OP_CREDIT_REQUEST, NULL);
	/* It claims to have seen more than it was sent: nothing until it comes to its senses. */
	header.fwd_cnt = 100;
	send_packet(&header, NULL);
	expect_nothing();
	header.fwd_cnt = 14;
	send_packet(&header, NULL);
	cr_assert_eq(expect(VSOCK_OP_RW, data).len, 6);
	cr_assert_arr_eq(data, "efghij", 6);
	fd_close(fd);
	fd_close(listener);
}

/* Sends until the socket is full and `size` bytes of the device's own buffer, too. */
static uint64_t stuff(uint32_t guest_port, uint32_t host_port, uint32_t size)
{
	static uint8_t data[4096];
	struct vsock_connection *connection = vsock_connection_find(vsock, guest_port, host_port);
	uint64_t sent = 0;

	while (byte_ring_used(&connection->out) < size) {
		fill_pattern(data, sizeof(data), (uint32_t)(sent * 2654435761u));
		send_data(guest_port, host_port, data, sizeof(data));
		sent += sizeof(data);
		cr_assert_lt(sent, 16u << 20);
	}
	return sent;
}

/* All of it, in order. */
static void expect_stuff(int fd, uint64_t size)
{
	static uint8_t data[4096], wanted[4096];

	for (uint64_t done = 0; done < size; done += sizeof(data)) {
		fill_pattern(wanted, sizeof(wanted), (uint32_t)(done * 2654435761u));
		cr_assert_eq(host_read(fd, data, sizeof(data)), sizeof(data), "at %lu", done);
		cr_assert_arr_eq(data, wanted, sizeof(data));
	}
}

/* The last the guest hears of how much was passed on. */
static uint32_t last_fwd_cnt(void)
{
	struct vsock_header header;
	uint32_t last = 0;

	test_driver_turn(&driver);
	while (take_packet(&header, NULL)) {
		cr_assert_eq(header.op, VSOCK_OP_CREDIT_UPDATE);
		cr_assert_eq(header.buf_alloc, VSOCK_BUFFER);
		last = header.fwd_cnt;
		test_driver_turn(&driver);
	}
	return last;
}

Test(vsock, a_slow_host_gets_all_and_the_guest_hears_of_it)
{
	uint32_t port, told;
	uint64_t sent;
	int fd;

	start(0);
	fd = open_to_guest(5, &port);
	sent = stuff(5, port, VSOCK_BUFFER);
	told = last_fwd_cnt();
	cr_assert_leq(told, sent - VSOCK_BUFFER);
	expect_stuff(fd, sent);
	test_driver_turn(&driver);
	told = last_fwd_cnt();
	cr_assert_gt(told, sent - VSOCK_BUFFER / 4);
	/* Asked, it says so to the byte. */
	send_op(VSOCK_OP_CREDIT_REQUEST, 5, port);
	cr_assert_eq(expect(VSOCK_OP_CREDIT_UPDATE, NULL).fwd_cnt, sent);
	fd_close(fd);
}

Test(vsock, a_guest_beyond_its_credit_loses_the_connection)
{
	uint32_t port;
	int fd;

	start(0);
	fd = open_to_guest(5, &port);
	(void)stuff(5, port, VSOCK_BUFFER);
	(void)last_fwd_cnt();
	send_data(5, port, "x", 1);
	(void)expect(VSOCK_OP_RST, NULL);
	cr_assert_eq(counter("connections"), 0);
	cr_assert_eq(atomic_load(&vsock->virtio.status) & VIRTIO_STATUS_NEEDS_RESET, 0);
	fd_close(fd);
}

Test(vsock, a_megabyte_comes_back_as_it_went)
{
	static uint8_t there[1 << 20], back[1 << 20], packet[BUFFER];
	struct vsock_header header;
	size_t written = 0, read_back = 0;
	uint64_t end = now_ns() + WAIT_NS;
	uint32_t port, fwd_cnt = 0;
	int fd;

	start(VIRTIO_F_EVENT_IDX);
	fd = open_to_guest(5, &port);
	fill_pattern(there, sizeof(there), 7);
	while (read_back < sizeof(there)) {
		ssize_t n = write(fd, there + written, MIN(sizeof(there) - written, 9000u));

		written += n > 0 ? (size_t)n : 0;
		test_driver_turn(&driver);
		while (take_packet(&header, packet)) {
			struct vsock_header echo = to_host(VSOCK_OP_RW, 5, port);

			if (header.op != VSOCK_OP_RW)
				continue;
			fwd_cnt += header.len;
			echo.len = header.len;
			echo.buf_alloc = 20000;
			echo.fwd_cnt = fwd_cnt;
			send_packet(&echo, packet);
		}
		n = read(fd, back + read_back, sizeof(back) - read_back);
		read_back += n > 0 ? (size_t)n : 0;
		cr_assert_lt(now_ns(), end, "%zu there, %zu back", written, read_back);
	}
	cr_assert_arr_eq(there, back, sizeof(there));
	cr_assert_eq(counter("bytes-in"), sizeof(there));
	fd_close(fd);
}

/* Who copies the guest's memory meanwhile has to know. */
Test(vsock, what_it_writes_is_marked)
{
	uint64_t bits[TEST_DRIVER_MEMORY / GUEST_PAGE_SIZE / 64];
	uint32_t port, page;
	uint8_t data[16];
	int fd;

	start(0);
	fd = open_to_guest(5, &port);
	cr_assert_eq(memory_track_start(&driver.memory), 0);
	page = (uint32_t)(driver.rings[RX]
				  .descriptors[driver.rings[RX].available->ring
						       [driver.rings[RX].seen % 256]]
				  .address /
			  GUEST_PAGE_SIZE);
	host_write(fd, "marked", 6);
	memset(bits, 0, sizeof(bits));
	memory_track_take(&driver.memory, 0, bits, ARRAY_SIZE(bits));
	cr_assert(bits[page / 64] >> page % 64 & 1, "page %u", page);
	(void)expect(VSOCK_OP_RW, data);
	memory_track_stop(&driver.memory);
	fd_close(fd);
}

Test(vsock, a_buffer_for_a_header_only_gets_one)
{
	uint8_t data[BUFFER];
	uint32_t port;
	int fd;

	test_driver_start(&driver, &vsock->virtio, 0);
	offer(RX, 3, sizeof(struct vsock_header));
	scratch = driver.next;
	fd = open_to_guest(5, &port);
	host_write(fd, "wide", 4);
	(void)expect(VSOCK_OP_CREDIT_UPDATE, NULL);
	/* Those come back; once there is a wide one, the bytes come. */
	driver.next = scratch;
	offer(RX, 1, BUFFER);
	scratch = driver.next;
	while (receive(data).op != VSOCK_OP_RW)
		;
	cr_assert_arr_eq(data, "wide", 4);
	fd_close(fd);
}

/* ---- ends ---- */

Test(vsock, the_host_closes)
{
	uint32_t port;
	int fd;

	start(0);
	fd = open_to_guest(5, &port);
	host_write(fd, "bye", 3);
	fd_close(fd);
	(void)expect(VSOCK_OP_RW, NULL);
	while (expect(VSOCK_OP_SHUTDOWN, NULL).flags != VSOCK_SHUTDOWN_BOTH)
		;
	/* What it still sends goes nowhere, and costs nothing. */
	send_data(5, port, "late", 4);
	cr_assert_eq(counter("connections"), 1);
	send_op(VSOCK_OP_RST, 5, port);
	cr_assert_eq(counter("connections"), 0);
	expect_nothing();
}

Test(vsock, the_host_closes_and_left_something_unread)
{
	uint32_t port;
	int fd;

	start(0);
	fd = open_to_guest(5, &port);
	send_data(5, port, "unread", 6);
	fd_close(fd);
	while (receive(NULL).op != VSOCK_OP_RST)
		;
	cr_assert_eq(counter("connections"), 0);
}

Test(vsock, the_host_ends_its_half)
{
	uint32_t port;
	int fd;

	start(0);
	fd = open_to_guest(5, &port);
	cr_assert_eq(shutdown(fd, SHUT_WR), 0);
	cr_assert_eq(expect(VSOCK_OP_SHUTDOWN, NULL).flags, VSOCK_SHUTDOWN_SEND);
	send_data(5, port, "still heard", 11);
	expect_text(fd, "still heard");
	send_shutdown(5, port, VSOCK_SHUTDOWN_BOTH);
	(void)expect(VSOCK_OP_RST, NULL);
	expect_end(fd);
	cr_assert_eq(counter("connections"), 0);
}

/* No poll helps with a socket that is half shut. */
Test(vsock, a_slow_host_that_ended_its_half_gets_all)
{
	uint32_t port;
	uint64_t sent;
	int fd;

	start(0);
	fd = open_to_guest(5, &port);
	cr_assert_eq(shutdown(fd, SHUT_WR), 0);
	(void)expect(VSOCK_OP_SHUTDOWN, NULL);
	sent = stuff(5, port, VSOCK_BUFFER);
	send_shutdown(5, port, VSOCK_SHUTDOWN_SEND);
	expect_stuff(fd, sent);
	expect_end(fd);
}

Test(vsock, a_host_that_ended_its_half_goes_away)
{
	uint32_t port, flags = 0;
	int fd;

	start(0);
	fd = open_to_guest(5, &port);
	cr_assert_eq(shutdown(fd, SHUT_WR), 0);
	cr_assert_eq(expect(VSOCK_OP_SHUTDOWN, NULL).flags, VSOCK_SHUTDOWN_SEND);
	fd_close(fd);
	flags = expect(VSOCK_OP_SHUTDOWN, NULL).flags;
	cr_assert_eq(flags, VSOCK_SHUTDOWN_BOTH);
}

Test(vsock, a_half_shut_socket_costs_no_turns)
{
	struct loop_counters before, after;
	uint32_t port;
	uint64_t end;
	int fd;

	start(0);
	fd = open_to_guest(5, &port);
	(void)stuff(5, port, 4096);
	(void)last_fwd_cnt();
	cr_assert_eq(shutdown(fd, SHUT_WR), 0);
	(void)expect(VSOCK_OP_SHUTDOWN, NULL);
	test_driver_turn(&driver);
	before = loop_counters(driver.loop);
	end = now_ns() + 100000000;
	while (now_ns() < end)
		cr_assert_eq(loop_turn(driver.loop, end), 0);
	after = loop_counters(driver.loop);
	cr_assert_leq(after.turns - before.turns, 30, "%lu turns", after.turns - before.turns);
	fd_close(fd);
}

Test(vsock, the_guest_ends_its_half)
{
	uint8_t data[16];
	uint32_t port;
	char byte;
	int fd;

	start(0);
	fd = open_to_guest(5, &port);
	send_data(5, port, "last", 4);
	send_shutdown(5, port, VSOCK_SHUTDOWN_SEND);
	expect_text(fd, "last");
	cr_assert_eq(host_read(fd, &byte, 1), 0);
	host_write(fd, "go on", 5);
	cr_assert_eq(expect(VSOCK_OP_RW, data).len, 5);
	/* It said it would send no more. */
	send_data(5, port, "x", 1);
	(void)expect(VSOCK_OP_RST, NULL);
	cr_assert_eq(counter("connections"), 0);
	fd_close(fd);
}

Test(vsock, the_guest_reads_no_more)
{
	uint32_t port;
	int fd;

	start(0);
	fd = open_to_guest(5, &port);
	send_shutdown(5, port, VSOCK_SHUTDOWN_RECEIVE);
	cr_assert_eq(write(fd, "x", 1), -1);
	cr_assert_eq(errno, EPIPE);
	send_data(5, port, "but it speaks", 13);
	expect_text(fd, "but it speaks");
	fd_close(fd);
}

/* Without being gone: what it says still arrives, what is said to it goes nowhere. */
Test(vsock, the_host_reads_no_more)
{
	uint8_t data[16];
	uint32_t port;
	int fd;

	start(0);
	fd = open_to_guest(5, &port);
	cr_assert_eq(shutdown(fd, SHUT_RD), 0);
	send_data(5, port, "x", 1);
	cr_assert_eq(expect(VSOCK_OP_SHUTDOWN, NULL).flags, VSOCK_SHUTDOWN_RECEIVE);
	host_write(fd, "one", 3);
	cr_assert_eq(expect(VSOCK_OP_RW, data).len, 3);
	send_data(5, port, "x", 1);
	host_write(fd, "two", 3);
	cr_assert_eq(expect(VSOCK_OP_RW, data).len, 3);
	cr_assert_arr_eq(data, "two", 3);
	fd_close(fd);
	cr_assert_eq(expect(VSOCK_OP_SHUTDOWN, NULL).flags, VSOCK_SHUTDOWN_BOTH);
}

/* When nothing else happens any more, there is no further turn of the loop. */
Test(vsock, an_end_is_seen_at_once)
{
	struct vsock_header header;
	uint32_t port, length;
	uint16_t head;
	char byte;
	int fd;

	start(0);
	fd = open_to_guest(5, &port);
	header = to_host(VSOCK_OP_RST, 5, port);
	post_packet(&header, NULL, 0);
	while (!test_driver_reap(&driver, TX, &head, &length))
		cr_assert_eq(loop_turn(driver.loop, now_ns() + 1000000), 0);
	cr_assert_eq(read(fd, &byte, 1), 0);
	fd_close(fd);
}

Test(vsock, what_a_guest_sent_before_it_closed_arrives)
{
	uint32_t port;
	uint64_t sent;
	int fd;

	start(0);
	fd = open_to_guest(5, &port);
	sent = stuff(5, port, VSOCK_BUFFER);
	(void)last_fwd_cnt();
	send_shutdown(5, port, VSOCK_SHUTDOWN_BOTH);
	(void)expect(VSOCK_OP_RST, NULL);
	/* The pair of ports is free again, and the old bytes still on their way. */
	send_op(VSOCK_OP_RESPONSE, 5, port);
	(void)expect(VSOCK_OP_RST, NULL);
	cr_assert_eq(counter("connections"), 1);
	expect_stuff(fd, sent);
	expect_end(fd);
	cr_assert_eq(counter("connections"), 0);
}

Test(vsock, a_client_that_does_not_wait)
{
	struct vsock_header header;
	int fd;

	start(0);
	fd = client("CONNECT 5\n");
	header = expect(VSOCK_OP_REQUEST, NULL);
	fd_close(fd);
	cr_assert_eq(expect(VSOCK_OP_RST, NULL).src_port, header.src_port);
	cr_assert_eq(counter("connections"), 0);
}

/* ---- guests that do not keep to the rules ---- */

Test(vsock, packets_of_no_connection_are_reset)
{
	struct vsock_header header;

	start(0);
	for (uint16_t op = 0; op < 12; op++) {
		send_op(op, 1000u + op, 80);
		if (op != VSOCK_OP_RST)
			cr_assert_eq(expect(VSOCK_OP_RST, NULL).dst_port, 1000u + op);
	}
	header = to_host(VSOCK_OP_REQUEST, 1, 80);
	header.type = 77;
	send_packet(&header, NULL);
	cr_assert_eq(expect(VSOCK_OP_RST, NULL).type, 77);
	header = to_host(VSOCK_OP_REQUEST, 1, 80);
	header.dst_cid = 0x1234567890;
	send_packet(&header, NULL);
	cr_assert_eq(expect(VSOCK_OP_RST, NULL).src_cid, 0x1234567890);
	header = to_host(VSOCK_OP_REQUEST, 1, 80);
	header.src_cid = CID + 1;
	send_packet(&header, NULL);
	expect_nothing();
}

Test(vsock, a_request_for_a_pair_in_use_ends_it)
{
	uint32_t port;
	int fd;

	start(0);
	fd = open_to_guest(5, &port);
	send_op(VSOCK_OP_REQUEST, 5, port);
	(void)expect(VSOCK_OP_RST, NULL);
	expect_end(fd);
}

Test(vsock, a_length_beyond_the_packet_breaks_the_device)
{
	struct vsock_header header = to_host(VSOCK_OP_RW, 5, 0);
	uint32_t port;
	int fd;

	start(0);
	fd = open_to_guest(5, &port);
	header.dst_port = port;
	header.len = 100;
	post_packet(&header, "x", 1);
	test_driver_turn(&driver);
	cr_assert_neq(atomic_load(&vsock->virtio.status) & VIRTIO_STATUS_NEEDS_RESET, 0);
	expect_end(fd);
	expect_answer(client("CONNECT 5\n"), "NODRIVER\n");
	/* Nothing in it is amiss after a reset. */
	test_driver_reset(&driver);
	start(0);
	fd = open_to_guest(5, &port);
	fd_close(fd);
}

Test(vsock, resets_are_owed_up_to_a_number)
{
	uint32_t n_taken = 0, n_answered = 0, length;
	struct vsock_header header = to_host(VSOCK_OP_RW, 1, 2);
	uint16_t head;
	gpa_t at;

	test_driver_start(&driver, &vsock->virtio, 0);
	at = test_driver_put(&driver, &header, sizeof(header)).gpa;
	for (int i = 0; i < 1000; i++) {
		struct test_buffer out = {at, sizeof(header)};

		if (driver.rings[TX].n_free > 0)
			test_driver_add(&driver, TX, &out, 1, NULL, 0, false);
		test_driver_kick(&driver, TX);
		test_driver_turn(&driver);
		while (test_driver_reap(&driver, TX, &head, &length))
			n_taken++;
	}
	cr_assert_eq(n_taken, VSOCK_RESETS_MAX);
	/* With buffers to answer into it goes on by itself. */
	offer(RX, N_BUFFERS, BUFFER);
	while (n_answered < VSOCK_RESETS_MAX + 200) {
		(void)expect(VSOCK_OP_RST, NULL);
		n_answered++;
		test_driver_turn(&driver);
		while (test_driver_reap(&driver, TX, &head, &length))
			n_taken++;
	}
	cr_assert_gt(n_taken, VSOCK_RESETS_MAX);
}

Test(vsock, connections_by_the_thousand)
{
	struct rlimit limit;
	uint32_t n_opened = 0, n_reset = 0;
	static int fds[VSOCK_CONNECTIONS_MAX];
	int listener;

	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
	limit.rlim_cur = limit.rlim_max;
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
	start(0);
	listener = listen_on(80);
	for (uint32_t i = 0; i < 2000; i++) {
		struct vsock_header header;

		send_op(VSOCK_OP_REQUEST, i, 80);
		header = receive(NULL);
		n_reset += header.op == VSOCK_OP_RST;
		if (header.op == VSOCK_OP_RESPONSE)
			fds[n_opened++] = accept_stream(listener, i);
	}
	cr_assert_eq(n_opened, VSOCK_CONNECTIONS_MAX);
	cr_assert_eq(n_reset, 2000 - VSOCK_CONNECTIONS_MAX);
	expect_answer(client("CONNECT 5\n"), "FULL\n");
	/* The last one works, and one that ends makes room. */
	send_data(VSOCK_CONNECTIONS_MAX - 1, 80, "hi", 2);
	expect_text(fds[VSOCK_CONNECTIONS_MAX - 1], "hi");
	send_op(VSOCK_OP_RST, 0, 80);
	send_op(VSOCK_OP_REQUEST, 5000, 80);
	(void)expect(VSOCK_OP_RESPONSE, NULL);
	for (uint32_t i = 0; i < n_opened; i++)
		fd_close(fds[i]);
	fd_close(listener);
}

/* Descriptors on their way to somebody who takes none are bounded as the socket's buffer is. */
Test(vsock, a_listener_that_does_not_read)
{
	uint32_t n_opened = 0;
	int listener;

	start(0);
	listener = listen_on(80);
	for (uint32_t i = 0; i < 2000; i++) {
		send_op(VSOCK_OP_REQUEST, i, 80);
		n_opened += receive(NULL).op == VSOCK_OP_RESPONSE;
	}
	cr_assert_gt(n_opened, 0);
	cr_assert_leq(n_opened, VSOCK_CONNECTIONS_MAX);
	cr_assert_eq(counter("connections"), n_opened);
	/* It goes, and with it whatever it did not take. */
	fd_close(listener);
	for (uint32_t i = 0; i < n_opened; i++)
		cr_assert_eq(expect(VSOCK_OP_SHUTDOWN, NULL).flags, VSOCK_SHUTDOWN_BOTH);
}

Test(vsock, many_who_say_nothing)
{
	int idle[VSOCK_CLIENTS_MAX], fd;
	struct loop_counters before;
	uint64_t end;

	start(0);
	for (uint32_t i = 0; i < VSOCK_CLIENTS_MAX; i++)
		idle[i] = client("CONN");
	for (int i = 0; i < 8; i++)
		test_driver_turn(&driver);
	cr_assert_eq(vsock->n_clients, VSOCK_CLIENTS_MAX);
	/* One more waits for a place, and costs no turns until there is one. */
	fd = client("CONNECT 5\n");
	expect_nothing();
	before = loop_counters(driver.loop);
	end = now_ns() + 50000000;
	while (now_ns() < end)
		cr_assert_eq(loop_turn(driver.loop, end), 0);
	cr_assert_leq(loop_counters(driver.loop).turns - before.turns, 5);
	fd_close(idle[7]);
	(void)expect(VSOCK_OP_REQUEST, NULL);
	fd_close(fd);
	for (uint32_t i = 0; i < VSOCK_CLIENTS_MAX; i++)
		if (i != 7)
			fd_close(idle[i]);
	test_driver_turn(&driver);
	cr_assert_eq(vsock->n_clients, 0);
}

Test(vsock, a_flood_does_not_starve_a_trickle)
{
	static uint8_t flood[200000];
	uint32_t ports[2], n = 0;
	struct vsock_header header;
	int fds[2];

	start(0);
	for (uint32_t i = 0; i < 2; i++)
		fds[i] = open_to_guest(10 + i, &ports[i]);
	cr_assert_gt(write(fds[0], flood, sizeof(flood)), 100000);
	cr_assert_eq(write(fds[1], "drop", 4), 4);
	do {
		header = receive(NULL);
		cr_assert_lt(n++, 2u * N_BUFFERS);
	} while (header.dst_port != 11);
	cr_assert_eq(header.len, 4);
	fd_close(fds[0]);
	fd_close(fds[1]);
}

/* ---- resets, loads ---- */

Test(vsock, a_reset_ends_connections_and_leaves_who_listens)
{
	int listener, fd;
	uint32_t port;

	start(0);
	listener = listen_on(80);
	fd = open_to_guest(5, &port);
	test_driver_reset(&driver);
	expect_end(fd);
	cr_assert_eq(counter("connections"), 0);
	start(0);
	fd_close(open_from_guest(listener, 1, 80));
	fd_close(listener);
}

static void on_paused(struct device_waiter *waiter _unused_, struct device *device _unused_)
{
}

static void pause_device(void)
{
	struct device_waiter waiter = {on_paused};
	struct device *device = vsock_device(vsock);

	device->ops->pause(device, &waiter);
	test_driver_turn(&driver);
}

/* As a restored VMM would: the state comes in, the queues start over. */
static void save_and_load(void)
{
	static uint8_t bytes[1 << 16];
	struct cursor out = cursor_writer(bytes, sizeof(bytes)), in;
	struct device *device = vsock_device(vsock);
	struct virtqueue_state before[3];
	struct error err = ERROR_NULL;

	pause_device();
	for (uint32_t i = 0; i < 3; i++)
		before[i] = vsock->virtio.queues[i].ring.state;
	vsock->pci.state.driver_features = VIRTIO_F_VERSION_1;
	cr_assert_eq(device_save(device, &out), 0);
	device->ops->reset(device);
	in = cursor_reader(bytes, out.at);
	cr_assert_eq(device_load(device, &in, &err), 0, "%s", err.text);
	for (uint32_t i = 0; i < 3; i++) {
		cr_assert_eq(vsock->virtio.queues[i].ring.state.next_used, before[i].next_used);
		atomic_store(&vsock->virtio.queues[i].ring.call_fd, driver.rings[i].call_fd);
	}
	device->ops->resume(device);
	test_driver_turn(&driver);
}

Test(vsock, a_pause_loses_nothing)
{
	struct device *device = vsock_device(vsock);
	uint8_t data[64];
	uint32_t port;
	int fd, late;

	start(0);
	fd = open_to_guest(5, &port);
	pause_device();
	host_write(fd, "while paused", 12);
	late = client("CONNECT 6\n");
	expect_nothing();
	device->ops->resume(device);
	cr_assert_eq(expect(VSOCK_OP_RW, data).len, 12);
	cr_assert_arr_eq(data, "while paused", 12);
	cr_assert_eq(expect(VSOCK_OP_REQUEST, NULL).dst_port, 6);
	send_data(5, port, "after", 5);
	expect_text(fd, "after");
	fd_close(fd);
	fd_close(late);
}

Test(vsock, after_a_load_the_guest_hears_of_the_reset_first)
{
	struct test_buffer in;
	uint32_t port, length, id = 77;
	uint16_t head;
	int listener, fd, late;

	start(VIRTIO_F_EVENT_IDX);
	listener = listen_on(80);
	fd = open_to_guest(5, &port);
	save_and_load();
	expect_end(fd);
	cr_assert(test_driver_reap(&driver, EVENT, &head, &length));
	cr_assert_eq(length, 4);
	in = (struct test_buffer){driver.rings[EVENT].descriptors[head].address, 8};
	memcpy(&id, test_driver_at(&driver, in.gpa), 4);
	cr_assert_eq(id, 0);
	/* Nothing else until it has taken note. */
	late = client("CONNECT 6\n");
	send_op(VSOCK_OP_REQUEST, 1, 81);
	test_driver_kick(&driver, EVENT);
	expect_nothing();
	test_driver_add(&driver, EVENT, NULL, 0, &in, 1, false);
	test_driver_kick(&driver, EVENT);
	(void)expect(VSOCK_OP_RST, NULL);
	cr_assert_eq(expect(VSOCK_OP_REQUEST, NULL).dst_port, 6);
	fd_close(late);
	(void)expect(VSOCK_OP_RST, NULL);
	fd_close(open_from_guest(listener, 9, 80));
	cr_assert_not(test_driver_reap(&driver, EVENT, &head, &length), "told twice");
	fd_close(listener);
}

Test(vsock, a_load_before_the_driver_needs_no_event)
{
	uint8_t bytes[8192];
	struct cursor out = cursor_writer(bytes, sizeof(bytes)), in;
	struct device *device = vsock_device(vsock);
	struct error err = ERROR_NULL;
	uint32_t port;

	cr_assert_eq(device_save(device, &out), 0);
	in = cursor_reader(bytes, out.at);
	cr_assert_eq(device_load(device, &in, &err), 0, "%s", err.text);
	start(0);
	fd_close(open_to_guest(5, &port));
}

/* ---- nonsense ---- */

static uint32_t seed = 1;

static uint32_t random_below(uint32_t n)
{
	seed = seed * 1664525u + 1013904223u;
	return (uint32_t)((uint64_t)(seed >> 8) * n >> 24);
}

static void random_packet(uint32_t open_port)
{
	static uint8_t data[8192];
	struct vsock_header header = to_host((uint16_t)random_below(9), random_below(6),
					     random_below(2) ? 80 : open_port);
	uint32_t size = random_below(4) ? random_below(64) : random_below(sizeof(data));

	header.len = random_below(50) ? size : random_below(UINT32_MAX);
	header.type = (uint16_t)(random_below(20) ? 1 : random_below(4));
	header.flags = random_below(5);
	header.buf_alloc = random_below(3) ? 1u << random_below(20) : random_below(UINT32_MAX);
	header.fwd_cnt = random_below(3) ? 0 : random_below(UINT32_MAX);
	if (random_below(30) == 0)
		header.dst_cid = random_below(4);
	post_packet(&header, data, size);
}

/* A listener's streams, written to, read from, left alone, closed. */
static void random_streams(int listener, int *fds, uint32_t n)
{
	char line[VSOCK_LINE_MAX];
	uint32_t i = random_below(n);
	size_t n_fds;

	if (fds[i] < 0 && fd_receive(listener, line, 1, &fds[i], 1, &n_fds) > 0 && n_fds == 0)
		fds[i] = -1;
	i = random_below(n);
	if (fds[i] >= 0 && random_below(3) == 0)
		fds[i] = fd_close(fds[i]);
	else if (fds[i] >= 0 && random_below(4) == 0)
		(void)shutdown(fds[i], (int)random_below(3));
	else if (fds[i] >= 0 && send(fds[i], line, random_below(30), MSG_DONTWAIT) < 0)
		fds[i] = fd_close(fds[i]);
}

Test(vsock, nonsense_both_ways)
{
	uint32_t n_broken = 0, length, port = 0;
	int listener, fds[16];
	uint16_t head;

	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		fds[i] = -1;
	listener = listen_on(80);
	for (int round = 0; round < 60; round++) {
		gpa_t mark = driver.next;

		start(random_below(2) ? VIRTIO_F_EVENT_IDX : 0);
		for (int i = 0; i < 200; i++) {
			struct vsock_header header;

			if (driver.rings[TX].n_free > 2)
				random_packet(port);
			if (random_below(8) == 0)
				fd_close(client("CONNECT 3\n"));
			random_streams(listener, fds, ARRAY_SIZE(fds));
			cr_assert_eq(loop_turn(driver.loop, 0), 0);
			while (test_driver_reap(&driver, TX, &head, &length))
				;
			while (random_below(4) && take_packet(&header, NULL))
				port = header.src_port;
		}
		n_broken += (atomic_load(&vsock->virtio.status) & VIRTIO_STATUS_NEEDS_RESET) != 0;
		test_driver_reset(&driver);
		driver.next = mark;
	}
	cr_assert_gt(n_broken, 5);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		fd_close(fds[i]);
	start(0);
	fd_close(open_to_guest(5, &port));
	fd_close(listener);
}
