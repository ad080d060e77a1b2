/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: a description's paths. Out: open descriptors, each with the rights its use needs and no more,
 * or one sentence about the first that cannot be had. A path is looked at before it is opened,
 * because opening a FIFO or a tape would block or act.
 */
#include "mgmt/local/open.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>

#define KVM_PATH "/dev/kvm"

static struct grant *grant_new(struct grants *grants, const char *name)
{
	struct grant *grant = &grants->list[grants->n_grants++];

	*grant = (struct grant){.fd = -1};
	snprintf(grant->name, sizeof(grant->name), "%s", name);
	return grant;
}

void grants_plan_path(struct grants *grants, const char *name, const char *path, int flags)
{
	struct grant *grant = grant_new(grants, name);

	grant->path = path;
	grant->flags = flags;
}

/* A firmware is to a VMM what a kernel is. */
static void kernel_plan(struct grants *grants, const struct vm_description *vm)
{
	grants_plan_path(grants, VM_FD_KERNEL, vm->firmware ? vm->firmware : vm->kernel, O_RDONLY);
	if (vm->firmware)
		grants->list[grants->n_grants - 1].what = "firmware";
}

static const char *grant_what(const struct grant *grant)
{
	return grant->what ? grant->what : grant->name;
}

void grants_plan(struct grants *grants, const struct vm_description *vm)
{
	grants->n_grants = 0;
	grants_plan_path(grants, VM_FD_KVM, KVM_PATH, O_RDWR);
	kernel_plan(grants, vm);
	if (vm->initrd)
		grants_plan_path(grants, VM_FD_INITRD, vm->initrd, O_RDONLY);
	for (uint32_t i = 0; i < vm->n_disks; i++) {
		char name[NAMED_FDS_LENGTH];

		snprintf(name, sizeof(name), VM_FD_DISK "%u", i);
		grants_plan_path(grants, name, vm->disks[i].path,
				 (vm->disks[i].readonly ? O_RDONLY : O_RDWR) |
					 (vm->disks[i].direct ? O_DIRECT : 0));
	}
	if (vm->console.kind == VM_CONSOLE_FILE)
		grants_plan_path(grants, VM_FD_CONSOLE, vm->console.path,
				 O_WRONLY | O_APPEND | O_CREAT);
}

static bool grant_is_disk(const struct grant *grant)
{
	return !strncmp(grant->name, VM_FD_DISK, strlen(VM_FD_DISK));
}

/* Not an image under one, which several may share. */
static bool grant_is_top(const struct grant *grant)
{
	return grant_is_disk(grant) && !strchr(grant->name, VM_FD_BACKING[0]);
}

static int kvm_refuse(int code, struct error *err)
{
	const char *what = "`corral doctor` says what is missing";

	if (code == -EACCES || code == -EPERM)
		what = "become a member of its group (`sudo usermod -aG kvm $USER`, then sign in "
		       "again)";
	return error_set(err, code, "cannot open " KVM_PATH ": %s; %s", strerror(-code), what);
}

/* What to do about it, where that is known. */
static const char *advice(const struct grant *grant, int code)
{
	if (code == -EACCES && grant_is_disk(grant) && (grant->flags & O_ACCMODE) == O_RDWR)
		return "; give yourself read and write rights on it, or add readonly=on";
	if (code == -EACCES && (grant->flags & O_ACCMODE) == O_RDONLY)
		return "; give yourself the right to read it";
	if (code == -EROFS)
		return "; add readonly=on";
	if (code == -EINVAL && (grant->flags & O_DIRECT))
		return "; its file system has no direct I/O, leave out direct=on";
	return "";
}

static int grant_refuse(const struct grant *grant, int code, struct error *err)
{
	if (!strcmp(grant->name, VM_FD_KVM))
		return kvm_refuse(code, err);
	return error_set(err, code, "cannot open %s \"%s\": %s%s", grant_what(grant), grant->path,
			 strerror(-code), advice(grant, code));
}

