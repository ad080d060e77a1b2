/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Events for the guest's ACPI: raised by any thread, read (and so cleared) by a vCPU.
 */
#include "devices/ged.h"

#include <string.h>

#include "devices/describe.h"
#include "devices/registers.h"

static void ged_read(struct device *device, uint32_t region _unused_, uint64_t offset _unused_,
		     void *data, uint32_t len)
{
	struct ged *ged = container_of(device, struct ged, device);

	register_put(data, len, ged->state.pending);
	ged->state.pending = 0;
}

/* Power-on: an event meant for the guest before this one is not told to it. */
static void ged_reset(struct device *device)
{
	container_of(device, struct ged, device)->state.pending = 0;
}

static const struct field ged_fields[] = {
	FIELD(struct ged_state, pending, FIELD_U8, "pending", "Events the guest has not read yet"),
};
static const struct table ged_table =
	TABLE(struct ged_state, "ged", "Generic event device", ged_fields);

static uint32_t ged_states(struct device *device, struct device_state *states)
{
	struct ged *ged = container_of(device, struct ged, device);

	states[0] = (struct device_state){&ged_table, &ged->state};
	return 1;
}

/* An edge sent before the save may have been lost with the old machine: one too many is harmless.
 */
static void ged_resume(struct device *device)
{
	struct ged *ged = container_of(device, struct ged, device);

	pthread_mutex_lock(&device->lock);
	if (ged->state.pending)
		event_signal(ged->line);
	pthread_mutex_unlock(&device->lock);
}

static void ged_deinit(struct device *device)
{
	pthread_mutex_destroy(&device->lock);
}

static const struct device_ops ged_ops = {
	.type = "ged",
	.read = ged_read,
	.reset = ged_reset,
	.resume = ged_resume,
	.states = ged_states,
	.describe = ged_describe,
	.deinit = ged_deinit,
};

void ged_raise(struct ged *ged, uint8_t events)
{
	pthread_mutex_lock(&ged->device.lock);
	ged->state.pending |= events;
	event_signal(ged->line);
	pthread_mutex_unlock(&ged->device.lock);
}

int ged_init(struct ged *ged, struct bus *io, struct irq_host *irqs, struct error *err)
{
	int r;

	*ged = (struct ged){.line = -1};
	device_init(&ged->device, &ged_ops, "ged");
	r = bus_add(io, GED_PORT, 1, &ged->device, 0);
	if (r == 0)
		r = irqs->ops->line(irqs, GED_GSI, &ged->line);
	if (r < 0)
		return error_set(err, r, "cannot set up the event device: %s", strerror(-r));
	return 0;
}
