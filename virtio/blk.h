/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The virtio block device (virtio 1.2, 5.2) over an image of block/.
 *
 * A request that the store fails at is, by policy, told to the guest or set aside: it stays under
 * way as the guest sees it, whoever listens pauses the VM, and it is tried again when the queues
 * start the next time. Set aside it is part of the device's state and may be saved, loaded, reset.
 */
#pragma once

#include "block/block.h"
#include "virtio/blk-limits.h"
#include "virtio/pci.h"

#define BLK_QUEUE_SIZE 256
#define BLK_QUEUES_MAX 8
#define BLK_ID_SIZE    20 /* bytes of the serial, zero-padded, 5.2.6 */

struct blk;
struct blk_queue;

enum blk_operation { BLK_READ, BLK_WRITE, BLK_FLUSH, BLK_DISCARD, BLK_OPERATIONS };
extern const char *const blk_operation_names[];

enum blk_on_error {
	BLK_ERROR_FULL,  /* what finds its store full is set aside, the rest is told */
	BLK_ERROR_PAUSE, /* whatever the store fails at is set aside */
	BLK_ERROR_REPORT /* all is told */
};

/* The first failure since the queues started. */
struct blk_trouble {
	int code; /* -errno, 0: none */
	enum blk_operation operation;
};

/* Called on loops of queues; only posts. */
struct blk_listener {
	/* A request was set aside. Not again before blk_trouble_forget. */
	void (*failed)(struct blk_listener *listener, struct blk *blk);
	/* Something was written; once in BLK_WRITTEN_NS at most. */
	void (*written)(struct blk_listener *listener, struct blk *blk);
};
#define BLK_WRITTEN_NS 1000000000u

struct blk_options {
	const char *name; /* the device's in the machine: "disk0" */
	struct block_image *image;
	const char *serial; /* NULL: none */
	uint32_t n_queues;  /* BLK_QUEUES_MAX at most */
	struct loop *const *loops;
	uint32_t n_loops;
	struct blk_limit_set limits;
	enum blk_on_error on_error;
	struct blk_listener *listener; /* borrowed; NULL: none, and nothing is set aside */
};

/* For another image in the place of the one there is. `done` is called once, on some loop. */
struct blk_swap {
	struct block_image *image;
	void (*done)(struct blk_swap *swap, int r);
	_Atomic uint32_t n_left; /* queues that have not taken this step */
	_Atomic int r;           /* the first failure */
};

struct blk {
	struct virtio_pci pci;
	struct virtio_device virtio;
	struct block_image
		*image; /* borrowed; outlives the device. Changes while the queues rest */
	uint32_t n_queues;
	struct blk_queue *queues; /* owned, one a virtqueue */
	char id[BLK_ID_SIZE];
	bool writethrough; /* the driver did not take FLUSH: each write is made durable; settled at
			      DRIVER_OK */
	_Atomic uint64_t capacity;        /* sectors */
	uint32_t io_block, discard_block; /* as the guest was told */
	struct blk_limits limits;
	enum blk_on_error on_error;
	struct blk_listener *listener; /* borrowed, NULL: none */
	_Atomic uint64_t written_told; /* when, ns */
	struct blk_trouble trouble;    /* device's lock */
	struct blk_swap *swap;         /* borrowed, while one is under way */

	/* Migrates. Heads of the requests set aside, a bit each; a queue's loop writes its row. */
	struct blk_state {
		uint8_t aside[BLK_QUEUES_MAX][BLK_QUEUE_SIZE / 8];
	} state;
};

/* A disk in PCI slot `slot`, its queues spread over the loops. */
int blk_init(struct blk *blk, struct pci_root *root, uint32_t slot, struct guest_memory *memory,
	     const struct blk_options *options, struct error *err) __must_check;

/* Any thread. */
struct blk_trouble blk_trouble(struct blk *blk);
/* Main thread, before the queues start: what fails from now on is told again. */
void blk_trouble_forget(struct blk *blk);

/* The image has another size; the guest is told. The queues rest. Main thread. */
void blk_resized(struct blk *blk);

/*
 * `swap->image`, of the same size, takes the place of blk->image: each loop opens a channel to it,
 * then all change over, or none. The queues are held (virtio_hold); blk->image is the new one when
 * `done` is called with 0, else the old one. -EINVAL: it asks for greater blocks than the guest was
 * told of.
 */
int blk_swap(struct blk *blk, struct blk_swap *swap) __must_check;
