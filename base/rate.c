/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bucket is brought up to date when it is asked: what has flowed in since pays the debt first.
 * The rest of a unit is carried along, so that asking often loses nothing.
 */
#include "base/rate.h"

#include "base/macros.h"

#define SECOND 1000000000u

void rate_init(struct rate *rate, uint64_t per_second, uint64_t burst, uint64_t now)
{
	*rate = (struct rate){
		.per_second = per_second,
		.burst = burst ?: MAX(per_second / 10, (uint64_t)1),
		.stamp = now,
	};
	rate->tokens = rate->burst;
}

static void refill(struct rate *rate, uint64_t now)
{
	unsigned __int128 flow, units;

	if (now <= rate->stamp)
		return;
	flow = (unsigned __int128)(now - rate->stamp) * rate->per_second + rate->fraction;
	units = flow / SECOND;
	rate->fraction = (uint64_t)(flow % SECOND);
	rate->stamp = now;
	if (units < rate->debt) {
		rate->debt -= (uint64_t)units;
		return;
	}
	units -= rate->debt;
	rate->debt = 0;
	/* Just full keeps its fraction: who comes when told would otherwise lose one each time. */
	if (units > rate->burst - rate->tokens) {
		rate->tokens = rate->burst;
		rate->fraction = 0;
		return;
	}
	rate->tokens += (uint64_t)units;
}

void rate_change(struct rate *rate, uint64_t per_second, uint64_t now)
{
	refill(rate, now);
	rate->per_second = per_second;
	rate->burst = MAX(per_second / 10, (uint64_t)1);
	rate->tokens = MIN(rate->tokens, rate->burst);
}

uint64_t rate_ready(struct rate *rate, uint64_t now)
{
	unsigned __int128 missing, at;

	if (!rate->per_second)
		return 0;
	refill(rate, now);
	if (rate->tokens)
		return 0;
	missing = ((unsigned __int128)rate->debt + 1) * SECOND - rate->fraction;
	at = (missing + rate->per_second - 1) / rate->per_second + rate->stamp;
	return at < UINT64_MAX ? (uint64_t)at : UINT64_MAX;
}

void rate_take(struct rate *rate, uint64_t units)
{
	uint64_t there;

	if (!rate->per_second)
		return;
	there = MIN(units, rate->tokens);
	rate->tokens -= there;
	if (__builtin_add_overflow(rate->debt, units - there, &rate->debt))
		rate->debt = UINT64_MAX;
}
