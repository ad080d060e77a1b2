/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names to directories, and who owns them. In: a name. Out: an open, locked directory that nobody
 * else uses, or a sentence. A dead VM leaves its directory unlocked: whoever wants the name next
 * takes it over without a word. Whoever removes a directory holds its lock and unlinks the lock
 * file last, so a lock counts only while its file is still the one found by name.
 */
#include "mgmt/local/rundir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/socket.h"

/* How long a VMM that was just killed may take to give its memory and disks back. */
#define RUNDIR_DYING_MS 1000
#define STEP_MS         5
#define RUNDIR_TRIES    1000

static const char *const rundir_files[] = {
	RUNDIR_CONTROL,     RUNDIR_CONTROL_PATH, RUNDIR_EXIT, RUNDIR_CONSOLE_LOG, RUNDIR_VMM_LOG,
	RUNDIR_DESCRIPTION, RUNDIR_PID,          RUNDIR_SEED, RUNDIR_KNOWN_HOSTS, RUNDIR_VSOCK,
};

static int base_path(char *path, size_t size)
{
	const char *own = getenv("CORRAL_RUN_DIRECTORY"), *session = getenv("XDG_RUNTIME_DIR");
	int n;

	if (own && own[0])
		n = snprintf(path, size, "%s", own);
	else if (!geteuid())
		n = snprintf(path, size, "/run/corral");
	else if (session && session[0] == '/')
		n = snprintf(path, size, "%s/corral", session);
	else
		n = snprintf(path, size, "/tmp/corral-%u", geteuid());
	return (size_t)n < size ? 0 : -ENAMETOOLONG;
}

/* The directory may lie in /tmp, where anyone can be first to make it. */
static int base_check(int fd, const char *path, struct error *err)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return error_set(err, -errno, "cannot look at run directory \"%s\": %s", path,
				 strerror(errno));
	if (st.st_uid != geteuid() || (st.st_mode & 022))
		return error_set(
			err, -EPERM,
			"run directory \"%s\" can be written by others: remove it, or name "
			"another in CORRAL_RUN_DIRECTORY",
			path);
	return 0;
}

static int base_open(struct rundir *dir, bool create, struct error *err)
{
	int r = base_path(dir->path, sizeof(dir->path));

	if (r < 0)
		return error_set(err, r, "the path of the run directory is too long");
	if (create && mkdir(dir->path, geteuid() ? 0700 : 0755) < 0 && errno != EEXIST)
		return error_set(err, -errno,
				 "cannot make run directory \"%s\": %s; name another in "
				 "CORRAL_RUN_DIRECTORY",
				 dir->path, strerror(errno));
	dir->base_fd = open(dir->path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (dir->base_fd < 0)
		return error_set(err, -errno, "cannot open run directory \"%s\": %s", dir->path,
				 strerror(errno));
	return base_check(dir->base_fd, dir->path, err);
}

static bool name_valid(const char *name)
{
	size_t length = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				     "0123456789-_.");

	return length && length <= VM_NAME_MAX && !name[length] && !strchr("-_.", name[0]);
}

static int name_set(struct rundir *dir, const char *name, struct error *err)
{
	size_t used = strlen(dir->path);

	if (!name_valid(name))
		return error_set(err, -EINVAL,
				 "\"%.64s\" is no name: letters, digits, '-', '_' and '.', at most "
				 "%d, a letter or digit first",
				 name, VM_NAME_MAX);
	snprintf(dir->name, sizeof(dir->name), "%s", name);
	if ((size_t)snprintf(dir->path + used, sizeof(dir->path) - used, "/%s", name) >=
	    sizeof(dir->path) - used)
		return error_set(err, -ENAMETOOLONG, "the path of the run directory is too long");
	return 0;
}

/* A reader of the lock (`corral wait`) holds it for an instant only, and is no VM. */
static int lock_try(int fd)
{
	for (int i = 0; i < RUNDIR_TRIES; i++) {
		struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};

		if (!fcntl(fd, F_OFD_SETLK, &lock))
			return 0;
		if (errno != EAGAIN && errno != EACCES)
			return -errno;
		if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
			return -errno;
		if (lock.l_type == F_WRLCK)
			return -EBUSY;
		sched_yield();
	}
	return -EBUSY;
}

