/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of a virtio device: queues start on their loops, run, stop, rest. Starts and stops come
 * from vCPU threads or the main thread under the device's lock; everything about a running queue
 * happens on its loop.
 */
#include "virtio/device.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/fd.h"
#include "devices/registers.h"

enum queue_message { QUEUE_START, QUEUE_STOP, QUEUE_CALL };

static void raise_config(struct virtio_device *virtio)
{
	int fd = atomic_load(&virtio->config_fd);

	if (fd >= 0)
		event_signal(fd);
}

void virtio_config_changed(struct virtio_device *virtio)
{
	atomic_fetch_add(&virtio->config_generation, 1);
	raise_config(virtio);
}

/* True: it did not before, so a line is due. */
static bool needs_reset(struct virtio_device *virtio)
{
	uint8_t status = atomic_fetch_or(&virtio->status, VIRTIO_STATUS_NEEDS_RESET);

	if (status & VIRTIO_STATUS_NEEDS_RESET)
		return false;
	if (status & VIRTIO_STATUS_DRIVER_OK)
		raise_config(virtio);
	return true;
}

void virtio_broken(struct virtio_device *virtio, const char *why)
{
	if (needs_reset(virtio))
		log_limited(&virtio->complaints, LOG_LEVEL_WARNING,
			    "%s: the guest %s; the device needs a reset", virtio->device->name,
			    why);
}

/* All queues rest: finish what waited for it. The lock is held. */
static void device_rests(struct virtio_device *virtio)
{
	struct device_waiter *waiter = take_ptr(virtio->waiter);
	struct device_waiter *holder = take_ptr(virtio->holder);

	if (virtio->resetting) {
		virtio->resetting = false;
		virtio_reset_now(virtio);
	}
	if (waiter)
		waiter->done(waiter, virtio->device);
	if (holder)
		holder->done(holder, virtio->device);
}

/* One of those that `resting` counts has come to rest. The lock is held. */
static void one_rests(struct virtio_device *virtio)
{
	if (--virtio->resting == 0)
		device_rests(virtio);
}

void virtio_queue_settle(struct virtio_queue *queue)
{
	if (queue->run != VIRTIO_QUEUE_STOPPING || queue->ring.in_flight > 0)
		return;
	virtqueue_publish(&queue->ring);
	virtqueue_unmap(&queue->ring);
	queue->run = VIRTIO_QUEUE_RESTS;
	pthread_mutex_lock(&queue->device->device->lock);
	one_rests(queue->device);
	pthread_mutex_unlock(&queue->device->device->lock);
}

/* What serves the queue takes its kicks, too. One that came before, maybe unseen, is made again. */
static void hand_over(struct virtio_queue *queue)
{
	queue->offloaded = true;
	loop_unwatch(&queue->source);
	event_signal(queue->kick_fd);
}

/* The queue is served here; if it was not the last time, its kicks are heard here again. */
static bool hears_kicks(struct virtio_queue *queue)
{
	struct virtio_device *virtio = queue->device;
	int r;

	if (queue->source.watching)
		return true;
	r = loop_watch_eventfd(&queue->source, queue->kick_fd);
	if (r < 0 && needs_reset(virtio))
		log_limited(&virtio->complaints, LOG_LEVEL_WARNING,
			    "%s: cannot hear the kicks of queue %u: %s; the device needs a reset",
			    virtio->device->name, queue->ring.index, strerror(-r));
	return r >= 0;
}

static void queue_start(struct virtio_queue *queue)
{
	struct virtio_device *virtio = queue->device;

	assert(queue->run == VIRTIO_QUEUE_RESTS);
	queue->run = VIRTIO_QUEUE_RUNS;
	queue->ring.event_index = virtio_has(virtio, VIRTIO_F_EVENT_IDX);
	if (virtqueue_map(&queue->ring) < 0) {
		virtio_broken(virtio, "set up a queue outside its memory");
		return;
	}
	if (virtio->ops->offload && virtio->ops->offload(virtio, queue))
		hand_over(queue);
	else if (hears_kicks(queue))
		virtio->ops->run(virtio, queue);
}

static void queue_stop(struct virtio_queue *queue)
{
	if (queue->device->ops->stop)
		queue->device->ops->stop(queue->device, queue);
	if (queue->offloaded) {
		/* What served it has published all it used. */
		queue->ring.published = queue->ring.state.next_used;
		queue->offloaded = false;
	}
	queue->run = VIRTIO_QUEUE_STOPPING;
	virtio_queue_settle(queue);
}

