/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Landlock by raw system calls: one ruleset without a rule, so that everything this kernel's
 * version knows how to deny is denied. Descriptors that are already open keep their rights.
 */
#pragma once

#include <stdint.h>

#include "base/macros.h"

/*
 * Returns the ABI version now in force (1 and above), 0 where the kernel has none, -errno.
 * `ret_denies`: what that version denies, in words; static.
 */
int landlock_deny_all(const char **ret_denies) __must_check;
