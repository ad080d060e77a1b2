/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control methods about what is behind the disks.
 */
#pragma once

#include "vmm/control.h"

/* "disks". NULL: out of memory. */
json_t *control_disks(struct control *control) __must_check;

/* "disk-snapshot", with the overlay's descriptor. 0: answered later. */
int control_disk_snapshot(struct control *control, struct control_client *client,
			  struct control_passed *passed, const json_t *params,
			  struct error *err) __must_check;

/* "disk-resize". 0: answered later. */
int control_disk_resize(struct control *control, struct control_client *client,
			const json_t *params, struct error *err) __must_check;
