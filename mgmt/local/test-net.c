/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Network cards, from the words of --net to what the VMM is handed, with the real passt and real
 * taps in a network namespace of the test's own. And that no passt outlives its VM, whoever dies
 * first.
 */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/test-host.h"
#include "mgmt/local/test-network.h"

#define FORWARDED 2222

static struct host host;
static struct said said;

static void init(void)
{
	host_init(&host);
}

static void deinit(void)
{
	host_deinit(&host);
}

TestSuite(net, .init = init, .fini = deinit, .timeout = 60);

static void refused(int status, const char *part)
{
	cr_assert_eq(said.status, status, "%d: %s", said.status, said.err);
	assert_has(said.err, part);
	assert_lines(said.err, 1);
	cr_assert_eq(host_left(&host), 0);
}

static void run_net(const char *net, const char *append)
{
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--net", net, "--append", append,
		    NULL);
}

/* A program that takes passt's place. */
static void passt_fake(const char *script)
{
	char path[128];
	FILE *file;

	snprintf(path, sizeof(path), "%s/passt", host.dir);
	file = fopen(path, "we");
	cr_assert(file && fprintf(file, "#!/bin/sh\n%s\n", script) > 0 && !fclose(file));
	cr_assert(!chmod(path, 0755));
	setenv("CORRAL_PASST", path, true);
}

