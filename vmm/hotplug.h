/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks that come to a running VM and leave it. In: a disk's description with its descriptors, or a
 * disk's name; the guest's ejects. Out: a device in a PCI slot with its queues on the I/O loops, or
 * nothing of it any more, and a word to whoever waits.
 *
 *   empty ─> opening ─> attaching ─> present ─> draining ─> detaching ─> closing ─> empty
 *            worker:    loops take   guest      what is     loops let    worker:
 *            image,     its queues   uses it    under way   them go      image,
 *            lock                      │        ends                     lock
 *                                      └ asked: the guest was asked to give it up; it says so by
 *                                        an eject, asked or not
 *
 * All of it on the main thread, but for the eject, a vCPU's: it hides the function and posts. No
 * thread waits for another: worker and loops are sent calls, and answer by messages. Nothing here
 * migrates: what is in the slots is the devices' state, what the guest has not read yet that of
 * devices/pci-hotplug.h.
 */
#pragma once

#include "base/fd.h"
#include "base/log.h"
#include "block/worker.h"
#include "devices/pci-hotplug.h"
#include "proto/vm.h"
#include "vmm/io-thread.h"

struct board;
struct hotplug;
struct hotplug_place;

#define HOTPLUG_LOOPS_MAX 8

enum hotplug_state {
	HOTPLUG_EMPTY,
	HOTPLUG_OPENING,
	HOTPLUG_ATTACHING,
	HOTPLUG_PRESENT,
	HOTPLUG_DRAINING,
	HOTPLUG_DETACHING,
	HOTPLUG_CLOSING,
};

/* Told once, on the main thread: it has come or gone, or why it has not. */
struct hotplug_waiter {
	void (*done)(struct hotplug_waiter *waiter, const struct error *err);
};

/* Told of every disk that has come or gone. */
struct hotplug_observer {
	void (*happened)(struct hotplug_observer *observer, const char *event, const char *disk);
};

/* What one loop does for a place. */
struct hotplug_call {
	struct io_call call;
	struct hotplug_place *place; /* weak */
	struct loop *loop;           /* borrowed */
	int result;                  /* of the attach; the loop's until it has answered */
};

/* A place for a disk: number i is "disk<i>" in slot BOARD_SLOT_DISK + i. Main thread. */
struct hotplug_place {
	struct hotplug *hotplug; /* weak */
	uint32_t number;
	enum hotplug_state state;
	bool asked;                    /* PRESENT: the guest was asked to give it up */
	bool leaving;                  /* PRESENT: it has, and somebody still works on the disk */
	struct hotplug_waiter *waiter; /* weak */
	uint64_t deadline;             /* of the waiter; 0: none */

	/* Of a disk that came late; the worker's while it opens it. */
	struct vm_disk *description; /* owned */
	struct named_fds *fds;       /* owned */
	struct error failure;        /* why it could not come */

	/* Who answers. */
	struct block_job job;
	_Atomic bool job_done;
	struct hotplug_call calls[HOTPLUG_LOOPS_MAX];
	_Atomic uint32_t n_calls; /* that have not answered */
	struct device_waiter rests;
	_Atomic bool at_rest;
};

struct hotplug {
	struct board *board; /* weak */
	struct loop *loop;   /* borrowed: the main loop */
	struct loop_source source;
	struct hotplug_observer *observer; /* borrowed, NULL: none */
	struct pci_hotplug_owner owner;
	struct log_limit complaints;
	_Atomic uint32_t ejected; /* slots the guest gave up, not yet looked at */
	uint64_t remind_at;       /* when the guest is told again, 0: never */
	uint64_t remind_until;
	struct hotplug_place places[VM_DISKS_MAX];
};

/* The board has the disks it starts with. */
int hotplug_init(struct hotplug *hotplug, struct board *board, struct loop *loop,
		 struct error *err) __must_check;
/* Loops and vCPUs have ended, the disks' workers have not. The disks that are present stay. */
void hotplug_deinit(struct hotplug *hotplug);

/*
 * A disk more. Takes over what is in `description`, which is empty afterwards, and on success the
 * descriptors, -1 in their places. 0: `waiter` is told later. -ENOSPC: no place is free.
 */
int hotplug_add(struct hotplug *hotplug, struct vm_disk *description, int *fds, uint32_t n_fds,
		struct hotplug_waiter *waiter, uint32_t *ret_number,
		struct error *err) __must_check;

/* Asks the guest to give the disk up and tells `waiter` (NULL: nobody) when it is gone, or after
 * `timeout` ns. */
int hotplug_remove(struct hotplug *hotplug, const char *disk, uint64_t timeout,
		   struct hotplug_waiter *waiter, struct error *err) __must_check;

/* A disk that was busy may be free now. */
void hotplug_look(struct hotplug *hotplug);

/* The machine is at rest and about to be reset: what the guest was asked for goes. */
void hotplug_reset(struct hotplug *hotplug);
