/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames towards the guest. The guest's chains go out to the port as room for one frame, its header
 * in our own memory and a spill behind, so that a frame of any length has a place: what did not fit
 * is copied into further chains, or the frame is dropped. Ports that have the frame already hand it
 * over to be copied. The pair's loop. Migrates: nothing; a resting queue holds no chain.
 */
#include <assert.h>
#include <string.h>

#include "virtio/net-card.h"

/* How long the guest may take to add to buffers that are too few for the frame. */
#define PATIENCE_NS 20000000u
/* After a long frame, so many get long buffers from the start, and need no copy. */
#define LONG_FRAMES 64
/* A guest that does not offer as much is not waited for again so soon. */
#define PLAIN_FRAMES 4096

static struct virtqueue *ring_of(struct net_rx *rx)
{
	return &rx->queue->ring;
}

static const struct net *card_of(const struct net_rx *rx)
{
	return rx->pair->net;
}

/* The longest frame without segmentation, our header included. */
static uint32_t plain_size(const struct net_rx *rx)
{
	uint32_t mtu = card_of(rx)->mtu;

	return NET_HEADER_SIZE + NET_ETHERNET_SIZE + (mtu ? mtu : 1500);
}

/* Chains */

/* False: there is none, or it is no good. */
static bool take_chain(struct net_rx *rx)
{
	struct virtqueue *ring = ring_of(rx);
	struct virtqueue_chain chain = {.iov = rx->iov + rx->n_iov, .iov_max = NET_QUEUE_SIZE};
	int r = virtqueue_pop(ring, &chain);

	if (r == 0)
		return false;
	if (r > 0 && chain.n_out > 0) {
		virtqueue_unpop(ring, &chain);
		ring->broken = true;
		r = -1;
	}
	if (r < 0) {
		virtio_broken(&rx->pair->net->virtio,
			      "offered a receive buffer that is not well-formed");
		return false;
	}
	rx->chains[rx->n_chains++] = (struct net_rx_chain){chain.head, chain.n_in, chain.in_bytes};
	rx->n_iov += chain.n_in;
	rx->bytes += chain.in_bytes;
	if (rx->kicks)
		virtqueue_kicks_off(ring);
	rx->kicks = false;
	return true;
}

/* There is none just now: the guest is to kick when it adds one. True: it did meanwhile. */
static bool wait_for_chain(struct net_rx *rx)
{
	rx->kicks = true;
	return virtqueue_kicks_on(ring_of(rx));
}

/* Could a further chain be added, when it comes? */
static bool may_grow(const struct net_rx *rx)
{
	return rx->n_chains == 0 ||
	       (rx->mergeable && rx->n_iov <= NET_QUEUE_SIZE &&
		rx->n_chains < rx->queue->ring.state.size && !rx->queue->ring.broken);
}

static bool gather(struct net_rx *rx, uint64_t size)
{
	while (rx->bytes < size) {
		if (!may_grow(rx))
			return false;
		if (!take_chain(rx) && !(wait_for_chain(rx) && take_chain(rx)))
			return false;
	}
	return true;
}

/* The first `n` are the guest's again. */
static void forget_chains(struct net_rx *rx, uint32_t n)
{
	uint32_t n_iov = 0;

	for (uint32_t i = 0; i < n; i++) {
		n_iov += rx->chains[i].n_iov;
		rx->bytes -= rx->chains[i].bytes;
	}
	rx->n_chains -= n;
	rx->n_iov -= n_iov;
	memmove(rx->chains, rx->chains + n, rx->n_chains * sizeof(*rx->chains));
	memmove(rx->iov, rx->iov + n_iov, rx->n_iov * sizeof(*rx->iov));
}

static void give_back(struct net_rx *rx)
{
	for (uint32_t i = rx->n_chains; i > 0; i--) {
		struct virtqueue_chain chain = {.head = rx->chains[i - 1].head};

		virtqueue_unpop(ring_of(rx), &chain);
	}
	rx->n_chains = rx->n_iov = 0;
	rx->bytes = 0;
}

/* Copies to `at` bytes into the chains, which are long enough. */
static void put(struct net_rx *rx, uint64_t at, const void *data, size_t size)
{
	const uint8_t *bytes = data;

	for (uint32_t i = 0; size > 0; i++) {
		const struct iovec *piece = &rx->iov[i];
		size_t here;

		if (at >= piece->iov_len) {
			at -= piece->iov_len;
			continue;
		}
		here = MIN(size, piece->iov_len - at);
		memcpy((uint8_t *)piece->iov_base + at, bytes, here);
		bytes += here;
		size -= here;
		at = 0;
	}
}

