/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzes the socket device. The bytes are a guest and the host's processes in turn: packets of any
 * kind, buffers offered or not, lines said, streams read, written, shut, closed, resets, pauses,
 * loads. Whatever they do, tables and buffers stay within their bounds, the listener stays, and
 * after a reset all connections are over. Guest memory comes from the heap, so that the sanitizer
 * sees a byte too far.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/atomic.h"
#include "base/cursor.h"
#include "base/fd.h"
#include "base/log.h"
#include "devices/registers.h"
#include "devices/test-board.h"
#include "virtio/vsock-connection.h"

#define MEMORY    0x20000u
#define RING      16
#define CID       3
#define N_STREAMS 8
#define LISTENED  80

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { RX, TX, EVENT, N_QUEUES };

enum action {
	PACKET,
	PACKET_KNOWN, /* to a connection there is */
	OFFER_RX,
	OFFER_EVENT,
	RAW_DESCRIPTOR,
	TURN,
	CLIENT,
	CLIENT_SAYS,
	STREAM_ACCEPT,
	STREAM_WRITE,
	STREAM_READ,
	STREAM_SHUT,
	STREAM_CLOSE,
	RESET,
	PAUSE,
	LOAD,
	N_ACTIONS,
};

struct descriptor {
	uint64_t address;
	uint32_t length;
	uint16_t flags, next;
};

static struct test_board board;
static struct guest_memory memory;
static struct pci_root root;
static struct loop *loop;
static struct vsock *vsock;
static struct sockaddr_un address;
static socklen_t address_size;
static int streams[N_STREAMS], listener;
static uint32_t serial[N_QUEUES];

static void turn(void)
{
	int r = loop_turn(loop, 0);

	assert(r == 0);
	assert(vsock->n_connections <= VSOCK_CONNECTIONS_MAX);
	assert(vsock->resets_in - vsock->resets_out <= VSOCK_RESETS_MAX);
	for (uint32_t i = 0; i < vsock->n_connections; i++) {
		assert(vsock->connections[i]->place == i);
		assert(vsock->connections[i]->state != VSOCK_GONE);
		assert(byte_ring_used(&vsock->connections[i]->out) <= VSOCK_BUFFER);
	}
}

static int connect_client(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (connect(fd, (struct sockaddr *)&address, address_size) < 0)
		fd = fd_close(fd);
	return fd;
}

static void set_up(void)
{
	static const struct pci_layout layout = {
		.ecam = 0xe0000000, .window = 0xc0000000, .window_size = 1 << 20};
	const struct loop_options options = {.name = "fuzz", .without_uring = true};
	struct error err = ERROR_NULL;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int r = 0;

	signal(SIGPIPE, SIG_IGN);
	log_init("fuzz", LOG_LEVEL_ERROR);
	test_board_init(&board);
	memory = (struct guest_memory){.kind = MEMORY_PRIVATE, .n_regions = 1};
	memory.regions[0] =
		(struct memory_region){.size = MEMORY, .host = calloc(1, MEMORY), .fd = -1};
	address = (struct sockaddr_un){.sun_family = AF_UNIX};
	address_size = sizeof(address);
	r = bind(fd, (struct sockaddr *)&address, sizeof(sa_family_t)) |
	    getsockname(fd, (struct sockaddr *)&address, &address_size) | listen(fd, 16) |
	    loop_new(&loop, &options, &err) | loop_enable(loop) |
	    pci_root_init(&root, &layout, &board.io, &board.mmio, &board.irqs, &board.kicks, &err) |
	    vsock_new(&vsock, &root, 4, "vsock", &memory, loop, CID, fd, &err);
	assert(r == 0);
	for (int i = 0; i < N_STREAMS; i++)
		streams[i] = -1;
	listener = connect_client();
	r = write(listener, "LISTEN 80\n", 10) == 10;
	assert(r);
	turn();
	turn();
}

static gpa_t ring_at(uint32_t queue)
{
	return 0x1000 + 0x1000 * queue;
}

static void put(gpa_t gpa, const void *data, size_t size)
{
	int r = memory_write(&memory, gpa, data, size);

	assert(r == 0 || r == -EFAULT);
}

