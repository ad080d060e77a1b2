/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each device is reset while it has work: after the reset has been seen to be done it touches no
 * memory any more, its registers are as at the start, and it works again when set up anew.
 */
#define DISK_SIZE (64 * 1024)

#ifdef GUEST

#include "guest-tests/runtime/apic.h"
#include "guest-tests/runtime/devices.h"

#define ROUNDS 4

static void expect_fresh(const struct virtio_device *dev)
{
	unsigned int n = mmio_read16(dev->common + VIRTIO_COMMON_N_QUEUES);

	GUEST_ASSERT(n, "no queues");
	GUEST_ASSERT(mmio_read16(dev->common + VIRTIO_COMMON_CONFIG_VECTOR) == VIRTIO_NO_VECTOR,
		     "0x%x", mmio_read16(dev->common + VIRTIO_COMMON_CONFIG_VECTOR));
	for (unsigned int i = 0; i < n; i++) {
		GUEST_ASSERT(virtq_max_size(dev, i), "queue %u has no size", i);
		GUEST_ASSERT(mmio_read16(dev->common + VIRTIO_COMMON_QUEUE_ENABLE) == 0, "queue %u",
			     i);
		GUEST_ASSERT(mmio_read16(dev->common + VIRTIO_COMMON_QUEUE_VECTOR) ==
				     VIRTIO_NO_VECTOR,
			     "queue %u", i);
		GUEST_ASSERT(mmio_read32(dev->common + VIRTIO_COMMON_QUEUE_DESC) == 0, "queue %u",
			     i);
	}
}

/* Each page gets a mark after the reset; what a late request would write covers them all. */
static void mark(const struct test_device *d)
{
	for (size_t i = 0; i < d->buffer_len; i += 256)
		*(volatile uint64_t *)(d->buffer + i) = 0x6d61726b6d61726b;
}

static void expect_marks(const struct test_device *d)
{
	for (size_t i = 0; i < d->buffer_len; i += 256)
		GUEST_ASSERT(*(volatile uint64_t *)(d->buffer + i) == 0x6d61726b6d61726b,
			     "%s wrote at %lu after its reset", d->name, i);
}

static void reset_under_load(const struct test_device *d, unsigned int round)
{
	d->start();
	d->load();
	/* Later rounds let some of the work be done first. */
	if (round)
		sleep_ms(round);
	virtio_reset(d->dev);
	mark(d);
	expect_fresh(d->dev);
	sleep_ms(5);
	expect_marks(d);
}

static void run(const char *name)
{
	const struct test_device *d = test_device_find(name);

	if (!d)
		GUEST_SKIP("there is none");
	for (unsigned int round = 0; round < ROUNDS; round++)
		reset_under_load(d, round);
	d->start();
	d->check();
	d->load();
	d->settle();
	d->check();
}

static void disk(struct guest_boot *boot)
{
	(void)boot;
	run("disk");
}

static void console(struct guest_boot *boot)
{
	(void)boot;
	run("console");
}

static void rng(struct guest_boot *boot)
{
	(void)boot;
	run("rng");
}

static void balloon(struct guest_boot *boot)
{
	(void)boot;
	run("balloon");
}

static void net(struct guest_boot *boot)
{
	(void)boot;
	run("net");
}

static void vsock(struct guest_boot *boot)
{
	(void)boot;
	run("vsock");
}

void guest_main(struct guest_boot *boot)
{
	(void)test_devices();
	guest_case("disk", disk, boot);
	guest_case("console", console, boot);
	guest_case("rng", rng, boot);
	guest_case("balloon", balloon, boot);
	guest_case("net", net, boot);
	guest_case("vsock", vsock, boot);
}

#else

#include "guest-tests/host/harness.h"
#include "guest-tests/host/tap.h"

int main(int argc, char **argv)
{
	struct vm_config config = {.words = {"--balloon", "on", "--vsock", "3"}};

	test_init(argc, argv);
	(void)tap_add_card(&config);
	file_count_up(test_file("disk"), DISK_SIZE);
	config.disks[0].path = test_file("disk");
	return vm_judge(vm_start(&config));
}

#endif
