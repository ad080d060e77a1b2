/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For tests of the command: a run directory of the test's own, a kernel file and a disk, `corral`
 * run on them with the fake VMM, and what it printed. $CORRAL and $CORRAL_VMM name the binaries.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "base/macros.h"

#define HOST_TEXT_MAX 65536

struct host {
	char dir[64]; /* holds all the rest */
	char run[80]; /* the run directory */
	char kernel[80];
	char disk[80];
};

/* What a `corral` that has ended said, and its exit status (128 + signal if it was killed). */
struct said {
	int status;
	char out[HOST_TEXT_MAX];
	char err[HOST_TEXT_MAX];
};

/* A `corral` that runs. Its standard output is a pipe, its standard error a file of its own. */
struct running {
	pid_t pid;
	int in;       /* owned: its standard input */
	int out;      /* owned: its standard output */
	char err[16]; /* that file's name in the test's directory */
};

void host_init(struct host *host);
void host_deinit(struct host *host);

/* The number of entries in the run directory. */
int host_left(const struct host *host);

/* Words are one string each, up to a NULL. */
void host_corral(const struct host *host, struct said *said, ...);
struct running host_start(const struct host *host, ...);
/* Reads standard output until `text` has come; fails the test if it ends before. */
void running_expect(struct running *running, const char *text);
/* Takes what is still printed, and waits. */
void running_end(const struct host *host, struct running *running, struct said *said);

/* The VMM's process, by its pid file. */
pid_t host_vmm(const struct host *host, const char *name);
/* Waits until that process is gone. */
void process_gone(pid_t pid);

/* Fails the test with both texts unless `text` has `part`. */
void assert_has(const char *text, const char *part);
void assert_lines(const char *text, int n);
