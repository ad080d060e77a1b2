/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starting a VMM: a child with the granted descriptors from 3 on and nothing else of ours.
 */
#pragma once

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"

struct grants;

struct spawn {
	const struct grants *grants; /* borrowed */
	const sigset_t *mask;        /* borrowed: the signals the child blocks */
	int stderr_fd;               /* borrowed */
	bool dies_with_us;           /* killed when the launcher is */
	bool verbose;
};

/* The binary: $CORRAL_VMM, or beside our own, or in ../libexec/corral. */
int spawn_vmm(const struct spawn *spawn, pid_t *ret_pid, struct error *err) __must_check;

/* Directory of our own binary, without its last slash. -errno. */
int own_directory(char *path, size_t size) __must_check;
