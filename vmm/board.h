/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The board "corral-1": which devices there are, in which slots and at which addresses. All of it
 * is migration ABI. Built once from the description and the descriptors that came with it; from
 * then on it is an array of devices to which the machine does the same.
 */
#pragma once

#include "base/fd.h"
#include "block/block.h"
#include "devices/chardev.h"
#include "devices/ged.h"
#include "devices/generation.h"
#include "devices/i8042.h"
#include "devices/pci-hotplug.h"
#include "devices/power.h"
#include "devices/pvpanic.h"
#include "devices/rtc.h"
#include "devices/serial.h"
#include "devices/watchdog.h"
#include "proto/vm.h"
#include "virtio/balloon.h"
#include "virtio/console.h"
#include "virtio/net.h"
#include "virtio/rng.h"
#include "virtio/vsock.h"
#include "vmm/disk-change.h"
#include "vmm/hotplug.h"
#include "vmm/io-thread.h"
#include "vmm/kvm.h"
#include "vmm/x86/kernel.h"

#define BOARD_NAME           "corral-1"
#define BOARD_AGENT_PORT     "org.qemu.guest_agent.0"
#define BOARD_IO_THREADS_MAX 8
#define BOARD_DEVICES_MAX    (16 + VM_DISKS_MAX + VM_NETS_MAX)

/* PCI slots. 0 is the host bridge; those not named are kept for devices to come. */
enum board_slot {
	BOARD_SLOT_CONSOLE = 1,
	BOARD_SLOT_RNG = 2,
	BOARD_SLOT_BALLOON = 3,
	BOARD_SLOT_VSOCK = 4,
	BOARD_SLOT_WATCHDOG = 5,
	BOARD_SLOT_DISK = 8, /* to 23 */
	BOARD_SLOT_NET = 24, /* to 31 */
};

struct board {
	const struct vm_description *vm; /* borrowed */
	struct kvm kvm;
	struct guest_memory memory;
	struct bus io, mmio;
	struct pci_root pci;
	struct pci_hotplug pci_hotplug;
	struct chardev chardev; /* the host's end of the console */
	struct chardev agent;   /* … of the guest agent's channel */
	struct chardev ports[VM_PORTS_MAX];

	struct serial serial;
	struct power power;
	struct ged ged;
	struct i8042 i8042;
	struct rtc rtc;
	struct pvpanic pvpanic;
	struct generation generation;
	struct virtio_console console;
	struct rng rng;
	struct balloon balloon;
	struct vsock *vsock; /* owned, NULL: none */
	struct watchdog watchdog;
	uint32_t n_nets;
	struct net *nets[VM_NETS_MAX]; /* owned */
	struct disk *disks;            /* owned, VM_DISKS_MAX; zeroed where there is none */
	struct disk_watcher *watcher;  /* borrowed */
	struct block_worker *workers[VM_DISKS_MAX]; /* owned; NULL: the spare one serves it */
	struct block_worker *spare; /* owned; also for changes, and disks that come later */
	struct disk_change change;
	struct hotplug hotplug; /* disks that come and go */

	uint32_t n_io_threads;
	struct io_thread io_threads[BOARD_IO_THREADS_MAX];

	/* All of the above that are devices, in the order in which they are saved and loaded. */
	uint32_t n_devices;
	struct device *devices[BOARD_DEVICES_MAX];

	int kernel_fd, initrd_fd; /* owned; initrd -1: none */
};

/* Nothing yet: what board_deinit may be given. */
void board_null(struct board *board);

struct board_options {
	struct loop *main; /* serves console, rng and the slow paths */
	struct machine_events *events;
	struct disk_watcher *watcher;
	void (*worker_start)(
		void *);            /* first in threads that stand in for io_uring; NULL: nothing */
	void (*disk_start)(void *); /* first in disks' workers; likewise */
};

/* `fds` loses the descriptors that are taken. */
int board_init(struct board *board, const struct vm_description *vm, struct named_fds *fds,
	       const struct board_options *options, struct error *err) __must_check;
void board_deinit(struct board *board);

/* The guest's address as "192.168.1.2": that of the first card that was seen to have one; false:
 * none. */
bool board_address(const struct board *board, char text[16]);

/* Tables and kernel into memory, as at power-on; where the first vCPU enters. */
int board_load(struct board *board, struct boot_entry *ret_entry, struct error *err) __must_check;

/* vmm/board-disks.c */
int board_disks_init(struct board *board, struct named_fds *fds, struct loop *main,
		     struct loop *const *loops, uint32_t n_loops, void (*start)(void *),
		     struct error *err) __must_check;
/* Loops have ended, devices are gone. */
void board_disks_deinit(struct board *board);
/* It has a device, whether that is plugged or not. */
bool board_has_disk(const struct board *board, uint32_t number);
/* Somebody works behind its back: not now. */
bool board_disk_is_busy(const struct board *board, uint32_t number);

/* The array of devices. */
void board_add(struct board *board, struct device *device);
void board_remove(struct board *board, const struct device *device);
/* NULL if there is none of that name. */
struct device *board_device(struct board *board, const char *name);
