/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A struct with a field of every type, its table, and small helpers: what the tests and the fuzzer
 * of tables work on.
 */
#pragma once

#include <string.h>

#include "base/table.h"

#define SAMPLE_PARTS_MAX 3

enum sample_colour { SAMPLE_RED, SAMPLE_GREEN, SAMPLE_BLUE };

struct sample_part {
	char *label;
	uint32_t weight;
	uint16_t added; /* since version 2 */
};

struct sample_box {
	bool open;
	struct sample_part best;
};

struct sample {
	bool on;
	uint8_t tiny;
	uint16_t small;
	uint32_t medium;
	uint64_t large;
	uint64_t size;
	uint32_t colour; /* enum sample_colour */
	char *text;
	char *kind;
	uint8_t key[4];
	struct sample_box box;
	uint32_t n_parts;
	struct sample_part parts[SAMPLE_PARTS_MAX];
	uint32_t hidden;
	uint32_t late; /* since version 1 */
	char *later;   /* since version 2 */
};

static const char *const sample_colours[] = {"red", "green", "blue", NULL};

static const struct field sample_part_fields[] = {
	FIELD(struct sample_part, label, FIELD_STRING, "label", "what is written on it",
	      .flags = FIELD_REQUIRED, .max = 8),
	FIELD(struct sample_part, weight, FIELD_U32, "weight", "grams", .min = 1, .max = 1000,
	      .initial = 5),
	FIELD(struct sample_part, added, FIELD_U16, "added", "came with version 2", .since = 2,
	      .initial = 22),
};
static const struct table sample_part_table =
	TABLE(struct sample_part, "part", "a part", sample_part_fields);

static const struct field sample_box_fields[] = {
	FIELD(struct sample_box, open, FIELD_BOOL, "open", "is it open"),
	FIELD(struct sample_box, best, FIELD_STRUCT, "best", "its best part",
	      .table = &sample_part_table),
};
static const struct table sample_box_table =
	TABLE(struct sample_box, "box", "a box", sample_box_fields);

static const struct field sample_fields[] = {
	FIELD(struct sample, on, FIELD_BOOL, "on", "is it on", .initial = true),
	FIELD(struct sample, tiny, FIELD_U8, "tiny", "a byte"),
	FIELD(struct sample, small, FIELD_U16, "small", "two bytes", .min = 10, .max = 20,
	      .initial = 15),
	FIELD(struct sample, medium, FIELD_U32, "medium", "four bytes"),
	FIELD(struct sample, large, FIELD_U64, "large", "eight bytes"),
	FIELD(struct sample, size, FIELD_SIZE, "size", "bytes", .min = 4096,
	      .max = UINT64_C(1) << 40, .initial = 1 << 20),
	FIELD(struct sample, colour, FIELD_ENUM, "colour", "its colour", .names = sample_colours,
	      .initial = SAMPLE_GREEN),
	FIELD(struct sample, text, FIELD_STRING, "text", "some words", .max = 16),
	FIELD(struct sample, kind, FIELD_STRING, "kind", "of which kind", .initial_text = "plain"),
	FIELD(struct sample, key, FIELD_BYTES, "key", "four bytes of a key"),
	FIELD(struct sample, box, FIELD_STRUCT, "box", "its box", .table = &sample_box_table),
	FIELD_LIST_OF(struct sample, parts, n_parts, &sample_part_table, "parts", "its parts"),
	FIELD(struct sample, hidden, FIELD_U32, "hidden", "not for people", .flags = FIELD_INTERNAL,
	      .initial = 7),
	FIELD(struct sample, late, FIELD_U32, "late", "came with version 1", .since = 1,
	      .initial = 11),
	FIELD(struct sample, later, FIELD_STRING, "later", "came with version 2", .since = 2,
	      .initial_text = "two"),
};
static const struct table sample_table =
	TABLE(struct sample, "sample", "a struct with everything", sample_fields, .version = 2);

/* A box that is there needs its best part's label. */
#define SAMPLE_BOX "\"box\": {\"best\": {\"label\": \"b\"}}"

static inline int sample_read(struct sample *sample, const char *text, struct error *err)
{
	return table_from_text(&sample_table, text, strlen(text), "sample.json", sample, err);
}