/* Kernel and initrd are regular files, a disk may be a block device too. */
static int grant_check_kind(struct grant *grant, struct error *err)
{
	struct stat st;

	if (stat(grant->path, &st) < 0)
		return grant_refuse(grant, -errno, err);
	if (S_ISDIR(st.st_mode))
		return error_set(err, -EISDIR,
				 "cannot use %s \"%s\": it is a directory, not a file",
				 grant_what(grant), grant->path);
	if (!S_ISREG(st.st_mode) && !(grant_is_disk(grant) && S_ISBLK(st.st_mode)))
		return error_set(err, -EINVAL, "cannot use %s \"%s\": it is not a regular file%s",
				 grant_what(grant), grant->path,
				 grant_is_disk(grant) ? " or a block device" : "");
	grant->dev = S_ISBLK(st.st_mode) ? 0 : st.st_dev;
	grant->ino = S_ISBLK(st.st_mode) ? st.st_rdev : st.st_ino;
	return 0;
}

/* A console file need not be there yet; a FIFO would block until somebody reads. */
static int console_check_kind(const struct grant *grant, struct error *err)
{
	struct stat st;

	if (stat(grant->path, &st) < 0 || S_ISREG(st.st_mode) || S_ISCHR(st.st_mode))
		return 0;
	return error_set(err, -EINVAL, "cannot use console \"%s\": it is not a regular file",
			 grant->path);
}

static int grant_check_twice(const struct grants *grants, const struct grant *disk,
			     struct error *err)
{
	for (const struct grant *other = grants->list; other < disk; other++)
		if (grant_is_top(other) && other->dev == disk->dev && other->ino == disk->ino)
			return error_set(err, -EBUSY,
					 "%s \"%s\" is the same as %s: give each disk once",
					 disk->name, disk->path, other->name);
	return 0;
}

static int grant_open(const struct grants *grants, struct grant *grant, struct error *err)
{
	int r = 0;

	if (!strcmp(grant->name, VM_FD_CONSOLE))
		r = console_check_kind(grant, err);
	else if (strcmp(grant->name, VM_FD_KVM))
		r = grant_check_kind(grant, err);
	if (r >= 0 && grant_is_top(grant))
		r = grant_check_twice(grants, grant, err);
	if (r < 0)
		return r;
	grant->fd = open(grant->path, grant->flags | O_CLOEXEC | O_NOCTTY, 0666);
	return grant->fd < 0 ? grant_refuse(grant, -errno, err) : 0;
}

int grants_open(struct grants *grants, struct error *err)
{
	for (uint32_t i = 0; i < grants->n_grants; i++) {
		struct grant *grant = &grants->list[i];
		int r = grant->path && grant->fd < 0 ? grant_open(grants, grant, err) : 0;

		if (r < 0)
			return r;
	}
	return 0;
}

void grants_add(struct grants *grants, const char *name, int fd)
{
	grant_new(grants, name)->fd = fd;
}

void grants_give(struct grants *grants, const char *name, int fd)
{
	for (uint32_t i = 0; i < grants->n_grants; i++)
		if (!strcmp(grants->list[i].name, name))
			grants->list[i].fd = fd;
}

void grants_names(const struct grants *grants, char *text, size_t size)
{
	size_t used = 0;

	text[0] = '\0';
	for (uint32_t i = 0; i < grants->n_grants && used < size; i++)
		used += snprintf(text + used, size - used, "%s%s", i ? "," : "",
				 grants->list[i].name);
}

void grants_print(const struct grants *grants, FILE *file)
{
	static const char *const rights[] = {"read", "write", "read and write"};

	fprintf(file, "would open:\n");
	for (uint32_t i = 0; i < grants->n_grants; i++) {
		const struct grant *grant = &grants->list[i];

		fprintf(file, "  %-8s %s (%s%s)\n", grant_what(grant), grant->path,
			rights[grant->flags & O_ACCMODE],
			grant->flags & O_DIRECT ? ", past the page cache" : "");
	}
}

void grants_close(struct grants *grants)
{
	for (uint32_t i = 0; i < grants->n_grants; i++)
		grants->list[i].fd = fd_close(grants->list[i].fd);
}