Test(net, wrong_words)
{
	static const struct {
		const char *net, *part;
	} wrong[] = {
		{"", "--net: \"\" is no network: user, tap=INTERFACE or fd=NUMBER comes first"},
		{"tap0", "\"tap0\" is no network"},
		{"fd=x", "--net: fd: \"x\" is not a whole number"},
		{"user,quues=1", "unknown word \"quues\", did you mean \"queues\"?"},
		{"user,forward", "\"\" is no forward"},
		{"user,forward=22", "\"22\" is no forward: [tcp:|udp:][ADDRESS:]PORT-OF-THE-HOST:"},
		{"user,forward=tcp:1:2:3", "\"tcp:1:2:3\" is no forward"},
		{"user,forward=::1:2222:22", "an IPv6 address in brackets"},
		{"user,forward=[::1:2222:22", "\"[::1:2222:22\" is no forward"},
		{"user,forward=[::1]2222:22", "\"[::1]2222:22\" is no forward"},
		{"user,forward=tcp:1.2.3.4:", "host-port: \"1.2.3.4\" is not a whole number"},
		{"user,forward=x:tcp:1.2.3.4:1:2", "is no forward"},
		{"user,host=perhaps", "host"},
		{"user,forward=sctp:1:2", "protocol: \"sctp\" is not one of: tcp, udp"},
		{"user,forward=0:22", "host-port: 0 is too small"},
		{"user,forward=22:65536", "guest-port: 65536 is too large"},
		{"user,forward=22:", "guest-port"},
		{"tap=a,vhost=maybe", "vhost"},
		{"tap=a,rx-rate=fast", "rx-rate"},
		{"tap=interface-name-16", "tap"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		run_net(wrong[i].net, "end=power-off");
		refused(2, wrong[i].part);
	}
}

Test(net, words_that_do_not_go_together)
{
	static const struct {
		const char *net, *part;
	} wrong[] = {
		{"user,queues=2", "nets[0].queues"},
		{"user,vhost=on", "nets[0].vhost"},
		{"tap=a,forward=1:1", "nets[0].forwards"},
		{"tap=a,host=on", "nets[0].host: only kind \"user\" has it"},
		{"user,forward=a.example.org:1:2",
		 "nets[0].forwards[0].address: \"a.example.org\" is not an address such as "},
		{"user,forward=[fe80::1%eth0]:1:2", "nets[0].forwards[0].address"},
		{"fd=2", "nets[0].fd"},
		{"user,mac=01:00:00:00:00:01", "nets[0].mac"},
		{"tap=a,vhost=on,rx-rate=1M", "nets[0].vhost"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		run_net(wrong[i].net, "end=power-off");
		refused(1, wrong[i].part);
	}
}

Test(net, words_become_the_description)
{
	host_corral(&host, &said, "run", "--kernel", "k", "--dry-run", "--net",
		    "user,forward=2222:22,forward=udp:0.0.0.0:5353:53,forward=[2001:db8::1]:80:80,"
		    "host=on,mac=52:54:00:00:00:01",
		    "--net", "tap=tap0,queues=4,vhost=off,rx-rate=10M,tx-frames=500", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	assert_has(said.out, "\"protocol\": \"udp\",\n          \"address\": \"0.0.0.0\",\n"
			     "          \"host-port\": 5353,\n          \"guest-port\": 53");
	assert_has(said.out, "\"address\": \"2001:db8::1\",\n          \"host-port\": 80");
	assert_has(said.out, "\"host\": true");
	cr_assert_not(strstr(said.err, "--no-map-gw"), "%s", said.err);
	assert_has(said.out, "\"mac\": \"52:54:00:00:00:01\"");
	assert_has(said.out, "\"tap\": \"tap0\"");
	assert_has(said.out, "\"rx-rate\": 10485760");
	assert_has(said.out, "\"tx-frames\": 500");
}

Test(net, dry_run_lists_what_cards_need)
{
	setenv("CORRAL_PASST", "/opt/passt", true);
	host_corral(&host, &said, "run", "--kernel", "k", "--dry-run", "--disk", host.disk,
		    "--cloud-init", "user-data=me,network=net", "--net", "tap=tap0,queues=2",
		    "--net", "fd=9,vhost=on", "--net", "user,forward=2222:22", "--net",
		    "tap=b,rx-rate=1M", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	assert_has(said.err, "  disk1    made in the run directory from \"me\", \"net\" (read)\n"
			     "  net0.0   /dev/net/tun as tap \"tap0\" (read and write)\n"
			     "  vhost0.0 /dev/vhost-net (read and write, where there is one)\n"
			     "  net0.1   /dev/net/tun as tap \"tap0\" (read and write)\n"
			     "  vhost0.1 /dev/vhost-net (read and write, where there is one)\n"
			     "  net1.0   descriptor 9, open already\n"
			     "  vhost1.0 /dev/vhost-net (read and write)\n"
			     "  net2.0   a socket with passt at its other end\n"
			     "  net3.0   /dev/net/tun as tap \"b\" (read and write)\n"
			     "would start:\n"
			     "  net2     /opt/passt --quiet --fd 3 --no-map-gw");
	assert_has(said.err, " -t 127.0.0.1/2222:22");
}

Test(net, too_many)
{
	char forwards[600] = "user";

	host_corral(&host, &said, "run", "--kernel", "k", "--net", "user", "--net", "user", "--net",
		    "user", "--net", "user", "--net", "user", "--net", "user", "--net", "user",
		    "--net", "user", "--net", "user", NULL);
	refused(2, "--net: a VM has at most 8 network cards");
	for (int i = 0; i < 17; i++)
		sprintf(forwards + strlen(forwards), ",forward=%d:22", 3000 + i);
	run_net(forwards, "end=power-off");
	refused(2, "a network card forwards at most 16 ports");
}

/* Other tests run at the same time, each in a network of its own. */
static bool is_in_our_network(const char *pid)
{
	char path[300], ours[64] = "", theirs[64] = "-";

	snprintf(path, sizeof(path), "/proc/%s/ns/net", pid);
	return readlink("/proc/self/ns/net", ours, sizeof(ours) - 1) > 0 &&
	       readlink(path, theirs, sizeof(theirs) - 1) > 0 && !strcmp(ours, theirs);
}

/* The first passt that forwards FORWARDED, 0 if there is none. */
static pid_t passt_find(void)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	char wanted[32];
	pid_t found = 0;

	snprintf(wanted, sizeof(wanted), "-t 127.0.0.1/%d:22", FORWARDED);
	while (!found && (entry = readdir(proc))) {
		char path[300], line[4096] = "";
		int fd;

		if (!isdigit((unsigned char)entry->d_name[0]) || !is_in_our_network(entry->d_name))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/cmdline", entry->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		for (ssize_t n = fd < 0 ? 0 : read(fd, line, sizeof(line) - 1); n-- > 1;)
			if (!line[n - 1])
				line[n - 1] = ' ';
		fd_close(fd);
		if (!strncmp(line, "passt ", 6) && strstr(line, wanted))
			found = atoi(entry->d_name);
	}
	closedir(proc);
	return found;
}

static bool port_answers(int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_port = htons(port),
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int r = connect(fd, (struct sockaddr *)&address, sizeof(address));

	fd_close(fd);
	return !r;
}

static pid_t passt_of(const char *name)
{
	pid_t passt;

	host_corral(&host, &said, "run", "--name", name, "--detach", "--kernel", host.kernel,
		    "--net", "user,forward=tcp:2222:22", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	cr_assert_str_empty(said.err);
	cr_assert(port_answers(FORWARDED));
	passt = passt_find();
	cr_assert(passt > 0);
	return passt;
}

Test(net, user_mode_hands_one_socket_over_and_nothing_else)
{
	passt_needed();
	run_net("user,forward=2222:22", "fds end=power-off");
	cr_assert_eq(said.status, 0, "%s", said.err);
	assert_has(said.out, "5 net0.0 rw\n6 description r\n");
	cr_assert_not(strstr(said.out, "leaked"), "%s", said.out);
	cr_assert_str_empty(said.err);
	cr_assert_eq(host_left(&host), 0);
}

Test(net, passt_has_no_descriptor_of_ours)
{
	int leak, standard = 0, n = 0;
	char path[64], target[128];
	struct dirent *entry;
	DIR *fds;

	passt_needed();
	leak = fcntl(STDOUT_FILENO, F_DUPFD, 177);
	cr_assert(leak >= 177);
	snprintf(path, sizeof(path), "/proc/%d/fd", (int)passt_of("d"));
	fds = opendir(path);
	while ((entry = readdir(fds))) {
		ssize_t length = readlinkat(dirfd(fds), entry->d_name, target, sizeof(target) - 1);

		if (length < 0)
			continue;
		target[length] = '\0';
		n++;
		standard += atoi(entry->d_name) <= 2 && !strcmp(target, "/dev/null");
		cr_assert_not(strstr(target, host.dir) || strstr(target, "/kvm"), "%s is %s",
			      entry->d_name, target);
		cr_assert_neq(atoi(entry->d_name), leak);
	}
	closedir(fds);
	cr_assert(n > 4 && standard == 3, "%d, %d", n, standard);
	host_corral(&host, &said, "kill", "d", NULL);
}

Test(net, passt_ends_with_the_vm)
{
	pid_t passt, vmm;

	passt_needed();
	passt = passt_of("asked");
	host_corral(&host, &said, "kill", "asked", NULL);
	process_gone(passt);
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--net", "user,forward=2222:22",
		    "--append", "end=power-off", NULL);
	cr_assert_eq(said.status, 0, "the port is free at once: %s", said.err);
	passt = passt_of("killed");
	vmm = host_vmm(&host, "killed");
	cr_assert(!kill(vmm, SIGKILL));
	process_gone(passt);
	cr_assert_not(port_answers(FORWARDED));
}

Test(net, passt_ends_when_the_vmm_crashes)
{
	pid_t passt;

	passt_needed();
	passt = passt_of("d");
	cr_assert(!kill(host_vmm(&host, "d"), SIGSEGV));
	process_gone(passt);
}

Test(net, passt_ends_when_the_launcher_is_killed)
{
	struct running vm;
	pid_t passt;

	passt_needed();
	vm = host_start(&host, "run", "--kernel", host.kernel, "--net", "user,forward=2222:22",
			NULL);
	running_expect(&vm, "up\n");
	passt = passt_find();
	cr_assert(passt > 0 && !kill(vm.pid, SIGKILL));
	process_gone(passt);
	running_end(&host, &vm, &said);
}

/* What fails after passt was started takes it along. */
Test(net, passt_ends_when_the_vm_does_not_start)
{
	passt_needed();
	setenv("CORRAL_VMM", "/absent/corral-vmm", true);
	run_net("user,forward=2222:22", "");
	refused(1, "cannot start \"/absent/corral-vmm\"");
	/* A process on its way out is found no more, but has its sockets yet. */
	while (port_answers(FORWARDED))
		sched_yield();
}

Test(net, several_cards_in_user_mode)
{
	passt_needed();
	host_corral(&host, &said, "run", "--name", "d", "--detach", "--kernel", host.kernel,
		    "--net", "user,forward=80:80", "--net",
		    "user,forward=2222:22,forward=udp:53:53", "--append", "fds", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	cr_assert(port_answers(80), "a low port, bound before passt gave up being root");
	cr_assert(port_answers(FORWARDED));
	host_corral(&host, &said, "logs", "d", NULL);
	assert_has(said.out, "net0.0 rw\n");
	assert_has(said.out, "net1.0 rw\n");
	host_corral(&host, &said, "ps", NULL);
	assert_has(said.out, "tcp 80:80, tcp 2222:22, udp 53:53\n");
	host_corral(&host, &said, "kill", "d", NULL);
}

Test(net, a_port_that_is_taken)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(FORWARDED)};
	int fd;

	passt_needed();
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert(!bind(fd, (struct sockaddr *)&address, sizeof(address)) && !listen(fd, 1));
	run_net("user,forward=2222:22", "end=power-off");
	refused(1, "net0: cannot forward tcp port 2222 of the host: it is taken");
	fd_close(fd);
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--net", "user,forward=2222:22",
		    "--net", "user,forward=2222:80", NULL);
	refused(1, "net1: tcp port 2222 of the host is forwarded twice");
	run_net("user,forward=198.51.100.9:2222:22", "end=power-off");
	refused(1, "net0: cannot forward tcp port 2222 of 198.51.100.9: the host has no such "
		   "address, `ip address` has those it has");
}

Test(net, no_way_out)
{
	passt_needed();
	shell("ip route del default");
	run_net("user", "end=power-off");
	refused(1, "net0: passt cannot start: No external routable interface for IPv4");
}

Test(net, passt_that_fails_has_its_words_in_the_sentence)
{
	passt_fake("echo 'Failed to send 9 bytes to syslog' >&2; echo 'the \033moon' >&2; "
		   "echo 'is down' >&2; exit 1");
	run_net("user", "end=power-off");
	refused(1, "net0: passt cannot start: the ?moon; is down");
	passt_fake("exit 3");
	run_net("user", "end=power-off");
	refused(1, "net0: passt cannot start: it gives no reason");
	passt_fake("kill -9 $$");
	run_net("user", "end=power-off");
	refused(1, "net0: passt cannot start: it gives no reason");
	passt_fake("head -c 100000 /dev/zero | tr '\\0' '\\n' >&2; exit 1");
	run_net("user", "end=power-off");
	refused(1, "net0: passt cannot start");
}

Test(net, passt_that_is_missing)
{
	char path[4096];

	setenv("CORRAL_PASST", "/absent/passt", true);
	run_net("user", "end=power-off");
	refused(1, "net0: cannot start \"/absent/passt\"");
	unsetenv("CORRAL_PASST");
	snprintf(path, sizeof(path), "%s", getenv("PATH"));
	setenv("PATH", host.dir, true);
	run_net("user", "end=power-off");
	setenv("PATH", path, true);
	refused(1, "net0: user mode needs passt, which is not installed: `sudo apt install passt`");
}

static void tap_make(const char *name, const char *flags)
{
	char command[200];

	snprintf(command, sizeof(command),
		 "ip tuntap add dev %s mode tap vnet_hdr %s && ip link set %s up", name, flags,
		 name);
	shell(command);
}

Test(net, taps_that_cannot_be_had)
{
	network_make();
	tap_make("one", "");
	shell("ip tuntap add dev tun0 mode tun");
	run_net("tap=none0", "end=power-off");
	refused(1, "there is no interface \"none0\"; make it and put it on a bridge: `sudo ip "
		   "tuntap add dev none0 mode tap user $USER vnet_hdr && ");
	run_net("tap=none0,queues=2", "end=power-off");
	refused(1, "vnet_hdr multi_queue");
	run_net("tap=lo", "end=power-off");
	refused(1, "interface \"lo\" is no tap");
	run_net("tap=tun0", "end=power-off");
	refused(1, "interface \"tun0\" is no tap");
	run_net("tap=one,queues=2", "end=power-off");
	refused(1, "tap \"one\" has one queue, not 2");
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--net", "tap=one", "--net",
		    "tap=one", NULL);
	refused(1, "net1: tap \"one\" is net0's");
}

