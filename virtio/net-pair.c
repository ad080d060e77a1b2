/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A queue pair and what is behind it, a port or vhost-net: started, stopped, attached and told what
 * the guest accepts, each when queues, guest and frames under way allow it. The pair's loop; the
 * card's news come as posts.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "virtio/net-card.h"

/* The arrays of a pair, in one mapping. */
struct buffers {
	struct net_rx_chain chains[NET_QUEUE_SIZE];
	struct iovec rx_iov[2 * NET_QUEUE_SIZE];
	struct iovec tx_iov[NET_QUEUE_SIZE];
	struct net_tx_slot slots[NET_QUEUE_SIZE];
	uint8_t spill[NET_FRAME_MAX];
	uint8_t bounce[NET_FRAME_MAX];
};

/* Rates */

uint64_t net_rate_wait(struct net_rate *rate, struct loop_source *source)
{
	uint64_t now = loop_now(source->loop);
	uint64_t when = MAX(rate_ready(&rate->bytes, now), rate_ready(&rate->frames, now));

	if (when > 0 && !rate->waits)
		rate->n_waits++;
	rate->waits = when > 0;
	if (when > 0)
		loop_timer(source, when);
	return when;
}

void net_rate_take(struct net_rate *rate, uint32_t size)
{
	rate_take(&rate->bytes, size);
	rate_take(&rate->frames, 1);
}

static void rate_set(struct rate *rate, uint64_t per_second, uint32_t n, bool first, uint64_t now)
{
	uint64_t share = per_second ? MAX(per_second / n, 1ull) : 0;

	if (first)
		rate_init(rate, share, 0, now);
	else if (share)
		rate_change(rate, share, now);
}

/* A bucket has one owner, so each active pair has its share of the limit: a single stream does not
 * get more than that. One out of use saves nothing up, and no change of the guest's fills any. */
static void share_rates(struct net_pair *pair)
{
	const struct net_limits *limits = &pair->net->limits;
	uint32_t n_active = atomic_load(&pair->net->n_active);
	uint32_t n = pair->number < n_active ? n_active : UINT32_MAX;
	uint64_t now = loop_now(pair->source.loop);
	bool first = pair->n_shares == 0;

	if (n_active == 0 || n == pair->n_shares)
		return;
	pair->n_shares = n;
	rate_set(&pair->rx.rate.bytes, limits->rx_rate, n, first, now);
	rate_set(&pair->rx.rate.frames, limits->rx_frames, n, first, now);
	rate_set(&pair->tx.rate.bytes, limits->tx_rate, n, first, now);
	rate_set(&pair->tx.rate.frames, limits->tx_frames, n, first, now);
}

/* The port */

static bool is_active(const struct net_pair *pair)
{
	return pair->number < atomic_load(&pair->net->n_active);
}

static bool is_served(const struct net_pair *pair)
{
	return pair->state == NET_PORT_ON || pair->vhost_runs[NET_RX] || pair->vhost_runs[NET_TX];
}

static void port_start(struct net_pair *pair)
{
	pair->state = NET_PORT_ON;
	pair->accepted = atomic_load(&pair->net->offloads);
	pair->port->ops->start(pair->port, net_offloads_of(pair->accepted));
	loop_batch(&pair->tx.source); /* frames may have waited for it */
}

void net_pair_settle(struct net_pair *pair)
{
	const struct net_port_ops *ops = pair->port->ops;
	bool active = is_active(pair), wanted = active && (pair->rx.on || pair->tx.on);

	if (pair->state == NET_PORT_ON && !wanted) {
		pair->state = NET_PORT_STOPPING;
		ops->stop(pair->port);
	}
	if (pair->state == NET_PORT_STOPPING && pair->tx.in_flight == 0 && !pair->rx.lent)
		pair->state = NET_PORT_OFF;
	if (pair->state != NET_PORT_OFF)
		return;
	if (ops->attach && pair->attached != active) {
		pair->attached = active;
		ops->attach(pair->port, active);
	}
	if (wanted)
		port_start(pair);
}

static void pair_update(struct net_pair *pair)
{
	const struct net_port_ops *ops = pair->port->ops;
	uint64_t offloads = atomic_load(&pair->net->offloads);

	share_rates(pair);
	net_pair_settle(pair);
	if (ops->accept && pair->accepted != offloads && is_served(pair)) {
		pair->accepted = offloads;
		ops->accept(pair->port, net_offloads_of(offloads));
	}
	net_rx_restart(&pair->rx);
}

static void pair_event(struct loop_source *source, const struct loop_event *event)
{
	struct net_pair *pair = container_of(source, struct net_pair, source);

	if (event->kind != LOOP_POST || event->arg == LOOP_BATCH)
		return;
	atomic_store(&pair->update_posted, false);
	pair_update(pair);
}

/* The port's batch is over. */
static void port_batch(struct net_client *client)
{
	struct net_pair *pair = net_pair_of(client);

	virtqueue_publish(&pair->rx.queue->ring);
	virtqueue_publish(&pair->tx.queue->ring);
}

