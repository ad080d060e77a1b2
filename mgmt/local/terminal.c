/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: standard input. Out: a terminal that passes each key on as it is typed. Output stays
 * processed, so that log lines keep their left margin.
 */
#include "mgmt/local/terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"

bool terminal_usable(void)
{
	return isatty(STDIN_FILENO) && tcgetpgrp(STDIN_FILENO) == getpgrp();
}

/*
 * The guard: holds nothing but the terminal and a pipe. A byte means that all is well; the pipe's
 * end without one means that the launcher was killed. In a session of its own it is neither hit by
 * what hits the launcher nor stopped for touching the terminal from the background.
 */
static void __attribute__((noreturn)) guard_run(int fd, const struct termios *before)
{
	sigset_t all;
	char byte;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	setsid();
	if (dup2(fd, STDOUT_FILENO) < 0)
		_exit(1);
	close_range(STDERR_FILENO, ~0U, 0);
	if (!read(STDOUT_FILENO, &byte, 1))
		tcsetattr(STDIN_FILENO, TCSANOW, before);
	_exit(0);
}

static int guard_start(struct terminal *terminal)
{
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0)
		return -errno;
	terminal->guard = fork();
	if (!terminal->guard)
		guard_run((fd_close(ends[1]), ends[0]), &terminal->before);
	fd_close(ends[0]);
	if (terminal->guard < 0) {
		fd_close(ends[1]);
		return -errno;
	}
	terminal->guard_fd = ends[1];
	return 0;
}

static int raw_set(const struct terminal *terminal)
{
	struct termios raw = terminal->before;

	cfmakeraw(&raw);
	raw.c_oflag = terminal->before.c_oflag;
	return tcsetattr(STDIN_FILENO, TCSANOW, &raw) < 0 ? -errno : 0;
}

int terminal_raw(struct terminal *terminal)
{
	int r;

	if (tcgetattr(STDIN_FILENO, &terminal->before) < 0)
		return -errno;
	r = guard_start(terminal);
	if (r < 0)
		return r;
	terminal->raw = true;
	return raw_set(terminal);
}

void terminal_suspend(const struct terminal *terminal)
{
	if (terminal->raw)
		tcsetattr(STDIN_FILENO, TCSANOW, &terminal->before);
}

void terminal_continue(const struct terminal *terminal)
{
	if (terminal->raw && terminal_usable())
		raw_set(terminal);
}

void terminal_restore(struct terminal *terminal)
{
	if (!terminal->raw)
		return;
	terminal_suspend(terminal);
	if (write(terminal->guard_fd, "", 1) == 1) {
		terminal->guard_fd = fd_close(terminal->guard_fd);
		waitpid(terminal->guard, NULL, 0);
	}
	terminal->guard_fd = fd_close(terminal->guard_fd);
	terminal->raw = false;
}
