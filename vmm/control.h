/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control socket: lines of JSON from clients in (proto/control.h), calls of the machine,
 * answers out. Main thread. A client that stops reading, or says what is not JSON, is dropped; it
 * can hold up nobody else.
 */
#pragma once

#include "vmm/figures.h"
#include "vmm/machine.h"
#include "vmm/sandbox.h"

struct control_client;

/* Descriptors that came with one request: at most a disk and all that its image stands on. Owned;
 * who takes one puts -1 in its place. */
#define CONTROL_PASSED_MAX (VM_CHAIN_MAX + 1)
struct control_passed {
	uint32_t n_fds;
	int fds[CONTROL_PASSED_MAX];
};

/*
 * A request that is answered by whoever carries it out, later. Begun while the request is served;
 * it must not end before that returns. Embedded in its owner, who may outlive the client.
 */
struct control_task {
	struct control_client *client; /* weak; NULL: none, or it has gone */
};
void control_task_begin(struct control_task *task, struct control_client *client);
/* Answers with `result`, taken over (NULL: an empty object), or with the failure. Main thread. */
void control_task_end(struct control_task *task, json_t *result, const struct error *err);

struct control {
	struct loop *loop;              /* borrowed */
	struct machine *machine;        /* borrowed */
	const struct figures *figures;  /* borrowed */
	struct sandbox_status *sandbox; /* borrowed */
	struct machine_observer observer;
	uint64_t n_heard; /* times that any client said something */
	struct loop_source listener;
	int fd; /* owned: listening; -1: no control socket */
	struct control_client *clients[CONTROL_CLIENTS_MAX]; /* owned */
};

/* Takes over `fd`, -1 for none. Becomes the machine's observer. */
int control_init(struct control *control, struct loop *loop, int fd, struct machine *machine,
		 const struct figures *figures, struct sandbox_status *sandbox,
		 struct error *err) __must_check;
void control_deinit(struct control *control);
