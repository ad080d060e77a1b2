/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For tests of corral-disk: a directory of the test's own, command lines run in it by a shell with
 * $D as the program, what they printed. qemu-img and qemu-io are the oracle. $CORRAL_DISK names the
 * program.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

#include "base/macros.h"

#define TEXT_MAX (1 << 20)

struct site {
	char dir[64];
	int status; /* of the last command; 128 + signal if it was killed */
	char out[TEXT_MAX], err[TEXT_MAX];
};

void site_init(struct site *site);
void site_deinit(struct site *site);

/* Runs a line; the status. */
int run(struct site *site, const char *format, ...) __printf(2, 3);
/* The same, and it must end with 0. */
void ok(struct site *site, const char *format, ...) __printf(2, 3);
/* It must end with `status` and have said `part` on standard error. */
void refused(struct site *site, int status, const char *part, const char *format, ...)
	__printf(4, 5);
/* Starts one and goes on; standard output is a pipe, of which the reading end is *ret_out. */
pid_t start(struct site *site, int *ret_out, const char *format, ...) __printf(3, 4);
int end_of(pid_t pid);

/* What the last command printed, as JSON; the caller's. */
json_t *answer(const struct site *site);
json_int_t number(const json_t *json, const char *key);
bool has(const char *text, const char *part);
/* Entries of the directory that are not those named; hidden ones count. */
int strangers(const struct site *site, const char *known);

/* Writes of a seed, by qemu-io: data, zeroes, discards, all over the disk. */
void scribble(struct site *site, const char *file, const char *format, uint64_t size,
	      unsigned int seed);
/* Every other 4 KiB of a raw file that is there: `n` pieces of data. */
void pieces(struct site *site, const char *file, int n);
/* `corral disk map` and `qemu-img map` say the same of the chain. */
void maps_agree(struct site *site, const char *file, const char *format);
