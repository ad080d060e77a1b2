/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The clock that deadlines are counted on, CLOCK_MONOTONIC, where no loop has read it already. Any
 * thread.
 */
#pragma once

#include <stdint.h>
#include <time.h>

static inline uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline uint64_t clock_ms(void)
{
	return clock_ns() / 1000000;
}
