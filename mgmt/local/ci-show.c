/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: tests as they start and end. Out: what a person sees of it. On a terminal a table of what
 * runs is written over the one before it; it is never higher than the screen, for what has scrolled
 * away cannot be written over.
 */
#include "mgmt/local/ci-show.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/macros.h"

#define ROWS_MAX 20
#define BUFFER   65536
#define WRAP_OFF "\033[?7l"
#define WRAP_ON  "\033[?7h"

int ci_show_init(struct ci_show *show, bool tap, uint32_t n_tests)
{
	int fd = fcntl(tap ? STDERR_FILENO : STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
	FILE *file = fd < 0 ? NULL : fdopen(fd, "w");

	*show = (struct ci_show){.file = file, .n_tests = n_tests, .started_ms = clock_ms()};
	if (!file) {
		int r = -errno;

		fd_close(fd);
		return r;
	}
	setvbuf(file, NULL, _IOFBF, BUFFER);
	show->live = isatty(fd);
	return 0;
}

void ci_show_deinit(struct ci_show *show)
{
	if (show->file)
		fclose(take_ptr(show->file));
}

/* Takes the table away. A key that was typed may have moved the cursor. */
static void wipe(struct ci_show *show)
{
	if (show->lines)
		fprintf(show->file, "\r\033[%dA\033[J", show->lines);
	show->lines = 0;
}

/* Rows that a table may have. A terminal that says no size has the usual one. */
static int rows(const struct ci_show *show)
{
	struct winsize size;
	bool known = !ioctl(fileno(show->file), TIOCGWINSZ, &size) && size.ws_row > 1;
	int room = known ? size.ws_row - 1 : 23; /* the cursor is on the line below */

	return MIN(room, ROWS_MAX);
}

/* A name is the file's: no byte of it may steer the terminal. */
static const char *shown_name(const struct ci_slot *slot, char text[256])
{
	snprintf(text, 256, "%s", slot->test->name);
	text_make_printable(text);
	return text;
}

/* Longer lines are cut by the terminal, which knows how wide a character is. */
void ci_show_running(struct ci_show *show, const struct ci_slot *slots, uint32_t n_slots)
{
	uint64_t now = clock_ms();
	uint32_t running = 0;
	int most = rows(show) - 1;
	char name[256];

	if (!show->live)
		return;
	wipe(show);
	fputs(WRAP_OFF, show->file);
	for (uint32_t i = 0; i < n_slots; i++) {
		if (slots[i].pid <= 0 || (int)running++ >= most)
			continue;
		fprintf(show->file, "  … %6.1f s  %s\n", (now - slots[i].started_ms) / 1000.0,
			shown_name(&slots[i], name));
		show->lines++;
	}
	fprintf(show->file, "  %u of %u done, %u failed, %u running, %llu s\n" WRAP_ON,
		show->n_done, show->n_tests, show->n_failed, running,
		(unsigned long long)(now - show->started_ms) / 1000);
	show->lines++;
	fflush(show->file);
}

void ci_show_end(struct ci_show *show, const struct ci_slot *slot)
{
	char name[256];

	wipe(show);
	show->n_done++;
	show->n_failed += !slot->passed;
	fprintf(show->file, "%-7s %s (%.1f s)%s%s\n", slot->passed ? "ok" : "FAILED",
		shown_name(slot, name), slot->result.ms / 1000.0, slot->passed ? "" : ": ",
		slot->passed ? "" : slot->result.text);
	fflush(show->file);
}

/* Each line with a mark before it, none that steers a terminal. */
static void lines_show(FILE *file, const char *what, char *text)
{
	if (!text || !*text)
		return;
	fprintf(file, "  %s\n", what);
	for (char *line; (line = strsep(&text, "\n"));) {
		if (!text && !*line)
			break;
		text_make_printable(line);
		fprintf(file, "  | %s\n", line);
	}
}

static void failure_show(struct ci_show *show, const struct ci_slot *slot)
{
	_cleanup_(freep) char *out = job_kept_text(&slot->result.out);
	_cleanup_(freep) char *err = job_kept_text(&slot->result.err);
	_cleanup_(freep) char *notes = slot->notes ? strdup(slot->notes) : NULL;
	char name[256];

	fprintf(show->file, "\n%s\n", shown_name(slot, name));
	lines_show(show->file, "its launcher said:", notes);
	lines_show(show->file, "standard output:", out);
	lines_show(show->file, "standard error:", err);
}

void ci_show_close(struct ci_show *show, const struct ci_slot *slots, uint32_t n_slots)
{
	uint32_t passed = 0, failed = 0;

	wipe(show);
	for (uint32_t i = 0; i < n_slots; i++) {
		passed += slots[i].done && slots[i].passed;
		failed += slots[i].done && !slots[i].passed;
		/* Of one that was stopped with the rest there is no more to say. */
		if (slots[i].done && !slots[i].passed && slots[i].result.outcome != JOB_INTERRUPTED)
			failure_show(show, &slots[i]);
	}
	fprintf(show->file, "%s%u passed, %u failed, %u not run, in %llu s\n", failed ? "\n" : "",
		passed, failed, n_slots - passed - failed,
		(unsigned long long)(clock_ms() - show->started_ms) / 1000);
	fflush(show->file);
}
