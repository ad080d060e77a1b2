/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: the log of a guest's console. Out, on standard error: its last lines, or what the kernel said
 * of its own death, with nothing in it that steers a terminal.
 */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/job.h"

#define LOOK_MAX    (256 << 10) /* bytes of the log's end that are read */
#define TRACE_LINES 200
#define LINE_MAX_   500

/* The end of the log as lines, oldest first. */
struct lines {
	char *text; /* owned */
	uint32_t n;
	const char *list[4096];
};

static void lines_read(struct lines *lines, int fd)
{
	struct stat st;
	ssize_t n = -1;

	*lines = (struct lines){.text = malloc(LOOK_MAX + 1)};
	if (lines->text && !fstat(fd, &st))
		n = pread(fd, lines->text, LOOK_MAX, MAX(st.st_size - LOOK_MAX, (off_t)0));
	if (n <= 0)
		return;
	lines->text[n] = '\0';
	for (char *rest = lines->text, *line; (line = strsep(&rest, "\n"));) {
		line[strcspn(line, "\r")] = '\0';
		if (*line)
			lines->list[lines->n++ % ARRAY_SIZE(lines->list)] = line;
	}
}

static const char *line_at(const struct lines *lines, uint32_t i)
{
	return lines->list[i % ARRAY_SIZE(lines->list)];
}

static void lines_print(const struct lines *lines, uint32_t from)
{
	char line[LINE_MAX_];

	for (uint32_t i = from; i < lines->n; i++) {
		snprintf(line, sizeof(line), "%s", line_at(lines, i));
		text_make_printable(line);
		fprintf(stderr, "  | %s\n", line);
	}
}

static bool starts_trace(const char *line)
{
	static const char *const starts[] = {"BUG: ",
					     "Oops:",
					     "general protection fault",
					     "Kernel panic - not syncing",
					     "kernel BUG at ",
					     "divide error",
					     "invalid opcode",
					     "Unable to handle kernel",
					     "traps: PANIC"};

	for (size_t i = 0; i < ARRAY_SIZE(starts); i++)
		if (strstr(line, starts[i]))
			return true;
	return false;
}

void job_console_tail(int log_fd, int wanted)
{
	struct lines lines;

	lines_read(&lines, log_fd);
	if (lines.n)
		fprintf(stderr, "corral: the last that its console said:\n");
	else
		fprintf(stderr, "corral: its console said nothing\n");
	lines_print(&lines, lines.n > (uint32_t)wanted ? lines.n - wanted : 0);
	free(lines.text);
}

void job_console_trace(int log_fd)
{
	struct lines lines;
	uint32_t first, from;

	lines_read(&lines, log_fd);
	from = lines.n;
	first = lines.n > TRACE_LINES ? lines.n - TRACE_LINES : 0;
	while (first < lines.n && from == lines.n) {
		if (starts_trace(line_at(&lines, first)))
			from = first;
		first++;
	}
	if (from < lines.n)
		lines_print(&lines, from);
	free(lines.text);
	if (from == lines.n)
		job_console_tail(log_fd, 20);
}
