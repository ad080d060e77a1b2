/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checks and repairs. A repair mends one kind of thing, the most basic first, and looks at the file
 * again: what is written rests on what the file says now, never on what was meant to be written.
 */
#include "block/qcow2-check.h"

#include <endian.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "block/qcow2-scan.h"
#include "block/qcow2.h"

/* Each mends for good what it mends; a file on which they undo each other's work is given up. */
#define ROUNDS_MAX 16

enum step {
	STEP_NOTHING,
	STEP_SNAPSHOTS,
	STEP_AUTOCLEAR,
	STEP_ENTRIES,
	STEP_REBUILD,
	STEP_RAISE,
	STEP_LOWER,
	STEP_FLAGS,
};

/* What a scan's findings call for next, as far as it is wanted. */
static enum step next_step(const struct scan *scan)
{
	const struct qcow2_check_options *options = scan->options;
	const uint64_t *found = scan->found;
	bool lost = found[SCAN_ENTRY] || found[SCAN_SNAPSHOT] || found[SCAN_AUTOCLEAR];

	if (lost) {
		if (!options->fix_entries)
			return STEP_NOTHING;
		if (found[SCAN_SNAPSHOT])
			return STEP_SNAPSHOTS;
		return found[SCAN_AUTOCLEAR] ? STEP_AUTOCLEAR : STEP_ENTRIES;
	}
	if (scan->must_rebuild)
		return options->fix_refcounts ? STEP_REBUILD : STEP_NOTHING;
	if (found[SCAN_COUNT] && options->fix_refcounts)
		return STEP_RAISE;
	if (found[SCAN_LEAK] && options->fix_leaks)
		return STEP_LOWER;
	/* With refcounts set down go the flags that say they are 1. */
	if (found[SCAN_FLAG] && !found[SCAN_COUNT] && !found[SCAN_LEAK] &&
	    (options->fix_refcounts || scan->lowered))
		return STEP_FLAGS;
	return STEP_NOTHING;
}

static int drop_autoclear_bits(struct scan *scan)
{
	uint64_t autoclear = htobe64(scan->header.autoclear & ~scan->drop_autoclear);

	return repair_header(scan, offsetof(struct qcow2_disk_header, autoclear), &autoclear,
			     sizeof(autoclear));
}

/* The next scan, and what it is to do. */
static int scan_again(struct scan *scan, enum step step)
{
	struct scan next = {
		.file = scan->file,
		.name = scan->name,
		.options = scan->options,
		.err = scan->err,
		.quiet = true,
		.lowered = scan->lowered || step == STEP_LOWER,
		.fix_entries = step == STEP_ENTRIES,
		.fix_flags = step == STEP_FLAGS,
		.without_refcounts = step == STEP_REBUILD,
		.highest = step == STEP_REBUILD ? scan->highest : 0,
	};

	scan_deinit(scan);
	*scan = next;
	return scan_run(scan);
}

static int take_step(struct scan *scan, enum step step)
{
	int r = 0;

	switch (step) {
	case STEP_NOTHING:
		break;
	case STEP_SNAPSHOTS:
		r = repair_snapshots(scan);
		break;
	case STEP_AUTOCLEAR:
		r = drop_autoclear_bits(scan);
		break;
	case STEP_RAISE:
		r = repair_refcounts(scan, true, false);
		break;
	case STEP_LOWER:
		r = repair_refcounts(scan, false, true);
		break;
	case STEP_REBUILD:
		r = scan_again(scan, step);
		if (r >= 0)
			r = repair_rebuild(scan);
		break;
	case STEP_ENTRIES:
	case STEP_FLAGS:
		r = scan_again(scan, step);
		break;
	}
	return r;
}

/* Sets and clears bits that say how the image is. */
static int change_features(struct scan *scan, uint64_t set, uint64_t clear)
{
	uint64_t features = (scan->header.incompatible | set) & ~clear;
	uint64_t disk = htobe64(features);
	int r;

	if (scan->header.version < 3 || features == scan->header.incompatible)
		return 0;
	r = repair_header(scan, offsetof(struct qcow2_disk_header, incompatible), &disk,
			  sizeof(disk));
	if (r >= 0)
		scan->header.incompatible = features;
	return r;
}

static bool is_repair(const struct qcow2_check_options *options)
{
	return options->fix_leaks || options->fix_refcounts || options->fix_entries;
}

