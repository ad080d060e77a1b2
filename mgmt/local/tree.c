/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: JSON, from a VMM that may mean no good. Out: aligned lines without control bytes. Depth is
 * bounded by jansson's parser.
 */
#include "mgmt/local/tree.h"

#include <stdbool.h>
#include <string.h>

#include "mgmt/local/local.h"

#define TREE_COLUMN 24

static void harmless_print(FILE *file, const char *text)
{
	for (; *text; text++)
		fputc((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text, file);
}

static void value_print(FILE *file, const json_t *value)
{
	const json_t *item;
	size_t i;

	if (json_is_string(value))
		harmless_print(file, json_string_value(value));
	else if (json_is_integer(value))
		fprintf(file, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
	else if (json_is_boolean(value))
		fputs(json_is_true(value) ? "yes" : "no", file);
	else if (json_is_real(value))
		fprintf(file, "%g", json_real_value(value));
	json_array_foreach((json_t *)value, i, item)
	{
		if (i)
			fputc(' ', file);
		value_print(file, item);
	}
}

/* A list of objects: a line each, "key value" pairs in a row. */
static void rows_print(FILE *file, const json_t *list, int indent)
{
	const json_t *row;
	const char *key;
	json_t *value;
	size_t i;

	json_array_foreach((json_t *)list, i, row)
	{
		fprintf(file, "%*s-", indent, "");
		json_object_foreach((json_t *)row, key, value)
		{
			fputc(' ', file);
			harmless_print(file, key);
			fputc(' ', file);
			value_print(file, value);
		}
		fputc('\n', file);
	}
}

void tree_print(FILE *file, const json_t *object, int indent)
{
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)object, key, value)
	{
		int width = indent + (int)strlen(key);
		bool rows = json_is_object(json_array_get(value, 0));

		fprintf(file, "%*s", indent, "");
		harmless_print(file, key);
		if (!rows && !json_is_object(value)) {
			fprintf(file, "%*s", width < TREE_COLUMN ? TREE_COLUMN - width : 1, "");
			value_print(file, value);
		}
		fputc('\n', file);
		if (rows)
			rows_print(file, value, indent + 2);
		else if (json_is_object(value))
			tree_print(file, value, indent + 2);
	}
}

int tree_print_json(const json_t *json)
{
	if (json_dumpf(json, stdout, JSON_INDENT(2)) < 0 || putchar('\n') < 0 || fflush(stdout)) {
		local_say("cannot print the answer");
		return LOCAL_FAILED;
	}
	return LOCAL_OK;
}
