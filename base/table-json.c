/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON in: a text or a parsed value walked along a table into a struct. The text is anyone's.
 * Nothing is guessed or converted: what does not fit is one sentence with the path of the key.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <threads.h>

#include "base/table-value.h"

#define JSON_DEPTH_MAX 16
#define FOUND_MAX      64

static int read_object(const struct table *table, const json_t *json, void *object,
		       const struct table_path *path, struct error *err);

static void found_text(const json_t *json, char text[FOUND_MAX])
{
	size_t length = MIN(json_string_length(json), (size_t)32);
	const char *value = json_string_value(json);

	while (length && ((unsigned char)value[length] & 0xc0) == 0x80)
		length--;
	snprintf(text, FOUND_MAX, "the text \"%.*s%s\"", (int)length, value,
		 value[length] ? "…" : "");
}

/* What was there instead, in a person's words. */
static void found(const json_t *json, char text[FOUND_MAX])
{
	static const char *const words[] = {
		[JSON_OBJECT] = "an object", [JSON_ARRAY] = "a list", [JSON_TRUE] = "true",
		[JSON_FALSE] = "false",      [JSON_NULL] = "null",
	};

	if (json_is_string(json))
		found_text(json, text);
	else if (json_is_integer(json))
		snprintf(text, FOUND_MAX, "the number %" JSON_INTEGER_FORMAT,
			 json_integer_value(json));
	else if (json_is_real(json))
		snprintf(text, FOUND_MAX, "the number %g", json_real_value(json));
	else
		snprintf(text, FOUND_MAX, "%s", words[json_typeof(json)]);
}

static int wrong_type(const char *expected, const json_t *json, const struct table_path *path,
		      struct error *err)
{
	char is[FOUND_MAX];

	found(json, is);
	return path_error(path, err, "expected %s, found %s", expected, is);
}

static int read_number(const struct field *field, const json_t *json, void *object,
		       const struct table_path *path, struct error *err)
{
	char is[SIZE_TEXT_MAX];
	json_int_t value;

	if (json_is_string(json) && (field->type == FIELD_SIZE || field->type == FIELD_U64))
		return field_read_number_text(field, object, json_string_value(json), path, err);
	if (!json_is_integer(json) && field->type == FIELD_SIZE)
		return wrong_type("bytes or a size such as \"512M\"", json, path, err);
	if (!json_is_integer(json))
		return wrong_type("a whole number", json, path, err);
	value = json_integer_value(json);
	if (value < 0) {
		snprintf(is, sizeof(is), "%" JSON_INTEGER_FORMAT, value);
		return field_too_small(field, is, path, err);
	}
	return field_read_number(field, object, (uint64_t)value, path, err);
}

static int read_bool(const struct field *field, const json_t *json, void *object,
		     const struct table_path *path, struct error *err)
{
	if (!json_is_boolean(json))
		return wrong_type("true or false", json, path, err);
	field_store(field, object, json_is_true(json));
	return 0;
}

static int read_text(const struct field *field, const json_t *json, void *object,
		     const struct table_path *path, struct error *err)
{
	const char *text = json_string_value(json);

	if (!text)
		return wrong_type("text", json, path, err);
	if (field->type == FIELD_ENUM)
		return field_read_enum(field, object, text, path, err);
	if (field->type == FIELD_BYTES)
		return field_read_bytes(field, object, text, json_string_length(json), path, err);
	return field_read_string(field, object, text, json_string_length(json), path, err);
}

static int read_element(const struct field *field, const json_t *json, void *object, uint32_t index,
			const struct table_path *path, struct error *err)
{
	const struct table_path here = {.up = path, .index = index};
	char *place = (char *)field_place(field, object) + (size_t)index * field->size;
	int r;

	r = table_init(field->table, place);
	if (r < 0)
		return error_set(err, r, "out of memory");
	*field_list_n(field, object) = index + 1; /* from here on the list owns it */
	return read_object(field->table, json, place, &here, err);
}

/* A list replaces the list that was there. */
static int read_list(const struct field *field, const json_t *json, void *object,
		     const struct table_path *path, struct error *err)
{
	char *place = field_place(field, object);
	size_t n = json_array_size(json);
	int r = 0;

	if (!json_is_array(json))
		return wrong_type("a list", json, path, err);
	if (n > field->count)
		return path_error(path, err, "%zu elements are too many, at most %u", n,
				  field->count);
	for (uint32_t i = 0; i < field_list_count(field, object); i++)
		table_deinit(field->table, place + (size_t)i * field->size);
	*field_list_n(field, object) = 0;
	for (uint32_t i = 0; i < n && r == 0; i++)
		r = read_element(field, json_array_get(json, i), object, i, path, err);
	return r;
}

