/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: a VM's name and a disk as `corral run --disk` takes it, or the name of one that it has. Out:
 * the open files handed to the VMM, or its word that the guest has let go. The files are opened
 * here as for a start: the VMM opens nothing.
 */
#include "mgmt/local/disk-hotplug.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "mgmt/local/chain.h"
#include "mgmt/local/client.h"
#include "mgmt/local/disk-words.h"
#include "mgmt/local/flags.h"
#include "mgmt/local/local.h"
#include "mgmt/local/open.h"
#include "mgmt/local/rundir.h"
#include "proto/vm.h"

#define ADD_TIMEOUT_MS   30000 /* a long chain on slow storage */
#define REMOVE_TIMEOUT_S 10
#define TIMEOUT_MAX_S    600

/* A description of nothing but the disk, and its files. */
struct late {
	struct vm_description vm;
	struct grants grants;
};

static struct late *late_free(struct late *late)
{
	if (!late)
		return NULL;
	grants_close(&late->grants);
	table_deinit(&vm_table, &late->vm);
	free(late);
	return NULL;
}

static void late_freep(struct late **late)
{
	late_free(*late);
}

/* What the words say, opened with exactly the rights that takes; the images under it, too. */
static int late_open(struct late *late, const char *words, struct error *err)
{
	struct vm_disk *disk = &late->vm.disks[0];
	int r = table_init(&vm_disk_table, disk);

	if (r < 0)
		return error_set(err, r, "out of memory");
	late->vm.n_disks = 1;
	r = disk_words_read(disk, "disk add", words, err);
	if (r < 0)
		return r;
	grants_plan_path(&late->grants, VM_FD_DISK "0", disk->path,
			 (disk->readonly ? O_RDONLY : O_RDWR) | (disk->direct ? O_DIRECT : 0));
	late->grants.list[0].what = "disk";
	r = grants_open(&late->grants, err);
	if (r >= 0)
		r = chains_open(&late->grants, &late->vm, err);
	if (r >= 0 && late->grants.n_grants > FD_PASS_MAX)
		r = error_set(err, -E2BIG,
			      "cannot add disk \"%s\" to a running VM: %u images are under it, "
			      "more than %d cannot be sent; bring some together with `corral disk "
			      "commit`",
			      disk->path, disk->n_chain, FD_PASS_MAX - 1);
	return r;
}

static int late_send(const struct late *late, const struct rundir *dir, json_t **ret_result,
		     struct error *err)
{
	json_t *disk = table_to_json(&vm_disk_table, &late->vm.disks[0]);
	json_t *params = disk ? json_pack("{s:o}", "disk", disk) : NULL;
	struct client client;
	int fds[FD_PASS_MAX];
	int r;

	if (!params)
		return error_set(err, -ENOMEM, "out of memory");
	for (uint32_t i = 0; i < late->grants.n_grants; i++)
		fds[i] = late->grants.list[i].fd;
	r = client_open(&client, dir, err);
	if (r < 0) {
		json_decref(params);
		return r;
	}
	client.timeout_ms = ADD_TIMEOUT_MS;
	r = client_call_fds(&client, CONTROL_DISK_ADD, params, fds, late->grants.n_grants,
			    ret_result, err);
	client_close(&client);
	return r < 0 ? error_prefix(err, "\"%s\": ", dir->name) : 0;
}

static void added_say(const char *name, const json_t *result)
{
	struct control_disk_added added;
	struct error err = ERROR_NULL;

	if (table_init(&control_disk_added_table, &added) == 0 &&
	    table_from_json(&control_disk_added_table, result, &added, &err) == 0 && added.disk) {
		text_harmless(added.disk);
		printf("%s\n", added.disk);
	} else {
		local_say("\"%s\" does not say which disk it has become, ignoring", name);
	}
	table_deinit(&control_disk_added_table, &added);
}

