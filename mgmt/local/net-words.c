/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: the text after --net. Out: a `struct vm_net` whose words are in their places; whether they go
 * together is for vm_check to say.
 */
#include "mgmt/local/net-words.h"

#include <errno.h>
#include <string.h>

#include "mgmt/local/parts.h"
#include "proto/vm.h"

#define FORWARD_WORDS 4 /* at most */

static int forward_refuse(const char *text, struct error *err)
{
	return error_set(err, -EINVAL,
			 "\"%s\" is no forward: "
			 "[tcp:|udp:][ADDRESS:]PORT-OF-THE-HOST:PORT-IN-THE-GUEST, an IPv6 address "
			 "in brackets",
			 text);
}

/* What is before the next colon; those of an IPv6 address are within brackets. */
static char *word_next(char **rest)
{
	char *start = *rest, *end = *start == '[' ? strchr(start, ']') : NULL;

	if (!end || (end[1] && end[1] != ':'))
		return strsep(rest, ":");
	*end = '\0';
	*rest = end[1] ? end + 2 : NULL;
	return start + 1;
}

static bool word_is_address(const char *word)
{
	return strpbrk(word, ".:");
}

static int words_set(struct vm_forward *forward, char *const *words, size_t n, struct error *err)
{
	const struct table *table = &vm_forward_table;
	bool address = n > 2 && word_is_address(words[n - 3]);
	bool protocol = n > 2U + address;
	int r = 0;

	if (n > 2U + address + protocol)
		return 1;
	if (protocol)
		r = table_set_text(table, forward, "protocol", words[0], err);
	if (r >= 0 && address)
		r = table_set_text(table, forward, "address", words[n - 3], err);
	if (r >= 0)
		r = table_set_text(table, forward, "host-port", words[n - 2], err);
	if (r >= 0)
		r = table_set_text(table, forward, "guest-port", words[n - 1], err);
	return r;
}

/* "2222:22", "tcp:2222:22", "tcp:0.0.0.0:2222:22", "tcp:[::1]:2222:22" */
static int forward_read(struct vm_forward *forward, const char *text, struct error *err)
{
	_cleanup_(freep) char *copy = strdup(text);
	char *rest = copy, *words[FORWARD_WORDS];
	size_t n = 0;
	int r;

	if (!copy)
		return error_set(err, -ENOMEM, "out of memory");
	while (rest && n < FORWARD_WORDS)
		words[n++] = word_next(&rest);
	r = rest || n < 2 ? 1 : words_set(forward, words, n, err);
	if (r > 0)
		return forward_refuse(text, err);
	return r < 0 ? error_prefix(err, "forward %s: ", text) : 0;
}

static int forward_add(struct vm_net *net, const char *text, struct error *err)
{
	struct vm_forward *forward = &net->forwards[net->n_forwards];
	int r;

	if (net->n_forwards == VM_FORWARDS_MAX)
		return error_set(err, -E2BIG, "a network card forwards at most %d ports",
				 VM_FORWARDS_MAX);
	r = table_init(&vm_forward_table, forward);
	if (r < 0)
		return error_set(err, r, "%s", strerror(-r));
	r = forward_read(forward, text, err);
	if (r >= 0)
		net->n_forwards++;
	return r;
}

/* What follows `key` and its '=', NULL if `part` is another word. */
static char *part_value(char *part, const char *key)
{
	size_t length = strlen(key);

	return !strncmp(part, key, length) && part[length] == '=' ? part + length + 1 : NULL;
}

static int kind_read(struct vm_net *net, char *part, struct error *err)
{
	char *value;
	int r;

	if (!strcmp(part, "user"))
		return table_set_text(&vm_net_table, net, "kind", "user", err);
	if ((value = part_value(part, "tap"))) {
		r = table_set_text(&vm_net_table, net, "kind", "tap", err);
		return r < 0 ? r : table_set_text(&vm_net_table, net, "tap", value, err);
	}
	if ((value = part_value(part, "fd"))) {
		r = table_set_text(&vm_net_table, net, "kind", "fd", err);
		return r < 0 ? r : table_set_text(&vm_net_table, net, "fd", value, err);
	}
	return error_set(err, -EINVAL,
			 "\"%s\" is no network: user, tap=INTERFACE or fd=NUMBER comes first",
			 part);
}

static int word_read(struct vm_net *net, char *part, struct error *err)
{
	char *value = part_value(part, "forward");

	if (!strcmp(part, "forward"))
		return forward_refuse("", err);
	return value ? forward_add(net, value, err) : part_set(&vm_net_table, net, part, err);
}

int net_words_read(struct vm_net *net, const char *flag_name, const char *value, struct error *err)
{
	_cleanup_(freep) char *text = strdup(value);
	char *rest = text;
	int r;

	if (!text)
		return error_set(err, -ENOMEM, "%s: out of memory", flag_name);
	r = kind_read(net, part_next(&rest), err);
	while (r >= 0 && rest)
		r = word_read(net, part_next(&rest), err);
	return r < 0 ? error_prefix(err, "%s: ", flag_name) : 0;
}