static int read_field(const struct field *field, const json_t *json, void *object,
		      const struct table_path *path, struct error *err)
{
	switch (field->type) {
	case FIELD_BOOL:
		return read_bool(field, json, object, path, err);
	case FIELD_ENUM:
	case FIELD_STRING:
	case FIELD_BYTES:
		return read_text(field, json, object, path, err);
	case FIELD_STRUCT:
		return read_object(field->table, json, field_place(field, object), path, err);
	case FIELD_LIST:
		return read_list(field, json, object, path, err);
	default:
		return read_number(field, json, object, path, err);
	}
}

static int check_keys(const struct table *table, const json_t *json, const struct table_path *path,
		      struct error *err)
{
	json_t *object = (json_t *)(uintptr_t)json; /* jansson's iterators are not const */

	for (void *at = json_object_iter(object); at; at = json_object_iter_next(object, at)) {
		const struct table_path here = {.up = path, .key = json_object_iter_key(at)};
		if (!table_find(table, here.key))
			return table_unknown_key(table, here.key, &here, err);
	}
	return 0;
}

static int read_object(const struct table *table, const json_t *json, void *object,
		       const struct table_path *path, struct error *err)
{
	const struct table_path outermost = {.key = table->name};
	int r;

	if (!json_is_object(json))
		return wrong_type("an object", json, path ? path : &outermost, err);
	r = check_keys(table, json, path, err);
	for (uint32_t i = 0; i < table->n_fields && r == 0; i++) {
		const struct field *field = &table->fields[i];
		const struct table_path here = {.up = path, .key = field->name};
		const json_t *value = json_object_get(json, field->name);
		if (field->flags & FIELD_INTERNAL)
			continue;
		if (value)
			r = read_field(field, value, object, &here, err);
		else if (field->flags & FIELD_REQUIRED)
			r = path_error(&here, err, "is missing: %s", field->help);
	}
	return r;
}

int table_from_json(const struct table *table, const json_t *json, void *object, struct error *err)
{
	return read_object(table, json, object, NULL, err);
}

/* jansson would follow 2,048 levels; no table of ours has more than a few. */
static bool too_deep(const char *text, size_t size)
{
	uint32_t depth = 0;
	bool quoted = false;

	for (size_t i = 0; i < size; i++) {
		if (quoted && text[i] == '\\')
			i++;
		else if (text[i] == '"')
			quoted = !quoted;
		else if (!quoted && (text[i] == '{' || text[i] == '[') && ++depth > JSON_DEPTH_MAX)
			return true;
		else if (!quoted && (text[i] == '}' || text[i] == ']') && depth)
			depth--;
	}
	return false;
}

/*
 * jansson 2.14 drops a letter of a text where its buffer cannot grow, and carries on; elsewhere it
 * takes a lack of memory for bad syntax. So its allocations go through here, and a parse during
 * which one failed is not believed.
 */
static _Thread_local bool starved;

static void *take_block(size_t size)
{
	void *block = malloc(size);

	starved |= !block;
	return block;
}

static void watch_allocations(void)
{
	json_set_alloc_funcs(take_block, free);
}

static json_t *parse(const char *text, size_t size, json_error_t *ret_why)
{
	static once_flag once = ONCE_FLAG_INIT;
	json_auto_t *json = NULL;

	call_once(&once, watch_allocations);
	starved = false;
	json = json_loadb(text, size, JSON_REJECT_DUPLICATES, ret_why);
	return starved ? NULL : take_ptr(json);
}

int table_from_text(const struct table *table, const char *text, size_t size, const char *what,
		    void *object, struct error *err)
{
	json_auto_t *json = NULL;
	json_error_t why;
	int r;

	if (too_deep(text, size))
		return error_set(err, -EINVAL, "%s: nested deeper than %d levels", what,
				 JSON_DEPTH_MAX);
	json = parse(text, size, &why);
	if (!json && starved)
		return error_set(err, -ENOMEM, "%s: out of memory", what);
	if (!json)
		return error_set(err, -EINVAL, "%s: line %d, column %d: %s", what, why.line,
				 why.column, why.text);
	r = table_from_json(table, json, object, err);
	if (r < 0 && err)
		error_prefix(err, "%s: ", what);
	return r;
}
