/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Register accesses of the virtio PCI transport in, calls of the device out. vCPU threads, the
 * function's lock held, unless said otherwise. Migrates: configuration space, MSI-X table,
 * virtio_pci_state with the queues, then the device's own states.
 *
 * BAR 0:  0x0000 common configuration   0x1000 ISR        0x2000 device configuration
 *         0x4000 MSI-X table            0x5000 pending    0x6000 notify, four bytes a queue
 * BAR 1:  notify again, in I/O ports: KVM passes on a write to a port without decoding the
 *         instruction, which a write to memory needs on AMD and wherever KVM itself runs in a
 *         guest. It comes first in the list of capabilities, so that a driver takes it if it can;
 *         then kicks in BAR 0 are not ioeventfds. A board without ports has BAR 0 alone.
 */
#include "virtio/pci.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#define BAR_SIZE      0x8000
#define BAR_COMMON    0x0000
#define BAR_ISR       0x1000
#define BAR_DEVICE    0x2000
#define BAR_TABLE     0x4000
#define BAR_PENDING   0x5000
#define BAR_NOTIFY    0x6000
#define NOTIFY_STRIDE 4
#define PORTS_MAX     256u /* of a BAR; a device with more queues has no BAR 1 */

enum pci_bar_number { BAR_REGISTERS, BAR_DOORBELLS };

#define CAP_VENDOR    0x09
#define VIRTIO_VENDOR 0x1af4

/* virtio 1.2, 4.1.4: types of the vendor capability */
enum cap_type { CAP_COMMON = 1, CAP_NOTIFY, CAP_ISR, CAP_DEVICE, CAP_PCI_CFG };

/* virtio 1.2, 4.1.4.3: the common configuration, little-endian */
enum common_register {
	COMMON_DEVICE_FEATURE_SELECT = 0,
	COMMON_DEVICE_FEATURE = 4,
	COMMON_DRIVER_FEATURE_SELECT = 8,
	COMMON_DRIVER_FEATURE = 12,
	COMMON_CONFIG_VECTOR = 16,
	COMMON_NUM_QUEUES = 18,
	COMMON_STATUS = 20,
	COMMON_GENERATION = 21,
	COMMON_QUEUE_SELECT = 22,
	COMMON_QUEUE_SIZE = 24,
	COMMON_QUEUE_VECTOR = 26,
	COMMON_QUEUE_ENABLE = 28,
	COMMON_QUEUE_NOTIFY_OFF = 30,
	COMMON_QUEUE_DESCRIPTORS = 32,
	COMMON_QUEUE_AVAILABLE = 40,
	COMMON_QUEUE_USED = 48,
	COMMON_END = 56,
};

static const struct field state_fields[] = {
	FIELD(struct virtio_pci_state, device_feature_select, FIELD_U32, "device-feature-select",
	      ""),
	FIELD(struct virtio_pci_state, driver_feature_select, FIELD_U32, "driver-feature-select",
	      ""),
	FIELD(struct virtio_pci_state, driver_features, FIELD_U64, "driver-features", ""),
	FIELD(struct virtio_pci_state, queue_select, FIELD_U16, "queue-select", ""),
	FIELD(struct virtio_pci_state, config_vector, FIELD_U16, "config-vector", "",
	      .initial = VIRTQUEUE_NO_VECTOR),
	FIELD(struct virtio_pci_state, status, FIELD_U8, "status", "device status"),
	FIELD(struct virtio_pci_state, config_generation, FIELD_U8, "config-generation", ""),
	FIELD_LIST_OF(struct virtio_pci_state, queues, n_queues, &virtqueue_state_table, "queues",
		      ""),
};
static const struct table state_table =
	TABLE(struct virtio_pci_state, "virtio-pci", "the PCI transport of virtio", state_fields);

static struct virtio_pci *pci_of(struct pci_function *function)
{
	return container_of(function, struct virtio_pci, function);
}

static struct virtio_queue *selected_queue(struct virtio_pci *pci)
{
	if (pci->state.queue_select >= pci->virtio->n_queues)
		return NULL;
	return &pci->virtio->queues[pci->state.queue_select];
}

static void power_on(struct virtio_pci *pci)
{
	pci->state = (struct virtio_pci_state){.config_vector = VIRTQUEUE_NO_VECTOR};
}

/* A vector number that does not exist reads back as none (4.1.5.1.2.1). */
static uint16_t vector_check(const struct virtio_pci *pci, uint16_t vector)
{
	return vector < pci->function.msix.n_routes ? vector : VIRTQUEUE_NO_VECTOR;
}

