/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection, as the guest sees it: its packets in, packets for it out, within the credit of
 * both sides. What cannot be told to the guest now waits as a bit. Loop thread; nothing migrates.
 * The socket at its other end: vsock-socket.c.
 */
#include "virtio/vsock-connection.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>

#define ANSWER_NS  10000000000u /* for a guest to answer a request, or a shutdown */
#define PACKET_MAX (64u << 10)

/* How many bytes the guest takes now. One that lies about what it has seen gets none. */
static uint32_t guest_credit(const struct vsock_connection *connection)
{
	uint32_t under_way = connection->tx_cnt - connection->peer_fwd_cnt;

	return under_way < connection->peer_buf_alloc ? connection->peer_buf_alloc - under_way : 0;
}

static bool has_input(const struct vsock_connection *connection)
{
	return connection->state == VSOCK_OPEN && connection->readable && !connection->ended &&
	       !(connection->guest_shut & VSOCK_SHUTDOWN_RECEIVE);
}

static bool shutdown_due(const struct vsock_connection *connection)
{
	return connection->state == VSOCK_OPEN && connection->host_shut & ~connection->told_shut;
}

static bool has_packet(struct vsock_connection *connection)
{
	uint32_t credit = guest_credit(connection);

	if (has_input(connection) && credit == 0 && !connection->credit_asked) {
		connection->credit_asked = true;
		connection->due |= VSOCK_DUE_CREDIT_REQUEST;
	}
	return connection->due || shutdown_due(connection) || (has_input(connection) && credit > 0);
}

static void ready_add(struct vsock_connection *connection)
{
	struct vsock *vsock = connection->vsock;

	connection->is_ready = true;
	connection->next_ready = NULL;
	connection->prev_ready = vsock->last_ready;
	if (vsock->last_ready)
		vsock->last_ready->next_ready = connection;
	else
		vsock->first_ready = connection;
	vsock->last_ready = connection;
}

static void ready_remove(struct vsock_connection *connection)
{
	struct vsock *vsock = connection->vsock;

	if (!connection->is_ready)
		return;
	connection->is_ready = false;
	if (connection->prev_ready)
		connection->prev_ready->next_ready = connection->next_ready;
	else
		vsock->first_ready = connection->next_ready;
	if (connection->next_ready)
		connection->next_ready->prev_ready = connection->prev_ready;
	else
		vsock->last_ready = connection->prev_ready;
}

void vsock_connection_settle(struct vsock_connection *connection)
{
	if (connection->state == VSOCK_GONE) {
		vsock_connection_free(connection);
		return;
	}
	if (connection->state != VSOCK_DRAINING && !connection->is_ready && has_packet(connection))
		ready_add(connection);
	if (connection->is_ready)
		vsock_wake(connection->vsock);
	vsock_socket_watch(connection);
	vsock_socket_timer(connection);
}

/* Bytes of the socket's, straight into the guest's buffer behind the header. */
static uint32_t take_input(struct vsock_connection *connection, const struct virtqueue_chain *chain)
{
	struct vsock *vsock = connection->vsock;
	uint32_t wanted = MIN(guest_credit(connection), PACKET_MAX);
	struct msghdr message = {.msg_iov = vsock->payload};
	ssize_t n;

	message.msg_iovlen = vsock_iov_slice(chain->iov + chain->n_out, chain->n_in,
					     sizeof(struct vsock_header), wanted, vsock->payload);
	if (message.msg_iovlen == 0 || !has_input(connection))
		return 0;
	wanted = (uint32_t)MIN(chain->in_bytes - sizeof(struct vsock_header), (uint64_t)wanted);
	do {
		n = recvmsg(connection->fd, &message, MSG_DONTWAIT);
	} while (n < 0 && errno == EINTR);
	if (n == 0) {
		connection->ended = connection->deaf = true;
		connection->host_shut |= VSOCK_SHUTDOWN_SEND;
	} else if (n < 0 && errno != EAGAIN) {
		vsock_socket_failed(connection);
	}
	/* A socket that is half shut is not asked again by a poll. */
	if (n <= 0 || (n < wanted && !connection->deaf))
		connection->readable = false;
	if (n <= 0)
		return 0;
	connection->tx_cnt += (uint32_t)n;
	vsock->bytes_out += (uint64_t)n;
	return (uint32_t)n;
}

