/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file that comes to be: it has no name, or one that says it is not finished, until it is whole.
 * Whatever ends the process before, nothing is left under the name that the user gave.
 */
#pragma once

#include <stdbool.h>

#include "base/error.h"
#include "base/macros.h"
#include "disk/open.h"

struct made {
	char *name;      /* owned; what the user calls it; NULL: none */
	const char *own; /* its last part, borrowed from name */
	int dir_fd;      /* owned */
	int fd;          /* owned */
	bool overwrite;
	bool in_place;         /* a block device: written where it is */
	char temporary[64];    /* its name until then; "": it has none */
	struct image_file old; /* what it replaces, held so that nobody uses it meanwhile */
};

/* A block device is opened as it is, with `overwrite` only. */
int made_open(struct made *made, const char *name, bool overwrite, struct error *err) __must_check;
/* Its content is on stable storage; gives it its name, for good. */
int made_publish(struct made *made, struct error *err) __must_check;
/* Closes; what was not published is gone. */
void made_drop(struct made *made);
