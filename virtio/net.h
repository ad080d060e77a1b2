/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The virtio network card (virtio 1.2, 5.1): queue pairs, each with a port (virtio/net-port.h) or a
 * vhost-net behind it, and a control queue. A pair is on one loop; control is on the first pair's.
 */
#pragma once

#include "base/rate.h"
#include "virtio/net-port.h"
#include "virtio/pci.h"
#include "virtio/vhost.h"

#define NET_PAIRS_MAX  8
#define NET_QUEUE_SIZE 256
#define NET_MTU_MAX    65535

struct net_limits {
	uint64_t rx_rate, tx_rate;     /* bytes a second, 0: none */
	uint64_t rx_frames, tx_frames; /* frames a second, 0: none */
};

struct net_options {
	const char *name; /* "net0"; borrowed for the call */
	uint8_t mac[6];
	uint16_t mtu; /* 0: not said to the guest */
	uint32_t n_pairs;
	struct net_port **ports;   /* owned from the call on, also when it fails; one a pair */
	struct vhost_net **vhosts; /* likewise; NULL: none, else one a pair */
	struct net_limits limits;
};

struct net;

/* A card is large: it is allocated, by its own module. */
int net_new(struct net **ret_net, struct pci_root *root, uint32_t slot, struct guest_memory *memory,
	    struct loop *const *loops, uint32_t n_loops, const struct net_options *options,
	    struct error *err) __must_check;
struct net *net_free(struct net *net);
struct device *net_device(struct net *net);

/* Plugged in or out by a person; it is up only while its ports are too. Main thread. */
void net_set_link(struct net *net, bool up);
/* Has the guest announce itself (VIRTIO_NET_F_GUEST_ANNOUNCE) once it runs. False: it does not know
 * how. Main thread. */
bool net_announce(struct net *net);
/* The IPv4 address the guest was last seen to claim in ARP, network byte order; 0: none. Any
 * thread. */
uint32_t net_address(const struct net *net);
