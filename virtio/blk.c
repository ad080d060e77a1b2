/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests of a block driver in, operations on an image out, completions back. Each queue runs on
 * its own loop with its own channel to the image; nothing is allocated there and no lock taken. A
 * request lives in the slot of its head descriptor from pop to push, so its number travels as the
 * operation's cookie. Migrates: nothing of its own; a resting queue has no request under way.
 */
#include "virtio/blk.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

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

/* 5.2.6, little-endian */
enum request_type {
	T_IN = 0,
	T_OUT = 1,
	T_FLUSH = 4,
	T_GET_ID = 8,
	T_DISCARD = 11,
	T_WRITE_ZEROES = 13,
};
enum request_status { S_OK = 0, S_IOERR = 1, S_UNSUPPORTED = 2 };

struct request_header {
	uint32_t type;
	uint32_t reserved;
	uint64_t sector;
} __attribute__((packed));
_Static_assert(sizeof(struct request_header) == 16, "5.2.6");

struct range {
	uint64_t sector;
	uint32_t n_sectors;
	uint32_t flags; /* bit 0: unmap */
} __attribute__((packed));
_Static_assert(sizeof(struct range) == 16, "5.2.6");
#define RANGE_UNMAP 1u

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

#define SEGMENTS_MAX      126 /* data descriptors of one request */
#define IOV_MAX_REQUEST   (SEGMENTS_MAX + 2)
#define RANGES_MAX        16
#define RANGE_SECTORS_MAX (1u << 22) /* 2 GiB a range */

struct request {
	struct virtqueue_chain chain;
	struct iovec iov[IOV_MAX_REQUEST];
	struct request_header header;
	struct iovec *data; /* the chain's iovecs without header and status */
	uint32_t n_data;
	uint64_t bytes, done; /* of data */
	uint8_t *status;      /* in guest memory */
	bool flushing;        /* the flush behind a write-through write is under way */
	struct request *next; /* in the queue's list of those that wait for room; weak */
	uint32_t n_ranges, range;
	struct range ranges[RANGES_MAX];
};

struct blk_queue {
	struct blk *blk;             /* weak */
	struct virtio_queue *virtio; /* weak */
	struct loop_source source;   /* completions */
	struct block_channel channel;
	struct request *requests; /* owned mapping, one a descriptor; pages come as they are used */
	bool stalled;             /* chains are left in the ring: goes on at the next batch */
	struct request *waiting;  /* weak: their next step found the engine full */
	struct blk_counters counters;
};

static struct blk *blk_of(struct virtio_device *virtio)
{
	return container_of(virtio, struct blk, virtio);
}

static void config_read(struct virtio_device *virtio, uint32_t offset, void *data, uint32_t len)
{
	struct blk *blk = blk_of(virtio);
	struct config config = {
		.capacity = blk->image->size / BLOCK_SECTOR,
		.seg_max = SEGMENTS_MAX,
		.blk_size = blk->image->io_block,
		.min_io_size = 1,
		.writeback = !blk->writethrough,
		.num_queues = virtio->n_queues,
		.max_discard_sectors = RANGE_SECTORS_MAX,
		.max_discard_seg = RANGES_MAX,
		.discard_sector_alignment = blk->image->io_block / BLOCK_SECTOR,
		.max_write_zeroes_sectors = RANGE_SECTORS_MAX,
		.max_write_zeroes_seg = RANGES_MAX,
		.write_zeroes_may_unmap = 1,
	};

	memcpy(data, (uint8_t *)&config + offset, len);
}

/* The part of the data that is still to come, or has just come: before it is skipped. */
static void data_mark(struct blk_queue *queue, const struct request *request)
{
	for (uint32_t i = 0; i < request->n_data; i++)
		memory_mark_host(queue->blk->virtio.memory, request->data[i].iov_base,
				 request->data[i].iov_len);
}

/* Gives the request back to the guest; the queue is published once per turn. */
static void request_end(struct blk_queue *queue, struct request *request,
			enum request_status status)
{
	struct guest_memory *memory = queue->blk->virtio.memory;
	bool in = request->header.type == T_IN || request->header.type == T_GET_ID;
	uint32_t written = 1;

