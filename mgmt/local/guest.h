/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest agent tells, made readable; for `corral guest`. The agent is hostile: what is not as
 * it should be is left out, and nothing of it steers a terminal.
 */
#pragma once

#include <jansson.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"
#include "base/macros.h"

struct agent;
struct rundir;

/* Connects to the agent of the VM of that directory; `agent` is to be deinitialised in any case. */
int guest_agent_open(struct agent *agent, const struct rundir *dir, struct error *err) __must_check;
/* Its filesystems stand still until they are thawed, or go on. `ret_n`: how many; may be NULL. */
int guest_freeze(struct agent *agent, bool freezes, json_int_t *ret_n,
		 struct error *err) __must_check;

/* What a command in the guest has come to. */
struct guest_status {
	bool exited;
	int status;         /* 128 + signal if it was killed */
	uint8_t *out, *err; /* owned; NULL: none */
	size_t out_size, err_size;
	bool truncated; /* by the agent */
};

/* What guest-exec-status returned. */
int guest_status_read(const json_t *result, struct guest_status *status,
		      struct error *err) __must_check;
void guest_status_deinit(struct guest_status *status);

/* The objects of `corral guest NAME info` and `network` as text. */
void guest_print_info(FILE *file, const json_t *info);
void guest_print_network(FILE *file, const json_t *interfaces);
