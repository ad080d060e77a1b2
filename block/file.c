/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole reads and writes of an image's store, and what else is done to it, with plain calls that
 * wait. Any thread. What O_DIRECT does not take as it is goes through a buffer of the call's own.
 */
#include "block/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/macros.h"

/* Of a file under O_DIRECT: enough for every file system, and the same on both hosts of a move. */
#define DIRECT_ALIGN 4096u
#define BOUNCE_MAX   (1u << 20)
#define ZEROES_SIZE  (64u << 10)

static int examine(struct block_file *file, const char *name, struct error *err)
{
	struct stat st;
	int flags = fcntl(file->fd, F_GETFL);
	unsigned int logical = 1;

	if (flags < 0 || fstat(file->fd, &st) < 0)
		return error_set(err, -errno, "cannot examine disk \"%s\": %s", name,
				 strerror(errno));
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return error_set(
			err, -EINVAL,
			"cannot use \"%s\" as a disk: it is neither a file nor a block device",
			name);
	file->direct = flags & O_DIRECT;
	file->holes = S_ISREG(st.st_mode);
	file->block_device = S_ISBLK(st.st_mode);
	if (file->block_device && ioctl(file->fd, BLKSSZGET, &logical) < 0)
		return error_set(err, -errno, "cannot examine block device \"%s\": %s", name,
				 strerror(errno));
	if (file->direct)
		file->align = file->block_device ? logical : DIRECT_ALIGN;
	return 0;
}

int block_file_init(struct block_file *file, int fd, const char *name, struct error *err)
{
	int r;

	*file = (struct block_file){.fd = fd, .align = 1};
	r = examine(file, name, err);
	if (r < 0)
		block_file_close(file);
	return r;
}

void block_file_close(struct block_file *file)
{
	file->fd = fd_close(file->fd);
}

int64_t block_file_size(const struct block_file *file)
{
	off_t size = lseek(file->fd, 0, SEEK_END);

	return size < 0 ? -errno : size;
}

static uint64_t iov_bytes(const struct iovec *iov, uint32_t n_iov)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < n_iov; i++)
		n += iov[i].iov_len;
	return n;
}

/* Where a transfer stands in its buffers. */
struct place {
	const struct iovec *iov;
	uint32_t n_iov;
	uint64_t skip; /* of the first */
};

static void advance(struct place *place, uint64_t n)
{
	place->skip += n;
	while (place->n_iov && place->skip >= place->iov->iov_len) {
		place->skip -= place->iov->iov_len;
		place->iov++;
		place->n_iov--;
	}
}

/* One system call's worth; the rest of a buffer that was begun goes by itself. */
static ssize_t transfer_some(int fd, bool write, const struct place *place, uint64_t offset)
{
	const struct iovec rest = {
		(uint8_t *)place->iov->iov_base + place->skip,
		place->iov->iov_len - place->skip,
	};
	const struct iovec *iov = place->skip ? &rest : place->iov;
	const int n = place->skip ? 1 : (int)MIN(place->n_iov, (uint32_t)IOV_MAX);
	ssize_t r;

	do
		r = write ? pwritev(fd, iov, n, (off_t)offset) : preadv(fd, iov, n, (off_t)offset);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : r;
}

static void fill_zeroes(struct place place)
{
	while (place.n_iov) {
		memset((uint8_t *)place.iov->iov_base + place.skip, 0,
		       place.iov->iov_len - place.skip);
		advance(&place, place.iov->iov_len - place.skip);
	}
}

/* All of it, as the descriptor takes it. */
static int transfer_all(const struct block_file *file, bool write, const struct iovec *iov,
			uint32_t n_iov, uint64_t offset)
{
	struct place place = {iov, n_iov, 0};

	advance(&place, 0); /* buffers without length */
	while (place.n_iov) {
		ssize_t n = transfer_some(file->fd, write, &place, offset);

		if (n < 0)
			return (int)n;
		if (n == 0 && (write || !file->holes))
			return -EIO;
		if (n == 0) {
			fill_zeroes(place);
			return 0;
		}
		offset += (uint64_t)n;
		advance(&place, (uint64_t)n);
	}
	return 0;
}

