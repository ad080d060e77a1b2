/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The wrapper around the operations of any device: its state to bytes and back, one record a table.
 */
#include "devices/device.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define RECORD_NAME 24 /* bytes of a table's name in a record, zero-padded */

void device_init(struct device *device, const struct device_ops *ops, const char *name)
{
	device->ops = ops;
	snprintf(device->name, sizeof(device->name), "%s", name);
	pthread_mutex_init(&device->lock, NULL);
}

/* A record: name[24], u16 version, u32 length, fields. */
static int record_save(const struct device_state *state, struct cursor *out)
{
	char name[RECORD_NAME] = {0};
	size_t length_at;
	int r;

	assert(strlen(state->table->name) < sizeof(name));
	memcpy(name, state->table->name, strlen(state->table->name));
	cursor_put_bytes(out, name, sizeof(name));
	cursor_put_u16(out, state->table->version);
	length_at = out->at;
	cursor_put_u32(out, 0);
	r = table_encode(state->table, state->object, out);
	if (r < 0)
		return r;
	r = cursor_status(out);
	if (r < 0)
		return r;

	struct cursor length = cursor_writer(out->data + length_at, sizeof(uint32_t));

	cursor_put_u32(&length, out->at - length_at - sizeof(uint32_t));
	return cursor_status(&length);
}

int device_save(struct device *device, struct cursor *out)
{
	struct device_state states[DEVICE_STATES_MAX];
	uint32_t n;

	if (!device->ops->states)
		return 0;
	if (device->ops->saving)
		device->ops->saving(device);
	n = device->ops->states(device, states);
	assert(n <= ARRAY_SIZE(states));
	for (uint32_t i = 0; i < n; i++) {
		int r = record_save(&states[i], out);

		if (r < 0)
			return r;
	}
	return 0;
}

static int record_load(const struct device_state *state, struct cursor *in)
{
	char name[RECORD_NAME];
	struct cursor fields;
	uint16_t version;
	uint32_t length;
	const void *view;
	int r;

	cursor_get_bytes(in, name, sizeof(name));
	version = cursor_get_u16(in);
	length = cursor_get_u32(in);
	view = cursor_get_view(in, length);
	r = cursor_status(in);
	if (r < 0)
		return r;
	if (strncmp(name, state->table->name, sizeof(name)) != 0)
		return -EBADMSG;
	fields = cursor_reader(view, length);
	table_deinit(state->table, state->object);
	r = table_init(state->table, state->object);
	if (r < 0)
		return r;
	r = table_decode(state->table, version, state->object, &fields);
	if (r < 0)
		return r;
	return cursor_left(&fields) == 0 ? 0 : -EBADMSG;
}

int device_load(struct device *device, struct cursor *in, struct error *err)
{
	struct device_state states[DEVICE_STATES_MAX];
	uint32_t n;

	if (!device->ops->states)
		return 0;
	n = device->ops->states(device, states);
	for (uint32_t i = 0; i < n; i++) {
		int r = record_load(&states[i], in);

		if (r < 0)
			return error_set(err, r,
					 "cannot load device \"%s\": its %s is not readable: %s",
					 device->name, states[i].table->name, strerror(-r));
	}
	return device->ops->loaded ? device->ops->loaded(device, err) : 0;
}
