/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: the words of `corral run --rootfs … -- COMMAND`. Out: the description of a guest that runs
 * it, and then, in job_prepare, the files that this guest is made of.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/flags.h"
#include "mgmt/local/guest-initrd.h"
#include "mgmt/local/guest-modules.h"
#include "mgmt/local/guest-root.h"
#include "mgmt/local/job.h"
#include "mgmt/local/options.h"

#define INITRD_NAME "(corral-init)"

/* What a kernel says when all goes well costs more than the rest of the boot; a crash is shown
 * whatever this says. Without KASLR it unpacks itself in place, and two traces of one crash have
 * the same addresses; clearing each allocation hides secrets that this guest has not. Nothing that
 * a command could miss is taken away, and --append comes later. */
#define APPEND                                                                             \
	"console=ttyS0 panic=-1 oops=panic quiet nokaslr init_on_alloc=0 8250.nr_uarts=1 " \
	"cryptomgr.notests rcupdate.rcu_expedited=1 random.trust_cpu=on"

int job_cut(struct job *job, int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (!strcmp(argv[i], "--")) {
			job->command = argv + i + 1;
			job->wanted = true;
			return i;
		}
	return argc;
}

int job_set_word(void *options, const struct flag *flag, const char *value, struct error *err)
{
	((struct run_options *)options)->job.wanted = true;
	return flag_set_word(options, flag, value, err);
}

int job_set_timeout(void *options, const struct flag *flag, const char *value, struct error *err)
{
	struct job *job = &((struct run_options *)options)->job;

	job->wanted = true;
	if (job_time_parse(value, &job->timeout_ms) < 0)
		return error_set(err, -EINVAL,
				 "%s: \"%s\" is no time: give seconds, or as 30s, 5m, 1h; at most "
				 "30 days",
				 flag->name, value);
	return 0;
}

/* What our own environment has of that name, with the name; NULL: nothing. */
static const char *environment_own(const char *name)
{
	size_t length = strlen(name);

	for (char **word = environ; *word; word++)
		if (!strncmp(*word, name, length) && (*word)[length] == '=')
			return *word;
	return NULL;
}

int job_set_environment(void *options, const struct flag *flag, const char *value,
			struct error *err)
{
	struct job *job = &((struct run_options *)options)->job;

	job->wanted = true;
	if (!value[0] || value[0] == '=')
		return error_set(err, -EINVAL,
				 "%s: \"%s\" is neither NAME=VALUE nor a NAME whose value is taken "
				 "from here",
				 flag->name, value);
	if (!strchr(value, '='))
		value = environment_own(value);
	if (!value) /* the guest has none either */
		return 0;
	/* --config has the flags read twice. */
	for (uint32_t i = 0; i < job->n_environment; i++)
		if (!strncmp(job->environment[i], value, strchr(value, '=') - value + 1)) {
			job->environment[i] = value;
			return 0;
		}
	if (job->n_environment == JOB_ENVIRONMENT_MAX)
		return error_set(err, -E2BIG, "%s: there may be %d of them", flag->name,
				 JOB_ENVIRONMENT_MAX);
	job->environment[job->n_environment++] = value;
	return 0;
}

