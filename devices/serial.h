/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A 16550A serial port on a PC's first address. The guest's registers come in on vCPU threads,
 * input from the chardev on the loop's thread; bytes go out to the chardev, edges to one interrupt
 * line. The line has no speed: what is written is sent at once, and what arrives waits at the host
 * until the receiver has room.
 *
 * Output is handed on a line at a time, or what there is after a few milliseconds; the first byte
 * after a silence goes at once.
 */
#pragma once

#include "base/loop.h"
#include "devices/bus.h"
#include "devices/chardev.h"

#define SERIAL_PORT      0x3f8
#define SERIAL_PORT_SIZE 8
#define SERIAL_GSI       4
#define SERIAL_FIFO      16
#define SERIAL_BATCH     64 /* bytes of output gathered at most */

struct serial {
	struct device device;             /* first */
	struct chardev *chardev;          /* borrowed; NULL: output goes nowhere */
	struct chardev_consumer consumer; /* of the chardev's input */
	struct loop_source source;        /* the deadline of gathered output; loop thread */
	int line;                         /* borrowed eventfd */

	/* Lock, all below. Migrates. */
	struct serial_state {
		uint8_t interrupt_enable, fifo_control, line_control, modem_control, scratch;
		uint8_t divisor_low, divisor_high;
		uint8_t line_errors;    /* bits of LSR that stay until it is read */
		uint8_t modem_status;   /* as the guest would read it */
		bool transmitter_empty; /* an interrupt says so, until IIR is read or a byte sent */
		uint32_t n_received;
		uint8_t received[SERIAL_FIFO];
	} state;

	uint8_t raised; /* enabled conditions that an edge has told of */
	bool looked;    /* the guest read LSR: what it sends next is a batch of its own */
	bool paused;    /* no input is taken */

	uint8_t batch[SERIAL_BATCH];
	uint32_t n_batch;
	bool ticking;        /* the loop flushes every few milliseconds */
	uint64_t last_flush; /* CLOCK_MONOTONIC ns */
};

/* `chardev` may be NULL. The source is added to `loop`. */
int serial_init(struct serial *serial, struct bus *io, struct irq_host *irqs, struct loop *loop,
		struct chardev *chardev, struct error *err) __must_check;

/* Hands on what is kept back for a moment so that a line is one write. Any thread. */
void serial_flush(struct serial *serial);
