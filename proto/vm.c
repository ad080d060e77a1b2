/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tables of a VM's description, and the checks that no table can say. The description comes
 * from flags, from a file or from another process: nothing of it is trusted before vm_check.
 */
#include "proto/vm.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MEMORY_STEP     (UINT64_C(2) << 20)
#define MEMORY_MAX      (UINT64_C(1) << 46) /* what four levels of page tables leave a guest */
#define MEMORY_INITIAL  (UINT64_C(512) << 20)
#define DISK_SERIAL_MAX 20 /* VIRTIO_BLK_ID_BYTES */
#define MACHINE         "corral-1"

static const char *const thp_names[] = {"default", "on", "off", NULL};
static const char *const format_names[] = {"raw", "qcow2", NULL};
static const char *const backing_names[] = {"deny", "allow", NULL};
static const char *const backing_format_names[] = {"written", "raw", "qcow2", NULL};
static const char *const on_error_names[] = {"full", "pause", "report", NULL};
static const char *const console_kind_names[] = {"none", "stdio", "file", "pty", NULL};
static const char *const console_device_names[] = {"serial", "virtio", NULL};
static const char *const net_kind_names[] = {"user", "tap", "fd", NULL};
static const char *const vhost_names[] = {"auto", "on", "off", NULL};
static const char *const protocol_names[] = {"tcp", "udp", NULL};
static const char *const watchdog_names[] = {"none", "reset", "power-off", "pause", "report", NULL};
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

static const struct field vm_limit_fields[] = {
	FIELD(struct vm_limit, iops, FIELD_U64, "iops",
	      "reads and writes a second at most, 0 for no limit"),
	FIELD(struct vm_limit, bps, FIELD_SIZE, "bps",
	      "bytes a second at most, read and written, 0 for no limit"),
	FIELD(struct vm_limit, read_iops, FIELD_U64, "read-iops", "reads a second at most"),
	FIELD(struct vm_limit, read_bps, FIELD_SIZE, "read-bps", "bytes read a second at most"),
	FIELD(struct vm_limit, write_iops, FIELD_U64, "write-iops", "writes a second at most"),
	FIELD(struct vm_limit, write_bps, FIELD_SIZE, "write-bps",
	      "bytes written a second at most"),
};

const struct table vm_limit_table =
	TABLE(struct vm_limit, "limit", "what a disk may do in a second", vm_limit_fields);

static const struct field vm_under_fields[] = {
	FIELD(struct vm_under, path, FIELD_STRING, "path", "an image file or a block device",
	      .flags = FIELD_REQUIRED),
	FIELD(struct vm_under, format, FIELD_ENUM, "format", "what the image is",
	      .names = format_names, .flags = FIELD_REQUIRED),
};

static const struct table vm_under_table =
	TABLE(struct vm_under, "chain", "an image under another", vm_under_fields);

