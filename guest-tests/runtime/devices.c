/* SPDX-License-Identifier: Apache-2.0 */
/* How each of the board's virtio devices is started, loaded and checked. */
#include "guest-tests/runtime/devices.h"

#include "guest-tests/runtime/apic.h"
#include "guest-tests/runtime/blk.h"
#include "guest-tests/runtime/console.h"

#define TIMEOUT_MS 20000
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

static struct test_device devices[N_TEST_DEVICES] = {
	{"disk", &disk.dev, disk_start, disk_load, disk_settle, disk_check, disk_buffer,
	 sizeof(disk_buffer)},
	{"console", &console.dev, port_start, port_load, port_settle, port_check, console.rx[0],
	 sizeof(console.rx)},
	{"rng", &rng, rng_start, rng_load, rng_settle, rng_check, rng_buffer, sizeof(rng_buffer)},
};

struct test_device *test_devices(void)
{
	GUEST_ASSERT(blk_find(&disk, 0), "no disk");
	GUEST_ASSERT(console_find(&console), "no console");
	GUEST_ASSERT(virtio_find(&rng, VIRTIO_ID_RNG, 0), "no rng");
	return devices;
}
