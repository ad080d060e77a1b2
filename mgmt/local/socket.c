/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: a path. Out: a socket that listens there, or one connected to who does. A path that does not
 * fit a socket's address is refused by name instead of cut.
 */
#include "mgmt/local/socket.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"

#define SOCKET_BACKLOG 16
#define DYING_MS       500
#define STEP_MS        5

static int address_set(struct sockaddr_un *address, const char *path)
{
	*address = (struct sockaddr_un){.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof(address->sun_path))
		return -ENAMETOOLONG;
	memcpy(address->sun_path, path, strlen(path));
	return 0;
}

int socket_connect(const char *path)
{
	_cleanup_(fd_closep) int fd = -1;
	struct sockaddr_un address;
	int r = address_set(&address, path);

	if (r < 0)
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return -errno;
	return take_fd(fd);
}

void socket_remove_dead(const char *path)
{
	struct stat st;
	int fd;

	if (lstat(path, &st) < 0 || !S_ISSOCK(st.st_mode))
		return;
	/* The kernel takes a killed VMM's ring apart a while after the VMM; until then its socket
	 * answers. */
	for (int waited = 0; (fd = socket_connect(path)) >= 0; waited += STEP_MS) {
		fd_close(fd);
		if (waited >= DYING_MS)
			return;
		poll(NULL, 0, STEP_MS);
	}
	if (fd == -ECONNREFUSED)
		unlink(path);
}

static int socket_bind(int fd, const struct sockaddr_un *address)
{
	mode_t mask = umask(077);
	int r = bind(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 ? -errno : 0;

	umask(mask);
	return r;
}

int socket_listen(const char *path, struct error *err)
{
	_cleanup_(fd_closep) int fd = -1;
	struct sockaddr_un address;
	int r = address_set(&address, path);

	if (r < 0)
		return error_set(
			err, r,
			"cannot make control socket \"%s\": a socket's path has at most %zu "
			"bytes",
			path, sizeof(address.sun_path) - 1);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return error_set(err, -errno, "cannot make a control socket: %s", strerror(errno));
	r = socket_bind(fd, &address);
	if (r == -EADDRINUSE) {
		socket_remove_dead(path);
		r = socket_bind(fd, &address);
	}
	if (r == -EADDRINUSE)
		return error_set(err, r,
				 "cannot make control socket \"%s\": it is in use, or no socket; "
				 "remove it or name another",
				 path);
	if (r < 0)
		return error_set(err, r, "cannot make control socket \"%s\": %s", path,
				 strerror(-r));
	if (listen(fd, SOCKET_BACKLOG) < 0)
		return error_set(err, -errno, "cannot listen on \"%s\": %s", path, strerror(errno));
	return take_fd(fd);
}
