/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The binary form, out and in. What is decoded may come from a hostile peer: every number, count
 * and length is checked before it is stored or allocated for, and one struct has one encoding only,
 * so that what decodes encodes to the same bytes.
 */
#include <errno.h>
#include <string.h>

#include "base/table-value.h"

#define STRING_ABSENT UINT32_MAX

static void put_number(const struct field *field, uint64_t value, struct cursor *out)
{
	switch (field_width(field)) {
	case 1:
		cursor_put_u8(out, (uint8_t)value);
		break;
	case 2:
		cursor_put_u16(out, (uint16_t)value);
		break;
	case 4:
		cursor_put_u32(out, (uint32_t)value);
		break;
	default:
		cursor_put_u64(out, value);
	}
}

static void put_string(const char *text, struct cursor *out)
{
	size_t length = text ? strlen(text) : 0;

	cursor_put_u32(out, text ? (uint32_t)length : STRING_ABSENT);
	cursor_put_bytes(out, text, length);
}

static void put_table(const struct table *table, const void *object, struct cursor *out);

static void put_field(const struct field *field, const void *object, struct cursor *out)
{
	const char *place = field_place_const(field, object);
	uint32_t n;

	switch (field->type) {
	case FIELD_STRING:
		put_string(*(char *const *)(const void *)place, out);
		break;
	case FIELD_BYTES:
		cursor_put_bytes(out, place, field->size);
		break;
	case FIELD_STRUCT:
		put_table(field->table, place, out);
		break;
	case FIELD_LIST:
		n = field_list_count(field, object);
		cursor_put_u32(out, n);
		for (uint32_t i = 0; i < n; i++)
			put_table(field->table, place + (size_t)i * field->size, out);
		break;
	default:
		put_number(field, field_load(field, object), out);
	}
}

static void put_table(const struct table *table, const void *object, struct cursor *out)
{
	for (uint32_t i = 0; i < table->n_fields; i++)
		put_field(&table->fields[i], object, out);
}

int table_encode(const struct table *table, const void *object, struct cursor *out)
{
	put_table(table, object, out);
	return cursor_status(out);
}

static uint64_t get_number(const struct field *field, struct cursor *in)
{
	switch (field_width(field)) {
	case 1:
		return cursor_get_u8(in);
	case 2:
		return cursor_get_u16(in);
	case 4:
		return cursor_get_u32(in);
	default:
		return cursor_get_u64(in);
	}
}

static int decode_number(const struct field *field, void *object, struct cursor *in)
{
	uint64_t value = get_number(field, in);

	if (in->failed || value < field->min || value > field_greatest(field))
		return -EBADMSG;
	field_store(field, object, value);
	return 0;
}

static int decode_string(const struct field *field, void *object, struct cursor *in)
{
	uint32_t length = cursor_get_u32(in);
	const char *text;

	if (!in->failed && length == STRING_ABSENT)
		return field->flags & FIELD_REQUIRED ? -EBADMSG
						     : field_set_string(field, object, NULL, 0);
	if (in->failed || length > field_text_max(field))
		return -EBADMSG;
	text = cursor_get_view(in, length);
	if (!text || memchr(text, '\0', length) || !text_is_utf8(text, length))
		return -EBADMSG;
	return field_set_string(field, object, text, length);
}

static int decode_bytes(const struct field *field, void *object, struct cursor *in)
{
	const void *bytes = cursor_get_view(in, field->size);

	if (!bytes)
		return -EBADMSG;
	memcpy(field_place(field, object), bytes, field->size);
	return 0;
}

static int decode_table(const struct table *table, uint16_t version, void *object,
			struct cursor *in);

static int decode_list(const struct field *field, uint16_t version, void *object, struct cursor *in)
{
	char *place = field_place(field, object);
	uint32_t n = cursor_get_u32(in);
	int r = 0;

	if (in->failed || n > field->count)
		return -EBADMSG;
	for (uint32_t i = 0; i < field_list_count(field, object); i++)
		table_deinit(field->table, place + (size_t)i * field->size);
	*field_list_n(field, object) = 0;
	for (uint32_t i = 0; i < n && r == 0; i++, place += field->size) {
		r = table_init(field->table, place);
		if (r < 0)
			return r;
		*field_list_n(field, object) = i + 1; /* from here on the list owns it */
		r = decode_table(field->table, version, place, in);
	}
	return r;
}

static int decode_field(const struct field *field, uint16_t version, void *object,
			struct cursor *in)
{
	switch (field->type) {
	case FIELD_STRING:
		return decode_string(field, object, in);
	case FIELD_BYTES:
		return decode_bytes(field, object, in);
	case FIELD_STRUCT:
		return decode_table(field->table, version, field_place(field, object), in);
	case FIELD_LIST:
		return decode_list(field, version, object, in);
	default:
		return decode_number(field, object, in);
	}
}

static int decode_table(const struct table *table, uint16_t version, void *object,
			struct cursor *in)
{
	int r = 0;

	for (uint32_t i = 0; i < table->n_fields && r == 0; i++)
		if (table->fields[i].since <= version)
			r = decode_field(&table->fields[i], version, object, in);
	return r;
}

int table_decode(const struct table *table, uint16_t version, void *object, struct cursor *in)
{
	if (version > table->version)
		return -ENOTSUP;
	return decode_table(table, version, object, in);
}
