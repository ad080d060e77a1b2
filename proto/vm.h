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

#define VM_NAME_MAX      48 /* bytes: letters, digits, '-', '_', '.'; starts with a letter or digit */
#define VM_CPUS_MAX      64
#define VM_DISKS_MAX     16
#define VM_CHAIN_MAX     63 /* images under a disk's own */
#define VM_CHAINS_MAX    64 /* … of all disks together */
#define VM_QUEUES_MAX    8
#define VM_NETS_MAX      8
#define VM_FORWARDS_MAX  16 /* of one network card in user mode */
#define VM_PORTS_MAX     2  /* named channels besides the guest agent's */
#define VM_PORT_NAME_MAX 32
#define VM_CID_MIN       3    /* vsock: 0 to 2 are not guests */
#define VM_APPEND_MAX    2047 /* what a 64-bit kernel's command line holds, without its NUL */

enum vm_console_kind { VM_CONSOLE_NONE, VM_CONSOLE_STDIO, VM_CONSOLE_FILE, VM_CONSOLE_PTY };
enum vm_console_device { VM_CONSOLE_SERIAL, VM_CONSOLE_VIRTIO };
enum vm_thp { VM_THP_DEFAULT, VM_THP_ON, VM_THP_OFF };
enum vm_on_reset { VM_RESET_REBOOT, VM_RESET_EXIT };
enum vm_net_kind { VM_NET_USER, VM_NET_TAP, VM_NET_FD };
enum vm_vhost { VM_VHOST_AUTO, VM_VHOST_ON, VM_VHOST_OFF };
enum vm_protocol { VM_TCP, VM_UDP };
enum vm_format { VM_FORMAT_RAW, VM_FORMAT_QCOW2 };
enum vm_backing { VM_BACKING_DENY, VM_BACKING_ALLOW };
enum vm_backing_format { VM_BACKING_WRITTEN, VM_BACKING_RAW, VM_BACKING_QCOW2 };
enum vm_on_error {
	VM_ERROR_FULL,  /* writes that find their store full pause the VM, the guest is told the
			   rest */
	VM_ERROR_PAUSE, /* whatever the store fails at pauses the VM */
	VM_ERROR_REPORT /* the guest is told all */
};
enum vm_watchdog {
	VM_WATCHDOG_NONE,
	VM_WATCHDOG_RESET,
	VM_WATCHDOG_POWER_OFF,
	VM_WATCHDOG_PAUSE,
	VM_WATCHDOG_REPORT
};

struct vm_memory {
	uint64_t size; /* bytes, a multiple of 2 MiB */
	bool merge;    /* private anonymous, madvise(MERGEABLE), no THP */
	uint32_t thp;  /* enum vm_thp; DEFAULT: on unless merge */
	bool shared;   /* memfd */
	bool prefault;
};

/* What a disk may do a second, all its queues together; 0: no limit. Each is a limit of its own. */
struct vm_limit {
	uint64_t iops, bps; /* reads and writes, operations and bytes */
	uint64_t read_iops, read_bps;
	uint64_t write_iops, write_bps;
};

/* An image that another one stands on. Found and opened by the launcher; the VMM opens no names. */
struct vm_under {
	char *path;
	uint32_t format; /* enum vm_format */
};

struct vm_disk {
	char *path;
	uint32_t format; /* enum vm_format */
	bool readonly;
	bool direct;  /* O_DIRECT, opened so by the launcher */
	char *serial; /* at most 20 bytes */
	uint32_t queues;
	uint32_t backing;        /* enum vm_backing: whether the image may stand on others */
	uint32_t backing_format; /* enum vm_backing_format: of those whose format is not written in
				    the image above them */
	bool discard;            /* what the guest gives up is given back to the store */
	struct vm_limit limit;
	uint32_t on_error;  /* enum vm_on_error */
	uint64_t low_space; /* bytes free in the store, below which an event says so; 0: 1 GiB or a
			       twentieth, whichever is less */
	bool inactive; /* for a VM that is moved here: not locked, not used until it is claimed */
	uint32_t n_chain; /* filled in by the launcher, from the image down */
	struct vm_under chain[VM_CHAIN_MAX];
};

/* A port of the host that reaches one of the guest. */
struct vm_forward {
	uint32_t protocol; /* enum vm_protocol */
	char *address;     /* of the host, IPv4 or IPv6; absent: VM_FORWARD_ADDRESS */
	uint16_t host_port, guest_port;
};

