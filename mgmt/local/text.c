/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Words for people: one line on standard error per failure, sizes with units, and text from a VMM
 * stripped of what could steer a terminal.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "mgmt/local/local.h"

/* One write(2), so that lines of launcher and VMM do not mix. */
void local_say(const char *format, ...)
{
	char line[1024] = "corral: ";
	size_t start = strlen(line), length;
	va_list list;
	int n;

	va_start(list, format);
	n = vsnprintf(line + start, sizeof(line) - start - 1, format, list);
	va_end(list);
	if (n < 0)
		return;
	text_harmless(line);
	length = strlen(line);
	line[length] = '\n';
	if (write(STDERR_FILENO, line, length + 1) < 0)
		return; /* nobody left to tell */
}

int local_fail(const struct error *err, int status)
{
	local_say("%s", err->text);
	return status;
}

void text_harmless(char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < 0x20 || *text == 0x7f)
			*text = '?';
}

const char *text_size(uint64_t bytes, char buffer[TEXT_SIZE_MAX])
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	uint64_t tenths = 0;
	size_t unit = 0;

	for (; bytes >= 1024 && unit + 1 < ARRAY_SIZE(units); unit++) {
		tenths = (bytes % 1024) * 10 / 1024;
		bytes /= 1024;
	}
	if (tenths)
		snprintf(buffer, TEXT_SIZE_MAX, "%lu.%lu %s", bytes, tenths, units[unit]);
	else
		snprintf(buffer, TEXT_SIZE_MAX, "%lu %s", bytes, units[unit]);
	return buffer;
}
