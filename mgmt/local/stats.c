/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: a VMM's counters. Out: memory with what KSM saves, exits with the most frequent first, then
 * devices and loops. What this version does not know by name is printed all the same.
 */
#include "mgmt/local/stats.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/local.h"
#include "mgmt/local/stats-devices.h"
#include "mgmt/local/tree.h"

#define EXITS_MAX 256

struct memory_row {
	const char *key;
	const char *text;
};

static const struct memory_row memory_rows[] = {
	{"guest", "guest memory"},
	{"resident", "resident"},
	{"private-dirty", "private, written"},
	{"private-clean", "private, clean"},
	{"ksm", "in KSM pages"},
	{"ksm-zero", "KSM: zero pages"},
	{"ksm-merging", "KSM: merged away"},
	{"ksm-profit", "KSM: saved"},
	{"shared", "KSM: pages it holds"},
	{"sharing", "KSM: pages it shares"},
	{"profit", "KSM: saved"},
};

static const char *memory_text(const char *key)
{
	for (size_t i = 0; i < ARRAY_SIZE(memory_rows); i++)
		if (!strcmp(memory_rows[i].key, key))
			return memory_rows[i].text;
	return key;
}

/* KSM's profit is negative while its bookkeeping costs more than it saves. */
static void memory_print(const char *title, const json_t *memory)
{
	char size[TEXT_SIZE_MAX], label[64];
	const char *key;
	json_t *value;

	printf("%s\n", title);
	json_object_foreach((json_t *)memory, key, value)
	{
		json_int_t bytes = json_integer_value(value);

		snprintf(label, sizeof(label), "%s", memory_text(key));
		text_harmless(label);
		if (!strcmp(key, "ksm-rmap-items")) {
			printf("  %-24s%" JSON_INTEGER_FORMAT "\n", label, bytes);
			continue; /* a number of things, not of bytes */
		}
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

static bool ksm_read(const char *file, json_int_t *ret_value)
{
	char path[64], text[32];
	_cleanup_(fd_closep) int fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/sys/kernel/mm/ksm/%s", file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (n <= 0)
		return false;
	text[n] = '\0';
	*ret_value = strtoll(text, NULL, 10);
	return true;
}

void stats_add_host_ksm(json_t *counters)
{
	static const struct {
		const char *key, *file;
		bool pages;
	} files[] = {{"shared", "pages_shared", true},
		     {"sharing", "pages_sharing", true},
		     {"profit", "general_profit", false}};
	json_t *ksm = json_object();
	json_int_t value;

	for (size_t i = 0; i < ARRAY_SIZE(files); i++)
		if (ksm_read(files[i].file, &value))
			json_object_set_new(
				ksm, files[i].key,
				json_integer(files[i].pages ? value * getpagesize() : value));
	if (json_object_size(ksm))
		json_object_set(counters, STATS_HOST_KSM, ksm);
	json_decref(ksm);
}

void stats_print(const json_t *counters)
{
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)counters, key, value)
	{
		if (!strcmp(key, "memory") && json_is_object(value)) {
			memory_print("memory", value);
		} else if (!strcmp(key, STATS_HOST_KSM)) {
			memory_print("KSM on this host, all processes", value);
		} else if (!strcmp(key, "exits") && json_is_object(value)) {
			exits_print(value);
		} else if (!strcmp(key, "devices") && json_is_object(value)) {
			stats_devices_print(value);
		} else {
			json_t *one = json_pack("{s:O}", key, value);

			tree_print(stdout, one, 0);
			json_decref(one);
		}
	}
}
