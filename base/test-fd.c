/* SPDX-License-Identifier: Apache-2.0 */
/* Whole reads and writes, descriptors over sockets, and the named list. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fd.h"

static void make_stream(int ends[2])
{
	cr_assert(eq(int, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0));
}

static int make_file(const void *data, size_t size)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	cr_assert(ge(int, fd, 0));
	cr_assert(eq(int, fd_write_full(fd, data, size), 0));
	cr_assert(eq(int, (int)lseek(fd, 0, SEEK_SET), 0));
	return fd;
}

static int count_open(void)
{
	int n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static bool is_cloexec(int fd)
{
	return fcntl(fd, F_GETFD) == FD_CLOEXEC;
}

Test(fd, close_returns_minus_one_and_keeps_errno)
{
	int fd = make_file("", 0);

	errno = ENOENT;
	cr_assert(eq(int, fd_close(fd), -1));
	cr_assert(eq(int, fd_close(fd), -1), "closed already");
	cr_assert(eq(int, fd_close(-1), -1));
	cr_assert(eq(int, errno, ENOENT));
	cr_assert(eq(int, fcntl(fd, F_GETFD), -1));
}

Test(fd, a_short_read_is_epipe)
{
	int fd = make_file("abc", 3);
	char text[4];

	cr_assert(eq(int, fd_read_full(fd, text, 4), -EPIPE));
}

Test(fd, a_read_goes_on_over_pieces)
{
	char text[6];
	int ends[2];
	pid_t child;

	make_stream(ends);
	child = fork();
	if (child == 0) {
		/* The second piece leaves only once the first was taken. */
		_exit(send(ends[0], "abc", 3, 0) != 3 || recv(ends[0], text, 1, 0) != 1 ||
		      send(ends[0], "def", 3, 0) != 3);
	}
	cr_assert(eq(int, fd_read_full(ends[1], text, 3), 0));
	cr_assert(eq(int, fd_write_full(ends[1], "", 1), 0));
	cr_assert(eq(int, fd_read_full(ends[1], text + 3, 3), 0));
	cr_assert(memcmp(text, "abcdef", 6) == 0);
}

Test(fd, a_large_write_into_a_pipe_is_whole)
{
	static char out[1 << 20], in[1 << 20];
	int ends[2];

	for (size_t i = 0; i < sizeof(out); i++)
		out[i] = (char)(i * 7 + i / 256);
	make_stream(ends);
	if (fork() == 0)
		_exit(fd_write_full(ends[0], out, sizeof(out)) != 0);
	cr_assert(eq(int, fd_read_full(ends[1], in, sizeof(in)), 0));
	cr_assert(memcmp(in, out, sizeof(in)) == 0);
}

Test(fd, a_failed_write_says_why)
{
	cr_assert(eq(int, fd_write_full(-1, "a", 1), -EBADF));
}

Test(fd, read_all_takes_the_whole_file)
{
	static char text[10000];
	_cleanup_(freep) char *data = NULL;
	size_t size;
	int fd;

	memset(text, 'x', sizeof(text));
	fd = make_file(text, sizeof(text));
	cr_assert(eq(int, fd_read_all(fd, sizeof(text), &data, &size), 0));
	cr_assert(eq(sz, size, sizeof(text)));
	cr_assert(memcmp(data, text, size) == 0);
	cr_assert(eq(chr, data[size], '\0'));
}

Test(fd, read_all_refuses_a_byte_too_many)
{
	int fd = make_file("abcd", 4);
	char *data = NULL;
	size_t size;

	cr_assert(eq(int, fd_read_all(fd, 3, &data, &size), -EFBIG));
	cr_assert(data == NULL);
}

Test(fd, read_all_of_a_stream_is_bounded)
{
	static char text[20000];
	char *data = NULL;
	size_t size;
	int ends[2];

	make_stream(ends);
	cr_assert(eq(int, fd_write_full(ends[0], text, sizeof(text)), 0));
	cr_assert(eq(int, fd_read_all(ends[1], 9000, &data, &size), -EFBIG));
}

Test(fd, read_all_of_a_stream_grows)
{
	static char text[20000];
	_cleanup_(freep) char *data = NULL;
	size_t size;
	int ends[2];

	memset(text, 'y', sizeof(text));
	make_stream(ends);
	cr_assert(eq(int, fd_write_full(ends[0], text, sizeof(text)), 0));
	close(ends[0]);
	cr_assert(eq(int, fd_read_all(ends[1], SIZE_MAX, &data, &size), 0));
	cr_assert(eq(sz, size, sizeof(text)));
	cr_assert(memcmp(data, text, size) == 0);
}

