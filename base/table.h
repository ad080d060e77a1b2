/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A table describes a struct once; everything that reads or writes the struct from outside walks
 * the table: JSON in and out with validation, the binary state stream, printing, help,
 * documentation.
 *
 * JSON in is strict: an unknown key, a wrong type, a value out of range or a missing required key
 * is one sentence with the path of the key: `disks[1].queues: 0 is too small, at least 1`. In the
 * binary form a struct is its fields in table order: fixed-width little-endian numbers, an array
 * preceded by its u32 count, text by its u32 length (UINT32_MAX: absent). Fields are only ever
 * appended, and each says in which version of the table it came (`since`); a decoder given an older
 * version leaves the newer fields at their initial values. The stream's version is that of its
 * outermost table: `since` inside nested tables counts in it too.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/cursor.h"
#include "base/error.h"
#include "base/macros.h"

enum field_type {
	FIELD_BOOL, /* bool */
	FIELD_U8,   /* uint8_t … uint64_t; JSON integer, above 2^63-1 a decimal string */
	FIELD_U16,
	FIELD_U32,
	FIELD_U64,
	FIELD_SIZE,   /* uint64_t bytes; JSON integer, or text such as "512M", "4G" (powers of 1024)
		       */
	FIELD_ENUM,   /* a uint32_t index into `names` (NULL-terminated); JSON text; binary u32 */
	FIELD_STRING, /* char *, owned by the struct, NULL when absent; `max` bytes at most (0:
			 4096) */
	FIELD_BYTES,  /* uint8_t[size]; JSON lower-case hex text; binary as it is */
	FIELD_STRUCT, /* embedded struct described by `table` */
	FIELD_LIST, /* `table` elements embedded in an array of `count` places, u32 number in use at
		       `n_offset` */
};

enum field_flags {
	FIELD_REQUIRED = 1 << 0, /* JSON in must have it, if it has the object around it */
	FIELD_INTERNAL =
		1 << 1, /* neither read from nor written to JSON; only in the binary form */
};

struct table;

struct field {
	const char *name; /* JSON key, kebab-case */
	const char *help; /* a sentence without its full stop */
	enum field_type type;
	uint32_t flags;
	uint32_t offset;
	uint32_t size;     /* of the member: sizeof (for LIST: of one element) */
	uint32_t count;    /* LIST: places in the array */
	uint32_t n_offset; /* LIST: offset of the uint32_t number in use */
	uint64_t min;      /* numbers: least value */
	uint64_t max;      /* numbers: greatest value, 0 for what the type holds; STRING: bytes */
	uint64_t initial;  /* numbers, BOOL, ENUM: value before anything is read */
	const char *initial_text;  /* STRING: likewise, NULL for absent */
	const char *const *names;  /* ENUM */
	const struct table *table; /* STRUCT, LIST */
	uint16_t since;            /* table version that brought it, 0 for the first */
};

struct table {
	const char *name; /* what a person calls it: "vm", "disk" */
	const char *help;
	uint16_t version; /* of the binary form */
	uint32_t size;    /* sizeof the struct */
	const struct field *fields;
	uint32_t n_fields;
};

/* Designated starts of a field: FIELD(struct vm_disk, queues, FIELD_U32, "queues", "…", .min = 1)
 */
#define FIELD(s, member, field_type, key, text, ...)                                         \
	{                                                                                    \
		.name = (key), .help = (text), .type = (field_type),                         \
		.offset = offsetof(s, member), .size = sizeof(((s *)0)->member), __VA_ARGS__ \
	}
#define FIELD_LIST_OF(s, member, n_member, element_table, key, text, ...)                         \
	{                                                                                         \
		.name = (key), .help = (text), .type = FIELD_LIST, .offset = offsetof(s, member), \
		.size = sizeof(((s *)0)->member[0]), .count = ARRAY_SIZE(((s *)0)->member),       \
		.n_offset = offsetof(s, n_member), .table = (element_table), __VA_ARGS__          \
	}
#define TABLE(s, title, text, field_array, ...)                                              \
	{                                                                                    \
		.name = (title), .help = (text), .size = sizeof(s), .fields = (field_array), \
		.n_fields = ARRAY_SIZE(field_array), __VA_ARGS__                             \
	}

/* Zeroes the struct and gives each field its initial value. -ENOMEM only. */
int table_init(const struct table *table, void *object) __must_check;

/* Frees the strings the struct owns and zeroes it. Works on a zeroed or half-filled struct. */
void table_deinit(const struct table *table, void *object);

/*
 * Reads `json` into a struct already initialised; keys that are absent keep their values, a list
 * replaces the list. On failure the struct may be half-read (deinit it), and `err` holds the
 * sentence.
 */
int table_from_json(const struct table *table, const json_t *json, void *object,
		    struct error *err) __must_check;

/* Parses text (strict, duplicate keys refused, depth limited) and reads it as above. `what` names
 * the source in errors. */
int table_from_text(const struct table *table, const char *text, size_t size, const char *what,
		    void *object, struct error *err) __must_check;

/* A new object, NULL when out of memory. Absent strings and empty lists are left out. */
json_t *table_to_json(const struct table *table, const void *object) __must_check;

/* Describes the table itself: fields, types, ranges, help; for `describe` and documentation. */
json_t *table_describe(const struct table *table) __must_check;

/* The binary form. Decoding checks ranges and counts as JSON does; a bad byte is -EBADMSG, a newer
 * version -ENOTSUP. */
int table_encode(const struct table *table, const void *object, struct cursor *out) __must_check;
int table_decode(const struct table *table, uint16_t version, void *object,
		 struct cursor *in) __must_check;

/* Sets one field from command-line text ("on", "4G", "virtio"), for `--memory 4G,merge=on`. Key
 * without value sets a BOOL. */
int table_set_text(const struct table *table, void *object, const char *key, const char *value,
		   struct error *err) __must_check;

/* Parses "64M" and friends: digits, then nothing or one of K M G T P E. -EINVAL, -ERANGE. */
int size_parse(const char *text, uint64_t *ret_size) __must_check;

/* The shortest exact form that size_parse reads: "512M". */
#define SIZE_TEXT_MAX 24
void size_print(uint64_t size, char text[SIZE_TEXT_MAX]);
