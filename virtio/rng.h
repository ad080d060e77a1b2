/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The virtio entropy device (virtio 1.2, 5.4): one queue of buffers that the guest wants filled
 * with the host's random bytes.
 */
#pragma once

#include "virtio/pci.h"

#define RNG_QUEUE_SIZE  64
#define RNG_REQUEST_MAX 65536u /* bytes a request gets at most, and a turn of the loop gives */

struct rng {
	struct virtio_pci pci;
	struct virtio_device virtio;
	struct iovec iov[RNG_QUEUE_SIZE];
	uint64_t bytes; /* given out; counter */
};

int rng_init(struct rng *rng, struct pci_root *root, uint32_t slot, const char *name,
	     struct guest_memory *memory, struct loop *loop, struct error *err) __must_check;
