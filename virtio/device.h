/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtio device without its transport: type, features, configuration, queues. The transport
 * (virtio/pci.h) turns register writes into the calls below; queues run on loops.
 *
 * Life of a device: the driver negotiates, writes DRIVER_OK, and the transport posts a start to
 * each enabled queue's loop; from then on `run` is called there whenever the guest kicks, or, if
 * the device says so when the queue starts, something outside takes the kicks until it stops.
 * Stopping (for a reset or a pause) posts a stop to each; a queue rests when nothing it popped is
 * in flight; when the last rests the device does. The driver polls its status register until a
 * reset is over, so no vCPU ever waits.
 */
#pragma once

#include "base/log.h"
#include "base/loop.h"
#include "devices/device.h"
#include "virtio/queue.h"

/* virtio 1.2, 2.1 */
#define VIRTIO_STATUS_ACKNOWLEDGE 1u
#define VIRTIO_STATUS_DRIVER      2u
#define VIRTIO_STATUS_DRIVER_OK   4u
#define VIRTIO_STATUS_FEATURES_OK 8u
#define VIRTIO_STATUS_NEEDS_RESET 64u
#define VIRTIO_STATUS_FAILED      128u

#define VIRTIO_F_INDIRECT_DESC    (1ull << 28)
#define VIRTIO_F_EVENT_IDX        (1ull << 29)
#define VIRTIO_F_VERSION_1        (1ull << 32)

#define VIRTIO_QUEUES_MAX         72

struct virtio_device;
struct virtio_queue;

struct virtio_ops {
	const char *type;    /* "virtio-blk" */
	uint16_t id;         /* virtio 1.2, 5: 2 is a block device */
	uint32_t class_code; /* PCI class, 24 bits */

	/* Configuration space, on a vCPU thread with the device's lock held; within `config_size`.
	 */
	void (*config_read)(struct virtio_device *virtio, uint32_t offset, void *data,
			    uint32_t len);
	void (*config_write)(struct virtio_device *virtio, uint32_t offset, const void *data,
			     uint32_t len);

	/*
	 * The queue is put on its loop, where it does not run yet: opens there what `run` needs. On
	 * that loop, or before it runs. May be NULL.
	 */
	int (*attach)(struct virtio_device *virtio, struct virtio_queue *queue);
	/* The other way, and for a queue whose attach failed or never came. It rests. On that loop,
	 * or after it ran. May be NULL. */
	void (*detach)(struct virtio_device *virtio, struct virtio_queue *queue);

	/* DRIVER_OK: features are settled, no queue runs yet. vCPU thread, lock held. May be NULL.
	 */
	void (*activate)(struct virtio_device *virtio);
	/*
	 * The queue is about to run, its ring is mapped: true when something outside serves it
	 * (vhost), which from then on takes its kicks and raises its interrupts; `run` is not
	 * called. A kick follows, whatever came before. On its loop. NULL: false.
	 */
	bool (*offload)(struct virtio_device *virtio, struct virtio_queue *queue);
	/* The interrupt of a queue served so goes to another eventfd now (ring.call_fd, -1: none).
	 * On its loop. May be NULL. */
	void (*call_changed)(struct virtio_device *virtio, struct virtio_queue *queue);
	/* The guest kicked, or the queue has just started. On the queue's loop. */
	void (*run)(struct virtio_device *virtio, struct virtio_queue *queue);
	/*
	 * The queue is about to stop: give up what only waits for an event. One that is served
	 * outside (queue->offloaded) is taken back here: when this returns nothing is in flight and
	 * the positions are in the ring's state. On its loop. May be NULL if `offload` is.
	 */
	void (*stop)(struct virtio_device *virtio, struct virtio_queue *queue);
	/* Everything rests; back to power-on. Any thread, lock held. May be NULL. */
	void (*reset)(struct virtio_device *virtio);

	/* The device's own part of the state, after the transport's and the queues'. As in
	 * device_ops; may be NULL. */
	uint32_t (*states)(struct virtio_device *virtio, struct device_state *states);
	int (*loaded)(struct virtio_device *virtio, struct error *err);
	void (*counters)(const struct virtio_device *virtio, json_t *into);
	void (*deinit)(struct virtio_device *virtio);
};

enum virtio_queue_run { VIRTIO_QUEUE_RESTS, VIRTIO_QUEUE_RUNS, VIRTIO_QUEUE_STOPPING };