static void queue_call_changed(struct virtio_queue *queue)
{
	const struct virtio_ops *ops = queue->device->ops;

	/* Before the eventfd is looked at: one that comes later posts again. */
	atomic_store(&queue->call_posted, false);
	if (queue->offloaded && ops->call_changed)
		ops->call_changed(queue->device, queue);
}

/* One message under way is enough, however often the guest picks another vector. */
void virtio_queue_call_changed(struct virtio_queue *queue)
{
	if (!queue->started || !queue->device->ops->call_changed)
		return; /* whoever starts it looks at the eventfd then */
	if (!atomic_exchange(&queue->call_posted, true))
		loop_post(&queue->source, QUEUE_CALL);
}

static void queue_event(struct loop_source *source, const struct loop_event *event)
{
	struct virtio_queue *queue = container_of(source, struct virtio_queue, source);

	if (event->kind == LOOP_POST && event->arg == QUEUE_START)
		queue_start(queue);
	else if (event->kind == LOOP_POST && event->arg == QUEUE_STOP)
		queue_stop(queue);
	else if (event->kind == LOOP_POST && event->arg == QUEUE_CALL)
		queue_call_changed(queue);
	else if (event->kind == LOOP_READY && queue->run == VIRTIO_QUEUE_RUNS) {
		queue->ring.n_kicks++;
		queue->device->ops->run(queue->device, queue);
	}
}

static void queue_power_on(struct virtio_queue *queue)
{
	queue->ring.state = (struct virtqueue_state){.size = queue->ring.size_max,
						     .vector = VIRTQUEUE_NO_VECTOR};
	queue->ring.broken = false;
	queue->ring.in_flight = 0;
	atomic_store(&queue->ring.call_fd, -1);
}

static int queue_init(struct virtio_queue *queue, struct virtio_device *virtio, uint16_t index,
		      uint16_t size, struct loop *loop)
{
	*queue = (struct virtio_queue){.device = virtio, .loop = loop, .kick_fd = -1};
	queue->ring.memory = virtio->memory;
	queue->ring.index = index;
	queue->ring.size_max = size;
	queue_power_on(queue);
	queue->source.on_event = queue_event;
	queue->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return queue->kick_fd < 0 ? -errno : 0;
}

static int queue_attach(struct virtio_queue *queue)
{
	const struct virtio_ops *ops = queue->device->ops;
	int r;

	queue->attached = true;
	r = loop_add(queue->loop, &queue->source);
	if (r == 0)
		r = loop_watch_eventfd(&queue->source, queue->kick_fd);
	if (r == 0 && ops->attach)
		r = ops->attach(queue->device, queue);
	return r;
}

static void queue_detach(struct virtio_queue *queue)
{
	const struct virtio_ops *ops = queue->device->ops;

	if (!queue->attached)
		return;
	if (ops->detach)
		ops->detach(queue->device, queue);
	if (queue->source.loop)
		loop_remove(&queue->source);
	queue->attached = false;
}

int virtio_attach(struct virtio_device *virtio, const struct loop *loop)
{
	int r = 0;

	for (uint32_t i = 0; i < virtio->n_queues && r == 0; i++)
		if (virtio->queues[i].loop == loop)
			r = queue_attach(&virtio->queues[i]);
	return r;
}

void virtio_detach(struct virtio_device *virtio, const struct loop *loop)
{
	for (uint32_t i = 0; i < virtio->n_queues; i++)
		if (!loop || virtio->queues[i].loop == loop)
			queue_detach(&virtio->queues[i]);
}

int virtio_init(struct virtio_device *virtio, const struct virtio_ops *ops, struct device *device,
		struct guest_memory *memory, uint32_t n_queues, uint16_t queue_size,
		struct loop *const *loops, uint32_t n_loops, struct error *err)
{
	assert(n_queues <= VIRTIO_QUEUES_MAX && queue_size <= VIRTQUEUE_SIZE_MAX && n_loops > 0);
	virtio->ops = ops;
	virtio->device = device;
	virtio->memory = memory;
	virtio->offered |= VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC;
	atomic_store(&virtio->config_fd, -1);
	virtio->queues = calloc(n_queues, sizeof(*virtio->queues));
	if (!virtio->queues)
		return error_set(err, -ENOMEM, "cannot make the queues of %s: out of memory",
				 device->name);
	for (uint32_t i = 0; i < n_queues; i++) {
		int r = queue_init(&virtio->queues[i], virtio, i, queue_size, loops[i % n_loops]);

		virtio->n_queues = i + 1;
		if (r == 0 && !virtio->late)
			r = queue_attach(&virtio->queues[i]);
		if (r < 0)
			return error_set(err, r, "cannot make queue %u of %s: %s", i, device->name,
					 strerror(-r));
	}
	return 0;
}