static void status_features_ok(struct virtio_pci *pci, uint8_t *status)
{
	struct virtio_device *virtio = pci->virtio;

	/* A driver that wants what was not offered, or is not a modern one, is told no (3.1.1). */
	if (pci->state.driver_features & ~virtio->offered ||
	    !(pci->state.driver_features & VIRTIO_F_VERSION_1))
		*status &= ~VIRTIO_STATUS_FEATURES_OK;
	else
		virtio->accepted = pci->state.driver_features;
}

static void status_write(struct virtio_pci *pci, uint8_t value)
{
	struct virtio_device *virtio = pci->virtio;
	uint8_t old = atomic_load(&virtio->status);
	uint8_t added = value & ~old;

	if (value == 0) {
		power_on(pci);
		virtio_reset(virtio);
		return;
	}
	/* Bits are only ever added, and DRIVER_OK needs FEATURES_OK. */
	value |= old;
	if (added & VIRTIO_STATUS_FEATURES_OK)
		status_features_ok(pci, &value);
	if (added & VIRTIO_STATUS_DRIVER_OK && !(value & VIRTIO_STATUS_FEATURES_OK))
		value &= ~VIRTIO_STATUS_DRIVER_OK;
	atomic_fetch_or(&virtio->status, value);
	if (added & value & VIRTIO_STATUS_DRIVER_OK)
		virtio_start(virtio);
}

static uint64_t common_read(struct virtio_pci *pci, uint32_t offset)
{
	struct virtio_device *virtio = pci->virtio;
	struct virtio_queue *queue = selected_queue(pci);
	const struct virtqueue_state *ring = queue ? &queue->ring.state : NULL;

	switch (offset) {
	case COMMON_DEVICE_FEATURE_SELECT:
		return pci->state.device_feature_select;
	case COMMON_DEVICE_FEATURE:
		return pci->state.device_feature_select > 1
			       ? 0
			       : (uint32_t)(virtio->offered >>
					    32 * pci->state.device_feature_select);
	case COMMON_DRIVER_FEATURE_SELECT:
		return pci->state.driver_feature_select;
	case COMMON_DRIVER_FEATURE:
		return pci->state.driver_feature_select > 1
			       ? 0
			       : (uint32_t)(pci->state.driver_features >>
					    32 * pci->state.driver_feature_select);
	case COMMON_CONFIG_VECTOR:
		return pci->state.config_vector;
	case COMMON_NUM_QUEUES:
		return virtio->n_queues;
	case COMMON_STATUS:
		return atomic_load(&virtio->status);
	case COMMON_GENERATION:
		return atomic_load(&virtio->config_generation);
	case COMMON_QUEUE_SELECT:
		return pci->state.queue_select;
	case COMMON_QUEUE_SIZE:
		return ring ? ring->size : 0;
	case COMMON_QUEUE_VECTOR:
		return ring ? ring->vector : VIRTQUEUE_NO_VECTOR;
	case COMMON_QUEUE_ENABLE:
		return ring ? ring->enabled : 0;
	case COMMON_QUEUE_NOTIFY_OFF:
		return pci->state.queue_select;
	case COMMON_QUEUE_DESCRIPTORS:
		return ring ? ring->descriptors : 0;
	case COMMON_QUEUE_AVAILABLE:
		return ring ? ring->available : 0;
	case COMMON_QUEUE_USED:
		return ring ? ring->used : 0;
	default:
		return 0;
	}
}

/* The width a driver uses for the register at `offset`, 0 if none starts there. */
static uint32_t common_width(uint32_t offset)
{
	switch (offset) {
	case COMMON_DEVICE_FEATURE_SELECT:
	case COMMON_DEVICE_FEATURE:
	case COMMON_DRIVER_FEATURE_SELECT:
	case COMMON_DRIVER_FEATURE:
		return 4;
	case COMMON_STATUS:
	case COMMON_GENERATION:
		return 1;
	case COMMON_QUEUE_DESCRIPTORS:
	case COMMON_QUEUE_AVAILABLE:
	case COMMON_QUEUE_USED:
		return 8;
	default:
		return offset < COMMON_END && offset % 2 == 0 ? 2 : 0;
	}
}

/* 64-bit registers may be written in halves (4.1.4.3.1). */
static void put_half(uint64_t *value, uint32_t half, uint64_t data, uint32_t len)
{
	if (len == 8 && half == 0)
		*value = data;
	else if (half == 0)
		*value = (*value & ~0xffffffffull) | (uint32_t)data;
	else
		*value = (*value & 0xffffffffull) | data << 32;
}

