/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: the words after `corral run` and the file --config names. Out: a complete, checked
 * `struct vm_description`. Values go in through the description's own tables, so flags and JSON
 * mean the same and are refused with the same sentences.
 */
#include "mgmt/local/options.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/disk-words.h"
#include "mgmt/local/firmware.h"
#include "mgmt/local/flags.h"
#include "mgmt/local/local.h"
#include "mgmt/local/net-words.h"
#include "mgmt/local/parts.h"

#define CONFIG_MAX (1 << 20)

static int set_key(void *object, const struct flag *flag, const char *value, struct error *err)
{
	struct run_options *o = object;
	int r = table_set_text(&vm_table, &o->vm, flag->key, value, err);

	return r < 0 ? error_prefix(err, "%s: ", flag->name) : 0;
}

static int set_memory(void *object, const struct flag *flag, const char *value, struct error *err)
{
	struct run_options *o = object;

	return parts_set(&vm_memory_table, &o->vm.memory, flag->name, "size", value, err);
}

static int set_disk(void *object, const struct flag *flag, const char *value, struct error *err)
{
	struct run_options *o = object;
	int r;

	if (o->vm.n_disks == VM_DISKS_MAX)
		return error_set(err, -E2BIG, "%s: a VM has at most %d disks", flag->name,
				 VM_DISKS_MAX);
	r = table_init(&vm_disk_table, &o->vm.disks[o->vm.n_disks]);
	if (r < 0)
		return error_set(err, r, "%s: %s", flag->name, strerror(-r));
	/* Counted before it is filled, so that a failure half-way is freed with the rest. */
	return disk_words_read(&o->vm.disks[o->vm.n_disks++], flag->name, value, err);
}

static int set_net(void *object, const struct flag *flag, const char *value, struct error *err)
{
	struct run_options *o = object;
	int r;

	if (o->vm.n_nets == VM_NETS_MAX)
		return error_set(err, -E2BIG, "%s: a VM has at most %d network cards", flag->name,
				 VM_NETS_MAX);
	r = table_init(&vm_net_table, &o->vm.nets[o->vm.n_nets]);
	if (r < 0)
		return error_set(err, r, "%s: %s", flag->name, strerror(-r));
	return net_words_read(&o->vm.nets[o->vm.n_nets++], flag->name, value, err);
}

static int set_cloud_init(void *object, const struct flag *flag, const char *value,
			  struct error *err)
{
	struct run_options *o = object;

	return parts_set(&vm_cloud_init_table, &o->vm.cloud_init, flag->name, NULL, value, err);
}

/* "file=PATH" says kind and path in one. */
static int set_console(void *object, const struct flag *flag, const char *value, struct error *err)
{
	struct vm_console *console = &((struct run_options *)object)->vm.console;
	int r;

	if (strncmp(value, "file=", 5))
		return parts_set(&vm_console_table, console, flag->name, "kind", value, err);
	r = table_set_text(&vm_console_table, console, "kind", "file", err);
	if (r < 0)
		return r;
	return parts_set(&vm_console_table, console, flag->name, "path", value + 5, err);
}

