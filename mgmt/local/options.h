/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What `corral run` was asked for: the description of the VM, and what concerns the launcher alone.
 */
#pragma once

#include <stdbool.h>

#include "mgmt/local/job.h"
#include "proto/vm.h"

struct run_options {
	struct vm_description vm;
	const char *append;  /* borrowed from argv, like the next two; NULL when not given */
	const char *control; /* where the control socket goes instead of the run directory */
	const char *config;
	struct job job; /* a command to run in the guest */
	bool own_name;  /* nobody gave one: the name is our choice */
	bool detach;
	bool dry_run;
	bool verbose;
	bool help;
};

/* In run.c: all of it, from the description to the end; the exit status. */
int run_vm(struct run_options *options);

/*
 * Fills `options` (to be deinitialised in any case) from --config first, then from the flags, then
 * completes what was left out. Returns an exit status: LOCAL_OK, LOCAL_USAGE or LOCAL_FAILED.
 */
int options_read(struct run_options *options, int argc, char **argv, struct error *err);
void options_deinit(struct run_options *options);
