/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the initrd into the root that the command sees: the image, read-only, with an overlay in
 * memory on top, and the file systems that programs expect. What the command mounts beyond that is
 * left in order at the end, so that a disk it wrote is clean.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/sockios.h>
#include <sys/socket.h>

#include "mgmt/local/init/protocol.h"
#include "mgmt/local/init/system.h"

struct mount {
	const char *source, *target, *type, *options;
	unsigned long flags;
	uint16_t mode; /* of the directory, where it has to be made */
};

static long mount_one(const struct mount *mount)
{
	CALL3(mkdirat, AT_FDCWD, mount->target, mount->mode);
	return CALL5(mount, mount->source, mount->target, mount->type, mount->flags,
		     mount->options);
}

static int mount_all(const struct mount *mounts, unsigned n, struct trouble *trouble)
{
	for (unsigned i = 0; i < n; i++) {
		long r = mount_one(&mounts[i]);

		if (r < 0) {
			*trouble = (struct trouble){mounts[i].target, -r};
			return r;
		}
	}
	return 0;
}

int early_mounts(struct trouble *trouble)
{
	static const struct mount mounts[] = {
		{"dev", "/dev", "devtmpfs", 0, MS_NOSUID, 0755},
		{"sys", "/sys", "sysfs", 0, MS_NOSUID | MS_NODEV | MS_NOEXEC, 0555},
	};

	return mount_all(mounts, sizeof(mounts) / sizeof(mounts[0]), trouble);
}

/* Uncompressed, or packed as the name of the file says. */
static long module_load(const char *path)
{
	long fd = CALL4(openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0), r;
	char start[4] = "";

	if (fd < 0)
		return fd;
	CALL3(read, fd, start, sizeof(start));
	CALL3(lseek, fd, 0, 0);
	r = CALL3(finit_module, fd, "", start[0] == 0x7f ? 0 : MODULE_INIT_COMPRESSED_FILE);
	CALL1(close, fd);
	return r == -EEXIST ? 0 : r;
}

int modules_load(struct trouble *trouble)
{
	static char path[] = JOB_MODULES "/00";
	const unsigned long end = sizeof(path) - 1;

	for (int i = 0; i < JOB_MODULES_MAX; i++) {
		long r;

		path[end - 2] = '0' + i / 10;
		path[end - 1] = '0' + i % 10;
		r = module_load(path);
		if (r == -ENOENT)
			return 0;
		if (r < 0) {
			*trouble = (struct trouble){path, -r};
			return r;
		}
	}
	return 0;
}

static long link_make(const char *target, const char *path)
{
	return CALL3(symlinkat, target, AT_FDCWD, path);
}

/* What the overlay lies on has no name in the new root. */
static int overlay_mount(const struct guest_devices *devices, const struct init_job *job,
			 struct trouble *trouble)
{
	const struct mount root = {devices->root, "/root",   job->file_system,
				   job->options,  MS_RDONLY, 0755};
	static const struct mount memory = {"memory", "/memory", "tmpfs", "mode=755", 0, 0755};
	static const struct mount overlay = {
		"corral",  "/new",
		"overlay", "lowerdir=/root,upperdir=/memory/upper,workdir=/memory/work",
		0,         0755};
	long r = mount_one(&root);

	if (r < 0) {
		*trouble = (struct trouble){"the root file system", -r};
		return r;
	}
	r = mount_one(&memory);
	CALL3(mkdirat, AT_FDCWD, "/memory/upper", 0755);
	CALL3(mkdirat, AT_FDCWD, "/memory/work", 0755);
	if (r >= 0)
		r = mount_one(&overlay);
	if (r < 0)
		*trouble = (struct trouble){"the overlay on the root file system", -r};
	return r;
}

/* A device node of the image must not be taken for ours: /dev is moved, not copied. */
static int root_switch(struct trouble *trouble)
{
	long r = CALL3(mkdirat, AT_FDCWD, "/new/dev", 0755);

	r = CALL5(mount, "/dev", "/new/dev", 0, MS_MOVE, 0);
	if (r >= 0) {
		CALL3(mkdirat, AT_FDCWD, "/new/sys", 0555);
		r = CALL5(mount, "/sys", "/new/sys", 0, MS_MOVE, 0);
	}
	if (r >= 0)
		r = CALL1(chdir, "/new");
	if (r >= 0)
		r = CALL5(mount, ".", "/", 0, MS_MOVE, 0);
	if (r >= 0)
		r = CALL1(chroot, ".");
	if (r < 0)
		*trouble = (struct trouble){"the new root", -r};
	return r;
}

static void loopback_up(void)
{
	struct ifreq request = {.ifr_name = "lo"};
	long fd = CALL3(socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return; /* a kernel without networks */
	if (CALL3(ioctl, fd, SIOCGIFFLAGS, &request) >= 0) {
		request.ifr_flags |= IFF_UP;
		CALL3(ioctl, fd, SIOCSIFFLAGS, &request);
	}
	CALL1(close, fd);
}

int root_enter(const struct guest_devices *devices, const struct init_job *job,
	       struct trouble *trouble)
{
	static const struct mount mounts[] = {
		{"proc", "/proc", "proc", 0, MS_NOSUID | MS_NODEV | MS_NOEXEC, 0555},
		{"pts", "/dev/pts", "devpts", "mode=620,ptmxmode=666,gid=5", MS_NOSUID | MS_NOEXEC,
		 0755},
		{"shm", "/dev/shm", "tmpfs", "mode=1777", MS_NOSUID | MS_NODEV, 0755},
		{"run", "/run", "tmpfs", "mode=755", MS_NOSUID | MS_NODEV, 0755},
		{"tmp", "/tmp", "tmpfs", "mode=1777", MS_NOSUID | MS_NODEV, 01777},
	};
	int r = overlay_mount(devices, job, trouble);

	if (r >= 0)
		r = root_switch(trouble);
	if (r >= 0)
		r = mount_all(mounts, sizeof(mounts) / sizeof(mounts[0]), trouble);
	if (r < 0)
		return r;
	link_make("/proc/self/fd", "/dev/fd");
	link_make("/proc/self/fd/0", "/dev/stdin");
	link_make("/proc/self/fd/1", "/dev/stdout");
	link_make("/proc/self/fd/2", "/dev/stderr");
	loopback_up();
	CALL2(sethostname, "corral", 6);
	return 0;
}

/* The second word of a line of /proc/mounts, if the first begins with "/dev/". */
static char *disk_mount(char *line)
{
	static const char disk[] = "/dev/";
	char *target = line, *end;

	for (unsigned i = 0; i < sizeof(disk) - 1; i++)
		if (line[i] != disk[i])
			return 0;
	while (*target && *target != ' ')
		target++;
	if (!*target)
		return 0;
	for (end = ++target; *end && *end != ' '; end++)
		;
	*end = '\0';
	return target;
}

void mounts_leave(void)
{
	static char text[65536];
	char *lines[256];
	unsigned n = 0;

	text_read("/proc/mounts", text, sizeof(text));
	for (char *at = text; *at && n < sizeof(lines) / sizeof(lines[0]);) {
		lines[n++] = at;
		while (*at && *at != '\n')
			at++;
		if (*at)
			*at++ = '\0';
	}
	while (n--) {
		char *target = disk_mount(lines[n]);

		if (target)
			CALL2(umount2, target, 0);
	}
}
