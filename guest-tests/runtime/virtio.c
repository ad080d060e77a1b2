/* SPDX-License-Identifier: Apache-2.0 */
/* The transport half of the driver: finding a device, its registers, negotiation, configuration. */
#include "guest-tests/runtime/virtio.h"

#include "guest-tests/runtime/apic.h"

#define VIRTIO_VENDOR         0x1af4
#define VIRTIO_DEVICE_BASE    0x1040
#define RESET_TIMEOUT_MS      5000

#define CAP_TYPE              3
#define CAP_BAR               4
#define CAP_OFFSET            8
#define CAP_LENGTH            12
#define CAP_NOTIFY_MULTIPLIER 16

/* A notify area in I/O ports counts if it comes before one in memory (4.1.4) and has an address:
 * a device that was plugged in while the guest ran has none yet. */
static void map_doorbells(struct virtio_device *dev, unsigned int type, unsigned int cap)
{
	uint16_t port = pci_port_bar(&dev->pci, pci_read8(&dev->pci, cap + CAP_BAR), NULL);

	if (type != VIRTIO_CAP_NOTIFY || !port || dev->notify || dev->doorbells)
		return;
	dev->doorbells = (uint16_t)(port + pci_read32(&dev->pci, cap + CAP_OFFSET));
	dev->doorbells_len = pci_read32(&dev->pci, cap + CAP_LENGTH);
	dev->doorbells_multiplier = pci_read32(&dev->pci, cap + CAP_NOTIFY_MULTIPLIER);
}

static void map_capability(struct virtio_device *dev, unsigned int cap)
{
	unsigned int type = pci_read8(&dev->pci, cap + CAP_TYPE);
	uint32_t len = pci_read32(&dev->pci, cap + CAP_LENGTH);
	gpa_t at;

	if (type < VIRTIO_CAP_COMMON || type > VIRTIO_CAP_DEVICE)
		return;
	if (pci_read32(&dev->pci, PCI_BAR0 + 4 * pci_read8(&dev->pci, cap + CAP_BAR)) &
	    PCI_BAR_IS_IO) {
		map_doorbells(dev, type, cap);
		return;
	}
	at = pci_bar(&dev->pci, pci_read8(&dev->pci, cap + CAP_BAR), NULL);
	at += pci_read32(&dev->pci, cap + CAP_OFFSET);
	/* The first capability of a type is the one to use. */
	if (type == VIRTIO_CAP_COMMON && !dev->common) {
		dev->common = at;
	} else if (type == VIRTIO_CAP_NOTIFY && !dev->notify) {
		dev->notify = at;
		dev->notify_len = len;
		dev->notify_multiplier = pci_read32(&dev->pci, cap + CAP_NOTIFY_MULTIPLIER);
	} else if (type == VIRTIO_CAP_ISR && !dev->isr) {
		dev->isr = at;
	} else if (type == VIRTIO_CAP_DEVICE && !dev->config) {
		dev->config = at;
		dev->config_len = len;
	}
}

static void map_registers(struct virtio_device *dev)
{
	unsigned int cap = 0;

	pci_enable(&dev->pci);
	while ((cap = pci_find_capability(&dev->pci, PCI_CAP_VENDOR, cap)))
		map_capability(dev, cap);
	GUEST_ASSERT(dev->common && dev->notify && dev->isr, "slot %x: registers missing",
		     dev->pci.slot);
}

bool virtio_find(struct virtio_device *ret_dev, unsigned int id, unsigned int nth)
{
	struct pci_device pci;

	for (bool more = pci_next(&pci, true); more; more = pci_next(&pci, false)) {
		if (pci.vendor != VIRTIO_VENDOR || pci.device != VIRTIO_DEVICE_BASE + id ||
		    nth-- > 0)
			continue;
		*ret_dev = (struct virtio_device){.pci = pci, .id = id};
		map_registers(ret_dev);
		ret_dev->irq_target = apic_id();
		return true;
	}
	return false;
}

uint8_t virtio_status(const struct virtio_device *dev)
{
	return mmio_read8(dev->common + VIRTIO_COMMON_STATUS);
}

void virtio_reset(struct virtio_device *dev)
{
	mmio_write8(dev->common + VIRTIO_COMMON_STATUS, 0);
	GUEST_ASSERT(POLL_UNTIL(virtio_status(dev) == 0, RESET_TIMEOUT_MS), "slot %x: status 0x%x",
		     dev->pci.slot, virtio_status(dev));
}

