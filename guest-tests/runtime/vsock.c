/* SPDX-License-Identifier: Apache-2.0 */
/* The socket driver of the guest tests. */
#include "guest-tests/runtime/vsock.h"

#include "guest-tests/runtime/apic.h"

#define TIMEOUT_MS 20000

bool vsock_find(struct vsock *v)
{
	*v = (struct vsock){0};
	return virtio_find(&v->dev, VIRTIO_ID_VSOCK, 0);
}

void vsock_release(struct vsock *v, struct vsock_packet *packet)
{
	struct virtq_seg seg = {packet, sizeof(*packet)};
	unsigned int head = virtq_add(&v->queues[VSOCK_RX], &seg, 0, 1);

	GUEST_ASSERT(head < VSOCK_N_BUFFERS, "head %u", head);
	v->rx_by_head[head] = packet;
	virtq_kick(&v->queues[VSOCK_RX]);
}

static void offer_event(struct vsock *v, unsigned int i)
{
	struct virtq_seg seg = {&v->events[i], sizeof(v->events[i])};

	GUEST_ASSERT(virtq_add(&v->queues[VSOCK_EVENT], &seg, 0, 1) == i, "event buffer %u", i);
}

void vsock_start(struct vsock *v, uint64_t features)
{
	virtio_begin(&v->dev, features);
	v->cid = virtio_config_read64(&v->dev, 0);
	for (unsigned int i = 0; i < ARRAY_SIZE(v->queues); i++)
		virtq_init(&v->queues[i], &v->dev, i, 0, false);
	for (unsigned int i = 0; i < VSOCK_N_EVENTS; i++)
		offer_event(v, i);
	virtio_driver_ok(&v->dev);
	virtq_kick(&v->queues[VSOCK_EVENT]);
	for (unsigned int i = 0; i < VSOCK_N_BUFFERS; i++)
		vsock_release(v, &v->rx[i]);
}

void vsock_poll_events(struct vsock *v)
{
	struct virtq *q = &v->queues[VSOCK_EVENT];
	uint32_t len;
	int head;

	while ((head = virtq_take(q, &len)) >= 0) {
		GUEST_ASSERT(len == 4 && v->events[head] == 0, "event %u of %u bytes",
			     v->events[head], len);
		v->n_resets++;
		v->events[head] = ~0u;
		offer_event(v, (unsigned int)head);
		virtq_kick(q);
	}
}

void vsock_send(struct vsock *v, const struct vsock_header *header, const void *data)
{
	struct virtq_seg segs[] = {{(void *)header, sizeof(*header)}, {(void *)data, header->len}};

	virtq_add(&v->queues[VSOCK_TX], segs, header->len ? 2 : 1, 0);
	virtq_kick(&v->queues[VSOCK_TX]);
	GUEST_ASSERT(virtq_wait(&v->queues[VSOCK_TX], NULL, TIMEOUT_MS) >= 0,
		     "a packet (op %u) was not taken", header->op);
}

struct vsock_packet *vsock_receive(struct vsock *v, unsigned int timeout_ms)
{
	struct vsock_packet *packet;
	uint32_t len;
	int head = virtq_wait(&v->queues[VSOCK_RX], &len, timeout_ms);

	if (head < 0)
		return NULL;
	packet = v->rx_by_head[head];
	GUEST_ASSERT(len >= sizeof(packet->header) &&
			     packet->header.len == len - sizeof(packet->header),
		     "%u bytes, of which %u are data", len, packet->header.len);
	GUEST_ASSERT(packet->header.src_cid == VSOCK_HOST_CID && packet->header.dst_cid == v->cid &&
			     packet->header.type == VSOCK_TYPE_STREAM,
		     "from %lu to %lu, type %u", packet->header.src_cid, packet->header.dst_cid,
		     packet->header.type);
	return packet;
}

static void stream_send(struct vsock_stream *s, enum vsock_op op, uint32_t flags, const void *data,
			uint32_t len)
{
	struct vsock_header header = {
		.src_cid = s->vsock->cid,
		.dst_cid = VSOCK_HOST_CID,
		.src_port = s->own_port,
		.dst_port = s->host_port,
		.len = len,
		.type = VSOCK_TYPE_STREAM,
		.op = op,
		.flags = flags,
		.buf_alloc = s->buf_alloc,
		.fwd_cnt = s->fwd_cnt,
	};

	vsock_send(s->vsock, &header, data);
}

void vsock_control(struct vsock_stream *s, enum vsock_op op, uint32_t flags)
{
	stream_send(s, op, flags, NULL, 0);
}

