/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The listening socket and those who come to it: a client says one line (virtio/vsock.h) and is
 * then a connection's socket, or listens on a port of the host. Who says nothing is sent away
 * after a while; who finds no place waits in the socket's backlog. Loop thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "virtio/vsock-connection.h"

#define LINE_NS     5000000000u /* to say the line in */
#define PAUSE_NS    100000000u  /* when the process has no descriptor left */
#define ACCEPT_TURN 16          /* clients a turn of the loop takes */
#define PORT_ANY    UINT32_MAX  /* no port */
#define PORT_FIRST  0x40000000u /* the host's, where nobody named one: 2^30 to 2^31 - 1 */

void vsock_host_answer(int fd, const char *word)
{
	/* The socket is as good as empty; who does not take a word gets none. */
	if (send(fd, word, strlen(word), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return;
}

static void listen_watch(struct vsock *vsock, bool wanted)
{
	if (wanted == vsock->listening)
		return;
	if (vsock->listening)
		loop_unwatch(&vsock->source);
	vsock->listening = wanted && loop_watch(&vsock->source, vsock->listen_fd, POLLIN) == 0;
}

/* Its place is free; the descriptor went elsewhere, or goes here. */
static void client_end(struct vsock_client *client)
{
	struct vsock *vsock = client->vsock;

	loop_remove(&client->source);
	if (client->fd >= 0)
		(void)shutdown(client->fd, SHUT_RDWR); /* the loop may keep the file a while */
	client->fd = fd_close(client->fd);
	if (client->listening)
		vsock->n_listeners--;
	else
		vsock->n_clients--;
	client->listening = false;
	listen_watch(vsock, true);
}

static void client_refuse(struct vsock_client *client, const char *word)
{
	vsock_host_answer(client->fd, word);
	client_end(client);
}

static struct vsock_client *listener_find(struct vsock *vsock, uint32_t port)
{
	for (size_t i = 0; i < ARRAY_SIZE(vsock->clients); i++) {
		struct vsock_client *client = &vsock->clients[i];

		if (client->fd >= 0 && client->listening && client->port == port)
			return client;
	}
	return NULL;
}

/* A port of the host's that makes a new pair with the guest's. There are more than connections. */
static uint32_t port_pick(struct vsock *vsock, uint32_t guest_port)
{
	uint32_t port;

	do {
		port = PORT_FIRST + vsock->next_port++ % PORT_FIRST;
	} while (vsock_connection_find(vsock, guest_port, port) || listener_find(vsock, port));
	return port;
}

static bool driver_works(struct vsock *vsock)
{
	uint8_t status = atomic_load(&vsock->virtio.status);

	return status & VIRTIO_STATUS_DRIVER_OK && !(status & VIRTIO_STATUS_NEEDS_RESET);
}

static void client_connect(struct vsock_client *client, uint32_t port)
{
	struct vsock *vsock = client->vsock;
	struct vsock_connection *connection;

	if (!driver_works(vsock)) {
		client_refuse(client, "NODRIVER\n");
		return;
	}
	if (vsock_connection_new(vsock, port, port_pick(vsock, port), client->fd, VSOCK_REQUESTED,
				 &connection) < 0) {
		client_refuse(client, "FULL\n");
		return;
	}
	loop_unwatch(&client->source);
	client->fd = -1;
	client_end(client);
	vsock_connection_settle(connection);
}

static void client_listen(struct vsock_client *client, uint32_t port)
{
	struct vsock *vsock = client->vsock;
	char line[VSOCK_LINE_MAX];

	if (listener_find(vsock, port)) {
		client_refuse(client, "BUSY\n");
		return;
	}
	if (vsock->n_listeners == VSOCK_LISTENERS_MAX) {
		client_refuse(client, "FULL\n");
		return;
	}
	snprintf(line, sizeof(line), "OK %u\n", port);
	vsock_host_answer(client->fd, line);
	loop_timer(&client->source, UINT64_MAX);
	client->listening = true;
	client->port = port;
	vsock->n_listeners++;
	vsock->n_clients--;
	listen_watch(vsock, true);
}

/* Digits up to the end of the line, and no more. */
static bool port_parse(const char *text, uint32_t *ret_port)
{
	uint64_t value = 0;

	if (!*text || strlen(text) > 10)
		return false;
	for (; *text; text++) {
		if (*text < '0' || *text > '9')
			return false;
		value = value * 10 + (uint64_t)(*text - '0');
	}
	*ret_port = (uint32_t)value;
	return value < PORT_ANY;
}

static void client_obey(struct vsock_client *client)
{
	uint32_t port;

	if (strlen(client->line) + 1 != client->length)
		client_refuse(client, "BAD\n");
	else if (!strncmp(client->line, "CONNECT ", 8) && port_parse(client->line + 8, &port))
		client_connect(client, port);
	else if (!strncmp(client->line, "LISTEN ", 7) && port_parse(client->line + 7, &port))
		client_listen(client, port);
	else
		client_refuse(client, "BAD\n");
}

/* Reads the line and not a byte more: what follows belongs to the stream. */
static void client_read(struct vsock_client *client)
{
	char *at = client->line + client->length, *end = NULL;
	size_t room = sizeof(client->line) - client->length;
	ssize_t n = recv(client->fd, at, room, MSG_DONTWAIT | MSG_PEEK);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n > 0) {
		end = memchr(at, '\n', (size_t)n);
		n = recv(client->fd, at, end ? (size_t)(end - at + 1) : (size_t)n, MSG_DONTWAIT);
	}
	if (n <= 0) {
		client_end(client);
		return;
	}
	client->length += (uint32_t)n;
	if (end) {
		*end = '\0';
		client_obey(client);
	} else if (client->length == sizeof(client->line)) {
		client_refuse(client, "BAD\n");
	}
}

static void client_event(struct loop_source *source, const struct loop_event *event)
{
	struct vsock_client *client = container_of(source, struct vsock_client, source);

	/* Who listens has no more to say: it ended, or does not keep to the protocol. */
	if (event->kind == LOOP_READY && !client->listening)
		client_read(client);
	else if (event->kind == LOOP_READY || event->kind == LOOP_TIMER)
		client_end(client);
}

static bool client_add(struct vsock *vsock, int fd)
{
	struct vsock_client *client = vsock->clients;

	while (client->fd >= 0)
		client++; /* one is free: there are fewer than that of each kind */
	*client = (struct vsock_client){.source.on_event = client_event, .vsock = vsock, .fd = fd};
	if (loop_add(vsock->loop, &client->source) < 0) {
		client->fd = -1;
		return false;
	}
	vsock->n_clients++;
	if (loop_watch(&client->source, fd, POLLIN | POLLRDHUP) < 0) {
		client->fd = -1;
		client_end(client);
		return false;
	}
	loop_timer(&client->source, loop_now(vsock->loop) + LINE_NS);
	return true;
}

void vsock_host_accept(struct vsock *vsock)
{
	for (int i = 0; i < ACCEPT_TURN && vsock->n_clients < VSOCK_CLIENTS_MAX; i++) {
		int fd = accept4(vsock->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM)) {
			listen_watch(vsock, false);
			loop_timer(&vsock->source, loop_now(vsock->loop) + PAUSE_NS);
			return;
		}
		if (fd < 0)
			break;
		if (!client_add(vsock, fd)) {
			vsock_host_answer(fd, "FULL\n");
			fd_close(fd);
		}
	}
	listen_watch(vsock, vsock->n_clients < VSOCK_CLIENTS_MAX);
}

