/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The description of one VM: what `corral run` builds from its flags, `--config` reads, `--dry-run`
 * prints, and a VMM is started with. It names files for people; the VMM itself opens nothing by
 * path: beside the description it is handed descriptors by name (base/fd.h), listed here.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/table.h"

#define VM_NAME_MAX   48 /* bytes: letters, digits, '-', '_', '.'; starts with a letter or digit */
#define VM_CPUS_MAX   64
#define VM_DISKS_MAX  16
#define VM_QUEUES_MAX 8
#define VM_APPEND_MAX 2047 /* what a 64-bit kernel's command line holds, without its NUL */

enum vm_console_kind { VM_CONSOLE_NONE, VM_CONSOLE_STDIO, VM_CONSOLE_FILE, VM_CONSOLE_PTY };
enum vm_console_device { VM_CONSOLE_SERIAL, VM_CONSOLE_VIRTIO };
enum vm_thp { VM_THP_DEFAULT, VM_THP_ON, VM_THP_OFF };
enum vm_on_reset { VM_RESET_REBOOT, VM_RESET_EXIT };

struct vm_memory {
	uint64_t size; /* bytes, a multiple of 2 MiB */
	bool merge;    /* private anonymous, madvise(MERGEABLE), no THP */
	uint32_t thp;  /* enum vm_thp; DEFAULT: on unless merge */
	bool shared;   /* memfd */
	bool prefault;
};

struct vm_disk {
	char *path;
	bool readonly;
	bool direct;  /* O_DIRECT, opened so by the launcher */
	char *serial; /* at most 20 bytes */
	uint32_t queues;
};

struct vm_console {
	uint32_t kind;   /* enum vm_console_kind */
	char *path;      /* FILE */
	uint32_t device; /* enum vm_console_device: which of the guest's devices it is */
};

struct vm_description {
	char *name;
	char *machine; /* the board's name and version, "corral-1": migration ABI */
	uint32_t cpus;
	struct vm_memory memory;
	char *kernel;
	char *initrd;
	char *append;
	uint32_t n_disks;
	struct vm_disk disks[VM_DISKS_MAX];
	struct vm_console console;
	bool rng;
	bool sandbox;
	uint32_t on_reset; /* enum vm_on_reset */
};

extern const struct table vm_table;
extern const struct table vm_memory_table;
extern const struct table vm_disk_table;
extern const struct table vm_console_table;

/*
 * What the tables cannot say: name's letters, memory's kinds that exclude each other, sizes' steps,
 * console paths, serial lengths. One sentence with the path of the key.
 */
int vm_check(const struct vm_description *vm, struct error *err) __must_check;

/*
 * Descriptors of a VMM, by the name under which they are handed over. The first three are needed
 * always. Every one is opened by the launcher with the rights it should have and no more.
 */
#define VM_FD_DESCRIPTION "description" /* read: JSON text of struct vm_description */
#define VM_FD_KVM         "kvm"         /* /dev/kvm */
#define VM_FD_KERNEL      "kernel"      /* read */
#define VM_FD_INITRD      "initrd"      /* read */
#define VM_FD_DISK        "disk"        /* "disk0" …: as the disk is to be used */
#define VM_FD_CONSOLE \
	"console" /* a connected stream socket, a file or a pty master; both ways where it can */
#define VM_FD_CONSOLE_LOG \
	"console-log" /* append: a copy of what the guest printed, kept to its last megabytes */
#define VM_FD_CONTROL "control" /* a listening UNIX stream socket */
#define VM_FD_EXIT    "exit"    /* write: the exit record */
#define VM_FD_READY                                                                           \
	"ready" /* write end of a pipe: one byte 'R' when the vCPUs run, closed without it on \
		   failure */
#define VM_FD_LOCK  "lock"  /* held open while the VM lives: its OFD lock says so */
#define VM_FD_EMPTY "empty" /* O_PATH of an empty directory that becomes the root */
