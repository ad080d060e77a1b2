/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The PCI bus: configuration accesses and BAR accesses in, calls of functions out, on vCPU threads.
 * The root's lock covers the CF8 latch, the table of functions and how many accesses are inside
 * each; a function's lock its configuration space. The root's is never held while taking a
 * function's: an access counts itself in, lets go of the root's lock, and counts itself out. Under
 * a function's lock, `moves` covers where BARs are said to be, those of all functions.
 * Migrates: the latch; for each function its configuration bytes and MSI-X table.
 */
#include "devices/pci.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define PCI_COMMAND        0x04
#define PCI_COMMAND_PORTS  1u
#define PCI_COMMAND_MEMORY 2u
#define PCI_COMMAND_BITS   0x0406u /* memory, bus master, INTx disable */
#define PCI_STATUS         0x06
#define PCI_STATUS_CAPS    0x10u
#define PCI_BAR0           0x10
#define PCI_BAR_PORTS      1u
#define PCI_BAR_PORTS_MAX  256u /* PCI 3.0, 6.2.5.1 */
#define PCI_CAPABILITIES   0x34
#define PCI_FIRST_CAP      0x40

#define IO_CONFIG_DATA     0xcfc
#define CONFIG_ENABLE      0x80000000u

enum root_region { ROOT_ADDRESS, ROOT_DATA, ROOT_ECAM, ROOT_MEMORY, ROOT_PORTS };

/*
 * Configuration space and MSI-X table as they travel. A load goes through table_init, which would
 * zero the whole struct; so the piece that travels is a struct of its own inside the function.
 */
static const struct field config_fields[] = {
	FIELD(struct pci_config, bytes, FIELD_BYTES, "bytes",
	      "little-endian, as the guest reads it"),
};
static const struct table config_table =
	TABLE(struct pci_config, "pci-config", "PCI configuration space", config_fields);

static const struct field vector_fields[] = {
	FIELD(struct msix_vector, address, FIELD_U64, "address", "where the message goes"),
	FIELD(struct msix_vector, data, FIELD_U32, "data", "the message"),
	FIELD(struct msix_vector, control, FIELD_U32, "control", "bit 0: masked"),
};
static const struct table vector_table =
	TABLE(struct msix_vector, "msix-vector", "one MSI-X vector", vector_fields);
static const struct field msix_fields[] = {
	FIELD_LIST_OF(struct msix_table, vectors, n_vectors, &vector_table, "vectors", "the table"),
	FIELD(struct msix_table, pending, FIELD_BYTES, "pending",
	      "signals of masked vectors, a bit each"),
};
static const struct table msix_state_table =
	TABLE(struct msix_table, "msix", "the MSI-X table of a function", msix_fields);

static uint32_t config_get32(const struct pci_function *function, uint32_t offset)
{
	uint32_t value;

	memcpy(&value, &function->config.bytes[offset], sizeof(value));
	return value;
}

void pci_config_put16(struct pci_function *function, uint32_t offset, uint16_t value)
{
	memcpy(&function->config.bytes[offset], &value, sizeof(value));
}

void pci_config_put32(struct pci_function *function, uint32_t offset, uint32_t value)
{
	memcpy(&function->config.bytes[offset], &value, sizeof(value));
}

static void writable_put32(struct pci_function *function, uint32_t offset, uint32_t bits)
{
	memcpy(&function->writable[offset], &bits, sizeof(bits));
}

void pci_function_init(struct pci_function *function, struct pci_root *root,
		       const struct pci_function_ops *ops, const struct pci_ids *ids)
{
	function->root = root;
	function->ops = ops;
	pci_config_put16(function, 0x00, ids->vendor);
	pci_config_put16(function, 0x02, ids->device);
	pci_config_put32(function, 0x08, ids->class_code << 8 | ids->revision);
	pci_config_put16(function, 0x2c, ids->subsystem_vendor);
	pci_config_put16(function, 0x2e, ids->subsystem);
	function->writable[PCI_COMMAND] = PCI_COMMAND_BITS & 0xff;
	function->writable[PCI_COMMAND + 1] = PCI_COMMAND_BITS >> 8;
	function->writable[0x0c] = 0xff; /* cache line size: no effect */
	function->writable[0x3c] = 0xff; /* interrupt line: no effect, there are no INTx pins */
	function->config_used = PCI_FIRST_CAP;
}

