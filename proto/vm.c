/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tables of a VM's description, and the checks that no table can say. The description comes
 * from flags, from a file or from another process: nothing of it is trusted before vm_check.
 */
#include "proto/vm.h"

#include <errno.h>
#include <string.h>

#define MEMORY_STEP     (UINT64_C(2) << 20)
#define MEMORY_MAX      (UINT64_C(1) << 46) /* what four levels of page tables leave a guest */
#define MEMORY_INITIAL  (UINT64_C(512) << 20)
#define DISK_SERIAL_MAX 20 /* VIRTIO_BLK_ID_BYTES */
#define MACHINE         "corral-1"

static const char *const thp_names[] = {"default", "on", "off", NULL};
static const char *const console_kind_names[] = {"none", "stdio", "file", "pty", NULL};
static const char *const console_device_names[] = {"serial", "virtio", NULL};
static const char *const on_reset_names[] = {"reboot", "exit", NULL};

static const struct field vm_memory_fields[] = {
	FIELD(struct vm_memory, size, FIELD_SIZE, "size", "bytes, a multiple of 2M",
	      .min = MEMORY_STEP, .max = MEMORY_MAX, .initial = MEMORY_INITIAL),
	FIELD(struct vm_memory, merge, FIELD_BOOL, "merge",
	      "share equal pages with other VMs (KSM); excludes huge pages"),
	FIELD(struct vm_memory, thp, FIELD_ENUM, "thp",
	      "transparent huge pages; by default on unless pages are merged", .names = thp_names),
	FIELD(struct vm_memory, shared, FIELD_BOOL, "shared",
	      "memory that other processes can map (memfd)"),
	FIELD(struct vm_memory, prefault, FIELD_BOOL, "prefault",
	      "touch all memory before the guest starts"),
};

const struct table vm_memory_table =
	TABLE(struct vm_memory, "memory", "the guest's memory", vm_memory_fields);

static const struct field vm_disk_fields[] = {
	FIELD(struct vm_disk, path, FIELD_STRING, "path", "an image file or a block device",
	      .flags = FIELD_REQUIRED),
	FIELD(struct vm_disk, readonly, FIELD_BOOL, "readonly", "the guest may not write"),
	FIELD(struct vm_disk, direct, FIELD_BOOL, "direct",
	      "go past the host's page cache (O_DIRECT)"),
	FIELD(struct vm_disk, serial, FIELD_STRING, "serial",
	      "serial number that the guest sees, up to 20 letters", .max = DISK_SERIAL_MAX),
	FIELD(struct vm_disk, queues, FIELD_U32, "queues", "request queues", .min = 1,
	      .max = VM_QUEUES_MAX, .initial = 1),
};

const struct table vm_disk_table = TABLE(struct vm_disk, "disk", "one disk", vm_disk_fields);

static const struct field vm_console_fields[] = {
	FIELD(struct vm_console, kind, FIELD_ENUM, "kind", "where the guest's console goes",
	      .names = console_kind_names, .initial = VM_CONSOLE_STDIO),
	FIELD(struct vm_console, path, FIELD_STRING, "path", "the file, for kind file"),
	FIELD(struct vm_console, device, FIELD_ENUM, "device",
	      "which of the guest's devices is the console", .names = console_device_names),
};

const struct table vm_console_table =
	TABLE(struct vm_console, "console", "the guest's console", vm_console_fields);

static const struct field vm_fields[] = {
	FIELD(struct vm_description, name, FIELD_STRING, "name",
	      "letters, digits, '-', '_' and '.', starting with a letter or digit",
	      .max = VM_NAME_MAX),
	FIELD(struct vm_description, machine, FIELD_STRING, "machine",
	      "the board and its version; a running guest depends on it", .initial_text = MACHINE,
	      .max = 32),
	FIELD(struct vm_description, cpus, FIELD_U32, "cpus", "virtual processors", .min = 1,
	      .max = VM_CPUS_MAX, .initial = 1),
	FIELD(struct vm_description, memory, FIELD_STRUCT, "memory", "the guest's memory",
	      .table = &vm_memory_table),
	FIELD(struct vm_description, kernel, FIELD_STRING, "kernel",
	      "bzImage, vmlinux or another ELF file with a PVH note"),
	FIELD(struct vm_description, initrd, FIELD_STRING, "initrd", "initial RAM disk"),
	FIELD(struct vm_description, append, FIELD_STRING, "append", "the kernel's command line",
	      .max = VM_APPEND_MAX),
	FIELD_LIST_OF(struct vm_description, disks, n_disks, &vm_disk_table, "disks",
		      "disks, in the order of the guest's slots"),
	FIELD(struct vm_description, console, FIELD_STRUCT, "console", "the guest's console",
	      .table = &vm_console_table),
	FIELD(struct vm_description, rng, FIELD_BOOL, "rng", "a source of random numbers",
	      .initial = true),
	FIELD(struct vm_description, sandbox, FIELD_BOOL, "sandbox",
	      "the VMM gives up its rights before the guest starts", .initial = true),
	FIELD(struct vm_description, on_reset, FIELD_ENUM, "on-reset",
	      "what a reset of the guest does", .names = on_reset_names),
};

