/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Texts and memory for corral-init, which has no C library. Nothing here fails: what does not fit
 * is cut off.
 */
#include <fcntl.h>

#include "mgmt/local/init/system.h"

unsigned long text_length(const char *text)
{
	unsigned long n = 0;

	while (text[n])
		n++;
	return n;
}

int text_same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

void text_add(char *text, unsigned long size, const char *more)
{
	unsigned long at = text_length(text);

	while (*more && at + 1 < size)
		text[at++] = *more++;
	text[at] = '\0';
}

void text_read(const char *path, char *text, unsigned long size)
{
	long fd = CALL4(openat, AT_FDCWD, path, O_RDONLY, 0);
	long n = fd < 0 ? 0 : CALL3(read, fd, text, size - 1);

	if (fd >= 0)
		CALL1(close, fd);
	if (n < 0)
		n = 0;
	if (n && text[n - 1] == '\n')
		n--;
	text[n] = '\0';
}

/* The compiler calls these two; volatile keeps it from making them into calls of themselves. Only
 * small things are copied here. */
void *memcpy(void *to, const void *from, unsigned long size)
{
	volatile char *out = to;
	const char *in = from;

	while (size--)
		*out++ = *in++;
	return to;
}

void *memset(void *to, int byte, unsigned long size)
{
	volatile char *out = to;

	while (size--)
		*out++ = byte;
	return to;
}
