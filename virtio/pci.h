/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio over PCI (virtio 1.2, 4.1): a BAR with the common, ISR, device, notify and MSI-X parts,
 * and one of I/O ports with the notify part alone. Register accesses come in from vCPUs; calls of
 * virtio/device.h go out. Kicks do not come this way: each queue's notify address is an ioeventfd.
 */
#pragma once

#include "devices/pci.h"
#include "virtio/device.h"

struct virtio_pci {
	struct pci_function function;
	struct virtio_device *virtio; /* weak */
	uint32_t window_offset;       /* of the PCI_CFG capability */

	/* Migrates. Selectors and halves of registers the driver is in the middle of. Lock. */
	struct virtio_pci_state {
		uint32_t device_feature_select;
		uint32_t driver_feature_select;
		uint64_t driver_features;
		uint16_t queue_select;
		uint16_t config_vector;
		uint8_t status;
		uint8_t config_generation;
		uint32_t n_queues;
		struct virtqueue_state
			queues[VIRTIO_QUEUES_MAX]; /* filled for a save, taken over by a load */
	} state;
};

/*
 * Puts a device behind PCI slot `slot`. `virtio` has its ops, offered features and config_size set;
 * this calls virtio_init. `name` is the device's name in the machine. One that is late is plugged
 * by pci_plug_hot when its queues have been attached.
 */
int virtio_pci_init(struct virtio_pci *pci, struct pci_root *root, uint32_t slot, const char *name,
		    struct virtio_device *virtio, const struct virtio_ops *ops,
		    struct guest_memory *memory, uint32_t n_queues, uint16_t queue_size,
		    struct loop *const *loops, uint32_t n_loops, struct error *err) __must_check;
