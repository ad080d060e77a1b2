/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The 16550A: an interrupt is raised on the edge of each enabled condition, its cause is read from
 * IIR, and reading or writing the right register ends it. Registers on vCPU threads, input and the
 * deadline of gathered output on the loop's; the device's lock between them.
 */
#include "devices/serial.h"

#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "devices/describe.h"
#include "devices/registers.h"
#include "devices/serial-registers.h"

#define TICK_NS 3000000u /* gathered output waits no longer */

static uint32_t fifo_size(const struct serial_state *state)
{
	return state->fifo_control & FCR_ENABLE ? SERIAL_FIFO : 1;
}

/* What would interrupt if it were enabled, as bits of IER. */
static uint8_t conditions(const struct serial_state *state)
{
	uint8_t bits = 0;

	if (state->n_received > 0)
		bits |= IER_RECEIVED;
	if (state->transmitter_empty)
		bits |= IER_TRANSMITTER;
	if (state->line_errors)
		bits |= IER_LINE;
	if (state->modem_status & MSR_DELTAS)
		bits |= IER_MODEM;
	return bits;
}

/* An edge for each enabled condition that is new. */
static void update_line(struct serial *serial)
{
	uint8_t now = conditions(&serial->state) & serial->state.interrupt_enable;

	if (now & ~serial->raised)
		event_signal(serial->line);
	serial->raised = now;
}

static void flush_output(struct serial *serial, uint64_t now)
{
	if (serial->n_batch == 0)
		return;
	if (serial->chardev)
		chardev_write(serial->chardev, serial->batch, serial->n_batch);
	serial->n_batch = 0;
	serial->last_flush = now;
}

static void send_byte(struct serial *serial, uint8_t byte)
{
	uint64_t now = 0;

	serial->batch[serial->n_batch++] = byte;
	if (byte == '\n' || serial->n_batch == SERIAL_BATCH) {
		flush_output(serial, clock_ns());
		return;
	}
	if (serial->ticking)
		return;
	now = clock_ns();
	if (now - serial->last_flush >= TICK_NS) {
		flush_output(serial, now);
	} else {
		serial->ticking = true;
		loop_post(&serial->source, 0);
	}
}

static void serial_on_event(struct loop_source *source, const struct loop_event *event)
{
	struct serial *serial = container_of(source, struct serial, source);

	pthread_mutex_lock(&serial->device.lock);
	if (event->kind == LOOP_TIMER) {
		serial->ticking = serial->n_batch > 0;
		if (serial->ticking)
			flush_output(serial, event->now);
	}
	if (serial->ticking)
		loop_timer(source, event->now + TICK_NS);
	pthread_mutex_unlock(&serial->device.lock);
}

static void receive(struct serial_state *state, uint8_t byte)
{
	if (state->n_received < fifo_size(state))
		state->received[state->n_received++] = byte;
	else
		state->line_errors |= LSR_OVERRUN;
}

/* Sent as it is written: the transmitter is busy and empty again within one access. In a FIFO,
 * bytes that follow before the guest looked at the port are the same batch, with one interrupt. */
static void transmit(struct serial *serial, uint8_t byte)
{
	struct serial_state *state = &serial->state;

	if (state->modem_control & MCR_LOOP)
		receive(state, byte);
	else
		send_byte(serial, byte);
	if (serial->looked || !(state->fifo_control & FCR_ENABLE))
		serial->raised &= (uint8_t)~IER_TRANSMITTER;
	serial->looked = false;
	state->transmitter_empty = true;
}

static uint8_t take_received(struct serial *serial)
{
	struct serial_state *state = &serial->state;
	uint8_t byte = state->received[0];

	if (state->n_received == 0)
		return 0;
	state->n_received--;
	memmove(state->received, state->received + 1, state->n_received);
	if (state->n_received == 0 && serial->chardev)
		chardev_ready(serial->chardev);
	return byte;
}

