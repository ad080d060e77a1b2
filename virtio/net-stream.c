/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stream socket as a port, as passt and QEMU's -netdev stream speak it: before each frame its
 * length, 32 bits big-endian, and no virtio header, so no offloads. On the pair's loop. Nothing
 * migrates.
 *
 * Out, the frames of a batch are written from the guest's pages, as many at once as the other end
 * is sure to find whole; one write is under way at a time, and a frame that was sent in part is
 * finished before anything else, even over a stop. In, large reads go into a buffer of ours, and
 * the frames are handed over where they lie. The other end is not trusted: at the first length that
 * makes no sense the link is down for good.
 */
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/io.h"
#include "virtio/net-header.h"

#define LENGTH_SIZE 4
#define LENGTH_MIN  (NET_FRAME_MIN - NET_HEADER_SIZE)
#define LENGTH_MAX  (NET_FRAME_MAX - NET_HEADER_SIZE)
/* The header of a frame is put over its length and what was before it. */
#define HEADROOM    (NET_HEADER_SIZE - LENGTH_SIZE)
#define BUFFER_SIZE (256 * 1024)
#define FRAMES_MAX  256 /* on their way out */
#define BUDGET      256 /* frames handed over in one go */
#define NO_FILE     UINT32_MAX
/*
 * Bytes of a write that is more than one frame. The kernel puts what is written into buffers of 32
 * KiB and what a page has over, and between two of them the other end may read, or the socket be
 * full. Debian 12's passt loses frames when the rest of one comes in two buffers, or when the last
 * four bytes or fewer of a read are the beginning of one. So only a frame that is alone in its
 * write is ever cut, once.
 */
#define WRITE_MAX (32 * 1024)

struct out_frame {
	const struct iovec *iov; /* borrowed; without the header */
	uint32_t n_iov;
	uint32_t size; /* of all that goes out for it, the length too */
	uint32_t arg;
	/* What goes out before the pieces, and in place of their first `n_head` bytes: those were
	 * judged, and the guest may write into its own meanwhile. */
	struct out_head {
		uint32_t length; /* big-endian */
		uint8_t bytes[NET_HEAD_SIZE];
	} head;
	uint32_t n_head;
};
_Static_assert(offsetof(struct out_head, bytes) == LENGTH_SIZE, "they go out as one piece");

struct stream {
	struct net_port port;
	struct loop_source in;  /* readable, reads; batch calls of the card */
	struct loop_source out; /* writable, writes, room */
	struct io *io;          /* owned */
	uint32_t file;
	bool running; /* between start and stop */
	bool gone;    /* the other end, for good */
	bool host;    /* the guest may reach the host's loopback; fixed */

	uint8_t *buffer;     /* owned; BUFFER_SIZE */
	uint32_t start, end; /* of what was read and not handed over yet */
	uint32_t length;     /* of the frame at `start`, whose header is made; 0: not looked at */
	bool reading;        /* a read is under way */
	bool blocked;        /* the card takes no more until `ready` */
	bool go_on;          /* what a batch call of `in` is for */
	struct iovec in_iov;

	struct out_frame frames[FRAMES_MAX]; /* a ring */
	uint32_t first, n_frames;
	uint32_t done; /* bytes of the first that are out */
	uint8_t *tail; /* owned; the rest of a frame that was taken back */
	uint32_t tail_start, tail_end;
	bool writing;   /* a write is under way */
	bool want_room; /* the card was told -EBUSY */
	struct iovec iov[IOV_MAX];
};

static struct stream *to_stream(struct net_port *port)
{
	return container_of(port, struct stream, port);
}

static struct out_frame *frame_at(struct stream *stream, uint32_t i)
{
	return &stream->frames[(stream->first + i) % FRAMES_MAX];
}

