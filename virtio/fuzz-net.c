/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzes a network card of two pairs behind its PCI function: registers, rings and headers of a
 * guest; ports that are full, fail, bring frames of any length, vanish and come back; pauses,
 * resets, loads of a bent state. Nothing may crash, nothing stay under way for ever, no frame may
 * reach outside of guest memory, and no header a port sees may lie. Guest memory comes from the
 * heap, so that the sanitizer sees a byte too far.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/cursor.h"
#include "base/log.h"
#include "devices/registers.h"
#include "devices/test-board.h"
#include "virtio/net-card.h"

#define LOW_SIZE   0x10000u
#define HIGH_START 0x100000u
#define HIGH_SIZE  0x14000u /* room for a frame too long */
#define PAIRS      2
#define QUEUES     (2 * PAIRS + 1)
#define RING       16
#define SLOT       1
#define WAIT_NS    5000000000u

/* Of the common configuration. */
#define STATUS       20
#define QUEUE_SELECT 22
#define QUEUE_SIZE   24
#define QUEUE_ENABLE 28
#define DESCRIPTORS  32
#define AVAILABLE    40
#define USED         48

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum action {
	BAR_WRITE,
	BAR_READ,
	MEMORY_WRITE,
	START,
	TRANSMIT,
	PROVIDE,
	CONTROL,
	KICK,
	TURN,
	PORT_MOOD,
	PORT_END,
	PORT_LEND,
	PORT_FILL,
	PORT_RECEIVE,
	PORT_LINK,
	PLUG,
	ANNOUNCE,
	DEVICE_RESET,
	PAUSE,
	BOARD_RESET,
	LOAD,
	TRACK,
	N_ACTIONS,
};

static struct port {
	struct net_port port;
	bool started, attached;
	enum { WELL, FULL, FAILS, HOLDS } mood;
	uint32_t args[NET_QUEUE_SIZE], n_args; /* sent, not ended */
	struct iovec iov[64];
	uint32_t n_iov; /* lent */
} ports[PAIRS];

static struct test_board board;
static struct guest_memory memory;
static struct pci_root root;
static struct loop *loop;
static struct net *net;
static uint8_t scratch[2 * NET_FRAME_MAX];

/* The ports */

static struct port *port_of(struct net_port *port)
{
	return container_of(port, struct port, port);
}

static const struct net_client_ops *client_of(const struct port *port)
{
	return port->port.client->ops;
}

static void port_start(struct net_port *net_port, uint32_t offloads _unused_)
{
	struct port *port = port_of(net_port);

	assert(!port->started && port->attached && port->n_args == 0 && port->n_iov == 0);
	port->started = true;
}

static void port_stop(struct net_port *net_port)
{
	assert(port_of(net_port)->started);
	port_of(net_port)->started = false;
}

static void port_attach(struct net_port *net_port, bool attached)
{
	struct port *port = port_of(net_port);

	assert(!port->started && port->attached != attached);
	port->attached = attached;
}

static void port_accept(struct net_port *net_port _unused_, uint32_t offloads _unused_)
{
}

/* Every byte is looked at, for the sanitizer; the header tells the truth. */
static int port_send(struct net_port *net_port, const struct iovec *iov, uint32_t n_iov,
		     uint32_t size, uint32_t arg)
{
	struct port *port = port_of(net_port);
	struct net_header header, again;
	uint32_t at = 0;

	assert(port->started && n_iov >= 2 && n_iov <= NET_IOV_MAX);
	assert(size >= NET_FRAME_MIN && size <= NET_FRAME_MAX && arg < NET_QUEUE_SIZE);
	assert(iov[0].iov_len == NET_HEADER_SIZE);
	for (uint32_t i = 0; i < n_iov; at += iov[i++].iov_len) {
		assert(iov[i].iov_len > 0 && iov[i].iov_len <= size - at);
		memcpy(scratch + at, iov[i].iov_base, iov[i].iov_len);
	}
	assert(at == size);
	memcpy(&header, scratch, sizeof(header));
	again = header;
	assert(net_header_check_out(&again, size - NET_HEADER_SIZE, net->virtio.accepted));
	assert(memcmp(&header, &again, sizeof(header)) == 0);
	if (port->mood == FULL || port->n_args == NET_QUEUE_SIZE)
		return -EBUSY;
	if (port->mood == FAILS)
		return -EIO;
	port->args[port->n_args++] = arg;
	return 0;
}

static void port_end(struct port *port, int result)
{
	while (port->n_args > 0)
		client_of(port)->sent(port->port.client, port->args[--port->n_args], result);
	client_of(port)->room(port->port.client);
	client_of(port)->batch(port->port.client);
}

static void port_flush(struct net_port *net_port)
{
	if (port_of(net_port)->mood != HOLDS)
		port_end(port_of(net_port), 0);
}

