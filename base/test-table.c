/* SPDX-License-Identifier: Apache-2.0 */
/* Initial values, sizes, command-line text, and what a table says of itself. */
#include "base/test-table.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>

static struct sample sample;

static void setup(void)
{
	cr_assert(eq(int, table_init(&sample_table, &sample), 0));
}

static void teardown(void)
{
	table_deinit(&sample_table, &sample);
}

TestSuite(table, .init = setup, .fini = teardown);

Test(table, initial_values_are_set)
{
	cr_assert(sample.on);
	cr_assert(eq(u16, sample.small, 15));
	cr_assert(eq(u64, sample.size, 1 << 20));
	cr_assert(eq(u32, sample.colour, SAMPLE_GREEN));
	cr_assert(eq(str, sample.kind, "plain"));
	cr_assert(sample.text == NULL);
	cr_assert(eq(u32, sample.hidden, 7));
	cr_assert(eq(u32, sample.box.best.weight, 5), "of a nested struct too");
}

Test(table, deinit_leaves_zeroes_and_may_be_repeated)
{
	static const struct sample zeroes;

	cr_assert(eq(int, table_set_text(&sample_table, &sample, "text", "a", NULL), 0));
	table_deinit(&sample_table, &sample);
	cr_assert(memcmp(&sample, &zeroes, sizeof(sample)) == 0);
	table_deinit(&sample_table, &sample);
}

static void parses(const char *text, uint64_t expected)
{
	uint64_t size = 0;

	cr_assert(eq(int, size_parse(text, &size), 0), "%s", text);
	cr_assert(eq(u64, size, expected), "%s", text);
}

Test(size, units_are_powers_of_1024)
{
	parses("0", 0);
	parses("512", 512);
	parses("1K", 1024);
	parses("512M", UINT64_C(512) << 20);
	parses("4g", UINT64_C(4) << 30);
	parses("3T", UINT64_C(3) << 40);
	parses("2P", UINT64_C(2) << 50);
	parses("15E", UINT64_C(15) << 60);
	parses("18446744073709551615", UINT64_MAX);
}

Test(size, what_does_not_fit_is_erange)
{
	uint64_t size;

	cr_assert(eq(int, size_parse("16E", &size), -ERANGE));
	cr_assert(eq(int, size_parse("18446744073709551616", &size), -ERANGE));
	cr_assert(eq(int, size_parse("99999999999999999999999", &size), -ERANGE));
}

Test(size, what_is_no_size_is_einval)
{
	static const char *const texts[] = {"",    "M",  "-1",   "+1",  " 1",  "1 ",    "1.5G",
					    "1MB", "1X", "0x10", "1M ", "1M1", "1\x0b", "1k\x80"};
	uint64_t size;

	for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
		cr_assert(eq(int, size_parse(texts[i], &size), -EINVAL), "\"%s\"", texts[i]);
}

Test(size, printing_is_exact_and_short)
{
	static const struct {
		uint64_t size;
		const char *text;
	} cases[] = {
		{0, "0"},
		{1, "1"},
		{1023, "1023"},
		{1024, "1K"},
		{1536, "1536"},
		{UINT64_C(512) << 20, "512M"},
		{1025 << 10, "1025K"},
		{UINT64_C(8) << 60, "8E"},
		{UINT64_MAX, "18446744073709551615"},
	};
	char text[SIZE_TEXT_MAX];

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		size_print(cases[i].size, text);
		cr_assert(eq(str, text, (char *)cases[i].text));
		parses(text, cases[i].size);
	}
}

static void sets(const char *key, const char *value)
{
	struct error err = ERROR_NULL;

	cr_assert(eq(int, table_set_text(&sample_table, &sample, key, value, &err), 0), "%s",
		  err.text);
}

static void refuses(const char *key, const char *value, const char *sentence)
{
	struct error err = ERROR_NULL;

	cr_assert(eq(int, table_set_text(&sample_table, &sample, key, value, &err), -EINVAL));
	cr_assert(eq(str, err.text, (char *)sentence));
}

Test(table, text_sets_a_switch)
{
	sets("on", "off");
	cr_assert(not(sample.on));
	sets("on", NULL);
	cr_assert(sample.on);
	sets("on", "false");
	cr_assert(not(sample.on));
	sets("on", "true");
	cr_assert(sample.on);
}

Test(table, text_sets_numbers_and_sizes)
{
	sets("tiny", "255");
	cr_assert(eq(u8, sample.tiny, 255));
	sets("large", "18446744073709551615");
	cr_assert(eq(u64, sample.large, UINT64_MAX));
	sets("size", "4G");
	cr_assert(eq(u64, sample.size, UINT64_C(4) << 30));
}

Test(table, text_sets_names_words_and_bytes)
{
	sets("colour", "blue");
	cr_assert(eq(u32, sample.colour, SAMPLE_BLUE));
	sets("text", "some words");
	sets("text", "other words");
	cr_assert(eq(str, sample.text, "other words"));
	sets("key", "00ff10ab");
	cr_assert(memcmp(sample.key, "\x00\xff\x10\xab", 4) == 0);
}

