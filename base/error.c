/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes the sentences of `struct error`. They may quote what a guest, a file or a client sent, and
 * they end up on a terminal or in a JSON text: control bytes never get that far, and a sentence cut
 * at the end of its buffer is not cut inside a letter.
 */
#include "base/error.h"

#include <assert.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* Length that a first byte announces, 0 if no letter starts so. */
static size_t utf8_announced(unsigned char first)
{
	if (first < 0x80)
		return 1;
	if (first < 0xc2 || first > 0xf4)
		return 0;
	return first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

/* Length of the letter at `at`, 0 if there is none: overlong forms and surrogates are none. */
static size_t utf8_length(const unsigned char *at, size_t left)
{
	size_t length = utf8_announced(at[0]);

	if (length > left)
		return 0;
	for (size_t i = 1; i < length; i++)
		if ((at[i] & 0xc0) != 0x80)
			return 0;
	if ((at[0] == 0xe0 && at[1] < 0xa0) || (at[0] == 0xed && at[1] > 0x9f) ||
	    (at[0] == 0xf0 && at[1] < 0x90) || (at[0] == 0xf4 && at[1] > 0x8f))
		return 0;
	return length;
}

/* The text ends inside this letter: what a full buffer leaves of it. */
static bool utf8_is_cut(const unsigned char *at, size_t left)
{
	if (utf8_announced(at[0]) <= left)
		return false;
	for (size_t i = 1; i < left; i++)
		if ((at[i] & 0xc0) != 0x80)
			return false;
	return true;
}

bool text_is_utf8(const char *text, size_t size)
{
	const unsigned char *bytes = (const unsigned char *)text;

	for (size_t at = 0; at < size;) {
		size_t length = utf8_length(bytes + at, size - at);
		if (!length)
			return false;
		at += length;
	}
	return true;
}

/* C0, DEL, and C1 (which some terminals obey when it comes as UTF-8). */
static bool is_control(const unsigned char *at, size_t length)
{
	return at[0] < 0x20 || at[0] == 0x7f || (length == 2 && at[0] == 0xc2 && at[1] < 0xa0);
}

void text_make_printable(char *text)
{
	const unsigned char *from = (const unsigned char *)text;
	size_t left = strlen(text);
	char *to = text;

	while (left && !utf8_is_cut(from, left)) {
		size_t length = utf8_length(from, left);
		size_t taken = length ? length : 1;
		if (!length || is_control(from, length))
			*to++ = '?';
		else
			to = (char *)memmove(to, from, length) + length;
		from += taken;
		left -= taken;
	}
	*to = '\0';
}

int error_set(struct error *err, int code, const char *format, ...)
{
	va_list args;

	if (!err)
		return code;
	err->code = code;
	va_start(args, format);
	vsnprintf(err->text, sizeof(err->text), format, args);
	va_end(args);
	text_make_printable(err->text);
	return code;
}

int error_prefix(struct error *err, const char *format, ...)
{
	char rest[sizeof(err->text)];
	va_list args;
	int length;

	assert(err && err->code < 0);
	memcpy(rest, err->text, sizeof(rest));
	va_start(args, format);
	length = vsnprintf(err->text, sizeof(err->text), format, args);
	va_end(args);
	if (length >= 0 && (size_t)length < sizeof(err->text))
		snprintf(err->text + length, sizeof(err->text) - (size_t)length, "%s", rest);
	text_make_printable(err->text);
	return err->code;
}
