/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: a VM, one of its disks, and a file for what is written from now on, or a size. Out: the VM
 * goes on with it.
 *
 * What the new overlay stands on is taken from the description in the run directory, which is ours,
 * not from the VMM: that is not to choose which file is opened when the VM starts the next time.
 */
#include "mgmt/local/disk-vm.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/agent.h"
#include "mgmt/local/client.h"
#include "mgmt/local/described.h"
#include "mgmt/local/disk-tool.h"
#include "mgmt/local/flags.h"
#include "mgmt/local/guest.h"
#include "mgmt/local/local.h"
#include "mgmt/local/rundir.h"
#include "mgmt/local/tree.h"

#define WORDS_MAX 8
#define CHANGE_MS (10 * 60 * 1000) /* all that was written goes to the store first */

struct request {
	const char *vm, *disk, *what; /* the overlay's file, or the size */
	bool freeze, json;
};

static const struct flag flags[] = {
	{"--vm", "NAME", "the VM", flag_set_word, .offset = offsetof(struct request, vm)},
	{"--freeze", NULL, "the guest's agent holds its filesystems still meanwhile", flag_set_true,
	 .offset = offsetof(struct request, freeze)},
	{"--json", NULL, "print JSON", flag_set_true, .offset = offsetof(struct request, json)},
};

bool disk_vm_wanted(int argc, char **argv)
{
	if (argc < 2 || (strcmp(argv[1], "snapshot") != 0 && strcmp(argv[1], "resize") != 0))
		return false;
	for (int i = 2; i < argc; i++)
		if (!strcmp(argv[i], "--vm") || !strncmp(argv[i], "--vm=", strlen("--vm=")))
			return true;
	return false;
}

/* Flags anywhere, and two words. */
static int request_parse(struct request *request, int argc, char **argv, struct error *err)
{
	bool snapshot = !strcmp(argv[1], "snapshot");
	const char *words[2] = {NULL, NULL};
	char *rest[WORDS_MAX];
	int n_rest = 0, n_words = 0;

	rest[n_rest++] = argv[0];
	for (int i = 2; i < argc; i++) {
		bool word = argv[i][0] != '-' && strcmp(rest[n_rest - 1], "--vm") != 0;

		if ((word && n_words == 2) || n_rest == WORDS_MAX)
			return error_set(err, -EINVAL, "unexpected word \"%s\"", argv[i]);
		if (word)
			words[n_words++] = argv[i];
		else
			rest[n_rest++] = argv[i];
	}
	if (flags_parse(flags, ARRAY_SIZE(flags), request, n_rest, rest, NULL, err) < 0)
		return err->code;
	request->disk = words[0];
	request->what = words[1];
	if (n_words < 2)
		return error_set(err, -EINVAL, "`corral disk %s`",
				 snapshot ? "snapshot --vm NAME DISK FILE [--freeze]"
					  : "resize --vm NAME DISK SIZE");
	if (request->freeze && !snapshot)
		return error_set(err, -EINVAL, "--freeze is for `corral disk snapshot`");
	return 0;
}

/* One disk as the VMM has it. */
struct disk {
	uint64_t size;
	bool direct;
};

static int disk_ask(const struct rundir *dir, const char *name, struct disk *disk,
		    struct error *err)
{
	struct control_disks disks = {};
	json_t *answer = NULL;
	int r = client_ask(dir, CONTROL_DISKS, NULL, -1, &answer, err);

	if (r >= 0)
		r = table_init(&control_disks_table, &disks);
	if (r >= 0)
		r = table_from_json(&control_disks_table, answer, &disks, err);
	json_decref(answer);
	if (r < 0)
		return r;
	r = error_set(err, -ENODEV, "\"%s\" has no disk \"%s\"", dir->name, name);
	for (uint32_t i = 0; i < disks.n_disks; i++) {
		if (!disks.disks[i].name || strcmp(disks.disks[i].name, name) != 0)
			continue;
		*disk = (struct disk){disks.disks[i].size, disks.disks[i].direct};
		*err = ERROR_NULL;
		r = 0;
	}
	table_deinit(&control_disks_table, &disks);
	return r;
}

