/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `corral vsock NAME connect PORT` and `… listen PORT PATH|-`: streams between a port of the
 * guest's vsock and standard input and output, or UNIX sockets on this host. In: the words after
 * the verb. Out: bytes both ways until both ends are over, and the exit status. What the VMM says
 * and gives is checked; a bounded number of streams goes on at a time, each with bounded buffers.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/local.h"
#include "mgmt/local/rundir.h"
#include "mgmt/local/socket.h"

#define LINE_SIZE         32    /* of the VMM's answers (virtio/vsock.h) */
#define ANSWER_MS         15000 /* it gives the guest ten seconds */
#define STREAMS_MAX       64
#define CHANNEL_SIZE      16384
#define CHANNEL_PIPE_SIZE 4096 /* a pipe that polls as writable takes as many without a wait */

/* One direction of a stream. */
struct channel {
	int from, to; /* borrowed */
	bool ended;   /* nothing more is to be read */
	bool over;    /* and all that was is written */
	size_t at, n;
	char data[CHANNEL_SIZE];
};

struct stream {
	int guest_fd;          /* owned, -1: the place is free */
	int host_in, host_out; /* owned, unless they are standard input and output */
	struct channel up, down;
};

struct forward {
	const char *name;       /* the VM's; borrowed, like the path */
	const char *path;       /* NULL: standard input and output, once */
	int listener;           /* owned, -1: none (any more) */
	struct stream *streams; /* owned, STREAMS_MAX */
	uint32_t n_streams;
};

static void channel_init(struct channel *channel, int from, int to)
{
	*channel = (struct channel){.from = from, .to = to};
}

/* No more goes this way; what was read and not written is lost. */
static void channel_cut(struct channel *channel)
{
	if (channel->over)
		return;
	channel->ended = channel->over = true;
	(void)shutdown(channel->from, SHUT_RD); /* not a socket: no matter */
	(void)shutdown(channel->to, SHUT_WR);
}

static void channel_read(struct channel *channel)
{
	ssize_t n = read(channel->from, channel->data, sizeof(channel->data));

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	channel->ended = n <= 0;
	channel->at = 0;
	channel->n = n > 0 ? (size_t)n : 0;
}

static void channel_write(struct channel *channel)
{
	size_t size = channel->n - channel->at;
	ssize_t n =
		send(channel->to, channel->data + channel->at, size, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n < 0 && errno == ENOTSOCK)
		n = write(channel->to, channel->data + channel->at,
			  MIN(size, (size_t)CHANNEL_PIPE_SIZE));
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		channel_cut(channel);
	else if (n > 0)
		channel->at += (size_t)n;
}

/* `events` of the side that was waited for. */
static void channel_move(struct channel *channel, uint32_t from_events, uint32_t to_events)
{
	if (channel->over)
		return;
	if (channel->at < channel->n) {
		if (to_events)
			channel_write(channel);
	} else if (!channel->ended && from_events & (POLLIN | POLLHUP | POLLERR)) {
		channel_read(channel);
	} else if (to_events & (POLLERR | POLLHUP)) {
		channel_cut(channel);
	}
	if (channel->ended && channel->at == channel->n)
		channel_cut(channel);
}

static void stream_close(struct forward *forward, struct stream *stream)
{
	stream->guest_fd = fd_close(stream->guest_fd);
	if (stream->host_in != STDIN_FILENO)
		fd_close(stream->host_in);
	forward->n_streams--;
}

static void stream_add(struct forward *forward, int guest_fd, int host_in, int host_out)
{
	struct stream *stream = forward->streams;

	while (stream->guest_fd >= 0)
		stream++; /* there is one: the caller has counted */
	stream->guest_fd = guest_fd;
	stream->host_in = host_in;
	stream->host_out = host_out;
	channel_init(&stream->up, host_in, guest_fd);
	channel_init(&stream->down, guest_fd, host_out);
	forward->n_streams++;
}

/* What of the three descriptors is worth waiting for. */
static void stream_watch(const struct stream *stream, struct pollfd fds[3])
{
	const struct channel *up = &stream->up, *down = &stream->down;

	for (int i = 0; i < 3; i++)
		fds[i] = (struct pollfd){.fd = -1};
	if (stream->guest_fd < 0)
		return;
	if (!up->over && up->at < up->n)
		fds[0].events |= POLLOUT;
	else if (!up->over)
		fds[1] = (struct pollfd){.fd = stream->host_in, .events = POLLIN};
	if (!down->over && down->at < down->n)
		fds[2] = (struct pollfd){.fd = stream->host_out, .events = POLLOUT};
	else if (!down->over)
		fds[0].events |= POLLIN;
	/* Its end is looked for only once that can be acted on: a poll ends with it each time. */
	if (fds[0].events || down->over)
		fds[0].fd = stream->guest_fd;
}

