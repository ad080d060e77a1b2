/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Giving up rights as a VMM does, as root and as an ordinary user, and trying what must not work
 * afterwards; and what it costs.
 */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>

#include "base/fd.h"
#include "vmm/sandbox.h"
#include "vmm/seccomp/lists.h"
#include "vmm/seccomp/test-child.h"

static int has_no_capability(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct caps[2];

	CHECK(syscall(SYS_capget, &header, caps) == 0);
	for (size_t i = 0; i < ARRAY_SIZE(caps); i++)
		CHECK((caps[i].effective | caps[i].permitted | caps[i].inheritable) == 0);
	return 0;
}

static int has_no_way_back(void)
{
	CHECK(setuid(0) < 0 && setgid(0) < 0);
	CHECK(chroot("/") < 0);
	CHECK(unshare(CLONE_NEWNS) < 0);
	CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
	CHECK(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 0);
	return has_no_capability();
}

static int sees_no_files(const struct sandbox_status *status, int empty)
{
	bool sealed_root = strncmp(status->root, "empty", 5) == 0;

	CHECK(sealed_root || status->landlock > 0);
	CHECK(open("/etc/passwd", O_RDONLY) < 0 && errno == (sealed_root ? ENOENT : EACCES));
	CHECK(open("/made", O_CREAT | O_WRONLY, 0600) < 0);
	CHECK(openat(empty, "made", O_CREAT | O_WRONLY, 0600) < 0);
	CHECK(openat(empty, "../../../../../../etc/passwd", O_RDONLY) < 0);
	CHECK(mkdir("/made", 0700) < 0);
	return 0;
}

static int landlock_holds(const struct sandbox_status *status)
{
	struct sockaddr_in tcp = {.sin_family = AF_INET, .sin_port = htons(9)};
	struct sockaddr_un abstract = {.sun_family = AF_UNIX, .sun_path = "\0corral-test"};

	if (status->landlock >= 1)
		CHECK(open("/", O_RDONLY | O_DIRECTORY) < 0 && errno == EACCES);
	if (status->landlock >= 4) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);
		CHECK(fd >= 0);
		tcp.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		CHECK(connect(fd, (void *)&tcp, sizeof(tcp)) < 0 && errno == EACCES);
		CHECK(bind(fd, (void *)&tcp, sizeof(tcp)) < 0 && errno == EACCES);
		close(fd);
	}
	if (status->landlock >= 6) {
		int fd = socket(AF_UNIX, SOCK_STREAM, 0);
		CHECK(fd >= 0);
		snprintf(abstract.sun_path + 1, sizeof(abstract.sun_path) - 1, "corral-test-%d",
			 (int)getppid());
		CHECK(connect(fd, (void *)&abstract, sizeof(abstract)) < 0 && errno == EPERM);
		close(fd);
		CHECK(kill(getppid(), 0) < 0 && errno == EPERM);
	}
	return 0;
}

static int listen_abstract(void)
{
	struct sockaddr_un abstract = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(abstract.sun_path + 1, sizeof(abstract.sun_path) - 1, "corral-test-%d",
		 (int)getpid());
	cr_assert(bind(fd, (void *)&abstract, sizeof(abstract)) == 0 && listen(fd, 1) == 0);
	return fd;
}

static int check_entered(const struct sandbox_options *options, struct sandbox_status *status)
{
	struct rlimit files, core;
	struct error err = ERROR_NULL;

	if (sandbox_enter(options, status, &err) < 0) {
		fprintf(stderr, "%s\n", err.text);
		return 1;
	}
	CHECK(getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_max <= 4096);
	CHECK(getrlimit(RLIMIT_CORE, &core) == 0 && core.rlim_max == 0);
	return has_no_way_back() || sees_no_files(status, options->empty_fd) ||
	       landlock_holds(status);
}

static int enter_as_root(const void *arg)
{
	struct sandbox_options options = {.empty_fd = *(const int *)arg};
	struct sandbox_status status;

	CHECK(check_entered(&options, &status) == 0);
	CHECK(getuid() == SANDBOX_UID_BASE + (uint32_t)getpid() && getuid() == getegid());
	CHECK(getgroups(0, NULL) == 0);
	for (unsigned long cap = 0; cap <= CAP_LAST_CAP; cap++)
		CHECK(prctl(PR_CAPBSET_READ, cap, 0, 0, 0) == 0);
	CHECK(strcmp(status.root, "empty, removed from the file system") == 0);
	CHECK(status.landlock > 0 || status.missing);
	table_deinit(&sandbox_status_table, &status);
	return 0;
}