static void frame_gone(struct stream *stream, int result)
{
	struct net_client *client = stream->port.client;
	const uint32_t arg = frame_at(stream, 0)->arg;

	stream->first = (stream->first + 1) % FRAMES_MAX;
	stream->n_frames--;
	stream->done = 0;
	loop_batch(&stream->in);
	if (stream->want_room)
		loop_batch(&stream->out);
	client->ops->sent(client, arg, result);
}

/* All that is queued, unless the kernel is at it. `n`: those there at the call, no others. */
static void take_back(struct stream *stream, int result)
{
	if (stream->writing)
		return;
	for (uint32_t n = stream->n_frames; n; n--)
		frame_gone(stream, result);
}

/* The descriptor stays open until `free`: closing is not this thread's to do. */
static void lose(struct stream *stream, const char *why)
{
	struct net_client *client = stream->port.client;

	if (stream->gone)
		return;
	stream->gone = true;
	stream->start = stream->end = HEADROOM;
	stream->length = 0;
	loop_unwatch(&stream->in);
	loop_unwatch(&stream->out);
	loop_batch(&stream->out);
	client->ops->link(client, false, why);
}

static void lose_for(struct stream *stream, const char *what, int r)
{
	char why[80];

	snprintf(why, sizeof(why), "%s: %s", what, strerror(-r));
	lose(stream, why);
}

/* Adds what is left of a row of pieces after `skip` bytes. */
static uint32_t add_pieces(struct stream *stream, uint32_t n, const struct iovec *iov,
			   uint32_t n_iov, uint32_t *skip)
{
	for (uint32_t i = 0; i < n_iov; i++) {
		const size_t size = iov[i].iov_len;
		const size_t from = MIN(size, (size_t)*skip);

		*skip -= (uint32_t)from;
		if (from < size)
			stream->iov[n++] =
				(struct iovec){(uint8_t *)iov[i].iov_base + from, size - from};
	}
	return n;
}

static uint32_t add_frame(struct stream *stream, uint32_t n, struct out_frame *frame,
			  uint32_t *skip)
{
	const struct iovec head = {&frame->head, LENGTH_SIZE + frame->n_head};

	n = add_pieces(stream, n, &head, 1, skip);
	*skip += frame->n_head;
	return add_pieces(stream, n, frame->iov, frame->n_iov, skip);
}

static uint32_t gather(struct stream *stream)
{
	uint32_t n = 0, skip = stream->done, size = stream->tail_end - stream->tail_start;

	if (size)
		stream->iov[n++] = (struct iovec){stream->tail + stream->tail_start, size};
	for (uint32_t i = 0; i < stream->n_frames; i++) {
		struct out_frame *frame = frame_at(stream, i);

		size += frame->size - skip;
		if (n && (size > WRITE_MAX || frame->n_iov + 1 > IOV_MAX - n))
			break;
		n = add_frame(stream, n, frame, &skip);
	}
	return n;
}

static void write_out(struct stream *stream)
{
	struct io_op op = {.kind = IO_WRITE, .iov = stream->iov};

	if (stream->gone) {
		take_back(stream, -EPIPE);
		return;
	}
	if (stream->writing || stream->out.watching)
		return;
	op.n_iov = gather(stream);
	/* -EBUSY: a batch call follows. */
	if (!op.n_iov || io_submit(stream->io, stream->file, &op, &stream->out, 0) < 0)
		return;
	stream->writing = true;
	stream->port.n_write_calls++;
}

static void wrote(struct stream *stream, uint32_t size)
{
	uint32_t n = MIN(size, stream->tail_end - stream->tail_start);

	stream->tail_start += n;
	for (size -= n; size; size -= n) {
		assert(stream->n_frames); /* the kernel took no more than it was given */
		n = MIN(size, frame_at(stream, 0)->size - stream->done);
		stream->done += n;
		if (stream->done < frame_at(stream, 0)->size)
			return;
		stream->port.n_writes++;
		frame_gone(stream, 0);
	}
}

