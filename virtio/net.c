/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The card as a whole: features, configuration, state and link. What the guest and a person set
 * comes in under the device's lock and goes to the pairs (net-pair.c) as messages; frames go by in
 * net-rx.c and net-tx.c. Migrates: net_state.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "virtio/net-card.h"

#define VIRTIO_ID_NET  1
#define CLASS_ETHERNET 0x020000

/* virtio 1.2, 5.1.4; little-endian */
#define STATUS_LINK_UP  1u
#define STATUS_ANNOUNCE 2u
#define SPEED_MBIT      10000 /* what a tap says of itself */
#define DUPLEX_FULL     1

#define FEATURES_ALWAYS                                                               \
	(NET_F_MAC | NET_F_STATUS | NET_F_MRG_RXBUF | NET_F_CTRL_VQ | NET_F_CTRL_RX | \
	 NET_F_CTRL_RX_EXTRA | NET_F_CTRL_MAC_ADDR | NET_F_GUEST_ANNOUNCE | NET_F_SPEED_DUPLEX)

struct config {
	uint8_t mac[6];
	uint16_t status;
	uint16_t max_pairs;
	uint16_t mtu;
	uint32_t speed;
	uint8_t duplex;
} __attribute__((packed));
_Static_assert(sizeof(struct config) == 17, "5.1.4");

static const struct field state_fields[] = {
	FIELD(struct net_state, mac, FIELD_BYTES, "mac", "the address the guest goes by"),
	FIELD(struct net_state, n_active, FIELD_U32, "active-pairs", "queue pairs the guest uses",
	      .min = 1, .max = NET_PAIRS_MAX, .initial = 1),
	FIELD(struct net_state, offloads, FIELD_U64, "offloads",
	      "features of incoming frames that are turned on"),
	FIELD(struct net_state, announce, FIELD_BOOL, "announce",
	      "the guest was asked to announce itself and has not answered"),
	FIELD(struct net_state, link, FIELD_BOOL, "link", "plugged in", .initial = true),
	FIELD(struct net_state, address, FIELD_U32, "address",
	      "IPv4 address last seen, network byte order"),
};
static const struct table state_table =
	TABLE(struct net_state, "virtio-net", "a network card", state_fields);

/* Configuration */

static void config_read(struct virtio_device *virtio, uint32_t offset, void *data, uint32_t len)
{
	struct net *net = net_of(virtio);
	struct config config = {
		.max_pairs = (uint16_t)net->n_pairs,
		.mtu = net->mtu,
		.speed = SPEED_MBIT,
		.duplex = DUPLEX_FULL,
	};

	memcpy(config.mac, net->state.mac, sizeof(config.mac));
	config.status = net_is_up(net) ? STATUS_LINK_UP : 0;
	config.status |= net->state.announce ? STATUS_ANNOUNCE : 0;
	memcpy(data, (uint8_t *)&config + offset, len);
}

void net_state_changed(struct net *net)
{
	bool up = net->state.link && atomic_load(&net->ports_down) == 0;
	uint64_t mac = 0;

	memcpy(&mac, net->state.mac, sizeof(net->state.mac));
	atomic_store(&net->mac_now, mac);
	atomic_store(&net->n_active, net->state.n_active);
	atomic_store(&net->offloads, net->state.offloads);
	if (atomic_exchange(&net->up, up) != up)
		virtio_config_changed(&net->virtio);
	for (uint32_t i = 0; i < net->n_pairs; i++)
		if (!atomic_exchange(&net->pairs[i].update_posted, true))
			loop_post(&net->pairs[i].source, 0);
}

void net_set_link(struct net *net, bool up)
{
	pthread_mutex_lock(&net_device(net)->lock);
	net->state.link = up;
	net_state_changed(net);
	pthread_mutex_unlock(&net_device(net)->lock);
}

bool net_announce(struct net *net)
{
	struct virtio_device *virtio = &net->virtio;
	bool known;

	pthread_mutex_lock(&net_device(net)->lock);
	known = atomic_load(&virtio->status) & VIRTIO_STATUS_DRIVER_OK &&
		virtio_has(virtio, NET_F_GUEST_ANNOUNCE) && virtio_has(virtio, NET_F_STATUS);
	if (known) {
		net->state.announce = true;
		virtio_config_changed(virtio);
	}
	pthread_mutex_unlock(&net_device(net)->lock);
	return known;
}

uint32_t net_address(const struct net *net)
{
	return atomic_load(&net->address);
}

/* Queues */

/* Without MQ there is one pair, and the control queue comes right behind it (5.1.2). */
static bool is_control(const struct net *net, const struct virtio_queue *queue)
{
	return queue->ring.index == (virtio_has(&net->virtio, NET_F_MQ) ? 2 * net->n_pairs : 2);
}

/* NULL: the queue belongs to none that the driver may use. */
static struct net_pair *pair_of(struct net *net, const struct virtio_queue *queue)
{
	uint32_t n = virtio_has(&net->virtio, NET_F_MQ) ? net->n_pairs : 1;

	return queue->ring.index / 2u < n ? &net->pairs[queue->ring.index / 2] : NULL;
}

