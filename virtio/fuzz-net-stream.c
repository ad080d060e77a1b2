/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzes the stream port. The bytes are what the other end sends, how it is cut, when it reads and
 * goes, and what the card does meanwhile. Whatever comes: the card gets exactly the frames that a
 * plain reading of all bytes finds, in order; the first length that makes no sense, and nothing
 * else but an end, takes the link down; each frame sent comes back once, and what the other end
 * reads are whole frames in order. No wait is left: a bounded number of turns brings all to rest.
 */
#include <arpa/inet.h>
#include <assert.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cursor.h"
#include "virtio/net-port.h"

#define FED_MAX    (1 << 18)
#define SENDS_MAX  300
#define LENGTH_MIN 14
#define LENGTH_MAX (NET_FRAME_MAX - NET_HEADER_SIZE)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum action {
	FEED_RAW,
	FEED_FRAME,
	FEED_LARGE,
	FEED_LENGTH,
	TURN,
	ALLOW,
	READY,
	SEND,
	FLUSH,
	PEER_READS,
	STOP,
	START,
	HANG_UP,
	N_ACTIONS,
};

static struct loop *loop;
static struct net_port *port;
static int peer;

static uint8_t fed[FED_MAX]; /* what the port may have read */
static uint32_t n_fed, at;   /* `at`: where the next frame that the card gets begins */
static uint32_t may_receive;
static bool running, down, hung_up;

static uint8_t out_bytes[LENGTH_MAX];
static uint8_t out_header[NET_HEADER_SIZE];
static struct iovec out_iovs[SENDS_MAX][3];
static uint32_t out_sizes[SENDS_MAX];
static bool is_out[SENDS_MAX];
static int results[SENDS_MAX];
static uint32_t n_sends, n_returned;
static uint8_t got[SENDS_MAX * (4 + LENGTH_MAX)];
static uint32_t n_got;

static void on_sent(struct net_client *client _unused_, uint32_t arg, int result)
{
	assert(arg < n_sends && is_out[arg] && result <= 0);
	is_out[arg] = false;
	results[arg] = result;
	n_returned++;
}

static void on_room(struct net_client *client _unused_)
{
}

static uint32_t on_lend(struct net_client *client _unused_, struct iovec *iov _unused_,
			uint32_t iov_max _unused_)
{
	assert(!"a stream lends nothing");
	return 0;
}

static void on_filled(struct net_client *client _unused_, uint32_t size _unused_)
{
	assert(!"a stream lends nothing");
}

/* True: a whole frame begins at `from`. */
static bool next_length(uint32_t from, uint32_t *ret_length)
{
	uint32_t length;

	if (n_fed - from < 4)
		return false;
	memcpy(&length, fed + from, 4);
	*ret_length = ntohl(length);
	return true;
}

static bool on_receive(struct net_client *client _unused_, const void *frame, uint32_t size)
{
	static const uint8_t no_header[NET_HEADER_SIZE];
	uint32_t length;

	assert(running && !down);
	assert(next_length(at, &length) && length >= LENGTH_MIN && length <= LENGTH_MAX);
	assert(size == length + NET_HEADER_SIZE && n_fed - at - 4 >= length);
	assert(!memcmp(frame, no_header, NET_HEADER_SIZE));
	assert(!memcmp((const uint8_t *)frame + NET_HEADER_SIZE, fed + at + 4, length));
	if (!may_receive)
		return false;
	may_receive--;
	at += 4 + length;
	return true;
}

static void on_batch(struct net_client *client _unused_)
{
}

static void on_link(struct net_client *client _unused_, bool up, const char *why)
{
	uint32_t length;

	assert(!up && !down && *why);
	assert(hung_up ||
	       (next_length(at, &length) && (length < LENGTH_MIN || length > LENGTH_MAX)));
	down = true;
}

static const struct net_client_ops card_ops = {
	.sent = on_sent,
	.room = on_room,
	.lend = on_lend,
	.filled = on_filled,
	.receive = on_receive,
	.batch = on_batch,
	.link = on_link,
};
static struct net_client card = {&card_ops};

static void turn(void)
{
	assert(loop_turn(loop, 0) == 0);
}

static void feed(const void *data, uint32_t size)
{
	ssize_t n;

	if (hung_up || size > FED_MAX - n_fed)
		return;
	n = write(peer, data, size);
	if (n <= 0)
		return;
	memcpy(fed + n_fed, data, (size_t)n);
	n_fed += (uint32_t)n;
}

static void feed_frame(uint32_t size, uint8_t seed)
{
	static uint8_t frame[4 + LENGTH_MAX];
	uint32_t length = htonl(size);

	memcpy(frame, &length, 4);
	memset(frame + 4, seed, size);
	feed(frame, 4 + size);
}