static const struct flag run_flags[] = {
	{"--name", "NAME", "what to call the VM (vm-PID)", set_key, .key = "name"},
	{"--kernel", "FILE", "bzImage, ELF vmlinux, or an ELF with a PVH note", set_key,
	 .key = "kernel"},
	{"--firmware", "FILE", "UEFI firmware that boots from the disks, instead of a kernel",
	 set_key, .key = "firmware"},
	{"--initrd", "FILE", "initial RAM disk", set_key, .key = "initrd"},
	{"--append", "TEXT", "added to the default kernel command line", flag_set_word,
	 .offset = offsetof(struct run_options, append)},
	{"--cpus", "N", "vCPUs", set_key, .key = "cpus"},
	{"--memory", "SIZE[,merge=on][,thp=on|off][,shared=on][,prefault=on]",
	 "guest memory, as 512M or 4G; merge: shared with other VMs by KSM", set_memory,
	 .key = NULL},
	{"--disk",
	 "FILE[,format=raw|qcow2][,backing=allow[,backing-format=raw|qcow2]]\n"
	 "      "
	 "[,readonly=on][,serial=TEXT][,direct=on][,queues=N][,discard=on|off]\n"
	 "      "
	 "[,limit=iops:N:bps:SIZE][,onerror=full|pause|report][,low-space=SIZE]",
	 "image or block device, raw unless it says so; give it again for more", set_disk,
	 .key = NULL},
	{"--net",
	 "user|tap=IF|fd=N[,forward=tcp:[ADDRESS:]2222:22]...[,host=on][,mac=M]\n"
	 "      "
	 "[,queues=N][,vhost=on|off|auto][,rx-rate=SIZE][,tx-rate=SIZE][,rx-frames=N][,tx-frames="
	 "N]",
	 "network card; user: what the host reaches, through passt; give it again for more",
	 set_net, .key = NULL},
	{"--cloud-init", "user-data=FILE[,meta-data=FILE][,network=FILE]",
	 "what the image configures itself by at its first boot", set_cloud_init, .key = NULL},
	{"--console", "stdio|none|file=PATH|pty[,device=serial|virtio]",
	 "where the guest's console goes", set_console, .key = NULL},
	{"--rng", "on|off", "random numbers for the guest", set_key, .key = "rng"},
	{"--balloon", "on|off", "memory the guest does not use goes back to the host", set_key,
	 .key = "balloon"},
	{"--agent", "on|off", "the channel of the QEMU guest agent", set_key, .key = "agent"},
	{"--vsock", "CID", "streams between the guest and UNIX sockets of the host; CID: 3 or more",
	 set_key, .key = "vsock-cid"},
	{"--watchdog", "none|reset|power-off|pause|report",
	 "what happens when the guest no longer feeds its watchdog", set_key, .key = "watchdog"},
	{"--control", "SOCKET", "put the control socket here", flag_set_word,
	 .offset = offsetof(struct run_options, control)},
	{"--config", "FILE", "a description in JSON, read before the flags", flag_set_word,
	 .offset = offsetof(struct run_options, config)},
	{"--rootfs", "DIR|IMAGE", "the root of a command given after --; it is only read",
	 job_set_word, .offset = offsetof(struct run_options, job.rootfs)},
	{"--timeout", "TIME", "how long the command may take, as 30s, 5m, 1h", job_set_timeout,
	 .key = NULL},
	{"--env", "NAME[=VALUE]", "for the command; without a value: ours; give it again for more",
	 job_set_environment, .key = NULL},
	{"--cwd", "DIR", "where in the guest the command starts", job_set_word,
	 .offset = offsetof(struct run_options, job.directory)},
	{"--modules", "DIR|none", "the kernel's modules, if they are not where they belong",
	 job_set_word, .offset = offsetof(struct run_options, job.modules)},
	{"--junit", "FILE", "how the command ended, as JUnit's XML", job_set_word,
	 .offset = offsetof(struct run_options, job.junit)},
	{"--on-reset", "reboot|exit", "what a guest's reset does", set_key, .key = "on-reset"},
	{"--sandbox", "on|off", "off: the VMM keeps the launcher's rights; to find faults only",
	 set_key, .key = "sandbox"},
	{"--detach", NULL, "return once the VM runs", flag_set_true,
	 .offset = offsetof(struct run_options, detach)},
	{"--dry-run", NULL, "print the description as JSON and start nothing", flag_set_true,
	 .offset = offsetof(struct run_options, dry_run)},
	{"-v", NULL, "say what is in force", flag_set_true,
	 .offset = offsetof(struct run_options, verbose)},
	{"--verbose", NULL, "the same", flag_set_true,
	 .offset = offsetof(struct run_options, verbose)},
	{"--help", NULL, "this text", flag_set_true, .offset = offsetof(struct run_options, help)},
};

void run_help(void)
{
	flags_help(run_flags, ARRAY_SIZE(run_flags));
	printf("\nA comma inside a FILE is written twice. Escape key on the console: Ctrl-]\n");
}

