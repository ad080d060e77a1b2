/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The real-time clock of a PC (MC146818) without its interrupt: time of day in, as BCD or binary,
 * in 12 or 24 hours, as the guest asks in status B. It follows the host's clock at a distance that
 * the guest may set. That distance and the 128 bytes migrate and survive a reset, as a battery
 * would have it.
 */
#pragma once

#include "devices/bus.h"

#define RTC_PORT     0x70 /* and 0x71 */
#define RTC_CELLS    128

#define RTC_SECONDS  0x00
#define RTC_MINUTES  0x02
#define RTC_HOURS    0x04
#define RTC_WEEKDAY  0x06
#define RTC_DAY      0x07
#define RTC_MONTH    0x08
#define RTC_YEAR     0x09
#define RTC_STATUS_A 0x0a
#define RTC_STATUS_B 0x0b
#define RTC_STATUS_C 0x0c
#define RTC_STATUS_D 0x0d
#define RTC_CENTURY  0x32

#define RTC_B_24H    0x02
#define RTC_B_BINARY 0x04
#define RTC_B_SET    0x80 /* the clock's registers stand still and may be written */
#define RTC_D_VALID  0x80
#define RTC_HOUR_PM  0x80 /* in 12-hour mode */

struct rtc {
	struct device device; /* first */

	/* Migrates. Lock. */
	struct rtc_state {
		uint8_t index;
		uint8_t cells[RTC_CELLS]; /* the clock's own only hold while SET is on */
		uint64_t offset;          /* seconds the guest's clock is ahead, two's complement */
	} state;
};

int rtc_init(struct rtc *rtc, struct bus *io, struct error *err) __must_check;