/* False when it has ended: the guest's side is all over, or both directions are. */
static bool stream_move(struct stream *stream, const struct pollfd fds[3])
{
	uint32_t guest = (uint32_t)fds[0].revents;

	channel_move(&stream->up, (uint32_t)fds[1].revents, guest & (POLLOUT | POLLERR | POLLHUP));
	channel_move(&stream->down, guest & (POLLIN | POLLERR | POLLHUP), (uint32_t)fds[2].revents);
	if (guest & (POLLHUP | POLLERR) && stream->down.over)
		return false;
	return !stream->up.over || !stream->down.over;
}

/* ---- the VMM's side ---- */

static int vsock_open(const struct rundir *dir, struct error *err)
{
	char path[RUNDIR_PATH_MAX + sizeof(RUNDIR_VSOCK) + 1];
	int fd;

	snprintf(path, sizeof(path), "%s/" RUNDIR_VSOCK, dir->path);
	fd = socket_connect(path);
	if (fd >= 0)
		return fd;
	if (!rundir_alive(dir))
		return error_set(err, -ESRCH, "\"%s\" is not running, see `corral ps`", dir->name);
	if (fd == -ENOENT)
		return error_set(err, fd, "\"%s\" has no vsock: it was started without --vsock",
				 dir->name);
	return error_set(err, fd, "cannot reach the vsock of \"%s\" at \"%s\": %s", dir->name, path,
			 strerror(-fd));
}

/* One line, and not a byte of what follows it. */
static int line_read(int fd, char line[LINE_SIZE])
{
	for (size_t n = 0; n < LINE_SIZE; n++) {
		struct pollfd ready = {.fd = fd, .events = POLLIN};
		int r = poll(&ready, 1, ANSWER_MS);
		ssize_t got;

		if (r < 0 && errno != EINTR)
			return -errno;
		if (r == 0)
			return -ETIMEDOUT;
		got = r < 0 ? -1 : recv(fd, line + n, 1, MSG_DONTWAIT);
		if (got == 0)
			return -EPIPE;
		if (got < 0) {
			n--;
			continue;
		}
		if (line[n] == '\n') {
			line[n] = '\0';
			return 0;
		}
	}
	return -EMSGSIZE;
}