uint64_t virtio_device_features(const struct virtio_device *dev)
{
	uint64_t lo, hi;

	mmio_write32(dev->common + VIRTIO_COMMON_DEVICE_SELECT, 0);
	lo = mmio_read32(dev->common + VIRTIO_COMMON_DEVICE_FEATURE);
	mmio_write32(dev->common + VIRTIO_COMMON_DEVICE_SELECT, 1);
	hi = mmio_read32(dev->common + VIRTIO_COMMON_DEVICE_FEATURE);
	return lo | hi << 32;
}

static void write_features(struct virtio_device *dev, uint64_t features)
{
	mmio_write32(dev->common + VIRTIO_COMMON_DRIVER_SELECT, 0);
	mmio_write32(dev->common + VIRTIO_COMMON_DRIVER_FEATURE, (uint32_t)features);
	mmio_write32(dev->common + VIRTIO_COMMON_DRIVER_SELECT, 1);
	mmio_write32(dev->common + VIRTIO_COMMON_DRIVER_FEATURE, (uint32_t)(features >> 32));
	dev->features = features;
}

static void set_status(struct virtio_device *dev, uint8_t bits)
{
	mmio_write8(dev->common + VIRTIO_COMMON_STATUS, virtio_status(dev) | bits);
}

void virtio_begin(struct virtio_device *dev, uint64_t wanted)
{
	uint64_t offered;

	virtio_reset(dev);
	GUEST_ASSERT(msix_init(&dev->pci), "slot %x: no MSI-X", dev->pci.slot);
	set_status(dev, VIRTIO_STATUS_ACKNOWLEDGE);
	set_status(dev, VIRTIO_STATUS_DRIVER);
	offered = virtio_device_features(dev);
	GUEST_ASSERT(offered & VIRTIO_F_VERSION_1, "slot %x: features 0x%lx", dev->pci.slot,
		     offered);
	write_features(dev, (offered & wanted) | VIRTIO_F_VERSION_1);
	set_status(dev, VIRTIO_STATUS_FEATURES_OK);
	GUEST_ASSERT(virtio_status(dev) & VIRTIO_STATUS_FEATURES_OK, "slot %x: refused 0x%lx",
		     dev->pci.slot, dev->features);
}

void virtio_driver_ok(struct virtio_device *dev)
{
	set_status(dev, VIRTIO_STATUS_DRIVER_OK);
	GUEST_ASSERT(virtio_status(dev) == (VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER |
					    VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_DRIVER_OK),
		     "slot %x: status 0x%x", dev->pci.slot, virtio_status(dev));
}

bool virtio_has(const struct virtio_device *dev, uint64_t feature)
{
	return (dev->features & feature) == feature;
}

void virtio_config_irq(struct virtio_device *dev, void (*handler)(void *arg), void *arg)
{
	uint16_t entry = (uint16_t)(dev->pci.n_vectors - 1);

	msix_route(&dev->pci, entry, irq_alloc(handler, arg), dev->irq_target);
	mmio_write16(dev->common + VIRTIO_COMMON_CONFIG_VECTOR, entry);
	GUEST_ASSERT(mmio_read16(dev->common + VIRTIO_COMMON_CONFIG_VECTOR) == entry,
		     "slot %x: vector refused", dev->pci.slot);
}

uint8_t virtio_config_read8(const struct virtio_device *dev, unsigned int offset)
{
	return mmio_read8(dev->config + offset);
}

uint16_t virtio_config_read16(const struct virtio_device *dev, unsigned int offset)
{
	return mmio_read16(dev->config + offset);
}

uint32_t virtio_config_read32(const struct virtio_device *dev, unsigned int offset)
{
	return mmio_read32(dev->config + offset);
}

uint64_t virtio_config_read64(const struct virtio_device *dev, unsigned int offset)
{
	uint8_t generation;
	uint64_t value;

	do {
		generation = mmio_read8(dev->common + VIRTIO_COMMON_GENERATION);
		value = mmio_read32(dev->config + offset);
		value |= (uint64_t)mmio_read32(dev->config + offset + 4) << 32;
	} while (generation != mmio_read8(dev->common + VIRTIO_COMMON_GENERATION));
	return value;
}
