/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a disk may do in a second: operations and bytes, read, written and together. One set a disk,
 * shared by its queues, which are on several loops; so it has a lock, taken only where there is a
 * limit. It has no timer: a queue that is refused is told when to ask again.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/rate.h"

/* A second's worth; 0: no limit. */
struct blk_limit {
	uint64_t operations, bytes;
};

struct blk_limit_set {
	struct blk_limit all, reads, writes;
};

struct blk_limits {
	bool any; /* settled by blk_limits_init */
	pthread_mutex_t lock;
	struct blk_bucket {
		struct rate operations, bytes;
	} all, reads, writes; /* lock */
};

void blk_limits_init(struct blk_limits *limits, const struct blk_limit_set *set, uint64_t now);

/*
 * 0: go on, it is counted. Otherwise the time (CLOCK_MONOTONIC ns) from which on it is worth asking
 * again, and nothing is counted. An operation of any size goes once the limit is not exceeded: the
 * next one waits the longer. Any thread.
 */
uint64_t blk_limits_take(struct blk_limits *limits, bool write, uint64_t bytes, uint64_t now);