const struct table vm_table = TABLE(struct vm_description, "vm", "one virtual machine", vm_fields);

static bool name_letter(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

static int check_name(const char *name, struct error *err)
{
	if (!name || !*name)
		return error_set(err, -EINVAL, "name: is missing");
	if (strlen(name) > VM_NAME_MAX)
		return error_set(err, -EINVAL, "name: %zu bytes are too long, at most %d",
				 strlen(name), VM_NAME_MAX);
	if (!name_letter(*name))
		return error_set(err, -EINVAL, "name: \"%s\" does not start with a letter or digit",
				 name);
	for (const char *c = name; *c; c++)
		if (!name_letter(*c) && !strchr("-_.", *c))
			return error_set(
				err, -EINVAL,
				"name: \"%s\" has other than letters, digits, '-', '_' and '.'",
				name);
	return 0;
}

static int check_machine(const struct vm_description *vm, struct error *err)
{
	if (!vm->machine || strcmp(vm->machine, MACHINE) != 0)
		return error_set(err, -EINVAL, "machine: \"%s\" is not known, only \"%s\" is",
				 vm->machine ? vm->machine : "", MACHINE);
	if (vm->cpus < 1 || vm->cpus > VM_CPUS_MAX)
		return error_set(err, -EINVAL, "cpus: %u is not within 1 and %d", vm->cpus,
				 VM_CPUS_MAX);
	if (!vm->kernel || !*vm->kernel)
		return error_set(err, -EINVAL, "kernel: is missing, name a kernel file");
	if (vm->append && strlen(vm->append) > VM_APPEND_MAX)
		return error_set(err, -EINVAL, "append: %zu bytes are too long, at most %d",
				 strlen(vm->append), VM_APPEND_MAX);
	return 0;
}

static int check_memory(const struct vm_memory *memory, struct error *err)
{
	char size[SIZE_TEXT_MAX];

	size_print(memory->size, size);
	if (memory->size < MEMORY_STEP || memory->size % MEMORY_STEP)
		return error_set(err, -EINVAL,
				 "memory.size: %s is not a multiple of 2M, and at least that",
				 size);
	if (memory->size > MEMORY_MAX)
		return error_set(err, -EINVAL, "memory.size: %s is too large, at most 64T", size);
	if (memory->merge && memory->shared)
		return error_set(err, -EINVAL,
				 "memory.merge: does not go with memory.shared: the kernel merges "
				 "private pages only");
	if (memory->merge && memory->thp == VM_THP_ON)
		return error_set(
			err, -EINVAL,
			"memory.merge: does not go with memory.thp \"on\": huge pages are not "
			"merged");
	return 0;
}

static int check_serial(const char *serial, uint32_t i, struct error *err)
{
	if (strlen(serial) > DISK_SERIAL_MAX)
		return error_set(err, -EINVAL,
				 "disks[%u].serial: %zu bytes are too long, at most %d", i,
				 strlen(serial), DISK_SERIAL_MAX);
	for (const char *c = serial; *c; c++)
		if (*c < ' ' || *c > '~')
			return error_set(err, -EINVAL,
					 "disks[%u].serial: \"%s\" has other than printable ASCII",
					 i, serial);
	return 0;
}

static int check_disk(const struct vm_disk *disk, uint32_t i, struct error *err)
{
	if (!disk->path || !*disk->path)
		return error_set(err, -EINVAL, "disks[%u].path: is missing", i);
	if (disk->queues < 1 || disk->queues > VM_QUEUES_MAX)
		return error_set(err, -EINVAL, "disks[%u].queues: %u is not within 1 and %d", i,
				 disk->queues, VM_QUEUES_MAX);
	return disk->serial ? check_serial(disk->serial, i, err) : 0;
}

static int check_console(const struct vm_console *console, struct error *err)
{
	bool has_path = console->path && *console->path;

	if (console->kind == VM_CONSOLE_FILE && !has_path)
		return error_set(err, -EINVAL, "console.path: is missing, kind \"file\" needs one");
	if (console->kind != VM_CONSOLE_FILE && console->path)
		return error_set(err, -EINVAL,
				 "console.path: only kind \"file\" has one, this is \"%s\"",
				 console_kind_names[console->kind]);
	return 0;
}

int vm_check(const struct vm_description *vm, struct error *err)
{
	int r;

	r = check_name(vm->name, err);
	if (r == 0)
		r = check_machine(vm, err);
	if (r == 0)
		r = check_memory(&vm->memory, err);
	for (uint32_t i = 0; i < vm->n_disks && r == 0; i++)
		r = check_disk(&vm->disks[i], i, err);
	return r < 0 ? r : check_console(&vm->console, err);
}
