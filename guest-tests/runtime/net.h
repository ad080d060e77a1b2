/* SPDX-License-Identifier: Apache-2.0 */
/* A network card: frames one at a time, each with its header, and commands to its control queue. */
#pragma once

#include "guest-tests/runtime/virtio.h"

#define VIRTIO_ID_NET             1

#define NET_F_CSUM                (1ull << 0)
#define NET_F_GUEST_CSUM          (1ull << 1)
#define NET_F_CTRL_GUEST_OFFLOADS (1ull << 2)
#define NET_F_MAC                 (1ull << 5)
#define NET_F_GUEST_TSO4          (1ull << 7)
#define NET_F_HOST_TSO4           (1ull << 11)
#define NET_F_MRG_RXBUF           (1ull << 15)
#define NET_F_STATUS              (1ull << 16)
#define NET_F_CTRL_VQ             (1ull << 17)
#define NET_F_CTRL_RX             (1ull << 18)
#define NET_F_GUEST_ANNOUNCE      (1ull << 21)
#define NET_F_MQ                  (1ull << 22)
#define NET_F_CTRL_MAC_ADDR       (1ull << 23)
#define NET_FEATURES                                                                           \
	(NET_F_CSUM | NET_F_GUEST_CSUM | NET_F_CTRL_GUEST_OFFLOADS | NET_F_MAC |               \
	 NET_F_GUEST_TSO4 | NET_F_HOST_TSO4 | NET_F_MRG_RXBUF | NET_F_STATUS | NET_F_CTRL_VQ | \
	 NET_F_CTRL_RX | NET_F_GUEST_ANNOUNCE | NET_F_CTRL_MAC_ADDR)

#define NET_CONFIG_MAC      0
#define NET_CONFIG_STATUS   6
#define NET_CONFIG_PAIRS    8
#define NET_STATUS_UP       1
#define NET_STATUS_ANNOUNCE 2

#define NET_NEEDS_CSUM      1
#define NET_GSO_TCPV4       1

#define NET_MAX_PAIRS       4
#define NET_RX_BUFFERS      32
#define NET_RX_BUFFER_LEN   2048
#define NET_TIMEOUT_MS      20000

struct net_header {
	uint8_t flags, gso_type;
	uint16_t hdr_len, gso_size, csum_start, csum_offset, num_buffers;
};

struct net {
	struct virtio_device dev;
	struct virtq rx[NET_MAX_PAIRS], tx[NET_MAX_PAIRS], control;
	unsigned int n_pairs;
	uint8_t mac[6];
	uint8_t *buffers[NET_MAX_PAIRS]; /* NET_RX_BUFFERS each */
	volatile unsigned int n_config;  /* configuration interrupts */
};

bool net_find(struct net *net, unsigned int nth);
/* With NET_F_MQ all pairs there are, up to NET_MAX_PAIRS, are set up; the first is in use. */
void net_start(struct net *net, uint64_t features);
uint16_t net_status(const struct net *net);

/* Hands a frame over and waits until it is back. */
void net_send(struct net *net, unsigned int pair, const struct net_header *header,
	      const void *frame, uint32_t len);
/* The next frame of any pair, at most `size` bytes of it; its length, or 0 when none came. */
uint32_t net_receive(struct net *net, struct net_header *ret_header, void *frame, uint32_t size,
		     unsigned int timeout_ms);
/* The answer: 0 is yes. */
uint8_t net_control(struct net *net, uint8_t class, uint8_t command, const void *data,
		    uint32_t len);
