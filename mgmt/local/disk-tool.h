/* SPDX-License-Identifier: Apache-2.0 */
/*
 * corral-disk, the program that knows disk images: the launcher itself reads none, they may be
 * hostile. It is run with a descriptor and what it prints is taken.
 */
#pragma once

#include <stddef.h>

#include "base/error.h"
#include "base/macros.h"

/* $CORRAL_DISK, or beside our own binary, or in ../libexec/corral. */
int disk_tool_find(char *path, size_t size, struct error *err) __must_check;

/*
 * Runs it to its end. `argv` up to NULL, its first word is the program's name; `fd` (borrowed, -1
 * for none) is its descriptor 3. `ret_text` (NULL: not wanted) gets what it printed, the caller's.
 * What it complains of is the sentence of our failure.
 */
#define DISK_TOOL_FD 3
int disk_tool_run(const char *const *argv, int fd, char **ret_text, struct error *err) __must_check;
