/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `corral disk add` and `corral disk remove`: disks of a running VM. argv[0] is the verb's own
 * word.
 */
#pragma once

int disk_add(int argc, char **argv);
int disk_remove(int argc, char **argv);