static const struct field vm_disk_fields[] = {
	FIELD(struct vm_disk, path, FIELD_STRING, "path", "an image file or a block device",
	      .flags = FIELD_REQUIRED),
	FIELD(struct vm_disk, format, FIELD_ENUM, "format",
	      "what the image is; it is never guessed", .names = format_names),
	FIELD(struct vm_disk, readonly, FIELD_BOOL, "readonly", "the guest may not write"),
	FIELD(struct vm_disk, direct, FIELD_BOOL, "direct",
	      "go past the host's page cache (O_DIRECT)"),
	FIELD(struct vm_disk, serial, FIELD_STRING, "serial",
	      "serial number that the guest sees, up to 20 letters", .max = DISK_SERIAL_MAX),
	FIELD(struct vm_disk, queues, FIELD_U32, "queues", "request queues", .min = 1,
	      .max = VM_QUEUES_MAX, .initial = 1),
	FIELD(struct vm_disk, backing, FIELD_ENUM, "backing",
	      "whether the files may be opened that the image names as those under it",
	      .names = backing_names),
	FIELD(struct vm_disk, backing_format, FIELD_ENUM, "backing-format",
	      "their format where the image above does not say it; written: it has to say it",
	      .names = backing_format_names),
	FIELD(struct vm_disk, discard, FIELD_BOOL, "discard",
	      "space that the guest gives up goes back to the store", .initial = true),
	FIELD(struct vm_disk, limit, FIELD_STRUCT, "limit", "what the guest may do in a second",
	      .table = &vm_limit_table),
	FIELD(struct vm_disk, on_error, FIELD_ENUM, "onerror",
	      "full: a full store pauses the VM; pause: so does any error; report: the guest is "
	      "told",
	      .names = on_error_names),
	FIELD(struct vm_disk, low_space, FIELD_SIZE, "low-space",
	      "an event says when the store has less than this; 0: 1G or 5 %, whichever is less"),
	FIELD(struct vm_disk, inactive, FIELD_BOOL, "inactive",
	      "for a VM that is moved here: neither locked nor used until it is claimed"),
	FIELD_LIST_OF(struct vm_disk, chain, n_chain, &vm_under_table, "chain",
		      "the images under it; the launcher finds them"),
};

const struct table vm_disk_table = TABLE(struct vm_disk, "disk", "one disk", vm_disk_fields);

static const struct field vm_forward_fields[] = {
	FIELD(struct vm_forward, protocol, FIELD_ENUM, "protocol", "tcp or udp",
	      .names = protocol_names),
	FIELD(struct vm_forward, address, FIELD_STRING, "address",
	      "the host's address it listens on; by default " VM_FORWARD_ADDRESS
	      ", 0.0.0.0 for all",
	      .max = INET6_ADDRSTRLEN - 1),
	FIELD(struct vm_forward, host_port, FIELD_U16, "host-port", "the port on the host",
	      .min = 1, .flags = FIELD_REQUIRED),
	FIELD(struct vm_forward, guest_port, FIELD_U16, "guest-port", "the port in the guest",
	      .min = 1, .flags = FIELD_REQUIRED),
};

const struct table vm_forward_table =
	TABLE(struct vm_forward, "forward", "a port of the host that reaches one of the guest",
	      vm_forward_fields);

static const struct field vm_net_fields[] = {
	FIELD(struct vm_net, kind, FIELD_ENUM, "kind",
	      "user: what passt reaches; tap: an interface of the host; fd: a tap that is open",
	      .names = net_kind_names),
	FIELD(struct vm_net, tap, FIELD_STRING, "tap", "the tap interface, for kind tap",
	      .max = 15),
	FIELD(struct vm_net, fd, FIELD_U32, "fd", "the open tap's descriptor, for kind fd",
	      .max = 65535),
	FIELD_LIST_OF(struct vm_net, forwards, n_forwards, &vm_forward_table, "forwards",
		      "ports of the host that reach the guest, for kind user"),
	FIELD(struct vm_net, host, FIELD_BOOL, "host",
	      "the guest may reach services on the host's loopback, through its gateway's "
	      "address, for kind user"),
	FIELD(struct vm_net, mac, FIELD_STRING, "mac",
	      "the card's address; by default made from the VM's name", .max = 17),
	FIELD(struct vm_net, queues, FIELD_U32, "queues", "queue pairs, for kind tap", .min = 1,
	      .max = VM_QUEUES_MAX, .initial = 1),
	FIELD(struct vm_net, vhost, FIELD_ENUM, "vhost",
	      "the host kernel moves the frames (vhost-net); auto: where it can",
	      .names = vhost_names),
	FIELD(struct vm_net, rx_rate, FIELD_SIZE, "rx-rate",
	      "bytes a second towards the guest at most, 0 for no limit"),
	FIELD(struct vm_net, tx_rate, FIELD_SIZE, "tx-rate",
	      "bytes a second from the guest at most, 0 for no limit"),
	FIELD(struct vm_net, rx_frames, FIELD_U64, "rx-frames",
	      "frames a second towards the guest at most, 0 for no limit"),
	FIELD(struct vm_net, tx_frames, FIELD_U64, "tx-frames",
	      "frames a second from the guest at most, 0 for no limit"),
};

