/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an image is stored in, for everything that may wait: metadata, slow paths, tools. Calls do
 * all that was asked or fail. Under O_DIRECT what is not aligned goes through a buffer of the
 * call's own. Any thread; calls for ranges that overlap are the caller's to order.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/error.h"
#include "base/io.h"

/*
 * Stands between an image and its store in crash tests: sees each change in the order it is made,
 * before it is made, and may refuse it (-errno). `iov` for IO_WRITE, `length` for all but
 * IO_FLUSH. A change of the file's size is IO_ZERO_KEEP beyond the end (growing) or IO_DISCARD up
 * to UINT64_MAX (cutting).
 */
struct block_recorder {
	int (*note)(struct block_recorder *recorder, enum io_kind kind, uint64_t offset,
		    uint64_t length, const struct iovec *iov, uint32_t n_iov);
};

struct block_file {
	int fd;            /* owned */
	bool direct;       /* O_DIRECT */
	bool block_device; /* its size does not change */
	bool holes;        /* a regular file: what was never written reads as zeroes */
	uint32_t align;    /* of offsets, lengths and buffers under O_DIRECT; else 1 */
	struct block_recorder *recorder; /* borrowed; NULL but in tests */
};

/* Takes over `fd`. `name` is for the sentence. -EINVAL: neither file nor block device. */
int block_file_init(struct block_file *file, int fd, const char *name,
		    struct error *err) __must_check;
void block_file_close(struct block_file *file);

/* The size now, or -errno. */
int64_t block_file_size(const struct block_file *file);

/* Past the end of a regular file, zeroes are read. */
int block_file_readv(const struct block_file *file, const struct iovec *iov, uint32_t n_iov,
		     uint64_t offset) __must_check;
int block_file_writev(const struct block_file *file, const struct iovec *iov, uint32_t n_iov,
		      uint64_t offset) __must_check;
int block_file_read(const struct block_file *file, void *data, size_t size,
		    uint64_t offset) __must_check;
int block_file_write(const struct block_file *file, const void *data, size_t size,
		     uint64_t offset) __must_check;
/* Written and discarded and sized before the call: on stable storage after it. */
int block_file_sync(const struct block_file *file) __must_check;
/* Space is given back where the store can, the range may read as anything. Never fails for lack of
 * ability. */
int block_file_discard(const struct block_file *file, uint64_t offset,
		       uint64_t length) __must_check;
/* The range reads as zeroes: by fallocate where that works, by writing where it does not. */
int block_file_zero(const struct block_file *file, uint64_t offset, uint64_t length,
		    bool keep_allocated) __must_check;
/* Regular files. -ENOTSUP for a block device of another size. */
int block_file_resize(const struct block_file *file, uint64_t size) __must_check;