struct virtio_queue {
	struct virtqueue ring;        /* first: the loop's thread owns it while it runs */
	struct virtio_device *device; /* weak */
	struct loop *loop;            /* borrowed */
	struct loop_source source;    /* kicks, start and stop */
	int kick_fd;                  /* owned eventfd */
	bool attached;                /* loop thread */
	enum virtio_queue_run run;    /* loop thread */
	bool offloaded;               /* served outside, until it stops; loop thread */
	_Atomic bool call_posted;     /* its call_changed is on its way to the loop */
	bool started;                 /* a start was posted and no stop since; device's lock */
};

/* Embedded in each device; filled by virtio_init. */
struct virtio_device {
	const struct virtio_ops *ops;
	struct device *device;       /* weak: the transport's, whose lock and name are ours */
	struct guest_memory *memory; /* borrowed */
	uint64_t offered;            /* features, set by the device before virtio_init */
	uint32_t config_size;        /* likewise */
	bool late; /* likewise: it comes while loops and vCPUs run; others attach and plug it */
	uint32_t n_queues;
	struct virtio_queue *queues; /* owned */

	uint64_t accepted;      /* features, settled at FEATURES_OK */
	_Atomic uint8_t status; /* written under the lock; NEEDS_RESET by any thread */
	_Atomic uint8_t config_generation;
	_Atomic int config_fd; /* borrowed eventfd of the configuration vector, -1: none */
	uint32_t resting;  /* queues still on their way to rest, plus one while stops are posted;
			      lock */
	bool resetting;    /* a reset waits for the queues to rest; lock */
	bool paused, held; /* no queue starts; lock */
	struct device_waiter *waiter; /* a pause waits likewise; lock; weak */
	struct device_waiter *holder; /* so does who holds it; lock; weak */
	struct log_limit complaints;
};

/*
 * Makes `n_queues` queues of at most `queue_size` entries (power of two, a device may lower single
 * ones afterwards), each on the loop `loops[i % n_loops]`, and attaches them. The loops are not
 * running yet, or the device is late: then virtio_attach follows. `device` is the transport's.
 */
int virtio_init(struct virtio_device *virtio, const struct virtio_ops *ops, struct device *device,
		struct guest_memory *memory, uint32_t n_queues, uint16_t queue_size,
		struct loop *const *loops, uint32_t n_loops, struct error *err) __must_check;
/* Detaches what is attached; the loops do not run, or each has detached its queues. */
void virtio_deinit(struct virtio_device *virtio);

/* Puts the queues of this loop on it. The loop's owner. On failure virtio_detach is due. */
int virtio_attach(struct virtio_device *virtio, const struct loop *loop) __must_check;
/* Takes them off it, at rest. The loop's owner, or after it ran. NULL: those of all loops. */
void virtio_detach(struct virtio_device *virtio, const struct loop *loop);

/* For the transport, on a vCPU thread with the device's lock held. */
void virtio_start(struct virtio_device *virtio);
void virtio_reset(struct virtio_device *virtio); /* asks; over when status reads 0 */
/* For the transport's pause and resume. */
void virtio_pause(struct virtio_device *virtio, struct device_waiter *waiter);
void virtio_resume(struct virtio_device *virtio);
/*
 * The queues come to rest while the guest runs on, for work behind the device's back, and go on
 * with the release. What the guest does meanwhile, be it a reset, is served then or at once. A
 * pause may begin and end in between. Main thread; `waiter->done` has the device's lock.
 */
void virtio_hold(struct virtio_device *virtio, struct device_waiter *waiter);
void virtio_release(struct virtio_device *virtio);
/* All rests: power-on state at once. Main thread. */
void virtio_reset_now(struct virtio_device *virtio);

/* For devices. */

/* Configuration changed: new generation, configuration interrupt. Any thread. */
void virtio_config_changed(struct virtio_device *virtio);

/* The guest broke the rules: NEEDS_RESET, one limited line, the queue goes silent. Any thread. */
void virtio_broken(struct virtio_device *virtio, const char *why);

/* The transport gave the queue's vector another eventfd. vCPU thread, lock held. */
void virtio_queue_call_changed(struct virtio_queue *queue);

/* Call after pushing: lets a stopping queue come to rest. On the queue's loop. */
void virtio_queue_settle(struct virtio_queue *queue);

static inline bool virtio_has(const struct virtio_device *virtio, uint64_t feature)
{
	return virtio->accepted & feature;
}