static void queue_enable(struct virtio_pci *pci, struct virtio_queue *queue, uint16_t value)
{
	/* Only 1 means anything, only before DRIVER_OK, and there is no way back but a reset. */
	if (value != 1 || atomic_load(&pci->virtio->status) & VIRTIO_STATUS_DRIVER_OK)
		return;
	queue->ring.state.enabled = true;
	atomic_store(&queue->ring.call_fd, msix_fd(&pci->function, queue->ring.state.vector));
}

static void queue_write(struct virtio_pci *pci, uint32_t offset, uint64_t value, uint32_t len)
{
	struct virtio_queue *queue = selected_queue(pci);
	struct virtqueue_state *ring;

	if (!queue)
		return;
	ring = &queue->ring.state;
	if (offset == COMMON_QUEUE_VECTOR) {
		ring->vector = vector_check(pci, value);
		atomic_store(&queue->ring.call_fd, msix_fd(&pci->function, ring->vector));
		virtio_queue_call_changed(queue);
		return;
	}
	/* The rest is settled once the queue is enabled. */
	if (ring->enabled)
		return;
	switch (offset & ~4u) {
	case COMMON_QUEUE_DESCRIPTORS:
		put_half(&ring->descriptors, offset & 4, value, len);
		return;
	case COMMON_QUEUE_AVAILABLE:
		put_half(&ring->available, offset & 4, value, len);
		return;
	case COMMON_QUEUE_USED:
		put_half(&ring->used, offset & 4, value, len);
		return;
	}
	if (offset == COMMON_QUEUE_SIZE && value > 0 && value <= queue->ring.size_max &&
	    (value & (value - 1)) == 0)
		ring->size = value;
	else if (offset == COMMON_QUEUE_ENABLE)
		queue_enable(pci, queue, value);
}

static void common_write(struct virtio_pci *pci, uint32_t offset, uint64_t value, uint32_t len)
{
	uint8_t status = atomic_load(&pci->virtio->status);

	if (pci->virtio->resetting)
		return; /* the driver was told to wait until the status reads 0 */
	switch (offset) {
	case COMMON_DEVICE_FEATURE_SELECT:
		pci->state.device_feature_select = value;
		break;
	case COMMON_DRIVER_FEATURE_SELECT:
		pci->state.driver_feature_select = value;
		break;
	case COMMON_DRIVER_FEATURE:
		if (!(status & VIRTIO_STATUS_FEATURES_OK) && pci->state.driver_feature_select <= 1)
			put_half(&pci->state.driver_features, pci->state.driver_feature_select * 4,
				 value, 4);
		break;
	case COMMON_CONFIG_VECTOR:
		pci->state.config_vector = vector_check(pci, value);
		atomic_store(&pci->virtio->config_fd,
			     msix_fd(&pci->function, pci->state.config_vector));
		break;
	case COMMON_STATUS:
		status_write(pci, value);
		break;
	case COMMON_QUEUE_SELECT:
		pci->state.queue_select = value;
		break;
	default:
		queue_write(pci, offset, value, len);
	}
}

static void common_access(struct virtio_pci *pci, uint32_t offset, void *data, uint32_t len,
			  bool write)
{
	uint32_t start = offset;
	uint32_t width = common_width(offset);
	uint64_t value = 0;

	/* The upper half of a 64-bit register is the only place inside one that a driver may touch.
	 */
	if (width == 0 || (offset > COMMON_QUEUE_DESCRIPTORS && offset % 8 == 4)) {
		start = align_down(offset, 8);
		width = start >= COMMON_QUEUE_DESCRIPTORS && len == 4 ? common_width(start) : 0;
	}
	if (width < len || (width == 8 && len < 4)) {
		if (!write)
			memset(data, 0, len);
		return;
	}
	if (write) {
		memcpy(&value, data, len);
		common_write(pci, offset, value, len);
		return;
	}
	value = common_read(pci, start) >> 8 * (offset - start);
	memcpy(data, &value, len);
}

static void device_config_access(struct virtio_pci *pci, uint32_t offset, void *data, uint32_t len,
				 bool write)
{
	struct virtio_device *virtio = pci->virtio;
	bool inside = offset < virtio->config_size && len <= virtio->config_size - offset;

	if (!write)
		memset(data, 0, len);
	if (!inside)
		return;
	if (write && virtio->ops->config_write)
		virtio->ops->config_write(virtio, offset, data, len);
	else if (!write && virtio->ops->config_read)
		virtio->ops->config_read(virtio, offset, data, len);
}

