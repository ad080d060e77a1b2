/* SPDX-License-Identifier: Apache-2.0 */
/* The number of a bucket is the number of bits of the time in microseconds. */
#include "virtio/blk-latency.h"

#include "base/macros.h"

void blk_latency_add(struct blk_latency *latency, uint64_t ns)
{
	uint64_t us = ns / 1000;
	uint32_t bits = us ? 64 - (uint32_t)__builtin_clzll(us) : 0;

	latency->counts[MIN(bits, (uint32_t)BLK_LATENCY_BUCKETS - 1)]++;
}

void blk_latency_sum(struct blk_latency *sum, const struct blk_latency *one)
{
	for (uint32_t i = 0; i < BLK_LATENCY_BUCKETS; i++)
		sum->counts[i] += one->counts[i];
}

json_t *blk_latency_json(const struct blk_latency *latency)
{
	json_t *list = json_array();
	uint32_t n = BLK_LATENCY_BUCKETS;

	while (n > 0 && !latency->counts[n - 1])
		n--;
	for (uint32_t i = 0; i < n; i++)
		json_array_append_new(list, json_integer((json_int_t)latency->counts[i]));
	return list;
}