/* Both directions are over and the guest knows: its RST ends it, or ours if there comes none. */
static void told_all(struct vsock_connection *connection)
{
	vsock_socket_close(connection);
	connection->state = VSOCK_CLOSING;
	connection->deadline = loop_now(connection->vsock->loop) + ANSWER_NS;
}

static uint16_t due_op(struct vsock_connection *connection, struct vsock_header *header)
{
	static const struct {
		uint8_t due;
		uint16_t op;
	} order[] = {
		{VSOCK_DUE_CREDIT_REQUEST, VSOCK_OP_CREDIT_REQUEST},
		{VSOCK_DUE_CREDIT_UPDATE, VSOCK_OP_CREDIT_UPDATE},
	};

	if (shutdown_due(connection)) {
		header->flags = connection->told_shut = connection->host_shut;
		if (connection->told_shut == VSOCK_SHUTDOWN_BOTH)
			told_all(connection);
		return VSOCK_OP_SHUTDOWN;
	}
	for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
		if (!(connection->due & order[i].due))
			continue;
		connection->due &= (uint8_t)~order[i].due;
		return order[i].op;
	}
	return VSOCK_OP_INVALID;
}

static uint16_t next_op(struct vsock_connection *connection, const struct virtqueue_chain *chain,
			struct vsock_header *header)
{
	if (connection->due & VSOCK_DUE_REQUEST) {
		connection->due &= (uint8_t)~VSOCK_DUE_REQUEST;
		return VSOCK_OP_REQUEST;
	}
	if (connection->due & VSOCK_DUE_RESPONSE) {
		connection->due &= (uint8_t)~VSOCK_DUE_RESPONSE;
		return VSOCK_OP_RESPONSE;
	}
	if (!(connection->due & VSOCK_DUE_RST) && has_input(connection) &&
	    guest_credit(connection) > 0) {
		header->len = take_input(connection, chain);
		if (header->len > 0)
			return VSOCK_OP_RW;
	}
	if (connection->due & VSOCK_DUE_RST) {
		connection->state = VSOCK_GONE;
		return VSOCK_OP_RST;
	}
	return due_op(connection, header);
}

uint32_t vsock_connection_fill(struct vsock_connection *connection,
			       const struct virtqueue_chain *chain)
{
	struct vsock_header header = {
		.src_cid = VSOCK_HOST_CID,
		.dst_cid = connection->vsock->cid,
		.src_port = connection->host_port,
		.dst_port = connection->guest_port,
		.type = VSOCK_TYPE_STREAM,
		.buf_alloc = VSOCK_BUFFER,
	};
	uint32_t size = 0;

	ready_remove(connection);
	header.op = next_op(connection, chain, &header);
	/* A buffer that holds no more than a header gets one, and the bytes wait for the next. */
	if (header.op == VSOCK_OP_INVALID && has_input(connection) && guest_credit(connection) > 0)
		header.op = VSOCK_OP_CREDIT_UPDATE;
	if (header.op != VSOCK_OP_INVALID) {
		header.fwd_cnt = connection->fwd_told = connection->fwd_cnt;
		connection->due &= (uint8_t)~VSOCK_DUE_CREDIT_UPDATE;
		chain_write(chain, 0, &header, sizeof(header));
		size = (uint32_t)sizeof(header) + header.len;
	}
	vsock_connection_settle(connection);
	return size;
}

uint32_t vsock_iov_slice(const struct iovec *iov, uint32_t n, uint64_t skip, uint64_t len,
			 struct iovec *ret)
{
	uint32_t n_ret = 0;

