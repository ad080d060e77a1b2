/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-vsock: streams both ways, a megabyte echoed through small credit, halves shut one after
 * the other, refusals, a host's process that is gone, a pause amid a transfer, a device that was
 * loaded anew, more connections than there is room for.
 */
#define ECHO_PORT   5000
#define HOST_PORT   7000
#define NOBODY_PORT 7999
#define AMOUNT      (1u << 20)
#define BLOCK       65536
#define MANY        700

#ifdef GUEST

#include "guest-tests/runtime/vsock.h"

#include "guest-tests/runtime/apic.h"
#include "guest-tests/runtime/blk.h"

#define CREDIT     16384
#define TIMEOUT_MS 20000

static struct vsock vsock;
static struct vsock_stream stream;
static uint64_t block[BLOCK / 8];
static struct fletcher sent, got;
static uint32_t n_got;

/* The host says when it is ready, by a line. */
static void wait_for_host(void)
{
	char line[32];

	GUEST_ASSERT(serial_read_line(line, sizeof(line), TIMEOUT_MS), "the host says nothing");
}

static void no_input(struct vsock_packet *packet)
{
	GUEST_ASSERT(false, "%u bytes nobody sent", packet->header.len);
}

static void echo_all(void)
{
	struct vsock_packet *packet;

	while ((packet = vsock_read(&stream))) {
		for (uint32_t at = 0; at < packet->header.len;)
			at += vsock_write(&stream, packet->data + at, packet->header.len - at,
					  no_input);
		vsock_release(&vsock, packet);
	}
}

static void addressed(struct guest_boot *boot)
{
	(void)boot;
	GUEST_ASSERT(vsock.cid == 3, "cid %lu", vsock.cid);
}

/* The host waits for each answer, so that no more is under way than both sides' credit. */
static void echo(struct guest_boot *boot)
{
	(void)boot;
	note("echo-ready");
	vsock_accept(&vsock, &stream, ECHO_PORT, CREDIT);
	echo_all();
	GUEST_ASSERT(stream.open && stream.shut == VSOCK_SHUTDOWN_SEND, "shut: %u", stream.shut);
	GUEST_ASSERT(stream.fwd_cnt == AMOUNT, "%u bytes", stream.fwd_cnt);
	/* Its half is over, ours is not. */
	GUEST_ASSERT(vsock_write(&stream, "end", 3, no_input) == 3, "a short write");
	vsock_close(&stream);
}

static void take_echo(struct vsock_packet *packet)
{
	n_got += packet->header.len;
	GUEST_ASSERT(packet->header.len % 8 == 0 || n_got == AMOUNT, "%u bytes",
		     packet->header.len);
	fletcher_add(&got, packet->data, packet->header.len);
}

/* The host gives back what it gets, in multiples of eight bytes. */
static void echoed(struct guest_boot *boot)
{
	struct vsock_packet *packet;
	uint64_t state = 77;

	(void)boot;
	for (unsigned int i = 0; i < ARRAY_SIZE(block); i++)
		block[i] = random_next(&state);
	note("connect-ready");
	wait_for_host();
	GUEST_ASSERT(vsock_connect(&vsock, &stream, 1234, HOST_PORT, AMOUNT), "refused");
	for (uint32_t done = 0; done < AMOUNT;) {
		uint32_t at = done % BLOCK, left = BLOCK - at, n;

		n = vsock_write(&stream, (uint8_t *)block + at, left, take_echo);
		done += n;
	}
	for (uint32_t i = 0; i < AMOUNT / BLOCK; i++)
		fletcher_add(&sent, block, BLOCK);
	vsock_control(&stream, VSOCK_SHUTDOWN, VSOCK_SHUTDOWN_SEND);
	while ((packet = vsock_read(&stream))) {
		take_echo(packet);
		vsock_release(&vsock, packet);
	}
	GUEST_ASSERT(n_got == AMOUNT, "%u bytes came back", n_got);
	GUEST_ASSERT(got.a == sent.a && got.b == sent.b, "other bytes came back");
	note("stalls %u", stream.n_stalls);
	vsock_close(&stream);
}