static bool is_aligned(const struct block_file *file, const struct iovec *iov, uint32_t n_iov,
		       uint64_t offset)
{
	uint64_t bits = offset;

	if (file->align <= 1)
		return true;
	for (uint32_t i = 0; i < n_iov; i++)
		bits |= (uintptr_t)iov[i].iov_base | iov[i].iov_len;
	return bits % file->align == 0;
}

/* Between a buffer and the next `n` bytes of the operation's. */
static void copy(struct place *place, bool to_buffer, uint8_t *buffer, uint64_t n)
{
	while (n) {
		uint8_t *at = (uint8_t *)place->iov->iov_base + place->skip;
		uint64_t here = MIN(n, (uint64_t)place->iov->iov_len - place->skip);

		if (to_buffer)
			memcpy(buffer, at, here);
		else
			memcpy(at, buffer, here);
		advance(place, here);
		buffer += here;
		n -= here;
	}
}

static int buffer_transfer(const struct block_file *file, bool write, uint8_t *buffer, uint64_t n,
			   uint64_t offset)
{
	return transfer_all(file, write, &(struct iovec){buffer, n}, 1, offset);
}

/* The blocks [at, at + n) through `buffer`, of which [from, to) is the operation's. */
static int bounce_part(const struct block_file *file, bool write, struct place *place,
		       uint8_t *buffer, uint64_t at, uint64_t n, uint64_t from, uint64_t to)
{
	const uint32_t align = file->align;
	int r = 0;

	if (!write) {
		r = buffer_transfer(file, false, buffer, n, at);
		if (r >= 0)
			copy(place, false, buffer + (from - at), to - from);
		return r;
	}
	/* What is written with the first and last block but is not ours stays as it is. */
	if (from > at)
		r = buffer_transfer(file, false, buffer, align, at);
	if (r >= 0 && to < at + n)
		r = buffer_transfer(file, false, buffer + n - align, align, at + n - align);
	if (r < 0)
		return r;
	copy(place, true, buffer + (from - at), to - from);
	return buffer_transfer(file, true, buffer, n, at);
}

static int bounce(const struct block_file *file, bool write, const struct iovec *iov,
		  uint32_t n_iov, uint64_t offset)
{
	const uint64_t end = offset + iov_bytes(iov, n_iov);
	const uint64_t last = align_up(end, file->align);
	struct place place = {iov, n_iov, 0};
	uint64_t at = align_down(offset, file->align);
	_cleanup_(freep) uint8_t *buffer = NULL;
	int r = 0;

	if (offset == end)
		return 0;
	buffer = aligned_alloc(file->align, MIN(last - at, (uint64_t)BOUNCE_MAX));
	if (!buffer)
		return -ENOMEM;
	advance(&place, 0);
	for (; r >= 0 && at < last; at += BOUNCE_MAX) {
		uint64_t n = MIN(last - at, (uint64_t)BOUNCE_MAX);

		r = bounce_part(file, write, &place, buffer, at, n, MAX(at, offset),
				MIN(at + n, end));
	}
	return r;
}

int block_file_readv(const struct block_file *file, const struct iovec *iov, uint32_t n_iov,
		     uint64_t offset)
{
	if (!is_aligned(file, iov, n_iov, offset))
		return bounce(file, false, iov, n_iov, offset);
	return transfer_all(file, false, iov, n_iov, offset);
}

static int note(const struct block_file *file, enum io_kind kind, uint64_t offset, uint64_t length,
		const struct iovec *iov, uint32_t n_iov)
{
	if (!file->recorder)
		return 0;
	return file->recorder->note(file->recorder, kind, offset, length, iov, n_iov);
}

