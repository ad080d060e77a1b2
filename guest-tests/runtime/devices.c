/* SPDX-License-Identifier: Apache-2.0 */
/* How each of the board's virtio devices is started, loaded and checked. */
#include "guest-tests/runtime/devices.h"

#include "guest-tests/runtime/apic.h"
#include "guest-tests/runtime/blk.h"
#include "guest-tests/runtime/console.h"
#include "guest-tests/runtime/net.h"
#include "guest-tests/runtime/vsock.h"

#define TIMEOUT_MS 10000
#define N_LOAD     12
#define N_LOAD_RNG 6 /* QEMU's has a ring of eight */
#define LOAD_LEN   16384

/* Of the balloon: a request gives up all pages of its buffer, which is zeroed by that. */
#define BALLOON_INFLATE    0
#define BALLOON_DEFLATE    1
#define BALLOON_STATISTICS 2
#define BALLOON_QUEUES     4
#define BALLOON_PAGES      16
#define BALLOON_FEATURES   (1ull << 1 | 1ull << 5) /* statistics, free-page reporting */

static struct blk disk;
static struct console console;
static struct virtio_device rng;
static struct virtq rng_queue;
static uint8_t disk_buffer[N_LOAD * LOAD_LEN] __attribute__((aligned(16)));
static uint8_t rng_buffer[N_LOAD_RNG * 1024];
static struct blk_request requests[N_LOAD];
static struct virtio_device balloon;
static struct virtq balloon_queues[BALLOON_QUEUES];
static uint8_t balloon_buffer[BALLOON_PAGES * PAGE_SIZE] __attribute__((aligned(4096)));
static uint32_t balloon_list[BALLOON_PAGES];
static uint8_t balloon_statistics[10];

/* Of the card: frames that the host sends back. Now and then one is lost, as on any wire. */
#define FRAME_LEN  200
#define FRAME_TYPE 0x88b5 /* IEEE 802, for experiments */
#define N_TRIES    50
#define TRY_MS     200

/* Of the sockets: requests to a port where nobody listens, which are refused. */
#define REFUSING_PORT 4243

static struct net card;
static const struct net_header card_header;
static uint8_t card_frame[FRAME_LEN], card_back[FRAME_LEN];
static struct vsock sockets;
static struct vsock_header socket_requests[N_LOAD];

static struct test_device devices[N_TEST_DEVICES];
static unsigned int n_devices;

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

/* The device keeps it until somebody on the host wants newer figures. */
static void balloon_offer_statistics(void)
{
	struct virtq_seg seg = {balloon_statistics, sizeof(balloon_statistics)};

	virtq_add(&balloon_queues[BALLOON_STATISTICS], &seg, 1, 0);
	virtq_kick(&balloon_queues[BALLOON_STATISTICS]);
}

static void balloon_start(void)
{
	virtio_begin(&balloon, VIRTIO_RING_FEATURES | BALLOON_FEATURES);
	for (unsigned int i = 0; i < BALLOON_QUEUES; i++)
		virtq_init(&balloon_queues[i], &balloon, i, 0, false);
	virtio_driver_ok(&balloon);
	for (unsigned int i = 0; i < BALLOON_PAGES; i++)
		balloon_list[i] = (uint32_t)((gpa_t)balloon_buffer / PAGE_SIZE) + i;
	balloon_offer_statistics();
}

static void balloon_send(unsigned int queue)
{
	struct virtq_seg seg = {balloon_list, sizeof(balloon_list)};

	virtq_add(&balloon_queues[queue], &seg, 1, 0);
	virtq_kick(&balloon_queues[queue]);
}

static void balloon_request(void)
{
	balloon_send(BALLOON_INFLATE);
}

static void balloon_load(void)
{
	for (unsigned int i = 0; i < N_LOAD; i++)
		balloon_send(BALLOON_INFLATE);
}

static void balloon_collect(void)
{
	GUEST_ASSERT(virtq_take(&balloon_queues[BALLOON_INFLATE], NULL) >= 0,
		     "an interrupt for nothing");
}