static int enter_as_user(const void *arg)
{
	struct sandbox_options options = {.empty_fd = *(const int *)arg};
	struct sandbox_status status;

	CHECK(geteuid() != 0 || become_nobody() == 0);
	CHECK(check_entered(&options, &status) == 0);
	/* A host may forbid user namespaces: then the status has to say that the root is not empty.
	 */
	if (status.missing && strstr(status.missing, "an empty root"))
		CHECK(strcmp(status.root, "the launcher's") == 0);
	else
		CHECK(strcmp(status.root, "empty, removed from the file system") == 0 &&
		      strcmp(status.namespaces, "user, ipc") == 0);
	table_deinit(&sandbox_status_table, &status);
	return 0;
}

/* From within a chroot the kernel gives nobody a user namespace. */
static int enter_without_user_namespaces(const void *arg)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[2] = {0};
	struct sandbox_options options = {.empty_fd = *(const int *)arg};
	struct sandbox_status status;

	if (geteuid() != 0 && unshare(CLONE_NEWUSER) < 0)
		return 77;
	CHECK(chroot("/usr") == 0 && chdir("/") == 0);
	if (geteuid() == 0)
		CHECK(become_nobody() == 0);
	else
		CHECK(syscall(SYS_capset, &header, none) == 0);
	/* Landlock's denial of "/etc/passwd" is seen by a path that is there. */
	CHECK(access("/bin", F_OK) == 0);
	struct error err = ERROR_NULL;
	CHECK(sandbox_enter(&options, &status, &err) == 0);
	CHECK(strstr(status.missing, "a user namespace (Operation not permitted)"));
	CHECK(strstr(status.missing, "an empty root"));
	CHECK(strcmp(status.root, "the launcher's") == 0);
	CHECK(status.landlock == 0 || (open("/bin", O_RDONLY) < 0 && errno == EACCES));
	CHECK(has_no_way_back() == 0);
	CHECK(sandbox_thread(SANDBOX_MAIN) == 0);
	table_deinit(&sandbox_status_table, &status);
	return 0;
}

Test(sandbox, root_gives_all_up)
{
	int empty = make_empty();
	int listener = listen_abstract();

	if (geteuid() != 0)
		cr_skip_test("needs root");
	cr_expect(passed(in_child(enter_as_root, &empty)));
	close(listener);
	close(empty);
}

Test(sandbox, user_gives_all_up)
{
	int empty = make_empty();
	int listener = listen_abstract();

	cr_expect(passed(in_child(enter_as_user, &empty)));
	close(listener);
	close(empty);
}

Test(sandbox, user_without_namespaces_goes_on_and_says_so)
{
	int empty = make_empty();
	int status = in_child(enter_without_user_namespaces, &empty);

	close(empty);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		cr_skip_test("user namespaces are forbidden here: see user_gives_all_up");
	cr_expect(passed(status));
}

static int enter_a_full_root(const void *arg)
{
	struct sandbox_options options = {.empty_fd = open("/usr", O_PATH | O_DIRECTORY)};
	struct sandbox_status status;
	struct error err = ERROR_NULL;

	(void)arg;
	CHECK(sandbox_enter(&options, &status, &err) == -ENOTEMPTY);
	CHECK(strstr(err.text, "is not empty, it has \""));
	table_deinit(&sandbox_status_table, &status);
	return 0;
}

static int enter_no_root(const void *arg)
{
	struct sandbox_options options = {.empty_fd = -1};
	struct sandbox_status status;
	struct error err = ERROR_NULL;

	(void)arg;
	CHECK(sandbox_enter(&options, &status, &err) == -EBADF);
	CHECK(strstr(err.text, "directory that is to be the root"));
	table_deinit(&sandbox_status_table, &status);
	return 0;
}

static void *wait_for_ever(void *arg)
{
	pause();
	return arg;
}

