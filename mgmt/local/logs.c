/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `corral logs NAME`: what the guest printed, from its console's log or file; with --vmm what the
 * VMM of a detached VM had to say. --follow goes on until the VMM has ended: inotify tells of each
 * write, a pidfd of the end.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/flags.h"
#include "mgmt/local/local.h"
#include "mgmt/local/rundir.h"

#define LOGS_DESCRIPTION_MAX (1 << 20)

struct logs_words {
	bool follow;
	bool vmm;
};

static const struct flag logs_flags[] = {
	{"--follow", NULL, "", flag_set_true, .offset = offsetof(struct logs_words, follow)},
	{"-f", NULL, "", flag_set_true, .offset = offsetof(struct logs_words, follow)},
	{"--vmm", NULL, "", flag_set_true, .offset = offsetof(struct logs_words, vmm)},
};

/* A console that goes to a file has no other log. */
static int console_file_open(const struct rundir *dir, struct error *err)
{
	_cleanup_(fd_closep) int fd =
		openat(dir->fd, RUNDIR_DESCRIPTION, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	_cleanup_(freep) char *text = NULL;
	struct vm_description vm = {};
	size_t size;
	int r = fd < 0 ? -errno : fd_read_all(fd, LOGS_DESCRIPTION_MAX, &text, &size);

	if (r >= 0)
		r = table_init(&vm_table, &vm);
	if (r >= 0)
		r = table_from_text(&vm_table, text, size, RUNDIR_DESCRIPTION, &vm, NULL);
	if (r < 0) {
		error_set(err, r, "cannot read the description of \"%s\": %s", dir->name,
			  strerror(-r));
	} else if (!vm.console.path) {
		r = error_set(err, -ENOENT, "\"%s\" has no console log: its console is \"none\"",
			      dir->name);
	} else {
		r = open(vm.console.path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
		if (r < 0)
			r = error_set(err, -errno, "cannot open \"%s\": %s", vm.console.path,
				      strerror(errno));
	}
	table_deinit(&vm_table, &vm);
	return r;
}

static int logs_open(const struct rundir *dir, bool vmm, struct error *err)
{
	const char *file = vmm ? RUNDIR_VMM_LOG : RUNDIR_CONSOLE_LOG;
	int fd = openat(dir->fd, file, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);

	if (fd >= 0)
		return fd;
	if (errno != ENOENT)
		return error_set(err, -errno, "cannot open \"%s/%s\": %s", dir->path, file,
				 strerror(errno));
	if (vmm)
		return error_set(err, -ENOENT,
				 "\"%s\" has no VMM log: its VMM speaks on the launcher's standard "
				 "error",
				 dir->name);
	return console_file_open(dir, err);
}

/* Prints from `*at` to the end; a log that was cut starts over. */
static int logs_print(int fd, off_t *at)
{
	char data[16384];
	struct stat st;
	ssize_t n;

	if (!fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_size < *at)
		*at = 0;
	while ((n = pread(fd, data, sizeof(data), *at)) > 0) {
		int r = fd_write_full(STDOUT_FILENO, data, n);

		if (r < 0)
			return r;
		*at += n;
	}
	return n < 0 ? -errno : 0;
}

/* Until the VMM is gone, with all it had open; `process` is its pidfd, -1 if it is gone now. */
static int logs_watch(int fd, int notify, int process, off_t *at)
{
	struct pollfd fds[] = {{.fd = notify, .events = POLLIN}, {.fd = process, .events = POLLIN}};
	char events[4096];

	for (;;) {
		bool ended = process < 0 || fds[1].revents;
		int r = logs_print(fd, at);

		if (r < 0 || ended)
			return r;
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			return -errno;
		if ((fds[0].revents & POLLIN) && read(notify, events, sizeof(events)) < 0)
			return -errno;
	}
}

static int logs_follow(const struct rundir *dir, int fd, off_t *at)
{
	_cleanup_(fd_closep) int notify = inotify_init1(IN_CLOEXEC), process = -1;
	int pid = rundir_pid(dir);
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (notify < 0 || inotify_add_watch(notify, path, IN_MODIFY) < 0)
		return -errno;
	if (pid)
		process = syscall(SYS_pidfd_open, pid, 0);
	/* Alive after the pidfd was opened: it is the VMM's, and no later process of that number.
	 */
	return logs_watch(fd, notify, rundir_alive(dir) ? process : -1, at);
}

static int logs_named(const struct rundir *dir, const struct logs_words *words, struct error *err)
{
	_cleanup_(fd_closep) int fd = logs_open(dir, words->vmm, err);
	off_t at = 0;
	int r;

	if (fd < 0)
		return fd;
	r = words->follow ? logs_follow(dir, fd, &at) : logs_print(fd, &at);
	return r < 0 ? error_set(err, r, "cannot print the log of \"%s\": %s", dir->name,
				 strerror(-r))
		     : 0;
}

int verb_logs(int argc, char **argv)
{
	struct error err = ERROR_NULL;
	struct logs_words words = {};
	const char *name = NULL;
	struct rundir dir;
	int r = flags_parse(logs_flags, ARRAY_SIZE(logs_flags), &words, argc, argv, &name, &err);

	if (r >= 0 && !name)
		r = error_set(&err, -EINVAL, "which VM? `corral logs NAME`");
	if (r < 0)
		return local_fail(&err, LOCAL_USAGE);
	if (rundir_open(&dir, name, &err) < 0)
		return local_fail(&err, LOCAL_FAILED);
	r = logs_named(&dir, &words, &err);
	rundir_close(&dir);
	return r < 0 ? local_fail(&err, LOCAL_FAILED) : LOCAL_OK;
}
