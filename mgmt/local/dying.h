/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Patience with what a VM that was ended a moment ago still holds: the kernel gives taps and ports
 * back a while after the process has answered for the last time, and there is no event to wait for.
 */
#pragma once

#include <poll.h>
#include <stdbool.h>

#define DYING_WAIT_MS 1000
#define DYING_STEP_MS 5

/* Waits a little; false once enough has been waited. `waited_ms` starts as 0. */
static inline bool dying_wait(int *waited_ms)
{
	if (*waited_ms >= DYING_WAIT_MS)
		return false;
	poll(NULL, 0, DYING_STEP_MS);
	*waited_ms += DYING_STEP_MS;
	return true;
}