uint32_t pci_add_capability(struct pci_function *function, uint8_t id, uint8_t size)
{
	uint32_t offset = function->config_used;
	uint8_t *link = &function->config.bytes[PCI_CAPABILITIES];

	assert(offset + size <= PCI_CONFIG_SIZE);
	while (*link)
		link = &function->config.bytes[*link + 1];
	*link = offset;
	function->config.bytes[offset] = id;
	function->config.bytes[PCI_STATUS] |= PCI_STATUS_CAPS;
	function->config_used = align_up(offset + size, 4);
	return offset;
}

void pci_add_bar(struct pci_function *function, uint32_t bar, uint64_t size)
{
	assert(bar < PCI_BARS && size >= 4096 && (size & (size - 1)) == 0);
	function->bars[bar].size = size;
	writable_put32(function, PCI_BAR0 + 4 * bar, ~(uint32_t)(size - 1));
}

bool pci_add_port_bar(struct pci_function *function, uint32_t bar, uint32_t size)
{
	assert(bar < PCI_BARS && size >= 4 && size <= PCI_BAR_PORTS_MAX &&
	       (size & (size - 1)) == 0);
	if (!function->root->windows[SPACE_PORTS].size)
		return false;
	function->bars[bar].size = size;
	function->bars[bar].space = SPACE_PORTS;
	function->writable[PCI_COMMAND] |= PCI_COMMAND_PORTS;
	pci_config_put32(function, PCI_BAR0 + 4 * bar, PCI_BAR_PORTS);
	writable_put32(function, PCI_BAR0 + 4 * bar, ~(size - 1));
	return true;
}

/* Ports outside of the window are other devices'. */
static gpa_t port_bar_wanted(const struct pci_function *function, uint32_t bar)
{
	const struct pci_window *window = &function->root->windows[SPACE_PORTS];
	gpa_t at = config_get32(function, PCI_BAR0 + 4 * bar) & ~3u;

	if (!(function->config.bytes[PCI_COMMAND] & PCI_COMMAND_PORTS))
		return 0;
	return at - window->start < window->size ? at : 0;
}

/* Where a BAR answers by what configuration space says now. */
static gpa_t bar_wanted(const struct pci_function *function, uint32_t bar)
{
	if (!function->bars[bar].size)
		return 0;
	if (function->bars[bar].space == SPACE_PORTS)
		return port_bar_wanted(function, bar);
	if (!(function->config.bytes[PCI_COMMAND] & PCI_COMMAND_MEMORY))
		return 0;
	return config_get32(function, PCI_BAR0 + 4 * bar) & ~0xfu;
}

static bool bar_is_alone(const struct pci_root *root, const struct pci_bar *bar, gpa_t at)
{
	for (uint32_t i = 0; i < PCI_SLOTS * PCI_BARS; i++) {
		const struct pci_function *function = root->functions[i / PCI_BARS];
		const struct pci_bar *other = function ? &function->bars[i % PCI_BARS] : bar;

		if (other != bar && other->space == bar->space && other->told &&
		    other->told < at + bar->size && at < other->told + other->size)
			return false;
	}
	return true;
}

static void bar_tell(struct pci_function *function, uint32_t i)
{
	struct pci_bar *bar = &function->bars[i];
	gpa_t from = bar->told, to = atomic_load(&bar->address);

	if (to && to != from && !bar_is_alone(function->root, bar, to))
		to = 0;
	if (from == to)
		return;
	bar->told = to;
	if (function->ops && function->ops->moved)
		function->ops->moved(function, i, from, to);
}

/* BARs have left their places: who waited for one hears of it. `moves` is held. */
static void bars_tell(struct pci_root *root)
{
	for (uint32_t i = 0; i < PCI_SLOTS * PCI_BARS; i++)
		if (root->functions[i / PCI_BARS])
			bar_tell(root->functions[i / PCI_BARS], i % PCI_BARS);
}