Test(fd, read_all_of_an_empty_file_is_empty_text)
{
	_cleanup_(freep) char *data = NULL;
	size_t size = 1;

	cr_assert(eq(int, fd_read_all(make_file("", 0), 0, &data, &size), 0));
	cr_assert(eq(sz, size, 0));
	cr_assert(eq(str, data, ""));
}

Test(fd, descriptors_arrive_close_on_exec_and_work)
{
	int ends[2], got[2], sent[2] = {make_file("one", 3), make_file("two", 3)};
	char text[8];
	size_t n;

	make_stream(ends);
	cr_assert(eq(long, fd_send(ends[0], "hello", 5, sent, 2), 5));
	cr_assert(eq(long, fd_receive(ends[1], text, sizeof(text), got, 2, &n), 5));
	cr_assert(memcmp(text, "hello", 5) == 0);
	cr_assert(eq(sz, n, 2));
	cr_assert(is_cloexec(got[0]) && is_cloexec(got[1]));
	cr_assert(eq(int, fd_read_full(got[1], text, 3), 0));
	cr_assert(memcmp(text, "two", 3) == 0);
}

Test(fd, as_many_as_allowed_pass)
{
	int ends[2], got[FD_PASS_MAX], sent[FD_PASS_MAX];
	size_t n;
	char byte;

	for (int i = 0; i < FD_PASS_MAX; i++)
		sent[i] = STDIN_FILENO;
	make_stream(ends);
	cr_assert(eq(long, fd_send(ends[0], "a", 1, sent, FD_PASS_MAX), 1));
	cr_assert(eq(long, fd_receive(ends[1], &byte, 1, got, FD_PASS_MAX, &n), 1));
	cr_assert(eq(sz, n, FD_PASS_MAX));
}

Test(fd, more_than_the_caller_takes_are_refused_and_closed)
{
	int ends[2], got[2], sent[3] = {0, 1, 2};
	size_t n = 77;
	int open_before;
	char byte;

	make_stream(ends);
	cr_assert(eq(long, fd_send(ends[0], "a", 1, sent, 3), 1));
	open_before = count_open();
	cr_assert(eq(long, fd_receive(ends[1], &byte, 1, got, 2, &n), -EMSGSIZE));
	cr_assert(eq(int, count_open(), open_before));
	cr_assert(eq(sz, n, 77), "written on success only");
}

/* A peer of ours stops at FD_PASS_MAX; another may not. */
Test(fd, a_truncated_list_is_refused_and_closed)
{
	enum { N = FD_PASS_MAX + 8 };
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int) * N)];
	} control = {.align = {.cmsg_len = CMSG_LEN(sizeof(int) * N),
			       .cmsg_level = SOL_SOCKET,
			       .cmsg_type = SCM_RIGHTS}};
	struct iovec iov = {.iov_base = "a", .iov_len = 1};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = sizeof(control)};
	int ends[2], got[FD_PASS_MAX], open_before;
	size_t n;
	char byte;

	memset(CMSG_DATA(&control.align), 0, sizeof(int) * N); /* all of them standard input */
	make_stream(ends);
	cr_assert(eq(long, sendmsg(ends[0], &msg, 0), 1));
	open_before = count_open();
	cr_assert(eq(long, fd_receive(ends[1], &byte, 1, got, FD_PASS_MAX, &n), -EMSGSIZE));
	cr_assert(eq(int, count_open(), open_before));
}

Test(fd, descriptors_nobody_expects_are_refused_and_closed)
{
	int ends[2], sent[1] = {0}, open_before;
	size_t n;
	char byte;

	make_stream(ends);
	cr_assert(eq(long, fd_send(ends[0], "a", 1, sent, 1), 1));
	open_before = count_open();
	cr_assert(eq(long, fd_receive(ends[1], &byte, 1, NULL, 0, &n), -EMSGSIZE));
	cr_assert(eq(int, count_open(), open_before));
}

Test(fd, send_refuses_what_cannot_travel)
{
	int ends[2], sent[FD_PASS_MAX + 1] = {0};

	make_stream(ends);
	cr_assert(eq(long, fd_send(ends[0], "a", 1, sent, FD_PASS_MAX + 1), -EMSGSIZE));
	cr_assert(eq(long, fd_send(ends[0], "", 0, sent, 1), -EINVAL));
}

Test(fd, the_end_of_the_stream_is_zero)
{
	int ends[2], got[1];
	size_t n = 1;
	char byte;

	make_stream(ends);
	close(ends[0]);
	cr_assert(eq(long, fd_receive(ends[1], &byte, 1, got, 1, &n), 0));
	cr_assert(eq(sz, n, 0));
}

Test(fd, a_gone_peer_is_epipe_without_a_signal)
{
	int ends[2];

	make_stream(ends);
	close(ends[1]);
	cr_assert(eq(long, fd_send(ends[0], "a", 1, NULL, 0), -EPIPE));
}

