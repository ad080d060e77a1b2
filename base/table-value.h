/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the readers of tables share: one value, checked against its field, put in its place; and the
 * path of the key, kept on the stack of whoever walks, printed only when something is wrong.
 */
#pragma once

#include "base/table.h"

struct table_path {
	const struct table_path *up; /* borrowed, NULL at the outermost */
	const char *key;             /* borrowed, NULL: an element, `index` */
	uint32_t index;
};

/* Writes `path: sentence`, returns -EINVAL. */
int path_error(const struct table_path *path, struct error *err, const char *format, ...)
	__printf(3, 4);

static inline void *field_place(const struct field *field, void *object)
{
	return (char *)object + field->offset;
}

static inline const void *field_place_const(const struct field *field, const void *object)
{
	return (const char *)object + field->offset;
}

/* Number of elements in use of a LIST. */
uint32_t *field_list_n(const struct field *field, void *object);
uint32_t field_list_count(const struct field *field, const void *object);

/* BOOL, numbers, SIZE and ENUM are numbers of some width. */
bool field_is_number(const struct field *field);
size_t field_width(const struct field *field);
uint64_t field_load(const struct field *field, const void *object);
void field_store(const struct field *field, void *object, uint64_t value);
uint64_t field_greatest(const struct field *field);
uint64_t field_text_max(const struct field *field);

/* Replaces an owned string; `text` NULL empties it. -ENOMEM. */
int field_set_string(const struct field *field, void *object, const char *text,
		     size_t length) __must_check;

/* These check first; the sentence opens with the path. */
int field_read_number(const struct field *field, void *object, uint64_t value,
		      const struct table_path *path, struct error *err) __must_check;
int field_too_small(const struct field *field, const char *is, const struct table_path *path,
		    struct error *err);
/* Digits; for SIZE with a unit. */
int field_read_number_text(const struct field *field, void *object, const char *text,
			   const struct table_path *path, struct error *err) __must_check;
int field_read_enum(const struct field *field, void *object, const char *text,
		    const struct table_path *path, struct error *err) __must_check;
int field_read_string(const struct field *field, void *object, const char *text, size_t length,
		      const struct table_path *path, struct error *err) __must_check;
int field_read_bytes(const struct field *field, void *object, const char *hex, size_t length,
		     const struct table_path *path, struct error *err) __must_check;

/* The field of that key, NULL if none; internal fields have no key. */
const struct field *table_find(const struct table *table, const char *key);
int table_unknown_key(const struct table *table, const char *key, const struct table_path *path,
		      struct error *err);
