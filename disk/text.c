/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/text.h"

#include <stdio.h>
#include <time.h>

#include "base/macros.h"

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

const char *text_time(double seconds, char buffer[TEXT_TIME_MAX])
{
	uint64_t whole = seconds > 1e9 ? UINT64_C(1000000000) : (uint64_t)(seconds + 0.5);

	if (seconds < 1)
		snprintf(buffer, TEXT_TIME_MAX, "%.0f ms", seconds < 0 ? 0 : seconds * 1000);
	else if (seconds < 10)
		snprintf(buffer, TEXT_TIME_MAX, "%.1f s", seconds);
	else if (whole < 60)
		snprintf(buffer, TEXT_TIME_MAX, "%lu s", whole);
	else if (whole < 3600)
		snprintf(buffer, TEXT_TIME_MAX, "%lu min %lu s", whole / 60, whole % 60);
	else
		snprintf(buffer, TEXT_TIME_MAX, "%lu h %lu min", whole / 3600, whole / 60 % 60);
	return buffer;
}

const char *text_date(uint64_t seconds, char buffer[TEXT_DATE_MAX])
{
	time_t when = (time_t)MIN(seconds, UINT64_C(253402300799)); /* the year 9999 */
	struct tm parts;

	if (!gmtime_r(&when, &parts) ||
	    !strftime(buffer, TEXT_DATE_MAX, "%Y-%m-%d %H:%M:%S UTC", &parts))
		snprintf(buffer, TEXT_DATE_MAX, "-");
	return buffer;
}
