/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Page numbers and free ranges in, discards of guest memory out; statistics in when somebody asked
 * ("counters" shows what is there and asks for fresh ones). All on one loop but the configuration.
 * Target and what the guest says it gave migrate.
 *
 * Not offered: MUST_TELL_HOST, for a page comes back by being touched; PAGE_POISON, so that a guest
 * which fills its free pages does not report them.
 */
#include "virtio/balloon.h"

#include <errno.h>
#include <string.h>

#include "base/atomic.h"
#include "base/clock.h"
#include "devices/registers.h"

/* virtio 1.2, 5.5.3 */
#define BALLOON_F_STATS_VQ       (1ull << 1)
#define BALLOON_F_DEFLATE_ON_OOM (1ull << 2)
#define BALLOON_F_PAGE_REPORTING (1ull << 5)

/*
 * What a turn of the loop may cost, in pages discarded (some 100 ns each). A discard is a system
 * call that every vCPU may be interrupted for.
 */
#define TURN_COST    16384
#define DISCARD_COST 32
#define CHAIN_COST   16

#define NUMBERS      128u        /* page numbers read at a time */
#define PIECE        (16u << 20) /* bytes of a free range discarded at a time */
#define STATS_READ   64u         /* entries of a statistics buffer that are looked at */

/* virtio 1.2, 5.5.4 */
struct config {
	uint32_t num_pages, actual;
};
_Static_assert(sizeof(struct config) == 8, "virtio 1.2, 5.5.4");

/* virtio 1.2, 5.5.6.3 */
struct __attribute__((packed)) stat {
	uint16_t tag;
	uint64_t value;
};
_Static_assert(sizeof(struct stat) == 10, "virtio 1.2, 5.5.6.3");

static const char *const stat_names[BALLOON_STATS] = {
	"swap-in", "swap-out",  "major-faults", "minor-faults",   "free",
	"total",   "available", "caches",       "huge-allocated", "huge-failed",
};

/* Pages that follow one another. */
struct run {
	uint64_t first, n;
};

static struct balloon *balloon_of(struct virtio_device *virtio)
{
	return container_of(virtio, struct balloon, virtio);
}

/* `which` counts beside the sum. */
static void count(struct balloon *balloon, uint64_t size, int r, _Atomic uint64_t *which,
		  int64_t *left)
{
	*left -= DISCARD_COST + (int64_t)(size / BALLOON_PAGE_SIZE);
	if (r < 0) {
		log_limited(&balloon->virtio.complaints, LOG_LEVEL_WARNING,
			    "%s: cannot give %llu bytes back to the host: %s, ignoring",
			    balloon->virtio.device->name, (unsigned long long)size, strerror(-r));
		return;
	}
	atomic_fetch_add(&balloon->discarded, size);
	atomic_fetch_add(which, size);
}

static void run_end(struct balloon *balloon, struct run *run, int64_t *left)
{
	uint64_t size = run->n * BALLOON_PAGE_SIZE;

	if (run->n > 0)
		count(balloon, size,
		      memory_discard(balloon->virtio.memory, run->first * BALLOON_PAGE_SIZE, size),
		      &balloon->given, left);
	run->n = 0;
}

/* A guest hands out its pages upwards or downwards; either way a run of them is one discard. */
static void run_add(struct balloon *balloon, struct run *run, uint64_t page, int64_t *left)
{
	void *host;

	if (memory_translate(balloon->virtio.memory, page * BALLOON_PAGE_SIZE, BALLOON_PAGE_SIZE,
			     &host) < 0) {
		atomic_fetch_add(&balloon->ignored, 1);
		return;
	}
	if (run->n > 0 && page + 1 == run->first) {
		run->first = page;
	} else if (run->n == 0 || page != run->first + run->n) {
		run_end(balloon, run, left);
		run->first = page;
	}
	run->n++;
}

