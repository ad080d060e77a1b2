/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel's own figures about this process, read from files of /proc that are opened before the
 * root is emptied. What a kernel does not have is left out.
 */
#pragma once

#include <jansson.h>

struct figures {
	int smaps_fd; /* owned: smaps_rollup; -1: not there, likewise below */
	int ksm_fd;   /* owned: ksm_stat */
};

void figures_open(struct figures *figures);
void figures_close(struct figures *figures);

/* Adds "private", "resident" and the KSM figures, all in bytes, to an object. `guest` is the
 * guest's memory. */
void figures_read(const struct figures *figures, json_t *into);
