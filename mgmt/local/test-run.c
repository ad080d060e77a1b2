/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `corral run` with the fake VMM: what it hands over, how each end of a VM is told, signals, names,
 * and that nothing stays behind.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/test-host.h"

static struct host host;
static struct said said;

static void init(void)
{
	host_init(&host);
}

static void deinit(void)
{
	host_deinit(&host);
}

TestSuite(run, .init = init, .fini = deinit, .timeout = 60);

static void run_append(const char *append)
{
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--append", append, NULL);
}

Test(run, power_off_is_success_and_silent)
{
	run_append("say=hello end=power-off");
	cr_assert_eq(said.status, 0, "%d: %s", said.status, said.err);
	assert_has(said.out, "hello\n");
	cr_assert_str_empty(said.err);
	cr_assert_eq(host_left(&host), 0);
}

Test(run, each_end_has_its_status_and_sentence)
{
	static const struct {
		const char *append, *part;
		int status;
	} ends[] = {
		{"end=reset", "ended (reset)", 3},
		{"end=panic", "ended (panic)", 4},
		{"end=reset-loop", "ended (reset-loop)", 5},
		{"end=guest-fault", "ended (guest-fault)", 6},
		{"end=quit", "ended (quit)", 7},
		{"end=vmm-fault", "ended (vmm-fault)", 9},
		{"die=9", "ended (killed): the VMM was killed by SIGKILL", 8},
		{"die=11", "ended (vmm-fault): the VMM crashed with SIGSEGV", 9},
		{"die=31", "SIGSYS (a system call its sandbox refuses)", 9},
		{"die=6", "SIGABRT", 9},
		{"exit=0", "ended (unknown)", 10},
		{"exit=3", "ended (vmm-fault): the VMM ended with status 3", 9},
	};

	for (size_t i = 0; i < ARRAY_SIZE(ends); i++) {
		run_append(ends[i].append);
		cr_assert_eq(said.status, ends[i].status, "%s: %d", ends[i].append, said.status);
		assert_has(said.err, ends[i].part);
		assert_lines(said.err, 1);
		cr_assert_eq(host_left(&host), 0);
	}
}

Test(run, record_text_cannot_steer_the_terminal)
{
	run_append("end=panic");
	assert_has(said.err, "the fake guest's ?[31mend");
}

Test(run, failed_start_is_said_once_by_the_vmm)
{
	run_append("fail");
	cr_assert_eq(said.status, 1);
	cr_assert_str_eq(said.err, "corral-vmm: cannot load the fake kernel: it is fake\n");
	cr_assert_eq(host_left(&host), 0);
}

Test(run, descriptors_have_their_names_numbers_and_rights)
{
	int leak = fcntl(STDOUT_FILENO, F_DUPFD, 77);
	char disk[128];

	cr_assert(leak >= 77);
	snprintf(disk, sizeof(disk), "%s,readonly=on", host.disk);
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--initrd", "/proc/self/exe",
		    "--disk", disk, "--append", "fds end=power-off", NULL);
	assert_has(said.out, "0 std\n1 std\n2 std\n"
			     "3 kvm rw\n4 kernel r\n5 initrd r\n6 disk0 r\n7 description r\n"
			     "8 exit w\n9 empty p\n10 lock rw\n11 control rw\n12 ready w\n"
			     "13 console-log w\n14 console rw\n");
	cr_assert_not(strstr(said.out, "leaked"), "%s", said.out);
	cr_assert_not(strstr(said.out, "\n15 "), "%s", said.out);
}

Test(run, environment_is_not_handed_over)
{
	setenv("SECRET", "of-the-user", true);
	run_append("env end=power-off");
	cr_assert_eq(said.status, 0);
	cr_assert_not(strstr(said.out, "SECRET"), "%s", said.out);
}

Test(run, all_output_arrives)
{
	struct running vm = host_start(&host, "run", "--kernel", host.kernel, "--append",
				       "flood=3000000 end=power-off", NULL);
	char data[65536];
	size_t total = 0;
	ssize_t n;

	while ((n = read(vm.out, data, sizeof(data))) > 0)
		total += n;
	running_end(&host, &vm, &said);
	cr_assert_eq(said.status, 0);
	cr_assert_eq(total, 3000000 /* without "up": it ended before */, "%zu", total);
}

Test(run, input_reaches_the_console)
{
	struct running vm =
		host_start(&host, "run", "--kernel", host.kernel, "--append", "echo", NULL);

	running_expect(&vm, "up\n");
	cr_assert_eq(write(vm.in,
			   "ping\x1d"
			   "q\n",
			   7),
		     7);
	running_expect(&vm, "ping\x1dq\n"); /* no terminal, no escape key */
	kill(vm.pid, SIGTERM);
	running_end(&host, &vm, &said);
	cr_assert_eq(said.status, 0);
}

