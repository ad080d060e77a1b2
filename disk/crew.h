/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A few threads for long work that waits: they are made before the process may make none any more,
 * and do one thing at a time, all together.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"
#include "base/macros.h"

struct crew;

/* As many as this host's processors can keep busy while some wait for storage. */
int crew_new(struct crew **ret_crew, struct error *err) __must_check;
/* Calls `each` on every thread and returns when all have returned. NULL crew: once, here. */
void crew_run(struct crew *crew, void (*each)(void *arg), void *arg);