static uint8_t read_cause(struct serial *serial)
{
	static const uint8_t triggers[] = {1, 4, 8, 14};
	struct serial_state *state = &serial->state;
	uint8_t pending = conditions(state) & state->interrupt_enable;
	uint8_t fifo = state->fifo_control & FCR_ENABLE ? IIR_FIFO : 0;

	if (pending & IER_LINE)
		return fifo | IIR_LINE;
	if (pending & IER_RECEIVED) {
		/* Fewer than the trigger: the time-out, which here is over at once. */
		bool few = fifo && state->n_received < triggers[state->fifo_control >> 6];

		return fifo | (few ? IIR_TIMEOUT : IIR_RECEIVED);
	}
	if (pending & IER_TRANSMITTER) {
		state->transmitter_empty = false;
		return fifo | IIR_TRANSMITTER;
	}
	if (pending & IER_MODEM)
		return fifo | IIR_MODEM;
	return fifo | IIR_NONE;
}

static uint8_t read_line_status(struct serial *serial)
{
	struct serial_state *state = &serial->state;
	uint8_t value = LSR_EMPTY | state->line_errors;

	if (state->n_received > 0)
		value |= LSR_RECEIVED;
	state->line_errors = 0;
	serial->looked = true;
	return value;
}

/* The other side holds its lines up; in loop-back they are our own. */
static void update_modem_status(struct serial_state *state)
{
	uint8_t control = state->modem_control, old = state->modem_status, lines, changed;

	lines = MSR_CTS | MSR_DSR | MSR_DCD;
	if (control & MCR_LOOP)
		lines = (control & MCR_RTS ? MSR_CTS : 0) | (control & MCR_DTR ? MSR_DSR : 0) |
			(control & MCR_OUT1 ? MSR_RING : 0) | (control & MCR_OUT2 ? MSR_DCD : 0);
	changed = (uint8_t)((old ^ lines) >> 4);
	if (lines & MSR_RING)
		changed &= (uint8_t)~MSR_DELTA_RING;
	state->modem_status = lines | (old & MSR_DELTAS) | (changed & MSR_DELTAS);
}

static uint8_t read_modem_status(struct serial_state *state)
{
	uint8_t value = state->modem_status;

	state->modem_status &= (uint8_t)~MSR_DELTAS;
	return value;
}

static uint8_t read_register(struct serial *serial, uint64_t offset)
{
	struct serial_state *state = &serial->state;
	bool divisor = state->line_control & LCR_DIVISOR;

	switch (offset) {
	case SERIAL_DATA:
		return divisor ? state->divisor_low : take_received(serial);
	case SERIAL_IER:
		return divisor ? state->divisor_high : state->interrupt_enable;
	case SERIAL_IIR:
		return read_cause(serial);
	case SERIAL_LCR:
		return state->line_control;
	case SERIAL_MCR:
		return state->modem_control;
	case SERIAL_LSR:
		return read_line_status(serial);
	case SERIAL_MSR:
		return read_modem_status(state);
	default:
		return state->scratch;
	}
}

static void write_interrupt_enable(struct serial_state *state, uint8_t value)
{
	/* Turned on while there is nothing to send: that is an interrupt, too. */
	if (value & ~state->interrupt_enable & IER_TRANSMITTER)
		state->transmitter_empty = true;
	state->interrupt_enable = value & IER_ALL;
}

static void write_fifo_control(struct serial *serial, uint8_t value)
{
	struct serial_state *state = &serial->state;
	bool toggled = (value ^ state->fifo_control) & FCR_ENABLE;

	if (toggled || value & FCR_CLEAR_RX)
		state->n_received = 0;
	state->fifo_control = value & FCR_ENABLE ? value & (FCR_ENABLE | FCR_TRIGGER) : 0;
	if (serial->chardev)
		chardev_ready(serial->chardev);
}

static void write_modem_control(struct serial *serial, uint8_t value)
{
	serial->state.modem_control = value & MCR_ALL;
	update_modem_status(&serial->state);
	if (!(value & MCR_LOOP) && serial->chardev)
		chardev_ready(serial->chardev);
}

