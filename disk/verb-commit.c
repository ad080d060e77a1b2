/* SPDX-License-Identifier: Apache-2.0 */
/*
 * commit: what an overlay has goes into the image it stands on. The overlay stays as it is, and is
 * needed no longer: if this is stopped half-way, it reads as before, and can be committed again.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "block/qcow2-format.h"
#include "disk/copy.h"
#include "disk/header.h"
#include "disk/text.h"
#include "disk/words.h"

/* The broker. */

static int commit_open(struct job *job, struct error *err)
{
	const struct words *words = &job->words;
	int r = words_need_format(words->format, "--format", words->names[0], err);

	if (r == 0 && strcmp(words->format, "qcow2") != 0)
		r = error_set(err, -EINVAL,
			      "a raw image stands on none: there is nothing to commit");
	return r < 0 ? r : image_file_open(&job->files[0], words->names[0], false, err);
}

static int commit_item(struct job *job, uint32_t which _unused_, const void *data,
		       struct error *err)
{
	const struct copy_item *item = data;
	char copied[TEXT_SIZE_MAX], took[TEXT_TIME_MAX];

	if (job->answer)
		return job_keep(job, NULL, &copy_item_table, item, err);
	snprintf(job->text, sizeof(job->text), "%s in %s",
		 text_size(item->copied + item->shared, copied),
		 text_time((double)item->milliseconds / 1000, took));
	return 0;
}

static int commit_end(struct job *job, struct error *err)
{
	const char *name = job->files[0].name;
	bool removed = job->words.remove;

	if (removed && unlink(name) < 0)
		return error_set(err, -errno,
				 "\"%s\" is in its backing image now, and cannot be removed: %s",
				 name, strerror(errno));
	if (!job->answer)
		printf("\"%s\": %s committed into what it stands on; it %s\n", name, job->text,
		       removed ? "is removed" : "is needed no longer, and reads as before");
	return 0;
}

/* The sealed process. */

/* What the overlay names, opened for writing. It may be smaller. */
static int base_open(struct sealed *sealed, const struct block_image *overlay,
		     struct block_image **ret_base, struct error *err)
{
	_cleanup_(header_freep) struct qcow2_header *header = NULL;
	int r = header_read(&overlay->file, overlay->name, &header, err);

	if (r == 0 && !header->backing_name)
		r = error_set(err, -ENOENT, "\"%s\" stands on no image: there is nothing to commit",
			      overlay->name);
	if (r == 0)
		r = sealed_backing(sealed, 0, header->backing_name, header->backing_format,
				   ret_base, err);
	if (r == 0 && (*ret_base)->size < overlay->size)
		r = block_resize(*ret_base, overlay->size, err);
	return r;
}

static int commit_work(struct sealed *sealed, struct error *err)
{
	_cleanup_(block_closep) struct block_image *overlay = NULL;
	_cleanup_(block_closep) struct block_image *base = NULL;
	struct sealed_open open = {.format = "qcow2", .readonly = true};
	const struct copy_options options = {.top_only = true};
	struct copy_result result = {};
	uint64_t begun = clock_ms();
	int r = sealed_image(sealed, 0, &open, &overlay, err);

	if (r == 0)
		r = base_open(sealed, overlay, &base, err);
	if (r < 0)
		return r;
	r = copy_image(sealed, overlay, base, &options, &result, err);
	if (r == -ECANCELED)
		return error_set(
			err, r,
			"stopped half-way: \"%s\" reads as before, commit it again to go on",
			overlay->name);
	if (r < 0)
		return r;
	struct copy_item item = {overlay->size, result.copied, result.shared, result.zeroes,
				 clock_ms() - begun};
	return sealed_report(sealed, 0, &item, err);
}

const struct disk_verb verb_commit = {
	.name = "commit",
	.words = "OVERLAY --format qcow2 --backing allow [--remove]",
	.help = "write what an overlay has into the image it stands on",
	.more = "  It takes --backing allow, since a file is written that only OVERLAY names: "
		"`corral disk info`\n"
		"  says which. No VM may have either open; other overlays of the same image are "
		"spoilt by it.",
	.flags = " format backing backing-format remove json progress verbose ",
	.names_min = 1,
	.names_max = 1,
	.in_place = true,
	.crew = true,
	.items = {&copy_item_table},
	.open = commit_open,
	.item = commit_item,
	.end = commit_end,
	.work = commit_work,
};
