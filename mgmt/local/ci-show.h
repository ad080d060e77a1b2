/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the tests of `corral ci` fare, for a person: a table that moves on a terminal, a line a test
 * elsewhere, and at the end what the failing ones said.
 */
#pragma once

#include <stdbool.h>
#include <stdio.h>
#include <sys/types.h>

#include "mgmt/local/ci.h"
#include "mgmt/local/job.h"

#define CI_SHOW_MS 1000 /* between two looks of the table */

/* One test; in memory that its launcher shares. */
struct ci_slot {
	const struct ci_test *test; /* borrowed */
	const char *image;          /* borrowed: made of its root; NULL: the root is an image */
	pid_t pid;                  /* 0: not running */
	bool done, passed;
	uint64_t started_ms;
	int notes_fd; /* owned: standard error of its launcher */
	char *notes;  /* owned: what was in it, of one that failed */
	struct job_result result;
	char out[JOB_KEPT_MAX], err[JOB_KEPT_MAX];
};

struct ci_show {
	FILE *file; /* owned: a stream of our own, so that a whole table is one write */
	bool live;  /* on a terminal */
	uint32_t n_tests, n_done, n_failed;
	int lines; /* of the table, below the cursor's first line */
	uint64_t started_ms;
};

/* With `tap`, which has standard output, the rest goes to standard error. -errno. */
int ci_show_init(struct ci_show *show, bool tap, uint32_t n_tests) __must_check;
void ci_show_deinit(struct ci_show *show);
void ci_show_running(struct ci_show *show, const struct ci_slot *slots, uint32_t n_slots);
void ci_show_end(struct ci_show *show, const struct ci_slot *slot);
/* The output of those that failed, and the sum. */
void ci_show_close(struct ci_show *show, const struct ci_slot *slots, uint32_t n_slots);
