/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: places where kernels lie. Out: which of them to boot when nobody named one, and the version
 * that a kernel's file says it is. A file is a stranger's: bounds are checked, nothing is believed.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/cursor.h"
#include "base/fd.h"
#include "mgmt/local/guest-modules.h"

#define SETUP_SIZE     0x8000 /* where a bzImage's words are, at the most */
#define HEADER_MAGIC   0x202
#define HEADER_VERSION 0x20e
#define ELF_SEARCH_MAX (256 << 20)

static const char words[] = "Linux version ";

/* Up to the first blank; letters, digits and a few marks, for it becomes part of a path. */
static int version_take(const char *text, size_t size, char version[GUEST_VERSION_MAX])
{
	static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				      "0123456789.-_+~";
	size_t n = 0;

	while (n < size && n < GUEST_VERSION_MAX - 1 && text[n] && strchr(allowed, text[n])) {
		version[n] = text[n];
		n++;
	}
	version[n] = '\0';
	return n && version[0] != '.' && n < size && (text[n] == ' ' || !text[n]) ? 0 : -ENOENT;
}

static int bzimage_version(int fd, char version[GUEST_VERSION_MAX])
{
	static char setup[SETUP_SIZE];
	ssize_t n = pread(fd, setup, sizeof(setup), 0);
	struct cursor in = cursor_reader(setup, MAX(n, 0));
	size_t at;

	if (n < HEADER_VERSION + 2 || memcmp(setup + HEADER_MAGIC, "HdrS", 4) != 0)
		return -ENOEXEC;
	in.at = HEADER_VERSION;
	at = cursor_get_u16(&in) + 0x200u;
	if (at == 0x200 || at >= (size_t)n)
		return -ENOENT;
	return version_take(setup + at, n - at, version);
}

static int elf_version(int fd, char version[GUEST_VERSION_MAX])
{
	struct stat st;
	const char *data, *at;
	int r = -ENOENT;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (st.st_size < 64 || st.st_size > ELF_SEARCH_MAX)
		return -ENOEXEC;
	data = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (data == MAP_FAILED)
		return -errno;
	/* The format string of the same words comes without a version. */
	at = memcmp(data, "\177ELF", 4) ? NULL : data;
	while (r < 0 && at && (at = memmem(at, data + st.st_size - at, words, sizeof(words) - 1))) {
		at += sizeof(words) - 1;
		r = version_take(at, data + st.st_size - at, version);
	}
	munmap((void *)data, st.st_size);
	return r;
}

int guest_kernel_version(const char *path, char version[GUEST_VERSION_MAX], struct error *err)
{
	_cleanup_(fd_closep) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	int r;

	if (fd < 0)
		return error_set(err, -errno, "cannot open kernel \"%s\": %s", path,
				 strerror(errno));
	r = bzimage_version(fd, version);
	if (r == -ENOEXEC)
		r = elf_version(fd, version);
	return r < 0 ? error_set(err, r,
				 "cannot tell the version of kernel \"%s\": is it a Linux kernel? "
				 "Say --modules none if it needs none",
				 path)
		     : 0;
}

/* The name in `directory` that begins with "vmlinuz-" and has the newest version. */
static char *newest_in(const char *directory)
{
	DIR *dir = opendir(directory);
	char *best = NULL, *path = NULL;
	struct dirent *entry;

	while (dir && (entry = readdir(dir))) {
		if (strncmp(entry->d_name, "vmlinuz-", 8) != 0 ||
		    (best && strverscmp(entry->d_name, best) <= 0))
			continue;
		free(best);
		best = strdup(entry->d_name);
	}
	if (dir)
		closedir(dir);
	if (best && asprintf(&path, "%s/%s", directory, best) < 0)
		path = NULL;
	free(best);
	return path;
}

int guest_kernel_find(const char *rootfs, char **ret_path, struct error *err)
{
	char path[PATH_MAX];
	struct utsname host;
	char *found = NULL;

	if (rootfs) {
		snprintf(path, sizeof(path), "%s/boot", rootfs);
		found = newest_in(path);
	}
	uname(&host);
	snprintf(path, sizeof(path), "/boot/vmlinuz-%s", host.release);
	if (!found && !access(path, R_OK))
		found = strdup(path);
	if (!found)
		found = newest_in("/boot");
	if (!found)
		return error_set(err, -ENOENT,
				 "cannot find a kernel in %s%s/boot: name one with --kernel FILE",
				 rootfs ? rootfs : "", rootfs ? "/boot or " : "");
	*ret_path = found;
	return 0;
}