static int enter_with_threads(const void *arg)
{
	struct sandbox_options options = {.empty_fd = *(const int *)arg};
	struct sandbox_status status;
	struct error err = ERROR_NULL;
	pthread_t thread;

	CHECK(pthread_create(&thread, NULL, wait_for_ever, NULL) == 0);
	CHECK(sandbox_enter(&options, &status, &err) == -EBUSY);
	CHECK(strstr(err.text, "it has threads already"));
	table_deinit(&sandbox_status_table, &status);
	return 0;
}

Test(sandbox, refuses_what_would_not_hold)
{
	int empty = make_empty();

	cr_expect(passed(in_child(enter_a_full_root, NULL)));
	cr_expect(passed(in_child(enter_no_root, NULL)));
	cr_expect(passed(in_child(enter_with_threads, &empty)));
	close(empty);
}

static int seal_too_early(const void *arg)
{
	(void)arg;
	CHECK(geteuid() != 0 || become_nobody() == 0);
	CHECK(sandbox_thread(SANDBOX_MAIN) == -EACCES);
	return 0;
}

Test(sandbox, a_thread_is_not_sealed_before_the_process)
{
	cr_expect(passed(in_child(seal_too_early, NULL)));
}

static int close_others(const void *arg)
{
	struct named_fds named = {.n_fds = 2};
	struct error err = ERROR_NULL;

	(void)arg;
	for (int fd = 3; fd < 8; fd++)
		CHECK(dup2(STDERR_FILENO, fd) == fd);
	CHECK(dup2(STDERR_FILENO, 700) == 700);
	CHECK(sandbox_close_others(&named, &err) == 0);
	for (int fd = 0; fd < 5; fd++)
		CHECK(fcntl(fd, F_GETFD) >= 0);
	for (int fd = 5; fd <= 700; fd++)
		CHECK(fcntl(fd, F_GETFD) < 0);
	return 0;
}

Test(sandbox, only_named_descriptors_stay)
{
	cr_expect(passed(in_child(close_others, NULL)));
}

#define COST_RUNS  25
#define COST_LIMIT 2000 /* microseconds of start-up: the bar */
/* On an emulated CPU everything is slow: there the bar is this many empty processes. */
#define COST_CHILDREN 3

static int seal_all(const void *arg)
{
	struct sandbox_options options = {.empty_fd = *(const int *)arg};
	struct sandbox_status status;
	struct error err = ERROR_NULL;

	CHECK(sandbox_enter(&options, &status, &err) == 0);
	CHECK(sandbox_thread(SANDBOX_MAIN) == 0);
	return 0;
}

static int seal_nothing(const void *arg)
{
	(void)arg;
	return 0;
}

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Microseconds from fork to the end of a child, what the kernel takes down after it included. */
static uint64_t child_takes(int (*body)(const void *arg), const void *arg)
{
	struct timespec before, after;

	clock_gettime(CLOCK_MONOTONIC, &before);
	cr_assert(passed(in_child(body, arg)));
	clock_gettime(CLOCK_MONOTONIC, &after);
	return (uint64_t)((after.tv_sec - before.tv_sec) * 1000000 +
			  (after.tv_nsec - before.tv_nsec) / 1000);
}

Test(sandbox, costs_less_than_two_milliseconds)
{
	uint64_t with[COST_RUNS], without[COST_RUNS];
	int empty = make_empty();

	if (SECCOMP_SANITIZED)
		cr_skip_test("timings of a build with sanitizers say nothing");
	for (size_t i = 0; i < COST_RUNS; i++) {
		with[i] = child_takes(seal_all, &empty);
		without[i] = child_takes(seal_nothing, NULL);
	}
	qsort(with, COST_RUNS, sizeof(with[0]), by_size);
	qsort(without, COST_RUNS, sizeof(without[0]), by_size);
	/* The fastest of each: what else the machine does can only add. */
	uint64_t child = without[0];
	cr_expect_leq(with[0] - child, MAX((uint64_t)COST_LIMIT, COST_CHILDREN * child),
		      "%llu us for the seals, an empty process %llu us",
		      (unsigned long long)(with[0] - child), (unsigned long long)child);
	close(empty);
}
