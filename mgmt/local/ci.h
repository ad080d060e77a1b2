/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A list of commands, each to be run in a guest of its own, as a file says it.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"
#include "base/table.h"

#define CI_TESTS_MAX 10000

struct ci_test {
	char *name, *rootfs, *kernel, *append, *modules, *timeout, *cwd; /* NULL: not given */
	uint64_t memory; /* 0: not given, like the next */
	uint32_t cpus, vsock_cid;
	uint32_t expect_status;
	char **command;     /* owned, NULL-terminated */
	char **environment; /* owned, NULL-terminated: "NAME=VALUE", or "NAME" for our own value */
	char **disks;       /* owned, NULL-terminated, like the next: as after --disk */
	char **nets;        /* as after --net; NULL: none */
};

struct ci_list {
	struct ci_test *tests; /* owned */
	uint32_t n_tests;
};

extern const struct table ci_test_table; /* all but the arrays */

/* Reads and checks the whole list; paths in it are taken from the file's own directory. */
int ci_list_read(struct ci_list *list, const char *path, struct error *err) __must_check;
void ci_list_deinit(struct ci_list *list);
