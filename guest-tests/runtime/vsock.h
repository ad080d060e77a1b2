/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtio socket driver: packets both ways, and on top of them streams that keep to both sides'
 * credit. One stream at a time reads; what comes for another, or out of turn, fails the test.
 */
#pragma once

#include "guest-tests/runtime/virtio.h"

#define VIRTIO_ID_VSOCK        19

#define VSOCK_HOST_CID         2
#define VSOCK_TYPE_STREAM      1

#define VSOCK_RX               0
#define VSOCK_TX               1
#define VSOCK_EVENT            2

#define VSOCK_N_BUFFERS        8
#define VSOCK_DATA_SIZE        4096
#define VSOCK_N_EVENTS         4

#define VSOCK_SHUTDOWN_RECEIVE 1
#define VSOCK_SHUTDOWN_SEND    2
#define VSOCK_SHUTDOWN_BOTH    3

enum vsock_op {
	VSOCK_INVALID,
	VSOCK_REQUEST,
	VSOCK_RESPONSE,
	VSOCK_RST,
	VSOCK_SHUTDOWN,
	VSOCK_RW,
	VSOCK_CREDIT_UPDATE,
	VSOCK_CREDIT_REQUEST,
};

struct vsock_header {
	uint64_t src_cid, dst_cid;
	uint32_t src_port, dst_port;
	uint32_t len;
	uint16_t type, op;
	uint32_t flags;
	uint32_t buf_alloc, fwd_cnt;
} __attribute__((packed));

struct vsock_packet {
	struct vsock_header header;
	uint8_t data[VSOCK_DATA_SIZE];
};

struct vsock {
	struct virtio_device dev;
	struct virtq queues[3];
	uint64_t cid;
	struct vsock_packet rx[VSOCK_N_BUFFERS];
	struct vsock_packet *rx_by_head[VSOCK_N_BUFFERS];
	uint32_t events[VSOCK_N_EVENTS];
	unsigned int n_resets; /* events that said so */
};

struct vsock_stream {
	struct vsock *vsock;
	uint32_t own_port, host_port;
	bool open;
	uint32_t shut; /* by the host, VSOCK_SHUTDOWN_* */
	uint32_t buf_alloc, fwd_cnt, tx_cnt;
	uint32_t peer_buf_alloc, peer_fwd_cnt;
	unsigned int n_stalls; /* times the host's credit was used up */
};

bool vsock_find(struct vsock *v);
void vsock_start(struct vsock *v, uint64_t features);
void vsock_send(struct vsock *v, const struct vsock_header *header, const void *data);
/* The next packet from the host, to be given back; NULL when none came in time. */
struct vsock_packet *vsock_receive(struct vsock *v, unsigned int timeout_ms);
void vsock_release(struct vsock *v, struct vsock_packet *packet);
/* Takes the events that have come, and gives their buffers back. */
void vsock_poll_events(struct vsock *v);

/* Waits for a request to the port and takes it. `buf_alloc` is the credit the host gets. */
void vsock_accept(struct vsock *v, struct vsock_stream *s, uint32_t port, uint32_t buf_alloc);
/* False when the host refuses. */
bool vsock_connect(struct vsock *v, struct vsock_stream *s, uint32_t own_port, uint32_t host_port,
		   uint32_t buf_alloc);
/* The next packet with data, to be released; NULL at the end of what the host sends. */
struct vsock_packet *vsock_read(struct vsock_stream *s);
/* As much as the host's credit allows, some at least: how much. Data that comes meanwhile goes to
 * `input`. */
uint32_t vsock_write(struct vsock_stream *s, const void *data, uint32_t len,
		     void (*input)(struct vsock_packet *packet));
void vsock_control(struct vsock_stream *s, enum vsock_op op, uint32_t flags);
/* Ends it cleanly: both shut, then the host's RST. */
void vsock_close(struct vsock_stream *s);