static void refused(struct guest_boot *boot)
{
	struct vsock_packet *packet;

	(void)boot;
	GUEST_ASSERT(!vsock_connect(&vsock, &stream, 1234, NOBODY_PORT, CREDIT), "taken");
	note("refuse-ready");
	packet = vsock_receive(&vsock, TIMEOUT_MS);
	GUEST_ASSERT(packet && packet->header.op == VSOCK_REQUEST, "no request");
	stream = (struct vsock_stream){.vsock = &vsock,
				       .own_port = packet->header.dst_port,
				       .host_port = packet->header.src_port};
	vsock_release(&vsock, packet);
	vsock_control(&stream, VSOCK_RST, 0);
}

/* The host's process is killed: both halves are shut, and our RST ends it. */
static void killed(struct guest_boot *boot)
{
	struct vsock_packet *packet;

	(void)boot;
	note("kill-ready");
	vsock_accept(&vsock, &stream, ECHO_PORT, CREDIT);
	packet = vsock_read(&stream);
	GUEST_ASSERT(packet && packet->header.len == 1, "no byte");
	vsock_release(&vsock, packet);
	note("kill-now");
	while (stream.open && stream.shut != VSOCK_SHUTDOWN_BOTH)
		GUEST_ASSERT(!vsock_read(&stream), "bytes of the dead");
	if (stream.open)
		vsock_control(&stream, VSOCK_RST, 0);
	GUEST_ASSERT(!vsock_connect(&vsock, &stream, 1234, NOBODY_PORT, CREDIT), "taken");
}

static void paused(struct guest_boot *boot)
{
	(void)boot;
	note("pause-ready");
	vsock_accept(&vsock, &stream, ECHO_PORT, CREDIT);
	echo_all();
	GUEST_ASSERT(stream.fwd_cnt == AMOUNT / 4, "%u bytes", stream.fwd_cnt);
	vsock_close(&stream);
}

/* The device says that its connections are gone, and works on. */
static void loaded(struct guest_boot *boot)
{
	struct virtq *events = &vsock.queues[VSOCK_EVENT];

	(void)boot;
	if (cmdline_has(boot, "peer"))
		GUEST_SKIP("the peer has no device-cycle");
	note("cycle-ready");
	vsock_accept(&vsock, &stream, ECHO_PORT, CREDIT);
	note("cycle-now");
	GUEST_ASSERT(WAIT_UNTIL(virtq_has_used(events), TIMEOUT_MS), "no event");
	vsock_poll_events(&vsock);
	GUEST_ASSERT(vsock.n_resets == 1, "%u events", vsock.n_resets);
	note("cycle-again");
	vsock_accept(&vsock, &stream, ECHO_PORT, CREDIT);
	echo_all();
	vsock_close(&stream);
	wait_for_host();
	GUEST_ASSERT(vsock_connect(&vsock, &stream, 1234, HOST_PORT, CREDIT),
		     "who listened is gone");
	vsock_close(&stream);
}

/* The device has a bound, tells us of it by RSTs, and lives. */
static void many(struct guest_boot *boot)
{
	unsigned int n_open = 0;

	(void)boot;
	note("many-ready");
	wait_for_host();
	for (uint32_t i = 0; i < MANY; i++)
		n_open += vsock_connect(&vsock, &stream, 2000 + i, HOST_PORT, CREDIT);
	note("opened %u", n_open);
	GUEST_ASSERT(n_open >= 100 && n_open < MANY, "%u connections", n_open);
	/* Started over, nothing of them is left. */
	vsock_start(&vsock, VIRTIO_RING_FEATURES);
	note("many-done");
	wait_for_host();
	GUEST_ASSERT(vsock_connect(&vsock, &stream, 2000, HOST_PORT, CREDIT), "still full");
	vsock_close(&stream);
}

void guest_main(struct guest_boot *boot)
{
	serial_listen();
	GUEST_ASSERT(vsock_find(&vsock), "no vsock");
	vsock_start(&vsock, VIRTIO_RING_FEATURES);
	guest_case("addressed", addressed, boot);
	guest_case("echo", echo, boot);
	guest_case("echoed", echoed, boot);
	guest_case("refused", refused, boot);
	guest_case("killed", killed, boot);
	guest_case("paused", paused, boot);
	guest_case("loaded", loaded, boot);
	guest_case("many", many, boot);
}

#else

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest-tests/host/harness.h"

#define WAIT_MS 30000

static struct vm *vm;
static char name[64];

