/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What went by and what was dropped, by cause, summed over the pairs of a card. Main thread; each
 * number is written by its pair's loop alone, so a reader may be a little behind.
 */
#include <arpa/inet.h>

#include "base/atomic.h"
#include "virtio/net-card.h"

struct sum {
	const char *name;
	size_t offset; /* in struct net_pair, of a uint64_t */
};

static const struct sum sums[] = {
	{"rx-frames", offsetof(struct net_pair, rx.n_frames)},
	{"rx-bytes", offsetof(struct net_pair, rx.n_bytes)},
	{"rx-short", offsetof(struct net_pair, rx.n_short)},
	{"rx-long", offsetof(struct net_pair, rx.n_long_frames)},
	{"rx-bad-header", offsetof(struct net_pair, rx.n_header)},
	{"rx-no-buffer", offsetof(struct net_pair, rx.n_no_buffer)},
	{"rx-link-down", offsetof(struct net_pair, rx.n_link)},
	{"rx-rate-waits", offsetof(struct net_pair, rx.rate.n_waits)},
	{"tx-frames", offsetof(struct net_pair, tx.n_frames)},
	{"tx-bytes", offsetof(struct net_pair, tx.n_bytes)},
	{"tx-short", offsetof(struct net_pair, tx.n_short)},
	{"tx-long", offsetof(struct net_pair, tx.n_long)},
	{"tx-bad-header", offsetof(struct net_pair, tx.n_header)},
	{"tx-link-down", offsetof(struct net_pair, tx.n_link)},
	{"tx-lost", offsetof(struct net_pair, tx.n_lost)},
	{"tx-rate-waits", offsetof(struct net_pair, tx.rate.n_waits)},
};

static uint64_t sum_of(const struct net *net, size_t offset)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < net->n_pairs; i++)
		sum += load_relaxed((const uint64_t *)((const char *)&net->pairs[i] + offset));
	return sum;
}

static void count_ports(const struct net *net, json_t *into)
{
	uint64_t read_calls = 0, write_calls = 0;
	bool vhost = false;

	for (uint32_t i = 0; i < net->n_pairs; i++) {
		read_calls += load_relaxed(&net->pairs[i].port->n_read_calls);
		write_calls += load_relaxed(&net->pairs[i].port->n_write_calls);
		vhost |= net->pairs[i].vhost && !net->pairs[i].vhost_failed;
	}
	json_object_set_new(into, "rx-calls", json_integer((json_int_t)read_calls));
	json_object_set_new(into, "tx-calls", json_integer((json_int_t)write_calls));
	json_object_set_new(into, "vhost", json_boolean(vhost));
}

void net_counters(const struct virtio_device *virtio, json_t *into)
{
	const struct net *net = container_of(virtio, const struct net, virtio);
	uint32_t address = net_address(net);
	char text[INET_ADDRSTRLEN];

	for (uint32_t i = 0; i < ARRAY_SIZE(sums); i++)
		json_object_set_new(into, sums[i].name,
				    json_integer((json_int_t)sum_of(net, sums[i].offset)));
	count_ports(net, into);
	json_object_set_new(into, "link", json_boolean(net_is_up(net)));
	json_object_set_new(into, "active-pairs", json_integer(atomic_load(&net->n_active)));
	if (address && inet_ntop(AF_INET, &address, text, sizeof(text)))
		json_object_set_new(into, "address", json_string(text));
}
