/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `corral disk add` and `corral disk remove` with the fake VMM: the files that go there and the
 * rights they are open with, words and sentences.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mgmt/local/test-host.h"

static struct host host;
static struct said said;

static void init(void)
{
	host_init(&host);
	host_corral(&host, &said, "run", "--name", "d", "--detach", "--kernel", host.kernel, NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
}

static void deinit(void)
{
	host_deinit(&host);
}

TestSuite(disk_hotplug, .init = init, .fini = deinit, .timeout = 60);

static void logged(const char *part)
{
	host_corral(&host, &said, "logs", "d", NULL);
	assert_has(said.out, part);
}

static void refused(int status, const char *part)
{
	cr_assert_eq(said.status, status, "%d: %s", said.status, said.err);
	assert_has(said.err, part);
	assert_lines(said.err, 1);
}

static void disk_words(char words[200], const char *more)
{
	snprintf(words, 200, "%s%s", host.disk, more);
}

Test(disk_hotplug, a_disk_is_opened_and_handed_over)
{
	char words[200];

	disk_words(words, "");
	host_corral(&host, &said, "disk", "add", "d", words, NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	cr_assert_str_eq(said.out, "disk3?\n", "its name, and nothing that steers a terminal");
	logged("\"readonly\":false");
	assert_has(said.out, host.disk);
	assert_has(said.out, "} rw\n");
}

Test(disk_hotplug, it_is_opened_with_the_rights_it_needs)
{
	char words[200];

	disk_words(words, ",readonly=on,queues=4,serial=LATE");
	host_corral(&host, &said, "disk", "add", "d", words, NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	logged("\"queues\":4");
	assert_has(said.out, "\"readonly\":true");
	assert_has(said.out, "\"serial\":\"LATE\"");
	assert_has(said.out, "} r\n");
}

/* Whoever asks the VM later may be elsewhere. */
Test(disk_hotplug, its_path_is_a_whole_one)
{
	char here[200], wanted[300];

	cr_assert(getcwd(here, sizeof(here)) && !chdir(host.dir));
	host_corral(&host, &said, "disk", "add", "d", strrchr(host.disk, '/') + 1, NULL);
	cr_assert(!chdir(here));
	cr_assert_eq(said.status, 0, "%s", said.err);
	snprintf(wanted, sizeof(wanted), "\"path\":\"%s\"", host.disk);
	logged(wanted);
}

Test(disk_hotplug, a_disk_that_cannot_be_had)
{
	char words[200], path[200];

	host_corral(&host, &said, "disk", "add", "d", "/absent/file", NULL);
	refused(1, "cannot open disk \"/absent/file\": No such file or directory");
	host_corral(&host, &said, "disk", "add", "d", host.dir, NULL);
	refused(1, "it is a directory, not a file");
	snprintf(path, sizeof(path), "%s/pipe", host.dir);
	cr_assert(!mkfifo(path, 0600));
	host_corral(&host, &said, "disk", "add", "d", path, NULL);
	refused(1, "is not a regular file or a block device");
	disk_words(words, ",reedonly=on");
	host_corral(&host, &said, "disk", "add", "d", words, NULL);
	refused(1, "disk add: unknown word \"reedonly\", did you mean \"readonly\"?");
	disk_words(words, ",queues=99");
	host_corral(&host, &said, "disk", "add", "d", words, NULL);
	refused(1, "queues: 99 is too large");
}

Test(disk_hotplug, words_are_missing)
{
	host_corral(&host, &said, "disk", "add", NULL);
	refused(2, "`corral disk add NAME FILE[,WORD...]`");
	host_corral(&host, &said, "disk", "add", "d", NULL);
	refused(2, "which disk for which VM?");
	host_corral(&host, &said, "disk", "add", "d", host.disk, host.disk, NULL);
	refused(2, "which disk for which VM?");
	host_corral(&host, &said, "disk", "remove", "d", NULL);
	refused(2, "`corral disk remove NAME DISK [--timeout SECONDS]`");
	host_corral(&host, &said, "disk", "remove", NULL);
	refused(2, "which disk of which VM?");
}

Test(disk_hotplug, a_vm_that_is_not_there)
{
	host_corral(&host, &said, "disk", "add", "absent", host.disk, NULL);
	refused(1, "no VM named \"absent\"");
	host_corral(&host, &said, "disk", "remove", "absent", "disk1", NULL);
	refused(1, "no VM named \"absent\"");
	host_corral(&host, &said, "kill", "d", NULL);
	host_corral(&host, &said, "disk", "add", "d", host.disk, NULL);
	refused(1, "\"d\" is not running");
	host_corral(&host, &said, "disk", "remove", "d", "disk1", NULL);
	refused(1, "\"d\" is not running");
}

Test(disk_hotplug, the_guest_is_given_time)
{
	host_corral(&host, &said, "disk", "remove", "d", "disk1", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	host_corral(&host, &said, "disk", "remove", "d", "disk2", "--timeout", "0", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	host_corral(&host, &said, "disk", "remove", "d", "disk2", "--timeout=600", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	logged("disk-remove disk1 10000\ndisk-remove disk2 0\ndisk-remove disk2 600000\n");
}

Test(disk_hotplug, how_long_is_a_number)
{
	static const char *const wrong[] = {"-1", "601", "soon", "1s", ""};

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		host_corral(&host, &said, "disk", "remove", "d", "disk1", "--timeout", wrong[i],
			    NULL);
		refused(2, "is no number of seconds from 0 to 600");
	}
	host_corral(&host, &said, "disk", "remove", "d", "disk1", "--timout", "1", NULL);
	refused(2, "unknown flag --timout, did you mean --timeout?");
}

Test(disk_hotplug, there_is_no_force)
{
	host_corral(&host, &said, "disk", "remove", "d", "disk1", "--force", NULL);
	refused(2, "there is no --force: what a guest has under way on a disk that it uses would "
		   "be lost");
}

Test(disk_hotplug, the_vmm_s_refusal_is_said)
{
	host_corral(&host, &said, "run", "--name", "g", "--detach", "--kernel", host.kernel,
		    "--append", "garbage", NULL);
	host_corral(&host, &said, "disk", "add", "g", host.disk, NULL);
	cr_assert_eq(said.status, 1);
	assert_has(said.err, "\"g\"");
	assert_lines(said.err, 1);
}
