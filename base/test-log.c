/* SPDX-License-Identifier: Apache-2.0 */
/* Lines as they leave on standard error, and how many of a flood pass. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"

#define SECOND 1000000000ull

/* Standard error becomes one end of a socket that keeps the writes apart; returns the other end. */
static int take_stderr(void)
{
	int ends[2];

	cr_assert(eq(int, socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0));
	cr_assert(eq(int, dup2(ends[1], STDERR_FILENO), STDERR_FILENO));
	close(ends[1]);
	return ends[0];
}

/* What one write(2) brought, "" if there was none. */
static const char *next_line(int fd)
{
	static char line[4096];
	ssize_t n = recv(fd, line, sizeof(line) - 1, MSG_DONTWAIT);

	line[n > 0 ? n : 0] = '\0';
	return line;
}

Test(log, a_line_has_prefix_and_level)
{
	int fd = take_stderr();

	log_init("corral-vmm[web1]", LOG_LEVEL_DEBUG);
	log_error("no %s", "disk");
	cr_assert(eq(str, (char *)next_line(fd), "corral-vmm[web1]: error: no disk\n"));
	log_warning("w");
	cr_assert(eq(str, (char *)next_line(fd), "corral-vmm[web1]: warning: w\n"));
	log_info("i");
	cr_assert(eq(str, (char *)next_line(fd), "corral-vmm[web1]: i\n"));
	log_debug("d");
	cr_assert(eq(str, (char *)next_line(fd), "corral-vmm[web1]: debug: d\n"));
}

Test(log, lines_above_the_level_are_left_out)
{
	int fd = take_stderr();

	log_init("t", LOG_LEVEL_WARNING);
	log_info("hidden");
	log_warning("seen");
	cr_assert(eq(str, (char *)next_line(fd), "t: warning: seen\n"));
	cr_assert(eq(str, (char *)next_line(fd), ""));
}

Test(log, a_long_line_is_one_write_that_ends_in_a_newline)
{
	char text[3000];
	const char *line;
	int fd = take_stderr();

	memset(text, 'a', sizeof(text));
	text[sizeof(text) - 1] = '\0';
	log_init("t", LOG_LEVEL_INFO);
	log_info("%s", text);
	line = next_line(fd);
	cr_assert(eq(sz, strlen(line), 1023));
	cr_assert(eq(chr, line[1022], '\n'));
	cr_assert(eq(ptr, strchr(line, '\n'), (void *)(line + 1022)));
}

Test(log, a_guest_cannot_forge_a_line)
{
	int fd = take_stderr();

	log_init("t", LOG_LEVEL_INFO);
	log_info("%s", "a\nt: error: b\033[2J");
	cr_assert(eq(str, (char *)next_line(fd), "t: a?t: error: b?[2J\n"));
}

Test(log, errno_is_kept_when_nobody_reads)
{
	close(STDERR_FILENO);
	errno = ENOENT;
	log_error("lost");
	cr_assert(eq(int, errno, ENOENT));
}

Test(log, ten_lines_pass_in_a_window)
{
	struct log_limit limit = {0};
	uint32_t missed, passed = 0;

	for (int i = 0; i < 1000; i++)
		passed += log_limit_pass(&limit, 5 * SECOND + (uint64_t)i, &missed);
	cr_assert(eq(u32, passed, 10));
}

Test(log, the_next_window_tells_how_many_were_held_back)
{
	struct log_limit limit = {0};
	uint32_t missed;

	for (int i = 0; i < 1000; i++)
		(void)!log_limit_pass(&limit, 5 * SECOND, &missed);
	cr_assert(log_limit_pass(&limit, 10 * SECOND, &missed));
	cr_assert(eq(u32, missed, 990));
	cr_assert(log_limit_pass(&limit, 10 * SECOND, &missed));
	cr_assert(eq(u32, missed, 0), "told once");
}

Test(log, a_clock_read_before_anothers_opens_no_window)
{
	struct log_limit limit = {0};
	uint32_t missed, passed = 0;

	for (int i = 0; i < 100; i++)
		passed += log_limit_pass(&limit, (i % 2 ? 19 : 20) * SECOND, &missed);
	cr_assert(eq(u32, passed, 10));
}

Test(log, a_flood_is_ten_lines)
{
	struct log_limit limit = {.window = UINT64_MAX}; /* which no clock ends */
	int fd = take_stderr();
	int lines = 0;

	log_init("t", LOG_LEVEL_INFO);
	for (int i = 0; i < 500; i++)
		log_limited(&limit, LOG_LEVEL_INFO, "bad ring");
	while (strcmp(next_line(fd), "t: bad ring\n") == 0)
		lines++;
	cr_assert(eq(int, lines, 10));
}

Test(log, the_count_goes_before_the_next_line)
{
	struct log_limit limit = {.missed = 7};
	int fd = take_stderr();

	log_init("t", LOG_LEVEL_INFO);
	log_limited(&limit, LOG_LEVEL_INFO, "bad ring");
	cr_assert(eq(str, (char *)next_line(fd), "t: 7 more like this\n"));
	cr_assert(eq(str, (char *)next_line(fd), "t: bad ring\n"));
}
