/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: the exit record file and the wait status of a VMM. Out: a record with a reason and one
 * sentence. The VMM may have been taken over by its guest: what it wrote is read through the table
 * and printed without control bytes.
 */
#include "mgmt/local/record.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/local.h"

#define RECORD_MAX 16384

int record_read(int fd, struct exit_record *record, struct error *err)
{
	_cleanup_(freep) char *text = NULL;
	size_t size = 0;
	int r = table_init(&exit_record_table, record);

	if (r >= 0 && lseek(fd, 0, SEEK_SET) < 0)
		r = -errno;
	if (r >= 0)
		r = fd_read_all(fd, RECORD_MAX, &text, &size);
	if (r < 0)
		return error_set(err, r, "cannot read the exit record: %s", strerror(-r));
	if (!size)
		return RECORD_E_EMPTY;
	r = table_from_text(&exit_record_table, text, size, "exit record", record, err);
	if (r < 0)
		return r;
	record->status = exit_status(record->reason);
	if (record->text)
		text_harmless(record->text);
	return 0;
}

static int record_fill(struct exit_record *record, const char *name, enum exit_reason reason,
		       const char *text)
{
	table_deinit(&exit_record_table, record);
	record->reason = reason;
	record->status = exit_status(reason);
	record->ended_unix = time(NULL);
	record->name = strdup(name);
	record->text = strdup(text);
	return record->name && record->text ? 0 : -ENOMEM;
}

static bool signal_is_from_outside(int signal)
{
	return signal == SIGKILL || signal == SIGTERM || signal == SIGINT || signal == SIGHUP;
}

static int record_from_signal(struct exit_record *record, const char *name, int signal)
{
	char text[200];

	if (signal_is_from_outside(signal)) {
		snprintf(text, sizeof(text), "the VMM was killed by SIG%s", sigabbrev_np(signal));
		return record_fill(record, name, EXIT_KILLED, text);
	}
	snprintf(text, sizeof(text), "the VMM crashed with SIG%s (%s): please report this",
		 sigabbrev_np(signal),
		 signal == SIGSYS ? "a system call its sandbox refuses" : sigdescr_np(signal));
	return record_fill(record, name, EXIT_VMM_FAULT, text);
}

int record_from_status(struct exit_record *record, const char *name, int status, bool ran)
{
	char text[200];

	if (WIFSIGNALED(status))
		return record_from_signal(record, name, WTERMSIG(status));
	snprintf(text, sizeof(text), "the VMM ended with status %d and left no record",
		 WEXITSTATUS(status));
	if (!ran)
		return record_fill(record, name, EXIT_START_FAILED, text);
	return record_fill(record, name, WEXITSTATUS(status) ? EXIT_VMM_FAULT : EXIT_UNKNOWN, text);
}

int record_unknown(struct exit_record *record, const char *name)
{
	return record_fill(record, name, EXIT_UNKNOWN,
			   "the VMM left no record: it was killed, or crashed");
}

int record_write(int fd, const struct exit_record *record)
{
	json_t *json = table_to_json(&exit_record_table, record);
	_cleanup_(freep) char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
	ssize_t n;

	json_decref(json);
	if (!text)
		return -ENOMEM;
	n = pwrite(fd, text, strlen(text), 0);
	return n < 0 ? -errno : (size_t)n < strlen(text) ? -ENOSPC : 0;
}

void record_deinit(struct exit_record *record)
{
	table_deinit(&exit_record_table, record);
}
