/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest's power-off, reset and PM timer: register accesses in on vCPU threads, machine events
 * out. The age of the timer migrates.
 */
#include "devices/power.h"

#include <string.h>

#include "base/clock.h"
#include "devices/describe.h"
#include "devices/registers.h"

enum { REGION_CONTROL, REGION_TIMER };

static uint32_t timer_ticks(uint64_t age)
{
	uint64_t seconds = age / 1000000000u, rest = age % 1000000000u;

	return (uint32_t)(seconds * PM_TIMER_HZ + rest * PM_TIMER_HZ / 1000000000u);
}

/*
 * Sleep status is read from the byte of sleep control. It is zero: the machine has no state to wake
 * from, S5 being the only one it enters.
 */
static void power_read(struct device *device, uint32_t region, uint64_t offset, void *data,
		       uint32_t len)
{
	const struct power *power = container_of(device, struct power, device);
	uint64_t value = 0;

	if (region == REGION_TIMER)
		value = timer_ticks(clock_ns() - power->timer_start) >> (8 * offset);
	register_put(data, len, value);
}

static void power_write(struct device *device, uint32_t region, uint64_t offset, const void *data,
			uint32_t len)
{
	const struct power *power = container_of(device, struct power, device);
	uint8_t value = (uint8_t)register_get(data, len);

	if (region != REGION_CONTROL || offset != 0)
		return;
	if (value == POWER_RESET_VALUE)
		machine_event(power->events, MACHINE_RESET);
	else if (value == (POWER_SLEEP_ENABLE | POWER_SLEEP_TYPE_S5 << 2))
		machine_event(power->events, MACHINE_POWER_OFF);
}

static void power_reset(struct device *device)
{
	struct power *power = container_of(device, struct power, device);

	power->timer_start = clock_ns();
}

static const struct field power_fields[] = {
	FIELD(struct power_state, timer_age, FIELD_U64, "timer-age",
	      "Nanoseconds since the PM timer read zero"),
};
static const struct table power_table =
	TABLE(struct power_state, "power", "Power control and PM timer", power_fields);

static uint32_t power_states(struct device *device, struct device_state *states)
{
	struct power *power = container_of(device, struct power, device);

	states[0] = (struct device_state){&power_table, &power->state};
	return 1;
}

static void power_saving(struct device *device)
{
	struct power *power = container_of(device, struct power, device);

	power->state.timer_age = clock_ns() - power->timer_start;
}

static int power_loaded(struct device *device, struct error *err _unused_)
{
	struct power *power = container_of(device, struct power, device);

	power->timer_start = clock_ns() - power->state.timer_age;
	return 0;
}

static void power_deinit(struct device *device)
{
	pthread_mutex_destroy(&device->lock);
}

static const struct device_ops power_ops = {
	.type = "power",
	.read = power_read,
	.write = power_write,
	.reset = power_reset,
	.states = power_states,
	.saving = power_saving,
	.loaded = power_loaded,
	.describe = power_describe,
	.deinit = power_deinit,
};

int power_init(struct power *power, struct bus *io, struct machine_events *events,
	       struct error *err)
{
	int r;

	*power = (struct power){.events = events, .timer_start = clock_ns()};
	device_init(&power->device, &power_ops, "power");
	r = bus_add(io, POWER_PORT, POWER_PORT_SIZE, &power->device, REGION_CONTROL);
	if (r == 0)
		r = bus_add(io, PM_TIMER_PORT, PM_TIMER_PORT_SIZE, &power->device, REGION_TIMER);
	if (r < 0)
		return error_set(err, r, "cannot put the power registers on the bus: %s",
				 strerror(-r));
	return 0;
}
