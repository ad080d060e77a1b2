/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: the host's resolv.conf. Out: one for passt alone. passt hands the guest each resolver that is
 * named there, except those on the loopback, and sends what is asked of --dns-forward's address to
 * the first one named; where -D names resolvers, the passt of Debian 12 sends it to 0.0.0.0. So
 * the file is what has to change, in a mount namespace, and without one of ours on any disk.
 */
#include "mgmt/local/resolver.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"

#define RESOLV_PATH  "/etc/resolv.conf"
#define RESOLV_MAX   (1 << 16)
#define SCRATCH_PATH "/tmp" /* covered for a moment, seen by nobody else */
#define SCRATCH_FILE SCRATCH_PATH "/resolv.conf"

/* The first of IPv4: another passt would not prefer either. */
static bool first_server(const char *text, char server[INET_ADDRSTRLEN])
{
	struct in_addr parsed;

	for (const char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (sscanf(line, "nameserver%*[ \t]%15[0-9.]", server) == 1 &&
		    inet_pton(AF_INET, server, &parsed) == 1)
			return true;
	}
	return false;
}

char *resolver_text(void)
{
	_cleanup_(fd_closep) int fd = open(RESOLV_PATH, O_RDONLY | O_CLOEXEC);
	char server[INET_ADDRSTRLEN], *made = NULL;
	_cleanup_(freep) char *text = NULL;
	size_t size;

	if (fd < 0 || fd_read_all(fd, RESOLV_MAX, &text, &size) < 0)
		return NULL;
	if (!first_server(text, server) || strncmp(server, "127.", 4))
		return NULL;
	if (asprintf(&made, "nameserver %s\nnameserver " RESOLVER_ADDRESS "\n%s", server, text) < 0)
		return NULL;
	return made;
}

static int file_write(const char *path, int flags, const char *text)
{
	_cleanup_(fd_closep) int fd = open(path, O_WRONLY | O_CLOEXEC | flags, 0644);

	return fd < 0 ? -errno : fd_write_full(fd, text, strlen(text));
}

/* We stay who we are in there. */
static int map_write(const char *path, uint32_t id)
{
	char text[32];

	snprintf(text, sizeof(text), "%u %u 1", id, id);
	return file_write(path, 0, text);
}

/* By right, or else by a user namespace, which passt needs for itself too. */
static int mounts_unshare(void)
{
	const uid_t uid = geteuid();
	const gid_t gid = getegid();
	int r;

	if (!unshare(CLONE_NEWNS))
		return 0;
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0)
		return -errno;
	r = file_write("/proc/self/setgroups", 0, "deny");
	if (r >= 0)
		r = map_write("/proc/self/uid_map", uid);
	return r < 0 ? r : map_write("/proc/self/gid_map", gid);
}

int resolver_put(const char *text)
{
	int r = mounts_unshare();

	if (r < 0)
		return r;
	umask(022);
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("tmpfs", SCRATCH_PATH, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755") < 0)
		return -errno;
	r = file_write(SCRATCH_FILE, O_CREAT | O_EXCL, text);
	if (r < 0)
		return r;
	if (mount(SCRATCH_FILE, RESOLV_PATH, NULL, MS_BIND, NULL) < 0 ||
	    umount2(SCRATCH_PATH, MNT_DETACH) < 0)
		return -errno;
	return 0;
}
