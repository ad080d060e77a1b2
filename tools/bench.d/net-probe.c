/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Both halves of what iperf3 does not measure of a network: the time of one round trip, and how
 * many of the smallest UDP frames get through in a second. In a guest it serves, on the host it
 * asks:
 *
 *   net-probe serve PORT                 echoes UDP on PORT, counts it on PORT + 1, obeys on TCP
 * PORT net-probe ping ADDRESS PORT N        prints the median of N round trips, ns net-probe blast
 * ADDRESS PORT MS      sends to ADDRESS for so long net-probe count PORT MS              prints
 * datagrams a second, first to last, of a row of MS at most
 *
 * A line on the TCP port is "blast ADDRESS PORT MS", "count" (datagrams a second since the last
 * one), "plain DEVICE on|off" (without offloads) or "end"; a line answers.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* With Ethernet, IPv4 and UDP before and the checksum behind: 64 bytes on the wire. */
#define PAYLOAD   18
#define ROW       32 /* datagrams a system call of this program */
#define PINGS_MAX 100000

struct sink {
	uint64_t n, first, last; /* ns */
};

static void __attribute__((noreturn)) die(const char *what)
{
	fprintf(stderr, "net-probe: cannot %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static struct sockaddr_in address_of(const char *text, int port)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_port = htons((uint16_t)port),
	};

	if (text && inet_pton(AF_INET, text, &address.sin_addr) != 1) {
		errno = EINVAL;
		die("use the address");
	}
	return address;
}

static int bound(int type, int port)
{
	struct sockaddr_in address = address_of(NULL, port);
	int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0), yes = 1;

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) < 0 ||
	    bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		die("listen");
	return fd;
}

static int connected(const char *host, int port)
{
	struct sockaddr_in address = address_of(host, port);
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		die("reach the other side");
	return fd;
}

/* Takes what there is, up to a row. Returns how many. */
static int take_row(int fd, struct sink *sink)
{
	static uint8_t data[ROW][PAYLOAD];
	struct iovec iov[ROW];
	struct mmsghdr row[ROW] = {0};
	int n;

	for (int i = 0; i < ROW; i++) {
		iov[i] = (struct iovec){data[i], PAYLOAD};
		row[i].msg_hdr = (struct msghdr){.msg_iov = &iov[i], .msg_iovlen = 1};
	}
	n = recvmmsg(fd, row, ROW, MSG_DONTWAIT, NULL);
	if (n <= 0)
		return 0;
	sink->last = now_ns();
	if (!sink->n)
		sink->first = sink->last;
	sink->n += (uint64_t)n;
	return n;
}

static double rate_of(const struct sink *sink)
{
	uint64_t time = sink->last - sink->first;

	return time ? (double)sink->n * 1e9 / (double)time : 0;
}

/* A full queue refuses datagrams; that is the network's answer, not an error. */
static void blast(const char *host, int port, uint64_t ms)
{
	static uint8_t data[PAYLOAD];
	struct iovec iov = {data, PAYLOAD};
	struct mmsghdr row[ROW] = {0};
	const int fd = connected(host, port);
	const uint64_t end = now_ns() + ms * 1000000;

	for (int i = 0; i < ROW; i++)
		row[i].msg_hdr = (struct msghdr){.msg_iov = &iov, .msg_iovlen = 1};
	while (now_ns() < end) {
		if (sendmmsg(fd, row, ROW, 0) < 0 && errno != ENOBUFS && errno != ECONNREFUSED)
			die("send");
	}
	close(fd);
}

static void count(int port, int ms)
{
	struct pollfd poll_fd = {bound(SOCK_DGRAM, port), POLLIN, 0};
	const uint64_t end = now_ns() + (uint64_t)ms * 1000000;
	struct sink sink = {0};

	while (now_ns() < end && poll(&poll_fd, 1, ms) > 0)
		while (take_row(poll_fd.fd, &sink) > 0 && now_ns() < end)
			;
	printf("%.0f\n", rate_of(&sink));
}

