/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `corral ci`: a list of commands, each in a guest of its own, N at a time. Each is a child of ours
 * that does what `corral run -- COMMAND` does and leaves its result in memory we share; we start
 * them, show how they fare, and report. In: the file. Out: one exit status: 0 all passed, 1 some
 * failed, 125 some could not be run.
 */
#include "mgmt/local/ci.h"

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "mgmt/local/ci-report.h"
#include "mgmt/local/ci-show.h"
#include "mgmt/local/flags.h"
#include "mgmt/local/guest-root.h"
#include "mgmt/local/local.h"
#include "mgmt/local/options.h"

#define JOBS_MAX  256
#define NOTES_MAX 65536
#define WORDS_MAX (JOB_WORDS_MAX + 2 * (JOB_ENVIRONMENT_MAX + VM_DISKS_MAX + VM_NETS_MAX) + 40)

struct ci {
	const char *jobs_text, *junit, *filter, *logs; /* flags; borrowed, NULL: not given */
	bool tap, help;
	uint32_t n_jobs;
	struct ci_list list;
	struct ci_slot *slots; /* owned: one a test; shared with our children */
	uint32_t n_slots;      /* those that the filter left */
	struct ci_image *images;
	uint32_t n_images;
	uint32_t next, running;
	int signal, signal_fd;
	struct ci_show show;
};

/* A directory and what was made of it. */
struct ci_image {
	const char *rootfs; /* borrowed */
	int fd;             /* owned */
	char path[64];
};

static int set_words(void *object, const struct flag *flag, const char *value, struct error *err)
{
	return flag_set_word(object, flag, value, err);
}

static const struct flag ci_flags[] = {
	{"--jobs", "N", "guests at a time (half as many as there are CPUs)", set_words,
	 .offset = offsetof(struct ci, jobs_text)},
	{"--junit", "FILE", "results as JUnit's XML", set_words,
	 .offset = offsetof(struct ci, junit)},
	{"--tap", NULL, "results as TAP, on standard output", flag_set_true,
	 .offset = offsetof(struct ci, tap)},
	{"--filter", "PATTERN", "only tests whose name matches, as a shell matches files",
	 set_words, .offset = offsetof(struct ci, filter)},
	{"--keep-logs", "DIR", "put NAME.out, NAME.err and NAME.log there", set_words,
	 .offset = offsetof(struct ci, logs)},
	{"--help", NULL, "this text", flag_set_true, .offset = offsetof(struct ci, help)},
};

void ci_help(void)
{
	flags_help(ci_flags, ARRAY_SIZE(ci_flags));
	printf("\nFILE: {\"defaults\": {…}, \"tests\": [{…}, …]}; each test, and the defaults, "
	       "may have\n");
	for (uint32_t i = 0; i < ci_test_table.n_fields; i++)
		printf("  %-16s%s\n", ci_test_table.fields[i].name, ci_test_table.fields[i].help);
	printf("  %-16s%s\n  %-16s%s\n  %-16s%s\n  %-16s%s\n", "command",
	       "array: the program and its arguments", "env",
	       "object: the program's environment; null: the launcher's own value", "disks",
	       "array: disks before its root, each as after --disk", "nets",
	       "array: network cards, each as after --net");
}

/* In the child. */

struct words {
	int n;
	char *list[WORDS_MAX];
};

static void __attribute__((format(printf, 3, 4)))
word_add(struct words *words, const char *flag, const char *format, ...)
{
	va_list list;

	if (words->n + 2 >= WORDS_MAX)
		return;
	if (flag)
		words->list[words->n++] = (char *)flag;
	va_start(list, format);
	if (vasprintf(&words->list[words->n], format, list) >= 0)
		words->n++;
	va_end(list);
}

