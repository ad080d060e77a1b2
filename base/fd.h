/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptors: closing, whole reads and writes, passing them over a UNIX socket, and the named
 * list by which a parent hands them to a child. All return -errno.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/macros.h"

/* Closes if it is open, keeps errno, returns -1: `fd = fd_close(fd);` */
int fd_close(int fd);

/* For _cleanup_(fd_closep). */
void fd_closep(int *fd);

/* Read or write exactly `size` bytes; a short read is -EPIPE. Retries EINTR. */
int fd_read_full(int fd, void *data, size_t size) __must_check;
int fd_write_full(int fd, const void *data, size_t size) __must_check;

/* Reads a whole file of at most `max` bytes (else -EFBIG) into a new, NUL-terminated buffer the
 * caller frees. */
int fd_read_all(int fd, size_t max, char **ret_data, size_t *ret_size) __must_check;

/*
 * One sendmsg/recvmsg with up to FD_PASS_MAX descriptors beside the bytes. `fd_receive` returns the
 * number of bytes (0: end of stream); descriptors arrive close-on-exec, the caller owns them; more
 * than `max_fds` sent, or a truncated list, is -EMSGSIZE with all of them closed.
 */
#define FD_PASS_MAX 32
ssize_t fd_send(int socket, const void *data, size_t size, const int *fds,
		size_t n_fds) __must_check;
ssize_t fd_receive(int socket, void *data, size_t size, int *ret_fds, size_t max_fds,
		   size_t *ret_n_fds) __must_check;

/*
 * Descriptors a process was started with: `--fds control,kvm,disk0` says that 3 is control, 4 is
 * kvm, 5 is disk0. The struct owns them; `named_fds_take` gives one away (-1 if there is none of
 * that name). Parsing sets close-on-exec on each and refuses a closed one, a doubled or an empty
 * name.
 */
#define NAMED_FDS_FIRST  3
#define NAMED_FDS_MAX    256
#define NAMED_FDS_LENGTH 24 /* with its NUL */

struct named_fds {
	uint32_t n_fds;
	struct {
		char name[NAMED_FDS_LENGTH];
		int fd; /* owned, -1 once taken */
	} fds[NAMED_FDS_MAX];
};

struct error;
int named_fds_parse(struct named_fds *named, const char *list, struct error *err) __must_check;
int named_fds_take(struct named_fds *named, const char *name);
void named_fds_close(struct named_fds *named);
