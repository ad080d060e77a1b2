/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `corral run … -- COMMAND` and `corral ci` with a VMM whose guest says whatever a test wants it to
 * say, on the channel and on the console. What a guest prints to the channel is on the kernel's
 * command line, in hexadecimal digits.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/init/protocol.h"
#include "mgmt/local/test-host.h"

#define HELLO "000000000400000001000000"
#define OUT_HI             \
	"0100000003000000" \
	"68690a"
#define ERR_OOPS           \
	"0200000005000000" \
	"6f6f70730a"
#define END(kind, value) "0300000008000000" kind "000000" value "000000"

static struct host host;
static struct said said;

/* A root image, as far as a launcher looks. */
static void init(void)
{
	int fd;

	host_init(&host);
	fd = open(host.disk, O_WRONLY | O_CLOEXEC);
	cr_assert(fd >= 0 && pwrite(fd, "\x53\xef", 2, 1080) == 2);
	fd_close(fd);
}

static void deinit(void)
{
	cr_assert_eq(host_left(&host), 0, "the run directory is not empty");
	host_deinit(&host);
}

TestSuite(ci, .init = init, .fini = deinit);

/* Runs "the-command" in a guest that does what `append` says. */
static void run(const char *append)
{
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--modules", "none", "--rootfs",
		    host.disk, "--timeout", "20s", "--append", append, "--", "the-command", "-x",
		    NULL);
}

Test(ci, output_and_status_pass)
{
	run("port=" HELLO OUT_HI ERR_OOPS END("00", "07"));
	cr_assert_eq(said.status, 7, "%d: %s", said.status, said.err);
	cr_assert_str_eq(said.out, "hi\n");
	cr_assert_str_eq(said.err, "oops\ncorral: \"the-command\" ended with status 7 in the "
				   "guest\n");
}

Test(ci, success_says_nothing)
{
	run("say=console port=" HELLO END("00", "00"));
	cr_assert_eq(said.status, 0);
	cr_assert_str_eq(said.out, "");
	cr_assert_str_eq(said.err, "");
}

Test(ci, signal_and_no_exec)
{
	run("port=" HELLO END("01", "09"));
	cr_assert_eq(said.status, 137);
	assert_has(said.err, "killed in the guest by signal 9");
	run("port=" HELLO END("02", "02"));
	cr_assert_eq(said.status, 127);
	assert_has(said.err, "cannot run \"the-command\" in the guest: No such file");
	run("port=" HELLO END("02", "0d"));
	cr_assert_eq(said.status, 126);
}

Test(ci, guest_that_could_not_start_it)
{
	run("port=" HELLO "0400000009000000"
	    "16000000"
	    "726f6f741b");
	cr_assert_eq(said.status, 125);
	assert_has(said.err, "could not start \"the-command\": root?: Invalid argument");
}

Test(ci, liar_is_ended)
{
	run("port=" HELLO "ffffffffffffffff");
	cr_assert_eq(said.status, 122);
	assert_has(said.err, "no part of the protocol");
}

Test(ci, flooding_liar_is_ended)
{
	run("portflood=4141414141414141");
	cr_assert_eq(said.status, 122);
}

Test(ci, half_a_frame_and_the_end)
{
	run("port=" HELLO "0100000003000000"
	    "68 end=power-off");
	cr_assert_eq(said.status, 122);
	cr_assert_str_eq(said.out, "h");
	assert_has(said.err, "was powered off before it had said a status");
}

Test(ci, panic_shows_the_trace)
{
	run("say=before say=Oops: say=Call-Trace port=" HELLO OUT_HI " end=panic");
	cr_assert_eq(said.status, 121);
	cr_assert_str_eq(said.out, "hi\n");
	assert_has(said.err, "the guest of \"the-command\" died");
	assert_has(said.err, "  | Call-Trace");
	cr_assert(!strstr(said.err, "before\n"));
}

Test(ci, vmm_that_fails)
{
	run("fail");
	cr_assert_eq(said.status, 125);
	run("die=11");
	cr_assert_eq(said.status, 125);
	assert_has(said.err, "was not judged (vmm-fault)");
}

static void run_short(const char *append)
{
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--modules", "none", "--rootfs",
		    host.disk, "--timeout", "1", "--append", append, "--", "the-command", NULL);
}

