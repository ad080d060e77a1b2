/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The seal: what a process that has it may still do, what it is refused, what kills it; of
 * corral-disk itself, that its child has it.
 */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "disk/crew.h"
#include "disk/seal.h"
#include "disk/test-disk.h"

static struct site site;

static void init(void)
{
	site_init(&site);
}

static void deinit(void)
{
	site_deinit(&site);
}

TestSuite(seal, .init = init, .fini = deinit, .timeout = 60);

static int empty_root(void)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/empty", site.dir);
	cr_assert(mkdir(path, 0700) == 0);
	fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	cr_assert(fd >= 0 && rmdir(path) == 0);
	return fd;
}

struct attempt {
	int (*run)(int file); /* 0 or an errno: its exit status */
	bool on_crew;
	bool as_user; /* an ordinary one */
	int file, r;
};

static void on_crew(void *arg)
{
	struct attempt *attempt = arg;

	attempt->r = attempt->run(attempt->file);
}

static _Noreturn void sealed(struct attempt *attempt, int empty)
{
	struct seal_report report;
	struct crew *crew = NULL;

	if (attempt->as_user &&
	    (setresgid(65534, 65534, 65534) < 0 || setresuid(65534, 65534, 65534) < 0))
		_exit(200);
	if (seal_process(empty, &report, NULL) < 0)
		_exit(201);
	if (crew_new(&crew, NULL) < 0)
		_exit(202);
	if (seal_calls() < 0)
		_exit(203);
	if (attempt->on_crew)
		crew_run(crew, on_crew, attempt);
	else
		on_crew(attempt);
	_exit(attempt->r);
}

/* Exit status, or 128 + the signal. */
static int try(struct attempt attempt)
{
	int empty = empty_root();
	char path[128];
	pid_t pid;

	snprintf(path, sizeof(path), "%s/file", site.dir);
	attempt.file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	cr_assert(attempt.file >= 0 && ftruncate(attempt.file, 1 << 20) == 0);
	pid = fork();
	if (pid == 0)
		sealed(&attempt, empty);
	close(attempt.file);
	close(empty);
	return end_of(pid);
}

static int open_file(int file _unused_)
{
	return open("/etc/passwd", O_RDONLY) < 0 ? errno : 0;
}

static int make_file(int file _unused_)
{
	return syscall(SYS_openat, AT_FDCWD, "x", O_RDWR | O_CREAT, 0600) < 0 ? errno : 0;
}

Test(seal, opening_is_refused)
{
	cr_expect_eq(try((struct attempt){open_file}), EACCES);
	cr_expect_eq(try((struct attempt){make_file}), EACCES);
	cr_expect_eq(try((struct attempt){open_file, .on_crew = true}), EACCES);
}

Test(seal, an_ordinary_user_can_take_it)
{
	if (geteuid() != 0)
		cr_skip_test("not root, so all the others show it\n");
	cr_expect_eq(try((struct attempt){open_file, .as_user = true}), EACCES);
	cr_expect_eq(try((struct attempt){make_file, .as_user = true, .on_crew = true}), EACCES);
}

static int use_file(int file)
{
	char byte = 1;
	struct file_clone_range range = {.src_fd = file, .src_length = 4096, .dest_offset = 65536};

	if (pwrite(file, &byte, 1, 5) != 1 || pread(file, &byte, 1, 5) != 1 ||
	    fdatasync(file) < 0 ||
	    fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) < 0 ||
	    lseek(file, 0, SEEK_HOLE) < 0 || ftruncate(file, 1 << 21) < 0)
		return errno;
	if (ioctl(file, FICLONERANGE, &range) < 0 && errno != EOPNOTSUPP && errno != EINVAL)
		return errno;
	return malloc(1 << 22) ? 0 : ENOMEM;
}

Test(seal, files_that_are_open_can_be_used)
{
	cr_expect_eq(try((struct attempt){use_file}), 0);
	cr_expect_eq(try((struct attempt){use_file, .on_crew = true}), 0);
}

