/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: the text of a flag's value. Out: a struct filled through its table, so that flags and JSON
 * mean the same and are refused with the same sentences.
 */
#include "mgmt/local/parts.h"

#include <errno.h>
#include <string.h>

#include "mgmt/local/flags.h"

static const char *table_candidate(const void *list, size_t i)
{
	const struct table *table = list;

	for (uint32_t f = 0; f < table->n_fields; f++) {
		if (table->fields[f].flags & FIELD_INTERNAL)
			continue;
		if (!i--)
			return table->fields[f].name;
	}
	return NULL;
}

static bool table_knows(const struct table *table, const char *key)
{
	const char *name;

	for (size_t i = 0; (name = table_candidate(table, i)); i++)
		if (!strcmp(name, key))
			return true;
	return false;
}

char *part_next(char **rest)
{
	char *start = *rest, *in = start, *out = start;

	for (; *in; in++) {
		if (*in == ',' && in[1] != ',')
			break;
		if (*in == ',')
			in++;
		*out++ = *in;
	}
	*rest = *in ? in + 1 : NULL;
	*out = '\0';
	return start;
}

int part_set(const struct table *table, void *object, char *part, struct error *err)
{
	char *value = strchr(part, '=');
	const char *near;

	if (value)
		*value++ = '\0';
	if (table_knows(table, part))
		return table_set_text(table, object, part, value, err);
	near = nearest(part, table_candidate, table);
	if (near)
		return error_set(err, -EINVAL, "unknown word \"%s\", did you mean \"%s\"?", part,
				 near);
	return error_set(err, -EINVAL, "unknown word \"%s\", see `corral help run`", part);
}

int parts_set(const struct table *table, void *object, const char *flag_name, const char *first_key,
	      const char *value, struct error *err)
{
	_cleanup_(freep) char *text = strdup(value);
	char *rest = text;
	int r = 0;

	if (!text)
		return error_set(err, -ENOMEM, "%s: out of memory", flag_name);
	if (first_key)
		r = table_set_text(table, object, first_key, part_next(&rest), err);
	while (r >= 0 && rest)
		r = part_set(table, object, part_next(&rest), err);
	return r < 0 ? error_prefix(err, "%s: ", flag_name) : 0;
}
