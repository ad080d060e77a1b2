/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of a virtio device, with one that keeps its chains until it is told to give them back,
 * and whose queues may be served by something outside. Two loops, both turned by this thread, so
 * each step can be looked at.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#include "base/fd.h"
#include "devices/registers.h"
#include "devices/test-board.h"
#include "virtio/test-driver.h"

#define QUEUES 3 /* the second is on the second loop */
#define SIZE   8

static const struct device_ops plain_ops = {.type = "held"};

static struct held {
	struct device device;
	struct virtio_device virtio;
	uint16_t heads[QUEUES][SIZE];
	uint32_t n_heads[QUEUES];
	int n_runs[QUEUES], n_stops[QUEUES];
	int n_activate, n_reset;
	bool keep;                      /* chains wait for give_back */
	bool outside[QUEUES];           /* served by `serve` from its next start on */
	struct virtqueue rings[QUEUES]; /* what that knows of the queue */
	int n_offloads[QUEUES], n_call_changes[QUEUES];
	int call_fd; /* as last told */
} held;

static struct test_driver driver;
static struct loop *second;
static int config_fd;

static void give_back(uint32_t i)
{
	struct virtio_queue *queue = &held.virtio.queues[i];

	while (held.n_heads[i] > 0)
		virtqueue_push(&queue->ring, held.heads[i][--held.n_heads[i]], 0);
	virtqueue_publish(&queue->ring);
	virtio_queue_settle(queue);
}

static void on_run(struct virtio_device *virtio, struct virtio_queue *queue)
{
	uint32_t i = queue->ring.index;
	struct iovec iov[4];
	struct virtqueue_chain chain = {.iov = iov, .iov_max = ARRAY_SIZE(iov)};

	held.n_runs[i]++;
	do {
		int r;

		while ((r = virtqueue_pop(&queue->ring, &chain)) > 0)
			held.heads[i][held.n_heads[i]++] = chain.head;
		if (r < 0)
			virtio_broken(virtio, "broke a test's rules");
	} while (virtqueue_kicks_on(&queue->ring));
	if (!held.keep)
		give_back(i);
}

static bool on_offload(struct virtio_device *virtio _unused_, struct virtio_queue *queue)
{
	uint32_t i = queue->ring.index;

	if (!held.outside[i])
		return false;
	cr_assert_not_null(queue->ring.used_ring, "it is mapped");
	held.n_offloads[i]++;
	held.rings[i] = queue->ring;
	return true;
}

static void on_call_changed(struct virtio_device *virtio _unused_, struct virtio_queue *queue)
{
	held.n_call_changes[queue->ring.index]++;
	held.call_fd = atomic_load(&queue->ring.call_fd);
}

/* What a kernel does on its own thread: the kick taken, all chains back. False: no kick. */
static bool serve(uint32_t i)
{
	struct iovec iov[4];
	struct virtqueue_chain chain = {.iov = iov, .iov_max = ARRAY_SIZE(iov)};

	if (!test_eventfd_take(held.virtio.queues[i].kick_fd))
		return false;
	while (virtqueue_pop(&held.rings[i], &chain) > 0)
		virtqueue_push(&held.rings[i], chain.head, 0);
	virtqueue_publish(&held.rings[i]);
	return true;
}

static void on_stop(struct virtio_device *virtio _unused_, struct virtio_queue *queue)
{
	uint32_t i = queue->ring.index;

	held.n_stops[i]++;
	if (!queue->offloaded)
		return;
	queue->ring.state.next_available = held.rings[i].state.next_available;
	queue->ring.state.next_used = held.rings[i].state.next_used;
}

static void on_activate(struct virtio_device *virtio _unused_)
{
	held.n_activate++;
}

static void on_reset(struct virtio_device *virtio)
{
	held.n_reset++;
	cr_assert_neq(atomic_load(&virtio->status), 0, "the status is the last to change");
}

static const struct virtio_ops ops = {
	.type = "held",
	.id = 42,
	.activate = on_activate,
	.offload = on_offload,
	.call_changed = on_call_changed,
	.run = on_run,
	.stop = on_stop,
	.reset = on_reset,
};

