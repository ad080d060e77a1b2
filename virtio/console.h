/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The virtio console (virtio 1.2, 5.3). Port 0 is a console; a further port is a named channel into
 * the guest. Each has a chardev as its host end. All queues are on one loop, the chardevs' own.
 */
#pragma once

#include "devices/chardev.h"
#include "virtio/pci.h"

#define CONSOLE_PORTS_MAX     4
#define CONSOLE_QUEUES        (2 + 2 * CONSOLE_PORTS_MAX)
#define CONSOLE_QUEUE_SIZE    64
#define CONSOLE_NAME_MAX      32 /* bytes of a port's name, without its NUL */

#define CONSOLE_F_SIZE        (1ull << 0)
#define CONSOLE_F_MULTIPORT   (1ull << 1)
#define CONSOLE_F_EMERG_WRITE (1ull << 2)

/* Order of the queues: port 0, control, then the further ports; each a pair. */
enum console_queue {
	CONSOLE_RX0,
	CONSOLE_TX0,
	CONSOLE_CONTROL_RX, /* to the guest */
	CONSOLE_CONTROL_TX, /* from it */
	CONSOLE_RX1,
	CONSOLE_TX1,
};

struct virtio_console;

/* Migrates. What the guest said of a port and what it has to be told. Loop thread. */
struct console_port_state {
	bool guest_ready; /* it answered the announcement */
	bool guest_open;
	uint8_t pending; /* messages due, one bit each */
	uint32_t sent;   /* bytes of the next buffer of output that a channel has taken */
};

/* A port's fixed part. */
struct console_port {
	struct virtio_console *console; /* weak */
	uint32_t id;
	struct chardev *chardev; /* borrowed; NULL: output goes nowhere, no input comes */
	struct chardev_consumer consumer;
	char name[CONSOLE_NAME_MAX + 1]; /* empty: none */
};

struct virtio_console {
	struct virtio_pci pci;
	struct virtio_device virtio;
	uint32_t n_ports; /* fixed before vCPUs run */
	struct console_port ports[CONSOLE_PORTS_MAX];
	struct iovec iov[CONSOLE_QUEUE_SIZE]; /* of the chain in hand; loop thread */

	struct console_state {
		uint16_t columns, rows; /* lock */
		uint32_t n_ports;       /* CONSOLE_PORTS_MAX */
		struct console_port_state ports[CONSOLE_PORTS_MAX];
	} state;
};

/* Port 0's `chardev` may be NULL. */
int virtio_console_init(struct virtio_console *console, struct pci_root *root, uint32_t slot,
			const char *name, struct guest_memory *memory, struct loop *loop,
			struct chardev *chardev, struct error *err) __must_check;

/* A further port, before vCPUs run. -ENOSPC: there are CONSOLE_PORTS_MAX. */
int virtio_console_add_port(struct virtio_console *console, const char *name,
			    struct chardev *chardev, struct error *err) __must_check;

/* The size of the terminal at the host's end. The loop's thread. */
void virtio_console_resize(struct virtio_console *console, uint32_t columns, uint32_t rows);

/* Between console.c and console-control.c; loop thread. */
void console_control_run(struct virtio_console *console);     /* messages from the guest */
void console_control_flush(struct virtio_console *console);   /* messages due to it */
void console_control_resized(struct virtio_console *console); /* makes the new size due */
bool console_port_is_open(const struct console_port *port);
/* Marks and hands back a chain whose first `written` writable bytes were filled. */
void console_give_back(struct virtio_console *console, struct virtio_queue *queue,
		       const struct virtqueue_chain *chain, uint32_t written);
