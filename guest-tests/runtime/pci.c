/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Configuration space, BARs and MSI-X of the functions on bus 0. The ports work without ACPI and
 * are the default; the ECAM functions are for tests that compare the two.
 */
#include "guest-tests/runtime/pci.h"

#include "guest-tests/runtime/acpi.h"

#define CONFIG_ADDRESS 0xcf8
#define CONFIG_DATA    0xcfc
#define CONFIG_ENABLE  0x80000000u

#define BAR_IS_64      0x4

static void select(const struct pci_device *dev, unsigned int offset)
{
	outl(CONFIG_ADDRESS,
	     CONFIG_ENABLE | dev->slot << 11 | dev->function << 8 | (offset & 0xfc));
}

uint32_t pci_port_read(const struct pci_device *dev, unsigned int offset, unsigned int width)
{
	uint16_t port = CONFIG_DATA + (offset & 3);

	select(dev, offset);
	return width == 1 ? inb(port) : width == 2 ? inw(port) : inl(port);
}

void pci_port_write(const struct pci_device *dev, unsigned int offset, unsigned int width,
		    uint32_t value)
{
	uint16_t port = CONFIG_DATA + (offset & 3);

	select(dev, offset);
	if (width == 1)
		outb(port, (uint8_t)value);
	else if (width == 2)
		outw(port, (uint16_t)value);
	else
		outl(port, value);
}

static gpa_t ecam_gpa(const struct pci_device *dev, unsigned int offset)
{
	return acpi_info()->ecam + (dev->slot << 15 | dev->function << 12 | offset);
}

uint32_t pci_ecam_read(const struct pci_device *dev, unsigned int offset, unsigned int width)
{
	gpa_t at = ecam_gpa(dev, offset);

	return width == 1 ? mmio_read8(at) : width == 2 ? mmio_read16(at) : mmio_read32(at);
}

void pci_ecam_write(const struct pci_device *dev, unsigned int offset, unsigned int width,
		    uint32_t value)
{
	gpa_t at = ecam_gpa(dev, offset);

	if (width == 1)
		mmio_write8(at, (uint8_t)value);
	else if (width == 2)
		mmio_write16(at, (uint16_t)value);
	else
		mmio_write32(at, value);
}

static unsigned int next_function(const struct pci_device *at)
{
	unsigned int devfn = at->slot << 3 | at->function;

	/* Functions 1 to 7 are only asked for where function 0 says that they may exist. */
	if (at->function == 0 && (at->vendor == 0xffff || !(pci_read8(at, PCI_HEADER_TYPE) & 0x80)))
		return devfn + 8;
	return devfn + 1;
}

bool pci_next(struct pci_device *at, bool first)
{
	unsigned int devfn = first ? 0 : next_function(at);

	for (; devfn < 256; devfn = next_function(at)) {
		uint32_t id;

		*at = (struct pci_device){.slot = devfn >> 3, .function = devfn & 7};
		id = pci_read32(at, PCI_VENDOR);
		at->vendor = (uint16_t)id;
		at->device = id >> 16;
		if (at->vendor != 0xffff)
			return true;
	}
	return false;
}

unsigned int pci_find_capability(const struct pci_device *dev, uint8_t type, unsigned int after)
{
	unsigned int at;

	if (!(pci_read16(dev, PCI_STATUS) & PCI_STATUS_CAPABILITIES))
		return 0;
	at = pci_read8(dev, after ? after + 1 : PCI_CAPABILITIES);
	for (unsigned int i = 0; at; i++) {
		GUEST_ASSERT(at >= 0x40 && at % 4 == 0 && i < 48, "%x.%x: capability at 0x%x",
			     dev->slot, dev->function, at);
		if (pci_read8(dev, at) == type)
			return at;
		at = pci_read8(dev, at + 1);
	}
	return 0;
}

static uint64_t bar_size(const struct pci_device *dev, unsigned int offset, bool wide)
{
	uint16_t command = pci_read16(dev, PCI_COMMAND);
	uint32_t lo = pci_read32(dev, offset), hi = wide ? pci_read32(dev, offset + 4) : 0;
	uint64_t mask;

	pci_port_write(dev, PCI_COMMAND, 2, command & ~(PCI_COMMAND_MEMORY | PCI_COMMAND_IO));
	pci_port_write(dev, offset, 4, ~0u);
	mask = pci_read32(dev, offset) & ~0xfull;
	if (wide) {
		pci_port_write(dev, offset + 4, 4, ~0u);
		mask |= (uint64_t)pci_read32(dev, offset + 4) << 32;
		pci_port_write(dev, offset + 4, 4, hi);
	} else {
		mask |= 0xffffffffull << 32;
	}
	pci_port_write(dev, offset, 4, lo);
	pci_port_write(dev, PCI_COMMAND, 2, command);
	return mask & 0xffffffff ? ~mask + 1 : wide ? ~mask + 1 : 0;
}

