/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verbs around a running VM's network and memory: ps with addresses and forwards, balloon,
 * link, ssh, and the devices in stats; with the fake VMM, and programs in the places of passt and
 * ssh.
 */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/test-host.h"

static struct host host;
static struct said said;

static void program_make(const char *name, const char *script)
{
	char path[128];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", host.dir, name);
	file = fopen(path, "we");
	cr_assert(file && fprintf(file, "#!/bin/sh\n%s\n", script) > 0 && !fclose(file));
	cr_assert(!chmod(path, 0755));
}

static void init(void)
{
	char path[4096];

	host_init(&host);
	snprintf(path, sizeof(path), "%s:%s", host.dir, getenv("PATH"));
	setenv("PATH", path, true);
	snprintf(path, sizeof(path), "%s/passt", host.dir);
	setenv("CORRAL_PASST", path, true);
	program_make("passt", "exit 0");
	program_make("ssh", "printf '[%s]' \"$@\"; echo; exit 33");
}

static void deinit(void)
{
	host_deinit(&host);
}

TestSuite(adjust, .init = init, .fini = deinit, .timeout = 60);

/* One that nobody has at the moment. */
static int port_free(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t size = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	cr_assert(!bind(fd, (struct sockaddr *)&address, sizeof(address)) &&
		  !getsockname(fd, (struct sockaddr *)&address, &size));
	fd_close(fd);
	return ntohs(address.sin_port);
}