/* "disk3" to its part of the description. */
static struct vm_disk *disk_described(struct vm_description *vm, const char *name,
				      struct error *err)
{
	char expected[16];

	for (uint32_t i = 0; i < vm->n_disks; i++) {
		snprintf(expected, sizeof(expected), VM_FD_DISK "%u", i);
		if (!strcmp(name, expected))
			return &vm->disks[i];
	}
	error_set(err, -ENODEV, "\"%s\" did not start with a disk \"%s\"", vm->name, name);
	return NULL;
}

static int absolute(const char *path, char *text, size_t size, struct error *err)
{
	char here[PATH_MAX];

	if (path[0] == '/')
		snprintf(text, size, "%s", path);
	else if (!getcwd(here, sizeof(here)) ||
		 (size_t)snprintf(text, size, "%s/%s", here, path) >= size)
		return error_set(err, -ENAMETOOLONG, "cannot tell where \"%s\" is", path);
	return 0;
}

/* An empty image on what the disk has now, made by corral-disk, opened for the VMM. */
static int overlay_make(const struct request *request, const char *path,
			const struct vm_disk *described, const struct disk *disk, int *ret_fd,
			struct error *err)
{
	static const char *const formats[] = {[VM_FORMAT_RAW] = "raw", [VM_FORMAT_QCOW2] = "qcow2"};
	char size[24];
	const char *const argv[] = {"corral-disk",
				    "create",
				    path,
				    size,
				    "--format",
				    "qcow2",
				    "--base",
				    described->path,
				    "--base-format",
				    formats[described->format],
				    "--force",
				    NULL};
	int r;

	snprintf(size, sizeof(size), "%llu", (unsigned long long)disk->size);
	r = disk_tool_run(argv, -1, NULL, err);
	if (r < 0)
		return r;
	*ret_fd = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY | (disk->direct ? O_DIRECT : 0));
	if (*ret_fd >= 0)
		return 0;
	r = error_set(err, -errno, "cannot open overlay \"%s\": %s", request->what,
		      strerror(errno));
	(void)unlink(path);
	return r;
}

static int change(const struct rundir *dir, enum control_method_id method, json_t *params, int fd,
		  json_t **ret_result, struct error *err)
{
	struct client client;
	int r = client_open(&client, dir, err);

	if (r < 0) {
		json_decref(params);
		return r;
	}
	client.timeout_ms = CHANGE_MS;
	r = client_call(&client, method, params, fd, ret_result, err);
	client_close(&client);
	return r;
}

/* The filesystems stand still for as short as can be, and go on whatever became of the snapshot. */
static int change_frozen(const struct rundir *dir, bool freeze, json_t *params, int fd,
			 json_t **ret_result, struct error *err)
{
	struct agent agent = {.fd = -1};
	struct error own = ERROR_NULL;
	int r = freeze ? guest_agent_open(&agent, dir, err) : 0, thawed = 0;

	if (r == 0 && freeze)
		r = guest_freeze(&agent, true, NULL, err);
	if (r < 0) {
		json_decref(params);
		agent_deinit(&agent);
		return r;
	}
	r = change(dir, CONTROL_DISK_SNAPSHOT, params, fd, ret_result, err);
	if (freeze)
		thawed = guest_freeze(&agent, false, NULL, &own);
	agent_deinit(&agent);
	if (thawed < 0)
		local_say("%s; the guest's filesystems may be frozen still: `corral guest %s thaw`",
			  own.text, dir->name);
	return r;
}

/* From now on the description says what the VM has, as if it had started with it. */
static int description_follow(const struct rundir *dir, struct vm_description *vm,
			      struct vm_disk *disk, const char *path, struct error *err)
{
	_cleanup_(freep) char *copy = strdup(path), *text = NULL;
	json_t *json;
	int r;

