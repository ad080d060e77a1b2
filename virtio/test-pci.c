/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio's PCI transport, reached as a guest reaches it: BAR and configuration accesses on the
 * buses. The device behind it gives each chain back at once, or keeps it while told to.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "devices/registers.h"
#include "devices/test-board.h"
#include "virtio/pci.h"
#include "virtio/test-driver.h"

#define SLOT        2
#define QUEUES      2
#define SIZE        16
#define CONFIG_SIZE 13
#define FEATURE_A   (1ull << 3)
#define FEATURE_B   (1ull << 40)

/* Within BAR 0. */
#define DEVICE_FEATURE_SELECT 0
#define DEVICE_FEATURE        4
#define DRIVER_FEATURE_SELECT 8
#define DRIVER_FEATURE        12
#define CONFIG_VECTOR         16
#define NUM_QUEUES            18
#define STATUS                20
#define GENERATION            21
#define QUEUE_SELECT          22
#define QUEUE_SIZE            24
#define QUEUE_VECTOR          26
#define QUEUE_ENABLE          28
#define NOTIFY_OFF            30
#define DESCRIPTORS           32
#define AVAILABLE             40
#define USED                  48
#define ISR                   0x1000
#define CONFIG                0x2000
#define TABLE_AT              0x4000
#define NOTIFY                0x6000

#define ACK                   VIRTIO_STATUS_ACKNOWLEDGE
#define DRIVER                (ACK | VIRTIO_STATUS_DRIVER)
#define FEATURES_OK           (DRIVER | VIRTIO_STATUS_FEATURES_OK)
#define DRIVER_OK             (FEATURES_OK | VIRTIO_STATUS_DRIVER_OK)

struct echo {
	struct virtio_pci pci;
	struct virtio_device virtio;
	uint8_t config[CONFIG_SIZE];
	uint16_t heads[SIZE];
	uint32_t n_heads, n_activate;
	bool keep;
	bool outside; /* its queues are served elsewhere from their next start on */
	uint32_t n_call_changes;
	int call_fd; /* as last told */
};

static struct test_board board;
static struct test_driver driver; /* its memory and loop; the rest goes through registers */
static struct pci_root root, portless;
static struct echo echo, other;
static struct echo *device; /* that the accesses below go to */

/* Queue 0's ring, in guest memory. */
static struct test_descriptor *descriptors;
static struct test_available *available;
static struct test_used *used;

static struct echo *echo_of(struct virtio_device *virtio)
{
	return container_of(virtio, struct echo, virtio);
}

static void give_back(struct echo *of)
{
	struct virtio_queue *queue = &of->virtio.queues[0];

	while (of->n_heads > 0)
		virtqueue_push(&queue->ring, of->heads[--of->n_heads], 1);
	virtqueue_publish(&queue->ring);
	virtio_queue_settle(queue);
}

static void on_run(struct virtio_device *virtio, struct virtio_queue *queue)
{
	struct echo *of = echo_of(virtio);
	struct iovec iov[4];
	struct virtqueue_chain chain = {.iov = iov, .iov_max = ARRAY_SIZE(iov)};
	int r;

	while ((r = virtqueue_pop(&queue->ring, &chain)) > 0)
		of->heads[of->n_heads++] = chain.head;
	if (r < 0)
		virtio_broken(virtio, "broke a test's rules");
	virtqueue_kicks_on(&queue->ring);
	if (!of->keep)
		give_back(of);
}

static bool on_offload(struct virtio_device *virtio, struct virtio_queue *queue _unused_)
{
	return echo_of(virtio)->outside;
}

static void on_call_changed(struct virtio_device *virtio, struct virtio_queue *queue)
{
	echo_of(virtio)->n_call_changes++;
	echo_of(virtio)->call_fd = atomic_load(&queue->ring.call_fd);
}

/* Whoever served it elsewhere has come this far in the rings. */
static void on_stop(struct virtio_device *virtio _unused_, struct virtio_queue *queue)
{
	if (queue->offloaded)
		queue->ring.state.next_available = queue->ring.state.next_used = used->index;
}

static void on_config_read(struct virtio_device *virtio, uint32_t offset, void *data, uint32_t len)
{
	memcpy(data, echo_of(virtio)->config + offset, len);
}

static void on_config_write(struct virtio_device *virtio, uint32_t offset, const void *data,
			    uint32_t len)
{
	memcpy(echo_of(virtio)->config + offset, data, len);
}

static void on_activate(struct virtio_device *virtio)
{
	echo_of(virtio)->n_activate++;
}

static const struct virtio_ops ops = {
	.type = "echo",
	.id = 42,
	.class_code = 0x00ff00,
	.config_read = on_config_read,
	.config_write = on_config_write,
	.activate = on_activate,
	.offload = on_offload,
	.call_changed = on_call_changed,
	.run = on_run,
	.stop = on_stop,
};

static void make_on(struct echo *of, struct pci_root *on, uint32_t slot, uint32_t n_queues)
{
	struct error err = ERROR_NULL;
	int r;

	*of = (struct echo){.virtio.offered = FEATURE_A | FEATURE_B,
			    .virtio.config_size = CONFIG_SIZE};
	for (uint32_t i = 0; i < CONFIG_SIZE; i++)
		of->config[i] = i + 1;
	r = virtio_pci_init(&of->pci, on, slot, "echo", &of->virtio, &ops, &driver.memory, n_queues,
			    SIZE, &driver.loop, 1, &err);
	cr_assert_eq(r, 0, "%s", err.text);
}