const struct table vm_net_table = TABLE(struct vm_net, "net", "one network card", vm_net_fields);

static const struct field vm_port_fields[] = {
	FIELD(struct vm_port, name, FIELD_STRING, "name",
	      "what the guest finds it under in /dev/virtio-ports", .max = VM_PORT_NAME_MAX,
	      .flags = FIELD_REQUIRED),
};

const struct table vm_port_table =
	TABLE(struct vm_port, "port", "a named channel into the guest", vm_port_fields);

static const struct field vm_cloud_init_fields[] = {
	FIELD(struct vm_cloud_init, user_data, FIELD_STRING, "user-data",
	      "file with what cloud-init is to do: users, keys, packages"),
	FIELD(struct vm_cloud_init, meta_data, FIELD_STRING, "meta-data",
	      "file with the instance's id and host name; by default the VM's name"),
	FIELD(struct vm_cloud_init, network, FIELD_STRING, "network",
	      "file with cloud-init's network configuration"),
};

const struct table vm_cloud_init_table =
	TABLE(struct vm_cloud_init, "cloud-init",
	      "what an image configures itself by at first boot", vm_cloud_init_fields);

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
	FIELD(struct vm_description, firmware, FIELD_STRING, "firmware",
	      "UEFI firmware (ELF with a PVH note) that boots from the disks"),
	FIELD(struct vm_description, initrd, FIELD_STRING, "initrd", "initial RAM disk"),
	FIELD(struct vm_description, append, FIELD_STRING, "append", "the kernel's command line",
	      .max = VM_APPEND_MAX),
	FIELD_LIST_OF(struct vm_description, disks, n_disks, &vm_disk_table, "disks",
		      "disks, in the order of the guest's slots"),
	FIELD_LIST_OF(struct vm_description, nets, n_nets, &vm_net_table, "nets",
		      "network cards, in the order of the guest's slots"),
	FIELD(struct vm_description, console, FIELD_STRUCT, "console", "the guest's console",
	      .table = &vm_console_table),
	FIELD_LIST_OF(struct vm_description, ports, n_ports, &vm_port_table, "ports",
		      "named channels into the guest"),
	FIELD(struct vm_description, cloud_init, FIELD_STRUCT, "cloud-init",
	      "what an image configures itself by at first boot", .table = &vm_cloud_init_table),
	FIELD(struct vm_description, rng, FIELD_BOOL, "rng", "a source of random numbers",
	      .initial = true),
	FIELD(struct vm_description, balloon, FIELD_BOOL, "balloon",
	      "memory the guest does not use goes back to the host", .initial = true),
	FIELD(struct vm_description, agent, FIELD_BOOL, "agent",
	      "the channel of the QEMU guest agent", .initial = true),
	FIELD(struct vm_description, vsock_cid, FIELD_U32, "vsock-cid",
	      "the guest's vsock address, 0 for no vsock", .max = UINT32_MAX - 1),
	FIELD(struct vm_description, watchdog, FIELD_ENUM, "watchdog",
	      "what happens when the guest no longer feeds its watchdog", .names = watchdog_names),
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
	if (vm->kernel && vm->firmware)
		return error_set(err, -EINVAL,
				 "firmware: does not go with a kernel: the firmware finds its own");
	if ((!vm->kernel || !*vm->kernel) && (!vm->firmware || !*vm->firmware))
		return error_set(err, -EINVAL,
				 "kernel: is missing, name a kernel or a firmware file");
	if (vm->firmware && (vm->initrd || vm->append))
		return error_set(err, -EINVAL,
				 "%s: does not go with a firmware: its boot loader "
				 "decides",
				 vm->initrd ? "initrd" : "append");
	if (vm->vsock_cid > 0 && vm->vsock_cid < VM_CID_MIN)
		return error_set(err, -EINVAL, "vsock-cid: %u is not a guest's, at least %d",
				 vm->vsock_cid, VM_CID_MIN);
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

