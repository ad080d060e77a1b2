/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk of the machine: an image with all that it stands on, the device in front of it, and a look
 * at the room that is left in its store.
 */
#pragma once

#include "base/fd.h"
#include "block/block.h"
#include "block/worker.h"
#include "proto/vm.h"
#include "virtio/blk.h"

struct disk;

enum disk_event {
	DISK_FAILED, /* a request was set aside (blk_trouble): the VM is to pause */
	DISK_LOW,    /* the store has little room (disk->free); not again until it has had more */
	DISK_EVENTS,
};
/* Called on loops of queues and on workers; only posts. */
struct disk_watcher {
	void (*event)(struct disk_watcher *watcher, struct disk *disk, enum disk_event event);
};

/* The image's file and whether it grows, in one word: another may take their place. */
union disk_store {
	struct {
		int fd; /* borrowed */
		bool grows;
	};
	uint64_t both;
};

struct disk {
	uint32_t number;
	char name[16];                /* "disk0" */
	char *path;                   /* owned: of its image, for people. Main thread */
	struct block_image *image;    /* owned. Main thread */
	struct block_worker *worker;  /* borrowed: for what waits behind this disk */
	struct disk_watcher *watcher; /* borrowed */
	struct blk blk;
	struct blk_listener listener;
	bool discard;

	/* The store. The worker's, one look at a time. */
	struct block_job look;
	_Atomic bool looking;
	_Atomic uint64_t store; /* union disk_store */
	uint64_t low_space;     /* wanted; 0: the usual */
	bool low;
	_Atomic uint64_t free; /* bytes, when it was last looked at */
};

/*
 * Opens what the description names, with the descriptors under the disk's name ("disk0",
 * "disk0-backing0" …), which `fds` loses. `worker` serves it, also what comes to stand on it later.
 * Waits. On failure disk_close is due, which is fine with a zeroed disk.
 */
int disk_open(struct disk *disk, const struct vm_disk *wanted, uint32_t number,
	      struct named_fds *fds, struct block_worker *worker, struct disk_watcher *watcher,
	      struct error *err) __must_check;

/* Makes the device. */
int disk_plug(struct disk *disk, const struct vm_disk *wanted, struct pci_root *root, uint32_t slot,
	      struct guest_memory *memory, struct loop *const *loops, uint32_t n_loops,
	      struct error *err) __must_check;

/* The device is gone. On the worker, after what it was asked before, or when it has ended. */
void disk_close(struct disk *disk);

/* The image and path that it has from now on; `path` is taken over. Main thread. */
void disk_change_image(struct disk *disk, struct block_image *image, char *path);

/* What `free` has to be below for a store of `total` bytes to have little room. */
uint64_t disk_low_mark(uint64_t low_space, uint64_t total);

/* Has the worker call it, after what it was asked before, and waits. NULL: called here. */
void disk_worker_do(struct block_worker *worker, void (*call)(void *arg), void *arg);

/*
 * For a move: the disk becomes this VM's, locked and read again, or the other way round. The queues
 * rest. Waits: on the worker.
 */
int disk_claim(struct disk *disk, struct error *err) __must_check;
int disk_yield(struct disk *disk, struct error *err) __must_check;
