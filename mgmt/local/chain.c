/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: open disks. Out: the same with all that is under them. corral-disk reads the images, which
 * may be hostile; here their names are only opened, and only where backing=allow says so. What an
 * image names is whatever its maker wanted to have read, so that is not the default.
 */
#include "mgmt/local/chain.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "mgmt/local/disk-tool.h"
#include "mgmt/local/local.h"
#include "mgmt/local/open.h"

#define LOOK_SIZE 4096 /* what direct I/O can read of the beginning */
/* Not in the kernel's list. */
#define GFS2_MAGIC 0x01161970
#define GPFS_MAGIC 0x47504653

/* What corral-disk says of one image. */
struct probed {
	json_t *json;       /* owned */
	const char *name;   /* of what is under it, NULL: nothing */
	const char *format; /* of that, NULL: it does not say */
};

static const char *const formats[] = {[VM_FORMAT_RAW] = "raw", [VM_FORMAT_QCOW2] = "qcow2"};

static int probe(int fd, const char *path, struct probed *probed, struct error *err)
{
	char number[16];
	const char *const argv[] = {"corral-disk", "probe",    "--fd",  number, "--name",
				    path,          "--format", "qcow2", NULL};
	_cleanup_(freep) char *text = NULL;
	const json_t *backing;
	int r;

	snprintf(number, sizeof(number), "%d", DISK_TOOL_FD);
	r = disk_tool_run(argv, fd, &text, err);
	if (r < 0)
		return r;
	probed->json = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
	if (!json_is_object(probed->json))
		return error_set(err, -EBADMSG, "corral-disk's answer about \"%s\" is no object",
				 path);
	backing = json_object_get(probed->json, "backing");
	probed->name = json_string_value(json_object_get(backing, "name"));
	probed->format = json_string_value(json_object_get(backing, "format"));
	if (json_is_object(backing) && (!probed->name || !probed->name[0]))
		return error_set(err, -EBADMSG, "corral-disk does not say on what \"%s\" stands",
				 path);
	return 0;
}

/* What the image says, or what was said of it. */
static const char *format_said(const struct vm_disk *disk, const struct probed *probed)
{
	static const char *const said[] = {NULL, "raw", "qcow2"};

	return probed->format ? probed->format : said[disk->backing_format];
}

static int format_find(const char *name, uint32_t *ret_format)
{
	for (uint32_t i = 0; i < ARRAY_SIZE(formats); i++) {
		if (strcmp(formats[i], name) != 0)
			continue;
		*ret_format = i;
		return 0;
	}
	return -EINVAL;
}

/* The sentence's beginning: which image it is. */
static int image_refuse(const char *path, int code, struct error *err, const char *format, ...)
	__printf(4, 5);

static int image_refuse(const char *path, int code, struct error *err, const char *format, ...)
{
	char why[400];
	va_list args;

	va_start(args, format);
	vsnprintf(why, sizeof(why), format, args);
	va_end(args);
	error_set(err, code, "cannot use disk image \"%s\": %s", path, why);
	text_make_printable(err->text);
	return code;
}

/* What is under the image at `path`, as the next of the disk's chain. */
static int chain_add(struct vm_disk *disk, const char *path, const struct probed *probed,
		     struct error *err)
{
	struct vm_under *under = &disk->chain[disk->n_chain];
	const char *said = format_said(disk, probed);
	uint32_t format;
	char *place;

	if (disk->backing != VM_BACKING_ALLOW)
		return image_refuse(path, -EPERM, err,
				    "it stands on \"%s\", which is not opened unless the disk says "
				    "backing=allow",
				    probed->name);
	if (disk->n_chain == VM_CHAIN_MAX)
		return image_refuse(path, -ELOOP, err, "more than %d images are under it",
				    VM_CHAIN_MAX);
	if (!said)
		return image_refuse(path, -EINVAL, err,
				    "it does not say which format \"%s\" has, on which it stands, "
				    "and that is never guessed: add backing-format=raw or qcow2",
				    probed->name);
	if (format_find(said, &format) < 0)
		return image_refuse(path, -ENOTSUP, err,
				    "it stands on \"%s\" of format \"%s\"; raw and qcow2 are known",
				    probed->name, said);
	errno = 0;
	place = chain_path(path, probed->name);
	if (!place && errno)
		return error_set(err, -ENOMEM, "cannot follow disk images: out of memory");
	if (!place)
		return image_refuse(path, -ENOTSUP, err, "it stands on \"%s\", which is no file",
				    probed->name);
	*under = (struct vm_under){place, format};
	disk->n_chain++;
	return 0;
}

/* No image under this disk is the same as another, or as the disk itself. */
static int chain_check_loop(const struct grants *grants, const struct grant *first,
			    const struct grant *last, struct error *err)
{
	for (const struct grant *at = grants->list; at < last; at++) {
		bool own =
			at == first || !strncmp(at->name, last->name, strcspn(last->name, "-") + 1);

		if (own && at->dev == last->dev && at->ino == last->ino)
			return error_set(
				err, -ELOOP,
				"cannot use disk image \"%s\": the images that it stands on "
				"come back to \"%s\"",
				first->path, at->path);
	}
	return 0;
}

static struct grant *grant_find(struct grants *grants, const char *name)
{
	for (uint32_t i = 0; i < grants->n_grants; i++)
		if (!strcmp(grants->list[i].name, name))
			return &grants->list[i];
	return NULL;
}

static struct grant *disk_grant(struct grants *grants, uint32_t i)
{
	char name[NAMED_FDS_LENGTH];

	snprintf(name, sizeof(name), VM_FD_DISK "%u", i);
	return grant_find(grants, name);
}

