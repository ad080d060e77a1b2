/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of a struct that a table describes: initial values in, owned strings out; and how a
 * field's bytes are loaded and stored. Nothing here judges a value.
 */
#include "base/table.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/table-value.h"

bool field_is_number(const struct field *field)
{
	return field->type <= FIELD_ENUM;
}

size_t field_width(const struct field *field)
{
	static const uint8_t widths[] = {
		[FIELD_BOOL] = sizeof(bool),
		[FIELD_U8] = 1,
		[FIELD_U16] = 2,
		[FIELD_U32] = 4,
		[FIELD_U64] = 8,
		[FIELD_SIZE] = 8,
		[FIELD_ENUM] = 4,
	};

	assert(field_is_number(field) && field->size == widths[field->type]);
	return widths[field->type];
}

uint64_t field_load(const struct field *field, const void *object)
{
	const void *place = field_place_const(field, object);

	switch (field_width(field)) {
	case 1:
		return *(const uint8_t *)place;
	case 2:
		return *(const uint16_t *)place;
	case 4:
		return *(const uint32_t *)place;
	default:
		return *(const uint64_t *)place;
	}
}

void field_store(const struct field *field, void *object, uint64_t value)
{
	void *place = field_place(field, object);

	switch (field_width(field)) {
	case 1:
		*(uint8_t *)place = (uint8_t)value;
		break;
	case 2:
		*(uint16_t *)place = (uint16_t)value;
		break;
	case 4:
		*(uint32_t *)place = (uint32_t)value;
		break;
	default:
		*(uint64_t *)place = value;
	}
}

uint32_t *field_list_n(const struct field *field, void *object)
{
	return (uint32_t *)(void *)((char *)object + field->n_offset);
}

uint32_t field_list_count(const struct field *field, const void *object)
{
	uint32_t n = *(const uint32_t *)(const void *)((const char *)object + field->n_offset);

	assert(n <= field->count);
	return n;
}

int field_set_string(const struct field *field, void *object, const char *text, size_t length)
{
	char **place = field_place(field, object);
	char *copy = NULL;

	if (text) {
		copy = malloc(length + 1);
		if (!copy)
			return -ENOMEM;
		memcpy(copy, text, length);
		copy[length] = '\0';
	}
	free(*place);
	*place = copy;
	return 0;
}

static int field_init(const struct field *field, void *object)
{
	if (field_is_number(field))
		field_store(field, object, field->initial);
	else if (field->type == FIELD_STRING && field->initial_text)
		return field_set_string(field, object, field->initial_text,
					strlen(field->initial_text));
	else if (field->type == FIELD_STRUCT)
		return table_init(field->table, field_place(field, object));
	return 0;
}

int table_init(const struct table *table, void *object)
{
	int r = 0;

	memset(object, 0, table->size);
	for (uint32_t i = 0; i < table->n_fields && r == 0; i++)
		r = field_init(&table->fields[i], object);
	if (r < 0)
		table_deinit(table, object);
	return r;
}

static void field_deinit(const struct field *field, void *object)
{
	char *place = field_place(field, object);

	if (field->type == FIELD_STRING)
		free(*(char **)(void *)place);
	else if (field->type == FIELD_STRUCT)
		table_deinit(field->table, place);
	else if (field->type == FIELD_LIST)
		for (uint32_t i = 0; i < field_list_count(field, object); i++)
			table_deinit(field->table, place + (size_t)i * field->size);
}

void table_deinit(const struct table *table, void *object)
{
	for (uint32_t i = 0; i < table->n_fields; i++)
		field_deinit(&table->fields[i], object);
	memset(object, 0, table->size);
}