static void make(struct echo *of, uint32_t slot)
{
	make_on(of, &root, slot, QUEUES);
}

static void unmake(struct echo *of)
{
	of->pci.function.device.ops->deinit(&of->pci.function.device);
}

static void set_up(void)
{
	static const struct pci_layout layout = {.ecam = 0xe0000000,
						 .window = 0xc0000000,
						 .window_size = 1 << 20,
						 .ports = 0x1000,
						 .n_ports = 0xf000};
	struct error err = ERROR_NULL;

	test_board_init(&board);
	test_driver_init(&driver);
	cr_assert_eq(pci_root_init(&root, &layout, &board.io, &board.mmio, &board.irqs,
				   &board.kicks, &err),
		     0, "%s", err.text);
	make(&echo, SLOT);
	device = &echo;
}

static void tear_down(void)
{
	unmake(&echo);
	test_driver_deinit(&driver);
	test_board_deinit(&board);
}

TestSuite(pci, .init = set_up, .fini = tear_down);

static uint64_t get(uint32_t offset, uint32_t len)
{
	uint64_t value = 0;

	cr_assert(
		bus_read(&board.mmio, device->pci.function.bars[0].address + offset, &value, len));
	return value;
}

static void put(uint32_t offset, uint64_t value, uint32_t len)
{
	bus_write(&board.mmio, device->pci.function.bars[0].address + offset, &value, len);
}

static uint32_t config_get(uint32_t offset, uint32_t len)
{
	test_board_out(&board, 0xcf8, 0x80000000 | SLOT << 11 | (offset & 0xfc), 4);
	return test_board_in(&board, 0xcfc + (offset & 3), len);
}

static void config_put(uint32_t offset, uint32_t value, uint32_t len)
{
	test_board_out(&board, 0xcf8, 0x80000000 | SLOT << 11 | (offset & 0xfc), 4);
	test_board_out(&board, 0xcfc + (offset & 3), value, len);
}

static void status(uint8_t value)
{
	put(STATUS, value, 1);
}

static void features(uint64_t value)
{
	for (uint32_t i = 0; i < 2; i++) {
		put(DRIVER_FEATURE_SELECT, i, 4);
		put(DRIVER_FEATURE, (uint32_t)(value >> 32 * i), 4);
	}
}

/* A ring at `where`, 0x3000 bytes of guest memory. */
static void queue_place(uint16_t i, gpa_t where)
{
	put(QUEUE_SELECT, i, 2);
	put(DESCRIPTORS, where, 8);
	put(AVAILABLE, where + 0x1000, 8);
	put(USED, where + 0x2000, 8);
}

#define RINGS 0x100000

/* Up to DRIVER_OK with queue 0, as a driver does it. */
static void start(void)
{
	descriptors = test_driver_at(&driver, RINGS);
	available = test_driver_at(&driver, RINGS + 0x1000);
	used = test_driver_at(&driver, RINGS + 0x2000);
	status(0);
	test_driver_turn(&driver);
	cr_assert_eq(get(STATUS, 1), 0);
	available->index = used->index = 0;
	status(ACK);
	status(DRIVER);
	features(VIRTIO_F_VERSION_1 | FEATURE_A);
	status(FEATURES_OK);
	cr_assert_eq(get(STATUS, 1), FEATURES_OK);
	queue_place(0, RINGS);
	put(QUEUE_VECTOR, 1, 2);
	put(QUEUE_ENABLE, 1, 2);
	put(CONFIG_VECTOR, 0, 2);
	status(DRIVER_OK);
	test_driver_turn(&driver);
}

static void offer(uint16_t head)
{
	descriptors[head] = (struct test_descriptor){0x200000, 16, TEST_DESC_WRITE, 0};
	available->ring[available->index % SIZE] = head;
	available->index++;
	event_signal(device->virtio.queues[0].kick_fd);
	test_driver_turn(&driver);
}

/* Messages of a vector since the last call. */
static uint64_t interrupts(uint32_t vector)
{
	return test_eventfd_take(msix_fd(&device->pci.function, vector));
}

static int n_done;

static void on_done(struct device_waiter *waiter _unused_, struct device *of _unused_)
{
	n_done++;
}

static void pause_device(struct echo *of)
{
	static struct device_waiter waiter = {on_done};

	n_done = 0;
	of->pci.function.device.ops->pause(&of->pci.function.device, &waiter);
	test_driver_turn(&driver);
	cr_assert_eq(n_done, 1);
}

/* Identity and capabilities */

Test(pci, the_function_is_a_modern_device)
{
	cr_assert_eq(config_get(0, 4), (0x1040u + 42) << 16 | 0x1af4);
	cr_assert_geq(config_get(8, 1), 1);
	cr_assert_eq(config_get(0x0a, 2), 0x00ff);
	cr_assert_eq(config_get(0x2c, 2), 0x1af4);
}

