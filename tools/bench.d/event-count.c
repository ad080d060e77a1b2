/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counts kernel tracepoints while a command and all it starts run, one yardstick for any program.
 * In: events and a command. Out: a line an event, "NAME COUNT", in FILE. The kernel's own counters
 * do it: nothing is traced, stopped or slowed but by the increment.
 *
 *   event-count FILE EVENT[/FILTER]... -- COMMAND ...
 *
 * An event is SYSTEM:NAME, a filter what the kernel takes for one ("reason==2").
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define EVENTS_MAX 32

struct counter {
	const char *text; /* borrowed: the word on the command line */
	int fd;           /* owned */
};

static void __attribute__((noreturn)) die(const char *what, const char *to_what)
{
	fprintf(stderr, "event-count: cannot %s%s: %s\n", what, to_what, strerror(errno));
	exit(1);
}

/* tracefs, mounted nowhere: the host's mounts stay as they are. */
static int open_tracefs(void)
{
	int fs = fsopen("tracefs", FSOPEN_CLOEXEC), dir;

	if (fs < 0 || fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		die("open the kernel's list of events (root may)", "");
	dir = fsmount(fs, FSMOUNT_CLOEXEC, 0);
	if (dir < 0)
		die("mount the kernel's list of events", "");
	close(fs);
	return dir;
}

static uint64_t event_id(int tracefs, const char *event, size_t len)
{
	char path[128], text[32] = "";
	int fd;

	snprintf(path, sizeof(path), "events/%.*s/id", (int)len, event);
	for (char *p = path; *p; p++)
		if (*p == ':')
			*p = '/';
	fd = openat(tracefs, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		die("find the event ", event);
	close(fd);
	return strtoull(text, NULL, 10);
}

static void counter_open(struct counter *counter, int tracefs, pid_t pid)
{
	const char *filter = strchr(counter->text, '/');
	size_t len = filter ? (size_t)(filter - counter->text) : strlen(counter->text);
	struct perf_event_attr attr = {
		.type = PERF_TYPE_TRACEPOINT,
		.size = sizeof(attr),
		.config = event_id(tracefs, counter->text, len),
		.disabled = 1,
		.inherit = 1,
		.enable_on_exec = 1,
	};

	counter->fd = syscall(SYS_perf_event_open, &attr, pid, -1, -1, PERF_FLAG_FD_CLOEXEC);
	if (counter->fd < 0)
		die("count ", counter->text);
	if (filter && ioctl(counter->fd, PERF_EVENT_IOC_SET_FILTER, filter + 1) < 0)
		die("filter ", counter->text);
}

/* The child waits until its counters are there; the end of the pipe without a byte ends it. */
static pid_t start(char **command, int *ret_go)
{
	int go[2];
	char byte;
	pid_t pid;

	if (pipe2(go, O_CLOEXEC) < 0)
		die("make a pipe", "");
	pid = fork();
	if (pid < 0)
		die("fork", "");
	if (pid == 0) {
		close(go[1]);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (read(go[0], &byte, 1) == 1)
			execvp(command[0], command);
		_exit(127);
	}
	close(go[0]);
	*ret_go = go[1];
	return pid;
}

static void report(const char *path, const struct counter *counters, unsigned int n)
{
	FILE *file = fopen(path, "we");

	if (!file)
		die("write ", path);
	for (unsigned int i = 0; i < n; i++) {
		uint64_t count;

		if (read(counters[i].fd, &count, sizeof(count)) != sizeof(count))
			die("read the counter of ", counters[i].text);
		fprintf(file, "%s %" PRIu64 "\n", counters[i].text, count);
	}
	if (fclose(file) != 0)
		die("write ", path);
}

int main(int argc, char **argv)
{
	struct counter counters[EVENTS_MAX];
	unsigned int n = 0;
	int i, tracefs, go, status;
	pid_t pid;

	for (i = 2; i < argc && strcmp(argv[i], "--") != 0 && n < EVENTS_MAX; i++)
		counters[n++].text = argv[i];
	if (n == 0 || i + 1 >= argc || strcmp(argv[i], "--") != 0) {
		fprintf(stderr, "usage: event-count FILE EVENT[/FILTER]... -- COMMAND [WORD...]\n");
		return 2;
	}
	tracefs = open_tracefs();
	pid = start(argv + i + 1, &go);
	for (unsigned int k = 0; k < n; k++)
		counter_open(&counters[k], tracefs, pid);
	if (write(go, "g", 1) != 1)
		die("start ", argv[i + 1]);
	if (waitpid(pid, &status, 0) < 0)
		die("wait for ", argv[i + 1]);
	report(argv[1], counters, n);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