static void port_link(struct net_client *client, bool up, const char *why)
{
	struct net_pair *pair = net_pair_of(client);
	struct net *net = pair->net;
	uint32_t bit = 1u << pair->number, old;

	old = up ? atomic_fetch_and(&net->ports_down, ~bit)
		 : atomic_fetch_or(&net->ports_down, bit);
	if (!(old & bit) == up)
		return;
	log_limited(&net->link_lines, up ? LOG_LEVEL_INFO : LOG_LEVEL_WARNING,
		    "%s: the %s of queue pair %u is %s: %s%s", net_device(net)->name,
		    pair->port->ops->name, pair->number, up ? "back" : "gone", why,
		    up ? "" : "; the link is down, frames are dropped");
	pthread_mutex_lock(&net_device(net)->lock);
	net_state_changed(net);
	pthread_mutex_unlock(&net_device(net)->lock);
}

static const struct net_client_ops client_ops = {
	.sent = net_tx_sent,
	.room = net_tx_room,
	.lend = net_rx_lend,
	.filled = net_rx_filled,
	.receive = net_rx_receive,
	.batch = port_batch,
	.link = port_link,
};

/* vhost */

/* One that failed is left alone until the next reset: both queues are then served here. */
bool net_pair_offload(struct net_pair *pair, struct virtio_queue *queue)
{
	struct net *net = pair->net;
	uint32_t side = queue->ring.index % 2;
	int r;

	if (!pair->vhost || pair->vhost_failed)
		return false;
	r = vhost_net_start(pair->vhost, side, &queue->ring, queue->kick_fd, net->virtio.accepted);
	if (r < 0) {
		pair->vhost_failed = true;
		if (!atomic_flag_test_and_set(&net->vhost_said))
			log_warning("%s: the kernel's vhost-net does not take queue %u: %s; going "
				    "on without",
				    net_device(net)->name, queue->ring.index, strerror(-r));
		return false;
	}
	pair->vhost_runs[side] = true;
	pair_update(pair);
	return true;
}

void net_pair_call_changed(struct net_pair *pair, struct virtio_queue *queue)
{
	uint32_t side = queue->ring.index % 2;
	int r;

	if (!pair->vhost_runs[side])
		return;
	r = vhost_net_call(pair->vhost, side, atomic_load(&queue->ring.call_fd));
	if (r < 0)
		log_limited(&pair->net->virtio.complaints, LOG_LEVEL_WARNING,
			    "%s: vhost-net does not take another interrupt for queue %u: %s, "
			    "ignoring",
			    net_device(pair->net)->name, queue->ring.index, strerror(-r));
}

static void vhost_stop(struct net_pair *pair, struct virtio_queue *queue)
{
	uint32_t side = queue->ring.index % 2;
	int r = vhost_net_stop(pair->vhost, side, &queue->ring);

	pair->vhost_runs[side] = false;
	if (r < 0)
		log_limited(&pair->net->virtio.complaints, LOG_LEVEL_ERROR,
			    "%s: cannot take queue %u back from vhost-net: %s",
			    net_device(pair->net)->name, queue->ring.index, strerror(-r));
}

/* Queues */

void net_pair_stop(struct net_pair *pair, struct virtio_queue *queue)
{
	if (pair->vhost_runs[queue->ring.index % 2])
		vhost_stop(pair, queue);
	else if (queue == pair->rx.queue)
		net_rx_stop(&pair->rx);
	else
		net_tx_stop(&pair->tx);
	net_pair_settle(pair);
}

static int add_source(struct loop *loop, struct loop_source *source,
		      void (*on_event)(struct loop_source *source, const struct loop_event *event))
{
	source->on_event = on_event;
	return loop_add(loop, source);
}

static int map_buffers(struct net_pair *pair)
{
	struct buffers *buffers = mmap(NULL, sizeof(*buffers), PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (buffers == MAP_FAILED)
		return -errno;
	pair->buffers = buffers;
	pair->rx.chains = buffers->chains;
	pair->rx.iov = buffers->rx_iov;
	pair->rx.spill = buffers->spill;
	pair->tx.iov = buffers->tx_iov;
	pair->tx.slots = buffers->slots;
	pair->tx.bounce = buffers->bounce;
	return 0;
}

int net_pair_init(struct net_pair *pair)
{
	struct virtio_queue *queues = &pair->net->virtio.queues[2 * pair->number];
	struct loop *loop = queues[NET_RX].loop;
	int r = map_buffers(pair);

	pair->attached = true;
	pair->accepted = UINT64_MAX; /* what it was told before is not known */
	pair->client.ops = &client_ops;
	pair->port->client = &pair->client;
	pair->rx.pair = pair->tx.pair = pair;
	pair->rx.queue = &queues[NET_RX];
	pair->tx.queue = &queues[NET_TX];
	if (r >= 0)
		r = add_source(loop, &pair->source, pair_event);
	if (r >= 0)
		r = add_source(loop, &pair->rx.source, net_rx_event);
	if (r >= 0)
		r = add_source(loop, &pair->tx.source, net_tx_event);
	if (r >= 0)
		share_rates(pair);
	return r;
}

void net_pair_deinit(struct net_pair *pair)
{
	loop_remove(&pair->source);
	loop_remove(&pair->rx.source);
	loop_remove(&pair->tx.source);
	pair->vhost = vhost_net_free(pair->vhost);
	if (pair->port)
		pair->port->ops->free(take_ptr(pair->port));
	if (pair->buffers)
		munmap(take_ptr(pair->buffers), sizeof(struct buffers));
}
