/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `corral disk snapshot|resize --vm NAME …`: what is done to the disk of a running VM.
 */
#pragma once

#include <stdbool.h>

/* The words are for a VM, not for corral-disk. */
bool disk_vm_wanted(int argc, char **argv);
/* argv[0] is "disk". The exit status. */
int disk_vm(int argc, char **argv);
