/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Three small things that each device with registers needs: the value of an access as a number, a
 * number as the bytes of an access, and the signal of an eventfd.
 */
#pragma once

#include <endian.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "base/macros.h"

/* `len` <= 8, as everywhere on the bus. Registers are little-endian. */
static inline uint64_t register_get(const void *data, uint32_t len)
{
	uint64_t value = 0;

	memcpy(&value, data, len);
	return le64toh(value);
}

static inline void register_put(void *data, uint32_t len, uint64_t value)
{
	value = htole64(value);
	memcpy(data, &value, len);
}

/* One edge on a line, one message, one kick. An eventfd refuses a write only when its counter is
 * full: then the signal is pending anyway. */
static inline void event_signal(int fd)
{
	uint64_t one = 1;
	ssize_t n _unused_ = write(fd, &one, sizeof(one));
}
