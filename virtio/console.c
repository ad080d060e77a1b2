/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The console's ports: buffers the guest sends go to the port's chardev, what that has read goes
 * into the buffers the guest offers. A buffer is taken only when there is something to put in it,
 * so none is in flight between two events and a stop needs no wait. All on one loop, but for the
 * configuration. Control messages: console-control.c.
 */
#include "virtio/console.h"

#include <errno.h>
#include <string.h>

#include "devices/registers.h"

#define INPUT_MAX      4096u
#define OUTPUT_TURN    (256u << 10) /* bytes of output a turn of the loop takes from one port */
#define OUTPUT_REQUEST (1u << 20)   /* no driver sends as much in one piece */

/* virtio 1.2, 5.3.4 */
struct config {
	uint16_t columns, rows;
	uint32_t max_ports;
	uint32_t emergency_write;
};
_Static_assert(sizeof(struct config) == 12, "virtio 1.2, 5.3.4");

static struct virtio_console *console_of(struct virtio_device *virtio)
{
	return container_of(virtio, struct virtio_console, virtio);
}

/* Queue numbers skip the control pair after port 0. */
static struct virtio_queue *port_rx(const struct console_port *port)
{
	return &port->console->virtio.queues[port->id == 0 ? 0 : 2 * port->id + 2];
}

/* NULL: a control queue. */
static struct console_port *queue_port(struct virtio_console *console, uint16_t index)
{
	if (index == CONSOLE_CONTROL_RX || index == CONSOLE_CONTROL_TX)
		return NULL;
	return &console->ports[index < CONSOLE_CONTROL_RX ? 0 : (index - 2) / 2];
}

void console_give_back(struct virtio_console *console, struct virtio_queue *queue,
		       const struct virtqueue_chain *chain, uint32_t written)
{
	uint32_t left = written;

	for (uint32_t i = 0; i < chain->n_in && left > 0; i++) {
		const struct iovec *iov = &chain->iov[chain->n_out + i];
		uint32_t here = (uint32_t)MIN((size_t)left, iov->iov_len);

		memory_mark_host(console->virtio.memory, iov->iov_base, here);
		left -= here;
	}
	virtqueue_push(&queue->ring, chain->head, written);
}

/* The guest's next buffer for this port: 1, or 0 when there is none to be had. */
static int pop_input(struct console_port *port, struct virtqueue_chain *chain)
{
	struct virtio_queue *queue = port_rx(port);
	int r;

	do {
		r = virtqueue_pop(&queue->ring, chain);
	} while (r == 0 && virtqueue_kicks_on(&queue->ring));
	if (r < 0 || (r > 0 && chain->in_bytes == 0)) {
		if (r > 0)
			virtqueue_push(&queue->ring, chain->head, 0);
		queue->ring.broken = true;
		virtio_broken(&port->console->virtio, "broke the rules of its console's input");
		return 0;
	}
	return r;
}

/* As much as the next buffer holds: looked at, and left where it is. */
static size_t port_room(struct chardev_consumer *consumer)
{
	struct console_port *port = container_of(consumer, struct console_port, consumer);
	struct virtio_console *console = port->console;
	struct virtio_queue *queue = port_rx(port);
	struct virtqueue_chain chain = {.iov = console->iov, .iov_max = ARRAY_SIZE(console->iov)};

	if (queue->run != VIRTIO_QUEUE_RUNS || !console_port_is_open(port))
		return 0;
	if (pop_input(port, &chain) <= 0)
		return 0;
	virtqueue_unpop(&queue->ring, &chain);
	return MIN(chain.in_bytes, (uint64_t)INPUT_MAX);
}

/* Only a guest that changes its buffers after it offered them has less room now, and loses bytes.
 */
static void port_input(struct chardev_consumer *consumer, const uint8_t *data, size_t size)
{
	struct console_port *port = container_of(consumer, struct console_port, consumer);
	struct virtio_console *console = port->console;
	struct virtio_queue *queue = port_rx(port);
	struct virtqueue_chain chain = {.iov = console->iov, .iov_max = ARRAY_SIZE(console->iov)};

	while (size > 0 && pop_input(port, &chain) > 0) {
		size_t n = chain_write(&chain, 0, data, size);

		console_give_back(console, queue, &chain, (uint32_t)n);
		data += n;
		size -= n;
	}
	virtqueue_publish(&queue->ring);
}

/* A channel whose other end is slow makes the guest wait; port_drained goes on. */
static bool output_takes(const struct console_port *port)
{
	return !port->chardev || chardev_takes(port->chardev);
}