/* Kicks are ioeventfds; one that comes here anyway (through the PCI_CFG window, or to memory of a
 * device that has ports) is passed on. */
static void notify_write(struct virtio_pci *pci, uint32_t offset)
{
	uint32_t i = offset / NOTIFY_STRIDE;
	uint64_t one = 1;

	if (i < pci->virtio->n_queues && write(pci->virtio->queues[i].kick_fd, &one, 8) < 0)
		return; /* full: a kick is pending */
}

static void bar_read(struct pci_function *function, uint32_t bar, uint64_t offset, void *data,
		     uint32_t len)
{
	struct virtio_pci *pci = pci_of(function);

	memset(data, 0, len);
	if (bar == BAR_DOORBELLS)
		return;
	if (offset < BAR_ISR)
		common_access(pci, offset, data, len, false);
	else if (offset >= BAR_DEVICE && offset < BAR_TABLE)
		device_config_access(pci, offset - BAR_DEVICE, data, len, false);
	else if (offset >= BAR_TABLE && offset < BAR_PENDING)
		msix_table_read(function, offset - BAR_TABLE, data, len);
	else if (offset >= BAR_PENDING && offset < BAR_NOTIFY)
		msix_pending_read(function, offset - BAR_PENDING, data, len);
	/* ISR: there are no INTx pins, so nothing is ever pending there. */
}

static void bar_write(struct pci_function *function, uint32_t bar, uint64_t offset,
		      const void *data, uint32_t len)
{
	struct virtio_pci *pci = pci_of(function);
	void *bytes = (void *)(uintptr_t)data; /* not written through when `write` is true */

	if (bar == BAR_DOORBELLS)
		notify_write(pci, offset);
	else if (offset < BAR_ISR)
		common_access(pci, offset, bytes, len, true);
	else if (offset >= BAR_DEVICE && offset < BAR_TABLE)
		device_config_access(pci, offset - BAR_DEVICE, bytes, len, true);
	else if (offset >= BAR_TABLE && offset < BAR_PENDING)
		msix_table_write(function, offset - BAR_TABLE, data, len);
	else if (offset >= BAR_NOTIFY)
		notify_write(pci, offset - BAR_NOTIFY);
}

/* The BAR whose notify addresses are ioeventfds. */
static uint32_t doorbells(const struct virtio_pci *pci)
{
	return pci->function.bars[BAR_DOORBELLS].size ? BAR_DOORBELLS : BAR_REGISTERS;
}

/* Kicks follow the BAR. Addresses the guest picks may be refused by the kernel: then that queue is
 * deaf. */
static void bar_moved(struct pci_function *function, uint32_t bar, gpa_t from, gpa_t to)
{
	struct virtio_pci *pci = pci_of(function);
	struct kick_host *kicks = function->root->kicks;
	enum device_space space = function->bars[bar].space;

	if (bar != doorbells(pci))
		return;
	for (uint32_t i = 0; i < pci->virtio->n_queues; i++) {
		int fd = pci->virtio->queues[i].kick_fd;
		gpa_t at = (bar == BAR_DOORBELLS ? 0 : BAR_NOTIFY) + i * NOTIFY_STRIDE;

		if (from)
			(void)kicks->ops->remove(kicks, space, from + at, fd);
		if (to && kicks->ops->add(kicks, space, to + at, fd) < 0)
			log_limited(&pci->virtio->complaints, LOG_LEVEL_WARNING,
				    "%s: the guest moved its registers to where no kick can be "
				    "heard, ignoring",
				    function->device.name);
	}
}

/* The PCI_CFG capability (4.1.4.9): the BARs through configuration space. */
static bool window_access(struct pci_function *function, uint32_t offset, void *data, uint32_t len,
			  bool write)
{
	struct virtio_pci *pci = pci_of(function);
	uint32_t at = pci->window_offset;
	const uint8_t *cap = &function->config.bytes[at];
	const uint32_t bar = cap[4];
	uint64_t bar_size = bar < PCI_BARS ? function->bars[bar].size : 0;
	uint32_t bar_offset, bar_len;

	if (offset != at + 16 || len > 4)
		return false;
	memcpy(&bar_offset, cap + 8, 4);
	memcpy(&bar_len, cap + 12, 4);
	if ((bar_len != 1 && bar_len != 2 && bar_len != 4) || len != bar_len ||
	    bar_offset >= bar_size || bar_len > bar_size - bar_offset || bar_offset % bar_len != 0)
		return true;
	if (write)
		bar_write(function, bar, bar_offset, data, len);
	else
		bar_read(function, bar, bar_offset, data, len);
	return true;
}

