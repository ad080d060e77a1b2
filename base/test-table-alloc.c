/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every allocation that a table's functions make is made to fail once, ours and jansson's alike:
 * each time the function says so, and nothing is left behind; blocks are counted here, because a
 * leak checker sees nothing of a test that criterion runs. Our own calls come here by the linker's
 * --wrap, jansson's by json_set_alloc_funcs.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>

#include "base/test-table.h"

static int countdown = -1; /* allocations until one fails; below 0: none does */
static int n_live;         /* blocks handed out here and not freed */

/* The linker gives these their names. */
void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void __real_free(void *block);
void __wrap_free(void *block);

void *__wrap_malloc(size_t size)
{
	if (countdown >= 0 && countdown-- == 0)
		return NULL;
	n_live++;
	return __real_malloc(size);
}

void __wrap_free(void *block)
{
	n_live -= block != NULL;
	__real_free(block);
}

/* What jansson is given; `malloc` and `free` are the wrapped ones here too. */
static void *take_block(size_t size)
{
	return malloc(size);
}

static void give_block(void *block)
{
	free(block);
}

static const char text[] = "{\"text\": \"a\", \"key\": \"00ff10ab\", " SAMPLE_BOX
			   ", \"parts\": [{\"label\": \"x\"}, {\"label\": \"y\"}], \"large\": "
			   "\"18446744073709551615\"}";

static void setup(void)
{
	json_set_alloc_funcs(take_block, give_block);
}

TestSuite(alloc, .init = setup);
TestSuite(leak, .init = setup);

/* Runs `work` with the first allocation failing, then the second, until none fails. `work` returns
 * -ENOMEM or 0, and leaves nothing behind. Returns how many failed. */
static int fail_each(int (*work)(void))
{
	int n = 0, before, r;

	for (;; n++) {
		before = n_live;
		countdown = n;
		r = work();
		cr_assert(eq(int, n_live, before), "allocation %d: a leak", n);
		if (countdown >= 0)
			break;
		cr_assert(eq(int, r, -ENOMEM), "allocation %d", n);
	}
	countdown = -1;
	cr_assert(eq(int, r, 0));
	return n;
}

static int init_and_deinit(void)
{
	static const struct sample zeroes;
	struct sample sample;
	int r = table_init(&sample_table, &sample);

	if (r < 0 && memcmp(&sample, &zeroes, sizeof(sample)) != 0)
		return -EINVAL;
	if (r == 0)
		table_deinit(&sample_table, &sample);
	return r;
}

Test(alloc, init)
{
	cr_assert(eq(int, fail_each(init_and_deinit), 2), "kind and later");
}

static int read_text(void)
{
	struct error err = ERROR_NULL;
	struct sample sample;
	int r = table_init(&sample_table, &sample);

	if (r < 0)
		return r;
	r = sample_read(&sample, text, &err);
	cr_assert(eq(int, r, err.code));
	table_deinit(&sample_table, &sample);
	return r;
}

Test(alloc, from_text)
{
	cr_assert(gt(int, fail_each(read_text), 20));
}

/* The same with the JSON parsed and the struct ready: only our own allocations are left. */
static json_t *parsed;

static int read_json(void)
{
	int counted = countdown, r;
	struct sample sample;

	countdown = -1;
	if (table_init(&sample_table, &sample) < 0)
		return -EINVAL;
	countdown = counted;
	r = table_from_json(&sample_table, parsed, &sample, NULL);
	table_deinit(&sample_table, &sample);
	return r;
}

Test(alloc, from_json)
{
	parsed = json_loads(text, 0, NULL);
	cr_assert(eq(int, fail_each(read_json), 4), "text and three labels");
	json_decref(parsed);
}

static struct sample filled;

static int write_json(void)
{
	json_t *json = table_to_json(&sample_table, &filled);

	json_decref(json);
	return json ? 0 : -ENOMEM;
}

