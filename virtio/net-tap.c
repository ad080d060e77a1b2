/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A queue of a tap interface as a port: Ethernet frames both ways, a virtio header in front of
 * each, on the pair's loop. Nothing migrates.
 *
 * Out, a frame is one write from the guest's pages; those of a turn enter the kernel together. In,
 * a readable tap is asked for a row of frames at once: the first goes straight into guest buffers,
 * the rest into buffers of ours, in order. How long the row is follows what came lately: one for
 * large frames, which are not worth a copy, up to BATCH_MAX for small ones. A read never waits, so
 * nothing of the guest's stays with the kernel.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/io.h"
#include "virtio/net-header.h"
#include "virtio/net-port.h"

#define BATCH_MAX    32
#define LENT_MAX     256  /* pieces of the guest's for one frame */
#define LARGE        8192 /* from here on a copy costs more than entering the kernel */
#define STRIDE       (17 * 4096)
#define FAILURES_MAX 64
#define PATIENCE_MAX 16
#define NO_FILE      UINT32_MAX
_Static_assert(STRIDE >= NET_FRAME_MAX, "a bounce buffer holds any frame");

struct tap {
	struct net_port port;
	struct loop_source in;     /* readiness, reads */
	struct loop_source out;    /* writes */
	struct io *in_io, *out_io; /* owned */
	uint32_t in_file, out_file;
	uint8_t *bounce; /* owned; (BATCH_MAX - 1) * STRIDE, touched when used */

	bool running; /* between start and stop */
	bool gone;    /* the interface, for good */
	bool blocked; /* the card takes no more until `ready` */
	bool retry;   /* what a batch call is for: `ready`, or a ring that was full */
	bool stale;   /* the row under way was begun before a stop */

	uint32_t n_wanted;         /* reads of the next row */
	uint32_t n_full;           /* rows since the last that found less than it asked for */
	uint32_t patience;         /* so many before it asks for more */
	uint32_t n_row;            /* of the row under way, or the last */
	uint32_t n_under_way;      /* of them */
	uint32_t n_came;           /* frames of the row */
	uint32_t largest;          /* of them */
	bool dry;                  /* a read of the row found nothing */
	uint32_t n_failures;       /* in a row */
	uint32_t sizes[BATCH_MAX]; /* of frames that the card has not taken yet, 0: none */
	bool keeping;              /* there is one */
	struct iovec lent[LENT_MAX];
	struct iovec places[BATCH_MAX]; /* the first is not used */

	uint32_t n_unflushed;
};

static struct tap *to_tap(struct net_port *port)
{
	return container_of(port, struct tap, port);
}

static const struct net_client_ops *client_ops(const struct tap *tap)
{
	return tap->port.client->ops;
}

static void lose(struct tap *tap, const char *why)
{
	if (tap->gone)
		return;
	tap->gone = true;
	loop_unwatch(&tap->in);
	client_ops(tap)->link(tap->port.client, false, why);
}

static int submit_read(struct tap *tap, uint32_t place, const struct iovec *iov, uint32_t n_iov)
{
	const struct io_op op = {.kind = IO_READ, .iov = iov, .n_iov = n_iov};
	int r = io_submit(tap->in_io, tap->in_file, &op, &tap->in, place);

	if (r >= 0) {
		tap->n_row++;
		tap->n_under_way++;
	}
	return r;
}

/* Begins a row of reads, if there is none, and the card has buffers. */
static void read_row(struct tap *tap)
{
	struct net_client *client = tap->port.client;
	uint32_t n_lent;

	if (!tap->running || tap->gone || tap->blocked || tap->n_under_way || tap->keeping)
		return;
	n_lent = client->ops->lend(client, tap->lent, LENT_MAX);
	if (!n_lent) {
		tap->blocked = true;
		return;
	}
	tap->n_row = tap->n_came = tap->largest = 0;
	tap->dry = false;
	if (submit_read(tap, 0, tap->lent, n_lent) < 0) {
		client->ops->filled(client, 0);
		tap->retry = true; /* in the batch call that follows -EBUSY */
		return;
	}
	for (uint32_t i = 1; i < tap->n_wanted; i++) {
		if (submit_read(tap, i, &tap->places[i], 1) < 0)
			break;
	}
}

