/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stream of console output in, the line of the first kernel panic out.
 */
#include "devices/panic-watch.h"

#include <string.h>

#include "base/macros.h"

static const char panic_phrase[] = "Kernel panic - not syncing";
static const char order_phrase[] =
	"Restarting system"; /* kernel_restart(), on the way to a reset in order */

/*
 * Goes to just behind the phrase, or to the end. A phrase's first letter is nowhere else in it, so
 * after a mismatch only that one byte counts.
 */
static const uint8_t *look(struct panic_watch *watch, const char *phrase, const uint8_t *at,
			   const uint8_t *end)
{
	while (at < end) {
		if (watch->matched == 0) {
			at = memchr(at, phrase[0], (size_t)(end - at));
			if (!at)
				return end;
		}
		if (*at == (uint8_t)phrase[watch->matched])
			watch->matched++;
		else
			watch->matched = *at == (uint8_t)phrase[0];
		at++;
		if (!phrase[watch->matched])
			return at;
	}
	return end;
}

static const uint8_t *keep(struct panic_watch *watch, const uint8_t *at, const uint8_t *end)
{
	for (; at < end; at++) {
		if (*at == '\n' || *at == '\r' || watch->length == PANIC_TEXT_SIZE - 1) {
			watch->state = PANIC_SEEN;
			watch->matched = 0;
			return at;
		}
		watch->text[watch->length++] = *at >= ' ' && *at < 0x7f ? (char)*at : '?';
	}
	return end;
}

/* Has the kernel lived on? */
static void doubt(struct panic_watch *watch, const uint8_t *at, const uint8_t *end)
{
	watch->since += (size_t)(end - at);
	look(watch, order_phrase, at, end);
	if (!order_phrase[watch->matched] || watch->since > PANIC_REACH)
		*watch = (struct panic_watch){0};
}

void panic_watch_feed(struct panic_watch *watch, const void *data, size_t size)
{
	const uint8_t *at = data, *end = at + size;

	if (watch->state == PANIC_LOOKING) {
		at = look(watch, panic_phrase, at, end);
		if (!panic_phrase[watch->matched])
			watch->state = PANIC_IN_LINE;
	}
	if (watch->state == PANIC_IN_LINE)
		at = keep(watch, at, end);
	if (watch->state == PANIC_SEEN)
		doubt(watch, at, end);
}

bool panic_watch_text(const struct panic_watch *watch, char text[PANIC_TEXT_SIZE])
{
	uint32_t skip = 0;

	if (watch->state == PANIC_LOOKING)
		return false;
	while (skip < watch->length && (watch->text[skip] == ':' || watch->text[skip] == ' '))
		skip++;
	memcpy(text, watch->text + skip, watch->length - skip);
	text[watch->length - skip] = '\0';
	return true;
}
