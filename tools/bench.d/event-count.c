/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counts kernel tracepoints while a command and all it starts run, one yardstick for any program.
 * In: events and a command. Out: a line an event, "NAME COUNT", in FILE. The kernel's own counters
 * do it: nothing is traced, stopped or slowed but by the increment.
 *
 *   event-count [--of PID] FILE EVENT[/FILTER]... -- COMMAND ...
 *
 * With --of, they are counted of that process, in the threads it has at the start.
 * An event is SYSTEM:NAME, a filter what the kernel takes for one ("reason==2").
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define EVENTS_MAX  32

#define THREADS_MAX 64

struct counter {
	const char *text;    /* borrowed: the word on the command line */
	int fd[THREADS_MAX]; /* owned; one for a command, with all that it starts */
	unsigned int n_fd;
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

static void counter_open(struct counter *counter, int tracefs, pid_t pid, bool command)
{
	const char *filter = strchr(counter->text, '/');
	size_t len = filter ? (size_t)(filter - counter->text) : strlen(counter->text);
	struct perf_event_attr attr = {
		.type = PERF_TYPE_TRACEPOINT,
		.size = sizeof(attr),
		.config = event_id(tracefs, counter->text, len),
		.disabled = command,
		.inherit = command,
		.enable_on_exec = command,
	};
	int fd = syscall(SYS_perf_event_open, &attr, pid, -1, -1, PERF_FLAG_FD_CLOEXEC);

	if (fd < 0)
		die("count ", counter->text);
	if (filter && ioctl(fd, PERF_EVENT_IOC_SET_FILTER, filter + 1) < 0)
		die("filter ", counter->text);
	counter->fd[counter->n_fd++] = fd;
}

static void open_of_process(struct counter *counters, unsigned int n, int tracefs, const char *pid)
{
	char path[64];
	struct dirent *entry;
	DIR *threads;

	snprintf(path, sizeof(path), "/proc/%s/task", pid);
	threads = opendir(path);
	if (!threads)
		die("find the threads of process ", pid);
	while ((entry = readdir(threads))) {
		pid_t thread = atoi(entry->d_name);

		for (unsigned int i = 0; thread > 0 && i < n; i++)
			if (counters[i].n_fd < THREADS_MAX)
				counter_open(&counters[i], tracefs, thread, false);
	}
	closedir(threads);
}

static uint64_t counter_read(const struct counter *counter)
{
	uint64_t sum = 0, count;

	for (unsigned int i = 0; i < counter->n_fd; i++) {
		if (read(counter->fd[i], &count, sizeof(count)) != sizeof(count))
			die("read the counter of ", counter->text);
		sum += count;
	}
	return sum;
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
	for (unsigned int i = 0; i < n; i++)
		fprintf(file, "%s %" PRIu64 "\n", counters[i].text, counter_read(&counters[i]));
	if (fclose(file) != 0)
		die("write ", path);
}

int main(int argc, char **argv)
{
	static struct counter counters[EVENTS_MAX];
	const char *of = NULL;
	unsigned int n = 0;
	int i, tracefs, go, status;
	pid_t pid;

	if (argc > 2 && !strcmp(argv[1], "--of")) {
		of = argv[2];
		argc -= 2;
		argv += 2;
	}
	for (i = 2; i < argc && strcmp(argv[i], "--") != 0 && n < EVENTS_MAX; i++)
		counters[n++].text = argv[i];
	if (n == 0 || i + 1 >= argc || strcmp(argv[i], "--") != 0) {
		fprintf(stderr, "usage: event-count [--of PID] FILE EVENT[/FILTER]... -- COMMAND "
				"[WORD...]\n");
		return 2;
	}
	tracefs = open_tracefs();
	pid = start(argv + i + 1, &go);
	if (of)
		open_of_process(counters, n, tracefs, of);
	for (unsigned int k = 0; k < n && !of; k++)
		counter_open(&counters[k], tracefs, pid, true);
	if (write(go, "g", 1) != 1)
		die("start ", argv[i + 1]);
	if (waitpid(pid, &status, 0) < 0)
		die("wait for ", argv[i + 1]);
	report(argv[1], counters, n);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
