/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The root of a guest that runs one command: a directory made into an image, or an image and what
 * file system is in it.
 */
#pragma once

#include <sys/types.h>

#include "base/error.h"

/* The name under which the guest's kernel knows the file system ("ext4"), and the options with
 * which it mounts a read-only disk of it. Both static. */
int guest_root_probe(const char *path, const char **ret_type, struct error *err) __must_check;
const char *guest_root_options(const char *type);

/* An image of the directory, in a file without a name: it goes with its last descriptor. */
int guest_root_make(const char *directory, int *ret_fd, struct error *err) __must_check;
