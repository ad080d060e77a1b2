/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host's end of a console. Output comes in from vCPU threads (serial) or a loop (virtio) and
 * goes three ways: to the peer, without ever waiting for it; to a log; past a matcher that
 * remembers a kernel's last words. Input comes from the peer on the loop's thread and goes to one
 * consumer, no faster than that takes it.
 *
 * A console shows a new peer the end of what was printed, and loses the oldest output when its peer
 * is slow. A channel between two programs does neither: it keeps nothing for later, its writer asks
 * first (chardev_takes), and what no peer is there for is dropped. Its peer is closed when it ends,
 * even if nobody reads what it said last.
 *
 * One peer at a time: a socket or a pty (both ways), or a file (output only). A new one replaces
 * the old and first gets the end of what was printed before. A peer that goes away is closed and
 * no more said. SIGPIPE is ignored by the process. Writers make no system call but write(2).
 */
#pragma once

#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/loop.h"
#include "devices/byte-ring.h"
#include "devices/panic-watch.h"

#define CHARDEV_BACKLOG 65536u     /* bytes a slow peer may be behind; then the oldest go */
#define CHARDEV_HISTORY 4096u      /* bytes a new peer is shown */
#define CHARDEV_LOG_MAX (4u << 20) /* bytes of log; then it starts over */
#define CHARDEV_PANIC   PANIC_TEXT_SIZE

/* Whoever takes the input. Both are called on the loop's thread, without the chardev's lock. */
struct chardev_consumer {
	/* How many bytes it takes right now; after saying 0 it calls chardev_ready once it does. */
	size_t (*room)(struct chardev_consumer *consumer);
	/* At most as many as it said. */
	void (*input)(struct chardev_consumer *consumer, const uint8_t *data, size_t size);
	/* A channel takes output again after chardev_takes said no. NULL where that is never asked.
	 */
	void (*drained)(struct chardev_consumer *consumer);
};

enum chardev_peer {
	CHARDEV_NONE,
	CHARDEV_SOCKET,
	CHARDEV_PIPE,
	CHARDEV_TTY,  /* comes back after a hang-up */
	CHARDEV_FILE, /* never makes anyone wait; gives no input */
};

struct chardev {
	struct loop_source source;         /* loop thread */
	struct chardev_consumer *consumer; /* borrowed; NULL: nobody reads. Before the loop runs */
	_Atomic bool throttled;            /* the consumer had no room */
	bool channel;                      /* between programs; fixed */
	bool starved;                      /* chardev_takes said no; loop thread */
	bool input_ended;                  /* the peer will say no more; loop thread */
	bool hung_up;   /* a pty that nobody has open: looked at again later; loop thread */
	bool half_shut; /* a socket whose polls end at once: looked at by the clock; loop thread */
	uint32_t watched; /* poll(2) bits the loop waits for, 0: not watching; loop thread */

	pthread_mutex_t lock; /* the rest */
	int peer;             /* owned, -1: none */
	enum chardev_peer kind;
	bool posted; /* the loop was asked to look after the backlog */
	bool lost;   /* writing failed for good: the loop is to close the peer */
	struct byte_ring backlog, history;
	int log_fd; /* owned, -1: none */
	uint64_t log_bytes;
	struct panic_watch panic;
	uint64_t bytes_in, bytes_out, bytes_dropped; /* counters */
};

/* Takes over `log_fd` (-1: no log), also when it fails. Has no peer yet. */
int chardev_init(struct chardev *chardev, struct loop *loop, int log_fd,
		 struct error *err) __must_check;
/* A channel: no log, no history. */
int chardev_init_channel(struct chardev *chardev, struct loop *loop,
			 struct error *err) __must_check;
/* On the loop's thread, or after the loop has ended. Tries to hand over what is left. */
void chardev_deinit(struct chardev *chardev);

/* Replaces the peer by `fd`, which it takes over. Loop thread (or before it runs). */
void chardev_attach(struct chardev *chardev, int fd);

/*
 * Whether output should come now, up to CHARDEV_BACKLOG bytes of it: always so with a console.
 * After a no, the consumer's `drained` follows. Loop thread.
 */
bool chardev_takes(struct chardev *chardev);

/* Somebody is at the other end. Loop thread. */
static inline bool chardev_attached(const struct chardev *chardev)
{
	return chardev->peer >= 0;
}

/* Output. Any thread; never waits for a socket or a pty. */
void chardev_write(struct chardev *chardev, const void *data, size_t size);

/* The consumer has room again. Any thread. */
void chardev_ready(struct chardev *chardev);

/* What followed "Kernel panic - not syncing" since the last call of chardev_panic_forget: false if
 * it was not seen. Any thread. */
bool chardev_panic_text(struct chardev *chardev, char text[CHARDEV_PANIC]);
void chardev_panic_forget(struct chardev *chardev);

/* Adds its counters to an object. Any thread. */
void chardev_counters(struct chardev *chardev, json_t *into);