/* The vendor capability of a type behind another one, 0 if there is none. */
static uint32_t next_vendor_cap(uint8_t type, uint32_t after)
{
	for (uint32_t at = config_get(after ? after + 1 : 0x34, 1); at; at = config_get(at + 1, 1))
		if (config_get(at, 1) == 0x09 && config_get(at + 3, 1) == type)
			return at;
	return 0;
}

static uint32_t vendor_cap(uint8_t type)
{
	return next_vendor_cap(type, 0);
}

Test(pci, capabilities_name_each_part_of_the_bar)
{
	static const struct {
		uint8_t type;
		uint32_t offset, length;
	} parts[] = {{1, 0, 56}, {2, NOTIFY, 4 * QUEUES}, {3, ISR, 1}, {4, CONFIG, CONFIG_SIZE}};

	for (uint32_t i = 0; i < ARRAY_SIZE(parts); i++) {
		uint32_t cap = vendor_cap(parts[i].type);

		if (parts[i].type == 2)
			cap = next_vendor_cap(2, cap);
		cr_assert_neq(cap, 0, "type %u", parts[i].type);
		cr_assert_geq(config_get(cap + 2, 1), 16);
		cr_assert_eq(config_get(cap + 4, 1), 0, "BAR 0");
		cr_assert_eq(config_get(cap + 8, 4), parts[i].offset);
		cr_assert_geq(config_get(cap + 12, 4), parts[i].length);
	}
	cr_assert_neq(vendor_cap(5), 0, "the window");
}

Test(pci, the_notify_capabilities_give_the_stride)
{
	uint32_t n = 0;

	for (uint32_t cap = vendor_cap(2); cap; cap = next_vendor_cap(2, cap), n++) {
		cr_assert_eq(config_get(cap + 2, 1), 20);
		cr_assert_eq(config_get(cap + 16, 4), 4);
	}
	cr_assert_eq(n, 2);
}

Test(pci, doorbells_in_ports_come_first)
{
	uint32_t cap = vendor_cap(2);

	cr_assert_eq(config_get(cap + 4, 1), 1, "BAR 1");
	cr_assert_eq(config_get(cap + 8, 4), 0);
	cr_assert_eq(config_get(cap + 12, 4), 4 * QUEUES);
	cr_assert_eq(config_get(0x14, 4) & 3, 1);
	config_put(0x14, UINT32_MAX, 4);
	cr_assert_eq(config_get(0x14, 4), ~(4u * QUEUES - 1) | 1, "no more ports than it needs");
}

/* Features and status */

Test(pci, offered_features_are_read_in_halves)
{
	uint64_t offered = FEATURE_A | FEATURE_B | VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX |
			   VIRTIO_F_INDIRECT_DESC;

	cr_assert_eq(get(DEVICE_FEATURE, 4), (uint32_t)offered);
	put(DEVICE_FEATURE_SELECT, 1, 4);
	cr_assert_eq(get(DEVICE_FEATURE, 4), offered >> 32);
	put(DEVICE_FEATURE_SELECT, 2, 4);
	cr_assert_eq(get(DEVICE_FEATURE, 4), 0);
	put(DEVICE_FEATURE_SELECT, UINT32_MAX, 4);
	cr_assert_eq(get(DEVICE_FEATURE, 4), 0);
	cr_assert_eq(get(DEVICE_FEATURE_SELECT, 4), UINT32_MAX);
}

Test(pci, accepted_features_are_read_back)
{
	status(DRIVER);
	features(VIRTIO_F_VERSION_1 | FEATURE_B);
	cr_assert_eq(get(DRIVER_FEATURE, 4), (VIRTIO_F_VERSION_1 | FEATURE_B) >> 32);
	put(DRIVER_FEATURE_SELECT, 2, 4);
	put(DRIVER_FEATURE, UINT32_MAX, 4);
	cr_assert_eq(get(DRIVER_FEATURE, 4), 0);
	status(FEATURES_OK);
	cr_assert_eq(get(STATUS, 1), FEATURES_OK);
	cr_assert_eq(device->virtio.accepted, VIRTIO_F_VERSION_1 | FEATURE_B);
}

Test(pci, a_feature_that_is_not_offered_is_refused)
{
	status(DRIVER);
	features(VIRTIO_F_VERSION_1 | 1ull << 50);
	status(FEATURES_OK);
	cr_assert_eq(get(STATUS, 1), DRIVER);
	features(VIRTIO_F_VERSION_1);
	status(FEATURES_OK);
	cr_assert_eq(get(STATUS, 1), FEATURES_OK, "it may think better of it");
}

Test(pci, a_driver_that_is_not_modern_is_refused)
{
	status(DRIVER);
	features(FEATURE_A);
	status(FEATURES_OK);
	cr_assert_eq(get(STATUS, 1), DRIVER);
}

Test(pci, features_are_settled_at_features_ok)
{
	status(DRIVER);
	features(VIRTIO_F_VERSION_1);
	status(FEATURES_OK);
	features(VIRTIO_F_VERSION_1 | FEATURE_A);
	cr_assert_eq(device->virtio.accepted, VIRTIO_F_VERSION_1);
	put(DRIVER_FEATURE_SELECT, 0, 4);
	cr_assert_eq(get(DRIVER_FEATURE, 4), 0);
}