static void balloon_settle(void)
{
	for (unsigned int i = 0; i < N_LOAD; i++)
		GUEST_ASSERT(virtq_wait(&balloon_queues[BALLOON_INFLATE], NULL, TIMEOUT_MS) >= 0,
			     "%u of %u", i, N_LOAD);
}

static void balloon_check(void)
{
	for (unsigned int i = 0; i < BALLOON_PAGES; i++)
		balloon_buffer[i * PAGE_SIZE + i] = 0xee;
	for (unsigned int queue = BALLOON_INFLATE; queue <= BALLOON_DEFLATE; queue++) {
		balloon_send(queue);
		GUEST_ASSERT(virtq_wait(&balloon_queues[queue], NULL, TIMEOUT_MS) >= 0, "queue %u",
			     queue);
	}
	for (unsigned int i = 0; i < BALLOON_PAGES; i++)
		GUEST_ASSERT(balloon_buffer[i * PAGE_SIZE + i] == 0, "page %u: 0x%x", i,
			     balloon_buffer[i * PAGE_SIZE + i]);
	if (virtq_take(&balloon_queues[BALLOON_STATISTICS], NULL) >= 0)
		balloon_offer_statistics();
}

static void card_add(void)
{
	struct virtq_seg segs[] = {{(void *)&card_header, sizeof(card_header)},
				   {card_frame, sizeof(card_frame)}};

	virtq_add(&card.tx[0], segs, 2, 0);
	virtq_kick(&card.tx[0]);
}

static void card_start(void)
{
	struct test_device *d = test_device_find("net");

	net_start(&card, NET_FEATURES | VIRTIO_RING_FEATURES);
	memset(card_frame, 0xff, 6);
	memcpy(card_frame + 6, card.mac, 6);
	card_frame[12] = FRAME_TYPE >> 8;
	card_frame[13] = FRAME_TYPE & 0xff;
	d->buffer = card.buffers[0];
	d->buffer_len = NET_RX_BUFFERS * NET_RX_BUFFER_LEN;
}

static void card_load(void)
{
	for (unsigned int i = 0; i < N_LOAD; i++)
		card_add();
}

/* What has come back by now. */
static void card_drain(void)
{
	struct net_header header;

	while (virtq_has_used(&card.rx[0]))
		net_receive(&card, &header, card_back, sizeof(card_back), 0);
}

static void card_settle(void)
{
	for (unsigned int i = 0; i < N_LOAD; i++)
		GUEST_ASSERT(virtq_wait(&card.tx[0], NULL, TIMEOUT_MS) >= 0, "%u of %u", i, N_LOAD);
	card_drain();
}

/* One with this number comes back; those before it may, too. */
static void card_check(void)
{
	static uint8_t number;
	struct net_header header;

	card_frame[14] = ++number;
	for (unsigned int i = 0; i < N_TRIES; i++) {
		net_send(&card, 0, &card_header, card_frame, sizeof(card_frame));
		while (net_receive(&card, &header, card_back, sizeof(card_back), TRY_MS)) {
			if (card_back[14] == number && memcmp(card_back, card.mac, 6) == 0)
				return;
		}
	}
	GUEST_ASSERT(false, "net: no frame comes back");
}

static void card_collect(void)
{
	card_drain();
	while (virtq_take(&card.tx[0], NULL) >= 0)
		;
}

static void sockets_start(void)
{
	vsock_start(&sockets, VIRTIO_RING_FEATURES);
}

static void sockets_add(unsigned int i)
{
	struct virtq_seg seg = {&socket_requests[i], sizeof(socket_requests[i])};

	socket_requests[i] = (struct vsock_header){
		.src_cid = sockets.cid,
		.dst_cid = VSOCK_HOST_CID,
		.src_port = 1000 + i,
		.dst_port = REFUSING_PORT,
		.type = VSOCK_TYPE_STREAM,
		.op = VSOCK_REQUEST,
	};
	virtq_add(&sockets.queues[VSOCK_TX], &seg, 1, 0);
	virtq_kick(&sockets.queues[VSOCK_TX]);
}

