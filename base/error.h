/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a failure travels. Functions return 0, or -errno that every caller passes up unchanged, or a
 * value above 0 that is a named outcome of that one function. A function that faces a person also
 * takes a `struct error *` and puts one sentence there: what was being done, to what, why it
 * failed, and what to do about it where we know. The sentence is made once, where the cause is
 * known.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/macros.h"

struct error {
	int code;       /* -errno, 0 when nothing failed */
	char text[500]; /* no newline, no full stop */
};

#define ERROR_NULL ((struct error){0})

/*
 * Writes the sentence and returns `code` (negative), so that a failing line reads
 * `return error_set(err, -ENOENT, "cannot open disk \"%s\": %s", path, strerror(ENOENT));`
 * `err` may be NULL: then only the code is passed on.
 */
int error_set(struct error *err, int code, const char *format, ...) __printf(3, 4);

/* Puts words before a sentence that is already there, as in `vm "a": cannot open disk …`. Returns
 * err->code; `err` is not NULL and holds a failure. */
int error_prefix(struct error *err, const char *format, ...) __printf(2, 3);

/* In place: what a terminal would obey, and what is not UTF-8, becomes '?'; a letter cut off by the
 * end of the text goes. For sentences and lines that quote others. */
void text_make_printable(char *text);

bool text_is_utf8(const char *text, size_t size) __must_check;