/* A piece from `at` on, no more at once than a chardev keeps. False: not all of it now. */
static bool send_piece(const struct console_port *port, const struct iovec *iov, size_t at,
		       uint32_t *sent)
{
	while (at < iov->iov_len) {
		const size_t here = MIN(iov->iov_len - at, (size_t)CHARDEV_BACKLOG);

		if (!output_takes(port))
			return false;
		chardev_write(port->chardev, (uint8_t *)iov->iov_base + at, here);
		*sent += (uint32_t)here;
		at += here;
	}
	return true;
}

/* What is left of a chain. False: the other end takes no more now. */
static bool send_chain(const struct console_port *port, const struct virtqueue_chain *chain)
{
	uint64_t skip;
	uint32_t *sent;

	if (!port->chardev)
		return true;
	sent = &port->console->state.ports[port->id].sent;
	skip = *sent;
	for (uint32_t i = 0; i < chain->n_out; i++) {
		const size_t at = MIN(skip, (uint64_t)chain->iov[i].iov_len);

		if (!send_piece(port, &chain->iov[i], at, sent))
			return false;
		skip -= at;
	}
	*sent = 0;
	return true;
}

static void run_output(struct virtio_console *console, struct virtio_queue *queue,
		       const struct console_port *port)
{
	struct virtqueue_chain chain = {.iov = console->iov, .iov_max = ARRAY_SIZE(console->iov)};
	bool takes = true;
	uint64_t sent = 0;
	int r = 0;

	do {
		virtqueue_kicks_off(&queue->ring);
		while (sent < OUTPUT_TURN && (takes = takes && output_takes(port)) &&
		       (r = virtqueue_pop(&queue->ring, &chain)) > 0) {
			sent += chain.out_bytes + 64; /* an empty one costs, too */
			if (chain.out_bytes > OUTPUT_REQUEST) {
				queue->ring.broken = true;
				r = -EMSGSIZE;
			} else if (!send_chain(port, &chain)) {
				virtqueue_unpop(&queue->ring, &chain);
				takes = false;
				continue;
			}
			virtqueue_push(&queue->ring, chain.head, 0);
		}
		virtqueue_publish(&queue->ring);
	} while (sent < OUTPUT_TURN && takes && virtqueue_kicks_on(&queue->ring));
	if (r < 0)
		virtio_broken(&console->virtio, "broke the rules of its console's output");
	if (sent >= OUTPUT_TURN && takes)
		event_signal(queue->kick_fd); /* the rest in the next turn */
}

static void port_drained(struct chardev_consumer *consumer)
{
	struct console_port *port = container_of(consumer, struct console_port, consumer);
	struct virtio_queue *queue = port_rx(port) + 1;

	if (queue->run == VIRTIO_QUEUE_RUNS)
		run_output(port->console, queue, port);
}

static void console_run(struct virtio_device *virtio, struct virtio_queue *queue)
{
	struct virtio_console *console = console_of(virtio);
	uint16_t index = queue->ring.index;
	struct console_port *port = queue_port(console, index);

	if (index == CONSOLE_CONTROL_TX)
		console_control_run(console);
	else if (index == CONSOLE_CONTROL_RX)
		console_control_flush(console);
	else if (index & 1)
		run_output(console, queue, port);
	else if (port->chardev)
		chardev_ready(port->chardev);
}

static void config_read(struct virtio_device *virtio, uint32_t offset, void *data, uint32_t len)
{
	const struct virtio_console *console = console_of(virtio);
	const struct config config = {
		.columns = console->state.columns,
		.rows = console->state.rows,
		.max_ports = CONSOLE_PORTS_MAX,
	};

	memcpy(data, (const uint8_t *)&config + offset, len);
}

/* Output before there are queues (5.3.4): one byte a write. */
static void config_write(struct virtio_device *virtio, uint32_t offset, const void *data,
			 uint32_t len _unused_)
{
	const struct console_port *port = &console_of(virtio)->ports[0];

	if (offset == offsetof(struct config, emergency_write) && port->chardev)
		chardev_write(port->chardev, data, 1);
}

static void power_on(struct virtio_console *console)
{
	memset(console->state.ports, 0, sizeof(console->state.ports));
	console->state.n_ports = CONSOLE_PORTS_MAX;
}

/* The terminal's size is the host's and stays. */
static void console_reset(struct virtio_device *virtio)
{
	power_on(console_of(virtio));
}

