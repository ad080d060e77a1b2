/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disk images. An image is opened once, from a descriptor, never by a path that stands in an image.
 * There are two ways through it. A loop that serves it opens a channel: operations go in with the
 * source that waits, completions come as LOOP_IO on that source's loop, in any order, and no lock
 * stands on that path. Whoever may wait (tools, the image's worker) calls block_do and its kin from
 * any thread. Both may be used at once. Buffers belong to the image from submission to completion.
 *
 * An image may stand on another, its backing image, which is read where it has nothing itself, and
 * so on to the chain's end. Who opens a chain says for each image which format it is; format is
 * never guessed.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/io.h"
#include "block/file.h"

/* Sectors of the virtio and SCSI world; images are multiples of it. */
#define BLOCK_SECTOR    512u
#define BLOCK_CHAIN_MAX 64 /* images that stand on each other */

struct block_image;
struct block_channel;
struct block_worker;

/* What a range of an image is, without asking the images under it. */
enum block_extent_kind {
	BLOCK_ABSENT,     /* not in this image: the backing image has it, or it reads as zeroes */
	BLOCK_ZERO,       /* reads as zeroes, whatever is under it */
	BLOCK_DATA,       /* in the file, at `place` */
	BLOCK_COMPRESSED, /* in the file, compressed */
};

struct block_extent {
	enum block_extent_kind kind;
	uint64_t offset, length; /* of the guest's */
	uint64_t place;          /* DATA: in the file; ZERO: of space kept for it, 0: none */
	uint32_t depth;          /* of the image that it is in: 0 is the top. Set by block_map */
};

struct block_ops {
	const char *format; /* "raw", "qcow2" */
	int (*channel_open)(struct block_channel **ret_channel, struct block_image *image,
			    struct loop *loop);
	void (*channel_close)(struct block_channel *channel);
	/* As io_submit. READ and WRITE lie within the image; lengths and offsets are whole sectors.
	 */
	int (*submit)(struct block_channel *channel, const struct io_op *op,
		      struct loop_source *source, uint32_t arg);
	/* The same and waits: 0 when all of it was done, else -errno. */
	int (*run)(struct block_image *image, const struct io_op *op);
	/* This image's longest extent at `offset`, `length` at most. */
	int (*extent)(struct block_image *image, uint64_t offset, uint64_t length,
		      struct block_extent *ret_extent);
	int (*resize)(struct block_image *image, uint64_t size, struct error *err);
	/* Reads again what may have changed while the image was inactive. The lock is held. */
	int (*claim)(struct block_image *image, struct error *err);
	/* Everything is written and flushed, and what is cached is forgotten. */
	int (*yield)(struct block_image *image);
	/* Flushes what it can; gives back what the format holds, not the file. */
	void (*close)(struct block_image *image);
};

struct block_image {
	const struct block_ops *ops;
	struct block_file file;
	char *name;                  /* owned; for sentences */
	struct block_image *backing; /* owned; NULL: none. Never written */
	struct block_worker *worker; /* borrowed; NULL: block_do and its kin only */
	uint64_t size;               /* bytes, whole sectors */
	uint32_t io_block;           /* what the guest should read and write in multiples of */
	uint32_t discard_block;      /* what space is given back in multiples of */
	bool readonly;
	bool inactive;    /* opened for a move: not locked, not written, until block_claim */
	bool can_discard; /* discards are carried out */
};

/*
 * Gives an image's backing file: a descriptor, open for reading and owned by the caller, or -errno
 * with a sentence. `name` is what stands in the image, not to be trusted; `format` is NULL where
 * the image does not say it, else what it says; *ret_format is what it is to be opened as.
 */
struct block_opener {
	int (*open)(struct block_opener *opener, const char *name, const char *format,
		    const char **ret_format, struct error *err);
};

struct block_open {
	const char *format; /* "raw" or "qcow2" */
	const char *name;   /* for sentences */
	struct block_opener
		*opener; /* borrowed until block_open returns; NULL: backing is refused */
	struct block_worker *worker;     /* of all images of the chain; see block_image */
	struct block_recorder *recorder; /* of the top image's file */
	bool readonly;
	bool inactive;
	bool no_lock;    /* for a reader of what somebody else may be writing: `info --force` */
	bool no_backing; /* the image alone: what is under it reads as absent */
	bool no_discard; /* discards do nothing */
	bool repair;     /* put a dirty image in order; otherwise it is refused for writing */
};

/*
 * Takes over `fd`, also on failure, as an image; opens its chain by the opener; locks each image:
 * shared for those only read, exclusive for the top; -EBUSY when another VM or tool has one.
 */
int block_open(struct block_image **ret_image, int fd, const struct block_open *open,
	       struct error *err) __must_check;
/* Channels have been closed. The chain too. NULL is fine. Returns NULL. */
struct block_image *block_close(struct block_image *image);

/* The loop's owner, or before it runs. The worker must be there for any format but raw. */
int block_channel_open(struct block_channel **ret_channel, struct block_image *image,
		       struct loop *loop) __must_check;
/* Nothing is under way. NULL is fine. Returns NULL. */
struct block_channel *block_channel_close(struct block_channel *channel);

/* A channel's head; the format's own begins with it. */
struct block_channel {
	struct block_image *image; /* borrowed */
	const struct block_ops *ops;
	struct loop *loop; /* borrowed */
};

static inline int block_submit(struct block_channel *channel, const struct io_op *op,
			       struct loop_source *source, uint32_t arg)
{
	return channel->ops->submit(channel, op, source, arg);
}

/* These wait. Any thread, several at once. */
int block_do(struct block_image *image, const struct io_op *op) __must_check;
int block_read(struct block_image *image, void *data, size_t size, uint64_t offset) __must_check;
int block_write(struct block_image *image, const void *data, size_t size,
		uint64_t offset) __must_check;
int block_flush(struct block_image *image) __must_check;

/*
 * The chain's extent at `offset`, `length` at most: from the first image that has something there.
 * ABSENT: nowhere in the chain, or behind a backing image's end.
 */
int block_map(struct block_image *image, uint64_t offset, uint64_t length,
	      struct block_extent *ret_extent) __must_check;

/* No operation is under way. The guest's view of a grown part is zeroes. Shrinking is refused where
 * `size` would cut what the caller has not allowed: ask block_map first. */
int block_resize(struct block_image *image, uint64_t size, struct error *err) __must_check;

/*
 * For a move: the image opened inactive becomes this process's, locked and read again, or the other
 * way round. Nothing is under way. An image not opened with O_DIRECT on storage that several hosts
 * share is refused by who opens it, not here.
 */
int block_claim(struct block_image *image, struct error *err) __must_check;
int block_yield(struct block_image *image, struct error *err) __must_check;

/*
 * Image locks (block/lock.c): open-file-description locks on one byte far behind any data. They go
 * with the descriptor, so the death of a VMM frees them when its last write has drained; taking one
 * waits that long, then says -EBUSY.
 */
int block_lock(int fd, bool exclusive) __must_check;
/* At once, where closing would wait for the kernel to take the ring apart. Nothing is in flight. */
void block_unlock(int fd);
