/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: the counters of each device. Out: for a disk, a network card and the balloon what they come
 * to, with units; for any other device, and for what is not known by name, the counters as they
 * are. What counts failures is printed once there are some.
 */
#include "mgmt/local/stats-devices.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "mgmt/local/local.h"
#include "mgmt/local/tree.h"

#define LABEL_MAX 64
#define BOUND_MAX 32

static json_int_t number(const json_t *device, const char *key)
{
	return json_integer_value(json_object_get(device, key));
}

static bool is_listed(const char *const *list, const char *key)
{
	for (; *list; list++)
		if (!strcmp(*list, key))
			return true;
	return false;
}

static void label_print(const char *label)
{
	char text[LABEL_MAX];

	snprintf(text, sizeof(text), "%s", label);
	text_harmless(text);
	printf("    %-20s", text);
}

static void size_line(const char *label, json_int_t bytes)
{
	char size[TEXT_SIZE_MAX];

	label_print(label);
	printf("%s\n", text_size(MAX(bytes, 0), size));
}

/* The rest, as it is; zeroes say nothing. */
static void others_print(const json_t *device, const char *const *known)
{
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)device, key, value)
	{
		if (is_listed(known, key) || (json_is_integer(value) && !json_integer_value(value)))
			continue;
		if (json_is_integer(value)) {
			label_print(key);
			printf("%" JSON_INTEGER_FORMAT "\n", json_integer_value(value));
		} else {
			json_t *one = json_pack("{s:O}", key, value);

			tree_print(stdout, one, 4);
			json_decref(one);
		}
	}
}

static void direction_print(const char *label, json_int_t frames, json_int_t bytes,
			    json_int_t calls)
{
	char size[TEXT_SIZE_MAX];

	label_print(label);
	printf("%" JSON_INTEGER_FORMAT " frames, %s", frames, text_size(MAX(bytes, 0), size));
	if (frames > 0 && calls > 0)
		printf(", %.1f a system call", (double)frames / calls);
	putchar('\n');
}

static void net_print(const json_t *net)
{
	static const char *const known[] = {"rx-frames", "rx-bytes", "rx-calls", "tx-frames",
					    "tx-bytes",  "tx-calls", "vhost",    "link",
					    "address",   NULL};
	const char *address = json_string_value(json_object_get(net, "address"));
	char text[LABEL_MAX];

	snprintf(text, sizeof(text), "%s%s", address ? ", guest at " : "", address ? address : "");
	text_harmless(text);
	printf("%s%s%s\n", json_is_false(json_object_get(net, "link")) ? "unplugged" : "plugged in",
	       text, json_is_true(json_object_get(net, "vhost")) ? ", by vhost-net" : "");
	direction_print("to the guest", number(net, "rx-frames"), number(net, "rx-bytes"),
			number(net, "rx-calls"));
	direction_print("from the guest", number(net, "tx-frames"), number(net, "tx-bytes"),
			number(net, "tx-calls"));
	others_print(net, known);
}

