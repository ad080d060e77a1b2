/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The virtio block device (virtio 1.2, 5.2) over an image of block/.
 */
#pragma once

#include "block/block.h"
#include "virtio/pci.h"

#define BLK_QUEUE_SIZE 256
#define BLK_ID_SIZE    20 /* bytes of the serial, zero-padded, 5.2.6 */

struct blk_queue;

/* What has been asked for and done, for "counters". One a queue, written by its loop. */
struct blk_counters {
	uint64_t reads, writes, flushes, discards, errors;
	uint64_t read_bytes, written_bytes;
};

struct blk {
	struct virtio_pci pci;
	struct virtio_device virtio;
	struct block_image *image; /* borrowed; outlives the device */
	struct blk_queue *queues;  /* owned, one a virtqueue */
	char id[BLK_ID_SIZE];
	bool writethrough; /* the driver did not take FLUSH: each write is made durable; settled at
			      DRIVER_OK */
};

/* A disk in PCI slot `slot`, its queues spread over the loops. `serial` may be NULL. */
int blk_init(struct blk *blk, struct pci_root *root, uint32_t slot, const char *name,
	     struct guest_memory *memory, struct block_image *image, const char *serial,
	     uint32_t n_queues, struct loop *const *loops, uint32_t n_loops,
	     struct error *err) __must_check;
