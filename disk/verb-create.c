/* SPDX-License-Identifier: Apache-2.0 */
/*
 * create, snapshot, clone: new images that are empty, or empty above another. Of the image under
 * them only the size is looked at; what that one stands on is of no concern and is not opened.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "block/create.h"
#include "block/qcow2-format.h"
#include "disk/header.h"
#include "disk/offload.h"
#include "disk/sealed.h"
#include "disk/text.h"
#include "disk/words.h"

struct made_item {
	char *how; /* "empty", "overlay", "shared", "copied" */
	uint64_t size, copied;
};

static const struct field made_fields[] = {
	FIELD(struct made_item, how, FIELD_STRING, "how",
	      "What it is: empty, overlay, shared, copied"),
	FIELD(struct made_item, size, FIELD_U64, "size", "Bytes of the disk"),
	FIELD(struct made_item, copied, FIELD_U64, "copied", "Bytes copied for it"),
};
static const struct table made_table =
	TABLE(struct made_item, "made", "The image that was made", made_fields);

/* The broker. */

static int open_made(struct job *job, const char *name, struct error *err)
{
	int r = made_open(&job->made, name, job->words.overwrite, err);

	if (r == 0 && job->made.in_place)
		return error_set(err, -EMEDIUMTYPE,
				 "cannot make \"%s\": it is a block device; `corral disk convert` "
				 "writes to one, with --to raw",
				 name);
	return r;
}

static int open_above(struct job *job, const char *base, const char *name, struct error *err)
{
	int r = image_file_open(&job->files[0], base, false, err);

	if (r == 0)
		r = open_made(job, name, err);
	if (r == 0 && job->made.old.name && image_file_same(&job->files[0], &job->made.old))
		r = error_set(err, -EINVAL, "\"%s\" cannot stand on itself", name);
	if (r == 0)
		r = backing_name(name, base, job->text, sizeof(job->text), err);
	if (r == 0)
		job->base_name = job->text;
	return r;
}

static int raw_has_none(const struct words *words, struct error *err)
{
	if (words->base)
		return error_set(err, -EINVAL,
				 "a raw image cannot stand on another: say --format qcow2");
	if (words->cluster || words->lazy_refcounts || words->compression)
		return error_set(err, -EINVAL,
				 "a raw image has no clusters: leave --cluster, --compression and "
				 "--lazy-refcounts out");
	return 0;
}

static int create_words(const struct job *job, struct error *err)
{
	const struct words *words = &job->words;
	uint64_t size;
	int r = words_need_format(words->format, "--format", words->names[0], err);

	if (r == 0 && !strcmp(words->format, "raw"))
		r = raw_has_none(words, err);
	if (r == 0 && words->base)
		r = words_need_format(words->base_format, "--base-format", words->base, err);
	if (r == 0 && words->n_names == 2)
		return words_size(words->names[1], &size, err);
	if (r == 0 && !words->base)
		return error_set(err, -EINVAL,
				 "how large is \"%s\" to be? corral disk create %s 20G",
				 words->names[0], words->names[0]);
	return r;
}

static int create_open(struct job *job, struct error *err)
{
	const struct words *words = &job->words;
	int r = create_words(job, err);

	if (r < 0)
		return r;
	return words->base ? open_above(job, words->base, words->names[0], err)
			   : open_made(job, words->names[0], err);
}

/* clone, snapshot: names[0] is the image under it. */
static int above_open(struct job *job, struct error *err)
{
	const struct words *words = &job->words;
	int r = words_need_format(words->format, "--format", words->names[0], err);

	if (r == 0 && words->copy && words->cluster)
		r = error_set(err, -EINVAL,
			      "--cluster: a copy has the clusters of its original; `corral disk "
			      "convert` makes others");
	return r < 0 ? r : open_above(job, words->names[0], words->names[1], err);
}