/* What the guest last said of its memory; the rest of it are numbers of events. */
static void statistics_print(const json_t *statistics)
{
	static const struct {
		const char *key, *label;
	} sizes[] = {
		{"total", "guest: in all"},       {"available", "guest: available"},
		{"free", "guest: free"},          {"caches", "guest: caches"},
		{"swap-in", "guest: swapped in"}, {"swap-out", "guest: swapped out"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
		if (json_is_integer(json_object_get(statistics, sizes[i].key)))
			size_line(sizes[i].label, number(statistics, sizes[i].key));
}

static void balloon_print(const json_t *balloon)
{
	static const char *const known[] = {"target",   "actual",     "discarded",  "given",
					    "reported", "taken-back", "statistics", NULL};
	char actual[TEXT_SIZE_MAX], target[TEXT_SIZE_MAX];

	printf("%s given up, %s asked for\n", text_size(MAX(number(balloon, "actual"), 0), actual),
	       text_size(MAX(number(balloon, "target"), 0), target));
	size_line("back to the host", number(balloon, "discarded"));
	size_line("given by number", number(balloon, "given"));
	size_line("reported free", number(balloon, "reported"));
	size_line("used again", number(balloon, "taken-back"));
	others_print(balloon, known);
	statistics_print(json_object_get(balloon, "statistics"));
}

/* Bucket i ends at 2^i microseconds. */
static const char *bucket_text(size_t i, char text[BOUND_MAX])
{
	uint64_t us = UINT64_C(1) << MIN(i, (size_t)62);

	if (us < 1000)
		snprintf(text, BOUND_MAX, "%llu us", (unsigned long long)us);
	else if (us < 1000000)
		snprintf(text, BOUND_MAX, "%.3g ms", (double)us / 1000);
	else
		snprintf(text, BOUND_MAX, "%.3g s", (double)us / 1000000);
	return text;
}

/* The bucket that ends with `share` of a thousand of all. */
static size_t bucket_of(const json_t *counts, json_int_t all, json_int_t share)
{
	json_int_t sum = 0;
	size_t i = 0;

	for (; i + 1 < json_array_size(counts); i++) {
		sum += json_integer_value(json_array_get(counts, i));
		if (sum >= all / 1000 * share + all % 1000 * share / 1000)
			break;
	}
	return i;
}

static void latency_print(const json_t *counts)
{
	char median[BOUND_MAX], worst[BOUND_MAX];
	json_int_t all = 0;

	for (size_t i = 0; i < json_array_size(counts); i++) {
		json_int_t n = json_integer_value(json_array_get(counts, i));

		/* What is not a count, or adds up to none. */
		if (n < 0 || __builtin_add_overflow(all, n, &all))
			return;
	}
	if (all > 0)
		printf("; half below %s, 99 %% below %s",
		       bucket_text(bucket_of(counts, all, 500), median),
		       bucket_text(bucket_of(counts, all, 990), worst));
}

static void operations_print(const json_t *disk, const char *label, const char *n_key,
			     const char *bytes_key, const char *latency_key)
{
	char size[TEXT_SIZE_MAX];

	label_print(label);
	printf("%" JSON_INTEGER_FORMAT, number(disk, n_key));
	if (bytes_key)
		printf(", %s", text_size(MAX(number(disk, bytes_key), 0), size));
	latency_print(json_object_get(disk, latency_key));
	putchar('\n');
}

static void disk_print(const json_t *disk)
{
	static const char *const known[] = {"reads",   "read-bytes",    "read-latency",
					    "writes",  "written-bytes", "write-latency",
					    "flushes", "flush-latency", NULL};

	putchar('\n');
	operations_print(disk, "reads", "reads", "read-bytes", "read-latency");
	operations_print(disk, "writes", "writes", "written-bytes", "write-latency");
	operations_print(disk, "flushes", "flushes", NULL, "flush-latency");
	others_print(disk, known);
}

static void device_print(const char *name, const json_t *device)
{
	char text[LABEL_MAX];

	snprintf(text, sizeof(text), "%s", name);
	text_harmless(text);
	if (json_object_get(device, "rx-frames")) {
		printf("  %-22s", text);
		net_print(device);
	} else if (json_object_get(device, "target") && json_object_get(device, "actual")) {
		printf("  %-22s", text);
		balloon_print(device);
	} else if (json_object_get(device, "read-latency")) {
		printf("  %s", text);
		disk_print(device);
	} else {
		json_t *one = json_pack("{s:O}", name, device);

		tree_print(stdout, one, 2);
		json_decref(one);
	}
}

void stats_devices_print(const json_t *devices)
{
	const char *name;
	json_t *device;

	printf("devices\n");
	json_object_foreach((json_t *)devices, name, device) device_print(name, device);
}
