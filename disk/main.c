/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program `corral-disk`, which is `corral disk`: in comes a verb with its words, out goes an
 * exit status.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "disk/broker.h"
#include "disk/words.h"

/* In the order in which help names them. */
static const struct disk_verb *const verbs[] = {
	&verb_create,   &verb_info,   &verb_check,  &verb_repair, &verb_convert, &verb_clone,
	&verb_snapshot, &verb_commit, &verb_resize, &verb_map,    &verb_compare, &verb_probe,
};

static const struct disk_verb *verb_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		if (!strcmp(verbs[i]->name, name))
			return verbs[i];
	return NULL;
}

static int verb_unknown(const char *name)
{
	disk_say("unknown verb \"%.64s\", see `corral disk help`", name);
	return DISK_USAGE;
}

static int overview(void)
{
	printf("corral disk makes, looks at and changes disk images, raw and qcow2.\n\n"
	       "  corral disk create web.qcow2 20G --format qcow2        an empty disk\n"
	       "  corral disk clone debian.qcow2 web.qcow2 --format qcow2\n"
	       "                                                         a disk that begins as a "
	       "template does\n"
	       "  corral disk convert web.vm.raw web.qcow2 --from raw --to qcow2\n"
	       "  corral disk info web.qcow2 --format qcow2\n\n"
	       "The format of an image is said and never guessed; what an image names is opened "
	       "only with\n--backing allow. All parsing is done by a process that can open "
	       "nothing.\n\nverbs:\n");
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		printf("  %-10s%s\n", verbs[i]->name, verbs[i]->help);
	printf("\n`corral disk help VERB` says more; `man corral-disk` says all.\n");
	return DISK_OK;
}

static int help(const char *name)
{
	const struct disk_verb *verb = name ? verb_find(name) : NULL;

	if (!name)
		return overview();
	if (!verb)
		return verb_unknown(name);
	words_help(verb);
	return DISK_OK;
}

int job_keep(struct job *job, const char *key, const struct table *table, const void *item,
	     struct error *err)
{
	json_t *json = table_to_json(table, item), *array;
	int r = -1;

	if (json && !key) {
		r = json_object_update(job->answer, json);
		json_decref(json);
	} else if (json) {
		array = json_object_get(job->answer, key);
		if (!array && json_object_set_new(job->answer, key, json_array()) == 0)
			array = json_object_get(job->answer, key);
		r = json_array_append_new(array, json);
	}
	return r < 0 ? error_set(err, -ENOMEM, "out of memory") : 0;
}

static void job_close(struct job *job)
{
	for (size_t i = 0; i < ARRAY_SIZE(job->files); i++) {
		image_file_close(&job->files[i]);
		backing_close(&job->backing[i]);
	}
	made_drop(&job->made);
	json_decref(job->answer);
}

/* map prints its own JSON, as it comes; probe never prints anything else. */
static int job_begin(struct job *job)
{
	if (!job->words.json || job->verb == &verb_map || job->verb == &verb_probe)
		return 0;
	job->answer = json_object();
	return job->answer ? 0 : -ENOMEM;
}

static int run(const struct disk_verb *verb, int argc, char **argv)
{
	struct job *job = calloc(1, sizeof(*job));
	struct error err = ERROR_NULL;
	int status = DISK_USAGE;

	if (!job)
		return DISK_FAILED;
	job->verb = verb;
	job->made = (struct made){.fd = -1, .dir_fd = -1, .old = {.fd = -1}};
	job->files[0].fd = job->files[1].fd = -1;
	if (words_parse(job, argc, argv, &err) < 0)
		disk_say("%s", err.text);
	else if (job_begin(job) < 0)
		status = DISK_FAILED;
	else
		status = broker_run(job);
	job_close(job);
	free(job);
	return status;
}

/* A descriptor we open must never land on one of the first three because a parent closed it. */
static void std_fds_open(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", O_RDWR) < 0)
			_exit(DISK_FAILED);
}

int main(int argc, char **argv)
{
	const struct disk_verb *verb;

	std_fds_open();
	if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))
		return overview();
	if (!strcmp(argv[1], "help"))
		return help(argc > 2 ? argv[2] : NULL);
	if (!strcmp(argv[1], "--version")) {
		printf("corral-disk %s\n", CORRAL_VERSION);
		return DISK_OK;
	}
	verb = verb_find(argv[1]);
	if (!verb)
		return verb_unknown(argv[1]);
	if (argc == 3 && (!strcmp(argv[2], "--help") || !strcmp(argv[2], "-h")))
		return help(argv[1]);
	return run(verb, argc - 2, argv + 2);
}
