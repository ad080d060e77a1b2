/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verbs that act on one VM by name: a request to its control socket, or a wait for its end. In:
 * the words after the verb. Out: the exit status.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/client.h"
#include "mgmt/local/flags.h"
#include "mgmt/local/local.h"
#include "mgmt/local/record.h"
#include "mgmt/local/rundir.h"
#include "mgmt/local/stats.h"
#include "mgmt/local/tree.h"

#define SHUTDOWN_TIMEOUT_S 60
#define KILL_TIMEOUT_MS    5000

struct words {
	bool json;
	const char *timeout;
};

static const struct flag flag_json = {"--json", NULL, "", flag_set_true,
				      .offset = offsetof(struct words, json)};
static const struct flag flag_timeout = {"--timeout", "SECONDS", "", flag_set_word,
					 .offset = offsetof(struct words, timeout)};

/* Parses, and opens the directory of the VM that is named. */
static int named_open(struct rundir *dir, const struct flag *flag, struct words *words, int argc,
		      char **argv)
{
	struct error err = ERROR_NULL;
	const char *name = NULL;
	int r = flags_parse(flag, flag ? 1 : 0, words, argc, argv, &name, &err);

	if (r >= 0 && !name)
		r = error_set(&err, -EINVAL, "which VM? `corral %s NAME`; `corral ps` lists them",
			      argv[0]);
	if (r < 0)
		return local_fail(&err, LOCAL_USAGE);
	return rundir_open(dir, name, &err) < 0 ? local_fail(&err, LOCAL_FAILED) : LOCAL_OK;
}

static int simple_request(int argc, char **argv, enum control_method_id method)
{
	struct error err = ERROR_NULL;
	struct rundir dir;
	int status = named_open(&dir, NULL, NULL, argc, argv);

	if (status != LOCAL_OK)
		return status;
	if (client_ask(&dir, method, NULL, -1, NULL, &err) < 0)
		status = local_fail(&err, LOCAL_FAILED);
	rundir_close(&dir);
	return status;
}

int verb_pause(int argc, char **argv)
{
	return simple_request(argc, argv, CONTROL_PAUSE);
}

int verb_resume(int argc, char **argv)
{
	return simple_request(argc, argv, CONTROL_RESUME);
}

int verb_reset(int argc, char **argv)
{
	return simple_request(argc, argv, CONTROL_RESET);
}

int verb_stats(int argc, char **argv)
{
	struct error err = ERROR_NULL;
	struct words words = {};
	struct rundir dir;
	json_t *counters;
	int status = named_open(&dir, &flag_json, &words, argc, argv);

	if (status != LOCAL_OK)
		return status;
	if (client_ask(&dir, CONTROL_COUNTERS, NULL, -1, &counters, &err) < 0) {
		status = local_fail(&err, LOCAL_FAILED);
	} else {
		stats_add_host_ksm(counters);
		if (words.json)
			status = tree_print_json(counters);
		else
			stats_print(counters);
		json_decref(counters);
	}
	rundir_close(&dir);
	return status;
}

/*
 * `exit_fd` was opened while the VM may still have lived: a launcher in the foreground removes its
 * directory, but not the file we hold.
 */
static int end_report(const struct rundir *dir, int exit_fd)
{
	_cleanup_(record_deinit) struct exit_record record = {};
	struct error err = ERROR_NULL;
	int r = record_read(exit_fd, &record, &err);

	if (r < 0)
		return local_fail(&err, exit_status(EXIT_UNKNOWN));
	if (r == RECORD_E_EMPTY && record_unknown(&record, dir->name) < 0)
		return exit_status(EXIT_UNKNOWN);
	if (record.reason != EXIT_POWER_OFF)
		local_say("\"%s\" ended (%s): %s", dir->name, exit_reason_names[record.reason],
			  record.text ? record.text : "no more is known");
	return exit_status(record.reason);
}

