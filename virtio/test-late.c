/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtio device that comes and goes while its loops run: nothing of it is on a loop or in a slot
 * until it is put there, it works, and nothing is left when it has gone. Two loops, both turned by
 * this thread.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "base/loop-engine.h"
#include "devices/test-board.h"
#include "virtio/pci.h"
#include "virtio/test-driver.h"

#define QUEUES 3 /* the second is on the second loop */
#define SIZE   8
#define SLOT   9

static struct late {
	struct virtio_pci pci;
	struct virtio_device virtio;
	bool open[QUEUES]; /* between attach and detach */
	int n_attached, n_detached, n_runs;
	int refused; /* the queue whose attach fails, -1: none */
} late;

static struct test_board board;
static struct pci_root root;
static struct test_driver driver;
static struct loop *second, *loops[2];

static int on_attach(struct virtio_device *virtio _unused_, struct virtio_queue *queue)
{
	cr_assert_not(late.open[queue->ring.index]);
	cr_assert_not_null(queue->source.loop, "it is on its loop");
	late.n_attached++;
	if (late.refused == queue->ring.index)
		return -EMFILE;
	late.open[queue->ring.index] = true;
	return 0;
}

static void on_detach(struct virtio_device *virtio _unused_, struct virtio_queue *queue)
{
	late.n_detached++;
	late.open[queue->ring.index] = false;
}

static void on_run(struct virtio_device *virtio, struct virtio_queue *queue)
{
	struct iovec iov[4];
	struct virtqueue_chain chain = {.iov = iov, .iov_max = ARRAY_SIZE(iov)};

	cr_assert(late.open[queue->ring.index]);
	late.n_runs++;
	do {
		while (virtqueue_pop(&queue->ring, &chain) > 0)
			virtqueue_push(&queue->ring, chain.head, 0);
	} while (virtqueue_kicks_on(&queue->ring));
	virtqueue_publish(&queue->ring);
	virtio_queue_settle(queue);
	(void)virtio;
}

static void on_deinit(struct virtio_device *virtio _unused_)
{
	for (uint32_t i = 0; i < QUEUES; i++)
		cr_assert_not(late.open[i], "queue %u is still open", i);
}

static const struct virtio_ops ops = {
	.type = "late",
	.id = 42,
	.attach = on_attach,
	.detach = on_detach,
	.run = on_run,
	.deinit = on_deinit,
};

static void set_up(void)
{
	static const struct pci_layout layout = {.ecam = 0xe8000000,
						 .window = 0xc0000000,
						 .window_size = 1 << 20,
						 .ports = 0x1000,
						 .n_ports = 0x1000};
	const struct loop_options options = {.name = "second"};
	struct error err = ERROR_NULL;

	test_board_init(&board);
	test_driver_init(&driver);
	cr_assert_eq(loop_new(&second, &options, &err), 0, "%s", err.text);
	cr_assert_eq(loop_enable(second), 0);
	loops[0] = driver.loop;
	loops[1] = second;
	cr_assert_eq(pci_root_init(&root, &layout, &board.io, &board.mmio, &board.irqs,
				   &board.kicks, &err),
		     0, "%s", err.text);
}

static void tear_down(void)
{
	if (late.virtio.device)
		late.pci.function.device.ops->deinit(&late.pci.function.device);
	second = loop_free(second);
	test_driver_deinit(&driver);
	test_board_deinit(&board);
}

TestSuite(late, .init = set_up, .fini = tear_down);

static int make(bool is_late)
{
	struct error err = ERROR_NULL;

	late = (struct late){.refused = late.refused};
	late.virtio.late = is_late;
	return virtio_pci_init(&late.pci, &root, SLOT, "late", &late.virtio, &ops, &driver.memory,
			       QUEUES, SIZE, loops, 2, &err);
}

static uint32_t id(void)
{
	uint32_t value = 0;

	bus_read(&board.mmio, 0xe8000000 + (SLOT << 15), &value, 4);
	return value;
}

static void work(void)
{
	struct test_buffer buffer = test_driver_put(&driver, "x", 1);

	test_driver_start(&driver, &late.virtio, 0);
	test_driver_add(&driver, 0, &buffer, 1, NULL, 0, false);
	test_driver_kick(&driver, 0);
	(void)test_driver_wait(&driver, 0);
	test_driver_add(&driver, 1, &buffer, 1, NULL, 0, false);
	test_driver_kick(&driver, 1);
	for (int i = 0; i < 100 && driver.rings[1].used->index == 0; i++)
		cr_assert_eq(loop_turn(second, 0), 0);
	cr_assert_eq(driver.rings[1].used->index, 1);
}

