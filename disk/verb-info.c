/* SPDX-License-Identifier: Apache-2.0 */
/*
 * info, for people and programs: what an image is, what it stands on, its internal snapshots. And
 * probe, which is info of a descriptor for the launcher of a VM.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "block/create.h"
#include "block/qcow2-format.h"
#include "disk/header.h"
#include "disk/sealed.h"
#include "disk/text.h"
#include "disk/words.h"

struct below_item {
	char *name, *format;
};

struct qcow2_item {
	uint32_t version, cluster, refcount_bits;
	char *compression;
	bool lazy_refcounts, dirty, corrupt;
};

struct image_item {
	uint32_t depth;
	char *name, *format;
	uint64_t size, allocated, end;
	struct below_item backing;
	struct qcow2_item qcow2;
};

struct snapshot_item {
	char *id, *name;
	uint64_t seconds, size, vm_state_size;
};

static const struct field below_fields[] = {
	FIELD(struct below_item, name, FIELD_STRING, "name", "As it stands in the image"),
	FIELD(struct below_item, format, FIELD_STRING, "format", "raw or qcow2, absent: not said"),
};
static const struct table below_table =
	TABLE(struct below_item, "backing", "What an image stands on", below_fields);

static const struct field qcow2_fields[] = {
	FIELD(struct qcow2_item, version, FIELD_U32, "version", "Of the format"),
	FIELD(struct qcow2_item, cluster, FIELD_U32, "cluster", "Bytes of a cluster"),
	FIELD(struct qcow2_item, refcount_bits, FIELD_U32, "refcount-bits",
	      "Bits of a reference count"),
	FIELD(struct qcow2_item, compression, FIELD_STRING, "compression",
	      "How clusters may be compressed"),
	FIELD(struct qcow2_item, lazy_refcounts, FIELD_BOOL, "lazy-refcounts",
	      "Reference counts are written late"),
	FIELD(struct qcow2_item, dirty, FIELD_BOOL, "dirty", "Was not closed; a repair is needed"),
	FIELD(struct qcow2_item, corrupt, FIELD_BOOL, "corrupt", "Was found to be corrupt"),
};
static const struct table qcow2_table =
	TABLE(struct qcow2_item, "qcow2", "What a qcow2 image says of itself", qcow2_fields);

static const struct field image_fields[] = {
	FIELD(struct image_item, depth, FIELD_U32, "depth", "0 is the image itself"),
	FIELD(struct image_item, name, FIELD_STRING, "name", "Its name"),
	FIELD(struct image_item, format, FIELD_STRING, "format", "raw or qcow2"),
	FIELD(struct image_item, size, FIELD_U64, "size", "Bytes of the disk"),
	FIELD(struct image_item, allocated, FIELD_U64, "allocated", "Bytes it takes on its store"),
	FIELD(struct image_item, end, FIELD_U64, "file-size", "Bytes of its file"),
	FIELD(struct image_item, backing, FIELD_STRUCT, "backing", "What it stands on",
	      .table = &below_table),
	FIELD(struct image_item, qcow2, FIELD_STRUCT, "qcow2", "What is of this format only",
	      .table = &qcow2_table),
};
static const struct table image_table =
	TABLE(struct image_item, "image", "One image", image_fields);

static const struct field snapshot_fields[] = {
	FIELD(struct snapshot_item, id, FIELD_STRING, "id", "Its id"),
	FIELD(struct snapshot_item, name, FIELD_STRING, "name", "Its name"),
	FIELD(struct snapshot_item, seconds, FIELD_U64, "seconds", "When, since 1970"),
	FIELD(struct snapshot_item, size, FIELD_U64, "size", "Bytes of the disk then"),
	FIELD(struct snapshot_item, vm_state_size, FIELD_U64, "vm-state-size",
	      "Bytes of the machine's state"),
};
static const struct table snapshot_table =
	TABLE(struct snapshot_item, "snapshot", "One internal snapshot", snapshot_fields);

enum { ITEM_IMAGE, ITEM_SNAPSHOT };

/* The broker. */

static int info_open(struct job *job, struct error *err)
{
	int r = words_need_format(job->words.format, "--format", job->words.names[0], err);

	return r < 0 ? r : image_file_open(&job->files[0], job->words.names[0], false, err);
}

static int probe_open(struct job *job, struct error *err)
{
	const struct words *words = &job->words;
	char name[40];
	int r;

	if (!words->fd_said)
		return error_set(err, -EINVAL, "which descriptor? corral disk probe --fd N");
	snprintf(name, sizeof(name), "descriptor %u", words->fd);
	r = words_need_format(words->format, "--format", words->name ? words->name : name, err);
	return r < 0 ? r
		     : image_file_take(&job->files[0], (int)words->fd,
				       words->name ? words->name : name, err);
}

static void say(const char *key, const char *format, ...) __printf(2, 3);

static void say(const char *key, const char *format, ...)
{
	char line[1400];
	va_list list;

	va_start(list, format);
	vsnprintf(line, sizeof(line), format, list);
	va_end(list);
	text_make_printable(line);
	printf("%-14s%s\n", key, line);
}

