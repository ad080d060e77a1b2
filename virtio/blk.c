/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device: its configuration, its queues as one, another image behind them. Requests are in
 * blk-queue.c. Migrates: which requests were set aside; otherwise a resting queue has none under
 * way.
 */
#include "virtio/blk.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "virtio/blk-queue.h"

#define VIRTIO_ID_BLOCK    2
#define CLASS_MASS_STORAGE 0x018000

/* virtio 1.2, 5.2.3 */
#define F_SEG_MAX      (1ull << 2)
#define F_RO           (1ull << 5)
#define F_BLK_SIZE     (1ull << 6)
#define F_FLUSH        (1ull << 9)
#define F_TOPOLOGY     (1ull << 10)
#define F_MQ           (1ull << 12)
#define F_DISCARD      (1ull << 13)
#define F_WRITE_ZEROES (1ull << 14)

/* 5.2.4, little-endian */
struct config {
	uint64_t capacity; /* 512-byte sectors */
	uint32_t size_max;
	uint32_t seg_max;
	uint8_t geometry[4];
	uint32_t blk_size;
	uint8_t physical_block_exp, alignment_offset;
	uint16_t min_io_size;
	uint32_t opt_io_size;
	uint8_t writeback, unused0;
	uint16_t num_queues;
	uint32_t max_discard_sectors, max_discard_seg, discard_sector_alignment;
	uint32_t max_write_zeroes_sectors, max_write_zeroes_seg;
	uint8_t write_zeroes_may_unmap, unused1[3];
} __attribute__((packed));
_Static_assert(sizeof(struct config) == 60, "5.2.4");

const char *const blk_operation_names[] = {
	[BLK_READ] = "read",       [BLK_WRITE] = "write",   [BLK_FLUSH] = "flush",
	[BLK_DISCARD] = "discard", [BLK_OPERATIONS] = NULL,
};

static const struct field state_fields[] = {
	FIELD(struct blk_state, aside, FIELD_BYTES, "aside",
	      "heads of the requests to try again, a bit each, queue by queue"),
};
static const struct table state_table =
	TABLE(struct blk_state, "blk", "a block device", state_fields);

static struct blk *blk_of(struct virtio_device *virtio)
{
	return container_of(virtio, struct blk, virtio);
}

static void config_read(struct virtio_device *virtio, uint32_t offset, void *data, uint32_t len)
{
	struct blk *blk = blk_of(virtio);
	struct config config = {
		.capacity = atomic_load(&blk->capacity),
		.seg_max = BLK_SEGMENTS_MAX,
		.blk_size = blk->io_block,
		.min_io_size = 1,
		.writeback = !blk->writethrough,
		.num_queues = virtio->n_queues,
		.max_discard_sectors = BLK_RANGE_SECTORS_MAX,
		.max_discard_seg = BLK_RANGES_MAX,
		.discard_sector_alignment = blk->discard_block / BLOCK_SECTOR,
		.max_write_zeroes_sectors = BLK_RANGE_SECTORS_MAX,
		.max_write_zeroes_seg = BLK_RANGES_MAX,
		.write_zeroes_may_unmap = 1,
	};

	memcpy(data, (uint8_t *)&config + offset, len);
}

static int blk_attach(struct virtio_device *virtio, struct virtio_queue *virtio_queue)
{
	struct blk_queue *queue = &blk_of(virtio)->queues[virtio_queue->ring.index];

	queue->virtio = virtio_queue;
	return blk_queue_attach(queue);
}

static void blk_detach(struct virtio_device *virtio, struct virtio_queue *virtio_queue)
{
	blk_queue_detach(&blk_of(virtio)->queues[virtio_queue->ring.index]);
}

static void blk_run(struct virtio_device *virtio, struct virtio_queue *queue)
{
	blk_queue_run(&blk_of(virtio)->queues[queue->ring.index]);
}

static void blk_stop(struct virtio_device *virtio, struct virtio_queue *queue)
{
	blk_queue_stop(&blk_of(virtio)->queues[queue->ring.index]);
}

static void blk_activate(struct virtio_device *virtio)
{
	blk_of(virtio)->writethrough = !virtio_has(virtio, F_FLUSH);
}

