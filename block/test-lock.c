/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Image locks between open file descriptions of one file, as two VMs would have them.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "block/block.h"

static int file, a, b, c;

static int open_again(int flags)
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	fd = open(path, flags | O_CLOEXEC);
	cr_assert_geq(fd, 0);
	return fd;
}

static void set_up(void)
{
	char path[] = "/tmp/test-lock-XXXXXX";

	file = mkstemp(path);
	cr_assert_geq(file, 0);
	unlink(path);
	a = open_again(O_RDWR);
	b = open_again(O_RDWR);
	c = open_again(O_RDONLY);
}

static void tear_down(void)
{
	fd_close(file);
	fd_close(a);
	fd_close(b);
	fd_close(c);
}

TestSuite(lock, .init = set_up, .fini = tear_down, .timeout = 30);

Test(lock, one_writer)
{
	cr_assert_eq(block_lock(a, true), 0);
	cr_assert_eq(block_lock(b, true), -EBUSY);
}

Test(lock, readers_share)
{
	cr_assert_eq(block_lock(a, false), 0);
	cr_assert_eq(block_lock(b, false), 0);
	cr_assert_eq(block_lock(c, false), 0);
}

Test(lock, a_reader_keeps_writers_out)
{
	cr_assert_eq(block_lock(c, false), 0);
	cr_assert_eq(block_lock(a, true), -EBUSY);
}

Test(lock, a_writer_keeps_readers_out)
{
	cr_assert_eq(block_lock(a, true), 0);
	cr_assert_eq(block_lock(c, false), -EBUSY);
}

Test(lock, a_file_opened_for_reading_takes_no_write_lock)
{
	cr_assert_eq(block_lock(c, true), -EBADF);
}

Test(lock, locking_twice_is_fine)
{
	cr_assert_eq(block_lock(a, true), 0);
	cr_assert_eq(block_lock(a, true), 0);
}

Test(lock, unlocking_lets_the_next_in)
{
	cr_assert_eq(block_lock(a, true), 0);
	block_unlock(a);
	cr_assert_eq(block_lock(b, true), 0);
}

Test(lock, closing_lets_the_next_in)
{
	cr_assert_eq(block_lock(a, true), 0);
	a = fd_close(a);
	cr_assert_eq(block_lock(b, true), 0);
}

/* Unlike POSIX locks, which go with any descriptor of the process. */
Test(lock, closing_another_descriptor_keeps_it)
{
	cr_assert_eq(block_lock(a, true), 0);
	file = fd_close(file);
	c = fd_close(c);
	cr_assert_eq(block_lock(b, true), -EBUSY);
}

/* The holder is told to go in the moment the other begins: what is still closing is waited for. */
Test(lock, the_death_of_the_holder_is_waited_for)
{
	int ready[2], go[2];
	char byte;
	pid_t child;

	cr_assert_eq(pipe(ready), 0);
	cr_assert_eq(pipe(go), 0);
	child = fork();
	if (child == 0) {
		int own = open_again(O_RDWR);

		if (block_lock(own, true) < 0 || write(ready[1], "x", 1) != 1)
			_exit(1);
		_exit(read(go[0], &byte, 1) == 1 ? 0 : 1);
	}
	cr_assert_eq(read(ready[0], &byte, 1), 1);
	cr_assert_eq(write(go[1], "x", 1), 1);
	cr_assert_eq(block_lock(a, true), 0);
	cr_assert_eq(waitpid(child, NULL, 0), child);
	close(ready[0]);
	close(ready[1]);
	close(go[0]);
	close(go[1]);
}

Test(lock, locks_say_nothing_about_the_data)
{
	struct flock all = {
		.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1 << 30};

	cr_assert_eq(block_lock(a, true), 0);
	cr_assert_eq(fcntl(b, F_OFD_SETLK, &all), 0);
}
