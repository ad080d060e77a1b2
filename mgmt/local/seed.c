/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: the files --cloud-init names. Out: an ISO image, written by libarchive, which is loaded when
 * it is needed and not before: a start without a seed pays nothing for it. What the files say is
 * between the user and cloud-init; only what it would silently pass over is warned of.
 */
#include "mgmt/local/seed.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/local.h"
#include "mgmt/local/rundir.h"
#include "proto/vm.h"

#define SEED_FILE_MAX (1 << 20)
#define SEED_LABEL    "cidata"
#define LIBRARY       "libarchive.so.13"

/* The few functions we use; their names are those of libarchive 3. */
struct archive_calls {
	void *(*write_new)(void);
	int (*write_set_format_iso9660)(void *archive);
	int (*write_set_format_option)(void *archive, const char *module, const char *option,
				       const char *value);
	int (*write_open_fd)(void *archive, int fd);
	int (*write_header)(void *archive, void *entry);
	ssize_t (*write_data)(void *archive, const void *data, size_t size);
	int (*write_close)(void *archive);
	int (*write_free)(void *archive);
	const char *(*error_string)(void *archive);
	void *(*entry_new)(void);
	void (*entry_free)(void *entry);
	void (*entry_set_pathname)(void *entry, const char *path);
	void (*entry_set_size)(void *entry, int64_t size);
	void (*entry_set_filetype)(void *entry, unsigned int type);
	void (*entry_set_perm)(void *entry, mode_t mode);
	void (*entry_set_mtime)(void *entry, time_t seconds, long nanoseconds);
};

static const struct {
	const char *name;
	size_t offset;
} archive_names[] = {
	{"archive_write_new", offsetof(struct archive_calls, write_new)},
	{"archive_write_set_format_iso9660",
	 offsetof(struct archive_calls, write_set_format_iso9660)},
	{"archive_write_set_format_option",
	 offsetof(struct archive_calls, write_set_format_option)},
	{"archive_write_open_fd", offsetof(struct archive_calls, write_open_fd)},
	{"archive_write_header", offsetof(struct archive_calls, write_header)},
	{"archive_write_data", offsetof(struct archive_calls, write_data)},
	{"archive_write_close", offsetof(struct archive_calls, write_close)},
	{"archive_write_free", offsetof(struct archive_calls, write_free)},
	{"archive_error_string", offsetof(struct archive_calls, error_string)},
	{"archive_entry_new", offsetof(struct archive_calls, entry_new)},
	{"archive_entry_free", offsetof(struct archive_calls, entry_free)},
	{"archive_entry_set_pathname", offsetof(struct archive_calls, entry_set_pathname)},
	{"archive_entry_set_size", offsetof(struct archive_calls, entry_set_size)},
	{"archive_entry_set_filetype", offsetof(struct archive_calls, entry_set_filetype)},
	{"archive_entry_set_perm", offsetof(struct archive_calls, entry_set_perm)},
	{"archive_entry_set_mtime", offsetof(struct archive_calls, entry_set_mtime)},
};

/* Stays loaded: we are a process of one task. */
static int archive_load(struct archive_calls *calls, struct error *err)
{
	void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);

	if (!library)
		return error_set(err, -ENOENT,
				 "cannot make the disk for cloud-init: " LIBRARY
				 " is not installed; `sudo apt install libarchive13`");
	for (size_t i = 0; i < ARRAY_SIZE(archive_names); i++) {
		void *call = dlsym(library, archive_names[i].name);

		if (!call)
			return error_set(err, -ENOSYS,
					 "cannot make the disk for cloud-init: " LIBRARY
					 " has no %s",
					 archive_names[i].name);
		memcpy((char *)calls + archive_names[i].offset, &call, sizeof(call));
	}
	return 0;
}

struct seed_file {
	const char *name; /* in the image */
	char *text;       /* owned */
	size_t size;
};

