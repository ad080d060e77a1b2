/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Accesses to a bus of recording devices: who is called, with what, and who is not.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "devices/bus.h"

static struct seen {
	struct device *device;
	uint32_t region, len;
	uint64_t offset;
	int n;
} seen;

static void record(struct device *device, uint32_t region, uint64_t offset, uint32_t len)
{
	seen = (struct seen){device, region, len, offset, seen.n + 1};
}

static void on_read(struct device *device, uint32_t region, uint64_t offset, void *data,
		    uint32_t len)
{
	record(device, region, offset, len);
	memset(data, 0x11, len);
}

static void on_write(struct device *device, uint32_t region, uint64_t offset,
		     const void *data _unused_, uint32_t len)
{
	record(device, region, offset, len);
}

static const struct device_ops ops = {.type = "test", .read = on_read, .write = on_write};
static const struct device_ops silent_ops = {.type = "silent"};
static struct device a, b;
static struct bus bus;

static void set_up(void)
{
	device_init(&a, &ops, "a");
	device_init(&b, &ops, "b");
}

TestSuite(bus, .init = set_up);

Test(bus, an_access_reaches_the_device_of_its_range)
{
	uint64_t value = 0;

	cr_assert_eq(bus_add(&bus, 0x100, 16, &a, 7), 0);
	cr_assert_eq(bus_add(&bus, 0x110, 16, &b, 8), 0);
	cr_assert(bus_read(&bus, 0x10c, &value, 4));
	cr_assert_eq(value, 0x11111111);
	cr_assert_eq(seen.device, &a);
	cr_assert_eq(seen.region, 7);
	cr_assert_eq(seen.offset, 12);
	cr_assert(bus_write(&bus, 0x110, &value, 8));
	cr_assert_eq(seen.device, &b);
	cr_assert_eq(seen.region, 8);
	cr_assert_eq(seen.offset, 0);
	cr_assert_eq(seen.len, 8);
}

Test(bus, ranges_added_in_any_order_are_found)
{
	static const uint64_t starts[] = {0x500, 0x100, 0x300, 0x200, 0x400};
	uint8_t byte;

	for (uint32_t i = 0; i < ARRAY_SIZE(starts); i++)
		cr_assert_eq(bus_add(&bus, starts[i], 16, &a, i), 0);
	for (uint32_t i = 0; i < ARRAY_SIZE(starts); i++) {
		cr_assert(bus_read(&bus, starts[i] + 15, &byte, 1));
		cr_assert_eq(seen.region, i);
		cr_assert_not(bus_read(&bus, starts[i] + 16, &byte, 1));
		cr_assert_not(bus_read(&bus, starts[i] - 1, &byte, 1));
	}
}

Test(bus, overlap_is_refused)
{
	cr_assert_eq(bus_add(&bus, 0x100, 16, &a, 0), 0);
	cr_assert_eq(bus_add(&bus, 0x100, 16, &b, 0), -EEXIST, "the same");
	cr_assert_eq(bus_add(&bus, 0x10f, 1, &b, 0), -EEXIST, "its last byte");
	cr_assert_eq(bus_add(&bus, 0x0f1, 16, &b, 0), -EEXIST, "its first byte");
	cr_assert_eq(bus_add(&bus, 0x000, 0x1000, &b, 0), -EEXIST, "around it");
	cr_assert_eq(bus_add(&bus, 0x104, 4, &b, 0), -EEXIST, "inside it");
	cr_assert_eq(bus.n_ranges, 1);
	cr_assert_eq(bus_add(&bus, 0x0f0, 16, &b, 0), 0, "just before");
	cr_assert_eq(bus_add(&bus, 0x110, 16, &b, 0), 0, "just behind");
}

Test(bus, a_full_table_refuses)
{
	for (uint32_t i = 0; i < BUS_RANGES_MAX; i++)
		cr_assert_eq(bus_add(&bus, i * 16, 16, &a, i), 0);
	cr_assert_eq(bus_add(&bus, 0x10000, 16, &a, 0), -ENOSPC);
}

Test(bus, nobodys_address_reads_all_ones)
{
	uint8_t data[8] = {0};

	cr_assert_not(bus_read(&bus, 0x100, data, 4));
	cr_assert_eq(memcmp(data, "\xff\xff\xff\xff\0\0\0\0", 8), 0, "and no more than asked for");
}

Test(bus, an_access_across_the_end_reaches_nobody)
{
	uint32_t value = 0;

	cr_assert_eq(bus_add(&bus, 0x100, 6, &a, 0), 0);
	cr_assert_eq(bus_add(&bus, 0x106, 10, &b, 0), 0);
	cr_assert_not(bus_read(&bus, 0x104, &value, 4));
	cr_assert_eq(value, UINT32_MAX);
	cr_assert_not(bus_write(&bus, 0x104, &value, 4));
	cr_assert_not(bus_read(&bus, 0xfe, &value, 4));
	cr_assert_eq(seen.n, 0);
}

Test(bus, a_range_at_the_top_does_not_wrap)
{
	uint32_t value;

	cr_assert_eq(bus_add(&bus, UINT64_MAX - 15, 16, &a, 0), 0);
	cr_assert_eq(bus_add(&bus, 0, 16, &b, 0), 0);
	cr_assert(bus_read(&bus, UINT64_MAX - 3, &value, 4));
	cr_assert_eq(seen.device, &a);
	cr_assert_not(bus_read(&bus, UINT64_MAX - 2, &value, 4));
}

Test(bus, a_device_without_registers_reads_all_ones)
{
	uint16_t value = 0;

	device_init(&a, &silent_ops, "silent");
	cr_assert_eq(bus_add(&bus, 0x100, 6, &a, 0), 0);
	cr_assert_not(bus_read(&bus, 0x100, &value, 2));
	cr_assert_eq(value, 0xffff);
	cr_assert_not(bus_write(&bus, 0x100, &value, 2));
}
