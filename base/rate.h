/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A token bucket: so many units a second on average, so many at once. It has no timer: who is
 * refused is told when it is worth asking again, to the nanosecond, and arms its own. No lock:
 * one thread a bucket.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct rate {
	uint64_t per_second; /* 0: no limit */
	uint64_t burst;      /* units the bucket holds */
	uint64_t tokens;     /* units in it at `stamp` */
	uint64_t debt;       /* units taken beyond what was there */
	uint64_t fraction;   /* of a unit, in 1/1e9 */
	uint64_t stamp;      /* CLOCK_MONOTONIC ns */
};

/* The bucket starts full. `burst` 0: a tenth of a second's worth, at least one. */
void rate_init(struct rate *rate, uint64_t per_second, uint64_t burst, uint64_t now);

/* Another rate from `now` on. What has flowed in until then counts, and what is owed stays owed:
 * who changes its rate to and fro gets no more than the rates themselves give. */
void rate_change(struct rate *rate, uint64_t per_second, uint64_t now);

/*
 * 0: go on. Otherwise the time (CLOCK_MONOTONIC ns) from which on it is worth asking again. Asking
 * costs nothing; `rate_take` is called with what was then moved, which may be more than was there:
 * the bucket goes into debt, and the average holds for units of any size.
 */
uint64_t rate_ready(struct rate *rate, uint64_t now);
void rate_take(struct rate *rate, uint64_t units);