	if (in && status == S_OK)
		written += request->bytes;
	if (status != S_OK)
		queue->counters.errors++;
	*request->status = status;
	memory_mark_host(memory, request->status, 1);
	virtqueue_push(&queue->virtio->ring, request->chain.head, written);
	loop_batch(&queue->source);
}

static int submit(struct blk_queue *queue, struct request *request, const struct io_op *op)
{
	return block_submit(&queue->channel, op, &queue->source, request->chain.head);
}

static int submit_data(struct blk_queue *queue, struct request *request)
{
	struct io_op op = {
		.kind = request->header.type == T_IN ? IO_READ : IO_WRITE,
		.iov = request->data,
		.n_iov = request->n_data,
		.offset = request->header.sector * BLOCK_SECTOR + request->done,
	};

	return submit(queue, request, &op);
}

static int submit_flush(struct blk_queue *queue, struct request *request)
{
	return submit(queue, request, &(struct io_op){.kind = IO_FLUSH});
}

static int submit_range(struct blk_queue *queue, struct request *request)
{
	const struct range *range = &request->ranges[request->range];
	struct io_op op = {
		.kind = IO_DISCARD,
		.offset = range->sector * BLOCK_SECTOR,
		.length = (uint64_t)range->n_sectors * BLOCK_SECTOR,
	};

	if (request->header.type == T_WRITE_ZEROES)
		op.kind = range->flags & RANGE_UNMAP ? IO_ZERO : IO_ZERO_KEEP;
	return submit(queue, request, &op);
}

/* The step the request is at goes to the image. -EBUSY: the engine is full. */
static int request_submit(struct blk_queue *queue, struct request *request)
{
	if (request->flushing)
		return submit_flush(queue, request);
	switch (request->header.type) {
	case T_IN:
	case T_OUT:
		return submit_data(queue, request);
	case T_FLUSH:
		return submit_flush(queue, request);
	default:
		return submit_range(queue, request);
	}
}

/* Sectors [sector, sector + n) exist. */
static bool sectors_exist(const struct blk *blk, uint64_t sector, uint64_t n)
{
	uint64_t capacity = blk->image->size / BLOCK_SECTOR;

	return n <= capacity && sector <= capacity - n;
}

/* Checks a copied range list. Returns S_OK when it may be carried out. */
static enum request_status ranges_check(struct blk *blk, struct request *request)
{
	uint32_t known = request->header.type == T_WRITE_ZEROES ? RANGE_UNMAP : 0;

	if (request->bytes == 0 || request->bytes % sizeof(struct range) != 0 ||
	    request->bytes > sizeof(request->ranges))
		return S_IOERR;
	request->n_ranges = request->bytes / sizeof(struct range);
	request->range = 0;
	chain_read(&request->chain, sizeof(request->header), request->ranges, request->bytes);
	for (uint32_t i = 0; i < request->n_ranges; i++) {
		const struct range *range = &request->ranges[i];

		if (range->flags & ~known)
			return S_UNSUPPORTED;
		if (range->n_sectors == 0 || range->n_sectors > RANGE_SECTORS_MAX ||
		    !sectors_exist(blk, range->sector, range->n_sectors))
			return S_IOERR;
	}
	return S_OK;
}

static enum request_status data_check(struct blk *blk, struct request *request)
{
	if (request->bytes % BLOCK_SECTOR != 0 || request->bytes == 0 ||
	    !sectors_exist(blk, request->header.sector, request->bytes / BLOCK_SECTOR))
		return S_IOERR;
	return S_OK;
}

/* What can be said of the request without the image. */
static enum request_status request_check(struct blk *blk, struct request *request)
{
	bool readonly = blk->image->readonly;

	switch (request->header.type) {
	case T_IN:
		return data_check(blk, request);
	case T_OUT:
		return readonly ? S_IOERR : data_check(blk, request);
	case T_FLUSH:
		return S_OK;
	case T_DISCARD:
	case T_WRITE_ZEROES:
		return readonly ? S_IOERR : ranges_check(blk, request);
	default:
		return S_UNSUPPORTED;
	}
}

