/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PCI functions of bus 0, their configuration space through either door, and MSI-X. BARs are used
 * where firmware or VMM has put them.
 */
#pragma once

#include "guest-tests/runtime/guest.h"

#define PCI_VENDOR              0x00
#define PCI_DEVICE              0x02
#define PCI_COMMAND             0x04
#define PCI_STATUS              0x06
#define PCI_CLASS               0x08
#define PCI_HEADER_TYPE         0x0e
#define PCI_BAR0                0x10
#define PCI_SUBSYSTEM_ID        0x2e
#define PCI_CAPABILITIES        0x34

#define PCI_BAR_IS_IO           0x1
#define PCI_COMMAND_IO          0x001
#define PCI_COMMAND_MEMORY      0x002
#define PCI_COMMAND_MASTER      0x004
#define PCI_COMMAND_INTX_OFF    0x400
#define PCI_STATUS_CAPABILITIES 0x10

#define PCI_CAP_MSIX            0x11
#define PCI_CAP_VENDOR          0x09

#define MSIX_CONTROL_ENABLE     0x8000
#define MSIX_CONTROL_MASK_ALL   0x4000
#define MSIX_ENTRY_MASKED       0x1

struct pci_device {
	uint8_t slot, function;
	uint16_t vendor, device;
	uint8_t msix_cap; /* 0: none */
	unsigned int n_vectors;
	gpa_t msix_table, msix_pba;
};

/* Through ports 0xCF8 and 0xCFC; width is 1, 2 or 4. */
uint32_t pci_port_read(const struct pci_device *dev, unsigned int offset, unsigned int width);
void pci_port_write(const struct pci_device *dev, unsigned int offset, unsigned int width,
		    uint32_t value);
/* Through the memory window that the MCFG names. */
uint32_t pci_ecam_read(const struct pci_device *dev, unsigned int offset, unsigned int width);
void pci_ecam_write(const struct pci_device *dev, unsigned int offset, unsigned int width,
		    uint32_t value);

static inline uint32_t pci_read32(const struct pci_device *dev, unsigned int offset)
{
	return pci_port_read(dev, offset, 4);
}

static inline uint16_t pci_read16(const struct pci_device *dev, unsigned int offset)
{
	return (uint16_t)pci_port_read(dev, offset, 2);
}

static inline uint8_t pci_read8(const struct pci_device *dev, unsigned int offset)
{
	return (uint8_t)pci_port_read(dev, offset, 1);
}

/* The next function after *at (slot and function), or false at the end; begin with {0} and first.
 */
bool pci_next(struct pci_device *at, bool first);

/* The first, or the next after `after`, capability of this type; 0 when there is none. */
unsigned int pci_find_capability(const struct pci_device *dev, uint8_t type, unsigned int after);

/* Address of a memory BAR, mapped and ready; size is found by the usual write of ones when asked.
 */
gpa_t pci_bar(const struct pci_device *dev, unsigned int bar, uint64_t *ret_size);
/* The first port of an I/O BAR and its size, when asked; 0: it is no such BAR, or has no address.
 */
uint16_t pci_port_bar(const struct pci_device *dev, unsigned int bar, unsigned int *ret_size);
void pci_enable(const struct pci_device *dev);

/* Finds table and pending bits, masks every entry, enables MSI-X. False: no such capability. */
bool msix_init(struct pci_device *dev);
void msix_control(const struct pci_device *dev, uint16_t set, uint16_t clear);
void msix_route(const struct pci_device *dev, unsigned int entry, uint8_t vector, uint32_t target);
void msix_mask(const struct pci_device *dev, unsigned int entry, bool masked);
bool msix_pending(const struct pci_device *dev, unsigned int entry);
