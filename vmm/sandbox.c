/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stages of sandbox.h. What comes in: a process with descriptors it was handed. What comes
 * out: the same descriptors and nothing else. The main thread, alone, up to stage B.
 *
 * chroot and not pivot_root: with no capability, no directory open outside and (as a user) no user
 * namespace to be had from inside a chroot there is no way back out, and it costs a sixth of a
 * mount namespace and nothing at the end. No network namespace: it would cost more than all the
 * rest together; no thread can make a socket.
 */
#include "vmm/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "vmm/landlock.h"
#include "vmm/seccomp/lists.h"

#if SECCOMP_SANITIZED
#include <sanitizer/common_interface_defs.h>
#endif

#define FILES_MAX_DEFAULT 4096
#define OVERFLOW_ID       65534u /* "nobody", where the uid of our own is not mapped */

_Static_assert(ARRAY_SIZE(seccomp_lists) == SANDBOX_THREADS, "a list for each kind of thread");

/* Seals taken so far. A process has one set of threads; it cannot be handed around sensibly. */
static _Atomic uint32_t sealed[SANDBOX_THREADS];

static const struct field step_fields[] = {
	FIELD(struct sandbox_step, name, FIELD_STRING, "name", "What was done"),
	FIELD(struct sandbox_step, microseconds, FIELD_U64, "microseconds", "How long it took"),
};
static const struct table step_table =
	TABLE(struct sandbox_step, "sandbox-step", "One step of giving up rights", step_fields);

static const struct field list_fields[] = {
	FIELD(struct sandbox_list, kind, FIELD_STRING, "kind", "Kind of thread"),
	FIELD(struct sandbox_list, calls, FIELD_U32, "calls", "System calls its threads may make"),
	FIELD(struct sandbox_list, threads, FIELD_U32, "threads", "Threads sealed with it"),
};
static const struct table list_table =
	TABLE(struct sandbox_list, "sandbox-list", "One list of system calls", list_fields);

static const struct field status_fields[] = {
	FIELD(struct sandbox_status, user, FIELD_STRING, "user", "Who the process is"),
	FIELD(struct sandbox_status, root, FIELD_STRING, "root", "What it sees of the files"),
	FIELD(struct sandbox_status, capabilities, FIELD_STRING, "capabilities",
	      "Rights above a user's"),
	FIELD(struct sandbox_status, namespaces, FIELD_STRING, "namespaces",
	      "Namespaces of its own"),
	FIELD(struct sandbox_status, no_new_privileges, FIELD_BOOL, "no-new-privileges",
	      "No program it starts could gain rights"),
	FIELD(struct sandbox_status, landlock, FIELD_U32, "landlock",
	      "Version of Landlock in force, 0 for none"),
	FIELD(struct sandbox_status, landlock_denies, FIELD_STRING, "landlock-denies",
	      "What Landlock denies"),
	FIELD(struct sandbox_status, sanitized, FIELD_BOOL, "sanitized",
	      "The lists are widened for a sanitizer: not how a release is sealed"),
	FIELD(struct sandbox_status, missing, FIELD_STRING, "missing",
	      "What this host does not let it have"),
	FIELD(struct sandbox_status, microseconds, FIELD_U64, "microseconds",
	      "How long all of it took, seccomp aside"),
	FIELD_LIST_OF(struct sandbox_status, steps, n_steps, &step_table, "steps",
		      "How long each step took"),
	FIELD_LIST_OF(struct sandbox_status, lists, n_lists, &list_table, "lists",
		      "System calls by kind of thread"),
};
const struct table sandbox_status_table =
	TABLE(struct sandbox_status, "sandbox", "What holds the VMM in", status_fields);

/* What the steps share. */
struct entry {
	const struct sandbox_options *options;
	struct sandbox_status *status;
	struct error *err;
	uint32_t uid; /* it came with */
	bool root;    /* may become another user */
	bool in_user_namespace;
};