Test(pci, driver_ok_without_features_ok_starts_nothing)
{
	status(DRIVER);
	features(VIRTIO_F_VERSION_1);
	status(DRIVER | VIRTIO_STATUS_DRIVER_OK);
	cr_assert_eq(get(STATUS, 1), DRIVER);
	cr_assert_eq(device->n_activate, 0);
}

Test(pci, driver_ok_with_refused_features_starts_nothing)
{
	status(DRIVER);
	features(1ull << 50);
	status(DRIVER_OK);
	cr_assert_eq(get(STATUS, 1), DRIVER);
	cr_assert_eq(device->n_activate, 0);
}

Test(pci, bits_of_the_status_are_only_added)
{
	start();
	status(ACK);
	cr_assert_eq(get(STATUS, 1), DRIVER_OK);
	status(DRIVER_OK);
	cr_assert_eq(device->n_activate, 1, "started once");
	status(DRIVER_OK | VIRTIO_STATUS_FAILED);
	cr_assert_eq(get(STATUS, 1), DRIVER_OK | VIRTIO_STATUS_FAILED);
}

/* Queues */

Test(pci, queues_have_their_registers)
{
	cr_assert_eq(get(NUM_QUEUES, 2), QUEUES);
	for (uint16_t i = 0; i < QUEUES; i++) {
		put(QUEUE_SELECT, i, 2);
		cr_assert_eq(get(QUEUE_SELECT, 2), i);
		cr_assert_eq(get(QUEUE_SIZE, 2), SIZE);
		cr_assert_eq(get(QUEUE_VECTOR, 2), 0xffff);
		cr_assert_eq(get(QUEUE_ENABLE, 2), 0);
		cr_assert_eq(get(NOTIFY_OFF, 2), i);
	}
}

Test(pci, a_queue_that_is_not_there_has_no_size)
{
	for (uint32_t i = QUEUES; i <= 0xffff; i += 0x3ff) {
		put(QUEUE_SELECT, i, 2);
		cr_assert_eq(get(QUEUE_SIZE, 2), 0);
		put(QUEUE_SIZE, 4, 2);
		put(QUEUE_ENABLE, 1, 2);
		put(DESCRIPTORS, 0x1000, 8);
		cr_assert_eq(get(QUEUE_ENABLE, 2), 0);
		cr_assert_eq(get(DESCRIPTORS, 4), 0);
	}
}

Test(pci, a_queue_may_be_made_smaller_by_powers_of_two)
{
	put(QUEUE_SIZE, 4, 2);
	cr_assert_eq(get(QUEUE_SIZE, 2), 4);
	put(QUEUE_SIZE, 5, 2);
	put(QUEUE_SIZE, 0, 2);
	put(QUEUE_SIZE, 2 * SIZE, 2);
	put(QUEUE_SIZE, 0x8000, 2);
	cr_assert_eq(get(QUEUE_SIZE, 2), 4);
	put(QUEUE_SIZE, SIZE, 2);
	cr_assert_eq(get(QUEUE_SIZE, 2), SIZE);
}

Test(pci, addresses_are_written_whole_or_in_halves)
{
	static const uint32_t registers[] = {DESCRIPTORS, AVAILABLE, USED};

	for (uint32_t i = 0; i < ARRAY_SIZE(registers); i++) {
		uint32_t at = registers[i];

		put(at, 0x1122334455667788, 8);
		cr_assert_eq(get(at, 8), 0x1122334455667788);
		cr_assert_eq(get(at, 4), 0x55667788);
		cr_assert_eq(get(at + 4, 4), 0x11223344);
		put(at + 4, 0xaabbccdd, 4);
		cr_assert_eq(get(at, 8), 0xaabbccdd55667788);
		put(at, 0x01020304, 4);
		cr_assert_eq(get(at, 8), 0xaabbccdd01020304);
	}
}

Test(pci, only_one_enables_a_queue)
{
	put(QUEUE_ENABLE, 2, 2);
	put(QUEUE_ENABLE, 0, 2);
	cr_assert_eq(get(QUEUE_ENABLE, 2), 0);
	put(QUEUE_ENABLE, 1, 2);
	cr_assert_eq(get(QUEUE_ENABLE, 2), 1);
	put(QUEUE_ENABLE, 0, 2);
	cr_assert_eq(get(QUEUE_ENABLE, 2), 1, "there is no way back but a reset");
}

Test(pci, an_enabled_queue_is_settled)
{
	queue_place(0, RINGS);
	put(QUEUE_ENABLE, 1, 2);
	queue_place(0, 0x5000);
	put(QUEUE_SIZE, 2, 2);
	cr_assert_eq(get(DESCRIPTORS, 8), RINGS);
	cr_assert_eq(get(QUEUE_SIZE, 2), SIZE);
}

Test(pci, a_running_device_takes_no_further_queue)
{
	start();
	put(QUEUE_SELECT, 1, 2);
	put(QUEUE_ENABLE, 1, 2);
	cr_assert_eq(get(QUEUE_ENABLE, 2), 0);
	cr_assert_eq(device->virtio.queues[1].run, VIRTIO_QUEUE_RESTS);
}

