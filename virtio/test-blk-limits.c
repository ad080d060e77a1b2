/* SPDX-License-Identifier: Apache-2.0 */
/* A disk's limits under a clock of the test's own, and its latencies' buckets. */
#include <criterion/criterion.h>

#include "base/macros.h"
#include "virtio/blk-latency.h"
#include "virtio/blk-limits.h"

#define SECOND 1000000000ull
#define START  (5 * SECOND + 7)

static struct blk_limits limits;

static void set(const struct blk_limit_set *wanted)
{
	blk_limits_init(&limits, wanted, START);
}

/* Operations of that size that go between START and `end`, each as soon as it may. */
static uint64_t carried(bool write, uint64_t bytes, uint64_t end)
{
	uint64_t now = START, n = 0;

	while (now < end) {
		uint64_t ready = blk_limits_take(&limits, write, bytes, now);

		cr_assert(ready == 0 || ready > now, "it is worth asking later only");
		if (ready)
			now = ready;
		else
			n++;
	}
	return n;
}

Test(blk_limits, without_a_limit_all_goes)
{
	set(&(struct blk_limit_set){0});
	cr_assert_not(limits.any);
	for (uint32_t i = 0; i < 1000; i++)
		cr_assert_eq(blk_limits_take(&limits, i % 2, UINT64_MAX, START), 0);
}

Test(blk_limits, operations_keep_their_rate)
{
	uint64_t n;

	set(&(struct blk_limit_set){.all = {.operations = 100}});
	n = carried(true, 1 << 20, START + 10 * SECOND);
	cr_assert(n >= 1000 && n <= 1011, "%lu: ten seconds and a tenth's burst", n);
}

Test(blk_limits, bytes_keep_their_rate_whatever_the_size)
{
	const uint64_t sizes[] = {512, 4096, 1 << 20, 8 << 20};

	for (uint32_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		uint64_t moved;

		set(&(struct blk_limit_set){.all = {.bytes = 1 << 20}});
		moved = carried(false, sizes[i], START + 100 * SECOND) * sizes[i];
		cr_assert(moved >= 100u << 20, "%lu of size %lu", moved, sizes[i]);
		cr_assert(moved <= (101u << 20) + sizes[i], "%lu of size %lu", moved, sizes[i]);
	}
}

Test(blk_limits, reads_and_writes_have_their_own_and_share_one)
{
	set(&(struct blk_limit_set){.reads = {.operations = 10}, .writes = {.operations = 20}});
	cr_assert_eq(carried(false, 512, START + 10 * SECOND), 100);
	cr_assert_eq(carried(true, 512, START + 10 * SECOND), 201);
	set(&(struct blk_limit_set){.all = {.operations = 10}, .reads = {.operations = 1000}});
	cr_assert_eq(blk_limits_take(&limits, true, 512, START), 0);
	cr_assert_eq(blk_limits_take(&limits, false, 512, START), START + SECOND / 10);
}

Test(blk_limits, what_is_refused_is_not_counted)
{
	set(&(struct blk_limit_set){.all = {.operations = 10, .bytes = 1000}});
	cr_assert_eq(blk_limits_take(&limits, false, 1000, START), 0);
	for (uint32_t i = 0; i < 1000; i++)
		cr_assert_gt(blk_limits_take(&limits, false, 1000, START), START);
	cr_assert_eq(blk_limits_take(&limits, false, 1000, START + SECOND), 0);
}

Test(blk_limits, the_time_told_is_the_first_that_will_do)
{
	uint64_t ready;

	set(&(struct blk_limit_set){.all = {.operations = 3}, .writes = {.bytes = 7}});
	cr_assert_eq(blk_limits_take(&limits, true, 512, START), 0);
	ready = blk_limits_take(&limits, true, 512, START);
	cr_assert_gt(blk_limits_take(&limits, true, 512, ready - 1), 0);
	cr_assert_eq(blk_limits_take(&limits, true, 512, ready), 0);
}

Test(blk_latency, a_bucket_ends_below_its_power_of_two)
{
	static const struct {
		uint64_t ns;
		uint32_t bucket;
	} times[] = {{0, 0},    {999, 0},      {1000, 1},
		     {1999, 1}, {2000, 2},     {3999, 2},
		     {4000, 3}, {1000000, 10}, {UINT64_MAX, BLK_LATENCY_BUCKETS - 1}};

	for (uint32_t i = 0; i < ARRAY_SIZE(times); i++) {
		struct blk_latency latency = {0};

		blk_latency_add(&latency, times[i].ns);
		cr_assert_eq(latency.counts[times[i].bucket], 1, "%lu ns", times[i].ns);
	}
}

Test(blk_latency, the_list_ends_with_the_last_that_counts)
{
	struct blk_latency sum = {0}, one = {0};
	json_t *list;

	blk_latency_add(&one, 5000);
	blk_latency_sum(&sum, &one);
	blk_latency_sum(&sum, &one);
	list = blk_latency_json(&sum);
	cr_assert_eq(json_array_size(list), 4);
	cr_assert_eq(json_integer_value(json_array_get(list, 3)), 2);
	cr_assert_eq(json_integer_value(json_array_get(list, 0)), 0);
	json_decref(list);
}
