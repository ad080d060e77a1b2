/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: what a guest agent returned. Out: lines for a person, or the parts of an answer. Every word
 * is the guest's: control bytes become '?', what has another type than it should is left out.
 */
#include <errno.h>
#include <string.h>

#include "mgmt/local/agent.h"
#include "mgmt/local/guest.h"
#include "mgmt/local/local.h"

#define WORD_MAX 256 /* bytes of one of the guest's words that are shown */
#define LIST_MAX 64  /* entries of one list that are shown */

static const char *word(const json_t *object, const char *key, char buffer[WORD_MAX])
{
	const char *text = json_string_value(json_object_get(object, key));

	if (!text)
		return NULL;
	snprintf(buffer, WORD_MAX, "%s", text);
	text_make_printable(buffer);
	return buffer;
}

/* The entries of a list that are shown, and how many are not. */
static size_t shown(FILE *file, const json_t *list)
{
	size_t n = json_array_size(list);

	if (n > LIST_MAX)
		fprintf(file, "  (%zu, of which the first %d)\n", n, LIST_MAX);
	return MIN(n, (size_t)LIST_MAX);
}

static void print_addresses(FILE *file, const json_t *addresses)
{
	size_t n = MIN(json_array_size(addresses), (size_t)LIST_MAX);

	for (size_t i = 0; i < n; i++) {
		const json_t *entry = json_array_get(addresses, i);
		const json_t *prefix = json_object_get(entry, "prefix");
		char text[WORD_MAX];

		if (!word(entry, "ip-address", text))
			continue;
		fprintf(file, " %s", text);
		if (json_is_integer(prefix))
			fprintf(file, "/%lld", (long long)json_integer_value(prefix));
	}
}

void guest_print_network(FILE *file, const json_t *interfaces)
{
	size_t n = shown(file, interfaces);

	for (size_t i = 0; i < n; i++) {
		const json_t *interface = json_array_get(interfaces, i);
		char name[WORD_MAX], mac[WORD_MAX];

		if (!word(interface, "name", name))
			continue;
		fprintf(file, "  %-12s", name);
		fprintf(file, " %-17s", word(interface, "hardware-address", mac) ? mac : "-");
		print_addresses(file, json_object_get(interface, "ip-addresses"));
		fputc('\n', file);
	}
}

static void print_users(FILE *file, const json_t *users)
{
	size_t n = shown(file, users);

	for (size_t i = 0; i < n; i++) {
		char name[WORD_MAX];

		if (word(json_array_get(users, i), "user", name))
			fprintf(file, "  %s\n", name);
	}
}

static void print_filesystems(FILE *file, const json_t *list)
{
	size_t n = shown(file, list);

	for (size_t i = 0; i < n; i++) {
		const json_t *entry = json_array_get(list, i);
		const json_t *used = json_object_get(entry, "used-bytes");
		const json_t *total = json_object_get(entry, "total-bytes");
		char mount[WORD_MAX], type[WORD_MAX], size[TEXT_SIZE_MAX], all[TEXT_SIZE_MAX];

		if (!word(entry, "mountpoint", mount))
			continue;
		fprintf(file, "  %-20s %-8s", mount, word(entry, "type", type) ? type : "-");
		if (json_is_integer(used) && json_is_integer(total) &&
		    json_integer_value(used) >= 0 && json_integer_value(total) >= 0)
			fprintf(file, " %s of %s",
				text_size((uint64_t)json_integer_value(used), size),
				text_size((uint64_t)json_integer_value(total), all));
		fputc('\n', file);
	}
}

static void print_line(FILE *file, const char *title, const json_t *object, const char *key)
{
	char text[WORD_MAX];

	if (word(object, key, text))
		fprintf(file, "%-9s%s\n", title, text);
}

static void print_list(FILE *file, const char *title, const json_t *list,
		       void (*print)(FILE *file, const json_t *list))
{
	if (json_array_size(list) == 0)
		return;
	fprintf(file, "%s\n", title);
	print(file, list);
}

void guest_print_info(FILE *file, const json_t *info)
{
	const json_t *system = json_object_get(info, "os");

	print_line(file, "agent", json_object_get(info, "agent"), "version");
	print_line(file, "host", json_object_get(info, "host"), "host-name");
	print_line(file, "system", system, "pretty-name");
	print_line(file, "kernel", system, "kernel-release");
	print_list(file, "network", json_object_get(info, "network"), guest_print_network);
	print_list(file, "users", json_object_get(info, "users"), print_users);
	print_list(file, "filesystems", json_object_get(info, "filesystems"), print_filesystems);
}

/* ---- guest-exec-status ---- */

static int read_output(const json_t *result, const char *key, uint8_t **ret_data, size_t *ret_size)
{
	const json_t *text = json_object_get(result, key);

	if (!text)
		return 0;
	/* A NUL inside would hide the rest. */
	if (!json_is_string(text) || strlen(json_string_value(text)) != json_string_length(text))
		return -EBADMSG;
	return agent_base64(json_string_value(text), ret_data, ret_size);
}

static bool is_number(const json_t *value, json_int_t max)
{
	return json_is_integer(value) && json_integer_value(value) >= 0 &&
	       json_integer_value(value) <= max;
}

static int read_end(const json_t *result, struct guest_status *status)
{
	const json_t *code = json_object_get(result, "exitcode");
	const json_t *signal = json_object_get(result, "signal");

	if (is_number(signal, 127))
		status->status = 128 + (int)json_integer_value(signal);
	else if (is_number(code, 255))
		status->status = (int)json_integer_value(code);
	else
		return -EBADMSG;
	status->truncated = json_is_true(json_object_get(result, "out-truncated")) ||
			    json_is_true(json_object_get(result, "err-truncated"));
	return 0;
}

int guest_status_read(const json_t *result, struct guest_status *status, struct error *err)
{
	const json_t *exited = json_object_get(result, "exited");
	int r = json_is_boolean(exited) ? 0 : -EBADMSG;

	*status = (struct guest_status){.exited = json_is_true(exited)};
	if (r == 0 && status->exited)
		r = read_end(result, status);
	if (r == 0 && status->exited)
		r = read_output(result, "out-data", &status->out, &status->out_size);
	if (r == 0 && status->exited)
		r = read_output(result, "err-data", &status->err, &status->err_size);
	if (r == 0)
		return 0;
	guest_status_deinit(status);
	return error_set(err, r, "the guest agent's account of the command makes no sense");
}

void guest_status_deinit(struct guest_status *status)
{
	free(status->out);
	free(status->err);
	*status = (struct guest_status){0};
}
