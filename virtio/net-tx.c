/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames of the guest in, frames to the port out: each with our checked copy of its header, the
 * rest where the guest has it. A frame lives in the slot of its head descriptor from pop to push.
 * What the guest gets wrong in a frame costs it that frame; what it gets wrong in a chain needs a
 * reset. The pair's loop. Migrates: nothing; a resting queue has no frame under way.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "virtio/net-card.h"

static struct virtqueue *ring_of(struct net_tx *tx)
{
	return &tx->queue->ring;
}

/* A frame ends without being sent: the guest cannot tell (5.1.6.2). */
static void drop(struct net_tx *tx, uint32_t head, uint64_t *counter)
{
	(*counter)++;
	virtqueue_push(ring_of(tx), (uint16_t)head, 0);
}

/* Where it is counted if it is not to be sent, else NULL. */
static uint64_t *refusal(struct net_tx *tx, const struct virtqueue_chain *chain,
			 struct net_tx_slot *slot)
{
	const struct net *net = tx->pair->net;

	if (chain->out_bytes < NET_FRAME_MIN)
		return &tx->n_short;
	if (chain->out_bytes > NET_FRAME_MAX)
		return &tx->n_long;
	slot->size = (uint32_t)chain->out_bytes - NET_HEADER_SIZE;
	chain_read(chain, 0, &slot->header, sizeof(slot->header));
	if (!net_header_check_out(&slot->header, slot->size, net->virtio.accepted))
		return &tx->n_header;
	return net_is_up(net) ? NULL : &tx->n_link;
}

/* Whose address is that? Only short frames are looked at, so that bulk does not pay for it. */
static void listen_to_arp(struct net *net, const struct virtqueue_chain *chain, uint32_t size)
{
	uint64_t mac_now = atomic_load_explicit(&net->mac_now, memory_order_relaxed);
	uint8_t frame[NET_ARP_SIZE], mac[6];
	uint32_t address;

	if (size < NET_ARP_SIZE || size > NET_ARP_SIZE_MAX)
		return;
	chain_read(chain, NET_HEADER_SIZE, frame, sizeof(frame));
	memcpy(mac, &mac_now, sizeof(mac));
	address = net_arp_sender(frame, mac);
	if (address)
		atomic_store_explicit(&net->address, address, memory_order_relaxed);
}

/* The frame without its header as pieces behind ours. Returns how many, 0 if they are too many. */
static uint32_t lay_out(struct net_tx_slot *slot, const struct virtqueue_chain *chain)
{
	uint32_t n = 1, skip = NET_HEADER_SIZE;

	slot->iov[0] = (struct iovec){&slot->header, sizeof(slot->header)};
	for (uint32_t i = 0; i < chain->n_out; i++) {
		const struct iovec *piece = &chain->iov[i];
		size_t here = MIN(piece->iov_len, (size_t)skip);

		skip -= (uint32_t)here;
		if (here == piece->iov_len)
			continue;
		if (n == NET_IOV_MAX)
			return 0;
		slot->iov[n].iov_base = (uint8_t *)piece->iov_base + here;
		slot->iov[n++].iov_len = piece->iov_len - here;
	}
	return n;
}

/* In more pieces than a port takes: copied, one such frame at a time. 0: another is under way. */
static uint32_t copy_out(struct net_tx *tx, struct net_tx_slot *slot,
			 const struct virtqueue_chain *chain)
{
	tx->bounce_wanted = tx->bounce_busy;
	if (tx->bounce_busy)
		return 0;
	chain_read(chain, NET_HEADER_SIZE, tx->bounce, slot->size);
	tx->bounce_busy = true;
	tx->bounce_head = chain->head;
	slot->iov[1] = (struct iovec){tx->bounce, slot->size};
	return 2;
}

static void bounce_over(struct net_tx *tx, uint32_t head)
{
	if (!tx->bounce_busy || tx->bounce_head != head)
		return;
	tx->bounce_busy = false;
	if (tx->bounce_wanted)
		loop_batch(&tx->source);
	tx->bounce_wanted = false;
}

