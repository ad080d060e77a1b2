/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The real-time clock: ports 0x70 (index) and 0x71 (data) in, the host's CLOCK_REALTIME behind
 * them. A read takes the time at that moment; no update is ever in progress, since a register
 * changes all at once.
 */
#include "devices/rtc.h"

#include <string.h>
#include <time.h>

#include "devices/describe.h"
#include "devices/registers.h"

/* 32768 Hz divider, 1024 Hz rate: what firmware leaves behind. Bit 7 (update in progress) is never
 * seen. */
#define STATUS_A_INITIAL 0x26
#define STATUS_A_KEEPS   0x7f
/* Periodic, alarm and update interrupts (bits 4 to 6) cannot be turned on: there is no line. */
#define STATUS_B_KEEPS (RTC_B_SET | RTC_B_BINARY | RTC_B_24H | 0x01)

#define YEAR_10000     253402300799 /* its eve, in seconds since 1970 */

static uint8_t encode(const struct rtc *rtc, uint32_t value)
{
	if (rtc->state.cells[RTC_STATUS_B] & RTC_B_BINARY)
		return (uint8_t)value;
	return (uint8_t)(value / 10 % 10 << 4 | value % 10);
}

static uint32_t decode(const struct rtc *rtc, uint8_t value)
{
	if (rtc->state.cells[RTC_STATUS_B] & RTC_B_BINARY)
		return value;
	return (value >> 4) * 10u + (value & 0xf);
}

static uint8_t encode_hour(const struct rtc *rtc, uint32_t hour)
{
	if (rtc->state.cells[RTC_STATUS_B] & RTC_B_24H)
		return encode(rtc, hour);
	return encode(rtc, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? RTC_HOUR_PM : 0);
}

static uint32_t decode_hour(const struct rtc *rtc, uint8_t value)
{
	if (rtc->state.cells[RTC_STATUS_B] & RTC_B_24H)
		return decode(rtc, value);
	return decode(rtc, value & (uint8_t)~RTC_HOUR_PM) % 12 + (value & RTC_HOUR_PM ? 12 : 0);
}

/* Puts the guest's time of now into the clock's cells. */
static void refresh(struct rtc *rtc)
{
	uint8_t *cells = rtc->state.cells;
	struct timespec now;
	struct tm tm;
	time_t guest;

	clock_gettime(CLOCK_REALTIME, &now);
	guest = (time_t)((uint64_t)now.tv_sec + rtc->state.offset);
	/* A guest, or a loaded state, may have put its clock where four digits do not reach. */
	if (guest < 0 || guest > YEAR_10000 || !gmtime_r(&guest, &tm))
		return;
	cells[RTC_SECONDS] = encode(rtc, (uint32_t)tm.tm_sec);
	cells[RTC_MINUTES] = encode(rtc, (uint32_t)tm.tm_min);
	cells[RTC_HOURS] = encode_hour(rtc, (uint32_t)tm.tm_hour);
	cells[RTC_WEEKDAY] = encode(rtc, (uint32_t)tm.tm_wday + 1);
	cells[RTC_DAY] = encode(rtc, (uint32_t)tm.tm_mday);
	cells[RTC_MONTH] = encode(rtc, (uint32_t)tm.tm_mon + 1);
	cells[RTC_YEAR] = encode(rtc, (uint32_t)(tm.tm_year + 1900) % 100);
	cells[RTC_CENTURY] = encode(rtc, (uint32_t)(tm.tm_year + 1900) / 100 % 100);
}

/* The guest has set its clock: keep the distance. Nonsense such as month 77 becomes some date. */
static void adopt(struct rtc *rtc)
{
	const uint8_t *cells = rtc->state.cells;
	struct timespec now;
	struct tm tm = {
		.tm_sec = (int)decode(rtc, cells[RTC_SECONDS]),
		.tm_min = (int)decode(rtc, cells[RTC_MINUTES]),
		.tm_hour = (int)decode_hour(rtc, cells[RTC_HOURS]),
		.tm_mday = (int)decode(rtc, cells[RTC_DAY]),
		.tm_mon = (int)decode(rtc, cells[RTC_MONTH]) - 1,
		.tm_year = (int)(decode(rtc, cells[RTC_CENTURY]) * 100 +
				 decode(rtc, cells[RTC_YEAR])) -
			   1900,
	};

	clock_gettime(CLOCK_REALTIME, &now);
	rtc->state.offset = (uint64_t)timegm(&tm) - (uint64_t)now.tv_sec;
}

static bool is_clock(uint8_t index)
{
	switch (index) {
	case RTC_SECONDS:
	case RTC_MINUTES:
	case RTC_HOURS:
	case RTC_WEEKDAY:
	case RTC_DAY:
	case RTC_MONTH:
	case RTC_YEAR:
	case RTC_CENTURY:
		return true;
	default:
		return false;
	}
}

