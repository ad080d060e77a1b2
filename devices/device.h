/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a device is to the rest: one const table of operations, a lock, pieces of state described by
 * tables. The machine holds an array of devices, listed by hand, and does the same to each:
 * describe, reset, pause, save, load, resume.
 *
 * Registers are touched by vCPU threads under the device's own lock. Queues and back ends run on
 * loops and never wait for a vCPU; what a register write asks of them travels as a message.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/table.h"
#include "devices/memory.h"

struct aml;
struct device;

/* One piece of a device's state: a struct and its table. Save, load, inspect and the fuzzer walk
 * these. */
struct device_state {
	const struct table *table;
	void *object; /* borrowed, lives as long as the device */
};

#define DEVICE_STATES_MAX 16

/* Called once, on any thread, when a device that was asked to pause has come to rest. */
struct device_waiter {
	void (*done)(struct device_waiter *waiter, struct device *device);
};

struct device_ops {
	const char *type; /* "serial", "virtio-blk" */

	/*
	 * Register access, on a vCPU thread with the device's lock held. `region` is the number
	 * under which the range was put on the bus, `offset` is within it, `len` is 1, 2, 4 or 8
	 * and has been checked to lie inside the range. Reads of nothing give all ones.
	 */
	void (*read)(struct device *device, uint32_t region, uint64_t offset, void *data,
		     uint32_t len);
	void (*write)(struct device *device, uint32_t region, uint64_t offset, const void *data,
		      uint32_t len);

	/* Back to power-on. vCPUs are stopped and the device is paused. */
	void (*reset)(struct device *device);

	/*
	 * Come to rest: no queue runs, nothing is in flight. vCPUs are stopped. NULL when the
	 * device never moves by itself. `waiter->done` is called when it rests, maybe before this
	 * returns.
	 */
	void (*pause)(struct device *device, struct device_waiter *waiter);
	/* The other way; also after load. */
	void (*resume)(struct device *device);

	/* Fills `states`, returns how many. Paused. NULL: nothing to save. */
	uint32_t (*states)(struct device *device, struct device_state *states);
	/* Before a save: brings the states up to date with what the kernel holds. May be NULL. */
	void (*saving)(struct device *device);
	/* The states were filled in from outside and hold what their tables allow; check the rest,
	 * take them over. */
	int (*loaded)(struct device *device, struct error *err);

	/* Its part of the DSDT. May be NULL. */
	void (*describe)(const struct device *device, struct aml *aml);
	/* Adds its counters to an object. May be NULL. Any moment, main thread. */
	void (*counters)(const struct device *device, json_t *into);

	/* Gives back all it holds; vCPUs and loops have ended. */
	void (*deinit)(struct device *device);
};

struct device {
	const struct device_ops *ops;
	char name[16];        /* "serial", "disk0": unique, part of the migration ABI */
	pthread_mutex_t lock; /* registers; never held while waiting for a loop or another device */
};

void device_init(struct device *device, const struct device_ops *ops, const char *name);

/*
 * The state of a device as bytes: for each of its states, table name, version, length and fields.
 * Used by snapshots, migration and the tests' save-teardown-load. -ENOSPC, -EBADMSG, -ENOTSUP.
 */
int device_save(struct device *device, struct cursor *out) __must_check;
int device_load(struct device *device, struct cursor *in, struct error *err) __must_check;

/*
 * Interrupts out of a device, without knowledge of KVM. The host behind it is the machine.
 */
struct irq_host;
struct irq_ops {
	/* An eventfd (owned by the host) whose signal raises the edge-triggered line `gsi`. */
	int (*line)(struct irq_host *host, uint32_t gsi, int *ret_fd);
	/* A message-signalled vector, masked at first, with its eventfd (owned by the host). */
	int (*msi_new)(struct irq_host *host, uint32_t *ret_vector, int *ret_fd);
	void (*msi_free)(struct irq_host *host, uint32_t vector);
	/* Where signals of the vector go. Masked: they stay pending in the eventfd. Any vCPU
	 * thread. */
	int (*msi_set)(struct irq_host *host, uint32_t vector, uint64_t address, uint32_t data,
		       bool masked);
};
struct irq_host {
	const struct irq_ops *ops;
};

/* What a guest reaches a device by: memory accesses, or I/O ports where the architecture has them.
 */
enum device_space { SPACE_MEMORY, SPACE_PORTS };

/* Kicks into a device: a guest write of any length to `at` signals `fd` and goes no further. */
struct kick_host;
struct kick_ops {
	int (*add)(struct kick_host *host, enum device_space space, gpa_t at, int fd);
	int (*remove)(struct kick_host *host, enum device_space space, gpa_t at, int fd);
};
struct kick_host {
	const struct kick_ops *ops;
};
