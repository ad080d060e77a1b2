/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lines of /proc files in, numbers in an object out. Main thread.
 */
#include "vmm/figures.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"

#define TEXT_MAX 4096

void figures_open(struct figures *figures)
{
	figures->smaps_fd = open("/proc/self/smaps_rollup", O_RDONLY | O_CLOEXEC);
	figures->ksm_fd = open("/proc/self/ksm_stat", O_RDONLY | O_CLOEXEC);
}

void figures_close(struct figures *figures)
{
	figures->smaps_fd = fd_close(figures->smaps_fd);
	figures->ksm_fd = fd_close(figures->ksm_fd);
}

/* The number behind `name` at the start of a line, times `unit`; nothing if there is none. */
static void add(json_t *into, const char *key, const char *text, const char *name, uint64_t unit)
{
	size_t length = strlen(name);

	for (const char *line = text; line; line = strchr(line, '\n')) {
		long long value;

		line += *line == '\n';
		if (strncmp(line, name, length) == 0 &&
		    sscanf(line + length, "%lld", &value) == 1) {
			json_object_set_new(into, key, json_integer(value * (long long)unit));
			return;
		}
	}
}

static bool slurp(int fd, char text[TEXT_MAX])
{
	ssize_t n = fd >= 0 ? pread(fd, text, TEXT_MAX - 1, 0) : -1;

	text[n > 0 ? n : 0] = '\0';
	return n > 0;
}

void figures_read(const struct figures *figures, json_t *into)
{
	uint64_t page = sysconf(_SC_PAGESIZE);
	char text[TEXT_MAX];

	if (slurp(figures->smaps_fd, text)) {
		add(into, "resident", text, "Rss:", 1024);
		add(into, "private-dirty", text, "Private_Dirty:", 1024);
		add(into, "private-clean", text, "Private_Clean:", 1024);
		add(into, "ksm", text, "KSM:", 1024);
	}
	if (slurp(figures->ksm_fd, text)) {
		add(into, "ksm-rmap-items", text, "ksm_rmap_items ", 1);
		add(into, "ksm-zero", text, "ksm_zero_pages ", page);
		add(into, "ksm-merging", text, "ksm_merging_pages ", page);
		add(into, "ksm-profit", text, "ksm_process_profit ", 1);
	}
}