int disk_add(int argc, char **argv)
{
	_cleanup_(late_freep) struct late *late = NULL;
	struct error err = ERROR_NULL;
	struct rundir dir;
	json_t *result = NULL;
	int r;

	if (argc != 3 || argv[1][0] == '-') {
		local_say("which disk for which VM? `corral disk add NAME FILE[,WORD...]`, with "
			  "the words of `corral run --disk`");
		return LOCAL_USAGE;
	}
	if (rundir_open(&dir, argv[1], &err) < 0)
		return local_fail(&err, LOCAL_FAILED);
	late = calloc(1, sizeof(*late));
	r = late ? late_open(late, argv[2], &err) : error_set(&err, -ENOMEM, "out of memory");
	if (r >= 0)
		r = late_send(late, &dir, &result, &err);
	rundir_close(&dir);
	if (r < 0)
		return local_fail(&err, LOCAL_FAILED);
	added_say(argv[1], result);
	json_decref(result);
	return LOCAL_OK;
}

struct words {
	const char *timeout;
	bool force;
};

static const struct flag remove_flags[] = {
	{"--timeout", "SECONDS", "", flag_set_word, .offset = offsetof(struct words, timeout)},
	{"--force", NULL, "", flag_set_true, .offset = offsetof(struct words, force)},
};

static int remove_ask(const struct rundir *dir, const char *disk, long seconds, struct error *err)
{
	json_t *params =
		json_pack("{s:s, s:I}", "disk", disk, "timeout-ms", (json_int_t)seconds * 1000);
	struct client client;
	int r = client_open(&client, dir, err);

	if (r < 0) {
		json_decref(params);
		return r;
	}
	client.timeout_ms = (int)seconds * 1000 + CLIENT_TIMEOUT_MS;
	r = client_call(&client, CONTROL_DISK_REMOVE, params, -1, NULL, err);
	client_close(&client);
	return r < 0 ? error_prefix(err, "\"%s\": ", dir->name) : 0;
}

/* Seconds, or -1. */
static long timeout_read(const char *text)
{
	char *end;
	long seconds;

	if (!text)
		return REMOVE_TIMEOUT_S;
	seconds = strtol(text, &end, 10);
	return end == text || *end || seconds < 0 || seconds > TIMEOUT_MAX_S ? -1 : seconds;
}

/* The words after NAME DISK. */
static int words_read(struct words *words, int argc, char **argv, long *ret_seconds)
{
	struct error err = ERROR_NULL;

	if (flags_parse(remove_flags, ARRAY_SIZE(remove_flags), words, argc, argv, NULL, &err) < 0)
		return local_fail(&err, LOCAL_USAGE);
	if (words->force) {
		local_say("there is no --force: what a guest has under way on a disk that it uses "
			  "would be lost. `corral reset NAME` resets the guest, and takes the "
			  "disks away that it was asked for");
		return LOCAL_USAGE;
	}
	*ret_seconds = timeout_read(words->timeout);
	if (*ret_seconds >= 0)
		return LOCAL_OK;
	local_say("--timeout: \"%s\" is no number of seconds from 0 to %d", words->timeout,
		  TIMEOUT_MAX_S);
	return LOCAL_USAGE;
}

int disk_remove(int argc, char **argv)
{
	struct error err = ERROR_NULL;
	struct words words = {};
	const char *disk = argc > 2 ? argv[2] : "-";
	struct rundir dir;
	long seconds;
	int status;

	if (argc < 3 || argv[1][0] == '-' || disk[0] == '-') {
		local_say("which disk of which VM? `corral disk remove NAME DISK [--timeout "
			  "SECONDS]`, where DISK is disk0 ...");
		return LOCAL_USAGE;
	}
	argv[2] = (char *)"disk"; /* whose help an unknown flag is sent to */
	status = words_read(&words, argc - 2, argv + 2, &seconds);
	if (status != LOCAL_OK)
		return status;
	if (rundir_open(&dir, argv[1], &err) < 0)
		return local_fail(&err, LOCAL_FAILED);
	if (remove_ask(&dir, disk, seconds, &err) < 0)
		status = local_fail(&err, LOCAL_FAILED);
	rundir_close(&dir);
	return status;
}
