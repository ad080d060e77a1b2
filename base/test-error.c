/* SPDX-License-Identifier: Apache-2.0 */
/* Sentences: made, prefixed, cut, and harmless. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <string.h>

#include "base/error.h"

Test(error, set_keeps_code_and_sentence)
{
	struct error err = ERROR_NULL;

	cr_assert(eq(int, error_set(&err, -ENOENT, "cannot open \"%s\"", "a"), -ENOENT));
	cr_assert(eq(int, err.code, -ENOENT));
	cr_assert(eq(str, err.text, "cannot open \"a\""));
}

Test(error, without_a_struct_the_code_is_passed_on)
{
	cr_assert(eq(int, error_set(NULL, -EIO, "lost"), -EIO));
}

Test(error, prefix_goes_before)
{
	struct error err = ERROR_NULL;

	error_set(&err, -EBUSY, "disk in use");
	cr_assert(eq(int, error_prefix(&err, "vm \"%s\": ", "web1"), -EBUSY));
	cr_assert(eq(str, err.text, "vm \"web1\": disk in use"));
}

Test(error, a_long_sentence_is_cut_at_the_end)
{
	struct error err = ERROR_NULL;
	char text[2 * sizeof(err.text)];

	memset(text, 'a', sizeof(text));
	text[sizeof(text) - 1] = '\0';
	error_set(&err, -EINVAL, "%s", text);
	cr_assert(eq(sz, strlen(err.text), sizeof(err.text) - 1));
	error_prefix(&err, "%s", text);
	cr_assert(eq(sz, strlen(err.text), sizeof(err.text) - 1));
}

Test(error, a_letter_is_not_cut_in_its_middle)
{
	struct error err = ERROR_NULL;
	char text[sizeof(err.text) + 2];

	memset(text, 'a', sizeof(text));
	memcpy(text + sizeof(err.text) - 3, "\xe2\x82\xac", 4); /* two of its three bytes fit */
	error_set(&err, -EINVAL, "%s", text);
	cr_assert(eq(sz, strlen(err.text), sizeof(err.text) - 3));
	cr_assert(text_is_utf8(err.text, strlen(err.text)));
}

Test(error, control_bytes_are_replaced)
{
	struct error err = ERROR_NULL;

	error_set(&err, -EINVAL,
		  "a\nb\033[2Jc\x7f\xc2\x9b"
		  "d");
	cr_assert(eq(str, err.text, "a?b?[2Jc??d"));
}

Test(error, letters_beyond_ascii_stay)
{
	char text[] = "\xc3\xa4\xe2\x82\xac\xf0\x9f\x90\x8c";

	text_make_printable(text);
	cr_assert(eq(str, text, "\xc3\xa4\xe2\x82\xac\xf0\x9f\x90\x8c"));
}

Test(error, bytes_that_are_no_letters_are_replaced)
{
	char text[] = "\xff"
		      "a\x80"
		      "b\xc3"
		      "c\xed\xa0\x80"
		      "d";

	text_make_printable(text);
	cr_assert(eq(str, text, "?a?b?c???d"));
}

Test(error, utf8_is_told_from_the_rest)
{
	cr_assert(text_is_utf8("", 0));
	cr_assert(text_is_utf8("a\xf4\x8f\xbf\xbf", 5));
	cr_assert(not(text_is_utf8("\xc0\x80", 2)), "overlong");
	cr_assert(not(text_is_utf8("\xe0\x9f\xbf", 3)), "overlong");
	cr_assert(not(text_is_utf8("\xf0\x8f\xbf\xbf", 4)), "overlong");
	cr_assert(not(text_is_utf8("\xed\xa0\x80", 3)), "a surrogate");
	cr_assert(not(text_is_utf8("\xf4\x90\x80\x80", 4)), "beyond the last letter");
	cr_assert(not(text_is_utf8("\xe2\x82", 2)), "cut");
}
