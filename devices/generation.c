/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VM generation id: random bytes in, guest memory and one event out. Main thread only.
 */
#include "devices/generation.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "devices/describe.h"

static int publish(struct generation *generation)
{
	return memory_write(generation->memory, generation->gpa, generation->state.guid,
			    GENERATION_SIZE);
}

static int renew(struct generation *generation)
{
	ssize_t n;

	do
		n = getrandom(generation->state.guid, GENERATION_SIZE, 0);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	assert(n == GENERATION_SIZE);
	return publish(generation);
}

int generation_change(struct generation *generation)
{
	int r;

	pthread_mutex_lock(&generation->device.lock);
	r = renew(generation);
	pthread_mutex_unlock(&generation->device.lock);
	if (r == 0)
		ged_raise(generation->ged, GED_GENERATION);
	return r;
}

/* The same life goes on after a reset, but its memory starts anew. */
static void generation_reset(struct device *device)
{
	int r = publish(container_of(device, struct generation, device));

	assert(r == 0); /* it fitted in init */
}

static const struct field generation_fields[] = {
	FIELD(struct generation_state, guid, FIELD_BYTES, "guid", "Bytes of the generation id"),
};
static const struct table generation_table =
	TABLE(struct generation_state, "generation", "VM generation id", generation_fields);

static uint32_t generation_states(struct device *device, struct device_state *states)
{
	struct generation *generation = container_of(device, struct generation, device);

	states[0] = (struct device_state){&generation_table, &generation->state};
	return 1;
}

static int generation_loaded(struct device *device, struct error *err)
{
	int r = publish(container_of(device, struct generation, device));

	if (r < 0)
		return error_set(err, r, "cannot write the VM generation id to guest memory: %s",
				 strerror(-r));
	return 0;
}

static void generation_deinit(struct device *device)
{
	pthread_mutex_destroy(&device->lock);
}

static const struct device_ops generation_ops = {
	.type = "generation",
	.reset = generation_reset,
	.states = generation_states,
	.loaded = generation_loaded,
	.describe = generation_describe,
	.deinit = generation_deinit,
};

int generation_init(struct generation *generation, struct guest_memory *memory, gpa_t gpa,
		    struct ged *ged, struct error *err)
{
	int r;

	*generation = (struct generation){.memory = memory, .ged = ged, .gpa = gpa};
	device_init(&generation->device, &generation_ops, "generation");
	r = renew(generation);
	if (r < 0)
		return error_set(err, r, "cannot make a VM generation id: %s", strerror(-r));
	return 0;
}