static void keep_watch(struct tap *tap)
{
	if (tap->in.watching || tap->gone || !tap->running)
		return;
	if (loop_watch(&tap->in, tap->port.fd, POLLIN) < 0)
		lose(tap, "the host has no room to watch its tap");
}

/* Frames that come one at a time, as answers do, are not worth a second look each time. */
static void plan_row(struct tap *tap)
{
	if (tap->largest >= LARGE) {
		tap->n_wanted = 1;
	} else if (tap->dry) {
		tap->patience =
			tap->n_came > 1 ? 1 : MIN(2 * tap->patience, (uint32_t)PATIENCE_MAX);
		tap->n_wanted = MAX(tap->n_came, 1u);
		tap->n_full = 0;
	} else if (++tap->n_full >= tap->patience) {
		tap->n_wanted = MIN(2 * tap->n_row, (uint32_t)BATCH_MAX);
	}
}

static void row_over(struct tap *tap)
{
	const bool in_place = io_direct_is_in_place(tap->in_io, tap->in_file);

	tap->port.n_read_calls += in_place ? tap->n_came + tap->dry : 1;
	plan_row(tap);
	tap->stale = false;
	/* The watch, if there is one, tells of more. */
	if (tap->dry)
		keep_watch(tap);
	else if (!tap->in.watching)
		read_row(tap);
}

static void deliver(struct tap *tap, uint32_t place, uint32_t size)
{
	struct net_client *client = tap->port.client;

	if (!tap->keeping && client->ops->receive(client, tap->places[place].iov_base, size))
		return;
	tap->sizes[place] = size;
	tap->keeping = tap->blocked = true;
}

static void deliver_kept(struct tap *tap)
{
	tap->keeping = false;
	for (uint32_t i = 1; i < BATCH_MAX; i++) {
		uint32_t size = tap->sizes[i];

		tap->sizes[i] = 0;
		if (size)
			deliver(tap, i, size);
	}
}

/* A frame that could not be had is lost, unless there will never be one again. */
static void read_failed(struct tap *tap, int result)
{
	char why[80];

	if (result == -EAGAIN || result == -EINTR) {
		tap->dry = true;
		return;
	}
	if (result == -EBADFD || result == -EBADF) {
		tap->dry = true;
		lose(tap, "its tap interface was deleted");
		return;
	}
	if (++tap->n_failures < FAILURES_MAX)
		return;
	snprintf(why, sizeof(why), "its tap cannot be read: %s", strerror(-result));
	tap->dry = true;
	lose(tap, why);
}

static void read_ended(struct tap *tap, uint32_t place, int result)
{
	struct net_client *client = tap->port.client;
	const uint32_t size = result >= NET_FRAME_MIN ? (uint32_t)result : 0;

	loop_batch(&tap->in);
	tap->n_under_way--;
	if (result < 0) {
		read_failed(tap, result);
	} else {
		tap->n_failures = 0;
		tap->n_came++;
		tap->largest = MAX(tap->largest, size);
		tap->port.n_reads += size > 0;
	}
	if (!place)
		client->ops->filled(client, size);
	else if (size && !tap->stale)
		deliver(tap, place, size);
	if (!tap->n_under_way)
		row_over(tap);
}

static void readable(struct tap *tap, int events)
{
	if (events & (POLLERR | POLLNVAL)) {
		lose(tap, "its tap interface was deleted");
		return;
	}
	/* It would be told again and again. `ready` reads before it watches. */
	if (tap->blocked)
		loop_unwatch(&tap->in);
	else
		read_row(tap);
}

static void batch_over(struct tap *tap)
{
	struct net_client *client = tap->port.client;

	if (tap->retry) {
		tap->retry = false;
		deliver_kept(tap);
		read_row(tap);
	}
	client->ops->batch(client);
}

static void on_in(struct loop_source *source, const struct loop_event *event)
{
	struct tap *tap = container_of(source, struct tap, in);

	if (event->kind == LOOP_READY)
		readable(tap, event->result);
	else if (event->kind == LOOP_IO)
		read_ended(tap, event->arg, event->result);
	else
		batch_over(tap);
}

