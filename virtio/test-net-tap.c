/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tap port against real taps in a network namespace of the test's own. What the tap is given to
 * read is sent by a packet socket on its interface, which also sees what the port writes.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "virtio/test-net-port.h"

#define ETHERTYPE_TEST 0x88b5
#define SMALL          64
#define N_MANY         300

static struct test_card *card;
static int packets = -1, interface;

static void enter_namespace(void)
{
	int fd;

	if (unshare(CLONE_NEWNET) < 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) < 0)
		cr_skip_test("no network namespace for this user: %s", strerror(errno));
	/* Or the interface greets its neighbours. */
	fd = open("/proc/sys/net/ipv6/conf/default/disable_ipv6", O_WRONLY | O_CLOEXEC);
	if (fd >= 0)
		(void)!write(fd, "1", 1);
	fd_close(fd);
}

static int open_tap(int flags)
{
	struct ifreq ifreq = {.ifr_flags = (short)flags, .ifr_name = "test0"};
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		cr_skip_test("cannot open /dev/net/tun: %s", strerror(errno));
	if (ioctl(fd, TUNSETIFF, &ifreq) < 0)
		cr_skip_test("cannot make a tap: %s", strerror(errno));
	return fd;
}

static void open_packets(void)
{
	const int on = 1, room = 64 << 20;
	struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(ETHERTYPE_TEST)};
	struct ifreq ifreq = {.ifr_name = "test0"};

	packets = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	cr_assert(ge(int, packets, 0));
	cr_assert(eq(int, ioctl(packets, SIOCGIFFLAGS, &ifreq), 0));
	ifreq.ifr_flags |= IFF_UP;
	cr_assert(eq(int, ioctl(packets, SIOCSIFFLAGS, &ifreq), 0));
	interface = (int)if_nametoindex("test0");
	at.sll_ifindex = interface;
	cr_assert(eq(int, setsockopt(packets, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof(on)), 0));
	(void)setsockopt(packets, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room));
	(void)setsockopt(packets, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room));
	cr_assert(eq(int, bind(packets, (struct sockaddr *)&at, sizeof(at)), 0));
}

static void make_tap(int without_uring, uint32_t offloads)
{
	struct error err = ERROR_NULL;
	struct net_port *port;

	enter_namespace();
	card = card_new(without_uring);
	cr_assert(eq(int,
		     net_tap_new(&port, card->loop, open_tap(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR),
				 &err),
		     0),
		  "%s", err.text);
	card_plug(card, port);
	open_packets();
	port->ops->start(port, offloads);
}

static void tear_down(void)
{
	fd_close(packets);
	card_free(card);
}

/* An Ethernet frame with a number and a pattern made of it. */
static void make_frame(uint8_t *frame, uint32_t size, uint32_t number)
{
	static const uint8_t head[14] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2,
					 0,    0,    0,    0,    1,    0x88, 0xb5};

	memcpy(frame, head, sizeof(head));
	memcpy(frame + 14, &number, 4);
	for (uint32_t i = 18; i < size; i++)
		frame[i] = (uint8_t)(i * 7 + number);
}

static void inject(uint32_t size, uint32_t number)
{
	uint8_t data[sizeof(struct virtio_net_hdr) + 2048] = {0};

	make_frame(data + sizeof(struct virtio_net_hdr), size, number);
	cr_assert(eq(int, (int)send(packets, data, sizeof(struct virtio_net_hdr) + size, 0),
		     (int)(sizeof(struct virtio_net_hdr) + size)),
		  "%s", strerror(errno));
}

static void inject_row(uint32_t n, uint32_t first)
{
	for (uint32_t i = 0; i < n; i++)
		inject(SMALL + (first + i) % 1000, first + i);
}

static void check_frame(const struct test_frame *frame, uint32_t size, uint32_t number)
{
	static const uint8_t no_header[NET_HEADER_SIZE];
	uint8_t wanted[2048];

	make_frame(wanted, size, number);
	cr_assert(eq(u32, frame->size, NET_HEADER_SIZE + size));
	cr_assert(eq(int, memcmp(frame->data, no_header, NET_HEADER_SIZE), 0));
	cr_assert(eq(int, memcmp(frame->data + NET_HEADER_SIZE, wanted, size), 0),
		  "frame %u differs", number);
}

