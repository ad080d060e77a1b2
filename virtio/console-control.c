/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The console's control queues (virtio 1.2, 5.3.6.2): what the guest says of its ports in, what it
 * has to know of ours out. A message due is a bit of its port, so a guest that never fetches any
 * makes nothing grow. What makes no sense is ignored. Loop thread.
 */
#include <string.h>

#include "devices/registers.h"
#include "virtio/console.h"

enum control_event {
	CONTROL_DEVICE_READY,
	CONTROL_PORT_ADD,
	CONTROL_PORT_REMOVE,
	CONTROL_PORT_READY,
	CONTROL_CONSOLE_PORT,
	CONTROL_RESIZE,
	CONTROL_PORT_OPEN,
	CONTROL_PORT_NAME,
};

struct control_message {
	uint32_t port;
	uint16_t event;
	uint16_t value;
};
_Static_assert(sizeof(struct control_message) == 8, "virtio 1.2, 5.3.6.2");

/*
 * Columns come first, as the specification has it and as Debian 12's kernel reads it today. Linux
 * from 2.6.35 to 6.15 read rows first; without multiport the size is read from the configuration,
 * where there never was a doubt.
 */
struct resize_message {
	struct control_message head;
	uint16_t columns, rows;
};

struct name_message {
	struct control_message head;
	char name[CONSOLE_NAME_MAX];
};

/* Due messages, in the order in which they are sent. */
#define DUE_ADD     0x01u
#define DUE_CONSOLE 0x02u
#define DUE_NAME    0x04u
#define DUE_SIZE    0x08u
#define DUE_OPEN    0x10u

static bool has_multiport(const struct virtio_console *console)
{
	return virtio_has(&console->virtio, CONSOLE_F_MULTIPORT);
}

bool console_port_is_open(const struct console_port *port)
{
	const struct virtio_console *console = port->console;

	if (!has_multiport(console))
		return port->id == 0;
	return console->state.ports[port->id].guest_open;
}

/* Puts one message together; returns its size. */
static size_t compose(const struct virtio_console *console, const struct console_port *port,
		      uint8_t due, struct name_message *message)
{
	struct resize_message size = {.head = {port->id, CONTROL_RESIZE, 0}};

	switch (due) {
	case DUE_ADD:
		message->head = (struct control_message){port->id, CONTROL_PORT_ADD, 1};
		return sizeof(message->head);
	case DUE_CONSOLE:
		message->head = (struct control_message){port->id, CONTROL_CONSOLE_PORT, 1};
		return sizeof(message->head);
	case DUE_NAME:
		message->head = (struct control_message){port->id, CONTROL_PORT_NAME, 1};
		memcpy(message->name, port->name, strlen(port->name));
		return sizeof(message->head) + strlen(port->name);
	case DUE_SIZE:
		size.columns = console->state.columns;
		size.rows = console->state.rows;
		memcpy(message, &size, sizeof(size));
		return sizeof(size);
	default:
		message->head = (struct control_message){port->id, CONTROL_PORT_OPEN, 1};
		return sizeof(message->head);
	}
}

/* One message into the guest's next buffer; false if it has none. A buffer too small for it is used
 * up, and the message with it. */
static bool send_one(struct virtio_console *console, struct virtio_queue *queue,
		     const struct console_port *port, uint8_t due)
{
	struct virtqueue_chain chain = {.iov = console->iov, .iov_max = ARRAY_SIZE(console->iov)};
	struct name_message message;
	size_t size;
	int r;

	do {
		r = virtqueue_pop(&queue->ring, &chain);
	} while (r == 0 && virtqueue_kicks_on(&queue->ring));
	if (r < 0)
		virtio_broken(&console->virtio, "broke the rules of its control queue");
	if (r <= 0)
		return false;
	size = compose(console, port, due, &message);
	console_give_back(console, queue, &chain, (uint32_t)chain_write(&chain, 0, &message, size));
	return true;
}

void console_control_flush(struct virtio_console *console)
{
	struct virtio_queue *queue = &console->virtio.queues[CONSOLE_CONTROL_RX];

	if (queue->run != VIRTIO_QUEUE_RUNS || !has_multiport(console))
		return;
	for (uint32_t i = 0; i < console->n_ports; i++) {
		struct console_port_state *state = &console->state.ports[i];

		while (state->pending) {
			uint8_t due = state->pending & (uint8_t)-state->pending;

			if (!send_one(console, queue, &console->ports[i], due)) {
				virtqueue_publish(&queue->ring);
				return;
			}
			state->pending &= (uint8_t)~due;
		}
	}
	virtqueue_publish(&queue->ring);
}

/* The device's lock is held: the queues may rest, and a reset be on its way. */
void console_control_resized(struct virtio_console *console)
{
	if (has_multiport(console) && console->state.ports[0].guest_ready &&
	    virtio_has(&console->virtio, CONSOLE_F_SIZE))
		console->state.ports[0].pending |= DUE_SIZE;
}

static void port_ready(struct virtio_console *console, const struct console_port *port)
{
	struct console_port_state *state = &console->state.ports[port->id];

	state->guest_ready = true;
	state->pending |= DUE_OPEN;
	if (port->id == 0)
		state->pending |= DUE_CONSOLE;
	if (port->id == 0 && virtio_has(&console->virtio, CONSOLE_F_SIZE))
		state->pending |= DUE_SIZE;
	if (port->name[0])
		state->pending |= DUE_NAME;
}

static void handle(struct virtio_console *console, const struct control_message *message)
{
	struct console_port *port;

	if (message->event == CONTROL_DEVICE_READY) {
		for (uint32_t i = 0; message->value == 1 && i < console->n_ports; i++)
			console->state.ports[i].pending |= DUE_ADD;
		return;
	}
	if (message->port >= console->n_ports)
		return;
	port = &console->ports[message->port];
	if (message->event == CONTROL_PORT_READY && message->value == 1) {
		port_ready(console, port);
	} else if (message->event == CONTROL_PORT_OPEN) {
		console->state.ports[port->id].guest_open = message->value;
		if (message->value && port->chardev)
			chardev_ready(port->chardev);
	}
}

void console_control_run(struct virtio_console *console)
{
	struct virtio_queue *queue = &console->virtio.queues[CONSOLE_CONTROL_TX];
	struct virtqueue_chain chain = {.iov = console->iov, .iov_max = ARRAY_SIZE(console->iov)};
	uint32_t left = 2 * CONSOLE_QUEUE_SIZE;
	int r = 0;

	do {
		virtqueue_kicks_off(&queue->ring);
		while (left > 0 && (r = virtqueue_pop(&queue->ring, &chain)) > 0) {
			struct control_message message;

			left--;
			if (has_multiport(console) &&
			    chain_read(&chain, 0, &message, sizeof(message)) == sizeof(message))
				handle(console, &message);
			virtqueue_push(&queue->ring, chain.head, 0);
		}
		virtqueue_publish(&queue->ring);
	} while (left > 0 && virtqueue_kicks_on(&queue->ring));
	if (r < 0)
		virtio_broken(&console->virtio, "broke the rules of its control queue");
	if (left == 0)
		event_signal(queue->kick_fd); /* the rest in the next turn */
	console_control_flush(console);
}
