/* SPDX-License-Identifier: Apache-2.0 */
/* Commands with their output through pipes; orphans by way of a subreaper. */
#include "guest-tests/host/command.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "guest-tests/host/harness.h"

#define COMMAND_TIMEOUT_MS 30000
#define LOOK_AGAIN_MS      5

static unsigned int now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (unsigned int)(t.tv_sec * 1000 + t.tv_nsec / 1000000);
}

static void __attribute__((noreturn))
child(const char *const *argv, const int out[2], const int err[2])
{
	int null_fd = open("/dev/null", O_RDONLY);

	dup2(null_fd, STDIN_FILENO);
	dup2(out[1], STDOUT_FILENO);
	dup2(err[1], STDERR_FILENO);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	execvp(argv[0], (char *const *)argv);
	dprintf(STDERR_FILENO, "cannot start %s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

/* What has come; false at the end. What does not fit is thrown away. */
static bool take(int fd, char *text, size_t size)
{
	char rest[512];
	size_t used = strlen(text);
	ssize_t n;

	if (used < size - 1)
		n = read(fd, text + used, size - 1 - used);
	else
		n = read(fd, rest, sizeof(rest));
	if (n > 0 && used < size - 1)
		text[used + n] = 0;
	return n > 0;
}

static void read_until_end(struct command_result *r, int out, int err, const char *what)
{
	struct pollfd fds[2] = {{.fd = out, .events = POLLIN}, {.fd = err, .events = POLLIN}};
	unsigned int start = now_ms();

	while (fds[0].fd >= 0 || fds[1].fd >= 0) {
		unsigned int gone = now_ms() - start;

		CHECK(gone < COMMAND_TIMEOUT_MS &&
			      poll(fds, 2, (int)(COMMAND_TIMEOUT_MS - gone)) > 0,
		      "%s does not end; it said: %s%s", what, r->out, r->err);
		if (fds[0].revents && !take(out, r->out, sizeof(r->out)))
			fds[0].fd = -1;
		if (fds[1].revents && !take(err, r->err, sizeof(r->err)))
			fds[1].fd = -1;
	}
}

void command_run(struct command_result *ret_result, const char *const *argv)
{
	unsigned int start = now_ms();
	int out[2], err[2], status;
	pid_t pid;

	*ret_result = (struct command_result){0};
	CHECK(pipe2(out, O_CLOEXEC) == 0 && pipe2(err, O_CLOEXEC) == 0, "%s", strerror(errno));
	pid = fork();
	CHECK(pid >= 0, "fork: %s", strerror(errno));
	if (pid == 0)
		child(argv, out, err);
	close(out[1]);
	close(err[1]);
	read_until_end(ret_result, out[0], err[0], argv[0]);
	close(out[0]);
	close(err[0]);
	CHECK(waitpid(pid, &status, 0) == pid, "%s", strerror(errno));
	ret_result->status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
	ret_result->ms = now_ms() - start;
}

/* A test that failed may have detached VMs. */
static void kill_children(void)
{
	FILE *f = fopen("/proc/thread-self/children", "re");
	int pid;

	while (f && fscanf(f, "%d", &pid) == 1)
		kill(pid, SIGKILL);
	if (f)
		fclose(f);
}

void watch_what_stays(void)
{
	atexit(kill_children);
	CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0, "%s", strerror(errno));
}

unsigned int run_directory_count(void)
{
	DIR *dir = opendir(test_file("run"));
	unsigned int n = 0;

	CHECK(dir, "%s", strerror(errno));
	for (struct dirent *e = readdir(dir); e; e = readdir(dir))
		n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
	closedir(dir);
	return n;
}

/* A child of ours, adopted ones among them, that is not `but` and still lives; 0: none. */
static pid_t someone_left(pid_t but)
{
	FILE *f = fopen("/proc/thread-self/children", "re");
	pid_t left = 0;
	int pid;

	if (!f)
		test_skip("this kernel does not list the children of a process");
	while (!left && fscanf(f, "%d", &pid) == 1)
		if (pid != but && waitpid(pid, NULL, WNOHANG) == 0)
			left = pid;
	fclose(f);
	return left;
}

void check_nothing_stays(const char *after, pid_t but, unsigned int ms)
{
	unsigned int start = now_ms();
	pid_t pid;

	while ((pid = someone_left(but)) != 0) {
		CHECK(now_ms() - start < ms, "after %s process %d is still there", after, pid);
		poll(NULL, 0, LOOK_AGAIN_MS);
	}
	CHECK(run_directory_count() == (but ? 1 : 0), "after %s the run directory has %u entries",
	      after, run_directory_count());
}