static int file_read(struct seed_file *file, const char *path, struct error *err)
{
	_cleanup_(fd_closep) int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	struct stat st;
	int r;

	if (fd < 0 || fstat(fd, &st) < 0)
		return error_set(err, -errno, "cannot open %s \"%s\" for cloud-init: %s",
				 file->name, path, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return error_set(err, -EINVAL,
				 "cannot use %s \"%s\" for cloud-init: it is not a regular file",
				 file->name, path);
	r = fd_read_all(fd, SEED_FILE_MAX, &file->text, &file->size);
	if (r == -EFBIG)
		return error_set(err, r, "%s \"%s\" is too large for cloud-init, at most 1 MiB",
				 file->name, path);
	return r < 0 ? error_set(err, r, "cannot read %s \"%s\" for cloud-init: %s", file->name,
				 path, strerror(-r))
		     : 0;
}

/* cloud-init reads on past anything else without a word. */
static void user_data_warn(const struct seed_file *file, const char *path)
{
	static const char *const starts[] = {
		"#cloud-config",       "#!",
		"## template:",        "#include",
		"#cloud-boothook",     "#part-handler",
		"#upstart-job",        "Content-Type:",
		"MIME-Version:",       "From ",
		"\x1f\x8b" /* gzip */,
	};

	for (size_t i = 0; i < ARRAY_SIZE(starts); i++)
		if (!strncasecmp(file->text, starts[i], strlen(starts[i])))
			return;
	local_say("user-data \"%s\" does not begin with \"#cloud-config\", \"#!\" or a MIME "
		  "header: cloud-init will not know what to do with it",
		  path);
}

/* The name is an instance of its own: cloud-init acts once an instance. A host name has no '_' and
 * no '.'. */
static int meta_data_make(struct seed_file *file, const char *name)
{
	char host[VM_NAME_MAX + 1];
	int n;

	snprintf(host, sizeof(host), "%s", name);
	for (char *c = host; *c; c++)
		if (*c == '_' || *c == '.')
			*c = '-';
	n = asprintf(&file->text, "instance-id: \"%s\"\nlocal-hostname: \"%s\"\n", name, host);
	if (n < 0) {
		file->text = NULL;
		return -ENOMEM;
	}
	file->size = n;
	return 0;
}

enum { USER_DATA, META_DATA, NETWORK, SEED_FILES };

static int files_read(struct seed_file *files, const struct vm_description *vm, struct error *err)
{
	const struct vm_cloud_init *from = &vm->cloud_init;
	int r = file_read(&files[USER_DATA], from->user_data, err);

	if (r >= 0)
		user_data_warn(&files[USER_DATA], from->user_data);
	if (r >= 0 && from->meta_data)
		r = file_read(&files[META_DATA], from->meta_data, err);
	else if (r >= 0 && meta_data_make(&files[META_DATA], vm->name) < 0)
		r = error_set(err, -ENOMEM, "cannot make the disk for cloud-init: out of memory");
	if (r >= 0 && from->network)
		r = file_read(&files[NETWORK], from->network, err);
	return r;
}

static bool file_write(const struct archive_calls *calls, void *archive,
		       const struct seed_file *file)
{
	void *entry = calls->entry_new();
	bool done;

	if (!entry)
		return false;
	calls->entry_set_pathname(entry, file->name);
	calls->entry_set_size(entry, file->size);
	calls->entry_set_filetype(entry, S_IFREG);
	calls->entry_set_perm(entry, 0444);
	calls->entry_set_mtime(entry, time(NULL), 0);
	done = calls->write_header(archive, entry) >= 0 &&
	       calls->write_data(archive, file->text, file->size) == (ssize_t)file->size;
	calls->entry_free(entry);
	return done;
}

/* Rock Ridge and Joliet are libarchive's own choice; either keeps the names as cloud-init has them.
 */
static bool image_write(const struct archive_calls *calls, void *archive, int fd,
			const struct seed_file *files)
{
	if (calls->write_set_format_iso9660(archive) < 0 ||
	    calls->write_set_format_option(archive, "iso9660", "volume-id", SEED_LABEL) < 0 ||
	    calls->write_open_fd(archive, fd) < 0)
		return false;
	for (size_t i = 0; i < SEED_FILES; i++)
		if (files[i].text && !file_write(calls, archive, &files[i]))
			return false;
	return calls->write_close(archive) >= 0;
}

static int image_make(const struct rundir *dir, const struct seed_file *files, struct error *err)
{
	struct archive_calls calls;
	_cleanup_(fd_closep) int fd = -1;
	void *archive;
	int r = archive_load(&calls, err);

	if (r < 0)
		return r;
	fd = rundir_create(dir, RUNDIR_SEED, O_WRONLY);
	if (fd < 0)
		return error_set(err, fd, "cannot write \"%s/" RUNDIR_SEED "\": %s", dir->path,
				 strerror(-fd));
	archive = calls.write_new();
	if (!archive)
		return error_set(err, -ENOMEM,
				 "cannot make the disk for cloud-init: out of memory");
	if (!image_write(&calls, archive, fd, files))
		r = error_set(err, -EIO, "cannot write \"%s/" RUNDIR_SEED "\": %s", dir->path,
			      calls.error_string(archive) ?: "libarchive gives no reason");
	calls.write_free(archive);
	return r;
}

static int disk_add(const struct rundir *dir, struct vm_description *vm, struct error *err)
{
	struct vm_disk *disk = &vm->disks[vm->n_disks];
	char path[RUNDIR_PATH_MAX + sizeof("/" RUNDIR_SEED)];
	int r = table_init(&vm_disk_table, disk);

	if (r < 0)
		return error_set(err, r, "cannot add a disk: %s", strerror(-r));
	vm->n_disks++;
	snprintf(path, sizeof(path), "%s/" RUNDIR_SEED, dir->path);
	disk->readonly = true;
	return table_set_text(&vm_disk_table, disk, "path", path, err);
}

int seed_add(const struct rundir *dir, struct vm_description *vm, struct error *err)
{
	struct seed_file files[SEED_FILES] = {
		{.name = "user-data"}, {.name = "meta-data"}, {.name = "network-config"}};
	int r;

	if (!vm->cloud_init.user_data)
		return 0;
	if (vm->n_disks == VM_DISKS_MAX)
		return error_set(err, -E2BIG,
				 "no room for cloud-init's disk: a VM has at most %d disks",
				 VM_DISKS_MAX);
	r = files_read(files, vm, err);
	if (r >= 0)
		r = image_make(dir, files, err);
	for (size_t i = 0; i < SEED_FILES; i++)
		free(files[i].text);
	return r < 0 ? r : disk_add(dir, vm, err);
}

void seed_print(const struct vm_description *vm, FILE *file)
{
	const struct vm_cloud_init *files = &vm->cloud_init;

	if (!files->user_data)
		return;
	fprintf(file, "  " VM_FD_DISK "%-4u made in the run directory from \"%s\"", vm->n_disks,
		files->user_data);
	if (files->meta_data)
		fprintf(file, ", \"%s\"", files->meta_data);
	if (files->network)
		fprintf(file, ", \"%s\"", files->network);
	fprintf(file, " (read)\n");
}
