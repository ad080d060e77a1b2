/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `corral run` on a terminal: raw while it runs, the escape key, the window's size, and the
 * terminal as it was after every kind of end.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "mgmt/local/test-host.h"

/* A `corral` whose session leader and terminal we play. */
struct session {
	int master;
	pid_t pid;
	size_t used;
	char seen[HOST_TEXT_MAX];
};

static struct host host;
static struct session session;

static void init(void)
{
	host_init(&host);
}

static void deinit(void)
{
	host_deinit(&host);
}

TestSuite(terminal, .init = init, .fini = deinit, .timeout = 60);

static void session_start(const char *append)
{
	struct winsize size = {.ws_row = 24, .ws_col = 80};

	session.used = 0;
	session.seen[0] = '\0';
	session.pid = forkpty(&session.master, NULL, NULL, &size);
	if (!session.pid) {
		/* A shell's background jobs, tests among them, start with these ignored. */
		signal(SIGINT, SIG_DFL);
		signal(SIGQUIT, SIG_DFL);
		execl(getenv("CORRAL"), "corral", "run", "--name", "t", "--kernel", host.kernel,
		      "--console", "stdio,device=virtio", "--append", append, NULL);
		_exit(126);
	}
	cr_assert_gt(session.pid, 0);
}

/* False: everyone has closed the terminal. */
static bool session_read(void)
{
	ssize_t n = read(session.master, session.seen + session.used,
			 sizeof(session.seen) - 1 - session.used);

	if (n > 0)
		session.used += n;
	session.seen[session.used] = '\0';
	return n > 0;
}

static void session_expect(const char *text)
{
	char *found;

	while (!(found = strstr(session.seen, text)))
		cr_assert(session_read(), "\"%s\" never came, but: %s", text, session.seen);
	/* What was seen does not count again; what came along with it does. */
	found += strlen(text);
	session.used -= found - session.seen;
	memmove(session.seen, found, session.used + 1);
}

static void session_type(const char *keys)
{
	cr_assert_eq(write(session.master, keys, strlen(keys)), (ssize_t)strlen(keys));
}

static bool session_is_raw(void)
{
	struct termios now;

	cr_assert(!tcgetattr(session.master, &now), "%s", strerror(errno));
	return !(now.c_lflag & (ECHO | ICANON | ISIG));
}

static bool session_is_sane(void)
{
	struct termios now;

	cr_assert(!tcgetattr(session.master, &now), "%s", strerror(errno));
	return (now.c_lflag & ECHO) && (now.c_lflag & ICANON) && (now.c_lflag & ISIG) &&
	       (now.c_iflag & ICRNL);
}

/* Waits until nobody has the terminal open any more, the guard included. */
static int session_end(void)
{
	int status;

	while (session_read())
		;
	cr_assert_eq(waitpid(session.pid, &status, 0), session.pid);
	cr_assert(session_is_sane(), "the terminal was left raw; seen: %s", session.seen);
	close(session.master);
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

Test(terminal, escape_key_is_announced_and_ends_the_vm)
{
	session_start("echo");
	session_expect("Ctrl-] then h for help");
	session_expect("up");
	cr_assert(session_is_raw());
	session_type("\x1dq");
	cr_assert_eq(session_end(), 7, "%s", session.seen);
}

Test(terminal, keys_reach_the_guest_and_the_escape_key_twice_is_itself)
{
	session_start("echo");
	session_expect("up");
	session_type("\x03\x1d\x1d.");
	session_expect("\x03\x1d.");
	session_type("\x1dh");
	session_expect("p: power button");
	session_type("\x1dp");
	cr_assert_eq(session_end(), 0, "%s", session.seen);
}

Test(terminal, window_size_follows)
{
	struct winsize size = {.ws_row = 40, .ws_col = 100};

	session_start("echo");
	session_expect("size 80x24");
	cr_assert(!ioctl(session.master, TIOCSWINSZ, &size));
	session_expect("size 100x40");
	session_type("\x1dp");
	cr_assert_eq(session_end(), 0);
}

Test(terminal, restored_when_the_guest_ends)
{
	session_start("stubborn");
	session_expect("up");
	kill(session.pid, SIGTERM);
	session_expect("pressed\r\n"); /* the guest; the launcher says more */
	cr_assert(session_is_raw());
	kill(session.pid, SIGTERM);
	cr_assert_eq(session_end(), 7);
}

Test(terminal, restored_when_the_vmm_is_killed)
{
	session_start("echo");
	session_expect("up");
	cr_assert(session_is_raw());
	kill(host_vmm(&host, "t"), SIGKILL);
	cr_assert_eq(session_end(), 8);
}

Test(terminal, restored_when_the_launcher_is_killed)
{
	static const int signals[] = {SIGKILL, SIGSEGV, SIGQUIT, SIGABRT};

	setenv("ASAN_OPTIONS", "handle_segv=0:handle_abort=0", true);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
		session_start("echo");
		session_expect("up");
		cr_assert(session_is_raw());
		kill(session.pid, signals[i]);
		cr_assert_eq(session_end(), 128 + signals[i]);
	}
}

Test(terminal, restored_while_the_launcher_is_stopped)
{
	int status;

	session_start("echo");
	session_expect("up");
	kill(session.pid, SIGTSTP);
	cr_assert_eq(waitpid(session.pid, &status, WUNTRACED), session.pid);
	cr_assert(WIFSTOPPED(status) && session_is_sane());
	kill(session.pid, SIGCONT);
	session_type("back\n"); /* "\n" reaches the guest only from a raw terminal as it is */
	session_expect("back");
	session_type("\x1dp");
	cr_assert_eq(session_end(), 0);
}
