/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starts `corral` as a user would and collects what it says. Everything waits for an event with
 * the test's own deadline behind it; nothing sleeps.
 */
#include "mgmt/local/test-host.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"

#define WORDS_MAX 40

static void file_make(const char *path, off_t size)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);

	cr_assert(fd >= 0 && !ftruncate(fd, size), "cannot make %s", path);
	fd_close(fd);
}

void host_init(struct host *host)
{
	cr_assert(getenv("CORRAL") && getenv("CORRAL_VMM"), "CORRAL and CORRAL_VMM are not set");
	strcpy(host->dir, "/tmp/corral-test-XXXXXX");
	cr_assert(mkdtemp(host->dir) != NULL);
	snprintf(host->run, sizeof(host->run), "%s/run", host->dir);
	snprintf(host->kernel, sizeof(host->kernel), "%s/kernel", host->dir);
	snprintf(host->disk, sizeof(host->disk), "%s/disk", host->dir);
	file_make(host->kernel, 4096);
	file_make(host->disk, 1 << 20);
	setenv("CORRAL_RUN_DIRECTORY", host->run, true);
}

int host_left(const struct host *host)
{
	DIR *dir = opendir(host->run);
	struct dirent *entry;
	int n = 0;

	while (dir && (entry = readdir(dir)))
		n += entry->d_name[0] != '.';
	if (dir)
		closedir(dir);
	return n;
}

/* A test that failed may have left VMs behind. */
static void vms_kill(const struct host *host)
{
	DIR *dir = opendir(host->run);
	struct dirent *entry;
	char command[400];

	while (dir && (entry = readdir(dir))) {
		snprintf(command, sizeof(command), "'%s' kill '%s' >/dev/null 2>&1",
			 getenv("CORRAL"), entry->d_name);
		if (entry->d_name[0] != '.' && system(command) < 0)
			break;
	}
	if (dir)
		closedir(dir);
}

void host_deinit(struct host *host)
{
	char command[128];

	vms_kill(host);
	snprintf(command, sizeof(command), "rm -rf '%s'", host->dir);
	cr_assert(system(command) == 0);
}

static void __attribute__((noreturn)) corral_exec(va_list words)
{
	const char *argv[WORDS_MAX] = {"corral"};
	int n = 1;

	while (n < WORDS_MAX - 1 && (argv[n] = va_arg(words, const char *)))
		n++;
	execv(getenv("CORRAL"), (char *const *)argv);
	_exit(126);
}

static void text_read(const struct host *host, const char *file, char text[HOST_TEXT_MAX])
{
	char path[128];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", host->dir, file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? 0 : read(fd, text, HOST_TEXT_MAX - 1);
	text[MAX(n, 0)] = '\0';
	fd_close(fd);
}

/* Standard output or error to a file of the test's directory. */
static void to_file(const struct host *host, const char *file, int target)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", host->dir, file);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || dup2(fd, target) < 0)
		_exit(125);
}

static int status_of(pid_t pid)
{
	int status;

	cr_assert_eq(waitpid(pid, &status, 0), pid);
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

void host_corral(const struct host *host, struct said *said, ...)
{
	va_list words;
	pid_t pid;

	va_start(words, said);
	pid = fork();
	if (!pid) {
		int null = open("/dev/null", O_RDONLY);

		dup2(null, STDIN_FILENO);
		to_file(host, "out", STDOUT_FILENO);
		to_file(host, "err", STDERR_FILENO);
		corral_exec(words);
	}
	va_end(words);
	said->status = status_of(pid);
	text_read(host, "out", said->out);
	text_read(host, "err", said->err);
}

struct running host_start(const struct host *host, ...)
{
	static int started;
	struct running running;
	int in[2], out[2];
	va_list words;

	cr_assert(!pipe2(in, O_CLOEXEC) && !pipe2(out, O_CLOEXEC));
	snprintf(running.err, sizeof(running.err), "err-%d", started++);
	va_start(words, host);
	running.pid = fork();
	if (!running.pid) {
		dup2(in[0], STDIN_FILENO);
		dup2(out[1], STDOUT_FILENO);
		to_file(host, running.err, STDERR_FILENO);
		corral_exec(words);
	}
	va_end(words);
	fd_close(in[0]);
	fd_close(out[1]);
	running.in = in[1];
	running.out = out[0];
	return running;
}

void running_expect(struct running *running, const char *text)
{
	char data[HOST_TEXT_MAX];
	size_t used = 0;

	for (;;) {
		ssize_t n = read(running->out, data + used, 1);

		cr_assert(n == 1 && used < sizeof(data) - 2, "\"%s\" never came, but: %.*s", text,
			  (int)used, data);
		data[++used] = '\0';
		if (strstr(data, text))
			return;
	}
}

void running_end(const struct host *host, struct running *running, struct said *said)
{
	size_t used = 0;
	ssize_t n;

	while ((n = read(running->out, said->out + used, HOST_TEXT_MAX - 1 - used)) > 0)
		used += n;
	said->out[used] = '\0';
	said->status = status_of(running->pid);
	text_read(host, running->err, said->err);
	fd_close(running->in);
	fd_close(running->out);
}

pid_t host_vmm(const struct host *host, const char *name)
{
	char path[256], text[32] = "";
	int fd;

	snprintf(path, sizeof(path), "%s/%s/pid", host->run, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	cr_assert(fd >= 0 && read(fd, text, sizeof(text) - 1) > 0, "no pid in %s", path);
	fd_close(fd);
	cr_assert(atoi(text) > 0, "pid is \"%s\"", text);
	return atoi(text);
}

void process_gone(pid_t pid)
{
	struct pollfd process = {.fd = syscall(SYS_pidfd_open, pid, 0), .events = POLLIN};

	if (process.fd < 0)
		return; /* already reaped */
	cr_assert_eq(poll(&process, 1, -1), 1);
	fd_close(process.fd);
}

void assert_has(const char *text, const char *part)
{
	cr_assert(strstr(text, part), "\"%s\" is not in: %s", part, text);
}

void assert_lines(const char *text, int n)
{
	int lines = 0;

	for (const char *at = text; *at; at++)
		lines += *at == '\n';
	cr_assert_eq(lines, n, "%d lines instead of %d: %s", lines, n, text);
}
