/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Booting a disk image by itself: which firmware is found, that it takes the kernel's place, and
 * the disk that cloud-init reads its orders from.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/test-host.h"

static struct host host;
static struct said said;

/* No firmware of this machine's is to be found. */
static void init(void)
{
	host_init(&host);
	cr_assert(!chdir(host.dir));
	setenv("CORRAL_CACHE", host.dir, true);
	unsetenv("CORRAL_FIRMWARE");
}

static void deinit(void)
{
	host_deinit(&host);
}

TestSuite(image, .init = init, .fini = deinit, .timeout = 60);

static void file_write(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	cr_assert(fd >= 0 && fd_write_full(fd, text, strlen(text)) == 0, "%s", path);
	fd_close(fd);
}

static void refused(int status, const char *part)
{
	cr_assert_eq(said.status, status, "%d: %s", said.status, said.err);
	assert_has(said.err, part);
	assert_lines(said.err, 1);
	cr_assert_eq(host_left(&host), 0);
}

Test(image, a_disk_by_itself_boots_the_firmware)
{
	file_write("firmware", "fds say=up-by-firmware end=power-off");
	setenv("CORRAL_FIRMWARE", "firmware", true);
	host_corral(&host, &said, "run", "--disk", host.disk, NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	assert_has(said.out, "4 kernel r\n5 disk0 rw\n");
	assert_has(said.out, "up-by-firmware");
	host_corral(&host, &said, "run", "--disk", host.disk, "--dry-run", NULL);
	assert_has(said.out, "\"firmware\": \"firmware\"");
	cr_assert_not(strstr(said.out, "\"append\""), "%s", said.out);
	cr_assert_not(strstr(said.out, "\"kernel\""), "%s", said.out);
	assert_has(said.err, "  firmware firmware (read)\n");
}

Test(image, a_firmware_that_is_named_needs_no_disk)
{
	file_write("firmware", "end=power-off");
	host_corral(&host, &said, "run", "--firmware", "firmware", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	host_corral(&host, &said, "run", "--firmware", "absent", NULL);
	refused(1, "cannot open firmware \"absent\": No such file or directory");
	host_corral(&host, &said, "run", "--firmware", "/tmp", NULL);
	refused(1, "cannot use firmware \"/tmp\": it is a directory");
}

/* The newest that was built, but none that talks on the serial port. */
Test(image, the_newest_of_the_cache)
{
	static const struct timespec old[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};

	cr_assert(!mkdir("firmware", 0700));
	file_write("firmware/cloudhv-9-aa.fd", "");
	file_write("firmware/cloudhv-1-bb.fd", "");
	file_write("firmware/cloudhv-9-cc-debug.fd", "");
	cr_assert(!utimensat(AT_FDCWD, "firmware/cloudhv-9-aa.fd", old, 0));
	host_corral(&host, &said, "run", "--disk", host.disk, "--dry-run", NULL);
	assert_has(said.out, "/firmware/cloudhv-1-bb.fd\"");
}

/* tools/firmware builds there for who may not write to /var. */
Test(image, a_cache_of_the_users_own)
{
	static const char *const places[] = {"corral/firmware", ".cache/corral/firmware"};
	char path[128];

	cr_assert(!mkdir("corral", 0700) && !mkdir(".cache", 0700) &&
		  !mkdir(".cache/corral", 0700));
	unsetenv("CORRAL_CACHE");
	setenv("XDG_CACHE_HOME", host.dir, true);
	setenv("HOME", host.dir, true);
	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		snprintf(path, sizeof(path), "%s/cloudhv-1-own.fd", places[i]);
		cr_assert(!mkdir(places[i], 0700));
		file_write(path, "");
		host_corral(&host, &said, "run", "--disk", host.disk, "--dry-run", NULL);
		snprintf(path, sizeof(path), "%s/%s/cloudhv-1-own.fd\"", host.dir, places[i]);
		assert_has(said.out, path);
		unsetenv("XDG_CACHE_HOME");
	}
}

Test(image, no_firmware_anywhere)
{
	if (!access("/usr/share/corral/CLOUDHV.fd", F_OK))
		cr_skip_test("this host has a firmware installed");
	host_corral(&host, &said, "run", "--disk", host.disk, NULL);
	refused(1, "no firmware to boot the disk with: build one with tools/firmware, name one "
		   "with --firmware FILE or in CORRAL_FIRMWARE, or boot a --kernel FILE");
}

Test(image, what_a_firmware_does_not_go_with)
{
	file_write("firmware", "");
	host_corral(&host, &said, "run", "--firmware", "firmware", "--kernel", host.kernel, NULL);
	refused(1, "firmware: does not go with a kernel");
	host_corral(&host, &said, "run", "--firmware", "firmware", "--append", "quiet", NULL);
	refused(1, "append: does not go with a firmware");
	host_corral(&host, &said, "run", "--firmware", "firmware", "--initrd", host.disk, NULL);
	refused(1, "initrd: does not go with a firmware");
	host_corral(&host, &said, "run", "--disk", host.disk, "--append", "quiet", NULL);
	refused(2, "no kernel given: add --kernel FILE, or boot a --disk FILE by itself");
}

#define SECTOR 2048

struct image {
	char data[1 << 20];
	size_t size;
};

static uint32_t little32(const char *at)
{
	return (uint8_t)at[0] | (uint8_t)at[1] << 8 | (uint8_t)at[2] << 16 |
	       (uint32_t)(uint8_t)at[3] << 24;
}

static void image_read(struct image *image, const char *name)
{
	char path[256];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/%s/seed.iso", host.run, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = read(fd, image->data, sizeof(image->data));
	fd_close(fd);
	cr_assert(n > 20 * SECTOR && n < (ssize_t)sizeof(image->data), "%zd", n);
	image->size = n;
	/* ECMA-119, 8.4: the first volume descriptor */
	cr_assert(!memcmp(image->data + 16 * SECTOR, "\1CD001", 6));
	cr_assert(!memcmp(image->data + 16 * SECTOR + 40, "CIDATA    ", 10));
}

/* A Rock Ridge name ("NM") in the root's records, and the bytes its record points at. */
static bool image_file(const struct image *image, const char *name, char *text, size_t size)
{
	const char *root = image->data + 16 * SECTOR + 156;
	const char *record = image->data + (size_t)little32(root + 2) * SECTOR;
	const char *end = record + little32(root + 10);

	for (; record < end && *record; record += (uint8_t)*record) {
		const char *found = memmem(record, (uint8_t)*record, "NM", 2);
		size_t length = found ? (size_t)(uint8_t)found[2] - 5 : 0;

		if (!found || length != strlen(name) || memcmp(found + 5, name, length))
			continue;
		cr_assert(little32(record + 10) < size);
		memcpy(text, image->data + (size_t)little32(record + 2) * SECTOR,
		       little32(record + 10));
		text[little32(record + 10)] = '\0';
		return true;
	}
	return false;
}

static void seeded(const char *name, const char *words)
{
	host_corral(&host, &said, "run", "--name", name, "--detach", "--kernel", host.kernel,
		    "--disk", host.disk, "--cloud-init", words, "--append", "fds", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
}

Test(image, a_seed_has_what_the_files_say)
{
	struct image image;
	char text[4096];

	file_write("user", "#cloud-config\nhostname: x\n");
	file_write("network", "version: 2\n");
	file_write("meta", "instance-id: i-1\n");
	seeded("web.one_2", "user-data=user,network=network");
	cr_assert_str_empty(said.err);
	image_read(&image, "web.one_2");
	cr_assert(image_file(&image, "user-data", text, sizeof(text)));
	cr_assert_str_eq(text, "#cloud-config\nhostname: x\n");
	cr_assert(image_file(&image, "network-config", text, sizeof(text)));
	cr_assert_str_eq(text, "version: 2\n");
	cr_assert(image_file(&image, "meta-data", text, sizeof(text)));
	cr_assert_str_eq(text, "instance-id: \"web.one_2\"\nlocal-hostname: \"web-one-2\"\n");
	host_corral(&host, &said, "logs", "web.one_2", NULL);
	assert_has(said.out, "5 disk0 rw\n6 disk1 r\n");
	host_corral(&host, &said, "kill", "web.one_2", NULL);
	seeded("other", "user-data=user,meta-data=meta");
	image_read(&image, "other");
	cr_assert(image_file(&image, "meta-data", text, sizeof(text)));
	cr_assert_str_eq(text, "instance-id: i-1\n");
	cr_assert_not(image_file(&image, "network-config", text, sizeof(text)));
	host_corral(&host, &said, "kill", "other", NULL);
}

Test(image, a_seed_is_no_root)
{
	file_write("user", "#!/bin/sh\n");
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--cloud-init", "user-data=user",
		    "--append", "fds end=power-off", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	assert_has(said.out, "5 disk0 r\n");
	cr_assert_eq(host_left(&host), 0);
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--cloud-init", "user-data=user",
		    "--dry-run", NULL);
	assert_has(said.out, "\"append\": \"console=ttyS0 panic=-1\"");
	cr_assert_not(strstr(said.out, "disks"), "%s", said.out);
}

Test(image, user_data_that_cloud_init_would_pass_over)
{
	static const char *const good[] = {"#cloud-config\n", "#!/bin/sh\n",
					   "Content-Type: multipart/mixed;\n", "\x1f\x8b\x08"};

	file_write("user", "packages: [vim]\n");
	host_corral(&host, &said, "run", "--kernel", host.kernel, "--cloud-init", "user-data=user",
		    "--append", "end=power-off", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	assert_has(said.err, "user-data \"user\" does not begin with \"#cloud-config\"");
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		file_write("user", good[i]);
		host_corral(&host, &said, "run", "--kernel", host.kernel, "--cloud-init",
			    "user-data=user", "--append", "end=power-off", NULL);
		cr_assert_str_empty(said.err);
	}
}

Test(image, seeds_that_cannot_be_made)
{
	static const struct {
		const char *words, *part;
		int status;
	} wrong[] = {
		{"user-data", "--cloud-init: user-data: needs a value", 2},
		{"user-dat=user", "unknown word \"user-dat\", did you mean \"user-data\"?", 2},
		{"meta-data=user", "cloud-init.user-data: is missing", 1},
		{"user-data=absent",
		 "cannot open user-data \"absent\" for cloud-init: No such file", 1},
		{"user-data=/tmp",
		 "cannot use user-data \"/tmp\" for cloud-init: it is not a regular", 1},
		{"user-data=fifo", "cannot use user-data \"fifo\"", 1},
		{"user-data=large",
		 "user-data \"large\" is too large for cloud-init, at most 1 MiB", 1},
		{"user-data=user,meta-data=absent", "cannot open meta-data \"absent\"", 1},
		{"user-data=user,network=large", "network-config \"large\" is too large", 1},
	};

	file_write("user", "#cloud-config\n");
	file_write("large", "#cloud-config\n");
	cr_assert(!truncate("large", (1 << 20) + 1) && !mkfifo("fifo", 0600));
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		host_corral(&host, &said, "run", "--kernel", host.kernel, "--cloud-init",
			    wrong[i].words, NULL);
		refused(wrong[i].status, wrong[i].part);
	}
}

Test(image, no_place_for_a_seed)
{
	char text[2048] = "{\"disks\": [";

	for (int i = 0; i < 16; i++)
		sprintf(text + strlen(text), "%s{\"path\": \"%s\"}", i ? "," : "", host.disk);
	file_write("conf", strcat(text, "]}"));
	file_write("user", "#cloud-config\n");
	host_corral(&host, &said, "run", "--config", "conf", "--kernel", host.kernel,
		    "--cloud-init", "user-data=user", NULL);
	refused(1, "no room for cloud-init's disk: a VM has at most 16 disks");
}