static void sockets_load(void)
{
	for (unsigned int i = 0; i < N_LOAD; i++)
		sockets_add(i);
}

/* True: an answer was there. A device that was loaded wants its event back first. */
static bool sockets_take(unsigned int timeout_ms)
{
	struct vsock_packet *packet;

	vsock_poll_events(&sockets);
	packet = vsock_receive(&sockets, timeout_ms);
	if (!packet)
		return false;
	GUEST_ASSERT(packet->header.op == VSOCK_RST && packet->header.src_port == REFUSING_PORT,
		     "vsock: op %u from port %u", packet->header.op, packet->header.src_port);
	vsock_release(&sockets, packet);
	return true;
}

static void sockets_drain(void)
{
	while (virtq_has_used(&sockets.queues[VSOCK_RX]))
		sockets_take(0);
}

static void sockets_settle(void)
{
	for (unsigned int i = 0; i < N_LOAD; i++) {
		GUEST_ASSERT(virtq_wait(&sockets.queues[VSOCK_TX], NULL, TIMEOUT_MS) >= 0,
			     "%u of %u", i, N_LOAD);
		sockets_drain();
	}
}

/* Answers that were due when the device was loaded are not. */
static void sockets_check(void)
{
	for (unsigned int i = 0; i < N_TRIES; i++) {
		sockets_add(0);
		GUEST_ASSERT(virtq_wait(&sockets.queues[VSOCK_TX], NULL, TIMEOUT_MS) >= 0,
			     "vsock: a packet is not taken");
		if (sockets_take(TRY_MS)) {
			sockets_drain();
			return;
		}
	}
	GUEST_ASSERT(false, "vsock: no answer");
}

static void sockets_request(void)
{
	sockets_add(0);
}

static void sockets_collect(void)
{
	sockets_drain();
	while (virtq_take(&sockets.queues[VSOCK_TX], NULL) >= 0)
		;
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

static const struct test_device all_devices[N_TEST_DEVICES] = {
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
	{
		.name = "balloon",
		.dev = &balloon,
		.start = balloon_start,
		.load = balloon_load,
		.settle = balloon_settle,
		.check = balloon_check,
		.request = balloon_request,
		.announces = &balloon_queues[BALLOON_INFLATE],
		.collect = balloon_collect,
		.buffer = balloon_buffer,
		.buffer_len = sizeof(balloon_buffer),
	},
	{
		.name = "net",
		.dev = &card.dev,
		.start = card_start,
		.load = card_load,
		.settle = card_settle,
		.check = card_check,
		.request = card_add,
		.announces = &card.rx[0],
		.collect = card_collect,
	},
	{
		.name = "vsock",
		.dev = &sockets.dev,
		.start = sockets_start,
		.load = sockets_load,
		.settle = sockets_settle,
		.check = sockets_check,
		.request = sockets_request,
		.announces = &sockets.queues[VSOCK_RX],
		.collect = sockets_collect,
		.buffer = (uint8_t *)sockets.rx,
		.buffer_len = sizeof(sockets.rx),
	},
};

struct test_device *test_devices(void)
{
	const bool there[N_TEST_DEVICES] = {
		blk_find(&disk, 0),
		console_find(&console),
		virtio_find(&rng, VIRTIO_ID_RNG, 0),
		virtio_find(&balloon, VIRTIO_ID_BALLOON, 0),
		net_find(&card, 0),
		vsock_find(&sockets),
	};

	GUEST_ASSERT(there[0] && there[1] && there[2], "no %s",
		     there[0] ? there[1] ? "rng" : "console" : "disk");
	n_devices = 0;
	for (unsigned int i = 0; i < N_TEST_DEVICES; i++) {
		if (there[i])
			devices[n_devices++] = all_devices[i];
	}
	return devices;
}

unsigned int test_device_count(void)
{
	return n_devices;
}

struct test_device *test_device_find(const char *name)
{
	for (unsigned int i = 0; i < n_devices; i++) {
		if (strncmp(devices[i].name, name, strlen(name) + 1) == 0)
			return &devices[i];
	}
	return NULL;
}
