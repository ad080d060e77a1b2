/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: the name of a file to be. Out: a descriptor, then a whole file of that name or none.
 * O_TMPFILE where the file system has it, since nothing can be left of it; else a name that is
 * removed. The broker.
 */
#include "disk/made.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "block/block.h"

#define TRIES 100

static int failed(const struct made *made, const char *doing, struct error *err)
{
	int code = -errno;

	return error_set(err, code, "cannot make \"%s\": %s%s%s", made->name, doing,
			 doing[0] ? ": " : "", strerror(-code));
}

static int directory_open(struct made *made, struct error *err)
{
	const char *slash = strrchr(made->name, '/');
	char path[PATH_MAX];

	made->own = slash ? slash + 1 : made->name;
	if (!made->own[0] || strlen(made->own) > NAME_MAX)
		return error_set(err, -EINVAL, "cannot make \"%s\": that is no name for a file",
				 made->name);
	if ((size_t)snprintf(path, sizeof(path), "%.*s", slash ? (int)(made->own - made->name) : 1,
			     slash ? made->name : ".") >= sizeof(path))
		return error_set(err, -ENAMETOOLONG, "cannot make \"%s\": its name is too long",
				 made->name);
	made->dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return made->dir_fd < 0 ? failed(made, "its directory", err) : 0;
}

/* A name nobody else has: it only has to be made, not to be secret. */
static void temporary_name(struct made *made, int i)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	snprintf(made->temporary, sizeof(made->temporary), ".corral-disk-%d-%lx%x.part",
		 (int)getpid(), (unsigned long)now.tv_nsec, i);
}

static int file_open(struct made *made, struct error *err)
{
	/* Without /proc a file that has no name can be given none. */
	if (access("/proc/self/fd", X_OK) == 0)
		made->fd = openat(made->dir_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
	for (int i = 0; made->fd < 0 && i < TRIES; i++) {
		temporary_name(made, i);
		made->fd = openat(made->dir_fd, made->temporary,
				  O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
		if (made->fd < 0 && errno != EEXIST)
			break;
	}
	if (made->fd < 0) {
		made->temporary[0] = '\0';
		return failed(made, "", err);
	}
	return 0;
}

/* What is to be replaced must not be in use by a VM: it is held until it is gone. */
static int old_hold(struct made *made, struct error *err)
{
	int r = image_file_open(&made->old, made->name, true, err);

	if (r == -ENOENT) {
		*err = ERROR_NULL;
		return 0;
	}
	if (r < 0)
		return r;
	if (!made->overwrite)
		return error_set(err, -EEXIST,
				 "cannot make \"%s\": it is there already; say --overwrite to have "
				 "it replaced",
				 made->name);
	if (made->old.block_device) {
		made->in_place = true;
		made->fd = take_fd(made->old.fd);
		return 0;
	}
	r = block_lock(made->old.fd, true);
	if (r < 0)
		return error_set(err, r, "cannot replace \"%s\": %s", made->name,
				 r == -EBUSY ? "a VM or another tool has it open; stop that first"
					     : strerror(-r));
	return 0;
}

int made_open(struct made *made, const char *name, bool overwrite, struct error *err)
{
	int r;

	*made = (struct made){.name = strdup(name),
			      .fd = -1,
			      .dir_fd = -1,
			      .overwrite = overwrite,
			      .old = {.fd = -1}};
	if (!made->name)
		return error_set(err, -ENOMEM, "cannot make \"%s\": out of memory", name);
	r = old_hold(made, err);
	if (r == 0 && !made->in_place)
		r = directory_open(made, err);
	if (r == 0 && !made->in_place)
		r = file_open(made, err);
	if (r < 0)
		made_drop(made);
	return r;
}

/* A file without a name gets one. */
static int give_name(struct made *made, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", made->fd);
	return linkat(AT_FDCWD, path, made->dir_fd, name, AT_SYMLINK_FOLLOW);
}

/* In one step: whoever looks finds the old file or the new one, whole. */
static int replace(struct made *made, struct error *err)
{
	int r = -1;

	for (int i = 0; !made->temporary[0] && i < TRIES; i++) {
		temporary_name(made, i);
		r = give_name(made, made->temporary);
		if (r < 0)
			made->temporary[0] = '\0';
		if (r < 0 && errno != EEXIST)
			break;
	}
	if (!made->temporary[0] ||
	    renameat(made->dir_fd, made->temporary, made->dir_fd, made->own) < 0)
		return failed(made, "it is written, and cannot be given its name", err);
	made->temporary[0] = '\0';
	return 0;
}

/* Not over what somebody else has made there meanwhile. */
static int give_new_name(struct made *made, struct error *err)
{
	int r = made->temporary[0]
			? linkat(made->dir_fd, made->temporary, made->dir_fd, made->own, 0)
			: give_name(made, made->own);

	if (r < 0 && made->temporary[0] && (errno == EPERM || errno == EOPNOTSUPP)) {
		/* A file system without links (FAT). */
		r = renameat2(made->dir_fd, made->temporary, made->dir_fd, made->own,
			      RENAME_NOREPLACE);
		if (r == 0)
			made->temporary[0] = '\0';
	}
	if (r < 0)
		return failed(made, "it is written, and cannot be given its name", err);
	if (made->temporary[0])
		unlinkat(made->dir_fd, made->temporary, 0);
	made->temporary[0] = '\0';
	return 0;
}

int made_publish(struct made *made, struct error *err)
{
	int r;

	if (made->in_place)
		return 0;
	r = made->old.name ? replace(made, err) : give_new_name(made, err);
	if (r < 0)
		return r;
	return fsync(made->dir_fd) < 0 ? failed(made, "its name may not last", err) : 0;
}

void made_drop(struct made *made)
{
	if (!made->name)
		return;
	if (made->temporary[0])
		unlinkat(made->dir_fd, made->temporary, 0);
	image_file_close(&made->old);
	fd_close(made->fd);
	fd_close(made->dir_fd);
	free(made->name);
	*made = (struct made){.fd = -1, .dir_fd = -1, .old = {.fd = -1}};
}