static int compare(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* A lost one counts as the second that it was waited for. */
static void ping(const char *host, int port, int n)
{
	static uint64_t times[PINGS_MAX];
	const struct timeval patience = {.tv_sec = 1};
	const int fd = connected(host, port);
	uint8_t data[PAYLOAD] = {0};

	if (n < 1 || n > PINGS_MAX ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) < 0)
		die("ping so often");
	for (int i = 0; i < n; i++) {
		uint64_t start = now_ns();

		memcpy(data, &i, sizeof(i));
		if (send(fd, data, sizeof(data), 0) < 0)
			die("send");
		while (recv(fd, data, sizeof(data), 0) > 0 && memcmp(data, &i, sizeof(i)) != 0)
			;
		times[i] = now_ns() - start;
	}
	qsort(times, (size_t)n, sizeof(times[0]), compare);
	printf("%" PRIu64 "\n", times[n / 2]);
}

/* As "ethtool -K DEVICE tx sg tso gso gro on|off". What the card cannot do it need not leave out.
 */
static bool set_offloads(const char *device, bool on)
{
	static const uint32_t off_order[] = {ETHTOOL_SGRO, ETHTOOL_SGSO, ETHTOOL_STSO, ETHTOOL_SSG,
					     ETHTOOL_STXCSUM};
	const int n = sizeof(off_order) / sizeof(off_order[0]);
	const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bool done = fd >= 0;

	for (int i = 0; i < n && done; i++) {
		struct ethtool_value value = {off_order[on ? n - 1 - i : i], on};
		struct ifreq ifreq = {.ifr_data = (void *)&value};

		snprintf(ifreq.ifr_name, sizeof(ifreq.ifr_name), "%.15s", device);
		done = ioctl(fd, SIOCETHTOOL, &ifreq) == 0 || errno == EOPNOTSUPP;
	}
	close(fd);
	return done;
}

/* False: it was "end". */
static bool obey(FILE *peer, struct sink *sink)
{
	char line[128], text[32], word[8];
	int port, ms;

	if (!fgets(line, sizeof(line), peer))
		return true;
	if (sscanf(line, "blast %31s %d %d", text, &port, &ms) == 3) {
		blast(text, port, (uint64_t)ms);
		dprintf(fileno(peer), "done\n");
	} else if (!strcmp(line, "count\n")) {
		dprintf(fileno(peer), "%.0f\n", rate_of(sink));
		*sink = (struct sink){0};
	} else if (sscanf(line, "plain %15s %3s", text, word) == 2) {
		bool done = set_offloads(text, strcmp(word, "on") != 0);

		dprintf(fileno(peer), "%s\n", done ? "done" : strerror(errno));
	} else {
		dprintf(fileno(peer), "done\n");
		return strcmp(line, "end\n") != 0;
	}
	return true;
}

static void echo(int fd)
{
	struct sockaddr_in from;
	socklen_t len = sizeof(from);
	uint8_t data[PAYLOAD];
	ssize_t n = recvfrom(fd, data, sizeof(data), MSG_DONTWAIT, (struct sockaddr *)&from, &len);

	if (n > 0)
		(void)sendto(fd, data, (size_t)n, 0, (struct sockaddr *)&from, len);
}

static void serve(int port)
{
	struct pollfd fds[] = {
		{bound(SOCK_STREAM, port), POLLIN, 0},
		{bound(SOCK_DGRAM, port), POLLIN, 0},
		{bound(SOCK_DGRAM, port + 1), POLLIN, 0},
	};
	struct sink sink = {0};
	bool on = true;

	if (listen(fds[0].fd, 4) < 0)
		die("listen");
	while (on && poll(fds, 3, -1) > 0) {
		if (fds[1].revents)
			echo(fds[1].fd);
		if (fds[2].revents)
			take_row(fds[2].fd, &sink);
		if (fds[0].revents) {
			FILE *peer = fdopen(accept(fds[0].fd, NULL, NULL), "r");

			if (!peer)
				die("take a connection");
			on = obey(peer, &sink);
			fclose(peer);
		}
	}
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "serve"))
		serve(atoi(argv[2]));
	else if (argc == 5 && !strcmp(argv[1], "ping"))
		ping(argv[2], atoi(argv[3]), atoi(argv[4]));
	else if (argc == 5 && !strcmp(argv[1], "blast"))
		blast(argv[2], atoi(argv[3]), strtoull(argv[4], NULL, 10));
	else if (argc == 4 && !strcmp(argv[1], "count"))
		count(atoi(argv[2]), atoi(argv[3]));
	else
		return 2;
	return 0;
}
