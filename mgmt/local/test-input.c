/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Words, files and rights that are wrong: one sentence each that names what is wrong, a status that
 * is not 0, and nothing left behind.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/test-host.h"

static struct host host;
static struct said said;

static void init(void)
{
	host_init(&host);
	cr_assert(!chdir(host.dir));
}

static void deinit(void)
{
	host_deinit(&host);
}

TestSuite(input, .init = init, .fini = deinit, .timeout = 60);

static void file_write(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	cr_assert(fd >= 0 && fd_write_full(fd, text, strlen(text)) == 0);
	fd_close(fd);
}

static void refused(int status, const char *part)
{
	cr_assert_eq(said.status, status, "%d: %s", said.status, said.err);
	assert_has(said.err, part);
	assert_lines(said.err, 1);
	cr_assert_eq(host_left(&host), 0);
}

Test(input, wrong_words)
{
	static const struct {
		const char *words[4], *part;
	} wrong[] = {
		{{"rnu"}, "unknown verb \"rnu\", did you mean \"run\"?"},
		{{"xyzzy"}, "unknown verb \"xyzzy\", see `corral help`"},
		{{"run", "--kernal", "k"}, "unknown flag --kernal, did you mean --kernel?"},
		{{"run", "--xyzzy"}, "unknown flag --xyzzy, see `corral help run`"},
		{{"run", "--kernel"}, "--kernel needs a value"},
		{{"run", "--detach=yes"}, "--detach takes no value"},
		{{"run", "stray"}, "unexpected word \"stray\""},
		{{"run"}, "no kernel given"},
		{{"run", "--cpus", "many"}, "--cpus"},
		{{"run", "--cpus", "65"}, "--cpus"},
		{{"run", "--memory", "64Q"}, "--memory"},
		{{"run", "--memory", "64M,marge=on"},
		 "--memory: unknown word \"marge\", did you mean \"merge\"?"},
		{{"run", "--memory", "64M,merge=perhaps"}, "--memory"},
		{{"run", "--disk", "disk,qeues=2"}, "did you mean \"queues\"?"},
		{{"run", "--disk", "disk,queues=9"}, "--disk"},
		{{"run", "--console", "tty"}, "--console"},
		{{"run", "--on-reset", "never"}, "--on-reset"},
		{{"run", "--rng", "maybe"}, "--rng"},
		{{"pause"}, "which VM?"},
		{{"shutdown", "--timeout"}, "--timeout needs a value"},
		{{"ps", "--jsn"}, "did you mean --json?"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		const char *const *w = wrong[i].words;

		host_corral(&host, &said, w[0], w[1], w[2], w[3], NULL);
		refused(2, wrong[i].part);
	}
}

Test(input, wrong_files)
{
	static const struct {
		const char *flag, *value, *part;
	} wrong[] = {
		{"--kernel", "absent", "cannot open kernel \"absent\": No such file or directory"},
		{"--kernel", "/tmp", "cannot use kernel \"/tmp\": it is a directory"},
		{"--kernel", "/dev/null", "it is not a regular file"},
		{"--kernel", "fifo", "cannot use kernel \"fifo\": it is not a regular file"},
		{"--initrd", "absent", "cannot open initrd \"absent\""},
		{"--disk", "absent", "cannot open disk0 \"absent\""},
		{"--disk", "/tmp", "cannot use disk0 \"/tmp\": it is a directory"},
		{"--disk", "fifo", "it is not a regular file or a block device"},
		{"--console", "file=/absent/log", "cannot open console \"/absent/log\""},
		{"--console", "file=fifo", "it is not a regular file"},
		{"--config", "absent", "cannot open configuration \"absent\""},
		{"--memory", "3M", "memory.size"},
		{"--name", "../etc", "name"},
		{"--control",
		 "/tmp/"
		 "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
		 "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
		 "at most 107 bytes"},
	};

	cr_assert(!mkfifo("fifo", 0600));
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		host_corral(&host, &said, "run", "--kernel", host.kernel, wrong[i].flag,
			    wrong[i].value, NULL);
		refused(1, wrong[i].part);
	}
}

Test(input, the_same_disk_twice)
{
	cr_assert(!link(host.disk, "other-name"));
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--disk", host.disk, "--disk",
		    "other-name", NULL);
	refused(1, "disk1 \"other-name\" is the same as disk0: give each disk once");
}