gpa_t pci_bar(const struct pci_device *dev, unsigned int bar, uint64_t *ret_size)
{
	unsigned int offset = PCI_BAR0 + bar * 4;
	uint32_t lo = pci_read32(dev, offset);
	bool wide = lo & BAR_IS_64;
	gpa_t gpa = lo & ~0xfull;
	uint64_t size;

	GUEST_ASSERT(bar < 6 && !(lo & PCI_BAR_IS_IO), "%x.%x: BAR %u is 0x%x", dev->slot,
		     dev->function, bar, lo);
	if (wide)
		gpa |= (uint64_t)pci_read32(dev, offset + 4) << 32;
	GUEST_ASSERT(gpa, "%x.%x: BAR %u has no address", dev->slot, dev->function, bar);
	size = bar_size(dev, offset, wide);
	mem_map(gpa, size);
	if (ret_size)
		*ret_size = size;
	return gpa;
}

uint16_t pci_port_bar(const struct pci_device *dev, unsigned int bar, unsigned int *ret_size)
{
	unsigned int offset = PCI_BAR0 + bar * 4;
	uint16_t command = pci_read16(dev, PCI_COMMAND);
	uint32_t value = pci_read32(dev, offset);

	if (!(value & PCI_BAR_IS_IO))
		return 0;
	if (ret_size) {
		pci_port_write(dev, PCI_COMMAND, 2, command & ~PCI_COMMAND_IO);
		pci_port_write(dev, offset, 4, ~0u);
		*ret_size = -(pci_read32(dev, offset) & 0xfffc) & 0xffff;
		pci_port_write(dev, offset, 4, value);
		pci_port_write(dev, PCI_COMMAND, 2, command);
	}
	return (uint16_t)(value & ~3u);
}

void pci_enable(const struct pci_device *dev)
{
	uint16_t command = pci_read16(dev, PCI_COMMAND);

	pci_port_write(dev, PCI_COMMAND, 2,
		       command | PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER |
			       PCI_COMMAND_INTX_OFF);
}

bool msix_init(struct pci_device *dev)
{
	uint32_t table, pba;

	dev->msix_cap = (uint8_t)pci_find_capability(dev, PCI_CAP_MSIX, 0);
	if (!dev->msix_cap)
		return false;
	table = pci_read32(dev, dev->msix_cap + 4);
	pba = pci_read32(dev, dev->msix_cap + 8);
	dev->n_vectors = (pci_read16(dev, dev->msix_cap + 2) & 0x7ff) + 1;
	dev->msix_table = pci_bar(dev, table & 7, NULL) + (table & ~7u);
	dev->msix_pba = pci_bar(dev, pba & 7, NULL) + (pba & ~7u);
	for (unsigned int i = 0; i < dev->n_vectors; i++)
		msix_mask(dev, i, true);
	msix_control(dev, MSIX_CONTROL_ENABLE, MSIX_CONTROL_MASK_ALL);
	return true;
}

void msix_control(const struct pci_device *dev, uint16_t set, uint16_t clear)
{
	uint16_t control = pci_read16(dev, dev->msix_cap + 2);

	pci_port_write(dev, dev->msix_cap + 2, 2, (control & ~clear) | set);
}

void msix_route(const struct pci_device *dev, unsigned int entry, uint8_t vector, uint32_t target)
{
	gpa_t at = dev->msix_table + entry * 16;

	GUEST_ASSERT(entry < dev->n_vectors, "%x.%x: has %u vectors", dev->slot, dev->function,
		     dev->n_vectors);
	/* An entry must be masked while it changes. */
	msix_mask(dev, entry, true);
	mmio_write32(at, 0xfee00000u | target << 12);
	mmio_write32(at + 4, 0);
	mmio_write32(at + 8, vector);
	msix_mask(dev, entry, false);
}

void msix_mask(const struct pci_device *dev, unsigned int entry, bool masked)
{
	mmio_write32(dev->msix_table + entry * 16 + 12, masked ? MSIX_ENTRY_MASKED : 0);
}

bool msix_pending(const struct pci_device *dev, unsigned int entry)
{
	return mmio_read32(dev->msix_pba + entry / 32 * 4) & 1u << entry % 32;
}
