/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A driver for modern virtio devices over PCI with split rings. It is exact rather than fast: it
 * checks what the device does (ring contents, status, used lengths) and never forgives.
 */
#pragma once

#include "guest-tests/runtime/pci.h"

#define VIRTIO_ID_BLK             2
#define VIRTIO_ID_CONSOLE         3
#define VIRTIO_ID_RNG             4
#define VIRTIO_ID_BALLOON         5

#define VIRTIO_F_INDIRECT_DESC    (1ull << 28)
#define VIRTIO_F_EVENT_IDX        (1ull << 29)
#define VIRTIO_F_VERSION_1        (1ull << 32)
#define VIRTIO_RING_FEATURES      (VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX)

#define VIRTIO_STATUS_ACKNOWLEDGE 0x01
#define VIRTIO_STATUS_DRIVER      0x02
#define VIRTIO_STATUS_DRIVER_OK   0x04
#define VIRTIO_STATUS_FEATURES_OK 0x08
#define VIRTIO_STATUS_NEEDS_RESET 0x40
#define VIRTIO_STATUS_FAILED      0x80

#define VIRTIO_NO_VECTOR          0xffff

#define VIRTIO_CAP_COMMON         1
#define VIRTIO_CAP_NOTIFY         2
#define VIRTIO_CAP_ISR            3
#define VIRTIO_CAP_DEVICE         4
#define VIRTIO_CAP_PCI            5

/* Offsets in the common configuration. */
#define VIRTIO_COMMON_DEVICE_SELECT    0x00
#define VIRTIO_COMMON_DEVICE_FEATURE   0x04
#define VIRTIO_COMMON_DRIVER_SELECT    0x08
#define VIRTIO_COMMON_DRIVER_FEATURE   0x0c
#define VIRTIO_COMMON_CONFIG_VECTOR    0x10
#define VIRTIO_COMMON_N_QUEUES         0x12
#define VIRTIO_COMMON_STATUS           0x14
#define VIRTIO_COMMON_GENERATION       0x15
#define VIRTIO_COMMON_QUEUE_SELECT     0x16
#define VIRTIO_COMMON_QUEUE_SIZE       0x18
#define VIRTIO_COMMON_QUEUE_VECTOR     0x1a
#define VIRTIO_COMMON_QUEUE_ENABLE     0x1c
#define VIRTIO_COMMON_QUEUE_NOTIFY_OFF 0x1e
#define VIRTIO_COMMON_QUEUE_DESC       0x20
#define VIRTIO_COMMON_QUEUE_DRIVER     0x28
#define VIRTIO_COMMON_QUEUE_DEVICE     0x30
#define VIRTIO_COMMON_SIZE             0x38

#define VIRTQ_DESC_NEXT                1
#define VIRTQ_DESC_WRITE               2
#define VIRTQ_DESC_INDIRECT            4
#define VIRTQ_AVAIL_NO_INTERRUPT       1
#define VIRTQ_USED_NO_NOTIFY           1

struct virtq_desc {
	uint64_t gpa;
	uint32_t len;
	uint16_t flags, next;
};

struct virtq_avail {
	uint16_t flags, idx;
	uint16_t ring[];
};

struct virtq_used_entry {
	uint32_t id, len;
};

struct virtq_used {
	uint16_t flags, idx;
	struct virtq_used_entry ring[];
};

struct virtio_device {
	struct pci_device pci;
	unsigned int id; /* VIRTIO_ID_* */
	gpa_t common, notify, isr, config;
	uint32_t config_len, notify_len, notify_multiplier;
	uint16_t
		doorbells; /* I/O port of the notify area that the driver uses; 0: `notify` it is */
	uint32_t doorbells_len, doorbells_multiplier;
	uint64_t features;   /* negotiated */
	uint32_t irq_target; /* APIC id that new queue vectors go to */
};

struct virtq {
	struct virtio_device *dev;
	uint16_t index, size, n_free, free_head;
	uint16_t next_used;  /* of the used ring, not yet taken */
	uint16_t kicked_idx; /* avail index at the last kick decision */
	volatile struct virtq_desc *desc;
	volatile struct virtq_avail *avail;
	volatile struct virtq_used *used;
	struct virtq_desc (*indirect)[8]; /* a table a descriptor, with INDIRECT_DESC */
	gpa_t notify;
	uint16_t doorbell; /* an I/O port, 0: none */
	bool polled;
	uint8_t vector;
	volatile unsigned int n_interrupts;
	unsigned int n_kicks;
};

struct virtq_seg {
	void *data;
	uint32_t len;
};

/* The nth device with this virtio id. Maps its registers, touches nothing else. */
bool virtio_find(struct virtio_device *ret_dev, unsigned int id, unsigned int nth);
uint8_t virtio_status(const struct virtio_device *dev);
void virtio_reset(struct virtio_device *dev);
uint64_t virtio_device_features(const struct virtio_device *dev);

/* Reset up to FEATURES_OK, taking of `wanted` what the device has, and VERSION_1. Sets MSI-X up. */
void virtio_begin(struct virtio_device *dev, uint64_t wanted);
void virtio_driver_ok(struct virtio_device *dev);
bool virtio_has(const struct virtio_device *dev, uint64_t feature);

/* size 0 takes the device's. A polled queue has no vector and asks for no interrupts. */
void virtq_init(struct virtq *q, struct virtio_device *dev, unsigned int index, unsigned int size,
		bool polled);
uint16_t virtq_max_size(const struct virtio_device *dev, unsigned int index);

/* Makes a chain available; the first n_out segments are read by the device. Returns its head. */
unsigned int virtq_add(struct virtq *q, const struct virtq_seg *segs, unsigned int n_out,
		       unsigned int n_in);
/* Notifies if the device wants it. */
void virtq_kick(struct virtq *q);
/* Takes one used entry: its head, or -1 when there is none. */
int virtq_take(struct virtq *q, uint32_t *ret_len);
bool virtq_has_used(const struct virtq *q);
/* Asks for an interrupt at the next completion. What came before is seen by the caller's check. */
void virtq_want_interrupt(struct virtq *q);
/* Sleeps for the next used entry, by interrupt or polling as the queue was set up. */
int virtq_wait(struct virtq *q, uint32_t *ret_len, unsigned int timeout_ms);

/* Routes a vector for configuration changes; the handler runs in the interrupt. */
void virtio_config_irq(struct virtio_device *dev, void (*handler)(void *arg), void *arg);

uint32_t virtio_config_read32(const struct virtio_device *dev, unsigned int offset);
uint16_t virtio_config_read16(const struct virtio_device *dev, unsigned int offset);
uint8_t virtio_config_read8(const struct virtio_device *dev, unsigned int offset);
uint64_t virtio_config_read64(const struct virtio_device *dev, unsigned int offset);
