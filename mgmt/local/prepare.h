/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All that exists before a VMM does: its run directory, locked, and every descriptor it will get.
 */
#pragma once

#include <sys/types.h>

#include "base/error.h"
#include "mgmt/local/nets.h"
#include "mgmt/local/open.h"
#include "mgmt/local/rundir.h"

struct run_options;

struct prepared {
	struct rundir dir;
	struct grants grants; /* the VMM's; closed on our side once it has started */
	struct nets nets;     /* what is still starting of them */
	int console_fd;       /* owned: our end of the console, -1 if it is not relayed */
	int slave_fd;         /* owned: keeps a pty from hanging up while we are here */
	int ready_fd;         /* owned: our end of the ready pipe */
	int exit_fd;          /* owned: the exit record, to read it and to write it for a VMM that
				 could not */
	int pid_fd;           /* owned */
	int log_fd;           /* standard error of the VMM: ours (borrowed), or its log (owned) */
};

/* On failure everything it made is gone again. May change the name in the description if that was
 * our own choice. */
int prepared_init(struct prepared *prepared, struct run_options *options,
		  struct error *err) __must_check;
/* The VMM runs: notes its pid, drops its descriptors. */
void prepared_started(struct prepared *prepared, pid_t vmm);
void prepared_deinit(struct prepared *prepared);
