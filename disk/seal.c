/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The first stage of seal.h. What comes in: a child with descriptors it has inherited. What comes
 * out: the same descriptors and next to no rights. One thread.
 */
#include "disk/seal.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <malloc.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"

#define MEMORY_MAX  (UINT64_C(3) << 30) /* a chain of 64 images has 32 MiB of tables each */
#define FILES_MAX   256                 /* two chains and a few more */
#define OVERFLOW_ID 65534u              /* "nobody", in a container that maps few ids */

static void note(char *text, size_t size, const char *what, int code)
{
	size_t used = strlen(text);

	snprintf(text + used, size - used, "%s%s%s%s%s", used ? ", " : "", what, code ? " (" : "",
		 code ? strerror(code) : "", code ? ")" : "");
}

static void done(struct seal_report *report, const char *what)
{
	note(report->done, sizeof(report->done), what, 0);
}

static void missing(struct seal_report *report, const char *what, int code)
{
	note(report->missing, sizeof(report->missing), what, code);
}

static int set_limit(int which, rlim_t most)
{
	struct rlimit limit;

	if (getrlimit(which, &limit) < 0)
		return -errno;
	limit.rlim_max = limit.rlim_cur = MIN(limit.rlim_max, most);
	return setrlimit(which, &limit) < 0 ? -errno : 0;
}

static int set_limits(void)
{
	int r = set_limit(RLIMIT_CORE, 0);

	mallopt(M_ARENA_MAX, 1); /* each further one takes 64 MiB of what may be mapped */
	if (r == 0)
		r = set_limit(RLIMIT_NOFILE, FILES_MAX);
#ifndef CORRAL_SANITIZED /* shadow memory is terabytes */
	if (r == 0)
		r = set_limit(RLIMIT_AS, MEMORY_MAX);
#endif
	if (r == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		r = -errno;
	return r;
}

static int change_root(int empty_fd)
{
	return fchdir(empty_fd) < 0 || chroot(".") < 0 || chdir("/") < 0 ? -errno : 0;
}

/* Who has no right to change its root, as users and root in a container, has it in a user namespace
 * of its own. */
static void empty_root(int empty_fd, struct seal_report *report)
{
	int r = empty_fd < 0 ? -ENOENT : change_root(empty_fd);

	if (r == -EPERM && unshare(CLONE_NEWUSER) == 0)
		r = change_root(empty_fd);
	if (r < 0)
		missing(report, "an empty root", -r);
	else
		done(report, "empty root");
}

static int become(uint32_t id)
{
	if (setgroups(0, NULL) < 0 || setresgid(id, id, id) < 0 || setresuid(id, id, id) < 0)
		return -errno;
	return 0;
}

static void drop_user(uint32_t uid, struct seal_report *report)
{
	int r;

	if (uid != 0)
		return;
	r = become(SEAL_UID_BASE + (uint32_t)getpid());
	if (r == -EINVAL)
		r = become(OVERFLOW_ID);
	if (r < 0)
		missing(report, "a user of its own", -r);
	else
		done(report, "user of its own");
}

static int drop_capabilities(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[2] = {0};

	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 && errno != EINVAL)
		return -errno;
	if (syscall(SYS_capset, &header, none) < 0)
		return -errno;
	return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 ? -errno : 0;
}

/* A ruleset without a rule. How many rights there are to deny grew with the versions; from 4 on TCP
 * is one, from 6 on abstract sockets and signals to others are. */
static int restrict_landlock(struct seal_report *report)
{
	static const uint8_t rights[] = {0, 13, 14, 15, 15, 16, 16};
	struct {
		uint64_t files, net, scoped;
	} denied = {0};
	long version = syscall(SYS_landlock_create_ruleset, NULL, 0, 1u);
	size_t size = version < 4 ? 8 : version < 6 ? 16 : 24;
	int ruleset, r;

	if (version < 0) {
		missing(report, "Landlock", errno);
		return 0;
	}
	denied.files = (UINT64_C(1) << rights[MIN(version, 6l)]) - 1;
	denied.net = denied.scoped = 3;
	ruleset = (int)syscall(SYS_landlock_create_ruleset, &denied, size, 0);
	if (ruleset < 0)
		return -errno;
	r = syscall(SYS_landlock_restrict_self, ruleset, 0) < 0 ? -errno : 0;
	fd_close(ruleset);
	if (r == 0)
		done(report, "Landlock");
	return r;
}

static int seal_failed(const char *doing, int code, struct error *err)
{
	return error_set(err, code, "cannot seal the process that reads images: cannot %s: %s",
			 doing, strerror(-code));
}

int seal_process(int empty_fd, struct seal_report *ret_report, struct error *err)
{
	uint32_t uid = geteuid();
	int r = set_limits();

	*ret_report = (struct seal_report){};
	if (r < 0)
		return seal_failed("set its limits", r, err);
	empty_root(empty_fd, ret_report);
	drop_user(uid, ret_report);
	r = drop_capabilities();
	if (r < 0)
		return seal_failed("drop capabilities", r, err);
	r = restrict_landlock(ret_report);
	if (r < 0)
		return seal_failed("enter a Landlock ruleset", r, err);
	return 0;
}