/*
 * Command or BAR registers changed: BARs answer where they now should. The lock is held.
 * Firmware that deals out addresses anew, a reset and a load put a BAR where another still is, for
 * a moment; the kernel would refuse its kicks there for good. So it is told of its place when the
 * other has left.
 */
static void bars_update(struct pci_function *function)
{
	struct pci_root *root = function->root;
	bool changed = false;

	pthread_mutex_lock(&root->moves);
	for (uint32_t i = 0; i < PCI_BARS; i++) {
		gpa_t to = bar_wanted(function, i);

		if (atomic_load(&function->bars[i].address) == to)
			continue;
		atomic_store(&function->bars[i].address, to);
		bar_tell(function, i);
		changed = true;
	}
	if (changed)
		bars_tell(root);
	pthread_mutex_unlock(&root->moves);
}

static void config_write(struct pci_function *function, uint32_t offset, const uint8_t *data,
			 uint32_t len)
{
	for (uint32_t i = 0; i < len; i++) {
		uint8_t *byte = &function->config.bytes[offset + i];
		uint8_t bits = function->writable[offset + i];

		*byte = (*byte & ~bits) | (data[i] & bits);
	}
	if (offset < PCI_BAR0 + 4 * PCI_BARS)
		bars_update(function);
	if (function->msix_offset && offset <= function->msix_offset + 3 &&
	    offset + len > function->msix_offset + 2)
		msix_update(function);
}

/* One access of configuration space, `offset` within the function's 4 KiB. */
static void config_access(struct pci_function *function, uint64_t offset, void *data, uint32_t len,
			  bool write)
{
	if (offset >= PCI_CONFIG_SIZE || len > PCI_CONFIG_SIZE - offset) {
		if (!write)
			memset(data, 0, len); /* no extended capabilities */
		return;
	}
	pthread_mutex_lock(&function->device.lock);
	if (function->ops && function->ops->config_access &&
	    function->ops->config_access(function, offset, data, len, write))
		;
	else if (write)
		config_write(function, offset, data, len);
	else
		memcpy(data, &function->config.bytes[offset], len);
	pthread_mutex_unlock(&function->device.lock);
}

/* What CF8 selects: only bus 0 and function 0 exist. Returns the slot, PCI_SLOTS for none. */
static uint32_t latch_slot(uint32_t address)
{
	if (!(address & CONFIG_ENABLE) || (address >> 16 & 0xff) != 0 || (address >> 8 & 7) != 0)
		return PCI_SLOTS;
	return address >> 11 & 0x1f;
}

static uint32_t ecam_slot(uint64_t offset)
{
	return (offset >> 12 & 7) == 0 ? offset >> 15 & 0x1f : PCI_SLOTS;
}

/* An access of what is in a slot begins: NULL if nothing is there. The root's lock is held. */
static struct pci_function *function_enter(struct pci_root *root, uint32_t slot)
{
	struct pci_function *function = slot < PCI_SLOTS ? root->functions[slot] : NULL;

	if (!function || function->hidden)
		return NULL;
	function->n_inside++;
	return function;
}

static void function_leave(struct pci_root *root, struct pci_function *function)
{
	if (--function->n_inside == 0 && function->hidden)
		pthread_cond_broadcast(&root->left);
}

/* The same by the address of a BAR, which the offset becomes one in. BARs move rarely, so they are
 * simply looked through. */
static struct pci_function *window_enter(struct pci_root *root, enum device_space space,
					 uint64_t *offset, uint32_t len, uint32_t *ret_bar)
{
	gpa_t address = root->windows[space].start + *offset;

	for (uint32_t i = 0; i < PCI_SLOTS * PCI_BARS; i++) {
		struct pci_function *function = root->functions[i / PCI_BARS];
		const struct pci_bar *bar = function ? &function->bars[i % PCI_BARS] : NULL;
		uint64_t base, at;

		if (!bar || !bar->size || bar->space != space)
			continue;
		base = atomic_load(&bar->address);
		at = address - base;
		if (!base || at >= bar->size || len > bar->size - at)
			continue;
		*offset = at;
		*ret_bar = i % PCI_BARS;
		return function_enter(root, i / PCI_BARS);
	}
	return NULL;
}