/* The stream's other end goes to who listens. */
static int hand_over(struct vsock_client *listener, uint32_t port, int fd)
{
	char line[VSOCK_LINE_MAX];
	int n = snprintf(line, sizeof(line), "ACCEPT %u\n", port);
	ssize_t sent = fd_send(listener->fd, line, (size_t)n, &fd, 1);

	return sent == n ? 0 : sent < 0 ? (int)sent : -EAGAIN;
}

bool vsock_host_request(struct vsock *vsock, const struct vsock_header *header)
{
	struct vsock_client *listener = listener_find(vsock, header->dst_port);
	struct vsock_connection *connection;
	bool taken;
	int ends[2];

	if (!listener || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return false;
	if (vsock_connection_new(vsock, header->src_port, header->dst_port, ends[0], VSOCK_OPEN,
				 &connection) < 0) {
		fd_close(ends[0]);
		fd_close(ends[1]);
		return false;
	}
	connection->peer_buf_alloc = header->buf_alloc;
	connection->peer_fwd_cnt = header->fwd_cnt;
	taken = hand_over(listener, header->src_port, ends[1]) == 0;
	fd_close(ends[1]);
	if (taken)
		vsock->n_opened++;
	else
		connection->state = VSOCK_GONE; /* who listens does not read what it is given */
	vsock_connection_settle(connection);
	return taken;
}

int vsock_host_init(struct vsock *vsock)
{
	int flags = fcntl(vsock->listen_fd, F_GETFL);

	if (flags < 0 || fcntl(vsock->listen_fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return -errno;
	listen_watch(vsock, true);
	return vsock->listening ? 0 : -ENOSPC;
}

void vsock_host_deinit(struct vsock *vsock)
{
	for (size_t i = 0; i < ARRAY_SIZE(vsock->clients); i++) {
		struct vsock_client *client = &vsock->clients[i];

		if (client->fd < 0)
			continue;
		loop_remove(&client->source);
		client->fd = fd_close(client->fd);
	}
}