static void start(bool event_index)
{
	struct virtio_device *virtio = &vsock->virtio;

	for (uint32_t i = 0; i < N_QUEUES; i++) {
		const uint64_t zero[32] = {0};

		put(ring_at(i) + 0x400, zero, sizeof(zero));
		put(ring_at(i) + 0x800, zero, sizeof(zero));
		serial[i] = 0;
		virtio->queues[i].ring.state = (struct virtqueue_state){
			.size = RING,
			.enabled = true,
			.descriptors = ring_at(i),
			.available = ring_at(i) + 0x400,
			.used = ring_at(i) + 0x800,
			.vector = VIRTQUEUE_NO_VECTOR,
		};
	}
	pthread_mutex_lock(&virtio->device->lock);
	virtio->accepted = VIRTIO_F_VERSION_1 | (event_index ? VIRTIO_F_EVENT_IDX : 0);
	atomic_store(&virtio->status, 15);
	virtio_start(virtio);
	pthread_mutex_unlock(&virtio->device->lock);
	turn();
}

/* One chain of one descriptor, whatever may already lie at that place of the ring. */
static void offer(uint32_t queue, uint64_t gpa, uint32_t length, uint16_t flags)
{
	uint16_t head = (uint16_t)(serial[queue] % RING), index;
	const struct descriptor descriptor = {gpa, length, flags, 0};

	put(ring_at(queue) + 16 * head, &descriptor, sizeof(descriptor));
	put(ring_at(queue) + 0x404 + 2 * head, &head, 2);
	index = (uint16_t)++serial[queue];
	put(ring_at(queue) + 0x402, &index, 2);
	event_signal(vsock->virtio.queues[queue].kick_fd);
}

/* 44 bytes and some of payload: small numbers for most, so that they meet what there is. */
static void packet(struct cursor *in, const struct vsock_connection *known)
{
	gpa_t place = 0x8000 + 0x400 * (serial[TX] % RING);
	uint8_t shape = cursor_get_u8(in);
	struct vsock_header header = {
		.src_cid = shape & 1 && shape & 2 ? cursor_get_u8(in) : CID,
		.dst_cid = shape & 1 && shape & 4 ? cursor_get_u8(in) : VSOCK_HOST_CID,
		.type = shape & 1 && shape & 8 ? cursor_get_u8(in) : VSOCK_TYPE_STREAM,
		.op = cursor_get_u8(in) & 15,
		.flags = cursor_get_u8(in) & 7,
		.src_port = known ? known->guest_port : cursor_get_u8(in) & 15u,
		.dst_port = known ? known->host_port : LISTENED,
		.buf_alloc = shape & 16 ? cursor_get_u32(in) : 65536,
		.fwd_cnt = shape & 32 ? cursor_get_u32(in)
			   : known    ? known->tx_cnt
				      : 0,
		.len = cursor_get_u16(in) & 0x3fff,
	};
	uint32_t length = (uint32_t)sizeof(header) + header.len;

	if (shape & 64)
		length = cursor_get_u16(in);
	put(place, &header, sizeof(header));
	offer(TX, place, length, 0);
}

static const struct vsock_connection *any_connection(struct cursor *in)
{
	uint8_t i = cursor_get_u8(in);

	return vsock->n_connections ? vsock->connections[i % vsock->n_connections] : NULL;
}

static int *any_stream(struct cursor *in)
{
	return &streams[cursor_get_u8(in) % N_STREAMS];
}

static void client(struct cursor *in)
{
	int *stream = any_stream(in);
	char line[32];
	int n = snprintf(line, sizeof(line), "CONNECT %u\n", cursor_get_u8(in));

	fd_close(*stream);
	*stream = connect_client();
	if (*stream >= 0 && send(*stream, line, (size_t)n, MSG_NOSIGNAL) < 0)
		*stream = fd_close(*stream);
}

static void client_says(struct cursor *in)
{
	int *stream = any_stream(in);
	size_t n = MIN((size_t)cursor_get_u8(in), cursor_left(in));
	const void *bytes = cursor_get_view(in, n);

	fd_close(*stream);
	*stream = connect_client();
	if (*stream >= 0 && bytes && send(*stream, bytes, n, MSG_NOSIGNAL) < 0)
		*stream = fd_close(*stream);
}

static bool stream_accept(int *stream)
{
	char line[VSOCK_LINE_MAX];
	size_t n_fds = 0;
	int fd = -1;

	if (fd_receive(listener, line, sizeof(line), &fd, 1, &n_fds) <= 0)
		return false;
	if (n_fds == 0)
		return true;
	fd_close(*stream);
	*stream = fd;
	return true;
}