static uint32_t blk_states(struct virtio_device *virtio, struct device_state *states)
{
	states[0] = (struct device_state){&state_table, &blk_of(virtio)->state};
	return 1;
}

static int blk_loaded(struct virtio_device *virtio, struct error *err)
{
	const struct blk *blk = blk_of(virtio);

	for (uint32_t i = 0; i < BLK_QUEUES_MAX; i++) {
		uint32_t size = i < virtio->n_queues ? virtio->queues[i].ring.state.size : 0;

		for (uint32_t head = 0; head < BLK_QUEUE_SIZE; head++)
			if (head >= size && blk->state.aside[i][head / 8] & 1u << head % 8)
				return error_set(err, -EBADMSG,
						 "%s: request %u of queue %u was set aside, there "
						 "is none",
						 virtio->device->name, head, i);
	}
	blk_activate(virtio);
	return 0;
}

static void blk_reset(struct virtio_device *virtio)
{
	struct blk *blk = blk_of(virtio);

	blk->writethrough = false;
	blk->trouble = (struct blk_trouble){0};
	blk->state = (struct blk_state){0};
}

static void counters_add(struct blk_counters *sum, const struct blk_counters *one)
{
	sum->reads += one->reads;
	sum->writes += one->writes;
	sum->flushes += one->flushes;
	sum->discards += one->discards;
	sum->errors += one->errors;
	sum->read_bytes += one->read_bytes;
	sum->written_bytes += one->written_bytes;
	sum->limited += one->limited;
	sum->aside += one->aside;
	for (uint32_t i = 0; i < BLK_DISCARD; i++)
		blk_latency_sum(&sum->latency[i], &one->latency[i]);
}

static void blk_counters(const struct virtio_device *virtio, json_t *into)
{
	const struct blk *blk = container_of(virtio, const struct blk, virtio);
	struct blk_counters sum = {0};

	for (uint32_t i = 0; i < blk->n_queues; i++)
		counters_add(&sum, &blk->queues[i].counters);
	json_object_set_new(into, "reads", json_integer(sum.reads));
	json_object_set_new(into, "writes", json_integer(sum.writes));
	json_object_set_new(into, "flushes", json_integer(sum.flushes));
	json_object_set_new(into, "discards", json_integer(sum.discards));
	json_object_set_new(into, "errors", json_integer(sum.errors));
	json_object_set_new(into, "read-bytes", json_integer(sum.read_bytes));
	json_object_set_new(into, "written-bytes", json_integer(sum.written_bytes));
	json_object_set_new(into, "limited", json_integer(sum.limited));
	json_object_set_new(into, "set-aside", json_integer(sum.aside));
	json_object_set_new(into, "read-latency", blk_latency_json(&sum.latency[BLK_READ]));
	json_object_set_new(into, "write-latency", blk_latency_json(&sum.latency[BLK_WRITE]));
	json_object_set_new(into, "flush-latency", blk_latency_json(&sum.latency[BLK_FLUSH]));
}

static void queues_deinit(struct blk *blk)
{
	for (uint32_t i = 0; i < blk->n_queues; i++)
		if (blk->queues[i].requests)
			munmap(blk->queues[i].requests,
			       sizeof(struct blk_request) * BLK_QUEUE_SIZE);
	blk->n_queues = 0;
	free(take_ptr(blk->queues));
}

static void blk_deinit(struct virtio_device *virtio)
{
	queues_deinit(blk_of(virtio));
}

static const struct virtio_ops blk_ops = {
	.type = "virtio-blk",
	.id = VIRTIO_ID_BLOCK,
	.class_code = CLASS_MASS_STORAGE,
	.config_read = config_read,
	.attach = blk_attach,
	.detach = blk_detach,
	.activate = blk_activate,
	.run = blk_run,
	.stop = blk_stop,
	.reset = blk_reset,
	.states = blk_states,
	.loaded = blk_loaded,
	.counters = blk_counters,
	.deinit = blk_deinit,
};

struct blk_trouble blk_trouble(struct blk *blk)
{
	struct blk_trouble trouble;