static const struct pci_function_ops function_ops = {
	.read = bar_read,
	.write = bar_write,
	.moved = bar_moved,
	.config_access = window_access,
};

static struct virtio_pci *pci_of_device(struct device *device)
{
	return container_of(device, struct virtio_pci, function.device);
}

static void pci_reset(struct device *device)
{
	struct virtio_pci *pci = pci_of_device(device);

	power_on(pci);
	virtio_reset_now(pci->virtio);
	pci_function_reset(&pci->function);
}

static void pci_pause(struct device *device, struct device_waiter *waiter)
{
	virtio_pause(pci_of_device(device)->virtio, waiter);
}

static void pci_resume(struct device *device)
{
	virtio_resume(pci_of_device(device)->virtio);
}

static uint32_t pci_states(struct device *device, struct device_state *states)
{
	struct virtio_pci *pci = pci_of_device(device);
	uint32_t n = pci_function_states(&pci->function, states);

	states[n++] = (struct device_state){&state_table, &pci->state};
	if (pci->virtio->ops->states)
		n += pci->virtio->ops->states(pci->virtio, states + n);
	return n;
}

static void pci_saving(struct device *device)
{
	struct virtio_pci *pci = pci_of_device(device);

	pci_function_saving(&pci->function);
	pci->state.status = atomic_load(&pci->virtio->status);
	pci->state.config_generation = atomic_load(&pci->virtio->config_generation);
	pci->state.n_queues = pci->virtio->n_queues;
	for (uint32_t i = 0; i < pci->virtio->n_queues; i++)
		pci->state.queues[i] = pci->virtio->queues[i].ring.state;
}

static int pci_loaded(struct device *device, struct error *err)
{
	struct virtio_pci *pci = pci_of_device(device);
	struct virtio_device *virtio = pci->virtio;
	int r = pci_function_loaded(&pci->function, err);

	if (r < 0)
		return r;
	if (pci->state.n_queues != virtio->n_queues)
		return error_set(err, -EBADMSG, "cannot load %s: it has %u queues, not %u",
				 device->name, virtio->n_queues, pci->state.n_queues);
	if (pci->state.status & VIRTIO_STATUS_FEATURES_OK &&
	    pci->state.driver_features & ~virtio->offered)
		return error_set(
			err, -EBADMSG,
			"cannot load %s: its driver uses features this device lacks: 0x%llx",
			device->name,
			(unsigned long long)(pci->state.driver_features & ~virtio->offered));
	virtio->accepted =
		pci->state.status & VIRTIO_STATUS_FEATURES_OK ? pci->state.driver_features : 0;
	atomic_store(&virtio->config_generation, pci->state.config_generation);
	atomic_store(&virtio->config_fd, msix_fd(&pci->function, pci->state.config_vector));
	for (uint32_t i = 0; i < virtio->n_queues; i++) {
		struct virtqueue *ring = &virtio->queues[i].ring;

		ring->state = pci->state.queues[i];
		atomic_store(&ring->call_fd, msix_fd(&pci->function, ring->state.vector));
	}
	atomic_store(&virtio->status, pci->state.status);
	return virtio->ops->loaded ? virtio->ops->loaded(virtio, err) : 0;
}

static void pci_counters(const struct device *device, json_t *into)
{
	const struct virtio_pci *pci = container_of(device, struct virtio_pci, function.device);
	const struct virtio_device *virtio = pci->virtio;
	uint64_t kicks = 0, chains = 0, calls = 0;

	/* Each is written by its loop alone; a reader may be a little behind. */
	for (uint32_t i = 0; i < virtio->n_queues; i++) {
		kicks += virtio->queues[i].ring.n_kicks;
		chains += virtio->queues[i].ring.n_chains;
		calls += virtio->queues[i].ring.n_calls;
	}
	json_object_set_new(into, "kicks", json_integer(kicks));
	json_object_set_new(into, "chains", json_integer(chains));
	json_object_set_new(into, "interrupts", json_integer(calls));
	if (virtio->ops->counters)
		virtio->ops->counters(virtio, into);
}

