/* SPDX-License-Identifier: Apache-2.0 */
/*
 * MSI-X (PCI 3.0, 6.8.2): the guest's table in, routes of the irq host out. A device signals a
 * vector's eventfd and knows nothing of masks: while a vector is masked nobody takes the signal out
 * of the eventfd, and that is its pending bit. vCPU threads, the function's lock held.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "devices/pci.h"
#include "devices/registers.h"

#define CAP_MSIX         0x11
#define CONTROL_ENABLE   0x8000u
#define CONTROL_MASK_ALL 0x4000u
#define VECTOR_MASKED    1u
#define VECTOR_SIZE      16

int msix_init(struct pci_function *function, uint32_t n, uint32_t bar, uint32_t table,
	      uint32_t pending, struct error *err)
{
	struct irq_host *irqs = function->root->irqs;
	struct msix *msix = &function->msix;

	for (uint32_t i = 0; i < n && i < PCI_MSIX_MAX; i++) {
		int r = irqs->ops->msi_new(irqs, &msix->routes[i].id, &msix->routes[i].fd);

		if (r < 0)
			return error_set(err, r, "cannot give %s its interrupt vector %u: %s",
					 function->device.name, i, strerror(-r));
		msix->table.vectors[i] = (struct msix_vector){.control = VECTOR_MASKED};
		msix->n_routes = msix->table.n_vectors = i + 1;
	}
	function->msix_offset = pci_add_capability(function, CAP_MSIX, 12);
	pci_config_put16(function, function->msix_offset + 2, n - 1);
	pci_config_put32(function, function->msix_offset + 4, table | bar);
	pci_config_put32(function, function->msix_offset + 8, pending | bar);
	function->writable[function->msix_offset + 3] = (CONTROL_ENABLE | CONTROL_MASK_ALL) >> 8;
	return 0;
}

void msix_deinit(struct pci_function *function)
{
	struct irq_host *irqs = function->root ? function->root->irqs : NULL;

	for (uint32_t i = 0; i < function->msix.n_routes; i++)
		irqs->ops->msi_free(irqs, function->msix.routes[i].id);
	function->msix.n_routes = 0;
}

static bool all_masked(const struct pci_function *function)
{
	uint8_t control = function->config.bytes[function->msix_offset + 3];

	return !(control & CONTROL_ENABLE >> 8) || control & CONTROL_MASK_ALL >> 8;
}

static void vector_update(struct pci_function *function, uint32_t i)
{
	struct irq_host *irqs = function->root->irqs;
	const struct msix_vector *vector = &function->msix.table.vectors[i];
	bool masked = vector->control & VECTOR_MASKED || all_masked(function);

	/* A route the kernel refuses leaves the vector silent, which is what the guest asked for.
	 */
	(void)irqs->ops->msi_set(irqs, function->msix.routes[i].id, vector->address, vector->data,
				 masked);
}

void msix_update(struct pci_function *function)
{
	for (uint32_t i = 0; i < function->msix.n_routes; i++)
		vector_update(function, i);
}

int msix_fd(const struct pci_function *function, uint32_t vector)
{
	return vector < function->msix.n_routes ? function->msix.routes[vector].fd : -1;
}

/* Table accesses are whole, aligned 4 or 8 bytes; others read as zero and write nothing. */
static uint8_t *entry_bytes(struct pci_function *function, uint64_t offset, uint32_t len)
{
	uint32_t i = offset / VECTOR_SIZE;

	_Static_assert(sizeof(struct msix_vector) == VECTOR_SIZE,
		       "the table is the guest's format");
	if (i >= function->msix.n_routes || (len != 4 && len != 8) || offset % len != 0)
		return NULL;
	return (uint8_t *)&function->msix.table.vectors[i] + offset % VECTOR_SIZE;
}

void msix_table_read(struct pci_function *function, uint64_t offset, void *data, uint32_t len)
{
	uint8_t *bytes = entry_bytes(function, offset, len);

	if (bytes)
		memcpy(data, bytes, len);
	else
		memset(data, 0, len);
}

void msix_table_write(struct pci_function *function, uint64_t offset, const void *data,
		      uint32_t len)
{
	uint8_t *bytes = entry_bytes(function, offset, len);
	struct msix_vector *vector;
	bool was_masked;

	if (!bytes)
		return;
	vector = &function->msix.table.vectors[offset / VECTOR_SIZE];
	was_masked = vector->control & VECTOR_MASKED;
	memcpy(bytes, data, len);
	vector->control &= VECTOR_MASKED;
	/* While it stays masked nothing can be sent, so the kernel need not hear of each half. */
	if (!(was_masked && vector->control & VECTOR_MASKED))
		vector_update(function, offset / VECTOR_SIZE);
}

static bool vector_pending(const struct pci_function *function, uint32_t i)
{
	struct pollfd signal = {.fd = function->msix.routes[i].fd, .events = POLLIN};

	return poll(&signal, 1, 0) > 0;
}

void msix_pending_save(struct pci_function *function)
{
	struct msix_table *table = &function->msix.table;

	memset(table->pending, 0, sizeof(table->pending));
	for (uint32_t i = 0; i < function->msix.n_routes; i++)
		if (vector_pending(function, i))
			table->pending[i / 8] |= 1u << (i % 8);
}

void msix_pending_clear(struct pci_function *function)
{
	for (uint32_t i = 0; i < function->msix.n_routes; i++) {
		uint64_t count;

		if (read(function->msix.routes[i].fd, &count, sizeof(count)) < 0)
			continue; /* nothing was pending */
	}
}

void msix_pending_load(struct pci_function *function)
{
	msix_pending_clear(function);
	for (uint32_t i = 0; i < function->msix.n_routes; i++)
		if (function->msix.table.pending[i / 8] & 1u << (i % 8))
			event_signal(function->msix.routes[i].fd);
}

void msix_pending_read(struct pci_function *function, uint64_t offset, void *data, uint32_t len)
{
	uint8_t bits[(PCI_MSIX_MAX + 63) / 64 * 8] = {0};

	memset(data, 0, len);
	if (offset >= sizeof(bits) || len > sizeof(bits) - offset)
		return;
	for (uint32_t i = 0; i < function->msix.n_routes; i++) {
		bool masked = function->msix.table.vectors[i].control & VECTOR_MASKED ||
			      all_masked(function);

		if (masked && vector_pending(function, i))
			bits[i / 8] |= 1u << (i % 8);
	}
	memcpy(data, bits + offset, len);
}