/* A packet of the stream's: its credit is noted, its data is left to the caller. */
static enum vsock_op note_packet(struct vsock_stream *s, const struct vsock_packet *packet)
{
	const struct vsock_header *h = &packet->header;

	GUEST_ASSERT(h->src_port == s->host_port && h->dst_port == s->own_port,
		     "a packet from %u to %u, not of %u and %u", h->src_port, h->dst_port,
		     s->host_port, s->own_port);
	s->peer_buf_alloc = h->buf_alloc;
	s->peer_fwd_cnt = h->fwd_cnt;
	if (h->op == VSOCK_SHUTDOWN)
		s->shut |= h->flags;
	if (h->op == VSOCK_RST)
		s->open = false;
	if (h->op == VSOCK_CREDIT_REQUEST)
		vsock_control(s, VSOCK_CREDIT_UPDATE, 0);
	return h->op;
}

void vsock_accept(struct vsock *v, struct vsock_stream *s, uint32_t port, uint32_t buf_alloc)
{
	struct vsock_packet *packet = vsock_receive(v, TIMEOUT_MS);

	GUEST_ASSERT(packet, "no request to port %u", port);
	GUEST_ASSERT(packet->header.op == VSOCK_REQUEST && packet->header.dst_port == port,
		     "op %u to port %u", packet->header.op, packet->header.dst_port);
	*s = (struct vsock_stream){.vsock = v,
				   .own_port = port,
				   .host_port = packet->header.src_port,
				   .open = true,
				   .buf_alloc = buf_alloc};
	note_packet(s, packet);
	vsock_release(v, packet);
	vsock_control(s, VSOCK_RESPONSE, 0);
}

bool vsock_connect(struct vsock *v, struct vsock_stream *s, uint32_t own_port, uint32_t host_port,
		   uint32_t buf_alloc)
{
	struct vsock_packet *packet;
	enum vsock_op op;

	*s = (struct vsock_stream){.vsock = v,
				   .own_port = own_port,
				   .host_port = host_port,
				   .open = true,
				   .buf_alloc = buf_alloc};
	vsock_control(s, VSOCK_REQUEST, 0);
	packet = vsock_receive(v, TIMEOUT_MS);
	GUEST_ASSERT(packet, "no answer from port %u", host_port);
	op = note_packet(s, packet);
	vsock_release(v, packet);
	GUEST_ASSERT(op == VSOCK_RESPONSE || op == VSOCK_RST, "op %u", op);
	return op == VSOCK_RESPONSE;
}

struct vsock_packet *vsock_read(struct vsock_stream *s)
{
	while (s->open && !(s->shut & VSOCK_SHUTDOWN_SEND)) {
		struct vsock_packet *packet = vsock_receive(s->vsock, TIMEOUT_MS);

		GUEST_ASSERT(packet, "nothing comes any more");
		if (note_packet(s, packet) == VSOCK_RW) {
			s->fwd_cnt += packet->header.len;
			return packet;
		}
		vsock_release(s->vsock, packet);
	}
	return NULL;
}

static uint32_t host_credit(const struct vsock_stream *s)
{
	return s->peer_buf_alloc - (s->tx_cnt - s->peer_fwd_cnt);
}

uint32_t vsock_write(struct vsock_stream *s, const void *data, uint32_t len,
		     void (*input)(struct vsock_packet *packet))
{
	uint32_t n;

	while (host_credit(s) == 0) {
		struct vsock_packet *packet = vsock_receive(s->vsock, TIMEOUT_MS);

		GUEST_ASSERT(packet, "no credit comes");
		s->n_stalls++;
		if (note_packet(s, packet) == VSOCK_RW) {
			s->fwd_cnt += packet->header.len;
			input(packet);
		}
		vsock_release(s->vsock, packet);
		GUEST_ASSERT(s->open, "the host reset the stream");
	}
	n = host_credit(s) < len ? host_credit(s) : len;
	stream_send(s, VSOCK_RW, 0, data, n);
	s->tx_cnt += n;
	return n;
}

void vsock_close(struct vsock_stream *s)
{
	vsock_control(s, VSOCK_SHUTDOWN, VSOCK_SHUTDOWN_BOTH);
	while (s->open) {
		struct vsock_packet *packet = vsock_receive(s->vsock, TIMEOUT_MS);

		GUEST_ASSERT(packet, "no RST for a stream that was shut");
		note_packet(s, packet);
		vsock_release(s->vsock, packet);
	}
}
