/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `corral ps`: every VM of the run directory. A lock that is held means that it lives, and then its
 * control socket is asked; else its exit record tells how it ended.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "mgmt/local/client.h"
#include "mgmt/local/described.h"
#include "mgmt/local/flags.h"
#include "mgmt/local/local.h"
#include "mgmt/local/record.h"
#include "mgmt/local/rundir.h"
#include "mgmt/local/tree.h"

struct ps {
	bool json;
	json_t *list; /* owned: one object a VM */
};

static const struct flag ps_flags[] = {
	{"--json", NULL, "", flag_set_true, .offset = offsetof(struct ps, json)},
};

/* A VMM's word: an address, or not worth repeating. */
static void address_set(json_t *vm, const char *address)
{
	struct in_addr parsed;

	if (address && inet_pton(AF_INET, address, &parsed) == 1)
		json_object_set_new(vm, "address", json_string(address));
}

static json_t *net_describe(const struct vm_description *description, uint32_t i, const char *mac)
{
	json_t *net = table_to_json(&vm_net_table, &description->nets[i]);
	json_t *some = json_pack(
		"{s:o*, s:o*, s:s, s:O*, s:O*}", "device", json_sprintf("net%u", i), "mac",
		json_string(mac), "kind", json_string_value(json_object_get(net, "kind")), "tap",
		json_object_get(net, "tap"), "forwards", json_object_get(net, "forwards"));

	json_decref(net);
	return some;
}

/* What it was started with; the address of a card the VMM has seen none of may be known to the
 * host. */
static void nets_describe(const struct rundir *dir, json_t *vm)
{
	struct vm_description description;
	json_t *nets = json_array();

	if (described_read(dir, &description, NULL) < 0)
		description.n_nets = 0;
	for (uint32_t i = 0; i < description.n_nets; i++) {
		char mac[MAC_TEXT_MAX], address[ADDRESS_TEXT_MAX];

		described_mac(&description, i, mac);
		json_array_append_new(nets, net_describe(&description, i, mac));
		if (!json_object_get(vm, "address") && description.nets[i].kind != VM_NET_USER &&
		    described_neighbour(mac, address))
			address_set(vm, address);
	}
	if (json_array_size(nets))
		json_object_set(vm, "nets", nets);
	json_decref(nets);
	table_deinit(&vm_table, &description);
}

static int alive_describe(const struct rundir *dir, json_t *vm)
{
	struct control_status status = {};
	struct error err = ERROR_NULL;
	json_t *answer;
	int r = client_ask(dir, CONTROL_STATUS, NULL, -1, &answer, &err);

	if (r < 0)
		return json_object_set_new(vm, "state", json_string("not-answering"));
	r = table_init(&control_status_table, &status);
	if (r >= 0)
		r = table_from_json(&control_status_table, answer, &status, &err);
	json_decref(answer);
	if (r >= 0) {
		json_object_set_new(vm, "state", json_string(vm_state_names[status.state]));
		json_object_set_new(vm, "cpus", json_integer(status.cpus));
		json_object_set_new(vm, "memory", json_integer(status.memory));
		json_object_set_new(vm, "up-ms", json_integer(status.up_ms));
		json_object_set_new(vm, "resets", json_integer(status.resets));
		address_set(vm, status.address);
	} else {
		json_object_set_new(vm, "state", json_string("not-understood"));
	}
	table_deinit(&control_status_table, &status);
	return 0;
}

