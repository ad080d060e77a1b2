/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The broker: forks the sealed process, opens backing files for it where that was allowed, prints
 * what it finds and how far it is, hands an interrupt on, and says how it ended.
 */
#pragma once

#include "disk/job.h"

/* From the verb's open to its end; the exit status. */
int broker_run(struct job *job);

/* One line on standard error: "corral disk: …". */
void disk_say(const char *format, ...) __printf(1, 2);
