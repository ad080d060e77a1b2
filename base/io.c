/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every I/O engine has to know about an operation: whether it can be given to the kernel, and
 * which fallocate(2) stands for it. On a block device the same modes zero or unmap, without falling
 * back to writing zeroes for a hole.
 */
#include "base/io.h"

#include <fcntl.h>
#include <limits.h>

bool io_op_is_valid(const struct io_op *op)
{
	if (op->offset > INT64_MAX)
		return false;
	switch (op->kind) {
	case IO_READ:
	case IO_WRITE:
		return op->n_iov && op->n_iov <= IOV_MAX;
	case IO_FLUSH:
		return true;
	case IO_DISCARD:
	case IO_ZERO:
	case IO_ZERO_KEEP:
		return op->length && op->length <= INT64_MAX - op->offset;
	}
	return false;
}

int io_fallocate_mode(enum io_kind kind)
{
	if (kind == IO_ZERO_KEEP)
		return FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
	return FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
}