int verb_wait(int argc, char **argv)
{
	_cleanup_(fd_closep) int exit_fd = -1;
	struct rundir dir;
	int r, status = named_open(&dir, NULL, NULL, argc, argv);

	if (status != LOCAL_OK)
		return status;
	exit_fd = openat(dir.fd, RUNDIR_EXIT, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (exit_fd < 0) { /* removed since: it ended in the foreground, before we were there */
		local_say("no VM named \"%s\", see `corral ps`", dir.name);
		rundir_close(&dir);
		return LOCAL_FAILED;
	}
	r = rundir_wait(&dir);
	if (r < 0)
		local_say("cannot wait for \"%s\": %s", dir.name, strerror(-r));
	if (r < 0)
		status = exit_status(EXIT_UNKNOWN);
	else
		status = end_report(&dir, exit_fd);
	rundir_close(&dir);
	return status;
}

/* The VMM's end closes the connection. */
static bool client_wait_end(const struct client *client, int timeout_ms)
{
	struct pollfd end = {.fd = client->fd, .events = POLLRDHUP};

	return poll(&end, 1, timeout_ms) > 0;
}

static int shutdown_named(const struct rundir *dir, int seconds, struct error *err)
{
	struct client client;
	int r = client_open(&client, dir, err);

	if (r >= 0)
		r = client_call(&client, CONTROL_POWER_BUTTON, NULL, -1, NULL, err);
	if (r == -EPIPE)
		r = 0; /* it was quicker to end than to answer */
	else if (r >= 0 && seconds && !client_wait_end(&client, seconds * 1000))
		r = error_set(err, -ETIMEDOUT,
			      "\"%s\" has not powered off within %d s: `corral kill %s` ends it",
			      dir->name, seconds, dir->name);
	client_close(&client);
	return r;
}

int verb_shutdown(int argc, char **argv)
{
	struct error err = ERROR_NULL;
	struct words words = {};
	struct rundir dir;
	char *end = NULL;
	long seconds = SHUTDOWN_TIMEOUT_S;
	int status = named_open(&dir, &flag_timeout, &words, argc, argv);

	if (status != LOCAL_OK)
		return status;
	if (words.timeout)
		seconds = strtol(words.timeout, &end, 10);
	if (end && (end == words.timeout || *end || seconds < 0 || seconds > 86400)) {
		local_say("--timeout: \"%s\" is no number of seconds from 0 to 86400",
			  words.timeout);
		status = LOCAL_USAGE;
	} else if (shutdown_named(&dir, seconds, &err) < 0) {
		status = local_fail(&err, LOCAL_FAILED);
	}
	rundir_close(&dir);
	return status;
}

/* Nobody waits for the VMM of a detached VM: we know how it ended, and say so in its place. */
static void kill_record(const struct rundir *dir)
{
	_cleanup_(fd_closep) int fd = openat(dir->fd, RUNDIR_EXIT, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
	_cleanup_(record_deinit) struct exit_record record = {};

	if (fd < 0 || record_read(fd, &record, NULL) != RECORD_E_EMPTY)
		return;
	if (record_from_status(&record, dir->name, SIGKILL, true) < 0 ||
	    record_write(fd, &record) < 0)
		local_say("cannot record how \"%s\" ended, ignoring", dir->name);
}

/*
 * The pid in the file is the VMM's as long as the lock is held: the pidfd is opened first, so a VMM
 * still alive afterwards is the process we hold.
 */
static int kill_hard(const struct rundir *dir, struct error *err)
{
	_cleanup_(fd_closep) int process = -1;
	struct pollfd end = {.events = POLLIN};
	int pid = rundir_pid(dir);

	if (pid)
		process = syscall(SYS_pidfd_open, pid, 0);
	if (!rundir_alive(dir))
		return 0;
	if (process < 0)
		return error_set(err, -ESRCH, "cannot find the VMM of \"%s\"", dir->name);
	if (syscall(SYS_pidfd_send_signal, process, SIGKILL, NULL, 0) < 0)
		return error_set(err, -errno, "cannot kill the VMM of \"%s\": %s", dir->name,
				 strerror(errno));
	end.fd = process;
	if (!poll(&end, 1, KILL_TIMEOUT_MS))
		return error_set(err, -ETIMEDOUT,
				 "the VMM of \"%s\" was killed but has not ended yet", dir->name);
	kill_record(dir);
	return 0;
}

/* Asked first, so that it writes its own record and lets its disks come to rest. */
static int kill_named(const struct rundir *dir, struct error *err)
{
	struct client client;
	int r;

	if (!rundir_alive(dir))
		return error_set(err, -ESRCH, "\"%s\" is not running, see `corral ps`", dir->name);
	r = client_open(&client, dir, err);
	if (r >= 0)
		r = client_call(&client, CONTROL_QUIT, NULL, -1, NULL, err);
	if (r >= 0 && client_wait_end(&client, CLIENT_TIMEOUT_MS))
		r = 1;
	client_close(&client);
	return r == 1 ? 0 : kill_hard(dir, err);
}

int verb_kill(int argc, char **argv)
{
	struct error err = ERROR_NULL;
	struct rundir dir;
	int status = named_open(&dir, NULL, NULL, argc, argv);

	if (status != LOCAL_OK)
		return status;
	if (kill_named(&dir, &err) < 0)
		status = local_fail(&err, LOCAL_FAILED);
	rundir_close(&dir);
	return status;
}
