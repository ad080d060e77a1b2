/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Last words are found however the stream is cut.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "base/macros.h"
#include "devices/panic-watch.h"

static const char oops[] = "[    1.2] VFS: Cannot open root device\r\n"
			   "[    1.3] Kernel panic - not syncing: VFS: Unable to mount root fs on "
			   "unknown-block(0,0)\r\n"
			   "[    1.4] CPU: 0 PID: 1\r\n"
			   "[    1.5] ---[ end Kernel panic - not syncing: VFS ]---\r\n";
static const char words[] = "VFS: Unable to mount root fs on unknown-block(0,0)";

Test(panic_watch, finds_the_line_in_pieces_of_any_size)
{
	for (size_t piece = 1; piece < sizeof(oops); piece++) {
		struct panic_watch watch = {0};
		char text[PANIC_TEXT_SIZE];

		for (size_t at = 0; at < strlen(oops); at += piece)
			panic_watch_feed(&watch, oops + at,
					 strlen(oops) - at < piece ? strlen(oops) - at : piece);
		cr_assert(panic_watch_text(&watch, text), "pieces of %zu", piece);
		cr_assert_str_eq(text, words);
	}
}

Test(panic_watch, a_false_start_does_not_hide_it)
{
	static const char stream[] = "KKernel pKernel panic - not syncinKernel panic - not "
				     "syncing: yes\n";
	struct panic_watch watch = {0};
	char text[PANIC_TEXT_SIZE];

	panic_watch_feed(&watch, stream, strlen(stream));
	cr_assert(panic_watch_text(&watch, text));
	cr_assert_str_eq(text, "yes");
}

Test(panic_watch, silence_is_no_panic)
{
	static const char stream[] = "Kernel panic, not syncing\nkernel panic - not syncing\n";
	struct panic_watch watch = {0};
	char text[PANIC_TEXT_SIZE];

	panic_watch_feed(&watch, stream, strlen(stream));
	cr_assert_not(panic_watch_text(&watch, text));
}

Test(panic_watch, an_unfinished_line_counts)
{
	struct panic_watch watch = {0};
	char text[PANIC_TEXT_SIZE];

	panic_watch_feed(&watch, "Kernel panic - not syncing: Fatal", 33);
	cr_assert(panic_watch_text(&watch, text));
	cr_assert_str_eq(text, "Fatal");
}

Test(panic_watch, what_is_kept_is_bounded_and_printable)
{
	struct panic_watch watch = {0};
	char text[PANIC_TEXT_SIZE], line[1000];

	memset(line, 0x1b, sizeof(line));
	panic_watch_feed(&watch, "Kernel panic - not syncing", 26);
	panic_watch_feed(&watch, line, sizeof(line));
	cr_assert(panic_watch_text(&watch, text));
	cr_assert_eq(strlen(text), PANIC_TEXT_SIZE - 1);
	for (size_t i = 0; i < strlen(text); i++)
		cr_assert_eq(text[i], '?');
}

Test(panic_watch, a_restart_in_order_takes_it_back)
{
	static const char stream[] =
		"Kernel panic - not syncing: in a log\nreboot: Restarting system\n";
	char text[PANIC_TEXT_SIZE];

	for (size_t piece = 1; piece < sizeof(stream); piece++) {
		struct panic_watch watch = {0};

		for (size_t at = 0; at < strlen(stream); at += piece)
			panic_watch_feed(&watch, stream + at, MIN(piece, strlen(stream) - at));
		cr_assert_not(panic_watch_text(&watch, text), "pieces of %zu", piece);
	}
}

Test(panic_watch, much_output_takes_it_back)
{
	static char much[PANIC_REACH];
	struct panic_watch watch = {0};
	char text[PANIC_TEXT_SIZE];

	memset(much, '.', sizeof(much));
	panic_watch_feed(&watch, "Kernel panic - not syncing: old\n", 32);
	panic_watch_feed(&watch, much, sizeof(much) / 2);
	cr_assert(panic_watch_text(&watch, text));
	panic_watch_feed(&watch, much, sizeof(much));
	cr_assert_not(panic_watch_text(&watch, text));
}
