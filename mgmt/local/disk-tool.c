/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: words and a descriptor. Out: what corral-disk printed, or what it complained of. Both come by
 * files in memory that cannot grow: whatever it has come to do, it neither blocks on us nor fills
 * our memory.
 */
#include "mgmt/local/disk-tool.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/spawn.h"

#define SAID_MAX 65536

int disk_tool_find(char *path, size_t size, struct error *err)
{
	static const char *const places[] = {"corral-disk", "../libexec/corral/corral-disk"};
	const char *named = getenv("CORRAL_DISK");
	char own[PATH_MAX];
	int r;

	if (named && named[0]) {
		snprintf(path, size, "%s", named);
		return 0;
	}
	r = own_directory(own, sizeof(own));
	if (r < 0)
		return error_set(err, r, "cannot tell where corral is: %s", strerror(-r));
	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		if ((size_t)snprintf(path, size, "%s/%s", own, places[i]) < size &&
		    access(path, X_OK) == 0)
			return 0;
	}
	return error_set(err, -ENOENT,
			 "cannot find corral-disk in %s or its ../libexec/corral: install it there "
			 "or name it in CORRAL_DISK",
			 own);
}

static int said_new(const char *name)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd >= 0 && (ftruncate(fd, SAID_MAX) < 0 ||
			fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0))
		return fd_close(fd);
	return fd;
}

/* Up to the first zero; SAID_MAX + 1 bytes of room. */
static int said_read(int fd, char *text)
{
	ssize_t n = pread(fd, text, SAID_MAX, 0);

	text[n < 0 ? 0 : n] = '\0';
	return n < 0 ? -errno : 0;
}

/* A terminal's Ctrl-C ends it, even where ours waits for better times. */
static int child_start(const char *path, const char *const *argv, int fd, int out, int complaints,
		       pid_t *ret_pid)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t none;
	int r;

	sigemptyset(&none);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
	posix_spawn_file_actions_adddup2(&actions, complaints, STDERR_FILENO);
	if (fd >= 0)
		posix_spawn_file_actions_adddup2(&actions, fd, DISK_TOOL_FD);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
	r = posix_spawn(ret_pid, path, &actions, &attributes, (char *const *)argv, environ);
	posix_spawnattr_destroy(&attributes);
	posix_spawn_file_actions_destroy(&actions);
	return -r;
}

/* Its own words, without its name; the first line is the one that matters. */
static int child_refused(int status, char *words, struct error *err)
{
	char *line = words, *colon;

	line[strcspn(line, "\n")] = '\0';
	colon = strstr(line, ": ");
	if (!strncmp(line, "corral", strlen("corral")) && colon)
		line = colon + 2;
	text_make_printable(line);
	if (line[0])
		return error_set(err, -EIO, "%s", line);
	if (WIFSIGNALED(status))
		return error_set(err, -EIO, "corral-disk was ended by signal %d", WTERMSIG(status));
	return error_set(err, -EIO, "corral-disk ended with status %d and no word",
			 WEXITSTATUS(status));
}

int disk_tool_run(const char *const *argv, int fd, char **ret_text, struct error *err)
{
	_cleanup_(fd_closep) int out = said_new("out");
	_cleanup_(fd_closep) int complaints = said_new("complaints");
	_cleanup_(freep) char *text = malloc(SAID_MAX + 1);
	char path[PATH_MAX * 2];
	int status = 0, r = disk_tool_find(path, sizeof(path), err);
	pid_t pid;

	if (r < 0)
		return r;
	if (out < 0 || complaints < 0 || !text)
		return error_set(err, -ENOMEM, "cannot run corral-disk: out of memory");
	r = child_start(path, argv, fd, out, complaints, &pid);
	if (r < 0)
		return error_set(err, r, "cannot start \"%s\": %s", path, strerror(-r));
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return error_set(err, -errno, "cannot wait for corral-disk: %s",
					 strerror(errno));
	r = said_read(status ? complaints : out, text);
	if (status)
		return child_refused(status, text, err);
	if (r < 0)
		return error_set(err, r, "cannot read what corral-disk says: %s", strerror(-r));
	if (ret_text)
		*ret_text = take_ptr(text);
	return 0;
}
