/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One request of a block driver: what the guest wrote, taken apart and checked, and the operations
 * on the image that carry it out, one after the other.
 */
#pragma once

#include "base/io.h"
#include "block/block.h"
#include "virtio/blk.h"
#include "virtio/queue.h"

/* virtio 1.2, 5.2.6, little-endian */
enum blk_request_type {
	BLK_T_IN = 0,
	BLK_T_OUT = 1,
	BLK_T_FLUSH = 4,
	BLK_T_GET_ID = 8,
	BLK_T_DISCARD = 11,
	BLK_T_WRITE_ZEROES = 13,
};
enum blk_status { BLK_S_OK = 0, BLK_S_IOERR = 1, BLK_S_UNSUPPORTED = 2 };

struct blk_request_header {
	uint32_t type;
	uint32_t reserved;
	uint64_t sector;
} __attribute__((packed));
_Static_assert(sizeof(struct blk_request_header) == 16, "5.2.6");

struct blk_range {
	uint64_t sector;
	uint32_t n_sectors;
	uint32_t flags; /* bit 0: unmap */
} __attribute__((packed));
_Static_assert(sizeof(struct blk_range) == 16, "5.2.6");

#define BLK_SEGMENTS_MAX      126 /* data descriptors of one request */
#define BLK_IOV_MAX           (BLK_SEGMENTS_MAX + 2)
#define BLK_RANGES_MAX        16
#define BLK_RANGE_SECTORS_MAX (1u << 22) /* 2 GiB a range */

struct blk_request {
	struct virtqueue_chain chain;
	struct iovec iov[BLK_IOV_MAX];
	struct blk_request_header header;
	struct iovec *data; /* the chain's iovecs without header and status */
	uint32_t n_data;
	uint64_t bytes, done;     /* of data */
	uint8_t *status;          /* in guest memory */
	uint64_t started;         /* CLOCK_MONOTONIC ns */
	bool flushing;            /* the flush behind a write-through write is under way */
	struct blk_request *next; /* in the queue's list of those that wait for room; weak */
	uint32_t n_ranges, range;
	struct blk_range ranges[BLK_RANGES_MAX];
};

/*
 * Splits a chain into header, data and status (5.2.6): the header is the first 16 bytes the device
 * reads, the status the last byte it writes, however the driver cut them. False: it lacks either.
 */
bool blk_request_parse(struct blk_request *request) __must_check;

/* What can be said of the request without the image. BLK_S_OK: it may be carried out. */
enum blk_status blk_request_check(const struct blk *blk, struct blk_request *request);

/* The operation of the step that the request is at. */
struct io_op blk_request_op(const struct blk_request *request);

/* That step has ended with `result`. True: another follows. -EIO in *ret_code for one that ended
 * too early, else 0 or the failure. */
bool blk_request_step(struct blk_request *request, bool writethrough, int32_t result,
		      int *ret_code);

enum blk_operation blk_request_kind(const struct blk_request *request);
