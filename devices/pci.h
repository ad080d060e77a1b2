/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One PCI bus, its functions, their configuration space, BARs and MSI-X. Configuration accesses
 * come in through ports CF8/CFC and through ECAM; accesses to the windows of BARs, in memory and,
 * where the board has one, of I/O ports, are handed to the function whose BAR holds the address.
 * BARs are assigned before the first instruction, so a guest without firmware finds them in place,
 * and may be moved by a guest that wants to. Functions come and go while vCPUs run (hot-plug): one
 * that comes so has its BARs nowhere until the guest places them, or resets.
 */
#pragma once

#include <stdatomic.h>

#include "devices/bus.h"
#include "devices/device.h"

#define PCI_PORT_ADDRESS 0xcf8 /* the latch: which register CFC is */
#define PCI_SLOTS        32
#define PCI_CONFIG_SIZE  256
#define PCI_BARS         6
#define PCI_MSIX_MAX     80 /* vectors a function */

/* Vectors live in the kernel's interrupt routing; this is the guest-visible table. Migrates. */
struct msix_vector {
	uint64_t address;
	uint32_t data;
	uint32_t control; /* bit 0: masked */
};

struct msix_table {
	uint32_t n_vectors;
	struct msix_vector vectors[PCI_MSIX_MAX];
	uint8_t pending[PCI_MSIX_MAX / 8]; /* brought up to date for a save */
};

struct msix {
	struct msix_table table; /* lock */
	uint32_t n_routes;
	struct {
		uint32_t id; /* of the irq host */
		int fd;      /* borrowed eventfd: a signal is one interrupt */
	} routes[PCI_MSIX_MAX];
};

/* Configuration space, little-endian, as the guest reads it. Migrates. */
struct pci_config {
	uint8_t bytes[PCI_CONFIG_SIZE];
};

struct pci_function;
struct pci_root;

struct pci_function_ops {
	/* Access to a BAR; as device_ops.read and write, `region` is the BAR. */
	void (*read)(struct pci_function *function, uint32_t bar, uint64_t offset, void *data,
		     uint32_t len);
	void (*write)(struct pci_function *function, uint32_t bar, uint64_t offset,
		      const void *data, uint32_t len);
	/*
	 * The BAR has an address to itself now, 0: it has none. The root's `moves` is held, the
	 * function's own lock not always. May be NULL.
	 */
	void (*moved)(struct pci_function *function, uint32_t bar, gpa_t from, gpa_t to);
	/*
	 * Configuration space beyond the generic: return true if it was taken care of. For windows
	 * such as virtio's PCI_CFG capability. May be NULL. Lock held.
	 */
	bool (*config_access)(struct pci_function *function, uint32_t offset, void *data,
			      uint32_t len, bool write);
};

struct pci_bar {
	/* A power of two, 0: none. Memory: >= 4096, 32 bits, not prefetchable. Ports: 4 to 256. */
	uint64_t size;
	enum device_space space;
	uint64_t home;            /* address assigned at power-on */
	_Atomic uint64_t address; /* where it answers now, 0: nowhere */
	gpa_t told;               /* the address last given to moved(); root's moves */
};

struct pci_function {
	struct device device; /* first */
	const struct pci_function_ops *ops;
	struct pci_root *root; /* weak */
	uint32_t slot;
	struct pci_config config;          /* lock */
	uint8_t writable[PCI_CONFIG_SIZE]; /* bits the guest may change */
	uint8_t initial[PCI_CONFIG_SIZE];  /* at power-on */
	uint32_t config_used;              /* bytes of capabilities so far */
	struct pci_bar bars[PCI_BARS];
	struct msix msix;
	uint32_t msix_offset; /* of the capability, 0: none */
	uint32_t n_inside;    /* accesses under way; root's lock */
	bool hidden;          /* no further ones, it is on its way out; root's lock */
};

struct pci_ids {
	uint16_t vendor, device, subsystem_vendor, subsystem;
	uint32_t class_code; /* 24 bits */
	uint8_t revision;
};

/* Migrates. */
struct pci_latch {
	uint32_t address;
};

/* Where BARs are. */
struct pci_window {
	gpa_t start;
	uint64_t size; /* 0: there is none */
};

