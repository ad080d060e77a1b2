/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host's side of a connection: its socket. Bytes of the guest's go out as far as the socket
 * takes them, the rest waits in a ring of as many as the guest was given credit for; what the
 * socket has to say is noted, and read when the guest has room (vsock-connection.c). Loop thread.
 *
 * A socket of which one direction is shut ends every poll at once, so it is not polled any more but
 * looked at by the clock.
 */
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "virtio/vsock-connection.h"

#define DRAIN_NS      10000000000u /* for a host to take another byte once the guest has gone */
#define TICK_NS       250000000u   /* between looks at a socket that is half shut */
#define TICK_BUSY_NS  5000000u     /* the same, with bytes waiting for it */
#define CREDIT_STEP   (VSOCK_BUFFER / 4) /* freed, and worth a packet of its own */
#define WATCH_NOTHING POLLRDHUP          /* but for its end */

static uint64_t now_of(const struct vsock_connection *connection)
{
	return loop_now(connection->vsock->loop);
}

/* The loop may keep the file a while after it was watched; who is at its other end shall not wait.
 */
void vsock_socket_close(struct vsock_connection *connection)
{
	if (connection->fd >= 0)
		(void)shutdown(connection->fd, SHUT_RDWR);
	if (connection->watched)
		loop_unwatch(&connection->source);
	connection->watched = 0;
	connection->fd = fd_close(connection->fd);
}

void vsock_socket_forwarded(struct vsock_connection *connection, uint32_t n)
{
	connection->fwd_cnt += n;
	if (connection->fwd_cnt - connection->fwd_told >= CREDIT_STEP)
		connection->due |= VSOCK_DUE_CREDIT_UPDATE;
}

static void discard(struct vsock_connection *connection)
{
	uint32_t left = byte_ring_used(&connection->out);

	byte_ring_skip(&connection->out, left);
	vsock_socket_forwarded(connection, left);
}

/* The host's side ended without a good-bye: so does the guest's. */
void vsock_socket_failed(struct vsock_connection *connection)
{
	vsock_socket_close(connection);
	/* A request the guest has never seen needs no RST. */
	if (connection->state == VSOCK_DRAINING || connection->due & VSOCK_DUE_REQUEST) {
		connection->state = VSOCK_GONE;
		return;
	}
	connection->state = VSOCK_CLOSING;
	connection->due = VSOCK_DUE_RST;
}

/* The other side reads no more, though it may still write. */
static void host_deaf(struct vsock_connection *connection)
{
	if (connection->state == VSOCK_DRAINING) {
		vsock_socket_failed(connection);
		return;
	}
	connection->host_shut |= VSOCK_SHUTDOWN_RECEIVE;
	discard(connection);
}

/* The other side closed its socket. What it wrote before is still to be read. */
static void host_gone(struct vsock_connection *connection)
{
	if (connection->state != VSOCK_OPEN) {
		vsock_socket_failed(connection);
		return;
	}
	host_deaf(connection);
	connection->hung_up = connection->deaf = true;
	connection->readable = !connection->ended;
}

/* Bytes the socket took now; what is left waits. */
size_t vsock_socket_send(struct vsock_connection *connection, const struct iovec *iov, uint32_t n)
{
	struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = n};
	ssize_t sent;

	do {
		sent = sendmsg(connection->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	} while (sent < 0 && errno == EINTR);
	if (sent < 0 && errno != EAGAIN)
		host_deaf(connection);
	return sent < 0 ? 0 : (size_t)sent;
}

/* All has been passed on: the end may be, too. */
void vsock_socket_end(struct vsock_connection *connection)
{
	if (connection->fd < 0 || byte_ring_used(&connection->out) > 0)
		return;
	if (connection->state == VSOCK_DRAINING)
		connection->state = VSOCK_GONE;
	else if (connection->guest_shut & VSOCK_SHUTDOWN_SEND && !connection->shut_told)
		connection->shut_told = shutdown(connection->fd, SHUT_WR) == 0;
}

