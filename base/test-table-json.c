/* SPDX-License-Identifier: Apache-2.0 */
/* JSON in, with the sentence for each thing that can be wrong, and JSON out. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>

#include "base/test-table.h"

static struct sample sample;

static void setup(void)
{
	cr_assert(eq(int, table_init(&sample_table, &sample), 0));
}

static void teardown(void)
{
	table_deinit(&sample_table, &sample);
}

TestSuite(json, .init = setup, .fini = teardown);

static void reads(const char *text)
{
	struct error err = ERROR_NULL;

	cr_assert(eq(int, sample_read(&sample, text, &err), 0), "%s", err.text);
}

static void refuses(const char *text, const char *sentence)
{
	struct error err = ERROR_NULL;

	cr_assert(eq(int, sample_read(&sample, text, &err), -EINVAL), "%s", text);
	cr_assert(eq(str, err.text, (char *)sentence));
	cr_assert(eq(int, err.code, -EINVAL));
}

Test(json, every_type_is_read)
{
	reads("{\"on\": false, \"tiny\": 255, \"small\": 20, \"medium\": 4294967295,"
	      " \"large\": 9223372036854775807, \"size\": \"2M\", \"colour\": \"blue\","
	      " \"text\": \"t\\u00e4xt\", \"key\": \"0123abcd\","
	      " \"box\": {\"open\": true, \"best\": {\"label\": \"b\", \"weight\": 9}},"
	      " \"parts\": [{\"label\": \"x\"}, {\"label\": \"y\", \"weight\": 1000}]}");
	cr_assert(not(sample.on));
	cr_assert(eq(u8, sample.tiny, 255));
	cr_assert(eq(u16, sample.small, 20));
	cr_assert(eq(u32, sample.medium, UINT32_MAX));
	cr_assert(eq(u64, sample.large, INT64_MAX));
	cr_assert(eq(u64, sample.size, 2 << 20));
	cr_assert(eq(u32, sample.colour, SAMPLE_BLUE));
	cr_assert(eq(str, sample.text, "t\xc3\xa4xt"));
	cr_assert(memcmp(sample.key, "\x01\x23\xab\xcd", 4) == 0);
	cr_assert(sample.box.open);
	cr_assert(eq(u32, sample.box.best.weight, 9));
	cr_assert(eq(u32, sample.n_parts, 2));
	cr_assert(eq(str, sample.parts[1].label, "y"));
	cr_assert(eq(u32, sample.parts[0].weight, 5), "initial");
}

Test(json, absent_keys_keep_their_values)
{
	sample.medium = 5;
	reads("{" SAMPLE_BOX "}");
	cr_assert(eq(u32, sample.medium, 5));
	cr_assert(eq(str, sample.kind, "plain"));
}

Test(json, a_list_replaces_the_list)
{
	reads("{" SAMPLE_BOX ", \"parts\": [{\"label\": \"x\"}, {\"label\": \"y\"}]}");
	reads("{" SAMPLE_BOX ", \"parts\": [{\"label\": \"z\"}]}");
	cr_assert(eq(u32, sample.n_parts, 1));
	cr_assert(eq(str, sample.parts[0].label, "z"));
	cr_assert(sample.parts[1].label == NULL);
}

Test(json, a_number_beyond_63_bits_is_text)
{
	reads("{" SAMPLE_BOX ", \"large\": \"18446744073709551615\"}");
	cr_assert(eq(u64, sample.large, UINT64_MAX));
}

Test(json, an_unknown_key_has_its_path)
{
	refuses("{" SAMPLE_BOX ", \"parts\": [{\"label\": \"x\"}, {\"lable\": \"y\"}]}",
		"sample.json: parts[1].lable: unknown key, did you mean \"label\"?");
	refuses("{\"box\": {\"best\": {\"unheard-of\": 1}}}",
		"sample.json: box.best.unheard-of: unknown key of part, known are: label, weight, "
		"added");
}

Test(json, an_internal_field_is_unknown)
{
	struct error err = ERROR_NULL;

	cr_assert(eq(int, sample_read(&sample, "{" SAMPLE_BOX ", \"hidden\": 1}", &err), -EINVAL));
	cr_assert(eq(u32, sample.hidden, 7));
}

Test(json, a_wrong_type_says_what_was_expected_and_found)
{
	refuses("{\"on\": 1}", "sample.json: on: expected true or false, found the number 1");
	refuses("{\"on\": \"on\"}",
		"sample.json: on: expected true or false, found the text \"on\"");
	refuses("{\"tiny\": true}", "sample.json: tiny: expected a whole number, found true");
	refuses("{\"tiny\": 1.5}",
		"sample.json: tiny: expected a whole number, found the number 1.5");
	refuses("{\"tiny\": \"1\"}",
		"sample.json: tiny: expected a whole number, found the text \"1\"");
	refuses("{\"size\": null}",
		"sample.json: size: expected bytes or a size such as \"512M\", found null");
	refuses("{\"text\": {}}", "sample.json: text: expected text, found an object");
	refuses("{\"colour\": 1}", "sample.json: colour: expected text, found the number 1");
	refuses("{\"box\": []}", "sample.json: box: expected an object, found a list");
	refuses("{" SAMPLE_BOX ", \"parts\": {}}",
		"sample.json: parts: expected a list, found an object");
	refuses("{" SAMPLE_BOX ", \"parts\": [false]}",
		"sample.json: parts[0]: expected an object, found false");
	refuses("[]", "sample.json: sample: expected an object, found a list");
}

Test(json, a_long_text_is_cut_where_it_is_found)
{
	refuses("{\"on\": \"0123456789012345678901234567890\\u00e4\\u00e4\"}",
		"sample.json: on: expected true or false, found the text "
		"\"0123456789012345678901234567890…\"");
}

Test(json, a_value_out_of_range_says_the_limit)
{
	refuses("{\"tiny\": 256}", "sample.json: tiny: 256 is too large, at most 255");
	refuses("{\"tiny\": -1}", "sample.json: tiny: -1 is too small, at least 0");
	refuses("{\"small\": 9}", "sample.json: small: 9 is too small, at least 10");
	refuses("{\"size\": -1}", "sample.json: size: -1 is too small, at least 4K");
	refuses("{\"size\": 1024}", "sample.json: size: 1K is too small, at least 4K");
	refuses("{" SAMPLE_BOX ", \"parts\": [{\"label\": \"x\", \"weight\": 0}]}",
		"sample.json: parts[0].weight: 0 is too small, at least 1");
	refuses("{" SAMPLE_BOX ", \"parts\": [{}, {}, {}, {}]}",
		"sample.json: parts: 4 elements are too many, at most 3");
	refuses("{" SAMPLE_BOX ", \"parts\": [{\"label\": \"123456789\"}]}",
		"sample.json: parts[0].label: a text of 9 bytes is too long, at most 8");
}

Test(json, a_missing_key_is_named)
{
	refuses("{\"box\": {\"best\": {}}}",
		"sample.json: box.best.label: is missing: what is written on it");
}

Test(json, broken_text_says_where)
{
	refuses("{\n  \"on\": tru\n}", "sample.json: line 2, column 11: invalid token near 'tru'");
	refuses("", "sample.json: line 1, column 0: '[' or '{' expected near end of file");
	refuses("{} x", "sample.json: line 1, column 4: end of file expected near 'x'");
}

Test(json, a_key_given_twice_is_refused)
{
	refuses("{\"on\": true, \"on\": false}",
		"sample.json: line 1, column 17: duplicate object key near '\"on\"'");
}

Test(json, a_nul_inside_a_text_is_refused)
{
	struct error err = ERROR_NULL;

	cr_assert(eq(int, sample_read(&sample, "{\"text\": \"a\\u0000b\"}", &err), -EINVAL));
}

Test(json, depth_is_limited)
{
	refuses("[[[[[[[[[[[[[[[[[", "sample.json: nested deeper than 16 levels");
}

Test(json, brackets_inside_text_are_not_depth)
{
	reads("{" SAMPLE_BOX ", \"kind\": \"[[[[[[[[[[[[[[[[[[[[\\\"[[[[[[\"}");
	cr_assert(eq(str, sample.kind, "[[[[[[[[[[[[[[[[[[[[\"[[[[[["));
}

Test(json, an_error_struct_may_be_left_out)
{
	cr_assert(eq(int, sample_read(&sample, "{\"tiny\": 256}", NULL), -EINVAL));
	cr_assert(eq(int, sample_read(&sample, "{", NULL), -EINVAL));
}

Test(json, writing_leaves_out_what_is_absent)
{
	json_auto_t *json = table_to_json(&sample_table, &sample);

	cr_assert(json_object_get(json, "text") == NULL);
	cr_assert(json_object_get(json, "parts") == NULL);
	cr_assert(json_object_get(json, "hidden") == NULL);
	cr_assert(eq(str, (char *)json_string_value(json_object_get(json, "kind")), "plain"));
}

Test(json, sizes_are_written_as_integers)
{
	json_auto_t *json = table_to_json(&sample_table, &sample);

	cr_assert(eq(long, json_integer_value(json_object_get(json, "size")), 1 << 20));
}

Test(json, numbers_beyond_63_bits_are_written_as_text)
{
	json_auto_t *json = NULL;

	sample.large = UINT64_C(1) << 63;
	json = table_to_json(&sample_table, &sample);
	cr_assert(eq(str, (char *)json_string_value(json_object_get(json, "large")),
		     "9223372036854775808"));
}

Test(json, what_is_written_reads_as_the_same)
{
	static const char text[] =
		"{\"on\": false, \"tiny\": 1, \"small\": 11, \"medium\": 2, \"large\": "
		"\"18446744073709551615\", \"size\": 8192, \"colour\": \"red\", \"text\": \"t\", "
		"\"kind\": \"k\", \"key\": \"00ff00ff\", \"box\": {\"open\": true, \"best\": "
		"{\"label\": \"b\", \"weight\": 3, \"added\": 4}}, \"parts\": [{\"label\": \"p\", "
		"\"weight\": 6, \"added\": 7}], \"late\": 8, \"later\": \"l\"}";
	json_auto_t *json = NULL;
	_cleanup_(freep) char *out = NULL;

	reads(text);
	json = table_to_json(&sample_table, &sample);
	out = json_dumps(json, 0);
	cr_assert(eq(str, out, (char *)text));
}
