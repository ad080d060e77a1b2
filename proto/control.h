/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control socket of a VMM: a UNIX stream socket, JSON objects one a line.
 *
 *   → {"id": 1, "method": "status"}                      optional "params": {…}
 *   ← {"id": 1, "result": {…}}      or      {"id": 1, "error": {"code": "EBUSY", "text": "…"}}
 *
 *
 * A line is at most CONTROL_LINE_MAX bytes. Requests of one connection are answered in order. A
 * client may send a descriptor (SCM_RIGHTS) with the line that needs it ("console"). "describe"
 * answers with this list: every method, its parameters' and its result's tables.
 */
#pragma once

#include <stdint.h>

#include "base/table.h"
#include "proto/vm.h"

#define CONTROL_LINE_MAX    65536
#define CONTROL_CLIENTS_MAX 16

struct control_method {
	const char *name;
	const char *help;
	const struct table *params; /* NULL: none */
	const struct table *result; /* NULL: an object that is described in words only */
	bool takes_fd;
};

enum control_method_id {
	CONTROL_DESCRIBE,
	CONTROL_STATUS,
	CONTROL_PAUSE,
	CONTROL_RESUME,
	CONTROL_POWER_BUTTON,
	CONTROL_RESET,
	CONTROL_QUIT,
	CONTROL_COUNTERS,
	CONTROL_CONSOLE,  /* the descriptor sent along becomes the console's peer */
	CONTROL_RESIZE,   /* the console's columns and rows */
	CONTROL_EVENTS,   /* this connection is told what happens from now on */
	CONTROL_BALLOON,  /* how much memory the guest shall keep */
	CONTROL_AGENT,    /* the descriptor sent along becomes the guest agent's peer; -EBUSY while
			     another is */
	CONTROL_LINK,     /* plugs a network card in or out */
	CONTROL_ANNOUNCE, /* asks the guest to tell its networks where it is */
	CONTROL_DEVICE_CYCLE,  /* for tests: save a device, tear it down, load it again */
	CONTROL_SANDBOX,       /* what is in force */
	CONTROL_DISKS,         /* what is behind them */
	CONTROL_DISK_SNAPSHOT, /* the descriptor sent along, an empty overlay, becomes the disk's
				  image; what it had before is under it and stays as it is from then
				  on */
	CONTROL_DISK_RESIZE,   /* the disk grows, and the guest is told */
	CONTROL_DISK_ADD,      /* the descriptors sent along, a disk's image and those under it, top
				  down, become a disk of the running guest */
	CONTROL_DISK_REMOVE,   /* asks the guest to give a disk up; answers when it has */
	CONTROL_METHODS,
};

extern const struct control_method control_methods[CONTROL_METHODS];

/* Life of a VM as "status" names it. */
enum vm_state { VM_STARTING, VM_RUNNING, VM_PAUSING, VM_PAUSED, VM_RESETTING, VM_ENDED, VM_STATES };
extern const char *const vm_state_names[];

struct control_status {
	char *name;
	uint32_t state; /* enum vm_state */
	uint32_t cpus;
	uint64_t memory; /* bytes */
	uint64_t pid;
	uint64_t up_ms;
	uint32_t resets;
	char *address; /* IPv4 address the guest was last seen to use, NULL: none seen */
	char *machine;
	char *version;
};
extern const struct table control_status_table;

struct control_resize {
	uint32_t columns, rows;
};
extern const struct table control_resize_table;

struct control_balloon {
	uint64_t size; /* bytes; the VM's whole memory: give all back */
};
extern const struct table control_balloon_table;

struct control_link {
	char *device; /* "net0" */
	bool up;
};
extern const struct table control_link_table;

struct control_device_cycle {
	char *device; /* "disk0", "console", "rng" … */
};
extern const struct table control_device_cycle_table;

struct control_disk {
	char *name; /* "disk0" */
	char *path; /* of its image, for people */
	char *format;
	uint64_t size; /* bytes, as the guest sees it */
	bool readonly;
	bool direct;    /* O_DIRECT */
	uint32_t under; /* images that its image stands on */
	char *trouble;  /* what its store fails at, while requests wait for it to be mended */
};
struct control_disks {
	uint32_t n_disks;
	struct control_disk disks[VM_DISKS_MAX];
};
extern const struct table control_disks_table;

struct control_disk_snapshot {
	char *disk;
	char *path; /* of the overlay, for people */
};
extern const struct table control_disk_snapshot_table;

struct control_disk_resize {
	char *disk;
	uint64_t size; /* bytes, more than now */
};
extern const struct table control_disk_resize_table;

struct control_disk_add {
	struct vm_disk disk;
};
extern const struct table control_disk_add_table;

struct control_disk_added {
	char *disk;    /* its name: "disk2" */
	uint32_t slot; /* PCI, on bus 0 */
};
extern const struct table control_disk_added_table;

/*
 * -ETIMEDOUT: the guest has not let go of it in time. It may still do so: the request stands, and
 * "disk-removed" tells. A reset of the guest completes it, too. There is no way to take a disk from
 * a guest that keeps it: its requests would be lost without a word.
 */
struct control_disk_remove {
	char *disk;
	uint32_t timeout_ms; /* how long to wait for the guest; 0: not at all */
};
extern const struct table control_disk_remove_table;

/*
 * "events" tells, each with "at_ms": {"event": "running" | "paused" | "reset" | "crash-loaded" |
 * "power-button" | "watchdog" | "ended"}; and of a disk {"event": "disk-error", "disk": "disk0",
 * "operation": "write", "error": "ENOSPC", "text": "No space left on device"}, after which the VM
 * pauses, and "resume" tries again what failed; {"event": "disk-full-soon", "disk": "disk0",
 * "free": bytes left in its store}, once until there is room again; {"event": "disk-added" |
 * "disk-removed", "disk": "disk1"}: it has come, or has gone and its image is free.
 */

/*
 * "counters" answers {"exits": {"io": n, "mmio": n, "halt": n, …},
 * "devices": {"disk0": {"requests": n, …}, …},
 * "loops": {"main": {"turns": n, "enters": n, "operations": n}, "io0": …},
 * "memory": {"guest": bytes, "resident": bytes, "private-dirty": bytes, "private-clean": bytes,
 * "ksm": bytes in merged pages, "ksm-merging": bytes merged away, "ksm-zero": bytes, "ksm-profit":
 * bytes saved less what KSM itself uses}}; a figure the kernel does not have is left out.
 */

/* What "describe" answers: {"methods": [{"name", "help", "takes-fd", "params", "result"}, …]}. NULL
 * when out of memory. */
json_t *control_describe(void) __must_check;