Test(input, configuration_is_refused_by_the_path_of_the_key)
{
	static const struct {
		const char *text, *part;
	} wrong[] = {
		{"{\"disks\": [{\"path\": \"a\"}, {\"path\": \"b\", \"queues\": 0}]}",
		 "disks[1].queues"},
		{"{\"memory\": {\"size\": \"4G\", \"colour\": 1}}", "memory.colour"},
		{"{\"cpus\": \"two\"}", "cpus"},
		{"{\"cpus\": 1, \"cpus\": 2}", "cpus"},
		{"{", "conf"},
		{"", "conf"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		file_write("conf", wrong[i].text);
		host_corral(&host, &said, "run", "--config", "conf", "--kernel", host.kernel, NULL);
		refused(1, wrong[i].part);
	}
}

Test(input, flags_go_on_top_of_the_configuration)
{
	file_write("conf", "{\"name\": \"web\", \"kernel\": \"k\", \"cpus\": 2, \"append\": "
			   "\"exactly this\", \"disks\": [{\"path\": \"a\"}]}");
	host_corral(&host, &said, "run", "--cpus", "4", "--disk", "b,readonly=on", "--config",
		    "conf", "--dry-run", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	assert_has(said.out, "\"name\": \"web\"");
	assert_has(said.out, "\"cpus\": 4");
	assert_has(said.out, "\"append\": \"exactly this\"");
	assert_has(said.err, "disk0    a (read and write)");
	assert_has(said.err, "disk1    b (read)");
	cr_assert_eq(host_left(&host), 0);
}

Test(input, dry_run_prints_what_config_reads)
{
	struct said second;

	host_corral(&host, &said, "run", "--name", "x", "--kernel", "k", "--memory",
		    "1G,merge=on,prefault=on", "--disk", "a,,b,serial=s1,direct=on", "--console",
		    "file=/tmp/log,device=virtio", "--rng", "off", "--on-reset", "exit", "--append",
		    "quiet", "--dry-run", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	assert_has(said.out, "\"path\": \"a,b\"");
	assert_has(said.out, "console=hvc0 panic=-1 root=/dev/vda rw quiet");
	file_write("conf", said.out);
	host_corral(&host, &second, "run", "--config", "conf", "--dry-run", NULL);
	cr_assert_str_eq(second.out, said.out);
}

/* As a user without rights on /dev/kvm; only root can become one. */
Test(input, no_rights_on_kvm)
{
	int corral = open(getenv("CORRAL"), O_RDONLY);
	const char *argv[] = {"corral", "run", "--kernel", host.kernel, NULL};
	char text[1024] = "";
	struct stat st;
	int status, err[2];
	pid_t pid;

	if (geteuid() || stat("/dev/kvm", &st) < 0 || (st.st_mode & 06))
		cr_skip_test("needs root and a /dev/kvm that is not everybody's");
	cr_assert(!chown(host.dir, 65534, 65534) && !pipe(err));
	pid = fork();
	if (!pid) {
		dup2(err[1], STDERR_FILENO);
		if (setgroups(0, NULL) || setgid(65534) || setuid(65534))
			_exit(99);
		fexecve(corral, (char *const *)argv, environ);
		_exit(98);
	}
	fd_close(err[1]);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert_eq(WEXITSTATUS(status), 1, "%x", status);
	cr_assert(read(err[0], text, sizeof(text) - 1) > 0);
	assert_has(text, "cannot open /dev/kvm: Permission denied; become a member of its group");
	assert_lines(text, 1);
	cr_assert_eq(host_left(&host), 0);
}

Test(input, no_such_vm)
{
	static const char *const verbs[] = {"pause", "resume", "reset", "kill",   "shutdown",
					    "stats", "wait",   "logs",  "console"};

	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
		host_corral(&host, &said, verbs[i], "absent", NULL);
		refused(1, "no VM named \"absent\"");
	}
}

Test(input, missing_vmm)
{
	setenv("CORRAL_VMM", "/absent/corral-vmm", true);
	host_corral(&host, &said, "run", "--kernel", host.kernel, NULL);
	refused(1, "cannot start \"/absent/corral-vmm\", named by CORRAL_VMM");
}

Test(input, a_run_directory_that_others_can_write_is_refused)
{
	cr_assert(!mkdir(host.run, 0700) && !chmod(host.run, 0777));
	host_corral(&host, &said, "run", "--kernel", host.kernel, NULL);
	refused(1, "can be written by others");
}
