/* SPDX-License-Identifier: Apache-2.0 */
/*
 * check and repair: does the metadata of an image agree with itself? Only the image itself is
 * looked at; what it stands on has a check of its own.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "block/create.h"
#include "disk/sealed.h"
#include "disk/text.h"
#include "disk/words.h"

struct finding_item {
	char *text;
};

static const struct field finding_fields[] = {
	FIELD(struct finding_item, text, FIELD_STRING, "text", "A sentence"),
};
static const struct table finding_table =
	TABLE(struct finding_item, "finding", "What is wrong at one place", finding_fields);

static const struct field result_fields[] = {
	FIELD(struct block_check, corruptions, FIELD_U64, "corruptions",
	      "Places where data is lost or will be"),
	FIELD(struct block_check, leaks, FIELD_U64, "leaks", "Clusters that nothing points to"),
	FIELD(struct block_check, fixed_corruptions, FIELD_U64, "fixed-corruptions",
	      "Corruptions that were put in order"),
	FIELD(struct block_check, fixed_leaks, FIELD_U64, "fixed-leaks",
	      "Lost clusters that were put in order"),
	FIELD(struct block_check, allocated, FIELD_U64, "allocated-clusters",
	      "Clusters of the disk that the image has"),
	FIELD(struct block_check, compressed, FIELD_U64, "compressed-clusters",
	      "Of these, the compressed ones"),
	FIELD(struct block_check, total, FIELD_U64, "total-clusters", "Clusters of the disk"),
	FIELD(struct block_check, end, FIELD_U64, "end", "Byte behind the last cluster in use"),
};
static const struct table result_table =
	TABLE(struct block_check, "check", "What a check found", result_fields);

enum { ITEM_FINDING, ITEM_RESULT };

/* The broker. */

static int check_open_as(struct job *job, bool writable, struct error *err)
{
	int r = words_need_format(job->words.format, "--format", job->words.names[0], err);

	return r < 0 ? r : image_file_open(&job->files[0], job->words.names[0], writable, err);
}

static int check_open(struct job *job, struct error *err)
{
	return check_open_as(job, false, err);
}

static int repair_open(struct job *job, struct error *err)
{
	return check_open_as(job, true, err);
}

static void print_result(const struct job *job, const struct block_check *check)
{
	const char *name = job->files[0].name;
	double share = check->total ? 100.0 * (double)check->allocated / (double)check->total : 0;
	char end[TEXT_SIZE_MAX];

	if (check->fixed_corruptions || check->fixed_leaks)
		printf("\"%s\": put in order: %lu corruptions, %lu lost clusters\n", name,
		       check->fixed_corruptions, check->fixed_leaks);
	if (!check->corruptions && !check->leaks)
		printf("\"%s\": nothing is wrong\n", name);
	if (check->corruptions)
		printf("\"%s\": %lu corruptions: data is lost, or will be when it is written; %s\n",
		       name, check->corruptions,
		       job->verb == &verb_check ? "copy it, then `corral disk repair`"
						: "copy out of it what can be read");
	if (check->leaks)
		printf("\"%s\": %lu lost clusters: they take space and do no harm; `corral disk "
		       "repair` "
		       "gives it back\n",
		       name, check->leaks);
	if (check->total)
		printf("%lu of %lu clusters in use (%.1f%%), %lu compressed; the file is used up "
		       "to %s\n",
		       check->allocated, check->total, share, check->compressed,
		       text_size(check->end, end));
}

static int check_item(struct job *job, uint32_t which, const void *data, struct error *err)
{
	const struct block_check *check = data;

	if (which == ITEM_FINDING && job->answer)
		return job_keep(job, "findings", &finding_table, data, err);
	if (which == ITEM_FINDING) {
		const struct finding_item *item = data;
		char line[1024];

		snprintf(line, sizeof(line), "%s", item->text ? item->text : "");
		text_make_printable(line);
		printf("%s\n", line);
		return 0;
	}
	job->status = check->corruptions ? DISK_CORRUPT : check->leaks ? DISK_DIFFERENT : DISK_OK;
	if (job->answer)
		return job_keep(job, NULL, &result_table, data, err);
	print_result(job, check);
	return 0;
}

/* The sealed process. */

struct checking {
	struct block_progress progress;
	struct sealed *sealed;
	struct error *err;
	int r; /* a finding that could not be handed over */
};

static bool at(struct block_progress *progress, uint64_t done, uint64_t total)
{
	struct checking *checking = container_of(progress, struct checking, progress);

	atomic_store(&checking->sealed->page->total, total);
	atomic_store(&checking->sealed->page->done, done);
	return checking->r == 0 && sealed_stopped(checking->sealed, NULL) == 0;
}

static void report(void *arg, const char *sentence)
{
	struct checking *checking = arg;
	char text[1000];
	struct finding_item item = {text};

	snprintf(text, sizeof(text), "%s", sentence);
	text_make_printable(text);
	if (checking->r == 0)
		checking->r = sealed_report(checking->sealed, ITEM_FINDING, &item, checking->err);
}

static int check_image(struct sealed *sealed, bool leaks, bool all, struct error *err)
{
	_cleanup_(block_closep) struct block_image *image = NULL;
	struct checking checking = {{at}, sealed, err, 0};
	const struct words *words = &sealed->job->words;
	struct sealed_open open = {
		.format = words->format,
		.readonly = !leaks,
		.no_lock = words->force,
		.repair = all,
	};
	struct block_check check = {};
	int r = sealed_image(sealed, 0, &open, &image, err);

	if (r == 0)
		r = block_check(image, leaks, all, report, &checking, &checking.progress, &check,
				err);
	if (r == -ECANCELED)
		return error_set(err, r, "stopped before its end; \"%s\" is as good as it was",
				 image->name);
	if (r == 0)
		r = checking.r;
	return r < 0 ? r : sealed_report(sealed, ITEM_RESULT, &check, err);
}

static int check_work(struct sealed *sealed, struct error *err)
{
	return check_image(sealed, false, false, err);
}

static int repair_work(struct sealed *sealed, struct error *err)
{
	return check_image(sealed, true, !sealed->job->words.leaks, err);
}

const struct disk_verb verb_check = {
	.name = "check",
	.words = "FILE --format raw|qcow2 [--force] [--json]",
	.help = "does an image's metadata agree with itself? Nothing is changed",
	.more = "  Exit status: 0 nothing is wrong, 3 clusters are lost, 4 it is corrupt, 1 it "
		"could not be checked.",
	.flags = " format force json progress verbose ",
	.names_min = 1,
	.names_max = 1,
	.items = {&finding_table, &result_table},
	.open = check_open,
	.item = check_item,
	.work = check_work,
};

const struct disk_verb verb_repair = {
	.name = "repair",
	.words = "FILE --format qcow2 [--leaks] [--json]",
	.help = "put an image's metadata in order",
	.more = "  What was not closed is closed, lost clusters are given back, wrong counts and "
		"pointers are set\n"
		"  right. No VM may have it open. Exit status as for check, of what is left.",
	.flags = " format leaks json progress verbose ",
	.names_min = 1,
	.names_max = 1,
	.in_place = true,
	.items = {&finding_table, &result_table},
	.open = repair_open,
	.item = check_item,
	.work = repair_work,
};
