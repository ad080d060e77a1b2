/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How far long work is, on standard error: a bar where that is a terminal, lines of JSON where they
 * were asked for, else nothing.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "disk/link.h"

enum progress_kind { PROGRESS_NONE, PROGRESS_BAR, PROGRESS_JSON };

struct progress {
	enum progress_kind kind;
	const char *what;             /* borrowed: the verb */
	const struct link_page *page; /* borrowed */
	uint64_t begun, shown;        /* ms */
	uint64_t last_done, last_moved, last_at;
	double rate;      /* bytes a second, of late */
	bool begun_shown; /* at least once */
	bool drawn;       /* there is a bar to be wiped */
};

/* `word`: of --progress, NULL: a bar if standard error is a terminal. */
int progress_init(struct progress *progress, const char *word, const char *what,
		  const struct link_page *page, struct error *err) __must_check;
/* Milliseconds until it is worth calling progress_show again, -1: never. */
int progress_wait(const struct progress *progress);
void progress_show(struct progress *progress);
/* Wipes the bar: something else is to be printed, or it is over. */
void progress_wipe(struct progress *progress);
void progress_end(struct progress *progress);
