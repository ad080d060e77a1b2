/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One access in, one call of one device out, under that device's lock.
 */
#include "devices/bus.h"

#include <errno.h>
#include <string.h>

int bus_add(struct bus *bus, uint64_t start, uint64_t size, struct device *device, uint32_t region)
{
	uint32_t at = 0;

	if (bus->n_ranges == ARRAY_SIZE(bus->ranges))
		return -ENOSPC;
	while (at < bus->n_ranges && bus->ranges[at].start < start)
		at++;
	if (at > 0 && start - bus->ranges[at - 1].start < bus->ranges[at - 1].size)
		return -EEXIST;
	if (at < bus->n_ranges && bus->ranges[at].start - start < size)
		return -EEXIST;
	memmove(&bus->ranges[at + 1], &bus->ranges[at],
		(bus->n_ranges - at) * sizeof(bus->ranges[0]));
	bus->ranges[at] = (struct bus_range){start, size, device, region};
	bus->n_ranges++;
	return 0;
}

/* The range that holds the whole access, or NULL. */
static const struct bus_range *bus_find(const struct bus *bus, uint64_t address, uint32_t len)
{
	uint32_t low = 0, high = bus->n_ranges;

	while (low < high) {
		uint32_t middle = (low + high) / 2;
		const struct bus_range *range = &bus->ranges[middle];

		if (address < range->start)
			high = middle;
		else if (address - range->start >= range->size)
			low = middle + 1;
		else
			return len <= range->size - (address - range->start) ? range : NULL;
	}
	return NULL;
}

bool bus_read(const struct bus *bus, uint64_t address, void *data, uint32_t len)
{
	const struct bus_range *range = bus_find(bus, address, len);

	memset(data, 0xff, len);
	if (!range || !range->device->ops->read)
		return false;
	pthread_mutex_lock(&range->device->lock);
	range->device->ops->read(range->device, range->region, address - range->start, data, len);
	pthread_mutex_unlock(&range->device->lock);
	return true;
}

bool bus_write(const struct bus *bus, uint64_t address, const void *data, uint32_t len)
{
	const struct bus_range *range = bus_find(bus, address, len);

	if (!range || !range->device->ops->write)
		return false;
	pthread_mutex_lock(&range->device->lock);
	range->device->ops->write(range->device, range->region, address - range->start, data, len);
	pthread_mutex_unlock(&range->device->lock);
	return true;
}
