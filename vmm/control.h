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