static void pci_deinit(struct device *device)
{
	struct virtio_pci *pci = pci_of_device(device);

	if (!pci->virtio)
		return;
	virtio_detach(pci->virtio, NULL);
	if (pci->virtio->ops->deinit)
		pci->virtio->ops->deinit(pci->virtio);
	virtio_deinit(pci->virtio);
	msix_deinit(&pci->function);
	pci->virtio = NULL;
}

static const struct device_ops device_ops = {
	.type = "virtio-pci",
	.reset = pci_reset,
	.pause = pci_pause,
	.resume = pci_resume,
	.states = pci_states,
	.saving = pci_saving,
	.loaded = pci_loaded,
	.counters = pci_counters,
	.deinit = pci_deinit,
};

/* The least that is not below `n`. */
static uint32_t power_of_two(uint32_t n)
{
	uint32_t size = 1;

	while (size < n)
		size *= 2;
	return size;
}

static uint32_t add_vendor_cap(struct pci_function *function, enum cap_type type, uint8_t size,
			       uint8_t bar, uint32_t offset, uint32_t length)
{
	uint32_t at = pci_add_capability(function, CAP_VENDOR, size);

	function->config.bytes[at + 2] = size;
	function->config.bytes[at + 3] = type;
	function->config.bytes[at + 4] = bar;
	pci_config_put32(function, at + 8, offset);
	pci_config_put32(function, at + 12, length);
	return at;
}

static void add_notify_cap(struct virtio_pci *pci, uint8_t bar, uint32_t offset)
{
	uint32_t at = add_vendor_cap(&pci->function, CAP_NOTIFY, 20, bar, offset,
				     pci->virtio->n_queues * NOTIFY_STRIDE);

	pci_config_put32(&pci->function, at + 16, NOTIFY_STRIDE);
}

/* Of two capabilities of one type a driver takes the first that it can (4.1.4). */
static void add_capabilities(struct virtio_pci *pci)
{
	struct pci_function *function = &pci->function;

	add_vendor_cap(function, CAP_COMMON, 16, BAR_REGISTERS, BAR_COMMON, COMMON_END);
	add_vendor_cap(function, CAP_ISR, 16, BAR_REGISTERS, BAR_ISR, 1);
	if (pci->virtio->config_size)
		add_vendor_cap(function, CAP_DEVICE, 16, BAR_REGISTERS, BAR_DEVICE,
			       pci->virtio->config_size);
	if (doorbells(pci) == BAR_DOORBELLS)
		add_notify_cap(pci, BAR_DOORBELLS, 0);
	add_notify_cap(pci, BAR_REGISTERS, BAR_NOTIFY);
	pci->window_offset = add_vendor_cap(function, CAP_PCI_CFG, 20, 0, 0, 0);
	function->writable[pci->window_offset + 4] = 0xff;
	memset(&function->writable[pci->window_offset + 8], 0xff, 8);
}

int virtio_pci_init(struct virtio_pci *pci, struct pci_root *root, uint32_t slot, const char *name,
		    struct virtio_device *virtio, const struct virtio_ops *ops,
		    struct guest_memory *memory, uint32_t n_queues, uint16_t queue_size,
		    struct loop *const *loops, uint32_t n_loops, struct error *err)
{
	struct pci_ids ids = {
		.vendor = VIRTIO_VENDOR,
		.device = 0x1040 + ops->id,
		.subsystem_vendor = VIRTIO_VENDOR,
		.subsystem = 0x1040 + ops->id,
		.class_code = ops->class_code,
		.revision = 1, /* not transitional (4.1.2.1) */
	};
	int r;

	assert(n_queues + 1 <= PCI_MSIX_MAX);
	device_init(&pci->function.device, &device_ops, name);
	pci->virtio = virtio;
	power_on(pci);
	r = virtio_init(virtio, ops, &pci->function.device, memory, n_queues, queue_size, loops,
			n_loops, err);
	if (r < 0)
		return r;
	pci_function_init(&pci->function, root, &function_ops, &ids);
	pci_add_bar(&pci->function, BAR_REGISTERS, BAR_SIZE);
	if (n_queues * NOTIFY_STRIDE <= PORTS_MAX)
		(void)pci_add_port_bar(&pci->function, BAR_DOORBELLS,
				       power_of_two(n_queues * NOTIFY_STRIDE));
	r = msix_init(&pci->function, n_queues + 1, BAR_REGISTERS, BAR_TABLE, BAR_PENDING, err);
	if (r < 0)
		return r;
	add_capabilities(pci);
	return virtio->late ? 0 : pci_plug(root, &pci->function, slot, err);
}
