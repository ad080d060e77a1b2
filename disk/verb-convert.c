/* SPDX-License-Identifier: Apache-2.0 */
/*
 * convert: what an image, or one of its internal snapshots, holds, as a new image of either format
 * that stands on nothing.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "block/create.h"
#include "block/qcow2-format.h"
#include "disk/copy.h"
#include "disk/text.h"
#include "disk/words.h"

#define CLUSTER_BITS 16 /* where --cluster does not say another */

/* The broker. */

static int convert_words(const struct words *words, struct error *err)
{
	int r = words_need_format(words->from, "--from", words->names[0], err);

	if (r == 0)
		r = words_need_format(words->to, "--to", words->names[1], err);
	if (r < 0)
		return r;
	if (words->snapshot && !strcmp(words->from, "raw"))
		return error_set(err, -EINVAL, "--snapshot: a raw image has none");
	if (!strcmp(words->to, "raw") &&
	    (words->compress || words->compression || words->cluster || words->lazy_refcounts))
		return error_set(err, -EINVAL,
				 "a raw image has no clusters: leave --compress, --compression, "
				 "--cluster and --lazy-refcounts out, or say --to qcow2");
	return 0;
}

static int convert_open(struct job *job, struct error *err)
{
	const struct words *words = &job->words;
	int r = convert_words(words, err);

	if (r == 0)
		r = image_file_open(&job->files[0], words->names[0], false, err);
	if (r == 0)
		r = made_open(&job->made, words->names[1], words->overwrite, err);
	if (r < 0)
		return r;
	if (job->made.old.name && image_file_same(&job->files[0], &job->made.old))
		return error_set(err, -EINVAL, "\"%s\" and \"%s\" are the same file",
				 words->names[0], words->names[1]);
	if (job->made.in_place && strcmp(words->to, "raw") != 0)
		return error_set(
			err, -EMEDIUMTYPE,
			"cannot make \"%s\": to a block device an image is written as it is: "
			"say --to raw",
			words->names[1]);
	return 0;
}

static int convert_item(struct job *job, uint32_t which _unused_, const void *data,
			struct error *err)
{
	const struct copy_item *item = data;
	char size[TEXT_SIZE_MAX], copied[TEXT_SIZE_MAX], shared[TEXT_SIZE_MAX], took[TEXT_TIME_MAX];

	if (job->answer)
		return job_keep(job, NULL, &copy_item_table, item, err);
	text_size(item->size, size);
	text_size(item->copied, copied);
	text_size(item->shared, shared);
	text_time((double)item->milliseconds / 1000, took);
	snprintf(job->text, sizeof(job->text), "%s, %s%s%s%s in %s", size,
		 item->shared ? shared : copied,
		 item->shared ? " shared by the file system" : " copied",
		 item->shared && item->copied ? " and the rest copied, " : "",
		 item->shared && item->copied ? copied : "", took);
	return 0;
}

static int convert_end(struct job *job, struct error *err _unused_)
{
	if (!job->answer)
		printf("\"%s\": %s\n", job->made.name, job->text);
	return 0;
}

/* The sealed process. */

static int source_open(struct sealed *sealed, struct block_image **ret_image, struct error *err)
{
	const struct words *words = &sealed->job->words;
	struct sealed_open open = {.format = words->from, .readonly = true, .chain = true};
	int r = sealed_image(sealed, 0, &open, ret_image, err);

	if (r == 0 && words->snapshot)
		r = block_snapshot_view(*ret_image, words->snapshot, err);
	return r;
}

static int check_room(const struct block_image *from, const struct block_image *to,
		      struct error *err)
{
	if (to->size >= from->size)
		return 0;
	return error_set(err, -ENOSPC,
			 "cannot write \"%s\" to \"%s\": the disk has %lu bytes, the device %lu",
			 from->name, to->name, from->size, to->size);
}

static int target_make(struct sealed *sealed, const struct block_image *from, uint32_t bits,
		       struct block_image **ret_image, struct error *err)
{
	const struct job *job = sealed->job;
	struct block_create create = {
		.format = job->words.to,
		.size = from->size,
		.cluster_bits = bits,
		.compression = job->words.compression && !strcmp(job->words.compression, "zstd")
				       ? QCOW2_ZSTD
				       : QCOW2_ZLIB,
		.lazy_refcounts = job->words.lazy_refcounts,
	};
	int r = job->made.in_place ? 0 : block_create(job->made.fd, &create, job->made.name, err);

	if (r == 0)
		r = sealed_made(sealed, job->words.to, ret_image, err);
	return r < 0 ? r : check_room(from, *ret_image, err);
}

static int convert_work(struct sealed *sealed, struct error *err)
{
	_cleanup_(block_closep) struct block_image *from = NULL;
	_cleanup_(block_closep) struct block_image *to = NULL;
	const struct job *job = sealed->job;
	bool qcow2 = !strcmp(job->words.to, "qcow2");
	uint32_t bits = job->words.cluster ? words_cluster_bits(&job->words) : CLUSTER_BITS;
	struct copy_options options = {
		.fresh = !job->made.in_place,
		.packed = job->words.compress,
		.cluster = qcow2 ? 1u << bits : 0,
	};
	struct copy_result result = {};
	uint64_t begun = clock_ms();
	int r = source_open(sealed, &from, err);

	if (r == 0)
		r = target_make(sealed, from, bits, &to, err);
	if (r == 0)
		r = copy_image(sealed, from, to, &options, &result, err);
	if (r < 0)
		return r;
	/* Closing writes too: nothing may be said to be done before. */
	struct copy_item item = {from->size, result.copied, result.shared, result.zeroes, 0};
	to = block_close(to);
	if (fdatasync(job->made.fd) < 0)
		return error_set(err, -errno, "cannot write \"%s\" to its end: %s", job->made.name,
				 strerror(errno));
	item.milliseconds = clock_ms() - begun;
	return sealed_report(sealed, 0, &item, err);
}

const struct disk_verb verb_convert = {
	.name = "convert",
	.words = "SRC DST --from FORMAT --to FORMAT [FLAGS]",
	.help = "a new image with the content of another: other format, cluster size, compression",
	.more = "  DST stands on nothing: what SRC stands on is read too, which takes --backing "
		"allow. Holes and\n"
		"  zeroes take no space in DST. DST appears when it is whole and on stable "
		"storage. A block device\n"
		"  as DST takes --to raw --overwrite.",
	.flags = " from to backing backing-format snapshot cluster compress compression "
		 "lazy-refcounts "
		 "overwrite json progress verbose ",
	.names_min = 2,
	.names_max = 2,
	.crew = true,
	.items = {&copy_item_table},
	.open = convert_open,
	.item = convert_item,
	.end = convert_end,
	.work = convert_work,
};
