/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The virtio memory balloon (virtio 1.2, 5.5): pages the guest gives up, reports as free, or counts
 * for us. What comes in are page numbers and ranges; what goes out are discards of guest memory.
 */
#pragma once

#include "virtio/pci.h"

#define BALLOON_QUEUE_SIZE 128
#define BALLOON_PAGE_SIZE  4096u /* of a page number, whatever the guest's page size */
#define BALLOON_STATS      10    /* tags of virtio 1.2, 5.5.6.3 */

/*
 * The specification numbers queues as if every feature had its own; Linux (and QEMU) leave out
 * those whose feature was not negotiated. Reporting is any of the queues from the first that
 * statistics do not take.
 */
enum balloon_queue {
	BALLOON_INFLATE,
	BALLOON_DEFLATE,
	BALLOON_STATISTICS,
	BALLOON_REPORTING_LINUX, /* where there are statistics */
	BALLOON_REPORTING,
	BALLOON_QUEUES
};

struct balloon {
	struct virtio_pci pci;
	struct virtio_device virtio;
	struct iovec iov[BALLOON_QUEUE_SIZE]; /* of the chain in hand; loop thread */
	uint64_t done[BALLOON_QUEUES]; /* bytes of the next chain served in earlier turns; loop
					  thread */
	uint16_t held;                 /* head of the guest's statistics buffer; loop thread */
	bool holds;                    /* there is one; loop thread */
	_Atomic bool wanted;           /* fresh statistics are */

	/* Migrates. */
	struct balloon_state {
		uint32_t target; /* pages the guest shall give up; lock */
		uint32_t actual; /* pages it says it has; lock */
	} state;

	_Atomic uint64_t
		stats[BALLOON_STATS];     /* as the guest last gave them, UINT64_MAX: not given */
	_Atomic uint64_t stats_at;        /* CLOCK_MONOTONIC ns of that; 0: never */
	_Atomic uint64_t discarded;       /* bytes given back to the host; counter */
	_Atomic uint64_t given, reported; /* … by number, and by free-page reporting */
	_Atomic uint64_t taken_back;      /* bytes the guest says it uses again; counter */
	_Atomic uint64_t ignored;         /* page numbers that are outside memory; counter */
};

int balloon_init(struct balloon *balloon, struct pci_root *root, uint32_t slot, const char *name,
		 struct guest_memory *memory, struct loop *loop, struct error *err) __must_check;

/* The guest shall give up all but `size` bytes of its memory. Loop thread. */
void balloon_set(struct balloon *balloon, uint64_t size);
