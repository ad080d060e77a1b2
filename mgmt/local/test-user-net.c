/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest in user mode reaches of its host and what reaches the guest, frame by frame: the
 * test is the guest, with the VMM's own socket to the real passt, in a network namespace of the
 * test's own with a resolv.conf of the test's own.
 */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <net/ethernet.h>
#include <net/if_arp.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "base/fd.h"
#include "mgmt/local/test-host.h"
#include "mgmt/local/test-network.h"

#define SERVICE     7001 /* of the host, on its loopback */
#define RESOLVER    "127.0.0.53"
#define FORWARDER   "169.254.1.1"
#define FRAME_MAX   65554
#define DHCP_FIXED  240 /* with its magic number */
#define DHCP_ROUTER 3
#define DHCP_DNS    6

static const uint8_t guest_mac[6] = {0x52, 0x54, 0, 0, 0, 1};

static struct host host;
static struct said said;
static int card = -1; /* our copy of the VMM's socket to passt */
static uint8_t passt_mac[6];

struct frame {
	struct ether_header link;
	uint8_t data[FRAME_MAX - sizeof(struct ether_header)];
} __attribute__((packed));

/* An IPv4 packet with what follows its header. */
struct packet {
	struct iphdr ip;
	union {
		struct tcphdr tcp;
		struct {
			struct udphdr udp;
			uint8_t data[1000];
		};
	};
} __attribute__((packed));

static struct frame frame;
static uint32_t frame_size;

static void init(void)
{
	host_init(&host);
}

static void deinit(void)
{
	host_deinit(&host);
}

TestSuite(user_net, .init = init, .fini = deinit, .timeout = 60);

