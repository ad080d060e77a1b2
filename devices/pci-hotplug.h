/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hot-plug of PCI slots by ACPI: which slots were filled, which the guest is asked to give up, and
 * the guest's word that it has. The host's side comes in from the main thread, an event of the
 * generic event device goes out; the guest's AML reads the bits, notifies the slots' devices, and
 * writes to the last register from _EJ0. What the guest has not read yet migrates.
 *
 * Registers, 32 bits each, a bit a slot (bit 0, the host bridge's, is never set). A read clears the
 * bits of the bytes that it read.
 */
#pragma once

#include <stdatomic.h>

#include "devices/bus.h"
#include "devices/ged.h"

#define PCI_HOTPLUG_PORT      0x620
#define PCI_HOTPLUG_UP        0 /* read: filled since the last read */
#define PCI_HOTPLUG_DOWN      4 /* read: to be given up */
#define PCI_HOTPLUG_EJECT     8 /* write: given up; reads as 0 */
#define PCI_HOTPLUG_PORT_SIZE 12

/* Whoever owns the slots' contents. On a vCPU thread, the device's lock held: it must neither wait
 * nor call this device. */
struct pci_hotplug_owner {
	void (*eject)(struct pci_hotplug_owner *owner, uint32_t slot);
};

struct pci_hotplug {
	struct device device;            /* first */
	struct ged *ged;                 /* borrowed */
	struct pci_hotplug_owner *owner; /* borrowed; NULL: ejects are ignored */
	/* Since the start. */
	_Atomic uint64_t n_added, n_asked, n_ejected;

	/* Migrates. Lock. */
	struct pci_hotplug_state {
		uint32_t up, down;
	} state;
};

int pci_hotplug_init(struct pci_hotplug *hotplug, struct bus *io, struct ged *ged,
		     struct error *err) __must_check;

/* The slot has been filled: the guest is told. Main thread, like the next two. */
void pci_hotplug_added(struct pci_hotplug *hotplug, uint32_t slot);
/* The guest is asked to give the slot up. */
void pci_hotplug_ask(struct pci_hotplug *hotplug, uint32_t slot);
/*
 * Tells the guest again of what it has not read: an edge that came before its driver did is lost.
 * False: it has read everything.
 */
bool pci_hotplug_remind(struct pci_hotplug *hotplug);
/* The slot is empty: nothing is left to be said of it. Any thread. */
void pci_hotplug_forget(struct pci_hotplug *hotplug, uint32_t slot);
