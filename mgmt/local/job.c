/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: bytes that a guest wrote to the channel of its command. Out: pieces of output, and how the
 * command ended. The bytes may be anything, cut anywhere.
 */
#include "mgmt/local/job.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cursor.h"
#include "base/fd.h"

#define TIME_MAX_S (30ull * 24 * 3600)

const char *const job_outcome_names[] = {"broken", "ended",       "timed-out", "panicked",
					 "silent", "interrupted", NULL};

static const struct {
	uint32_t least, most; /* bytes after the header */
} frame_sizes[JOB_TYPES] = {
	[JOB_HELLO] = {4, 4}, [JOB_OUT] = {0, JOB_FRAME_MAX},       [JOB_ERR] = {0, JOB_FRAME_MAX},
	[JOB_END] = {8, 8},   [JOB_FAILED] = {4, 4 + JOB_TEXT_MAX},
};

static int header_read(struct job_parser *parser)
{
	struct cursor in = cursor_reader(parser->header, sizeof(parser->header));

	parser->type = cursor_get_u32(&in);
	parser->left = cursor_get_u32(&in);
	parser->n_small = 0;
	if (parser->type >= JOB_TYPES || parser->greeted == (parser->type == JOB_HELLO))
		return -EBADMSG;
	if (parser->left < frame_sizes[parser->type].least ||
	    parser->left > frame_sizes[parser->type].most)
		return -EBADMSG;
	return 0;
}

static int end_read(struct job_parser *parser, struct cursor *in)
{
	static const struct {
		uint32_t least, most;
	} values[JOB_ENDS] = {
		[JOB_EXITED] = {0, 255},
		[JOB_SIGNALED] = {1, 126},
		[JOB_NO_EXEC] = {1, 4095},
	};

	parser->end = cursor_get_u32(in);
	parser->value = cursor_get_u32(in);
	if (parser->end >= JOB_ENDS || parser->value < values[parser->end].least ||
	    parser->value > values[parser->end].most)
		return -EBADMSG;
	parser->done = true;
	return 0;
}

static int failure_read(struct job_parser *parser, struct cursor *in)
{
	size_t size;

	parser->value = cursor_get_u32(in);
	size = cursor_left(in);
	cursor_get_bytes(in, parser->text, size);
	parser->text[size] = '\0';
	text_make_printable(parser->text);
	if (parser->value > 4095)
		return -EBADMSG;
	parser->failed = parser->done = true;
	return 0;
}

/* A frame that is not output is whole. */
static int small_read(struct job_parser *parser)
{
	struct cursor in = cursor_reader(parser->small, parser->n_small);

	if (parser->type == JOB_END)
		return end_read(parser, &in);
	if (parser->type == JOB_FAILED)
		return failure_read(parser, &in);
	if (parser->type == JOB_HELLO) {
		if (cursor_get_u32(&in) != JOB_VERSION)
			return -EBADMSG;
		parser->greeted = true;
	}
	return 0;
}

static int body_take(struct job_parser *parser, const uint8_t *data, size_t size,
		     struct job_piece *piece)
{
	if (parser->type == JOB_OUT || parser->type == JOB_ERR) {
		*piece = (struct job_piece){parser->type == JOB_ERR, data, size};
	} else {
		memcpy(parser->small + parser->n_small, data, size);
		parser->n_small += size;
	}
	parser->left -= size;
	if (parser->left)
		return 0;
	parser->n_header = 0;
	return small_read(parser);
}

ssize_t job_parser_take(struct job_parser *parser, const void *data, size_t size,
			struct job_piece *piece)
{
	const uint8_t *at = data;
	size_t used = 0;
	int r;

	*piece = (struct job_piece){};
	while (used < size && !piece->size) {
		size_t n;

		if (parser->done)
			return size;
		if (parser->n_header < JOB_HEADER_SIZE) {
			parser->header[parser->n_header++] = at[used++];
			if (parser->n_header < JOB_HEADER_SIZE)
				continue;
			r = header_read(parser);
			if (r >= 0 && !parser->left)
				r = body_take(parser, at + used, 0, piece);
		} else {
			n = MIN((size_t)parser->left, size - used);
			r = body_take(parser, at + used, n, piece);
			used += n;
		}
		if (r < 0)
			return r;
	}
	return used;
}

void job_keep(struct job_kept *kept, const void *data, size_t size)
{
	const char *from = data;

	for (size_t n; size; from += n, size -= n) {
		size_t at = kept->n % JOB_KEPT_MAX;

		n = MIN(size, JOB_KEPT_MAX - at);
		if (kept->data)
			memcpy(kept->data + at, from, n);
		kept->n += n;
	}
}

char *job_kept_text(const struct job_kept *kept)
{
	bool cut = kept->n > JOB_KEPT_MAX;
	size_t at = cut ? kept->n % JOB_KEPT_MAX : 0;
	size_t n = !kept->data ? 0 : cut ? JOB_KEPT_MAX : kept->n;
	char *text = malloc(n + 8), *end = text;

	if (!text)
		return NULL;
	if (cut)
		end = stpcpy(text, "[…]");
	if (n) {
		memcpy(end, kept->data + at, n - at);
		memcpy(end + n - at, kept->data, at);
	}
	end[n] = '\0';
	return text;
}

int job_time_parse(const char *text, uint64_t *ret_ms)
{
	static const struct {
		const char *unit;
		uint64_t seconds;
	} units[] = {{"", 1}, {"s", 1}, {"m", 60}, {"h", 3600}};
	uint64_t n = 0;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	for (; *text >= '0' && *text <= '9'; text++) {
		n = n * 10 + (*text - '0');
		if (n > TIME_MAX_S)
			return -EINVAL;
	}
	for (size_t i = 0; i < ARRAY_SIZE(units); i++)
		if (!strcmp(text, units[i].unit) && n && n * units[i].seconds <= TIME_MAX_S) {
			*ret_ms = n * units[i].seconds * 1000;
			return 0;
		}
	return -EINVAL;
}

void job_init(struct job *job)
{
	*job = (struct job){.copies = {-1, -1}, .image_fd = -1, .initrd_fd = -1, .port_fd = -1};
}

void job_deinit(struct job *job)
{
	job->image_fd = fd_close(job->image_fd);
	job->initrd_fd = fd_close(job->initrd_fd);
	job->port_fd = fd_close(job->port_fd);
	free(take_ptr(job->result.out.data));
	free(take_ptr(job->result.err.data));
}
