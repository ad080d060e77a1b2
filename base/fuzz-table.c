/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzes a table that has every type of field. The same bytes are taken as JSON text, as a binary
 * stream of each version, as key=value, and as a size. What is accepted must come out again as it
 * went in.
 */
#include <assert.h>
#include <errno.h>

#include "base/test-table.h"

#define STREAM_MAX 16384

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t encode(const struct sample *sample, uint8_t *bytes)
{
	struct cursor out = cursor_writer(bytes, STREAM_MAX);
	int r = table_encode(&sample_table, sample, &out);

	assert(r == 0);
	return out.at;
}

/* JSON leaves an absent text out, so one that has an initial value or is required would not come
 * back: such a sample is not compared. */
static bool comes_back(const struct sample *sample)
{
	if (!sample->kind || !sample->later || !sample->box.best.label)
		return false;
	for (uint32_t i = 0; i < sample->n_parts; i++)
		if (!sample->parts[i].label)
			return false;
	return sample->hidden == 7;
}

static void check_json(const struct sample *sample)
{
	static uint8_t before[STREAM_MAX], after[STREAM_MAX];
	json_auto_t *json = table_to_json(&sample_table, sample);
	struct error err = ERROR_NULL;
	struct sample again;
	int r = table_init(&sample_table, &again);
	size_t size;

	assert(json && r == 0);
	r = table_from_json(&sample_table, json, &again, &err);
	assert(r == 0);
	size = encode(sample, before);
	assert(encode(&again, after) == size && memcmp(before, after, size) == 0);
	table_deinit(&sample_table, &again);
}

static void fuzz_json(const char *text, size_t size)
{
	struct error err = ERROR_NULL;
	struct sample sample;
	int r = table_init(&sample_table, &sample);

	assert(r == 0);
	r = table_from_text(&sample_table, text, size, "fuzz", &sample, &err);
	if (r == 0 && comes_back(&sample))
		check_json(&sample);
	else if (r < 0)
		assert(r == err.code && *err.text && text_is_utf8(err.text, strlen(err.text)));
	table_deinit(&sample_table, &sample);
}

static void fuzz_binary(uint16_t version, const uint8_t *data, size_t size)
{
	static uint8_t again[STREAM_MAX];
	struct cursor in = cursor_reader(data, size);
	struct sample sample;
	int r = table_init(&sample_table, &sample);

	assert(r == 0);
	r = table_decode(&sample_table, version, &sample, &in);
	assert(r == 0 || r == -EBADMSG || (r == -ENOTSUP && version > sample_table.version));
	if (r == 0 && version == sample_table.version)
		assert(encode(&sample, again) == in.at && memcmp(again, data, in.at) == 0);
	if (r == 0 && comes_back(&sample))
		check_json(&sample);
	table_deinit(&sample_table, &sample);
}

static void fuzz_text(char *text)
{
	char *value = strchr(text, '=');
	struct error err = ERROR_NULL;
	struct sample sample;
	int r = table_init(&sample_table, &sample);

	assert(r == 0);
	if (value)
		*value++ = '\0';
	r = table_set_text(&sample_table, &sample, text, value, &err);
	assert(r == err.code);
	table_deinit(&sample_table, &sample);
}

static void fuzz_size(const char *text)
{
	char printed[SIZE_TEXT_MAX];
	uint64_t size, again;

	if (size_parse(text, &size) < 0)
		return;
	size_print(size, printed);
	assert(size_parse(printed, &again) == 0 && again == size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_(freep) char *text = malloc(size + 1);

	assert(text);
	memcpy(text, data, size);
	text[size] = '\0';
	fuzz_json(text, size);
	for (uint16_t version = 0; version <= sample_table.version + 1; version++)
		fuzz_binary(version, data, size);
	fuzz_size(text);
	fuzz_text(text);
	return 0;
}