static void port_lend(struct port *port, uint32_t max)
{
	if (!port->started || port->n_iov > 0)
		return;
	port->n_iov = client_of(port)->lend(port->port.client, port->iov, max);
	assert(port->n_iov <= max);
}

static void port_fill(struct port *port, uint32_t size, uint8_t seed)
{
	uint32_t at = 0, n = port->n_iov;

	if (n == 0)
		return;
	for (uint32_t i = 0; i < n && at < size; i++) {
		uint32_t here = (uint32_t)MIN(port->iov[i].iov_len, (size_t)(size - at));

		memset(port->iov[i].iov_base, i == 0 ? seed : (int)i, here);
		at += here;
	}
	port->n_iov = 0;
	client_of(port)->filled(port->port.client, at);
	client_of(port)->batch(port->port.client);
}

static void port_receive(struct port *port, uint32_t size, uint8_t seed)
{
	if (!port->started || port->n_iov > 0)
		return;
	memset(scratch, seed, size);
	client_of(port)->receive(port->port.client, scratch, size);
	client_of(port)->batch(port->port.client);
}

static void port_ready(struct net_port *net_port)
{
	assert(port_of(net_port)->started);
}

static void port_free(struct net_port *net_port _unused_)
{
}

static const struct net_port_ops port_ops = {
	.name = "fuzz",
	.start = port_start,
	.stop = port_stop,
	.attach = port_attach,
	.accept = port_accept,
	.send = port_send,
	.flush = port_flush,
	.ready = port_ready,
	.free = port_free,
};

/* The card */

static void set_up_memory(void)
{
	memory = (struct guest_memory){.kind = MEMORY_PRIVATE, .n_regions = 2};
	memory.regions[0] =
		(struct memory_region){.size = LOW_SIZE, .host = calloc(1, LOW_SIZE), .fd = -1};
	memory.regions[1] = (struct memory_region){
		.start = HIGH_START, .size = HIGH_SIZE, .host = calloc(1, HIGH_SIZE), .fd = -1};
}

static void set_up(void)
{
	static const struct pci_layout layout = {
		.ecam = 0xe0000000, .window = 0xc0000000, .window_size = 1 << 20};
	const struct loop_options options = {.name = "fuzz"};
	struct net_port *list[PAIRS];
	struct net_options net_options = {.name = "net0",
					  .mac = {0x52, 0x54, 0, 1, 2, 3},
					  .mtu = 1500,
					  .n_pairs = PAIRS,
					  .ports = list};
	struct error err = ERROR_NULL;
	int r;

	log_init("fuzz", LOG_LEVEL_ERROR);
	test_board_init(&board);
	set_up_memory();
	for (uint32_t i = 0; i < PAIRS; i++) {
		ports[i] = (struct port){.port = {.ops = &port_ops, .offloads = 31, .fd = -1},
					 .attached = true};
		list[i] = &ports[i].port;
	}
	r = loop_new(&loop, &options, &err);
	assert(r == 0);
	r = loop_enable(loop);
	assert(r == 0);
	r = pci_root_init(&root, &layout, &board.io, &board.mmio, &board.irqs, &board.kicks, &err);
	assert(r == 0);
	r = net_new(&net, &root, SLOT, &memory, &loop, 1, &net_options, &err);
	assert(r == 0);
}

static void bar_write(uint32_t offset, uint64_t value, uint32_t len)
{
	uint64_t base = atomic_load(&net->pci.function.bars[0].address);

	bus_write(&board.mmio, base + offset, &value, len);
}

