/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the network card share, and nobody else includes. A pair is its loop's; what
 * all pairs look at is atomic, what the guest and a person set is under the device's lock.
 */
#pragma once

#include "virtio/net-header.h"
#include "virtio/net.h"

/* Indices of a pair's queues, as vhost has them. */
enum net_queue { NET_RX, NET_TX };

enum net_refusal {
	NET_REFUSED_NOTHING,
	NET_REFUSED_BUFFERS, /* the guest has too few out */
	NET_REFUSED_RATE,    /* the guest has had its share */
};

struct net_rx_chain {
	uint16_t head, n_iov;
	uint64_t bytes;
};

/* Bytes and frames a second, for one direction of one pair. */
struct net_rate {
	struct rate bytes, frames;
	bool waits;
	uint64_t n_waits; /* counter */
};

/*
 * Chains of the guest are taken ahead of the frames and kept in order, so that none is taken and
 * put back for each frame; those left are put back when the queue stops.
 */
struct net_rx {
	struct net_pair *pair;      /* weak */
	struct virtio_queue *queue; /* weak */
	struct loop_source source;  /* the timer of a refusal */
	bool on;                    /* the queue runs and we serve it */
	bool mergeable;             /* a frame may spread over several chains */
	bool kicks;                 /* they are wanted just now */
	bool impatient;             /* waited for more chains long enough */
	enum net_refusal refused;   /* why the port was sent away, and waits for `ready` */

	bool lent;
	uint32_t lent_bytes; /* of the chains, the header counted */
	struct net_header header;
	int32_t n_long; /* frames for which long buffers are laid out; below 0: are not, whatever
			   comes */

	uint32_t n_chains, n_iov;
	uint64_t bytes;
	struct net_rx_chain *chains; /* NET_QUEUE_SIZE */
	struct iovec *iov;           /* 2 * NET_QUEUE_SIZE: of the chains, in their order */
	uint8_t *spill;              /* NET_FRAME_MAX: what a frame has beyond what was lent */

	struct net_rate rate;
	uint64_t n_frames, n_bytes;                             /* counters */
	uint64_t n_short, n_long_frames, n_header, n_no_buffer; /* dropped */
	uint64_t n_link;                                        /* likewise */
};

struct net_tx_slot {
	struct net_header header;
	uint32_t size; /* without the header */
	struct iovec iov[NET_IOV_MAX];
};

struct net_tx {
	struct net_pair *pair;      /* weak */
	struct virtio_queue *queue; /* weak */
	struct loop_source source;  /* the rate's timer, and going on in the next turn */
	bool on;
	bool stalled;       /* chains were left in the ring: goes on when told */
	bool bounce_busy;   /* the frame in `bounce` is on its way */
	bool bounce_wanted; /* and another waits for it */
	uint32_t bounce_head;
	uint32_t in_flight;        /* the port's */
	struct iovec *iov;         /* NET_QUEUE_SIZE: the chain in hand */
	struct net_tx_slot *slots; /* NET_QUEUE_SIZE, by head */
	uint8_t *bounce;           /* NET_FRAME_MAX: a frame in more pieces than a port takes */

	struct net_rate rate;
	uint64_t n_frames, n_bytes;                         /* counters */
	uint64_t n_short, n_long, n_header, n_link, n_lost; /* dropped */
};

/*
 *   OFF       the port is at rest; it may be attached and detached
 *   ON        the port calls; frames may be sent
 *   STOPPING  no more is sent; frames being sent and buffers lent come back
 */
enum net_port_state { NET_PORT_OFF, NET_PORT_ON, NET_PORT_STOPPING };

struct net_pair {
	struct net *net; /* weak */
	uint32_t number;
	struct net_client client;
	struct loop_source source; /* posts: something that all pairs look at has changed */
	struct net_port *port;     /* owned */
	enum net_port_state state;
	bool attached;
	uint64_t accepted;       /* what the port was told last, as features */
	uint32_t n_shares;       /* the rates are for one of so many active pairs */
	struct vhost_net *vhost; /* owned; NULL: none */
	bool vhost_runs[2];      /* by enum net_queue */
	bool vhost_failed;
	_Atomic bool update_posted;
	struct net_rx rx;
	struct net_tx tx;
	void *buffers; /* owned mapping: all the arrays above; pages come as they are used */
};