static int config_read(struct run_options *o, struct error *err)
{
	_cleanup_(fd_closep) int fd = open(o->config, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	_cleanup_(freep) char *text = NULL;
	size_t size;
	int r;

	if (fd < 0)
		return error_set(err, -errno, "cannot open configuration \"%s\": %s", o->config,
				 strerror(errno));
	r = fd_read_all(fd, CONFIG_MAX, &text, &size);
	if (r < 0)
		return error_set(err, r, "cannot read configuration \"%s\": %s", o->config,
				 strerror(-r));
	return table_from_text(&vm_table, text, size, o->config, &o->vm, err);
}

static int flags_read(struct run_options *o, int argc, char **argv, struct error *err)
{
	int r = table_init(&vm_table, &o->vm);

	if (r < 0)
		return error_set(err, r, "cannot prepare a description: %s", strerror(-r));
	return flags_parse(run_flags, ARRAY_SIZE(run_flags), o, argc, argv, NULL, err);
}

static int string_set(char **text, const char *value)
{
	char *copy = strdup(value);

	if (!copy)
		return -ENOMEM;
	free(*text);
	*text = copy;
	return 0;
}

/* What the guest is told when nobody says otherwise; words of --append come later, so they win. */
static int append_complete(struct run_options *o)
{
	const struct vm_description *vm = &o->vm;
	char text[VM_APPEND_MAX * 2 + 1];
	const char *console =
		vm->console.device == VM_CONSOLE_VIRTIO ? "console=hvc0 " : "console=ttyS0 ";
	const char *root = "";

	if (vm->n_disks && !vm->initrd)
		root = vm->disks[0].readonly ? " root=/dev/vda ro" : " root=/dev/vda rw";
	if (vm->firmware) /* no default; vm_check refuses what was given */
		return o->append ? string_set(&o->vm.append, o->append) : 0;
	if (vm->append && !o->append)
		return 0;
	if (vm->append)
		snprintf(text, sizeof(text), "%s %s", vm->append, o->append);
	else
		snprintf(text, sizeof(text), "%spanic=-1%s%s%s",
			 vm->console.kind == VM_CONSOLE_NONE ? "" : console, root,
			 o->append ? " " : "", o->append ? o->append : "");
	return string_set(&o->vm.append, text); /* vm_check sees to its length */
}

/* A running VM's console file is looked up later, from wherever `corral logs` is called. */
static int console_complete(struct vm_console *console)
{
	char *text;
	char here[4096];

	if (console->kind != VM_CONSOLE_FILE || !console->path || console->path[0] == '/')
		return 0;
	if (!getcwd(here, sizeof(here)))
		return -errno;
	if (asprintf(&text, "%s/%s", here, console->path) < 0)
		return -ENOMEM;
	free(console->path);
	console->path = text;
	return 0;
}

/* A name of our own; one that a detached VM still has is told apart by whoever takes it. */
static int name_complete(struct run_options *o)
{
	char name[VM_NAME_MAX + 1];

	if (o->vm.name)
		return 0;
	o->own_name = true;
	snprintf(name, sizeof(name), "vm-%d", (int)getpid());
	return string_set(&o->vm.name, name);
}

/* A disk by itself boots as a machine with UEFI would boot it. */
static int firmware_complete(struct run_options *o, struct error *err)
{
	const struct vm_description *vm = &o->vm;

	if (vm->kernel || vm->firmware)
		return 0;
	if (!vm->n_disks || vm->initrd || vm->append || o->append)
		return error_set(err, -EINVAL,
				 "no kernel given: add --kernel FILE, or boot a --disk FILE by "
				 "itself, see `corral help run`");
	return firmware_find(&o->vm.firmware, err);
}

int options_read(struct run_options *o, int argc, char **argv, struct error *err)
{
	int r;

	*o = (struct run_options){};
	job_init(&o->job);
	argc = job_cut(&o->job, argc, argv);
	r = flags_read(o, argc, argv, err);
	if (r < 0)
		return LOCAL_USAGE;
	if (o->help)
		return LOCAL_OK;
	if (o->config) {
		/* The first reading only found the file; flags go on top of what it says. */
		table_deinit(&vm_table, &o->vm);
		r = table_init(&vm_table, &o->vm);
		if (r >= 0)
			r = config_read(o, err);
		if (r >= 0)
			r = flags_parse(run_flags, ARRAY_SIZE(run_flags), o, argc, argv, NULL, err);
		if (r < 0)
			return LOCAL_FAILED;
	}
	if (o->job.wanted && job_complete(&o->job, &o->vm, err) < 0)
		return LOCAL_FAILED;
	r = firmware_complete(o, err);
	if (r < 0)
		return r == -EINVAL ? LOCAL_USAGE : LOCAL_FAILED;
	r = name_complete(o);
	if (r >= 0)
		r = append_complete(o);
	if (r >= 0)
		r = console_complete(&o->vm.console);
	if (r < 0) {
		error_set(err, r, "cannot complete the description: %s", strerror(-r));
		return LOCAL_FAILED;
	}
	return vm_check(&o->vm, err) < 0 ? LOCAL_FAILED : LOCAL_OK;
}

void options_deinit(struct run_options *options)
{
	table_deinit(&vm_table, &options->vm);
	job_deinit(&options->job);
}