/* The same words a person would give to `corral run`. */
static void words_make(struct words *words, const struct ci_test *test, uint32_t number)
{
	word_add(words, NULL, "run");
	word_add(words, "--name", "ci-%d-%u", (int)getppid(), number);
	word_add(words, "--rootfs", "%s", test->rootfs);
	if (test->kernel)
		word_add(words, "--kernel", "%s", test->kernel);
	if (test->append)
		word_add(words, "--append", "%s", test->append);
	if (test->modules)
		word_add(words, "--modules", "%s", test->modules);
	if (test->timeout)
		word_add(words, "--timeout", "%s", test->timeout);
	if (test->cwd)
		word_add(words, "--cwd", "%s", test->cwd);
	if (test->memory)
		word_add(words, "--memory", "%llu", (unsigned long long)test->memory);
	if (test->cpus)
		word_add(words, "--cpus", "%u", test->cpus);
	if (test->vsock_cid)
		word_add(words, "--vsock", "%u", test->vsock_cid);
	for (char **word = test->disks; word && *word; word++)
		word_add(words, "--disk", "%s", *word);
	for (char **word = test->nets; word && *word; word++)
		word_add(words, "--net", "%s", *word);
	for (char **word = test->environment; word && *word; word++)
		word_add(words, "--env", "%s", *word);
	word_add(words, NULL, "--");
	for (char **word = test->command; *word; word++)
		word_add(words, NULL, "%s", *word);
}

static int log_open(const char *directory, const char *name, const char *end)
{
	char path[4096];
	int n = snprintf(path, sizeof(path), "%s/%s.%s", directory, name, end);

	for (int i = n - strlen(name) - strlen(end) - 1; i < n && path[i]; i++)
		if (path[i] == '/')
			path[i] = '_';
	return open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
}

static void __attribute__((noreturn)) child_run(struct ci *ci, struct ci_slot *slot, pid_t parent)
{
	static struct words words;
	struct run_options options;
	struct error err = ERROR_NULL;
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	prctl(PR_SET_PDEATHSIG, SIGTERM);
	/* What a person types is for our parent, who tells us: asked twice we would be abrupt. */
	setpgid(0, 0);
	if (getppid() != parent)
		_exit(0);
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	dup2(slot->notes_fd, STDERR_FILENO);
	words_make(&words, slot->test, slot - ci->slots);
	if (options_read(&options, words.n, words.list, &err) != LOCAL_OK) {
		job_fail(&options.job, slot->test->name, &err);
	} else {
		options.job.silent = true;
		options.job.image = slot->image;
		options.job.result.out.data = slot->out;
		options.job.result.err.data = slot->err;
		if (ci->logs) {
			options.job.copies[0] = log_open(ci->logs, slot->test->name, "out");
			options.job.copies[1] = log_open(ci->logs, slot->test->name, "err");
		}
		run_vm(&options);
	}
	slot->result = options.job.result;
	_exit(0);
}

/* In the parent. */

static bool slot_passed(const struct ci_slot *slot)
{
	return slot->result.outcome != JOB_BROKEN && slot->result.outcome != JOB_INTERRUPTED &&
	       (uint32_t)slot->result.status == slot->test->expect_status;
}

static int slot_start(struct ci *ci, struct ci_slot *slot)
{
	pid_t parent = getpid(), pid;

	slot->result = (struct job_result){.outcome = JOB_BROKEN, .status = JOB_STATUS_BROKEN};
	snprintf(slot->result.text, sizeof(slot->result.text),
		 "the launcher of \"%s\" died: please report this", slot->test->name);
	slot->notes_fd = memfd_create("notes", MFD_CLOEXEC);
	slot->started_ms = clock_ms();
	pid = slot->notes_fd < 0 ? -1 : fork();
	if (!pid) {
		sigset_t none;

		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		child_run(ci, slot, parent);
	}
	if (pid < 0)
		return -errno;
	slot->pid = pid; /* not before: the child has this memory too */
	ci->running++;
	return 0;
}

/* What its launcher said: sentences, a trace. */
static void notes_take(struct ci *ci, struct ci_slot *slot)
{
	char *text = calloc(1, NOTES_MAX);

	if (text && pread(slot->notes_fd, text, NOTES_MAX - 1, 0) < 0)
		text[0] = '\0';
	if (text && ci->logs) {
		_cleanup_(fd_closep) int fd = log_open(ci->logs, slot->test->name, "log");

		if (fd >= 0 && fd_write_full(fd, text, strlen(text)) < 0)
			local_say("cannot write the log of \"%s\", ignoring", slot->test->name);
	}
	slot->notes_fd = fd_close(slot->notes_fd);
	slot->notes = text;
}

