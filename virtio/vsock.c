/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The socket device's queues: packets come out of the tx queue and go to their connection, what
 * connections have for the guest goes into the rx queue, one packet each in turn. An answer that
 * belongs to no connection waits among a bounded number; when that is full, so does the tx queue
 * (virtio 1.2, 5.10.6.1). All on one loop; nothing is popped and kept, so a stop needs no wait.
 *
 * Nothing migrates: a loaded device tells its driver by an event that all connections are gone, and
 * says nothing else until the driver has offered that event's buffer again.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "base/atomic.h"
#include "base/fd.h"
#include "devices/registers.h"
#include "virtio/vsock-connection.h"

#define F_STREAM        (1ull << 0)
#define EVENT_RESET     0u           /* TRANSPORT_RESET */
#define TURN_BYTES      (256u << 10) /* a turn of the loop moves, each way */
#define PACKET_COST     64           /* bytes a packet counts for beyond its own */
#define PACKET_DATA_MAX (1u << 20)   /* no driver sends as much in one */

enum vsock_queue { QUEUE_RX, QUEUE_TX, QUEUE_EVENT, N_QUEUES };
enum vsock_message { MESSAGE_DROP };

static struct vsock *vsock_of(struct virtio_device *virtio)
{
	return container_of(virtio, struct vsock, virtio);
}

void vsock_wake(struct vsock *vsock)
{
	loop_batch(&vsock->source);
}

static void broken(struct vsock *vsock, struct virtio_queue *queue, const char *why)
{
	queue->ring.broken = true;
	virtio_broken(&vsock->virtio, why);
	/* Its connections will never hear of it again. */
	loop_post(&vsock->source, MESSAGE_DROP);
}

static void give_back(struct vsock *vsock, struct virtio_queue *queue,
		      const struct virtqueue_chain *chain, uint32_t written)
{
	uint32_t left = written;

	for (uint32_t i = 0; i < chain->n_in && left > 0; i++) {
		const struct iovec *iov = &chain->iov[chain->n_out + i];
		uint32_t here = (uint32_t)MIN((size_t)left, iov->iov_len);

		memory_mark_host(vsock->virtio.memory, iov->iov_base, here);
		left -= here;
	}
	virtqueue_push(&queue->ring, chain->head, written);
}

/* ---- packets to the guest ---- */

static bool resets_full(const struct vsock *vsock)
{
	return vsock->resets_in - vsock->resets_out == VSOCK_RESETS_MAX;
}

void vsock_reset_add(struct vsock *vsock, const struct vsock_header *header)
{
	struct vsock_reset *reset = &vsock->resets[vsock->resets_in++ % VSOCK_RESETS_MAX];

	*reset = (struct vsock_reset){
		.cid = header->dst_cid,
		.guest_port = header->src_port,
		.host_port = header->dst_port,
		.type = header->type,
	};
	vsock->n_refused++;
	vsock_wake(vsock);
}

static uint32_t fill_reset(struct vsock *vsock, const struct virtqueue_chain *chain)
{
	const struct vsock_reset *reset = &vsock->resets[vsock->resets_out++ % VSOCK_RESETS_MAX];
	const struct vsock_header header = {
		.src_cid = reset->cid,
		.dst_cid = vsock->cid,
		.src_port = reset->host_port,
		.dst_port = reset->guest_port,
		.type = reset->type,
		.op = VSOCK_OP_RST,
	};

	return (uint32_t)chain_write(chain, 0, &header, sizeof(header));
}

static bool has_packets(const struct vsock *vsock)
{
	return vsock->first_ready || vsock->resets_in != vsock->resets_out;
}

/* The next packet for the guest, 0 if those who had one have none after all. */
static uint32_t fill(struct vsock *vsock, const struct virtqueue_chain *chain)
{
	uint32_t size = 0;

	if (vsock->resets_in != vsock->resets_out)
		return fill_reset(vsock, chain);
	while (size == 0 && vsock->first_ready)
		size = vsock_connection_fill(vsock->first_ready, chain);
	return size;
}