static struct device *rested;

static void on_rest(struct device_waiter *waiter _unused_, struct device *device)
{
	rested = device;
}

Test(late, one_in_time_is_attached_and_plugged)
{
	late.refused = -1;
	cr_assert_eq(make(false), 0);
	cr_assert_eq(late.n_attached, QUEUES);
	cr_assert_neq(id(), UINT32_MAX);
	work();
}

Test(late, nothing_is_there_before_it_is_put_there)
{
	uint32_t before = driver.loop->n_sources, before_second = second->n_sources;

	late.refused = -1;
	cr_assert_eq(make(true), 0);
	cr_assert_eq(late.n_attached, 0);
	cr_assert_eq(driver.loop->n_sources, before);
	cr_assert_eq(second->n_sources, before_second);
	cr_assert_eq(id(), UINT32_MAX);
	cr_assert_eq(root.functions[SLOT], NULL);
}

Test(late, each_loop_takes_its_own_queues)
{
	late.refused = -1;
	cr_assert_eq(make(true), 0);
	cr_assert_eq(virtio_attach(&late.virtio, second), 0);
	cr_assert_eq(late.n_attached, 1);
	cr_assert(late.open[1]);
	cr_assert_eq(virtio_attach(&late.virtio, driver.loop), 0);
	cr_assert_eq(late.n_attached, QUEUES);
	cr_assert_eq(pci_plug_hot(&root, &late.pci.function, SLOT, NULL), 0);
	cr_assert_neq(id(), UINT32_MAX);
	work();
}

Test(late, it_leaves_nothing_behind)
{
	uint32_t before = driver.loop->n_sources, before_second = second->n_sources;
	static struct device_waiter waiter = {on_rest};

	late.refused = -1;
	for (int round = 0; round < 3; round++) {
		gpa_t memory = driver.next;

		cr_assert_eq(make(true), 0);
		cr_assert_eq(virtio_attach(&late.virtio, driver.loop), 0);
		cr_assert_eq(virtio_attach(&late.virtio, second), 0);
		cr_assert_eq(pci_plug_hot(&root, &late.pci.function, SLOT, NULL), 0);
		work();
		rested = NULL;
		cr_assert(pci_hide(&root, SLOT));
		virtio_hold(&late.virtio, &waiter);
		for (int i = 0; i < 100 && !rested; i++) {
			test_driver_turn(&driver);
			cr_assert_eq(loop_turn(second, 0), 0);
		}
		cr_assert_eq(rested, &late.pci.function.device);
		pci_unplug(&late.pci.function);
		cr_assert_eq(board.n_kicks[SPACE_MEMORY] + board.n_kicks[SPACE_PORTS], 0);
		virtio_detach(&late.virtio, second);
		cr_assert_eq(late.n_detached, 1);
		virtio_detach(&late.virtio, driver.loop);
		cr_assert_eq(late.n_detached, QUEUES);
		cr_assert_eq(driver.loop->n_sources, before);
		cr_assert_eq(second->n_sources, before_second);
		late.pci.function.device.ops->deinit(&late.pci.function.device);
		cr_assert_eq(late.n_detached, QUEUES);
		cr_assert_eq(id(), UINT32_MAX);
		driver.next = memory;
	}
}

/* What one loop could not open is undone on each. */
Test(late, a_queue_that_cannot_be_opened)
{
	uint32_t before = driver.loop->n_sources, before_second = second->n_sources;

	late.refused = 2;
	cr_assert_eq(make(true), 0);
	cr_assert_eq(virtio_attach(&late.virtio, second), 0);
	cr_assert_eq(virtio_attach(&late.virtio, driver.loop), -EMFILE);
	virtio_detach(&late.virtio, driver.loop);
	virtio_detach(&late.virtio, second);
	cr_assert_eq(late.n_detached, QUEUES);
	cr_assert_eq(driver.loop->n_sources, before);
	cr_assert_eq(second->n_sources, before_second);
	late.pci.function.device.ops->deinit(&late.pci.function.device);
	/* The same at the start. */
	cr_assert_eq(make(false), -EMFILE);
}
