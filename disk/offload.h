/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Data that gets from file to file without passing through us: shared by the file system (XFS,
 * btrfs: FICLONERANGE), or copied by a server (NFS, CIFS, Ceph: copy_file_range). On one local disk
 * without sharing the kernel's copy is no faster than ours and sees no zeroes: not used there.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum offload_kind { OFFLOAD_NONE, OFFLOAD_COPY, OFFLOAD_SHARE };

struct offload {
	int to_fd;             /* borrowed */
	_Atomic uint32_t kind; /* goes down when the store says no */
};

/* Both are regular files, `to_fd` with nothing between it and the guest's data. */
void offload_init(struct offload *offload, int from_fd, int to_fd);
/* true: the range is in `to_fd`. false: it is not, or not all of it. Any thread. */
bool offload_try(struct offload *offload, int from_fd, uint64_t from, uint64_t to, uint64_t length);

/* A file as it is, holes as holes. `at` is told bytes done, and says to stop by a negative value,
 * which is returned. *ret_shared: how much was shared. The target is empty. */
struct offload_file {
	int (*at)(struct offload_file *file, uint64_t done);
	uint64_t shared, copied;
};
int offload_whole(struct offload_file *file, int from_fd, int to_fd);