Test(pci, a_vector_that_is_not_there_reads_back_as_none)
{
	put(QUEUE_VECTOR, QUEUES, 2);
	cr_assert_eq(get(QUEUE_VECTOR, 2), QUEUES);
	put(QUEUE_VECTOR, QUEUES + 1, 2);
	cr_assert_eq(get(QUEUE_VECTOR, 2), 0xffff);
	put(CONFIG_VECTOR, 0, 2);
	cr_assert_eq(get(CONFIG_VECTOR, 2), 0);
	put(CONFIG_VECTOR, 0xfffe, 2);
	cr_assert_eq(get(CONFIG_VECTOR, 2), 0xffff);
}

Test(pci, a_chain_goes_through_and_calls)
{
	start();
	offer(3);
	cr_assert_eq(used->index, 1);
	cr_assert_eq(used->ring[0].id, 3);
	cr_assert_eq(interrupts(1), 1);
	cr_assert_eq(interrupts(0), 0);
}

Test(pci, the_vector_may_change_while_it_runs)
{
	start();
	put(QUEUE_VECTOR, 2, 2);
	offer(0);
	cr_assert_eq(interrupts(1), 0);
	cr_assert_eq(interrupts(2), 1);
	put(QUEUE_VECTOR, 0xffff, 2);
	offer(1);
	cr_assert_eq(interrupts(2), 0);
	cr_assert_eq(used->index, 2);
}

/* Odd accesses */

Test(pci, accesses_of_the_wrong_size_do_nothing)
{
	put(QUEUE_SIZE, 4, 2);
	put(DESCRIPTORS, 0x1000, 8);
	put(STATUS, ACK, 4);
	put(STATUS, ACK, 2);
	cr_assert_eq(get(STATUS, 1), 0);
	cr_assert_eq(get(STATUS, 4), 0);
	put(DESCRIPTORS, 0x55, 1);
	put(DESCRIPTORS + 2, 0x5555, 2);
	put(DESCRIPTORS + 2, 0x55555555, 4);
	put(DESCRIPTORS + 4, UINT64_MAX, 8);
	cr_assert_eq(get(DESCRIPTORS, 8), 0x1000);
	put(QUEUE_SIZE, 0x00020002, 4);
	put(QUEUE_SIZE + 1, 2, 1);
	cr_assert_eq(get(QUEUE_SIZE, 2), 4);
	cr_assert_eq(get(QUEUE_SIZE, 8), 0);
	put(DEVICE_FEATURE_SELECT, 0x100000001, 8);
	cr_assert_eq(get(DEVICE_FEATURE_SELECT, 4), 0);
}

Test(pci, every_access_within_the_bar_is_harmless)
{
	for (uint32_t offset = 0; offset < 0x8000; offset++)
		for (uint32_t len = 1; len <= 8 && len <= 0x8000 - offset; len *= 2) {
			uint64_t value = get(offset, len);

			if (offset >= 56 && offset < ISR)
				cr_assert_eq(value, 0, "%u bytes at 0x%x", len, offset);
			put(offset, UINT64_MAX, len);
		}
	status(0);
	test_driver_turn(&driver);
	cr_assert_eq(get(STATUS, 1), 0);
}

Test(pci, read_only_registers_stay)
{
	put(NUM_QUEUES, 77, 2);
	put(DEVICE_FEATURE, 77, 4);
	put(GENERATION, 77, 1);
	put(NOTIFY_OFF, 77, 2);
	cr_assert_eq(get(NUM_QUEUES, 2), QUEUES);
	cr_assert_eq(get(GENERATION, 1), 0);
	cr_assert_eq(get(NOTIFY_OFF, 2), 0);
}

Test(pci, there_is_no_interrupt_status)
{
	start();
	offer(0);
	cr_assert_eq(get(ISR, 1), 0);
}

Test(pci, device_configuration_is_read_in_any_size_within_it)
{
	cr_assert_eq(get(CONFIG, 1), 1);
	cr_assert_eq(get(CONFIG + 1, 2), 0x0302);
	cr_assert_eq(get(CONFIG + 3, 4), 0x07060504);
	cr_assert_eq(get(CONFIG + 5, 8), 0x0d0c0b0a09080706);
	cr_assert_eq(get(CONFIG + 6, 8), 0, "over its end");
	cr_assert_eq(get(CONFIG + CONFIG_SIZE, 1), 0);
	cr_assert_eq(get(CONFIG + 0x1fff, 1), 0);
	put(CONFIG + 12, 0xeeee, 2);
	put(CONFIG + 12, 0xee, 1);
	cr_assert_eq(get(CONFIG + 12, 1), 0xee);
}

Test(pci, the_generation_counts_changes)
{
	uint8_t before = get(GENERATION, 1);

	virtio_config_changed(&device->virtio);
	cr_assert_eq(get(GENERATION, 1), (uint8_t)(before + 1));
}

/* The window in configuration space */

static void window(uint32_t bar, uint32_t offset, uint32_t length)
{
	uint32_t cap = vendor_cap(5);

	config_put(cap + 4, bar, 1);
	config_put(cap + 8, offset, 4);
	config_put(cap + 12, length, 4);
}

Test(pci, the_window_reaches_the_bar)
{
	uint32_t data = vendor_cap(5) + 16;

	window(0, NUM_QUEUES, 2);
	cr_assert_eq(config_get(data, 2), QUEUES);
	window(0, STATUS, 1);
	config_put(data, ACK, 1);
	cr_assert_eq(get(STATUS, 1), ACK);
	window(0, CONFIG, 4);
	cr_assert_eq(config_get(data, 4), 0x04030201);
}

