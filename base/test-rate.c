/* SPDX-License-Identifier: Apache-2.0 */
/* The token bucket, under a clock of the test's own. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include "base/rate.h"

#define SECOND 1000000000ull
#define START  (77 * SECOND + 123)

static struct rate bucket(uint64_t per_second, uint64_t burst)
{
	struct rate rate;

	rate_init(&rate, per_second, burst, START);
	return rate;
}

Test(rate, without_a_limit_it_never_refuses)
{
	struct rate rate = bucket(0, 0);

	for (int i = 0; i < 1000; i++) {
		cr_assert(eq(u64, rate_ready(&rate, START), 0));
		rate_take(&rate, UINT64_MAX);
	}
}

Test(rate, burst_goes_at_once_and_then_the_next_unit_has_its_time)
{
	struct rate rate = bucket(1000, 50);

	for (int i = 0; i < 50; i++) {
		cr_assert(eq(u64, rate_ready(&rate, START), 0));
		rate_take(&rate, 1);
	}
	cr_assert(eq(u64, rate_ready(&rate, START), START + 1000000));
	/* Asking costs nothing and changes nothing. */
	cr_assert(eq(u64, rate_ready(&rate, START + 999999), START + 1000000));
	cr_assert(eq(u64, rate_ready(&rate, START + 1000000), 0));
	rate_take(&rate, 1);
	cr_assert(eq(u64, rate_ready(&rate, START + 1000000), START + 2000000));
}

Test(rate, default_burst_is_a_tenth_of_a_second)
{
	struct rate rate = bucket(12345, 0), slow = bucket(3, 0);

	cr_assert(eq(u64, rate.burst, 1234));
	cr_assert(eq(u64, slow.burst, 1));
}

Test(rate, what_is_taken_beyond_is_paid_back)
{
	struct rate rate = bucket(1000, 10);

	rate_take(&rate, 510);
	cr_assert(eq(u64, rate_ready(&rate, START), START + 501 * 1000000ull));
	cr_assert(eq(u64, rate_ready(&rate, START + 250 * 1000000ull), START + 501 * 1000000ull));
	cr_assert(eq(u64, rate_ready(&rate, START + 501 * 1000000ull), 0));
}

Test(rate, the_time_given_is_the_first_that_will_do)
{
	/* Seven units a second do not divide a second. */
	struct rate rate = bucket(7, 1);
	uint64_t now = START;

	for (int i = 0; i < 1000; i++) {
		uint64_t at;

		rate_take(&rate, 1);
		at = rate_ready(&rate, now);
		cr_assert(gt(u64, at, now));
		cr_assert(eq(u64, rate_ready(&rate, at - 1), at));
		cr_assert(eq(u64, rate_ready(&rate, at), 0));
		now = at;
	}
	/* 1,000 units at 7 a second, the first at once, to the nanosecond. */
	cr_assert(eq(u64, now - START, (1000 * SECOND + 6) / 7));
}

/* A caller that goes when it is told and moves frames of odd sizes gets the average, not more. */
Test(rate, average_holds_for_units_of_any_size)
{
	const uint64_t per_second = 125000000; /* a gigabit */
	struct rate rate = bucket(per_second, 100000);
	uint64_t now = START, moved = 0, seed = 1;

	while (now < START + 10 * SECOND) {
		uint64_t at = rate_ready(&rate, now);

		if (at) {
			now = at;
			continue;
		}
		seed = seed * 6364136223846793005 + 1442695040888963407;
		rate_take(&rate, seed >> 48);
		moved += seed >> 48;
	}
	cr_assert(ge(u64, moved, 10 * per_second));
	cr_assert(le(u64, moved, 10 * per_second + 100000 + 65536));
}

Test(rate, asking_often_loses_nothing)
{
	struct rate often = bucket(3, 100), seldom = bucket(3, 100);
	uint64_t now = START;

	rate_take(&often, 100);
	rate_take(&seldom, 100);
	for (int i = 0; i < 100000; i++)
		(void)rate_ready(&often, now += 99991);
	(void)rate_ready(&seldom, now);
	cr_assert(eq(u64, often.tokens, seldom.tokens));
	cr_assert(eq(u64, often.fraction, seldom.fraction));
}

Test(rate, bucket_holds_no_more_than_its_burst)
{
	struct rate rate = bucket(1000000, 5);

	cr_assert(eq(u64, rate_ready(&rate, START + 3600 * SECOND), 0));
	cr_assert(eq(u64, rate.tokens, 5));
	rate_take(&rate, 5);
	cr_assert(eq(u64, rate_ready(&rate, START + 3600 * SECOND), START + 3600 * SECOND + 1000));
}

Test(rate, clock_that_stands_or_goes_back_gives_nothing)
{
	struct rate rate = bucket(10, 1);

	rate_take(&rate, 1);
	cr_assert(eq(u64, rate_ready(&rate, START - SECOND), START + SECOND / 10));
	cr_assert(eq(u64, rate_ready(&rate, START), START + SECOND / 10));
}

Test(rate, extremes_do_not_wrap)
{
	struct rate fast = bucket(UINT64_MAX, UINT64_MAX), slow = bucket(1, 1);

	rate_take(&fast, UINT64_MAX);
	rate_take(&fast, UINT64_MAX);
	cr_assert(eq(u64, rate_ready(&fast, UINT64_MAX), 0));
	rate_take(&slow, UINT64_MAX);
	rate_take(&slow, UINT64_MAX);
	cr_assert(eq(u64, slow.debt, UINT64_MAX));
	cr_assert(eq(u64, rate_ready(&slow, START), UINT64_MAX));
	cr_assert(eq(u64, rate_ready(&slow, UINT64_MAX), UINT64_MAX));
}

Test(rate, changing_to_and_fro_gives_nothing)
{
	struct rate rate = bucket(100, 0);

	rate_take(&rate, 15);
	for (int i = 0; i < 10; i++) {
		rate_change(&rate, 50, START);
		rate_change(&rate, 100, START);
	}
	cr_assert(eq(u64, rate.debt, 5));
	cr_assert(eq(u64, rate_ready(&rate, START), START + 6 * SECOND / 100));
}

Test(rate, a_change_keeps_what_flowed_in_before)
{
	struct rate rate = bucket(100, 0);

	rate_take(&rate, 10);
	rate_change(&rate, 1000, START + SECOND / 20);
	cr_assert(eq(u64, rate.tokens, 5));
	cr_assert(eq(u64, rate.burst, 100));
	rate_change(&rate, 20, START + SECOND / 20);
	cr_assert(eq(u64, rate.tokens, 2));
}