Test(alloc, to_json)
{
	cr_assert(eq(int, table_init(&sample_table, &filled), 0));
	cr_assert(eq(int, sample_read(&filled, text, NULL), 0));
	cr_assert(gt(int, fail_each(write_json), 20));
	table_deinit(&sample_table, &filled);
}

static int describe(void)
{
	json_t *json = table_describe(&sample_table);

	json_decref(json);
	return json ? 0 : -ENOMEM;
}

Test(alloc, describe)
{
	cr_assert(gt(int, fail_each(describe), 100));
}

static uint8_t stream[1024];
static size_t stream_size;

static int decode(void)
{
	struct cursor in = cursor_reader(stream, stream_size);
	struct sample sample;
	int r = table_init(&sample_table, &sample);

	if (r < 0)
		return r;
	r = table_decode(&sample_table, 2, &sample, &in);
	table_deinit(&sample_table, &sample);
	return r;
}

Test(alloc, decode)
{
	struct cursor out = cursor_writer(stream, sizeof(stream));

	cr_assert(eq(int, table_init(&sample_table, &filled), 0));
	cr_assert(eq(int, sample_read(&filled, text, NULL), 0));
	cr_assert(eq(int, table_encode(&sample_table, &filled, &out), 0));
	stream_size = out.at;
	table_deinit(&sample_table, &filled);
	cr_assert(eq(int, fail_each(decode), 8), "two initial, six decoded");
}

static int set_text(void)
{
	struct sample_part part = {0};
	int r = table_set_text(&sample_part_table, &part, "label", "abc", NULL);

	table_deinit(&sample_part_table, &part);
	return r;
}

Test(alloc, set_text)
{
	cr_assert(eq(int, fail_each(set_text), 1));
}

/* Reads two texts into one struct; returns how many blocks are left after deinit. */
static int left_after(const char *first, int expected_first, const char *second,
		      int expected_second)
{
	int before = n_live;
	struct sample sample;

	cr_assert(eq(int, table_init(&sample_table, &sample), 0));
	cr_assert(eq(int, sample_read(&sample, first, NULL), expected_first));
	cr_assert(eq(int, sample_read(&sample, second, NULL), expected_second));
	table_deinit(&sample_table, &sample);
	return n_live - before;
}

Test(leak, what_is_replaced_is_freed)
{
	cr_assert(eq(int, left_after(text, 0, text, 0), 0));
}

Test(leak, what_was_half_read_is_freed)
{
	static const char half[] =
		"{\"text\": \"a\", " SAMPLE_BOX
		", \"parts\": [{\"label\": \"x\"}, {\"label\": \"y\", \"weight\": 0}]}";

	cr_assert(eq(int, left_after(half, -EINVAL, text, 0), 0));
	cr_assert(eq(int, left_after(text, 0, half, -EINVAL), 0));
}

Test(leak, a_text_set_twice_is_freed)
{
	int before = n_live;
	struct sample_part part = {0};

	cr_assert(eq(int, table_set_text(&sample_part_table, &part, "label", "abc", NULL), 0));
	cr_assert(eq(int, table_set_text(&sample_part_table, &part, "label", "def", NULL), 0));
	table_deinit(&sample_part_table, &part);
	cr_assert(eq(int, n_live, before));
}

Test(leak, what_is_decoded_over_is_freed)
{
	int before = n_live;
	struct cursor out = cursor_writer(stream, sizeof(stream));

	cr_assert(eq(int, table_init(&sample_table, &filled), 0));
	cr_assert(eq(int, sample_read(&filled, text, NULL), 0));
	cr_assert(eq(int, table_encode(&sample_table, &filled, &out), 0));
	for (size_t size = 0; size <= out.at; size++) {
		struct cursor in = cursor_reader(stream, size);
		cr_assert(eq(int, table_decode(&sample_table, 2, &filled, &in),
			     size == out.at ? 0 : -EBADMSG));
	}
	table_deinit(&sample_table, &filled);
	cr_assert(eq(int, n_live, before));
}