Test(run, end_of_input_and_closed_output_do_not_end_the_vm)
{
	struct running vm = host_start(&host, "run", "--name", "quiet", "--kernel", host.kernel,
				       "--append", "echo", NULL);

	running_expect(&vm, "up\n");
	cr_assert_eq(write(vm.in, "x", 1), 1);
	vm.in = fd_close(vm.in);
	running_expect(&vm, "x");
	vm.out = fd_close(vm.out);
	host_corral(&host, &said, "resume", "quiet", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	kill(vm.pid, SIGTERM);
	running_end(&host, &vm, &said);
	cr_assert_eq(said.status, 0);
}

Test(run, a_signal_presses_the_power_button)
{
	static const int signals[] = {SIGTERM, SIGINT, SIGHUP};

	for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
		struct running vm = host_start(&host, "run", "--kernel", host.kernel, NULL);

		running_expect(&vm, "up\n");
		kill(vm.pid, signals[i]);
		running_end(&host, &vm, &said);
		cr_assert_eq(said.status, 0, "%d: %s", said.status, said.err);
		assert_has(said.err, "power button pressed");
	}
}

Test(run, a_second_signal_ends_a_stubborn_guest)
{
	struct running vm =
		host_start(&host, "run", "--kernel", host.kernel, "--append", "stubborn", NULL);

	running_expect(&vm, "up\n");
	kill(vm.pid, SIGTERM);
	running_expect(&vm, "pressed\n");
	kill(vm.pid, SIGTERM);
	running_end(&host, &vm, &said);
	cr_assert_eq(said.status, 7, "%d: %s", said.status, said.err);
	cr_assert_eq(host_left(&host), 0);
}

Test(run, a_third_signal_kills_a_hung_vmm)
{
	struct running vm =
		host_start(&host, "run", "--kernel", host.kernel, "--append", "deaf", NULL);
	char path[96], text[4096] = "";
	int n = 0;

	snprintf(path, sizeof(path), "%s/%s", host.dir, vm.err);
	running_expect(&vm, "up\n");
	for (int i = 1; i <= 3; i++) {
		kill(vm.pid, SIGTERM);
		while (i < 3 && n < i) { /* until the launcher has said that it saw it */
			int fd = open(path, O_RDONLY | O_CLOEXEC);
			ssize_t size = read(fd, text, sizeof(text) - 1);

			text[MAX(size, 0)] = '\0';
			fd_close(fd);
			n = 0;
			for (char *at = text; (at = strchr(at, '\n')); at++)
				n++;
			sched_yield();
		}
	}
	running_end(&host, &vm, &said);
	cr_assert_eq(said.status, 8, "%d: %s", said.status, said.err);
	assert_has(said.err, "killed by SIGKILL");
	cr_assert_eq(host_left(&host), 0);
}

Test(run, a_name_is_given_once)
{
	struct running vm =
		host_start(&host, "run", "--name", "one", "--kernel", host.kernel, NULL);
	struct said first;

	running_expect(&vm, "up\n");
	host_corral(&host, &said, "run", "--name", "one", "--kernel", host.kernel, NULL);
	cr_assert_eq(said.status, 1);
	assert_has(said.err, "a VM named \"one\" is running");
	assert_lines(said.err, 1);
	host_corral(&host, &said, "resume", "one", NULL);
	cr_assert_eq(said.status, 0, "the first one was harmed: %s", said.err);
	kill(vm.pid, SIGTERM);
	running_end(&host, &vm, &first);
	cr_assert_eq(first.status, 0);
}

static void name_is_free(const char *name)
{
	host_corral(&host, &said, "run", "--name", name, "--kernel", host.kernel, "--append",
		    "end=power-off", NULL);
	cr_assert_eq(said.status, 0, "%d: %s", said.status, said.err);
	cr_assert_eq(host_left(&host), 0);
}

Test(run, a_killed_vmm_leaves_nothing)
{
	struct running vm = host_start(&host, "run", "--name", "k", "--kernel", host.kernel, NULL);

	running_expect(&vm, "up\n");
	kill(host_vmm(&host, "k"), SIGKILL);
	running_end(&host, &vm, &said);
	cr_assert_eq(said.status, 8);
	name_is_free("k");
}

Test(run, a_killed_launcher_takes_its_vm_along_and_frees_the_name)
{
	for (int i = 0; i < 20; i++) {
		struct running vm =
			host_start(&host, "run", "--name", "k", "--kernel", host.kernel, NULL);

		running_expect(&vm, "up\n");
		kill(vm.pid, SIGKILL);
		running_end(&host, &vm, &said);
		cr_assert_eq(said.status, 128 + SIGKILL);
		name_is_free("k");
	}
}

