/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bits of slots in from the main thread, read by vCPUs; the guest's ejects out to the owner of the
 * slots. Migrates: the bits that the guest has not read.
 */
#include "devices/pci-hotplug.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "devices/describe.h"
#include "devices/pci.h"
#include "devices/registers.h"

#define SLOT_BITS 0xfffffffeu /* all but the host bridge */

static uint32_t slot_bit(uint32_t slot)
{
	assert(slot > 0 && slot < PCI_SLOTS);
	return UINT32_C(1) << slot;
}

/* Accesses lie within a register or over the border of two; either way byte by byte. */
static uint8_t byte_take(uint32_t *bits, uint32_t byte)
{
	uint8_t value = (uint8_t)(*bits >> 8 * byte);

	*bits &= ~(UINT32_C(0xff) << 8 * byte);
	return value;
}

static void hotplug_read(struct device *device, uint32_t region _unused_, uint64_t offset,
			 void *data, uint32_t len)
{
	struct pci_hotplug *hotplug = container_of(device, struct pci_hotplug, device);
	uint8_t *bytes = data;

	for (uint32_t i = 0; i < len; i++) {
		uint32_t at = (uint32_t)offset + i;

		if (at < PCI_HOTPLUG_DOWN)
			bytes[i] = byte_take(&hotplug->state.up, at - PCI_HOTPLUG_UP);
		else if (at < PCI_HOTPLUG_EJECT)
			bytes[i] = byte_take(&hotplug->state.down, at - PCI_HOTPLUG_DOWN);
		else
			bytes[i] = 0;
	}
}

static void eject(struct pci_hotplug *hotplug, uint32_t slot)
{
	atomic_fetch_add(&hotplug->n_ejected, 1);
	/* What is gone needs no further word. */
	hotplug->state.up &= ~slot_bit(slot);
	hotplug->state.down &= ~slot_bit(slot);
	if (hotplug->owner)
		hotplug->owner->eject(hotplug->owner, slot);
}

static void hotplug_write(struct device *device, uint32_t region _unused_, uint64_t offset,
			  const void *data, uint32_t len)
{
	struct pci_hotplug *hotplug = container_of(device, struct pci_hotplug, device);
	uint64_t bits = register_get(data, len) << 8 * (offset % 4);

	if (offset < PCI_HOTPLUG_EJECT)
		return;
	for (uint32_t slot = 1; slot < PCI_SLOTS; slot++)
		if (bits & slot_bit(slot))
			eject(hotplug, slot);
}

/* Power-on: the guest looks at all slots by itself. */
static void hotplug_reset(struct device *device)
{
	struct pci_hotplug *hotplug = container_of(device, struct pci_hotplug, device);

	hotplug->state = (struct pci_hotplug_state){0};
}

static const struct field hotplug_fields[] = {
	FIELD(struct pci_hotplug_state, up, FIELD_U32, "up",
	      "filled slots the guest has not read of yet, a bit each"),
	FIELD(struct pci_hotplug_state, down, FIELD_U32, "down",
	      "slots to be given up the guest has not read of yet, a bit each"),
};
static const struct table hotplug_table =
	TABLE(struct pci_hotplug_state, "pci-hotplug", "hot-plug of PCI slots", hotplug_fields);

static uint32_t hotplug_states(struct device *device, struct device_state *states)
{
	struct pci_hotplug *hotplug = container_of(device, struct pci_hotplug, device);

	states[0] = (struct device_state){&hotplug_table, &hotplug->state};
	return 1;
}

static int hotplug_loaded(struct device *device, struct error *err)
{
	struct pci_hotplug *hotplug = container_of(device, struct pci_hotplug, device);

	if ((hotplug->state.up | hotplug->state.down) & ~SLOT_BITS)
		return error_set(err, -EBADMSG,
				 "cannot load %s: the slot of the host bridge is none to be "
				 "plugged",
				 device->name);
	return 0;
}

static void hotplug_resume(struct device *device)
{
	(void)pci_hotplug_remind(container_of(device, struct pci_hotplug, device));
}

static void hotplug_counters(const struct device *device, json_t *into)
{
	const struct pci_hotplug *hotplug = container_of(device, const struct pci_hotplug, device);

	json_object_set_new(into, "added", json_integer(atomic_load(&hotplug->n_added)));
	json_object_set_new(into, "asked", json_integer(atomic_load(&hotplug->n_asked)));
	json_object_set_new(into, "ejected", json_integer(atomic_load(&hotplug->n_ejected)));
}

static void hotplug_deinit(struct device *device)
{
	pthread_mutex_destroy(&device->lock);
}

static const struct device_ops hotplug_ops = {
	.type = "pci-hotplug",
	.read = hotplug_read,
	.write = hotplug_write,
	.reset = hotplug_reset,
	.resume = hotplug_resume,
	.states = hotplug_states,
	.loaded = hotplug_loaded,
	.describe = pci_hotplug_describe,
	.counters = hotplug_counters,
	.deinit = hotplug_deinit,
};

void pci_hotplug_added(struct pci_hotplug *hotplug, uint32_t slot)
{
	atomic_fetch_add(&hotplug->n_added, 1);
	pthread_mutex_lock(&hotplug->device.lock);
	hotplug->state.up |= slot_bit(slot);
	hotplug->state.down &= ~slot_bit(slot);
	pthread_mutex_unlock(&hotplug->device.lock);
	ged_raise(hotplug->ged, GED_PCI_HOTPLUG);
}

void pci_hotplug_ask(struct pci_hotplug *hotplug, uint32_t slot)
{
	atomic_fetch_add(&hotplug->n_asked, 1);
	pthread_mutex_lock(&hotplug->device.lock);
	hotplug->state.down |= slot_bit(slot);
	pthread_mutex_unlock(&hotplug->device.lock);
	ged_raise(hotplug->ged, GED_PCI_HOTPLUG);
}

bool pci_hotplug_remind(struct pci_hotplug *hotplug)
{
	bool unread;

	pthread_mutex_lock(&hotplug->device.lock);
	unread = hotplug->state.up | hotplug->state.down;
	pthread_mutex_unlock(&hotplug->device.lock);
	if (unread)
		ged_raise(hotplug->ged, GED_PCI_HOTPLUG);
	return unread;
}

void pci_hotplug_forget(struct pci_hotplug *hotplug, uint32_t slot)
{
	pthread_mutex_lock(&hotplug->device.lock);
	hotplug->state.up &= ~slot_bit(slot);
	hotplug->state.down &= ~slot_bit(slot);
	pthread_mutex_unlock(&hotplug->device.lock);
}

int pci_hotplug_init(struct pci_hotplug *hotplug, struct bus *io, struct ged *ged,
		     struct error *err)
{
	int r;

	*hotplug = (struct pci_hotplug){.ged = ged};
	device_init(&hotplug->device, &hotplug_ops, "pci-hotplug");
	r = bus_add(io, PCI_HOTPLUG_PORT, PCI_HOTPLUG_PORT_SIZE, &hotplug->device, 0);
	if (r < 0)
		return error_set(err, r, "cannot put the hot-plug registers on the bus: %s",
				 strerror(-r));
	return 0;
}