/* False: the turn is over, `done` bytes of the numbers are served. */
static bool inflate(struct balloon *balloon, const struct virtqueue_chain *chain, uint64_t *done,
		    int64_t *left)
{
	uint32_t numbers[NUMBERS];
	struct run run = {0};
	size_t n;

	do {
		n = chain_read(chain, *done, numbers, sizeof(numbers)) / sizeof(*numbers);
		for (size_t i = 0; i < n; i++)
			run_add(balloon, &run, le32toh(numbers[i]), left);
		*done += n * sizeof(*numbers);
		*left -= (int64_t)n;
	} while (n == NUMBERS && *left > 0);
	run_end(balloon, &run, left);
	return n < NUMBERS;
}

/* Pages that only in part belong to the range are kept, so a long one is cut where a page ends. */
static bool report_range(struct balloon *balloon, const struct iovec *iov, uint64_t *done,
			 int64_t *left)
{
	while (*left > 0 && *done < iov->iov_len) {
		uint8_t *from = (uint8_t *)iov->iov_base + *done;
		uint64_t start = (uintptr_t)from;
		uint64_t here = MIN(iov->iov_len - *done, PIECE - start % BALLOON_PAGE_SIZE);
		uint64_t first = align_up(start, BALLOON_PAGE_SIZE);
		uint64_t last = align_down(start + here, BALLOON_PAGE_SIZE);
		int r = memory_discard_host(balloon->virtio.memory, from, here);

		count(balloon, last > first ? last - first : 0, r, &balloon->reported, left);
		*done += here;
	}
	return *done == iov->iov_len;
}

static bool report(struct balloon *balloon, const struct virtqueue_chain *chain, uint64_t *done,
		   int64_t *left)
{
	uint64_t start = 0;

	for (uint32_t i = 0; i < chain->n_in; i++) {
		const struct iovec *iov = &chain->iov[chain->n_out + i];
		uint64_t within = *done - start;
		bool whole = within >= iov->iov_len;

		if (!whole) {
			whole = report_range(balloon, iov, &within, left);
			*done = start + within;
		}
		if (!whole)
			return false;
		start += iov->iov_len;
	}
	return true;
}

static bool deflate(struct balloon *balloon, const struct virtqueue_chain *chain)
{
	atomic_fetch_add(&balloon->taken_back,
			 chain->out_bytes / sizeof(uint32_t) * BALLOON_PAGE_SIZE);
	return true;
}

static bool serve(struct balloon *balloon, uint16_t index, const struct virtqueue_chain *chain,
		  int64_t *left)
{
	*left -= CHAIN_COST;
	switch (index) {
	case BALLOON_INFLATE:
		return inflate(balloon, chain, &balloon->done[index], left);
	case BALLOON_DEFLATE:
		return deflate(balloon, chain);
	default:
		return report(balloon, chain, &balloon->done[index], left);
	}
}

/* A chain that is too much for a turn goes back, and the next turn takes it from where this ends.
 */
static void run_pages(struct balloon *balloon, struct virtio_queue *queue)
{
	struct virtqueue_chain chain = {.iov = balloon->iov, .iov_max = ARRAY_SIZE(balloon->iov)};
	uint16_t index = queue->ring.index;
	int64_t left = TURN_COST;
	int r = 0;

	do {
		virtqueue_kicks_off(&queue->ring);
		while (left > 0 && (r = virtqueue_pop(&queue->ring, &chain)) > 0) {
			if (!serve(balloon, index, &chain, &left)) {
				virtqueue_unpop(&queue->ring, &chain);
				break;
			}
			balloon->done[index] = 0;
			virtqueue_push(&queue->ring, chain.head, 0);
		}
		virtqueue_publish(&queue->ring);
		if (r < 0)
			virtio_broken(&balloon->virtio, "broke the rules of its balloon's queues");
		if (left <= 0) {
			event_signal(queue->kick_fd); /* the rest in the next turn */
			return;
		}
	} while (virtqueue_kicks_on(&queue->ring));
}