int vm_disk_check(const struct vm_disk *disk, uint32_t i, struct error *err)
{
	if (!disk->path || !*disk->path)
		return error_set(err, -EINVAL, "disks[%u].path: is missing", i);
	if (disk->queues < 1 || disk->queues > VM_QUEUES_MAX)
		return error_set(err, -EINVAL, "disks[%u].queues: %u is not within 1 and %d", i,
				 disk->queues, VM_QUEUES_MAX);
	if (disk->format == VM_FORMAT_RAW && (disk->backing == VM_BACKING_ALLOW || disk->n_chain))
		return error_set(err, -EINVAL,
				 "disks[%u].backing: only format \"qcow2\" has images under it, "
				 "this is \"raw\"",
				 i);
	if (disk->backing == VM_BACKING_DENY && disk->n_chain)
		return error_set(err, -EINVAL, "disks[%u].chain: does not go with backing \"deny\"",
				 i);
	return disk->serial ? check_serial(disk->serial, i, err) : 0;
}

/* Each is a descriptor. */
static int check_chains(const struct vm_description *vm, struct error *err)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < vm->n_disks; i++)
		n += vm->disks[i].n_chain;
	if (n > VM_CHAINS_MAX)
		return error_set(err, -E2BIG,
				 "disks: %u images stand under them, at most %d may; bring some "
				 "together with `corral disk commit`",
				 n, VM_CHAINS_MAX);
	return 0;
}

int vm_mac_parse(const char *text, uint8_t mac[6])
{
	uint32_t bytes[6];
	char end;

	if (strlen(text) != 17 || strspn(text, "0123456789abcdefABCDEF:") != 17 ||
	    sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%c", &bytes[0], &bytes[1], &bytes[2], &bytes[3],
		   &bytes[4], &bytes[5], &end) != 6)
		return -EINVAL;
	if (bytes[0] & 1 || !(bytes[0] | bytes[1] | bytes[2] | bytes[3] | bytes[4] | bytes[5]))
		return -EINVAL;
	for (int i = 0; i < 6; i++)
		mac[i] = (uint8_t)bytes[i];
	return 0;
}

/* FNV-1a over the name; equal names on one network are told apart by a mac of their own. */
void vm_mac_make(const char *vm_name, uint32_t net, uint8_t mac[6])
{
	uint64_t hash = UINT64_C(0xcbf29ce484222325);

	for (const char *c = vm_name; *c; c++)
		hash = (hash ^ (uint8_t)*c) * UINT64_C(0x100000001b3);
	hash = (hash ^ (net + 0x100)) * UINT64_C(0x100000001b3);
	mac[0] = 0x52; /* locally administered, a station */
	for (int i = 1; i < 6; i++)
		mac[i] = (uint8_t)(hash >> (i * 8));
}

