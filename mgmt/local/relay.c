/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: keys, console output, signals. Out: the same bytes on the other side, and calls for what is
 * not bytes. One poll(2) loop; nothing is written where it would block, so a stopped terminal never
 * keeps a signal waiting.
 */
#include "mgmt/local/relay.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"

enum { ON_SIGNAL, ON_INPUT, ON_OUTPUT, ON_CONSOLE, ON_SIDE, ON_MAX };

static void relay_signals(sigset_t *set)
{
	static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGCHLD, SIGTSTP, SIGWINCH, SIGCONT};

	sigemptyset(set);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		sigaddset(set, signals[i]);
}

void relay_block_signals(sigset_t *ret_before)
{
	sigset_t set;

	relay_signals(&set);
	/* Never read: writing to a closed pipe or from the background then simply fails. */
	sigaddset(&set, SIGPIPE);
	sigaddset(&set, SIGTTOU);
	sigaddset(&set, SIGTTIN);
	sigprocmask(SIG_BLOCK, &set, ret_before);
}

int relay_init(struct relay *relay, int console_fd, const struct relay_ops *ops, void *data)
{
	sigset_t set;
	bool terminal = console_fd >= 0 && terminal_usable();

	relay_signals(&set);
	*relay = (struct relay){
		.ops = ops,
		.data = data,
		.console_fd = console_fd,
		.side_fd = -1,
		.signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK),
		/* A terminal that is not ours now would stop us for reading it. */
		.reading = console_fd >= 0 && (terminal || !isatty(STDIN_FILENO)),
		.printing = true,
		.terminal = TERMINAL_NULL,
	};
	if (relay->signal_fd < 0)
		return -errno;
	return terminal ? terminal_raw(&relay->terminal) : 0;
}

void relay_deinit(struct relay *relay)
{
	terminal_restore(&relay->terminal);
	relay->signal_fd = fd_close(relay->signal_fd);
	relay->console_fd = fd_close(relay->console_fd);
}

void relay_resize(struct relay *relay)
{
	struct winsize size;

	if (relay->ops->resize && !ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) && size.ws_col)
		relay->ops->resize(relay->data, size.ws_col, size.ws_row);
}

/* Keys go on to the guest, except the escape key and the one after it. */
static void input_key(struct relay *relay, char key)
{
	if (relay->terminal.raw && !relay->escaped && key == RELAY_ESCAPE) {
		relay->escaped = true;
		return;
	}
	if (relay->escaped && key != RELAY_ESCAPE)
		relay->ending |= relay->ops->key(relay->data, key);
	else
		relay->in.data[relay->in.n++] = key;
	relay->escaped = false;
}

static void input_read(struct relay *relay)
{
	char data[RELAY_BUFFER];
	ssize_t n = read(STDIN_FILENO, data, sizeof(data));

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		relay->reading = false; /* the guest goes on without it */
		return;
	}
	relay->in.at = relay->in.n = 0;
	for (ssize_t i = 0; i < n; i++)
		input_key(relay, data[i]);
}

static void input_send(struct relay *relay)
{
	struct relay_buffer *in = &relay->in;
	ssize_t n = send(relay->console_fd, in->data + in->at, in->n - in->at,
			 MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n > 0)
		in->at += n;
	else if (errno != EAGAIN && errno != EINTR)
		in->at = in->n; /* the console is gone; reading it will tell */
	if (in->at == in->n)
		in->at = in->n = 0;
}

static void output_write(struct relay *relay)
{
	struct relay_buffer *out = &relay->out;
	ssize_t n = write(STDOUT_FILENO, out->data + out->at, out->n - out->at);

	if (n > 0)
		out->at += n;
	else if (errno != EAGAIN && errno != EINTR)
		relay->printing = false; /* nobody looks any more; the guest goes on */
	if (out->at == out->n || !relay->printing)
		out->at = out->n = 0;
}

/* Fills the output buffer. False: nothing there now. */
static bool console_read(struct relay *relay)
{
	ssize_t n;

	if (relay->console_fd < 0)
		return false;
	n = recv(relay->console_fd, relay->out.data, sizeof(relay->out.data), MSG_DONTWAIT);
	if (n > 0) {
		relay->out.at = 0;
		relay->out.n = relay->printing ? n : 0;
		return true;
	}
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	relay->console_fd = fd_close(relay->console_fd);
	if (!relay->ending)
		relay->ending |= relay->ops->lost(relay->data);
	return false;
}

/* Stopped by a person: the shell gets its terminal meanwhile. */
static void signal_stop(struct relay *relay)
{
	terminal_suspend(&relay->terminal);
	raise(SIGSTOP);
	terminal_continue(&relay->terminal);
}

static void signal_one(struct relay *relay, int signal)
{
	if (signal == SIGWINCH)
		relay_resize(relay);
	else if (signal == SIGTSTP)
		signal_stop(relay);
	else if (signal == SIGCONT)
		terminal_continue(&relay->terminal);
	else if (relay->ending && signal != SIGCHLD)
		relay->printing = false; /* asked to go, again: the rest of the output is lost */
	else
		relay->ending |= relay->ops->signal(relay->data, signal);
}

static void signals_read(struct relay *relay)
{
	struct signalfd_siginfo info;

	while (read(relay->signal_fd, &info, sizeof(info)) == sizeof(info))
		signal_one(relay, info.ssi_signo);
}

static void relay_watch(const struct relay *relay, struct pollfd fds[ON_MAX])
{
	bool forward = !relay->ending && relay->in.n && relay->console_fd >= 0;
	bool print = !relay->ending && !relay->out.n && relay->console_fd >= 0;

	for (size_t i = 0; i < ON_MAX; i++)
		fds[i] = (struct pollfd){.fd = -1, .events = POLLIN};
	fds[ON_SIGNAL].fd = relay->signal_fd;
	if (!relay->ending && relay->reading && !relay->in.n)
		fds[ON_INPUT].fd = STDIN_FILENO;
	if (relay->out.n)
		fds[ON_OUTPUT] = (struct pollfd){.fd = STDOUT_FILENO, .events = POLLOUT};
	if (forward || print)
		fds[ON_CONSOLE] =
			(struct pollfd){.fd = relay->console_fd,
					.events = (print ? POLLIN : 0) | (forward ? POLLOUT : 0)};
	if (!relay->ending)
		fds[ON_SIDE].fd = relay->side_fd;
}

static void relay_turn(struct relay *relay)
{
	struct pollfd fds[ON_MAX];

	relay_watch(relay, fds);
	if (poll(fds, ON_MAX, -1) < 0)
		return;
	if (fds[ON_OUTPUT].revents)
		output_write(relay);
	if (fds[ON_CONSOLE].revents & POLLOUT)
		input_send(relay);
	if ((fds[ON_CONSOLE].revents & (POLLIN | POLLHUP | POLLERR)) && !relay->out.n)
		console_read(relay);
	if (fds[ON_INPUT].revents)
		input_read(relay);
	if (fds[ON_SIDE].revents && !relay->ops->side(relay->data))
		relay->side_fd = -1;
	if (fds[ON_SIGNAL].revents)
		signals_read(relay);
	if (relay->console_fd < 0)
		relay->in.at = relay->in.n = 0;
}

void relay_run(struct relay *relay)
{
	while (!relay->ending)
		relay_turn(relay);
	/* What the guest said last is still in the socket. */
	while (relay->printing && (relay->out.n || console_read(relay)))
		relay_turn(relay);
}