/* Only this process and what it starts see it. */
static void resolv_conf(const char *text)
{
	char path[128];
	FILE *file;

	snprintf(path, sizeof(path), "%s/resolv.conf", host.dir);
	file = fopen(path, "we");
	cr_assert(file && fputs(text, file) >= 0 && !fclose(file));
	cr_assert(!unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	cr_assert(!mount(path, "/etc/resolv.conf", NULL, MS_BIND, NULL));
}

/* The fake VMM says where it has its socket, and leaves it alone. */
static void card_take(void)
{
	const char *line;
	int pidfd;

	host_corral(&host, &said, "logs", "d", NULL);
	line = strstr(said.out, " net0.0 rw");
	cr_assert(line, "%s", said.out);
	while (line > said.out && line[-1] != '\n')
		line--;
	pidfd = (int)syscall(SYS_pidfd_open, host_vmm(&host, "d"), 0);
	card = (int)syscall(SYS_pidfd_getfd, pidfd, atoi(line), 0);
	fd_close(pidfd);
	cr_assert(card >= 0);
}

static void guest_start(const char *net)
{
	host_corral(&host, &said, "run", "--name", "d", "--detach", "--kernel", host.kernel,
		    "--net", net, "--append", "fds", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	cr_assert_str_empty(said.err);
	card_take();
}

static void frame_send(const uint8_t to[6], uint16_t type, const void *data, uint32_t size)
{
	const uint32_t whole = sizeof(frame.link) + size, length = htonl(whole);
	uint8_t bytes[sizeof(length) + 1500];

	cr_assert(sizeof(length) + whole <= sizeof(bytes));
	memcpy(frame.link.ether_dhost, to, 6);
	memcpy(frame.link.ether_shost, guest_mac, 6);
	frame.link.ether_type = htons(type);
	memcpy(bytes, &length, sizeof(length));
	memcpy(bytes + sizeof(length), &frame.link, sizeof(frame.link));
	memcpy(bytes + sizeof(length) + sizeof(frame.link), data, size);
	cr_assert(!fd_write_full(card, bytes, sizeof(length) + whole));
}

static void frame_receive(void)
{
	uint32_t length;

	cr_assert(!fd_read_full(card, &length, sizeof(length)), "passt has gone");
	frame_size = ntohl(length);
	cr_assert(frame_size >= sizeof(frame.link) && frame_size <= sizeof(frame));
	cr_assert(!fd_read_full(card, &frame, frame_size));
}

static uint16_t checksum(const void *data, size_t size, uint32_t sum)
{
	const uint8_t *bytes = data;

	for (size_t i = 0; i < size; i++)
		sum += i & 1 ? bytes[i] : bytes[i] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

static void packet_send(struct packet *packet, const char *from, const char *to, uint8_t protocol,
			uint16_t size)
{
	packet->ip = (struct iphdr){.version = 4,
				    .ihl = 5,
				    .tot_len = htons(sizeof(packet->ip) + size),
				    .ttl = 64,
				    .protocol = protocol,
				    .saddr = inet_addr(from),
				    .daddr = inet_addr(to)};
	packet->ip.check = htons(checksum(&packet->ip, sizeof(packet->ip), 0));
	if (protocol == IPPROTO_TCP)
		packet->tcp.check = htons(
			checksum(&packet->ip.saddr, 8 + size,
				 IPPROTO_TCP + size)); /* addresses and segment lie in a row */
	frame_send(passt_mac, ETHERTYPE_IP, packet, sizeof(packet->ip) + size);
}

/* Those that are no IPv4 packet of that protocol are passed over. */
static struct packet *packet_receive(uint8_t protocol)
{
	struct packet *packet = (struct packet *)frame.data;

	do
		frame_receive();
	while (ntohs(frame.link.ether_type) != ETHERTYPE_IP ||
	       frame_size < sizeof(frame.link) + sizeof(packet->ip) + sizeof(packet->udp) ||
	       packet->ip.protocol != protocol);
	return packet;
}

static void udp_send(const char *from, uint16_t source, const char *to, uint16_t port,
		     const void *data, uint16_t size)
{
	struct packet packet = {};

	packet.udp = (struct udphdr){.source = htons(source),
				     .dest = htons(port),
				     .len = htons(sizeof(packet.udp) + size)};
	memcpy(packet.data, data, size);
	packet_send(&packet, from, to, IPPROTO_UDP, sizeof(packet.udp) + size);
}

static void syn_send(const char *to, uint16_t source, uint16_t port)
{
	struct packet packet = {};

	packet.tcp = (struct tcphdr){.source = htons(source),
				     .dest = htons(port),
				     .seq = htonl(1000),
				     .doff = 5,
				     .syn = 1,
				     .window = 0xffff};
	packet_send(&packet, NETWORK_ADDRESS, to, IPPROTO_TCP, sizeof(packet.tcp));
}

/* The frames that follow go to whoever answers for the gateway. */
static void arp_ask(void)
{
	static const uint8_t all[6] = {255, 255, 255, 255, 255, 255};
	struct {
		struct arphdr head;
		uint8_t from_mac[6], from[4], to_mac[6], to[4];
	} arp = {.head = {.ar_hrd = htons(ARPHRD_ETHER),
			  .ar_pro = htons(ETHERTYPE_IP),
			  .ar_hln = 6,
			  .ar_pln = 4,
			  .ar_op = htons(ARPOP_REQUEST)}};

	memcpy(arp.from_mac, guest_mac, 6);
	memcpy(arp.from, &(in_addr_t){inet_addr(NETWORK_ADDRESS)}, 4);
	memcpy(arp.to, &(in_addr_t){inet_addr(NETWORK_GATEWAY)}, 4);
	frame_send(all, ETHERTYPE_ARP, &arp, sizeof(arp));
	do
		frame_receive();
	while (ntohs(frame.link.ether_type) != ETHERTYPE_ARP);
	memcpy(passt_mac, frame.link.ether_shost, 6);
}

/* An address of an option that DHCP offers, "" if it offers none. */
static const char *dhcp_ask(uint8_t wanted, uint32_t number, char text[INET_ADDRSTRLEN])
{
	uint8_t question[DHCP_FIXED + 8] = {1, ARPHRD_ETHER, 6};
	const struct packet *answer;
	const uint8_t *option, *end;

	memcpy(question + 28, guest_mac, 6);
	memcpy(question + DHCP_FIXED - 4, "\x63\x82\x53\x63\x35\x01\x01\xff", 8);
	udp_send("0.0.0.0", 68, "255.255.255.255", 67, question, sizeof(question));
	answer = packet_receive(IPPROTO_UDP);
	cr_assert_eq(ntohs(answer->udp.source), 67);
	end = (const uint8_t *)&frame + frame_size;
	text[0] = '\0';
	for (option = answer->data + DHCP_FIXED; option + 2 < end && *option != 255;
	     option += 2 + option[1])
		if (*option == wanted && option[1] >= (number + 1) * 4)
			inet_ntop(AF_INET, option + 2 + number * 4, text, INET_ADDRSTRLEN);
	return text;
}

static int service_make(int type, const char *address, uint16_t port)
{
	struct sockaddr_in at = {.sin_family = AF_INET,
				 .sin_port = htons(port),
				 .sin_addr.s_addr = inet_addr(address)};
	int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);

	cr_assert(!bind(fd, (struct sockaddr *)&at, sizeof(at)));
	cr_assert(type != SOCK_STREAM || !listen(fd, 16));
	return fd;
}

/* One question to the host's resolver, by the name the guest has for it, and its answer. */
static void name_ask(int resolver, const char *server, uint16_t source)
{
	struct sockaddr_in from;
	socklen_t length = sizeof(from);
	const struct packet *answer;
	char question[64];
	ssize_t n;

	udp_send(NETWORK_ADDRESS, source, server, 53, "where?", 6);
	n = recvfrom(resolver, question, sizeof(question), 0, (struct sockaddr *)&from, &length);
	cr_assert(n == 6 && !memcmp(question, "where?", 6));
	cr_assert_eq(sendto(resolver, "there", 5, 0, (struct sockaddr *)&from, length), 5);
	answer = packet_receive(IPPROTO_UDP);
	cr_assert_eq(answer->ip.saddr, inet_addr(server), "answered by another");
	cr_assert_eq(ntohs(answer->udp.source), 53);
	cr_assert_eq(ntohs(answer->udp.dest), source);
	cr_assert(!memcmp(answer->data, "there", 5));
}

/*
 * Whether the host's service at the gateway's address answers. There is no event for "it does not":
 * but passt takes frames in their order, so what it has not asked of its host before it answered a
 * question that came later, it will not ask.
 */
static bool gateway_answers(int service, int resolver, const char *server)
{
	struct pollfd asked = {.fd = service, .events = POLLIN};

	syn_send(NETWORK_GATEWAY, 40000, SERVICE);
	name_ask(resolver, server, 40001);
	return poll(&asked, 1, 0) == 1;
}

Test(user_net, the_hosts_loopback_is_the_hosts)
{
	int service, resolver;
	char text[INET_ADDRSTRLEN];

	passt_needed();
	resolv_conf("search example.org\nnameserver " RESOLVER "\n");
	service = service_make(SOCK_STREAM, "127.0.0.1", SERVICE);
	resolver = service_make(SOCK_DGRAM, RESOLVER, 53);
	guest_start("user");
	arp_ask();
	cr_assert_str_eq(dhcp_ask(DHCP_ROUTER, 0, text), NETWORK_GATEWAY);
	cr_assert_str_eq(dhcp_ask(DHCP_DNS, 0, text), FORWARDER);
	cr_assert_str_empty(dhcp_ask(DHCP_DNS, 1, text));
	cr_assert_not(gateway_answers(service, resolver, FORWARDER));
}

Test(user_net, host_on_opens_it_through_the_gateway)
{
	const struct packet *answer;
	int service, resolver;
	char text[INET_ADDRSTRLEN];

	passt_needed();
	resolv_conf("nameserver " RESOLVER "\n");
	service = service_make(SOCK_STREAM, "127.0.0.1", SERVICE);
	resolver = service_make(SOCK_DGRAM, RESOLVER, 53);
	guest_start("user,host=on");
	arp_ask();
	cr_assert_str_eq(dhcp_ask(DHCP_DNS, 0, text), NETWORK_GATEWAY);
	syn_send(NETWORK_GATEWAY, 40002, SERVICE);
	answer = packet_receive(IPPROTO_TCP);
	cr_assert(answer->tcp.syn && answer->tcp.ack);
	cr_assert_eq(ntohs(answer->tcp.source), SERVICE);
	fd_close(accept4(service, NULL, NULL, SOCK_CLOEXEC));
	cr_assert(gateway_answers(service, resolver, NETWORK_GATEWAY));
}

/* A resolver that anybody can reach is the guest's as it is. */
Test(user_net, a_resolver_elsewhere_is_handed_on)
{
	char text[INET_ADDRSTRLEN];

	passt_needed();
	resolv_conf("nameserver 198.51.100.53\nnameserver 127.0.0.1\n");
	guest_start("user");
	cr_assert_str_eq(dhcp_ask(DHCP_DNS, 0, text), "198.51.100.53");
	cr_assert_str_empty(dhcp_ask(DHCP_DNS, 1, text));
}

Test(user_net, a_second_resolver_stays)
{
	char text[INET_ADDRSTRLEN];
	int resolver;

	passt_needed();
	resolv_conf("nameserver 127.0.0.1\nnameserver 198.51.100.53\n");
	resolver = service_make(SOCK_DGRAM, "127.0.0.1", 53);
	guest_start("user");
	arp_ask();
	cr_assert_str_eq(dhcp_ask(DHCP_DNS, 0, text), FORWARDER);
	cr_assert_str_eq(dhcp_ask(DHCP_DNS, 1, text), "198.51.100.53");
	name_ask(resolver, FORWARDER, 40001);
}

/* passt and its mounts leave the host's file and its temporary directory as they are. */
Test(user_net, resolv_conf_is_changed_for_passt_alone)
{
	passt_needed();
	resolv_conf("nameserver " RESOLVER "\n");
	guest_start("user");
	shell("test \"$(cat /etc/resolv.conf)\" = 'nameserver " RESOLVER "'");
	cr_assert(!access(host.dir, F_OK));
	cr_assert(access("/tmp/resolv.conf", F_OK));
}

static bool address_answers(const char *address, uint16_t port)
{
	struct sockaddr_in at = {.sin_family = AF_INET,
				 .sin_port = htons(port),
				 .sin_addr.s_addr = inet_addr(address)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int r = connect(fd, (struct sockaddr *)&at, sizeof(at));

	fd_close(fd);
	return !r;
}

Test(user_net, a_forward_listens_on_the_loopback_unless_told_otherwise)
{
	passt_needed();
	guest_start("user,forward=2222:22,forward=tcp:0.0.0.0:8080:80,"
		    "forward=" NETWORK_ADDRESS ":8081:81");
	cr_assert(address_answers("127.0.0.1", 2222));
	cr_assert_not(address_answers(NETWORK_ADDRESS, 2222));
	cr_assert(address_answers("127.0.0.1", 8080));
	cr_assert(address_answers(NETWORK_ADDRESS, 8080));
	cr_assert(address_answers(NETWORK_ADDRESS, 8081));
	cr_assert_not(address_answers("127.0.0.1", 8081));
	host_corral(&host, &said, "ps", NULL);
	assert_has(said.out, "tcp 2222:22, tcp 0.0.0.0:8080:80, tcp " NETWORK_ADDRESS ":8081:81\n");
	host_corral(&host, &said, "ps", "--json", NULL);
	assert_has(said.out, "\"address\": \"0.0.0.0\"");
	cr_assert_not(strstr(said.out, "\"address\": \"127.0.0.1\""), "%s", said.out);
}

/* A program that takes ssh's place. */
static void ssh_fake(void)
{
	char path[4096];

	snprintf(path, sizeof(path),
		 "printf '#!/bin/sh\\necho \"$@\"\\n' > %s/ssh && chmod 755 %s/ssh", host.dir,
		 host.dir);
	shell(path);
	snprintf(path, sizeof(path), "%s:%s", host.dir, getenv("PATH"));
	setenv("PATH", path, true);
}

Test(user_net, ssh_goes_where_the_forward_listens)
{
	static const struct {
		const char *net, *address;
	} forwards[] = {
		{"user,forward=2222:22", " 127.0.0.1\n"},
		{"user,forward=0.0.0.0:2222:22", " 127.0.0.1\n"},
		{"user,forward=" NETWORK_ADDRESS ":2222:22", " " NETWORK_ADDRESS "\n"},
	};

	passt_needed();
	ssh_fake();
	for (size_t i = 0; i < ARRAY_SIZE(forwards); i++) {
		guest_start(forwards[i].net);
		host_corral(&host, &said, "ssh", "d", NULL);
		assert_has(said.out, "-p 2222 ");
		assert_has(said.out, forwards[i].address);
		host_corral(&host, &said, "kill", "d", NULL);
		card = fd_close(card);
	}
}
