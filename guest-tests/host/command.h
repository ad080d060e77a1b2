/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs `corral` as a person would and keeps what it said; keeps watch over the processes that it
 * leaves behind. For tests of what happens around a VM rather than in it.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

struct command_result {
	int status; /* exit status, or 128 and the signal that killed it */
	unsigned int ms;
	char out[4096], err[4096]; /* cut off at that */
};

/* argv up to NULL; argv[0] is looked up. It has 30 s. */
void command_run(struct command_result *ret_result, const char *const *argv);

/* From here on every process whose parent dies is a child of this one. Before the first VM. */
void watch_what_stays(void);
/* Fails unless nothing is left within the time: in the run directory, or of processes but `but`. */
void check_nothing_stays(const char *after, pid_t but, unsigned int ms);
/* Entries in the run directory. */
unsigned int run_directory_count(void);