static void rtc_read(struct device *device, uint32_t region _unused_, uint64_t offset, void *data,
		     uint32_t len)
{
	struct rtc *rtc = container_of(device, struct rtc, device);
	uint8_t index = rtc->state.index;

	if (offset == 0) /* the index cannot be read back */
		return;
	if (is_clock(index) && !(rtc->state.cells[RTC_STATUS_B] & RTC_B_SET))
		refresh(rtc);
	register_put(data, len, rtc->state.cells[index]);
}

static void write_status_b(struct rtc *rtc, uint8_t value)
{
	bool was_set = rtc->state.cells[RTC_STATUS_B] & RTC_B_SET;

	/* The cells stand still from here on; they are read in the format they were left in. */
	if (!was_set && (value & RTC_B_SET))
		refresh(rtc);
	rtc->state.cells[RTC_STATUS_B] = value & STATUS_B_KEEPS;
	if (was_set && !(value & RTC_B_SET))
		adopt(rtc);
}

static void write_cell(struct rtc *rtc, uint8_t index, uint8_t value)
{
	if (index == RTC_STATUS_A) {
		rtc->state.cells[index] = value & STATUS_A_KEEPS;
	} else if (index == RTC_STATUS_B) {
		write_status_b(rtc, value);
	} else if (index == RTC_STATUS_C || index == RTC_STATUS_D) {
		return; /* read-only */
	} else if (is_clock(index) && !(rtc->state.cells[RTC_STATUS_B] & RTC_B_SET)) {
		/* A running clock may be written too, one register at a time. */
		refresh(rtc);
		rtc->state.cells[index] = value;
		adopt(rtc);
	} else {
		rtc->state.cells[index] = value;
	}
}

static void rtc_write(struct device *device, uint32_t region _unused_, uint64_t offset,
		      const void *data, uint32_t len)
{
	struct rtc *rtc = container_of(device, struct rtc, device);
	uint8_t value = (uint8_t)register_get(data, len);

	if (offset == 0)
		rtc->state.index = value % RTC_CELLS; /* bit 7 masks the NMI: there is none */
	else
		write_cell(rtc, rtc->state.index, value);
	if (offset == 0 && len > 1)
		write_cell(rtc, rtc->state.index, ((const uint8_t *)data)[1]);
}

static void rtc_reset(struct device *device)
{
	struct rtc *rtc = container_of(device, struct rtc, device);

	rtc->state.index = 0;
	rtc->state.cells[RTC_STATUS_A] = STATUS_A_INITIAL;
	rtc->state.cells[RTC_STATUS_B] = RTC_B_24H;
	rtc->state.cells[RTC_STATUS_C] = 0;
	rtc->state.cells[RTC_STATUS_D] = RTC_D_VALID;
}

static const struct field rtc_fields[] = {
	FIELD(struct rtc_state, index, FIELD_U8, "index", "Cell that port 0x71 reaches",
	      .max = RTC_CELLS - 1),
	FIELD(struct rtc_state, cells, FIELD_BYTES, "cells", "Registers and memory"),
	FIELD(struct rtc_state, offset, FIELD_U64, "offset",
	      "Seconds ahead of the host's clock, modulo 2^64"),
};
static const struct table rtc_table = TABLE(struct rtc_state, "rtc", "Real-time clock", rtc_fields);

static uint32_t rtc_states(struct device *device, struct device_state *states)
{
	struct rtc *rtc = container_of(device, struct rtc, device);

	states[0] = (struct device_state){&rtc_table, &rtc->state};
	return 1;
}

static int rtc_loaded(struct device *device, struct error *err _unused_)
{
	struct rtc *rtc = container_of(device, struct rtc, device);

	rtc->state.cells[RTC_STATUS_A] &= STATUS_A_KEEPS;
	rtc->state.cells[RTC_STATUS_B] &= STATUS_B_KEEPS;
	rtc->state.cells[RTC_STATUS_C] = 0;
	rtc->state.cells[RTC_STATUS_D] = RTC_D_VALID;
	return 0;
}

static void rtc_deinit(struct device *device)
{
	pthread_mutex_destroy(&device->lock);
}

static const struct device_ops rtc_ops = {
	.type = "rtc",
	.read = rtc_read,
	.write = rtc_write,
	.reset = rtc_reset,
	.states = rtc_states,
	.loaded = rtc_loaded,
	.describe = rtc_describe,
	.deinit = rtc_deinit,
};

int rtc_init(struct rtc *rtc, struct bus *io, struct error *err)
{
	int r;

	*rtc = (struct rtc){0};
	device_init(&rtc->device, &rtc_ops, "rtc");
	rtc_reset(&rtc->device);
	r = bus_add(io, RTC_PORT, 2, &rtc->device, 0);
	if (r < 0)
		return error_set(err, r, "cannot put the real-time clock on the bus: %s",
				 strerror(-r));
	return 0;
}
