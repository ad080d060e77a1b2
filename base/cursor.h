/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one way bytes of a format are read or written: a bounded cursor, little-endian. It remembers
 * its first failure, so a run of calls is checked once at its end; after a failure reads give zero
 * and writes do nothing. A cursor never allocates and never passes its end.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/macros.h"

struct cursor {
	uint8_t *data; /* borrowed; only read when `readonly` */
	size_t size;
	size_t at;
	bool readonly;
	bool failed;
};

struct cursor cursor_reader(const void *data, size_t size);
struct cursor cursor_writer(void *data, size_t size);

/* 0, or -EBADMSG (reader ran out), -ENOSPC (writer ran out). */
int cursor_status(const struct cursor *c) __must_check;
size_t cursor_left(const struct cursor *c);

uint8_t cursor_get_u8(struct cursor *c);
uint16_t cursor_get_u16(struct cursor *c);
uint32_t cursor_get_u32(struct cursor *c);
uint64_t cursor_get_u64(struct cursor *c);
/* Copies `size` bytes out, or fills `data` with zeroes when there are not as many. */
void cursor_get_bytes(struct cursor *c, void *data, size_t size);
/* Points at `size` bytes inside the cursor's data, or NULL. Borrowed. */
const void *cursor_get_view(struct cursor *c, size_t size);

void cursor_put_u8(struct cursor *c, uint8_t value);
void cursor_put_u16(struct cursor *c, uint16_t value);
void cursor_put_u32(struct cursor *c, uint32_t value);
void cursor_put_u64(struct cursor *c, uint64_t value);
void cursor_put_bytes(struct cursor *c, const void *data, size_t size);