static void print_image(const struct job *job, const struct image_item *item)
{
	const struct qcow2_item *qcow2 = &item->qcow2;
	char size[TEXT_SIZE_MAX], allocated[TEXT_SIZE_MAX], cluster[TEXT_SIZE_MAX];

	if (item->depth)
		putchar('\n');
	say("image", "%s", item->depth ? item->name : job->files[0].name);
	if (qcow2->version)
		say("format", "%s, version %u", item->format, qcow2->version);
	else
		say("format", "%s", item->format);
	say("disk size", "%s (%lu bytes)", text_size(item->size, size), item->size);
	say("on its store", "%s", text_size(item->allocated, allocated));
	if (item->backing.name)
		say("stands on", "%s (%s)", item->backing.name,
		    item->backing.format ? item->backing.format : "its format is not said");
	if (!qcow2->version)
		return;
	say("clusters", "%s, %s where compressed%s", text_size(qcow2->cluster, cluster),
	    qcow2->compression, qcow2->lazy_refcounts ? ", reference counts are written late" : "");
	if (qcow2->dirty)
		say("state", "was not closed: `corral disk repair` puts it in order");
	if (qcow2->corrupt)
		say("state", "corrupt: copy out of it what you can, `corral disk check` says more");
}

static void print_snapshot(struct job *job, const struct snapshot_item *item)
{
	char size[TEXT_SIZE_MAX], date[TEXT_DATE_MAX], line[1400];

	if (!job->n_printed++)
		printf("\n%-6s%-24s%-25s%s\n", "id", "snapshot", "taken", "disk size");
	snprintf(line, sizeof(line), "%-5s %-23s %-24s %s", item->id, item->name,
		 text_date(item->seconds, date), text_size(item->size, size));
	text_make_printable(line);
	printf("%s\n", line);
}

/* Keys that say nothing go; the name by which the user knows the top image comes. */
static json_t *image_json(const struct job *job, const struct image_item *item)
{
	json_t *json = table_to_json(&image_table, item);

	if (!json)
		return NULL;
	if (!item->qcow2.version)
		json_object_del(json, "qcow2");
	if (!item->backing.name)
		json_object_del(json, "backing");
	if (!item->depth && text_is_utf8(job->files[0].name, strlen(job->files[0].name)))
		json_object_set_new(json, "name", json_string(job->files[0].name));
	return json;
}

static int keep_image(struct job *job, const struct image_item *item)
{
	json_t *json = image_json(job, item), *chain;
	int r;

	if (!json)
		return -ENOMEM;
	if (!item->depth) {
		r = json_object_update(job->answer, json);
		json_decref(json);
		return r < 0 ? -ENOMEM : 0;
	}
	chain = json_object_get(job->answer, "chain");
	if (!chain) {
		chain = json_array();
		if (json_object_set_new(job->answer, "chain", chain) < 0)
			chain = NULL;
	}
	return !chain || json_array_append_new(chain, json) < 0 ? -ENOMEM : 0;
}

static int info_item(struct job *job, uint32_t which, const void *data, struct error *err)
{
	if (job->answer && which == ITEM_IMAGE)
		return keep_image(job, data);
	if (job->answer)
		return job_keep(job, "snapshots", &snapshot_table, data, err);
	if (which == ITEM_IMAGE)
		print_image(job, data);
	else
		print_snapshot(job, data);
	return 0;
}

/* One line, and no more than it needs: a program reads it. */
static int probe_item(struct job *job _unused_, uint32_t which _unused_, const void *data,
		      struct error *err)
{
	const struct image_item *item = data;
	json_t *json =
		json_pack("{s:s, s:I}", "format", item->format, "size", (json_int_t)item->size);
	int r = json ? 0 : -ENOMEM;

	if (r == 0 && item->backing.name)
		r = json_object_set_new(json, "backing",
					table_to_json(&below_table, &item->backing));
	if (r == 0)
		r = json_dumpf(json, stdout, JSON_COMPACT) < 0 ? -EIO : 0;
	json_decref(json);
	putchar('\n');
	return r < 0 ? error_set(err, -EIO, "cannot print what it is") : 0;
}

/* The sealed process. Strings of an item are borrowed here: the item is only encoded. */

static char *printable(char *text, size_t size, const char *from)
{
	if (!from)
		return NULL;
	snprintf(text, size, "%s", from);
	text_make_printable(text);
	return text;
}

static uint64_t allocated(int fd)
{
	struct stat st;

	return fstat(fd, &st) < 0 ? 0 : (uint64_t)st.st_blocks * 512;
}

static void fill_qcow2(struct qcow2_item *item, const struct qcow2_header *header)
{
	*item = (struct qcow2_item){
		.version = header->version,
		.cluster = UINT32_C(1) << header->cluster_bits,
		.refcount_bits = UINT32_C(1) << header->refcount_order,
		.compression = header->compression == QCOW2_ZSTD ? (char *)"zstd" : (char *)"zlib",
		.lazy_refcounts = header->compatible & QCOW2_COMPATIBLE_LAZY,
		.dirty = header->incompatible & QCOW2_INCOMPATIBLE_DIRTY,
		.corrupt = header->incompatible & QCOW2_INCOMPATIBLE_CORRUPT,
	};
}