/* A client of the device's socket that has said its line and got its OK. */
static int client(const char *line, const char *answer)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct timeval patience = {.tv_sec = WAIT_MS / 1000};
	char got[64] = "";

	snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s/vsock.sock", test_file("run"),
		 name);
	CHECK(connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0, "%s: %s",
	      address.sun_path, strerror(errno));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	CHECK(write(fd, line, strlen(line)) == (ssize_t)strlen(line), "%s", strerror(errno));
	for (size_t n = 0; n + 1 < sizeof(got) && !strchr(got, '\n'); n++)
		CHECK(read(fd, got + n, 1) == 1, "no answer to %s", line);
	CHECK(strncmp(got, answer, strlen(answer)) == 0, "%s answered %s", line, got);
	return fd;
}

static int connect_to_guest(void)
{
	char line[32];

	snprintf(line, sizeof(line), "CONNECT %d\n", ECHO_PORT);
	return client(line, "OK ");
}

static int accept_from_guest(int listener)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	char line[64];
	struct iovec iov = {line, sizeof(line)};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control.bytes,
			     .msg_controllen = sizeof(control.bytes)};
	int fd = -1;

	CHECK(recvmsg(listener, &msg, MSG_CMSG_CLOEXEC) > 0, "no stream: %s", strerror(errno));
	CHECK(CMSG_FIRSTHDR(&msg), "a line without a stream");
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
	return fd;
}

/* Sends all and reads as much back, both as far as they go. `halfway` is called once. */
static void echo_through(int fd, size_t size, void (*halfway)(void))
{
	uint8_t *there = malloc(size), *back = malloc(size);
	size_t written = 0, got = 0;

	CHECK(there && back, "no memory");
	for (size_t i = 0; i < size; i++)
		there[i] = (uint8_t)(i * 2654435761u >> 11);
	while (got < size) {
		struct pollfd ready = {.fd = fd, .events = POLLIN};
		ssize_t n;

		if (written < size)
			ready.events |= POLLOUT;
		CHECK(poll(&ready, 1, WAIT_MS) > 0, "%zu bytes there, %zu back", written, got);
		if (ready.revents & POLLOUT) {
			n = send(fd, there + written, size - written, MSG_DONTWAIT | MSG_NOSIGNAL);
			CHECK(n > 0 || errno == EAGAIN, "%s", strerror(errno));
			written += n > 0 ? (size_t)n : 0;
		}
		if (ready.revents & POLLIN) {
			n = recv(fd, back + got, size - got, MSG_DONTWAIT);
			CHECK(n > 0 || (n < 0 && errno == EAGAIN), "%zu bytes back, then the end",
			      got);
			got += n > 0 ? (size_t)n : 0;
		}
		if (halfway && got > size / 2) {
			halfway();
			halfway = NULL;
		}
	}
	CHECK(memcmp(there, back, size) == 0, "other bytes came back");
	free(there);
	free(back);
}

static void expect_end(int fd, const char *last)
{
	char text[64] = "";
	ssize_t n;
	size_t length = 0;

	while ((n = read(fd, text + length, sizeof(text) - 1 - length)) > 0)
		length += (size_t)n;
	CHECK(n == 0 && strcmp(text, last) == 0, "\"%s\" at the end, not \"%s\"", text, last);
	close(fd);
}

static void echo(void)
{
	int fd = connect_to_guest();

	echo_through(fd, AMOUNT, NULL);
	CHECK(shutdown(fd, SHUT_WR) == 0, "%s", strerror(errno));
	expect_end(fd, "end");
}

/* Reads slowly at first, so that the guest runs out of credit; gives multiples of eight back. */
static void echo_back(int fd)
{
	static uint8_t data[AMOUNT];
	size_t got = 0, put = 0;

	while (put < sizeof(data)) {
		struct pollfd ready = {.fd = fd, .events = got < sizeof(data) ? POLLIN : 0};
		size_t whole = got == sizeof(data) ? got : got & ~(size_t)7;
		ssize_t n;

		if (put < whole)
			ready.events |= POLLOUT;
		CHECK(poll(&ready, 1, WAIT_MS) > 0, "%zu bytes came, %zu went", got, put);
		if (ready.revents & POLLIN) {
			n = recv(fd, data + got, sizeof(data) - got, MSG_DONTWAIT);
			CHECK(n > 0, "%zu bytes, then the end", got);
			got += (size_t)n;
		}
		if (ready.revents & POLLOUT) {
			n = send(fd, data + put, whole - put, MSG_DONTWAIT | MSG_NOSIGNAL);
			CHECK(n > 0 || errno == EAGAIN, "%s", strerror(errno));
			put += n > 0 ? (size_t)n : 0;
		}
	}
}