/* The number of a frame is in its first bytes, which are shared: so it is its size. */
static void send_frame(uint32_t size)
{
	struct iovec *iov = out_iovs[n_sends];
	const uint32_t cut = size / 3;

	if (n_sends == SENDS_MAX)
		return;
	iov[0] = (struct iovec){out_header, NET_HEADER_SIZE};
	iov[1] = (struct iovec){out_bytes, cut};
	iov[2] = (struct iovec){out_bytes + cut, size - cut};
	if (port->ops->send(port, iov, 3, NET_HEADER_SIZE + size, n_sends) < 0)
		return;
	out_sizes[n_sends] = size;
	is_out[n_sends++] = true;
}

static void peer_reads(uint32_t size)
{
	ssize_t n;

	if (hung_up)
		return;
	n = read(peer, got + n_got, MIN(size, (uint32_t)sizeof(got) - n_got));
	n_got += n > 0 ? (uint32_t)n : 0;
}

/* Frames that came back as sent, in order; the last may be in parts, and not said to be sent. */
static void check_got(bool all)
{
	uint32_t i = 0, from = 0;

	while (from < n_got) {
		uint32_t length = 0, there = n_got - from;

		while (i < n_sends && !is_out[i] && results[i] < 0)
			i++;
		assert(i < n_sends);
		if (there < 4)
			break;
		memcpy(&length, got + from, 4);
		length = ntohl(length);
		assert(length == out_sizes[i]);
		if (there - 4 < length)
			break;
		assert(!memcmp(got + from + 4, out_bytes, length));
		from += 4 + length;
		i++;
	}
	if (!all)
		return;
	assert(from == n_got);
	for (; i < n_sends; i++)
		assert(results[i] < 0);
}

static void set_up(void)
{
	const struct loop_options options = {.without_uring = true, .name = "fuzz"};
	int ends[2];

	signal(SIGPIPE, SIG_IGN);
	for (uint32_t i = 0; i < sizeof(out_bytes); i++)
		out_bytes[i] = (uint8_t)(i * 31);
	assert(loop_new(&loop, &options, NULL) == 0 && loop_enable(loop) == 0);
	assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
	peer = ends[1];
	assert(net_stream_new(&port, loop, ends[0], false, NULL) == 0);
	port->client = &card;
	n_fed = at = may_receive = n_sends = n_returned = n_got = 0;
	down = hung_up = false;
	running = true;
	port->ops->start(port, 0);
}

/* All is allowed and read: everything comes to an end. */
static void settle(void)
{
	uint32_t length = 0, last;
	bool lies;

	may_receive = UINT32_MAX;
	if (!running)
		port->ops->start(port, 0);
	running = true;
	port->ops->ready(port);
	port->ops->flush(port);
	do {
		last = n_got + n_returned + at;
		for (int i = 0; i < 8; i++) {
			turn();
			peer_reads(1 << 20);
		}
	} while (last != n_got + n_returned + at);
	assert(n_returned == n_sends);
	lies = next_length(at, &length) && (length < LENGTH_MIN || length > LENGTH_MAX);
	assert(down == (hung_up || lies));
	if (!down)
		assert(n_fed - at < 4 || n_fed - at - 4 < length);
	if (!down)
		check_got(true);
}

static void act(struct cursor *cursor)
{
	const enum action action = cursor_get_u8(cursor) % N_ACTIONS;
	const uint32_t n = cursor_get_u8(cursor);
	uint32_t length;

	switch (action) {
	case FEED_RAW:
		length = (uint32_t)MIN((size_t)n, cursor_left(cursor));
		feed(cursor_get_view(cursor, length), length);
		break;
	case FEED_FRAME:
		feed_frame(LENGTH_MIN + n, (uint8_t)n);
		break;
	case FEED_LARGE:
		feed_frame(LENGTH_MAX - n * 64, (uint8_t)n);
		break;
	case FEED_LENGTH:
		length = cursor_get_u32(cursor);
		feed(&length, 1 + n % 4);
		break;
	case TURN:
		turn();
		break;
	case ALLOW:
		may_receive = n;
		break;
	case READY:
		port->ops->ready(port);
		break;
	case SEND:
		send_frame(n & 1 ? LENGTH_MAX - n : LENGTH_MIN + n);
		break;
	case FLUSH:
		port->ops->flush(port);
		break;
	case PEER_READS:
		peer_reads(n * 256 + 1);
		/* Once down, a frame that was out in part has failed. */
		if (!down)
			check_got(false);
		break;
	case STOP:
		running = false;
		port->ops->stop(port);
		break;
	case START:
		if (!running)
			port->ops->start(port, 0);
		running = true;
		break;
	case HANG_UP:
		if (n < 32 && !hung_up) {
			hung_up = true;
			close(peer);
		}
		break;
	case N_ACTIONS:
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct cursor cursor = cursor_reader(data, size);

	set_up();
	while (cursor_left(&cursor) > 0)
		act(&cursor);
	settle();
	port->ops->free(port);
	loop_free(loop);
	if (!hung_up)
		close(peer);
	return 0;
}
