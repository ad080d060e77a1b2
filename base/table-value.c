/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One value from outside in, checked against what its field allows, stored or refused with a
 * sentence that names the key, the value and what would have been right.
 */
#include "base/table-value.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define PATH_TEXT_MAX   160
#define STRING_MAX      4096
#define QUOTE_MAX       64 /* bytes of a foreign value that a sentence repeats */
#define KEY_COMPARE_MAX 32

/* Appends to a text that may be full already. */
static void __printf(3, 4) text_append(char *text, size_t size, const char *format, ...)
{
	size_t used = strlen(text);
	va_list args;

	va_start(args, format);
	vsnprintf(text + used, size - used, format, args);
	va_end(args);
}

static void path_print(const struct table_path *path, char text[PATH_TEXT_MAX])
{
	if (path->up)
		path_print(path->up, text);
	if (path->key)
		text_append(text, PATH_TEXT_MAX, "%s%.*s", path->up ? "." : "", QUOTE_MAX,
			    path->key);
	else
		text_append(text, PATH_TEXT_MAX, "[%u]", path->index);
}

int path_error(const struct table_path *path, struct error *err, const char *format, ...)
{
	char where[PATH_TEXT_MAX] = "", what[sizeof(err->text)];
	va_list args;

	if (!err)
		return -EINVAL;
	path_print(path, where);
	va_start(args, format);
	vsnprintf(what, sizeof(what), format, args);
	va_end(args);
	return error_set(err, -EINVAL, "%s: %s", where, what);
}

uint64_t field_greatest(const struct field *field)
{
	uint64_t n = 0;

	if (field->type == FIELD_ENUM) {
		while (field->names[n])
			n++;
		return n - 1;
	}
	if (field->type == FIELD_BOOL)
		return 1;
	return field->max ? field->max : UINT64_MAX >> (64 - 8 * field_width(field));
}

uint64_t field_text_max(const struct field *field)
{
	return field->max ? field->max : STRING_MAX;
}

static void number_print(const struct field *field, uint64_t value, char text[SIZE_TEXT_MAX])
{
	if (field->type == FIELD_SIZE)
		size_print(value, text);
	else
		snprintf(text, SIZE_TEXT_MAX, "%llu", (unsigned long long)value);
}

int field_too_small(const struct field *field, const char *is, const struct table_path *path,
		    struct error *err)
{
	char limit[SIZE_TEXT_MAX];

	number_print(field, field->min, limit);
	return path_error(path, err, "%s is too small, at least %s", is, limit);
}

int field_read_number(const struct field *field, void *object, uint64_t value,
		      const struct table_path *path, struct error *err)
{
	char is[SIZE_TEXT_MAX], limit[SIZE_TEXT_MAX];

	number_print(field, value, is);
	if (value < field->min)
		return field_too_small(field, is, path, err);
	number_print(field, field_greatest(field), limit);
	if (value > field_greatest(field))
		return path_error(path, err, "%s is too large, at most %s", is, limit);
	field_store(field, object, value);
	return 0;
}

static int digits_parse(const char *text, const char **ret_end, uint64_t *ret_value)
{
	uint64_t value = 0;
	const char *at;

	for (at = text; *at >= '0' && *at <= '9'; at++)
		if (__builtin_mul_overflow(value, 10, &value) ||
		    __builtin_add_overflow(value, (uint64_t)(*at - '0'), &value))
			return -ERANGE;
	if (at == text)
		return -EINVAL;
	*ret_end = at;
	*ret_value = value;
	return 0;
}

static const char size_units[] = "KMGTPE";

int size_parse(const char *text, uint64_t *ret_size)
{
	const char *end, *unit;
	uint64_t size;
	unsigned int shift;
	int r;

	r = digits_parse(text, &end, &size);
	if (r < 0)
		return r;
	if (*end) {
		unit = strchr(size_units, *end & ~0x20); /* either case */
		if (!unit || !*unit || end[1])
			return -EINVAL;
		shift = 10 * (unsigned int)(unit - size_units + 1);
		if (size > UINT64_MAX >> shift)
			return -ERANGE;
		size <<= shift;
	}
	*ret_size = size;
	return 0;
}

void size_print(uint64_t size, char text[SIZE_TEXT_MAX])
{
	static const char *const units[] = {"", "K", "M", "G", "T", "P", "E"};
	unsigned int unit = 0;

	while (size && size % 1024 == 0) {
		size /= 1024;
		unit++;
	}
	snprintf(text, SIZE_TEXT_MAX, "%llu%s", (unsigned long long)size, units[unit]);
}