Test(net, a_tap_has_a_descriptor_for_each_pair)
{
	network_make();
	tap_make("one", "");
	tap_make("many", "multi_queue");
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--net", "tap=one,vhost=off",
		    "--net", "tap=many,queues=3,rx-rate=1M", "--append", "fds end=power-off", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	cr_assert_str_empty(said.err);
	assert_has(said.out, "5 net0.0 rw\n6 net1.0 rw\n7 net1.1 rw\n8 net1.2 rw\n9 description r");
	cr_assert_not(strstr(said.out, "vhost"), "%s", said.out);
	run_net("tap=many,vhost=off", "fds end=power-off");
	assert_has(said.out, "5 net0.0 rw\n6 description r");
}

Test(net, a_tap_that_is_down_is_warned_of)
{
	network_make();
	shell("ip tuntap add dev one mode tap");
	run_net("tap=one", "end=power-off");
	cr_assert_eq(said.status, 0, "%s", said.err);
	assert_has(said.err, "tap \"one\" is down, nothing passes until `sudo ip link set one up`");
}

Test(net, a_tap_in_use)
{
	network_make();
	tap_make("one", "");
	tap_make("many", "multi_queue");
	host_corral(&host, &said, "run", "--name", "d", "--detach", "--kernel", host.kernel,
		    "--net", "tap=one", "--net", "tap=many,queues=2", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	run_net("tap=one", "end=power-off");
	assert_has(said.err, "tap \"one\" is in use by another VM or program");
	run_net("tap=many,queues=2", "end=power-off");
	assert_has(said.err, "tap \"many\" is in use by another VM or program");
	cr_assert_eq(host_left(&host), 1);
	host_corral(&host, &said, "kill", "d", NULL);
	run_net("tap=one", "end=power-off");
	cr_assert_eq(said.status, 0, "%s", said.err);
}

static int tap_open(const char *name, short flags)
{
	struct ifreq request = {.ifr_flags = IFF_TAP | flags};
	int fd = open("/dev/net/tun", O_RDWR); /* without O_CLOEXEC: it is to be inherited */

	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
	cr_assert(fd >= 0 && !ioctl(fd, TUNSETIFF, &request), "%s: %s", name, strerror(errno));
	return fd;
}

Test(net, a_descriptor_instead_of_a_name)
{
	char net[32], other[32];
	int fd;

	network_make();
	fd = tap_open("mine", IFF_NO_PI | IFF_VNET_HDR);
	snprintf(net, sizeof(net), "fd=%d", fd);
	run_net(net, "fds end=power-off");
	cr_assert_eq(said.status, 0, "%s", said.err);
	assert_has(said.out, "net0.0 rw\n");
	cr_assert_not(strstr(said.out, "leaked"), "%s", said.out);
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--net", net, "--net", net, NULL);
	refused(1, "net1: descriptor");
	snprintf(other, sizeof(other), "fd=%d", tap_open("bare", IFF_NO_PI));
	run_net(other, "end=power-off");
	refused(1, "is a tap without a vnet header");
	run_net("fd=999", "end=power-off");
	refused(1, "net0: descriptor 999 is not open");
	snprintf(other, sizeof(other), "fd=%d", open("/dev/null", O_RDWR));
	run_net(other, "end=power-off");
	refused(1, "is no tap");
}

Test(net, vhost_on_where_there_is_none)
{
	network_make();
	if (!access("/dev/vhost-net", F_OK))
		cr_skip_test("needs a host without /dev/vhost-net");
	tap_make("one", "");
	run_net("tap=one,vhost=on", "end=power-off");
	refused(1, "cannot open /dev/vhost-net: No such file or directory; load its module with "
		   "`sudo modprobe vhost_net`, or leave out vhost=on");
	run_net("tap=one", "end=power-off");
	cr_assert_eq(said.status, 0, "%s", said.err);
}

Test(net, vhost_has_a_descriptor_for_each_pair)
{
	network_make();
	if (access("/dev/vhost-net", R_OK | W_OK))
		cr_skip_test("needs /dev/vhost-net");
	tap_make("many", "multi_queue");
	run_net("tap=many,queues=2", "fds end=power-off");
	assert_has(said.out, "net0.0 rw\n6 net0.1 rw\n7 vhost0.0 rw\n8 vhost0.1 rw\n");
	run_net("tap=many,queues=2,rx-frames=100", "fds end=power-off");
	cr_assert_not(strstr(said.out, "vhost"), "%s", said.out);
}

Test(net, the_hosts_neighbours_know_a_guests_address)
{
	network_make();
	tap_make("one", "");
	shell("ip addr add 198.51.100.1/24 dev one");
	host_corral(&host, &said, "run", "--name", "d", "--detach", "--kernel", host.kernel,
		    "--net", "tap=one,mac=52:54:00:AB:00:01", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	host_corral(&host, &said, "ps", NULL);
	cr_assert_not(strstr(said.out, "ADDRESS"), "%s", said.out);
	shell("ip neigh add 198.51.100.7 lladdr 52:54:00:ab:00:01 dev one nud reachable");
	host_corral(&host, &said, "ps", NULL);
	assert_has(said.out, "  198.51.100.7");
	host_corral(&host, &said, "ps", "--json", NULL);
	assert_has(said.out, "\"address\": \"198.51.100.7\"");
	assert_has(said.out, "\"mac\": \"52:54:00:ab:00:01\"");
	host_corral(&host, &said, "ssh", "d", NULL);
	cr_assert_eq(said.status, 1);
	assert_has(said.err, "\"d\" forwards no port to its port 22, but its net0 was last reached "
			     "at 198.51.100.7: `ssh 198.51.100.7`");
	host_corral(&host, &said, "kill", "d", NULL);
}