Test(run, control_socket_goes_where_it_is_told)
{
	char path[96];
	struct stat st;
	struct running vm;

	snprintf(path, sizeof(path), "%s/ctl", host.dir);
	vm = host_start(&host, "run", "--name", "c", "--control", path, "--kernel", host.kernel,
			NULL);
	running_expect(&vm, "up\n");
	cr_assert(!stat(path, &st) && S_ISSOCK(st.st_mode) && !(st.st_mode & 077));
	host_corral(&host, &said, "pause", "c", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	kill(vm.pid, SIGTERM);
	running_end(&host, &vm, &said);
	cr_assert_eq(stat(path, &st), -1, "the socket was left behind");
}

Test(run, a_file_in_the_way_of_the_control_socket_stays)
{
	struct stat st;

	host_corral(&host, &said, "run", "--control", host.disk, "--kernel", host.kernel, NULL);
	cr_assert_eq(said.status, 1);
	assert_has(said.err, "cannot make control socket");
	cr_assert(!stat(host.disk, &st) && S_ISREG(st.st_mode));
	cr_assert_eq(host_left(&host), 0);
}

Test(run, pty_carries_the_console)
{
	struct running vm = host_start(&host, "run", "--name", "p", "--console", "pty", "--kernel",
				       host.kernel, "--append", "echo", NULL);
	char path[96], text[256], name[64] = "";
	int fd = -1;
	ssize_t n;

	/* The launcher says the name before it starts the VMM, whose log says "up". */
	snprintf(path, sizeof(path), "%s/p/console.log", host.run);
	while (fd < 0 || read(fd, text, 3) != 3) {
		fd_close(fd);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		sched_yield();
	}
	fd_close(fd);
	snprintf(path, sizeof(path), "%s/%s", host.dir, vm.err);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = read(fd, text, sizeof(text) - 1);
	fd_close(fd);
	text[MAX(n, 0)] = '\0';
	cr_assert_eq(sscanf(text, "corral: console of \"p\" is %63s", name), 1, "%s", text);
	fd = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
	cr_assert(fd >= 0 && read(fd, text, 3) == 3 && !memcmp(text, "up\n", 3));
	cr_assert(write(fd, "yo", 2) == 2 && fd_read_full(fd, text, 2) == 0);
	cr_assert(!memcmp(text, "yo", 2));
	fd_close(fd);
	kill(vm.pid, SIGTERM);
	running_end(&host, &vm, &said);
	cr_assert_eq(said.status, 0);
}

Test(run, verbose_says_what_is_in_force)
{
	struct running vm =
		host_start(&host, "run", "--kernel", host.kernel, "-v", "--append", "echo", NULL);

	running_expect(&vm, "up\n");
	kill(vm.pid, SIGTERM);
	running_end(&host, &vm, &said);
	assert_has(said.err, "seccomp");
}

Test(run, sandbox_off_is_loud)
{
	host_corral(&host, &said, "run", "--sandbox", "off", "--kernel", host.kernel, "--append",
		    "end=power-off", NULL);
	assert_has(said.err, "corral: WARNING");
}

/*
 * Run directories on a file system that takes fewer and fewer files: each step of a start is where
 * it gets stuck once.
 */
Test(run, a_full_run_directory_is_one_sentence_and_leaves_nothing)
{
	char options[64];
	bool started = false;
	int failures = 0;

	cr_assert(!unshare(geteuid() ? CLONE_NEWUSER | CLONE_NEWNS : CLONE_NEWNS));
	cr_assert(!mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
	cr_assert(!mkdir(host.run, 0700));
	for (int inodes = 1; !started; inodes++) {
		snprintf(options, sizeof(options), "mode=0700,nr_inodes=%d", inodes);
		cr_assert(!mount("none", host.run, "tmpfs", 0, options));
		host_corral(&host, &said, "run", "--name", "full", "--kernel", host.kernel,
			    "--append", "end=power-off", NULL);
		started = said.status == 0;
		if (!started) {
			failures++;
			cr_assert_eq(said.status, 1, "%d inodes: %d %s", inodes, said.status,
				     said.err);
			assert_has(said.err, "No space left on device");
			assert_lines(said.err, 1);
		}
		cr_assert_eq(host_left(&host), 0, "%d inodes: something is left", inodes);
		cr_assert(!umount(host.run));
	}
	cr_assert_geq(failures, 6);
}

/* The same with room for names but none for bytes. */
Test(run, a_full_disk_is_told_before_the_guest_starts)
{
	int failures = 0;
	bool started = false;

	cr_assert(!unshare(geteuid() ? CLONE_NEWUSER | CLONE_NEWNS : CLONE_NEWNS));
	cr_assert(!mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
	cr_assert(!mkdir(host.run, 0700));
	for (int pages = 1; !started; pages++) {
		char options[64], filler[96], page[4096] = "";
		int fd;

		snprintf(options, sizeof(options), "mode=0700,size=%d", pages * 4096);
		cr_assert(!mount("none", host.run, "tmpfs", 0, options));
		snprintf(filler, sizeof(filler), "%s/.filler", host.run);
		fd = open(filler, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
		cr_assert_eq(write(fd, page, sizeof(page)), 4096);
		fd_close(fd);
		host_corral(&host, &said, "run", "--name", "full", "--kernel", host.kernel,
			    "--console", "none", "--append", "end=panic", NULL);
		started = said.status == 4;
		if (!started) {
			failures++;
			cr_assert_eq(said.status, 1, "%d pages: %s", pages, said.err);
			assert_has(said.err, "No space left on device");
		}
		cr_assert_eq(host_left(&host), 0);
		cr_assert(!umount(host.run));
	}
	cr_assert_eq(failures, 3, "description, record and pid, not %d", failures);
}
