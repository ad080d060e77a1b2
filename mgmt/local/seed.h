/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disk by which cloud-init finds its orders at a guest's first boot: NoCloud, an ISO image
 * labelled "cidata" with the files user-data, meta-data and network-config.
 */
#pragma once

#include <stdio.h>

#include "base/error.h"

struct rundir;
struct vm_description;

/* Makes the image in the VM's run directory and adds it to the description as the last disk. */
int seed_add(const struct rundir *dir, struct vm_description *vm, struct error *err) __must_check;
/* A line that says from which files, if there is to be one. */
void seed_print(const struct vm_description *vm, FILE *file);