	for (uint32_t i = 0; i < n && len > 0; i++) {
		size_t here;

		if (skip >= iov[i].iov_len) {
			skip -= iov[i].iov_len;
			continue;
		}
		here = MIN(iov[i].iov_len - skip, len);
		ret[n_ret++] = (struct iovec){(uint8_t *)iov[i].iov_base + skip, here};
		len -= here;
		skip = 0;
	}
	return n_ret;
}

/* The guest broke the rules of the connection: it ends, at once. */
static void refuse(struct vsock_connection *connection, const struct vsock_header *header)
{
	vsock_reset_add(connection->vsock, header);
	if (connection->state == VSOCK_REQUESTED)
		vsock_host_answer(connection->fd, "REFUSED\n");
	connection->state = VSOCK_GONE;
}

static void take_data(struct vsock_connection *connection, const struct vsock_header *header,
		      const struct iovec *payload, uint32_t n)
{
	size_t done = 0;

	if (connection->state == VSOCK_REQUESTED || connection->guest_shut & VSOCK_SHUTDOWN_SEND ||
	    header->len > VSOCK_BUFFER - byte_ring_used(&connection->out)) {
		refuse(connection, header);
		return;
	}
	connection->vsock->bytes_in += header->len;
	if (!(connection->host_shut & VSOCK_SHUTDOWN_RECEIVE) && connection->state == VSOCK_OPEN &&
	    byte_ring_used(&connection->out) == 0)
		done = vsock_socket_send(connection, payload, n);
	/* Nobody to pass it on to: it counts as taken. */
	if (connection->host_shut & VSOCK_SHUTDOWN_RECEIVE || connection->state != VSOCK_OPEN)
		done = header->len;
	vsock_socket_forwarded(connection, (uint32_t)done);
	for (uint32_t i = 0; i < n; i++) {
		size_t skip = MIN(done, payload[i].iov_len);

		byte_ring_put(&connection->out, (uint8_t *)payload[i].iov_base + skip,
			      payload[i].iov_len - skip);
		done -= skip;
	}
}

static void opened(struct vsock_connection *connection)
{
	char line[VSOCK_LINE_MAX];
	struct iovec iov = {line, 0};

	iov.iov_len = (size_t)snprintf(line, sizeof(line), "OK %u\n", connection->host_port);
	connection->state = VSOCK_OPEN;
	connection->deadline = UINT64_MAX;
	connection->readable = true; /* what followed the client's line */
	connection->vsock->n_opened++;
	(void)vsock_socket_send(connection, &iov, 1);
}

static void shut(struct vsock_connection *connection, const struct vsock_header *header)
{
	uint8_t flags = header->flags & VSOCK_SHUTDOWN_BOTH;

	if (connection->state == VSOCK_REQUESTED) {
		refuse(connection, header);
		return;
	}
	connection->guest_shut |= flags;
	if (connection->guest_shut == VSOCK_SHUTDOWN_BOTH) {
		/* Its ports are free again; what it sent before goes its way. */
		vsock_reset_add(connection->vsock, header);
		vsock_connection_end(connection);
	} else if (connection->state == VSOCK_OPEN) {
		if (flags & VSOCK_SHUTDOWN_RECEIVE)
			vsock_socket_deafen(connection);
		vsock_socket_end(connection);
	}
}

static void note_credit(struct vsock_connection *connection, const struct vsock_header *header)
{
	connection->peer_buf_alloc = header->buf_alloc;
	connection->peer_fwd_cnt = header->fwd_cnt;
	if (guest_credit(connection) == 0)
		return;
	connection->credit_asked = false;
	connection->due &= (uint8_t)~VSOCK_DUE_CREDIT_REQUEST;
}

static void handle(struct vsock_connection *connection, const struct vsock_header *header,
		   const struct iovec *payload, uint32_t n_payload)
{
	switch (header->op) {
	case VSOCK_OP_RESPONSE:
		if (connection->state == VSOCK_REQUESTED)
			opened(connection);
		else
			refuse(connection, header);
		break;
	case VSOCK_OP_RST:
		vsock_connection_end(connection);
		break;
	case VSOCK_OP_SHUTDOWN:
		shut(connection, header);
		break;
	case VSOCK_OP_RW:
		take_data(connection, header, payload, n_payload);
		break;
	case VSOCK_OP_CREDIT_UPDATE:
		break;
	case VSOCK_OP_CREDIT_REQUEST:
		connection->due |= VSOCK_DUE_CREDIT_UPDATE;
		break;
	default:
		refuse(connection, header);
		break;
	}
}