Test(ci, silence_times_out)
{
	run_short("say=last-words");
	cr_assert_eq(said.status, 124);
	assert_has(said.err, "\"the-command\" did not end within 1 s; its guest had not started");
	assert_has(said.err, "  | last-words");
	run_short("port=" HELLO);
	cr_assert_eq(said.status, 124);
	cr_assert(!strstr(said.err, "not started"));
}

Test(ci, deaf_vmm_is_killed)
{
	run_short("deaf");
	cr_assert_eq(said.status, 124);
}

/* Nobody reads what it prints, and it prints for ever: the clock and signals go on. */
Test(ci, flood_nobody_reads)
{
	struct running running = host_start(
		&host, "run", "--kernel", host.kernel, "--modules", "none", "--rootfs", host.disk,
		"--timeout", "1s", "--append", "port=" HELLO " portflood=" OUT_HI, "--", "x", NULL);
	char first[3];

	cr_assert_eq(fd_read_full(running.out, first, 3), 0);
	process_gone(running.pid);
	running_end(&host, &running, &said);
	cr_assert_eq(said.status, 124);
}

Test(ci, interrupt_ends_it)
{
	struct running running =
		host_start(&host, "run", "--kernel", host.kernel, "--modules", "none", "--rootfs",
			   host.disk, "--append", "port=" HELLO OUT_HI, "--", "x", NULL);

	running_expect(&running, "hi\n");
	kill(running.pid, SIGINT);
	running_end(&host, &running, &said);
	cr_assert_eq(said.status, 130);
	assert_has(said.err, "was interrupted by SIGINT");
}

Test(ci, words_that_do_not_fit)
{
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--", "x", NULL);
	cr_assert_eq(said.status, 125);
	assert_has(said.err, "add --rootfs DIR");
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--rootfs", host.disk, NULL);
	cr_assert_eq(said.status, 125);
	assert_has(said.err, "add -- COMMAND");
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--rootfs", host.disk, "--initrd",
		    host.disk, "--", "x", NULL);
	assert_has(said.err, "--initrd does not go with a command");
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--rootfs", host.disk,
		    "--timeout", "never", "--", "x", NULL);
	assert_has(said.err, "\"never\" is no time");
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--rootfs", host.kernel,
		    "--modules", "none", "--", "x", NULL);
	assert_has(said.err, "none of the file systems");
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--rootfs", host.disk, "--", "x",
		    NULL);
	cr_assert_eq(said.status, 125);
	assert_has(said.err, "cannot tell the version of kernel");
}

static void run_env(const char *word, const char *append)
{
	host_corral(&host, &said, "run", "-v", "--kernel", host.kernel, "--modules", "none",
		    "--rootfs", host.disk, "--env", word, "--append", append, "--", "x", NULL);
}

Test(ci, environment_by_name_is_the_launchers)
{
	setenv("CORRAL_TEST_OWN", "of=ours", true);
	unsetenv("CORRAL_TEST_NONE");
	run_env("CORRAL_TEST_OWN", "has=CORRAL_TEST_OWN=of=ours port=" HELLO END("00", "00"));
	cr_assert_eq(said.status, 0, "%s", said.err);
	assert_has(said.err, "has CORRAL_TEST_OWN=of=ours\n");
	/* What is not set here is not set there, not even empty; part of a name is no name. */
	run_env("CORRAL_TEST_NONE", "has=CORRAL_TEST_NONE port=" HELLO END("00", "00"));
	cr_assert_eq(said.status, 0, "%s", said.err);
	assert_has(said.err, "lacks CORRAL_TEST_NONE\n");
	run_env("CORRAL_TEST", "has=CORRAL_TEST port=" HELLO END("00", "00"));
	assert_has(said.err, "lacks CORRAL_TEST\n");
	run_env("=x", "");
	cr_assert_eq(said.status, 125);
	assert_has(said.err, "\"=x\" is neither NAME=VALUE nor a NAME");
}