/* The rest of a frame goes out of a copy: its pieces are wanted back, and the other end wants the
 * rest. */
static void keep_tail(struct stream *stream)
{
	uint32_t skip = stream->done, n;

	if (!stream->done)
		return;
	n = add_frame(stream, 0, frame_at(stream, 0), &skip);
	stream->tail_start = stream->tail_end = 0;
	for (uint32_t i = 0; i < n; i++) {
		memcpy(stream->tail + stream->tail_end, stream->iov[i].iov_base,
		       stream->iov[i].iov_len);
		stream->tail_end += (uint32_t)stream->iov[i].iov_len;
	}
	stream->port.n_writes++;
	frame_gone(stream, 0);
}

static void give_back(struct stream *stream)
{
	if (stream->writing)
		return;
	keep_tail(stream);
	take_back(stream, -ECANCELED);
	write_out(stream);
}

static void write_refused(struct stream *stream, int result)
{
	if (result != -EAGAIN && result != -EINTR)
		lose_for(stream, "the other end of its stream does not take frames", result);
	else if (!stream->gone && loop_watch(&stream->out, stream->port.fd, POLLOUT) < 0)
		lose(stream, "the host has no room to watch its stream");
}

static void write_ended(struct stream *stream, int result)
{
	/* Still under way as far as `sent` goes, which may flush. */
	if (result > 0)
		wrote(stream, (uint32_t)result);
	stream->writing = false;
	if (result <= 0)
		write_refused(stream, result);
	if (stream->running)
		write_out(stream);
	else
		give_back(stream);
}

static void on_out(struct loop_source *source, const struct loop_event *event)
{
	struct stream *stream = container_of(source, struct stream, out);
	struct net_client *client = stream->port.client;

	if (event->kind == LOOP_IO) {
		write_ended(stream, event->result);
		return;
	}
	if (event->kind == LOOP_READY)
		loop_unwatch(&stream->out);
	write_out(stream);
	if (stream->want_room && stream->n_frames < FRAMES_MAX) {
		stream->want_room = false;
		client->ops->room(client);
	}
}

static void read_more(struct stream *stream)
{
	const uint32_t rest = stream->end - stream->start;
	struct io_op op = {.kind = IO_READ, .iov = &stream->in_iov, .n_iov = 1};

	if (stream->start == stream->end || BUFFER_SIZE - stream->end < LENGTH_SIZE + LENGTH_MAX) {
		memmove(stream->buffer + HEADROOM, stream->buffer + stream->start, rest);
		stream->start = HEADROOM;
		stream->end = HEADROOM + rest;
	}
	stream->in_iov = (struct iovec){stream->buffer + stream->end, BUFFER_SIZE - stream->end};
	if (io_submit(stream->io, stream->file, &op, &stream->in, 0) < 0) {
		stream->go_on = true; /* in the batch call that follows -EBUSY */
		return;
	}
	stream->reading = true;
	stream->port.n_read_calls++;
}

/* True: the frame at `start` is there as a whole, and `length` says how long it is. */
static bool frame_is_there(struct stream *stream)
{
	const uint32_t there = stream->end - stream->start;
	uint32_t length;
	char why[80];

	if (stream->length)
		return true;
	if (there < LENGTH_SIZE)
		return false;
	memcpy(&length, stream->buffer + stream->start, LENGTH_SIZE);
	length = ntohl(length);
	if (length < LENGTH_MIN || length > LENGTH_MAX) {
		snprintf(why, sizeof(why), "the other end of its stream sent a frame of %u bytes",
			 length);
		lose(stream, why);
		return false;
	}
	if (there - LENGTH_SIZE < length)
		return false;
	stream->length = length;
	memset(stream->buffer + stream->start - HEADROOM, 0, NET_HEADER_SIZE);
	return true;
}

