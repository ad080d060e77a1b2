/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: a job and its modules. Out: a cpio archive ("newc") in a memory file: what the kernel unpacks
 * into its first root. corral-init is a part of our own binary, so that no file has to be found.
 */
#include "mgmt/local/guest-initrd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/cursor.h"
#include "base/fd.h"
#include "mgmt/local/guest-modules.h"
#include "mgmt/local/guest-root.h"
#include "mgmt/local/job.h"

#define MODULE_MAX (64 << 20)

/* Made by the linker of the file of that name. */
extern const char _binary_corral_init_start[], _binary_corral_init_end[];

struct archive {
	int fd;
	off_t at;
	uint32_t n; /* inode numbers */
	int failed;
};

static void archive_write(struct archive *archive, const void *data, size_t size)
{
	if (archive->failed >= 0)
		archive->failed = fd_write_full(archive->fd, data, size);
	archive->at += size;
}

static void archive_pad(struct archive *archive)
{
	static const char zeroes[4];

	archive_write(archive, zeroes, align_up(archive->at, 4) - archive->at);
}

/* One entry: its header, its name, its bytes. A character device has its number instead. */
static void archive_add(struct archive *archive, const char *name, mode_t mode, dev_t device,
			const void *data, size_t size)
{
	char header[128];
	int n = snprintf(header, sizeof(header),
			 "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", ++archive->n,
			 mode, 0, 0, 1, 0, (unsigned)size, 0, 0, major(device), minor(device),
			 (unsigned)strlen(name) + 1, 0);

	archive_write(archive, header, n);
	archive_write(archive, name, strlen(name) + 1);
	archive_pad(archive);
	if (size)
		archive_write(archive, data, size);
	archive_pad(archive);
}

static int archive_add_module(struct archive *archive, const char *directory, const char *file,
			      uint32_t number, struct error *err)
{
	_cleanup_(fd_closep) int fd = -1;
	_cleanup_(freep) char *data = NULL;
	char path[PATH_MAX + 256], name[32];
	size_t size;
	int r;

	snprintf(path, sizeof(path), "%s/%s", directory, file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	r = fd < 0 ? -errno : fd_read_all(fd, MODULE_MAX, &data, &size);
	if (r < 0)
		return error_set(err, r, "cannot read the kernel module \"%s\": %s", path,
				 strerror(-r));
	snprintf(name, sizeof(name), "%s/%02u", &JOB_MODULES[1], number);
	archive_add(archive, name, S_IFREG | 0444, 0, data, size);
	return 0;
}

static void text_put(struct cursor *out, const char *text)
{
	cursor_put_bytes(out, text, strlen(text) + 1);
}

/* /job, as init/protocol.h has it. */
static int archive_add_job(struct archive *archive, const struct job *job, struct error *err)
{
	_cleanup_(freep) char *text = malloc(JOB_FILE_MAX);
	struct cursor out = cursor_writer(text, text ? JOB_FILE_MAX : 0);
	uint32_t n = 0;

	while (job->command[n])
		n++;
	cursor_put_u32(&out, n);
	cursor_put_u32(&out, job->n_environment);
	text_put(&out, job->file_system);
	text_put(&out, guest_root_options(job->file_system));
	text_put(&out, job->directory ? job->directory : "/");
	for (uint32_t i = 0; i < n; i++)
		text_put(&out, job->command[i]);
	for (uint32_t i = 0; i < job->n_environment; i++)
		text_put(&out, job->environment[i]);
	if (!text)
		return error_set(err, -ENOMEM, "cannot write the job: out of memory");
	if (cursor_status(&out) < 0 || n > JOB_WORDS_MAX)
		return error_set(err, -E2BIG,
				 "the command is too long: it has at most %d arguments and, with "
				 "its environment, %d KiB",
				 JOB_WORDS_MAX, JOB_FILE_MAX / 1024);
	archive_add(archive, &JOB_FILE[1], S_IFREG | 0400, 0, text, out.at);
	return 0;
}

static int archive_fill(struct archive *archive, const struct job *job,
			const struct guest_modules *modules, struct error *err)
{
	int r = 0;

	archive_add(archive, "dev", S_IFDIR | 0755, 0, NULL, 0);
	archive_add(archive, "dev/console", S_IFCHR | 0600, makedev(5, 1), NULL, 0);
	archive_add(archive, &JOB_MODULES[1], S_IFDIR | 0755, 0, NULL, 0);
	for (uint32_t i = 0; r >= 0 && i < modules->n_files; i++)
		r = archive_add_module(archive, modules->directory, modules->files[i], i, err);
	if (r >= 0)
		r = archive_add_job(archive, job, err);
	if (r < 0)
		return r;
	archive_add(archive, "init", S_IFREG | 0555, 0, _binary_corral_init_start,
		    _binary_corral_init_end - _binary_corral_init_start);
	archive_add(archive, "TRAILER!!!", 0, 0, NULL, 0);
	if (archive->failed < 0)
		return error_set(err, archive->failed, "cannot write the initrd: %s",
				 strerror(-archive->failed));
	return 0;
}

int guest_initrd_make(const struct job *job, const struct guest_modules *modules, int *ret_fd,
		      struct error *err)
{
	_cleanup_(fd_closep) int fd = memfd_create("corral-initrd", MFD_CLOEXEC);
	struct archive archive = {.fd = fd};
	int r;

	if (fd < 0)
		return error_set(err, -errno, "cannot make an initrd: %s", strerror(errno));
	r = archive_fill(&archive, job, modules, err);
	if (r < 0)
		return r;
	if (lseek(fd, 0, SEEK_SET) < 0)
		return error_set(err, -errno, "cannot make an initrd: %s", strerror(errno));
	*ret_fd = take_fd(fd);
	return 0;
}