static void slot_end(struct ci *ci, struct ci_slot *slot)
{
	slot->pid = 0;
	ci->running--;
	notes_take(ci, slot);
	slot->done = true;
	slot->passed = slot_passed(slot);
	if (!slot->passed && !slot->result.text[0])
		snprintf(slot->result.text, sizeof(slot->result.text),
			 "ended with status %d, not %u", slot->result.status,
			 slot->test->expect_status);
	if (slot->passed)
		free(take_ptr(slot->notes));
	ci_show_end(&ci->show, slot);
}

static void children_reap(struct ci *ci)
{
	pid_t pid;

	while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
		for (uint32_t i = 0; i < ci->n_slots; i++)
			if (ci->slots[i].pid == pid)
				slot_end(ci, &ci->slots[i]);
}

static void children_stop(struct ci *ci, int signal)
{
	ci->signal = signal;
	for (uint32_t i = 0; i < ci->n_slots; i++)
		if (ci->slots[i].pid > 0)
			kill(ci->slots[i].pid, SIGTERM);
}

static void signals_read(struct ci *ci)
{
	struct signalfd_siginfo info;

	while (read(ci->signal_fd, &info, sizeof(info)) == sizeof(info))
		if (info.ssi_signo != SIGCHLD)
			children_stop(ci, info.ssi_signo);
	children_reap(ci);
}

static void signals_watch(struct ci *ci)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	ci->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static int tests_run(struct ci *ci, struct error *err)
{
	signals_watch(ci);
	if (ci->signal_fd < 0)
		return error_set(err, -errno, "cannot watch signals: %s", strerror(errno));
	while (ci->running || (!ci->signal && ci->next < ci->n_slots)) {
		struct pollfd signals = {.fd = ci->signal_fd, .events = POLLIN};

		while (!ci->signal && ci->running < ci->n_jobs && ci->next < ci->n_slots) {
			struct ci_slot *slot = &ci->slots[ci->next++];
			int r = slot_start(ci, slot);

			if (r < 0) {
				children_stop(ci, SIGTERM);
				return error_set(err, r, "cannot start \"%s\": %s",
						 slot->test->name, strerror(-r));
			}
		}
		ci_show_running(&ci->show, ci->slots, ci->n_slots);
		if (poll(&signals, 1, ci->show.live ? CI_SHOW_MS : -1) > 0)
			signals_read(ci);
	}
	return 0;
}

/* A directory is made into an image once, whoever has it as a root. */
static int image_for(struct ci *ci, struct ci_slot *slot, struct error *err)
{
	struct ci_image *image;
	struct stat st;
	int r;

	if (stat(slot->test->rootfs, &st) < 0 || !S_ISDIR(st.st_mode))
		return 0;
	for (uint32_t i = 0; i < ci->n_images; i++)
		if (!strcmp(ci->images[i].rootfs, slot->test->rootfs)) {
			slot->image = ci->images[i].path;
			return 0;
		}
	image = &ci->images[ci->n_images];
	r = guest_root_make(slot->test->rootfs, &image->fd, err);
	if (r < 0)
		return r;
	ci->n_images++;
	image->rootfs = slot->test->rootfs;
	snprintf(image->path, sizeof(image->path), "/proc/%d/fd/%d", (int)getpid(), image->fd);
	slot->image = image->path;
	return 0;
}

static int slots_make(struct ci *ci, struct error *err)
{
	size_t size = ci->list.n_tests * sizeof(struct ci_slot);
	int r = 0;

	ci->images = calloc(ci->list.n_tests, sizeof(*ci->images));
	ci->slots = mmap(NULL, size, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (!ci->images || ci->slots == MAP_FAILED)
		return error_set(err, -ENOMEM, "cannot prepare %u tests: out of memory",
				 ci->list.n_tests);
	for (uint32_t i = 0; r >= 0 && i < ci->list.n_tests; i++) {
		struct ci_slot *slot = &ci->slots[ci->n_slots];

		if (ci->filter && fnmatch(ci->filter, ci->list.tests[i].name, 0) != 0)
			continue;
		slot->test = &ci->list.tests[i];
		slot->notes_fd = -1;
		ci->n_slots++;
		r = image_for(ci, slot, err);
	}
	if (r >= 0 && !ci->n_slots)
		return error_set(err, -ENOENT, "no test's name matches \"%s\"", ci->filter);
	return r;
}

static int jobs_read(struct ci *ci, struct error *err)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	char *end = "";

	ci->n_jobs = ci->jobs_text ? strtoul(ci->jobs_text, &end, 10) : MAX(cpus / 2, 1L);
	if (*end || !ci->n_jobs || ci->n_jobs > JOBS_MAX)
		return error_set(err, -EINVAL, "--jobs: \"%s\" is not a number from 1 to %d",
				 ci->jobs_text, JOBS_MAX);
	if (ci->logs && mkdir(ci->logs, 0777) < 0 && errno != EEXIST)
		return error_set(err, -errno, "cannot make the directory \"%s\": %s", ci->logs,
				 strerror(errno));
	return 0;
}

