/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A network card on a tap, with the host half as the network: it sends every frame of the guest
 * back with the addresses swapped, and the header that the kernel saw with it, so that offloads are
 * seen both ways. Frames too short, too long and with lying headers; the link pulled and plugged;
 * an announcement; the tap deleted. Then a second VM with several queue pairs, and where the host
 * has vhost-net a third that it serves. All of it is in a network namespace of the test's own.
 */
#define TAP_MAC     "52:54:00:0a:0b:0c"
#define ECHO_TYPE   0x88b5 /* IEEE 802, for experiments */
#define ARP_ADDRESS "10.9.8.7"
#define N_SHORT     3
#define N_LONG      1
#define N_LIES      6
#define LONG_FRAME  20000
#define MSS         1448
#define PAIRS       3

#ifdef GUEST

#include "guest-tests/runtime/net.h"

#include "guest-tests/runtime/apic.h"

#define ETHERNET 14
#define IP       20
#define TCP      20
#define UDP      8

static struct net card;
static uint8_t frame[70000] __attribute__((aligned(16)));
static uint8_t back[LONG_FRAME + 100] __attribute__((aligned(16)));
static const struct net_header plain;
static bool kernel_serves;

static void put16(uint8_t *at, uint32_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

static uint16_t get16(const uint8_t *at)
{
	return (uint16_t)(at[0] << 8 | at[1]);
}

static void put_ethernet(uint16_t type)
{
	memset(frame, 0xff, 6);
	memcpy(frame + 6, card.mac, 6);
	put16(frame + 12, type);
}

static void put_pattern(uint32_t from, uint32_t to, uint8_t seed)
{
	for (uint32_t i = from; i < to; i++)
		frame[i] = (uint8_t)(i * 7 + seed);
}

static uint32_t sum(const uint8_t *data, uint32_t len, uint32_t start)
{
	for (uint32_t i = 0; i + 1 < len; i += 2)
		start += get16(data + i);
	if (len & 1)
		start += (uint32_t)data[len - 1] << 8;
	while (start >> 16)
		start = (start & 0xffff) + (start >> 16);
	return start;
}

/* IPv4 with a whole checksum, and behind it a sum of the pseudo header where `at` says. */
static void put_ip(uint32_t len, uint8_t protocol, uint32_t at)
{
	uint8_t *ip = frame + ETHERNET;

	put_ethernet(0x0800);
	memset(ip, 0, IP);
	ip[0] = 0x45;
	put16(ip + 2, len - ETHERNET);
	ip[8] = 64;
	ip[9] = protocol;
	memcpy(ip + 12, "\x0a\x00\x00\x01\x0a\x00\x00\x02", 8);
	put16(ip + 10, ~sum(ip, IP, 0));
	put16(frame + at, sum(ip + 12, 8, protocol + len - ETHERNET - IP));
}

/* What comes back is what went out, but for the addresses and, maybe, the checksum at `skip`. */
static void expect_back(uint32_t len, struct net_header *header, uint32_t skip)
{
	uint32_t n;

	do {
		n = net_receive(&card, header, back, sizeof(back), NET_TIMEOUT_MS);
		GUEST_ASSERT(n, "%u bytes did not come back", len);
		/* The host may have something to say of its own. */
	} while (get16(back + 12) != get16(frame + 12) || memcmp(back, card.mac, 6) != 0);
	GUEST_ASSERT(n == len, "%u bytes came back, not %u", n, len);
	for (uint32_t i = ETHERNET; i < len; i++)
		GUEST_ASSERT(back[i] == frame[i] || (skip && (i == skip || i == skip + 1)),
			     "byte %u of %u is 0x%x, not 0x%x", i, len, back[i], frame[i]);
}

static void echo(unsigned int pair, uint32_t len, uint8_t seed)
{
	struct net_header header;

	put_ethernet(ECHO_TYPE);
	put_pattern(ETHERNET, len, seed);
	net_send(&card, pair, &plain, frame, len);
	expect_back(len, &header, 0);
	/* Linux before 6.14 leaves the number out where buffers cannot be merged. */
	if (!kernel_serves)
		GUEST_ASSERT(header.num_buffers == 1, "%u buffers", header.num_buffers);
}

static void address(struct guest_boot *boot)
{
	(void)boot;
	net_start(&card, NET_FEATURES);
	note("mac %02x:%02x:%02x:%02x:%02x:%02x", card.mac[0], card.mac[1], card.mac[2],
	     card.mac[3], card.mac[4], card.mac[5]);
	GUEST_ASSERT(net_status(&card) == NET_STATUS_UP, "status %u", net_status(&card));
}

/* Plain and mergeable buffers, every mix of ring features. */
static void both_ways(struct guest_boot *boot)
{
	static const uint32_t sizes[] = {60, 61, 64, 300, 1513, 1514};
	static const uint64_t mixes[] = {0, NET_F_MRG_RXBUF, VIRTIO_RING_FEATURES,
					 NET_FEATURES | VIRTIO_RING_FEATURES};

	(void)boot;
	for (unsigned int i = 0; i < ARRAY_SIZE(mixes); i++) {
		net_start(&card, mixes[i]);
		for (unsigned int j = 0; j < ARRAY_SIZE(sizes); j++)
			echo(0, sizes[j], (uint8_t)(i + j));
	}
}

/* Twice the rings: every place of them is used again. */
static void many(struct guest_boot *boot)
{
	(void)boot;
	net_start(&card, NET_FEATURES | VIRTIO_RING_FEATURES);
	for (unsigned int i = 0; i < 2u * card.rx[0].size; i++)
		echo(0, 60 + i, (uint8_t)i);
}

static void checksum(struct guest_boot *boot)
{
	const uint32_t at = ETHERNET + IP + 6, len = 500;
	const struct net_header header = {
		.flags = NET_NEEDS_CSUM, .csum_start = ETHERNET + IP, .csum_offset = 6};
	struct net_header seen;
	uint32_t check;

	(void)boot;
	put_pattern(ETHERNET + IP, len, 3);
	put16(frame + ETHERNET + IP + 4, len - ETHERNET - IP);
	put_ip(len, 17, at);
	net_start(&card, NET_FEATURES);
	GUEST_ASSERT(virtio_has(&card.dev, NET_F_CSUM | NET_F_GUEST_CSUM), "not offered");
	net_send(&card, 0, &header, frame, len);
	expect_back(len, &seen, at);
	GUEST_ASSERT(seen.flags == NET_NEEDS_CSUM && seen.csum_start == ETHERNET + IP &&
			     seen.csum_offset == 6,
		     "flags %u, start %u, offset %u", seen.flags, seen.csum_start,
		     seen.csum_offset);
	/* A guest that does not know how to finish it gets it finished. */
	net_start(&card, NET_FEATURES & ~(NET_F_GUEST_CSUM | NET_F_GUEST_TSO4));
	net_send(&card, 0, &header, frame, len);
	expect_back(len, &seen, at);
	check = sum(back + ETHERNET + IP, len - ETHERNET - IP,
		    sum(back + ETHERNET + 12, 8, 17 + len - ETHERNET - IP));
	GUEST_ASSERT(seen.flags == 0 && check == 0xffff, "flags %u, sum 0x%x", seen.flags, check);
}

static void put_segments(void)
{
	put_pattern(ETHERNET + IP, LONG_FRAME, 5);
	memset(frame + ETHERNET + IP, 0, TCP);
	put16(frame + ETHERNET + IP, 1000);
	put16(frame + ETHERNET + IP + 2, 1000);
	frame[ETHERNET + IP + 12] = 0x50;
	frame[ETHERNET + IP + 13] = 0x10;
	put_ip(LONG_FRAME, 6, ETHERNET + IP + 16);
}

/* The host's stack gets one long frame and gives one back, over many buffers. */
static void segmentation(struct guest_boot *boot)
{
	const struct net_header header = {.flags = NET_NEEDS_CSUM,
					  .gso_type = NET_GSO_TCPV4,
					  .hdr_len = ETHERNET + IP + TCP,
					  .gso_size = MSS,
					  .csum_start = ETHERNET + IP,
					  .csum_offset = 16};
	struct net_header seen;

	(void)boot;
	put_segments();
	net_start(&card, NET_FEATURES | VIRTIO_RING_FEATURES);
	if (!virtio_has(&card.dev, NET_F_HOST_TSO4 | NET_F_GUEST_TSO4))
		GUEST_SKIP("the tap has no segmentation offload");
	for (unsigned int i = 0; i < 3; i++) {
		net_send(&card, 0, &header, frame, LONG_FRAME);
		expect_back(LONG_FRAME, &seen, ETHERNET + IP + 16);
		GUEST_ASSERT(seen.gso_type == NET_GSO_TCPV4 && seen.gso_size == MSS, "type %u, %u",
			     seen.gso_type, seen.gso_size);
		GUEST_ASSERT(seen.num_buffers ==
				     (LONG_FRAME + 12 + NET_RX_BUFFER_LEN - 1) / NET_RX_BUFFER_LEN,
			     "%u buffers", seen.num_buffers);
	}
}

static void bad_frames(struct guest_boot *boot)
{
	static const struct net_header lies[N_LIES] = {
		{.flags = NET_NEEDS_CSUM, .csum_start = 99, .csum_offset = 0},
		{.flags = NET_NEEDS_CSUM, .csum_start = 0xffff, .csum_offset = 0xffff},
		{.hdr_len = 5000},
		{.gso_type = NET_GSO_TCPV4, .gso_size = MSS},
		{.flags = NET_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16, .gso_type = 1},
		{.flags = NET_NEEDS_CSUM,
		 .csum_start = 34,
		 .csum_offset = 16,
		 .gso_type = 77,
		 .gso_size = MSS},
	};

	(void)boot;
	net_start(&card, NET_FEATURES);
	put_ethernet(ECHO_TYPE);
	net_send(&card, 0, &plain, frame, 0);
	net_send(&card, 0, &plain, frame, 1);
	net_send(&card, 0, &plain, frame, 13);
	net_send(&card, 0, &plain, frame, sizeof(frame));
	for (unsigned int i = 0; i < N_LIES; i++)
		net_send(&card, 0, &lies[i], frame, 100);
	GUEST_ASSERT(virtio_status(&card.dev) == 0xf, "status 0x%x", virtio_status(&card.dev));
	echo(0, 100, 1);
}

/* Who has what address: the host half asks the VMM. */
static void announce_address(struct guest_boot *boot)
{
	uint8_t *arp = frame + ETHERNET;
	struct net_header header;

	(void)boot;
	put_ethernet(0x0806);
	memcpy(arp, "\x00\x01\x08\x00\x06\x04\x00\x01", 8);
	memcpy(arp + 8, card.mac, 6);
	memcpy(arp + 14, "\x0a\x09\x08\x07", 4);
	memset(arp + 18, 0, 6);
	memcpy(arp + 24, "\x0a\x09\x08\x07", 4);
	net_send(&card, 0, &plain, frame, ETHERNET + 28);
	expect_back(ETHERNET + 28, &header, 0);
}

static void expect_status(uint16_t status, unsigned int before)
{
	GUEST_ASSERT(WAIT_UNTIL(card.n_config != before, NET_TIMEOUT_MS), "no interrupt");
	GUEST_ASSERT(net_status(&card) == status, "status %u, not %u", net_status(&card), status);
}

static void link(struct guest_boot *boot)
{
	unsigned int before = card.n_config;
	struct net_header header;

	(void)boot;
	note("link is up");
	expect_status(0, before);
	put_ethernet(ECHO_TYPE);
	net_send(&card, 0, &plain, frame, 100);
	GUEST_ASSERT(!net_receive(&card, &header, back, sizeof(back), 50), "through no link");
	before = card.n_config;
	note("link is down");
	expect_status(NET_STATUS_UP, before);
	echo(0, 100, 9);
}

static void announce(struct guest_boot *boot)
{
	unsigned int before = card.n_config;

	(void)boot;
	note("announce me");
	expect_status(NET_STATUS_UP | NET_STATUS_ANNOUNCE, before);
	GUEST_ASSERT(net_control(&card, 3, 0, NULL, 0) == 0, "refused");
	GUEST_ASSERT(net_status(&card) == NET_STATUS_UP, "status %u", net_status(&card));
}

static void commands(struct guest_boot *boot)
{
	static const uint8_t other[6] = {2, 0, 0, 0, 0, 1}, group[6] = {3, 0, 0, 0, 0, 1};
	static const uint64_t off;

	(void)boot;
	GUEST_ASSERT(net_control(&card, 0, 0, "\1", 1) == 0, "promiscuous");
	GUEST_ASSERT(net_control(&card, 1, 1, group, 6) == 1, "a group's address");
	GUEST_ASSERT(net_control(&card, 1, 1, other, 6) == 0, "another address");
	GUEST_ASSERT(virtio_config_read8(&card.dev, NET_CONFIG_MAC) == 2, "it is not there");
	GUEST_ASSERT(net_control(&card, 99, 0, NULL, 0) == 1, "class 99");
	if (virtio_has(&card.dev, NET_F_CTRL_GUEST_OFFLOADS))
		GUEST_ASSERT(net_control(&card, 5, 0, &off, 8) == 0, "offloads off");
	echo(0, 200, 2);
}

/* Saved, torn down and loaded while in use: it goes on where it was. */
static void cycle(struct guest_boot *boot)
{
	char line[16];

	(void)boot;
	net_start(&card, NET_FEATURES | VIRTIO_RING_FEATURES);
	echo(0, 100, 1);
	note("cycle me");
	for (unsigned int i = 0; i < 3; i++) {
		GUEST_ASSERT(serial_read_line(line, sizeof(line), NET_TIMEOUT_MS), "no word");
		echo(0, 100 + i, (uint8_t)i);
		note("cycle again");
	}
	GUEST_ASSERT(virtio_status(&card.dev) == 0xf, "status 0x%x", virtio_status(&card.dev));
}

/* The tap goes away: a link that is down, and a VM that lives. */
static void vanish(struct guest_boot *boot)
{
	unsigned int before = card.n_config;

	(void)boot;
	note("delete the tap");
	expect_status(0, before);
	for (unsigned int i = 0; i < 10; i++)
		net_send(&card, 0, &plain, frame, 100);
	net_start(&card, NET_FEATURES);
	GUEST_ASSERT(net_status(&card) == 0, "status %u", net_status(&card));
	net_send(&card, 0, &plain, frame, 100);
}

/* One pair is in use at first; then all; then one again. */
static void pairs(struct guest_boot *boot)
{
	uint16_t n = PAIRS;

	(void)boot;
	net_start(&card, NET_FEATURES | NET_F_MQ | VIRTIO_RING_FEATURES);
	GUEST_ASSERT(card.n_pairs == PAIRS, "%u pairs", card.n_pairs);
	for (unsigned int i = 0; i < 20; i++)
		echo(0, 100 + i, (uint8_t)i);
	GUEST_ASSERT(net_control(&card, 4, 0, &n, sizeof(n)) == 0, "refused");
	for (unsigned int i = 0; i < 20 * PAIRS; i++)
		echo(i % PAIRS, 100 + i, (uint8_t)i);
	n = PAIRS + 1;
	GUEST_ASSERT(net_control(&card, 4, 0, &n, sizeof(n)) == 1, "more than there are");
	n = 1;
	GUEST_ASSERT(net_control(&card, 4, 0, &n, sizeof(n)) == 0, "refused");
	for (unsigned int i = 0; i < 20; i++)
		echo(0, 200 + i, (uint8_t)i);
}

/* A driver that knows of one pair only finds the control queue behind it. */
static void one_of_many(struct guest_boot *boot)
{
	(void)boot;
	net_start(&card, NET_FEATURES);
	GUEST_ASSERT(net_control(&card, 0, 0, "\1", 1) == 0, "promiscuous");
	for (unsigned int i = 0; i < 20; i++)
		echo(0, 100 + i, (uint8_t)i);
}

/* The kernel serves the rings: what it does with bad frames and no link is its own business. */
static void with_vhost(struct guest_boot *boot)
{
	kernel_serves = true;
	guest_case("both-ways", both_ways, boot);
	guest_case("many", many, boot);
	guest_case("checksum", checksum, boot);
	guest_case("segmentation", segmentation, boot);
	guest_case("commands", commands, boot);
	guest_case("pairs", pairs, boot);
	note("served");
	guest_case("cycle", cycle, boot);
}

void guest_main(struct guest_boot *boot)
{
	GUEST_ASSERT(net_find(&card, 0), "no network card");
	serial_listen();
	if (cmdline_has(boot, "vhost")) {
		with_vhost(boot);
		return;
	}
	if (cmdline_has(boot, "pairs")) {
		guest_case("pairs", pairs, boot);
		guest_case("one-of-many", one_of_many, boot);
		return;
	}
	guest_case("address", address, boot);
	guest_case("both-ways", both_ways, boot);
	guest_case("many", many, boot);
	guest_case("checksum", checksum, boot);
	guest_case("segmentation", segmentation, boot);
	guest_case("bad-frames", bad_frames, boot);
	guest_case("announce-address", announce_address, boot);
	guest_case("link", link, boot);
	guest_case("announce", announce, boot);
	guest_case("commands", commands, boot);
	guest_case("cycle", cycle, boot);
	guest_case("vanish", vanish, boot);
}

#else

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "guest-tests/host/harness.h"
#include "guest-tests/host/tap.h"

static void set_link(struct vm *vm, bool up)
{
	json_decref(vm_call(vm, "link", json_pack("{s:s,s:b}", "device", "net0", "up", up)));
}

static void check_counters(struct vm *vm)
{
	static const struct {
		const char *name;
		int value;
	} expected[] = {{"tx-short", N_SHORT}, {"tx-long", N_LONG},  {"tx-bad-header", N_LIES},
			{"tx-lost", 0},        {"rx-bad-header", 0}, {"rx-no-buffer", 0}};
	json_t *counters = vm_call(vm, "counters", NULL), *status = vm_call(vm, "status", NULL);
	json_t *card = json_object_get(json_object_get(counters, "devices"), "net0");
	const char *address = json_string_value(json_object_get(status, "address"));

	CHECK(card, "no counters of net0");
	for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
		json_t *value = json_object_get(card, expected[i].name);

		CHECK(json_is_integer(value) && json_integer_value(value) == expected[i].value,
		      "%s is %lld, not %d", expected[i].name, (long long)json_integer_value(value),
		      expected[i].value);
	}
	CHECK(json_integer_value(json_object_get(card, "rx-frames")) > 100, "frames");
	CHECK(address && strcmp(address, ARP_ADDRESS) == 0, "the VM is at %s",
	      address ? address : "no address");
	json_decref(counters);
	json_decref(status);
}