static int set_text(char **text, const char *format, ...) __printf(2, 3);

static int set_text(char **text, const char *format, ...)
{
	va_list args;
	char *made;

	va_start(args, format);
	int r = vasprintf(&made, format, args);
	va_end(args);
	if (r < 0)
		return -ENOMEM;
	free(*text);
	*text = made;
	return 0;
}

/* One more thing that this host withholds. */
static int add_missing(struct sandbox_status *status, const char *what, int code)
{
	_cleanup_(freep) char *before = take_ptr(status->missing);

	return set_text(&status->missing, "%s%s%s (%s)", before ? before : "", before ? "; " : "",
			what, strerror(-code));
}

static int failed(const struct entry *entry, const char *doing)
{
	int code = -errno;

	return error_set(entry->err, code, "cannot seal the VMM: cannot %s: %s", doing,
			 strerror(-code));
}

static uint64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

int sandbox_close_others(const struct named_fds *named, struct error *err)
{
	if (close_range(NAMED_FDS_FIRST + named->n_fds, ~0u, 0) < 0) {
		int code = -errno;

		return error_set(err, code, "cannot close what was not handed over: %s",
				 strerror(-code));
	}
	return 0;
}

#if SECCOMP_SANITIZED
static _Atomic bool entered; /* sandbox_enter was called */

/* The leak check at exit looks into /proc/self/task: gone with the root. Called by its runtime. */
int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void)
{
	return atomic_load(&entered);
}

/* Debug information is read at the first address looked up: while there are files. */
static void warm_sanitizer(void)
{
	char line[200];

	__sanitizer_symbolize_pc(__builtin_return_address(0), "%f", line, sizeof(line));
}
#else
static void warm_sanitizer(void)
{
}
#endif

/*
 * What libraries would otherwise ask of the system at their first use, when it is too late: the
 * seed of jansson's hash tables (/dev/urandom), the time zone (/etc/localtime), and malloc's number
 * of CPUs. One arena is also less memory: nothing here allocates on a data path.
 */
static int settle_libraries(struct entry *entry)
{
	/* A sanitizer's allocator takes no options. */
	if (mallopt(M_ARENA_MAX, 1) != 1 && !SECCOMP_SANITIZED) {
		errno = ENOTSUP;
		return failed(entry, "keep malloc to one arena");
	}
	json_object_seed(0);
	tzset();
	warm_sanitizer();
	return 0;
}

static int set_limits(struct entry *entry)
{
	struct rlimit core = {0, 0};
	struct rlimit files;
	rlim_t most = entry->options->files_max ? entry->options->files_max : FILES_MAX_DEFAULT;

	if (setrlimit(RLIMIT_CORE, &core) < 0)
		return failed(entry, "switch core dumps off");
	if (getrlimit(RLIMIT_NOFILE, &files) < 0)
		return failed(entry, "read the limit on descriptors");
	files.rlim_max = files.rlim_cur = MIN(files.rlim_max, most);
	if (setrlimit(RLIMIT_NOFILE, &files) < 0)
		return failed(entry, "bound the number of descriptors");
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return failed(entry, "refuse new privileges");
	entry->status->no_new_privileges = true;
	return 0;
}

/*
 * Root leaves the launcher's IPC namespace; anyone else makes a user namespace to have the rights
 * that the next steps need. No user is mapped into it: then the kernel refuses to let the process
 * make a file anywhere, and nobody in it can become someone.
 */
static int enter_namespaces(struct entry *entry)
{
	entry->uid = geteuid();
	entry->root = entry->uid == 0 && unshare(CLONE_NEWIPC) == 0;
	if (entry->root)
		return set_text(&entry->status->namespaces, "ipc");
	entry->in_user_namespace = unshare(CLONE_NEWUSER | CLONE_NEWIPC) == 0;
	if (entry->in_user_namespace)
		return set_text(&entry->status->namespaces, "user, ipc");
	return add_missing(entry->status, "a user namespace", -errno);
}

