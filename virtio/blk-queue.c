/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests out of a ring, operations on an image, completions back. Each queue has its own channel
 * to the image; nothing is allocated here and no lock taken but by what is limited or fails. A
 * request lives in the slot of its head descriptor from pop to push, so its number travels as the
 * operation's cookie. The queue's loop.
 */
#include "virtio/blk-queue.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

/* The part of the data that is still to come, or has just come: before it is skipped. */
static void data_mark(struct blk_queue *queue, const struct blk_request *request)
{
	for (uint32_t i = 0; i < request->n_data; i++)
		memory_mark_host(queue->blk->virtio.memory, request->data[i].iov_base,
				 request->data[i].iov_len);
}

/* Gives the request back to the guest; the queue is published once per turn. */
static void request_end(struct blk_queue *queue, struct blk_request *request,
			enum blk_status status)
{
	struct guest_memory *memory = queue->blk->virtio.memory;
	bool in = request->header.type == BLK_T_IN || request->header.type == BLK_T_GET_ID;
	uint32_t written = 1;

	if (in && status == BLK_S_OK)
		written += request->bytes;
	if (status != BLK_S_OK)
		queue->counters.errors++;
	*request->status = status;
	memory_mark_host(memory, request->status, 1);
	virtqueue_push(&queue->virtio->ring, request->chain.head, written);
	loop_batch(&queue->source);
}

/* What an image cannot do is no fault of its store. */
static bool is_of_store(int code)
{
	return code != -EOPNOTSUPP && code != -EINVAL && code != -EROFS;
}

/*
 * A flush that failed lost what the page cache held, and the next one would say that all is well:
 * so the guest is told, unless what failed is an image's own writing of what it still holds.
 */
static bool may_be_repeated(const struct blk *blk, const struct blk_request *request)
{
	const struct block_image *image = blk->image;

	return request->header.type != BLK_T_FLUSH || image->file.direct ||
	       strcmp(image->ops->format, "raw") != 0;
}

static bool is_set_aside(const struct blk *blk, const struct blk_request *request, int code)
{
	if (!blk->listener || !is_of_store(code) || !may_be_repeated(blk, request))
		return false;
	switch (blk->on_error) {
	case BLK_ERROR_FULL:
		return code == -ENOSPC || code == -EDQUOT;
	case BLK_ERROR_PAUSE:
		return true;
	case BLK_ERROR_REPORT:
		break;
	}
	return false;
}

static void aside_put(struct blk_queue *queue, uint16_t head)
{
	queue->aside[head / 8] |= (uint8_t)(1u << head % 8);
	virtqueue_set_aside(&queue->virtio->ring, head);
}

/* The whole of it comes again: what of it is done already is done once more, which is the same. */
static void set_aside(struct blk_queue *queue, struct blk_request *request, int code)
{
	struct blk *blk = queue->blk;
	bool first;

	aside_put(queue, request->chain.head);
	queue->counters.aside++;
	loop_batch(&queue->source); /* a stopping queue may rest now */
	pthread_mutex_lock(&blk->virtio.device->lock);
	first = !blk->trouble.code;
	if (first)
		blk->trouble = (struct blk_trouble){code, blk_request_kind(request)};
	pthread_mutex_unlock(&blk->virtio.device->lock);
	if (first)
		blk->listener->failed(blk->listener, blk);
}

static void request_failed(struct blk_queue *queue, struct blk_request *request, int code)
{
	if (is_set_aside(queue->blk, request, code))
		set_aside(queue, request, code);
	else
		request_end(queue, request, code == -EOPNOTSUPP ? BLK_S_UNSUPPORTED : BLK_S_IOERR);
}

static void count_written(struct blk *blk, uint64_t now)
{
	uint64_t told = atomic_load_explicit(&blk->written_told, memory_order_relaxed);

	if (blk->listener && now - told >= BLK_WRITTEN_NS &&
	    atomic_compare_exchange_strong(&blk->written_told, &told, now))
		blk->listener->written(blk->listener, blk);
}

static void request_done(struct blk_queue *queue, struct blk_request *request, uint64_t now)
{
	enum blk_operation kind = blk_request_kind(request);

	if (kind < BLK_DISCARD)
		blk_latency_add(&queue->counters.latency[kind], now - request->started);
	if (kind == BLK_WRITE)
		count_written(queue->blk, now);
	request_end(queue, request, BLK_S_OK);
}

/* The step the request is at goes to the image. -EBUSY: the engine is full. */
static int request_submit(struct blk_queue *queue, struct blk_request *request)
{
	const struct io_op op = blk_request_op(request);

	return block_submit(queue->channel, &op, &queue->source, request->chain.head);
}