/* Descriptors that all disks' chains have taken so far. */
static uint32_t chains_length(const struct vm_description *vm)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < vm->n_disks; i++)
		n += vm->disks[i].n_chain;
	return n;
}

/* One level down: ret_fd is the image below, -1 if there is none. */
static int chain_step(struct grants *grants, struct vm_description *vm, uint32_t i, int fd,
		      int *ret_fd, struct error *err)
{
	struct vm_disk *disk = &vm->disks[i];
	const char *path = disk->n_chain ? disk->chain[disk->n_chain - 1].path : disk->path;
	struct probed probed = {};
	char name[NAMED_FDS_LENGTH];
	int r = probe(fd, path, &probed, err);

	*ret_fd = -1;
	if (r == 0 && probed.name)
		r = chain_add(disk, path, &probed, err);
	if (r < 0 || !probed.name) {
		json_decref(probed.json);
		return r;
	}
	json_decref(probed.json);
	if (chains_length(vm) > VM_CHAINS_MAX)
		return error_set(err, -E2BIG,
				 "the disks stand on more than %d images in all; bring some "
				 "together with `corral disk commit`",
				 VM_CHAINS_MAX);
	snprintf(name, sizeof(name), VM_FD_DISK "%u" VM_FD_BACKING "%u", i, disk->n_chain - 1);
	grants_plan_path(grants, name, disk->chain[disk->n_chain - 1].path,
			 O_RDONLY | (disk->direct ? O_DIRECT : 0));
	r = grants_open(grants, err);
	if (r < 0)
		return r;
	*ret_fd = grant_find(grants, name)->fd;
	return chain_check_loop(grants, disk_grant(grants, i), grant_find(grants, name), err);
}

static int chain_open(struct grants *grants, struct vm_description *vm, uint32_t i,
		      struct error *err)
{
	struct vm_disk *disk = &vm->disks[i];
	int fd = disk_grant(grants, i)->fd, r = 0;

	while (r == 0 && fd >= 0 &&
	       (disk->n_chain ? disk->chain[disk->n_chain - 1].format : disk->format) ==
		       VM_FORMAT_QCOW2)
		r = chain_step(grants, vm, i, fd, &fd, err);
	return r;
}

/* Only a word to a person: what is in the file is its guest's, and stays what it was said to be. */
static void hint_format(const struct vm_disk *disk, int fd)
{
	static _Alignas(LOOK_SIZE) char start[LOOK_SIZE];

	if (pread(fd, start, LOOK_SIZE, 0) >= 4 && !memcmp(start, "QFI\xfb", 4))
		local_say("disk \"%s\" is given as raw; it looks like qcow2: say format=qcow2 if "
			  "that is what it is",
			  disk->path);
}

/* Storage that several hosts write by: their page caches know nothing of each other. */
static bool is_shared(int fd)
{
	static const uint32_t shared[] = {NFS_SUPER_MAGIC,  SMB_SUPER_MAGIC,   SMB2_SUPER_MAGIC,
					  CIFS_SUPER_MAGIC, CEPH_SUPER_MAGIC,  FUSE_SUPER_MAGIC,
					  GFS2_MAGIC,       OCFS2_SUPER_MAGIC, GPFS_MAGIC,
					  AFS_SUPER_MAGIC,  CODA_SUPER_MAGIC};
	struct statfs fs;
	struct stat st;

	if (fstat(fd, &st) == 0 && S_ISBLK(st.st_mode))
		return true; /* nobody can tell */
	if (fstatfs(fd, &fs) < 0)
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(shared); i++)
		if ((uint32_t)fs.f_type == shared[i])
			return true;
	return false;
}

static int check_moved(const struct vm_disk *disk, int fd, struct error *err)
{
	if (!disk->inactive || disk->direct || !is_shared(fd))
		return 0;
	return error_set(err, -EINVAL,
			 "cannot take over disk \"%s\" from another host: it would read what its "
			 "page cache remembers; add direct=on, here and there",
			 disk->path);
}

static void chain_forget(struct vm_disk *disk)
{
	while (disk->n_chain > 0)
		free(disk->chain[--disk->n_chain].path);
}

static int path_complete(struct vm_disk *disk, struct grant *grant)
{
	char here[PATH_MAX], *text;

	if (disk->path[0] == '/')
		return 0;
	if (!getcwd(here, sizeof(here)))
		return -errno;
	if (asprintf(&text, "%s/%s", here, disk->path) < 0)
		return -ENOMEM;
	free(disk->path);
	grant->path = disk->path = text;
	return 0;
}

int chains_open(struct grants *grants, struct vm_description *vm, struct error *err)
{
	int r = 0;

	for (uint32_t i = 0; i < vm->n_disks; i++)
		chain_forget(&vm->disks[i]);
	for (uint32_t i = 0; i < vm->n_disks && r == 0; i++) {
		struct vm_disk *disk = &vm->disks[i];
		struct grant *grant = disk_grant(grants, i);

		r = check_moved(disk, grant->fd, err);
		if (r == 0 && disk->format == VM_FORMAT_RAW)
			hint_format(disk, grant->fd);
		if (r == 0)
			r = chain_open(grants, vm, i, err);
		if (r == 0 && (r = path_complete(disk, grant)) < 0)
			error_set(err, r, "cannot tell where disk \"%s\" is: %s", disk->path,
				  strerror(-r));
	}
	return r;
}

void chains_print(const struct vm_description *vm, FILE *file)
{
	for (uint32_t i = 0; i < vm->n_disks; i++)
		if (vm->disks[i].backing == VM_BACKING_ALLOW)
			fprintf(file, "  " VM_FD_DISK "%-4u what \"%s\" stands on (read)\n", i,
				vm->disks[i].path);
}
