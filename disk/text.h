/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes and times as people read them. */
#pragma once

#include <stdint.h>

/* "512 MiB", "1.5 GiB": one decimal where it is not a whole number. */
#define TEXT_SIZE_MAX 24
const char *text_size(uint64_t bytes, char buffer[TEXT_SIZE_MAX]);

/* "12 ms", "4.2 s", "40 s", "2 min 10 s", "3 h 5 min". */
#define TEXT_TIME_MAX 32
const char *text_time(double seconds, char buffer[TEXT_TIME_MAX]);

/* "2026-01-31 12:00:00 UTC". */
#define TEXT_DATE_MAX 32
const char *text_date(uint64_t seconds, char buffer[TEXT_DATE_MAX]);
