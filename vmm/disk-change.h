/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A change behind a disk's back while its guest runs: an overlay comes to stand on its image, or
 * the image becomes larger. One at a time a VM.
 *
 *   prepare ──> hold ──> work ──> take over ──> release
 *   worker      queues   worker   loops         queues go on
 *               rest
 *
 * Whatever fails is undone, and the queues go on with what they had. The main thread; the steps are
 * others' and come back by messages. No vCPU is stopped: what the guest asks of the disk meanwhile
 * waits in its rings.
 */
#pragma once

#include "base/loop.h"
#include "vmm/disk.h"

struct disk_change;

/* Told once, on the main thread; the disk is free again. `rested_ns`: how long its queues did. */
struct disk_change_waiter {
	void (*done)(struct disk_change_waiter *waiter, struct disk *disk, uint64_t rested_ns,
		     const struct error *err);
};

struct disk_change {
	struct loop_source source;   /* on the main loop */
	struct block_worker *worker; /* borrowed: the spare one */
	/* Told of every change's end, after its waiter; NULL: nobody. */
	void (*ended)(struct disk_change *change);

	struct disk *disk;                 /* borrowed; NULL: no change is under way */
	struct disk_change_waiter *waiter; /* borrowed */
	uint32_t step;
	struct block_job job;
	struct device_waiter rests;
	struct blk_swap swap;
	uint64_t held_at; /* ns */
	struct error err;

	/* What is wanted. */
	int fd;                      /* owned: of the overlay, until it is opened */
	char *path;                  /* owned */
	struct block_image *overlay; /* owned until the disk has it */
	uint64_t size;               /* resize; 0: an overlay */
};

int disk_change_init(struct disk_change *change, struct loop *loop, struct block_worker *worker,
		     struct error *err) __must_check;
/* Loops have ended and the device is gone, workers are there. What was under way is dropped; nobody
 * is told. */
void disk_change_deinit(struct disk_change *change);

static inline bool disk_change_is_of(const struct disk_change *change, const struct disk *disk)
{
	return change->disk == disk;
}

/* The overlay in `fd` (taken over) becomes the image. 0: `waiter` is told later. */
int disk_change_overlay(struct disk_change *change, struct disk *disk, int fd, const char *path,
			struct disk_change_waiter *waiter, struct error *err) __must_check;
int disk_change_size(struct disk_change *change, struct disk *disk, uint64_t size,
		     struct disk_change_waiter *waiter, struct error *err) __must_check;
