/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entropy: empty buffers in, full ones out, on the queue's loop. Nothing of its own migrates. A
 * guest that asks for more than its share of a turn waits for the next, so that the loop stays at
 * the service of others.
 */
#include "virtio/rng.h"

#include <errno.h>
#include <sys/random.h>

#include "base/atomic.h"
#include "devices/registers.h"

/* Returns the bytes filled: fewer than `size` only if the kernel gives none. */
static size_t fill(void *data, size_t size)
{
	size_t done = 0;

	while (done < size) {
		ssize_t n = getrandom((uint8_t *)data + done, size - done, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		done += (size_t)n;
	}
	return done;
}

static uint32_t serve(struct rng *rng, const struct virtqueue_chain *chain)
{
	uint32_t done = 0;

	for (uint32_t i = 0; i < chain->n_in && done < RNG_REQUEST_MAX; i++) {
		const struct iovec *iov = &chain->iov[chain->n_out + i];
		size_t wanted = MIN(iov->iov_len, (size_t)(RNG_REQUEST_MAX - done));
		size_t n = fill(iov->iov_base, wanted);

		memory_mark_host(rng->virtio.memory, iov->iov_base, n);
		done += (uint32_t)n;
		if (n < wanted)
			break;
	}
	rng->bytes += done;
	return done;
}

static void rng_run(struct virtio_device *virtio, struct virtio_queue *queue)
{
	struct rng *rng = container_of(virtio, struct rng, virtio);
	struct virtqueue_chain chain = {.iov = rng->iov, .iov_max = ARRAY_SIZE(rng->iov)};
	uint32_t given = 0;
	int r = 0;

	do {
		virtqueue_kicks_off(&queue->ring);
		while (given < RNG_REQUEST_MAX && (r = virtqueue_pop(&queue->ring, &chain)) > 0) {
			uint32_t n = serve(rng, &chain);

			virtqueue_push(&queue->ring, chain.head, n);
			given += n + 64; /* an empty request costs, too */
		}
		virtqueue_publish(&queue->ring);
		if (r < 0)
			virtio_broken(virtio, "broke the rules of its entropy queue");
		if (given >= RNG_REQUEST_MAX) {
			event_signal(queue->kick_fd); /* the rest in the next turn */
			return;
		}
	} while (virtqueue_kicks_on(&queue->ring));
}

static void rng_counters(const struct virtio_device *virtio, json_t *into)
{
	const struct rng *rng = container_of(virtio, struct rng, virtio);

	json_object_set_new(into, "bytes", json_integer((json_int_t)load_relaxed(&rng->bytes)));
}

static const struct virtio_ops rng_ops = {
	.type = "virtio-rng",
	.id = 4,
	.class_code = 0x00ff00, /* fits no class */
	.run = rng_run,
	.counters = rng_counters,
};

int rng_init(struct rng *rng, struct pci_root *root, uint32_t slot, const char *name,
	     struct guest_memory *memory, struct loop *loop, struct error *err)
{
	return virtio_pci_init(&rng->pci, root, slot, name, &rng->virtio, &rng_ops, memory, 1,
			       RNG_QUEUE_SIZE, &loop, 1, err);
}
