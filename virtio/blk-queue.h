/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One queue of a block device, on its loop. What blk.c and blk-queue.c share.
 */
#pragma once

#include "virtio/blk-latency.h"
#include "virtio/blk-request.h"
#include "virtio/blk.h"

/* What has been asked for and done, for "counters". Written by the queue's loop. */
struct blk_counters {
	uint64_t reads, writes, flushes, discards, errors;
	uint64_t read_bytes, written_bytes;
	uint64_t limited;                        /* times that requests waited for a limit */
	uint64_t aside;                          /* requests set aside so far */
	struct blk_latency latency[BLK_DISCARD]; /* of reads, writes, flushes */
};

struct blk_queue {
	struct blk *blk;                   /* weak */
	struct virtio_queue *virtio;       /* weak */
	uint8_t *aside;                    /* weak: its row of the state */
	struct loop_source source;         /* completions, a limit's timer, steps of a swap */
	struct block_channel *channel;     /* owned */
	struct block_channel *new_channel; /* owned; of a swap under way */
	struct blk_request
		*requests; /* owned mapping, one a descriptor; pages come as they are used */
	struct blk_request *waiting; /* weak: their next step found the engine full */
	bool stalled;                /* chains are left in the ring: goes on at the next batch */
	bool again;                  /* what is set aside comes before the ring … */
	uint32_t again_at;           /* … from this head on; what fails meanwhile waits */
	bool paid;                   /* the next request has been taken from the limits already */
	uint64_t not_before;         /* when a limit has something left again; 0: now */
	struct blk_counters counters;
};

/* The queue has its loop, and gets its source and channel there; and loses them. The loop's owner,
 * or before it runs and after it has ended. */
int blk_queue_attach(struct blk_queue *queue) __must_check;
void blk_queue_detach(struct blk_queue *queue);

/* virtio_ops: run, stop. */
void blk_queue_run(struct blk_queue *queue);
void blk_queue_stop(struct blk_queue *queue);

/* Steps of a swap, posted to the queue's source. */
enum blk_queue_message { BLK_SWAP_OPEN, BLK_SWAP_TAKE, BLK_SWAP_DROP };
/* blk.c: a queue has taken its step. On its loop. */
void blk_swap_step(struct blk *blk, enum blk_queue_message step, int r);
