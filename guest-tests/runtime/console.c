/* SPDX-License-Identifier: Apache-2.0 */
/* The console driver of the guest tests. */
#include "guest-tests/runtime/console.h"

#include "guest-tests/runtime/apic.h"

#define TX_SPINS           20000000u
#define CONTROL_TIMEOUT_MS 10000

struct control_message {
	uint32_t port;
	uint16_t event, value;
};

bool console_find(struct console *c)
{
	*c = (struct console){0};
	return virtio_find(&c->dev, VIRTIO_ID_CONSOLE, 0);
}

/* The head of a buffer is its index: these queues have only single descriptors. */
static void post(struct virtq *q, uint8_t *buffer, uint8_t **by_head)
{
	struct virtq_seg seg = {buffer, CONSOLE_BUFFER_SIZE};
	unsigned int head = virtq_add(q, &seg, 0, 1);

	GUEST_ASSERT(head < CONSOLE_N_BUFFERS, "head %u", head);
	by_head[head] = buffer;
}

/* Spins: a report may be printed where interrupts are off. */
static void send(struct virtq *q, const void *data, uint32_t len)
{
	struct virtq_seg seg = {(void *)data, len};
	unsigned int spins = 0;

	virtq_add(q, &seg, 1, 0);
	virtq_kick(q);
	while (!virtq_has_used(q) && spins++ < TX_SPINS)
		cpu_relax();
	if (virtq_take(q, NULL) >= 0)
		return;
	print_through(serial_write);
	GUEST_ASSERT(false, "queue %u took %u bytes and never gave them back", q->index, len);
}

static void send_control(struct console *c, uint32_t port, enum console_event event, uint16_t value)
{
	struct control_message m = {port, event, value};

	send(&c->queues[CONSOLE_CONTROL_TX], &m, sizeof(m));
}

void console_ask(struct console *c, uint32_t port)
{
	send_control(c, port, CONSOLE_PORT_READY, 1);
}

static void take_name(struct console_port *port, const uint8_t *text, uint32_t len)
{
	uint32_t n = len < CONSOLE_NAME_SIZE - 1 ? len : CONSOLE_NAME_SIZE - 1;

	memcpy(port->name, text, n);
	port->name[n] = 0;
}

static void handle_control(struct console *c, const uint8_t *data, uint32_t len)
{
	struct control_message m;
	struct console_port *port;

	GUEST_ASSERT(len >= sizeof(m), "control message of %u bytes", len);
	memcpy(&m, data, sizeof(m));
	GUEST_ASSERT(m.port < c->max_ports && m.port < CONSOLE_MAX_PORTS, "port %u", m.port);
	port = &c->ports[m.port];
	if (m.event == CONSOLE_PORT_ADD) {
		port->added = true;
		send_control(c, m.port, CONSOLE_PORT_READY, 1);
	} else if (m.event == CONSOLE_CONSOLE_PORT) {
		port->is_console = m.value;
	} else if (m.event == CONSOLE_PORT_OPEN) {
		port->open = m.value;
	} else if (m.event == CONSOLE_PORT_NAME) {
		take_name(port, data + sizeof(m), len - sizeof(m));
	} else if (m.event == CONSOLE_RESIZE) {
		GUEST_ASSERT(len >= sizeof(m) + 4, "resize of %u bytes", len);
		memcpy(&c->columns, data + sizeof(m), 2);
		memcpy(&c->rows, data + sizeof(m) + 2, 2);
		c->n_resizes++;
	}
}

void console_poll_control(struct console *c)
{
	struct virtq *q = &c->queues[CONSOLE_CONTROL_RX];
	uint32_t len;
	int head;

	if (!c->multiport)
		return;
	while ((head = virtq_take(q, &len)) >= 0) {
		uint8_t *buffer = c->control_by_head[head];

		handle_control(c, buffer, len);
		post(q, buffer, c->control_by_head);
		virtq_kick(q);
	}
}

static void open_ports(struct console *c)
{
	send_control(c, 0, CONSOLE_DEVICE_READY, 1);
	GUEST_ASSERT(POLL_UNTIL((console_poll_control(c), c->ports[0].added || c->ports[1].added),
				CONTROL_TIMEOUT_MS),
		     "no port was added");
	if (!c->ports[0].added)
		return;
	GUEST_ASSERT(
		POLL_UNTIL((console_poll_control(c), c->ports[0].is_console), CONTROL_TIMEOUT_MS),
		"port 0 is no console");
	send_control(c, 0, CONSOLE_PORT_OPEN, 1);
}

void console_start(struct console *c, uint64_t features)
{
	struct virtio_device dev = c->dev;
	unsigned int n;

	virtio_begin(&dev, features);
	/* A fresh driver, but for the vectors of its queues, which stay. */
	for (unsigned int i = 0; i < CONSOLE_MAX_PORTS; i++)
		c->ports[i] = (struct console_port){0};
	c->dev = dev;
	c->n_pending = c->n_resizes = 0;
	c->multiport = virtio_has(&c->dev, CONSOLE_F_MULTIPORT);
	c->max_ports = c->multiport ? virtio_config_read32(&c->dev, CONSOLE_CONFIG_MAX_PORTS) : 1;
	n = c->multiport ? 4 : 2;
	for (unsigned int i = 0; i < n; i++)
		virtq_init(&c->queues[i], &c->dev, i, 0,
			   i == CONSOLE_TX || i == CONSOLE_CONTROL_TX);
	for (unsigned int i = 0; i < CONSOLE_N_BUFFERS; i++) {
		post(&c->queues[CONSOLE_RX], c->rx[i], c->rx_by_head);
		if (c->multiport)
			post(&c->queues[CONSOLE_CONTROL_RX], c->control[i], c->control_by_head);
	}
	virtio_driver_ok(&c->dev);
	virtq_kick(&c->queues[CONSOLE_RX]);
	if (c->multiport) {
		virtq_kick(&c->queues[CONSOLE_CONTROL_RX]);
		open_ports(c);
	}
}

void console_write(struct console *c, const void *data, uint32_t len)
{
	send(&c->queues[CONSOLE_TX], data, len);
}

bool console_read(struct console *c, uint8_t *ret_byte, unsigned int timeout_ms)
{
	struct virtq *q = &c->queues[CONSOLE_RX];

	while (!c->n_pending) {
		int head = virtq_wait(q, &c->n_pending, timeout_ms);

		if (head < 0)
			return false;
		c->pending = c->rx_by_head[head];
		GUEST_ASSERT(c->n_pending <= CONSOLE_BUFFER_SIZE, "%u bytes", c->n_pending);
	}
	*ret_byte = *c->pending++;
	if (--c->n_pending == 0) {
		/* Its start again: it lies in rx[], at a multiple of the buffer size. */
		uint64_t offset = c->pending - 1 - c->rx[0];

		post(q, c->rx[offset / CONSOLE_BUFFER_SIZE], c->rx_by_head);
		virtq_kick(q);
	}
	return true;
}

bool console_read_line(struct console *c, char *ret_line, size_t size, unsigned int timeout_ms)
{
	size_t len = 0;
	uint8_t byte;

	for (;;) {
		if (!console_read(c, &byte, timeout_ms))
			return false;
		if (byte == '\n')
			break;
		if (len + 1 < size)
			ret_line[len++] = (char)byte;
	}
	ret_line[len] = 0;
	return true;
}