static void bar_access(struct pci_function *function, uint32_t bar, uint64_t offset, void *data,
		       uint32_t len, bool write)
{
	pthread_mutex_lock(&function->device.lock);
	if (write)
		function->ops->write(function, bar, offset, data, len);
	else
		function->ops->read(function, bar, offset, data, len);
	pthread_mutex_unlock(&function->device.lock);
}

static struct pci_function *root_enter(struct pci_root *root, uint32_t region, uint64_t *offset,
				       uint32_t len, uint32_t *ret_bar)
{
	uint64_t at = *offset;

	switch (region) {
	case ROOT_DATA:
		*offset += root->latch.address & 0xfc;
		return function_enter(root, latch_slot(root->latch.address));
	case ROOT_ECAM:
		*offset &= 0xfff;
		return function_enter(root, ecam_slot(at));
	case ROOT_MEMORY:
		return window_enter(root, SPACE_MEMORY, offset, len, ret_bar);
	default:
		return window_enter(root, SPACE_PORTS, offset, len, ret_bar);
	}
}

/*
 * The bus calls these with the root's lock held; it is let go for the time a function is called, so
 * that a slow register of one function holds up nobody else. Reads of nobody's are all ones, by the
 * bus.
 */
static void root_access(struct pci_root *root, uint32_t region, uint64_t offset, void *data,
			uint32_t len, bool write)
{
	uint32_t bar = 0;
	struct pci_function *function = root_enter(root, region, &offset, len, &bar);

	if (!function)
		return;
	pthread_mutex_unlock(&root->device.lock);
	if (region == ROOT_DATA || region == ROOT_ECAM)
		config_access(function, offset, data, len, write);
	else
		bar_access(function, bar, offset, data, len, write);
	pthread_mutex_lock(&root->device.lock);
	function_leave(root, function);
}

static void root_read(struct device *device, uint32_t region, uint64_t offset, void *data,
		      uint32_t len)
{
	struct pci_root *root = container_of(device, struct pci_root, device);

	if (region != ROOT_ADDRESS)
		root_access(root, region, offset, data, len, false);
	else if (len <= 4)
		memcpy(data, (uint8_t *)&root->latch.address + offset, len);
}

static void root_write(struct device *device, uint32_t region, uint64_t offset, const void *data,
		       uint32_t len)
{
	struct pci_root *root = container_of(device, struct pci_root, device);

	if (region != ROOT_ADDRESS)
		root_access(root, region, offset, (void *)(uintptr_t)data, len, true);
	else if (len == 4) /* only whole words reach the latch */
		memcpy(&root->latch.address, data, len);
}

static void root_reset(struct device *device)
{
	container_of(device, struct pci_root, device)->latch.address = 0;
}

static const struct field root_fields[] = {
	FIELD(struct pci_latch, address, FIELD_U32, "address", "as written to CF8"),
};
static const struct table root_table =
	TABLE(struct pci_latch, "pci-root", "the PCI root", root_fields);

static uint32_t root_states(struct device *device, struct device_state *states)
{
	struct pci_root *root = container_of(device, struct pci_root, device);

	states[0] = (struct device_state){&root_table, &root->latch};
	return 1;
}

static const struct device_ops root_ops = {
	.type = "pci-root",
	.read = root_read,
	.write = root_write,
	.reset = root_reset,
	.states = root_states,
};

static const struct device_ops bridge_ops = {.type = "host-bridge"};

/* Where the BARs of this function that overlap a place end, 0: none does. */
static gpa_t home_taken(const struct pci_function *function, const struct pci_bar *bar, gpa_t at)
{
	for (uint32_t i = 0; function && i < PCI_BARS; i++) {
		const struct pci_bar *other = &function->bars[i];

		if (other != bar && other->space == bar->space && other->home &&
		    other->home < at + bar->size && at < other->home + other->size)
			return other->home + other->size;
	}
	return 0;
}

