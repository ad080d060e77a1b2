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

#define WATCHDOG         0x25ab8086u
#define WATCHDOG_LOCK    0x68
#define WATCHDOG_ENABLE  2
#define WATCHDOG_RELOAD  0xc
#define WATCHDOG_PRELOAD 0xffffau /* of a second stage: both last for a quarter of an hour */

#define MAX_ROUNDS       100000
#define N_INTERRUPTS     3

#define N_CONFIG         64 /* words of configuration space */
#define MAX_VECTORS      16
#define MAX_QUEUES       8
#define N_REGISTERS      8 /* words of a queue's part of the common configuration */

/* All that a driver has set up and can read back. */
struct visible {
	uint32_t config[N_CONFIG];
	uint32_t vectors[MAX_VECTORS * 4];
	uint32_t queues[MAX_QUEUES][N_REGISTERS];
	uint16_t config_vector, n_queues;
	uint8_t status;
};

static struct test_device *devices;
static struct visible before[N_TEST_DEVICES], after;

static gpa_t watchdog;
static struct pci_device watchdog_pci;

static void watchdog_write(unsigned int offset, uint32_t value)
{
	mmio_write16(watchdog + WATCHDOG_RELOAD, 0x80);
	mmio_write16(watchdog + WATCHDOG_RELOAD, 0x86);
	mmio_write32(watchdog + offset, value);
}

/* It counts down meanwhile, half-way through an unlocking. A peer has none. */
static void watchdog_start(void)
{
	for (bool more = pci_next(&watchdog_pci, true); more;
	     more = pci_next(&watchdog_pci, false)) {
		if (pci_read32(&watchdog_pci, PCI_VENDOR) != WATCHDOG)
			continue;
		pci_enable(&watchdog_pci);
		watchdog = pci_bar(&watchdog_pci, 0, NULL);
		watchdog_write(4, WATCHDOG_PRELOAD);
		pci_port_write(&watchdog_pci, WATCHDOG_LOCK, 1, WATCHDOG_ENABLE);
		mmio_write16(watchdog + WATCHDOG_RELOAD, 0x80);
		mmio_write16(watchdog + WATCHDOG_RELOAD, 0x86);
		return;
	}
}

static void watchdog_expect(void)
{
	if (!watchdog)
		return;
	mmio_write32(watchdog, 5); /* unlocked before the first cycle */
	GUEST_ASSERT(mmio_read32(watchdog) == 5, "watchdog: first stage 0x%x",
		     mmio_read32(watchdog));
	GUEST_ASSERT(mmio_read32(watchdog + 4) == WATCHDOG_PRELOAD, "watchdog: second stage 0x%x",
		     mmio_read32(watchdog + 4));
	GUEST_ASSERT(pci_read8(&watchdog_pci, WATCHDOG_LOCK) == WATCHDOG_ENABLE, "watchdog: lock");
	GUEST_ASSERT(mmio_read16(watchdog + WATCHDOG_RELOAD) == 0, "watchdog: it ran out");
}

static bool host_says_stop(const struct test_device *disk)
{
	static uint8_t sector[BLK_SECTOR];
	struct virtq *q = &((struct blk *)disk->dev)->queues[0];

	GUEST_ASSERT(blk_do(q, BLK_IN, WORD_OFFSET / BLK_SECTOR, sector, sizeof(sector)) == BLK_OK,
		     "read");
	return memcmp(sector, "stop", 4) == 0;
}

static void look(const struct virtio_device *dev, struct visible *v)
{
	v->status = virtio_status(dev);
	v->config_vector = mmio_read16(dev->common + VIRTIO_COMMON_CONFIG_VECTOR);
	v->n_queues = mmio_read16(dev->common + VIRTIO_COMMON_N_QUEUES);
	for (unsigned int i = 0; i < N_CONFIG; i++)
		v->config[i] = pci_read32(&dev->pci, i * 4);
	for (unsigned int i = 0; i < dev->pci.n_vectors * 4 && i < MAX_VECTORS * 4; i++)
		v->vectors[i] = mmio_read32(dev->pci.msix_table + i * 4);
	for (unsigned int q = 0; q < v->n_queues && q < MAX_QUEUES; q++) {
		(void)virtq_max_size(dev, q);
		for (unsigned int i = 0; i < N_REGISTERS; i++)
			v->queues[q][i] =
				mmio_read32(dev->common + VIRTIO_COMMON_QUEUE_SIZE + i * 4);
	}
}

static void compare(const char *name, const char *what, const void *is, const void *was, size_t len)
{
	for (size_t i = 0; i < len; i++)
		GUEST_ASSERT(((const uint8_t *)is)[i] == ((const uint8_t *)was)[i],
			     "%s: %s differ at byte %lu: 0x%x, was 0x%x", name, what, i,
			     ((const uint8_t *)is)[i], ((const uint8_t *)was)[i]);
}

static void expect_unchanged(const struct test_device *d, const struct visible *was)
{
	memset(&after, 0, sizeof(after));
	look(d->dev, &after);
	GUEST_ASSERT(after.status == was->status, "%s: status 0x%x", d->name, after.status);
	GUEST_ASSERT(after.config_vector == was->config_vector, "%s: configuration vector 0x%x",
		     d->name, after.config_vector);
	compare(d->name, "configuration space", after.config, was->config, sizeof(was->config));
	compare(d->name, "MSI-X vectors", after.vectors, was->vectors, sizeof(was->vectors));
	compare(d->name, "queues", after.queues, was->queues, sizeof(was->queues));
}

static void nothing(void *arg)
{
	(void)arg;
}

static void cycle(struct guest_boot *boot)
{
	struct test_device *d = devices;
	unsigned int rounds = 0;

	(void)boot;
	for (unsigned int i = 0; i < test_device_count(); i++) {
		d[i].start();
		virtio_config_irq(d[i].dev, nothing, NULL);
		/* One of the vectors in use is masked: the one that nothing comes by. */
		msix_mask(&d[i].dev->pci, d[i].dev->pci.n_vectors - 1, true);
		d[i].check();
		look(d[i].dev, &before[i]);
	}
	watchdog_start();
	note("ready");
	do {
		for (unsigned int i = 0; i < test_device_count(); i++)
			d[i].load();
		for (unsigned int i = 0; i < test_device_count(); i++)
			d[i].settle();
		for (unsigned int i = 0; i < test_device_count(); i++)
			d[i].check();
		if (rounds++ == 0)
			note("first-round");
		sleep_ms(1);
	} while (rounds < MAX_ROUNDS && !host_says_stop(&d[0]));
	for (unsigned int i = 0; i < test_device_count(); i++)
		expect_unchanged(&d[i], &before[i]);
	watchdog_expect();
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
	for (unsigned int i = 0; i < test_device_count(); i++) {
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
#include "guest-tests/host/tap.h"

#define CYCLES 10

/* Every device that the VMM counts for can be cycled. */
static void cycle_all(struct vm *vm)
{
	json_t *counters = vm_call(vm, "counters", NULL);
	json_t *devices = json_object_get(counters, "devices"), *device;
	const char *name;

	CHECK(json_object_size(devices) >= 5, "%zu devices", json_object_size(devices));
	json_object_foreach(devices, name, device)
		json_decref(vm_call(vm, "device-cycle", json_pack("{s:s}", "device", name)));
	json_decref(counters);
}

int main(int argc, char **argv)
{
	struct vm_config config = {
		.words = {"--balloon", "on", "--watchdog", "report", "--vsock", "3"}};
	struct vm *vm;

	test_init(argc, argv);
	(void)tap_add_card(&config);
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