static int refused(const struct rundir *dir, const char *answer, uint32_t port, struct error *err)
{
	static const struct {
		const char *word, *why;
	} reasons[] = {
		{"REFUSED", "nobody in the guest listens there"},
		{"SILENT", "the guest did not answer within 10 s"},
		{"NODRIVER",
		 "the guest has no driver for it running; Linux's is vmw_vsock_virtio_transport"},
		{"BUSY", "another client listens on it already"},
		{"FULL", "the VM has no room for more connections"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(reasons); i++)
		if (!strcmp(answer, reasons[i].word))
			return error_set(err, -ECONNREFUSED, "vsock port %u of \"%s\": %s", port,
					 dir->name, reasons[i].why);
	return error_set(err, -EBADMSG, "vsock port %u of \"%s\": the VMM answered \"%s\"", port,
			 dir->name, answer);
}

/* Says the line, waits for its OK: the descriptor is the stream then, or the listener's. */
static int vsock_ask(const struct rundir *dir, const char *verb, uint32_t port, int *ret_fd,
		     struct error *err)
{
	_cleanup_(fd_closep) int fd = vsock_open(dir, err);
	char line[LINE_SIZE];
	int n, r;

	if (fd < 0)
		return fd;
	n = snprintf(line, sizeof(line), "%s %u\n", verb, port);
	r = fd_write_full(fd, line, (size_t)n);
	if (r >= 0)
		r = line_read(fd, line);
	if (r < 0)
		return error_set(err, r, "vsock port %u of \"%s\": no answer from the VMM: %s",
				 port, dir->name, strerror(-r));
	if (strncmp(line, "OK ", 3))
		return refused(dir, line, port, err);
	*ret_fd = take_fd(fd);
	return 0;
}

/* ---- forwarding ---- */

/* Somebody in the guest connected: its stream comes with a line. False: no more will come. */
static bool listener_take(struct forward *forward)
{
	_cleanup_(fd_closep) int guest_fd = -1;
	char line[LINE_SIZE];
	size_t n_fds = 0;
	ssize_t n = fd_receive(forward->listener, line, sizeof(line), &guest_fd, 1, &n_fds);
	int host_fd = STDIN_FILENO;

	if (n == -EAGAIN || n == -EINTR)
		return true;
	if (n <= 0 || n_fds != 1 || strncmp(line, "ACCEPT ", 7))
		return false;
	if (forward->path)
		host_fd = socket_connect(forward->path);
	if (host_fd < 0) {
		local_say("cannot connect the guest to \"%s\": %s", forward->path,
			  strerror(-host_fd));
		return true;
	}
	stream_add(forward, take_fd(guest_fd), host_fd, forward->path ? host_fd : STDOUT_FILENO);
	return forward->path;
}

static void forward_turn(struct forward *forward, struct pollfd *fds)
{
	bool lost = false;

	if (fds[0].revents)
		lost = !listener_take(forward);
	for (uint32_t i = 0; i < STREAMS_MAX; i++) {
		struct stream *stream = &forward->streams[i];
		const struct pollfd *own = &fds[1 + 3 * i];

		if (stream->guest_fd >= 0 && !stream_move(stream, own))
			stream_close(forward, stream);
	}
	if (lost)
		forward->listener = fd_close(forward->listener);
}

/* Until nobody can come any more and the last has gone. -errno. */
static int forward_run(struct forward *forward)
{
	static struct pollfd fds[1 + 3 * STREAMS_MAX];

	while (forward->listener >= 0 || forward->n_streams > 0) {
		bool room = forward->n_streams < STREAMS_MAX;

		fds[0] = (struct pollfd){.fd = room ? forward->listener : -1, .events = POLLIN};
		for (uint32_t i = 0; i < STREAMS_MAX; i++)
			stream_watch(&forward->streams[i], &fds[1 + 3 * i]);
		if (poll(fds, ARRAY_SIZE(fds), -1) < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		forward_turn(forward, fds);
	}
	return 0;
}

static int forward_init(struct forward *forward, const char *name, const char *path)
{
	*forward = (struct forward){.name = name, .path = path, .listener = -1};
	forward->streams = calloc(STREAMS_MAX, sizeof(*forward->streams));
	if (!forward->streams)
		return -ENOMEM;
	for (uint32_t i = 0; i < STREAMS_MAX; i++)
		forward->streams[i].guest_fd = -1;
	return 0;
}

static int run(const struct rundir *dir, bool listens, uint32_t port, const char *path,
	       struct error *err)
{
	struct forward forward;
	int fd = -1, r;

	r = vsock_ask(dir, listens ? "LISTEN" : "CONNECT", port, &fd, err);
	if (r < 0)
		return r;
	r = forward_init(&forward, dir->name, path);
	if (r < 0) {
		fd_close(fd);
		return error_set(err, r, "cannot forward: out of memory");
	}
	if (listens)
		forward.listener = fd;
	else
		stream_add(&forward, fd, STDIN_FILENO, STDOUT_FILENO);
	r = forward_run(&forward);
	if (r < 0)
		error_set(err, r, "cannot wait for the streams: %s", strerror(-r));
	else if (listens && path)
		r = error_set(err, -EPIPE, "\"%s\" has ended, or its VMM listens no more",
			      dir->name);
	free(forward.streams);
	return r;
}

static int port_parse(const char *text, uint32_t *ret_port, struct error *err)
{
	char *end = NULL;
	unsigned long value = 0;

	if (*text >= '0' && *text <= '9')
		value = strtoul(text, &end, 10);
	if (!end || *end || value >= UINT32_MAX)
		return error_set(err, -EINVAL,
				 "\"%.32s\" is no vsock port, a number from 0 to 4294967294", text);
	*ret_port = (uint32_t)value;
	return 0;
}

int verb_vsock(int argc, char **argv)
{
	bool listens = argc == 5 && !strcmp(argv[2], "listen");
	struct error err = ERROR_NULL;
	const char *path = NULL;
	struct rundir dir;
	uint32_t port = 0;
	int r = 0;

	if (!listens && (argc != 4 || strcmp(argv[2], "connect")))
		r = error_set(&err, -EINVAL,
			      "`corral vsock NAME connect PORT`, or `corral vsock NAME listen PORT "
			      "PATH|-`");
	if (r >= 0)
		r = port_parse(argv[3], &port, &err);
	if (r < 0)
		return local_fail(&err, LOCAL_USAGE);
	if (listens && strcmp(argv[4], "-"))
		path = argv[4];
	if (rundir_open(&dir, argv[1], &err) < 0)
		return local_fail(&err, LOCAL_FAILED);
	signal(SIGPIPE, SIG_IGN);
	r = run(&dir, listens, port, path, &err);
	rundir_close(&dir);
	return r < 0 ? local_fail(&err, LOCAL_FAILED) : LOCAL_OK;
}