static int report_image(struct sealed *sealed, const struct block_image *image, uint32_t depth,
			struct error *err)
{
	_cleanup_(header_freep) struct qcow2_header *header = NULL;
	char name[QCOW2_BACKING_NAME_MAX + 1], own[QCOW2_BACKING_NAME_MAX + 1], format[32];
	struct image_item item = {
		.depth = depth,
		.name = printable(own, sizeof(own), image->name),
		.format = (char *)image->ops->format,
		.size = image->size,
		.allocated = allocated(image->file.fd),
		.end = (uint64_t)MAX(block_file_size(&image->file), INT64_C(0)),
	};

	if (!strcmp(item.format, "qcow2")) {
		int r = header_read(&image->file, image->name, &header, err);

		if (r < 0)
			return r;
		fill_qcow2(&item.qcow2, header);
		item.backing.name = printable(name, sizeof(name), header->backing_name);
		item.backing.format = printable(format, sizeof(format), header->backing_format);
	}
	return sealed_report(sealed, ITEM_IMAGE, &item, err);
}

static int report_snapshots(struct sealed *sealed, struct block_image *image, struct error *err)
{
	struct block_snapshots snapshots = {};
	int r;

	if (strcmp(image->ops->format, "qcow2") != 0)
		return 0;
	r = block_snapshots_read(image, &snapshots, err);
	for (uint32_t i = 0; r == 0 && i < snapshots.n; i++) {
		const struct block_snapshot *from = &snapshots.list[i];
		char id[256], name[256];
		struct snapshot_item item = {
			.id = printable(id, sizeof(id), from->id),
			.name = printable(name, sizeof(name), from->name),
			.seconds = from->seconds,
			.size = from->size,
			.vm_state_size = from->vm_state_size,
		};

		r = sealed_report(sealed, ITEM_SNAPSHOT, &item, err);
	}
	block_snapshots_free(&snapshots);
	return r;
}

static int info_work(struct sealed *sealed, struct error *err)
{
	_cleanup_(block_closep) struct block_image *image = NULL;
	const struct words *words = &sealed->job->words;
	struct sealed_open open = {
		.format = words->format,
		.readonly = true,
		.no_lock = words->force,
		.chain = words->allow_backing,
	};
	uint32_t depth = 0;
	int r = sealed_image(sealed, 0, &open, &image, err);

	for (const struct block_image *at = image; r == 0 && at; at = at->backing)
		r = report_image(sealed, at, depth++, err);
	return r < 0 ? r : report_snapshots(sealed, image, err);
}

/* No lock is taken: the VM that the descriptor is for takes its own. A name that is no text could
 * not be handed on. */
static int probe_qcow2(struct sealed *sealed, struct image_item *item, struct error *err)
{
	_cleanup_(header_freep) struct qcow2_header *header = NULL;
	struct image_file *from = &sealed->job->files[0];
	struct block_file file;
	int r = block_file_init(&file, take_fd(from->fd), from->name, err);

	if (r < 0)
		return r;
	r = header_read(&file, from->name, &header, err);
	block_file_close(&file);
	if (r < 0)
		return r;
	if (header->backing_name &&
	    !text_is_utf8(header->backing_name, strlen(header->backing_name)))
		return error_set(err, -EILSEQ, "\"%s\" stands on a file whose name is no text",
				 from->name);
	item->size = header->size;
	item->backing.name = header->backing_name;
	item->backing.format = header->backing_format;
	return sealed_report(sealed, ITEM_IMAGE, item, err);
}

static int probe_work(struct sealed *sealed, struct error *err)
{
	_cleanup_(block_closep) struct block_image *image = NULL;
	struct image_item item = {.format = (char *)sealed->job->words.format};
	struct sealed_open open = {.format = "raw", .readonly = true, .no_lock = true};
	int r;

	if (!strcmp(item.format, "qcow2"))
		return probe_qcow2(sealed, &item, err);
	r = sealed_image(sealed, 0, &open, &image, err);
	if (r < 0)
		return r;
	item.size = image->size;
	return sealed_report(sealed, ITEM_IMAGE, &item, err);
}

const struct disk_verb verb_info = {
	.name = "info",
	.words = "FILE --format raw|qcow2 [--backing allow] [--force] [--json]",
	.help = "what an image is, what it stands on, its internal snapshots",
	.more = "  With --backing allow each image of the chain is looked at.",
	.flags = " format backing backing-format force json verbose ",
	.names_min = 1,
	.names_max = 1,
	.items = {&image_table, &snapshot_table},
	.open = info_open,
	.item = info_item,
	.work = info_work,
};

const struct disk_verb verb_probe = {
	.name = "probe",
	.words = "--fd N --format raw|qcow2 [--name TEXT]",
	.help = "for programs: an open image's size and what it stands on, as a line of JSON",
	.flags = " fd format name json verbose ",
	.items = {&image_table},
	.open = probe_open,
	.item = probe_item,
	.work = probe_work,
};
