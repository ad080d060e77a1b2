/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the VMM gives up its rights, in stages:
 *
 *   named       everything that was not handed over by name is closed (first thing in main)
 *   A, process  sandbox_enter, while there is one thread only, since a user namespace can be
 *               entered in no other way and what follows is inherited by later threads: limits, no
 *               new privileges, empty root, user of its own, no capabilities, Landlock
 *   (threads)   every thread the VM may ever need is created, parked
 *   B, thread   sandbox_thread, first thing in each thread, main last: its own list of system
 *               calls; no list can make a thread
 *
 * A call that is not listed kills the process with SIGSYS: no core (it would hold the guest's
 * memory), a line in the kernel's log with the number of the call. What must be opened by path
 * (description, /proc files, libraries) is opened before stage A.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/macros.h"
#include "base/table.h"

struct named_fds;

enum sandbox_thread {
	SANDBOX_MAIN,
	SANDBOX_VCPU,
	SANDBOX_IO,     /* owns virtqueues and a loop */
	SANDBOX_WORKER, /* of the engine without io_uring */
	SANDBOX_DISK,   /* of a disk: what waits behind it */
	SANDBOX_THREADS,
};

/*
 * As root a VMM takes user and group SANDBOX_UID_BASE + its pid: no two VMMs share one. The range
 * lies above what distributions and container managers hand out (systemd's list ends at
 * 0x6fffffff) and below what is negative as an int; pids end at 0x3fffff.
 */
#define SANDBOX_UID_BASE 0x7c000000u

struct sandbox_options {
	/* Borrowed: O_PATH of an empty directory that becomes the root. Best already removed, so
	 * that nothing can ever be made in it. */
	int empty_fd;
	/* Bound on open descriptors; 0: 4096. Also bounds a ring's file table. */
	uint32_t files_max;
};

#define SANDBOX_STEPS_MAX 8

struct sandbox_step {
	char *name;
	uint64_t microseconds;
};

struct sandbox_list {
	char *kind;
	uint32_t calls;   /* system calls on the list */
	uint32_t threads; /* that took it so far */
};

/* What is in force. sandbox_status_table frees it. */
struct sandbox_status {
	char *user;
	char *root;
	char *capabilities;
	char *namespaces; /* absent: the launcher's */
	bool no_new_privileges;
	uint32_t landlock; /* ABI version, 0: not there */
	char *landlock_denies;
	bool sanitized; /* lists widened for a sanitizer's runtime: not how a release is sealed */
	char *missing;  /* what this host does not let us have, in words; absent: nothing */
	uint64_t microseconds;
	uint32_t n_steps;
	struct sandbox_step steps[SANDBOX_STEPS_MAX];
	uint32_t n_lists;
	struct sandbox_list lists[SANDBOX_THREADS];
};

extern const struct table sandbox_status_table;

/* Closes every descriptor above the named ones. Before anything else is opened. */
int sandbox_close_others(const struct named_fds *named, struct error *err) __must_check;

/*
 * Stage A. Fails if there is more than one thread, the directory is not empty, or something fails
 * that works on every host; what a host may forbid (user namespaces, Landlock) ends up in
 * `missing`, for the caller to log. `ret_status` is filled in either case; the caller deinits it.
 * Nothing is undone on failure: the process is to end.
 */
int sandbox_enter(const struct sandbox_options *options, struct sandbox_status *ret_status,
		  struct error *err) __must_check;

/* Stage B, on the thread itself. Allocates nothing. -errno: the thread must not run. */
int sandbox_thread(enum sandbox_thread kind) __must_check;

/* The status with the number of threads that have taken each list by now, as `corral run -v` and
 * the control method "sandbox" give it. NULL when out of memory. */
json_t *sandbox_describe(struct sandbox_status *status) __must_check;
