/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every device is saved, torn down and loaded again while the guest uses it: rings half full,
 * vectors routed, requests in flight. The guest must not notice, and each device must still
 * announce its work. It reads a sector of the disk over and over to learn when the host is done, so
 * that the messenger is one of the devices under test.
 */
#define DISK_SIZE   (64 * 1024)
#define WORD_OFFSET 32768 /* where the host says "stop" */

#ifdef GUEST

#include "guest-tests/runtime/apic.h"
#include "guest-tests/runtime/blk.h"
#include "guest-tests/runtime/devices.h"

#define MAX_ROUNDS   100000
#define N_INTERRUPTS 3

static struct test_device *devices;

static bool host_says_stop(const struct test_device *disk)
{
	static uint8_t sector[BLK_SECTOR];
	struct virtq *q = &((struct blk *)disk->dev)->queues[0];

	GUEST_ASSERT(blk_do(q, BLK_IN, WORD_OFFSET / BLK_SECTOR, sector, sizeof(sector)) == BLK_OK,
		     "read");
	return memcmp(sector, "stop", 4) == 0;
}

static void cycle(struct guest_boot *boot)
{
	struct test_device *d = devices;
	unsigned int rounds = 0;

	(void)boot;
	for (unsigned int i = 0; i < N_TEST_DEVICES; i++) {
		d[i].start();
		d[i].check();
	}
	note("ready");
	do {
		for (unsigned int i = 0; i < N_TEST_DEVICES; i++)
			d[i].load();
		for (unsigned int i = 0; i < N_TEST_DEVICES; i++)
			d[i].settle();
		for (unsigned int i = 0; i < N_TEST_DEVICES; i++)
			d[i].check();
		if (rounds++ == 0)
			note("first-round");
		sleep_ms(1);
	} while (rounds < MAX_ROUNDS && !host_says_stop(&d[0]));
	for (unsigned int i = 0; i < N_TEST_DEVICES; i++)
		GUEST_ASSERT(virtio_status(d[i].dev) == 0xf, "%s: status 0x%x", d[i].name,
			     virtio_status(d[i].dev));
	note("rounds %u", rounds);
}

/*
 * What a wait finds done already, or what another interrupt wakes it for, hides a message that was
 * lost: so once more, one at a time. A late interrupt of the work before must not count.
 */
static void interrupts(struct guest_boot *boot)
{
	struct test_device *d = devices;

	(void)boot;
	sleep_ms(5);
	for (unsigned int i = 0; i < N_TEST_DEVICES; i++) {
		/* What it announced while nobody looked. */
		while (virtq_has_used(d[i].announces))
			d[i].collect();
		for (unsigned int n = 0; n < N_INTERRUPTS; n++)
			test_device_interrupt(&d[i]);
	}
}

void guest_main(struct guest_boot *boot)
{
	devices = test_devices();
	guest_case("cycle", cycle, boot);
	guest_case("interrupts", interrupts, boot);
}

#else

#include "guest-tests/host/harness.h"

#define CYCLES 10

/* Every device that the VMM counts for can be cycled. */
static void cycle_all(struct vm *vm)
{
	json_t *counters = vm_call(vm, "counters", NULL);
	json_t *devices = json_object_get(counters, "devices"), *device;
	const char *name;

	CHECK(json_object_size(devices) >= 3, "%zu devices", json_object_size(devices));
	json_object_foreach(devices, name, device)
		json_decref(vm_call(vm, "device-cycle", json_pack("{s:s}", "device", name)));
	json_decref(counters);
}

int main(int argc, char **argv)
{
	struct vm_config config = {0};
	struct vm *vm;

	test_init(argc, argv);
	file_count_up(test_file("disk"), DISK_SIZE);
	config.disks[0].path = test_file("disk");
	vm = vm_start(&config);
	vm_note(vm, "ready");
	if (!vm_is_peer()) {
		cycle_all(vm);
		vm_note(vm, "first-round");
		for (unsigned int i = 0; i < CYCLES; i++)
			cycle_all(vm);
	}
	file_write_at(test_file("disk"), WORD_OFFSET, "stop", 4);
	vm_note(vm, "rounds");
	if (vm_is_peer())
		test_skip("the peer has no device-cycle; the guest half ran");
	return vm_judge(vm);
}

#endif
