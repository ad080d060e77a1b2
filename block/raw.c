/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Raw images: a file or block device that is the disk. Operations go straight to the channel's I/O
 * engine with the offset they came with.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "block/block.h"

#define IO_BLOCK_MAX 4096u

static int raw_submit(struct block_channel *channel, const struct io_op *op,
		      struct loop_source *source, uint32_t arg)
{
	return io_submit(channel->io, channel->file, op, source, arg);
}

static void raw_close(struct block_image *image)
{
	block_unlock(image->fd);
	image->fd = fd_close(image->fd);
}

static const struct block_ops raw_ops = {
	.format = "raw",
	.submit = raw_submit,
	.close = raw_close,
};

/* Size and granularity of what is behind the descriptor. */
static int raw_measure(struct block_image *image, const char *name, struct error *err)
{
	struct stat st;
	unsigned int logical = BLOCK_SECTOR;

	if (fstat(image->fd, &st) < 0)
		return error_set(err, -errno, "cannot examine disk \"%s\": %s", name,
				 strerror(errno));
	if (S_ISBLK(st.st_mode)) {
		if (ioctl(image->fd, BLKGETSIZE64, &image->size) < 0 ||
		    ioctl(image->fd, BLKSSZGET, &logical) < 0)
			return error_set(err, -errno, "cannot examine block device \"%s\": %s",
					 name, strerror(errno));
	} else if (S_ISREG(st.st_mode)) {
		image->size = st.st_size;
		if (image->direct)
			logical = IO_BLOCK_MAX;
	} else {
		return error_set(
			err, -EINVAL,
			"cannot use \"%s\" as a disk: it is neither a file nor a block device",
			name);
	}
	image->io_block = logical;
	if (image->size == 0)
		return error_set(
			err, -EINVAL,
			"cannot use \"%s\" as a disk: it is empty; truncate -s 10G gives it a size",
			name);
	if (image->size < logical || image->size % logical != 0)
		return error_set(
			err, -EINVAL,
			"cannot use \"%s\" as a disk: its size, %llu bytes, is not a multiple "
			"of %u; use truncate -s to round it up",
			name, (unsigned long long)image->size, logical);
	return 0;
}

int block_open_raw(struct block_image *image, int fd, bool readonly, const char *name,
		   struct error *err)
{
	int flags, r;

	*image = (struct block_image){.ops = &raw_ops, .fd = fd, .readonly = readonly};
	flags = fcntl(fd, F_GETFL);
	if (flags < 0)
		return error_set(err, -errno, "cannot examine disk \"%s\": %s", name,
				 strerror(errno));
	image->direct = flags & O_DIRECT;
	image->can_discard = !readonly;
	if (!readonly && (flags & O_ACCMODE) != O_RDWR)
		return error_set(
			err, -EACCES,
			"cannot use disk \"%s\": it was not opened for writing; say readonly=on",
			name);
	r = raw_measure(image, name, err);
	if (r < 0)
		return r;
	r = block_lock(fd, !readonly);
	if (r == -EBUSY)
		return error_set(
			err, r,
			"cannot use disk \"%s\": another VM has it open; stop that VM (corral ps), "
			"or give both readonly=on",
			name);
	if (r < 0)
		return error_set(err, r, "cannot lock disk \"%s\": %s", name, strerror(-r));
	return 0;
}

void block_close(struct block_image *image)
{
	if (image->ops)
		image->ops->close(image);
	*image = (struct block_image){.fd = -1};
}

int block_channel_open(struct block_channel *channel, struct block_image *image, struct loop *loop)
{
	int r;

	*channel = (struct block_channel){.image = image};
	r = io_new(&channel->io, loop);
	if (r < 0)
		return r;
	r = io_file_add(channel->io, image->fd, &channel->file);
	if (r < 0)
		channel->io = io_free(channel->io);
	return r;
}

void block_channel_close(struct block_channel *channel)
{
	if (channel->io) {
		io_file_remove(channel->io, channel->file);
		channel->io = io_free(channel->io);
	}
}
