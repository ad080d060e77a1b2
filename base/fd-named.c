/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The text of `--fds` in, descriptors with names out. A process started so opens nothing itself:
 * what it may use is what it finds here. Main thread, before others start.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/error.h"
#include "base/fd.h"

static int named_fds_find(const struct named_fds *named, const char *name, size_t length)
{
	for (uint32_t i = 0; i < named->n_fds; i++)
		if (strlen(named->fds[i].name) == length &&
		    memcmp(named->fds[i].name, name, length) == 0)
			return (int)i;
	return -1;
}

static int named_fds_check(const struct named_fds *named, const char *name, size_t length,
			   struct error *err)
{
	if (named->n_fds == NAMED_FDS_MAX)
		return error_set(err, -E2BIG, "--fds: more than %d descriptors", NAMED_FDS_MAX);
	if (!length)
		return error_set(err, -EINVAL, "--fds: name %u is empty", named->n_fds + 1);
	if (length >= NAMED_FDS_LENGTH)
		return error_set(err, -EINVAL, "--fds: name \"%.*s\" is longer than %d bytes",
				 (int)MIN(length, (size_t)64), name, NAMED_FDS_LENGTH - 1);
	if (named_fds_find(named, name, length) >= 0)
		return error_set(err, -EINVAL, "--fds: name \"%.*s\" is there twice", (int)length,
				 name);
	return 0;
}

static int named_fds_add(struct named_fds *named, const char *name, size_t length,
			 struct error *err)
{
	int fd = NAMED_FDS_FIRST + (int)named->n_fds;
	int r;

	r = named_fds_check(named, name, length, err);
	if (r < 0)
		return r;
	if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
		r = -errno;
		return error_set(err, r,
				 "--fds: descriptor %d, named \"%.*s\", was not handed over: %s",
				 fd, (int)length, name, strerror(-r));
	}
	memcpy(named->fds[named->n_fds].name, name, length);
	named->fds[named->n_fds].name[length] = '\0';
	named->fds[named->n_fds++].fd = fd;
	return 0;
}

int named_fds_parse(struct named_fds *named, const char *list, struct error *err)
{
	const char *end;
	int r = 0;

	named->n_fds = 0;
	do {
		end = strchrnul(list, ',');
		r = named_fds_add(named, list, (size_t)(end - list), err);
		list = end + 1;
	} while (r == 0 && *end);
	if (r < 0)
		named_fds_close(named);
	return r;
}

int named_fds_take(struct named_fds *named, const char *name)
{
	int i = named_fds_find(named, name, strlen(name));

	return i < 0 ? -1 : take_fd(named->fds[i].fd);
}

void named_fds_close(struct named_fds *named)
{
	for (uint32_t i = 0; i < named->n_fds; i++)
		fd_closep(&named->fds[i].fd);
	named->n_fds = 0;
}
