/* SPDX-License-Identifier: Apache-2.0 */
/* Is it all zeroes? Data says no within its first bytes. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

static inline bool is_zeroes(const void *data, size_t size)
{
	const char *bytes = data;

	return !size || (!bytes[0] && !memcmp(bytes, bytes + 1, size - 1));
}
