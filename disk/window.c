/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: a range of an image. Out: the same in another, without the zeroes. The sealed process, its
 * crew.
 */
#include "disk/window.h"

#include <string.h>

#include "block/create.h"
#include "disk/zeroes.h"

static int failed(struct window *window, int r, uint64_t at)
{
	window->failed_at = window->offset + at;
	return r;
}

/* Grains from a data extent's first to its last byte count; what of them it does not fill is zero,
 * unless an extent before it has filled it. */
static void mark(struct window *window, uint64_t from, uint64_t to)
{
	uint64_t first = from / window->grain, last = (to - 1) / window->grain;
	uint64_t end = MIN((last + 1) * window->grain, window->length);

	if (!window->data[first])
		memset(window->buffer + first * window->grain, 0, from - first * window->grain);
	memset(window->buffer + to, 0, end - to);
	for (uint64_t i = first; i <= last; i++)
		window->data[i] = true;
}

static int read_part(struct window *window, struct block_image *from, uint64_t at, uint64_t end)
{
	int r;

	mark(window, at, end);
	r = block_read(from, window->buffer + at, end - at, window->offset + at);
	window->copied += end - at;
	return r < 0 ? failed(window, r, at) : 0;
}

static int read_parts(struct window *window, struct block_image *from)
{
	uint64_t at = 0;
	int r = 0;

	while (r == 0 && at < window->length) {
		struct block_extent extent;

		r = block_map(from, window->offset + at, window->length - at, &extent);
		if (r < 0)
			return failed(window, r, at);
		if (extent.kind == BLOCK_DATA || extent.kind == BLOCK_COMPRESSED)
			r = read_part(window, from, at, at + extent.length);
		at += extent.length;
	}
	return r;
}

static uint64_t grain_at(const struct window *window, uint64_t at)
{
	return MIN((uint64_t)window->grain, window->length - at);
}

static void drop_zeroes(struct window *window)
{
	for (uint64_t at = 0, i = 0; at < window->length; at += window->grain, i++) {
		if (!window->data[i] || !is_zeroes(window->buffer + at, grain_at(window, at)))
			continue;
		window->data[i] = false;
		window->zeroes += grain_at(window, at);
	}
}

int window_read(struct window *window, struct block_image *from, bool whole)
{
	int r;

	memset(window->data, 0, sizeof(window->data));
	window->copied = window->zeroes = 0;
	r = whole ? read_part(window, from, 0, window->length) : read_parts(window, from);
	if (r == 0)
		drop_zeroes(window);
	return r;
}

/* A last cluster that the disk does not fill is written whole. */
static int write_packed(struct window *window, struct block_image *to, uint64_t at, uint64_t end)
{
	uint64_t cluster = window->grain;
	int r = 0;

	memset(window->buffer + end, 0, align_up(end, cluster) - end);
	for (; r == 0 && at < end; at += cluster) {
		r = block_write_packed(to, window->buffer + at, window->offset + at);
		if (r < 0)
			return failed(window, r, at);
	}
	return r;
}

static int write_run(struct window *window, const struct window_target *target, bool data,
		     uint64_t at, uint64_t end)
{
	struct io_op op = {.kind = IO_ZERO, .offset = window->offset + at, .length = end - at};
	int r = 0;

	if (data && target->packed)
		return write_packed(window, target->image, at, end);
	if (data)
		r = block_write(target->image, window->buffer + at, end - at, op.offset);
	else if (!target->fresh)
		r = block_do(target->image, &op);
	return r < 0 ? failed(window, r, at) : 0;
}

/* Runs of grains that hold data, and runs that do not. */
int window_write(struct window *window, const struct window_target *target)
{
	uint64_t begin = 0;
	int r = 0;

	for (uint64_t at = 0, i = 0; r == 0 && at < window->length; at += window->grain, i++) {
		uint64_t end = at + grain_at(window, at);

		if (end < window->length && window->data[i + 1] == window->data[i])
			continue;
		r = write_run(window, target, window->data[i], begin, end);
		begin = end;
	}
	return r;
}
