/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtio console: port 0 as a text device, with or without the control queues of multiport.
 * Output is synchronous and needs no interrupt, so that a report can go through it from anywhere.
 */
#pragma once

#include "guest-tests/runtime/virtio.h"

#define CONSOLE_F_SIZE             (1ull << 0)
#define CONSOLE_F_MULTIPORT        (1ull << 1)
#define CONSOLE_F_EMERG_WRITE      (1ull << 2)

#define CONSOLE_CONFIG_COLUMNS     0
#define CONSOLE_CONFIG_ROWS        2
#define CONSOLE_CONFIG_MAX_PORTS   4
#define CONSOLE_CONFIG_EMERG_WRITE 8

#define CONSOLE_RX                 0
#define CONSOLE_TX                 1
#define CONSOLE_CONTROL_RX         2
#define CONSOLE_CONTROL_TX         3

#define CONSOLE_N_BUFFERS          4
#define CONSOLE_BUFFER_SIZE        256
#define CONSOLE_MAX_PORTS          16
#define CONSOLE_NAME_SIZE          32

enum console_event {
	CONSOLE_DEVICE_READY,
	CONSOLE_PORT_ADD,
	CONSOLE_PORT_REMOVE,
	CONSOLE_PORT_READY,
	CONSOLE_CONSOLE_PORT,
	CONSOLE_RESIZE,
	CONSOLE_PORT_OPEN,
	CONSOLE_PORT_NAME,
};

struct console_port {
	bool added, is_console, open;
	char name[CONSOLE_NAME_SIZE];
};

struct console {
	struct virtio_device dev;
	struct virtq queues[4];
	bool multiport;
	uint32_t max_ports;
	struct console_port ports[CONSOLE_MAX_PORTS];
	unsigned int n_resizes; /* control messages that gave a size */
	uint16_t columns, rows;
	uint8_t rx[CONSOLE_N_BUFFERS][CONSOLE_BUFFER_SIZE];
	uint8_t control[CONSOLE_N_BUFFERS][CONSOLE_BUFFER_SIZE];
	uint8_t *rx_by_head[CONSOLE_N_BUFFERS], *control_by_head[CONSOLE_N_BUFFERS];
	/* Received and not yet read. */
	const uint8_t *pending;
	uint32_t n_pending;
};

bool console_find(struct console *c);
/* Sets the device up; with multiport also asks for its ports and opens port 0 when it is there. */
void console_start(struct console *c, uint64_t features);
void console_write(struct console *c, const void *data, uint32_t len);
/* One byte; false when none came in time. */
bool console_read(struct console *c, uint8_t *ret_byte, unsigned int timeout_ms);
bool console_read_line(struct console *c, char *ret_line, size_t size, unsigned int timeout_ms);
/* Has the device say again what a port is; it does so by control messages. */
void console_ask(struct console *c, uint32_t port);
/* Handles the control messages that have come, without waiting. */
void console_poll_control(struct console *c);
