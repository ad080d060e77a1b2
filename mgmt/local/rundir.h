/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The run directory: one directory a VM, under /run/corral for root, $XDG_RUNTIME_DIR/corral or
 * /tmp/corral-UID for others ($CORRAL_RUN_DIRECTORY goes first), and the lock in it that says
 * whether the VM lives. The lock is an OFD write lock held by the VMM, in the foreground by its
 * launcher too until it has recorded how the VM ended.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "proto/vm.h"

#define RUNDIR_PATH_MAX     256
#define RUNDIR_LOCK         "lock"
#define RUNDIR_CONTROL      "control.sock"
#define RUNDIR_CONTROL_PATH "control" /* holds the path given with --control */
#define RUNDIR_EXIT         "exit.json"
#define RUNDIR_CONSOLE_LOG  "console.log"
#define RUNDIR_VMM_LOG      "vmm.log"
#define RUNDIR_DESCRIPTION  "vm.json"
#define RUNDIR_PID          "pid"
#define RUNDIR_EMPTY        "empty"
#define RUNDIR_SEED         "seed.iso"    /* what --cloud-init became */
#define RUNDIR_KNOWN_HOSTS  "known_hosts" /* of `corral ssh` */
#define RUNDIR_VSOCK        "vsock.sock"  /* the host's side of the vsock */

struct rundir {
	char name[VM_NAME_MAX + 1];
	char path[RUNDIR_PATH_MAX];
	int base_fd; /* owned, like the next two; -1 when closed */
	int fd;
	int lock_fd;
};

#define RUNDIR_NULL ((struct rundir){.base_fd = -1, .fd = -1, .lock_fd = -1})

/* Takes the name: makes the directory, locks it, clears away what a dead VM of that name left.
 * -EBUSY: a VM of that name is running. */
int rundir_take(struct rundir *dir, const char *name, struct error *err) __must_check;

/* Opens the directory of a VM that runs or has ended. */
int rundir_open(struct rundir *dir, const char *name, struct error *err) __must_check;
bool rundir_alive(const struct rundir *dir);
/* Blocks until the VM has ended and its end is recorded. */
int rundir_wait(const struct rundir *dir) __must_check;

/* Removes the directory and all we put there; the caller holds the lock. */
void rundir_remove(struct rundir *dir);
void rundir_close(struct rundir *dir);

/* A new file in it, emptied if it was there; -errno. */
int rundir_create(const struct rundir *dir, const char *file, int flags) __must_check;
int rundir_write(const struct rundir *dir, const char *file, const char *text,
		 size_t size) __must_check;
/* What the pid file says, 0 if nothing usable. */
int rundir_pid(const struct rundir *dir);
/* Where the control socket is. */
int rundir_control_path(const struct rundir *dir, char *path, size_t size) __must_check;

/* Calls `each` with every name there is, in order of names. */
int rundir_each(int (*each)(const char *name, void *data), void *data, struct error *err);
