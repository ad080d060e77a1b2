/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: a network card's forwards. Out: a socket to a passt that serves it, or one sentence with
 * passt's own words. passt belongs to nobody but that socket: it has no other descriptor of ours,
 * puts itself into the background when it is ready (which is how we know), and leaves when the VMM
 * closes its end or dies.
 */
#include "mgmt/local/passt.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "mgmt/local/dying.h"
#include "mgmt/local/local.h"
#include "mgmt/local/passt-child.h"
#include "mgmt/local/resolver.h"
#include "proto/vm.h"

#define PASST_TIMEOUT_MS 10000 /* seen: 5 to 220 ms */
#define WORDS_MAX        400
#define ARGV_MAX         (8 + VM_FORWARDS_MAX * 2)
#define SPEC_MAX         (INET6_ADDRSTRLEN + sizeof("/65535:65535"))

static const char *const protocol_names[] = {[VM_TCP] = "tcp", [VM_UDP] = "udp"};

static const char *forward_address(const struct vm_forward *forward)
{
	return forward->address ? forward->address : VM_FORWARD_ADDRESS;
}

static int port_refuse(uint32_t i, const struct vm_forward *forward, int code, struct error *err)
{
	const char *protocol = protocol_names[forward->protocol];

	if (code == -EADDRINUSE)
		return error_set(err, code,
				 "net%u: cannot forward %s port %u of the host: it is taken; `ss "
				 "-lnp 'sport = %u'` says by whom, or forward another",
				 i, protocol, forward->host_port, forward->host_port);
	if (code == -EACCES)
		return error_set(
			err, code,
			"net%u: cannot forward %s port %u of the host: low ports are root's; take "
			"one above 1023, or `sudo sysctl net.ipv4.ip_unprivileged_port_start=%u`",
			i, protocol, forward->host_port, forward->host_port);
	if (code == -EADDRNOTAVAIL)
		return error_set(err, code,
				 "net%u: cannot forward %s port %u of %s: the host has no such "
				 "address, `ip address` has those it has",
				 i, protocol, forward->host_port, forward_address(forward));
	return error_set(err, code, "net%u: cannot forward %s port %u of the host: %s", i, protocol,
			 forward->host_port, strerror(-code));
}

/* Whether the port is free, for others too that have it at all addresses. */
static int port_try(const struct vm_forward *forward)
{
	struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(forward->host_port)};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(forward->host_port)};
	bool is_v4 = inet_pton(AF_INET, forward_address(forward), &v4.sin_addr) == 1;
	int type = forward->protocol == VM_TCP ? SOCK_STREAM : SOCK_DGRAM, on = 1, r;
	_cleanup_(fd_closep) int fd = socket(is_v4 ? AF_INET : AF_INET6, type | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	if (type == SOCK_STREAM)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (is_v4)
		r = bind(fd, (struct sockaddr *)&v4, sizeof(v4));
	else if (inet_pton(AF_INET6, forward_address(forward), &v6.sin6_addr) != 1)
		return -EINVAL;
	else
		r = setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on)) < 0
			    ? -1
			    : bind(fd, (struct sockaddr *)&v6, sizeof(v6));
	return r < 0 ? -errno : 0;
}

/* Before passt does, whose words name the port but not what to do. */
static int ports_check(uint32_t i, const struct vm_net *net, struct error *err)
{
	int waited = 0;

	for (uint32_t f = 0; f < net->n_forwards; f++) {
		int r;

		do
			r = port_try(&net->forwards[f]);
		while (r == -EADDRINUSE && dying_wait(&waited));
		if (r < 0)
			return port_refuse(i, &net->forwards[f], r, err);
	}
	return 0;
}

/* `argv` has ARGV_MAX + 1 places, `specs` one for each forward. */
static void argv_fill(const char **argv, char specs[][SPEC_MAX], const struct vm_net *net,
		      bool resolver)
{
	size_t n = 0;

	argv[n++] = "passt";
	argv[n++] = "--quiet";
	argv[n++] = "--fd";
	argv[n++] = "3"; /* PASST_CHILD_FD; implies --one-off */
	if (!net->host)
		argv[n++] = "--no-map-gw";
	if (resolver) {
		argv[n++] = "--dns-forward";
		argv[n++] = RESOLVER_ADDRESS;
	}
	for (uint32_t f = 0; f < net->n_forwards; f++) {
		snprintf(specs[f], SPEC_MAX, "%s/%u:%u", forward_address(&net->forwards[f]),
			 net->forwards[f].host_port, net->forwards[f].guest_port);
		argv[n++] = net->forwards[f].protocol == VM_TCP ? "-t" : "-u";
		argv[n++] = specs[f];
	}
	argv[n] = NULL;
}

static int spawn_refuse(uint32_t i, const char *program, int code, struct error *err)
{
	if (code == -ENOENT && !strchr(program, '/'))
		return error_set(err, code,
				 "net%u: user mode needs passt, which is not installed: `sudo apt "
				 "install passt`, or name it in CORRAL_PASST",
				 i);
	return error_set(err, code, "net%u: cannot start \"%s\": %s", i, program, strerror(-code));
}

static const char *passt_program(void)
{
	const char *named = getenv("CORRAL_PASST");

	return named && named[0] ? named : "passt";
}