void vsock_connection_packet(struct vsock_connection *connection, const struct vsock_header *header,
			     const struct iovec *payload, uint32_t n_payload)
{
	/* It ends, and the guest has yet to hear: nothing else it says matters. */
	if (connection->due & VSOCK_DUE_RST && header->op != VSOCK_OP_RST)
		return;
	note_credit(connection, header);
	handle(connection, header, payload, n_payload);
	vsock_connection_settle(connection);
}

static struct vsock_connection **bucket(struct vsock *vsock, uint32_t guest_port,
					uint32_t host_port)
{
	uint32_t hash = guest_port * 0x9e3779b1u ^ host_port * 0x85ebca6bu;

	return &vsock->buckets[hash >> 16 & (VSOCK_BUCKETS - 1)];
}

struct vsock_connection *vsock_connection_find(struct vsock *vsock, uint32_t guest_port,
					       uint32_t host_port)
{
	struct vsock_connection *connection = *bucket(vsock, guest_port, host_port);

	while (connection &&
	       (connection->guest_port != guest_port || connection->host_port != host_port))
		connection = connection->next;
	return connection;
}

/* The guest's packets find it no more. */
static void forget(struct vsock_connection *connection)
{
	struct vsock_connection **link =
		bucket(connection->vsock, connection->guest_port, connection->host_port);

	while (*link && *link != connection)
		link = &(*link)->next;
	if (*link)
		*link = connection->next;
	ready_remove(connection);
	connection->due = 0;
}

void vsock_connection_end(struct vsock_connection *connection)
{
	if (connection->state == VSOCK_REQUESTED)
		vsock_host_answer(connection->fd, "REFUSED\n");
	forget(connection);
	vsock_socket_drain(connection);
}

int vsock_connection_new(struct vsock *vsock, uint32_t guest_port, uint32_t host_port, int fd,
			 enum vsock_state state, struct vsock_connection **ret_connection)
{
	struct vsock_connection **head = bucket(vsock, guest_port, host_port);
	struct vsock_connection *connection;
	int r;

	if (vsock->n_connections == VSOCK_CONNECTIONS_MAX)
		return -ENOSPC;
	connection = calloc(1, sizeof(*connection));
	if (!connection)
		return -ENOMEM;
	connection->source.on_event = vsock_socket_event;
	r = byte_ring_init(&connection->out, VSOCK_BUFFER);
	if (r == 0)
		r = loop_add(vsock->loop, &connection->source);
	if (r < 0) {
		byte_ring_deinit(&connection->out);
		free(connection);
		return r;
	}
	connection->vsock = vsock;
	connection->guest_port = guest_port;
	connection->host_port = host_port;
	connection->fd = fd;
	connection->state = state;
	connection->deadline =
		state == VSOCK_REQUESTED ? loop_now(vsock->loop) + ANSWER_NS : UINT64_MAX;
	connection->due = state == VSOCK_REQUESTED ? VSOCK_DUE_REQUEST : VSOCK_DUE_RESPONSE;
	connection->place = vsock->n_connections;
	vsock->connections[vsock->n_connections++] = connection;
	connection->next = *head;
	*head = connection;
	*ret_connection = connection;
	return 0;
}

void vsock_connection_free(struct vsock_connection *connection)
{
	struct vsock *vsock = connection->vsock;
	struct vsock_connection *last = vsock->connections[--vsock->n_connections];

	forget(connection);
	vsock->connections[connection->place] = last;
	last->place = connection->place;
	vsock_socket_close(connection);
	loop_remove(&connection->source);
	byte_ring_deinit(&connection->out);
	free(connection);
}