static int results_report(struct ci *ci, const char *suite, struct error *err)
{
	struct ci_result *results = calloc(ci->n_slots, sizeof(*results));
	int r = 0;

	if (!results)
		return error_set(err, -ENOMEM, "cannot report: out of memory");
	for (uint32_t i = 0; i < ci->n_slots; i++) {
		struct ci_slot *slot = &ci->slots[i];

		if (!slot->done) {
			slot->result.outcome = JOB_INTERRUPTED;
			snprintf(slot->result.text, sizeof(slot->result.text), "not started");
		}
		results[i] = (struct ci_result){slot->test->name, slot->passed, slot->result};
	}
	if (ci->tap)
		ci_tap_print(stdout, results, ci->n_slots);
	if (ci->junit)
		r = ci_junit_write(ci->junit, suite, results, ci->n_slots, err);
	free(results);
	return r;
}

static int ci_status(const struct ci *ci)
{
	int status = LOCAL_OK;

	if (ci->signal)
		return 128 + ci->signal;
	for (uint32_t i = 0; i < ci->n_slots; i++) {
		if (ci->slots[i].result.outcome == JOB_BROKEN)
			return JOB_STATUS_BROKEN;
		if (!ci->slots[i].passed)
			status = LOCAL_FAILED;
	}
	return status;
}

static int ci_all(struct ci *ci, const char *file, struct error *err)
{
	const char *suite = strrchr(file, '/') ? strrchr(file, '/') + 1 : file;
	int r = jobs_read(ci, err);

	if (r >= 0)
		r = ci_list_read(&ci->list, file, err);
	if (r >= 0)
		r = slots_make(ci, err);
	if (r < 0)
		return r;
	r = ci_show_init(&ci->show, ci->tap, ci->n_slots);
	if (r < 0)
		return error_set(err, r, "cannot show how the tests fare: %s", strerror(-r));
	r = tests_run(ci, err);
	if (r >= 0) {
		ci_show_close(&ci->show, ci->slots, ci->n_slots);
		r = results_report(ci, suite, err);
	}
	return r;
}

static void ci_deinit(struct ci *ci)
{
	for (uint32_t i = 0; i < ci->n_slots; i++)
		free(ci->slots[i].notes);
	for (uint32_t i = 0; i < ci->n_images; i++)
		fd_close(ci->images[i].fd);
	free(ci->images);
	if (ci->slots)
		munmap(ci->slots, ci->list.n_tests * sizeof(struct ci_slot));
	fd_close(ci->signal_fd);
	ci_list_deinit(&ci->list);
	ci_show_deinit(&ci->show);
}

int verb_ci(int argc, char **argv)
{
	struct ci ci = {.signal_fd = -1};
	struct error err = ERROR_NULL;
	const char *file = NULL;
	int status;

	if (flags_parse(ci_flags, ARRAY_SIZE(ci_flags), &ci, argc, argv, &file, &err) < 0)
		return local_fail(&err, JOB_STATUS_BROKEN);
	if (ci.help) {
		ci_help();
		return LOCAL_OK;
	}
	if (!file) {
		local_say("no list of tests given: `corral ci FILE`, see `corral help ci`");
		return JOB_STATUS_BROKEN;
	}
	status = ci_all(&ci, file, &err) < 0 ? local_fail(&err, JOB_STATUS_BROKEN) : ci_status(&ci);
	ci_deinit(&ci);
	return status;
}