static bool net_offload(struct virtio_device *virtio, struct virtio_queue *queue)
{
	struct net_pair *pair = pair_of(net_of(virtio), queue);

	return pair && net_pair_offload(pair, queue);
}

static void net_call_changed(struct virtio_device *virtio, struct virtio_queue *queue)
{
	struct net_pair *pair = pair_of(net_of(virtio), queue);

	if (pair)
		net_pair_call_changed(pair, queue);
}

static void net_run(struct virtio_device *virtio, struct virtio_queue *queue)
{
	struct net *net = net_of(virtio);
	struct net_pair *pair = pair_of(net, queue);

	if (is_control(net, queue)) {
		net_control_run(net, queue);
	} else if (pair && queue == pair->rx.queue) {
		net_rx_run(&pair->rx);
	} else if (pair) {
		net_tx_run(&pair->tx);
	}
}

static void net_stop(struct virtio_device *virtio, struct virtio_queue *queue)
{
	struct net *net = net_of(virtio);
	struct net_pair *pair = pair_of(net, queue);

	if (pair)
		net_pair_stop(pair, queue);
}

/* Life */

static void net_activate(struct virtio_device *virtio)
{
	struct net *net = net_of(virtio);

	net->state.n_active = 1;
	net->state.offloads = virtio->accepted & NET_F_GUEST_OFFLOADS;
	net->state.announce = false;
	net_state_changed(net);
}

static void net_reset(struct virtio_device *virtio)
{
	struct net *net = net_of(virtio);

	memcpy(net->state.mac, net->mac, sizeof(net->mac));
	net->state.n_active = 1;
	net->state.offloads = 0;
	net->state.announce = false;
	atomic_store(&net->address, 0);
	for (uint32_t i = 0; i < net->n_pairs; i++)
		net->pairs[i].vhost_failed = false;
	net_state_changed(net);
}

static uint32_t net_states(struct virtio_device *virtio, struct device_state *states)
{
	struct net *net = net_of(virtio);

	net->state.address = atomic_load(&net->address);
	states[0] = (struct device_state){&state_table, &net->state};
	return 1;
}

static int net_loaded(struct virtio_device *virtio, struct error *err)
{
	struct net *net = net_of(virtio);
	const struct net_state *state = &net->state;
	const char *name = virtio->device->name;

	if (state->n_active == 0 ||
	    state->n_active > (virtio_has(virtio, NET_F_MQ) ? net->n_pairs : 1))
		return error_set(err, -EBADMSG,
				 "cannot load %s: its guest uses %u queue pairs of %u", name,
				 state->n_active, net->n_pairs);
	if (state->offloads & ~(virtio->accepted & NET_F_GUEST_OFFLOADS))
		return error_set(err, -EBADMSG,
				 "cannot load %s: offloads are on that were not negotiated: 0x%llx",
				 name, (unsigned long long)state->offloads);
	if (state->announce && !virtio_has(virtio, NET_F_GUEST_ANNOUNCE))
		return error_set(
			err, -EBADMSG,
			"cannot load %s: an announcement is due of a guest that makes none", name);
	if (!net_mac_is_station(state->mac))
		return error_set(err, -EBADMSG, "cannot load %s: its address is not that of a card",
				 name);
	atomic_store(&net->address, state->address);
	net_state_changed(net);
	return 0;
}

static void net_deinit(struct virtio_device *virtio)
{
	struct net *net = net_of(virtio);

	for (uint32_t i = 0; i < net->n_pairs; i++)
		net_pair_deinit(&net->pairs[i]);
}

static const struct virtio_ops net_ops = {
	.type = "virtio-net",
	.id = VIRTIO_ID_NET,
	.class_code = CLASS_ETHERNET,
	.config_read = config_read,
	.activate = net_activate,
	.offload = net_offload,
	.call_changed = net_call_changed,
	.run = net_run,
	.stop = net_stop,
	.reset = net_reset,
	.states = net_states,
	.loaded = net_loaded,
	.counters = net_counters,
	.deinit = net_deinit,
};

/* Making */

/* What all ports and kernels behind the card can do is what it can do. */
static uint64_t features_of(const struct net *net)
{
	static const struct {
		uint32_t offload;
		uint64_t features;
	} offered[] = {
		{NET_OFFLOAD_CSUM, NET_F_CSUM | NET_F_GUEST_CSUM},
		{NET_OFFLOAD_TSO4, NET_F_HOST_TSO4 | NET_F_GUEST_TSO4},
		{NET_OFFLOAD_TSO6, NET_F_HOST_TSO6 | NET_F_GUEST_TSO6},
		{NET_OFFLOAD_ECN, NET_F_HOST_ECN | NET_F_GUEST_ECN},
		{NET_OFFLOAD_USO, NET_F_HOST_USO | NET_F_GUEST_USO4 | NET_F_GUEST_USO6},
	};
	uint64_t features = FEATURES_ALWAYS | NET_F_CTRL_GUEST_OFFLOADS;
	uint64_t kernel = UINT64_MAX;
	uint32_t offloads = UINT32_MAX;

	for (uint32_t i = 0; i < net->n_pairs; i++) {
		offloads &= net->pairs[i].port->offloads;
		if (net->pairs[i].vhost)
			kernel &= vhost_net_features(net->pairs[i].vhost);
		if (!net->pairs[i].port->ops->accept)
			features &= ~NET_F_CTRL_GUEST_OFFLOADS;
	}
	/* Segmentation goes with checksums (5.1.3.1). */
	if (!(offloads & NET_OFFLOAD_CSUM))
		return (features & ~NET_F_CTRL_GUEST_OFFLOADS) & kernel;
	for (uint32_t i = 0; i < ARRAY_SIZE(offered); i++)
		features |= offloads & offered[i].offload ? offered[i].features : 0;
	return features & kernel;
}

