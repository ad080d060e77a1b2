/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control methods "disk-add" and "disk-remove": parameters in, an answer when the disk has come
 * or gone. Main thread.
 */
#pragma once

#include "vmm/control.h"

/* 0: the answer follows, by a task of the client. */
int control_disk_add(struct control *control, struct control_client *client,
		     struct control_passed *passed, const json_t *params,
		     struct error *err) __must_check;
int control_disk_remove(struct control *control, struct control_client *client,
			const json_t *params, struct error *err) __must_check;
