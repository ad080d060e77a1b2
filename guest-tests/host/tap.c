/* SPDX-License-Identifier: Apache-2.0 */
/* The network of tests that need one. */
#include "guest-tests/host/tap.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest-tests/host/command.h"
#include "guest-tests/host/harness.h"

#define VNET_HEADER 10 /* what a packet socket puts in front of a frame */

static void ip_command(const char *words)
{
	struct command_result result;
	char line[200];

	snprintf(line, sizeof(line), "ip %s", words);
	command_run(&result, (const char *[]){"sh", "-c", line, NULL});
	CHECK(result.status == 0, "%s: %s", line, result.err);
}

/* The kernel then has nothing to say of its own on an interface that comes up. */
static void quiet(void)
{
	int fd = open("/proc/sys/net/ipv6/conf/default/disable_ipv6", O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	CHECK(write(fd, "1", 1) == 1, "disable_ipv6: %s", strerror(errno));
	close(fd);
}

void tap_make(const char *how)
{
	char words[100];

	snprintf(words, sizeof(words), "tuntap add dev tap0 mode tap vnet_hdr %s", how);
	ip_command(words);
	ip_command("link set tap0 up");
}

static int open_packets(void)
{
	struct sockaddr_ll at = {.sll_family = AF_PACKET,
				 .sll_protocol = htons(ETH_P_ALL),
				 .sll_ifindex = (int)if_nametoindex("tap0")};
	int yes = 1, fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL));

	CHECK(fd >= 0, "packet socket: %s", strerror(errno));
	CHECK(bind(fd, (struct sockaddr *)&at, sizeof(at)) == 0, "tap0: %s", strerror(errno));
	CHECK(setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &yes, sizeof(yes)) == 0, "%s",
	      strerror(errno));
	return fd;
}

/* Back to the sender, header and all. Ends when the interface does. */
static void echo_frames(int fd)
{
	static uint8_t data[VNET_HEADER + 70000];

	for (;;) {
		struct sockaddr_ll from = {0};
		socklen_t size = sizeof(from);
		ssize_t n = recvfrom(fd, data, sizeof(data), 0, (struct sockaddr *)&from, &size);

		if (n < 0 && (errno == EINTR || errno == ENETDOWN))
			continue;
		if (n < 0)
			_exit(0);
		if (n < VNET_HEADER + 14 || from.sll_pkttype == PACKET_OUTGOING)
			continue;
		memcpy(data + VNET_HEADER, data + VNET_HEADER + 6, 6);
		memset(data + VNET_HEADER + 6, 2, 6);
		if (send(fd, data, (size_t)n, 0) < 0)
			printf("sending %zd bytes back: %s\n", n, strerror(errno));
	}
}

pid_t tap_echo_start(void)
{
	int fd = open_packets();
	pid_t pid = fork();

	CHECK(pid >= 0, "fork: %s", strerror(errno));
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		echo_frames(fd);
	}
	close(fd);
	return pid;
}

void tap_echo_stop(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

void tap_remove(void)
{
	ip_command("link del tap0");
}

const char *tap_enter(void)
{
	if (unshare(CLONE_NEWNET) < 0)
		return "a network namespace needs root";
	if (access("/dev/net/tun", R_OK | W_OK) < 0)
		return "there is no /dev/net/tun";
	quiet();
	return NULL;
}

bool tap_add_card(struct vm_config *config)
{
	const char *why = vm_is_peer() ? "the peer is not given a tap" : tap_enter();
	unsigned int n = 0;

	if (why) {
		printf("without a network card: %s\n", why);
		return false;
	}
	tap_make("");
	(void)tap_echo_start(); /* ends with the test */
	while (n < VM_MAX_WORDS && config->words[n])
		n++;
	CHECK(n + 2 <= VM_MAX_WORDS, "%u words", n);
	config->words[n] = "--net";
	config->words[n + 1] = "tap=tap0,vhost=off";
	return true;
}
