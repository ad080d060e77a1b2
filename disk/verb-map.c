/* SPDX-License-Identifier: Apache-2.0 */
/*
 * map: where an image has what. Neighbours of a kind are joined; what is found goes out as it
 * comes, since an image can have millions of extents.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "disk/sealed.h"
#include "disk/text.h"
#include "disk/words.h"

#define BATCH 256

static const char *const kind_names[] = {
	[BLOCK_ABSENT] = "absent",
	[BLOCK_ZERO] = "zero",
	[BLOCK_DATA] = "data",
	[BLOCK_COMPRESSED] = "compressed",
	NULL,
};

struct extent_item {
	uint64_t start, length, place;
	uint32_t kind, depth;
};

struct batch {
	uint32_t n;
	struct extent_item extents[BATCH];
};

static const struct field extent_fields[] = {
	FIELD(struct extent_item, start, FIELD_U64, "start", "In bytes of the disk"),
	FIELD(struct extent_item, length, FIELD_U64, "length", "In bytes"),
	FIELD(struct extent_item, kind, FIELD_ENUM, "kind", "What it is", .names = kind_names),
	FIELD(struct extent_item, depth, FIELD_U32, "depth", "Of the image that has it"),
	FIELD(struct extent_item, place, FIELD_U64, "place", "Where in that image's file"),
};
static const struct table extent_table =
	TABLE(struct extent_item, "extent", "One range", extent_fields);
static const struct field batch_fields[] = {
	FIELD_LIST_OF(struct batch, extents, n, &extent_table, "extents", "Ranges in their order"),
};
static const struct table batch_table = TABLE(struct batch, "extents", "Ranges", batch_fields);

/* The broker. */

static int map_open(struct job *job, struct error *err)
{
	int r = words_need_format(job->words.format, "--format", job->words.names[0], err);

	return r < 0 ? r : image_file_open(&job->files[0], job->words.names[0], false, err);
}

static void print_json(struct job *job, const struct extent_item *item)
{
	printf("%s{\"start\": %lu, \"length\": %lu, \"kind\": \"%s\"",
	       job->n_printed++ ? ",\n  " : "{\"extents\": [\n  ", item->start, item->length,
	       kind_names[item->kind]);
	if (item->kind != BLOCK_ABSENT)
		printf(", \"depth\": %u", item->depth);
	if (item->kind == BLOCK_DATA)
		printf(", \"place\": %lu", item->place);
	putchar('}');
}

static void print_line(struct job *job, const struct extent_item *item)
{
	char length[TEXT_SIZE_MAX], depth[16] = "";

	if (!job->n_printed++)
		printf("%16s %16s  %10s  %-10s %5s %16s\n", "start", "length", "", "kind", "depth",
		       "place");
	if (item->kind != BLOCK_ABSENT)
		snprintf(depth, sizeof(depth), "%u", item->depth);
	printf("%16lu %16lu  %10s  %-10s %5s", item->start, item->length,
	       text_size(item->length, length), kind_names[item->kind], depth);
	if (item->kind == BLOCK_DATA)
		printf(" %16lu", item->place);
	putchar('\n');
}

static int map_item(struct job *job, uint32_t which _unused_, const void *data, struct error *err)
{
	const struct batch *batch = data;

	for (uint32_t i = 0; i < batch->n; i++) {
		if (job->words.json)
			print_json(job, &batch->extents[i]);
		else
			print_line(job, &batch->extents[i]);
	}
	return ferror(stdout) ? error_set(err, -EIO, "cannot write the answer") : 0;
}

static int map_end(struct job *job, struct error *err _unused_)
{
	if (job->words.json)
		printf("%s]}\n", job->n_printed ? "\n" : "{\"extents\": [");
	return 0;
}

/* The sealed process. */

static bool continues(const struct extent_item *item, const struct block_extent *extent)
{
	if (item->kind != extent->kind || item->start + item->length != extent->offset)
		return false;
	if (extent->kind == BLOCK_ABSENT)
		return true;
	return item->depth == extent->depth &&
	       (extent->kind != BLOCK_DATA || item->place + item->length == extent->place);
}

static int add(struct sealed *sealed, struct batch *batch, const struct block_extent *extent,
	       struct error *err)
{
	int r = 0;

	if (batch->n && continues(&batch->extents[batch->n - 1], extent)) {
		batch->extents[batch->n - 1].length += extent->length;
		return 0;
	}
	/* The last one may go on: it stays. */
	if (batch->n == BATCH) {
		batch->n--;
		r = sealed_report(sealed, 0, batch, err);
		batch->extents[0] = batch->extents[BATCH - 1];
		batch->n = 1;
	}
	batch->extents[batch->n++] = (struct extent_item){
		.start = extent->offset,
		.length = extent->length,
		.place = extent->kind == BLOCK_DATA ? extent->place : 0,
		.kind = extent->kind,
		.depth = extent->kind == BLOCK_ABSENT ? 0 : extent->depth,
	};
	return r;
}

static int walk(struct sealed *sealed, struct block_image *image, struct batch *batch,
		struct error *err)
{
	uint64_t at = 0;
	int r = 0;

	while (r == 0 && at < image->size) {
		struct block_extent extent;

		r = block_map(image, at, image->size - at, &extent);
		if (r < 0)
			return error_set(err, r, "cannot tell where \"%s\" has byte %lu: %s",
					 image->name, at, strerror(-r));
		r = add(sealed, batch, &extent, err);
		at = extent.offset + extent.length;
	}
	return r < 0 || !batch->n ? r : sealed_report(sealed, 0, batch, err);
}

static int map_work(struct sealed *sealed, struct error *err)
{
	_cleanup_(block_closep) struct block_image *image = NULL;
	_cleanup_(freep) struct batch *batch = calloc(1, sizeof(*batch));
	const struct words *words = &sealed->job->words;
	struct sealed_open open = {
		.format = words->format,
		.readonly = true,
		.no_lock = words->force,
		.chain = words->allow_backing,
	};
	int r;

	if (!batch)
		return error_set(err, -ENOMEM, "out of memory");
	r = sealed_image(sealed, 0, &open, &image, err);
	return r < 0 ? r : walk(sealed, image, batch, err);
}

const struct disk_verb verb_map = {
	.name = "map",
	.words = "FILE --format raw|qcow2 [--backing allow] [--force] [--json]",
	.help = "where an image has data, zeroes, nothing",
	.more = "  Of the image alone, what it stands on counts as absent; with --backing allow "
		"the whole chain is\n"
		"  looked at, and depth says which image has it: 0 is FILE. Place is where in that "
		"image's file.",
	.flags = " format backing backing-format force json verbose ",
	.names_min = 1,
	.names_max = 1,
	.items = {&batch_table},
	.open = map_open,
	.item = map_item,
	.end = map_end,
	.work = map_work,
};