static void request_id(struct blk_queue *queue, struct request *request)
{
	/* A shorter buffer gets the beginning (5.2.6.1). */
	request->bytes = MIN(request->bytes, (uint64_t)BLK_ID_SIZE);
	chain_write(&request->chain, 0, queue->blk->id, request->bytes);
	data_mark(queue, request);
	request_end(queue, request, S_OK);
}

/* Drops `n` bytes from the front of the iovecs; there are as many. */
static void iov_skip(struct iovec **iov, uint32_t *n_iov, uint64_t n)
{
	while (n > 0 && n >= (*iov)->iov_len) {
		n -= (*iov)->iov_len;
		(*iov)++;
		(*n_iov)--;
	}
	if (n > 0) {
		(*iov)->iov_base = (uint8_t *)(*iov)->iov_base + n;
		(*iov)->iov_len -= n;
	}
}

/*
 * Splits a chain into header, data and status (5.2.6): the header is the first 16 bytes the device
 * reads, the status the last byte it writes, however the driver cut them. False: it lacks either.
 */
static bool request_parse(struct request *request)
{
	struct virtqueue_chain *chain = &request->chain;
	struct iovec *last = &chain->iov[chain->n_out + chain->n_in - 1];
	struct request_header *header = &request->header;

	if (chain->out_bytes < sizeof(*header) || chain->in_bytes < 1)
		return false;
	chain_read(chain, 0, header, sizeof(*header));
	last->iov_len--;
	request->status = (uint8_t *)last->iov_base + last->iov_len;
	request->done = 0;
	request->flushing = false;
	if (header->type == T_IN || header->type == T_GET_ID) {
		request->data = chain->iov + chain->n_out;
		request->n_data = chain->n_in - (last->iov_len == 0);
		request->bytes = chain->in_bytes - 1;
	} else {
		request->data = chain->iov;
		request->n_data = chain->n_out;
		request->bytes = chain->out_bytes - sizeof(*header);
		if (header->type == T_OUT)
			iov_skip(&request->data, &request->n_data, sizeof(*header));
	}
	return true;
}

static void count(struct blk_queue *queue, const struct request *request)
{
	switch (request->header.type) {
	case T_IN:
		queue->counters.reads++;
		queue->counters.read_bytes += request->bytes;
		break;
	case T_OUT:
		queue->counters.writes++;
		queue->counters.written_bytes += request->bytes;
		break;
	case T_FLUSH:
		queue->counters.flushes++;
		break;
	default:
		queue->counters.discards++;
	}
}

/* One request from the ring towards the image. False: the engine is full, the request stays in the
 * ring. */
static bool request_start(struct blk_queue *queue, struct request *request)
{
	enum request_status status;
	int r;

	if (request->header.type == T_GET_ID) {
		request_id(queue, request);
		return true;
	}
	status = request_check(queue->blk, request);
	if (status != S_OK) {
		request_end(queue, request, status);
		return true;
	}
	r = request_submit(queue, request);
	if (r == -EBUSY) {
		virtqueue_unpop(&queue->virtio->ring, &request->chain);
		return false;
	}
	count(queue, request);
	if (r < 0)
		request_end(queue, request, S_IOERR);
	return true;
}

/*
 * Takes requests until there are none, the engine is full, or a ring's worth was taken: what ends
 * at once must not keep the loop from its other sources.
 */
static void drain(struct blk_queue *queue, uint32_t *budget)
{
	struct virtqueue *ring = &queue->virtio->ring;
	struct virtqueue_chain chain = {.iov_max = IOV_MAX_REQUEST};
	struct iovec iov[IOV_MAX_REQUEST];

	chain.iov = iov;
	for (; *budget > 0; (*budget)--) {
		struct request *request;
		int r = virtqueue_pop(ring, &chain);

		if (r == 0)
			return;
		if (r < 0) {
			virtio_broken(&queue->blk->virtio,
				      "sent a request that is not well-formed");
			return;
		}
		request = &queue->requests[chain.head];
		request->chain = chain;
		request->chain.iov = request->iov;
		memcpy(request->iov, iov, sizeof(*iov) * (chain.n_out + chain.n_in));
		if (!request_parse(request)) {
			virtqueue_push(ring, chain.head, 0);
			ring->broken = true;
			virtio_broken(&queue->blk->virtio,
				      "sent a request without header or status");
			return;
		}
		if (!request_start(queue, request)) {
			queue->stalled = true;
			return;
		}
	}
	queue->stalled = true;
	loop_batch(&queue->source);
}