/*
 * The test's own runner sits on low descriptors, so these lists are parsed in a child, which puts
 * `n_open` files from 3 on as a launcher would, takes `take`, and leaves what it saw here.
 */
struct outcome {
	int r;
	struct error err;
	uint32_t n_fds;
	int taken, taken_again;
	int flags[3], flags_after_close[3]; /* F_GETFD of 3, 4, 5; -1 once closed */
};

static void parse_and_note(const char *list, const char *take, struct outcome *outcome)
{
	struct named_fds named;

	outcome->r = named_fds_parse(&named, list, &outcome->err);
	outcome->n_fds = named.n_fds;
	for (int i = 0; i < 3; i++)
		outcome->flags[i] = fcntl(3 + i, F_GETFD);
	outcome->taken = named_fds_take(&named, take);
	outcome->taken_again = named_fds_take(&named, take);
	named_fds_close(&named);
	for (int i = 0; i < 3; i++)
		outcome->flags_after_close[i] = fcntl(3 + i, F_GETFD);
}

static struct outcome *parse_in_child(const char *list, const char *take, int n_open)
{
	struct outcome *outcome = mmap(NULL, sizeof(*outcome), PROT_READ | PROT_WRITE,
				       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status;
	pid_t child = fork();

	if (child == 0) {
		close_range(3, ~0u, 0);
		for (int i = 0; i < n_open; i++)
			if (dup(STDIN_FILENO) != 3 + i)
				_exit(1);
		parse_and_note(list, take, outcome);
		_exit(0);
	}
	cr_assert(eq(int, waitpid(child, &status, 0), child));
	cr_assert(eq(int, status, 0));
	return outcome;
}

Test(named_fds, names_follow_the_numbers)
{
	struct outcome *o = parse_in_child("control,kvm,disk0", "kvm", 3);

	cr_assert(eq(int, o->r, 0));
	cr_assert(eq(u32, o->n_fds, 3));
	cr_assert(eq(int, o->taken, 4));
	cr_assert(eq(int, o->taken_again, -1));
}

Test(named_fds, a_name_is_a_whole_name)
{
	cr_assert(eq(int, parse_in_child("disk0,disk", "disk", 2)->taken, 4));
	cr_assert(eq(int, parse_in_child("disk0,disk1", "disk", 2)->taken, -1));
}

Test(named_fds, they_become_close_on_exec)
{
	struct outcome *o = parse_in_child("a,b,c", "b", 3);

	for (int i = 0; i < 3; i++)
		cr_assert(eq(int, o->flags[i], FD_CLOEXEC));
}

Test(named_fds, close_leaves_what_was_taken)
{
	struct outcome *o = parse_in_child("a,b,c", "b", 3);

	cr_assert(eq(int, o->flags_after_close[0], -1));
	cr_assert(eq(int, o->flags_after_close[1], FD_CLOEXEC));
	cr_assert(eq(int, o->flags_after_close[2], -1));
}

static void refuses(const char *list, int code, const char *sentence)
{
	struct outcome *o = parse_in_child(list, "a", 3);

	cr_assert(eq(int, o->r, code));
	cr_assert(eq(str, o->err.text, (char *)sentence));
	cr_assert(eq(u32, o->n_fds, 0));
}

Test(named_fds, a_closed_one_is_refused)
{
	refuses("a,b,c,d", -EBADF,
		"--fds: descriptor 6, named \"d\", was not handed over: Bad file descriptor");
}

Test(named_fds, a_doubled_name_is_refused)
{
	refuses("a,b,a", -EINVAL, "--fds: name \"a\" is there twice");
}

Test(named_fds, an_empty_name_is_refused)
{
	refuses("", -EINVAL, "--fds: name 1 is empty");
	refuses("a,,b", -EINVAL, "--fds: name 2 is empty");
	refuses("a,", -EINVAL, "--fds: name 2 is empty");
}

Test(named_fds, a_long_name_is_refused)
{
	refuses("abcdefghijklmnopqrstuvwx", -EINVAL,
		"--fds: name \"abcdefghijklmnopqrstuvwx\" is longer than 23 bytes");
}

Test(named_fds, too_many_are_refused)
{
	char list[1024] = "";
	size_t at = 0;

	for (int i = 0; i <= NAMED_FDS_MAX; i++)
		at += (size_t)snprintf(list + at, sizeof(list) - at, "%s%d", i ? "," : "", i);
	struct outcome *o = parse_in_child(list, "0", NAMED_FDS_MAX + 1);
	cr_assert(eq(int, o->r, -E2BIG));
	cr_assert(eq(str, o->err.text, "--fds: more than 256 descriptors"));
}