static void check_row(uint32_t n, uint32_t first)
{
	for (uint32_t i = 0; i < n; i++)
		check_frame(&card->frames[first + i], SMALL + (first + i) % 1000, first + i);
}

BOTH(tap, frames_come_in_whole_and_in_order)
{
	make_tap(*without_uring, 0);
	inject_row(N_MANY, 0);
	UNTIL(card, card->n_frames == N_MANY);
	check_row(N_MANY, 0);
	/* Some without a copy, the rest in rows. */
	cr_assert(gt(u32, card->n_lends, 1));
	cr_assert(lt(u32, card->n_lends, N_MANY / 4));
	cr_assert(eq(u64, card->port->n_reads, N_MANY));
	card_settle(card);
	tear_down();
}

BOTH(tap, one_frame_goes_straight_into_the_guest)
{
	make_tap(*without_uring, 0);
	for (uint32_t i = 0; i < 10; i++) {
		inject_row(1, i);
		UNTIL(card, card->n_frames == i + 1);
		cr_assert(card->frames[i].lent);
		card_settle(card);
	}
	check_row(10, 0);
	tear_down();
}

/* Each a row of its own; now and then it is asked whether there are more. */
BOTH(tap, frames_that_come_one_at_a_time_are_seldom_asked_for_twice)
{
	const uint32_t n = 64;

	make_tap(*without_uring, 0);
	for (uint32_t i = 0; i < n; i++) {
		inject_row(1, i);
		UNTIL(card, card->n_frames == i + 1);
		card_settle(card);
	}
	cr_assert(lt(u64, card->port->n_read_calls, n * 5 / 4));
	tear_down();
}

Test(tap, small_frames_cost_a_fraction_of_a_kernel_entry)
{
	uint64_t before;

	make_tap(0, 0);
	before = loop_counters(card->loop).enters;
	inject_row(N_MANY, 0);
	UNTIL(card, card->n_frames == N_MANY);
	card_settle(card);
	if (card->port->n_read_calls >= N_MANY)
		cr_skip_test("this kernel knows no RWF_NOWAIT for taps");
	cr_assert(lt(u64, card->port->n_read_calls, N_MANY / 10));
	cr_assert(lt(u64, loop_counters(card->loop).enters - before, N_MANY / 10));
	tear_down();
}

static uint8_t out_frames[N_MANY][SMALL + 1000];
static struct virtio_net_hdr_v1 out_header;
static struct iovec out_iovs[N_MANY][3];

static int send_frame(uint32_t number, uint32_t size)
{
	struct iovec *iov = out_iovs[number % N_MANY];
	uint8_t *frame = out_frames[number % N_MANY];

	make_frame(frame, size, number);
	iov[0] = (struct iovec){&out_header, NET_HEADER_SIZE};
	iov[1] = (struct iovec){frame, 20};
	iov[2] = (struct iovec){frame + 20, size - 20};
	return card->port->ops->send(card->port, iov, 3, NET_HEADER_SIZE + size, number);
}

static void check_packet(uint32_t number)
{
	uint8_t got[sizeof(struct virtio_net_hdr) + 2048], wanted[2048];
	const uint32_t size = SMALL + number % 1000;

	make_frame(wanted, size, number);
	cr_assert(eq(int, (int)recv(packets, got, sizeof(got), 0),
		     (int)(sizeof(struct virtio_net_hdr) + size)));
	cr_assert(eq(int, memcmp(got + sizeof(struct virtio_net_hdr), wanted, size), 0));
}

BOTH(tap, frames_go_out_whole_and_in_order)
{
	uint64_t enters;

	make_tap(*without_uring, 0);
	card_settle(card);
	enters = loop_counters(card->loop).enters;
	for (uint32_t i = 0; i < 100; i++)
		cr_assert(eq(int, send_frame(i, SMALL + i % 1000), 0));
	card->port->ops->flush(card->port);
	UNTIL(card, card->n_sent == 100);
	enters = loop_counters(card->loop).enters - enters;
	for (uint32_t i = 0; i < 100; i++) {
		cr_assert(eq(i32, card->results[i], 0));
		check_packet(i);
	}
	cr_assert(eq(u64, card->port->n_writes, 100));
	if (!*without_uring) {
		cr_assert(le(u64, enters, 2));
		cr_assert(eq(u64, card->port->n_write_calls, 1));
	}
	card_settle(card);
	tear_down();
}

