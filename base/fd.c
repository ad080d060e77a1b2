/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes and descriptors through descriptors. Whatever arrives here with an error in its middle is
 * closed or freed here: a caller that gets -errno owns nothing new. Any thread.
 */
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

#define READ_ALL_STEP 4096

int fd_close(int fd)
{
	int saved_errno = errno;

	if (fd >= 0)
		close(fd); /* never retried: Linux has freed the number even on EINTR */
	errno = saved_errno;
	return -1;
}

void fd_closep(int *fd)
{
	*fd = fd_close(*fd);
}

int fd_read_full(int fd, void *data, size_t size)
{
	for (size_t at = 0; at < size;) {
		ssize_t n = read(fd, (char *)data + at, size - at);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -EPIPE;
		at += (size_t)n;
	}
	return 0;
}

int fd_write_full(int fd, const void *data, size_t size)
{
	for (size_t at = 0; at < size;) {
		ssize_t n = write(fd, (const char *)data + at, size - at);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		at += (size_t)n;
	}
	return 0;
}

/* Room for the whole file at once where its size is known, plus the byte that finds its end. */
static size_t read_all_first(int fd, size_t max)
{
	struct stat st;

	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size >= 0 &&
	    (uint64_t)st.st_size <= max)
		return (size_t)st.st_size + 1;
	return MIN(max, (size_t)READ_ALL_STEP) + 1;
}

/* Reads until the end of the file, or until the buffer is full: then 0 with *at == room. */
static int read_until_full(int fd, char *data, size_t room, size_t *at, bool *ret_end)
{
	*ret_end = false;
	while (*at < room && !*ret_end) {
		ssize_t n = read(fd, data + *at, room - *at);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		*ret_end = n == 0;
		*at += (size_t)n;
	}
	return 0;
}

int fd_read_all(int fd, size_t max, char **ret_data, size_t *ret_size)
{
	_cleanup_(freep) char *data = NULL;
	size_t room, at = 0;
	bool end = false;
	int r;

	max = MIN(max, SIZE_MAX / 4); /* so that doubling and the NUL cannot wrap */
	for (room = read_all_first(fd, max); !end; room = MIN(room * 2, max + 1)) {
		char *more = realloc(data, room + 1);
		if (!more)
			return -ENOMEM;
		data = more;
		r = read_until_full(fd, data, room, &at, &end);
		if (r < 0)
			return r;
		if (at > max)
			return -EFBIG;
	}
	data[at] = '\0';
	*ret_size = at;
	*ret_data = take_ptr(data);
	return 0;
}

union fd_control {
	struct cmsghdr align;
	char bytes[CMSG_SPACE(sizeof(int) * FD_PASS_MAX)];
};

ssize_t fd_send(int socket, const void *data, size_t size, const int *fds, size_t n_fds)
{
	union fd_control control = {0};
	struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	if (n_fds > FD_PASS_MAX)
		return -EMSGSIZE;
	if (n_fds && !size)
		return -EINVAL; /* descriptors travel with a byte, or a stream socket loses them */
	if (n_fds) {
		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		*CMSG_FIRSTHDR(&msg) = (struct cmsghdr){
			.cmsg_len = CMSG_LEN(sizeof(int) * n_fds),
			.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS,
		};
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), fds, sizeof(int) * n_fds);
	}
	do
		n = sendmsg(socket, &msg, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

/* Takes the descriptors of one control message: the first `max` into `fds`, the rest are closed. */
static void receive_rights(const struct cmsghdr *header, int *fds, size_t max, size_t *n_fds)
{
	size_t n = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);

	for (size_t i = 0; i < n; i++, (*n_fds)++) {
		int fd;
		memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
		if (*n_fds < max)
			fds[*n_fds] = fd;
		else
			fd_close(fd);
	}
}

ssize_t fd_receive(int socket, void *data, size_t size, int *ret_fds, size_t max_fds,
		   size_t *ret_n_fds)
{
	union fd_control control;
	struct iovec iov = {.iov_base = data, .iov_len = size};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	size_t n_fds = 0;
	ssize_t n;

	do
		n = recvmsg(socket, &msg, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	for (struct cmsghdr *h = CMSG_FIRSTHDR(&msg); h; h = CMSG_NXTHDR(&msg, h))
		if (h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_RIGHTS)
			receive_rights(h, ret_fds, max_fds, &n_fds);
	if (n_fds > max_fds || (msg.msg_flags & (MSG_CTRUNC | MSG_TRUNC))) {
		for (size_t i = 0; i < MIN(n_fds, max_fds); i++)
			fd_close(ret_fds[i]);
		return -EMSGSIZE;
	}
	*ret_n_fds = n_fds;
	return n;
}
