/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel loaders share: a file on its way into guest memory. Bytes go straight from the
 * descriptor to where the guest will find them; every range is checked against RAM first, and what
 * does not fit is one sentence that says how much memory would do.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"
#include "devices/memory.h"

/* Size of a regular file that is not empty; `what` is "kernel" or "initrd". */
int image_size(int fd, const char *what, uint64_t *ret_size, struct error *err) __must_check;

/* Reads exactly `len` bytes at `offset`; a file that ends before is `what` truncated. */
int image_read(int fd, uint64_t offset, void *data, uint64_t len, const char *what,
	       struct error *err) __must_check;

/* The same into guest memory, within one region. */
int image_load(int fd, uint64_t offset, struct guest_memory *memory, gpa_t gpa, uint64_t len,
	       const char *what, struct error *err) __must_check;

/* Clears guest memory, within one region. Memory may be dirty: a reset loads again. */
int image_clear(struct guest_memory *memory, gpa_t gpa, uint64_t len) __must_check;

/* Is [gpa, gpa+len) RAM where `what` may lie, that is above the first MiB? */
int image_check(const struct guest_memory *memory, gpa_t gpa, uint64_t len, const char *what,
		struct error *err) __must_check;

/* End of the RAM that starts at 0. */
gpa_t image_low_end(const struct guest_memory *memory);

/* `what` needs RAM up to `end`: says so, with the size of a VM that would do, or that none would.
 */
int image_too_big(const struct guest_memory *memory, uint64_t end, const char *what,
		  struct error *err);