static int passt_run(struct passt *passt, const struct vm_net *net, int socket_fd,
		     struct error *err)
{
	const char *argv[ARGV_MAX + 1];
	char specs[VM_FORWARDS_MAX][SPEC_MAX];
	/* With the gateway for the host's loopback passt needs no help. */
	_cleanup_(freep) char *resolver = net->host ? NULL : resolver_text();
	struct passt_child child = {.program = passt_program(),
				    .argv = argv,
				    .resolver = resolver,
				    .socket_fd = socket_fd};
	int words[2], r;

	if (pipe2(words, O_CLOEXEC) < 0)
		return error_set(err, -errno, "cannot make a pipe: %s", strerror(errno));
	passt->words_fd = words[0];
	child.words_fd = words[1];
	argv_fill(argv, specs, net, resolver);
	r = passt_child_start(&child, &passt->pid);
	fd_close(words[1]);
	return r < 0 ? spawn_refuse(passt->net, child.program, r, err) : 0;
}

void passt_print(FILE *file, const struct vm_net *net)
{
	_cleanup_(freep) char *resolver = net->host ? NULL : resolver_text();
	char specs[VM_FORWARDS_MAX][SPEC_MAX];
	const char *argv[ARGV_MAX + 1];

	argv_fill(argv, specs, net, resolver);
	fprintf(file, "%s", passt_program());
	for (const char **word = argv + 1; *word; word++)
		fprintf(file, " %s", *word);
	if (resolver)
		fprintf(file, " (with the host's resolver first in its /etc/resolv.conf)");
	fputc('\n', file);
}

int passt_start(struct passt *passt, uint32_t i, const struct vm_net *net, int *ret_fd,
		struct error *err)
{
	int ends[2], r = ports_check(i, net, err);

	*passt = (struct passt){.net = i, .words_fd = -1};
	if (r < 0)
		return r;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return error_set(err, -errno, "cannot make a socket for passt: %s",
				 strerror(errno));
	r = passt_run(passt, net, ends[1], err);
	fd_close(ends[1]);
	if (r < 0) {
		fd_close(ends[0]);
		passt_deinit(passt);
		return r;
	}
	*ret_fd = ends[0];
	return 0;
}

/* Said by every passt in a container, or run as root; and, where it started all the same, on a host
 * with one of IPv4 and IPv6. */
static bool line_is_noise(const char *line, bool failed)
{
	static const char *const starts[] = {"Failed to send ", "Don't run as root",
					     "No external routable interface for "};

	for (size_t i = 0; i < ARRAY_SIZE(starts) - failed; i++)
		if (!strncmp(line, starts[i], strlen(starts[i])))
			return true;
	return !*line;
}

/* Several lines in a row, "; " between them, without the noise. In place. */
static void words_join(char *words, bool failed)
{
	_cleanup_(freep) char *copy = strdup(words);
	char *rest = copy, *line;
	size_t used = 0;

	words[0] = '\0';
	while (copy && (line = strsep(&rest, "\n"))) {
		if (line_is_noise(line, failed))
			continue;
		used += sprintf(words + used, "%s%s", used ? "; " : "", line);
	}
	text_make_printable(words);
}

/* All it says until it closes its standard error: by going into the background, or by ending. What
 * does not fit is dropped. */
static int words_read(int fd, char *words)
{
	int64_t deadline = clock_ms() + PASST_TIMEOUT_MS;
	size_t used = 0;

	for (;;) {
		struct pollfd ready = {.fd = fd, .events = POLLIN};
		int64_t left = deadline - clock_ms();
		char data[WORDS_MAX];
		ssize_t n;

		words[used] = '\0';
		if (left <= 0 || !poll(&ready, 1, left))
			return -ETIMEDOUT;
		n = read(fd, data, sizeof(data));
		if (!n)
			return 0;
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			size_t part = MIN((size_t)n, WORDS_MAX - used);

			memcpy(words + used, data, part);
			used += part;
		}
	}
}

static const char *advice(const char *words)
{
	if (strstr(words, "No external routable interface"))
		return " (it takes address and routes from the host's interface with a default "
		       "route; this host has none)";
	if (strstr(words, "user namespace") || strstr(words, "userns") ||
	    strstr(words, "resolv.conf"))
		return " (it needs user namespaces: `sysctl kernel.unprivileged_userns_clone "
		       "user.max_user_namespaces`)";
	return "";
}

int passt_wait(struct passt *passt, struct error *err)
{
	char words[WORDS_MAX * 2 + 1]; /* a newline becomes two bytes at most */
	int status = 0, r = words_read(passt->words_fd, words);

	if (r == -ETIMEDOUT)
		return error_set(err, r, "net%u: passt has not started within %d s", passt->net,
				 PASST_TIMEOUT_MS / 1000);
	if (r < 0)
		return error_set(err, r, "net%u: cannot read what passt says: %s", passt->net,
				 strerror(-r));
	while (waitpid(passt->pid, &status, 0) < 0 && errno == EINTR)
		;
	passt->pid = 0;
	words_join(words, status);
	if (status)
		return error_set(err, -ECHILD, "net%u: passt cannot start: %s%s", passt->net,
				 words[0] ? words : "it gives no reason", advice(words));
	if (words[0])
		local_say("net%u: passt: %s", passt->net, words);
	return 0;
}

void passt_deinit(struct passt *passt)
{
	passt->words_fd = fd_close(passt->words_fd);
	if (passt->pid) {
		kill(passt->pid, SIGKILL);
		waitpid(passt->pid, NULL, 0);
		passt->pid = 0;
	}
}
