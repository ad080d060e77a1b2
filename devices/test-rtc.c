/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The clock's registers against the host's clock, in each of its formats.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "devices/rtc.h"
#include "devices/test-board.h"

static struct test_board board;
static struct rtc rtc;

static void set_up(void)
{
	test_board_init(&board);
	cr_assert_eq(rtc_init(&rtc, &board.io, NULL), 0);
}

static void tear_down(void)
{
	rtc.device.ops->deinit(&rtc.device);
	test_board_deinit(&board);
}

TestSuite(rtc, .init = set_up, .fini = tear_down);

static uint8_t cell(uint8_t index)
{
	test_board_out(&board, 0x70, index, 1);
	return (uint8_t)test_board_in(&board, 0x71, 1);
}

static void set_cell(uint8_t index, uint8_t value)
{
	test_board_out(&board, 0x70, index, 1);
	test_board_out(&board, 0x71, value, 1);
}

static uint32_t from_bcd(uint8_t value)
{
	cr_assert_lt(value & 0xf, 10);
	cr_assert_lt(value >> 4, 10);
	return (value >> 4) * 10u + (value & 0xf);
}

static uint32_t as_it_is(uint8_t value)
{
	return value;
}

/* Reads as a guest does: again when the second changed meanwhile. */
static time_t guest_time(uint32_t (*number)(uint8_t))
{
	uint8_t second;
	struct tm tm;

	do {
		second = cell(RTC_SECONDS);
		tm = (struct tm){
			.tm_sec = (int)number(second),
			.tm_min = (int)number(cell(RTC_MINUTES)),
			.tm_hour = (int)number(cell(RTC_HOURS)),
			.tm_mday = (int)number(cell(RTC_DAY)),
			.tm_mon = (int)number(cell(RTC_MONTH)) - 1,
			.tm_year = (int)(number(cell(RTC_CENTURY)) * 100 + number(cell(RTC_YEAR))) -
				   1900,
		};
	} while (second != cell(RTC_SECONDS));
	return timegm(&tm);
}

static void assert_near(time_t got, time_t expected)
{
	cr_assert_leq(llabs((long long)(got - expected)), 2, "%lld, expected %lld", (long long)got,
		      (long long)expected);
}

Test(rtc, tells_the_time_in_bcd)
{
	assert_near(guest_time(from_bcd), time(NULL));
}

Test(rtc, tells_the_time_in_binary)
{
	set_cell(RTC_STATUS_B, RTC_B_24H | RTC_B_BINARY);
	assert_near(guest_time(as_it_is), time(NULL));
}

Test(rtc, twelve_hours_have_an_afternoon)
{
	static const uint8_t expected[24] = {12,   1,    2,    3,    4,    5,    6,    7,
					     8,    9,    10,   11,   0x8c, 0x81, 0x82, 0x83,
					     0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b};
	uint32_t now;

	set_cell(RTC_STATUS_B, RTC_B_BINARY);
	for (uint32_t hour = 0; hour < 24; hour++) {
		now = (uint32_t)(time(NULL) % 86400);
		rtc.state.offset = (uint64_t)(hour * 3600 + 1800) - now;
		cr_assert_eq(cell(RTC_HOURS), expected[hour], "hour %u reads %#x", hour,
			     cell(RTC_HOURS));
	}
}

Test(rtc, weekday_follows_the_date)
{
	time_t now = time(NULL);

	/* 2001-09-09 01:46:40 was a Sunday. */
	rtc.state.offset = (uint64_t)1000000000 - (uint64_t)now;
	cr_assert_eq(cell(RTC_WEEKDAY), 1);
	cr_assert_eq(cell(RTC_DAY), 0x09);
	cr_assert_eq(cell(RTC_MONTH), 0x09);
	cr_assert_eq(cell(RTC_YEAR), 0x01);
	cr_assert_eq(cell(RTC_CENTURY), 0x20);
}

Test(rtc, keeps_a_time_the_guest_sets)
{
	set_cell(RTC_STATUS_B, RTC_B_SET | RTC_B_24H);
	set_cell(RTC_CENTURY, 0x19);
	set_cell(RTC_YEAR, 0x99);
	set_cell(RTC_MONTH, 0x12);
	set_cell(RTC_DAY, 0x31);
	set_cell(RTC_HOURS, 0x23);
	set_cell(RTC_MINUTES, 0x59);
	set_cell(RTC_SECONDS, 0x30);
	cr_assert_eq(cell(RTC_SECONDS), 0x30, "a clock that is being set stands still");
	set_cell(RTC_STATUS_B, RTC_B_24H);
	assert_near(guest_time(from_bcd), 946684770);
	rtc.device.ops->reset(&rtc.device);
	assert_near(guest_time(from_bcd), 946684770);
}

Test(rtc, nonsense_becomes_some_time)
{
	set_cell(RTC_STATUS_B, RTC_B_SET | RTC_B_BINARY);
	for (uint8_t i = 0; i < 10; i++)
		set_cell(i, 0xff);
	set_cell(RTC_CENTURY, 0xff);
	set_cell(RTC_STATUS_B, RTC_B_24H);
	(void)cell(RTC_SECONDS);
	rtc.state.offset = UINT64_MAX / 2;
	(void)cell(RTC_YEAR);
}

Test(rtc, status_registers)
{
	cr_assert_eq(cell(RTC_STATUS_A) & 0x80, 0, "an update never is in progress");
	cr_assert_eq(cell(RTC_STATUS_D), RTC_D_VALID);
	set_cell(RTC_STATUS_C, 0xff);
	set_cell(RTC_STATUS_D, 0);
	set_cell(RTC_STATUS_B, 0x72);
	cr_assert_eq(cell(RTC_STATUS_C), 0);
	cr_assert_eq(cell(RTC_STATUS_D), RTC_D_VALID);
	cr_assert_eq(cell(RTC_STATUS_B), RTC_B_24H, "interrupts cannot be turned on");
}

Test(rtc, memory_survives_reset_and_move)
{
	struct test_board other;
	struct rtc loaded;

	set_cell(0x0f, 0x5a);
	set_cell(0x7f, 0xa5);
	rtc.device.ops->reset(&rtc.device);
	cr_assert_eq(cell(0x0f), 0x5a);
	test_board_init(&other);
	cr_assert_eq(rtc_init(&loaded, &other.io, NULL), 0);
	test_board_move(&rtc.device, &loaded.device);
	test_board_out(&other, 0x70, 0xff, 1); /* bit 7 is the NMI's */
	cr_assert_eq(test_board_in(&other, 0x71, 1), 0xa5);
	loaded.device.ops->deinit(&loaded.device);
	test_board_deinit(&other);
}