/* More than the ring has room for: refused, called, and all goes out. */
BOTH(tap, too_many_frames_wait_for_room)
{
	uint32_t n = 0;
	int r;

	make_tap(*without_uring, 0);
	while ((r = send_frame(n, SMALL)) == 0)
		cr_assert(lt(u32, ++n, TEST_SENT));
	cr_assert(eq(int, r, -EBUSY));
	card->port->ops->flush(card->port);
	UNTIL(card, card->n_rooms);
	cr_assert(eq(int, send_frame(n, SMALL), 0));
	card->port->ops->flush(card->port);
	UNTIL(card, card->n_sent == n + 1);
	card_settle(card);
	tear_down();
}

BOTH(tap, frames_that_the_card_refuses_are_kept_in_order)
{
	make_tap(*without_uring, 0);
	card->may_receive = 0;
	inject_row(N_MANY, 0);
	for (uint32_t taken = 0; card->n_frames < N_MANY; taken++) {
		card_settle(card);
		cr_assert(lt(u32, taken, N_MANY));
		card->may_receive = 3;
		card->port->ops->ready(card->port);
		card_settle(card);
	}
	check_row(N_MANY, 0);
	cr_assert(gt(u32, card->n_refused, 10));
	tear_down();
}

/* Turns that end at a deadline cost one kernel entry; a loop that spins has no end of them. */
static void check_idle(void)
{
	uint64_t turns = loop_counters(card->loop).turns, end = loop_now(card->loop) + 20000000;

	while (loop_now(card->loop) < end)
		cr_assert(eq(int, loop_turn(card->loop, end), 0));
	cr_assert(le(u64, loop_counters(card->loop).turns - turns, 5));
}

BOTH(tap, without_guest_buffers_it_waits_and_does_not_spin)
{
	make_tap(*without_uring, 0);
	card->may_lend = 0;
	inject_row(20, 0);
	card_settle(card);
	cr_assert(eq(u32, card->n_frames, 0));
	check_idle();
	card->may_lend = 1000;
	card->port->ops->ready(card->port);
	UNTIL(card, card->n_frames == 20);
	check_row(20, 0);
	card_settle(card);
	inject_row(20, 20);
	UNTIL(card, card->n_frames == 40);
	check_row(40, 0);
	card_settle(card);
	check_idle();
	tear_down();
}

BOTH(tap, stop_gives_all_back_and_start_goes_on)
{
	uint32_t n_frames;

	make_tap(*without_uring, 0);
	inject_row(N_MANY, 0);
	UNTIL(card, card->n_frames >= 3);
	/* Reads and writes are under way. */
	for (uint32_t i = 0; i < 10; i++)
		cr_assert(eq(int, send_frame(i, SMALL), 0));
	card->port->ops->flush(card->port);
	card->port->ops->stop(card->port);
	card->stopped = true;
	cr_assert(eq(int, loop_turn(card->loop, 0), 0));
	cr_assert(eq(int, loop_turn(card->loop, 0), 0));
	cr_assert(not(card->is_lent));
	cr_assert(eq(u32, card->n_sent, 10));
	n_frames = card->n_frames;
	card_settle(card);
	cr_assert(eq(u32, card->n_frames, n_frames));
	card->stopped = false;
	card->port->ops->start(card->port, 0);
	inject(SMALL, 4711);
	UNTIL(card, !memcmp(card->frames[card->n_frames - 1].data + NET_HEADER_SIZE + 14,
			    &(uint32_t){4711}, 4));
	card_settle(card);
	tear_down();
}

BOTH(tap, start_right_after_stop_is_no_second_row)
{
	make_tap(*without_uring, 0);
	for (uint32_t round = 0; round < 50; round++) {
		inject_row(5, 0);
		cr_assert(eq(int, loop_turn(card->loop, loop_now(card->loop) + 1000000), 0));
		card->port->ops->stop(card->port);
		card->port->ops->start(card->port, 0);
	}
	inject(SMALL, 4711);
	UNTIL(card, card->n_frames &&
			    !memcmp(card->frames[card->n_frames - 1].data + NET_HEADER_SIZE + 14,
				    &(uint32_t){4711}, 4));
	card_settle(card);
	tear_down();
}

