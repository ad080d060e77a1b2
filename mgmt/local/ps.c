/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `corral ps`: every VM of the run directory. A lock that is held means that it lives, and then its
 * control socket is asked; else its exit record tells how it ended.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "mgmt/local/client.h"
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

static void ps_row(const json_t *vm)
{
	const char *reason = json_string_value(json_object_get(vm, "reason"));
	const json_t *memory = json_object_get(vm, "memory");
	char state[64], pid[24] = "-", cpus[24] = "-", size[TEXT_SIZE_MAX] = "-", up[32] = "-";

	snprintf(state, sizeof(state), "%s%s%s", json_string_value(json_object_get(vm, "state")),
		 reason ? ": " : "", reason ? reason : "");
	if (json_object_get(vm, "pid"))
		snprintf(pid, sizeof(pid), "%lld", json_integer_value(json_object_get(vm, "pid")));
	if (memory) {
		snprintf(cpus, sizeof(cpus), "%lld",
			 json_integer_value(json_object_get(vm, "cpus")));
		text_size(json_integer_value(memory), size);
		up_text(json_integer_value(json_object_get(vm, "up-ms")), up);
	}
	printf("%-20s %-20s %8s %5s %10s  %s\n", json_string_value(json_object_get(vm, "name")),
	       state, pid, cpus, size, up);
}

static void ps_table(const json_t *list)
{
	const json_t *vm;
	size_t i;

	printf("%-20s %-20s %8s %5s %10s  %s\n", "NAME", "STATE", "PID", "CPUS", "MEMORY", "UP");
	json_array_foreach((json_t *)list, i, vm) ps_row(vm);
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
		ps_table(ps.list);
	json_decref(ps.list);
	return status;
}