static void on_out(struct loop_source *source, const struct loop_event *event)
{
	struct tap *tap = container_of(source, struct tap, out);
	struct net_client *client = tap->port.client;

	if (event->kind == LOOP_IO) {
		client->ops->sent(client, event->arg, MIN(event->result, 0));
		loop_batch(&tap->in);
	} else {
		client->ops->room(client);
	}
}

static int tap_send(struct net_port *port, const struct iovec *iov, uint32_t n_iov,
		    uint32_t size _unused_, uint32_t arg)
{
	struct tap *tap = to_tap(port);
	const struct io_op op = {.kind = IO_WRITE, .iov = iov, .n_iov = n_iov};
	int r = io_submit(tap->out_io, tap->out_file, &op, &tap->out, arg);

	if (r < 0)
		return r;
	port->n_writes++;
	tap->n_unflushed++;
	return 0;
}

/* The loop's next turn takes them along. */
static void tap_flush(struct net_port *port)
{
	struct tap *tap = to_tap(port);

	if (tap->out_io == tap->in_io) /* in place */
		port->n_write_calls += tap->n_unflushed;
	else
		port->n_write_calls += tap->n_unflushed > 0;
	tap->n_unflushed = 0;
}

static void tap_accept(struct net_port *port, uint32_t offloads)
{
	struct tap *tap = to_tap(port);
	char why[80];

	if (!tap->gone && ioctl(port->fd, TUNSETOFFLOAD, net_tun_offloads(offloads)) < 0) {
		snprintf(why, sizeof(why), "its tap refuses the guest's offloads: %s",
			 strerror(errno));
		lose(tap, why);
	}
}

static void tap_start(struct net_port *port, uint32_t offloads)
{
	struct tap *tap = to_tap(port);

	tap->running = true;
	tap_accept(port, offloads);
	keep_watch(tap);
}

/* A tap of one queue refuses, and need not be asked. */
static void tap_attach(struct net_port *port, bool attached)
{
	struct tap *tap = to_tap(port);
	struct ifreq ifreq = {.ifr_flags = attached ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE};

	if (ioctl(port->fd, TUNSETQUEUE, &ifreq) < 0 && attached)
		lose(tap, "its tap interface was deleted");
}

static void tap_stop(struct net_port *port)
{
	struct tap *tap = to_tap(port);

	tap->running = tap->blocked = tap->retry = tap->keeping = false;
	tap->stale = tap->n_under_way > 0;
	tap->n_wanted = tap->patience = 1;
	memset(tap->sizes, 0, sizeof(tap->sizes));
	loop_unwatch(&tap->in);
}

static void tap_ready(struct net_port *port)
{
	struct tap *tap = to_tap(port);

	if (!tap->blocked)
		return;
	tap->blocked = false;
	tap->retry = true;
	loop_batch(&tap->in);
}

static void drop_io(struct io *io, uint32_t file)
{
	if (io && file != NO_FILE)
		io_file_remove(io, file);
	io_free(io);
}

static void tap_free(struct net_port *port)
{
	struct tap *tap = to_tap(port);

	loop_remove(&tap->in);
	loop_remove(&tap->out);
	if (tap->out_io != tap->in_io)
		drop_io(tap->out_io, tap->out_file);
	drop_io(tap->in_io, tap->in_file);
	if (tap->bounce)
		munmap(tap->bounce, (BATCH_MAX - 1) * STRIDE);
	fd_close(port->fd);
	free(tap);
}

static const struct net_port_ops tap_ops = {
	.name = "tap",
	.start = tap_start,
	.stop = tap_stop,
	.attach = tap_attach,
	.accept = tap_accept,
	.send = tap_send,
	.flush = tap_flush,
	.ready = tap_ready,
	.free = tap_free,
};