static void blk_run(struct virtio_device *virtio, struct virtio_queue *virtio_queue)
{
	struct blk_queue *queue = &blk_of(virtio)->queues[virtio_queue->ring.index];

	uint32_t budget = virtio_queue->ring.state.size;

	queue->stalled = false;
	do {
		virtqueue_kicks_off(&virtio_queue->ring);
		drain(queue, &budget);
	} while (!queue->stalled && virtqueue_kicks_on(&virtio_queue->ring));
}

/* The request's next step. If there is no room for it, it waits for the loop's word that there is.
 */
static void request_continue(struct blk_queue *queue, struct request *request)
{
	int r = request_submit(queue, request);

	if (r == -EBUSY) {
		request->next = queue->waiting;
		queue->waiting = request;
	} else if (r < 0) {
		request_end(queue, request, S_IOERR);
	}
}

/* A step of a request is over: the next step, or the end. */
static void request_step(struct blk_queue *queue, struct request *request, int32_t result)
{
	uint32_t type = request->header.type;
	bool more = false;

	/* What failed half-way has written, too. */
	if (type == T_IN)
		data_mark(queue, request);
	if (result < 0) {
		request_end(queue, request, result == -EOPNOTSUPP ? S_UNSUPPORTED : S_IOERR);
		return;
	}
	if ((type == T_IN || type == T_OUT) && !request->flushing) {
		/* The file ended early, or was cut meanwhile. */
		if (result == 0) {
			request_end(queue, request, S_IOERR);
			return;
		}
		request->done += result;
		more = request->done < request->bytes;
		if (more)
			iov_skip(&request->data, &request->n_data, result);
	} else if ((type == T_DISCARD || type == T_WRITE_ZEROES) && !request->flushing) {
		more = ++request->range < request->n_ranges;
	}
	if (!more && queue->blk->writethrough && !request->flushing &&
	    (type == T_OUT || type == T_WRITE_ZEROES))
		more = request->flushing = true;
	if (!more) {
		request_end(queue, request, S_OK);
		return;
	}
	request_continue(queue, request);
}

/* Requests that waited for room go before new ones. False: the engine is full again. */
static bool waiting_continue(struct blk_queue *queue)
{
	struct request *list = take_ptr(queue->waiting);

	while (list) {
		struct request *request = list;

		list = request->next;
		request_continue(queue, request);
	}
	return !queue->waiting;
}

/* End of a turn: one publication for all that completed in it. */
static void batch_end(struct blk_queue *queue)
{
	struct virtio_queue *virtio_queue = queue->virtio;

	bool room = waiting_continue(queue);

	virtqueue_publish(&virtio_queue->ring);
	if (room && queue->stalled && virtio_queue->run == VIRTIO_QUEUE_RUNS)
		blk_run(&queue->blk->virtio, virtio_queue);
	virtio_queue_settle(virtio_queue);
}

static void blk_event(struct loop_source *source, const struct loop_event *event)
{
	struct blk_queue *queue = container_of(source, struct blk_queue, source);

	if (event->kind == LOOP_IO)
		request_step(queue, &queue->requests[event->arg], event->result);
	else if (event->kind == LOOP_POST && event->arg == LOOP_BATCH)
		batch_end(queue);
}

static void blk_activate(struct virtio_device *virtio)
{
	blk_of(virtio)->writethrough = !virtio_has(virtio, F_FLUSH);
}

static int blk_loaded(struct virtio_device *virtio, struct error *err)
{
	(void)err;
	blk_activate(virtio);
	return 0;
}

static void blk_virtio_reset(struct virtio_device *virtio)
{
	blk_of(virtio)->writethrough = false;
}