static void delete_interface(void)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg info;
	} request = {
		.header = {.nlmsg_len = sizeof(request),
			   .nlmsg_type = RTM_DELLINK,
			   .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK},
		.info = {.ifi_index = interface},
	};
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	struct {
		struct nlmsghdr header;
		struct nlmsgerr error;
		char more[256];
	} answer;

	cr_assert(eq(int, (int)send(fd, &request, sizeof(request), 0), (int)sizeof(request)));
	cr_assert(gt(int, (int)recv(fd, &answer, sizeof(answer), 0), 0));
	cr_assert(eq(int, answer.error.error, 0));
	close(fd);
}

BOTH(tap, interface_that_is_deleted_is_told_once)
{
	make_tap(*without_uring, 0);
	inject_row(5, 0);
	UNTIL(card, card->n_frames == 5);
	delete_interface();
	UNTIL(card, card->n_links);
	cr_assert(eq(str, card->why, "its tap interface was deleted"));
	for (uint32_t i = 0; i < 5; i++)
		cr_assert(eq(int, send_frame(i, SMALL), 0));
	card->port->ops->flush(card->port);
	UNTIL(card, card->n_sent == 5);
	for (uint32_t i = 0; i < 5; i++)
		cr_assert(eq(i32, card->results[i], -EBADFD));
	card->port->ops->ready(card->port);
	card->port->ops->stop(card->port);
	card->port->ops->start(card->port, 0);
	card_settle(card);
	check_idle();
	cr_assert(eq(u32, card->n_links, 1));
	tear_down();
}

BOTH(tap, interface_that_is_deleted_while_the_card_has_no_buffers)
{
	make_tap(*without_uring, 0);
	card->may_lend = 0;
	inject_row(5, 0);
	card_settle(card);
	delete_interface();
	card_settle(card);
	check_idle();
	card->may_lend = 10;
	card->port->ops->ready(card->port);
	UNTIL(card, card->n_links);
	cr_assert(eq(u32, card->n_links, 1));
	cr_assert(eq(u32, card->n_frames, 0));
	card_settle(card);
	tear_down();
}

/* Header, Ethernet, IPv4 and TCP with 60,000 bytes to be cut into pieces of 1,400. */
static uint32_t make_large(uint8_t *data, uint32_t header_size)
{
	const struct virtio_net_hdr header = {
		.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
		.gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
		.hdr_len = 54,
		.gso_size = 1400,
		.csum_start = 34,
		.csum_offset = 16,
	};
	static const uint8_t ip[20] = {
		0x45, 0, (60040 >> 8), 60040 & 0xff, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0,
		0,    2};
	static const uint8_t tcp[20] = {0x12, 0x34, 0x00, 0x50, 0,    0,    0, 1,
					0,    0,    0,    0,    0x50, 0x10, 1, 0};
	uint32_t sum = 0;

	memcpy(data, &header, sizeof(header));
	data += header_size;
	make_frame(data, 14, 0);
	data[12] = 0x08;
	data[13] = 0;
	memcpy(data + 14, ip, 20);
	for (uint32_t i = 0; i < 20; i += 2)
		sum += (uint32_t)(ip[i] << 8 | ip[i + 1]);
	sum = ~((sum & 0xffff) + (sum >> 16)) & 0xffff;
	data[24] = (uint8_t)(sum >> 8);
	data[25] = (uint8_t)sum;
	memcpy(data + 34, tcp, 20);
	memset(data + 54, 0x77, 60000);
	return header_size + 54 + 60000;
}

static void inject_large(void)
{
	static uint8_t data[NET_FRAME_MAX];
	const struct sockaddr_ll to = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(ETHERTYPE_IP),
		.sll_ifindex = interface,
	};
	uint32_t size = make_large(data, sizeof(struct virtio_net_hdr));

	cr_assert(eq(int,
		     (int)sendto(packets, data, size, 0, (const struct sockaddr *)&to, sizeof(to)),
		     (int)size),
		  "%s", strerror(errno));
}