/* A VMM that was killed a moment ago still holds the lock while its memory is given back. */
static int lock_take(struct rundir *dir)
{
	int r = lock_try(dir->lock_fd), pid;
	struct pollfd gone = {.fd = -1, .events = POLLIN};

	if (r != -EBUSY)
		return r;
	pid = rundir_pid(dir);
	if (pid)
		gone.fd = syscall(SYS_pidfd_open, pid, 0);
	if (gone.fd >= 0 && poll(&gone, 1, RUNDIR_DYING_MS) == 0) {
		fd_close(gone.fd);
		return -EBUSY; /* it lives */
	}
	fd_close(gone.fd);
	/* What is left of it has no event to wait for; nor has one whose pid was never noted. */
	for (int waited = 0; (r = lock_try(dir->lock_fd)) == -EBUSY; waited += STEP_MS) {
		if (waited >= RUNDIR_DYING_MS)
			break;
		poll(NULL, 0, STEP_MS);
	}
	return r;
}

/* The directory may have been removed between our opening and our lock. */
static bool lock_is_ours(const struct rundir *dir)
{
	char path[sizeof(dir->name) + sizeof("/" RUNDIR_LOCK)];
	struct stat by_name, by_fd;

	snprintf(path, sizeof(path), "%s/" RUNDIR_LOCK, dir->name);
	return !fstatat(dir->base_fd, path, &by_name, AT_SYMLINK_NOFOLLOW) &&
	       !fstat(dir->lock_fd, &by_fd) && by_name.st_dev == by_fd.st_dev &&
	       by_name.st_ino == by_fd.st_ino;
}

/* A socket at a path of the user's own: only ours to remove if nobody listens there. */
static void control_remove(const struct rundir *dir)
{
	char path[RUNDIR_PATH_MAX];

	if (!faccessat(dir->fd, RUNDIR_CONTROL_PATH, F_OK, 0) &&
	    rundir_control_path(dir, path, sizeof(path)) >= 0)
		socket_remove_dead(path);
}

static void files_remove(const struct rundir *dir)
{
	control_remove(dir);
	for (size_t i = 0; i < ARRAY_SIZE(rundir_files); i++)
		unlinkat(dir->fd, rundir_files[i], 0);
	unlinkat(dir->fd, RUNDIR_EMPTY, AT_REMOVEDIR);
}