static void request_id(struct blk_queue *queue, struct blk_request *request)
{
	/* A shorter buffer gets the beginning (5.2.6.1). */
	request->bytes = MIN(request->bytes, (uint64_t)BLK_ID_SIZE);
	chain_write(&request->chain, 0, queue->blk->id, request->bytes);
	data_mark(queue, request);
	request_end(queue, request, BLK_S_OK);
}

static void count(struct blk_queue *queue, const struct blk_request *request)
{
	struct blk_counters *counters = &queue->counters;

	switch (blk_request_kind(request)) {
	case BLK_READ:
		counters->reads++;
		counters->read_bytes += request->bytes;
		break;
	case BLK_WRITE:
		counters->writes++;
		counters->written_bytes += request->bytes;
		break;
	case BLK_FLUSH:
		counters->flushes++;
		break;
	default:
		counters->discards++;
	}
}

/* True: no limit stands against it, and it is counted there. Else the timer is set. */
static bool within_limits(struct blk_queue *queue, const struct blk_request *request)
{
	enum blk_operation kind = blk_request_kind(request);
	uint64_t ready;

	if (queue->paid || !queue->blk->limits.any || (kind != BLK_READ && kind != BLK_WRITE))
		return true;
	ready = blk_limits_take(&queue->blk->limits, kind == BLK_WRITE, request->bytes,
				loop_now(queue->source.loop));
	queue->paid = ready == 0;
	if (queue->paid)
		return true;
	queue->counters.limited++;
	queue->not_before = ready;
	loop_timer(&queue->source, ready);
	return false;
}

/* One request towards the image. False: the engine is full, or a limit says to wait. */
static bool request_start(struct blk_queue *queue, struct blk_request *request)
{
	enum blk_status status;
	int r;

	if (request->header.type == BLK_T_GET_ID) {
		request_id(queue, request);
		return true;
	}
	status = blk_request_check(queue->blk, request);
	if (status != BLK_S_OK) {
		request_end(queue, request, status);
		return true;
	}
	if (!within_limits(queue, request))
		return false;
	request->started = loop_now(queue->source.loop);
	r = request_submit(queue, request);
	if (r == -EBUSY)
		return false;
	queue->paid = false;
	count(queue, request);
	if (r < 0)
		request_failed(queue, request, r);
	return true;
}

/* The next that was set aside before the queue started. As virtqueue_pop. */
static int aside_take(struct blk_queue *queue, struct virtqueue_chain *chain)
{
	while (queue->again_at < BLK_QUEUE_SIZE) {
		uint32_t head = queue->again_at++;
		uint8_t bit = (uint8_t)(1u << head % 8);

		if (!(queue->aside[head / 8] & bit))
			continue;
		queue->aside[head / 8] &= (uint8_t)~bit;
		return virtqueue_pop_again(&queue->virtio->ring, (uint16_t)head, chain);
	}
	return 0;
}

/* What was set aside first, then the ring. */
static int next_chain(struct blk_queue *queue, struct virtqueue_chain *chain)
{
	int r = queue->again ? aside_take(queue, chain) : 0;

	if (r != 0)
		return r;
	queue->again = false;
	return virtqueue_pop(&queue->virtio->ring, chain);
}

static void put_back(struct blk_queue *queue, const struct virtqueue_chain *chain)
{
	if (queue->again) {
		aside_put(queue, chain->head);
		queue->again_at = chain->head;
	} else {
		virtqueue_unpop(&queue->virtio->ring, chain);
	}
}

/* A chain becomes a request. False: it is put back. */
static bool chain_start(struct blk_queue *queue, const struct virtqueue_chain *chain)
{
	struct blk_request *request = &queue->requests[chain->head];

	request->chain = *chain;
	request->chain.iov = request->iov;
	memcpy(request->iov, chain->iov, sizeof(*chain->iov) * (chain->n_out + chain->n_in));
	if (!blk_request_parse(request)) {
		virtqueue_push(&queue->virtio->ring, chain->head, 0);
		queue->virtio->ring.broken = true;
		virtio_broken(&queue->blk->virtio, "sent a request without header or status");
		return true;
	}
	if (request_start(queue, request))
		return true;
	put_back(queue, chain);
	return false;
}

/*
 * Takes requests until there are none, the engine is full, a limit is reached, or a ring's worth
 * was taken: what ends at once must not keep the loop from its other sources.
 */
