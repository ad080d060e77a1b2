/* SPDX-License-Identifier: Apache-2.0 */
/* How each of the board's virtio devices is started, loaded and checked. */
#include "guest-tests/runtime/devices.h"

#include "guest-tests/runtime/apic.h"
#include "guest-tests/runtime/blk.h"
#include "guest-tests/runtime/console.h"

#define TIMEOUT_MS 10000
#define N_LOAD     12
#define N_LOAD_RNG 6 /* QEMU's has a ring of eight */
#define LOAD_LEN   16384

static struct blk disk;
static struct console console;
static struct virtio_device rng;
static struct virtq rng_queue;
static uint8_t disk_buffer[N_LOAD * LOAD_LEN] __attribute__((aligned(16)));
static uint8_t rng_buffer[N_LOAD_RNG * 1024];
static struct blk_request requests[N_LOAD];

static void disk_start(void)
{
	blk_start(&disk, BLK_FEATURES | VIRTIO_RING_FEATURES, false);
}

static void disk_load(void)
{
	struct virtq *q = &disk.queues[0];

	for (unsigned int i = 0; i < N_LOAD; i++) {
		blk_submit(q, &requests[i], BLK_IN, 0, disk_buffer + i * LOAD_LEN, LOAD_LEN);
		virtq_kick(q);
	}
}

static void disk_settle(void)
{
	for (unsigned int i = 0; i < N_LOAD; i++)
		GUEST_ASSERT(virtq_wait(&disk.queues[0], NULL, TIMEOUT_MS) >= 0, "%u of %u", i,
			     N_LOAD);
	for (unsigned int i = 0; i < N_LOAD; i++)
		GUEST_ASSERT(requests[i].status == BLK_OK, "%u: %u", i, requests[i].status);
}

static void disk_check(void)
{
	static uint8_t sector[BLK_SECTOR];

	memset(sector, 0xee, sizeof(sector));
	GUEST_ASSERT(blk_do(&disk.queues[0], BLK_IN, 0, sector, sizeof(sector)) == BLK_OK, "read");
	for (unsigned int i = 0; i < sizeof(sector); i++)
		GUEST_ASSERT(sector[i] == (uint8_t)i, "byte %u: 0x%x", i, sector[i]);
}

static void disk_request(void)
{
	blk_submit(&disk.queues[0], &requests[0], BLK_IN, 0, disk_buffer, BLK_SECTOR);
	virtq_kick(&disk.queues[0]);
}

static void disk_collect(void)
{
	GUEST_ASSERT(virtq_take(&disk.queues[0], NULL) >= 0, "an interrupt for nothing");
}

static void port_start(void)
{
	console_start(&console, VIRTIO_RING_FEATURES | CONSOLE_F_MULTIPORT);
}

/* Its receive buffers are in flight always; a write that nobody waits for is added. */
static void port_load(void)
{
	static const char text[] = "in flight\n";
	struct virtq_seg seg = {(void *)text, sizeof(text) - 1};
	struct virtq *q = &console.queues[CONSOLE_TX];

	for (unsigned int i = 0; i < N_LOAD; i++) {
		virtq_add(q, &seg, 1, 0);
		virtq_kick(q);
	}
}

static void port_settle(void)
{
	for (unsigned int i = 0; i < N_LOAD; i++)
		GUEST_ASSERT(virtq_wait(&console.queues[CONSOLE_TX], NULL, TIMEOUT_MS) >= 0, "%u",
			     i);
}

static void port_check(void)
{
	static const char text[] = "console works\n";

	console_write(&console, text, sizeof(text) - 1);
}

/* What it writes is polled for; what the device has to say is not. */
static void port_request(void)
{
	console_ask(&console, 0);
}

static void port_collect(void)
{
	console_poll_control(&console);
}

static void rng_start(void)
{
	virtio_begin(&rng, VIRTIO_RING_FEATURES);
	virtq_init(&rng_queue, &rng, 0, 0, false);
	virtio_driver_ok(&rng);
}

static void rng_load(void)
{
	for (unsigned int i = 0; i < N_LOAD_RNG; i++) {
		struct virtq_seg seg = {rng_buffer + i * 1024, 1024};

		virtq_add(&rng_queue, &seg, 0, 1);
		virtq_kick(&rng_queue);
	}
}

static void rng_settle(void)
{
	for (unsigned int i = 0; i < N_LOAD_RNG; i++)
		GUEST_ASSERT(virtq_wait(&rng_queue, NULL, TIMEOUT_MS) >= 0, "%u of %u", i,
			     N_LOAD_RNG);
}

static void rng_check(void)
{
	static uint64_t words[4];
	struct virtq_seg seg = {words, sizeof(words)};
	uint32_t len;

	memset(words, 0, sizeof(words));
	virtq_add(&rng_queue, &seg, 0, 1);
	virtq_kick(&rng_queue);
	GUEST_ASSERT(virtq_wait(&rng_queue, &len, TIMEOUT_MS) >= 0, "rng: no answer");
	GUEST_ASSERT(len >= 8 && len <= sizeof(words), "%u bytes", len);
	GUEST_ASSERT(words[0], "eight zero bytes");
}

static void rng_request(void)
{
	struct virtq_seg seg = {rng_buffer, 32};

	virtq_add(&rng_queue, &seg, 0, 1);
	virtq_kick(&rng_queue);
}

static void rng_collect(void)
{
	GUEST_ASSERT(virtq_take(&rng_queue, NULL) >= 0, "an interrupt for nothing");
}

void test_device_interrupt(const struct test_device *d)
{
	struct virtq *q = d->announces;
	unsigned int before = q->n_interrupts;

	GUEST_ASSERT(!virtq_has_used(q), "%s is not idle", d->name);
	virtq_want_interrupt(q);
	d->request();
	GUEST_ASSERT(WAIT_UNTIL(q->n_interrupts != before, TIMEOUT_MS), "%s: no interrupt",
		     d->name);
	/* It may have more to say. */
	sleep_ms(1);
	d->collect();
}

static struct test_device devices[N_TEST_DEVICES] = {
	{
		.name = "disk",
		.dev = &disk.dev,
		.start = disk_start,
		.load = disk_load,
		.settle = disk_settle,
		.check = disk_check,
		.request = disk_request,
		.announces = &disk.queues[0],
		.collect = disk_collect,
		.buffer = disk_buffer,
		.buffer_len = sizeof(disk_buffer),
	},
	{
		.name = "console",
		.dev = &console.dev,
		.start = port_start,
		.load = port_load,
		.settle = port_settle,
		.check = port_check,
		.request = port_request,
		.announces = &console.queues[CONSOLE_CONTROL_RX],
		.collect = port_collect,
		.buffer = console.rx[0],
		.buffer_len = sizeof(console.rx),
	},
	{
		.name = "rng",
		.dev = &rng,
		.start = rng_start,
		.load = rng_load,
		.settle = rng_settle,
		.check = rng_check,
		.request = rng_request,
		.announces = &rng_queue,
		.collect = rng_collect,
		.buffer = rng_buffer,
		.buffer_len = sizeof(rng_buffer),
	},
};

struct test_device *test_devices(void)
{
	GUEST_ASSERT(blk_find(&disk, 0), "no disk");
	GUEST_ASSERT(console_find(&console), "no console");
	GUEST_ASSERT(virtio_find(&rng, VIRTIO_ID_RNG, 0), "no rng");
	return devices;
}