static int made_item_take(struct job *job, uint32_t which _unused_, const void *data,
			  struct error *err)
{
	static const struct {
		const char *how, *text;
	} words[] = {
		{"overlay", "an overlay of"},
		{"shared", "a copy that shares its space with"},
		{"copied", "a copy of"},
	};
	const struct made_item *item = data;
	const char *how = "empty";
	char size[TEXT_SIZE_MAX];

	if (job->answer)
		return job_keep(job, NULL, &made_table, item, err);
	for (size_t i = 0; i < ARRAY_SIZE(words); i++)
		if (item->how && !strcmp(item->how, words[i].how))
			how = words[i].text;
	snprintf(job->text, sizeof(job->text), "%s, %s", text_size(item->size, size), how);
	return 0;
}

static int made_end(struct job *job, struct error *err _unused_)
{
	const char *of = job->files[0].name;

	if (!job->answer)
		printf("\"%s\": %s%s%s%s\n", job->made.name, job->text, of ? " \"" : "",
		       of ? of : "", of ? "\"" : "");
	return 0;
}

/* The sealed process. */

static int base_size(struct sealed *sealed, const char *format, struct block_image **ret_base,
		     uint64_t *ret_size, struct error *err)
{
	struct sealed_open open = {
		.format = format, .readonly = true, .no_lock = sealed->job->words.force};
	int r = sealed_image(sealed, 0, &open, ret_base, err);

	if (r == 0)
		*ret_size = (*ret_base)->size;
	return r;
}

static int make(struct sealed *sealed, struct block_create *create, struct error *err)
{
	const struct job *job = sealed->job;
	struct made_item item = {.how = create->backing_name ? "overlay" : "empty",
				 .size = create->size};
	int r;

	create->cluster_bits = words_cluster_bits(&job->words);
	create->lazy_refcounts = job->words.lazy_refcounts;
	create->compression = job->words.compression && !strcmp(job->words.compression, "zstd")
				      ? QCOW2_ZSTD
				      : QCOW2_ZLIB;
	r = block_create(job->made.fd, create, job->made.name, err);
	return r < 0 ? r : sealed_report(sealed, 0, &item, err);
}

static int create_work(struct sealed *sealed, struct error *err)
{
	_cleanup_(block_closep) struct block_image *base = NULL;
	const struct words *words = &sealed->job->words;
	struct block_create create = {.format = words->format};
	int r = 0;

	if (words->base) {
		create.backing_name = sealed->job->base_name;
		create.backing_format = words->base_format;
		r = base_size(sealed, words->base_format, &base, &create.size, err);
	}
	if (r == 0 && words->n_names == 2)
		r = words_size(words->names[1], &create.size, err);
	return r < 0 ? r : make(sealed, &create, err);
}

static int above_work(struct sealed *sealed, struct error *err)
{
	_cleanup_(block_closep) struct block_image *base = NULL;
	const struct job *job = sealed->job;
	struct block_create create = {
		.format = "qcow2",
		.backing_name = job->base_name,
		.backing_format = job->words.format,
	};
	int r = base_size(sealed, job->words.format, &base, &create.size, err);

	return r < 0 ? r : make(sealed, &create, err);
}

struct copying {
	struct offload_file file;
	struct sealed *sealed;
	struct error *err;
};

static int copying_at(struct offload_file *file, uint64_t done)
{
	struct copying *copying = container_of(file, struct copying, file);

	atomic_store(&copying->sealed->page->done, done);
	atomic_store(&copying->sealed->page->moved, file->copied);
	return sealed_stopped(copying->sealed, copying->err);
}

/* A name that is relative means another file when it is read from another directory. */
static int check_stands(const struct sealed *sealed, const struct block_image *image,
			struct error *err)
{
	_cleanup_(header_freep) struct qcow2_header *header = NULL;
	const char *name = sealed->job->files[0].name;
	int r = 0;

