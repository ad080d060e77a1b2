/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The network card against a driver in memory and ports of this file's own: they keep what is sent,
 * complete it when the test says so, and offer frames by either way. The kernel's vhost-net is
 * played by this file, too.
 */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <time.h>

#include "devices/registers.h"
#include "devices/test-board.h"
#include "virtio/net-card.h"
#include "virtio/test-driver.h"

#define PAIRS    3
#define SENT_MAX 1024
#define RX       0
#define TX       1
#define OFFLOADS \
	(NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_ECN | NET_OFFLOAD_USO)
#define STATUS_UP       1
#define STATUS_ANNOUNCE 2

static const uint8_t mac[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x56};

/* The port */

struct sent {
	uint8_t bytes[NET_HEADER_SIZE + 128]; /* its beginning */
	uint8_t last;
	uint32_t size, n_iov, arg;
	const void *second; /* where the first piece behind the header was */
	bool ended;
};

static struct fake {
	struct net_port port;
	struct net_port_ops ops;
	bool started, attached, freed;
	uint32_t n_starts, n_stops, n_ready, n_flushes, accepted;
	struct sent sent[SENT_MAX];
	uint32_t n_sent;
	uint32_t room;        /* under way at most */
	uint32_t n_under_way; /* sent, not ended */
	bool holds;           /* nothing ends by itself */
	int send_error;
	uint32_t greedy_left; /* each failing frame is offered once more */
	struct iovec iov[80];
	uint32_t n_iov;
} ports[PAIRS];

static struct test_board board;
static struct test_driver driver;
static struct pci_root root;
static struct net *net;

static struct fake *fake_of(struct net_port *port)
{
	return container_of(port, struct fake, port);
}

static const struct net_client_ops *client_of(const struct fake *fake)
{
	return fake->port.client->ops;
}

static void fake_start(struct net_port *port, uint32_t offloads)
{
	struct fake *fake = fake_of(port);

	cr_assert(!fake->started && fake->attached);
	fake->started = true;
	fake->n_starts++;
	fake->accepted = offloads;
}

static void fake_stop(struct net_port *port)
{
	struct fake *fake = fake_of(port);

	cr_assert(fake->started);
	fake->started = false;
	fake->n_stops++;
}

static void fake_attach(struct net_port *port, bool attached)
{
	struct fake *fake = fake_of(port);

	cr_assert(!fake->started && fake->attached != attached && fake->n_under_way == 0);
	fake->attached = attached;
}

static void fake_accept(struct net_port *port, uint32_t offloads)
{
	fake_of(port)->accepted = offloads;
}

static int fake_send(struct net_port *port, const struct iovec *iov, uint32_t n_iov, uint32_t size,
		     uint32_t arg)
{
	struct fake *fake = fake_of(port);
	struct sent *sent = &fake->sent[fake->n_sent];
	uint32_t at = 0;

	cr_assert(fake->started, "sent to a port that is stopped");
	if (fake->greedy_left > 0) {
		fake->greedy_left--;
		driver.rings[TX].available->index++;
	}
	if (fake->send_error)
		return fake->send_error;
	if (fake->n_under_way >= fake->room)
		return -EBUSY;
	cr_assert_lt(fake->n_sent, SENT_MAX);
	cr_assert(n_iov >= 2 && n_iov <= NET_IOV_MAX && iov[0].iov_len == NET_HEADER_SIZE);
	*sent = (struct sent){.size = size, .n_iov = n_iov, .arg = arg};
	sent->second = iov[1].iov_base;
	for (uint32_t i = 0; i < n_iov; i++) {
		cr_assert_gt(iov[i].iov_len, 0);
		for (size_t j = 0; j < iov[i].iov_len; j++, at++) {
			sent->last = ((uint8_t *)iov[i].iov_base)[j];
			if (at < sizeof(sent->bytes))
				sent->bytes[at] = sent->last;
		}
	}
	cr_assert_eq(at, size, "the pieces are not the frame");
	fake->n_sent++;
	fake->n_under_way++;
	return 0;
}

static void end(struct fake *fake, uint32_t i, int result)
{
	cr_assert(i < fake->n_sent && !fake->sent[i].ended);
	fake->sent[i].ended = true;
	fake->n_under_way--;
	client_of(fake)->sent(fake->port.client, fake->sent[i].arg, result);
}

static void end_all(struct fake *fake, int result)
{
	for (uint32_t i = 0; i < fake->n_sent; i++)
		if (!fake->sent[i].ended)
			end(fake, i, result);
	client_of(fake)->batch(fake->port.client);
}

static void fake_flush(struct net_port *port)
{
	struct fake *fake = fake_of(port);

	fake->n_flushes++;
	if (!fake->holds)
		end_all(fake, 0);
}

static void fake_ready(struct net_port *port)
{
	cr_assert(fake_of(port)->started);
	fake_of(port)->n_ready++;
}

static void fake_free(struct net_port *port)
{
	fake_of(port)->freed = true;
}

/* vhost-net */

struct vhost_net {
	bool runs[2];
	uint32_t n_starts, n_stops, n_calls;
	int error;
	bool freed;
};
static struct vhost_net kernel;

struct vhost_net *vhost_net_free(struct vhost_net *vhost)
{
	if (vhost)
		vhost->freed = true;
	return NULL;
}

uint64_t vhost_net_features(const struct vhost_net *vhost _unused_)
{
	return ~NET_F_GUEST_USO4;
}

int vhost_net_start(struct vhost_net *vhost, uint32_t queue, const struct virtqueue *ring,
		    int kick_fd, uint64_t features)
{
	cr_assert(!vhost->runs[queue] && ring->used_ring && kick_fd >= 0 &&
		  features & VIRTIO_F_VERSION_1);
	if (vhost->error)
		return vhost->error;
	vhost->runs[queue] = true;
	vhost->n_starts++;
	return 0;
}

int vhost_net_stop(struct vhost_net *vhost, uint32_t queue, struct virtqueue *ring _unused_)
{
	cr_assert(vhost->runs[queue]);
	vhost->runs[queue] = false;
	vhost->n_stops++;
	return 0;
}

int vhost_net_call(struct vhost_net *vhost, uint32_t queue, int call_fd _unused_)
{
	cr_assert(vhost->runs[queue]);
	vhost->n_calls++;
	return 0;
}

/* The card */

static void fake_init(struct fake *fake, uint32_t offloads)
{
	memset(fake, 0, sizeof(*fake));
	fake->ops = (struct net_port_ops){
		.name = "fake",
		.start = fake_start,
		.stop = fake_stop,
		.attach = fake_attach,
		.accept = fake_accept,
		.send = fake_send,
		.flush = fake_flush,
		.ready = fake_ready,
		.free = fake_free,
	};
	fake->port = (struct net_port){.ops = &fake->ops, .offloads = offloads, .fd = -1};
	fake->room = SENT_MAX;
	fake->attached = true;
}

static int make_net(struct net **ret_net, struct pci_root *on, uint32_t slot,
		    struct net_options *options, struct error *err)
{
	static struct net_port *const list[PAIRS] = {&ports[0].port, &ports[1].port,
						     &ports[2].port};

	options->name = "net0";
	memcpy(options->mac, mac, sizeof(mac));
	options->n_pairs = options->n_pairs ? options->n_pairs : 1;
	options->ports = (struct net_port **)(uintptr_t)list;
	return net_new(ret_net, on, slot, &driver.memory, &driver.loop, 1, options, err);
}

static void make(struct net_options options)
{
	struct error err = ERROR_NULL;

	cr_assert_eq(make_net(&net, &root, 1, &options, &err), 0, "%s", err.text);
	test_driver_turn(&driver);
}

static void set_up_board(void)
{
	static const struct pci_layout layout = {
		.ecam = 0xe0000000, .window = 0xc0000000, .window_size = 1 << 20};
	struct error err = ERROR_NULL;

	test_board_init(&board);
	test_driver_init(&driver);
	for (uint32_t i = 0; i < PAIRS; i++)
		fake_init(&ports[i], OFFLOADS);
	memset(&kernel, 0, sizeof(kernel));
	cr_assert_eq(pci_root_init(&root, &layout, &board.io, &board.mmio, &board.irqs,
				   &board.kicks, &err),
		     0, "%s", err.text);
}

static void set_up(void)
{
	set_up_board();
	make((struct net_options){0});
}

static void set_up_pairs(void)
{
	set_up_board();
	make((struct net_options){.n_pairs = PAIRS});
}

static void tear_down(void)
{
	net = net_free(net);
	test_driver_deinit(&driver);
	test_board_deinit(&board);
}

TestSuite(net, .init = set_up, .fini = tear_down);
TestSuite(net_pairs, .init = set_up_pairs, .fini = tear_down);
TestSuite(net_made, .init = set_up_board, .fini = tear_down);

#define FEATURES_TX                                                                         \
	(NET_F_CSUM | NET_F_HOST_TSO4 | NET_F_HOST_TSO6 | NET_F_HOST_ECN | NET_F_HOST_USO | \
	 NET_F_STATUS | NET_F_CTRL_VQ)
#define FEATURES_RX \
	(NET_F_GUEST_CSUM | NET_F_GUEST_TSO4 | NET_F_GUEST_TSO6 | NET_F_GUEST_ECN | NET_F_MRG_RXBUF)
