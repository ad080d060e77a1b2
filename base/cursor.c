/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes of a format in, numbers out, and the other way. Everything goes through cursor_take, which
 * is the one place that compares with the end.
 */
#include "base/cursor.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

/* What an empty cursor points at, so that no arithmetic is ever done on NULL. */
static uint8_t cursor_nothing[1];

struct cursor cursor_reader(const void *data, size_t size)
{
	assert(data || !size);
	return (struct cursor){
		.data = data ? (uint8_t *)(uintptr_t)data : cursor_nothing,
		.size = size,
		.readonly = true,
	};
}

struct cursor cursor_writer(void *data, size_t size)
{
	assert(data || !size);
	return (struct cursor){.data = data ? data : cursor_nothing, .size = size};
}

int cursor_status(const struct cursor *c)
{
	if (!c->failed)
		return 0;
	return c->readonly ? -EBADMSG : -ENOSPC;
}

size_t cursor_left(const struct cursor *c)
{
	return c->failed ? 0 : c->size - c->at;
}

/* Moves over `size` bytes and points at the first, or fails for good. */
static uint8_t *cursor_take(struct cursor *c, size_t size)
{
	uint8_t *place = c->data + c->at;

	if (c->failed || size > c->size - c->at) {
		c->failed = true;
		return NULL;
	}
	c->at += size;
	return place;
}

static uint64_t cursor_get_number(struct cursor *c, size_t size)
{
	const uint8_t *from = cursor_take(c, size);
	uint64_t value = 0;

	for (size_t i = 0; from && i < size; i++)
		value |= (uint64_t)from[i] << (8 * i);
	return value;
}

static void cursor_put_number(struct cursor *c, uint64_t value, size_t size)
{
	uint8_t *to;

	assert(!c->readonly);
	to = cursor_take(c, size);
	for (size_t i = 0; to && i < size; i++)
		to[i] = (uint8_t)(value >> (8 * i));
}

uint8_t cursor_get_u8(struct cursor *c)
{
	return (uint8_t)cursor_get_number(c, 1);
}

uint16_t cursor_get_u16(struct cursor *c)
{
	return (uint16_t)cursor_get_number(c, 2);
}

uint32_t cursor_get_u32(struct cursor *c)
{
	return (uint32_t)cursor_get_number(c, 4);
}

uint64_t cursor_get_u64(struct cursor *c)
{
	return cursor_get_number(c, 8);
}

void cursor_get_bytes(struct cursor *c, void *data, size_t size)
{
	const uint8_t *from = cursor_take(c, size);

	if (!size)
		return;
	if (from)
		memcpy(data, from, size);
	else
		memset(data, 0, size);
}

const void *cursor_get_view(struct cursor *c, size_t size)
{
	return cursor_take(c, size);
}

void cursor_put_u8(struct cursor *c, uint8_t value)
{
	cursor_put_number(c, value, 1);
}

void cursor_put_u16(struct cursor *c, uint16_t value)
{
	cursor_put_number(c, value, 2);
}

void cursor_put_u32(struct cursor *c, uint32_t value)
{
	cursor_put_number(c, value, 4);
}

void cursor_put_u64(struct cursor *c, uint64_t value)
{
	cursor_put_number(c, value, 8);
}

void cursor_put_bytes(struct cursor *c, const void *data, size_t size)
{
	uint8_t *to;

	assert(!c->readonly);
	to = cursor_take(c, size);
	if (to && size)
		memcpy(to, data, size);
}
