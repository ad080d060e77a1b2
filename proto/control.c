/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The list of control methods with their parameters and results: what a VMM dispatches on, what
 * "describe" prints, what a client completes from.
 */
#include "proto/control.h"

const char *const vm_state_names[] = {
	[VM_STARTING] = "starting", [VM_RUNNING] = "running",     [VM_PAUSING] = "pausing",
	[VM_PAUSED] = "paused",     [VM_RESETTING] = "resetting", [VM_ENDED] = "ended",
	[VM_STATES] = NULL,
};

static const struct field control_status_fields[] = {
	FIELD(struct control_status, name, FIELD_STRING, "name", "the VM's name"),
	FIELD(struct control_status, state, FIELD_ENUM, "state", "what it is doing",
	      .names = vm_state_names),
	FIELD(struct control_status, cpus, FIELD_U32, "cpus", "virtual processors"),
	FIELD(struct control_status, memory, FIELD_SIZE, "memory", "bytes of guest memory"),
	FIELD(struct control_status, pid, FIELD_U64, "pid",
	      "process id of the VMM, as seen where it was started"),
	FIELD(struct control_status, up_ms, FIELD_U64, "up-ms",
	      "milliseconds since the first instruction"),
	FIELD(struct control_status, resets, FIELD_U32, "resets", "how often the guest has reset"),
	FIELD(struct control_status, address, FIELD_STRING, "address",
	      "IPv4 address the guest was last seen to use", .max = 15),
	FIELD(struct control_status, machine, FIELD_STRING, "machine", "the board it runs on"),
	FIELD(struct control_status, version, FIELD_STRING, "version", "version of the VMM"),
};

const struct table control_status_table =
	TABLE(struct control_status, "status", "a VM as it is now", control_status_fields);

static const struct field control_resize_fields[] = {
	FIELD(struct control_resize, columns, FIELD_U32, "columns", "letters in a line", .min = 1,
	      .max = UINT16_MAX, .flags = FIELD_REQUIRED, .initial = 80),
	FIELD(struct control_resize, rows, FIELD_U32, "rows", "lines on the screen", .min = 1,
	      .max = UINT16_MAX, .flags = FIELD_REQUIRED, .initial = 25),
};

const struct table control_resize_table = TABLE(
	struct control_resize, "resize", "size of the console's terminal", control_resize_fields);

static const struct field control_balloon_fields[] = {
	FIELD(struct control_balloon, size, FIELD_SIZE, "size",
	      "bytes of memory the guest shall keep", .flags = FIELD_REQUIRED),
};

const struct table control_balloon_table = TABLE(
	struct control_balloon, "balloon", "how much memory a guest keeps", control_balloon_fields);

static const struct field control_link_fields[] = {
	FIELD(struct control_link, device, FIELD_STRING, "device",
	      "the network card's name, such as net0", .flags = FIELD_REQUIRED, .max = 32),
	FIELD(struct control_link, up, FIELD_BOOL, "up", "plugged in", .flags = FIELD_REQUIRED),
};

const struct table control_link_table =
	TABLE(struct control_link, "link", "a network card's cable", control_link_fields);

static const struct field control_device_cycle_fields[] = {
	FIELD(struct control_device_cycle, device, FIELD_STRING, "device",
	      "the device's name, such as disk0", .flags = FIELD_REQUIRED, .max = 32),
};

const struct table control_device_cycle_table =
	TABLE(struct control_device_cycle, "device-cycle", "the device to save and load again",
	      control_device_cycle_fields);

