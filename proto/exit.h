/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a VM ended: the reason, the exit status that says it, and the record the VMM leaves behind
 * (JSON text, one object) for whoever asks later.
 */
#pragma once

#include <stdint.h>

#include "base/table.h"

enum exit_reason {
	EXIT_UNKNOWN,    /* no record was left: the VMM died without a word */
	EXIT_POWER_OFF,  /* the guest powered off, by itself or after a power-button press */
	EXIT_RESET,      /* the guest reset and on-reset is "exit" */
	EXIT_PANIC,      /* the guest kernel panicked (pvpanic, or its last words on the console) */
	EXIT_RESET_LOOP, /* the guest reset too often within too short a time */
	EXIT_GUEST_FAULT, /* triple fault or an emulation failure: the guest cannot go on */
	EXIT_QUIT, /* told to end by the control socket, or SIGTERM and the guest did not power off
		      in time */
	EXIT_KILLED, /* killed by a signal from outside (no record of its own: made by the launcher)
		      */
	EXIT_VMM_FAULT,    /* our bug, or a refused system call: the VMM itself crashed */
	EXIT_START_FAILED, /* the VM never ran */
	EXIT_WATCHDOG,     /* the guest no longer fed its watchdog, whose policy is to power off */
};

struct exit_record {
	char *name;
	uint32_t reason;     /* enum exit_reason */
	uint32_t status;     /* exit_status(reason) */
	char *text;          /* one sentence for a person */
	uint64_t ran_ms;     /* from first vCPU entry to the end */
	uint64_t ended_unix; /* seconds */
	uint32_t resets;
};

extern const char *const exit_reason_names[]; /* "power-off", "panic", … NULL-terminated */
extern const struct table exit_record_table;

/*
 * Exit status of `corral run`, `corral wait` and corral-vmm: power-off 0, start failed 1, (2 is
 * wrong usage), reset 3, panic 4, reset loop 5, guest fault 6, quit 7, killed 8, VMM fault 9,
 * unknown 10, watchdog 11.
 */
int exit_status(enum exit_reason reason);