/* A directory that was removed lists nothing at all, not even itself. */
static int check_empty(const struct entry *entry)
{
	struct linux_dirent {
		uint64_t inode, offset;
		uint16_t length;
		unsigned char type;
		char name[];
	};
	_Alignas(8) char buffer[1024];
	_cleanup_(fd_closep) int fd =
		openat(entry->options->empty_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return failed(entry, "look into the directory that is to be the root");
	long n = syscall(SYS_getdents64, fd, buffer, sizeof(buffer));
	if (n < 0 && errno != ENOENT)
		return failed(entry, "list the directory that is to be the root");
	for (long at = 0; at < n;) {
		const struct linux_dirent *entry_at = (const void *)(buffer + at);

		if (strcmp(entry_at->name, ".") != 0 && strcmp(entry_at->name, "..") != 0)
			return error_set(entry->err, -ENOTEMPTY,
					 "cannot seal the VMM: the directory that is to be its "
					 "root is not empty, it has \"%s\"",
					 entry_at->name);
		at += entry_at->length;
	}
	return 0;
}

static int enter_root(struct entry *entry)
{
	struct stat st;
	int r = check_empty(entry);

	if (r < 0)
		return r;
	if (fstat(entry->options->empty_fd, &st) < 0)
		return failed(entry, "look at the directory that is to be the root");
	if (fchdir(entry->options->empty_fd) < 0)
		return failed(entry, "go to the directory that is to be the root");
	if (chroot(".") < 0) {
		/* No namespace, or a security module that hands them out without their rights. */
		if (errno != EPERM)
			return failed(entry, "make an empty directory the root");
		r = set_text(&entry->status->root, "the launcher's");
		return r < 0 ? r : add_missing(entry->status, "an empty root", -EPERM);
	}
	if (chdir("/") < 0)
		return failed(entry, "go to the empty root");
	return set_text(&entry->status->root,
			st.st_nlink == 0 ? "empty, removed from the file system" : "empty");
}

/* Before the user changes: root's rights go with root. */
static int bound_capabilities(struct entry *entry)
{
	unsigned long cap = 0;

	while (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0)
		cap++;
	if (errno == EPERM) /* not ours to change; no new privileges makes up for it */
		return set_text(&entry->status->capabilities, "none, bounding set as it was");
	if (errno != EINVAL || cap == 0) /* EINVAL: past the last one */
		return failed(entry, "bound capabilities");
	return set_text(&entry->status->capabilities, "none");
}

static int become(uint32_t id)
{
	if (setgroups(0, NULL) < 0 || setresgid(id, id, id) < 0 || setresuid(id, id, id) < 0)
		return -errno;
	return 0;
}

static int drop_user(struct entry *entry)
{
	uint32_t id = SANDBOX_UID_BASE + (uint32_t)getpid();
	int r = -EPERM;

	if (entry->root)
		r = become(id);
	if (r == -EINVAL) { /* a container that maps fewer ids */
		id = OVERFLOW_ID;
		r = become(id);
	}
	if (r == 0)
		return set_text(&entry->status->user, "%u, no groups", id);
	if (r != -EPERM && r != -EINVAL) {
		errno = -r;
		return failed(entry, "become a user of its own");
	}
	if (entry->uid == 0) {
		r = add_missing(entry->status, "a user of its own", r);
		if (r < 0)
			return r;
	}
	return set_text(&entry->status->user, "%u, as the launcher", entry->uid);
}

static int drop_capabilities(struct entry *entry)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[2] = {0};

	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
		return failed(entry, "drop ambient capabilities");
	if (syscall(SYS_capset, &header, none) < 0)
		return failed(entry, "drop capabilities");
	/* Another process of the same user may now neither trace it nor read its /proc files. */
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return failed(entry, "refuse to be traced");
	return 0;
}