static int make_socket(int file _unused_)
{
	return socket(AF_INET, SOCK_STREAM, 0) < 0 ? errno : 0;
}

static int make_process(int file _unused_)
{
	return fork() < 0 ? errno : 0;
}

static int run_program(int file _unused_)
{
	char *const argv[] = {(char *)"true", NULL};

	return execv("/bin/true", argv) < 0 ? errno : 0;
}

static int signal_others(int file _unused_)
{
	return kill(getppid(), 0) < 0 ? errno : 0;
}

static int look_at_names(int file _unused_)
{
	struct stat st;

	return syscall(SYS_statx, AT_FDCWD, "/", 0, 0, &st) < 0 ? errno : 0;
}

static int remove_name(int file _unused_)
{
	return unlink("file") < 0 ? errno : 0;
}

static int new_namespace(int file _unused_)
{
	return unshare(CLONE_NEWUSER) < 0 ? errno : 0;
}

static int change_flags(int file)
{
	return fcntl(file, F_SETFL, O_APPEND) < 0 ? errno : 0;
}

#ifndef CORRAL_SANITIZED /* their runtimes need these */
static int run_own_code(int file _unused_)
{
	return mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		    0) == MAP_FAILED
		       ? errno
		       : 0;
}

static int type_for_the_user(int file)
{
	return ioctl(file, TIOCSTI, "x") < 0 ? errno : 0;
}
#endif

Test(seal, all_else_kills)
{
	static int (*const attempts[])(int file) = {
		make_socket,  make_process,      run_program,  signal_others,
		remove_name,  new_namespace,     change_flags, look_at_names,
#ifndef CORRAL_SANITIZED
		run_own_code, type_for_the_user,
#endif
	};

	for (size_t i = 0; i < ARRAY_SIZE(attempts); i++) {
		cr_expect_eq(try((struct attempt){attempts[i]}), 128 + SIGSYS, "%zu", i);
		cr_expect_eq(try((struct attempt){attempts[i], .on_crew = true}), 128 + SIGSYS,
			     "%zu on a thread", i);
	}
}

static pid_t child_of(pid_t parent)
{
	char path[64], text[64] = "";
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", parent, parent);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	cr_assert(fd >= 0 && read(fd, text, sizeof(text) - 1) > 0, "%d has no child", parent);
	close(fd);
	return atoi(text);
}

/* A map that nobody reads to its end: both processes wait, sealed. */
Test(seal, the_process_that_reads_images_has_it)
{
	_cleanup_(freep) char *text = NULL;
	char path[64], byte[4096];
	size_t size;
	int out, fd;
	pid_t pid;

	ok(&site, "truncate -s 1G a");
	pieces(&site, "a", 20000);
	pid = start(&site, &out, "$D map a --format raw");
	cr_assert_gt(read(out, byte, sizeof(byte)), 0);
	snprintf(path, sizeof(path), "/proc/%d/status", child_of(pid));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	cr_assert_eq(fd_read_all(fd, 1 << 16, &text, &size), 0);
	close(fd);
	cr_expect(has(text, "\nSeccomp:\t2\n"), "%s", text);
	cr_expect(has(text, "\nNoNewPrivs:\t1\n"), "%s", text);
	cr_expect(has(text, "\nCapEff:\t0000000000000000\n"), "%s", text);
	cr_expect(has(text, "\nCapPrm:\t0000000000000000\n"), "%s", text);
	if (geteuid() == 0)
		cr_expect(!has(text, "\nUid:\t0\t"), "%s", text);
	cr_expect_eq(kill(pid, SIGKILL), 0);
	end_of(pid);
	close(out);
}

Test(seal, verbose_says_how)
{
	ok(&site, "truncate -s 1M a; $D info a --format raw -v");
	cr_expect(has(site.err, "sealed: "), "%s", site.err);
	cr_expect(has(site.err, "system calls listed"), "%s", site.err);
	ok(&site, "$D info a --format raw");
	cr_expect_str_empty(site.err);
}