static void drain(struct blk_queue *queue, uint32_t *budget)
{
	struct virtqueue_chain chain = {.iov_max = BLK_IOV_MAX};
	struct iovec iov[BLK_IOV_MAX];

	chain.iov = iov;
	for (; *budget > 0; (*budget)--) {
		int r = next_chain(queue, &chain);

		if (r == 0)
			return;
		if (r < 0) {
			virtio_broken(&queue->blk->virtio,
				      "sent a request that is not well-formed");
			return;
		}
		if (!chain_start(queue, &chain)) {
			queue->stalled = true;
			return;
		}
	}
	queue->stalled = true;
	loop_batch(&queue->source);
}

void blk_queue_run(struct blk_queue *queue)
{
	struct virtqueue *ring = &queue->virtio->ring;
	uint32_t budget = ring->state.size;

	/* An image that is another host's: all stays in the ring. */
	if (queue->blk->image->inactive)
		return;
	queue->stalled = queue->not_before > loop_now(queue->source.loop);
	while (!queue->stalled) {
		virtqueue_kicks_off(ring);
		drain(queue, &budget);
		if (!queue->stalled && !virtqueue_kicks_on(ring))
			return;
	}
}

/* Those that wait for an event only. What is limited stays in the ring. */
void blk_queue_stop(struct blk_queue *queue)
{
	loop_timer(&queue->source, UINT64_MAX);
	queue->not_before = 0;
	queue->paid = false;
	queue->again = true;
	queue->again_at = 0;
}

/* The request's next step. If there is no room for it, it waits for the loop's word that there is.
 */
static void request_continue(struct blk_queue *queue, struct blk_request *request)
{
	int r = request_submit(queue, request);

	if (r == -EBUSY) {
		request->next = queue->waiting;
		queue->waiting = request;
	} else if (r < 0) {
		request_failed(queue, request, r);
	}
}

/* A step of a request is over: the next step, or the end. */
static void request_step(struct blk_queue *queue, struct blk_request *request,
			 const struct loop_event *event)
{
	int code;

	/* What failed half-way has written, too. */
	if (request->header.type == BLK_T_IN)
		data_mark(queue, request);
	if (blk_request_step(request, queue->blk->writethrough, event->result, &code))
		request_continue(queue, request);
	else if (code < 0)
		request_failed(queue, request, code);
	else
		request_done(queue, request, event->now);
}

/* Requests that waited for room go before new ones. False: the engine is full again. */
static bool waiting_continue(struct blk_queue *queue)
{
	struct blk_request *list = take_ptr(queue->waiting);

	while (list) {
		struct blk_request *request = list;

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
		blk_queue_run(queue);
	virtio_queue_settle(virtio_queue);
}

static void limit_over(struct blk_queue *queue)
{
	queue->not_before = 0;
	if (queue->virtio->run == VIRTIO_QUEUE_RUNS)
		blk_queue_run(queue);
}

static void swap_step(struct blk_queue *queue, enum blk_queue_message step)
{
	struct blk *blk = queue->blk;
	int r = 0;

	assert(queue->virtio->run == VIRTIO_QUEUE_RESTS);
	switch (step) {
	case BLK_SWAP_OPEN:
		r = block_channel_open(&queue->new_channel, blk->swap->image, queue->source.loop);
		break;
	case BLK_SWAP_TAKE:
		block_channel_close(queue->channel);
		queue->channel = take_ptr(queue->new_channel);
		break;
	case BLK_SWAP_DROP:
		queue->new_channel = block_channel_close(queue->new_channel);
		break;
	}
	blk_swap_step(blk, step, r);
}

static void blk_event(struct loop_source *source, const struct loop_event *event)
{
	struct blk_queue *queue = container_of(source, struct blk_queue, source);

	if (event->kind == LOOP_IO)
		request_step(queue, &queue->requests[event->arg], event);
	else if (event->kind == LOOP_TIMER)
		limit_over(queue);
	else if (event->kind == LOOP_POST && event->arg == LOOP_BATCH)
		batch_end(queue);
	else if (event->kind == LOOP_POST)
		swap_step(queue, event->arg);
}

int blk_queue_attach(struct blk_queue *queue)
{
	struct loop *loop = queue->virtio->loop;
	int r;

	queue->source = (struct loop_source){.on_event = blk_event};
	queue->again = true;
	queue->again_at = 0;
	r = loop_add(loop, &queue->source);
	return r < 0 ? r : block_channel_open(&queue->channel, queue->blk->image, loop);
}

void blk_queue_detach(struct blk_queue *queue)
{
	if (queue->source.loop)
		loop_remove(&queue->source);
	queue->new_channel = block_channel_close(queue->new_channel);
	queue->channel = block_channel_close(queue->channel);
}
