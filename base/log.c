/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Words in, one line on standard error out. The line is put together on the caller's stack and
 * leaves in one write(2), so lines of several threads never mix and nothing is locked or allocated.
 * Text that a guest chose is made harmless to a terminal. A line that cannot be written is lost:
 * logging never fails and never changes errno.
 */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"

#define LOG_LINE_MAX     1024 /* with its newline */
#define LOG_WINDOW_NS    10000000000ull
#define LOG_WINDOW_LINES 10

/* Written by log_init before there are threads, only read after. */
static const char *log_prefix = "corral";
static enum log_level log_most = LOG_LEVEL_INFO;

static const char *const log_words[] = {
	[LOG_LEVEL_ERROR] = "error: ",
	[LOG_LEVEL_WARNING] = "warning: ",
	[LOG_LEVEL_INFO] = "",
	[LOG_LEVEL_DEBUG] = "debug: ",
};

void log_init(const char *prefix, enum log_level most)
{
	log_prefix = prefix;
	log_most = most;
}

static void log_write(const char *line, size_t size)
{
	while (write(STDERR_FILENO, line, size) < 0 && errno == EINTR)
		;
}

static void __attribute__((format(printf, 2, 0)))
log_vline(enum log_level level, const char *format, va_list args)
{
	char line[LOG_LINE_MAX];
	int saved_errno = errno;
	int length;
	size_t size;

	/* The last place but the NUL's is kept for the newline. */
	length = snprintf(line, sizeof(line) - 1, "%s: %s", log_prefix, log_words[level]);
	if (length > 0 && (size_t)length < sizeof(line) - 1)
		vsnprintf(line + length, sizeof(line) - 1 - (size_t)length, format, args);
	text_make_printable(line);
	size = strlen(line);
	line[size++] = '\n';
	log_write(line, size);
	errno = saved_errno;
}

void log_line(enum log_level level, const char *format, ...)
{
	va_list args;

	if (level > log_most)
		return;
	va_start(args, format);
	log_vline(level, format, args);
	va_end(args);
}

bool log_limit_pass(struct log_limit *limit, uint64_t now, uint32_t *ret_missed)
{
	uint64_t window = now / LOG_WINDOW_NS + 1; /* never the 0 it starts with */
	uint64_t last = atomic_load(&limit->window);

	*ret_missed = 0;
	/* Two threads at a window's edge may let one line too many pass; nothing else is lost. */
	if (window > last && atomic_compare_exchange_strong(&limit->window, &last, window)) {
		atomic_store(&limit->lines, 1);
		*ret_missed = atomic_exchange(&limit->missed, 0);
		return true;
	}
	if (atomic_load(&limit->lines) < LOG_WINDOW_LINES &&
	    atomic_fetch_add(&limit->lines, 1) < LOG_WINDOW_LINES)
		return true;
	atomic_fetch_add(&limit->missed, 1);
	return false;
}

void log_limited(struct log_limit *limit, enum log_level level, const char *format, ...)
{
	struct timespec now;
	uint32_t missed;
	va_list args;

	if (level > log_most)
		return;
	clock_gettime(CLOCK_MONOTONIC, &now);
	if (!log_limit_pass(limit, (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec,
			    &missed))
		return;
	if (missed)
		log_line(level, "%u more like this", missed);
	va_start(args, format);
	log_vline(level, format, args);
	va_end(args);
}
