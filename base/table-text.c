/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A key and a word of the command line in, one field set.
 */
#include <errno.h>
#include <string.h>

#include "base/table-value.h"

static int set_bool(const struct field *field, void *object, const char *value,
		    const struct table_path *path, struct error *err)
{
	bool on = !value || strcmp(value, "on") == 0 || strcmp(value, "true") == 0;

	if (!on && strcmp(value, "off") != 0 && strcmp(value, "false") != 0)
		return path_error(path, err, "\"%s\" is neither on nor off", value);
	field_store(field, object, on);
	return 0;
}

int table_set_text(const struct table *table, void *object, const char *key, const char *value,
		   struct error *err)
{
	struct table_path path = {.key = key};
	const struct field *field = table_find(table, key);

	if (!field)
		return table_unknown_key(table, key, &path, err);
	if (field->type == FIELD_BOOL)
		return set_bool(field, object, value, &path, err);
	if (field->type == FIELD_STRUCT || field->type == FIELD_LIST)
		return path_error(&path, err, "cannot be given as one word");
	if (!value)
		return path_error(&path, err, "needs a value, as in %s=…", key);
	if (field->type == FIELD_ENUM)
		return field_read_enum(field, object, value, &path, err);
	if (field->type == FIELD_STRING)
		return field_read_string(field, object, value, strlen(value), &path, err);
	if (field->type == FIELD_BYTES)
		return field_read_bytes(field, object, value, strlen(value), &path, err);
	return field_read_number_text(field, object, value, &path, err);
}