static void detach(const char *name, const char *append, const char *net)
{
	host_corral(&host, &said, "run", "--name", name, "--detach", "--kernel", host.kernel,
		    "--append", append, net ? "--net" : NULL, net, NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
}

static void refused(int status, const char *part)
{
	cr_assert_eq(said.status, status, "%d: %s", said.status, said.err);
	assert_has(said.err, part);
	assert_lines(said.err, 1);
}

Test(adjust, ps_has_the_address_the_vmm_saw)
{
	detach("a-vm-with-quite-a-long-name", "at=192.0.2.77", NULL);
	detach("b", "at=\033[31m", NULL);
	host_corral(&host, &said, "ps", NULL);
	assert_has(said.out, "UP  ADDRESS");
	assert_has(said.out, "a-vm-with-quite-a-long-name  running");
	assert_has(said.out, " min  192.0.2.77");
	assert_has(said.out, "b                            running");
	cr_assert_not(strchr(said.out, '\033'));
	host_corral(&host, &said, "ps", "--json", NULL);
	assert_has(said.out, "\"address\": \"192.0.2.77\"");
	cr_assert_not(strstr(said.out, "31m"), "%s", said.out);
}

Test(adjust, ps_shows_columns_that_somebody_needs)
{
	detach("a", "", NULL);
	host_corral(&host, &said, "ps", NULL);
	cr_assert_not(strstr(said.out, "ADDRESS"), "%s", said.out);
	cr_assert_not(strstr(said.out, "FORWARDS"), "%s", said.out);
	for (const char *line = strtok(said.out, "\n"); line; line = strtok(NULL, "\n"))
		cr_assert(strlen(line) <= 79, "%zu: %s", strlen(line), line);
}

Test(adjust, balloon_asks_for_bytes)
{
	detach("d", "", NULL);
	host_corral(&host, &said, "balloon", "d", "64M", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	host_corral(&host, &said, "balloon", "d", "all", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	host_corral(&host, &said, "logs", "d", NULL);
	assert_has(said.out, "balloon 67108864\nballoon 536870912\n");
	host_corral(&host, &said, "balloon", "d", NULL);
	refused(2, "`corral balloon NAME SIZE|all`");
	host_corral(&host, &said, "balloon", "d", "64Q", NULL);
	refused(2, "\"64Q\" is no size such as 512M or 4G, nor \"all\"");
	host_corral(&host, &said, "balloon", "d", "-1", NULL);
	refused(2, "\"-1\" is no size");
	host_corral(&host, &said, "balloon", "absent", "64M", NULL);
	refused(1, "no VM named \"absent\"");
	host_corral(&host, &said, "balloon", "absent", "all", NULL);
	refused(1, "no VM named \"absent\"");
}

Test(adjust, link_plugs_in_and_out)
{
	detach("d", "", NULL);
	host_corral(&host, &said, "link", "d", "net0", "down", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	host_corral(&host, &said, "link", "d", "net0", "up", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	host_corral(&host, &said, "logs", "d", NULL);
	assert_has(said.out, "net0 unplugged\nnet0 plugged\n");
	host_corral(&host, &said, "link", "d", "net0", NULL);
	refused(2, "`corral link NAME net0 up|down`");
	host_corral(&host, &said, "link", "d", "net0", "sideways", NULL);
	refused(2, "`corral link NAME net0 up|down`");
	host_corral(&host, &said, "link", "absent", "net0", "up", NULL);
	refused(1, "no VM named \"absent\"");
}

Test(adjust, stats_of_devices)
{
	detach("d", "", NULL);
	host_corral(&host, &said, "stats", "d", NULL);
	assert_has(said.out, "  disk0\n    requests            5\n");
	assert_has(said.out, "  disk1\n    reads               100, 400 KiB; half below 4 us, 99 % "
			     "below 16 us\n");
	assert_has(said.out, "    writes              3, 0 B; half below 1 us, 99 % below 1 us\n");
	assert_has(said.out, "    flushes             0\n");
	assert_has(said.out, "    set-aside           2\n");
	assert_has(said.out, "  net0                  plugged in, guest at 192.0.2.?\n");
	assert_has(said.out, "    to the guest        100 frames, 2 KiB, 2.5 a system call\n");
	assert_has(said.out, "    tx-lost             7\n");
	cr_assert_not(strstr(said.out, "rx-long"), "what is 0 is not shown: %s", said.out);
	assert_has(said.out, "  balloon               512 KiB given up, 1 MiB asked for\n");
	assert_has(said.out, "    guest: free         3 MiB\n");
}

Test(adjust, ssh_goes_to_the_forwarded_port)
{
	char net[64], port[32];
	int number = port_free();

	snprintf(net, sizeof(net), "user,forward=udp:%d:22,forward=tcp:%d:22", number, number);
	snprintf(port, sizeof(port), "[-p][%d][-o][", number);
	detach("web", "", net);
	host_corral(&host, &said, "ssh", "debian@web", "-i", "key", "--", "uname", "-a", NULL);
	cr_assert_eq(said.status, 33, "ssh's own status: %s", said.err);
	assert_has(said.out, port);
	assert_has(said.out, "/web/known_hosts\"][-o][HostKeyAlias=web][-o]");
	assert_has(said.out, "[StrictHostKeyChecking=accept-new]");
	assert_has(said.out, "[-i][key][-l][debian][127.0.0.1][--][uname][-a]\n");
	host_corral(&host, &said, "ssh", "web", "root@", NULL);
	assert_has(said.out, "[-l][root][127.0.0.1]\n");
	host_corral(&host, &said, "ssh", "web", NULL);
	assert_has(said.out, "[CheckHostIP=no][127.0.0.1]\n");
	host_corral(&host, &said, "ps", NULL);
	snprintf(net, sizeof(net), "udp %d:22, tcp %d:22\n", number, number);
	assert_has(said.out, net);
	host_corral(&host, &said, "kill", "web", NULL);
	host_corral(&host, &said, "ssh", "web", NULL);
	refused(1, "\"web\" is not running");
}

Test(adjust, ssh_that_cannot_go_anywhere)
{
	static const struct {
		const char *words[4], *part;
		int status;
	} wrong[] = {
		{{"ssh"}, "which VM? `corral ssh [USER@]NAME", 2},
		{{"ssh", "--", "ls"}, "which VM?", 2},
		{{"ssh", "d", "e"}, "one VM at a time; a command comes after --", 2},
		{{"ssh", "@d"}, "that is no user", 2},
		{{"ssh", "d", "-v"}, "only -i goes before --", 2},
		{{"ssh", "d", "-i"}, "only -i goes before --", 2},
		{{"ssh", "absent"}, "no VM named \"absent\"", 1},
		{{"ssh", "../d"}, "is no name", 1},
		{{"ssh", "d"},
		 "\"d\" forwards no port to its port 22: start it with `--net "
		 "user,forward=tcp:2222:22`",
		 1},
	};

	detach("d", "", NULL);
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		const char *const *w = wrong[i].words;

		host_corral(&host, &said, w[0], w[1], w[2], w[3], NULL);
		refused(wrong[i].status, wrong[i].part);
	}
}

Test(adjust, ssh_that_is_not_installed)
{
	char net[64], path[4096];

	snprintf(net, sizeof(net), "user,forward=%d:22", port_free());
	detach("web", "", net);
	snprintf(path, sizeof(path), "%s", getenv("PATH"));
	setenv("PATH", "/absent", true);
	host_corral(&host, &said, "ssh", "web", NULL);
	setenv("PATH", path, true);
	refused(1,
		"cannot start ssh: No such file or directory; `sudo apt install openssh-client`");
}

Test(adjust, vsock_has_a_socket_in_the_run_directory)
{
	char path[128];
	struct stat st;

	host_corral(&host, &said, "run", "--name", "d", "--detach", "--kernel", host.kernel,
		    "--vsock", "3", "--append", "fds", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	host_corral(&host, &said, "logs", "d", NULL);
	assert_has(said.out, " vsock rw\n");
	snprintf(path, sizeof(path), "%s/d/vsock.sock", host.run);
	cr_assert(!stat(path, &st) && S_ISSOCK(st.st_mode));
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--vsock", "2", NULL);
	refused(1, "vsock-cid: 2 is not a guest's");
}
