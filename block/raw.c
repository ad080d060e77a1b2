/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Raw images: a file or block device that is the disk. Operations go straight to the channel's I/O
 * engine with the offset they came with.
 */
#include "block/raw.h"

#include <errno.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* What files hold and give back space in, mostly. */
#define FILE_BLOCK 4096u

struct raw_channel {
	struct block_channel channel;
	struct io *io; /* owned */
	uint32_t file; /* the image's number in `io` */
};

static struct raw_channel *to_raw(struct block_channel *channel)
{
	return container_of(channel, struct raw_channel, channel);
}

static int raw_submit(struct block_channel *channel, const struct io_op *op,
		      struct loop_source *source, uint32_t arg)
{
	static const struct iovec nothing;
	static const struct io_op nop = {.kind = IO_READ, .iov = &nothing, .n_iov = 1};
	struct raw_channel *raw = to_raw(channel);

	/* A discard that is not carried out ends like one that is. */
	if (op->kind == IO_DISCARD && !channel->image->can_discard)
		op = &nop;
	return io_submit(raw->io, raw->file, op, source, arg);
}

static void raw_channel_close(struct block_channel *channel)
{
	struct raw_channel *raw = to_raw(channel);

	io_file_remove(raw->io, raw->file);
	io_free(raw->io);
	free(raw);
}

static int raw_channel_open(struct block_channel **ret_channel, struct block_image *image,
			    struct loop *loop)
{
	struct raw_channel *raw = calloc(1, sizeof(*raw));
	int r;

	if (!raw)
		return -ENOMEM;
	r = io_new(&raw->io, loop);
	if (r >= 0)
		r = io_file_add(raw->io, image->file.fd, &raw->file);
	if (r < 0) {
		io_free(raw->io);
		free(raw);
		return r;
	}
	*ret_channel = &raw->channel;
	return 0;
}

static int raw_run(struct block_image *image, const struct io_op *op)
{
	const struct block_file *file = &image->file;

	switch (op->kind) {
	case IO_READ:
		return block_file_readv(file, op->iov, op->n_iov, op->offset);
	case IO_WRITE:
		return block_file_writev(file, op->iov, op->n_iov, op->offset);
	case IO_FLUSH:
		return block_file_sync(file);
	case IO_DISCARD:
		if (!image->can_discard)
			return 0;
		return block_file_discard(file, op->offset, op->length);
	case IO_ZERO:
	case IO_ZERO_KEEP:
		return block_file_zero(file, op->offset, op->length, op->kind == IO_ZERO_KEEP);
	}
	return -EINVAL;
}

/* A hole is absent, what else there is is data; a store that cannot tell has data only. */
static int raw_extent(struct block_image *image, uint64_t offset, uint64_t length,
		      struct block_extent *ret_extent)
{
	off_t data, hole;

	*ret_extent = (struct block_extent){
		.kind = BLOCK_DATA, .offset = offset, .length = length, .place = offset};
	if (!image->file.holes)
		return 0;
	data = lseek(image->file.fd, (off_t)offset, SEEK_DATA);
	if (data < 0 && errno != ENXIO)
		return errno == EINVAL ? 0 : -errno;
	if (data < 0 || (uint64_t)data > offset) {
		*ret_extent = (struct block_extent){
			.kind = BLOCK_ABSENT, .offset = offset, .length = length};
		if (data >= 0)
			ret_extent->length = MIN(length, (uint64_t)data - offset);
		return 0;
	}
	hole = lseek(image->file.fd, (off_t)offset, SEEK_HOLE);
	/* Written meanwhile, or cut. */
	if (hole > (off_t)offset)
		ret_extent->length = MIN(length, (uint64_t)hole - offset);
	return 0;
}

static int raw_resize(struct block_image *image, uint64_t size, struct error *err)
{
	int r = block_file_resize(&image->file, size);

	if (r == -ENOTSUP)
		return error_set(err, r,
				 "cannot resize \"%s\": it is a block device; resize that, and the "
				 "disk has its new size when it is opened again",
				 image->name);
	if (r < 0)
		return error_set(err, r, "cannot resize \"%s\" to %llu bytes: %s", image->name,
				 (unsigned long long)size, strerror(-r));
	image->size = size;
	return 0;
}

/* Size and granularity of what is behind the descriptor. */
static int raw_measure(struct block_image *image, const char *name, struct error *err)
{
	int64_t size = block_file_size(&image->file);
	const uint32_t io_block = image->io_block;

	if (size < 0)
		return error_set(err, (int)size, "cannot examine disk \"%s\": %s", name,
				 strerror((int)-size));
	if (size == 0)
		return error_set(
			err, -EINVAL,
			"cannot use \"%s\" as a disk: it is empty; truncate -s 10G gives it a size",
			name);
	if (size < io_block || size % io_block != 0)
		return error_set(
			err, -EINVAL,
			"cannot use \"%s\" as a disk: its size, %llu bytes, is not a multiple "
			"of %u; use truncate -s to round it up",
			name, (unsigned long long)size, io_block);
	image->size = (uint64_t)size;
	return 0;
}

static int raw_claim(struct block_image *image, struct error *err)
{
	return raw_measure(image, image->name, err);
}

static int raw_yield(struct block_image *image)
{
	return image->readonly ? 0 : block_file_sync(&image->file);
}

static void raw_close(struct block_image *image)
{
	free(image);
}

const struct block_ops raw_ops = {
	.format = "raw",
	.channel_open = raw_channel_open,
	.channel_close = raw_channel_close,
	.submit = raw_submit,
	.run = raw_run,
	.extent = raw_extent,
	.resize = raw_resize,
	.claim = raw_claim,
	.yield = raw_yield,
	.close = raw_close,
};

static int raw_init(struct block_image *image, const struct block_open *open, struct error *err)
{
	const char *name = open->name;
	unsigned int logical = BLOCK_SECTOR;

	if (image->file.block_device && ioctl(image->file.fd, BLKSSZGET, &logical) < 0)
		return error_set(err, -errno, "cannot examine block device \"%s\": %s", name,
				 strerror(errno));
	image->io_block = MAX((uint32_t)logical, image->file.align);
	image->discard_block = image->file.block_device ? image->io_block : FILE_BLOCK;
	image->can_discard = !open->readonly && !open->no_discard;
	return raw_measure(image, name, err);
}

int raw_open(struct block_image **ret_image, struct block_file *file, const struct block_open *open,
	     struct error *err)
{
	struct block_image *image = calloc(1, sizeof(*image));
	int r;

	if (!image) {
		block_file_close(file);
		return error_set(err, -ENOMEM, "cannot open disk \"%s\": out of memory",
				 open->name);
	}
	image->ops = &raw_ops;
	image->file = *file;
	r = raw_init(image, open, err);
	if (r < 0) {
		block_file_close(&image->file);
		free(image);
		return r;
	}
	*ret_image = image;
	return 0;
}