/* While it is worked on, it is dirty: after a crash somebody looks again. */
static int repair(struct scan *scan)
{
	enum step step = next_step(scan);
	uint64_t was_dirty = scan->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY;
	int r = 0;

	if (step != STEP_NOTHING)
		r = change_features(scan, QCOW2_INCOMPATIBLE_DIRTY, 0);
	for (uint32_t i = 0; r >= 0 && step != STEP_NOTHING && i < ROUNDS_MAX; i++) {
		r = take_step(scan, step);
		if (r >= 0)
			r = scan_again(scan, step == STEP_LOWER ? step : STEP_NOTHING);
		if (r >= 0)
			step = next_step(scan);
	}
	if (r < 0)
		return r;
	if (scan_corruptions(scan))
		return change_features(scan, 0, was_dirty ? 0 : (uint64_t)QCOW2_INCOMPATIBLE_DIRTY);
	return change_features(scan, 0, QCOW2_INCOMPATIBLE_DIRTY | QCOW2_INCOMPATIBLE_CORRUPT);
}

static struct block_check sum_up(const struct scan *scan)
{
	uint64_t cluster_size = scan->cluster_size;

	return (struct block_check){
		.corruptions = scan_corruptions(scan),
		.leaks = scan->found[SCAN_LEAK],
		.allocated = scan->allocated,
		.compressed = scan->compressed,
		.total = scan->header.size / cluster_size + !!(scan->header.size % cluster_size),
		.end = scan->highest * cluster_size,
	};
}

static void tell_refusal(struct scan *scan)
{
	const struct qcow2_check_options *options = scan->options;

	if (!options->report || !scan->found[SCAN_LEAK] || !options->fix_leaks)
		return;
	if (scan->must_rebuild || scan->found[SCAN_ENTRY] || scan->found[SCAN_SNAPSHOT] ||
	    scan->found[SCAN_AUTOCLEAR])
		options->report(options->arg,
				"no space is freed: where so much is wrong, what nothing points to "
				"may be what somebody looks for; repair --all does it");
}

int qcow2_check(const struct block_file *file, const char *name,
		const struct qcow2_check_options *options, struct block_check *ret_check,
		struct error *err)
{
	struct scan scan = {.file = file, .name = name, .options = options, .err = err};
	struct block_check before = {0}, after = {0};
	int r = scan_run(&scan);

	if (r >= 0)
		before = after = sum_up(&scan);
	if (r >= 0 && is_repair(options)) {
		r = repair(&scan);
		if (r >= 0)
			after = sum_up(&scan);
		if (r >= 0)
			tell_refusal(&scan);
	}
	scan_deinit(&scan);
	if (r < 0)
		return r;
	after.fixed_corruptions = before.corruptions - MIN(before.corruptions, after.corruptions);
	after.fixed_leaks = before.leaks - MIN(before.leaks, after.leaks);
	*ret_check = after;
	return 0;
}

int qcow2_repair_dirty(const struct block_file *file, const char *name, struct error *err)
{
	const struct qcow2_check_options options = {.fix_leaks = true, .fix_refcounts = true};
	struct block_check check;
	int r = qcow2_check(file, name, &options, &check, err);

	if (r < 0)
		return r;
	if (check.corruptions)
		return error_set(err, -EIO,
				 "cannot put \"%s\" in order: more is wrong than a crash explains; "
				 "see what corral disk check says",
				 name);
	return 0;
}

static int check_raw(struct block_image *image, struct block_check *ret_check, struct error *err)
{
	int64_t size = block_file_size(&image->file);

	if (size < 0)
		return error_set(err, (int)size, "cannot check \"%s\": %s", image->name,
				 strerror((int)-size));
	*ret_check = (struct block_check){.end = (uint64_t)size};
	return 0;
}

static int check_closed(struct block_image *image, const struct qcow2_check_options *options,
			struct block_check *ret_check, struct error *err)
{
	struct error later = ERROR_NULL;
	int r, back;

	if (image->readonly)
		return qcow2_check(&image->file, image->name, options, ret_check, err);
	r = image->ops->yield(image);
	if (r < 0)
		return error_set(err, r, "cannot check \"%s\": writing it out failed: %s",
				 image->name, strerror(-r));
	r = qcow2_check(&image->file, image->name, options, ret_check, err);
	back = image->ops->claim(image, &later);
	if (r >= 0 && back < 0 && is_repair(options))
		return error_set(err, back, "%s", later.text);
	return r;
}

int block_check(struct block_image *image, bool repair_leaks, bool repair_all,
		void (*report)(void *arg, const char *sentence), void *arg,
		struct block_progress *progress, struct block_check *ret_check, struct error *err)
{
	const struct qcow2_check_options options = {
		.fix_leaks = repair_leaks || repair_all,
		.fix_refcounts = repair_all,
		.fix_entries = repair_all,
		.report = report,
		.arg = arg,
		.progress = progress,
	};

	if (image->ops != &qcow2_ops)
		return check_raw(image, ret_check, err);
	if (is_repair(&options) && (image->readonly || image->inactive))
		return error_set(err, -EROFS, "cannot repair \"%s\": it is not open for writing",
				 image->name);
	return check_closed(image, &options, ret_check, err);
}