static void take_statistics(struct balloon *balloon, const struct virtqueue_chain *chain)
{
	struct stat entries[STATS_READ];
	uint64_t stats[BALLOON_STATS];
	size_t n = chain_read(chain, 0, entries, sizeof(entries)) / sizeof(*entries);

	memset(stats, 0xff, sizeof(stats));
	for (size_t i = 0; i < n; i++) {
		uint16_t tag = le16toh(entries[i].tag);

		if (tag < BALLOON_STATS)
			stats[tag] = le64toh(entries[i].value);
	}
	for (uint32_t i = 0; i < BALLOON_STATS; i++)
		atomic_store(&balloon->stats[i], stats[i]);
	atomic_store(&balloon->stats_at, clock_ns());
	atomic_store(&balloon->wanted, false);
}

/* The guest's buffer stays here; to give it back is to ask for it with fresh figures (5.5.6.3). */
static void run_statistics(struct balloon *balloon, struct virtio_queue *queue)
{
	struct virtqueue_chain chain = {.iov = balloon->iov, .iov_max = ARRAY_SIZE(balloon->iov)};
	int r = 0;

	if (balloon->holds && atomic_exchange(&balloon->wanted, false)) {
		virtqueue_push(&queue->ring, balloon->held, 0);
		balloon->holds = false;
	}
	do {
		virtqueue_kicks_off(&queue->ring);
		if (!balloon->holds && (r = virtqueue_pop(&queue->ring, &chain)) > 0) {
			balloon->holds = true;
			balloon->held = chain.head;
			take_statistics(balloon, &chain);
		}
		if (r < 0)
			virtio_broken(&balloon->virtio, "broke the rules of its statistics queue");
	} while (virtqueue_kicks_on(&queue->ring) && !balloon->holds);
	virtqueue_publish(&queue->ring);
}

static void balloon_run(struct virtio_device *virtio, struct virtio_queue *queue)
{
	uint16_t index = queue->ring.index;

	if (index == BALLOON_STATISTICS && virtio_has(virtio, BALLOON_F_STATS_VQ))
		run_statistics(balloon_of(virtio), queue);
	else if (index < BALLOON_STATISTICS || virtio_has(virtio, BALLOON_F_PAGE_REPORTING))
		run_pages(balloon_of(virtio), queue);
}

/* What was taken or begun is as if it had not been: it is taken again when the queue goes on. */
static void balloon_stop(struct virtio_device *virtio, struct virtio_queue *queue)
{
	struct balloon *balloon = balloon_of(virtio);
	const struct virtqueue_chain held = {.head = balloon->held};

	balloon->done[queue->ring.index] = 0;
	if (queue->ring.index != BALLOON_STATISTICS || !balloon->holds)
		return;
	virtqueue_unpop(&queue->ring, &held);
	balloon->holds = false;
}

static void config_read(struct virtio_device *virtio, uint32_t offset, void *data, uint32_t len)
{
	const struct balloon_state *state = &balloon_of(virtio)->state;
	const struct config config = {htole32(state->target), htole32(state->actual)};

	memcpy(data, (const uint8_t *)&config + offset, len);
}

static void config_write(struct virtio_device *virtio, uint32_t offset, const void *data,
			 uint32_t len)
{
	struct balloon_state *state = &balloon_of(virtio)->state;
	struct config config = {.actual = htole32(state->actual)};

	memcpy((uint8_t *)&config + offset, data, len);
	state->actual = le32toh(config.actual);
}

static void forget_statistics(struct balloon *balloon)
{
	for (uint32_t i = 0; i < BALLOON_STATS; i++)
		atomic_store(&balloon->stats[i], UINT64_MAX);
	atomic_store(&balloon->stats_at, 0);
	atomic_store(&balloon->wanted, false);
}

/* The target is the host's and stays. */
static void balloon_reset(struct virtio_device *virtio)
{
	struct balloon *balloon = balloon_of(virtio);

	balloon->state.actual = 0;
	forget_statistics(balloon);
}

static const struct field balloon_fields[] = {
	FIELD(struct balloon_state, target, FIELD_U32, "target", "Pages the guest shall give up"),
	FIELD(struct balloon_state, actual, FIELD_U32, "actual", "Pages it says it has given up"),
};
static const struct table balloon_table =
	TABLE(struct balloon_state, "virtio-balloon", "Memory balloon", balloon_fields);

static uint32_t balloon_states(struct virtio_device *virtio, struct device_state *states)
{
	states[0] = (struct device_state){&balloon_table, &balloon_of(virtio)->state};
	return 1;
}