static void set_up_with(bool without_uring)
{
	const struct loop_options options = {.name = "second", .without_uring = without_uring};
	struct error err = ERROR_NULL;
	struct loop *loops[2];

	test_driver_init(&driver);
	cr_assert_eq(loop_new(&second, &options, &err), 0, "%s", err.text);
	cr_assert_eq(loop_enable(second), 0);
	loops[0] = driver.loop;
	loops[1] = second;
	held = (struct held){0};
	device_init(&held.device, &plain_ops, "held");
	cr_assert_eq(virtio_init(&held.virtio, &ops, &held.device, &driver.memory, QUEUES, SIZE,
				 loops, 2, &err),
		     0, "%s", err.text);
	config_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

static void set_up(void)
{
	set_up_with(false);
}

/* The second queue is on a loop that takes the kicks it sees out of the eventfd. */
static void set_up_without_uring(void)
{
	set_up_with(true);
}

static void tear_down(void)
{
	virtio_deinit(&held.virtio);
	second = loop_free(second);
	test_driver_deinit(&driver);
	config_fd = fd_close(config_fd);
}

TestSuite(device, .init = set_up, .fini = tear_down);
TestSuite(offload, .init = set_up_without_uring, .fini = tear_down);

static void turn(void)
{
	for (int i = 0; i < 8; i++) {
		cr_assert_eq(loop_turn(driver.loop, 0), 0);
		cr_assert_eq(loop_turn(second, 0), 0);
	}
}

static void start(void)
{
	test_driver_start(&driver, &held.virtio, 0);
	atomic_store(&held.virtio.config_fd, config_fd);
	turn();
}

static void offer(uint32_t queue)
{
	struct test_buffer buffer = {test_driver_alloc(&driver, 16, 16), 16};

	test_driver_add(&driver, queue, NULL, 0, &buffer, 1, false);
	test_driver_kick(&driver, queue);
}

static uint32_t given_back(uint32_t queue)
{
	uint32_t n = 0, length;
	uint16_t head;

	while (test_driver_reap(&driver, queue, &head, &length))
		n++;
	return n;
}

static void reset(void)
{
	pthread_mutex_lock(&held.device.lock);
	virtio_reset(&held.virtio);
	pthread_mutex_unlock(&held.device.lock);
}

static uint8_t status(void)
{
	return atomic_load(&held.virtio.status);
}

static int n_done;
static uint8_t status_when_done;

static void on_done(struct device_waiter *waiter _unused_, struct device *device)
{
	cr_assert_eq(device, &held.device);
	n_done++;
	status_when_done = status();
}

static struct device_waiter waiter = {on_done};

static void pause_device(void)
{
	virtio_pause(&held.virtio, &waiter);
}

Test(device, a_start_runs_each_queue_once)
{
	start();
	cr_assert_eq(held.n_activate, 1);
	for (uint32_t i = 0; i < QUEUES; i++)
		cr_assert_eq(held.virtio.queues[i].run, VIRTIO_QUEUE_RUNS);
	offer(1);
	turn();
	cr_assert_eq(given_back(1), 1);
}

Test(device, a_queue_that_is_not_enabled_does_not_run)
{
	start();
	reset();
	turn();
	held.n_runs[0] = held.n_runs[1] = 0;
	held.virtio.queues[1].ring.state.enabled = true;
	pthread_mutex_lock(&held.device.lock);
	atomic_store(&held.virtio.status, VIRTIO_STATUS_DRIVER_OK);
	virtio_start(&held.virtio);
	pthread_mutex_unlock(&held.device.lock);
	turn();
	test_driver_kick(&driver, 0);
	turn();
	cr_assert_eq(held.n_runs[0], 0);
	cr_assert_eq(held.virtio.queues[0].run, VIRTIO_QUEUE_RESTS);
	cr_assert_eq(held.virtio.queues[1].run, VIRTIO_QUEUE_RUNS);
}

Test(device, what_was_offered_before_the_start_is_served)
{
	start();
	pause_device();
	turn();
	offer(0);
	turn();
	virtio_resume(&held.virtio);
	turn();
	cr_assert_eq(given_back(0), 1);
}

Test(device, a_burst_of_kicks_is_not_a_burst_of_runs)
{
	start();
	held.n_runs[0] = 0;
	for (int i = 0; i < 100; i++)
		test_driver_kick(&driver, 0);
	turn();
	cr_assert_leq(held.n_runs[0], 2);
	cr_assert_geq(held.n_runs[0], 1);
}

Test(device, a_reset_at_rest_is_over_at_once)
{
	start();
	reset();
	turn();
	cr_assert_eq(status(), 0);
	cr_assert_eq(held.n_reset, 1);
	cr_assert_eq(held.virtio.accepted, 0);
	cr_assert_eq(atomic_load(&held.virtio.config_fd), -1);
	for (uint32_t i = 0; i < QUEUES; i++) {
		cr_assert_eq(held.n_stops[i], 1);
		cr_assert_not(held.virtio.queues[i].ring.state.enabled);
		cr_assert_eq(held.virtio.queues[i].ring.state.size, SIZE);
		cr_assert_eq(held.virtio.queues[i].ring.state.vector, VIRTQUEUE_NO_VECTOR);
	}
}

Test(device, a_reset_of_a_device_never_started_is_over_in_the_call)
{
	atomic_store(&held.virtio.status, VIRTIO_STATUS_ACKNOWLEDGE);
	reset();
	cr_assert_eq(status(), 0);
}

Test(device, a_reset_waits_for_what_is_in_flight)
{
	held.keep = true;
	start();
	offer(0);
	offer(1);
	turn();
	reset();
	turn();
	cr_assert_neq(status(), 0);
	cr_assert_eq(held.n_reset, 0);
	give_back(0);
	cr_assert_neq(status(), 0, "the other queue has one, too");
	give_back(1);
	cr_assert_eq(status(), 0);
	cr_assert_eq(held.n_reset, 1);
	cr_assert_eq(driver.rings[0].used->index, 1);
}

Test(device, a_queue_on_its_way_to_rest_takes_nothing_new)
{
	held.keep = true;
	start();
	offer(0);
	turn();
	reset();
	turn();
	offer(0);
	turn();
	cr_assert_eq(held.n_heads[0], 1);
	give_back(0);
	turn();
	cr_assert_eq(status(), 0);
}

Test(device, asking_twice_resets_once)
{
	held.keep = true;
	start();
	offer(2);
	turn();
	reset();
	reset();
	turn();
	reset();
	cr_assert_neq(status(), 0);
	give_back(2);
	turn();
	cr_assert_eq(status(), 0);
	cr_assert_eq(held.n_reset, 1);
	cr_assert_eq(held.n_stops[2], 1);
}

Test(device, a_reset_before_the_start_arrived)
{
	driver.virtio = &held.virtio;
	held.virtio.queues[0].ring.state.enabled = true;
	pthread_mutex_lock(&held.device.lock);
	atomic_store(&held.virtio.status, VIRTIO_STATUS_DRIVER_OK);
	virtio_start(&held.virtio);
	virtio_reset(&held.virtio);
	pthread_mutex_unlock(&held.device.lock);
	cr_assert_neq(status(), 0);
	turn();
	cr_assert_eq(status(), 0);
}

Test(device, a_device_starts_again_after_a_reset)
{
	start();
	offer(0);
	turn();
	reset();
	turn();
	start();
	offer(0);
	turn();
	cr_assert_eq(given_back(0), 1);
	cr_assert_eq(held.n_activate, 2);
}

Test(device, a_kick_of_the_life_before_is_forgotten)
{
	uint64_t count;

	start();
	pause_device();
	turn();
	test_driver_kick(&driver, 0);
	virtio_reset_now(&held.virtio);
	cr_assert_lt(read(held.virtio.queues[0].kick_fd, &count, sizeof(count)), 0);
	cr_assert_eq(errno, EAGAIN);
}

Test(device, a_pause_at_rest_is_done)
{
	start();
	pause_device();
	turn();
	cr_assert_eq(n_done, 1);
	cr_assert(status() & VIRTIO_STATUS_DRIVER_OK, "the driver sees nothing of it");
}

Test(device, a_pause_of_a_device_never_started_is_done_in_the_call)
{
	pause_device();
	cr_assert_eq(n_done, 1);
}

Test(device, a_pause_waits_for_what_is_in_flight)
{
	held.keep = true;
	start();
	offer(1);
	turn();
	pause_device();
	turn();
	cr_assert_eq(n_done, 0);
	give_back(1);
	cr_assert_eq(n_done, 1);
	cr_assert_eq(driver.rings[1].used->index, 1, "and it was published");
}

Test(device, kicks_during_a_pause_are_served_after_it)
{
	start();
	pause_device();
	turn();
	held.n_runs[0] = 0;
	offer(0);
	turn();
	cr_assert_eq(held.n_runs[0], 0);
	virtio_resume(&held.virtio);
	turn();
	cr_assert_eq(given_back(0), 1);
}

Test(device, positions_outlast_a_pause)
{
	start();
	for (int round = 0; round < 3; round++) {
		offer(0);
		turn();
		pause_device();
		turn();
		virtio_resume(&held.virtio);
		turn();
	}
	cr_assert_eq(given_back(0), 3);
	cr_assert_eq(n_done, 3);
	cr_assert_eq(held.virtio.queues[0].ring.state.next_used, 3);
}

Test(device, a_pause_during_a_reset_waits_for_it)
{
	held.keep = true;
	start();
	offer(0);
	turn();
	reset();
	turn();
	pause_device();
	turn();
	cr_assert_eq(n_done, 0);
	give_back(0);
	turn();
	cr_assert_eq(n_done, 1);
	cr_assert_eq(status_when_done, 0);
	cr_assert_eq(held.n_reset, 1);
	virtio_resume(&held.virtio);
	turn();
	cr_assert_eq(held.virtio.queues[0].run, VIRTIO_QUEUE_RESTS, "it was reset");
}

Test(device, a_reset_during_a_pause_is_done_with_it)
{
	held.keep = true;
	start();
	offer(0);
	turn();
	pause_device();
	reset();
	turn();
	give_back(0);
	turn();
	cr_assert_eq(n_done, 1);
	cr_assert_eq(status(), 0);
	cr_assert_eq(held.n_reset, 1);
}

Test(device, a_pause_is_told_of_once)
{
	start();
	pause_device();
	turn();
	virtio_resume(&held.virtio);
	turn();
	reset();
	turn();
	cr_assert_eq(n_done, 1);
}

/* Held: at rest while the guest runs on. */

static int n_held;

static void on_held(struct device_waiter *of _unused_, struct device *device _unused_)
{
	n_held++;
}

static struct device_waiter holder = {on_held};

Test(device, a_hold_waits_for_what_is_in_flight_and_a_release_goes_on)
{
	held.keep = true;
	start();
	offer(1);
	turn();
	virtio_hold(&held.virtio, &holder);
	turn();
	cr_assert_eq(n_held, 0);
	give_back(1);
	cr_assert_eq(n_held, 1);
	held.keep = false;
	offer(1);
	turn();
	cr_assert_eq(given_back(1), 1, "only what was under way");
	virtio_release(&held.virtio);
	turn();
	cr_assert_eq(given_back(1), 1);
}

Test(device, a_pause_may_begin_and_end_during_a_hold)
{
	start();
	virtio_hold(&held.virtio, &holder);
	pause_device();
	turn();
	cr_assert_eq(n_held, 1);
	cr_assert_eq(n_done, 1);
	virtio_resume(&held.virtio);
	turn();
	cr_assert_eq(held.virtio.queues[0].run, VIRTIO_QUEUE_RESTS);
	virtio_release(&held.virtio);
	turn();
	cr_assert_eq(held.virtio.queues[0].run, VIRTIO_QUEUE_RUNS);
}

Test(device, a_release_during_a_pause_leaves_the_start_to_the_resume)
{
	start();
	virtio_hold(&held.virtio, &holder);
	turn();
	pause_device();
	cr_assert_eq(n_done, 1);
	virtio_release(&held.virtio);
	turn();
	cr_assert_eq(held.virtio.queues[0].run, VIRTIO_QUEUE_RESTS);
	virtio_resume(&held.virtio);
	turn();
	cr_assert_eq(held.virtio.queues[0].run, VIRTIO_QUEUE_RUNS);
}

Test(device, a_reset_during_a_hold_is_over_at_once_and_a_start_waits_for_the_release)
{
	start();
	virtio_hold(&held.virtio, &holder);
	turn();
	reset();
	cr_assert_eq(status(), 0);
	start();
	offer(0);
	turn();
	cr_assert_eq(held.virtio.queues[0].run, VIRTIO_QUEUE_RESTS);
	virtio_release(&held.virtio);
	turn();
	cr_assert_eq(held.virtio.queues[0].run, VIRTIO_QUEUE_RUNS);
	cr_assert_eq(given_back(0), 1);
	cr_assert_eq(n_held, 1, "told of once");
}

Test(device, a_ring_outside_of_memory_needs_a_reset)
{
	start();
	reset();
	turn();
	held.virtio.queues[1].ring.state.enabled = true;
	held.virtio.queues[1].ring.state.descriptors = TEST_DRIVER_MEMORY;
	pthread_mutex_lock(&held.device.lock);
	atomic_store(&held.virtio.config_fd, config_fd);
	atomic_store(&held.virtio.status, VIRTIO_STATUS_DRIVER_OK);
	virtio_start(&held.virtio);
	pthread_mutex_unlock(&held.device.lock);
	turn();
	cr_assert(status() & VIRTIO_STATUS_NEEDS_RESET);
	cr_assert_eq(test_eventfd_take(config_fd), 1);
	test_driver_kick(&driver, 1);
	turn();
	reset();
	turn();
	cr_assert_eq(status(), 0);
}

Test(device, a_broken_guest_is_told_once)
{
	start();
	virtio_broken(&held.virtio, "was bad");
	virtio_broken(&held.virtio, "was bad again");
	cr_assert(status() & VIRTIO_STATUS_NEEDS_RESET);
	cr_assert_eq(test_eventfd_take(config_fd), 1);
}

Test(device, a_broken_guest_that_is_not_ready_is_not_called)
{
	start();
	atomic_store(&held.virtio.status, VIRTIO_STATUS_DRIVER);
	virtio_broken(&held.virtio, "was bad");
	cr_assert_eq(test_eventfd_take(config_fd), 0);
	cr_assert(status() & VIRTIO_STATUS_NEEDS_RESET);
}

Test(device, one_bad_queue_leaves_the_others_to_finish)
{
	held.keep = true;
	start();
	offer(0);
	turn();
	driver.rings[1].available->index = SIZE + 1;
	test_driver_kick(&driver, 1);
	turn();
	cr_assert(status() & VIRTIO_STATUS_NEEDS_RESET);
	reset();
	turn();
	cr_assert_neq(status(), 0);
	give_back(0);
	turn();
	cr_assert_eq(status(), 0);
}

Test(device, a_change_of_configuration_is_told)
{
	uint8_t before;

	start();
	before = atomic_load(&held.virtio.config_generation);
	virtio_config_changed(&held.virtio);
	cr_assert_eq(atomic_load(&held.virtio.config_generation), (uint8_t)(before + 1));
	cr_assert_eq(test_eventfd_take(config_fd), 1);
}

Test(device, kicks_are_counted)
{
	uint64_t before;

	start();
	before = held.virtio.queues[0].ring.n_kicks;
	offer(0);
	turn();
	cr_assert_gt(held.virtio.queues[0].ring.n_kicks, before);
	cr_assert_eq(held.virtio.queues[0].ring.n_chains, 1);
	cr_assert_eq(held.virtio.queues[0].ring.n_calls, 1);
}

static void start_outside(void)
{
	for (uint32_t i = 0; i < QUEUES; i++)
		held.outside[i] = true;
	start();
}

Test(offload, a_queue_served_outside_is_not_run)
{
	start_outside();
	for (uint32_t i = 0; i < QUEUES; i++) {
		cr_assert(held.virtio.queues[i].offloaded);
		cr_assert_eq(held.n_offloads[i], 1);
		offer(i);
	}
	turn();
	for (uint32_t i = 0; i < QUEUES; i++) {
		cr_assert_eq(held.n_runs[i], 0);
		cr_assert_eq(held.virtio.queues[i].ring.n_kicks, 0);
		cr_assert(serve(i), "the kick of queue %u was taken by its loop", i);
		cr_assert_eq(given_back(i), 1);
	}
}

Test(offload, one_that_is_declined_runs_here)
{
	held.outside[1] = true;
	start();
	offer(0);
	offer(1);
	turn();
	cr_assert_eq(given_back(0), 1);
	cr_assert_eq(given_back(1), 0);
	cr_assert(serve(1));
	cr_assert_eq(given_back(1), 1);
}

Test(offload, a_kick_before_the_start_is_made_again)
{
	start();
	pause_device();
	turn();
	for (uint32_t i = 0; i < QUEUES; i++) {
		offer(i);
		turn();
		test_eventfd_take(held.virtio.queues[i].kick_fd); /* maybe its loop did already */
		held.outside[i] = true;
	}
	virtio_resume(&held.virtio);
	turn();
	for (uint32_t i = 0; i < QUEUES; i++) {
		cr_assert(serve(i), "nobody told what serves queue %u", i);
		cr_assert_eq(given_back(i), 1);
	}
}

Test(offload, a_stop_takes_the_queue_back)
{
	start_outside();
	for (uint32_t i = 0; i < QUEUES; i++) {
		offer(i);
		offer(i);
		serve(i);
		held.outside[i] = false;
	}
	pause_device();
	turn();
	cr_assert_eq(n_done, 1);
	virtio_resume(&held.virtio);
	turn();
	for (uint32_t i = 0; i < QUEUES; i++) {
		cr_assert_not(held.virtio.queues[i].offloaded);
		cr_assert_eq(given_back(i), 2);
		held.n_runs[i] = 0;
		offer(i);
	}
	turn();
	for (uint32_t i = 0; i < QUEUES; i++) {
		cr_assert_gt(held.n_runs[i], 0, "the loop of queue %u is deaf", i);
		cr_assert_eq(given_back(i), 1);
		cr_assert_eq(held.virtio.queues[i].ring.state.next_used, 3);
		cr_assert_eq(held.virtio.queues[i].ring.state.next_available, 3);
	}
}

Test(offload, kicks_during_a_pause_are_served_after_it)
{
	start_outside();
	pause_device();
	turn();
	offer(0);
	offer(1);
	turn();
	virtio_resume(&held.virtio);
	turn();
	for (uint32_t i = 0; i < 2; i++) {
		cr_assert(serve(i));
		cr_assert_eq(given_back(i), 1);
		cr_assert_eq(held.n_runs[i], 0);
	}
}

Test(offload, a_stop_interrupts_nobody)
{
	start_outside();
	offer(0);
	serve(0);
	cr_assert_eq(test_eventfd_take(driver.rings[0].call_fd), 1);
	pause_device();
	turn();
	cr_assert_eq(test_eventfd_take(driver.rings[0].call_fd), 0);
	cr_assert_eq(driver.rings[0].used->index, 1);
}

Test(offload, here_and_outside_in_turns_nothing_is_lost)
{
	start();
	for (int round = 0; round < 6; round++) {
		uint32_t i = round % 2;

		offer(i);
		turn();
		if (held.virtio.queues[i].offloaded)
			serve(i);
		cr_assert_eq(given_back(i), 1, "round %d", round);
		pause_device();
		turn();
		held.outside[i] = !held.outside[i];
		virtio_resume(&held.virtio);
		turn();
	}
	cr_assert_eq(held.virtio.queues[0].ring.state.next_used, 3);
	cr_assert_eq(held.virtio.queues[1].ring.state.next_used, 3);
}

Test(offload, a_reset_takes_the_queues_back)
{
	start_outside();
	offer(1);
	serve(1);
	reset();
	turn();
	cr_assert_eq(status(), 0);
	for (uint32_t i = 0; i < QUEUES; i++) {
		cr_assert_not(held.virtio.queues[i].offloaded);
		cr_assert_eq(held.n_stops[i], 1);
		cr_assert_eq(held.virtio.queues[i].ring.state.next_used, 0);
	}
	start();
	offer(1);
	cr_assert(serve(1));
	cr_assert_eq(given_back(1), 1);
}

Test(offload, a_reset_before_the_start_arrived)
{
	held.outside[0] = true;
	driver.virtio = &held.virtio;
	held.virtio.queues[0].ring.state.enabled = true;
	held.virtio.queues[0].ring.state.descriptors = GUEST_PAGE_SIZE;
	held.virtio.queues[0].ring.state.available = 2 * GUEST_PAGE_SIZE;
	held.virtio.queues[0].ring.state.used = 3 * GUEST_PAGE_SIZE;
	pthread_mutex_lock(&held.device.lock);
	atomic_store(&held.virtio.status, VIRTIO_STATUS_DRIVER_OK);
	virtio_start(&held.virtio);
	virtio_reset(&held.virtio);
	pthread_mutex_unlock(&held.device.lock);
	turn();
	cr_assert_eq(status(), 0);
	cr_assert_eq(held.n_offloads[0], 1);
	cr_assert_eq(held.n_stops[0], 1);
	cr_assert_not(held.virtio.queues[0].offloaded);
}

Test(offload, a_ring_outside_of_memory_is_offered_to_nobody)
{
	start_outside();
	reset();
	turn();
	held.n_offloads[1] = 0;
	held.virtio.queues[1].ring.state.enabled = true;
	held.virtio.queues[1].ring.state.descriptors = TEST_DRIVER_MEMORY;
	pthread_mutex_lock(&held.device.lock);
	atomic_store(&held.virtio.status, VIRTIO_STATUS_DRIVER_OK);
	virtio_start(&held.virtio);
	pthread_mutex_unlock(&held.device.lock);
	turn();
	cr_assert(status() & VIRTIO_STATUS_NEEDS_RESET);
	cr_assert_eq(held.n_offloads[1], 0);
	reset();
	turn();
	cr_assert_eq(status(), 0);
}

/* As the transport does when the driver picks a vector. */
static void change_call(uint32_t queue, int fd)
{
	pthread_mutex_lock(&held.device.lock);
	atomic_store(&held.virtio.queues[queue].ring.call_fd, fd);
	virtio_queue_call_changed(&held.virtio.queues[queue]);
	pthread_mutex_unlock(&held.device.lock);
}

Test(offload, a_changed_call_is_told_where_the_queue_is_served)
{
	held.outside[1] = true;
	start();
	change_call(0, -1);
	change_call(1, config_fd);
	cr_assert_eq(held.n_call_changes[1], 0, "told on the loop, not here");
	turn();
	cr_assert_eq(held.n_call_changes[0], 0, "it is served here");
	cr_assert_eq(held.n_call_changes[1], 1);
	cr_assert_eq(held.call_fd, config_fd);
	change_call(1, -1);
	turn();
	cr_assert_eq(held.n_call_changes[1], 2);
	cr_assert_eq(held.call_fd, -1);
}

Test(offload, a_thousand_changes_are_one_message)
{
	uint64_t before;

	start_outside();
	before = loop_counters(driver.loop).posts;
	for (int i = 0; i < 1000; i++)
		change_call(0, i % 2 ? config_fd : -1);
	turn();
	cr_assert_eq(loop_counters(driver.loop).posts - before, 1);
	cr_assert_eq(held.call_fd, config_fd, "the last one counts");
}

Test(offload, a_change_while_the_queue_rests_is_seen_at_its_start)
{
	uint64_t before;

	start_outside();
	pause_device();
	turn();
	before = loop_counters(driver.loop).posts;
	change_call(0, config_fd);
	turn();
	cr_assert_eq(loop_counters(driver.loop).posts, before);
	cr_assert_eq(held.n_call_changes[0], 0);
	virtio_resume(&held.virtio);
	turn();
	cr_assert_eq(atomic_load(&held.rings[0].call_fd), config_fd);
}

static void on_nothing(struct loop_source *source _unused_, const struct loop_event *event _unused_)
{
}

/* The ring's table of files is full when the kicks are to be heard here again. */
Test(deaf, a_queue_that_cannot_hear_needs_a_reset)
{
	static struct loop_source sources[64];
	struct rlimit limit;
	uint32_t n = 0;

	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
	limit.rlim_cur = ARRAY_SIZE(sources);
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
	set_up();
	if (!loop_has_uring(driver.loop))
		cr_skip_test("this host has no io_uring");
	start_outside();
	pause_device();
	turn();
	for (; n < ARRAY_SIZE(sources); n++) {
		sources[n].on_event = on_nothing;
		cr_assert_eq(loop_add(driver.loop, &sources[n]), 0);
		if (loop_watch_eventfd(&sources[n], config_fd) < 0)
			break;
	}
	cr_assert_lt(n, ARRAY_SIZE(sources), "the loop takes no end of files");
	held.outside[0] = false;
	virtio_resume(&held.virtio);
	turn();
	cr_assert(status() & VIRTIO_STATUS_NEEDS_RESET);
	cr_assert_eq(held.n_runs[0], 0);
	for (uint32_t i = 0; i <= n; i++)
		loop_remove(&sources[i]);
	reset();
	turn();
	cr_assert_eq(status(), 0);
	start();
	offer(0);
	turn();
	cr_assert_eq(given_back(0), 1, "it hears again");
	tear_down();
}
