/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small frames through the tap port as fast as they go, both ways, in a network namespace of its
 * own: another process floods the interface, or takes what comes out of it. Prints frames a second
 * and system calls a frame. Usage: bench-net-port [COUNT [SIZE [poll]]].
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "virtio/net-port.h"

#define BURST 128 /* frames a guest sends at once */

struct bench {
	struct net_client client;
	struct net_port *port;
	struct loop *loop;
	uint64_t n_wanted, n_in, n_sent, n_out;
	uint32_t size;
	struct iovec iovs[BURST][2];
	uint8_t lent[NET_FRAME_MAX];
	uint8_t frame[NET_FRAME_MAX];
};

static struct bench *to_bench(struct net_client *client)
{
	return container_of(client, struct bench, client);
}

static void count(struct bench *bench)
{
	if (++bench->n_in == bench->n_wanted)
		loop_stop(bench->loop);
}

static uint32_t on_lend(struct net_client *client, struct iovec *iov, uint32_t iov_max _unused_)
{
	iov[0] = (struct iovec){to_bench(client)->lent, NET_FRAME_MAX};
	return 1;
}

static void on_filled(struct net_client *client, uint32_t size)
{
	if (size)
		count(to_bench(client));
}

static bool on_receive(struct net_client *client, const void *frame, uint32_t size)
{
	memcpy(to_bench(client)->lent, frame, size);
	count(to_bench(client));
	return true;
}

static void send_burst(struct bench *bench)
{
	for (uint32_t i = 0; i < BURST; i++) {
		if (bench->port->ops->send(bench->port, bench->iovs[i], 2,
					   NET_HEADER_SIZE + bench->size, i) < 0)
			break;
		bench->n_sent++;
	}
	bench->port->ops->flush(bench->port);
}

static void on_sent(struct net_client *client, uint32_t arg _unused_, int result)
{
	struct bench *bench = to_bench(client);

	if (result < 0) {
		fprintf(stderr, "bench-net-port: a frame was lost: %s\n", strerror(-result));
		exit(1);
	}
	if (++bench->n_out >= bench->n_wanted)
		loop_stop(bench->loop);
	else if (bench->n_out == bench->n_sent)
		send_burst(bench);
}

static void on_batch(struct net_client *client _unused_)
{
}

static void on_link(struct net_client *client _unused_, bool up _unused_, const char *why)
{
	fprintf(stderr, "bench-net-port: %s\n", why);
	exit(1);
}

static const struct net_client_ops bench_ops = {
	.sent = on_sent,
	.room = on_batch,
	.lend = on_lend,
	.filled = on_filled,
	.receive = on_receive,
	.batch = on_batch,
	.link = on_link,
};

static int make_tap(void)
{
	struct ifreq ifreq = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
			      .ifr_name = "bench0"};
	int fd, at = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (unshare(CLONE_NEWNET) < 0)
		return -errno;
	close(at);
	at = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &ifreq) < 0)
		return -errno;
	ifreq.ifr_flags = IFF_UP;
	if (ioctl(at, SIOCSIFFLAGS, &ifreq) < 0)
		return -errno;
	close(at);
	return fd;
}

static void flood(uint32_t size)
{
	static const uint8_t frame[NET_FRAME_MAX] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2};
	struct sockaddr_ll to = {.sll_family = AF_PACKET,
				 .sll_protocol = htons(0x88b5),
				 .sll_ifindex = (int)if_nametoindex("bench0")};
	int fd = socket(AF_PACKET, SOCK_RAW, 0);

	for (;;)
		(void)!sendto(fd, frame, size, 0, (struct sockaddr *)&to, sizeof(to));
}

static void report(const struct bench *bench, const char *what, uint64_t n, uint64_t start,
		   uint64_t enters, uint64_t calls)
{
	const double seconds = (double)(loop_now(bench->loop) - start) / 1e9;

	printf("%s: %.0f frames/s of %u bytes, %.3f system calls/frame (%.3f the port's)\n", what,
	       (double)n / seconds, bench->size,
	       (double)(loop_counters(bench->loop).enters - enters) / (double)n,
	       (double)calls / (double)n);
}

static int run(struct bench *bench)
{
	uint64_t start = loop_now(bench->loop), enters = 0;
	pid_t pid;
	int r;

	bench->port->ops->start(bench->port, 0);
	send_burst(bench);
	r = loop_run(bench->loop);
	if (r < 0)
		return r;
	report(bench, "out", bench->n_out, start, enters, bench->port->n_write_calls);
	enters = loop_counters(bench->loop).enters;
	pid = fork();
	if (pid == 0)
		flood(bench->size);
	start = loop_now(bench->loop);
	bench->n_in = 0;
	r = loop_run(bench->loop);
	report(bench, "in", bench->n_in, start, enters, bench->port->n_read_calls);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return r;
}

int main(int argc, char **argv)
{
	const struct loop_options options = {.without_uring = argc > 3, .name = "bench"};
	static struct bench bench = {.client = {&bench_ops}};
	struct error err = ERROR_NULL;
	int fd, r;

	bench.n_wanted = argc > 1 ? strtoull(argv[1], NULL, 0) : 500000;
	bench.size = argc > 2 ? (uint32_t)atoi(argv[2]) : 64;
	if (!bench.n_wanted || bench.size < 14 || bench.size > 1514) {
		fprintf(stderr, "usage: bench-net-port [COUNT [SIZE [poll]]]\n");
		return 2;
	}
	memset(bench.frame + NET_HEADER_SIZE, 0xff, 6);
	bench.frame[NET_HEADER_SIZE + 6] = 2;
	for (uint32_t i = 0; i < BURST; i++) {
		bench.iovs[i][0] = (struct iovec){bench.frame, NET_HEADER_SIZE};
		bench.iovs[i][1] = (struct iovec){bench.frame + NET_HEADER_SIZE, bench.size};
	}
	fd = make_tap();
	r = fd < 0 ? error_set(&err, fd, "cannot make a tap: %s", strerror(-fd))
		   : loop_new(&bench.loop, &options, &err);
	if (r >= 0)
		r = loop_enable(bench.loop);
	if (r >= 0)
		r = net_tap_new(&bench.port, bench.loop, fd, &err);
	if (r >= 0) {
		bench.port->client = &bench.client;
		r = run(&bench);
		bench.port->ops->free(bench.port);
	}
	if (r < 0)
		fprintf(stderr, "bench-net-port: %s\n", err.code ? err.text : strerror(-r));
	loop_free(bench.loop);
	return r < 0;
}