static void write_register(struct serial *serial, uint64_t offset, uint8_t value)
{
	struct serial_state *state = &serial->state;
	bool divisor = state->line_control & LCR_DIVISOR;

	switch (offset) {
	case SERIAL_DATA:
		if (divisor)
			state->divisor_low = value;
		else
			transmit(serial, value);
		break;
	case SERIAL_IER:
		if (divisor)
			state->divisor_high = value;
		else
			write_interrupt_enable(state, value);
		break;
	case SERIAL_FCR:
		write_fifo_control(serial, value);
		break;
	case SERIAL_LCR:
		state->line_control = value;
		break;
	case SERIAL_MCR:
		write_modem_control(serial, value);
		break;
	case SERIAL_SCR:
		state->scratch = value;
		break;
	default: /* LSR and MSR: factory tests */
		break;
	}
}

static void serial_read(struct device *device, uint32_t region _unused_, uint64_t offset,
			void *data, uint32_t len)
{
	struct serial *serial = container_of(device, struct serial, device);
	uint8_t *bytes = data;

	for (uint32_t i = 0; i < len; i++)
		bytes[i] = read_register(serial, offset + i);
	update_line(serial);
}

static void serial_write(struct device *device, uint32_t region _unused_, uint64_t offset,
			 const void *data, uint32_t len)
{
	struct serial *serial = container_of(device, struct serial, device);
	const uint8_t *bytes = data;

	for (uint32_t i = 0; i < len; i++)
		write_register(serial, offset + i, bytes[i]);
	update_line(serial);
}

static size_t serial_room(struct chardev_consumer *consumer)
{
	struct serial *serial = container_of(consumer, struct serial, consumer);
	const struct serial_state *state = &serial->state;
	size_t room = 0;

	pthread_mutex_lock(&serial->device.lock);
	/* In loop-back the receiver hears itself, not the line. */
	if (!serial->paused && !(state->modem_control & MCR_LOOP))
		room = fifo_size(state) - state->n_received;
	pthread_mutex_unlock(&serial->device.lock);
	return room;
}

static void serial_input(struct chardev_consumer *consumer, const uint8_t *data, size_t size)
{
	struct serial *serial = container_of(consumer, struct serial, consumer);

	pthread_mutex_lock(&serial->device.lock);
	for (size_t i = 0; i < size; i++)
		receive(&serial->state, data[i]);
	update_line(serial);
	pthread_mutex_unlock(&serial->device.lock);
}

void serial_flush(struct serial *serial)
{
	pthread_mutex_lock(&serial->device.lock);
	flush_output(serial, clock_ns());
	pthread_mutex_unlock(&serial->device.lock);
}

static void serial_reset(struct device *device)
{
	struct serial *serial = container_of(device, struct serial, device);

	flush_output(serial, clock_ns());
	serial->state = (struct serial_state){
		.divisor_low = 12, /* 9600 baud */
		.line_control = 3, /* eight bits */
		.modem_status = MSR_CTS | MSR_DSR | MSR_DCD,
		.transmitter_empty = true,
	};
	serial->raised = 0;
	if (serial->chardev)
		chardev_ready(serial->chardev);
}

static void serial_pause(struct device *device, struct device_waiter *waiter)
{
	struct serial *serial = container_of(device, struct serial, device);

	pthread_mutex_lock(&device->lock);
	serial->paused = true;
	flush_output(serial, clock_ns());
	pthread_mutex_unlock(&device->lock);
	waiter->done(waiter, device);
}

/* What an edge told of before a save may have been lost with the old machine. */
static void serial_resume(struct device *device)
{
	struct serial *serial = container_of(device, struct serial, device);

	pthread_mutex_lock(&device->lock);
	serial->paused = false;
	serial->raised = 0;
	update_line(serial);
	pthread_mutex_unlock(&device->lock);
	if (serial->chardev)
		chardev_ready(serial->chardev);
}