static void mark(struct net_rx *rx, uint64_t size)
{
	for (uint32_t i = 0; i < rx->n_iov && size > 0; i++) {
		size_t here = MIN(size, (uint64_t)rx->iov[i].iov_len);

		memory_mark_host(card_of(rx)->virtio.memory, rx->iov[i].iov_base, here);
		size -= here;
	}
}

/* Frames */

/* A frame has come to its end, one way or the other. */
static void frame_over(struct net_rx *rx, uint32_t size)
{
	if (rx->n_long < 0)
		rx->n_long++;
	else if (size > plain_size(rx))
		rx->n_long = LONG_FRAMES;
	else if (rx->n_long > 0)
		rx->n_long--;
	rx->impatient = false;
}

static bool drop(struct net_rx *rx, uint32_t size, uint64_t *counter)
{
	(*counter)++;
	frame_over(rx, size);
	return true;
}

/* Where it is counted if the guest must not have it, else NULL. */
static uint64_t *refusal(struct net_rx *rx, uint32_t size)
{
	const struct net *net = card_of(rx);
	uint32_t longest = NET_FRAME_MAX;

	if (size < NET_FRAME_MIN)
		return &rx->n_short;
	if (!net_is_up(net))
		return &rx->n_link;
	if (!net_header_check_in(&rx->header, net->virtio.accepted))
		return &rx->n_header;
	if (virtio_has(&net->virtio, NET_F_MTU) && rx->header.gso_type == NET_GSO_NONE)
		longest = plain_size(rx) + NET_TAG_SIZE;
	return size > longest ? &rx->n_long_frames : NULL;
}

/* The frame but for its header is in the chains. */
static void deliver(struct net_rx *rx, uint32_t size)
{
	uint64_t left = size, sum = 0;
	uint32_t n = 0;

	while (sum < size)
		sum += rx->chains[n++].bytes;
	rx->header.num_buffers = (uint16_t)n;
	put(rx, 0, &rx->header, sizeof(rx->header));
	mark(rx, size);
	for (uint32_t i = 0; i < n; i++) {
		uint64_t here = MIN(left, rx->chains[i].bytes);

		virtqueue_push(ring_of(rx), rx->chains[i].head, (uint32_t)here);
		left -= here;
	}
	forget_chains(rx, n);
	rx->n_frames++;
	rx->n_bytes += size - NET_HEADER_SIZE;
	net_rate_take(&rx->rate, size - NET_HEADER_SIZE);
	frame_over(rx, size);
}

/* The port is sent away until `net_rx_restart`, which a kick or the timer brings. */
static bool refuse(struct net_rx *rx, enum net_refusal why, uint64_t deadline)
{
	rx->refused = why;
	loop_timer(&rx->source, deadline);
	return false;
}

static bool rate_allows(struct net_rx *rx)
{
	uint64_t when = net_rate_wait(&rx->rate, &rx->source);

	return when == 0 || refuse(rx, NET_REFUSED_RATE, when);
}

/* Frames are delivered in order, and the chains in front are where the one under way goes. */
static bool may_receive(struct net_rx *rx)
{
	if (!rx->on || rx->lent)
		return refuse(rx, NET_REFUSED_BUFFERS, UINT64_MAX);
	return rate_allows(rx);
}

/* There are buffers for `size` bytes, or fewer and no prospect of more. False: refused. */
static bool has_buffers(struct net_rx *rx, uint32_t size)
{
	if (gather(rx, size))
		return true;
	if (rx->n_chains == 0)
		return refuse(rx, NET_REFUSED_BUFFERS, UINT64_MAX);
	if (may_grow(rx) && !rx->impatient)
		return refuse(rx, NET_REFUSED_BUFFERS, loop_now(rx->source.loop) + PATIENCE_NS);
	return true;
}

/* Header, pieces of the guest for at least `size` bytes if there are as many, spill. */
static uint32_t lay_out(struct net_rx *rx, struct iovec *iov, uint32_t iov_max, uint32_t size)
{
	uint32_t n = 1, skip = NET_HEADER_SIZE;

	iov[0] = (struct iovec){&rx->header, sizeof(rx->header)};
	rx->lent_bytes = NET_HEADER_SIZE;
	for (uint32_t i = 0; i < rx->n_iov && n < iov_max - 1 && rx->lent_bytes < size; i++) {
		const struct iovec *piece = &rx->iov[i];
		size_t here = MIN(piece->iov_len, (size_t)skip);

		skip -= (uint32_t)here;
		if (here == piece->iov_len)
			continue;
		iov[n].iov_base = (uint8_t *)piece->iov_base + here;
		iov[n].iov_len =
			MIN(piece->iov_len - here, (size_t)(NET_FRAME_MAX - rx->lent_bytes));
		rx->lent_bytes += (uint32_t)iov[n++].iov_len;
	}
	iov[n++] = (struct iovec){rx->spill, NET_FRAME_MAX};
	return n;
}

