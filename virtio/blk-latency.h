/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long operations took: a count for each power of two of microseconds. Written by one loop,
 * read by the main thread, which may see it a little older than it is.
 */
#pragma once

#include <jansson.h>
#include <stdint.h>

#define BLK_LATENCY_BUCKETS 28 /* the last: a minute and more */

/* counts[0]: below a microsecond; counts[i]: from 2^(i-1) to below 2^i microseconds. */
struct blk_latency {
	uint64_t counts[BLK_LATENCY_BUCKETS];
};

void blk_latency_add(struct blk_latency *latency, uint64_t ns);
void blk_latency_sum(struct blk_latency *sum, const struct blk_latency *one);
/* The counts as a list, up to the last that is not zero. NULL when out of memory. */
json_t *blk_latency_json(const struct blk_latency *latency);