static void blk_counters(const struct virtio_device *virtio, json_t *into)
{
	const struct blk *blk = container_of(virtio, const struct blk, virtio);
	struct blk_counters sum = {0};

	for (uint32_t i = 0; i < virtio->n_queues; i++) {
		const struct blk_counters *one = &blk->queues[i].counters;

		sum.reads += one->reads;
		sum.writes += one->writes;
		sum.flushes += one->flushes;
		sum.discards += one->discards;
		sum.errors += one->errors;
		sum.read_bytes += one->read_bytes;
		sum.written_bytes += one->written_bytes;
	}
	json_object_set_new(into, "reads", json_integer(sum.reads));
	json_object_set_new(into, "writes", json_integer(sum.writes));
	json_object_set_new(into, "flushes", json_integer(sum.flushes));
	json_object_set_new(into, "discards", json_integer(sum.discards));
	json_object_set_new(into, "errors", json_integer(sum.errors));
	json_object_set_new(into, "read-bytes", json_integer(sum.read_bytes));
	json_object_set_new(into, "written-bytes", json_integer(sum.written_bytes));
}

static void blk_deinit(struct virtio_device *virtio)
{
	struct blk *blk = blk_of(virtio);

	for (uint32_t i = 0; blk->queues && i < virtio->n_queues; i++) {
		struct blk_queue *queue = &blk->queues[i];

		if (queue->source.loop)
			loop_remove(&queue->source);
		block_channel_close(&queue->channel);
		if (queue->requests)
			munmap(queue->requests, sizeof(struct request) * BLK_QUEUE_SIZE);
	}
	free(take_ptr(blk->queues));
}

static const struct virtio_ops blk_ops = {
	.type = "virtio-blk",
	.id = VIRTIO_ID_BLOCK,
	.class_code = CLASS_MASS_STORAGE,
	.config_read = config_read,
	.activate = blk_activate,
	.run = blk_run,
	.reset = blk_virtio_reset,
	.loaded = blk_loaded,
	.counters = blk_counters,
	.deinit = blk_deinit,
};

static int queue_init(struct blk_queue *queue, struct blk *blk, struct virtio_queue *virtio)
{
	int r;

	*queue = (struct blk_queue){.blk = blk, .virtio = virtio};
	queue->source.on_event = blk_event;
	r = loop_add(virtio->loop, &queue->source);
	if (r < 0)
		return r;
	r = block_channel_open(&queue->channel, blk->image, virtio->loop);
	if (r < 0)
		return r;
	queue->requests = mmap(NULL, sizeof(struct request) * BLK_QUEUE_SIZE,
			       PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (queue->requests == MAP_FAILED) {
		queue->requests = NULL;
		return -errno;
	}
	return 0;
}

int blk_init(struct blk *blk, struct pci_root *root, uint32_t slot, const char *name,
	     struct guest_memory *memory, struct block_image *image, const char *serial,
	     uint32_t n_queues, struct loop *const *loops, uint32_t n_loops, struct error *err)
{
	int r;

	blk->image = image;
	if (serial)
		memcpy(blk->id, serial, MIN(strlen(serial), sizeof(blk->id)));
	blk->virtio.offered = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_MQ;
	blk->virtio.offered |= image->readonly ? F_RO : F_WRITE_ZEROES;
	blk->virtio.offered |= image->can_discard ? F_DISCARD : 0;
	blk->virtio.config_size = sizeof(struct config);
	r = virtio_pci_init(&blk->pci, root, slot, name, &blk->virtio, &blk_ops, memory, n_queues,
			    BLK_QUEUE_SIZE, loops, n_loops, err);
	if (r < 0)
		return r;
	blk->queues = calloc(n_queues, sizeof(*blk->queues));
	if (!blk->queues)
		return error_set(err, -ENOMEM, "cannot make disk %s: out of memory", name);
	for (uint32_t i = 0; i < n_queues; i++) {
		r = queue_init(&blk->queues[i], blk, &blk->virtio.queues[i]);
		if (r < 0)
			return error_set(err, r, "cannot make queue %u of disk %s: %s", i, name,
					 strerror(-r));
	}
	return 0;
}
