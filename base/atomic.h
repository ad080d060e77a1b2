/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Words shared with a guest or another thread, through four helpers and no other way. On a ring in
 * guest memory the other side is a CPU of the guest: acquire pairs with its release, and the fence
 * stands where a write must be seen before a following read is made (event suppression).
 */
#pragma once

#include <stdatomic.h>

#define load_relaxed(p)     __atomic_load_n((p), __ATOMIC_RELAXED)
#define load_acquire(p)     __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)

static inline void full_fence(void)
{
	atomic_thread_fence(memory_order_seq_cst);
}