/* One buffer; returns what it cost, 0 when there is none to be had or nothing to put in it. */
static uint32_t send_one(struct vsock *vsock, struct virtio_queue *queue)
{
	struct virtqueue_chain chain = {.iov = vsock->iov, .iov_max = ARRAY_SIZE(vsock->iov)};
	int r = virtqueue_pop(&queue->ring, &chain);
	uint32_t size;

	if (r > 0 && chain.in_bytes < sizeof(struct vsock_header)) {
		virtqueue_push(&queue->ring, chain.head, 0);
		r = -EMSGSIZE;
	}
	if (r < 0)
		broken(vsock, queue, "broke the rules of its sockets' receive queue");
	if (r <= 0)
		return 0;
	size = fill(vsock, &chain);
	if (size == 0) {
		virtqueue_unpop(&queue->ring, &chain);
		return 0;
	}
	give_back(vsock, queue, &chain, size);
	return size + PACKET_COST;
}

/* As long as there are packets and buffers, and the turn is not used up. */
static void pump(struct vsock *vsock)
{
	struct virtio_queue *queue = &vsock->virtio.queues[QUEUE_RX];
	uint32_t sent = 0, n;

	if (queue->run != VIRTIO_QUEUE_RUNS ||
	    load_relaxed(&vsock->transport) != VSOCK_TRANSPORT_WORKS)
		return;
	do {
		virtqueue_kicks_off(&queue->ring);
		n = 1;
		while (sent < TURN_BYTES && has_packets(vsock) && n > 0)
			sent += n = send_one(vsock, queue);
		virtqueue_publish(&queue->ring);
	} while (sent < TURN_BYTES && has_packets(vsock) && virtqueue_kicks_on(&queue->ring));
	if (sent >= TURN_BYTES && has_packets(vsock))
		vsock_wake(vsock); /* the rest in the next turn */
	if (vsock->tx_waits && !resets_full(vsock)) {
		vsock->tx_waits = false;
		event_signal(vsock->virtio.queues[QUEUE_TX].kick_fd);
	}
}

/* ---- packets from the guest ---- */

static void no_connection(struct vsock *vsock, const struct vsock_header *header)
{
	bool wanted = header->op == VSOCK_OP_REQUEST && header->type == VSOCK_TYPE_STREAM &&
		      header->dst_cid == VSOCK_HOST_CID;

	if (header->op == VSOCK_OP_RST || (wanted && vsock_host_request(vsock, header)))
		return;
	vsock_reset_add(vsock, header);
}

/* A packet with another's address as its sender's is nobody's. */
static void packet(struct vsock *vsock, const struct vsock_header *header,
		   const struct iovec *payload, uint32_t n_payload)
{
	struct vsock_connection *connection = NULL;

	if (header->src_cid != vsock->cid)
		return;
	if (header->dst_cid == VSOCK_HOST_CID && header->type == VSOCK_TYPE_STREAM)
		connection = vsock_connection_find(vsock, header->src_port, header->dst_port);
	if (connection)
		vsock_connection_packet(connection, header, payload, n_payload);
	else
		no_connection(vsock, header);
}

/* Its bytes, 0 when it is none. */
static uint32_t take_packet(struct vsock *vsock, const struct virtqueue_chain *chain)
{
	struct vsock_header header;
	uint32_t n;

	if (chain_read(chain, 0, &header, sizeof(header)) != sizeof(header))
		return 0;
	if (header.op != VSOCK_OP_RW)
		header.len = 0;
	if (header.len > chain->out_bytes - sizeof(header) || header.len > PACKET_DATA_MAX)
		return 0;
	n = vsock_iov_slice(chain->iov, chain->n_out, sizeof(header), header.len, vsock->payload);
	packet(vsock, &header, vsock->payload, n);
	return (uint32_t)sizeof(header) + header.len;
}

static void tx_run(struct vsock *vsock, struct virtio_queue *queue)
{
	struct virtqueue_chain chain = {.iov = vsock->iov, .iov_max = ARRAY_SIZE(vsock->iov)};
	uint32_t taken = 0;
	int r = 0;

	do {
		virtqueue_kicks_off(&queue->ring);
		while (taken < TURN_BYTES && !resets_full(vsock) &&
		       (r = virtqueue_pop(&queue->ring, &chain)) > 0) {
			uint32_t n = take_packet(vsock, &chain);

			virtqueue_push(&queue->ring, chain.head, 0);
			taken += n + PACKET_COST;
			if (n == 0)
				r = -EMSGSIZE;
			if (r < 0)
				break;
		}
		virtqueue_publish(&queue->ring);
	} while (r >= 0 && taken < TURN_BYTES && !resets_full(vsock) &&
		 virtqueue_kicks_on(&queue->ring));
	if (r < 0)
		broken(vsock, queue, "broke the rules of its sockets' send queue");
	else if (resets_full(vsock))
		vsock->tx_waits = true;
	else if (taken >= TURN_BYTES)
		event_signal(queue->kick_fd); /* the rest in the next turn */
}

