/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The panic port: reads say what it understands, a write becomes a machine event.
 */
#include "devices/pvpanic.h"

#include <string.h>

#include "devices/describe.h"
#include "devices/registers.h"

static void pvpanic_read(struct device *device _unused_, uint32_t region _unused_,
			 uint64_t offset _unused_, void *data, uint32_t len)
{
	register_put(data, len, PVPANIC_PANICKED | PVPANIC_CRASH_LOADED);
}

static void pvpanic_write(struct device *device, uint32_t region _unused_, uint64_t offset _unused_,
			  const void *data, uint32_t len)
{
	const struct pvpanic *pvpanic = container_of(device, struct pvpanic, device);
	uint8_t value = (uint8_t)register_get(data, len);

	if (value & PVPANIC_PANICKED)
		machine_event(pvpanic->events, MACHINE_PANIC);
	else if (value & PVPANIC_CRASH_LOADED)
		machine_event(pvpanic->events, MACHINE_CRASH_LOADED);
}

static void pvpanic_reset(struct device *device _unused_)
{
}

static void pvpanic_deinit(struct device *device)
{
	pthread_mutex_destroy(&device->lock);
}

static const struct device_ops pvpanic_ops = {
	.type = "pvpanic",
	.read = pvpanic_read,
	.write = pvpanic_write,
	.reset = pvpanic_reset,
	.describe = pvpanic_describe,
	.deinit = pvpanic_deinit,
};

int pvpanic_init(struct pvpanic *pvpanic, struct bus *io, struct machine_events *events,
		 struct error *err)
{
	int r;

	*pvpanic = (struct pvpanic){.events = events};
	device_init(&pvpanic->device, &pvpanic_ops, "pvpanic");
	r = bus_add(io, PVPANIC_PORT, 1, &pvpanic->device, 0);
	if (r < 0)
		return error_set(err, r, "cannot put the panic port on the bus: %s", strerror(-r));
	return 0;
}