static int directory_open(struct rundir *dir, bool *ret_made)
{
	*ret_made = !mkdirat(dir->base_fd, dir->name, 0700);
	if (!*ret_made && errno != EEXIST)
		return -errno;
	dir->fd = openat(dir->base_fd, dir->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (dir->fd < 0)
		return -errno;
	dir->lock_fd =
		openat(dir->fd, RUNDIR_LOCK, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (dir->lock_fd < 0 && *ret_made) {
		int r = -errno;

		unlinkat(dir->base_fd, dir->name, AT_REMOVEDIR);
		return r;
	}
	return dir->lock_fd < 0 ? -errno : 0;
}

static int directory_take(struct rundir *dir)
{
	for (int i = 0; i < RUNDIR_TRIES; i++) {
		bool made = false;
		int r = directory_open(dir, &made);

		if (!r)
			r = lock_take(dir);
		if (!r && lock_is_ours(dir)) {
			if (!made)
				files_remove(dir);
			return 0;
		}
		dir->fd = fd_close(dir->fd);
		dir->lock_fd = fd_close(dir->lock_fd);
		if (r < 0 && r != -ENOENT)
			return r;
	}
	return -EBUSY;
}

int rundir_take(struct rundir *dir, const char *name, struct error *err)
{
	int r;

	*dir = RUNDIR_NULL;
	r = base_open(dir, true, err);
	if (r >= 0)
		r = name_set(dir, name, err);
	if (r >= 0) {
		r = directory_take(dir);
		if (r == -EBUSY)
			error_set(
				err, r,
				"a VM named \"%s\" is running: give another --name, or end it with "
				"`corral kill %s`",
				name, name);
		else if (r < 0)
			error_set(err, r, "cannot make run directory \"%s\": %s", dir->path,
				  strerror(-r));
	}
	if (r < 0)
		rundir_close(dir);
	return r;
}

int rundir_open(struct rundir *dir, const char *name, struct error *err)
{
	int r;

	*dir = RUNDIR_NULL;
	r = base_open(dir, false, err);
	if (r == -ENOENT)
		error_set(err, r, "no VM named \"%.64s\", see `corral ps`", name);
	if (r >= 0)
		r = name_set(dir, name, err);
	if (r >= 0) {
		dir->fd = openat(dir->base_fd, dir->name,
				 O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (dir->fd >= 0)
			dir->lock_fd =
				openat(dir->fd, RUNDIR_LOCK, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
		if (dir->lock_fd < 0)
			r = error_set(err, -errno,
				      errno == ENOENT ? "no VM named \"%s\", see `corral ps`"
						      : "cannot open the run directory of \"%s\"",
				      name);
	}
	if (r < 0)
		rundir_close(dir);
	return r;
}

bool rundir_alive(const struct rundir *dir)
{
	struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_len = 1};

	return !fcntl(dir->lock_fd, F_OFD_GETLK, &lock) && lock.l_type == F_WRLCK;
}

int rundir_wait(const struct rundir *dir)
{
	struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_len = 1};

	while (fcntl(dir->lock_fd, F_OFD_SETLKW, &lock) < 0)
		if (errno != EINTR)
			return -errno;
	lock.l_type = F_UNLCK;
	return fcntl(dir->lock_fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

void rundir_remove(struct rundir *dir)
{
	files_remove(dir);
	unlinkat(dir->fd, RUNDIR_LOCK, 0);
	unlinkat(dir->base_fd, dir->name, AT_REMOVEDIR);
}

void rundir_close(struct rundir *dir)
{
	dir->lock_fd = fd_close(dir->lock_fd);
	dir->fd = fd_close(dir->fd);
	dir->base_fd = fd_close(dir->base_fd);
}

int rundir_create(const struct rundir *dir, const char *file, int flags)
{
	int fd = openat(dir->fd, file, flags | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);

	return fd < 0 ? -errno : fd;
}

int rundir_write(const struct rundir *dir, const char *file, const char *text, size_t size)
{
	_cleanup_(fd_closep) int fd = rundir_create(dir, file, O_WRONLY);

	return fd < 0 ? fd : fd_write_full(fd, text, size);
}

int rundir_pid(const struct rundir *dir)
{
	_cleanup_(fd_closep) int fd =
		openat(dir->fd, RUNDIR_PID, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	char text[16] = "";

	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		return 0;
	return MAX(atoi(text), 0);
}

int rundir_control_path(const struct rundir *dir, char *path, size_t size)
{
	_cleanup_(fd_closep) int fd =
		openat(dir->fd, RUNDIR_CONTROL_PATH, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		n = snprintf(path, size, "%s/" RUNDIR_CONTROL, dir->path);
	else
		n = read(fd, path, size);
	if (n < 0)
		return -errno;
	if ((size_t)n >= size)
		return -ENAMETOOLONG;
	path[n] = '\0';
	return 0;
}

static int name_filter(const struct dirent *entry)
{
	return name_valid(entry->d_name);
}

int rundir_each(int (*each)(const char *name, void *data), void *data, struct error *err)
{
	struct rundir dir = RUNDIR_NULL;
	struct dirent **names;
	int n, r = base_open(&dir, false, err);

	rundir_close(&dir);
	if (r == -ENOENT)
		return 0; /* nothing was ever started here */
	if (r < 0)
		return r;
	n = scandir(dir.path, &names, name_filter, alphasort);
	if (n < 0)
		return error_set(err, -errno, "cannot list \"%s\": %s", dir.path, strerror(errno));
	for (int i = 0; i < n; i++) {
		if (!r)
			r = each(names[i]->d_name, data);
		free(names[i]);
	}
	free(names);
	return r;
}
