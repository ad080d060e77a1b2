/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reasons, their names and their exit statuses, and the table of the record. The numbers are a
 * contract with scripts: they are never given a new meaning.
 */
#include "proto/exit.h"

#include <assert.h>

const char *const exit_reason_names[] = {
	[EXIT_UNKNOWN] = "unknown",
	[EXIT_POWER_OFF] = "power-off",
	[EXIT_RESET] = "reset",
	[EXIT_PANIC] = "panic",
	[EXIT_RESET_LOOP] = "reset-loop",
	[EXIT_GUEST_FAULT] = "guest-fault",
	[EXIT_QUIT] = "quit",
	[EXIT_KILLED] = "killed",
	[EXIT_VMM_FAULT] = "vmm-fault",
	[EXIT_START_FAILED] = "start-failed",
	[EXIT_WATCHDOG] = "watchdog",
	NULL,
};

static const uint8_t exit_statuses[] = {
	[EXIT_UNKNOWN] = 10,   [EXIT_POWER_OFF] = 0,    [EXIT_RESET] = 3,     [EXIT_PANIC] = 4,
	[EXIT_RESET_LOOP] = 5, [EXIT_GUEST_FAULT] = 6,  [EXIT_QUIT] = 7,      [EXIT_KILLED] = 8,
	[EXIT_VMM_FAULT] = 9,  [EXIT_START_FAILED] = 1, [EXIT_WATCHDOG] = 11,
};
_Static_assert(ARRAY_SIZE(exit_statuses) + 1 == ARRAY_SIZE(exit_reason_names),
	       "each reason has a name and a status");

int exit_status(enum exit_reason reason)
{
	assert((size_t)reason < ARRAY_SIZE(exit_statuses));
	return exit_statuses[reason];
}

static const struct field exit_record_fields[] = {
	FIELD(struct exit_record, name, FIELD_STRING, "name", "the VM's name"),
	FIELD(struct exit_record, reason, FIELD_ENUM, "reason", "how it ended",
	      .names = exit_reason_names, .flags = FIELD_REQUIRED),
	FIELD(struct exit_record, status, FIELD_U32, "status",
	      "the exit status that says so to a shell", .max = 255, .initial = 10),
	FIELD(struct exit_record, text, FIELD_STRING, "text", "the same in a sentence"),
	FIELD(struct exit_record, ran_ms, FIELD_U64, "ran-ms",
	      "milliseconds from the first instruction to the end"),
	FIELD(struct exit_record, ended_unix, FIELD_U64, "ended-unix",
	      "when it ended, in seconds since 1970"),
	FIELD(struct exit_record, resets, FIELD_U32, "resets", "how often it reset before that"),
};

const struct table exit_record_table =
	TABLE(struct exit_record, "exit record", "how a VM ended", exit_record_fields);