static int echoed(void)
{
	char line[32], byte;
	int listener, fd;

	vm_note(vm, "connect-ready");
	snprintf(line, sizeof(line), "LISTEN %d\n", HOST_PORT);
	listener = client(line, "OK ");
	vm_send(vm, "go\n");
	fd = accept_from_guest(listener);
	echo_back(fd);
	CHECK(read(fd, &byte, 1) == 0, "more than was sent");
	CHECK(shutdown(fd, SHUT_WR) == 0, "%s", strerror(errno));
	printf("the guest waited for credit %s times\n", vm_note(vm, "stalls"));
	expect_end(fd, "");
	return listener;
}

static void refused(void)
{
	vm_note(vm, "refuse-ready");
	close(client("CONNECT 4242\n", "REFUSED"));
}

static void killed(void)
{
	pid_t child;
	int fd, status;

	vm_note(vm, "kill-ready");
	fd = connect_to_guest();
	child = fork();
	CHECK(child >= 0, "%s", strerror(errno));
	if (child == 0) {
		if (write(fd, "x", 1) == 1)
			pause();
		_exit(1);
	}
	close(fd);
	vm_note(vm, "kill-now");
	kill(child, SIGKILL);
	CHECK(waitpid(child, &status, 0) == child, "%s", strerror(errno));
}

static void pause_and_resume(void)
{
	json_decref(vm_call(vm, "pause", NULL));
	json_decref(vm_call(vm, "resume", NULL));
}

static void paused(void)
{
	int fd;

	vm_note(vm, "pause-ready");
	fd = connect_to_guest();
	echo_through(fd, AMOUNT / 4, pause_and_resume);
	shutdown(fd, SHUT_WR);
	expect_end(fd, "");
}

static void loaded(int listener)
{
	int fd;

	vm_note(vm, "cycle-ready");
	fd = connect_to_guest();
	vm_note(vm, "cycle-now");
	json_decref(vm_call(vm, "device-cycle", json_pack("{s:s}", "device", "vsock")));
	expect_end(fd, "");
	vm_note(vm, "cycle-again");
	fd = connect_to_guest();
	echo_through(fd, 100000, NULL);
	shutdown(fd, SHUT_WR);
	expect_end(fd, "");
	vm_send(vm, "go\n");
	expect_end(accept_from_guest(listener), "");
}

static void many(int listener)
{
	int fds[MANY], n_fds = 0, n_opened;

	vm_note(vm, "many-ready");
	vm_send(vm, "go\n");
	/* Taken as they come: what the listener does not take is bounded, too. */
	for (;;) {
		struct pollfd ready = {.fd = listener, .events = POLLIN};

		if (n_fds >= 100 && poll(&ready, 1, 2000) == 0)
			break;
		fds[n_fds++] = accept_from_guest(listener);
	}
	n_opened = atoi(vm_note(vm, "opened"));
	CHECK(n_fds == n_opened, "%d streams for %d connections", n_fds, n_opened);
	vm_note(vm, "many-done");
	for (int i = 0; i < n_fds; i++)
		expect_end(fds[i], "");
	vm_send(vm, "go\n");
	expect_end(accept_from_guest(listener), "");
}

int main(int argc, char **argv)
{
	struct vm_config config = {.words = {"--vsock", "3"}};
	json_t *status;
	int listener;

	test_init(argc, argv);
	if (vm_is_peer())
		test_skip("the peer's vsock is the host kernel's");
	vm = vm_start(&config);
	vm_note(vm, "echo-ready");
	status = vm_call(vm, "status", NULL);
	snprintf(name, sizeof(name), "%s", json_string_value(json_object_get(status, "name")));
	json_decref(status);
	echo();
	listener = echoed();
	refused();
	killed();
	paused();
	loaded(listener);
	many(listener);
	close(listener);
	return vm_judge(vm);
}

#endif
