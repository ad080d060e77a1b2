/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: the counters of each device. Out: for a network card and the balloon what they come to, with
 * units; for any other device, and for what is not known by name, the counters as they are. What
 * counts failures is printed once there are some.
 */
#include "mgmt/local/stats-devices.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "mgmt/local/local.h"
#include "mgmt/local/tree.h"

#define LABEL_MAX 64

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