static void text_of(const char *name, char *text, size_t size)
{
	char path[128];
	int fd;
	ssize_t n;

	snprintf(path, sizeof(path), "%s/%s", host.dir, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? 0 : read(fd, text, size - 1);
	text[MAX(n, 0)] = '\0';
	fd_close(fd);
}

Test(ci, report_of_one)
{
	char path[128], text[4096];

	snprintf(path, sizeof(path), "%s/one.xml", host.dir);
	host_corral(&host, &said, "run", "--name", "web", "--kernel", host.kernel, "--modules",
		    "none", "--rootfs", host.disk, "--junit", path, "--append",
		    "port=" HELLO OUT_HI END("00", "02"), "--", "x", NULL);
	cr_assert_eq(said.status, 2);
	text_of("one.xml", text, sizeof(text));
	assert_has(text, "<testsuite name=\"web\" tests=\"1\" failures=\"1\"");
	assert_has(text, "<failure type=\"ended\" message=\"&quot;x&quot; ended with status 2");
	assert_has(text, "<system-out>hi\n</system-out>");
}

/* A root that is a directory becomes an image that mke2fs makes; it has no name. */
Test(ci, root_that_is_a_directory)
{
	char root[128];

	snprintf(root, sizeof(root), "%s/run", host.dir);
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--modules", "none", "--rootfs",
		    "/etc/default", "--append", "port=" HELLO END("00", "00"), "--", "x", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
}

static void list_write(const char *tests)
{
	char path[128], text[8192];
	int fd, n;

	snprintf(path, sizeof(path), "%s/list.json", host.dir);
	n = snprintf(text, sizeof(text),
		     "{\"defaults\": {\"rootfs\": \"disk\", \"kernel\": \"kernel\", "
		     "\"modules\": \"none\", \"timeout\": \"20s\", \"command\": [\"x\"]}, "
		     "\"tests\": [%s]}",
		     tests);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	cr_assert(fd >= 0 && !fd_write_full(fd, text, n));
	fd_close(fd);
}

static const char *list_path(void)
{
	static char path[128];

	snprintf(path, sizeof(path), "%s/list.json", host.dir);
	return path;
}

#define GOOD "{\"name\": \"good\", \"append\": \"port=" HELLO OUT_HI END("00", "00") "\"}"
#define THREE                                                                             \
	"{\"name\": \"three\", \"expect-status\": 3, \"append\": \"port=" HELLO END("00", \
										    "03") "\"}"
#define BAD   "{\"name\": \"bad\", \"append\": \"port=" HELLO OUT_HI ERR_OOPS END("00", "01") "\"}"
#define PANIC "{\"name\": \"panic\", \"append\": \"say=Oops: end=panic\"}"

Test(ci, list_that_passes)
{
	list_write(GOOD "," THREE);
	host_corral(&host, &said, "ci", list_path(), NULL);
	cr_assert_eq(said.status, 0, "%s%s", said.out, said.err);
	assert_has(said.out, "ok      good (");
	assert_has(said.out, "2 passed, 0 failed, 0 not run");
	cr_assert(!strstr(said.out, "standard output"));
}

Test(ci, list_of_which_some_fail)
{
	char junit[128], logs[128], text[16384];

	list_write(GOOD "," BAD "," PANIC "," THREE);
	snprintf(junit, sizeof(junit), "%s/list.xml", host.dir);
	snprintf(logs, sizeof(logs), "%s/logs", host.dir);
	host_corral(&host, &said, "ci", "--jobs", "2", "--junit", junit, "--keep-logs", logs,
		    list_path(), NULL);
	cr_assert_eq(said.status, 1, "%s%s", said.out, said.err);
	assert_has(said.out, "2 passed, 2 failed, 0 not run");
	assert_has(said.out, "standard error:\n  | oops\n");
	assert_has(said.out, "  |   | Oops:");
	text_of("list.xml", text, sizeof(text));
	assert_has(text, "tests=\"4\" failures=\"2\" errors=\"0\"");
	text_of("logs/bad.err", text, sizeof(text));
	cr_assert_str_eq(text, "oops\n");
	text_of("logs/panic.log", text, sizeof(text));
	assert_has(text, "died");
}

Test(ci, list_as_tap)
{
	list_write(GOOD "," BAD);
	host_corral(&host, &said, "ci", "--tap", list_path(), NULL);
	cr_assert_eq(said.status, 1);
	cr_assert_str_eq(said.out, "TAP version 13\n1..2\nok 1 - good\nnot ok 2 - bad\n"
				   "# \"x\" ended with status 1 in the guest\n");
	host_corral(&host, &said, "ci", "--tap", "--filter", "g*", list_path(), NULL);
	cr_assert_eq(said.status, 0);
	host_corral(&host, &said, "ci", "--filter", "z*", list_path(), NULL);
	cr_assert_eq(said.status, 125);
	assert_has(said.err, "no test's name matches");
}

Test(ci, list_with_one_that_cannot_run)
{
	list_write(GOOD ", {\"name\": \"no-kernel\", \"kernel\": \"/nowhere\"}");
	host_corral(&host, &said, "ci", list_path(), NULL);
	cr_assert_eq(said.status, 125);
	assert_has(said.out, "1 passed, 1 failed");
	assert_has(said.out, "/nowhere");
}

Test(ci, interrupted_list_leaves_nothing)
{
	struct running running;

	list_write(GOOD ", {\"name\": \"hangs\", \"append\": \"port=" HELLO "\"}, " BAD);
	running = host_start(&host, "ci", "--jobs", "1", list_path(), NULL);
	running_expect(&running, "ok      good");
	kill(running.pid, SIGINT);
	running_end(&host, &running, &said);
	cr_assert_eq(said.status, 130, "%d %s", said.status, said.out);
	assert_has(said.out, "1 passed, 1 failed, 1 not run");
}

/* Disks and cards come to the launcher as the list has them. */
Test(ci, list_with_disks)
{
	char path[128], text[4096];

	list_write("{\"name\": \"fd\", \"disks\": [\"kernel,readonly=on,serial=k\"], "
		   "\"append\": \"fds end=panic\"}, "
		   "{\"name\": \"none\", \"disks\": [\"nowhere.img\"]}");
	snprintf(path, sizeof(path), "%s/logs", host.dir);
	host_corral(&host, &said, "ci", "--keep-logs", path, list_path(), NULL);
	cr_assert_eq(said.status, 125, "%s%s", said.out, said.err);
	text_of("logs/none.log", text, sizeof(text));
	assert_has(text, "nowhere.img");
	text_of("logs/fd.log", text, sizeof(text));
	assert_has(text, "disk1"); /* the root is the second */
}

/* On a terminal of `rows` lines, until it has ended; `key` is typed once `after` was seen. */
static int on_terminal(unsigned short rows, const char *after, const char *key, char *seen,
		       size_t size)
{
	struct winsize window = {.ws_row = rows, .ws_col = 40};
	size_t used = 0;
	int master, status;
	ssize_t n;
	pid_t pid = forkpty(&master, NULL, NULL, &window);

	if (!pid) {
		signal(SIGINT, SIG_DFL);
		execl(getenv("CORRAL"), "corral", "ci", "--jobs", "9", list_path(), NULL);
		_exit(126);
	}
	cr_assert_gt(pid, 0);
	while ((n = read(master, seen + used, size - 1 - used)) > 0) {
		used += n;
		seen[used] = '\0';
		if (key && strstr(seen, after)) {
			cr_assert_eq(write(master, key, 1), 1);
			key = NULL;
		}
	}
	seen[used] = '\0';
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	close(master);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* A table higher than the screen could not be written over; what is typed moves the cursor. */
Test(ci, table_fits_its_terminal, .timeout = 60)
{
	static char seen[65536];
	char tests[2048] = GOOD;
	int tables = 0;

	for (int i = 0; i < 8; i++)
		snprintf(tests + strlen(tests), sizeof(tests) - strlen(tests),
			 ", {\"name\": \"hangs-%d\", \"append\": \"port=" HELLO "\"}", i);
	list_write(tests);
	cr_assert_eq(on_terminal(6, "1 of 9 done, 0 failed, 8 running", "\x03", seen, sizeof(seen)),
		     130, "%s", seen);
	for (const char *at = seen; (at = strstr(at, "\033[J")); at++, tables++) {
		const char *up = at;
		int lines;

		while (*up != '\r')
			up--;
		cr_assert_eq(sscanf(up, "\r\033[%dA\033[J", &lines), 1, "%s", up);
		cr_assert(lines >= 1 && lines <= 5, "it goes up %d lines of 6", lines);
	}
	cr_assert_gt(tables, 0);
	assert_has(seen, "FAILED  hangs-0 (");
	assert_has(seen, "1 passed, 8 failed, 0 not run");
	cr_assert(!strstr(seen, "its launcher said"), "%s", seen);
}