int field_read_number_text(const struct field *field, void *object, const char *text,
			   const struct table_path *path, struct error *err)
{
	const char *end = "";
	uint64_t value;
	int r;

	r = field->type == FIELD_SIZE ? size_parse(text, &value) : digits_parse(text, &end, &value);
	if (r == 0 && !*end)
		return field_read_number(field, object, value, path, err);
	if (r == -ERANGE)
		return path_error(path, err, "\"%.*s\" is too large", QUOTE_MAX, text);
	if (field->type == FIELD_SIZE)
		return path_error(path, err, "\"%.*s\" is not a size such as 512M or 4G", QUOTE_MAX,
				  text);
	return path_error(path, err, "\"%.*s\" is not a whole number", QUOTE_MAX, text);
}

int field_read_enum(const struct field *field, void *object, const char *text,
		    const struct table_path *path, struct error *err)
{
	char known[200] = "";

	for (uint32_t i = 0; field->names[i]; i++) {
		if (strcmp(field->names[i], text) == 0) {
			field_store(field, object, i);
			return 0;
		}
		text_append(known, sizeof(known), "%s%s", i ? ", " : "", field->names[i]);
	}
	return path_error(path, err, "\"%.*s\" is not one of: %s", QUOTE_MAX, text, known);
}

int field_read_string(const struct field *field, void *object, const char *text, size_t length,
		      const struct table_path *path, struct error *err)
{
	int r;

	if (length > field_text_max(field))
		return path_error(path, err, "a text of %zu bytes is too long, at most %llu",
				  length, (unsigned long long)field_text_max(field));
	if (memchr(text, '\0', length) || !text_is_utf8(text, length))
		return path_error(path, err, "the text is not UTF-8");
	r = field_set_string(field, object, text, length);
	return r < 0 ? error_set(err, r, "out of memory") : 0;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int field_read_bytes(const struct field *field, void *object, const char *hex, size_t length,
		     const struct table_path *path, struct error *err)
{
	uint8_t *place = field_place(field, object);

	if (length != 2 * (size_t)field->size)
		return path_error(path, err, "%zu hexadecimal digits, expected %zu", length,
				  2 * (size_t)field->size);
	for (size_t i = 0; i < length; i++)
		if (hex_digit(hex[i]) < 0)
			return path_error(
				path, err,
				"expected hexadecimal digits in lower case, found \"%.*s\"",
				QUOTE_MAX, hex);
	for (size_t i = 0; i < field->size; i++)
		place[i] = (uint8_t)((unsigned int)hex_digit(hex[2 * i]) << 4 |
				     (unsigned int)hex_digit(hex[2 * i + 1]));
	return 0;
}

const struct field *table_find(const struct table *table, const char *key)
{
	for (uint32_t i = 0; i < table->n_fields; i++)
		if (!(table->fields[i].flags & FIELD_INTERNAL) &&
		    strcmp(table->fields[i].name, key) == 0)
			return &table->fields[i];
	return NULL;
}

/* Letters to insert, drop or change to get from `a` to `b`. */
static uint32_t key_distance(const char *a, const char *b)
{
	uint32_t row[KEY_COMPARE_MAX + 1], n_b = (uint32_t)strlen(b);

	if (strlen(a) > KEY_COMPARE_MAX || n_b > KEY_COMPARE_MAX)
		return UINT32_MAX;
	for (uint32_t j = 0; j <= n_b; j++)
		row[j] = j;
	for (uint32_t i = 0; a[i]; i++) {
		uint32_t diagonal = row[0];
		row[0] = i + 1;
		for (uint32_t j = 1; j <= n_b; j++) {
			uint32_t changed = diagonal + (a[i] != b[j - 1]);
			uint32_t longer = MIN(row[j], row[j - 1]) + 1;
			diagonal = row[j];
			row[j] = MIN(changed, longer);
		}
	}
	return row[n_b];
}

/* The key that was probably meant: fewer than half its letters are wrong, and two at most. */
static const char *nearest_key(const struct table *table, const char *key)
{
	const char *nearest = NULL;
	uint32_t least = 3;

	for (uint32_t i = 0; i < table->n_fields; i++) {
		const struct field *field = &table->fields[i];
		uint32_t distance = key_distance(key, field->name);
		if (field->flags & FIELD_INTERNAL || distance >= least ||
		    2 * distance >= strlen(field->name))
			continue;
		least = distance;
		nearest = field->name;
	}
	return nearest;
}

int table_unknown_key(const struct table *table, const char *key, const struct table_path *path,
		      struct error *err)
{
	const char *nearest = nearest_key(table, key);
	char known[256] = "";

	if (nearest)
		return path_error(path, err, "unknown key, did you mean \"%s\"?", nearest);
	for (uint32_t i = 0; i < table->n_fields; i++)
		if (!(table->fields[i].flags & FIELD_INTERNAL))
			text_append(known, sizeof(known), "%s%s", *known ? ", " : "",
				    table->fields[i].name);
	if (!table->n_fields)
		return path_error(path, err, "unknown key of %s, which has none", table->name);
	return path_error(path, err, "unknown key of %s, known are: %s", table->name, known);
}
