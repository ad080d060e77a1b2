/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One lock an image: readers share it, a writer has it alone.
 */
#include <errno.h>
#include <fcntl.h>

#include "block/block.h"

/* "corral" in the highest positions a file can have; nobody's data lies there. */
#define LOCK_OFFSET 0x7e636f7272616cll

int block_lock(int fd, bool exclusive)
{
	struct flock lock = {
		.l_type = exclusive ? F_WRLCK : F_RDLCK,
		.l_whence = SEEK_SET,
		.l_start = LOCK_OFFSET,
		.l_len = 1,
	};

	if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
		return 0;
	return errno == EACCES || errno == EAGAIN ? -EBUSY : -errno;
}