/* False: there is more, but not now. */
static bool hand_over(struct stream *stream)
{
	struct net_client *client = stream->port.client;
	uint32_t budget = BUDGET;

	for (; frame_is_there(stream); budget--) {
		if (!budget) {
			stream->go_on = true;
			loop_batch(&stream->in);
			return false;
		}
		if (!client->ops->receive(client, stream->buffer + stream->start - HEADROOM,
					  NET_HEADER_SIZE + stream->length)) {
			stream->blocked = true;
			return false;
		}
		stream->port.n_reads++;
		stream->start += LENGTH_SIZE + stream->length;
		stream->length = 0;
	}
	return !stream->gone;
}

static void keep_watch(struct stream *stream)
{
	if (stream->in.watching || stream->gone)
		return;
	if (loop_watch(&stream->in, stream->port.fd, POLLIN) < 0)
		lose(stream, "the host has no room to watch its stream");
}

static void read_ended(struct stream *stream, int result)
{
	const bool full = result == (int)stream->in_iov.iov_len;

	stream->reading = false;
	if (result == 0)
		lose(stream, "the other end of its stream has gone");
	else if (result < 0 && result != -EAGAIN && result != -EINTR)
		lose_for(stream, "its stream cannot be read", result);
	if (stream->gone)
		return;
	stream->end += (uint32_t)MAX(result, 0);
	if (!stream->running)
		return;
	loop_batch(&stream->in);
	/* The watch, if there is one, tells of more. */
	if (hand_over(stream) && full && !stream->in.watching)
		read_more(stream);
	if (!full)
		keep_watch(stream);
}

static void readable(struct stream *stream)
{
	if (stream->reading)
		return;
	/* It would be told again and again. Who goes on reads before it watches. */
	if (stream->blocked || stream->go_on)
		loop_unwatch(&stream->in);
	else
		read_more(stream);
}

static void batch_over(struct stream *stream)
{
	struct net_client *client = stream->port.client;

	if (stream->go_on && stream->running && !stream->gone) {
		stream->go_on = false;
		if (hand_over(stream) && !stream->reading)
			read_more(stream);
	}
	client->ops->batch(client);
}

static void on_in(struct loop_source *source, const struct loop_event *event)
{
	struct stream *stream = container_of(source, struct stream, in);

	if (event->kind == LOOP_READY)
		readable(stream);
	else if (event->kind == LOOP_IO)
		read_ended(stream, event->result);
	else
		batch_over(stream);
}

/*
 * passt takes a frame to an address of the loopback for what it says, whatever its options, and
 * connects to the host's own services: such a frame never gets that far.
 */
static bool copy_head(struct out_frame *frame)
{
	for (uint32_t i = 0; i < frame->n_iov && frame->n_head < NET_HEAD_SIZE; i++) {
		size_t n = MIN(frame->iov[i].iov_len, (size_t)(NET_HEAD_SIZE - frame->n_head));

		memcpy(frame->head.bytes + frame->n_head, frame->iov[i].iov_base, n);
		frame->n_head += (uint32_t)n;
	}
	return !net_head_is_for_host(frame->head.bytes, frame->n_head);
}

static int stream_send(struct net_port *port, const struct iovec *iov, uint32_t n_iov,
		       uint32_t size, uint32_t arg)
{
	struct stream *stream = to_stream(port);
	struct out_frame *frame = frame_at(stream, stream->n_frames);

	if (n_iov < 2 || n_iov > NET_IOV_MAX || size < NET_FRAME_MIN || size > NET_FRAME_MAX)
		return -EINVAL;
	if (stream->n_frames == FRAMES_MAX) {
		stream->want_room = true;
		return -EBUSY;
	}
	*frame = (struct out_frame){
		.iov = iov + 1,
		.n_iov = n_iov - 1,
		.size = size - NET_HEADER_SIZE + LENGTH_SIZE,
		.arg = arg,
		.head.length = htonl(size - NET_HEADER_SIZE),
	};
	if (!stream->host && !copy_head(frame))
		return -EACCES;
	stream->n_frames++;
	return 0;
}

