/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: ranges of two files. Out: the same bytes in both, where the store can do that. The sealed
 * process, its crew.
 */
#include "disk/offload.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/macros.h"

#define COPY_STEP   (UINT64_C(64) << 20) /* between looks at whether to stop */
#define BUFFER_SIZE (1u << 20)

/* File systems whose server copies by itself. */
static bool is_remote(int fd)
{
	static const uint32_t types[] = {0x6969, 0xfe534d42, 0xff534d42, 0x00c36400};
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0)
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(types); i++)
		if ((uint32_t)fs.f_type == types[i])
			return true;
	return false;
}

static bool is_same_store(int a, int b)
{
	struct stat sa, sb;

	return fstat(a, &sa) == 0 && fstat(b, &sb) == 0 && S_ISREG(sa.st_mode) &&
	       S_ISREG(sb.st_mode) && sa.st_dev == sb.st_dev;
}

void offload_init(struct offload *offload, int from_fd, int to_fd)
{
	offload->to_fd = to_fd;
	atomic_init(&offload->kind, is_same_store(from_fd, to_fd) ? OFFLOAD_SHARE : OFFLOAD_NONE);
}

static bool share(int from_fd, int to_fd, uint64_t from, uint64_t to, uint64_t length)
{
	struct file_clone_range range = {from_fd, from, length, to};

	return ioctl(to_fd, FICLONERANGE, &range) == 0;
}

/* Bytes done, or -errno. */
static int64_t copy(int from_fd, int to_fd, uint64_t from, uint64_t to, uint64_t length)
{
	off_t in = (off_t)from, out = (off_t)to;
	uint64_t done = 0;

	while (done < length) {
		ssize_t n = copy_file_range(from_fd, &in, to_fd, &out, length - done, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && !done)
			return -errno;
		if (n <= 0)
			break;
		done += (uint64_t)n;
	}
	return (int64_t)done;
}

bool offload_try(struct offload *offload, int from_fd, uint64_t from, uint64_t to, uint64_t length)
{
	if (atomic_load(&offload->kind) == OFFLOAD_SHARE) {
		if (share(from_fd, offload->to_fd, from, to, length))
			return true;
		/* Not aligned to the store's blocks: only this one is not to be had. */
		if (errno == EINVAL)
			return false;
		atomic_store(&offload->kind,
			     is_remote(offload->to_fd) ? OFFLOAD_COPY : OFFLOAD_NONE);
	}
	if (atomic_load(&offload->kind) == OFFLOAD_COPY) {
		if (copy(from_fd, offload->to_fd, from, to, length) == (int64_t)length)
			return true;
		atomic_store(&offload->kind, OFFLOAD_NONE);
	}
	return false;
}

/* Where copy_file_range cannot go: from another file system, on an old kernel. */
static int64_t copy_by_hand(int from_fd, int to_fd, uint64_t at, uint64_t length, char *buffer)
{
	uint64_t done = 0;

	while (done < length) {
		size_t want = (size_t)MIN(length - done, (uint64_t)BUFFER_SIZE);
		ssize_t n = pread(from_fd, buffer, want, (off_t)(at + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		for (ssize_t written = 0; written < n;) {
			ssize_t w = pwrite(to_fd, buffer + written, (size_t)(n - written),
					   (off_t)(at + done) + written);
			if (w < 0 && errno != EINTR)
				return -errno;
			written += MAX(w, 0);
		}
		done += (uint64_t)n;
	}
	return (int64_t)done;
}

struct whole {
	struct offload_file *file;
	int from_fd, to_fd;
	char *buffer;
	bool by_hand;
};

static int copy_data(struct whole *whole, uint64_t at, uint64_t end)
{
	while (at < end) {
		uint64_t length = MIN(end - at, COPY_STEP);
		int64_t n = -EXDEV;
		int r = whole->file->at(whole->file, at);

		if (r < 0)
			return r;
		if (!whole->by_hand)
			n = copy(whole->from_fd, whole->to_fd, at, at, length);
		if (n == -EXDEV || n == -EINVAL || n == -EOPNOTSUPP || n == -ENOSYS || n == 0) {
			whole->by_hand = true;
			n = copy_by_hand(whole->from_fd, whole->to_fd, at, length, whole->buffer);
		}
		if (n < 0)
			return (int)n;
		if (n == 0)
			return -EIO; /* it became shorter under us */
		at += (uint64_t)n;
		whole->file->copied += (uint64_t)n;
	}
	return 0;
}

static int copy_holes(struct whole *whole, uint64_t size)
{
	uint64_t at = 0;
	int r = 0;

	while (r == 0 && at < size) {
		off_t data = lseek(whole->from_fd, (off_t)at, SEEK_DATA), hole = (off_t)size;

		if (data < 0 && errno == ENXIO)
			break; /* a hole up to the end */
		if (data < 0)
			data = (off_t)at;
		else
			hole = lseek(whole->from_fd, data, SEEK_HOLE);
		if (hole < 0 || (uint64_t)hole > size)
			hole = (off_t)size;
		r = copy_data(whole, (uint64_t)data, (uint64_t)hole);
		at = (uint64_t)hole;
	}
	return r;
}

int offload_whole(struct offload_file *file, int from_fd, int to_fd)
{
	_cleanup_(freep) char *buffer = malloc(BUFFER_SIZE);
	struct whole whole = {file, from_fd, to_fd, buffer, false};
	struct stat st;

	if (!buffer)
		return -ENOMEM;
	if (fstat(from_fd, &st) < 0)
		return -errno;
	if (ioctl(to_fd, FICLONE, from_fd) == 0) {
		file->shared = (uint64_t)st.st_size;
		return 0;
	}
	if (ftruncate(to_fd, st.st_size) < 0)
		return -errno;
	return copy_holes(&whole, (uint64_t)st.st_size);
}