/* The same of all functions, those plugged and this one. */
static gpa_t home_is_anyones(const struct pci_function *function, const struct pci_bar *bar,
			     gpa_t at)
{
	gpa_t end = home_taken(function, bar, at);

	for (uint32_t slot = 0; slot < PCI_SLOTS && !end; slot++)
		end = home_taken(function->root->functions[slot], bar, at);
	return end;
}

/* The lowest place for a BAR where no other is at home. False: the window is full. */
static bool bar_settle(struct pci_function *function, uint32_t i)
{
	struct pci_bar *bar = &function->bars[i];
	const struct pci_window *window = &function->root->windows[bar->space];
	gpa_t home = align_up(window->start, bar->size), end;

	while ((end = home_is_anyones(function, bar, home)))
		home = align_up(end, bar->size);
	if (home + bar->size > window->start + window->size)
		return false;
	bar->home = home;
	pci_config_put32(function, PCI_BAR0 + 4 * i,
			 home | (bar->space == SPACE_PORTS ? PCI_BAR_PORTS : 0));
	return true;
}

/* What the function is at power-on. */
static int function_settle(struct pci_root *root, struct pci_function *function, uint32_t slot,
			   struct error *err)
{
	if (slot >= PCI_SLOTS || root->functions[slot])
		return error_set(err, -EBUSY, "cannot plug %s: PCI slot %u is taken",
				 function->device.name, slot);
	for (uint32_t i = 0; i < PCI_BARS; i++)
		if (function->bars[i].size && !bar_settle(function, i))
			return error_set(err, -ENOSPC, "cannot plug %s: the PCI window is full",
					 function->device.name);
	function->config.bytes[PCI_COMMAND] =
		PCI_COMMAND_MEMORY | (function->writable[PCI_COMMAND] & PCI_COMMAND_PORTS);
	function->slot = slot;
	function->hidden = false;
	memcpy(function->initial, function->config.bytes, sizeof(function->initial));
	return 0;
}

static void slot_set(struct pci_root *root, uint32_t slot, struct pci_function *function)
{
	pthread_mutex_lock(&root->device.lock);
	root->functions[slot] = function;
	pthread_mutex_unlock(&root->device.lock);
}

/* Seen by vCPUs from the middle of this on. */
static void function_show(struct pci_function *function)
{
	struct pci_root *root = function->root;

	pthread_mutex_lock(&function->device.lock);
	pthread_mutex_lock(&root->moves);
	slot_set(root, function->slot, function);
	pthread_mutex_unlock(&root->moves);
	bars_update(function);
	pthread_mutex_unlock(&function->device.lock);
}

int pci_plug(struct pci_root *root, struct pci_function *function, uint32_t slot, struct error *err)
{
	int r = function_settle(root, function, slot, err);

	if (r == 0)
		function_show(function);
	return r;
}

int pci_plug_hot(struct pci_root *root, struct pci_function *function, uint32_t slot,
		 struct error *err)
{
	int r = function_settle(root, function, slot, err);

	if (r < 0)
		return r;
	function->config.bytes[PCI_COMMAND] = 0;
	for (uint32_t i = 0; i < PCI_BARS; i++)
		if (function->bars[i].size)
			pci_config_put32(function, PCI_BAR0 + 4 * i,
					 function->bars[i].space == SPACE_PORTS ? PCI_BAR_PORTS
										: 0);
	function_show(function);
	return 0;
}

bool pci_hide(struct pci_root *root, uint32_t slot)
{
	struct pci_function *function;
	bool seen;

	pthread_mutex_lock(&root->device.lock);
	function = slot < PCI_SLOTS ? root->functions[slot] : NULL;
	seen = function && !function->hidden;
	if (seen)
		function->hidden = true;
	pthread_mutex_unlock(&root->device.lock);
	return seen;
}