/* The options' ports and kernels are the card's from here on, whatever comes. */
static void take_over(struct net *net, const struct net_options *options)
{
	net->n_pairs = options->n_pairs;
	for (uint32_t i = 0; i < net->n_pairs; i++) {
		net->pairs[i].net = net;
		net->pairs[i].number = i;
		net->pairs[i].port = options->ports[i];
		net->pairs[i].vhost = options->vhosts ? options->vhosts[i] : NULL;
	}
	memcpy(net->mac, options->mac, sizeof(net->mac));
	memcpy(net->state.mac, options->mac, sizeof(net->mac));
	net->mtu = options->mtu;
	net->limits = options->limits;
	net->state.n_active = 1;
	net->state.link = true;
}

static void free_ends(const struct net_options *options)
{
	for (uint32_t i = 0; i < options->n_pairs; i++) {
		if (options->vhosts)
			vhost_net_free(options->vhosts[i]);
		options->ports[i]->ops->free(options->ports[i]);
	}
}

static int check(const struct net *net, const struct net_options *options, struct error *err)
{
	const struct net_limits *limits = &net->limits;

	if (!net_mac_is_station(net->mac))
		return error_set(err, -EINVAL,
				 "cannot make %s: its MAC address is a group's or zero",
				 options->name);
	if (options->vhosts &&
	    (limits->rx_rate || limits->tx_rate || limits->rx_frames || limits->tx_frames))
		return error_set(err, -EINVAL,
				 "cannot limit the rate of %s: vhost-net knows no limits; leave "
				 "them out or say vhost=off",
				 options->name);
	for (uint32_t i = 0; net->n_pairs > 1 && i < net->n_pairs; i++)
		if (!net->pairs[i].port->ops->attach)
			return error_set(
				err, -EINVAL, "cannot make %s of %u queue pairs: a %s has only one",
				options->name, net->n_pairs, net->pairs[i].port->ops->name);
	return 0;
}

static int init(struct net *net, struct pci_root *root, uint32_t slot, struct guest_memory *memory,
		struct loop *const *loops, uint32_t n_loops, const struct net_options *options,
		struct error *err)
{
	struct loop *of_queue[2 * NET_PAIRS_MAX + 1];
	uint32_t n_queues = 2 * net->n_pairs + 1;
	int r = check(net, options, err);

	if (r < 0)
		return r;
	for (uint32_t i = 0; i < n_queues; i++)
		of_queue[i] = loops[i / 2 % net->n_pairs % n_loops];
	net->virtio.offered = features_of(net);
	net->virtio.offered |= net->mtu ? NET_F_MTU : 0;
	net->virtio.offered |= net->n_pairs > 1 ? NET_F_MQ : 0;
	net->virtio.config_size = sizeof(struct config);
	r = virtio_pci_init(&net->pci, root, slot, options->name, &net->virtio, &net_ops, memory,
			    n_queues, NET_QUEUE_SIZE, of_queue, n_queues, err);
	for (uint32_t i = 0; r >= 0 && i < net->n_pairs; i++) {
		r = net_pair_init(&net->pairs[i]);
		if (r < 0)
			return error_set(err, r, "cannot make queue pair %u of %s: %s", i,
					 options->name, strerror(-r));
	}
	return r;
}

int net_new(struct net **ret_net, struct pci_root *root, uint32_t slot, struct guest_memory *memory,
	    struct loop *const *loops, uint32_t n_loops, const struct net_options *options,
	    struct error *err)
{
	struct net *net = calloc(1, sizeof(*net));
	int r;

	assert(options->n_pairs > 0 && options->n_pairs <= NET_PAIRS_MAX);
	if (!net) {
		free_ends(options);
		return error_set(err, -ENOMEM, "cannot make %s: out of memory", options->name);
	}
	take_over(net, options);
	r = init(net, root, slot, memory, loops, n_loops, options, err);
	if (r < 0) {
		net_free(net);
		return r;
	}
	net_state_changed(net);
	*ret_net = net;
	return 0;
}

struct net *net_free(struct net *net)
{
	if (!net)
		return NULL;
	if (net->pci.virtio)
		net_device(net)->ops->deinit(net_device(net));
	/* What the device did not come to own. */
	for (uint32_t i = 0; i < net->n_pairs; i++)
		net_pair_deinit(&net->pairs[i]);
	free(net);
	return NULL;
}

struct device *net_device(struct net *net)
{
	return &net->pci.function.device;
}