Test(table, text_of_the_wrong_kind_is_refused)
{
	refuses("on", "maybe", "on: \"maybe\" is neither on nor off");
	refuses("tiny", "1K", "tiny: \"1K\" is not a whole number");
	refuses("tiny", "-1", "tiny: \"-1\" is not a whole number");
	refuses("tiny", "", "tiny: \"\" is not a whole number");
	refuses("size", "much", "size: \"much\" is not a size such as 512M or 4G");
	refuses("colour", "pink", "colour: \"pink\" is not one of: red, green, blue");
	refuses("key", "00FF10AB",
		"key: expected hexadecimal digits in lower case, found \"00FF10AB\"");
	refuses("key", "00", "key: 2 hexadecimal digits, expected 8");
	refuses("text", "\xff", "text: the text is not UTF-8");
}

Test(table, text_out_of_range_is_refused)
{
	refuses("tiny", "256", "tiny: 256 is too large, at most 255");
	refuses("small", "9", "small: 9 is too small, at least 10");
	refuses("small", "21", "small: 21 is too large, at most 20");
	refuses("size", "1K", "size: 1K is too small, at least 4K");
	refuses("size", "2T", "size: 2T is too large, at most 1T");
	refuses("large", "18446744073709551616", "large: \"18446744073709551616\" is too large");
	refuses("text", "12345678901234567", "text: a text of 17 bytes is too long, at most 16");
}

Test(table, text_without_a_value_is_for_switches)
{
	refuses("size", NULL, "size: needs a value, as in size=…");
}

Test(table, text_cannot_set_what_has_parts)
{
	refuses("box", "on", "box: cannot be given as one word");
	refuses("parts", "on", "parts: cannot be given as one word");
}

Test(table, an_unknown_key_names_the_nearest)
{
	refuses("colur", "red", "colur: unknown key, did you mean \"colour\"?");
	refuses("latter", "1", "latter: unknown key, did you mean \"later\"?");
	refuses("smalll", "red", "smalll: unknown key, did you mean \"small\"?");
}

Test(table, an_unknown_key_names_the_known)
{
	refuses("of", "1",
		"of: unknown key of sample, known are: on, tiny, small, medium, large, size, "
		"colour, "
		"text, kind, key, box, parts, late, later");
	refuses("something-else", "1",
		"something-else: unknown key of sample, known are: on, tiny, small, medium, large, "
		"size, colour, text, kind, key, box, parts, late, later");
}

Test(table, an_internal_field_has_no_key)
{
	cr_assert(eq(int, table_set_text(&sample_table, &sample, "hidden", "1", NULL), -EINVAL));
	cr_assert(eq(u32, sample.hidden, 7));
}

static const json_t *described(const json_t *table, const char *name)
{
	const json_t *fields = json_object_get(table, "fields");
	size_t i;
	const json_t *field;

	json_array_foreach(fields, i, field)
	{
		if (strcmp(json_string_value(json_object_get(field, "name")), name) == 0)
			return field;
	}
	return NULL;
}

Test(table, describes_names_and_ranges)
{
	json_auto_t *table = table_describe(&sample_table);
	const json_t *small = described(table, "small");

	cr_assert(eq(str, (char *)json_string_value(json_object_get(table, "name")), "sample"));
	cr_assert(eq(str, (char *)json_string_value(json_object_get(small, "type")), "u16"));
	cr_assert(eq(str, (char *)json_string_value(json_object_get(small, "help")), "two bytes"));
	cr_assert(eq(int, (int)json_integer_value(json_object_get(small, "min")), 10));
	cr_assert(eq(int, (int)json_integer_value(json_object_get(small, "max")), 20));
	cr_assert(eq(int, (int)json_integer_value(json_object_get(small, "initial")), 15));
}

Test(table, describes_choices)
{
	json_auto_t *table = table_describe(&sample_table);
	const json_t *colour = described(table, "colour");
	json_auto_t *expected = json_pack("[sss]", "red", "green", "blue");

	cr_assert(json_equal(json_object_get(colour, "values"), expected));
	cr_assert(eq(str, (char *)json_string_value(json_object_get(colour, "initial")), "green"));
}

Test(table, describes_nested_tables)
{
	json_auto_t *table = table_describe(&sample_table);
	const json_t *parts = described(table, "parts");
	const json_t *label = described(json_object_get(parts, "of"), "label");
	bool required = json_is_true(json_object_get(label, "required"));

	cr_assert(eq(int, (int)json_integer_value(json_object_get(parts, "max")), 3));
	cr_assert(required);
}

Test(table, describes_no_internal_field)
{
	json_auto_t *table = table_describe(&sample_table);

	cr_assert(described(table, "late") != NULL);
	cr_assert(described(table, "hidden") == NULL);
}
