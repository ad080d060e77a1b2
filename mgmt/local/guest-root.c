/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: what --rootfs names. Out: which file system an image holds, by its magic number, or an ext4
 * image of a directory, made by mke2fs in a sparse file that has no name: nothing is left of it
 * however we end.
 */
#include "mgmt/local/guest-root.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/local.h"

#define BLOCK          4096
#define WALK_FDS       32
#define PATIENCE_MS    1000 /* after which a person is told what takes so long */
#define SAID_MAX       4096
#define NOT_A_BOOT_END 510

static const struct {
	const char *type, *options;
	off_t offset;
	const char *magic;
	size_t size;
} file_systems[] = {
	/* No journal is replayed: the disk cannot be written. */
	{"ext4", "noload", 1080, "\x53\xef", 2},
	{"squashfs", "", 0, "hsqs", 4},
	{"erofs", "", 1024, "\xe2\xe1\xf5\xe0", 4},
	{"xfs", "norecovery", 0, "XFSB", 4},
	{"btrfs", "rescue=nologreplay", 65600, "_BHRfS_M", 8},
};

static bool has_magic(int fd, off_t offset, const char *magic, size_t size)
{
	char bytes[8];

	return pread(fd, bytes, size, offset) == (ssize_t)size && !memcmp(bytes, magic, size);
}

const char *guest_root_options(const char *type)
{
	for (size_t i = 0; i < ARRAY_SIZE(file_systems); i++)
		if (!strcmp(file_systems[i].type, type))
			return file_systems[i].options;
	return "";
}

static int root_unknown(int fd, const char *path, struct error *err)
{
	const char *what = "it holds none of the file systems that are known here (ext4, squashfs, "
			   "erofs, xfs, btrfs)";

	if (has_magic(fd, 0, "QFI\xfb", 4))
		what = "it is a qcow2 image; `corral disk convert` makes a raw one of it";
	else if (has_magic(fd, NOT_A_BOOT_END, "\x55\xaa", 2))
		what = "it is a whole disk with partitions; give an image of the file system alone";
	return error_set(err, -EINVAL, "cannot use \"%s\" as a root: %s", path, what);
}

int guest_root_probe(const char *path, const char **ret_type, struct error *err)
{
	_cleanup_(fd_closep) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

	if (fd < 0)
		return error_set(err, -errno, "cannot open the root \"%s\": %s", path,
				 strerror(errno));
	for (size_t i = 0; i < ARRAY_SIZE(file_systems); i++)
		if (has_magic(fd, file_systems[i].offset, file_systems[i].magic,
			      file_systems[i].size)) {
			*ret_type = file_systems[i].type;
			return 0;
		}
	return root_unknown(fd, path, err);
}

/* What the walk over a directory counts; nftw has no place for it. */
static struct {
	uint64_t bytes, files;
} counted;

static int count_one(const char *path _unused_, const struct stat *st, int kind,
		     struct FTW *at _unused_)
{
	counted.files++;
	if (kind == FTW_F || kind == FTW_D || kind == FTW_SL)
		counted.bytes += align_up(st->st_size, BLOCK) + BLOCK;
	return 0;
}

/* A size that is enough; the file is sparse, so that too much costs nothing. */
static int image_size(const char *directory, uint64_t *ret_kib, uint64_t *ret_inodes)
{
	counted.bytes = counted.files = 0;
	if (nftw(directory, count_one, WALK_FDS, FTW_PHYS | FTW_MOUNT) < 0)
		return -errno;
	*ret_inodes = counted.files + 256;
	*ret_kib = (counted.bytes + counted.bytes / 8 + *ret_inodes * 256) / 1024 + (32 << 10);
	return 0;
}

