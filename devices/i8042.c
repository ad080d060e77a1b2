/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ports 0x60, 0x61 and 0x64: reads of an idle controller in, one machine event out.
 */
#include "devices/i8042.h"

#include <string.h>

#include "devices/registers.h"

/* Both buffers empty (bits 0 and 1), self-test passed, keyboard not locked. */
#define STATUS_IDLE 0x14
/* Output of timer channel 2. There is no timer: it always has run out, so a guest that measures its
 * TSC by it notices that this was too quick instead of waiting for ever. */
#define GATE_OUTPUT   0x20
#define GATE_WRITABLE 0x03

static void i8042_read(struct device *device, uint32_t region, uint64_t offset _unused_, void *data,
		       uint32_t len)
{
	const struct i8042 *i8042 = container_of(device, struct i8042, device);
	uint8_t value = 0;

	if (region == I8042_COMMAND_PORT)
		value = STATUS_IDLE;
	else if (region == I8042_GATE_PORT)
		value = i8042->state.gate | GATE_OUTPUT;
	register_put(data, len, value);
}

static void i8042_write(struct device *device, uint32_t region, uint64_t offset _unused_,
			const void *data, uint32_t len)
{
	struct i8042 *i8042 = container_of(device, struct i8042, device);
	uint8_t value = (uint8_t)register_get(data, len);

	if (region == I8042_GATE_PORT)
		i8042->state.gate = value & GATE_WRITABLE;
	else if (region == I8042_COMMAND_PORT && value == I8042_RESET)
		machine_event(i8042->events, MACHINE_RESET);
}

static void i8042_reset(struct device *device)
{
	container_of(device, struct i8042, device)->state.gate = 0;
}

static const struct field i8042_fields[] = {
	FIELD(struct i8042_state, gate, FIELD_U8, "gate", "Writable bits of port 0x61",
	      .max = GATE_WRITABLE),
};
static const struct table i8042_table =
	TABLE(struct i8042_state, "i8042", "Keyboard controller's reset line", i8042_fields);

static uint32_t i8042_states(struct device *device, struct device_state *states)
{
	struct i8042 *i8042 = container_of(device, struct i8042, device);

	states[0] = (struct device_state){&i8042_table, &i8042->state};
	return 1;
}

static void i8042_deinit(struct device *device)
{
	pthread_mutex_destroy(&device->lock);
}

static const struct device_ops i8042_ops = {
	.type = "i8042",
	.read = i8042_read,
	.write = i8042_write,
	.reset = i8042_reset,
	.states = i8042_states,
	.deinit = i8042_deinit,
};

int i8042_init(struct i8042 *i8042, struct bus *io, struct machine_events *events,
	       struct error *err)
{
	static const uint16_t ports[] = {I8042_DATA_PORT, I8042_GATE_PORT, I8042_COMMAND_PORT};

	*i8042 = (struct i8042){.events = events};
	device_init(&i8042->device, &i8042_ops, "i8042");
	for (uint32_t i = 0; i < ARRAY_SIZE(ports); i++) {
		int r = bus_add(io, ports[i], 1, &i8042->device, ports[i]);

		if (r < 0)
			return error_set(err, r, "cannot put port 0x%x on the bus: %s", ports[i],
					 strerror(-r));
	}
	return 0;
}