static void stream_move(struct cursor *in, bool into)
{
	static uint8_t bytes[65536];
	int stream = *any_stream(in);
	size_t n = cursor_get_u16(in);

	if (stream < 0)
		return;
	if (into ? send(stream, bytes, n, MSG_DONTWAIT | MSG_NOSIGNAL) < 0
		 : recv(stream, bytes, n, MSG_DONTWAIT) < 0)
		return;
}

static void on_done(struct device_waiter *waiter _unused_, struct device *device _unused_)
{
}

static void machine_pause(void)
{
	static struct device_waiter waiter = {on_done};
	struct device *device = vsock_device(vsock);

	device->ops->pause(device, &waiter);
	for (int i = 0; i < 4; i++)
		turn();
	for (uint32_t i = 0; i < N_QUEUES; i++)
		assert(vsock->virtio.queues[i].run == VIRTIO_QUEUE_RESTS);
}

static void machine_reset(void)
{
	struct device *device = vsock_device(vsock);

	machine_pause();
	device->ops->reset(device);
	device->ops->resume(device);
	turn();
	for (uint32_t i = 0; i < vsock->n_connections; i++)
		assert(vsock->connections[i]->state == VSOCK_DRAINING);
}

static void load(void)
{
	static uint8_t stream[16384];
	struct cursor state = cursor_writer(stream, sizeof(stream));
	struct device *device = vsock_device(vsock);
	struct error err = ERROR_NULL;
	int r;

	machine_pause();
	vsock->pci.state.driver_features = vsock->virtio.accepted;
	r = device_save(device, &state);
	assert(r == 0);
	device->ops->reset(device);
	state = cursor_reader(stream, state.at);
	r = device_load(device, &state, &err);
	assert(r == 0);
	device->ops->resume(device);
	turn();
}

static void act(struct cursor *in)
{
	const struct vsock_connection *known;
	int *stream;

	switch (cursor_get_u8(in) % N_ACTIONS) {
	case PACKET:
		packet(in, NULL);
		break;
	case PACKET_KNOWN:
		known = any_connection(in);
		packet(in, known);
		break;
	case OFFER_RX:
		offer(RX, 0x10000 + 0x1000 * (serial[RX] % RING),
		      cursor_get_u8(in) & 1 ? 0x1000 : 44 + cursor_get_u8(in), 2);
		break;
	case OFFER_EVENT:
		offer(EVENT, 0x7000, cursor_get_u8(in) & 15, 2);
		break;
	case RAW_DESCRIPTOR:
		offer(cursor_get_u8(in) % N_QUEUES, cursor_get_u32(in), cursor_get_u16(in),
		      cursor_get_u8(in) & 7);
		break;
	case TURN:
		turn();
		break;
	case CLIENT:
		client(in);
		break;
	case CLIENT_SAYS:
		client_says(in);
		break;
	case STREAM_ACCEPT:
		(void)stream_accept(any_stream(in));
		break;
	case STREAM_WRITE:
		stream_move(in, true);
		break;
	case STREAM_READ:
		stream_move(in, false);
		break;
	case STREAM_SHUT:
		stream = any_stream(in);
		if (*stream >= 0 && shutdown(*stream, cursor_get_u8(in) % 3) < 0)
			*stream = fd_close(*stream);
		break;
	case STREAM_CLOSE:
		stream = any_stream(in);
		*stream = fd_close(*stream);
		break;
	case RESET:
		machine_reset();
		start(cursor_get_u8(in) & 1);
		break;
	case PAUSE:
		machine_pause();
		vsock_device(vsock)->ops->resume(vsock_device(vsock));
		break;
	case LOAD:
		load();
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct cursor in = cursor_reader(data, size);

	if (!loop)
		set_up();
	start(cursor_get_u8(&in) & 1);
	while (cursor_left(&in) > 0)
		act(&in);
	turn();
	while (stream_accept(&streams[0]))
		;
	for (int i = 0; i < N_STREAMS; i++)
		streams[i] = fd_close(streams[i]);
	machine_reset();
	for (int i = 0; i < 4; i++)
		turn();
	assert(vsock->n_connections == 0);
	assert(vsock->n_listeners >= 1);
	memset(memory.regions[0].host, 0, MEMORY);
	return 0;
}