uint32_t net_rx_lend(struct net_client *client, struct iovec *iov, uint32_t iov_max)
{
	struct net_rx *rx = &net_pair_of(client)->rx;
	uint32_t size = rx->n_long > 0 ? NET_FRAME_MAX : plain_size(rx);

	assert(!rx->lent && iov_max >= 3);
	if (!may_receive(rx))
		return 0;
	/* Without a link all goes to the spill, and no further. */
	if (!net_is_up(card_of(rx)))
		size = 0;
	else if (!has_buffers(rx, size))
		return 0;
	if (rx->impatient)
		rx->n_long = -PLAIN_FRAMES;
	rx->lent = true;
	return lay_out(rx, iov, iov_max, size);
}

/* A frame has been read into what was lent. */
static void take_frame(struct net_rx *rx, uint32_t size)
{
	uint64_t *counter = refusal(rx, size);

	if (!counter && !gather(rx, size))
		counter = &rx->n_no_buffer;
	mark(rx, MIN(size, rx->lent_bytes));
	if (counter) {
		drop(rx, size, counter);
		return;
	}
	if (size > rx->lent_bytes)
		put(rx, rx->lent_bytes, rx->spill, size - rx->lent_bytes);
	deliver(rx, size);
}

void net_rx_filled(struct net_client *client, uint32_t size)
{
	struct net_rx *rx = &net_pair_of(client)->rx;

	rx->lent = false;
	if (size > 0)
		take_frame(rx, size);
	if (!rx->on) {
		give_back(rx);
		virtio_queue_settle(rx->queue);
	} else if (rx->refused == NET_REFUSED_BUFFERS) {
		net_rx_restart(rx);
	}
	if (rx->pair->state == NET_PORT_STOPPING)
		net_pair_settle(rx->pair);
}

bool net_rx_receive(struct net_client *client, const void *frame, uint32_t size)
{
	struct net_rx *rx = &net_pair_of(client)->rx;
	uint64_t *counter;

	if (!may_receive(rx))
		return false;
	memset(&rx->header, 0, sizeof(rx->header));
	memcpy(&rx->header, frame, MIN((size_t)size, sizeof(rx->header)));
	counter = refusal(rx, size);
	if (counter)
		return drop(rx, size, counter);
	if (!has_buffers(rx, size))
		return false;
	if (rx->bytes < size)
		return drop(rx, size, &rx->n_no_buffer);
	put(rx, 0, frame, size);
	deliver(rx, size);
	return true;
}

/* Life */

void net_rx_restart(struct net_rx *rx)
{
	struct net_pair *pair = rx->pair;

	if (rx->refused == NET_REFUSED_NOTHING)
		return;
	rx->refused = NET_REFUSED_NOTHING;
	loop_timer(&rx->source, UINT64_MAX);
	if (rx->on && pair->state == NET_PORT_ON)
		pair->port->ops->ready(pair->port);
}

void net_rx_event(struct loop_source *source, const struct loop_event *event)
{
	struct net_rx *rx = container_of(source, struct net_rx, source);

	if (event->kind != LOOP_TIMER)
		return;
	rx->impatient = rx->refused == NET_REFUSED_BUFFERS;
	net_rx_restart(rx);
}

static void start(struct net_rx *rx)
{
	rx->on = true;
	rx->mergeable = virtio_has(&card_of(rx)->virtio, NET_F_MRG_RXBUF);
	rx->kicks = true;
	rx->n_long = 0;
	net_pair_settle(rx->pair);
}

void net_rx_run(struct net_rx *rx)
{
	if (!rx->on)
		start(rx);
	if (rx->refused == NET_REFUSED_BUFFERS)
		net_rx_restart(rx);
}

void net_rx_stop(struct net_rx *rx)
{
	rx->on = false;
	rx->refused = NET_REFUSED_NOTHING;
	rx->impatient = false;
	loop_timer(&rx->source, UINT64_MAX);
	if (!rx->lent)
		give_back(rx);
}