struct net {
	struct virtio_pci pci;
	struct virtio_device virtio;
	uint8_t mac[6]; /* as the description has it */
	uint16_t mtu;   /* 0: not said */
	struct net_limits limits;
	struct log_limit link_lines;
	atomic_flag vhost_said; /* that it does not work; once */

	_Atomic bool up;             /* wish and ports together */
	_Atomic uint32_t ports_down; /* a bit each */
	_Atomic uint32_t n_active;   /* pairs the guest uses */
	_Atomic uint64_t offloads;   /* features of NET_F_GUEST_OFFLOADS that are turned on */
	_Atomic uint64_t mac_now;    /* six bytes of it */
	_Atomic uint32_t address;    /* network byte order, 0: none seen */

	/* Migrates. Lock; the copies above follow it. */
	struct net_state {
		uint8_t mac[6];
		uint32_t n_active;
		uint64_t offloads;
		bool announce; /* the guest was asked to and has not answered */
		bool link;     /* a person's wish */
		uint32_t address;
	} state;

	uint32_t n_pairs;
	struct net_pair pairs[NET_PAIRS_MAX]; /* the first n_pairs */
};

static inline struct net *net_of(struct virtio_device *virtio)
{
	return container_of(virtio, struct net, virtio);
}
static inline struct net_pair *net_pair_of(struct net_client *client)
{
	return container_of(client, struct net_pair, client);
}
static inline bool net_is_up(const struct net *net)
{
	return atomic_load_explicit(&net->up, memory_order_relaxed);
}

/* net.c. The state has changed, the lock is held: copies follow, pairs hear of it. Any thread. */
void net_state_changed(struct net *net);

/* net-counters.c */
void net_counters(const struct virtio_device *virtio, json_t *into);

/* net-pair.c. The pair's loop, but for init and deinit. */
int net_pair_init(struct net_pair *pair) __must_check;
void net_pair_deinit(struct net_pair *pair); /* twice is fine */
/* Takes the port to where queues, guest and frames under way allow it to be. */
void net_pair_settle(struct net_pair *pair);
bool net_pair_offload(struct net_pair *pair, struct virtio_queue *queue);
void net_pair_call_changed(struct net_pair *pair, struct virtio_queue *queue);
void net_pair_stop(struct net_pair *pair, struct virtio_queue *queue);
/* 0: go on. Else nothing more before that time; the timer of `source` is set to it. */
uint64_t net_rate_wait(struct net_rate *rate, struct loop_source *source);
void net_rate_take(struct net_rate *rate, uint32_t size);

/* net-rx.c. The pair's loop. */
uint32_t net_rx_lend(struct net_client *client, struct iovec *iov, uint32_t iov_max);
void net_rx_filled(struct net_client *client, uint32_t size);
bool net_rx_receive(struct net_client *client, const void *frame, uint32_t size);
void net_rx_event(struct loop_source *source, const struct loop_event *event);
void net_rx_run(struct net_rx *rx);     /* it starts, or the guest offered buffers */
void net_rx_restart(struct net_rx *rx); /* whatever was refused may be asked again */
void net_rx_stop(struct net_rx *rx);

/* net-tx.c. The pair's loop. */
void net_tx_sent(struct net_client *client, uint32_t arg, int result);
void net_tx_room(struct net_client *client);
void net_tx_event(struct loop_source *source, const struct loop_event *event);
void net_tx_run(struct net_tx *tx); /* it starts, or there may be frames to send */
void net_tx_stop(struct net_tx *tx);

/* net-control.c. The control queue's loop, which need not be a pair's. */
void net_control_run(struct net *net, struct virtio_queue *queue);
