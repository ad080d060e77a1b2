/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For tests of what cannot be undone: each case in a child of its own. A check that fails there is
 * a line on standard error and status 1.
 */
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILD_LIMIT 20 /* seconds */
#define NOBODY      65534

#define CHECK(condition)                                                                          \
	do {                                                                                      \
		if (!(condition)) {                                                               \
			fprintf(stderr, "%s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, \
				errno);                                                           \
			return 1;                                                                 \
		}                                                                                 \
	} while (0)

/* Runs `body` in a child that dies rather than hang; returns its wait status. */
static inline int in_child(int (*body)(const void *arg), const void *arg)
{
	int status;
	pid_t child = fork();

	if (child < 0)
		abort();
	if (child == 0) {
		alarm(CHILD_LIMIT);
		setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
		_exit(body(arg));
	}
	if (waitpid(child, &status, 0) != child)
		abort();
	return status;
}

static inline bool passed(int status)
{
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static inline bool was_refused(int status)
{
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS;
}

/* O_PATH of an empty directory that has no name any more. */
static inline int make_empty(void)
{
	char path[] = "/tmp/corral-test-XXXXXX";

	if (!mkdtemp(path))
		return -1;
	chmod(path, 0755);
	int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	rmdir(path);
	return fd;
}

/* An ordinary user, as one who logs in is: traceable, no capabilities. */
static inline int become_nobody(void)
{
	CHECK(setgroups(0, NULL) == 0);
	CHECK(setresgid(NOBODY, NOBODY, NOBODY) == 0);
	CHECK(setresuid(NOBODY, NOBODY, NOBODY) == 0);
	CHECK(prctl(PR_SET_DUMPABLE, 1) == 0);
	return 0;
}
