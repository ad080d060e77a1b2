/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: open descriptors and their names. Out: a running corral-vmm that has them at 3, 4, 5 …, its
 * own session (so that a terminal's Ctrl-C reaches the launcher only), /dev/null as input and
 * output, and an environment without the user's secrets. vfork: copying the launcher's page tables
 * for a child that runs twenty system calls would double the cost of a start.
 */
#include "mgmt/local/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/open.h"

#define PLACES_MAX      2
#define ENVIRONMENT_MAX 32

struct child {
	const char *paths[PLACES_MAX + 1]; /* tried in turn, NULL after the last */
	const char *const *argv;
	char **environment;
	const struct spawn *spawn;
	int null_fd;
	pid_t parent;
	int fds[GRANTS_MAX];
	volatile int failed; /* errno, written by the child in our memory */
};

/* What sanitizers and coverage need; whatever else the user keeps there is not the guest's
 * business. */
static bool environment_passes(const char *entry)
{
	static const char *const starts[] = {"ASAN_",  "LSAN_", "MSAN_", "TSAN_",
					     "UBSAN_", "GCOV_", "LLVM_", "LD_LIBRARY_PATH=",
					     "CORRAL_"};

	for (size_t i = 0; i < ARRAY_SIZE(starts); i++)
		if (!strncmp(entry, starts[i], strlen(starts[i])))
			return true;
	return false;
}

static void environment_pick(char *picked[ENVIRONMENT_MAX + 1])
{
	size_t n = 0;

	for (char **entry = environ; entry && *entry && n < ENVIRONMENT_MAX; entry++)
		if (environment_passes(*entry))
			picked[n++] = *entry;
	picked[n] = NULL;
}

/* Puts fds[i] at 3 + i. One that sits where another belongs is first moved out of the way. */
static int child_place_fds(struct child *child, int n)
{
	for (int i = 0; i < n; i++) {
		if (child->fds[i] >= NAMED_FDS_FIRST + n || child->fds[i] == NAMED_FDS_FIRST + i)
			continue;
		child->fds[i] = fcntl(child->fds[i], F_DUPFD_CLOEXEC, NAMED_FDS_FIRST + n);
		if (child->fds[i] < 0)
			return -errno;
	}
	for (int i = 0; i < n; i++) {
		int target = NAMED_FDS_FIRST + i;
		int r = child->fds[i] == target ? fcntl(target, F_SETFD, 0)
						: dup2(child->fds[i], target);

		if (r < 0)
			return -errno;
	}
	return close_range(NAMED_FDS_FIRST + n, ~0U, 0) < 0 ? -errno : 0;
}

static int child_place_std(const struct child *child)
{
	int log = child->spawn->stderr_fd;

	if (dup2(child->null_fd, STDIN_FILENO) < 0 || dup2(child->null_fd, STDOUT_FILENO) < 0 ||
	    (log != STDERR_FILENO && dup2(log, STDERR_FILENO) < 0))
		return -errno;
	return 0;
}

/* Returns only when no place has it, or one has and it cannot be run. */
static int child_exec(const struct child *child)
{
	for (size_t i = 0; child->paths[i]; i++) {
		execve(child->paths[i], (char *const *)child->argv, child->environment);
		if (errno != ENOENT)
			break;
	}
	return -errno;
}

/* Runs in the launcher's memory, with its own descriptors: no malloc, no return. */
static void __attribute__((noreturn)) child_run(struct child *child)
{
	int r;

	setsid();
	if (child->spawn->dies_with_us) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != child->parent)
			_exit(127);
	}
	r = child_place_std(child);
	if (r >= 0)
		r = child_place_fds(child, child->spawn->grants->n_grants);
	if (r >= 0) {
		sigprocmask(SIG_SETMASK, child->spawn->mask, NULL);
		r = child_exec(child);
	}
	child->failed = -r;
	_exit(127);
}

static int __attribute__((noinline)) child_start(struct child *child, pid_t *ret_pid)
{
	pid_t pid;

	for (uint32_t i = 0; i < child->spawn->grants->n_grants; i++)
		child->fds[i] = child->spawn->grants->list[i].fd;
	child->failed = 0;
	pid = vfork();
	if (!pid)
		child_run(child);
	if (pid < 0)
		return -errno;
	if (child->failed) {
		waitpid(pid, NULL, 0);
		return -child->failed;
	}
	*ret_pid = pid;
	return 0;
}

int own_directory(char *path, size_t size)
{
	ssize_t n = readlink("/proc/self/exe", path, size);

	if (n < 0)
		return -errno;
	if ((size_t)n >= size)
		return -ENAMETOOLONG;
	path[n] = '\0';
	*strrchr(path, '/') = '\0';
	return 0;
}

/* Beside our own binary, as in a build tree, or where an installation keeps it. */
static int start_beside(struct child *child, pid_t *ret_pid, struct error *err)
{
	static const char *const places[PLACES_MAX] = {"corral-vmm",
						       "../libexec/corral/corral-vmm"};
	char own[PATH_MAX], paths[PLACES_MAX][PATH_MAX * 2];
	int r = own_directory(own, sizeof(own));

	if (r < 0)
		return error_set(err, r, "cannot tell where corral is: %s", strerror(-r));
	for (size_t i = 0; i < PLACES_MAX; i++) {
		snprintf(paths[i], sizeof(paths[i]), "%s/%s", own, places[i]);
		child->paths[i] = paths[i];
	}
	r = child_start(child, ret_pid);
	if (r == -ENOENT)
		return error_set(
			err, r,
			"cannot find corral-vmm in %s or its ../libexec/corral: install it "
			"there or name it in CORRAL_VMM",
			own);
	return r < 0 ? error_set(err, r, "cannot start corral-vmm: %s", strerror(-r)) : 0;
}

int spawn_vmm(const struct spawn *spawn, pid_t *ret_pid, struct error *err)
{
	_cleanup_(fd_closep) int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	const char *named = getenv("CORRAL_VMM");
	char names[GRANTS_MAX * NAMED_FDS_LENGTH];
	const char *argv[] = {"corral-vmm", "--fds", names, spawn->verbose ? "--log-level" : NULL,
			      "info",       NULL};
	char *environment[ENVIRONMENT_MAX + 1];
	struct child child = {.argv = argv,
			      .environment = environment,
			      .spawn = spawn,
			      .null_fd = null_fd,
			      .parent = getpid(),
			      .paths = {named}};
	int r;

	if (null_fd < 0)
		return error_set(err, -errno, "cannot open /dev/null: %s", strerror(errno));
	grants_names(spawn->grants, names, sizeof(names));
	environment_pick(environment);
	if (!named || !named[0])
		return start_beside(&child, ret_pid, err);
	r = child_start(&child, ret_pid);
	if (r < 0)
		return error_set(err, r, "cannot start \"%s\", named by CORRAL_VMM: %s", named,
				 strerror(-r));
	return 0;
}