void pci_unplug(struct pci_function *function)
{
	struct pci_root *root = function->root;

	(void)pci_hide(root, function->slot);
	pthread_mutex_lock(&root->device.lock);
	while (function->n_inside > 0)
		pthread_cond_wait(&root->left, &root->device.lock);
	pthread_mutex_unlock(&root->device.lock);
	pthread_mutex_lock(&root->moves);
	for (uint32_t i = 0; i < PCI_BARS; i++) {
		atomic_store(&function->bars[i].address, 0);
		bar_tell(function, i);
	}
	slot_set(root, function->slot, NULL);
	bars_tell(root);
	pthread_mutex_unlock(&root->moves);
}

void pci_function_reset(struct pci_function *function)
{
	memcpy(function->config.bytes, function->initial, sizeof(function->config.bytes));
	function->msix.table.n_vectors = function->msix.n_routes;
	for (uint32_t i = 0; i < function->msix.n_routes; i++)
		function->msix.table.vectors[i] = (struct msix_vector){.control = 1};
	msix_pending_clear(function);
	bars_update(function);
	msix_update(function);
}

void pci_function_saving(struct pci_function *function)
{
	msix_pending_save(function);
}

uint32_t pci_function_states(struct pci_function *function, struct device_state *states)
{
	states[0] = (struct device_state){&config_table, &function->config};
	states[1] = (struct device_state){&msix_state_table, &function->msix.table};
	return function->msix_offset ? 2 : 1;
}

/* What came from outside may differ from power-on only where the guest could have written. */
int pci_function_loaded(struct pci_function *function, struct error *err)
{
	for (uint32_t i = 0; i < PCI_CONFIG_SIZE; i++)
		if ((function->config.bytes[i] ^ function->initial[i]) & ~function->writable[i])
			return error_set(err, -EBADMSG,
					 "cannot load %s: byte %u of its PCI configuration is not "
					 "this device's",
					 function->device.name, i);
	if (function->msix.table.n_vectors != function->msix.n_routes)
		return error_set(err, -EBADMSG, "cannot load %s: it has %u vectors, not %u",
				 function->device.name, function->msix.n_routes,
				 function->msix.table.n_vectors);
	for (uint32_t i = 0; i < function->msix.n_routes; i++)
		function->msix.table.vectors[i].control &= 1; /* the mask; the rest is reserved */
	bars_update(function);
	msix_update(function);
	msix_pending_load(function);
	return 0;
}

int pci_root_init(struct pci_root *root, const struct pci_layout *layout, struct bus *io,
		  struct bus *mmio, struct irq_host *irqs, struct kick_host *kicks,
		  struct error *err)
{
	static const struct pci_ids bridge = {
		.vendor = 0x8086, .device = 0x0d57, .class_code = 0x060000};
	int r;

	device_init(&root->device, &root_ops, "pci");
	pthread_mutex_init(&root->moves, NULL);
	pthread_cond_init(&root->left, NULL);
	root->irqs = irqs;
	root->kicks = kicks;
	root->windows[SPACE_MEMORY] =
		(struct pci_window){.start = layout->window, .size = layout->window_size};
	root->windows[SPACE_PORTS] =
		(struct pci_window){.start = layout->ports, .size = layout->n_ports};
	device_init(&root->bridge.device, &bridge_ops, "bridge");
	pci_function_init(&root->bridge, root, NULL, &bridge);
	/* Nothing in it can be changed, so there is nothing to reset or to save. */
	memset(root->bridge.writable, 0, sizeof(root->bridge.writable));
	r = pci_plug(root, &root->bridge, 0, err);
	if (r < 0)
		return r;
	if ((r = bus_add(io, PCI_PORT_ADDRESS, 4, &root->device, ROOT_ADDRESS)) < 0 ||
	    (r = bus_add(io, IO_CONFIG_DATA, 4, &root->device, ROOT_DATA)) < 0 ||
	    (r = bus_add(mmio, layout->ecam, 1 << 20, &root->device, ROOT_ECAM)) < 0 ||
	    (r = bus_add(mmio, layout->window, layout->window_size, &root->device, ROOT_MEMORY)) <
		    0 ||
	    (layout->n_ports &&
	     (r = bus_add(io, layout->ports, layout->n_ports, &root->device, ROOT_PORTS)) < 0))
		return error_set(err, r, "cannot place the PCI root: %s", strerror(-r));
	return 0;
}