static int write_unseen(const struct block_file *file, const struct iovec *iov, uint32_t n_iov,
			uint64_t offset)
{
	if (!is_aligned(file, iov, n_iov, offset))
		return bounce(file, true, iov, n_iov, offset);
	return transfer_all(file, true, iov, n_iov, offset);
}

int block_file_writev(const struct block_file *file, const struct iovec *iov, uint32_t n_iov,
		      uint64_t offset)
{
	int r = note(file, IO_WRITE, offset, iov_bytes(iov, n_iov), iov, n_iov);

	return r < 0 ? r : write_unseen(file, iov, n_iov, offset);
}

int block_file_read(const struct block_file *file, void *data, size_t size, uint64_t offset)
{
	return block_file_readv(file, &(struct iovec){data, size}, 1, offset);
}

int block_file_write(const struct block_file *file, const void *data, size_t size, uint64_t offset)
{
	return block_file_writev(file, &(struct iovec){(void *)data, size}, 1, offset);
}

int block_file_sync(const struct block_file *file)
{
	int r = note(file, IO_FLUSH, 0, 0, NULL, 0);

	if (r < 0)
		return r;
	return fdatasync(file->fd) < 0 ? -errno : 0;
}

static int allocate(const struct block_file *file, enum io_kind kind, uint64_t offset,
		    uint64_t length)
{
	int r;

	do
		r = fallocate(file->fd, io_fallocate_mode(kind), (off_t)offset, (off_t)length);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : 0;
}

/* The store cannot do so, or not with a range that cuts its blocks. */
static bool is_inability(const struct block_file *file, int r)
{
	return r == -EOPNOTSUPP || r == -ENOSYS || r == -ENODEV ||
	       (r == -EINVAL && file->block_device);
}

int block_file_discard(const struct block_file *file, uint64_t offset, uint64_t length)
{
	int r = note(file, IO_DISCARD, offset, length, NULL, 0);

	if (r < 0 || !length)
		return r;
	r = allocate(file, IO_DISCARD, offset, length);
	return is_inability(file, r) ? 0 : r;
}

static int write_zeroes(const struct block_file *file, uint64_t offset, uint64_t length)
{
	static uint8_t zeroes[ZEROES_SIZE] __attribute__((aligned(DIRECT_ALIGN)));
	struct iovec iov[BOUNCE_MAX / ZEROES_SIZE];
	int r = 0;

	while (r >= 0 && length) {
		uint64_t here = 0;
		uint32_t n = 0;

		for (; n < ARRAY_SIZE(iov) && here < length; n++) {
			iov[n] = (struct iovec){zeroes, MIN(length - here, (uint64_t)ZEROES_SIZE)};
			here += iov[n].iov_len;
		}
		r = write_unseen(file, iov, n, offset);
		offset += here;
		length -= here;
	}
	return r;
}

int block_file_zero(const struct block_file *file, uint64_t offset, uint64_t length,
		    bool keep_allocated)
{
	enum io_kind kind = keep_allocated ? IO_ZERO_KEEP : IO_ZERO;
	int r = note(file, kind, offset, length, NULL, 0);

	if (r < 0 || !length)
		return r;
	r = allocate(file, kind, offset, length);
	if (is_inability(file, r) && !keep_allocated)
		r = allocate(file, IO_ZERO_KEEP, offset, length);
	return is_inability(file, r) ? write_zeroes(file, offset, length) : r;
}

int block_file_resize(const struct block_file *file, uint64_t size)
{
	int64_t now = block_file_size(file);
	int r = 0;

	if (now < 0 || (uint64_t)now == size)
		return (int)MIN(now, (int64_t)0);
	if (file->block_device)
		return -ENOTSUP;
	if (size > (uint64_t)now)
		r = note(file, IO_ZERO_KEEP, (uint64_t)now, size - (uint64_t)now, NULL, 0);
	else
		r = note(file, IO_DISCARD, size, UINT64_MAX - size, NULL, 0);
	if (r < 0)
		return r;
	return ftruncate(file->fd, (off_t)size) < 0 ? -errno : 0;
}