struct vm_net {
	uint32_t kind; /* enum vm_net_kind */
	char *tap;     /* TAP: the interface */
	uint32_t fd;   /* FD: a tap's descriptor, inherited by the launcher */
	uint32_t n_forwards;
	struct vm_forward forwards[VM_FORWARDS_MAX]; /* USER */
	bool host; /* USER: services on the host's loopback are the guest's too */
	char *mac; /* "52:54:00:12:34:56"; absent: made from the VM's name and the card's number */
	uint32_t queues;           /* pairs; TAP */
	uint32_t vhost;            /* enum vm_vhost; TAP, FD */
	uint64_t rx_rate, tx_rate; /* bytes a second towards the guest, and from it; 0: no limit */
	uint64_t rx_frames, tx_frames; /* frames a second, likewise */
};

/* A named channel between a program in the guest (/dev/virtio-ports/NAME) and the host. */
struct vm_port {
	char *name;
};

/* What the launcher turns into a NoCloud disk; the VMM ignores it. */
struct vm_cloud_init {
	char *user_data, *meta_data, *network; /* files; the first is needed, the others optional */
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
	char *kernel;   /* or firmware, not both */
	char *firmware; /* an ELF file with a PVH note that boots from the disks */
	char *initrd;
	char *append;
	uint32_t n_disks;
	struct vm_disk disks[VM_DISKS_MAX];
	uint32_t n_nets;
	struct vm_net nets[VM_NETS_MAX];
	struct vm_console console;
	uint32_t n_ports;
	struct vm_port ports[VM_PORTS_MAX];
	struct vm_cloud_init cloud_init;
	bool rng;
	bool balloon;       /* with free-page reporting */
	bool agent;         /* the channel of the QEMU guest agent */
	uint32_t vsock_cid; /* 0: no vsock */
	uint32_t watchdog;  /* enum vm_watchdog: what happens when the guest no longer feeds it */
	bool sandbox;
	uint32_t on_reset; /* enum vm_on_reset */
};

extern const struct table vm_table;
extern const struct table vm_memory_table;
extern const struct table vm_disk_table;
extern const struct table vm_limit_table;
extern const struct table vm_net_table;
extern const struct table vm_forward_table;
extern const struct table vm_port_table;
extern const struct table vm_cloud_init_table;
extern const struct table vm_console_table;

/* Where a forward listens that names no address: what runs on the host reaches it, nobody else. */
#define VM_FORWARD_ADDRESS "127.0.0.1"

/* "52:54:00:12:34:56" to six bytes: a station's address, not a group's. -EINVAL. */
int vm_mac_parse(const char *text, uint8_t mac[6]) __must_check;
/* The address of the card with that number when nobody gave one: locally administered, the same
 * each time. */
void vm_mac_make(const char *vm_name, uint32_t net, uint8_t mac[6]);

/*
 * What the tables cannot say: name's letters, memory's kinds that exclude each other, sizes' steps,
 * console paths, serial lengths. One sentence with the path of the key.
 */
int vm_check(const struct vm_description *vm, struct error *err) __must_check;
/* The same of one disk that comes to a running VM, as its disk number `i`. */
int vm_disk_check(const struct vm_disk *disk, uint32_t i, struct error *err) __must_check;

/*
 * Descriptors of a VMM, by the name under which they are handed over. The first three are needed
 * always. Every one is opened by the launcher with the rights it should have and no more.
 */
#define VM_FD_DESCRIPTION "description" /* read: JSON text of struct vm_description */
#define VM_FD_KVM         "kvm"         /* /dev/kvm */
#define VM_FD_KERNEL      "kernel"      /* read: the kernel, or the firmware */
#define VM_FD_INITRD      "initrd"      /* read */
#define VM_FD_DISK        "disk"        /* "disk0" …: as the disk is to be used */
#define VM_FD_BACKING     "-backing"    /* "disk0-backing1": read: the second image under disk0's */
#define VM_FD_NET                                                                             \
	"net" /* "net0.0": card 0, pair 0: a tap with vnet header, non-blocking; kind USER: a \
		 stream socket with passt at its other end */
#define VM_FD_VHOST "vhost" /* "vhost0.0": /dev/vhost-net for that pair; absent: none */
#define VM_FD_VSOCK "vsock" /* a listening UNIX stream socket: the host's side of the vsock */
#define VM_FD_PORT  "port"  /* "port0": a connected stream socket for that channel */
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