/* What a program expects to find, unless it was given. */
static int environment_complete(struct job *job, struct error *err)
{
	static const struct flag default_flag = {.name = "--env"};
	static const char *const defaults[] = {
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
		"TERM=dumb"};

	for (size_t i = 0; i < ARRAY_SIZE(defaults); i++) {
		size_t length = strcspn(defaults[i], "=") + 1;
		bool given = false;
		int r;

		for (uint32_t e = 0; e < job->n_environment; e++)
			given |= !strncmp(job->environment[e], defaults[i], length);
		r = given ? 0
			  : job_set_environment(container_of(job, struct run_options, job),
						&default_flag, defaults[i], err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int flags_check(const struct job *job, const struct vm_description *vm, struct error *err)
{
	if (!job->command || !job->command[0])
		return error_set(err, -EINVAL,
				 "no command given: add -- COMMAND ARG…, what the guest shall run");
	if (!job->rootfs)
		return error_set(
			err, -EINVAL,
			"\"%s\" needs a root to run in: add --rootfs DIR or --rootfs IMAGE",
			job->command[0]);
	if (job->directory && job->directory[0] != '/')
		return error_set(err, -EINVAL, "--cwd: \"%s\" does not begin with a slash",
				 job->directory);
	if (container_of(job, struct run_options, job)->detach)
		return error_set(err, -EINVAL,
				 "--detach does not go with a command: somebody has to take its "
				 "status");
	if (vm->initrd || vm->firmware)
		return error_set(
			err, -EINVAL,
			"%s does not go with a command: its guest has an initrd of its own",
			vm->initrd ? "--initrd" : "--firmware");
	if (vm->console.kind != VM_CONSOLE_STDIO || vm->console.device != VM_CONSOLE_SERIAL)
		return error_set(err, -EINVAL,
				 "--console does not go with a command: the console is kept for "
				 "the guest's last words; -v shows it");
	if (vm->n_disks == VM_DISKS_MAX || vm->n_ports == VM_PORTS_MAX)
		return error_set(err, -E2BIG, "there is no place left for the %s of the command",
				 vm->n_ports == VM_PORTS_MAX ? "channel" : "root disk");
	return 0;
}

/* The root comes after the disks that were given, so that their names stay. */
static int disk_add(const struct job *job, struct vm_description *vm, struct error *err)
{
	struct vm_disk *disk = &vm->disks[vm->n_disks];
	int r = table_init(&vm_disk_table, disk);

	vm->n_disks++;
	if (r >= 0)
		r = table_set_text(&vm_disk_table, disk, "path", job->rootfs, err);
	if (r >= 0)
		r = table_set_text(&vm_disk_table, disk, "serial", JOB_DISK_SERIAL, err);
	disk->readonly = true;
	return r;
}

static int port_add(struct vm_description *vm, struct error *err)
{
	struct vm_port *port = &vm->ports[vm->n_ports];
	int r = table_init(&vm_port_table, port);

	vm->n_ports++;
	return r < 0 ? r : table_set_text(&vm_port_table, port, "name", JOB_PORT_NAME, err);
}

int job_complete(struct job *job, struct vm_description *vm, struct error *err)
{
	int r = flags_check(job, vm, err);
	struct stat st;
	bool directory;

	if (r < 0)
		return r;
	if (stat(job->rootfs, &st) < 0)
		return error_set(err, -errno, "cannot use the root \"%s\": %s", job->rootfs,
				 strerror(errno));
	directory = S_ISDIR(st.st_mode);
	if (!vm->kernel)
		r = guest_kernel_find(directory ? job->rootfs : NULL, &vm->kernel, err);
	if (r >= 0)
		r = environment_complete(job, err);
	if (r >= 0)
		r = disk_add(job, vm, err);
	if (r >= 0)
		r = port_add(vm, err);
	if (r >= 0)
		r = table_set_text(&vm_table, vm, "initrd", INITRD_NAME, err);
	if (r >= 0 && !vm->append)
		r = table_set_text(&vm_table, vm, "append", APPEND, err);
	vm->on_reset = VM_RESET_EXIT;
	return r;
}

/* The disk's path becomes that of our descriptor, which every process of ours can open. */
static int image_make(struct job *job, struct vm_disk *disk, struct error *err)
{
	char path[64];
	int r = guest_root_make(job->rootfs, &job->image_fd, err);

	if (r < 0)
		return r;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)getpid(), job->image_fd);
	return table_set_text(&vm_disk_table, disk, "path", path, err);
}

int job_prepare(struct job *job, struct vm_description *vm, struct error *err)
{
	struct vm_disk *disk = &vm->disks[vm->n_disks - 1];
	struct guest_modules modules = {};
	struct guest_modules_wish wish = {
		.kernel = vm->kernel, .modules = job->modules, .net = vm->n_nets > 0};
	struct stat st;
	int r = 0;

	if (!stat(job->rootfs, &st) && S_ISDIR(st.st_mode)) {
		wish.rootfs = job->rootfs;
		r = job->image ? table_set_text(&vm_disk_table, disk, "path", job->image, err)
			       : image_make(job, disk, err);
	}
	if (r >= 0)
		r = guest_root_probe(disk->path, &job->file_system, err);
	wish.file_system = job->file_system;
	if (r >= 0)
		r = guest_modules_find(&modules, &wish, err);
	if (r >= 0)
		r = guest_initrd_make(job, &modules, &job->initrd_fd, err);
	guest_modules_deinit(&modules);
	return r;
}