static void bar_read(uint32_t offset, uint32_t len)
{
	uint64_t base = atomic_load(&net->pci.function.bars[0].address), value = 0;

	bus_read(&board.mmio, base + offset, &value, len);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* A port that was stopped gives back what it has. */
static void turn(uint64_t deadline)
{
	int r = loop_turn(loop, deadline);

	assert(r == 0);
	for (uint32_t i = 0; i < PAIRS; i++) {
		if (ports[i].started)
			continue;
		port_end(&ports[i], 0);
		port_fill(&ports[i], 0, 0);
	}
}

static bool paused;

static void on_done(struct device_waiter *waiter _unused_, struct device *of _unused_)
{
	paused = true;
}

/* What is not over in the end, hangs. */
static void pause_device(void)
{
	static struct device_waiter waiter = {on_done};
	uint64_t end = now_ns() + WAIT_NS;

	paused = false;
	net_device(net)->ops->pause(net_device(net), &waiter);
	while (!paused) {
		assert(now_ns() < end);
		turn(now_ns() + 1000000);
	}
	for (uint32_t i = 0; i < QUEUES; i++)
		assert(net->virtio.queues[i].run == VIRTIO_QUEUE_RESTS &&
		       net->virtio.queues[i].ring.in_flight == 0);
	for (uint32_t i = 0; i < PAIRS; i++)
		assert(!ports[i].started && net->pairs[i].rx.n_chains == 0);
}

static void resume_device(void)
{
	net_device(net)->ops->resume(net_device(net));
	turn(0);
}

static void machine_reset(void)
{
	pause_device();
	net_device(net)->ops->reset(net_device(net));
	root.device.ops->reset(&root.device);
	resume_device();
	assert(atomic_load(&net->virtio.status) == 0);
}

/* The state goes out, one byte of it is bent, it comes in again. What is refused ends in a reset.
 */
static void load(struct cursor *in)
{
	static uint8_t stream[16384];
	uint16_t at = cursor_get_u16(in);
	uint8_t bits = cursor_get_u8(in);
	struct cursor state = cursor_writer(stream, sizeof(stream));
	struct error err = ERROR_NULL;
	int r;

	pause_device();
	r = device_save(net_device(net), &state);
	assert(r == 0);
	stream[at % state.at] ^= bits;
	state = cursor_reader(stream, state.at);
	r = device_load(net_device(net), &state, &err);
	if (r < 0 && bits == 0)
		fprintf(stderr, "%s\n", err.text);
	assert(r == 0 || (r == err.code && *err.text && bits)); /* what it saved itself, it loads */
	if (r < 0)
		net_device(net)->ops->reset(net_device(net));
	resume_device();
}

/* The guest */

/* Where a ring lies when the guest behaves. */
static gpa_t ring_at(uint32_t queue)
{
	return 0x1000 + 0x1000 * queue;
}

/* A good driver's way to DRIVER_OK, with any features of those there are. */
static void start(struct cursor *in)
{
	uint64_t features = cursor_get_u64(in);

	for (uint32_t i = 0; i < 8; i++)
		bar_write(STATUS, 0, 1), turn(0);
	bar_write(STATUS, 3, 1);
	features = (features & net->virtio.offered) | VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC;
	for (uint32_t i = 0; i < 2; i++) {
		bar_write(8, i, 4);
		bar_write(12, (uint32_t)(features >> 32 * i), 4);
	}
	bar_write(STATUS, 11, 1);
	for (uint32_t i = 0; i < QUEUES; i++) {
		uint16_t zero = 0;

		bar_write(QUEUE_SELECT, i, 2);
		bar_write(QUEUE_SIZE, RING, 2);
		bar_write(DESCRIPTORS, ring_at(i), 8);
		bar_write(AVAILABLE, ring_at(i) + 0x400, 8);
		bar_write(USED, ring_at(i) + 0x800, 8);
		bar_write(QUEUE_ENABLE, 1, 2);
		if (memory_write(&memory, ring_at(i) + 0x402, &zero, 2) < 0)
			return;
	}
	bar_write(STATUS, 15, 1);
	turn(0);
}

static void put_descriptor(gpa_t table, uint32_t i, uint64_t address, uint32_t length,
			   uint16_t flags)
{
	const struct {
		uint64_t address;
		uint32_t length;
		uint16_t flags, next;
	} bytes = {address, length, flags, (uint16_t)(i + 1)};
	int r = memory_write(&memory, table + 16 * i, &bytes, sizeof(bytes));

	assert(r == 0);
}

static void make_available(uint32_t queue, uint32_t head)
{
	uint16_t index = 0, head16 = (uint16_t)head;
	int r = memory_read(&memory, ring_at(queue) + 0x402, &index, 2);

	assert(r == 0);
	r = memory_write(&memory, ring_at(queue) + 0x404 + index % RING * 2, &head16, 2);
	assert(r == 0);
	index++;
	r = memory_write(&memory, ring_at(queue) + 0x402, &index, 2);
	assert(r == 0);
	event_signal(net->virtio.queues[queue].kick_fd);
}

/*
 * A chain in an indirect table: `n` equal pieces, then a rest, from `at` on. A header, an Ethernet
 * type or whatever the bytes say stands at its beginning.
 */
static void offer(struct cursor *in, uint32_t queue, uint16_t flags)
{
	static uint32_t serial;
	uint32_t n = cursor_get_u8(in) % 100, length = cursor_get_u16(in) % 1024,
		 rest = cursor_get_u16(in);
	size_t n_bytes = MIN((size_t)cursor_get_u8(in) % 64, cursor_left(in));
	const void *bytes = cursor_get_view(in, n_bytes);
	uint32_t head = serial++ % RING;
	gpa_t table = 0x7000 + 0x800 * head, at = n ? HIGH_START : HIGH_START + 0x100 * head;

	if (bytes && memory_write(&memory, at, bytes, n_bytes) < 0)
		return;
	for (uint32_t i = 0; i < n; i++) {
		put_descriptor(table, i, at, length, flags | 1);
		at += length;
	}
	put_descriptor(table, n, at, rest * 2, flags);
	put_descriptor(ring_at(queue), head, table, 16 * (n + 1), 4);
	make_available(queue, head);
}

static void control(struct cursor *in)
{
	static uint32_t serial;
	uint32_t queue = virtio_has(&net->virtio, NET_F_MQ) ? 2 * PAIRS : 2;
	uint32_t size = 2 + cursor_get_u8(in) % 40, head = serial++ % (RING / 2) * 2;
	size_t n_bytes = MIN((size_t)size, cursor_left(in));
	const void *bytes = cursor_get_view(in, n_bytes);
	gpa_t at = 0xf000 + 0x80 * head;

	if (bytes && memory_write(&memory, at, bytes, n_bytes) < 0)
		return;
	put_descriptor(ring_at(queue), head, at, size, 1);
	put_descriptor(ring_at(queue), head + 1, at + 0x70, 1, 2);
	make_available(queue, head);
}

static void write_memory(struct cursor *in)
{
	uint64_t gpa = cursor_get_u16(in);
	size_t n = MIN((size_t)cursor_get_u8(in), cursor_left(in));
	const void *bytes = cursor_get_view(in, n);

	if (gpa >= 0xf800)
		gpa = HIGH_START + (gpa - 0xf800) * 32;
	if (bytes && memory_write(&memory, gpa, bytes, n) < 0)
		return;
}

static void track(void)
{
	uint64_t bits[1] = {0};
	int r = memory_track_start(&memory);

	assert(r == 0);
	memory_track_take(&memory, 0, bits, 1);
}

static void act_as_port(struct cursor *in, enum action action)
{
	uint8_t which = cursor_get_u8(in);
	struct port *port = &ports[which % PAIRS];
	uint32_t size;

	switch (action) {
	case PORT_MOOD:
		port->mood = which / PAIRS % 4;
		break;
	case PORT_END:
		port_end(port, which & 2 ? -EIO : 0);
		break;
	case PORT_LEND:
		port_lend(port, 3 + which / PAIRS % 62);
		break;
	case PORT_FILL:
		size = cursor_get_u16(in) * (1 + (which >> 1 & 1));
		port_fill(port, MIN(size, NET_FRAME_MAX + 1u), which >> 2);
		break;
	case PORT_RECEIVE:
		size = cursor_get_u16(in) * (1 + (which >> 1 & 1));
		port_receive(port, size, which >> 2);
		break;
	default:
		client_of(port)->link(port->port.client, which & 2, "the fuzzer says so");
	}
}

static void act(struct cursor *in)
{
	enum action action = cursor_get_u8(in) % N_ACTIONS;
	uint32_t len, offset;

	switch (action) {
	case BAR_WRITE:
		len = 1u << (cursor_get_u8(in) & 3);
		offset = cursor_get_u16(in) & 0x7fff;
		bar_write(offset, cursor_get_u64(in), len);
		break;
	case BAR_READ:
		len = 1u << (cursor_get_u8(in) & 3);
		bar_read(cursor_get_u16(in) & 0x7fff, len);
		break;
	case MEMORY_WRITE:
		write_memory(in);
		break;
	case START:
		start(in);
		break;
	case TRANSMIT:
		offer(in, 2 * (cursor_get_u8(in) % PAIRS) + NET_TX, 0);
		break;
	case PROVIDE:
		offer(in, 2 * (cursor_get_u8(in) % PAIRS) + NET_RX, 2);
		break;
	case CONTROL:
		control(in);
		break;
	case KICK:
		event_signal(net->virtio.queues[cursor_get_u8(in) % QUEUES].kick_fd);
		break;
	case TURN:
		turn(0);
		break;
	case PLUG:
		net_set_link(net, cursor_get_u8(in) & 1);
		break;
	case ANNOUNCE:
		net_announce(net);
		break;
	case DEVICE_RESET:
		bar_write(STATUS, 0, 1);
		break;
	case PAUSE:
		pause_device();
		resume_device();
		break;
	case BOARD_RESET:
		machine_reset();
		break;
	case LOAD:
		load(in);
		break;
	case TRACK:
		track();
		break;
	default:
		act_as_port(in, action);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct cursor in = cursor_reader(data, size);

	if (!loop)
		set_up();
	while (cursor_left(&in) > 0)
		act(&in);
	turn(0);
	machine_reset();
	for (uint32_t i = 0; i < PAIRS; i++) {
		ports[i].mood = WELL;
		client_of(&ports[i])->link(ports[i].port.client, true, "");
	}
	net_set_link(net, true);
	turn(0);
	memory_track_stop(&memory);
	memset(memory.regions[0].host, 0, LOW_SIZE);
	memset(memory.regions[1].host, 0, HIGH_SIZE);
	return 0;
}
