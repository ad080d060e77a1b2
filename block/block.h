/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disk images as asynchronous back ends. An image is opened once, from a descriptor; each loop that
 * serves it has a channel of its own, so no lock stands on the data path. Operations go in with the
 * source that waits; completions come as LOOP_IO on that source's loop, in any order. Buffers
 * belong to the image from submission to completion.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/io.h"

/* Sectors of the virtio and SCSI world; images are multiples of it. */
#define BLOCK_SECTOR 512u

struct block_image;
struct block_channel;

struct block_ops {
	const char *format; /* "raw" */
	/* As io_submit. READ and WRITE lie within the image; lengths and offsets are whole sectors.
	 */
	int (*submit)(struct block_channel *channel, const struct io_op *op,
		      struct loop_source *source, uint32_t arg);
	void (*close)(struct block_image *image);
};

struct block_image {
	const struct block_ops *ops;
	int fd;            /* owned */
	uint64_t size;     /* bytes, whole sectors */
	uint32_t io_block; /* what the guest should read and write in multiples of: 512 or more */
	bool readonly;
	bool direct;      /* O_DIRECT: buffers and lengths must be aligned to io_block */
	bool can_discard; /* holes can be punched */
};

/* One loop's view of an image. */
struct block_channel {
	struct block_image *image; /* borrowed */
	struct io *io;             /* owned */
	uint32_t file;             /* the image's number in `io` */
};

/*
 * Takes over `fd`, a regular file or a block device, as a raw image, and takes its lock: shared for
 * a read-only image, exclusive otherwise; -EBUSY when another VM has it. `name` is for the
 * sentence.
 */
int block_open_raw(struct block_image *image, int fd, bool readonly, const char *name,
		   struct error *err) __must_check;
/* Channels have been closed. Works on a zeroed image. */
void block_close(struct block_image *image);

int block_channel_open(struct block_channel *channel, struct block_image *image,
		       struct loop *loop) __must_check;
void block_channel_close(struct block_channel *channel);

static inline int block_submit(struct block_channel *channel, const struct io_op *op,
			       struct loop_source *source, uint32_t arg)
{
	return channel->image->ops->submit(channel, op, source, arg);
}

/*
 * Image locks (block/lock.c): open-file-description locks on one byte far behind any data. They go
 * with the descriptor, so the death of a VMM frees them when its last write has drained; taking one
 * waits that long, then says -EBUSY.
 */
int block_lock(int fd, bool exclusive) __must_check;
/* At once, where closing would wait for the kernel to take the ring apart. Nothing is in flight. */
void block_unlock(int fd);
