/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Images of whatever format: opening them with the chain they stand on, their locks, and the calls
 * that wait. The formats do the rest.
 */
#include "block/block.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "block/qcow2.h"
#include "block/raw.h"

typedef int format_open(struct block_image **ret_image, struct block_file *file,
			const struct block_open *open, struct error *err);

static const struct {
	const char *name;
	format_open *open;
} formats[] = {{"raw", raw_open}, {"qcow2", qcow2_open}};

static format_open *format_find(const char *name)
{
	for (uint32_t i = 0; name && i < ARRAY_SIZE(formats); i++)
		if (!strcmp(formats[i].name, name))
			return formats[i].open;
	return NULL;
}

static int lock(int fd, bool exclusive, const char *name, struct error *err)
{
	int r = block_lock(fd, exclusive);

	if (r == -EBUSY)
		return error_set(err, r,
				 "cannot use disk \"%s\": another VM or tool has it open; stop "
				 "that VM (corral ps), or give both readonly=on",
				 name);
	if (r < 0)
		return error_set(err, r, "cannot lock disk \"%s\": %s", name, strerror(-r));
	return 0;
}

/* The descriptor can do what the image is opened for, and nobody else does it. */
static int prepare(int fd, const struct block_open *open, struct error *err)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0)
		return error_set(err, -errno, "cannot examine disk \"%s\": %s", open->name,
				 strerror(errno));
	if (!open->readonly && (flags & O_ACCMODE) != O_RDWR)
		return error_set(
			err, -EACCES,
			"cannot use disk \"%s\": it was not opened for writing; say readonly=on",
			open->name);
	if (open->no_lock || open->inactive)
		return 0;
	return lock(fd, !open->readonly, open->name, err);
}

static struct block_image *close_one(struct block_image *image)
{
	struct block_image *backing = image->backing;
	struct block_file file = image->file;
	char *name = image->name;

	image->ops->close(image);
	free(name);
	block_unlock(file.fd);
	block_file_close(&file);
	return backing;
}

struct block_image *block_close(struct block_image *image)
{
	while (image)
		image = close_one(image);
	return NULL;
}

/* One image, without what it stands on. Takes over `fd`. */
static int open_one(struct block_image **ret_image, int fd, const struct block_open *open,
		    struct error *err)
{
	format_open *format = format_find(open->format);
	struct block_image *image = NULL;
	struct block_file file;
	int r = block_file_init(&file, fd, open->name, err);

	if (r < 0)
		return r;
	file.recorder = open->recorder;
	r = prepare(fd, open, err);
	if (r >= 0 && !format)
		r = error_set(err, -EINVAL,
			      "cannot open disk \"%s\" as \"%s\": formats are raw and qcow2",
			      open->name, open->format ? open->format : "");
	if (r < 0) {
		block_file_close(&file);
		return r;
	}
	r = format(&image, &file, open, err);
	if (r < 0)
		return r;
	image->worker = open->worker;
	image->readonly = open->readonly;
	image->inactive = open->inactive;
	if (!image->name)
		image->name = strdup(open->name);
	if (!image->name) {
		close_one(image);
		return error_set(err, -ENOMEM, "cannot open disk \"%s\": out of memory",
				 open->name);
	}
	*ret_image = image;
	return 0;
}

/* What the image says it stands on; NULL: nothing. Borrowed. */
static const char *backing_name(struct block_image *image, const char **ret_format)
{
	const struct qcow2_header *header;

	if (image->ops != &qcow2_ops)
		return NULL;
	header = &to_qcow2(image)->header;
	*ret_format = header->backing_format;
	return header->backing_name;
}

static bool is_same_file(int a, int b)
{
	struct stat first, second;

	if (fstat(a, &first) < 0 || fstat(b, &second) < 0)
		return false;
	if (S_ISBLK(first.st_mode) && S_ISBLK(second.st_mode))
		return first.st_rdev == second.st_rdev;
	return first.st_dev == second.st_dev && first.st_ino == second.st_ino;
}

/* The descriptor of what `over` stands on, and what it is to be opened as. */
static int ask_opener(const struct block_image *over, const char *name, const char *format,
		      const struct block_open *open, int *ret_fd, const char **ret_format,
		      struct error *err)
{
	int fd;

	if (!open->opener)
		return error_set(err, -EINVAL,
				 "cannot open disk \"%s\": it stands on \"%s\", and nothing was "
				 "said that finds its backing image",
				 over->name, name);
	fd = open->opener->open(open->opener, name, format, ret_format, err);
	if (fd < 0)
		return fd;
	*ret_fd = fd;
	return 0;
}

static int check_loop(const struct block_image *top, int fd, const char *name, struct error *err)
{
	uint32_t depth = 0;

	for (const struct block_image *image = top; image; image = image->backing, depth++)
		if (is_same_file(image->file.fd, fd))
			return error_set(err, -ELOOP,
					 "cannot open backing image \"%s\": the chain comes back "
					 "to it",
					 name);
	if (depth >= BLOCK_CHAIN_MAX)
		return error_set(err, -ELOOP,
				 "cannot open backing image \"%s\": more than %u images stand on "
				 "each other; merge some of them",
				 name, BLOCK_CHAIN_MAX);
	return 0;
}

static int open_backing(struct block_image *top, struct block_image *over, const char *name,
			const char *format, const struct block_open *open, struct error *err)
{
	struct block_open of_backing = {
		.name = name,
		.worker = open->worker,
		.readonly = true,
		.no_lock = open->no_lock,
	};
	int fd = -1, r;

	r = ask_opener(over, name, format, open, &fd, &of_backing.format, err);
	if (r < 0)
		return r;
	r = check_loop(top, fd, name, err);
	if (r < 0) {
		fd_close(fd);
		return r;
	}
	return open_one(&over->backing, fd, &of_backing, err);
}

