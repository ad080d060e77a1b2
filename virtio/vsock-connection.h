/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between the files of the socket device: vsock.c has the queues, vsock-connection.c what happens
 * on a connection, vsock-host.c the listening socket and its clients. All on the device's loop, but
 * for `transport`, which a reset on another thread puts back while nothing runs.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "devices/byte-ring.h"
#include "virtio/vsock.h"

#define VSOCK_HOST_CID    2u
#define VSOCK_TYPE_STREAM 1u
#define VSOCK_BUCKETS     256u
#define VSOCK_RESETS_MAX  256u /* answers to packets of no connection */

/* virtio 1.2, 5.10.6 */
struct vsock_header {
	uint64_t src_cid, dst_cid;
	uint32_t src_port, dst_port;
	uint32_t len;
	uint16_t type, op;
	uint32_t flags;
	uint32_t buf_alloc, fwd_cnt;
} __attribute__((packed));
_Static_assert(sizeof(struct vsock_header) == 44, "virtio 1.2, 5.10.6");

enum vsock_op {
	VSOCK_OP_INVALID,
	VSOCK_OP_REQUEST,
	VSOCK_OP_RESPONSE,
	VSOCK_OP_RST,
	VSOCK_OP_SHUTDOWN,
	VSOCK_OP_RW,
	VSOCK_OP_CREDIT_UPDATE,
	VSOCK_OP_CREDIT_REQUEST,
};

#define VSOCK_SHUTDOWN_RECEIVE 1u
#define VSOCK_SHUTDOWN_SEND    2u
#define VSOCK_SHUTDOWN_BOTH    3u

/* Packets due to the guest, one bit each: a guest that takes none makes nothing grow. */
#define VSOCK_DUE_RST            0x01u
#define VSOCK_DUE_REQUEST        0x02u
#define VSOCK_DUE_RESPONSE       0x04u
#define VSOCK_DUE_CREDIT_UPDATE  0x08u
#define VSOCK_DUE_CREDIT_REQUEST 0x10u

enum vsock_state {
	VSOCK_REQUESTED, /* by a client, who waits for its OK; the guest has not answered */
	VSOCK_OPEN,
	VSOCK_CLOSING,  /* the host's side is gone; the guest has yet to hear, or to answer */
	VSOCK_DRAINING, /* the guest's side is gone, the pair of ports free; the host reads on */
	VSOCK_GONE,     /* to be freed by whoever holds it */
};

struct vsock_connection {
	struct loop_source source;
	struct vsock *vsock;                              /* weak */
	struct vsock_connection *next;                    /* in its bucket; weak */
	struct vsock_connection *next_ready, *prev_ready; /* weak */
	bool is_ready;                                    /* has something for the guest */
	uint32_t place;                                   /* in the device's array */
	uint32_t guest_port, host_port;
	enum vsock_state state;
	uint8_t due;

	int fd;           /* owned, -1 once closed */
	uint32_t watched; /* poll(2) bits the loop waits for, 0: none */
	uint64_t deadline;
	bool readable;  /* the socket may have bytes, or its end, for the guest */
	bool ended;     /* its end was read */
	bool deaf;      /* one direction is shut, and polls of the socket end at once */
	bool hung_up;   /* the other side closed it */
	bool shut_told; /* SHUT_WR was called */

	uint8_t guest_shut; /* what the guest said it does no more, VSOCK_SHUTDOWN_* */
	uint8_t host_shut;  /* what the host's side does no more */
	uint8_t told_shut;  /* and the guest has been told */

	/* Credit (5.10.6.3), all modulo 2^32. */
	uint32_t peer_buf_alloc, peer_fwd_cnt; /* as the guest last said */
	uint32_t tx_cnt;                       /* bytes given to the guest */
	uint32_t fwd_cnt, fwd_told;            /* bytes of the guest's passed on; as last told */
	bool credit_asked;
	struct byte_ring out; /* of VSOCK_BUFFER: towards a host that is slow */
};

/* Of the listening socket; says its line, then becomes a connection or listens. */
struct vsock_client {
	struct loop_source source;
	struct vsock *vsock; /* weak */
	int fd;              /* owned, -1: the place is free */
	bool listening;
	uint32_t port;
	uint32_t length;
	char line[VSOCK_LINE_MAX];
};

/* An RST that belongs to no connection. */
struct vsock_reset {
	uint64_t cid; /* the guest took it for the peer's */
	uint32_t guest_port, host_port;
	uint16_t type;
};

enum vsock_transport { VSOCK_TRANSPORT_WORKS, VSOCK_RESET_DUE, VSOCK_RESET_TOLD };