static int balloon_loaded(struct virtio_device *virtio, struct error *err)
{
	struct balloon *balloon = balloon_of(virtio);
	uint64_t pages = memory_total(virtio->memory) / BALLOON_PAGE_SIZE;

	if (balloon->state.target > pages)
		return error_set(
			err, -EBADMSG, "cannot load %s: it wants %u pages of a guest that has %llu",
			virtio->device->name, balloon->state.target, (unsigned long long)pages);
	forget_statistics(balloon);
	return 0;
}

static void put(json_t *into, const char *key, uint64_t value)
{
	json_object_set_new(into, key, json_integer((json_int_t)MIN(value, (uint64_t)INT64_MAX)));
}

static void put_statistics(const struct balloon *balloon, json_t *into)
{
	uint64_t at = atomic_load(&balloon->stats_at);
	json_t *stats;

	if (at == 0)
		return;
	stats = json_object();
	for (uint32_t i = 0; i < BALLOON_STATS; i++) {
		uint64_t value = atomic_load(&balloon->stats[i]);

		if (value != UINT64_MAX)
			put(stats, stat_names[i], value);
	}
	put(stats, "age-ms", (clock_ns() - at) / 1000000);
	json_object_set_new(into, "statistics", stats);
}

/* Whoever looks makes the guest count anew: the next look finds it. */
static void balloon_counters(const struct virtio_device *virtio, json_t *into)
{
	struct balloon *balloon = container_of(virtio, struct balloon, virtio);
	uint64_t target, actual;

	pthread_mutex_lock(&virtio->device->lock);
	target = balloon->state.target;
	actual = balloon->state.actual;
	if (virtio_has(virtio, BALLOON_F_STATS_VQ)) {
		atomic_store(&balloon->wanted, true);
		event_signal(virtio->queues[BALLOON_STATISTICS].kick_fd);
	}
	pthread_mutex_unlock(&virtio->device->lock);
	put(into, "target", target * BALLOON_PAGE_SIZE);
	put(into, "actual", actual * BALLOON_PAGE_SIZE);
	put(into, "discarded", atomic_load(&balloon->discarded));
	put(into, "given", atomic_load(&balloon->given));
	put(into, "reported", atomic_load(&balloon->reported));
	put(into, "taken-back", atomic_load(&balloon->taken_back));
	put(into, "ignored", atomic_load(&balloon->ignored));
	put_statistics(balloon, into);
}

static const struct virtio_ops balloon_ops = {
	.type = "virtio-balloon",
	.id = 5,
	.class_code = 0x00ff00, /* fits no class */
	.config_read = config_read,
	.config_write = config_write,
	.run = balloon_run,
	.stop = balloon_stop,
	.reset = balloon_reset,
	.states = balloon_states,
	.loaded = balloon_loaded,
	.counters = balloon_counters,
};

void balloon_set(struct balloon *balloon, uint64_t size)
{
	uint64_t total = memory_total(balloon->virtio.memory);
	uint64_t pages = size < total ? (total - size) / BALLOON_PAGE_SIZE : 0;

	pthread_mutex_lock(&balloon->virtio.device->lock);
	balloon->state.target = (uint32_t)MIN(pages, (uint64_t)UINT32_MAX);
	pthread_mutex_unlock(&balloon->virtio.device->lock);
	virtio_config_changed(&balloon->virtio);
}

int balloon_init(struct balloon *balloon, struct pci_root *root, uint32_t slot, const char *name,
		 struct guest_memory *memory, struct loop *loop, struct error *err)
{
	forget_statistics(balloon);
	balloon->virtio.offered =
		BALLOON_F_STATS_VQ | BALLOON_F_DEFLATE_ON_OOM | BALLOON_F_PAGE_REPORTING;
	balloon->virtio.config_size = sizeof(struct config);
	return virtio_pci_init(&balloon->pci, root, slot, name, &balloon->virtio, &balloon_ops,
			       memory, BALLOON_QUEUES, BALLOON_QUEUE_SIZE, &loop, 1, err);
}