static const struct field control_disk_fields[] = {
	FIELD(struct control_disk, name, FIELD_STRING, "name", "the disk's name, such as disk0"),
	FIELD(struct control_disk, path, FIELD_STRING, "path", "its image"),
	FIELD(struct control_disk, format, FIELD_STRING, "format", "the image's format"),
	FIELD(struct control_disk, size, FIELD_SIZE, "size", "bytes, as the guest sees it"),
	FIELD(struct control_disk, readonly, FIELD_BOOL, "readonly", "the guest may not write"),
	FIELD(struct control_disk, direct, FIELD_BOOL, "direct", "past the host's page cache"),
	FIELD(struct control_disk, under, FIELD_U32, "under", "images that its image stands on"),
	FIELD(struct control_disk, trouble, FIELD_STRING, "trouble",
	      "what its store fails at, while requests wait for it to be mended"),
};
static const struct table control_disk_table =
	TABLE(struct control_disk, "disk", "a disk as it is now", control_disk_fields);

static const struct field control_disks_fields[] = {
	FIELD_LIST_OF(struct control_disks, disks, n_disks, &control_disk_table, "disks",
		      "in the order of the guest's slots"),
};
const struct table control_disks_table =
	TABLE(struct control_disks, "disks", "a VM's disks", control_disks_fields);

static const struct field control_disk_snapshot_fields[] = {
	FIELD(struct control_disk_snapshot, disk, FIELD_STRING, "disk",
	      "the disk's name, such as disk0", .flags = FIELD_REQUIRED, .max = 32),
	FIELD(struct control_disk_snapshot, path, FIELD_STRING, "path",
	      "the overlay's file, for people to know it by", .flags = FIELD_REQUIRED),
};
const struct table control_disk_snapshot_table =
	TABLE(struct control_disk_snapshot, "disk-snapshot", "the overlay a disk goes on with",
	      control_disk_snapshot_fields);

static const struct field control_disk_resize_fields[] = {
	FIELD(struct control_disk_resize, disk, FIELD_STRING, "disk",
	      "the disk's name, such as disk0", .flags = FIELD_REQUIRED, .max = 32),
	FIELD(struct control_disk_resize, size, FIELD_SIZE, "size",
	      "bytes, a multiple of 512, more than now", .flags = FIELD_REQUIRED),
};
const struct table control_disk_resize_table = TABLE(
	struct control_disk_resize, "disk-resize", "a disk's new size", control_disk_resize_fields);

static const struct field control_disk_add_fields[] = {
	FIELD(struct control_disk_add, disk, FIELD_STRUCT, "disk",
	      "the disk, as in a VM's description", .table = &vm_disk_table,
	      .flags = FIELD_REQUIRED),
};
const struct table control_disk_add_table = TABLE(
	struct control_disk_add, "disk-add", "a disk for a running guest", control_disk_add_fields);

static const struct field control_disk_added_fields[] = {
	FIELD(struct control_disk_added, disk, FIELD_STRING, "disk", "its name, such as disk2"),
	FIELD(struct control_disk_added, slot, FIELD_U32, "slot", "the PCI slot it is in"),
};
const struct table control_disk_added_table = TABLE(
	struct control_disk_added, "disk-added", "the disk that came", control_disk_added_fields);

static const struct field control_disk_remove_fields[] = {
	FIELD(struct control_disk_remove, disk, FIELD_STRING, "disk",
	      "the disk's name, such as disk1", .flags = FIELD_REQUIRED, .max = 32),
	FIELD(struct control_disk_remove, timeout_ms, FIELD_U32, "timeout-ms",
	      "milliseconds the guest has to let go of it, 0: only ask", .max = 600000,
	      .initial = 10000),
};
const struct table control_disk_remove_table =
	TABLE(struct control_disk_remove, "disk-remove", "the disk to be given up",
	      control_disk_remove_fields);