	if (!copy || disk->n_chain == VM_CHAIN_MAX)
		return error_set(err, -ENOMEM, "cannot note it in the description");
	memmove(&disk->chain[1], &disk->chain[0], sizeof(disk->chain[0]) * disk->n_chain);
	disk->n_chain++;
	disk->chain[0] = (struct vm_under){disk->path, disk->format};
	disk->path = take_ptr(copy);
	disk->format = VM_FORMAT_QCOW2;
	disk->backing = VM_BACKING_ALLOW;
	json = table_to_json(&vm_table, vm);
	text = json ? json_dumps(json, JSON_COMPACT) : NULL;
	json_decref(json);
	r = text ? rundir_write(dir, RUNDIR_DESCRIPTION, text, strlen(text)) : -ENOMEM;
	return r < 0 ? error_set(err, r, "cannot note it in \"%s/" RUNDIR_DESCRIPTION "\": %s",
				 dir->path, strerror(-r))
		     : 0;
}

static void snapshot_say(const struct request *request, const char *before, const json_t *result)
{
	json_int_t us = json_integer_value(json_object_get(result, "rested-us"));

	if (request->json) {
		(void)tree_print_json(result);
		return;
	}
	printf("%s of \"%s\" goes on in \"%s\"; \"%s\" stays as it is (its requests waited for "
	       "%.1f ms)\n",
	       request->disk, request->vm, request->what, before, (double)us / 1000);
}

/* Is the file still nobody's? Only a refusal says so. */
static void overlay_forget(const char *path, int r)
{
	if (r == -EREMOTEIO || r == -ECONNREFUSED)
		(void)unlink(path);
	else
		local_say("it is not known whether the VM has \"%s\" now, so it stays; `corral "
			  "stats` and the VMM's log may tell",
			  path);
}

static int snapshot(const struct request *request, const struct rundir *dir,
		    struct vm_description *vm, struct error *err)
{
	struct vm_disk *described = disk_described(vm, request->disk, err);
	_cleanup_(freep) char *before = NULL;
	_cleanup_(fd_closep) int fd = -1;
	char path[PATH_MAX * 2];
	json_t *result = NULL;
	struct disk disk = {};
	int r = described ? disk_ask(dir, request->disk, &disk, err) : err->code;

	if (r == 0)
		r = absolute(request->what, path, sizeof(path), err);
	if (r == 0)
		r = overlay_make(request, path, described, &disk, &fd, err);
	if (r < 0)
		return r;
	r = change_frozen(dir, request->freeze,
			  json_pack("{s:s, s:s}", "disk", request->disk, "path", path), fd, &result,
			  err);
	if (r < 0) {
		overlay_forget(path, r);
		return r;
	}
	before = strdup(described->path);
	r = description_follow(dir, vm, described, path, err);
	snapshot_say(request, before ? before : "", result);
	json_decref(result);
	return r;
}

static int resize(const struct request *request, const struct rundir *dir, struct error *err)
{
	char text[TEXT_SIZE_MAX];
	json_t *result = NULL;
	uint64_t size;
	int r;

	if (size_parse(request->what, &size) < 0 || size > INT64_MAX)
		return error_set(err, -EINVAL, "\"%s\" is no size such as 20G", request->what);
	r = change(dir, CONTROL_DISK_RESIZE,
		   json_pack("{s:s, s:I}", "disk", request->disk, "size", (json_int_t)size), -1,
		   &result, err);
	if (r == 0 && request->json)
		r = tree_print_json(result);
	else if (r == 0)
		printf("%s of \"%s\" has %s now\n", request->disk, request->vm,
		       text_size(size, text));
	json_decref(result);
	return r;
}

int disk_vm(int argc, char **argv)
{
	struct vm_description vm = {};
	struct error err = ERROR_NULL;
	struct request request = {};
	struct rundir dir;
	int r = request_parse(&request, argc, argv, &err);

	if (r < 0)
		return local_fail(&err, LOCAL_USAGE);
	r = rundir_open(&dir, request.vm, &err);
	if (r < 0)
		return local_fail(&err, LOCAL_FAILED);
	if (!strcmp(argv[1], "resize")) {
		r = resize(&request, &dir, &err);
	} else {
		r = described_read(&dir, &vm, &err);
		if (r == 0)
			r = snapshot(&request, &dir, &vm, &err);
	}
	table_deinit(&vm_table, &vm);
	rundir_close(&dir);
	return r < 0 ? local_fail(&err, LOCAL_FAILED) : LOCAL_OK;
}
