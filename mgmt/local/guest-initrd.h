/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The initrd of a guest that runs one command: corral-init, the kernel's modules and the job, in
 * memory.
 */
#pragma once

#include "base/error.h"

struct job;
struct guest_modules;

/* A descriptor of a file without a name, complete and positioned at its start. */
int guest_initrd_make(const struct job *job, const struct guest_modules *modules, int *ret_fd,
		      struct error *err) __must_check;