static int nameless_file(struct error *err)
{
	const char *place = getenv("TMPDIR");
	char path[4096];
	int fd;

	if (!place || !place[0])
		place = "/tmp";
	fd = open(place, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
		snprintf(path, sizeof(path), "%s/corral-root-XXXXXX", place);
		fd = mkostemp(path, O_CLOEXEC);
		if (fd >= 0)
			unlink(path);
	}
	if (fd < 0)
		return error_set(err, -errno,
				 "cannot make a file in \"%s\": %s; name a place in TMPDIR", place,
				 strerror(errno));
	return fd;
}

/* Says what takes so long, once, to a person. */
static void wait_told(pid_t pid, const char *directory, int *ret_status)
{
	_cleanup_(fd_closep) int process = syscall(SYS_pidfd_open, pid, 0);
	struct pollfd ended = {.fd = process, .events = POLLIN};

	if (process >= 0 && isatty(STDERR_FILENO) && !poll(&ended, 1, PATIENCE_MS))
		local_say("making an image of \"%s\" …", directory);
	while (waitpid(pid, ret_status, 0) < 0 && errno == EINTR)
		;
}

/* The last line of what a program has said. */
static void last_line(int fd, char text[SAID_MAX])
{
	ssize_t n = pread(fd, text, SAID_MAX - 1, 0);
	char *line;

	text[MAX(n, 0)] = '\0';
	while (n > 0 && text[n - 1] == '\n')
		text[--n] = '\0';
	line = strrchr(text, '\n');
	if (line)
		memmove(text, line + 1, strlen(line));
	text_harmless(text);
}

static int maker_run(char *const argv[], int image_fd, const char *directory, struct error *err)
{
	static const char *const places[] = {"/usr/sbin/mke2fs", "/sbin/mke2fs",
					     "/usr/local/sbin/mke2fs"};
	_cleanup_(fd_closep) int said = nameless_file(err);
	posix_spawn_file_actions_t actions;
	char text[SAID_MAX];
	int r = ENOENT, status = 0;
	pid_t pid;

	if (said < 0)
		return said;
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&actions, said, STDOUT_FILENO);
	posix_spawn_file_actions_adddup2(&actions, said, STDERR_FILENO);
	posix_spawn_file_actions_adddup2(&actions, image_fd, image_fd);
	for (size_t i = 0; r == ENOENT && i < ARRAY_SIZE(places); i++)
		r = posix_spawn(&pid, places[i], &actions, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	if (r)
		return error_set(err, -r,
				 "cannot make an image of \"%s\": mke2fs does not start: %s; "
				 "install e2fsprogs",
				 directory, strerror(r));
	wait_told(pid, directory, &status);
	if (!status)
		return 0;
	last_line(said, text);
	return error_set(err, -EIO, "cannot make an image of \"%s\": mke2fs says \"%.200s\"",
			 directory, text);
}

int guest_root_make(const char *directory, int *ret_fd, struct error *err)
{
	_cleanup_(fd_closep) int fd = -1;
	char image[32], size[32], inodes[32];
	char *const argv[] = {"mke2fs",
			      "-q",
			      "-F",
			      "-t",
			      "ext4",
			      "-O",
			      "^has_journal",
			      "-m",
			      "0",
			      "-b",
			      "4096",
			      "-N",
			      inodes,
			      "-E",
			      "root_owner=0:0,lazy_itable_init=1,nodiscard",
			      "-d",
			      (char *)directory,
			      image,
			      size,
			      NULL};
	uint64_t kib = 0, n_inodes = 0;
	int r = image_size(directory, &kib, &n_inodes);

	if (r < 0)
		return error_set(err, r, "cannot read the root \"%s\": %s", directory,
				 strerror(-r));
	fd = nameless_file(err);
	if (fd < 0)
		return fd;
	snprintf(image, sizeof(image), "/proc/self/fd/%d", fd);
	snprintf(size, sizeof(size), "%lluk", (unsigned long long)kib);
	snprintf(inodes, sizeof(inodes), "%llu", (unsigned long long)n_inodes);
	r = maker_run(argv, fd, directory, err);
	if (r < 0)
		return r;
	*ret_fd = take_fd(fd);
	return 0;
}