#define FEATURES_CONTROL                                                             \
	(NET_F_CTRL_VQ | NET_F_CTRL_RX | NET_F_CTRL_RX_EXTRA | NET_F_CTRL_MAC_ADDR | \
	 NET_F_GUEST_ANNOUNCE | NET_F_STATUS)

static void start(uint64_t features)
{
	test_driver_start(&driver, &net->virtio, features);
}

static bool needs_reset(void)
{
	return atomic_load(&net->virtio.status) & VIRTIO_STATUS_NEEDS_RESET;
}

static int64_t counter(const char *name)
{
	json_t *into = json_object();
	int64_t value;

	net_device(net)->ops->counters(net_device(net), into);
	cr_assert(json_object_get(into, name), "no counter %s", name);
	value = json_integer_value(json_object_get(into, name));
	json_decref(into);
	return value;
}

static uint16_t config_status(void)
{
	uint16_t status;

	net->virtio.ops->config_read(&net->virtio, 6, &status, sizeof(status));
	return status;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Turns the loop until `value` is another. */
static void turn_until_changed(const uint32_t *value)
{
	uint32_t before = *value;
	uint64_t limit = now_ns() + 10000000000u;

	while (*value == before) {
		cr_assert_lt(now_ns(), limit, "nothing happens");
		cr_assert_eq(loop_turn(driver.loop, now_ns() + 100000000u), 0);
	}
}

/* To the network */

/* A frame of `size` bytes behind its header, counting up. */
static struct test_buffer frame(struct net_header header, uint32_t size)
{
	struct test_buffer buffer = {test_driver_alloc(&driver, NET_HEADER_SIZE + size, 16),
				     NET_HEADER_SIZE + size};
	uint8_t *bytes = test_driver_at(&driver, buffer.gpa);

	memcpy(bytes, &header, sizeof(header));
	for (uint32_t i = 0; i < size; i++)
		bytes[NET_HEADER_SIZE + i] = (uint8_t)(i + 1);
	return buffer;
}

static void offer(uint32_t queue, const struct test_buffer *out, uint32_t n_out)
{
	test_driver_add(&driver, queue, out, n_out, NULL, 0, false);
	test_driver_kick(&driver, queue);
}

/* One frame in one buffer, sent and given back. */
static void transmit(struct net_header header, uint32_t size)
{
	gpa_t next = driver.next;
	struct test_buffer buffer = frame(header, size);

	offer(TX, &buffer, 1);
	cr_assert_eq(test_driver_wait(&driver, TX), 0);
	driver.next = next;
}

Test(net, sends_a_frame_with_its_header_apart)
{
	struct test_buffer buffer;

	start(FEATURES_TX);
	buffer = frame((struct net_header){.num_buffers = 7}, 100);
	offer(TX, &buffer, 1);
	cr_assert_eq(test_driver_wait(&driver, TX), 0);
	cr_assert_eq(ports[0].n_sent, 1);
	cr_assert(ports[0].sent[0].size == NET_HEADER_SIZE + 100 && ports[0].sent[0].n_iov == 2);
	for (uint32_t i = 0; i < NET_HEADER_SIZE; i++)
		cr_assert_eq(ports[0].sent[0].bytes[i], 0);
	for (uint32_t i = 0; i < 100; i++)
		cr_assert_eq(ports[0].sent[0].bytes[NET_HEADER_SIZE + i], i + 1);
	cr_assert_eq(ports[0].sent[0].second, test_driver_at(&driver, buffer.gpa + NET_HEADER_SIZE),
		     "it was copied");
	cr_assert(counter("tx-frames") == 1 && counter("tx-bytes") == 100);
}

Test(net, a_frame_may_be_cut_anywhere)
{
	struct test_buffer whole, pieces[4];

	start(FEATURES_TX | VIRTIO_F_INDIRECT_DESC);
	whole = frame((struct net_header){0}, 60);
	pieces[0] = (struct test_buffer){whole.gpa, 5};
	pieces[1] = (struct test_buffer){whole.gpa + 5, 7};
	pieces[2] = (struct test_buffer){whole.gpa + 12, 1};
	pieces[3] = (struct test_buffer){whole.gpa + 13, 59};
	for (uint32_t round = 0; round < 2; round++) {
		test_driver_add(&driver, TX, pieces, 4, NULL, 0, round);
		test_driver_kick(&driver, TX);
		test_driver_wait(&driver, TX);
		cr_assert(ports[0].sent[round].size == 72 && ports[0].sent[round].n_iov == 3);
		cr_assert_eq(ports[0].sent[round].last, 60);
	}
}

Test(net, interrupts_and_flushes_once_a_batch)
{
	struct test_buffer buffer;

	start(FEATURES_TX | VIRTIO_F_EVENT_IDX);
	test_driver_turn(&driver);
	ports[0].n_flushes = 0;
	for (int i = 0; i < 16; i++) {
		buffer = frame((struct net_header){0}, 64);
		test_driver_add(&driver, TX, &buffer, 1, NULL, 0, false);
	}
	test_driver_kick(&driver, TX);
	for (int i = 0; i < 16; i++)
		test_driver_wait(&driver, TX);
	cr_assert_eq(test_eventfd_take(driver.rings[TX].call_fd), 1);
	cr_assert_eq(ports[0].n_flushes, 1);
}

Test(net, no_kick_is_wanted_while_frames_are_on_their_way)
{
	struct test_buffer buffer;

	start(FEATURES_TX);
	ports[0].holds = true;
	buffer = frame((struct net_header){0}, 64);
	offer(TX, &buffer, 1);
	test_driver_turn(&driver);
	cr_assert_eq(driver.rings[TX].used->flags, 1);
	buffer = frame((struct net_header){0}, 64);
	test_driver_add(&driver, TX, &buffer, 1, NULL, 0, false);
	end_all(&ports[0], 0);
	test_driver_turn(&driver);
	cr_assert_eq(ports[0].n_sent, 2, "the end of one asks for the next");
	cr_assert_eq(driver.rings[TX].used->flags, 1);
	end_all(&ports[0], 0);
	test_driver_turn(&driver);
	cr_assert_eq(driver.rings[TX].used->flags, 0, "nothing would ask any more");
}

Test(net, frames_too_short_or_too_long_are_dropped)
{
	static const uint32_t sizes[] = {1,     11, 12, 13, NET_FRAME_MIN - 1, NET_FRAME_MAX + 1,
					 200000};
	struct test_buffer buffer;

	start(FEATURES_TX);
	buffer.gpa = test_driver_alloc(&driver, 200000, 16);
	for (uint32_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		buffer.length = sizes[i];
		offer(TX, &buffer, 1);
		cr_assert_eq(test_driver_wait(&driver, TX), 0);
	}
	cr_assert_eq(ports[0].n_sent, 0);
	cr_assert(counter("tx-short") == 5 && counter("tx-long") == 2);
	cr_assert_not(needs_reset());
	buffer.length = NET_FRAME_MAX;
	offer(TX, &buffer, 1);
	test_driver_wait(&driver, TX);
	buffer.length = NET_FRAME_MIN;
	offer(TX, &buffer, 1);
	test_driver_wait(&driver, TX);
	cr_assert_eq(ports[0].n_sent, 2, "the limits themselves are fine");
}

static const struct {
	struct net_header header;
	const char *what;
} lies[] = {
	{{.flags = 1, .csum_start = 13, .csum_offset = 2}, "sum from inside of the addresses"},
	{{.flags = 1, .csum_start = 34, .csum_offset = 65}, "sum behind the end by one"},
	{{.flags = 1, .csum_start = 99, .csum_offset = 0}, "half of it behind the end"},
	{{.flags = 1, .csum_start = 0xffff, .csum_offset = 0xffff}, "a sum that wraps"},
	{{.hdr_len = 101}, "headers longer than the frame"},
	{{.flags = 1, .csum_start = 34, .csum_offset = 16, .gso_type = 1}, "segments of nothing"},
	{{.flags = 1, .csum_start = 34, .csum_offset = 16, .gso_type = 1, .gso_size = 7}, "tiny"},
	{{.gso_type = 1, .gso_size = 50}, "segments without a sum"},
	{{.flags = 1, .csum_start = 34, .csum_offset = 6, .gso_type = 3, .gso_size = 50}, "UFO"},
	{{.flags = 1, .csum_start = 34, .csum_offset = 6, .gso_type = 2, .gso_size = 50}, "type 2"},
	{{.flags = 1, .csum_start = 34, .csum_offset = 6, .gso_type = 0x80, .gso_size = 50}, "ECN"},
	{{.flags = 1, .csum_start = 34, .csum_offset = 6, .gso_type = 0x85, .gso_size = 50},
	 "ECN of UDP"},
	{{.flags = 1,
	  .csum_start = 34,
	  .csum_offset = 16,
	  .gso_type = 4,
	  .gso_size = 50,
	  .hdr_len = 5000},
	 "headers longer than all"},
};

Test(net, lying_headers_cost_the_frame)
{
	start(FEATURES_TX);
	for (uint32_t i = 0; i < ARRAY_SIZE(lies); i++) {
		transmit(lies[i].header, 100);
		cr_assert_eq(ports[0].n_sent, 0, "sent: %s", lies[i].what);
		cr_assert_eq(counter("tx-bad-header"), i + 1, "%s", lies[i].what);
	}
	cr_assert_not(needs_reset());
}

Test(net, true_headers_go_out_as_they_are)
{
	static const struct net_header headers[] = {
		{.flags = 1, .csum_start = 34, .csum_offset = 64},
		{.flags = 1,
		 .csum_start = 34,
		 .csum_offset = 16,
		 .gso_type = 1,
		 .gso_size = 8,
		 .hdr_len = 54},
		{.flags = 1, .csum_start = 54, .csum_offset = 16, .gso_type = 0x84, .gso_size = 40},
		{.flags = 1, .csum_start = 34, .csum_offset = 6, .gso_type = 5, .gso_size = 20},
	};

	start(FEATURES_TX);
	for (uint32_t i = 0; i < ARRAY_SIZE(headers); i++) {
		transmit(headers[i], 100);
		cr_assert_eq(ports[0].n_sent, i + 1, "%u", i);
		cr_assert_arr_eq(ports[0].sent[i].bytes, &headers[i], sizeof(headers[i]));
	}
}

Test(net, udp_segments_may_be_small_but_not_many)
{
	const struct net_header uso = {
		.flags = 1, .csum_start = 34, .csum_offset = 6, .gso_type = 5, .gso_size = 1};

	start(FEATURES_TX);
	transmit(uso, 42 + 128);
	cr_assert_eq(ports[0].n_sent, 1);
	transmit(uso, 3000);
	cr_assert(ports[0].n_sent == 1 && counter("tx-bad-header") == 1);
}

Test(net, bits_without_meaning_are_ignored)
{
	static const struct net_header clean = {.hdr_len = 60};

	start(FEATURES_TX);
	transmit((struct net_header){.flags = 0xfe,
				     .hdr_len = 60,
				     .gso_size = 9,
				     .csum_start = 9,
				     .csum_offset = 9,
				     .num_buffers = 9},
		 100);
	cr_assert_arr_eq(ports[0].sent[0].bytes, &clean, sizeof(clean));
}

Test(net, what_was_not_negotiated_is_refused)
{
	start(0);
	transmit((struct net_header){.flags = 1, .csum_start = 34, .csum_offset = 16}, 100);
	transmit((struct net_header){.flags = 1,
				     .csum_start = 34,
				     .csum_offset = 16,
				     .gso_type = 1,
				     .gso_size = 50},
		 100);
	cr_assert(ports[0].n_sent == 0 && counter("tx-bad-header") == 2);
	transmit((struct net_header){0}, 100);
	cr_assert_eq(ports[0].n_sent, 1);
}

Test(net, a_frame_in_a_writable_buffer_needs_a_reset)
{
	struct test_buffer buffer = frame((struct net_header){0}, 100);

	start(FEATURES_TX);
	test_driver_add(&driver, TX, &buffer, 1, &buffer, 1, false);
	test_driver_kick(&driver, TX);
	test_driver_turn(&driver);
	cr_assert(needs_reset());
	test_driver_reset(&driver);
	start(FEATURES_TX);
	transmit((struct net_header){0}, 100);
	cr_assert_eq(ports[0].n_sent, 1, "a reset mends it");
}

Test(net, a_frame_outside_of_memory_needs_a_reset)
{
	struct test_buffer buffer = {TEST_DRIVER_MEMORY - 10, 100};

	start(FEATURES_TX);
	offer(TX, &buffer, 1);
	test_driver_turn(&driver);
	cr_assert(needs_reset() && ports[0].n_sent == 0);
}

Test(net, frames_in_very_many_pieces_are_copied_one_at_a_time)
{
	struct test_buffer whole, pieces[100];

	start(FEATURES_TX);
	ports[0].holds = true;
	for (int i = 0; i < 2; i++) {
		whole = frame((struct net_header){0}, 100);
		pieces[0] = (struct test_buffer){whole.gpa, NET_HEADER_SIZE + 1};
		for (uint32_t j = 1; j < 100; j++)
			pieces[j] = (struct test_buffer){whole.gpa + NET_HEADER_SIZE + j, 1};
		offer(TX, pieces, 100);
	}
	test_driver_turn(&driver);
	cr_assert_eq(ports[0].n_sent, 1);
	cr_assert(ports[0].sent[0].n_iov == 2 && ports[0].sent[0].last == 100);
	end_all(&ports[0], 0);
	test_driver_turn(&driver);
	cr_assert_eq(ports[0].n_sent, 2, "the second had its turn");
	cr_assert(ports[0].sent[1].size == 112 && ports[0].sent[1].last == 100);
	end_all(&ports[0], 0);
	test_driver_wait(&driver, TX);
	test_driver_wait(&driver, TX);
}

Test(net, a_frame_in_very_many_pieces_may_find_the_port_full)
{
	struct test_buffer whole, pieces[100];

	start(FEATURES_TX);
	ports[0].room = 0;
	whole = frame((struct net_header){0}, 100);
	pieces[0] = (struct test_buffer){whole.gpa, NET_HEADER_SIZE + 1};
	for (uint32_t j = 1; j < 100; j++)
		pieces[j] = (struct test_buffer){whole.gpa + NET_HEADER_SIZE + j, 1};
	offer(TX, pieces, 100);
	test_driver_turn(&driver);
	cr_assert_eq(ports[0].n_sent, 0);
	ports[0].room = 1;
	client_of(&ports[0])->room(ports[0].port.client);
	test_driver_wait(&driver, TX);
	cr_assert(ports[0].n_sent == 1 && ports[0].sent[0].last == 100);
}

Test(net, a_full_port_is_asked_again_when_there_is_room)
{
	struct test_buffer buffer;

	start(FEATURES_TX);
	ports[0].holds = true;
	ports[0].room = 2;
	for (int i = 0; i < 5; i++) {
		buffer = frame((struct net_header){0}, 60 + i);
		offer(TX, &buffer, 1);
	}
	test_driver_turn(&driver);
	cr_assert_eq(ports[0].n_sent, 2);
	while (ports[0].n_sent < 5) {
		uint32_t before = ports[0].n_sent;

		end_all(&ports[0], 0);
		client_of(&ports[0])->room(ports[0].port.client);
		test_driver_turn(&driver);
		cr_assert_gt(ports[0].n_sent, before);
	}
	end_all(&ports[0], 0);
	for (uint32_t i = 0; i < 5; i++) {
		test_driver_wait(&driver, TX);
		cr_assert_eq(ports[0].sent[i].size, NET_HEADER_SIZE + 60 + i, "out of order");
	}
	cr_assert_eq(counter("tx-frames"), 5);
}

Test(net, lost_frames_are_counted_and_given_back)
{
	start(FEATURES_TX);
	ports[0].send_error = -EIO;
	transmit((struct net_header){0}, 60);
	ports[0].send_error = 0;
	ports[0].holds = true;
	{
		struct test_buffer buffer = frame((struct net_header){0}, 60);

		offer(TX, &buffer, 1);
		test_driver_turn(&driver);
	}
	end_all(&ports[0], -ENOBUFS);
	test_driver_wait(&driver, TX);
	cr_assert(counter("tx-lost") == 2 && counter("tx-frames") == 0);
}

Test(net, a_greedy_guest_does_not_hold_the_loop)
{
	struct test_buffer buffer;

	start(FEATURES_TX);
	test_driver_turn(&driver);
	buffer = frame((struct net_header){0}, 60);
	for (int i = 0; i < NET_QUEUE_SIZE; i++)
		test_driver_add(&driver, TX, &buffer, 1, NULL, 0, false);
	/* Each frame fails at once and is offered again meanwhile. */
	ports[0].send_error = -EIO;
	ports[0].greedy_left = 1000;
	test_driver_kick(&driver, TX);
	while (counter("tx-lost") == 0)
		cr_assert_eq(loop_turn(driver.loop, now_ns() + 1000000000u), 0);
	cr_assert_leq(counter("tx-lost"), 2 * NET_QUEUE_SIZE, "all in one turn");
	for (int i = 0; i < 20; i++)
		cr_assert_eq(loop_turn(driver.loop, 0), 0);
	cr_assert_eq(counter("tx-lost"), NET_QUEUE_SIZE + 1000);
}

Test(net_made, frames_out_wait_for_their_rate)
{
	uint64_t begin;

	make((struct net_options){.limits = {.tx_frames = 100}});
	start(FEATURES_TX);
	begin = now_ns();
	/* Ten at once, the rest one every ten milliseconds. */
	for (uint32_t i = 0; i < 16; i++)
		transmit((struct net_header){0}, 60);
	cr_assert_geq(now_ns() - begin, 50000000, "too fast");
	cr_assert_geq(counter("tx-rate-waits"), 5);
	cr_assert_eq(ports[0].n_sent, 16);
}

Test(net_made, bytes_out_wait_for_their_rate)
{
	uint64_t begin;

	make((struct net_options){.limits = {.tx_rate = 100000}});
	start(FEATURES_TX);
	begin = now_ns();
	for (uint32_t i = 0; i < 12; i++)
		transmit((struct net_header){0}, 1500);
	/* 18000 bytes, 10000 of them at once, and the last may be owed. */
	cr_assert_geq(now_ns() - begin, 60000000, "too fast");
}

/* From the network */

static struct test_buffer room(uint32_t size)
{
	struct test_buffer buffer = {test_driver_alloc(&driver, size, 16), size};

	memset(test_driver_at(&driver, buffer.gpa), 0xee, size);
	return buffer;
}

static void offer_room(const struct test_buffer *in, uint32_t n_in)
{
	test_driver_add(&driver, RX, NULL, 0, in, n_in, false);
	test_driver_kick(&driver, RX);
	test_driver_turn(&driver);
}

static uint8_t incoming[NET_FRAME_MAX + 100];

static void fill_incoming(struct net_header header, uint32_t size)
{
	memcpy(incoming, &header, sizeof(header));
	for (uint32_t i = 0; i < size; i++)
		incoming[NET_HEADER_SIZE + i] = (uint8_t)(i * 7 + 1);
}

static bool receive(struct fake *fake, struct net_header header, uint32_t size)
{
	bool taken;

	fill_incoming(header, size);
	cr_assert(fake->started);
	taken = client_of(fake)->receive(fake->port.client, incoming, NET_HEADER_SIZE + size);
	client_of(fake)->batch(fake->port.client);
	return taken;
}

static uint32_t lend(struct fake *fake)
{
	fake->n_iov = client_of(fake)->lend(fake->port.client, fake->iov, ARRAY_SIZE(fake->iov));
	return fake->n_iov;
}

/* Fills what was lent as readv(2) would. */
static void fill(struct fake *fake, struct net_header header, uint32_t size)
{
	uint32_t at = 0, all = NET_HEADER_SIZE + size;

	fill_incoming(header, size);
	for (uint32_t i = 0; i < fake->n_iov && at < all; i++) {
		uint32_t here = MIN((uint32_t)fake->iov[i].iov_len, all - at);

		memcpy(fake->iov[i].iov_base, incoming + at, here);
		at += here;
	}
	cr_assert_eq(at, all, "no room for the frame");
	client_of(fake)->filled(fake->port.client, all);
	client_of(fake)->batch(fake->port.client);
}

static struct net_header header_at(struct test_buffer buffer)
{
	struct net_header header;

	memcpy(&header, test_driver_at(&driver, buffer.gpa), sizeof(header));
	return header;
}

/* The `size` bytes of the frame from `from` on stand at `at` into the buffer. */
static void expect_bytes(struct test_buffer buffer, uint32_t at, uint32_t from, uint32_t size)
{
	const uint8_t *bytes = test_driver_at(&driver, buffer.gpa);

	for (uint32_t i = 0; i < size; i++)
		cr_assert_eq(bytes[at + i], (uint8_t)((from + i) * 7 + 1), "byte %u", from + i);
}

Test(net, a_frame_is_copied_into_the_guest)
{
	struct test_buffer buffer;

	start(NET_F_GUEST_CSUM);
	buffer = room(1526);
	offer_room(&buffer, 1);
	cr_assert(receive(&ports[0], (struct net_header){.flags = 2}, 300));
	cr_assert_eq(test_driver_wait(&driver, RX), NET_HEADER_SIZE + 300);
	cr_assert(header_at(buffer).num_buffers == 1 && header_at(buffer).flags == 2);
	expect_bytes(buffer, NET_HEADER_SIZE, 0, 300);
	cr_assert_eq(*(uint8_t *)test_driver_at(&driver, buffer.gpa + 312), 0xee);
	cr_assert(counter("rx-frames") == 1 && counter("rx-bytes") == 300);
}

Test(net, a_frame_is_read_straight_into_the_guest)
{
	struct test_buffer pieces[2];

	start(0);
	pieces[0] = room(NET_HEADER_SIZE);
	pieces[1] = room(1514);
	offer_room(pieces, 2);
	cr_assert_eq(lend(&ports[0]), 3);
	cr_assert_eq(ports[0].iov[1].iov_base, test_driver_at(&driver, pieces[1].gpa));
	fill(&ports[0], (struct net_header){0}, 1514);
	cr_assert_eq(test_driver_wait(&driver, RX), 1526);
	cr_assert_eq(header_at(pieces[0]).num_buffers, 1);
	expect_bytes(pieces[1], 0, 0, 1514);
}

Test(net, a_frame_spreads_over_mergeable_buffers)
{
	for (uint32_t direct = 0; direct < 2; direct++) {
		struct test_buffer buffers[4];

		start(FEATURES_RX);
		for (uint32_t i = 0; i < 4; i++) {
			buffers[i] = room(100);
			offer_room(&buffers[i], 1);
		}
		if (direct) {
			/* Too few for any frame: what there is, after a while. */
			cr_assert_eq(lend(&ports[0]), 0);
			turn_until_changed(&ports[0].n_ready);
			cr_assert_gt(lend(&ports[0]), 0);
			fill(&ports[0], (struct net_header){0}, 250);
		} else {
			cr_assert(receive(&ports[0], (struct net_header){0}, 250));
		}
		cr_assert_eq(test_driver_wait(&driver, RX), 100);
		cr_assert_eq(test_driver_wait(&driver, RX), 100);
		cr_assert_eq(test_driver_wait(&driver, RX), 62);
		cr_assert_eq(header_at(buffers[0]).num_buffers, 3);
		expect_bytes(buffers[0], NET_HEADER_SIZE, 0, 88);
		expect_bytes(buffers[1], 0, 88, 100);
		expect_bytes(buffers[2], 0, 188, 62);
		cr_assert_eq(*(uint8_t *)test_driver_at(&driver, buffers[3].gpa), 0xee);
		test_driver_reset(&driver);
	}
}

Test(net, a_long_frame_spills_into_further_buffers)
{
	static const struct net_header tso = {
		.flags = 1, .gso_type = 1, .gso_size = 1448, .csum_start = 34, .csum_offset = 16};
	struct test_buffer buffers[50];
	uint32_t n;

	start(FEATURES_RX);
	for (uint32_t i = 0; i < 50; i++) {
		buffers[i] = room(1536);
		offer_room(&buffers[i], 1);
	}
	n = lend(&ports[0]);
	cr_assert_eq(n, 3, "header, one buffer, spill: %u", n);
	fill(&ports[0], tso, 60000);
	for (uint32_t i = 0; i < 39; i++)
		cr_assert_eq(test_driver_wait(&driver, RX), 1536);
	cr_assert_eq(test_driver_wait(&driver, RX), 60012 - 39 * 1536);
	cr_assert_eq(header_at(buffers[0]).num_buffers, 40);
	expect_bytes(buffers[0], NET_HEADER_SIZE, 0, 1524);
	expect_bytes(buffers[20], 0, 20 * 1536 - 12, 1536);
	/* The next is given room from the start. */
	for (uint32_t i = 0; i < 40; i++)
		offer_room(&buffers[i], 1);
	n = lend(&ports[0]);
	cr_assert_geq(n, 2 + 43);
	client_of(&ports[0])->filled(ports[0].port.client, 0);
}

Test(net, a_guest_with_few_buffers_is_waited_for_once)
{
	static const struct net_header tso = {
		.flags = 1, .gso_type = 1, .gso_size = 1448, .csum_start = 34, .csum_offset = 16};
	struct test_buffer buffers[10];

	start(FEATURES_RX);
	for (uint32_t i = 0; i < 10; i++) {
		buffers[i] = room(1536);
		offer_room(&buffers[i], 1);
	}
	cr_assert_gt(lend(&ports[0]), 0);
	fill(&ports[0], tso, 4000);
	cr_assert_eq(lend(&ports[0]), 0, "the next may be long");
	turn_until_changed(&ports[0].n_ready);
	cr_assert_gt(lend(&ports[0]), 0);
	fill(&ports[0], tso, 4000);
	cr_assert_gt(lend(&ports[0]), 0, "not again");
	fill(&ports[0], tso, 4000);
	cr_assert_eq(counter("rx-frames"), 3);
}

Test(net, the_longest_frame_fits_a_buffer_of_its_size)
{
	static const struct net_header tso = {
		.flags = 1, .gso_type = 1, .gso_size = 1448, .csum_start = 34, .csum_offset = 16};
	struct test_buffer buffer;

	start(FEATURES_RX & ~NET_F_MRG_RXBUF);
	buffer = room(NET_FRAME_MAX);
	offer_room(&buffer, 1);
	cr_assert_gt(lend(&ports[0]), 0);
	fill(&ports[0], tso, NET_FRAME_MAX - NET_HEADER_SIZE);
	cr_assert_eq(test_driver_wait(&driver, RX), NET_FRAME_MAX);
	cr_assert_eq(header_at(buffer).num_buffers, 1);
	expect_bytes(buffer, NET_HEADER_SIZE, 0, NET_FRAME_MAX - NET_HEADER_SIZE);
}

Test(net, a_buffer_too_small_costs_the_frame_and_stays)
{
	struct test_buffer buffer;

	start(0);
	buffer = room(100);
	offer_room(&buffer, 1);
	cr_assert(receive(&ports[0], (struct net_header){0}, 200), "dropped, not kept");
	cr_assert_gt(lend(&ports[0]), 0);
	fill(&ports[0], (struct net_header){0}, 1000);
	cr_assert_eq(counter("rx-no-buffer"), 2);
	cr_assert(receive(&ports[0], (struct net_header){0}, 88), "this one fits");
	cr_assert_eq(test_driver_wait(&driver, RX), 100);
	expect_bytes(buffer, NET_HEADER_SIZE, 0, 88);
}

Test(net, mergeable_buffers_that_stay_too_few_cost_the_frame)
{
	struct test_buffer buffer;

	start(FEATURES_RX);
	buffer = room(100);
	offer_room(&buffer, 1);
	cr_assert_not(receive(&ports[0], (struct net_header){0}, 200), "more may come");
	turn_until_changed(&ports[0].n_ready);
	cr_assert(receive(&ports[0], (struct net_header){0}, 200), "none came");
	cr_assert_eq(counter("rx-no-buffer"), 1);
	cr_assert_not(receive(&ports[0], (struct net_header){0}, 200), "patience is back");
	offer_room(&buffer, 1);
	offer_room(&buffer, 1);
	cr_assert(receive(&ports[0], (struct net_header){0}, 200));
	cr_assert_eq(test_driver_wait(&driver, RX), 100);
}

Test(net, the_port_hears_of_new_buffers)
{
	struct test_buffer buffer;
	uint32_t before;

	start(FEATURES_RX | VIRTIO_F_EVENT_IDX);
	cr_assert_eq(lend(&ports[0]), 0);
	cr_assert_not(receive(&ports[0], (struct net_header){0}, 100));
	before = ports[0].n_ready;
	buffer = room(2000);
	offer_room(&buffer, 1);
	cr_assert_eq(ports[0].n_ready, before + 1);
	cr_assert(receive(&ports[0], (struct net_header){0}, 100));
	offer_room(&buffer, 1);
	cr_assert_eq(ports[0].n_ready, before + 1, "nobody waited");
}

Test(net, kicks_are_wanted_only_when_buffers_are_out)
{
	struct test_buffer buffer;

	start(FEATURES_RX);
	for (int i = 0; i < 4; i++) {
		buffer = room(2000);
		offer_room(&buffer, 1);
	}
	cr_assert(receive(&ports[0], (struct net_header){0}, 100));
	cr_assert_eq(driver.rings[RX].used->flags, 1, "kicks are not wanted");
	for (int i = 0; i < 3; i++)
		cr_assert(receive(&ports[0], (struct net_header){0}, 100));
	cr_assert_not(receive(&ports[0], (struct net_header){0}, 100));
	cr_assert_eq(driver.rings[RX].used->flags, 0, "now they are");
}

Test(net, a_receive_buffer_to_be_read_needs_a_reset)
{
	struct test_buffer buffer = frame((struct net_header){0}, 100);

	start(FEATURES_RX);
	offer(RX, &buffer, 1);
	test_driver_turn(&driver);
	cr_assert_eq(lend(&ports[0]), 0);
	cr_assert(needs_reset());
	test_driver_reset(&driver);
	start(0);
	buffer = room(1526);
	offer_room(&buffer, 1);
	cr_assert(receive(&ports[0], (struct net_header){0}, 100), "a reset mends it");
}

Test(net, what_the_port_gets_wrong_is_dropped)
{
	struct test_buffer buffer;

	start(0);
	buffer = room(NET_FRAME_MAX + 100);
	offer_room(&buffer, 1);
	cr_assert(receive(&ports[0], (struct net_header){0}, 13));
	cr_assert(client_of(&ports[0])->receive(ports[0].port.client, incoming, 3));
	cr_assert(receive(&ports[0], (struct net_header){0}, NET_FRAME_MAX - NET_HEADER_SIZE + 1));
	cr_assert(receive(&ports[0], (struct net_header){.flags = 1}, 100), "no sum was agreed on");
	cr_assert(receive(&ports[0], (struct net_header){.gso_type = 1}, 100));
	cr_assert(counter("rx-short") == 2 && counter("rx-long") == 1 &&
		  counter("rx-bad-header") == 2);
	cr_assert(receive(&ports[0], (struct net_header){.flags = 2}, 100));
	cr_assert_eq(test_driver_wait(&driver, RX), 112);
	cr_assert_eq(header_at(buffer).flags, 0, "the guest does not know that flag");
}

Test(net_made, frames_beyond_the_mtu_are_dropped)
{
	struct test_buffer buffer;
	uint16_t mtu;

	make((struct net_options){.mtu = 1400});
	start(NET_F_MTU);
	net->virtio.ops->config_read(&net->virtio, 10, &mtu, sizeof(mtu));
	cr_assert_eq(mtu, 1400);
	buffer = room(4000);
	offer_room(&buffer, 1);
	cr_assert(receive(&ports[0], (struct net_header){0}, 1419));
	cr_assert_eq(counter("rx-long"), 1);
	cr_assert(receive(&ports[0], (struct net_header){0}, 1418));
	cr_assert_eq(test_driver_wait(&driver, RX), 1430);
}

Test(net, what_is_written_is_marked)
{
	struct test_buffer buffer;
	gpa_t page;

	start(0);
	buffer = (struct test_buffer){test_driver_alloc(&driver, 4 * GUEST_PAGE_SIZE, 4096),
				      4 * GUEST_PAGE_SIZE};
	page = buffer.gpa / GUEST_PAGE_SIZE;
	for (uint32_t direct = 0; direct < 2; direct++) {
		uint64_t bits[TEST_DRIVER_MEMORY / GUEST_PAGE_SIZE / 64] = {0};

		offer_room(&buffer, 1);
		cr_assert_eq(memory_track_start(&driver.memory), 0);
		if (direct) {
			cr_assert_gt(lend(&ports[0]), 0);
			fill(&ports[0], (struct net_header){0}, 5000);
		} else {
			cr_assert(receive(&ports[0], (struct net_header){0}, 5000));
		}
		memory_track_take(&driver.memory, 0, bits, ARRAY_SIZE(bits));
		for (uint32_t i = 0; i < 4; i++)
			cr_assert_eq(bits[(page + i) / 64] >> (page + i) % 64 & 1, i < 2, "page %u",
				     i);
		memory_track_stop(&driver.memory);
	}
}

Test(net, what_a_dropped_frame_left_behind_is_marked)
{
	uint64_t bits[TEST_DRIVER_MEMORY / GUEST_PAGE_SIZE / 64] = {0};
	struct test_buffer buffer;
	gpa_t page;

	start(0);
	buffer = (struct test_buffer){test_driver_alloc(&driver, 100, 4096), 100};
	page = buffer.gpa / GUEST_PAGE_SIZE;
	offer_room(&buffer, 1);
	cr_assert_gt(lend(&ports[0]), 0);
	cr_assert_eq(memory_track_start(&driver.memory), 0);
	fill(&ports[0], (struct net_header){0}, 1000);
	cr_assert_eq(counter("rx-no-buffer"), 1);
	memory_track_take(&driver.memory, 0, bits, ARRAY_SIZE(bits));
	cr_assert(bits[page / 64] >> page % 64 & 1);
	memory_track_stop(&driver.memory);
}

Test(net_made, frames_in_wait_for_their_rate)
{
	struct test_buffer buffer;
	uint64_t begin = now_ns();

	make((struct net_options){.limits = {.rx_frames = 100}});
	start(0);
	buffer = room(1526);
	for (uint32_t i = 0; i < 16; i++) {
		offer_room(&buffer, 1);
		while (!receive(&ports[0], (struct net_header){0}, 60)) {
			cr_assert_eq(lend(&ports[0]), 0, "neither way");
			turn_until_changed(&ports[0].n_ready);
		}
		test_driver_wait(&driver, RX);
	}
	cr_assert_geq(now_ns() - begin, 50000000, "too fast");
	cr_assert_geq(counter("rx-rate-waits"), 5);
}

Test(net, a_frame_that_overtakes_the_one_lent_for_waits)
{
	struct test_buffer buffers[2];
	uint32_t before;

	start(0);
	for (uint32_t i = 0; i < 2; i++) {
		buffers[i] = room(1526);
		offer_room(&buffers[i], 1);
	}
	cr_assert_gt(lend(&ports[0]), 0);
	before = ports[0].n_ready;
	cr_assert_not(receive(&ports[0], (struct net_header){0}, 200));
	fill(&ports[0], (struct net_header){0}, 100);
	cr_assert_eq(ports[0].n_ready, before + 1);
	cr_assert(receive(&ports[0], (struct net_header){0}, 200));
	cr_assert_eq(test_driver_wait(&driver, RX), 112);
	cr_assert_eq(test_driver_wait(&driver, RX), 212);
}

Test(net, a_port_that_is_early_is_called_when_buffers_may_come)
{
	start(0);
	/* As if the queue to the network had started first. */
	net_rx_stop(&net->pairs[0].rx);
	cr_assert_eq(lend(&ports[0]), 0);
	ports[0].n_ready = 0;
	test_driver_kick(&driver, RX);
	test_driver_turn(&driver);
	cr_assert_eq(ports[0].n_ready, 1);
}

/* Stopping */

static bool rested;

static void on_rest(struct device_waiter *waiter _unused_, struct device *device _unused_)
{
	rested = true;
}

static void pause_card(void)
{
	static struct device_waiter waiter = {on_rest};

	rested = false;
	net_device(net)->ops->pause(net_device(net), &waiter);
	test_driver_turn(&driver);
}

static void resume_card(void)
{
	net_device(net)->ops->resume(net_device(net));
	test_driver_turn(&driver);
}

Test(net, a_reset_waits_for_frames_on_their_way)
{
	struct test_buffer buffer;

	start(FEATURES_TX);
	ports[0].holds = true;
	buffer = frame((struct net_header){0}, 100);
	offer(TX, &buffer, 1);
	test_driver_turn(&driver);
	pthread_mutex_lock(&net_device(net)->lock);
	virtio_reset(&net->virtio);
	pthread_mutex_unlock(&net_device(net)->lock);
	test_driver_turn(&driver);
	cr_assert(!ports[0].started && atomic_load(&net->virtio.status) != 0);
	end_all(&ports[0], 0);
	test_driver_turn(&driver);
	cr_assert_eq(atomic_load(&net->virtio.status), 0);
	ports[0].holds = false;
	start(FEATURES_TX);
	transmit((struct net_header){0}, 100);
	cr_assert_eq(ports[0].n_starts, 2);
}

Test(net, a_pause_waits_for_what_is_lent)
{
	struct test_buffer buffer;

	start(0);
	buffer = room(1526);
	offer_room(&buffer, 1);
	cr_assert_gt(lend(&ports[0]), 0);
	pause_card();
	cr_assert_not(rested);
	/* The frame was nearly there: it is not lost. */
	fill(&ports[0], (struct net_header){0}, 100);
	test_driver_turn(&driver);
	cr_assert(rested);
	cr_assert_eq(test_driver_wait(&driver, RX), 112);
	resume_card();
	cr_assert(ports[0].started);
}

Test(net, chains_not_used_are_put_back)
{
	struct test_buffer buffers[3];
	struct virtqueue *ring;

	start(FEATURES_RX);
	ring = &net->virtio.queues[RX].ring;
	for (uint32_t i = 0; i < 3; i++) {
		buffers[i] = room(600);
		offer_room(&buffers[i], 1);
	}
	cr_assert_gt(lend(&ports[0]), 0);
	fill(&ports[0], (struct net_header){0}, 100);
	test_driver_wait(&driver, RX);
	cr_assert(ring->in_flight == 2, "two are laid out for the next");
	pause_card();
	cr_assert(rested && ring->in_flight == 0 && ring->state.next_available == 1 &&
		  ring->state.next_used == 1);
	resume_card();
	cr_assert(receive(&ports[0], (struct net_header){0}, 700));
	cr_assert_eq(test_driver_wait(&driver, RX), 600);
	cr_assert_eq(test_driver_wait(&driver, RX), 112);
	expect_bytes(buffers[1], NET_HEADER_SIZE, 0, 588);
}

Test(net, frames_offered_while_it_was_paused_are_sent)
{
	struct test_buffer buffer;

	start(FEATURES_TX);
	pause_card();
	cr_assert(rested && !ports[0].started);
	buffer = frame((struct net_header){0}, 100);
	offer(TX, &buffer, 1);
	test_driver_turn(&driver);
	cr_assert_eq(ports[0].n_sent, 0);
	resume_card();
	test_driver_wait(&driver, TX);
	cr_assert_eq(ports[0].n_sent, 1);
}

/* The link */

static int config_fd_set(void)
{
	int fd = driver.rings[TX].call_fd; /* any eventfd will do */

	test_eventfd_take(fd);
	atomic_store(&net->virtio.config_fd, fd);
	return fd;
}

Test(net, a_person_pulls_the_plug)
{
	struct test_buffer buffer;
	int fd;

	start(FEATURES_TX);
	fd = config_fd_set();
	cr_assert_eq(config_status(), STATUS_UP);
	net_set_link(net, false);
	cr_assert(config_status() == 0 && test_eventfd_take(fd) == 1);
	net_set_link(net, false);
	cr_assert_eq(test_eventfd_take(fd), 0, "nothing has changed");
	test_driver_turn(&driver);
	atomic_store(&net->virtio.config_fd, -1);
	transmit((struct net_header){0}, 100);
	cr_assert(ports[0].n_sent == 0 && counter("tx-link-down") == 1);
	/* What comes in is read and dropped, buffers or not. */
	cr_assert_eq(lend(&ports[0]), 2);
	fill(&ports[0], (struct net_header){0}, 100);
	cr_assert(receive(&ports[0], (struct net_header){0}, 100));
	cr_assert_eq(counter("rx-link-down"), 2);
	net_set_link(net, true);
	test_driver_turn(&driver);
	cr_assert_eq(config_status(), STATUS_UP);
	buffer = room(1526);
	offer_room(&buffer, 1);
	cr_assert(receive(&ports[0], (struct net_header){0}, 100));
	test_driver_wait(&driver, RX);
}

Test(net, a_frame_read_while_the_plug_goes_back_in_is_not_lost)
{
	struct test_buffer buffer;

	start(0);
	buffer = room(1526);
	offer_room(&buffer, 1);
	net_set_link(net, false);
	cr_assert_eq(lend(&ports[0]), 2);
	net_set_link(net, true);
	fill(&ports[0], (struct net_header){0}, 100);
	cr_assert_eq(test_driver_wait(&driver, RX), 112);
	expect_bytes(buffer, NET_HEADER_SIZE, 0, 100);
}

Test(net, a_port_that_vanishes_takes_the_link_down)
{
	int fd;

	start(FEATURES_TX);
	fd = config_fd_set();
	client_of(&ports[0])->link(ports[0].port.client, false, "the interface was removed");
	cr_assert(config_status() == 0 && test_eventfd_take(fd) == 1);
	client_of(&ports[0])->link(ports[0].port.client, false, "again");
	cr_assert_eq(test_eventfd_take(fd), 0);
	atomic_store(&net->virtio.config_fd, -1);
	test_driver_turn(&driver);
	transmit((struct net_header){0}, 100);
	cr_assert(ports[0].n_sent == 0 && counter("tx-link-down") == 1 && !needs_reset());
	net_set_link(net, true);
	cr_assert_eq(config_status(), 0, "a wish is not enough");
	client_of(&ports[0])->link(ports[0].port.client, true, "it is there again");
	cr_assert_eq(config_status(), STATUS_UP);
	test_driver_reset(&driver);
}

/* Control */

#define CONTROL 2

static uint8_t control(uint32_t queue, uint8_t class, uint8_t command, const void *data,
		       uint32_t size)
{
	uint8_t bytes[64] = {class, command}, unanswered = 0xee;
	struct test_buffer out, in;

	memcpy(bytes + 2, data, size);
	out = test_driver_put(&driver, bytes, 2 + size);
	in = test_driver_put(&driver, &unanswered, 1);
	test_driver_add(&driver, queue, &out, 1, &in, 1, false);
	test_driver_kick(&driver, queue);
	cr_assert_eq(test_driver_wait(&driver, queue), 1);
	test_driver_turn(&driver);
	return *(uint8_t *)test_driver_at(&driver, in.gpa);
}

Test(net, receive_modes_are_accepted)
{
	start(FEATURES_CONTROL);
	for (uint8_t command = 0; command < 6; command++) {
		cr_assert_eq(control(CONTROL, 0, command, "\1", 1), 0);
		cr_assert_eq(control(CONTROL, 0, command, "\1", 0), 1, "says nothing");
		cr_assert_eq(control(CONTROL, 0, command, "\1\1", 2), 1, "says too much");
	}
	cr_assert_eq(control(CONTROL, 0, 6, "\1", 1), 1);
	cr_assert_not(needs_reset());
}

Test(net, commands_not_negotiated_are_refused)
{
	static const uint64_t offloads;

	start(NET_F_CTRL_VQ);
	cr_assert_eq(control(CONTROL, 0, 0, "\1", 1), 1);
	cr_assert_eq(control(CONTROL, 1, 0, "\0\0\0\0\0\0\0", 8), 1);
	cr_assert_eq(control(CONTROL, 1, 1, mac, 6), 1);
	cr_assert_eq(control(CONTROL, 2, 0, "\0\1", 2), 1);
	cr_assert_eq(control(CONTROL, 3, 0, "", 0), 1);
	cr_assert_eq(control(CONTROL, 4, 0, "\1", 2), 1);
	cr_assert_eq(control(CONTROL, 5, 0, &offloads, 8), 1);
	cr_assert_eq(control(CONTROL, 99, 0, "", 0), 1);
	cr_assert_not(needs_reset());
}

Test(net, filter_tables_must_be_whole)
{
	static const uint8_t one[] = {1, 0, 0, 0, 2, 3, 4, 5, 6, 7, 1, 0, 0, 0, 3, 3, 3, 3, 3, 3};
	static const uint8_t far[] = {0xff, 0xff, 0xff, 0xff, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0};

	start(FEATURES_CONTROL);
	cr_assert_eq(control(CONTROL, 1, 0, one, sizeof(one)), 0);
	cr_assert_eq(control(CONTROL, 1, 0, one, sizeof(one) - 1), 1);
	cr_assert_eq(control(CONTROL, 1, 0, far, sizeof(far)), 1);
	cr_assert_eq(control(CONTROL, 1, 0, one, 3), 1);
}

static void config_mac(uint8_t ret_mac[6])
{
	net->virtio.ops->config_read(&net->virtio, 0, ret_mac, 6);
}

Test(net, the_guest_may_choose_its_address)
{
	static const uint8_t other[6] = {2, 3, 4, 5, 6, 7}, group[6] = {3, 3, 4, 5, 6, 7}, none[6];
	uint8_t now[6];

	start(FEATURES_CONTROL);
	config_mac(now);
	cr_assert_arr_eq(now, mac, 6);
	cr_assert_eq(control(CONTROL, 1, 1, group, 6), 1);
	cr_assert_eq(control(CONTROL, 1, 1, none, 6), 1);
	cr_assert_eq(control(CONTROL, 1, 1, other, 6), 0);
	config_mac(now);
	cr_assert_arr_eq(now, other, 6);
	test_driver_reset(&driver);
	config_mac(now);
	cr_assert_arr_eq(now, mac, 6, "a reset brings ours back");
}

Test(net, the_guest_is_asked_to_announce_itself)
{
	int fd;

	cr_assert_not(net_announce(net), "no driver");
	start(FEATURES_CONTROL);
	fd = config_fd_set();
	cr_assert(net_announce(net));
	cr_assert(config_status() == (STATUS_UP | STATUS_ANNOUNCE) && test_eventfd_take(fd) == 1);
	cr_assert_eq(control(CONTROL, 3, 1, "", 0), 1);
	cr_assert_eq(control(CONTROL, 3, 0, "", 0), 0);
	cr_assert_eq(config_status(), STATUS_UP);
	test_driver_reset(&driver);
	start(NET_F_STATUS);
	cr_assert_not(net_announce(net), "this one does not know how");
}

Test(net, offloads_may_be_turned_off_and_on)
{
	uint64_t some = NET_F_GUEST_CSUM | NET_F_GUEST_TSO4, bad = NET_F_GUEST_USO4;

	start(FEATURES_RX | FEATURES_CONTROL | NET_F_CTRL_GUEST_OFFLOADS);
	cr_assert_eq(ports[0].accepted,
		     NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_ECN);
	cr_assert_eq(control(CONTROL, 5, 0, &bad, 8), 1);
	cr_assert_eq(control(CONTROL, 5, 0, &some, 8), 0);
	cr_assert_eq(ports[0].accepted, NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4);
	some = 0;
	cr_assert_eq(control(CONTROL, 5, 0, &some, 8), 0);
	cr_assert_eq(ports[0].accepted, 0);
	cr_assert_eq(ports[0].n_starts, 1);
}

/* A tap refuses it, and what a tap refuses ends the link. */
Test(net, ecn_alone_is_no_offload)
{
	uint64_t some = NET_F_GUEST_CSUM | NET_F_GUEST_ECN;

	start(FEATURES_RX | FEATURES_CONTROL | NET_F_CTRL_GUEST_OFFLOADS);
	cr_assert_eq(control(CONTROL, 5, 0, &some, 8), 0);
	cr_assert_eq(ports[0].accepted, NET_OFFLOAD_CSUM);
}

Test(net, a_command_without_head_or_room_for_the_answer_needs_a_reset)
{
	for (uint32_t i = 0; i < 3; i++) {
		struct test_buffer out = test_driver_put(&driver, "\0\0\1", i == 0 ? 1 : 3);
		struct test_buffer in = room(1);

		start(FEATURES_CONTROL);
		test_driver_add(&driver, CONTROL, i == 2 ? NULL : &out, i != 2, &in, i != 1, false);
		test_driver_kick(&driver, CONTROL);
		test_driver_turn(&driver);
		cr_assert(needs_reset(), "%u", i);
		test_driver_reset(&driver);
	}
}

/* Several pairs */

#define FEATURES_PAIRS (FEATURES_CONTROL | NET_F_MQ)

static uint8_t use_pairs(uint16_t n)
{
	return control(2 * PAIRS, 4, 0, &n, sizeof(n));
}

static void expect_started(uint32_t n)
{
	for (uint32_t i = 0; i < PAIRS; i++)
		cr_assert(ports[i].started == (i < n) && ports[i].attached == (i < n),
			  "port %u of %u", i, n);
}

Test(net_pairs, only_those_in_use_are_attached)
{
	uint16_t max;

	for (uint32_t i = 0; i < PAIRS; i++)
		cr_assert_eq(ports[i].attached, i == 0, "before any driver");
	start(FEATURES_PAIRS);
	net->virtio.ops->config_read(&net->virtio, 8, &max, sizeof(max));
	cr_assert_eq(max, PAIRS);
	expect_started(1);
	cr_assert_eq(use_pairs(PAIRS), 0);
	expect_started(PAIRS);
	cr_assert_eq(use_pairs(0), 1);
	cr_assert_eq(use_pairs(PAIRS + 1), 1);
	expect_started(PAIRS);
	cr_assert_eq(use_pairs(2), 0);
	expect_started(2);
	test_driver_reset(&driver);
	test_driver_turn(&driver);
	for (uint32_t i = 0; i < PAIRS; i++)
		cr_assert(!ports[i].started && ports[i].attached == (i == 0), "port %u", i);
}

Test(net_pairs, each_pair_has_its_port)
{
	start(FEATURES_PAIRS | FEATURES_TX);
	use_pairs(PAIRS);
	for (uint32_t i = 0; i < PAIRS; i++) {
		struct test_buffer out = frame((struct net_header){0}, 50 + i), in = room(1526);

		offer(2 * i + TX, &out, 1);
		test_driver_wait(&driver, 2 * i + TX);
		cr_assert(ports[i].n_sent == 1 && ports[i].sent[0].size == 62 + i);
		test_driver_add(&driver, 2 * i + RX, NULL, 0, &in, 1, false);
		test_driver_kick(&driver, 2 * i + RX);
		cr_assert(receive(&ports[i], (struct net_header){0}, 70 + i));
		cr_assert_eq(test_driver_wait(&driver, 2 * i + RX), 82 + i);
	}
	cr_assert_eq(counter("tx-frames"), PAIRS);
}

Test(net_pairs, a_pair_out_of_use_sends_nothing_until_it_is_used)
{
	struct test_buffer out;

	start(FEATURES_PAIRS);
	out = frame((struct net_header){0}, 50);
	offer(2 + TX, &out, 1);
	test_driver_turn(&driver);
	cr_assert_eq(ports[1].n_sent, 0);
	use_pairs(2);
	test_driver_wait(&driver, 2 + TX);
	cr_assert_eq(ports[1].n_sent, 1);
}

Test(net_pairs, a_pair_goes_out_of_use_when_its_frames_are_back)
{
	struct test_buffer out, in;

	start(FEATURES_PAIRS);
	use_pairs(2);
	ports[1].holds = true;
	out = frame((struct net_header){0}, 50);
	offer(2 + TX, &out, 1);
	in = room(1526);
	test_driver_add(&driver, 2 + RX, NULL, 0, &in, 1, false);
	test_driver_turn(&driver);
	cr_assert_gt(lend(&ports[1]), 0);
	use_pairs(1);
	cr_assert(!ports[1].started && ports[1].attached, "not yet");
	use_pairs(2);
	cr_assert_not(ports[1].started, "nor back");
	use_pairs(1);
	end_all(&ports[1], 0);
	client_of(&ports[1])->filled(ports[1].port.client, 0);
	cr_assert_not(ports[1].attached);
	use_pairs(2);
	cr_assert(ports[1].started && ports[1].attached);
	ports[1].holds = false;
}

Test(net_pairs, without_the_feature_control_comes_behind_the_first_pair)
{
	struct test_buffer out;

	start(FEATURES_CONTROL);
	cr_assert_eq(control(CONTROL, 0, 0, "\1", 1), 0);
	out = frame((struct net_header){0}, 50);
	offer(2 + TX, &out, 1);
	test_driver_turn(&driver);
	cr_assert_eq(ports[1].n_sent, 0);
}

Test(net_made, pairs_share_the_rate)
{
	make((struct net_options){.n_pairs = 2, .limits = {.tx_frames = 100, .rx_rate = 1001}});
	start(FEATURES_PAIRS);
	cr_assert_eq(net->pairs[0].tx.rate.frames.per_second, 100);
	control(4, 4, 0, "\2", 2);
	for (uint32_t i = 0; i < 2; i++)
		cr_assert(net->pairs[i].tx.rate.frames.per_second == 50 &&
			  net->pairs[i].rx.rate.bytes.per_second == 500 &&
			  net->pairs[i].rx.rate.frames.per_second == 0);
}

/* Neither by another number of pairs nor by a reset. */
Test(net_made, a_guest_cannot_refill_its_rate)
{
	uint64_t begin;

	make((struct net_options){.n_pairs = 2, .limits = {.tx_frames = 100}});
	start(FEATURES_PAIRS);
	begin = now_ns();
	/* Ten at once, the rest one every ten milliseconds. */
	for (uint32_t i = 0; i < 18; i++) {
		transmit((struct net_header){0}, 60);
		control(4, 4, 0, "\2", 2);
		control(4, 4, 0, "\1", 2);
	}
	cr_assert_geq(now_ns() - begin, 60000000, "too fast");
}

/* The guest's address */

static void send_arp(const uint8_t sender[6], const char *address, uint16_t operation)
{
	static const uint8_t head[8] = {0x08, 0x06, 0, 1, 8, 0, 6, 4};
	struct test_buffer buffer = frame((struct net_header){0}, 42);
	uint8_t *bytes = test_driver_at(&driver, buffer.gpa + NET_HEADER_SIZE);

	memset(bytes, 0xff, 6);
	memcpy(bytes + 6, sender, 6);
	memcpy(bytes + 12, head, sizeof(head));
	bytes[20] = 0;
	bytes[21] = (uint8_t)operation;
	memcpy(bytes + 22, sender, 6);
	cr_assert_eq(inet_pton(AF_INET, address, bytes + 28), 1);
	offer(TX, &buffer, 1);
	test_driver_wait(&driver, TX);
}

Test(net, the_address_is_what_the_guest_claims)
{
	static const uint8_t other[6] = {2, 3, 4, 5, 6, 7};

	start(FEATURES_CONTROL);
	transmit((struct net_header){0}, 42);
	send_arp(mac, "0.0.0.0", 1);
	send_arp(other, "10.0.0.9", 1);
	cr_assert_eq(net_address(net), 0, "a probe, or somebody else's");
	send_arp(mac, "10.0.0.1", 1);
	cr_assert_eq(net_address(net), inet_addr("10.0.0.1"));
	send_arp(mac, "10.0.0.2", 2);
	cr_assert_eq(net_address(net), inet_addr("10.0.0.2"));
	control(CONTROL, 1, 1, other, 6);
	send_arp(other, "10.0.0.9", 1);
	cr_assert_eq(net_address(net), inet_addr("10.0.0.9"), "by its new name");
	test_driver_reset(&driver);
	cr_assert_eq(net_address(net), 0);
}

/* State */

static struct net *make_second(uint32_t n_pairs)
{
	static struct pci_root second_root;
	static const struct pci_layout layout = {
		.ecam = 0xe0000000, .window = 0xc0000000, .window_size = 1 << 20};
	struct net_options options = {.n_pairs = n_pairs};
	static struct test_board second_board;
	struct error err = ERROR_NULL;
	struct net *second;

	test_board_init(&second_board);
	cr_assert_eq(pci_root_init(&second_root, &layout, &second_board.io, &second_board.mmio,
				   &second_board.irqs, &second_board.kicks, &err),
		     0);
	for (uint32_t i = 0; i < PAIRS; i++)
		fake_init(&ports[i], OFFLOADS);
	cr_assert_eq(make_net(&second, &second_root, 1, &options, &err), 0, "%s", err.text);
	return second;
}

Test(net_pairs, the_card_moves_with_its_state)
{
	static const uint8_t other[6] = {2, 3, 4, 5, 6, 7};
	static uint8_t stream[16384];
	struct cursor out = cursor_writer(stream, sizeof(stream)), in;
	struct error err = ERROR_NULL;
	uint64_t offloads = NET_F_GUEST_CSUM;
	struct net *old = net;
	uint8_t now[6];

	start(FEATURES_PAIRS | FEATURES_RX | NET_F_CTRL_GUEST_OFFLOADS);
	use_pairs(2);
	control(2 * PAIRS, 1, 1, other, 6);
	control(2 * PAIRS, 5, 0, &offloads, 8);
	send_arp(other, "10.0.0.9", 1);
	cr_assert(net_announce(net));
	net_set_link(net, false);
	pause_card();
	cr_assert(rested);
	/* What the transport would know had the driver gone through it. */
	net->pci.state.driver_features = net->virtio.accepted;
	cr_assert_eq(device_save(net_device(net), &out), 0);
	net = make_second(PAIRS);
	test_driver_turn(&driver);
	in = cursor_reader(stream, out.at);
	cr_assert_eq(device_load(net_device(net), &in, &err), 0, "%s", err.text);
	driver.virtio = &net->virtio;
	resume_card();
	config_mac(now);
	cr_assert_arr_eq(now, other, 6);
	cr_assert_eq(config_status(), STATUS_ANNOUNCE);
	cr_assert_eq(net_address(net), inet_addr("10.0.0.9"));
	cr_assert_eq(ports[0].accepted, NET_OFFLOAD_CSUM);
	expect_started(2);
	for (uint32_t i = 0; i < PAIRS; i++)
		old->pairs[i].port = NULL;
	net_free(old);
}

Test(net_pairs, a_state_that_cannot_be_is_refused)
{
	struct error err = ERROR_NULL;
	struct net_state good;

	start(FEATURES_CONTROL);
	pause_card();
	good = net->state;
	cr_assert_eq(net->virtio.ops->loaded(&net->virtio, &err), 0);
	net->state.n_active = 2;
	cr_assert_eq(net->virtio.ops->loaded(&net->virtio, &err), -EBADMSG, "without MQ");
	net->state = good;
	net->state.offloads = NET_F_GUEST_TSO4;
	cr_assert_eq(net->virtio.ops->loaded(&net->virtio, &err), -EBADMSG);
	net->state = good;
	net->state.mac[0] = 1;
	cr_assert_eq(net->virtio.ops->loaded(&net->virtio, &err), -EBADMSG);
	net->state = good;
	resume_card();
	test_driver_reset(&driver);
	start(NET_F_MQ | NET_F_CTRL_VQ);
	pause_card();
	net->state.n_active = PAIRS + 1;
	cr_assert_eq(net->virtio.ops->loaded(&net->virtio, &err), -EBADMSG);
	net->state.n_active = 1;
	net->state.announce = true;
	cr_assert_eq(net->virtio.ops->loaded(&net->virtio, &err), -EBADMSG);
}

/* Making */

Test(net_made, it_offers_what_all_its_ports_can_do)
{
	ports[1].port.offloads = NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO6;
	make((struct net_options){.n_pairs = 2});
	cr_assert_eq(net->virtio.offered &
			     (NET_F_CSUM | NET_F_GUEST_CSUM | NET_F_HOST_TSO6 | NET_F_GUEST_TSO6 |
			      NET_F_HOST_TSO4 | NET_F_GUEST_TSO4 | NET_F_HOST_USO | NET_F_HOST_ECN),
		     NET_F_CSUM | NET_F_GUEST_CSUM | NET_F_HOST_TSO6 | NET_F_GUEST_TSO6);
	cr_assert(net->virtio.offered & NET_F_MQ &&
		  net->virtio.offered & NET_F_CTRL_GUEST_OFFLOADS);
	cr_assert_not(net->virtio.offered & NET_F_MTU);
}

Test(net_made, a_port_without_sums_offloads_nothing)
{
	ports[0].port.offloads = NET_OFFLOAD_TSO4;
	make((struct net_options){0});
	cr_assert_not(net->virtio.offered &
		      (NET_F_CSUM | NET_F_GUEST_CSUM | NET_F_HOST_TSO4 | NET_F_GUEST_TSO4 |
		       NET_F_CTRL_GUEST_OFFLOADS | NET_F_MQ));
}

Test(net_made, ports_that_cannot_be_detached_come_alone)
{
	struct net_options options = {.n_pairs = 2};
	struct error err = ERROR_NULL;

	ports[1].ops.attach = NULL;
	cr_assert_eq(make_net(&net, &root, 1, &options, &err), -EINVAL);
	cr_assert_str_eq(err.text, "cannot make net0 of 2 queue pairs: a fake has only one");
	cr_assert(ports[0].freed && ports[1].freed, "it owned them");
}

static struct vhost_net *const kernels[1] = {&kernel};

Test(net_made, vhost_and_limits_exclude_each_other)
{
	struct net_options options = {.vhosts = (struct vhost_net **)(uintptr_t)kernels,
				      .limits = {.tx_rate = 1000}};
	struct error err = ERROR_NULL;

	cr_assert_eq(make_net(&net, &root, 1, &options, &err), -EINVAL);
	cr_assert(ports[0].freed && kernel.freed);
}

Test(net_made, vhost_serves_both_queues)
{
	make((struct net_options){.vhosts = (struct vhost_net **)(uintptr_t)kernels});
	cr_assert_not(net->virtio.offered & NET_F_GUEST_USO4, "what the kernel lacks is not there");
	start(FEATURES_RX | FEATURES_CONTROL);
	cr_assert(kernel.runs[0] && kernel.runs[1] && !ports[0].started);
	cr_assert_eq(ports[0].accepted,
		     NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_ECN);
	cr_assert_eq(control(CONTROL, 0, 0, "\1", 1), 0, "control is ours");
	virtio_queue_call_changed(&net->virtio.queues[1]);
	test_driver_turn(&driver);
	cr_assert_eq(kernel.n_calls, 1);
	pause_card();
	cr_assert(rested && !kernel.runs[0] && !kernel.runs[1]);
	resume_card();
	cr_assert_eq(kernel.n_starts, 4);
	test_driver_reset(&driver);
	cr_assert_eq(kernel.n_stops, 4);
}

Test(net_made, a_kernel_that_does_not_want_is_done_without)
{
	kernel.error = -ENODEV;
	make((struct net_options){.vhosts = (struct vhost_net **)(uintptr_t)kernels});
	start(FEATURES_TX);
	transmit((struct net_header){0}, 100);
	cr_assert(ports[0].n_sent == 1 && counter("vhost") == 0);
}