static int restrict_landlock(struct entry *entry)
{
	const char *denies;
	int abi = landlock_deny_all(&denies);

	if (abi < 0) {
		errno = -abi;
		return failed(entry, "enter a Landlock ruleset");
	}
	entry->status->landlock = (uint32_t)abi;
	if (abi == 0)
		return add_missing(entry->status, "Landlock", -EOPNOTSUPP);
	return set_text(&entry->status->landlock_denies, "%s", denies);
}

static const struct {
	const char *name;
	int (*take)(struct entry *entry);
} steps[] = {
	{"libraries", settle_libraries},          {"limits", set_limits},
	{"namespaces", enter_namespaces},         {"root", enter_root},
	{"capability bound", bound_capabilities}, {"user", drop_user},
	{"capabilities", drop_capabilities},      {"landlock", restrict_landlock},
};
_Static_assert(ARRAY_SIZE(steps) <= SANDBOX_STEPS_MAX, "each step has its place");

static int take_steps(struct entry *entry)
{
	uint64_t start = now_us();
	uint64_t before = start;

	for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
		struct sandbox_step *step = &entry->status->steps[i];
		int r = steps[i].take(entry);

		if (r == 0)
			r = set_text(&step->name, "%s", steps[i].name);
		if (r == -ENOMEM)
			return error_set(entry->err, r, "cannot seal the VMM: out of memory");
		if (r < 0)
			return r;
		uint64_t after = now_us();
		step->microseconds = after - before;
		entry->status->n_steps++;
		before = after;
	}
	entry->status->microseconds = before - start;
	return 0;
}

static int describe_lists(struct sandbox_status *status)
{
	for (size_t i = 0; i < ARRAY_SIZE(seccomp_lists); i++) {
		int r = set_text(&status->lists[i].kind, "%s", seccomp_lists[i].kind);

		if (r < 0)
			return r;
		status->lists[i].calls = seccomp_lists[i].n_calls;
		status->n_lists++;
	}
	status->sanitized = SECCOMP_SANITIZED;
	return 0;
}

/*
 * A launcher in the foreground has asked that its VMM goes when it goes; the kernel forgets that
 * when the user changes.
 */
static int take_steps_keeping_death(struct entry *entry)
{
	int death = 0;
	int r;

	if (prctl(PR_GET_PDEATHSIG, &death) < 0)
		death = 0;
	r = take_steps(entry);
	if (r == 0 && death != 0 && prctl(PR_SET_PDEATHSIG, death) < 0)
		r = error_set(
			entry->err, -errno,
			"cannot seal the VMM: its end cannot be tied to that of its launcher: %s",
			strerror(errno));
	return r;
}

int sandbox_enter(const struct sandbox_options *options, struct sandbox_status *ret_status,
		  struct error *err)
{
	struct entry entry = {.options = options, .status = ret_status, .err = err};

	if (table_init(&sandbox_status_table, ret_status) < 0 || describe_lists(ret_status) < 0)
		return error_set(err, -ENOMEM, "cannot seal the VMM: out of memory");
#if SECCOMP_SANITIZED
	atomic_store(&entered, true);
#endif
	/* The kernel grants this to a process of one thread, and changes nothing. */
	if (unshare(CLONE_THREAD) < 0)
		return error_set(err, -EBUSY, "cannot seal the VMM: it has threads already");
	return take_steps_keeping_death(&entry);
}

int sandbox_thread(enum sandbox_thread kind)
{
	const struct sock_fprog program = {
		.len = seccomp_lists[kind].n_code,
		.filter = (struct sock_filter *)seccomp_lists[kind].code,
	};

	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0)
		return -errno;
	atomic_fetch_add(&sealed[kind], 1);
	return 0;
}

json_t *sandbox_describe(struct sandbox_status *status)
{
	for (size_t i = 0; i < status->n_lists; i++)
		status->lists[i].threads = atomic_load(&sealed[i]);
	return table_to_json(&sandbox_status_table, status);
}