/* The root: a device of its own, on the buses for CF8/CFC, ECAM and the windows of BARs. */
struct pci_root {
	struct device device;
	struct pci_latch latch;                    /* CF8; lock */
	struct pci_function *functions[PCI_SLOTS]; /* weak; read under the lock or `moves`, written
						      under both */
	struct irq_host *irqs;                     /* borrowed */
	struct kick_host *kicks;                   /* borrowed */
	struct pci_window windows[2];              /* by enum device_space */
	struct pci_function bridge;                /* slot 0: 8086:0d57 */
	pthread_cond_t left;   /* the last access of a hidden function has ended; the lock */
	pthread_mutex_t moves; /* of BARs; taken with a function's lock held, before the root's */
};

struct pci_layout {
	gpa_t ecam;   /* 1 MiB: bus 0 */
	gpa_t window; /* 32-bit memory for BARs */
	uint64_t window_size;
	uint32_t ports, n_ports; /* for BARs; 0: none */
};

int pci_root_init(struct pci_root *root, const struct pci_layout *layout, struct bus *io,
		  struct bus *mmio, struct irq_host *irqs, struct kick_host *kicks,
		  struct error *err) __must_check;

/* A function with its identity, not plugged in yet. device_init is done by the caller with its own
 * ops. */
void pci_function_init(struct pci_function *function, struct pci_root *root,
		       const struct pci_function_ops *ops, const struct pci_ids *ids);
/* Reserves a capability of `size` bytes (with its two-byte header) and returns its offset. */
uint32_t pci_add_capability(struct pci_function *function, uint8_t id, uint8_t size);
void pci_config_put16(struct pci_function *function, uint32_t offset, uint16_t value);
void pci_config_put32(struct pci_function *function, uint32_t offset, uint32_t value);
void pci_add_bar(struct pci_function *function, uint32_t bar, uint64_t size);
/* In I/O ports. False: the board has none for BARs. */
bool pci_add_port_bar(struct pci_function *function, uint32_t bar, uint32_t size);
/* Plugs it in: BARs get their homes. -EBUSY: slot taken; -ENOSPC: window full. Main thread. */
int pci_plug(struct pci_root *root, struct pci_function *function, uint32_t slot,
	     struct error *err) __must_check;

/* The same while vCPUs run: decoding is off and the BARs have no address, until the guest gives
 * them one; from its next reset on they are at home. */
int pci_plug_hot(struct pci_root *root, struct pci_function *function, uint32_t slot,
		 struct error *err) __must_check;
/* From now on nobody reaches what is in the slot: it reads as empty. False: it did so before. Any
 * thread, waits for nobody. */
bool pci_hide(struct pci_root *root, uint32_t slot);
/*
 * Takes the function out of its slot: waits for accesses under way, and its kicks end. Its vectors
 * stay until msix_deinit. Main thread, without a lock.
 */
void pci_unplug(struct pci_function *function);

/* What a function's device_ops call for their generic part. */
void pci_function_reset(struct pci_function *function);
void pci_function_saving(struct pci_function *function);
uint32_t pci_function_states(struct pci_function *function, struct device_state *states);
int pci_function_loaded(struct pci_function *function, struct error *err);

/* MSI-X: `n` vectors, the table at `table` and pending bits at `pending` in BAR `bar`. */
int msix_init(struct pci_function *function, uint32_t n, uint32_t bar, uint32_t table,
	      uint32_t pending, struct error *err) __must_check;
void msix_deinit(struct pci_function *function);
void msix_table_read(struct pci_function *function, uint64_t offset, void *data, uint32_t len);
void msix_table_write(struct pci_function *function, uint64_t offset, const void *data,
		      uint32_t len);
void msix_pending_read(struct pci_function *function, uint64_t offset, void *data, uint32_t len);
/* The eventfd of a vector, -1 if the number is none. */
int msix_fd(const struct pci_function *function, uint32_t vector);
/* Pending bits: taken from the eventfds, put back into them, forgotten. */
void msix_pending_save(struct pci_function *function);
void msix_pending_load(struct pci_function *function);
void msix_pending_clear(struct pci_function *function);
/* Table, enable or function mask changed: bring the routes in line. */
void msix_update(struct pci_function *function);
