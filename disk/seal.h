/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the process that reads images gives up its rights, in two stages, as the VMM does:
 *
 *   seal_process  while it has one thread: limits, an empty root, a user of its own (as root), no
 *                 capabilities, Landlock. What a host does not let it have is named, not fatal.
 *   (threads)     those that long work needs are made here and inherit all of that
 *   seal_calls    a list of system calls for all threads. Looking for a file is answered with
 *                 EACCES, since libraries do; whatever else is not listed kills the process.
 */
#pragma once

#include "base/error.h"
#include "base/macros.h"

/* User and group of the process when root starts it: this + pid, as corral-vmm's are. */
#define SEAL_UID_BASE 0x7c000000u

struct seal_report {
	char done[200];
	char missing[200]; /* what this host withholds, in words; "": nothing */
};

/* `empty_fd`: O_PATH of an empty directory that becomes the root; -1: there is none. */
int seal_process(int empty_fd, struct seal_report *ret_report, struct error *err) __must_check;
int seal_calls(void) __must_check;