	pthread_mutex_lock(&blk->virtio.device->lock);
	trouble = blk->trouble;
	pthread_mutex_unlock(&blk->virtio.device->lock);
	return trouble;
}

void blk_trouble_forget(struct blk *blk)
{
	pthread_mutex_lock(&blk->virtio.device->lock);
	blk->trouble = (struct blk_trouble){0};
	pthread_mutex_unlock(&blk->virtio.device->lock);
}

void blk_resized(struct blk *blk)
{
	atomic_store(&blk->capacity, blk->image->size / BLOCK_SECTOR);
	virtio_config_changed(&blk->virtio);
}

static void swap_post(struct blk *blk, enum blk_queue_message step)
{
	atomic_store(&blk->swap->n_left, blk->n_queues);
	for (uint32_t i = 0; i < blk->n_queues; i++)
		loop_post(&blk->queues[i].source, step);
}

void blk_swap_step(struct blk *blk, enum blk_queue_message step, int r)
{
	struct blk_swap *swap = blk->swap;
	int none = 0;

	if (r < 0)
		atomic_compare_exchange_strong(&swap->r, &none, r);
	if (atomic_fetch_sub(&swap->n_left, 1) > 1)
		return;
	if (step == BLK_SWAP_OPEN) {
		swap_post(blk, atomic_load(&swap->r) < 0 ? BLK_SWAP_DROP : BLK_SWAP_TAKE);
		return;
	}
	if (step == BLK_SWAP_TAKE)
		blk->image = swap->image;
	blk->swap = NULL;
	swap->done(swap, atomic_load(&swap->r));
}

int blk_swap(struct blk *blk, struct blk_swap *swap)
{
	if (swap->image->size != blk->image->size || swap->image->io_block > blk->io_block)
		return -EINVAL;
	atomic_store(&swap->r, 0);
	blk->swap = swap;
	swap_post(blk, BLK_SWAP_OPEN);
	return 0;
}

static int queues_init(struct blk *blk, uint32_t n_queues)
{
	blk->queues = calloc(n_queues, sizeof(*blk->queues));
	if (!blk->queues)
		return -ENOMEM;
	blk->n_queues = n_queues;
	for (uint32_t i = 0; i < n_queues; i++) {
		struct blk_queue *queue = &blk->queues[i];

		queue->blk = blk;
		queue->aside = blk->state.aside[i];
		queue->requests = mmap(NULL, sizeof(struct blk_request) * BLK_QUEUE_SIZE,
				       PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (queue->requests == MAP_FAILED) {
			queue->requests = NULL;
			return -errno;
		}
	}
	return 0;
}

static void features_offer(struct blk *blk)
{
	const struct block_image *image = blk->image;

	blk->virtio.offered = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_MQ;
	blk->virtio.offered |= image->readonly ? F_RO : F_WRITE_ZEROES;
	blk->virtio.offered |= image->can_discard ? F_DISCARD : 0;
	blk->virtio.config_size = sizeof(struct config);
	blk->io_block = image->io_block;
	blk->discard_block = MAX(image->io_block, image->discard_block);
	atomic_store(&blk->capacity, image->size / BLOCK_SECTOR);
}

int blk_init(struct blk *blk, struct pci_root *root, uint32_t slot, struct guest_memory *memory,
	     const struct blk_options *options, struct error *err)
{
	const char *serial = options->serial;
	int r;

	assert(options->n_queues > 0 && options->n_queues <= BLK_QUEUES_MAX);

	blk->image = options->image;
	blk->on_error = options->on_error;
	blk->listener = options->listener;
	blk_limits_init(&blk->limits, &options->limits, 0);
	if (serial)
		memcpy(blk->id, serial, MIN(strlen(serial), sizeof(blk->id)));
	features_offer(blk);
	r = queues_init(blk, options->n_queues);
	if (r < 0) {
		queues_deinit(blk);
		return error_set(err, r, "cannot make disk %s: %s", options->name, strerror(-r));
	}
	return virtio_pci_init(&blk->pci, root, slot, options->name, &blk->virtio, &blk_ops, memory,
			       options->n_queues, BLK_QUEUE_SIZE, options->loops, options->n_loops,
			       err);
}
