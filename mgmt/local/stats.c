/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: a VMM's counters. Out: memory with what KSM saves, exits with the most frequent first, then
 * devices and loops. What this version does not know by name is printed all the same.
 */
#include "mgmt/local/stats.h"

#include <stdio.h>
#include <string.h>

#include "mgmt/local/local.h"
#include "mgmt/local/tree.h"

#define EXITS_MAX 256

struct memory_row {
	const char *key;
	const char *text;
};

static const struct memory_row memory_rows[] = {
	{"guest", "guest memory"},
	{"private", "private to this VMM"},
	{"ksm-shared", "KSM: pages it holds"},
	{"ksm-sharing", "KSM: pages it shares"},
	{"ksm-profit", "KSM: saved"},
};

static const char *memory_text(const char *key)
{
	for (size_t i = 0; i < ARRAY_SIZE(memory_rows); i++)
		if (!strcmp(memory_rows[i].key, key))
			return memory_rows[i].text;
	return key;
}

/* KSM's profit is negative while its bookkeeping costs more than it saves. */
static void memory_print(const json_t *memory)
{
	char size[TEXT_SIZE_MAX], label[64];
	const char *key;
	json_t *value;

	printf("memory\n");
	json_object_foreach((json_t *)memory, key, value)
	{
		json_int_t bytes = json_integer_value(value);

		snprintf(label, sizeof(label), "%s", memory_text(key));
		text_harmless(label);
		text_size(bytes < 0 ? -(uint64_t)bytes : (uint64_t)bytes, size);
		printf("  %-24s%s%s\n", label, bytes < 0 ? "-" : "", size);
	}
}

struct exit_count {
	const char *reason; /* borrowed from the JSON */
	json_int_t count;
};

static int exit_compare(const void *a, const void *b)
{
	json_int_t left = ((const struct exit_count *)a)->count;
	json_int_t right = ((const struct exit_count *)b)->count;

	return left < right ? 1 : left > right ? -1 : 0;
}

static void exits_print(const json_t *exits)
{
	struct exit_count list[EXITS_MAX];
	json_int_t total = 0;
	json_t *value;
	const char *key;
	size_t n = 0;

	json_object_foreach((json_t *)exits, key, value)
	{
		if (n == EXITS_MAX)
			break;
		list[n++] = (struct exit_count){key, json_integer_value(value)};
		total += json_integer_value(value);
	}
	qsort(list, n, sizeof(list[0]), exit_compare);
	printf("exits\n  %-24s%12" JSON_INTEGER_FORMAT "\n", "all", total);
	for (size_t i = 0; i < n; i++) {
		char label[64];

		snprintf(label, sizeof(label), "%s", list[i].reason);
		text_harmless(label);
		printf("  %-24s%12" JSON_INTEGER_FORMAT " %5.1f %%\n", label, list[i].count,
		       total > 0 ? 100.0 * list[i].count / total : 0.0);
	}
}

void stats_print(const json_t *counters)
{
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)counters, key, value)
	{
		if (!strcmp(key, "memory") && json_is_object(value)) {
			memory_print(value);
		} else if (!strcmp(key, "exits") && json_is_object(value)) {
			exits_print(value);
		} else {
			json_t *one = json_pack("{s:O}", key, value);

			tree_print(stdout, one, 0);
			json_decref(one);
		}
	}
}