void virtio_deinit(struct virtio_device *virtio)
{
	virtio_detach(virtio, NULL);
	for (uint32_t i = 0; i < virtio->n_queues; i++)
		virtio->queues[i].kick_fd = fd_close(virtio->queues[i].kick_fd);
	virtio->n_queues = 0;
	free(take_ptr(virtio->queues));
}

/* Posts a start to every queue the driver enabled, unless they are to rest. The lock is held. */
static void queues_start(struct virtio_device *virtio)
{
	if (virtio->paused || virtio->held)
		return;
	for (uint32_t i = 0; i < virtio->n_queues; i++) {
		struct virtio_queue *queue = &virtio->queues[i];

		if (!queue->ring.state.enabled || queue->started)
			continue;
		queue->started = true;
		loop_post(&queue->source, QUEUE_START);
	}
}

/*
 * Posts a stop to every queue that was started. `resting` holds one more than there are such
 * queues, so that the last cannot come to rest before all are counted.
 */
static void queues_stop(struct virtio_device *virtio)
{
	uint32_t before = virtio->resting++;

	if (before > 0) { /* they are on their way already */
		one_rests(virtio);
		return;
	}
	for (uint32_t i = 0; i < virtio->n_queues; i++) {
		struct virtio_queue *queue = &virtio->queues[i];

		if (!queue->started)
			continue;
		queue->started = false;
		virtio->resting++;
		loop_post(&queue->source, QUEUE_STOP);
	}
	one_rests(virtio);
}

void virtio_start(struct virtio_device *virtio)
{
	if (virtio->ops->activate)
		virtio->ops->activate(virtio);
	queues_start(virtio);
}

void virtio_reset(struct virtio_device *virtio)
{
	virtio->resetting = true;
	queues_stop(virtio);
}

void virtio_pause(struct virtio_device *virtio, struct device_waiter *waiter)
{
	pthread_mutex_lock(&virtio->device->lock);
	virtio->waiter = waiter;
	virtio->paused = true;
	queues_stop(virtio);
	pthread_mutex_unlock(&virtio->device->lock);
}

/* What made the queues rest is over. A device that broke stays silent until it is reset. */
static void queues_go_on(struct virtio_device *virtio)
{
	uint8_t status = atomic_load(&virtio->status);

	if (status & VIRTIO_STATUS_DRIVER_OK && !(status & VIRTIO_STATUS_NEEDS_RESET))
		queues_start(virtio);
}

void virtio_resume(struct virtio_device *virtio)
{
	pthread_mutex_lock(&virtio->device->lock);
	virtio->paused = false;
	queues_go_on(virtio);
	pthread_mutex_unlock(&virtio->device->lock);
}

void virtio_hold(struct virtio_device *virtio, struct device_waiter *waiter)
{
	pthread_mutex_lock(&virtio->device->lock);
	virtio->holder = waiter;
	virtio->held = true;
	queues_stop(virtio);
	pthread_mutex_unlock(&virtio->device->lock);
}

void virtio_release(struct virtio_device *virtio)
{
	pthread_mutex_lock(&virtio->device->lock);
	virtio->held = false;
	queues_go_on(virtio);
	pthread_mutex_unlock(&virtio->device->lock);
}

void virtio_reset_now(struct virtio_device *virtio)
{
	for (uint32_t i = 0; i < virtio->n_queues; i++) {
		uint64_t count;

		queue_power_on(&virtio->queues[i]);
		/* A kick that came after the stop belongs to the life that ended. */
		if (read(virtio->queues[i].kick_fd, &count, sizeof(count)) < 0)
			continue;
	}
	virtio->accepted = 0;
	atomic_store(&virtio->config_fd, -1);
	if (virtio->ops->reset)
		virtio->ops->reset(virtio);
	atomic_store(&virtio->status, 0); /* last: the driver polls it */
}