/* What cannot be sent ends in the batch call: not while the card is at it. */
static void stream_flush(struct net_port *port)
{
	struct stream *stream = to_stream(port);

	if (stream->gone)
		loop_batch(&stream->out);
	else
		write_out(stream);
}

static void go_on(struct stream *stream)
{
	stream->blocked = false;
	stream->go_on = true;
	loop_batch(&stream->in);
}

static void stream_start(struct net_port *port, uint32_t offloads _unused_)
{
	struct stream *stream = to_stream(port);

	stream->running = true;
	keep_watch(stream);
	go_on(stream);
}

/* What was read stays: the next byte is the middle of a frame. */
static void stream_stop(struct net_port *port)
{
	struct stream *stream = to_stream(port);

	stream->running = stream->blocked = stream->go_on = stream->want_room = false;
	loop_unwatch(&stream->in);
	give_back(stream);
}

static void stream_ready(struct net_port *port)
{
	struct stream *stream = to_stream(port);

	if (stream->blocked)
		go_on(stream);
}

static void stream_free(struct net_port *port)
{
	struct stream *stream = to_stream(port);

	loop_remove(&stream->in);
	loop_remove(&stream->out);
	if (stream->io && stream->file != NO_FILE)
		io_file_remove(stream->io, stream->file);
	io_free(stream->io);
	free(stream->buffer);
	free(stream->tail);
	fd_close(port->fd);
	free(stream);
}

static const struct net_port_ops stream_ops = {
	.name = "stream",
	.start = stream_start,
	.stop = stream_stop,
	.send = stream_send,
	.flush = stream_flush,
	.ready = stream_ready,
	.free = stream_free,
};

static int check_socket(int fd, struct error *err)
{
	int type, flags = fcntl(fd, F_GETFL);
	socklen_t size = sizeof(type);

	if (flags < 0 || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0)
		return error_set(err, -errno, "cannot use descriptor %d as a stream socket: %s", fd,
				 strerror(errno));
	if (type != SOCK_STREAM)
		return error_set(err, -EINVAL,
				 "cannot use descriptor %d: it is a socket, but not a stream", fd);
	if (fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return error_set(err, -errno, "cannot set up stream socket %d: %s", fd,
				 strerror(errno));
	return 0;
}

static int set_up_io(struct stream *stream, struct loop *loop)
{
	int r;

	stream->buffer = malloc(BUFFER_SIZE);
	stream->tail = malloc(NET_FRAME_MAX);
	if (!stream->buffer || !stream->tail)
		return -ENOMEM;
	r = io_direct_new(&stream->io, loop);
	if (r >= 0)
		r = io_file_add(stream->io, stream->port.fd, &stream->file);
	if (r >= 0)
		r = loop_add(loop, &stream->in);
	return r < 0 ? r : loop_add(loop, &stream->out);
}

int net_stream_new(struct net_port **ret_port, struct loop *loop, int fd, bool host,
		   struct error *err)
{
	struct stream *stream = calloc(1, sizeof(*stream));
	int r;

	if (!stream) {
		fd_close(fd);
		return error_set(err, -ENOMEM, "cannot set up a stream: out of memory");
	}
	stream->port.ops = &stream_ops;
	stream->port.fd = fd;
	stream->host = host;
	stream->in.on_event = on_in;
	stream->out.on_event = on_out;
	stream->file = NO_FILE;
	stream->start = stream->end = HEADROOM;
	r = check_socket(fd, err);
	if (r < 0) {
		stream_free(&stream->port);
		return r;
	}
	r = set_up_io(stream, loop);
	if (r < 0) {
		stream_free(&stream->port);
		return error_set(err, r, "cannot set up stream socket %d: %s", fd, strerror(-r));
	}
	*ret_port = &stream->port;
	return 0;
}
