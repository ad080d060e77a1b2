/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: names from a user, or from inside an image. Out: descriptors, or one sentence. The broker.
 */
#include "disk/open.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"

static const char *advice(int code, bool writable)
{
	if (code == -EACCES && writable)
		return "; give yourself read and write rights on it";
	if (code == -EACCES)
		return "; give yourself the right to read it";
	if (code == -EROFS)
		return "; copy it to where you may write";
	if (code == -EBUSY)
		return "; it is mounted or otherwise in use, unmount it first";
	return "";
}

static int refuse(const char *name, int code, bool writable, struct error *err)
{
	return error_set(err, code, "cannot open \"%s\": %s%s", name, strerror(-code),
			 advice(code, writable));
}

static int check_kind(const struct stat *st, const char *name, bool device_too, struct error *err)
{
	if (S_ISREG(st->st_mode) || (device_too && S_ISBLK(st->st_mode)))
		return 0;
	if (S_ISDIR(st->st_mode))
		return error_set(err, -EISDIR,
				 "cannot open \"%s\": it is a directory, not an image", name);
	if (S_ISBLK(st->st_mode))
		return error_set(err, -EMEDIUMTYPE,
				 "cannot open \"%s\": an image names this block device, and only "
				 "files are opened on an image's word",
				 name);
	return error_set(err, -EMEDIUMTYPE,
			 "cannot open \"%s\": it is neither a file nor a block device", name);
}

/* What was looked at may have been exchanged since: O_NONBLOCK lets the opening of a FIFO return,
 * and the second look is the one that counts. */
