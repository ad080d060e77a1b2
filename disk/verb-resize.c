/* SPDX-License-Identifier: Apache-2.0 */
/*
 * resize: another size for a disk. What grows reads as zeroes; what is cut is lost, and has to be
 * asked for.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "disk/sealed.h"
#include "disk/text.h"
#include "disk/words.h"

struct sizes_item {
	uint64_t before, size;
};

static const struct field sizes_fields[] = {
	FIELD(struct sizes_item, before, FIELD_U64, "before", "Bytes of the disk until now"),
	FIELD(struct sizes_item, size, FIELD_U64, "size", "Bytes of the disk"),
};
static const struct table sizes_table =
	TABLE(struct sizes_item, "sizes", "Sizes of a disk", sizes_fields);

/* The broker. */

static int resize_open(struct job *job, struct error *err)
{
	const struct words *words = &job->words;
	const char *text = words->names[1];
	uint64_t size;
	int r = words_need_format(words->format, "--format", words->names[0], err);

	if (r == 0)
		r = words_size(text + (text[0] == '+' || text[0] == '-'), &size, err);
	return r < 0 ? r : image_file_open(&job->files[0], words->names[0], true, err);
}

static int resize_item(struct job *job, uint32_t which _unused_, const void *data,
		       struct error *err)
{
	const struct sizes_item *item = data;
	char before[TEXT_SIZE_MAX], size[TEXT_SIZE_MAX];

	if (job->answer)
		return job_keep(job, NULL, &sizes_table, item, err);
	printf("\"%s\": %s, was %s\n", job->files[0].name, text_size(item->size, size),
	       text_size(item->before, before));
	return 0;
}

/* The sealed process. */

static int new_size(const char *text, uint64_t before, uint64_t *ret_size, struct error *err)
{
	uint64_t size = 0;
	int r = words_size(text + (text[0] == '+' || text[0] == '-'), &size, err);

	if (r < 0)
		return r;
	if (text[0] == '-' && size >= before)
		return error_set(err, -ERANGE, "cannot take %s from a disk of %lu bytes", text + 1,
				 before);
	if (text[0] == '+' && size > (UINT64_C(1) << 62) - before)
		return error_set(err, -ERANGE, "cannot add %s to a disk of %lu bytes", text + 1,
				 before);
	*ret_size = text[0] == '+' ? before + size : text[0] == '-' ? before - size : size;
	return 0;
}

/* Bytes from `at` on that the image itself has. */
static int data_behind(struct block_image *image, uint64_t at, uint64_t *ret_bytes)
{
	int r = 0;

	*ret_bytes = 0;
	while (r == 0 && at < image->size) {
		struct block_extent extent;

		r = block_map(image, at, image->size - at, &extent);
		if (r == 0 && (extent.kind == BLOCK_DATA || extent.kind == BLOCK_COMPRESSED))
			*ret_bytes += extent.length;
		at += r == 0 ? extent.length : 0;
	}
	return r;
}

static int check_cut(const struct sealed *sealed, struct block_image *image, uint64_t size,
		     struct error *err)
{
	char text[TEXT_SIZE_MAX];
	uint64_t bytes;
	int r;

	if (size >= image->size || sealed->job->words.shrink)
		return 0;
	r = data_behind(image, size, &bytes);
	if (r < 0)
		return error_set(err, r, "cannot tell what \"%s\" has behind its new end: %s",
				 image->name, strerror(-r));
	return error_set(
		err, -EPERM,
		"\"%s\" would become smaller, and the %s of data that it has behind its new "
		"end be lost: make partitions and file systems smaller first, then say "
		"--shrink",
		image->name, text_size(bytes, text));
}

static int resize_work(struct sealed *sealed, struct error *err)
{
	_cleanup_(block_closep) struct block_image *image = NULL;
	const struct words *words = &sealed->job->words;
	struct sealed_open open = {.format = words->format, .chain = words->allow_backing};
	struct sizes_item item = {};
	int r = sealed_image(sealed, 0, &open, &image, err);

	if (r < 0)
		return r;
	item.before = image->size;
	r = new_size(words->names[1], item.before, &item.size, err);
	if (r == 0)
		r = check_cut(sealed, image, item.size, err);
	if (r == 0)
		r = block_resize(image, item.size, err);
	if (r == 0) {
		r = block_flush(image);
		if (r < 0)
			error_set(err, r, "cannot write \"%s\" to its end: %s", image->name,
				  strerror(-r));
	}
	return r < 0 ? r : sealed_report(sealed, 0, &item, err);
}

const struct disk_verb verb_resize = {
	.name = "resize",
	.words = "FILE SIZE|+SIZE|-SIZE --format raw|qcow2 [--shrink]",
	.help = "make a disk larger or smaller",
	.more = "  What is added reads as zeroes. No VM may have it open; a VM's disk grows while "
		"it runs through its\n"
		"  control socket. Partitions and file systems in it are the guest's to adapt.",
	.flags = " format backing backing-format shrink json verbose ",
	.names_min = 2,
	.names_max = 2,
	.in_place = true,
	.items = {&sizes_table},
	.open = resize_open,
	.item = resize_item,
	.work = resize_work,
};
