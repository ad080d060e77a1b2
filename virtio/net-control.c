/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control queue (virtio 1.2, 5.1.6.5): commands of the guest in, one byte of answer out, the
 * card's state changed in between under the device's lock. Receive filters are accepted and not
 * kept: a guest that gets more than it asked for is used to that. On the control queue's loop.
 */
#include <string.h>

#include "devices/registers.h"
#include "virtio/net-card.h"

enum control_class {
	CLASS_RX = 0,
	CLASS_MAC = 1,
	CLASS_ANNOUNCE = 3,
	CLASS_MQ = 4,
	CLASS_GUEST_OFFLOADS = 5,
};
enum control_rx { RX_ALLMULTI = 1, RX_NOBCAST = 5 };
enum control_mac { MAC_TABLE_SET = 0, MAC_ADDR_SET = 1 };
enum control_answer { ANSWER_OK = 0, ANSWER_ERROR = 1 };

struct control_header {
	uint8_t class, command;
};
_Static_assert(sizeof(struct control_header) == 2, "virtio 1.2, 5.1.6.5");

/* The command's data, if it is as long as that. */
static bool data_read(const struct virtqueue_chain *chain, void *data, size_t size)
{
	if (chain->out_bytes != sizeof(struct control_header) + size)
		return false;
	return chain_read(chain, sizeof(struct control_header), data, size) == size;
}

static bool do_rx(struct net *net, uint8_t command, const struct virtqueue_chain *chain)
{
	uint64_t feature = command <= RX_ALLMULTI ? NET_F_CTRL_RX : NET_F_CTRL_RX_EXTRA;
	uint8_t on;

	return command <= RX_NOBCAST && virtio_has(&net->virtio, feature) &&
	       data_read(chain, &on, sizeof(on));
}

/* Two tables, each a count and as many addresses; nothing behind. */
static bool table_is_whole(const struct virtqueue_chain *chain)
{
	uint64_t at = sizeof(struct control_header);

	for (int i = 0; i < 2; i++) {
		uint32_t n;

		if (chain_read(chain, at, &n, sizeof(n)) != sizeof(n))
			return false;
		at += sizeof(n);
		if (n > (chain->out_bytes - at) / 6)
			return false;
		at += 6ull * n;
	}
	return at == chain->out_bytes;
}

static bool do_mac(struct net *net, uint8_t command, const struct virtqueue_chain *chain)
{
	uint8_t mac[6];

	if (command == MAC_TABLE_SET)
		return virtio_has(&net->virtio, NET_F_CTRL_RX) && table_is_whole(chain);
	if (command != MAC_ADDR_SET || !virtio_has(&net->virtio, NET_F_CTRL_MAC_ADDR) ||
	    !data_read(chain, mac, sizeof(mac)) || !net_mac_is_station(mac))
		return false;
	memcpy(net->state.mac, mac, sizeof(mac));
	return true;
}

static bool do_announce(struct net *net, uint8_t command, const struct virtqueue_chain *chain)
{
	if (command != 0 || !virtio_has(&net->virtio, NET_F_GUEST_ANNOUNCE) ||
	    chain->out_bytes != sizeof(struct control_header))
		return false;
	net->state.announce = false;
	return true;
}

static bool do_pairs(struct net *net, uint8_t command, const struct virtqueue_chain *chain)
{
	uint16_t n;

	if (command != 0 || !virtio_has(&net->virtio, NET_F_MQ) ||
	    !data_read(chain, &n, sizeof(n)) || n == 0 || n > net->n_pairs)
		return false;
	net->state.n_active = n;
	return true;
}

static bool do_offloads(struct net *net, uint8_t command, const struct virtqueue_chain *chain)
{
	uint64_t offloads;

	if (command != 0 || !virtio_has(&net->virtio, NET_F_CTRL_GUEST_OFFLOADS) ||
	    !data_read(chain, &offloads, sizeof(offloads)) ||
	    offloads & ~(net->virtio.accepted & NET_F_GUEST_OFFLOADS))
		return false;
	net->state.offloads = offloads;
	return true;
}

/* False: the guest is told no. The lock is held. */
static bool carry_out(struct net *net, const struct control_header *header,
		      const struct virtqueue_chain *chain)
{
	switch (header->class) {
	case CLASS_RX:
		return do_rx(net, header->command, chain);
	case CLASS_MAC:
		return do_mac(net, header->command, chain);
	case CLASS_ANNOUNCE:
		return do_announce(net, header->command, chain);
	case CLASS_MQ:
		return do_pairs(net, header->command, chain);
	case CLASS_GUEST_OFFLOADS:
		return do_offloads(net, header->command, chain);
	default:
		return false;
	}
}

static void answer(struct net *net, struct virtio_queue *queue, const struct virtqueue_chain *chain)
{
	struct control_header header;
	uint8_t byte;

	chain_read(chain, 0, &header, sizeof(header));
	pthread_mutex_lock(&net_device(net)->lock);
	byte = carry_out(net, &header, chain) ? ANSWER_OK : ANSWER_ERROR;
	if (byte == ANSWER_OK)
		net_state_changed(net);
	pthread_mutex_unlock(&net_device(net)->lock);
	chain_write(chain, 0, &byte, sizeof(byte));
	memory_mark_host(net->virtio.memory, chain->iov[chain->n_out].iov_base, sizeof(byte));
	virtqueue_push(&queue->ring, chain->head, sizeof(byte));
}

/* One command; false when there is none, or the guest broke the rules. */
static bool step(struct net *net, struct virtio_queue *queue)
{
	struct iovec iov[NET_QUEUE_SIZE];
	struct virtqueue_chain chain = {.iov = iov, .iov_max = NET_QUEUE_SIZE};
	int r = virtqueue_pop(&queue->ring, &chain);

	if (r == 0)
		return false;
	if (r > 0 && chain.out_bytes >= sizeof(struct control_header) && chain.in_bytes >= 1) {
		answer(net, queue, &chain);
		return true;
	}
	if (r > 0)
		virtqueue_push(&queue->ring, chain.head, 0);
	queue->ring.broken = true;
	virtio_broken(&net->virtio, "sent a control command that is not well-formed");
	return false;
}

void net_control_run(struct net *net, struct virtio_queue *queue)
{
	uint32_t budget = queue->ring.state.size;

	do {
		virtqueue_kicks_off(&queue->ring);
		while (budget > 0 && step(net, queue))
			budget--;
		virtqueue_publish(&queue->ring);
		if (budget == 0) {
			event_signal(queue->kick_fd); /* the rest in the next turn */
			return;
		}
	} while (virtqueue_kicks_on(&queue->ring));
}
