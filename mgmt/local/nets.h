/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The descriptors behind a VM's network cards: taps with a vnet header, vhost-net for their pairs,
 * or a socket with passt at its other end.
 */
#pragma once

#include <stdio.h>

#include "base/error.h"
#include "mgmt/local/passt.h"
#include "proto/vm.h"

struct grants;

struct nets {
	uint32_t n_passts;
	struct passt passts[VM_NETS_MAX]; /* those that are starting */
};

/* Adds to `grants` what each card needs; passt is on its way afterwards. */
int nets_open(struct nets *nets, struct grants *grants, const struct vm_description *vm,
	      struct error *err) __must_check;
/* Waits until each passt serves, or has given up. */
int nets_wait(struct nets *nets, struct error *err) __must_check;
/* What both would open and start, for people. */
void nets_print(const struct vm_description *vm, FILE *file);
void nets_deinit(struct nets *nets);