/* ---- events ---- */

/*
 * How many buffers the driver has in the event queue. All are popped, so that it kicks for the
 * next it adds, and put back, the last first.
 */
static uint32_t event_buffers(struct vsock *vsock, struct virtio_queue *queue)
{
	struct virtqueue_chain chain = {.iov = vsock->iov, .iov_max = ARRAY_SIZE(vsock->iov)};
	uint32_t n = 0;
	int r = 0;

	do {
		while (n < ARRAY_SIZE(vsock->heads) &&
		       (r = virtqueue_pop(&queue->ring, &chain)) > 0)
			vsock->heads[n++] = chain.head;
	} while (n < ARRAY_SIZE(vsock->heads) && r == 0 && virtqueue_kicks_on(&queue->ring));
	if (r < 0)
		broken(vsock, queue, "broke the rules of its sockets' event queue");
	for (uint32_t i = n; i-- > 0;) {
		chain.head = vsock->heads[i];
		virtqueue_unpop(&queue->ring, &chain);
	}
	return n;
}

static bool tell_reset(struct vsock *vsock, struct virtio_queue *queue)
{
	struct virtqueue_chain chain = {.iov = vsock->iov, .iov_max = ARRAY_SIZE(vsock->iov)};
	uint32_t id = EVENT_RESET;
	int r = virtqueue_pop(&queue->ring, &chain);

	if (r > 0 && chain.in_bytes < sizeof(id)) {
		virtqueue_push(&queue->ring, chain.head, 0);
		r = -EMSGSIZE;
	}
	if (r < 0)
		broken(vsock, queue, "broke the rules of its sockets' event queue");
	if (r <= 0)
		return false;
	chain_write(&chain, 0, &id, sizeof(id));
	/* Without the one in hand; the driver answers by offering that again. */
	vsock->told_buffers = event_buffers(vsock, queue);
	give_back(vsock, queue, &chain, sizeof(id));
	virtqueue_publish(&queue->ring);
	return true;
}

static void event_run(struct vsock *vsock, struct virtio_queue *queue)
{
	uint32_t n = event_buffers(vsock, queue);

	if (load_relaxed(&vsock->transport) == VSOCK_RESET_DUE && n > 0 &&
	    tell_reset(vsock, queue)) {
		store_release(&vsock->transport, VSOCK_RESET_TOLD);
	} else if (load_relaxed(&vsock->transport) == VSOCK_RESET_TOLD && n > vsock->told_buffers) {
		store_release(&vsock->transport, VSOCK_TRANSPORT_WORKS);
		vsock_wake(vsock);
	}
}

/* ---- life ---- */

static void vsock_run(struct virtio_device *virtio, struct virtio_queue *queue)
{
	struct vsock *vsock = vsock_of(virtio);

	if (queue->ring.index == QUEUE_TX)
		tx_run(vsock, queue);
	else if (queue->ring.index == QUEUE_EVENT)
		event_run(vsock, queue);
	else
		vsock_wake(vsock);
}

static void drop_all(struct vsock *vsock)
{
	for (uint32_t i = vsock->n_connections; i-- > 0;) {
		struct vsock_connection *connection = vsock->connections[i];

		if (connection->state == VSOCK_DRAINING)
			continue;
		vsock_connection_end(connection);
		vsock_connection_settle(connection);
	}
	vsock->resets_out = vsock->resets_in;
	vsock->tx_waits = false;
}

static void vsock_event(struct loop_source *source, const struct loop_event *event)
{
	struct vsock *vsock = container_of(source, struct vsock, source);

	if (event->kind == LOOP_POST && event->arg == LOOP_BATCH)
		pump(vsock);
	else if (event->kind == LOOP_POST)
		drop_all(vsock);
	else
		vsock_host_accept(vsock);
}

static void config_read(struct virtio_device *virtio, uint32_t offset, void *data, uint32_t len)
{
	const uint64_t cid = vsock_of(virtio)->cid;

	memcpy(data, (const uint8_t *)&cid + offset, len);
}