Test(pci, the_window_kicks)
{
	start();
	descriptors[0] = (struct test_descriptor){0x200000, 16, TEST_DESC_WRITE, 0};
	available->ring[0] = 0;
	available->index = 1;
	window(0, NOTIFY, 2);
	config_put(vendor_cap(5) + 16, 0, 2);
	test_driver_turn(&driver);
	cr_assert_eq(used->index, 1);
	available->ring[1] = 0;
	available->index = 2;
	window(1, 0, 2);
	config_put(vendor_cap(5) + 16, 0, 2);
	test_driver_turn(&driver);
	cr_assert_eq(used->index, 2, "and by the ports");
}

Test(pci, a_window_to_nowhere_is_harmless)
{
	static const struct {
		uint32_t bar, offset, length;
	} windows[] = {{2, 0, 4},      {0, 0x8000, 4}, {0, 0x7ffe, 4}, {0, UINT32_MAX, 1},
		       {0, 0, 0},      {0, 0, 3},      {0, 0, 8},      {0, UINT32_MAX - 3, 4},
		       {0, 0x7fff, 2}, {0, 1, 4},      {255, 20, 1},   {0, 20, UINT32_MAX},
		       {1, 8, 4},      {1, 6, 4},      {6, 0, 4},      {1, UINT32_MAX - 3, 4}};
	uint32_t data = vendor_cap(5) + 16;

	for (uint32_t i = 0; i < ARRAY_SIZE(windows); i++) {
		window(windows[i].bar, windows[i].offset, windows[i].length);
		for (uint32_t len = 1; len <= 4; len *= 2) {
			config_put(data, UINT32_MAX, len);
			config_get(data, len);
		}
	}
	cr_assert_eq(get(STATUS, 1), 0);
	cr_assert_eq(get(DEVICE_FEATURE_SELECT, 4), 0);
}

/* Kicks */

/* Where queue 0 and the others are heard: all of them, one behind the other. */
static void kicks_are_at(enum device_space space, gpa_t at)
{
	cr_assert_eq(board.n_kicks[SPACE_MEMORY] + board.n_kicks[SPACE_PORTS], QUEUES);
	cr_assert_eq(board.n_kicks[space], QUEUES);
	cr_assert_eq(board.last_kick, at + 4 * (QUEUES - 1));
}

Test(pci, kicks_follow_the_ports)
{
	uint32_t home = config_get(0x14, 4) & ~3u;

	kicks_are_at(SPACE_PORTS, home);
	config_put(4, 2, 2);
	cr_assert_eq(board.n_kicks[SPACE_PORTS], 0);
	config_put(0x14, home + 0x4000, 4);
	config_put(4, 3, 2);
	kicks_are_at(SPACE_PORTS, home + 0x4000);
	config_put(0x10, config_get(0x10, 4) + 0x40000, 4);
	kicks_are_at(SPACE_PORTS, home + 0x4000);
	cr_assert_eq(get(NUM_QUEUES, 2), QUEUES);
}

Test(pci, on_a_board_without_ports_kicks_follow_the_registers)
{
	static const struct pci_layout layout = {
		.ecam = 0xe0000000, .window = 0xc0000000, .window_size = 1 << 20};
	struct error err = ERROR_NULL;
	uint32_t home;

	unmake(&echo);
	test_board_deinit(&board);
	test_board_init(&board);
	cr_assert_eq(pci_root_init(&portless, &layout, &board.io, &board.mmio, &board.irqs,
				   &board.kicks, &err),
		     0, "%s", err.text);
	make_on(&echo, &portless, SLOT, QUEUES);
	cr_assert_eq(config_get(0x14, 4), 0);
	cr_assert_eq(next_vendor_cap(2, vendor_cap(2)), 0, "one place to kick");
	home = config_get(0x10, 4);
	kicks_are_at(SPACE_MEMORY, home + NOTIFY);
	config_put(4, 0, 2);
	cr_assert_eq(board.n_kicks[SPACE_MEMORY], 0);
	config_put(0x10, home + 0x40000, 4);
	config_put(4, 2, 2);
	kicks_are_at(SPACE_MEMORY, home + 0x40000 + NOTIFY);
	cr_assert_eq(get(NUM_QUEUES, 2), QUEUES);
}

/* A BAR of ports holds no more. */
Test(pci, a_device_of_very_many_queues_is_kicked_in_memory)
{
	make_on(&other, &root, SLOT + 1, 65);
	cr_assert_eq(other.pci.function.bars[1].size, 0);
	cr_assert_eq(board.n_kicks[SPACE_MEMORY], 65);
	unmake(&other);
	make_on(&other, &root, SLOT + 2, 33);
	cr_assert_eq(other.pci.function.bars[1].size, 256);
	unmake(&other);
}

