/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON out: a struct along its table, and the table itself for whoever asks what there is.
 */
#include <assert.h>
#include <stdio.h>

#include "base/table-value.h"

static json_t *print_number(uint64_t value)
{
	char text[SIZE_TEXT_MAX];

	if (value <= INT64_MAX)
		return json_integer((json_int_t)value);
	snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
	return json_string(text);
}

static json_t *print_bytes(const struct field *field, const void *object)
{
	static const char digits[] = "0123456789abcdef";
	const uint8_t *bytes = field_place_const(field, object);
	_cleanup_(freep) char *hex = malloc(2 * (size_t)field->size + 1);

	if (!hex)
		return NULL;
	for (size_t i = 0; i < field->size; i++) {
		hex[2 * i] = digits[bytes[i] >> 4];
		hex[2 * i + 1] = digits[bytes[i] & 15];
	}
	return json_stringn(hex, 2 * (size_t)field->size);
}

static json_t *print_list(const struct field *field, const void *object)
{
	const char *place = field_place_const(field, object);
	json_auto_t *list = json_array();

	for (uint32_t i = 0; i < field_list_count(field, object); i++)
		if (json_array_append_new(
			    list, table_to_json(field->table, place + (size_t)i * field->size)))
			return NULL;
	return take_ptr(list);
}

static json_t *print_field(const struct field *field, const void *object)
{
	switch (field->type) {
	case FIELD_BOOL:
		return json_boolean(field_load(field, object));
	case FIELD_ENUM:
		assert(field_load(field, object) <= field_greatest(field));
		return json_string(field->names[field_load(field, object)]);
	case FIELD_STRING:
		return json_string(*(char *const *)field_place_const(field, object));
	case FIELD_BYTES:
		return print_bytes(field, object);
	case FIELD_STRUCT:
		return table_to_json(field->table, field_place_const(field, object));
	case FIELD_LIST:
		return print_list(field, object);
	default:
		return print_number(field_load(field, object));
	}
}

static bool left_out(const struct field *field, const void *object)
{
	if (field->flags & FIELD_INTERNAL)
		return true;
	if (field->type == FIELD_STRING)
		return !*(char *const *)field_place_const(field, object);
	return field->type == FIELD_LIST && !(field->flags & FIELD_REQUIRED) &&
	       !field_list_count(field, object);
}

json_t *table_to_json(const struct table *table, const void *object)
{
	json_auto_t *json = json_object();

	for (uint32_t i = 0; i < table->n_fields; i++) {
		const struct field *field = &table->fields[i];
		if (!left_out(field, object) &&
		    json_object_set_new(json, field->name, print_field(field, object)) < 0)
			return NULL;
	}
	return take_ptr(json);
}

static int describe_number(const struct field *field, json_t *json)
{
	if (json_object_set_new(json, "min", print_number(field->min)) < 0 ||
	    json_object_set_new(json, "max", print_number(field_greatest(field))) < 0)
		return -1;
	return json_object_set_new(json, "initial", print_number(field->initial));
}

static int describe_enum(const struct field *field, json_t *json)
{
	json_t *values = json_array(); /* the object's once set */

	if (json_object_set_new(json, "values", values) < 0)
		return -1;
	for (uint32_t i = 0; field->names[i]; i++)
		if (json_array_append_new(values, json_string(field->names[i])) < 0)
			return -1;
	return json_object_set_new(json, "initial", json_string(field->names[field->initial]));
}

static int describe_kind(const struct field *field, json_t *json)
{
	switch (field->type) {
	case FIELD_BOOL:
		return json_object_set_new(json, "initial", json_boolean(field->initial));
	case FIELD_ENUM:
		return describe_enum(field, json);
	case FIELD_STRING:
		if (field->initial_text &&
		    json_object_set_new(json, "initial", json_string(field->initial_text)) < 0)
			return -1;
		return json_object_set_new(json, "max", print_number(field_text_max(field)));
	case FIELD_BYTES:
		return json_object_set_new(json, "bytes", json_integer(field->size));
	case FIELD_LIST:
		if (json_object_set_new(json, "max", json_integer(field->count)) < 0)
			return -1;
		return json_object_set_new(json, "of", table_describe(field->table));
	case FIELD_STRUCT:
		return json_object_set_new(json, "of", table_describe(field->table));
	default:
		return describe_number(field, json);
	}
}

static json_t *describe_field(const struct field *field)
{
	static const char *const types[] = {
		[FIELD_BOOL] = "bool",     [FIELD_U8] = "u8",         [FIELD_U16] = "u16",
		[FIELD_U32] = "u32",       [FIELD_U64] = "u64",       [FIELD_SIZE] = "size",
		[FIELD_ENUM] = "enum",     [FIELD_STRING] = "string", [FIELD_BYTES] = "bytes",
		[FIELD_STRUCT] = "struct", [FIELD_LIST] = "list",
	};
	json_auto_t *json = json_object();

	if (json_object_set_new(json, "name", json_string(field->name)) < 0 ||
	    json_object_set_new(json, "type", json_string(types[field->type])) < 0 ||
	    json_object_set_new(json, "help", json_string(field->help)) < 0 ||
	    json_object_set_new(json, "required", json_boolean(field->flags & FIELD_REQUIRED)) <
		    0 ||
	    describe_kind(field, json) < 0)
		return NULL;
	return take_ptr(json);
}

static json_t *describe_fields(const struct table *table)
{
	json_auto_t *fields = json_array();

	for (uint32_t i = 0; i < table->n_fields; i++)
		if (!(table->fields[i].flags & FIELD_INTERNAL) &&
		    json_array_append_new(fields, describe_field(&table->fields[i])) < 0)
			return NULL;
	return take_ptr(fields);
}

json_t *table_describe(const struct table *table)
{
	json_auto_t *json = json_object();

	if (json_object_set_new(json, "name", json_string(table->name)) < 0 ||
	    json_object_set_new(json, "help", json_string(table->help)) < 0 ||
	    json_object_set_new(json, "fields", describe_fields(table)) < 0)
		return NULL;
	return take_ptr(json);
}
