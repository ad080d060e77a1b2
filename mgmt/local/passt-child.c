/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: a program, its words, two descriptors. Out: it runs in a session of its own, with these two
 * and nothing else of ours: no descriptor, no environment, no signal blocked or ignored.
 */
#include "mgmt/local/passt-child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/resolver.h"

static void signals_reset(void)
{
	sigset_t none;

	for (int i = 1; i < NSIG; i++)
		signal(i, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* None may sit where another belongs. `failed_fd` closes by the exec. */
static int descriptors_place(const struct passt_child *child, int null_fd, int *failed_fd)
{
	const int above = PASST_CHILD_FD + 1;
	int words = fcntl(child->words_fd, F_DUPFD_CLOEXEC, above);
	int socket = fcntl(child->socket_fd, F_DUPFD_CLOEXEC, above);
	int null = fcntl(null_fd, F_DUPFD_CLOEXEC, above);
	int failed = fcntl(*failed_fd, F_DUPFD_CLOEXEC, above);

	if (words < 0 || socket < 0 || null < 0 || failed < 0)
		return -errno;
	*failed_fd = failed;
	if (dup2(null, STDIN_FILENO) < 0 || dup2(null, STDOUT_FILENO) < 0 ||
	    dup2(words, STDERR_FILENO) < 0 || dup2(socket, PASST_CHILD_FD) < 0 ||
	    close_range(above, ~0U, CLOSE_RANGE_CLOEXEC) < 0)
		return -errno;
	return 0;
}

/* What goes wrong here is passt's last word, like a failure of its own. */
static void resolver_set(const char *text)
{
	int r = text ? resolver_put(text) : 0;

	if (r < 0) {
		dprintf(STDERR_FILENO,
			"cannot give it a resolv.conf without the host's loopback resolver: %s\n",
			strerror(-r));
		_exit(1);
	}
}

static void __attribute__((noreturn))
child_run(const struct passt_child *child, int null_fd, int failed_fd)
{
	char *const environment[] = {NULL};
	int r;

	setsid();
	signals_reset();
	r = descriptors_place(child, null_fd, &failed_fd);
	if (r >= 0) {
		resolver_set(child->resolver);
		execvpe(child->program, (char *const *)child->argv, environment);
		r = -errno;
	}
	_exit(fd_write_full(failed_fd, &r, sizeof(r)) < 0 ? 126 : 127);
}

int passt_child_start(const struct passt_child *child, pid_t *ret_pid)
{
	_cleanup_(fd_closep) int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	int failed[2], code;
	pid_t pid;

	if (null_fd < 0 || pipe2(failed, O_CLOEXEC) < 0)
		return -errno;
	pid = fork();
	if (!pid)
		child_run(child, null_fd, failed[1]);
	code = pid < 0 ? -errno : 0;
	fd_close(failed[1]);
	if (pid > 0 && !fd_read_full(failed[0], &code, sizeof(code)))
		waitpid(pid, NULL, 0);
	fd_close(failed[0]);
	if (code < 0)
		return code;
	*ret_pid = pid;
	return 0;
}
