/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process that becomes passt.
 */
#pragma once

#include <sys/types.h>

#include "base/macros.h"

#define PASST_CHILD_FD 3 /* where passt finds its socket */

struct passt_child {
	const char *program;     /* looked up in PATH */
	const char *const *argv; /* borrowed, like the rest */
	const char *resolver;    /* takes resolv.conf's place; NULL: the host's does */
	int words_fd;            /* becomes its standard error */
	int socket_fd;
};

/* Returns once the program runs; -errno if there is none. */
int passt_child_start(const struct passt_child *child, pid_t *ret_pid) __must_check;
