/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verbs that change a running VM: how much memory its guest keeps, and whether a network card
 * is plugged in. In: the words after the verb. Out: the exit status.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "mgmt/local/client.h"
#include "mgmt/local/local.h"
#include "mgmt/local/rundir.h"

static int words_refuse(const char *verb, const char *words, const char *why)
{
	local_say("%s `corral %s %s`", why, verb, words);
	return LOCAL_USAGE;
}

/* Asks; takes `params` over. */
static int adjust(const char *name, enum control_method_id method, json_t *params)
{
	struct error err = ERROR_NULL;
	struct rundir dir;
	int r = rundir_open(&dir, name, &err);

	if (r < 0) {
		json_decref(params);
		return local_fail(&err, LOCAL_FAILED);
	}
	r = client_ask(&dir, method, params, -1, NULL, &err);
	rundir_close(&dir);
	return r < 0 ? local_fail(&err, LOCAL_FAILED) : LOCAL_OK;
}

/* The VM's whole memory, by its own word. */
static int memory_ask(const char *name, uint64_t *ret_size, struct error *err)
{
	struct control_status status = {};
	struct rundir dir;
	json_t *answer = NULL;
	int r = rundir_open(&dir, name, err);

	if (r < 0)
		return r;
	r = client_ask(&dir, CONTROL_STATUS, NULL, -1, &answer, err);
	rundir_close(&dir);
	if (r >= 0)
		r = table_init(&control_status_table, &status);
	if (r >= 0)
		r = table_from_json(&control_status_table, answer, &status, err);
	if (r >= 0)
		*ret_size = status.memory;
	table_deinit(&control_status_table, &status);
	json_decref(answer);
	return r;
}

int verb_balloon(int argc, char **argv)
{
	struct error err = ERROR_NULL;
	uint64_t size;

	if (argc != 3 || argv[1][0] == '-')
		return words_refuse(argv[0], "NAME SIZE|all",
				    "which VM shall keep how much memory?");
	if (!strcmp(argv[2], "all")) {
		if (memory_ask(argv[1], &size, &err) < 0)
			return local_fail(&err, LOCAL_FAILED);
	} else if (size_parse(argv[2], &size) < 0 || size > INT64_MAX) {
		local_say("\"%s\" is no size such as 512M or 4G, nor \"all\"", argv[2]);
		return LOCAL_USAGE;
	}
	return adjust(argv[1], CONTROL_BALLOON, json_pack("{s:I}", "size", (json_int_t)size));
}

int verb_link(int argc, char **argv)
{
	bool up = argc == 4 && !strcmp(argv[3], "up");

	if (argc != 4 || argv[1][0] == '-' || (!up && strcmp(argv[3], "down") != 0))
		return words_refuse(argv[0], "NAME net0 up|down",
				    "which card of which VM, up or down?");
	return adjust(argv[1], CONTROL_LINK,
		      json_pack("{s:s, s:b}", "device", argv[2], "up", (int)up));
}