static void flush(struct vsock_connection *connection)
{
	const uint8_t *data;
	uint32_t left;

	while (connection->fd >= 0 && (left = byte_ring_peek(&connection->out, &data)) > 0) {
		struct iovec iov = {(void *)data, left};
		size_t n = vsock_socket_send(connection, &iov, 1);

		if (n == 0)
			return;
		byte_ring_skip(&connection->out, (uint32_t)n);
		vsock_socket_forwarded(connection, (uint32_t)n);
		if (connection->state == VSOCK_DRAINING)
			connection->deadline = now_of(connection) + DRAIN_NS;
	}
	vsock_socket_end(connection);
}

/* The guest reads no more: who writes to it shall hear. */
void vsock_socket_deafen(struct vsock_connection *connection)
{
	(void)shutdown(connection->fd, SHUT_RD);
	connection->deaf = true;
	connection->readable = false;
}

void vsock_socket_drain(struct vsock_connection *connection)
{
	if (connection->fd < 0 || byte_ring_used(&connection->out) == 0) {
		connection->state = VSOCK_GONE;
		return;
	}
	connection->state = VSOCK_DRAINING;
	connection->deadline = now_of(connection) + DRAIN_NS;
}

static void polled(struct vsock_connection *connection, uint32_t events)
{
	if (events & (POLLIN | POLLRDHUP) && connection->state == VSOCK_OPEN)
		connection->readable = !connection->ended;
	if (events & (POLLHUP | POLLERR | POLLNVAL))
		host_gone(connection);
	else if (events & POLLRDHUP)
		connection->deaf = true;
	if (events & POLLOUT)
		flush(connection);
}

/* The guest has not answered in time, or the host not read on. */
static void expire(struct vsock_connection *connection)
{
	if (connection->state == VSOCK_REQUESTED)
		vsock_host_answer(connection->fd, "SILENT\n");
	vsock_socket_failed(connection);
	connection->deadline = UINT64_MAX;
}

static void tick(struct vsock_connection *connection, uint64_t now)
{
	struct pollfd look = {.fd = connection->fd, .events = POLLRDHUP};

	if (now >= connection->deadline) {
		expire(connection);
		return;
	}
	if (byte_ring_used(&connection->out) > 0)
		look.events |= POLLOUT;
	if (!connection->readable && !connection->ended)
		look.events |= POLLIN;
	if (connection->fd >= 0 && poll(&look, 1, 0) > 0)
		polled(connection, (uint32_t)look.revents);
}

void vsock_socket_event(struct loop_source *source, const struct loop_event *event)
{
	struct vsock_connection *connection = container_of(source, struct vsock_connection, source);

	if (event->kind == LOOP_READY && connection->watched)
		polled(connection, (uint32_t)event->result);
	else if (event->kind == LOOP_TIMER)
		tick(connection, event->now);
	vsock_connection_settle(connection);
}

static uint32_t events_wanted(const struct vsock_connection *connection)
{
	uint32_t events = WATCH_NOTHING;

	if (connection->fd < 0 || connection->deaf)
		return 0;
	if (connection->state == VSOCK_OPEN && !connection->readable)
		events |= POLLIN;
	if (byte_ring_used(&connection->out) > 0)
		events |= POLLOUT;
	return events;
}

void vsock_socket_watch(struct vsock_connection *connection)
{
	uint32_t events = events_wanted(connection);

	if (events == connection->watched)
		return;
	if (connection->watched)
		loop_unwatch(&connection->source);
	connection->watched = 0;
	if (events && loop_watch(&connection->source, connection->fd, events) == 0)
		connection->watched = events;
	else if (events)
		connection->deaf = true; /* the loop has no room: by the clock then */
}

void vsock_socket_timer(struct vsock_connection *connection)
{
	uint64_t at = connection->deadline;
	uint64_t step = byte_ring_used(&connection->out) > 0 ? TICK_BUSY_NS : TICK_NS;

	if (connection->fd >= 0 && connection->deaf && !connection->hung_up)
		at = MIN(at, now_of(connection) + step);
	loop_timer(&connection->source, at);
}