static void ended_describe(const struct rundir *dir, json_t *vm)
{
	_cleanup_(fd_closep) int fd =
		openat(dir->fd, RUNDIR_EXIT, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	_cleanup_(record_deinit) struct exit_record record = {};
	enum exit_reason reason = EXIT_UNKNOWN;

	if (fd >= 0 && record_read(fd, &record, NULL) == 0)
		reason = record.reason;
	json_object_set_new(vm, "state", json_string(vm_state_names[VM_ENDED]));
	json_object_set_new(vm, "reason", json_string(exit_reason_names[reason]));
	json_object_set_new(vm, "status", json_integer(exit_status(reason)));
}

/* A directory that is gone by now is no failure. */
static int ps_each(const char *name, void *data)
{
	struct ps *ps = data;
	struct rundir dir;
	json_t *vm;

	if (rundir_open(&dir, name, NULL) < 0)
		return 0;
	vm = json_pack("{s:s}", "name", name);
	if (rundir_alive(&dir)) {
		json_object_set_new(vm, "pid", json_integer(rundir_pid(&dir)));
		alive_describe(&dir, vm);
		nets_describe(&dir, vm);
	} else {
		ended_describe(&dir, vm);
	}
	rundir_close(&dir);
	return json_array_append_new(ps->list, vm);
}

static const char *up_text(json_int_t ms, char text[32])
{
	json_int_t s = ms / 1000;

	if (s < 60)
		snprintf(text, 32, "%lld.%lld s", s, ms % 1000 / 100);
	else if (s < 3600)
		snprintf(text, 32, "%lld min", s / 60);
	else if (s < 48 * 3600)
		snprintf(text, 32, "%lld h %lld min", s / 3600, s % 3600 / 60);
	else
		snprintf(text, 32, "%lld days", s / 86400);
	return text;
}

/* "0.0.0.0:", "[::]:", "" for the host itself */
static const char *forward_where(const json_t *forward, char text[INET6_ADDRSTRLEN + 4])
{
	const char *address = json_string_value(json_object_get(forward, "address"));

	text[0] = '\0';
	if (address && strncmp(address, "127.", 4) && strcmp(address, "::1"))
		snprintf(text, INET6_ADDRSTRLEN + 4,
			 strchr(address, ':') ? "[%s]:" : "%s:", address);
	return text;
}

/* "tcp 2222:22, udp 0.0.0.0:53:53" */
static void forwards_text(const json_t *vm, char *text, size_t size)
{
	char where[INET6_ADDRSTRLEN + 4];
	const json_t *net, *forward;
	size_t i, j, used = 0;

	text[0] = '\0';
	json_array_foreach(json_object_get(vm, "nets"), i, net)
	{
		json_array_foreach(json_object_get(net, "forwards"), j, forward)
		{
			used += snprintf(
				text + used, size - used, "%s%s %s%lld:%lld", used ? ", " : "",
				json_string_value(json_object_get(forward, "protocol")),
				forward_where(forward, where),
				json_integer_value(json_object_get(forward, "host-port")),
				json_integer_value(json_object_get(forward, "guest-port")));
			if (used >= size)
				return;
		}
	}
}

enum { NAME, STATE, PID, CPUS, MEMORY, UP, ADDRESS, FORWARDS, COLUMNS };

struct row {
	char cells[COLUMNS][256];
};

static const struct {
	const char *title;
	bool right;  /* numbers */
	int width;   /* at least */
	bool always; /* else only if a VM has something there */
} columns[COLUMNS] = {
	[NAME] = {"NAME", false, 16, true},       [STATE] = {"STATE", false, 10, true},
	[PID] = {"PID", true, 7, true},           [CPUS] = {"CPUS", true, 4, true},
	[MEMORY] = {"MEMORY", true, 9, true},     [UP] = {"UP", true, 9, true},
	[ADDRESS] = {"ADDRESS", false, 7, false}, [FORWARDS] = {"FORWARDS", false, 8, false},
};

static void row_fill(struct row *row, const json_t *vm)
{
	const char *reason = json_string_value(json_object_get(vm, "reason"));
	const char *address = json_string_value(json_object_get(vm, "address"));
	const json_t *memory = json_object_get(vm, "memory"), *pid = json_object_get(vm, "pid");
	size_t size = sizeof(row->cells[0]);

	snprintf(row->cells[NAME], size, "%s", json_string_value(json_object_get(vm, "name")));
	snprintf(row->cells[STATE], size, "%s%s%s", json_string_value(json_object_get(vm, "state")),
		 reason ? ": " : "", reason ? reason : "");
	if (pid)
		snprintf(row->cells[PID], size, "%lld", json_integer_value(pid));
	if (memory) {
		snprintf(row->cells[CPUS], size, "%lld",
			 json_integer_value(json_object_get(vm, "cpus")));
		text_size(json_integer_value(memory), row->cells[MEMORY]);
		up_text(json_integer_value(json_object_get(vm, "up-ms")), row->cells[UP]);
	}
	snprintf(row->cells[ADDRESS], size, "%s", address ? address : "");
	forwards_text(vm, row->cells[FORWARDS], size);
}

/* An empty cell has a dash, as long as another follows. */
static void row_print(const struct row *row, const int *widths)
{
	for (int c = 0; c < COLUMNS; c++) {
		const char *cell = row->cells[c][0] ? row->cells[c] : "-";

		if (!widths[c])
			continue;
		if (c == COLUMNS - 1)
			printf("%s%s", row->cells[c][0] ? "  " : "", row->cells[c]);
		else
			printf("%s%*s", c ? "  " : "", columns[c].right ? widths[c] : -widths[c],
			       cell);
	}
	putchar('\n');
}

static void rows_print(struct row *rows, size_t n)
{
	int widths[COLUMNS] = {};

	for (int c = 0; c < COLUMNS; c++) {
		for (size_t i = 1; i < n; i++)
			widths[c] = MAX(widths[c], (int)strlen(rows[i].cells[c]));
		if (widths[c] || columns[c].always)
			widths[c] = MAX(widths[c], columns[c].width);
	}
	for (size_t i = 0; i < n; i++)
		row_print(&rows[i], widths);
}

static int ps_table(const json_t *list)
{
	size_t i, n = json_array_size(list) + 1;
	struct row *rows = calloc(n, sizeof(*rows));
	const json_t *vm;

	if (!rows)
		return LOCAL_FAILED;
	for (int c = 0; c < COLUMNS; c++)
		snprintf(rows[0].cells[c], sizeof(rows[0].cells[c]), "%s", columns[c].title);
	json_array_foreach((json_t *)list, i, vm) row_fill(&rows[i + 1], vm);
	rows_print(rows, n);
	free(rows);
	return LOCAL_OK;
}

int verb_ps(int argc, char **argv)
{
	struct ps ps = {};
	struct error err = ERROR_NULL;
	int status = LOCAL_OK;

	if (flags_parse(ps_flags, ARRAY_SIZE(ps_flags), &ps, argc, argv, NULL, &err) < 0)
		return local_fail(&err, LOCAL_USAGE);
	ps.list = json_array();
	if (rundir_each(ps_each, &ps, &err) < 0)
		status = local_fail(&err, LOCAL_FAILED);
	else if (ps.json)
		status = tree_print_json(ps.list);
	else
		status = ps_table(ps.list);
	json_decref(ps.list);
	return status;
}