static int check_net_kind(const struct vm_net *net, uint32_t i, struct error *err)
{
	bool tap = net->tap && *net->tap;

	if (net->kind == VM_NET_TAP && !tap)
		return error_set(err, -EINVAL, "nets[%u].tap: is missing, name an interface", i);
	if (net->kind != VM_NET_TAP && net->tap)
		return error_set(err, -EINVAL,
				 "nets[%u].tap: only kind \"tap\" has one, this is \"%s\"", i,
				 net_kind_names[net->kind]);
	if (net->kind == VM_NET_FD && net->fd < 3)
		return error_set(err, -EINVAL, "nets[%u].fd: %u is not the descriptor of a tap", i,
				 net->fd);
	if (net->kind != VM_NET_USER && net->n_forwards)
		return error_set(
			err, -EINVAL,
			"nets[%u].forwards: only kind \"user\" forwards ports, this is \"%s\"", i,
			net_kind_names[net->kind]);
	if (net->kind != VM_NET_USER && net->host)
		return error_set(err, -EINVAL,
				 "nets[%u].host: only kind \"user\" has it, this is \"%s\"", i,
				 net_kind_names[net->kind]);
	if (net->kind != VM_NET_TAP && net->queues != 1)
		return error_set(err, -EINVAL,
				 "nets[%u].queues: only kind \"tap\" has several, this is \"%s\"",
				 i, net_kind_names[net->kind]);
	if (net->kind == VM_NET_USER && net->vhost == VM_VHOST_ON)
		return error_set(
			err, -EINVAL,
			"nets[%u].vhost: does not go with kind \"user\": vhost-net needs a tap", i);
	return 0;
}

static int check_forward(const struct vm_net *net, uint32_t i, uint32_t f, struct error *err)
{
	const char *address = net->forwards[f].address;
	struct in6_addr parsed;

	if (!address || inet_pton(AF_INET, address, &parsed) == 1 ||
	    inet_pton(AF_INET6, address, &parsed) == 1)
		return 0;
	return error_set(err, -EINVAL,
			 "nets[%u].forwards[%u].address: \"%s\" is not an address such as "
			 "127.0.0.1 or 0.0.0.0",
			 i, f, address);
}

static int check_net(const struct vm_net *net, uint32_t i, struct error *err)
{
	uint8_t mac[6];
	int r = check_net_kind(net, i, err);

	for (uint32_t f = 0; f < net->n_forwards && r == 0; f++)
		r = check_forward(net, i, f, err);
	if (r < 0)
		return r;
	if (net->queues < 1 || net->queues > VM_QUEUES_MAX)
		return error_set(err, -EINVAL, "nets[%u].queues: %u is not within 1 and %d", i,
				 net->queues, VM_QUEUES_MAX);
	if (net->mac && vm_mac_parse(net->mac, mac) < 0)
		return error_set(err, -EINVAL,
				 "nets[%u].mac: \"%s\" is not a station's address such as "
				 "52:54:00:12:34:56",
				 i, net->mac);
	if (net->vhost == VM_VHOST_ON &&
	    (net->rx_rate || net->tx_rate || net->rx_frames || net->tx_frames))
		return error_set(
			err, -EINVAL,
			"nets[%u].vhost: does not go with a rate limit: the kernel moves the "
			"frames past us",
			i);
	return 0;
}

static int check_port(const struct vm_port *port, uint32_t i, struct error *err)
{
	if (!port->name || !*port->name || strlen(port->name) > VM_PORT_NAME_MAX ||
	    strspn(port->name,
		   "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") !=
		    strlen(port->name))
		return error_set(
			err, -EINVAL,
			"ports[%u].name: \"%s\" is not 1 to %d letters, digits, '.', '_' and '-'",
			i, port->name ? port->name : "", VM_PORT_NAME_MAX);
	return 0;
}

static int check_cloud_init(const struct vm_cloud_init *files, struct error *err)
{
	if ((files->meta_data || files->network) && !files->user_data)
		return error_set(err, -EINVAL, "cloud-init.user-data: is missing, name a file");
	return 0;
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
		r = vm_disk_check(&vm->disks[i], i, err);
	if (r == 0)
		r = check_chains(vm, err);
	for (uint32_t i = 0; i < vm->n_nets && r == 0; i++)
		r = check_net(&vm->nets[i], i, err);
	for (uint32_t i = 0; i < vm->n_ports && r == 0; i++)
		r = check_port(&vm->ports[i], i, err);
	if (r == 0)
		r = check_cloud_init(&vm->cloud_init, err);
	return r < 0 ? r : check_console(&vm->console, err);
}
