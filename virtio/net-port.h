/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one queue pair of a network card is plugged into: frames out, frames in. A port and its card
 * meet on one loop, the pair's; neither takes a lock nor allocates once it runs.
 *
 *   card ── send(frame) ──> port ── sent(arg) ──> card            batched; borrowed in between
 *   port ── lend() ──> card: guest buffers for one whole frame ── filled(size)    no copy
 *   port ── receive(frame) ──> card: copied into the guest        where frames came in a bunch
 *
 * Every frame has a NET_HEADER_SIZE header in front (virtio 1.2, 5.1.6: struct virtio_net_hdr_v1,
 * little-endian). A port whose other end knows no such header leaves it out on the way out and puts
 * zeroes on the way in, and takes no part in offloads.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/error.h"
#include "base/loop.h"

#define NET_HEADER_SIZE 12
/* The longest frame there is: a segmentation offload of 64 KiB behind an Ethernet header with a
 * tag, and our header. */
#define NET_FRAME_MAX (NET_HEADER_SIZE + 18 + 65536)
#define NET_FRAME_MIN (NET_HEADER_SIZE + 14)
#define NET_IOV_MAX   64 /* pieces of a frame on its way out, the header's included */

/* TUN_F_* that both sides know; what the guest accepts of what comes in. */
#define NET_OFFLOAD_CSUM (1u << 0)
#define NET_OFFLOAD_TSO4 (1u << 1)
#define NET_OFFLOAD_TSO6 (1u << 2)
#define NET_OFFLOAD_ECN  (1u << 3)
#define NET_OFFLOAD_USO  (1u << 4)

struct net_port;
struct net_client;

/* The card, seen from the port. */
struct net_client_ops {
	/* The frame sent with `arg` is gone (0) or was lost (-errno); its pieces are the card's
	 * again.
	 */
	void (*sent)(struct net_client *client, uint32_t arg, int result);
	/* After -EBUSY: there is room again. */
	void (*room)(struct net_client *client);
	/*
	 * Guest buffers for one frame of any length, header first: fills `iov`, returns how many, 0
	 * if the guest has too few out just now (net_port_ready follows). Lent until `filled`,
	 * which says how many bytes came (0: none, take them back). One at a time.
	 */
	uint32_t (*lend)(struct net_client *client, struct iovec *iov, uint32_t iov_max);
	void (*filled)(struct net_client *client, uint32_t size);
	/* One whole frame, header first, in the port's memory. False: the guest has no buffers or
	 * its rate is used up; the port keeps it and stops reading until net_port_ready. */
	bool (*receive)(struct net_client *client, const void *frame, uint32_t size);
	/* The batch is over: tell the guest. After any row of the calls above. */
	void (*batch)(struct net_client *client);
	/* The other end came or went, for good in the second case; `why` is a sentence's end. */
	void (*link)(struct net_client *client, bool up, const char *why);
};

struct net_client {
	const struct net_client_ops *ops;
};

struct net_port_ops {
	const char *name; /* "tap", "stream" */
	/* Frames may come in, and go out, from now on; `offloads` are those the guest accepts. */
	void (*start)(struct net_port *port, uint32_t offloads);
	/* No more lend or receive; frames being sent end with `sent` as soon as they can, lent
	 * buffers with `filled`, either maybe before this returns. Started again only after the
	 * last of these. */
	void (*stop)(struct net_port *port);
	/*
	 * While it is stopped: the other end may pick this port for frames (as at first) or not (a
	 * tap's TUNSETQUEUE, which needs no rights). Of several ports only those are attached whose
	 * pair the guest uses: what the kernel steers to another is lost. NULL: cannot, then it is
	 * the only port.
	 */
	void (*attach)(struct net_port *port, bool attached);
	/* Started or not (vhost takes no frames through here): what the guest accepts has changed.
	 * NULL: it cannot change. */
	void (*accept)(struct net_port *port, uint32_t offloads);
	/*
	 * One frame out, at most NET_IOV_MAX pieces, the first of them the header alone. Pieces and
	 * the array are borrowed until `sent`. -EBUSY: `room` follows.
	 */
	int (*send)(struct net_port *port, const struct iovec *iov, uint32_t n_iov, uint32_t size,
		    uint32_t arg);
	/* The batch of sends is over. */
	void (*flush)(struct net_port *port);
	/* The guest has offered buffers, or its rate allows more: read on. */
	void (*ready)(struct net_port *port);
	/* Gives back all it holds, its descriptor too. The loop has ended, or the port is stopped
	 * and the loop has turned since all that was sent and lent came back. Frees itself. */
	void (*free)(struct net_port *port);
};

struct net_port {
	const struct net_port_ops *ops;
	struct net_client *client; /* borrowed; set before start */
	uint32_t offloads;         /* NET_OFFLOAD_*: what the other end can do both ways */
	int fd;                    /* owned */
	/*
	 * Frames in and out, and entries into the kernel made for them: on a ring one for a row of
	 * reads or a batch of writes, else one a call. What the loop enters to wait is not here:
	 * loop_counters has all of it.
	 */
	uint64_t n_reads, n_writes, n_read_calls, n_write_calls;
};

/* A tap with vnet header (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR) and O_NONBLOCK. Takes over `fd`, also
 * when it fails. */
int net_tap_new(struct net_port **ret_port, struct loop *loop, int fd,
		struct error *err) __must_check;
/*
 * A stream socket; each frame behind its length, 32 bits big-endian (passt, QEMU's -netdev stream).
 * Unless `host`, frames to an address of the loopback are lost (-EACCES): the other end would send
 * them to the host's own. Takes over `fd`, also when it fails.
 */
int net_stream_new(struct net_port **ret_port, struct loop *loop, int fd, bool host,
		   struct error *err) __must_check;