/* What the other end can do, asked by setting it. Leaves all of it off until start. */
static int probe_offloads(struct tap *tap)
{
	static const uint32_t common =
		NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_ECN;
	const int fd = tap->port.fd;

	if (ioctl(fd, TUNSETOFFLOAD, net_tun_offloads(common | NET_OFFLOAD_USO)) == 0)
		tap->port.offloads = common | NET_OFFLOAD_USO;
	else if (ioctl(fd, TUNSETOFFLOAD, net_tun_offloads(common)) == 0)
		tap->port.offloads = common;
	return ioctl(fd, TUNSETOFFLOAD, 0) < 0 ? -errno : 0;
}

static int set_up_tap(struct tap *tap, struct error *err)
{
	const int fd = tap->port.fd, header = NET_HEADER_SIZE, yes = 1, room = INT_MAX;
	const short needed = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
	struct ifreq ifreq = {0};
	int flags, r;

	if (ioctl(fd, TUNGETIFF, &ifreq) < 0)
		return error_set(err, -errno,
				 "cannot use descriptor %d as a tap: it is not attached to an "
				 "interface: %s",
				 fd, strerror(errno));
	if ((ifreq.ifr_flags & (IFF_TUN | needed)) != needed)
		return error_set(err, -EINVAL,
				 "cannot use interface \"%s\": it was not opened as a tap with "
				 "a virtio header (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR)",
				 ifreq.ifr_name);
	flags = fcntl(fd, F_GETFL);
	r = flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
			    ioctl(fd, TUNSETVNETHDRSZ, &header) < 0 ||
			    ioctl(fd, TUNSETVNETLE, &yes) < 0 || ioctl(fd, TUNSETSNDBUF, &room) < 0
		    ? -errno
		    : probe_offloads(tap);
	if (r < 0)
		return error_set(err, r, "cannot set up interface \"%s\" as a tap: %s",
				 ifreq.ifr_name, strerror(-r));
	return 0;
}

static int make_bounce(struct tap *tap)
{
	void *bounce = mmap(NULL, (BATCH_MAX - 1) * STRIDE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (bounce == MAP_FAILED)
		return -errno;
	tap->bounce = bounce;
	/* Or the first byte would cost two megabytes. Without, it only costs them. */
	(void)madvise(bounce, (BATCH_MAX - 1) * STRIDE, MADV_NOHUGEPAGE);
	for (uint32_t i = 1; i < BATCH_MAX; i++)
		tap->places[i] = (struct iovec){tap->bounce + (i - 1) * STRIDE, NET_FRAME_MAX};
	return 0;
}

/*
 * Writes go on the ring even where reads cannot be asked not to wait: with TUNSETSNDBUF as it is,
 * a tap takes every frame at once.
 */
static int make_io(struct tap *tap, struct loop *loop)
{
	int r = io_direct_new(&tap->in_io, loop);

	if (r >= 0)
		r = io_file_add(tap->in_io, tap->port.fd, &tap->in_file);
	if (r < 0)
		return r;
	if (!loop_has_uring(loop)) {
		tap->out_io = tap->in_io;
		tap->out_file = tap->in_file;
		return 0;
	}
	r = io_new(&tap->out_io, loop);
	return r < 0 ? r : io_file_add(tap->out_io, tap->port.fd, &tap->out_file);
}

int net_tap_new(struct net_port **ret_port, struct loop *loop, int fd, struct error *err)
{
	struct tap *tap = calloc(1, sizeof(*tap));
	int r;

	if (!tap) {
		fd_close(fd);
		return error_set(err, -ENOMEM, "cannot set up a tap: out of memory");
	}
	tap->port.ops = &tap_ops;
	tap->port.fd = fd;
	tap->in.on_event = on_in;
	tap->out.on_event = on_out;
	tap->in_file = tap->out_file = NO_FILE;
	tap->n_wanted = tap->patience = 1;
	r = set_up_tap(tap, err);
	if (r < 0) {
		tap_free(&tap->port);
		return r;
	}
	r = make_bounce(tap);
	if (r >= 0)
		r = make_io(tap, loop);
	if (r >= 0)
		r = loop_add(loop, &tap->in);
	if (r >= 0)
		r = loop_add(loop, &tap->out);
	if (r < 0) {
		tap_free(&tap->port);
		return error_set(err, r, "cannot set up a tap: %s", strerror(-r));
	}
	*ret_port = &tap->port;
	return 0;
}
