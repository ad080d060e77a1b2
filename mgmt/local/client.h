/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The asking side of a VMM's control socket (proto/control.h): one request, one reply, with a
 * deadline. The VMM may be hung or hostile: nothing here blocks for ever or takes more than one
 * line's worth of memory.
 */
#pragma once

#include <jansson.h>
#include <stdint.h>

#include "base/error.h"
#include "base/macros.h"
#include "proto/control.h"

#define CLIENT_TIMEOUT_MS 2000 /* an answer that waits for nothing but the VMM */

struct rundir;

struct client {
	int fd; /* owned, -1 when not connected */
	uint32_t id;
	int timeout_ms; /* for an answer; of who opened it to change */
};

#define CLIENT_NULL ((struct client){.fd = -1, .timeout_ms = CLIENT_TIMEOUT_MS})

/* Connects to the VM of that directory. -ECONNREFUSED: it has ended. */
int client_open(struct client *client, const struct rundir *dir, struct error *err) __must_check;
void client_close(struct client *client);

/*
 * Asks and waits for the answer. `params` may be NULL (a reference is taken over either way); `fd`
 * is sent along unless it is -1; `ret_result` may be NULL, else the caller owns what it gets.
 */
int client_call(struct client *client, enum control_method_id method, json_t *params, int fd,
		json_t **ret_result, struct error *err) __must_check;

/* The same with `n_fds` descriptors, at most FD_PASS_MAX. */
int client_call_fds(struct client *client, enum control_method_id method, json_t *params,
		    const int *fds, size_t n_fds, json_t **ret_result,
		    struct error *err) __must_check;

/* Open, call, close. */
int client_ask(const struct rundir *dir, enum control_method_id method, json_t *params, int fd,
	       json_t **ret_result, struct error *err) __must_check;
