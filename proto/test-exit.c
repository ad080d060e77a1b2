/* SPDX-License-Identifier: Apache-2.0 */
/* Exit statuses are a contract with scripts: each is spelled out. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>

#include "proto/exit.h"

Test(exit, each_reason_has_its_name_and_status)
{
	static const struct {
		enum exit_reason reason;
		int status;
		const char *name;
	} expected[] = {
		{EXIT_POWER_OFF, 0, "power-off"},
		{EXIT_START_FAILED, 1, "start-failed"},
		{EXIT_RESET, 3, "reset"},
		{EXIT_PANIC, 4, "panic"},
		{EXIT_RESET_LOOP, 5, "reset-loop"},
		{EXIT_GUEST_FAULT, 6, "guest-fault"},
		{EXIT_QUIT, 7, "quit"},
		{EXIT_KILLED, 8, "killed"},
		{EXIT_VMM_FAULT, 9, "vmm-fault"},
		{EXIT_UNKNOWN, 10, "unknown"},
		{EXIT_WATCHDOG, 11, "watchdog"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(expected); i++) {
		cr_assert(eq(int, exit_status(expected[i].reason), expected[i].status));
		cr_assert(eq(str, (char *)exit_reason_names[expected[i].reason],
			     (char *)expected[i].name));
	}
	cr_assert(exit_reason_names[ARRAY_SIZE(expected)] == NULL, "and there is no other");
}

Test(exit, a_record_is_written_and_read)
{
	struct exit_record out, in;
	json_auto_t *json = NULL;

	cr_assert(eq(int, table_init(&exit_record_table, &out), 0));
	cr_assert(eq(int, table_init(&exit_record_table, &in), 0));
	out.reason = EXIT_PANIC;
	out.status = (uint32_t)exit_status(EXIT_PANIC);
	out.name = strdup("web1");
	out.text = strdup("the guest kernel panicked");
	out.ran_ms = 1234;
	json = table_to_json(&exit_record_table, &out);
	cr_assert(eq(int, table_from_json(&exit_record_table, json, &in, NULL), 0));
	cr_assert(eq(u32, in.reason, EXIT_PANIC));
	cr_assert(eq(u32, in.status, 4));
	cr_assert(eq(str, in.text, "the guest kernel panicked"));
	cr_assert(eq(u64, in.ran_ms, 1234));
	table_deinit(&exit_record_table, &out);
	table_deinit(&exit_record_table, &in);
}

Test(exit, a_record_without_a_word_is_unknown)
{
	struct exit_record record;

	cr_assert(eq(int, table_init(&exit_record_table, &record), 0));
	cr_assert(eq(u32, record.reason, EXIT_UNKNOWN));
	cr_assert(eq(u32, record.status, (uint32_t)exit_status(EXIT_UNKNOWN)));
}
