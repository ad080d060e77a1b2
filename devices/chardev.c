/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host's end of a console. Writers come from any thread and only touch what the lock guards;
 * watching, reading and closing the peer are the loop thread's alone, which a writer that leaves
 * work behind asks by a message. The consumer is called without the lock, because it holds its own
 * when it writes.
 */
#include "devices/chardev.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"

#define HUNG_UP_NS     500000000u /* between looks at a pty that nobody has open */
#define HALF_SHUT_NS   20000000u  /* between looks at a socket of which one direction is shut */
#define LAST_WORDS_MS  1000       /* for a slow peer, when the console ends */
#define LOG_CUT_NOTICE "[... earlier output dropped]\n"

static enum chardev_peer kind_of(int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0 || S_ISREG(st.st_mode))
		return CHARDEV_FILE;
	if (S_ISCHR(st.st_mode) && (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR)
		return CHARDEV_TTY;
	return S_ISSOCK(st.st_mode) ? CHARDEV_SOCKET : CHARDEV_PIPE;
}

/*
 * A socket is asked not to wait each time: O_NONBLOCK lies in the open file description, and
 * whoever passed the socket still has that.
 */
static ssize_t peer_put(const struct chardev *chardev, const uint8_t *data, size_t size)
{
	if (chardev->kind == CHARDEV_SOCKET)
		return send(chardev->peer, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
	return write(chardev->peer, data, size);
}

static ssize_t peer_get(const struct chardev *chardev, uint8_t *data, size_t size)
{
	struct iovec iov = {data, size};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

	if (chardev->kind == CHARDEV_SOCKET)
		return recvmsg(chardev->peer, &message, MSG_DONTWAIT);
	return read(chardev->peer, data, size);
}

/*
 * Hands bytes to the peer as far as it takes them now; returns how many. When it is gone, `lost`
 * says so. A file that cannot be written (disk full) loses the bytes, not its place. Lock held.
 */
static size_t peer_write(struct chardev *chardev, const uint8_t *data, size_t size)
{
	size_t done = 0;

	while (done < size) {
		ssize_t n = peer_put(chardev, data + done, size - done);

		if (n > 0) {
			done += (size_t)n;
		} else if (n < 0 && errno == EINTR) {
			continue;
		} else if (chardev->kind == CHARDEV_FILE) {
			chardev->bytes_dropped += size - done;
			return size;
		} else {
			/* A pty that nobody has open is not lost. */
			chardev->lost = n < 0 && errno != EAGAIN && errno != EIO;
			return done;
		}
	}
	return done;
}

/* Lock held. */
static void flush(struct chardev *chardev)
{
	const uint8_t *data;
	uint32_t left;

	while (chardev->peer >= 0 && !chardev->lost &&
	       (left = byte_ring_peek(&chardev->backlog, &data)) > 0) {
		size_t done = peer_write(chardev, data, left);

		byte_ring_skip(&chardev->backlog, (uint32_t)done);
		if (done < left)
			return;
	}
}

/* Lock held. */
static void ask_loop(struct chardev *chardev)
{
	if (!chardev->posted && (chardev->lost || byte_ring_used(&chardev->backlog) > 0 ||
				 chardev->log_bytes > CHARDEV_LOG_MAX)) {
		chardev->posted = true;
		loop_post(&chardev->source, 0);
	}
}

static void to_peer(struct chardev *chardev, const uint8_t *data, size_t size)
{
	size_t done = 0;

	if (chardev->peer < 0 || chardev->lost)
		return;
	if (byte_ring_used(&chardev->backlog) == 0)
		done = peer_write(chardev, data, size);
	chardev->bytes_dropped += byte_ring_put(&chardev->backlog, data + done, size - done);
}

/* A log that cannot be written is no reason to disturb the guest: the bytes are missing from it. */
static void to_log(struct chardev *chardev, const void *data, size_t size)
{
	if (chardev->log_fd >= 0 && fd_write_full(chardev->log_fd, data, size) == 0)
		chardev->log_bytes += size;
}

/* The loop's to do. What a writer adds until then is cut, too. Lock held. */
static void log_trim(struct chardev *chardev)
{
	if (chardev->log_bytes <= CHARDEV_LOG_MAX)
		return;
	chardev->log_bytes = 0;
	if (ftruncate(chardev->log_fd, 0) == 0)
		to_log(chardev, LOG_CUT_NOTICE, strlen(LOG_CUT_NOTICE));
}

void chardev_write(struct chardev *chardev, const void *data, size_t size)
{
	if (size == 0)
		return;
	pthread_mutex_lock(&chardev->lock);
	chardev->bytes_out += size;
	to_peer(chardev, data, size);
	if (!chardev->channel) {
		to_log(chardev, data, size);
		byte_ring_put(&chardev->history, data, size);
		panic_watch_feed(&chardev->panic, data, size);
	}
	ask_loop(chardev);
	pthread_mutex_unlock(&chardev->lock);
}

bool chardev_takes(struct chardev *chardev)
{
	if (!chardev->channel || chardev->peer < 0)
		return true;
	pthread_mutex_lock(&chardev->lock);
	chardev->starved = !chardev->lost && byte_ring_used(&chardev->backlog) > 0;
	pthread_mutex_unlock(&chardev->lock);
	return !chardev->starved;
}

void chardev_ready(struct chardev *chardev)
{
	if (atomic_load(&chardev->throttled) && atomic_exchange(&chardev->throttled, false))
		loop_post(&chardev->source, 0);
}

static uint32_t events_wanted(struct chardev *chardev)
{
	uint32_t wanted = 0;

	if (chardev->peer < 0 || chardev->kind == CHARDEV_FILE || chardev->hung_up)
		return 0;
	if (chardev->consumer && !chardev->input_ended && !atomic_load(&chardev->throttled))
		wanted |= POLLIN;
	pthread_mutex_lock(&chardev->lock);
	if (byte_ring_used(&chardev->backlog) > 0)
		wanted |= POLLOUT;
	pthread_mutex_unlock(&chardev->lock);
	/* Whoever comes next must find the place free. */
	if (chardev->channel && chardev->kind == CHARDEV_SOCKET)
		wanted |= POLLRDHUP;
	return wanted;
}

/* Waits for what there is to wait for now. */
static void watch(struct chardev *chardev)
{
	uint32_t wanted = events_wanted(chardev);

	if (wanted && chardev->half_shut && !(wanted & POLLIN)) {
		loop_timer(&chardev->source, loop_now(chardev->source.loop) + HALF_SHUT_NS);
		wanted = 0;
	}
	if (wanted == chardev->watched)
		return;
	if (chardev->watched)
		loop_unwatch(&chardev->source);
	chardev->watched = 0;
	if (wanted && loop_watch(&chardev->source, chardev->peer, wanted) == 0)
		chardev->watched = wanted;
}

static void detach(struct chardev *chardev)
{
	if (chardev->watched)
		loop_unwatch(&chardev->source);
	chardev->watched = 0;
	chardev->hung_up = chardev->half_shut = false;
	chardev->input_ended = false;
	pthread_mutex_lock(&chardev->lock);
	/* The ring holds a file that it has watched until a later turn: nobody is to wait for that.
	 */
	if (chardev->kind == CHARDEV_SOCKET)
		(void)shutdown(chardev->peer, SHUT_RDWR);
	chardev->peer = fd_close(chardev->peer);
	chardev->kind = CHARDEV_NONE;
	chardev->lost = false;
	byte_ring_skip(&chardev->backlog, byte_ring_used(&chardev->backlog));
	pthread_mutex_unlock(&chardev->lock);
}

static void hang_up(struct chardev *chardev)
{
	chardev->hung_up = true;
	loop_timer(&chardev->source, loop_now(chardev->source.loop) + HUNG_UP_NS);
}

static ssize_t peer_read(struct chardev *chardev, uint8_t *data, size_t size)
{
	ssize_t n;

	do {
		n = peer_get(chardev, data, size);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

/* A socket whose other side only stopped sending may still want to see output. */
static void input_failed(struct chardev *chardev, ssize_t n, uint32_t events)
{
	if (n == -EAGAIN)
		return;
	if (chardev->kind == CHARDEV_TTY && n == -EIO)
		hang_up(chardev);
	else if (n == 0 && !(events & (POLLHUP | POLLERR)))
		chardev->input_ended = true;
	else
		detach(chardev);
}

static void take_input(struct chardev *chardev, uint32_t events)
{
	uint8_t buffer[4096];
	size_t room;
	ssize_t n;

	/* In this order: a consumer that gets room after it was asked finds the mark. */
	atomic_store(&chardev->throttled, true);
	room = chardev->consumer->room(chardev->consumer);
	if (room == 0)
		return;
	atomic_store(&chardev->throttled, false);
	n = peer_read(chardev, buffer, MIN(room, sizeof(buffer)));
	if (n <= 0) {
		input_failed(chardev, n, events);
		return;
	}
	pthread_mutex_lock(&chardev->lock);
	chardev->bytes_in += (uint64_t)n;
	pthread_mutex_unlock(&chardev->lock);
	chardev->consumer->input(chardev->consumer, buffer, (size_t)n);
}

/* What a writer left behind. Says whether the peer is lost. */
static bool settle(struct chardev *chardev)
{
	bool lost;

	pthread_mutex_lock(&chardev->lock);
	chardev->posted = false;
	flush(chardev);
	log_trim(chardev);
	lost = chardev->lost;
	pthread_mutex_unlock(&chardev->lock);
	return lost;
}

static void peer_ready(struct chardev *chardev, uint32_t events)
{
	if (chardev->watched & POLLIN && events & (POLLIN | POLLHUP | POLLERR))
		take_input(chardev, events);
	else if (events & (POLLHUP | POLLERR) && chardev->kind == CHARDEV_TTY)
		hang_up(chardev);
	else if (events & (POLLHUP | POLLERR))
		detach(chardev);
	else if (events & POLLRDHUP)
		chardev->half_shut = true;
}

/* By the clock. What has come in between is in the socket's state. */
static void look(struct chardev *chardev)
{
	struct pollfd peer = {.fd = chardev->peer};

	chardev->hung_up = false;
	if (chardev->half_shut && poll(&peer, 1, 0) > 0 && peer.revents & (POLLHUP | POLLERR))
		detach(chardev);
}

static void chardev_on_event(struct loop_source *source, const struct loop_event *event)
{
	struct chardev *chardev = container_of(source, struct chardev, source);

	if (event->kind == LOOP_READY && chardev->watched)
		peer_ready(chardev, (uint32_t)event->result);
	else if (event->kind == LOOP_TIMER)
		look(chardev);
	if (settle(chardev))
		detach(chardev);
	if (chardev->starved && chardev_takes(chardev)) {
		chardev->starved = false;
		chardev->consumer->drained(chardev->consumer);
	}
	watch(chardev);
}

/* What was printed before, from the start of a line on if some of it is gone. */
static void replay(struct chardev *chardev)
{
	struct byte_ring history = chardev->history;
	bool cut = history.head != byte_ring_used(&history);
	const uint8_t *data;
	uint32_t n;

	while ((n = byte_ring_peek(&history, &data)) > 0) {
		const uint8_t *line = cut ? memchr(data, '\n', n) : NULL;

		byte_ring_skip(&history, n);
		if (line) {
			n -= (uint32_t)(line + 1 - data);
			data = line + 1;
			cut = false;
		}
		if (!cut)
			byte_ring_put(&chardev->backlog, data, n);
	}
}

void chardev_attach(struct chardev *chardev, int fd)
{
	enum chardev_peer kind = kind_of(fd);
	int flags = fcntl(fd, F_GETFL);

	detach(chardev);
	chardev->input_ended = (flags & O_ACCMODE) == O_WRONLY;
	if (kind != CHARDEV_FILE)
		(void)fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	pthread_mutex_lock(&chardev->lock);
	chardev->peer = fd;
	chardev->kind = kind;
	if (!chardev->channel)
		replay(chardev);
	flush(chardev);
	/* Watching begins on the loop's thread, which may not run yet. */
	chardev->posted = true;
	loop_post(&chardev->source, 0);
	pthread_mutex_unlock(&chardev->lock);
}

bool chardev_panic_text(struct chardev *chardev, char text[CHARDEV_PANIC])
{
	bool seen;

	pthread_mutex_lock(&chardev->lock);
	seen = panic_watch_text(&chardev->panic, text);
	pthread_mutex_unlock(&chardev->lock);
	return seen;
}

void chardev_panic_forget(struct chardev *chardev)
{
	pthread_mutex_lock(&chardev->lock);
	chardev->panic = (struct panic_watch){0};
	pthread_mutex_unlock(&chardev->lock);
}

void chardev_counters(struct chardev *chardev, json_t *into)
{
	pthread_mutex_lock(&chardev->lock);
	json_object_set_new(into, "bytes-in", json_integer((json_int_t)chardev->bytes_in));
	json_object_set_new(into, "bytes-out", json_integer((json_int_t)chardev->bytes_out));
	json_object_set_new(into, "bytes-dropped",
			    json_integer((json_int_t)chardev->bytes_dropped));
	pthread_mutex_unlock(&chardev->lock);
}

/* The last lines of a guest are those that matter: a slow peer gets a moment to take them. */
static void drain(struct chardev *chardev)
{
	uint64_t deadline = clock_ms() + LAST_WORDS_MS;

	for (;;) {
		struct pollfd peer = {.fd = chardev->peer, .events = POLLOUT};
		uint64_t now = clock_ms();

		flush(chardev);
		if (chardev->peer < 0 || chardev->lost || byte_ring_used(&chardev->backlog) == 0 ||
		    now >= deadline)
			return;
		if (poll(&peer, 1, (int)(deadline - now)) < 0 || peer.revents != POLLOUT)
			return;
	}
}

static int init(struct chardev *chardev, struct loop *loop, bool channel, int log_fd,
		struct error *err)
{
	struct stat st;
	int r;

	*chardev = (struct chardev){.source.on_event = chardev_on_event,
				    .lock = PTHREAD_MUTEX_INITIALIZER,
				    .channel = channel,
				    .peer = -1,
				    .log_fd = log_fd};
	if (log_fd >= 0 && fstat(log_fd, &st) == 0)
		chardev->log_bytes = (uint64_t)st.st_size;
	r = byte_ring_init(&chardev->backlog, CHARDEV_BACKLOG);
	if (r == 0 && !channel)
		r = byte_ring_init(&chardev->history, CHARDEV_HISTORY);
	if (r == 0)
		r = loop_add(loop, &chardev->source);
	if (r == 0)
		return 0;
	chardev_deinit(chardev);
	return error_set(err, r, "cannot set up the console: %s", strerror(-r));
}

int chardev_init(struct chardev *chardev, struct loop *loop, int log_fd, struct error *err)
{
	return init(chardev, loop, false, log_fd, err);
}

int chardev_init_channel(struct chardev *chardev, struct loop *loop, struct error *err)
{
	return init(chardev, loop, true, -1, err);
}

void chardev_deinit(struct chardev *chardev)
{
	if (chardev->backlog.data)
		drain(chardev);
	if (chardev->source.loop)
		loop_remove(&chardev->source);
	chardev->peer = fd_close(chardev->peer);
	chardev->log_fd = fd_close(chardev->log_fd);
	byte_ring_deinit(&chardev->backlog);
	byte_ring_deinit(&chardev->history);
	pthread_mutex_destroy(&chardev->lock);
}