BOTH(tap, large_frames_come_whole_when_the_guest_accepts_that)
{
	struct virtio_net_hdr_v1 header;

	make_tap(*without_uring, NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4);
	for (uint32_t i = 0; i < 8; i++)
		inject_large();
	UNTIL(card, card->n_frames == 8);
	for (uint32_t i = 0; i < 8; i++)
		cr_assert(eq(u32, card->frames[i].size, NET_HEADER_SIZE + 54 + 60000));
	memcpy(&header, card->frames[0].data, sizeof(header));
	cr_assert(eq(int, header.gso_type, VIRTIO_NET_HDR_GSO_TCPV4));
	cr_assert(eq(int, header.gso_size, 1400));
	cr_assert(eq(int, header.flags, VIRTIO_NET_HDR_F_NEEDS_CSUM));
	/* From the second row on, none is copied. */
	for (uint32_t i = 4; i < 8; i++)
		cr_assert(card->frames[i].lent);
	card_settle(card);
	tear_down();
}

BOTH(tap, large_frames_are_cut_when_the_guest_does_not)
{
	make_tap(*without_uring, 0);
	inject_large();
	UNTIL(card, card->n_frames == 43);
	for (uint32_t i = 0; i < 43; i++) {
		cr_assert(le(u32, card->frames[i].size, NET_HEADER_SIZE + 54 + 1400));
		cr_assert(eq(int, card->frames[i].data[0], 0));
	}
	card_settle(card);
	/* The next driver accepts more. */
	card->port->ops->stop(card->port);
	card->port->ops->start(card->port, NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4);
	inject_large();
	UNTIL(card, card->n_frames == 44);
	cr_assert(eq(u32, card->frames[43].size, NET_HEADER_SIZE + 54 + 60000));
	card_settle(card);
	tear_down();
}

BOTH(tap, a_frame_with_a_lying_header_is_lost_and_the_next_is_not)
{
	static const struct virtio_net_hdr_v1 lies[] = {
		{.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 60000, .csum_offset = 16},
		{.gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .gso_size = 0},
		{.gso_type = 77, .gso_size = 1400},
		{.hdr_len = 65535},
	};

	make_tap(*without_uring, 0);
	for (uint32_t i = 0; i < ARRAY_SIZE(lies); i++) {
		out_header = lies[i];
		cr_assert(eq(int, send_frame(i, SMALL), 0));
		card->port->ops->flush(card->port);
		UNTIL(card, card->n_sent == i + 1);
		cr_assert(lt(i32, card->results[i], 0), "lie %u", i);
	}
	out_header = (struct virtio_net_hdr_v1){0};
	cr_assert(eq(int, send_frame(4, SMALL + 4), 0));
	card->port->ops->flush(card->port);
	UNTIL(card, card->n_sent == 5);
	cr_assert(eq(i32, card->results[4], 0));
	check_packet(4);
	cr_assert(eq(u32, card->n_links, 0));
	card_settle(card);
	tear_down();
}

Test(tap, offers_what_the_kernel_can_do)
{
	make_tap(0, 0);
	cr_assert(eq(u32, card->port->offloads & ~NET_OFFLOAD_USO,
		     NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_ECN));
	/* Both or neither: 6.2 and later know them. */
	cr_assert(eq(int, !!(card->port->offloads & NET_OFFLOAD_USO),
		     ioctl(card->port->fd, TUNSETOFFLOAD, TUN_F_CSUM | 0x20 | 0x40) == 0));
	tear_down();
}

static void refuse(int fd, const char *sentence)
{
	struct error err = ERROR_NULL;
	struct net_port *port = NULL;

	cr_assert(lt(int, net_tap_new(&port, card->loop, fd, &err), 0));
	cr_assert(port == NULL);
	cr_assert(strstr(err.text, sentence) != NULL, "%s", err.text);
	cr_assert(eq(int, fcntl(fd, F_GETFD), -1));
}

Test(tap, what_is_no_such_tap_is_refused_and_closed)
{
	enter_namespace();
	card = card_new(0);
	refuse(open("/dev/null", O_RDWR | O_CLOEXEC), "not attached");
	refuse(open_tap(IFF_TAP | IFF_NO_PI), "\"test0\": it was not opened as a tap with");
	refuse(open_tap(IFF_TUN | IFF_NO_PI | IFF_VNET_HDR), "was not opened as a tap");
	refuse(open("/dev/net/tun", O_RDWR | O_CLOEXEC), "not attached");
	tear_down();
}