static void cycle_card(struct vm *vm)
{
	for (int i = 0; i < 3; i++) {
		vm_note(vm, "cycle");
		json_decref(vm_call(vm, "device-cycle", json_pack("{s:s}", "device", "net0")));
		vm_send(vm, "on\n");
	}
}

static int single(void)
{
	struct vm_config config = {
		.words = {"--net", "tap=tap0,vhost=off,mac=" TAP_MAC},
		.timeout_s = 100,
	};
	const char *mac;
	pid_t echo;
	struct vm *vm;

	tap_make("");
	echo = tap_echo_start();
	vm = vm_start(&config);
	mac = vm_note(vm, "mac");
	CHECK(strcmp(mac, TAP_MAC) == 0, "the guest is %s", mac);
	vm_note(vm, "link");
	check_counters(vm);
	set_link(vm, false);
	vm_note(vm, "link");
	set_link(vm, true);
	vm_note(vm, "announce");
	json_decref(vm_call(vm, "announce", NULL));
	cycle_card(vm);
	vm_note(vm, "delete");
	tap_remove();
	tap_echo_stop(echo);
	return vm_judge(vm);
}

static int several(void)
{
	struct vm_config config = {
		.words = {"--net", "tap=tap0,vhost=off,queues=3,mac=" TAP_MAC},
		.append = "pairs",
		.timeout_s = 100,
	};
	pid_t echo;
	int result;

	tap_make("multi_queue");
	echo = tap_echo_start();
	result = vm_judge(vm_start(&config));
	tap_echo_stop(echo);
	tap_remove();
	return result;
}