/* One frame to the port. False: there is no room for it, it stays in the ring. */
static bool send_frame(struct net_tx *tx, const struct virtqueue_chain *chain)
{
	struct net_port *port = tx->pair->port;
	struct net_tx_slot *slot = &tx->slots[chain->head];
	uint64_t *counter = refusal(tx, chain, slot);
	uint32_t n;
	int r;

	if (counter) {
		drop(tx, chain->head, counter);
		return true;
	}
	listen_to_arp(tx->pair->net, chain, slot->size);
	n = lay_out(slot, chain);
	if (n == 0)
		n = copy_out(tx, slot, chain);
	if (n == 0)
		return false;
	tx->in_flight++;
	r = port->ops->send(port, slot->iov, n, NET_HEADER_SIZE + slot->size, chain->head);
	if (r == 0) {
		net_rate_take(&tx->rate, slot->size);
		return true;
	}
	tx->in_flight--;
	bounce_over(tx, chain->head);
	if (r == -EBUSY)
		return false;
	drop(tx, chain->head, &tx->n_lost);
	return true;
}

/* Takes one frame from the ring; false when that is all for now. */
static bool step(struct net_tx *tx)
{
	struct virtqueue *ring = ring_of(tx);
	struct virtqueue_chain chain = {.iov = tx->iov, .iov_max = NET_QUEUE_SIZE};
	int r;

	tx->stalled = net_rate_wait(&tx->rate, &tx->source) != 0;
	if (tx->stalled)
		return false;
	r = virtqueue_pop(ring, &chain);
	if (r == 0)
		return false;
	if (r > 0 && chain.n_in > 0) {
		virtqueue_push(ring, chain.head, 0);
		ring->broken = true;
		r = -EBADMSG;
	}
	if (r < 0) {
		virtio_broken(&tx->pair->net->virtio, "sent a frame that is not well-formed");
		return false;
	}
	tx->stalled = !send_frame(tx, &chain);
	if (tx->stalled)
		virtqueue_unpop(ring, &chain);
	return !tx->stalled;
}

/*
 * Sends until there is nothing, the port or the rate says stop, or a ring's worth was sent: the
 * rest waits for the end of the turn, after what other sources had. While frames are on their way
 * the guest need not kick: their end asks for more, so that what it adds meanwhile goes in one
 * batch.
 */
static void drain(struct net_tx *tx)
{
	struct net_port *port = tx->pair->port;
	const uint32_t size = tx->queue->ring.state.size;
	uint32_t budget = size;

	if (tx->pair->state != NET_PORT_ON)
		return;
	do {
		virtqueue_kicks_off(ring_of(tx));
		while (budget > 0 && step(tx))
			budget--;
		if (budget == 0 && !tx->stalled) {
			tx->stalled = true;
			loop_batch(&tx->source);
		}
	} while (!tx->stalled && !tx->in_flight && virtqueue_kicks_on(ring_of(tx)));
	if (budget < size)
		port->ops->flush(port);
	virtqueue_publish(ring_of(tx));
}

void net_tx_run(struct net_tx *tx)
{
	if (!tx->on) {
		tx->on = true;
		net_pair_settle(tx->pair);
	}
	drain(tx);
}

void net_tx_sent(struct net_client *client, uint32_t arg, int result)
{
	struct net_pair *pair = net_pair_of(client);
	struct net_tx *tx = &pair->tx;

	assert(arg < NET_QUEUE_SIZE && tx->in_flight > 0);
	tx->in_flight--;
	bounce_over(tx, arg);
	if (result < 0) {
		drop(tx, arg, &tx->n_lost);
	} else {
		tx->n_frames++;
		tx->n_bytes += tx->slots[arg].size;
		virtqueue_push(ring_of(tx), (uint16_t)arg, 0);
	}
	if (tx->on)
		loop_batch(&tx->source);
	else
		virtio_queue_settle(tx->queue);
	if (pair->state == NET_PORT_STOPPING)
		net_pair_settle(pair);
}

/* From inside the port, maybe: it is not called back before the turn's end. */
void net_tx_room(struct net_client *client)
{
	struct net_tx *tx = &net_pair_of(client)->tx;

	if (tx->stalled)
		loop_batch(&tx->source);
}

void net_tx_event(struct loop_source *source, const struct loop_event *event)
{
	struct net_tx *tx = container_of(source, struct net_tx, source);

	if (event->kind == LOOP_TIMER || (event->kind == LOOP_POST && event->arg == LOOP_BATCH)) {
		if (tx->on)
			drain(tx);
	}
}

void net_tx_stop(struct net_tx *tx)
{
	tx->on = false;
	tx->stalled = tx->bounce_wanted = false;
	loop_timer(&tx->source, UINT64_MAX);
}