	if (strcmp(image->ops->format, "qcow2") != 0)
		return 0;
	r = header_read(&image->file, name, &header, err);
	if (r < 0)
		return r;
	if (header->backing_name && header->backing_name[0] != '/' &&
	    strchr(sealed->job->base_name, '/'))
		return error_set(
			err, -EXDEV,
			"cannot copy \"%s\" to another directory: it stands on \"%s\", which "
			"is not to be found from there; leave --copy out, or convert it",
			name, header->backing_name);
	return 0;
}

static int clone_copy(struct sealed *sealed, struct error *err)
{
	_cleanup_(block_closep) struct block_image *image = NULL;
	struct copying copying = {{copying_at, 0, 0}, sealed, err};
	struct made_item item = {};
	const struct job *job = sealed->job;
	int r = base_size(sealed, job->words.format, &image, &item.size, err);

	if (r == 0)
		r = check_stands(sealed, image, err);
	if (r < 0)
		return r;
	atomic_store(&sealed->page->total, (uint64_t)MAX(block_file_size(&image->file), 0));
	r = offload_whole(&copying.file, image->file.fd, job->made.fd);
	if (r == 0)
		r = fdatasync(job->made.fd) < 0 ? -errno : 0;
	if (r == -ECANCELED)
		return r;
	if (r < 0)
		return error_set(err, r, "cannot copy \"%s\" to \"%s\": %s", job->files[0].name,
				 job->made.name, strerror(-r));
	item.how = copying.file.shared ? "shared" : "copied";
	item.copied = copying.file.copied;
	return sealed_report(sealed, 0, &item, err);
}

static int clone_work(struct sealed *sealed, struct error *err)
{
	return sealed->job->words.copy ? clone_copy(sealed, err) : above_work(sealed, err);
}

const struct disk_verb verb_create = {
	.name = "create",
	.words = "FILE [SIZE] --format raw|qcow2 [--base FILE --base-format FORMAT] [FLAGS]",
	.help = "make an empty image, or one that stands on another",
	.more = "  A raw image is a sparse file. A qcow2 image grows with what is written. On a "
		"base, which is\n"
		"  from then on only read, it begins with the base's content and, unless said, its "
		"size.",
	.flags = " format base base-format cluster compression lazy-refcounts overwrite force json "
		 "verbose ",
	.names_min = 1,
	.names_max = 2,
	.items = {&made_table},
	.open = create_open,
	.item = made_item_take,
	.end = made_end,
	.work = create_work,
};

const struct disk_verb verb_snapshot = {
	.name = "snapshot",
	.words = "IMAGE OVERLAY --format FORMAT [FLAGS]",
	.help = "keep an image as it is: what is written from now on goes to a new overlay on it",
	.more = "  FORMAT is IMAGE's. No VM may have IMAGE open; a VM that runs is snapshotted "
		"through its\n"
		"  control socket. Use OVERLAY in its place from now on; `corral disk commit` "
		"joins them again.",
	.flags = " format cluster compression lazy-refcounts overwrite json verbose ",
	.names_min = 2,
	.names_max = 2,
	.items = {&made_table},
	.open = above_open,
	.item = made_item_take,
	.end = made_end,
	.work = above_work,
};

const struct disk_verb verb_clone = {
	.name = "clone",
	.words = "TEMPLATE NEW --format FORMAT [--copy] [FLAGS]",
	.help = "a disk that begins as a template does: an overlay of it, or a copy",
	.more = "  FORMAT is TEMPLATE's. An overlay takes no time and little space, and needs the "
		"template as long\n"
		"  as it lives. A copy needs nothing; on XFS and btrfs it takes no time and no "
		"space either.",
	.flags = " format copy cluster compression lazy-refcounts overwrite json progress verbose ",
	.names_min = 2,
	.names_max = 2,
	.items = {&made_table},
	.open = above_open,
	.item = made_item_take,
	.end = made_end,
	.work = clone_work,
};
