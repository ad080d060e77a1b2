/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One lock an image: readers share it, a writer has it alone.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>

#include "block/block.h"

/* "corral" in the highest positions a file can have; nobody's data lies there. */
#define LOCK_OFFSET 0x7e636f7272616cll

/* A VMM that was killed holds its locks until its last write has drained: 130 ms have been seen. */
#define PATIENCE_MS 1000
#define STEP_MS     5

static int lock_set(int fd, short type)
{
	struct flock lock = {
		.l_type = type,
		.l_whence = SEEK_SET,
		.l_start = LOCK_OFFSET,
		.l_len = 1,
	};

	if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
		return 0;
	return errno == EACCES || errno == EAGAIN ? -EBUSY : -errno;
}

int block_lock(int fd, bool exclusive)
{
	int r = lock_set(fd, exclusive ? F_WRLCK : F_RDLCK);

	/* There is no event for "that lock was released" that ends at a deadline too. */
	for (int waited = 0; r == -EBUSY && waited < PATIENCE_MS; waited += STEP_MS) {
		poll(NULL, 0, STEP_MS);
		r = lock_set(fd, exclusive ? F_WRLCK : F_RDLCK);
	}
	return r;
}

void block_unlock(int fd)
{
	(void)lock_set(fd, F_UNLCK);
}