static const struct field port_fields[] = {
	FIELD(struct console_port_state, guest_ready, FIELD_BOOL, "guest-ready",
	      "The guest has taken the port"),
	FIELD(struct console_port_state, guest_open, FIELD_BOOL, "guest-open",
	      "Somebody in the guest has it open"),
	FIELD(struct console_port_state, pending, FIELD_U8, "pending", "Messages due to the guest",
	      .max = 0x1f),
	FIELD(struct console_port_state, sent, FIELD_U32, "sent",
	      "Bytes of the next buffer of output that are out", .max = OUTPUT_REQUEST),
};
static const struct table port_table =
	TABLE(struct console_port_state, "console-port", "One port of a console", port_fields);
static const struct field console_fields[] = {
	FIELD(struct console_state, columns, FIELD_U16, "columns", "Columns of the terminal"),
	FIELD(struct console_state, rows, FIELD_U16, "rows", "Rows of the terminal"),
	FIELD_LIST_OF(struct console_state, ports, n_ports, &port_table, "ports", "Its ports"),
};
static const struct table console_table =
	TABLE(struct console_state, "virtio-console", "Console", console_fields);

static uint32_t console_states(struct virtio_device *virtio, struct device_state *states)
{
	states[0] = (struct device_state){&console_table, &console_of(virtio)->state};
	return 1;
}

static int console_loaded(struct virtio_device *virtio, struct error *err)
{
	const struct console_state *state = &console_of(virtio)->state;

	if (state->n_ports != CONSOLE_PORTS_MAX)
		return error_set(err, -EBADMSG, "cannot load %s: it has %u ports, not %u",
				 virtio->device->name, CONSOLE_PORTS_MAX, state->n_ports);
	return 0;
}

static void console_counters(const struct virtio_device *virtio, json_t *into)
{
	const struct virtio_console *console = container_of(virtio, struct virtio_console, virtio);

	if (console->ports[0].chardev)
		chardev_counters(console->ports[0].chardev, into);
}

static void console_deinit(struct virtio_device *virtio)
{
	struct virtio_console *console = console_of(virtio);

	for (uint32_t i = 0; i < console->n_ports; i++)
		if (console->ports[i].chardev)
			console->ports[i].chardev->consumer = NULL;
}

static const struct virtio_ops console_ops = {
	.type = "virtio-console",
	.id = 3,
	.class_code = 0x078000, /* communication, other */
	.config_read = config_read,
	.config_write = config_write,
	.run = console_run,
	.reset = console_reset,
	.states = console_states,
	.loaded = console_loaded,
	.counters = console_counters,
	.deinit = console_deinit,
};

int virtio_console_add_port(struct virtio_console *console, const char *name,
			    struct chardev *chardev, struct error *err)
{
	struct console_port *port = &console->ports[console->n_ports];

	if (console->n_ports == CONSOLE_PORTS_MAX || strlen(name) > CONSOLE_NAME_MAX)
		return error_set(err, -ENOSPC, "cannot add port \"%s\" to the console: %s", name,
				 console->n_ports == CONSOLE_PORTS_MAX ? "it has all its ports"
								       : "its name is too long");
	port->console = console;
	port->id = console->n_ports++;
	port->chardev = chardev;
	port->consumer = (struct chardev_consumer){port_room, port_input, port_drained};
	memcpy(port->name, name, strlen(name));
	if (chardev)
		chardev->consumer = &port->consumer;
	return 0;
}

void virtio_console_resize(struct virtio_console *console, uint32_t columns, uint32_t rows)
{
	pthread_mutex_lock(&console->virtio.device->lock);
	console->state.columns = (uint16_t)MIN(columns, UINT16_MAX + 0u);
	console->state.rows = (uint16_t)MIN(rows, UINT16_MAX + 0u);
	console_control_resized(console);
	pthread_mutex_unlock(&console->virtio.device->lock);
	virtio_config_changed(&console->virtio);
	console_control_flush(console);
}

int virtio_console_init(struct virtio_console *console, struct pci_root *root, uint32_t slot,
			const char *name, struct guest_memory *memory, struct loop *loop,
			struct chardev *chardev, struct error *err)
{
	int r;

	power_on(console);
	console->virtio.offered = CONSOLE_F_SIZE | CONSOLE_F_MULTIPORT | CONSOLE_F_EMERG_WRITE;
	console->virtio.config_size = sizeof(struct config);
	r = virtio_pci_init(&console->pci, root, slot, name, &console->virtio, &console_ops, memory,
			    CONSOLE_QUEUES, CONSOLE_QUEUE_SIZE, &loop, 1, err);
	if (r < 0)
		return r;
	return virtio_console_add_port(console, "", chardev, err);
}