Test(pci, a_write_to_a_port_is_heard)
{
	uint32_t home = config_get(0x14, 4) & ~3u;

	start();
	descriptors[0] = (struct test_descriptor){0x200000, 16, TEST_DESC_WRITE, 0};
	available->ring[0] = 0;
	available->index = 1;
	test_board_out(&board, home + 4, 1, 2);
	test_driver_turn(&driver);
	cr_assert_eq(used->index, 0, "that was another queue's");
	test_board_out(&board, home, 0, 2);
	test_driver_turn(&driver);
	cr_assert_eq(used->index, 1);
	cr_assert_eq(test_board_in(&board, home, 4), 0, "there is nothing to read");
}

Test(pci, a_kick_that_comes_as_a_write_is_heard)
{
	start();
	descriptors[0] = (struct test_descriptor){0x200000, 16, TEST_DESC_WRITE, 0};
	available->ring[0] = 0;
	available->index = 1;
	put(NOTIFY, 0, 2);
	put(NOTIFY + 4 * QUEUES, 0, 2);
	put(0x7fff, 0, 1);
	test_driver_turn(&driver);
	cr_assert_eq(used->index, 1);
}

/* Reset */

Test(pci, a_reset_waits_and_then_reads_zero)
{
	echo.keep = true;
	start();
	offer(0);
	status(0);
	test_driver_turn(&driver);
	cr_assert_neq(get(STATUS, 1), 0);
	give_back(&echo);
	cr_assert_eq(get(STATUS, 1), 0);
	put(QUEUE_SELECT, 0, 2);
	cr_assert_eq(get(QUEUE_ENABLE, 2), 0);
	cr_assert_eq(get(DESCRIPTORS, 8), 0);
	cr_assert_eq(get(QUEUE_VECTOR, 2), 0xffff);
	cr_assert_eq(get(CONFIG_VECTOR, 2), 0xffff);
	put(DRIVER_FEATURE_SELECT, 1, 4);
	cr_assert_eq(get(DRIVER_FEATURE, 4), 0);
}

Test(pci, writes_during_a_reset_are_ignored)
{
	echo.keep = true;
	start();
	offer(0);
	status(0);
	test_driver_turn(&driver);
	status(DRIVER_OK);
	features(VIRTIO_F_VERSION_1 | FEATURE_A);
	queue_place(0, 0x5000);
	put(QUEUE_SIZE, 2, 2);
	put(QUEUE_ENABLE, 1, 2);
	put(QUEUE_VECTOR, 1, 2);
	put(CONFIG_VECTOR, 1, 2);
	put(DEVICE_FEATURE_SELECT, 1, 4);
	status(0);
	give_back(&echo);
	test_driver_turn(&driver);
	cr_assert_eq(get(STATUS, 1), 0);
	put(QUEUE_SELECT, 0, 2);
	cr_assert_eq(get(QUEUE_ENABLE, 2), 0);
	cr_assert_eq(get(QUEUE_SIZE, 2), SIZE);
	cr_assert_eq(get(DESCRIPTORS, 8), 0);
	cr_assert_eq(get(QUEUE_VECTOR, 2), 0xffff);
	cr_assert_eq(get(CONFIG_VECTOR, 2), 0xffff);
	cr_assert_eq(get(DEVICE_FEATURE_SELECT, 4), 0);
	cr_assert_eq(device->virtio.accepted, 0);
}

Test(pci, a_device_lives_again_after_a_reset)
{
	start();
	offer(0);
	start();
	offer(1);
	cr_assert_eq(used->index, 1);
	cr_assert_eq(used->ring[0].id, 1);
}

Test(pci, a_broken_guest_is_told_once)
{
	start();
	available->index = SIZE + 1;
	put(NOTIFY, 0, 2);
	test_driver_turn(&driver);
	cr_assert_eq(get(STATUS, 1), DRIVER_OK | VIRTIO_STATUS_NEEDS_RESET);
	put(NOTIFY, 0, 2);
	test_driver_turn(&driver);
	cr_assert_eq(interrupts(0), 1);
	start();
	offer(0);
	cr_assert_eq(used->index, 1, "a reset mends it");
}

Test(pci, power_on_state_is_what_a_reset_of_the_machine_gives)
{
	start();
	offer(0);
	config_put(0x3c, 9, 1);
	pause_device(&echo);
	device->pci.function.device.ops->reset(&device->pci.function.device);
	cr_assert_eq(get(STATUS, 1), 0);
	cr_assert_eq(config_get(0x3c, 1), 0);
	cr_assert_eq(get(TABLE_AT + 12, 4), 1);
}

/* Save and load */

Test(pci, a_device_moves_in_the_middle_of_its_life)
{
	start();
	for (uint16_t i = 0; i < 5; i++)
		offer(i);
	cr_assert_eq(interrupts(1), 5);
	pause_device(&echo);
	/* What is offered while it moves is served by the other. */
	descriptors[5] = (struct test_descriptor){0x200000, 16, TEST_DESC_WRITE, 0};
	available->ring[5] = 5;
	available->index = 6;
	make(&other, SLOT + 1);
	test_board_move(&echo.pci.function.device, &other.pci.function.device);
	/* Its BAR is where the first one's was. */
	cr_assert_eq(other.pci.function.bars[0].address, echo.pci.function.bars[0].address);
	device = &other;
	test_driver_turn(&driver);
	cr_assert_eq(used->index, 6);
	cr_assert_eq(used->ring[5].id, 5);
	cr_assert_eq(interrupts(1), 1);
	cr_assert_eq(other.virtio.accepted, VIRTIO_F_VERSION_1 | FEATURE_A);
	cr_assert_eq(atomic_load(&other.virtio.status), DRIVER_OK);
	offer(6);
	cr_assert_eq(used->index, 7);
	unmake(&other);
}

