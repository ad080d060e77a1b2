/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two buckets for each of the three: an operation goes when all that it falls under have something
 * left.
 */
#include "virtio/blk-limits.h"

#include "base/macros.h"

static bool bucket_init(struct blk_bucket *bucket, const struct blk_limit *limit, uint64_t now)
{
	rate_init(&bucket->operations, limit->operations, 0, now);
	rate_init(&bucket->bytes, limit->bytes, 0, now);
	return limit->operations || limit->bytes;
}

void blk_limits_init(struct blk_limits *limits, const struct blk_limit_set *set, uint64_t now)
{
	pthread_mutex_init(&limits->lock, NULL);
	limits->any = bucket_init(&limits->all, &set->all, now);
	limits->any |= bucket_init(&limits->reads, &set->reads, now);
	limits->any |= bucket_init(&limits->writes, &set->writes, now);
}

static uint64_t bucket_ready(struct blk_bucket *bucket, uint64_t now)
{
	uint64_t operations = rate_ready(&bucket->operations, now);
	uint64_t bytes = rate_ready(&bucket->bytes, now);

	return MAX(operations, bytes);
}

static void bucket_take(struct blk_bucket *bucket, uint64_t bytes)
{
	rate_take(&bucket->operations, 1);
	rate_take(&bucket->bytes, bytes);
}

uint64_t blk_limits_take(struct blk_limits *limits, bool write, uint64_t bytes, uint64_t now)
{
	struct blk_bucket *own = write ? &limits->writes : &limits->reads;
	uint64_t all, ready;

	if (!limits->any)
		return 0;
	pthread_mutex_lock(&limits->lock);
	all = bucket_ready(&limits->all, now);
	ready = bucket_ready(own, now);
	ready = MAX(all, ready);
	if (!ready) {
		bucket_take(&limits->all, bytes);
		bucket_take(own, bytes);
	}
	pthread_mutex_unlock(&limits->lock);
	return ready;
}