/* On any thread: the loop drops the connections before a queue starts again. */
static void vsock_reset(struct virtio_device *virtio)
{
	struct vsock *vsock = vsock_of(virtio);

	store_release(&vsock->transport, VSOCK_TRANSPORT_WORKS);
	loop_post(&vsock->source, MESSAGE_DROP);
}

static int vsock_loaded(struct virtio_device *virtio, struct error *err _unused_)
{
	struct vsock *vsock = vsock_of(virtio);

	if (atomic_load(&virtio->status) & VIRTIO_STATUS_DRIVER_OK)
		store_release(&vsock->transport, VSOCK_RESET_DUE);
	loop_post(&vsock->source, MESSAGE_DROP);
	return 0;
}

static void vsock_counters(const struct virtio_device *virtio, json_t *into)
{
	const struct vsock *vsock = container_of(virtio, struct vsock, virtio);

	json_object_set_new(into, "connections", json_integer(vsock->n_connections));
	json_object_set_new(into, "listeners", json_integer(vsock->n_listeners));
	json_object_set_new(into, "opened", json_integer((json_int_t)vsock->n_opened));
	json_object_set_new(into, "refused", json_integer((json_int_t)vsock->n_refused));
	json_object_set_new(into, "bytes-in", json_integer((json_int_t)vsock->bytes_in));
	json_object_set_new(into, "bytes-out", json_integer((json_int_t)vsock->bytes_out));
}

static void vsock_deinit(struct virtio_device *virtio)
{
	struct vsock *vsock = vsock_of(virtio);

	while (vsock->n_connections > 0)
		vsock_connection_free(vsock->connections[vsock->n_connections - 1]);
	vsock_host_deinit(vsock);
	if (vsock->source.loop)
		loop_remove(&vsock->source);
	vsock->listen_fd = fd_close(vsock->listen_fd);
}

static const struct virtio_ops vsock_ops = {
	.type = "virtio-vsock",
	.id = 19,
	.class_code = 0x078000, /* communication, other */
	.config_read = config_read,
	.run = vsock_run,
	.reset = vsock_reset,
	.loaded = vsock_loaded,
	.counters = vsock_counters,
	.deinit = vsock_deinit,
};

static int set_up(struct vsock *vsock, struct pci_root *root, uint32_t slot, const char *name,
		  struct guest_memory *memory, struct error *err)
{
	int r = virtio_pci_init(&vsock->pci, root, slot, name, &vsock->virtio, &vsock_ops, memory,
				N_QUEUES, VSOCK_QUEUE_SIZE, &vsock->loop, 1, err);

	if (r < 0)
		return r;
	r = loop_add(vsock->loop, &vsock->source);
	if (r == 0)
		r = vsock_host_init(vsock);
	return r < 0 ? error_set(err, r, "cannot set up the sockets of %s: %s", name, strerror(-r))
		     : 0;
}

int vsock_new(struct vsock **ret_vsock, struct pci_root *root, uint32_t slot, const char *name,
	      struct guest_memory *memory, struct loop *loop, uint32_t cid, int listen_fd,
	      struct error *err)
{
	struct vsock *vsock = calloc(1, sizeof(*vsock));
	int r;

	if (!vsock) {
		fd_close(listen_fd);
		return error_set(err, -ENOMEM, "cannot set up the sockets of %s: out of memory",
				 name);
	}
	vsock->source.on_event = vsock_event;
	vsock->loop = loop;
	vsock->cid = cid;
	vsock->listen_fd = listen_fd;
	vsock->virtio.offered = F_STREAM;
	vsock->virtio.config_size = sizeof(uint64_t);
	for (size_t i = 0; i < ARRAY_SIZE(vsock->clients); i++)
		vsock->clients[i].fd = -1;
	r = set_up(vsock, root, slot, name, memory, err);
	if (r < 0) {
		vsock_free(vsock);
		return r;
	}
	*ret_vsock = vsock;
	return 0;
}

struct vsock *vsock_free(struct vsock *vsock)
{
	struct device *device;

	if (!vsock)
		return NULL;
	device = vsock_device(vsock);
	device->ops->deinit(device);
	free(vsock);
	return NULL;
}

struct device *vsock_device(struct vsock *vsock)
{
	return &vsock->pci.function.device;
}
