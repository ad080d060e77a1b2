/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lines for whoever operates the process, on standard error. Library functions do not log: one
 * failure is one line, at the place that handles it; a line about something that is survived ends
 * in "ignoring". Any thread may log; a line is one write(2). What a guest can cause goes through
 * `log_limited`, which lets a few lines pass in ten seconds and counts the rest.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/macros.h"

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* `prefix` (borrowed for the life of the process; without the colon) opens each line, as in
 * `corral-vmm[web1]: warning: …`. Before threads start. */
void log_init(const char *prefix, enum log_level most);

void log_line(enum log_level level, const char *format, ...) __printf(2, 3);

#define log_error(...)   log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...)    log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)   log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)

/* One a source of lines that the guest can cause; zero-initialised; any thread. */
struct log_limit {
	_Atomic uint64_t window; /* ten-second window of the last line */
	_Atomic uint32_t lines;  /* lines passed in it */
	_Atomic uint32_t missed; /* lines held back since the last that passed */
};

void log_limited(struct log_limit *limit, enum log_level level, const char *format, ...)
	__printf(3, 4);

/* The decision behind log_limited: may a line pass at `now` (CLOCK_MONOTONIC ns), and how many were
 * held back before it. */
bool log_limit_pass(struct log_limit *limit, uint64_t now, uint32_t *ret_missed);