Test(pci, half_a_negotiation_moves)
{
	status(DRIVER);
	features(VIRTIO_F_VERSION_1 | FEATURE_B);
	put(QUEUE_SELECT, 1, 2);
	put(DESCRIPTORS + 4, 0x11, 4);
	pause_device(&echo);
	make(&other, SLOT + 1);
	test_board_move(&echo.pci.function.device, &other.pci.function.device);
	unmake(&echo);
	root.functions[SLOT] = NULL;
	device = &other;
	cr_assert_eq(get(STATUS, 1), DRIVER);
	cr_assert_eq(get(QUEUE_SELECT, 2), 1);
	cr_assert_eq(get(DESCRIPTORS, 8), 0x1100000000);
	status(FEATURES_OK);
	cr_assert_eq(get(STATUS, 1), FEATURES_OK);
	cr_assert_eq(other.virtio.accepted, VIRTIO_F_VERSION_1 | FEATURE_B);
	unmake(&other);
}

/* A driver may write what it likes: it is told no at FEATURES_OK, here or where it moved to. */
Test(pci, features_that_were_never_accepted_move)
{
	status(DRIVER);
	features(UINT64_MAX);
	pause_device(&echo);
	make(&other, SLOT + 1);
	test_board_move(&echo.pci.function.device, &other.pci.function.device);
	cr_assert_eq(other.virtio.accepted, 0);
	unmake(&other);
}

Test(pci, features_this_device_lacks_are_not_loaded)
{
	static uint8_t stream[65536];
	struct cursor out = cursor_writer(stream, sizeof(stream)), in;
	struct error err = ERROR_NULL;

	start();
	pause_device(&echo);
	cr_assert_eq(device_save(&echo.pci.function.device, &out), 0);
	make(&other, SLOT + 1);
	other.virtio.offered &= ~FEATURE_A;
	in = cursor_reader(stream, out.at);
	cr_assert_eq(device_load(&other.pci.function.device, &in, &err), -EBADMSG);
	cr_assert(*err.text);
	unmake(&other);
}

Test(pci, a_device_that_needs_a_reset_still_does_after_a_move)
{
	start();
	available->index = SIZE + 1;
	put(NOTIFY, 0, 2);
	test_driver_turn(&driver);
	pause_device(&echo);
	make(&other, SLOT + 1);
	test_board_move(&echo.pci.function.device, &other.pci.function.device);
	test_driver_turn(&driver);
	cr_assert(atomic_load(&other.virtio.status) & VIRTIO_STATUS_NEEDS_RESET);
	device = &other;
	cr_assert_eq(interrupts(0), 1, "the one that was pending, and no other");
	unmake(&other);
}

/* Queues that are served elsewhere */

Test(pci, a_vector_is_told_to_who_serves_the_queue)
{
	echo.outside = true;
	start();
	cr_assert_eq(echo.n_call_changes, 0, "the start has its eventfd");
	put(QUEUE_SELECT, 0, 2);
	put(QUEUE_VECTOR, 2, 2);
	cr_assert_eq(echo.n_call_changes, 0, "a vCPU waits for no loop");
	test_driver_turn(&driver);
	cr_assert_eq(echo.n_call_changes, 1);
	cr_assert_eq(echo.call_fd, msix_fd(&echo.pci.function, 2));
	put(QUEUE_VECTOR, VIRTQUEUE_NO_VECTOR, 2);
	test_driver_turn(&driver);
	cr_assert_eq(echo.call_fd, -1);
	/* Queue 1 is not enabled, so nobody serves it. */
	put(QUEUE_SELECT, 1, 2);
	put(QUEUE_VECTOR, 1, 2);
	test_driver_turn(&driver);
	cr_assert_eq(echo.n_call_changes, 2);
}

Test(pci, a_queue_served_elsewhere_moves)
{
	echo.outside = true;
	start();
	offer(0);
	cr_assert_eq(used->index, 0, "it is not served here");
	/* So somebody does; the second chain is not taken before the move. */
	used->ring[0].id = 0;
	used->index = 1;
	offer(1);
	pause_device(&echo);
	make(&other, SLOT + 1);
	test_board_move(&echo.pci.function.device, &other.pci.function.device);
	device = &other;
	test_driver_turn(&driver);
	cr_assert_eq(used->index, 2);
	cr_assert_eq(used->ring[1].id, 1);
	cr_assert_eq(interrupts(1), 1);
	offer(2);
	cr_assert_eq(used->index, 3);
	unmake(&other);
}

Test(pci, a_reset_takes_queues_back_from_elsewhere)
{
	echo.outside = true;
	start();
	cr_assert(echo.virtio.queues[0].offloaded);
	status(0);
	cr_assert_neq(get(STATUS, 1), 0, "its loop has not heard of it");
	test_driver_turn(&driver);
	cr_assert_eq(get(STATUS, 1), 0);
	cr_assert_not(echo.virtio.queues[0].offloaded);
	echo.outside = false;
	start();
	offer(0);
	cr_assert_eq(used->index, 1);
}