struct vsock {
	struct virtio_pci pci;
	struct virtio_device virtio;
	struct loop *loop;         /* borrowed */
	struct loop_source source; /* the listening socket; the end of a turn; a drop that was
				      posted */
	uint32_t cid;
	int listen_fd;  /* owned */
	bool listening; /* its socket is watched */
	struct vsock_client clients[VSOCK_CLIENTS_MAX + VSOCK_LISTENERS_MAX];
	uint32_t n_clients, n_listeners;

	struct vsock_connection *connections[VSOCK_CONNECTIONS_MAX]; /* owned */
	uint32_t n_connections;
	struct vsock_connection *buckets[VSOCK_BUCKETS]; /* weak */
	struct vsock_connection *first_ready, *last_ready;
	uint32_t next_port; /* the host's, for connections of clients */

	struct vsock_reset resets[VSOCK_RESETS_MAX];
	uint32_t resets_in, resets_out; /* modulo 2^32 */
	bool tx_waits;                  /* for room among the resets */

	uint32_t transport;    /* enum vsock_transport; through base/atomic.h */
	uint32_t told_buffers; /* of the event queue, when the reset was told */

	struct iovec iov[VSOCK_QUEUE_SIZE];                /* of the chain in hand */
	struct iovec payload[VSOCK_QUEUE_SIZE];            /* its part behind the header */
	uint16_t heads[VSOCK_QUEUE_SIZE];                  /* while the event queue is counted */
	uint64_t bytes_in, bytes_out, n_opened, n_refused; /* counters; in: from the guest */
};

/* vsock.c */

/* There is something for the guest: at the end of the turn. */
void vsock_wake(struct vsock *vsock);
/* Owes the guest an RST. There is room: a packet is taken only then. */
void vsock_reset_add(struct vsock *vsock, const struct vsock_header *header);

/* vsock-connection.c */

/* The part of `iov` that begins `skip` bytes in, at most `len` bytes; `ret` has room for `n`. */
uint32_t vsock_iov_slice(const struct iovec *iov, uint32_t n, uint64_t skip, uint64_t len,
			 struct iovec *ret);
struct vsock_connection *vsock_connection_find(struct vsock *vsock, uint32_t guest_port,
					       uint32_t host_port);
/* Takes `fd` over when it succeeds. -ENOSPC: there are too many. */
int vsock_connection_new(struct vsock *vsock, uint32_t guest_port, uint32_t host_port, int fd,
			 enum vsock_state state,
			 struct vsock_connection **ret_connection) __must_check;
/* Gone, due, watched: brings all in line with what has happened. May free it. */
void vsock_connection_settle(struct vsock_connection *connection);
/* A packet of the guest's for it; `payload` is what the header says. Settles. */
void vsock_connection_packet(struct vsock_connection *connection, const struct vsock_header *header,
			     const struct iovec *payload, uint32_t n_payload);
/* The next packet for the guest into `chain`, which holds a header at least: its size, 0 if there
 * is none. Settles. */
uint32_t vsock_connection_fill(struct vsock_connection *connection,
			       const struct virtqueue_chain *chain);
/* The guest has done with it: it goes, once the host has what the guest sent. Settle it then. */
void vsock_connection_end(struct vsock_connection *connection);
void vsock_connection_free(struct vsock_connection *connection);

/* vsock-socket.c: none frees the connection, all may end it */

void vsock_socket_event(struct loop_source *source, const struct loop_event *event);
/* Brings watch and timer in line. */
void vsock_socket_watch(struct vsock_connection *connection);
void vsock_socket_timer(struct vsock_connection *connection);
/* Bytes the socket took now. */
size_t vsock_socket_send(struct vsock_connection *connection, const struct iovec *iov, uint32_t n);
/* So many of the guest's bytes are no longer ours. */
void vsock_socket_forwarded(struct vsock_connection *connection, uint32_t n);
/* Passes the guest's end on, if all before it has been. */
void vsock_socket_end(struct vsock_connection *connection);
void vsock_socket_deafen(struct vsock_connection *connection);
/* Only the bytes that wait for the host keep it. */
void vsock_socket_drain(struct vsock_connection *connection);
/* It ended without a good-bye: the guest gets an RST. */
void vsock_socket_failed(struct vsock_connection *connection);
void vsock_socket_close(struct vsock_connection *connection);

/* vsock-host.c */

int vsock_host_init(struct vsock *vsock) __must_check;
void vsock_host_deinit(struct vsock *vsock);
/* The listening socket is ready, or it is time to look at it again. */
void vsock_host_accept(struct vsock *vsock);
/* The guest asks for a connection to a port of the host: false if there is none to be had. */
bool vsock_host_request(struct vsock *vsock, const struct vsock_header *header);
/* Says the word that ends a client. */
void vsock_host_answer(int fd, const char *word);