static int open_chain(struct block_image *top, const struct block_open *open, struct error *err)
{
	struct error own = ERROR_NULL;

	for (struct block_image *image = top; image && !open->no_backing; image = image->backing) {
		const char *format = NULL, *name = backing_name(image, &format);
		int r = name ? open_backing(top, image, name, format, open, &own) : 0;

		if (r < 0 && own.code < 0 && image == top)
			return error_set(err, r, "%s", own.text);
		if (r < 0)
			return error_set(err, r, "disk \"%s\", backing image \"%s\": %s", top->name,
					 image->name, own.text);
	}
	return 0;
}

int block_open(struct block_image **ret_image, int fd, const struct block_open *open,
	       struct error *err)
{
	struct block_image *image = NULL;
	int r = open_one(&image, fd, open, err);

	if (r < 0)
		return r;
	r = open_chain(image, open, err);
	if (r < 0) {
		block_close(image);
		return r;
	}
	*ret_image = image;
	return 0;
}

int block_channel_open(struct block_channel **ret_channel, struct block_image *image,
		       struct loop *loop)
{
	struct block_channel *channel = NULL;
	int r;

	if (image->ops != &raw_ops && !image->worker)
		return -EINVAL;
	r = image->ops->channel_open(&channel, image, loop);
	if (r < 0)
		return r;
	channel->image = image;
	channel->ops = image->ops;
	channel->loop = loop;
	*ret_channel = channel;
	return 0;
}

struct block_channel *block_channel_close(struct block_channel *channel)
{
	if (channel)
		channel->ops->channel_close(channel);
	return NULL;
}

/* Whole sectors within the image. */
static int check_range(const struct block_image *image, const struct io_op *op)
{
	uint64_t length = op->length;

	if (op->kind == IO_FLUSH)
		return 0;
	if (op->kind == IO_READ || op->kind == IO_WRITE) {
		length = 0;
		for (uint32_t i = 0; i < op->n_iov; i++)
			length += op->iov[i].iov_len;
	}
	if ((op->offset | length) % BLOCK_SECTOR != 0 || length > image->size ||
	    op->offset > image->size - length)
		return -EINVAL;
	return 0;
}

int block_do(struct block_image *image, const struct io_op *op)
{
	bool changes = op->kind != IO_READ && op->kind != IO_FLUSH;
	int r = check_range(image, op);

	if (r < 0)
		return r;
	if (changes && (image->readonly || image->inactive))
		return -EROFS;
	return image->ops->run(image, op);
}

int block_read(struct block_image *image, void *data, size_t size, uint64_t offset)
{
	const struct iovec iov = {data, size};

	return block_do(
		image, &(struct io_op){.kind = IO_READ, .iov = &iov, .n_iov = 1, .offset = offset});
}

int block_write(struct block_image *image, const void *data, size_t size, uint64_t offset)
{
	const struct iovec iov = {(void *)data, size};

	return block_do(
		image,
		&(struct io_op){.kind = IO_WRITE, .iov = &iov, .n_iov = 1, .offset = offset});
}

int block_flush(struct block_image *image)
{
	return block_do(image, &(struct io_op){.kind = IO_FLUSH});
}

int block_map(struct block_image *image, uint64_t offset, uint64_t length,
	      struct block_extent *ret_extent)
{
	uint32_t depth = 0;

	if (!length || offset >= image->size)
		return -EINVAL;
	for (;; image = image->backing, depth++) {
		int r;

		if (offset >= image->size) {
			*ret_extent = (struct block_extent){
				.kind = BLOCK_ABSENT, .offset = offset, .length = length};
			break;
		}
		length = MIN(length, image->size - offset);
		r = image->ops->extent(image, offset, length, ret_extent);
		if (r < 0)
			return r;
		if (ret_extent->kind != BLOCK_ABSENT || !image->backing)
			break;
		length = ret_extent->length;
	}
	ret_extent->depth = depth;
	return 0;
}

int block_resize(struct block_image *image, uint64_t size, struct error *err)
{
	int r;

	if (image->readonly || image->inactive)
		return error_set(err, -EROFS, "cannot resize \"%s\": it is not open for writing",
				 image->name);
	if (!size || size % image->io_block != 0 || size > INT64_MAX)
		return error_set(
			err, -EINVAL,
			"cannot resize \"%s\" to %llu bytes: a size is a multiple of %u, above 0",
			image->name, (unsigned long long)size, image->io_block);
	if (size == image->size)
		return 0;
	r = image->ops->resize(image, size, err);
	if (r >= 0)
		image->size = size;
	return r;
}

int block_claim(struct block_image *image, struct error *err)
{
	int r;

	if (!image->inactive)
		return 0;
	r = lock(image->file.fd, !image->readonly, image->name, err);
	if (r < 0)
		return r;
	image->inactive = false;
	r = image->ops->claim(image, err);
	if (r < 0) {
		image->inactive = true;
		block_unlock(image->file.fd);
	}
	return r;
}

int block_yield(struct block_image *image, struct error *err)
{
	int r;

	if (image->inactive)
		return 0;
	r = image->ops->yield(image);
	if (r < 0)
		return error_set(err, r, "cannot give up disk \"%s\": writing it out failed: %s",
				 image->name, strerror(-r));
	image->inactive = true;
	block_unlock(image->file.fd);
	return 0;
}