static int open_checked(const char *name, bool writable, bool device_too, struct stat *st,
			struct error *err)
{
	int flags = (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
	_cleanup_(fd_closep) int fd = -1;
	int r;

	if (stat(name, st) < 0)
		return refuse(name, -errno, writable, err);
	r = check_kind(st, name, device_too, err);
	if (r < 0)
		return r;
	if (S_ISBLK(st->st_mode) && writable)
		flags |= O_EXCL; /* refuses what is mounted */
	fd = open(name, flags);
	if (fd < 0 || fstat(fd, st) < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
		return refuse(name, -errno, writable, err);
	r = check_kind(st, name, device_too, err);
	return r < 0 ? r : take_fd(fd);
}

static int image_file_fill(struct image_file *file, int fd, const char *name, const struct stat *st,
			   struct error *err)
{
	*file = (struct image_file){
		.name = strdup(name),
		.fd = fd,
		.block_device = S_ISBLK(st->st_mode),
		.dev = S_ISBLK(st->st_mode) ? st->st_rdev : st->st_dev,
		.ino = S_ISBLK(st->st_mode) ? 0 : st->st_ino,
	};
	if (file->name)
		return 0;
	image_file_close(file);
	return error_set(err, -ENOMEM, "cannot open \"%s\": out of memory", name);
}

int image_file_open(struct image_file *file, const char *name, bool writable, struct error *err)
{
	struct stat st;
	int fd = open_checked(name, writable, true, &st, err);

	return fd < 0 ? fd : image_file_fill(file, fd, name, &st, err);
}

int image_file_take(struct image_file *file, int fd, const char *name, struct error *err)
{
	_cleanup_(fd_closep) int own = fd;
	struct stat st;
	int r;

	if (fstat(own, &st) < 0)
		return refuse(name, -errno, false, err);
	r = check_kind(&st, name, true, err);
	return r < 0 ? r : image_file_fill(file, take_fd(own), name, &st, err);
}

void image_file_close(struct image_file *file)
{
	if (!file->name)
		return;
	free(file->name);
	fd_close(file->fd);
	*file = (struct image_file){.fd = -1};
}

bool image_file_same(const struct image_file *a, const struct image_file *b)
{
	return a->dev == b->dev && a->ino == b->ino && a->block_device == b->block_device;
}

/* "nbd://host", "json:{...}": other programs take what stands before the colon for a way to get
 * there, and so it is meant. */
static bool is_protocol(const char *name)
{
	size_t n = 0;

	while (isalnum((unsigned char)name[n]) || strchr("+.-", name[n] ? name[n] : '/'))
		n++;
	return n > 0 && name[n] == ':';
}

/* `name` as seen from `image`, the file that names it. */
static int resolve(const char *image, const char *name, char **ret_path)
{
	const char *slash = strrchr(image, '/');
	int directory = slash ? (int)(slash - image) + 1 : 0;

	if (asprintf(ret_path, "%.*s%s", name[0] == '/' ? 0 : directory, image, name) < 0)
		return -ENOMEM;
	return 0;
}

static int check_name(const char *image, const char *name, size_t size, struct error *err)
{
	if (!size || size >= PATH_MAX || memchr(name, '\0', size))
		return error_set(
			err, -EINVAL,
			"cannot open what \"%s\" stands on: the name in it is no file name", image);
	return 0;
}

/* The chain ends: no image may stand on itself. */
static int remember(struct backing *backing, const struct image_file *top, const char *path,
		    const struct stat *st, struct error *err)
{
	bool again = !top->block_device && top->dev == st->st_dev && top->ino == st->st_ino;

	for (uint32_t i = 0; i < backing->n; i++)
		again = again ||
			(backing->seen[i].dev == st->st_dev && backing->seen[i].ino == st->st_ino);
	if (again)
		return error_set(err, -ELOOP,
				 "cannot open \"%s\": it stands on \"%s\", which stands on it",
				 top->name, path);
	if (backing->n == BACKING_MAX)
		return error_set(err, -ELOOP,
				 "cannot open \"%s\": more than %d images stand on each other",
				 top->name, BACKING_MAX);
	backing->seen[backing->n].dev = st->st_dev;
	backing->seen[backing->n++].ino = st->st_ino;
	return 0;
}

int backing_open(struct backing *backing, const struct image_file *top, const char *name,
		 size_t size, bool writable, int *ret_fd, struct error *err)
{
	const char *image = backing->last ? backing->last : top->name;
	_cleanup_(freep) char *text = strndup(name, size);
	_cleanup_(freep) char *path = NULL;
	_cleanup_(fd_closep) int fd = -1;
	struct stat st;
	int r = check_name(image, name, size, err);

	if (r < 0)
		return r;
	if (!text || resolve(image, text + (strncmp(text, "file:", 5) ? 0 : 5), &path) < 0)
		return error_set(err, -ENOMEM, "cannot open what \"%s\" stands on: out of memory",
				 image);
	if (is_protocol(text) && strncmp(text, "file:", 5) != 0)
		return error_set(err, -EPROTONOSUPPORT,
				 "cannot open what \"%s\" stands on: \"%s\" is not the name of a "
				 "file; copy it into one and name that",
				 image, text);
	fd = open_checked(path, writable, false, &st, err);
	if (fd < 0)
		return err->text[0] ? error_prefix(err, "\"%s\": ", image) : fd;
	r = remember(backing, top, path, &st, err);
	if (r < 0)
		return r;
	free(backing->last);
	backing->last = take_ptr(path);
	*ret_fd = take_fd(fd);
	return 0;
}

void backing_close(struct backing *backing)
{
	free(backing->last);
	*backing = (struct backing){};
}

/* The directory of a file that need not be there. */
static int real_directory(const char *path, char real[PATH_MAX])
{
	const char *slash = strrchr(path, '/');
	char directory[PATH_MAX];

	if ((size_t)snprintf(directory, sizeof(directory), "%.*s",
			     slash ? (int)(slash - path + 1) : 1,
			     slash ? path : ".") >= sizeof(directory))
		return -ENAMETOOLONG;
	return realpath(directory, real) ? 0 : -errno;
}

int backing_name(const char *path, const char *base, char *name, size_t size, struct error *err)
{
	char directory[PATH_MAX], real[PATH_MAX];
	const char *said = base;
	size_t length;
	int r = 0;

	if (base[0] != '/') {
		r = real_directory(path, directory);
		if (r == 0)
			r = realpath(base, real) ? 0 : -errno;
		if (r < 0)
			return error_set(err, r, "cannot tell how \"%s\" is to name \"%s\": %s",
					 path, base, strerror(-r));
		length = strlen(directory);
		said = real;
		if (!strncmp(real, directory, length) && real[length] == '/')
			said = real + length + 1;
	}
	/* Others would take it for a protocol. */
	length = snprintf(name, size, "%s%s", is_protocol(said) ? "./" : "", said);
	if (length >= size)
		return error_set(err, -ENAMETOOLONG,
				 "cannot make \"%s\": the name of \"%s\" is longer than an image "
				 "can hold",
				 path, base);
	return 0;
}