static int serial_loaded(struct device *device, struct error *err)
{
	const struct serial *serial = container_of(device, struct serial, device);

	if (serial->state.n_received > fifo_size(&serial->state))
		return error_set(err, -EBADMSG,
				 "cannot load the serial port: its receiver is too full");
	return 0;
}

static const struct field serial_fields[] = {
	FIELD(struct serial_state, interrupt_enable, FIELD_U8, "interrupt-enable", "IER",
	      .max = IER_ALL),
	FIELD(struct serial_state, fifo_control, FIELD_U8, "fifo-control", "FCR as it is in force"),
	FIELD(struct serial_state, line_control, FIELD_U8, "line-control", "LCR"),
	FIELD(struct serial_state, modem_control, FIELD_U8, "modem-control", "MCR", .max = MCR_ALL),
	FIELD(struct serial_state, scratch, FIELD_U8, "scratch", "SCR"),
	FIELD(struct serial_state, divisor_low, FIELD_U8, "divisor-low", "DLL"),
	FIELD(struct serial_state, divisor_high, FIELD_U8, "divisor-high", "DLM"),
	FIELD(struct serial_state, line_errors, FIELD_U8, "line-errors", "Errors LSR will tell",
	      .max = LSR_ERRORS),
	FIELD(struct serial_state, modem_status, FIELD_U8, "modem-status", "MSR"),
	FIELD(struct serial_state, transmitter_empty, FIELD_BOOL, "transmitter-empty",
	      "An interrupt that the transmitter is empty is due"),
	FIELD(struct serial_state, n_received, FIELD_U32, "received-count", "Bytes in the receiver",
	      .max = SERIAL_FIFO),
	FIELD(struct serial_state, received, FIELD_BYTES, "received", "The receiver"),
};
static const struct table serial_table =
	TABLE(struct serial_state, "serial", "Serial port", serial_fields);

static uint32_t serial_states(struct device *device, struct device_state *states)
{
	struct serial *serial = container_of(device, struct serial, device);

	states[0] = (struct device_state){&serial_table, &serial->state};
	return 1;
}

static void serial_counters(const struct device *device, json_t *into)
{
	const struct serial *serial = container_of(device, struct serial, device);

	if (serial->chardev)
		chardev_counters(serial->chardev, into);
}

static void serial_deinit(struct device *device)
{
	struct serial *serial = container_of(device, struct serial, device);

	flush_output(serial, clock_ns());
	if (serial->chardev)
		serial->chardev->consumer = NULL;
	if (serial->source.loop)
		loop_remove(&serial->source);
	pthread_mutex_destroy(&device->lock);
}

static const struct device_ops serial_ops = {
	.type = "serial",
	.read = serial_read,
	.write = serial_write,
	.reset = serial_reset,
	.pause = serial_pause,
	.resume = serial_resume,
	.states = serial_states,
	.loaded = serial_loaded,
	.counters = serial_counters,
	.describe = serial_describe,
	.deinit = serial_deinit,
};

int serial_init(struct serial *serial, struct bus *io, struct irq_host *irqs, struct loop *loop,
		struct chardev *chardev, struct error *err)
{
	int r;

	*serial = (struct serial){.chardev = chardev,
				  .consumer = {serial_room, serial_input},
				  .source.on_event = serial_on_event,
				  .line = -1};
	device_init(&serial->device, &serial_ops, "serial");
	serial_reset(&serial->device);
	if (chardev)
		chardev->consumer = &serial->consumer;
	r = loop_add(loop, &serial->source);
	if (r == 0)
		r = irqs->ops->line(irqs, SERIAL_GSI, &serial->line);
	if (r == 0)
		r = bus_add(io, SERIAL_PORT, SERIAL_PORT_SIZE, &serial->device, 0);
	if (r < 0)
		return error_set(err, r, "cannot set up the serial port: %s", strerror(-r));
	return 0;
}
