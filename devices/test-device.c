/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state of a device as bytes and back, with a device of two small tables.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "base/cursor.h"
#include "devices/device.h"

/* name[24], u16 version, u32 length (devices/device.c) */
#define RECORD_VERSION 24
#define RECORD_LENGTH  26
#define RECORD_FIELDS  30

struct left {
	uint32_t number;
};
struct right {
	uint16_t small;
	bool flag;
};

static const struct field left_fields[] = {FIELD(struct left, number, FIELD_U32, "number", "")};
static const struct table left_table = TABLE(struct left, "left", "", left_fields);
static const struct field right_fields[] = {
	FIELD(struct right, small, FIELD_U16, "small", "", .max = 1000),
	FIELD(struct right, flag, FIELD_BOOL, "flag", ""),
};
static const struct table right_table = TABLE(struct right, "right", "", right_fields);

static struct thing {
	struct device device;
	struct left left;
	struct right right;
	int n_saving, n_loaded, loaded_result;
} from, to;

static uint32_t states(struct device *device, struct device_state *ret_states)
{
	struct thing *thing = container_of(device, struct thing, device);

	ret_states[0] = (struct device_state){&left_table, &thing->left};
	ret_states[1] = (struct device_state){&right_table, &thing->right};
	return 2;
}

static void saving(struct device *device)
{
	container_of(device, struct thing, device)->n_saving++;
}

static int loaded(struct device *device, struct error *err)
{
	struct thing *thing = container_of(device, struct thing, device);

	thing->n_loaded++;
	return thing->loaded_result ? error_set(err, thing->loaded_result, "no") : 0;
}

static const struct device_ops ops = {
	.type = "thing", .states = states, .saving = saving, .loaded = loaded};
static const struct device_ops plain_ops = {.type = "plain"};

static uint8_t stream[256];
static size_t stream_size;

static void set_up(void)
{
	struct cursor out = cursor_writer(stream, sizeof(stream));

	device_init(&from.device, &ops, "from");
	device_init(&to.device, &ops, "to");
	from.left.number = 0x12345678;
	from.right = (struct right){.small = 1000, .flag = true};
	cr_assert_eq(device_save(&from.device, &out), 0);
	stream_size = out.at;
}

TestSuite(device, .init = set_up);

static int load(size_t size)
{
	struct cursor in = cursor_reader(stream, size);
	struct error err = ERROR_NULL;
	int r = device_load(&to.device, &in, &err);

	cr_assert_eq(err.code, r);
	cr_assert(r == 0 || *err.text, "a refusal has its sentence");
	return r;
}

Test(device, state_comes_back)
{
	cr_assert_eq(load(stream_size), 0);
	cr_assert_eq(to.left.number, 0x12345678);
	cr_assert_eq(to.right.small, 1000);
	cr_assert(to.right.flag);
	cr_assert_eq(from.n_saving, 1);
	cr_assert_eq(to.n_loaded, 1);
}

Test(device, loading_leaves_what_follows_to_others)
{
	struct cursor in = cursor_reader(stream, sizeof(stream));
	struct error err = ERROR_NULL;

	cr_assert_eq(device_load(&to.device, &in, &err), 0);
	cr_assert_eq(in.at, stream_size);
}

Test(device, a_name_is_cut_to_its_room)
{
	device_init(&to.device, &ops, "a-name-that-is-longer-than-sixteen");
	cr_assert_str_eq(to.device.name, "a-name-that-is-");
}

Test(device, each_truncation_is_refused)
{
	for (size_t size = 0; size < stream_size; size++)
		cr_assert_eq(load(size), -EBADMSG, "%zu bytes of %zu", size, stream_size);
	cr_assert_eq(to.n_loaded, 0);
}

Test(device, another_tables_name_is_refused)
{
	stream[0] = 'b';
	cr_assert_eq(load(stream_size), -EBADMSG);
}

Test(device, a_name_with_more_behind_it_is_refused)
{
	stream[strlen("left")] = 's';
	cr_assert_eq(load(stream_size), -EBADMSG);
}

Test(device, a_name_without_end_is_refused)
{
	memset(stream, 'l', RECORD_VERSION);
	cr_assert_eq(load(stream_size), -EBADMSG);
}

Test(device, a_newer_version_is_refused)
{
	stream[RECORD_VERSION]++;
	cr_assert_eq(load(stream_size), -ENOTSUP);
}

Test(device, trailing_bytes_in_a_record_are_refused)
{
	memmove(stream + RECORD_FIELDS + 5, stream + RECORD_FIELDS + 4, 64);
	stream[RECORD_LENGTH]++;
	cr_assert_eq(load(stream_size + 1), -EBADMSG);
}

Test(device, a_record_longer_than_the_stream_is_refused)
{
	memset(stream + RECORD_LENGTH, 0xff, 4);
	cr_assert_eq(load(stream_size), -EBADMSG);
}

Test(device, a_value_beyond_its_table_is_refused)
{
	uint8_t *small = stream + RECORD_FIELDS + 4 + RECORD_FIELDS;

	cr_assert_eq(small[0] | small[1] << 8, 1000);
	small[0]++;
	cr_assert_eq(load(stream_size), -EBADMSG);
}

Test(device, what_the_device_refuses_is_refused)
{
	to.loaded_result = -EBADMSG;
	cr_assert_eq(load(stream_size), -EBADMSG);
}

Test(device, a_stream_without_room_is_said)
{
	for (size_t size = 0; size < stream_size; size++) {
		struct cursor out = cursor_writer(stream, size);

		cr_assert_eq(device_save(&from.device, &out), -ENOSPC, "%zu bytes", size);
	}
}

Test(device, a_device_without_state_takes_no_bytes)
{
	struct cursor none = cursor_writer(stream, 0);
	struct error err = ERROR_NULL;

	device_init(&from.device, &plain_ops, "plain");
	cr_assert_eq(device_save(&from.device, &none), 0);
	cr_assert_eq(device_load(&from.device, &none, &err), 0);
}