/* Where the host has vhost-net: the same frames, none of them seen by the VMM. */
static int with_vhost(void)
{
	struct vm_config config = {
		.words = {"--net", "tap=tap0,vhost=on,queues=3,mac=" TAP_MAC},
		.append = "vhost",
		.timeout_s = 200,
	};
	json_t *counters, *card;
	struct vm *vm;
	pid_t echo;
	int result;

	tap_make("multi_queue");
	echo = tap_echo_start();
	vm = vm_start(&config);
	vm_note(vm, "served");
	counters = vm_call(vm, "counters", NULL);
	card = json_object_get(json_object_get(counters, "devices"), "net0");
	CHECK(json_is_true(json_object_get(card, "vhost")), "the kernel serves nothing");
	CHECK(json_integer_value(json_object_get(card, "rx-frames")) == 0, "frames in the VMM");
	json_decref(counters);
	cycle_card(vm);
	result = vm_judge(vm);
	tap_echo_stop(echo);
	return result;
}

int main(int argc, char **argv)
{
	const char *why;
	int result;

	test_init(argc, argv);
	if (vm_is_peer())
		test_skip("the peer is not given a tap");
	why = tap_enter();
	if (why)
		test_skip(why);
	result = single();
	if (result == TEST_PASS)
		result = several();
	if (access("/dev/vhost-net", R_OK | W_OK) < 0)
		printf("without vhost-net: there is no /dev/vhost-net\n");
	else if (result == TEST_PASS)
		result = with_vhost();
	return result;
}

#endif
