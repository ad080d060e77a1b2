/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One run of `corral disk`. A verb is a row of a table and has two halves: the broker's, which
 * reads the words, opens what they name, prints what it is told and has the user's rights; and the
 * sealed one, in a child that has open descriptors and nothing else, where all images are read and
 * written. The child is forked with the job as it stands; what it finds out comes back as items,
 * each described by a table, which the broker checks as it would check what a stranger sent.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/table.h"
#include "disk/made.h"
#include "disk/open.h"

/* Exit statuses. */
enum {
	DISK_OK = 0,
	DISK_FAILED = 1,
	DISK_USAGE = 2,     /* wrong words on the command line */
	DISK_DIFFERENT = 3, /* compare: they are not the same; check: clusters are lost */
	DISK_CORRUPT = 4,   /* check: data is lost, or will be */
};

#define DISK_NAMES_MAX 2
#define DISK_FILES_MAX 2
#define DISK_ITEMS_MAX 4

/* What a command line said. Borrowed from argv; NULL, 0 and false: not said. */
struct words {
	const char *names[DISK_NAMES_MAX]; /* words that are no flags */
	uint32_t n_names;
	const char *format, *second_format, *from, *to; /* "raw" or "qcow2" once parsed */
	const char *base, *base_format, *backing_format;
	const char *snapshot, *compression, *progress, *name;
	const char *size_text; /* as it stands: it may begin with + or - */
	uint64_t cluster;
	uint32_t fd;
	bool fd_said;
	bool allow_backing;
	bool json, verbose, overwrite, compress, lazy_refcounts, copy, force, shrink, leaks, remove;
};

struct job;
struct sealed;

struct disk_verb {
	const char *name;
	const char *words; /* after the verb, for help */
	const char *help;  /* one line */
	const char *more;  /* the rest of its help */
	const char *flags; /* those it takes, a blank around each, without dashes */
	uint32_t names_min, names_max;
	bool in_place; /* changes an image where it is: asked to stop, never killed at once */
	bool crew;     /* has long work: threads */
	const struct table *items[DISK_ITEMS_MAX];
	/* The broker's half: opens files; then prints or keeps each item; `end` after the last one
	 * gives the exit status. `item` and `end` may be NULL: items are kept for --json. */
	int (*open)(struct job *job, struct error *err);
	int (*item)(struct job *job, uint32_t which, const void *item, struct error *err);
	int (*end)(struct job *job, struct error *err);
	/* The sealed half. */
	int (*work)(struct sealed *sealed, struct error *err);
};

struct job {
	const struct disk_verb *verb;
	struct words words;
	struct image_file files[DISK_FILES_MAX]; /* what the words name and is there */
	struct made made;                        /* what comes to be */
	struct backing backing[DISK_FILES_MAX];  /* what was opened under files[i] */
	const char *base_name;                   /* create and its kin: to stand in the image */
	json_t *answer; /* owned; what --json prints in the end, NULL: nothing is kept */
	int status;     /* exit status of what was found */
	uint64_t n_printed;
	char text[4096]; /* base_name's place */
};

extern const struct disk_verb verb_create, verb_info, verb_check, verb_repair, verb_convert,
	verb_clone, verb_snapshot, verb_commit, verb_resize, verb_map, verb_compare, verb_probe;

/* Keeps an item for --json: its keys in the answer itself, or as one more of the array `key`. */
int job_keep(struct job *job, const char *key, const struct table *table, const void *item,
	     struct error *err) __must_check;