const struct control_method control_methods[CONTROL_METHODS] = {
	[CONTROL_DESCRIBE] = {.name = "describe", .help = "Lists the methods and their tables"},
	[CONTROL_STATUS] = {.name = "status",
			    .help = "Says what the VM is and what it is doing",
			    .result = &control_status_table},
	[CONTROL_PAUSE] = {.name = "pause",
			   .help = "Stops the processors; answers once they stand"},
	[CONTROL_RESUME] = {.name = "resume", .help = "Lets the processors run on"},
	[CONTROL_POWER_BUTTON] =
		{.name = "power-button",
		 .help = "Presses the power button; the guest decides what follows"},
	[CONTROL_RESET] = {.name = "reset", .help = "Resets the machine at once"},
	[CONTROL_QUIT] = {.name = "quit", .help = "Ends the VM at once, without asking the guest"},
	[CONTROL_COUNTERS] = {.name = "counters",
			      .help = "Counts exits by kind, requests by device, memory and loops"},
	[CONTROL_CONSOLE] = {.name = "console",
			     .help = "Makes the socket sent along the console's other end",
			     .takes_fd = true},
	[CONTROL_RESIZE] = {.name = "resize",
			    .help = "Tells the guest the size of the console's terminal",
			    .params = &control_resize_table},
	[CONTROL_EVENTS] = {.name = "events",
			    .help = "Has this connection told of what happens from now on"},
	[CONTROL_BALLOON] = {.name = "balloon",
			     .help = "Has the guest give memory back, or take it again",
			     .params = &control_balloon_table},
	[CONTROL_AGENT] = {.name = "agent",
			   .help = "Makes the socket sent along the guest agent's other end",
			   .takes_fd = true},
	[CONTROL_LINK] = {.name = "link",
			  .help = "Plugs a network card in or out",
			  .params = &control_link_table},
	[CONTROL_ANNOUNCE] = {.name = "announce",
			      .help = "Has the guest tell its networks where it is"},
	[CONTROL_DEVICE_CYCLE] =
		{.name = "device-cycle",
		 .help = "For tests: saves a device, tears it down, loads it again",
		 .params = &control_device_cycle_table},
	[CONTROL_SANDBOX] = {.name = "sandbox",
			     .help = "Says which restrictions are in force, by kind of thread"},
	[CONTROL_DISKS] = {.name = "disks",
			   .help = "Says what is behind the disks",
			   .result = &control_disks_table},
	[CONTROL_DISK_SNAPSHOT] =
		{.name = "disk-snapshot",
		 .help = "Goes on with the overlay sent along; the image before stays as it is",
		 .params = &control_disk_snapshot_table,
		 .takes_fd = true},
	[CONTROL_DISK_RESIZE] = {.name = "disk-resize",
				 .help = "Makes a disk larger; the guest sees it",
				 .params = &control_disk_resize_table},
	[CONTROL_DISK_ADD] =
		{.name = "disk-add",
		 .help = "Makes the image sent along a disk of the running guest; the images under "
			 "it follow, top down",
		 .params = &control_disk_add_table,
		 .result = &control_disk_added_table,
		 .takes_fd = true},
	[CONTROL_DISK_REMOVE] =
		{.name = "disk-remove",
		 .help = "Asks the guest to give a disk up, and waits until it has; there is no "
			 "taking it by force",
		 .params = &control_disk_remove_table},
};

static int describe_table(json_t *json, const char *key, const struct table *table)
{
	return table ? json_object_set_new(json, key, table_describe(table)) : 0;
}

static json_t *describe_method(const struct control_method *method)
{
	json_auto_t *json = json_object();

	if (json_object_set_new(json, "name", json_string(method->name)) < 0 ||
	    json_object_set_new(json, "help", json_string(method->help)) < 0 ||
	    json_object_set_new(json, "takes-fd", json_boolean(method->takes_fd)) < 0 ||
	    describe_table(json, "params", method->params) < 0 ||
	    describe_table(json, "result", method->result) < 0)
		return NULL;
	return take_ptr(json);
}

json_t *control_describe(void)
{
	json_auto_t *json = json_object();
	json_t *methods = json_array(); /* the object's once set */

	if (json_object_set_new(json, "methods", methods) < 0)
		return NULL;
	for (size_t i = 0; i < CONTROL_METHODS; i++)
		if (json_array_append_new(methods, describe_method(&control_methods[i])) < 0)
			return NULL;
	return take_ptr(json);
}
