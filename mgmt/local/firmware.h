/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the UEFI firmware is that boots a disk when nobody names a kernel.
 */
#pragma once

#include "base/error.h"

/* A new path; the caller frees it. -ENOENT with a sentence that says how to get one. */
int firmware_find(char **ret_path, struct error *err) __must_check;
