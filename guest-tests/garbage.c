/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Seeded nonsense for every device: all of its registers and its configuration space are written at
 * random, its rings filled with random descriptors and chains of nearly right requests. The device
 * may want a reset; after one it has to work, and nothing else may have noticed.
 *
 * A device does what its registers say, so what would destroy this guest by right is left out:
 * rings and buffers are in the arena or where no RAM is, messages are ordinary interrupts. Command
 * line: seed, rounds (a device), or seconds (a device) instead of rounds.
 */
#define DISK_SIZE (64 * 1024)

#ifdef GUEST

#include "guest-tests/runtime/acpi.h"
#include "guest-tests/runtime/blk.h"
#include "guest-tests/runtime/board.h"
#include "guest-tests/runtime/devices.h"

#define ARENA           0x1000000ul
#define ARENA_SIZE      0x2000000ul
#define RINGS           ARENA
#define RING_STRIDE     0x20000ul
#define HEADERS         (ARENA + 0x800000)
#define DATA            (ARENA + 0x1000000)

#define REGISTER_WRITES 150
#define CONFIG_WRITES   60
#define RING_KICKS      12
#define RING_SETUPS     4
#define RING_SIZE       8 /* what every device has at least, QEMU's rng too */
#define PM_TIMER_HZ     3579545u

#define WATCHDOG        0x25ab8086u
#define WATCHDOG_LOCK   0x68
#define WATCHDOG_RELOAD 0xc

static struct test_device *devices;
static bool numbers; /* the device under test takes what it reads for page numbers */
static uint64_t state;
static gpa_t ram_end;
static uint32_t saved_config[64];
static unsigned int n_needs_reset;

static uint32_t any(uint32_t below)
{
	return (uint32_t)((random_next(&state) >> 32) % below);
}

static uint32_t any32(void)
{
	/* Small numbers, bits and all ones are the interesting ones. */
	switch (any(4)) {
	case 0:
		return any(16);
	case 1:
		return 1u << any(32);
	case 2:
		return ~0u;
	default:
		return (uint32_t)(random_next(&state) >> 16);
	}
}

/* In the arena, or where writing has to be refused: no RAM, devices, the end of RAM, a wrap. */
static gpa_t any_gpa(void)
{
	switch (any(8)) {
	case 0:
		return ram_end + any(1 << 20);
	case 1:
		return ram_end - any(64);
	case 2:
		return 0xc0000000 + any(0x3fffffff);
	case 3:
		return ~0ull - any(4096);
	case 4:
		return random_next(&state) | 1ull << 40;
	default:
		return DATA + any(1 << 22);
	}
}

static void write_any_width(gpa_t at, uint32_t value)
{
	switch (any(4)) {
	case 0:
		mmio_write8(at, (uint8_t)value);
		break;
	case 1:
		mmio_write16(at & ~1ull, (uint16_t)value);
		break;
	default:
		mmio_write32(at & ~3ull, value);
	}
}

/* The two halves of a ring address: together in the arena or out of RAM. */
static void write_ring_address(gpa_t common)
{
	unsigned int reg = VIRTIO_COMMON_QUEUE_DESC + any(3) * 8;

	if (any(4))
		mmio_write32(common + reg, (uint32_t)(RINGS + any(0x100000)));
	else
		mmio_write32(common + reg, (uint32_t)(ram_end + any(0x10000000)));
	mmio_write32(common + reg + 4, any(4) ? 0 : any32());
}

static void write_common(gpa_t common)
{
	unsigned int offset = any(VIRTIO_COMMON_QUEUE_DESC + 8);

	if (offset >= VIRTIO_COMMON_QUEUE_DESC)
		write_ring_address(common);
	else if (any(3) == 0)
		mmio_write16(common + VIRTIO_COMMON_QUEUE_SELECT, (uint16_t)any(8));
	else
		write_any_width(common + offset, any32());
}

static void write_msix_entry(const struct pci_device *pci)
{
	gpa_t at = pci->msix_table + any(pci->n_vectors) * 16;

	switch (any(4)) {
	case 0:
		mmio_write32(at, 0xfee00000 | (any32() & 0xff00c));
		break;
	case 1:
		mmio_write32(at + 4, any(2) ? 0 : any32());
		break;
	case 2:
		/* Fixed delivery, a vector of ours: others would end this guest by right. */
		mmio_write32(at + 8, (any32() & 0xffffc000) | (0x30 + any(0xc0)));
		break;
	default:
		mmio_write32(at + 12, any32());
	}
}

static void write_registers(const struct virtio_device *dev)
{
	for (unsigned int i = 0; i < REGISTER_WRITES; i++) {
		switch (any(8)) {
		case 0:
			write_msix_entry(&dev->pci);
			break;
		case 1:
			mmio_write32(dev->pci.msix_pba + any(2) * 4, any32());
			break;
		case 2:
			if (dev->config_len >= 4)
				write_any_width(dev->config + any(dev->config_len & ~3u), any32());
			break;
		case 3:
			write_any_width(dev->notify + any(dev->notify_len & ~3u), any32());
			if (dev->doorbells)
				outl(dev->doorbells + any(dev->doorbells_len & ~3u), any32());
			break;
		case 4:
			write_any_width(dev->isr, any32());
			(void)mmio_read8(dev->isr);
			break;
		case 5:
			(void)mmio_read32(dev->common + any(VIRTIO_COMMON_SIZE & ~3u));
			break;
		default:
			write_common(dev->common);
		}
	}
}

static unsigned int window_cap(const struct pci_device *pci)
{
	unsigned int cap = 0;

	while ((cap = pci_find_capability(pci, PCI_CAP_VENDOR, cap))) {
		if (pci_read8(pci, cap + 3) == VIRTIO_CAP_PCI)
			return cap;
	}
	return 0;
}

static void write_config(const struct pci_device *pci)
{
	unsigned int window = window_cap(pci), widths[] = {1, 2, 4};

	for (unsigned int i = 0; i < 64; i++)
		saved_config[i] = pci_read32(pci, i * 4);
	for (unsigned int i = 0; i < CONFIG_WRITES; i++) {
		unsigned int width = widths[any(3)], offset = any(256) & ~(width - 1);
		uint32_t value = any32();

		if (window && any(4) == 0)
			offset = window + (4 + any(16)) / width * width;
		/* The window reaches all of the above: only ones through it, which are nowhere. */
		if (window && offset >= window + 16 && offset < window + 20)
			value = ~0u;
		if (any(2))
			pci_port_write(pci, offset, width, value);
		else
			pci_ecam_write(pci, offset, width, value);
		(void)pci_port_read(pci, offset, width);
	}
	for (unsigned int i = 0; i < 64; i++) {
		if (i * 4 != PCI_COMMAND && !(window && i * 4 == window + 16))
			pci_port_write(pci, i * 4, 4, saved_config[i]);
	}
	pci_port_write(pci, PCI_COMMAND, 4, saved_config[PCI_COMMAND / 4] & 0xffff);
}

/* A header that a disk may take for one, of a request that spares the sectors that are checked; or
 * numbers of pages that are not this program's. */
static void fill_header(gpa_t at)
{
	static const uint32_t types[] = {BLK_IN,      BLK_OUT,          BLK_FLUSH, BLK_GET_ID,
					 BLK_DISCARD, BLK_WRITE_ZEROES, 0x80000000};
	uint32_t *h = (uint32_t *)at;

	for (unsigned int i = 0; numbers && i < 4; i++)
		h[i] = (uint32_t)(any(4) ? (DATA >> 12) + any(1 << 10) : any_gpa() | 1 << 20);
	if (numbers)
		return;
	h[0] = any(8) ? types[any(ARRAY_SIZE(types))] : any32();
	h[1] = any32();
	*(uint64_t *)(h + 2) = any(4) ? 64 + any(80) : random_next(&state) | 1ull << 40;
	/* The same bytes as a range to discard: high bits keep it off the checked sectors. */
}

/* A chain that a device may well accept, so that what lies behind the first check is reached too.
 */
static void fill_tame_desc(struct virtq_desc *d, unsigned int i)
{
	static const uint32_t lens[] = {1, 15, 16, 512, 513, 4096};

	if (i % 4 == 0) {
		d->gpa = HEADERS + any(64) * 16;
		d->len = 16;
		d->flags = VIRTQ_DESC_NEXT;
		fill_header(d->gpa);
	} else {
		d->gpa = DATA + any(1 << 22);
		d->len = lens[any(ARRAY_SIZE(lens))];
		d->flags = (uint16_t)((i & 2 ? VIRTQ_DESC_WRITE : 0) |
				      (i % 4 == 1 || (i % 4 == 2 && any(4)) ? VIRTQ_DESC_NEXT : 0));
	}
	d->next = (uint16_t)(i + 1);
}

static void fill_desc(struct virtq_desc *d, bool first)
{
	static const uint32_t lens[] = {0, 1, 15, 16, 512, 4096, 65536, 0x7fffffff, 0xffffffff};

	d->gpa = any_gpa();
	d->len = any(4) ? lens[any(ARRAY_SIZE(lens))] : any32();
	d->flags = (uint16_t)(any(8) ? any(4) : any(8) ? VIRTQ_DESC_INDIRECT : any32());
	d->next = (uint16_t)(any(8) ? any(RING_SIZE) : any32());
	if (first && any(2)) {
		d->gpa = HEADERS + any(64) * 16;
		d->len = 16;
		d->flags = VIRTQ_DESC_NEXT;
		fill_header(d->gpa);
	} else if (d->flags == VIRTQ_DESC_INDIRECT && any(2)) {
		d->gpa = RINGS + any(8) * RING_STRIDE;
		d->len = 16 * any(32);
	}
}

static void fill_rings(gpa_t at, bool tame)
{
	struct virtq_desc *desc = (struct virtq_desc *)at;
	struct virtq_avail *avail = (struct virtq_avail *)(at + 0x8000);

	for (unsigned int i = 0; i < RING_SIZE; i++) {
		if (tame)
			fill_tame_desc(&desc[i], i);
		else
			fill_desc(&desc[i], i & 1);
	}
	for (unsigned int i = 0; i < RING_SIZE; i++) {
		if (tame)
			avail->ring[i] = (uint16_t)(any(RING_SIZE / 4) * 4);
		else
			avail->ring[i] = (uint16_t)(any(16) ? any(RING_SIZE) : any32());
	}
	avail->flags = (uint16_t)any(4);
}

static void set_up_queue(const struct virtio_device *dev, unsigned int i)
{
	gpa_t at = RINGS + i * RING_STRIDE, common = dev->common;

	(void)virtq_max_size(dev, i);
	memset((void *)(at + 0x8000), 0, 512);
	memset((void *)(at + 0x10000), 0, 512);
	mmio_write16(common + VIRTIO_COMMON_QUEUE_SIZE, RING_SIZE);
	mmio_write16(common + VIRTIO_COMMON_QUEUE_VECTOR, (uint16_t)any(3));
	mmio_write32(common + VIRTIO_COMMON_QUEUE_DESC, (uint32_t)at);
	mmio_write32(common + VIRTIO_COMMON_QUEUE_DESC + 4, 0);
	mmio_write32(common + VIRTIO_COMMON_QUEUE_DRIVER, (uint32_t)at + 0x8000);
	mmio_write32(common + VIRTIO_COMMON_QUEUE_DRIVER + 4, 0);
	mmio_write32(common + VIRTIO_COMMON_QUEUE_DEVICE, (uint32_t)at + 0x10000);
	mmio_write32(common + VIRTIO_COMMON_QUEUE_DEVICE + 4, 0);
	mmio_write16(common + VIRTIO_COMMON_QUEUE_ENABLE, 1);
}

static void kick(const struct virtio_device *dev, unsigned int q)
{
	uint16_t offset;

	(void)virtq_max_size(dev, q);
	offset = mmio_read16(dev->common + VIRTIO_COMMON_QUEUE_NOTIFY_OFF);
	mmio_write16(dev->notify + offset * dev->notify_multiplier, (uint16_t)q);
}

static bool is_idle(const struct virtio_device *dev, gpa_t at)
{
	const volatile struct virtq_avail *avail = (struct virtq_avail *)(at + 0x8000);
	const volatile struct virtq_used *used = (struct virtq_used *)(at + 0x10000);

	return used->idx == avail->idx || virtio_status(dev) & VIRTIO_STATUS_NEEDS_RESET;
}

/* Until the device wants a reset, and not for ever. */
static void kick_garbage(const struct virtio_device *dev, unsigned int n)
{
	bool tame = any(2);

	for (unsigned int i = 0; i < RING_KICKS; i++) {
		unsigned int q = any(n);
		gpa_t at = RINGS + q * RING_STRIDE;
		volatile struct virtq_avail *avail = (struct virtq_avail *)(at + 0x8000);

		fill_rings(at, tame);
		full_barrier();
		/* Tame: one at a time, done before the next. Else a few more, at times more than
		 * fit. */
		avail->idx = (uint16_t)(avail->idx + (tame ? 1 : any(8) ? 1 + any(4) : any32()));
		kick(dev, q);
		if (tame)
			(void)POLL_UNTIL(is_idle(dev, at), 5);
		if (virtio_status(dev) & VIRTIO_STATUS_NEEDS_RESET) {
			n_needs_reset++;
			return;
		}
	}
}

static void write_rings(struct virtio_device *dev)
{
	unsigned int n = mmio_read16(dev->common + VIRTIO_COMMON_N_QUEUES);

	n = n < 8 ? n : 8;
	for (unsigned int i = 0; i < RING_SETUPS; i++) {
		virtio_begin(dev, random_next(&state));
		for (unsigned int q = 0; q < n; q++)
			set_up_queue(dev, q);
		virtio_driver_ok(dev);
		kick_garbage(dev, n);
	}
	sleep_ms(1);
}

static uint32_t pm_now(void)
{
	return inl(acpi_info()->pm_timer) & 0xffffff;
}

/* Nonsense that happens to be a good request may zero the sector that is checked. */
static void restore_disk(void)
{
	static uint8_t sector[BLK_SECTOR];
	struct blk *blk = (struct blk *)devices[0].dev;

	for (unsigned int i = 0; i < BLK_SECTOR; i++)
		sector[i] = (uint8_t)i;
	GUEST_ASSERT(blk_do(&blk->queues[0], BLK_OUT, 0, sector, sizeof(sector)) == BLK_OK,
		     "write");
}

static void round_of(const struct test_device *d)
{
	write_registers(d->dev);
	write_config(&d->dev->pci);
	write_rings(d->dev);
	virtio_reset(d->dev);
	d->start();
	if (d == &devices[0])
		restore_disk();
	d->check();
}

static void run(const struct guest_boot *boot, const char *name)
{
	uint64_t rounds = cmdline_number(boot, "rounds", 6), n = 0, ticks = 0;
	uint64_t seconds = cmdline_number(boot, "seconds", 0);
	const struct test_device *d = test_device_find(name);
	uint32_t before;

	if (!d)
		GUEST_SKIP("there is none");
	state = cmdline_number(boot, "seed", 1) * 0x9e3779b97f4a7c15ull + (uint64_t)d->name[0];
	ram_end = boot->ram_end;
	n_needs_reset = 0;
	d->start();
	while (seconds ? ticks / PM_TIMER_HZ < seconds : n < rounds) {
		before = pm_now();
		round_of(d);
		ticks += (pm_now() - before) & 0xffffff;
		n++;
	}
	note("%s %lu rounds, %u resets wanted, %u stray interrupts", d->name, n, n_needs_reset,
	     irq_stray_count());
	for (unsigned int i = 0; i < test_device_count(); i++) {
		devices[i].start();
		devices[i].check();
	}
}

static void disk(struct guest_boot *boot)
{
	run(boot, "disk");
}

static void console(struct guest_boot *boot)
{
	run(boot, "console");
}

static void rng(struct guest_boot *boot)
{
	run(boot, "rng");
}

/* Zeroes are the number of a page that nobody needs. */
static void balloon(struct guest_boot *boot)
{
	memset((void *)DATA, 0, (1 << 22) + 0x10000);
	memset((void *)HEADERS, 0, 64 * 16);
	numbers = true;
	run(boot, "balloon");
	numbers = false;
}

static void net(struct guest_boot *boot)
{
	run(boot, "net");
}

static void vsock(struct guest_boot *boot)
{
	run(boot, "vsock");
}

static void watchdog_write(gpa_t bar, uint32_t offset, uint32_t value)
{
	mmio_write16(bar + WATCHDOG_RELOAD, 0x80);
	mmio_write16(bar + WATCHDOG_RELOAD, 0x86);
	write_any_width(bar + offset, value);
}

/* Running out has no consequence here but a flag, by which it is seen to work in the end. */
static void watchdog_works(const struct pci_device *pci, gpa_t bar)
{
	if (pci_read8(pci, WATCHDOG_LOCK) & 1)
		return; /* as garbage has left it, until the next reset */
	pci_port_write(pci, WATCHDOG_LOCK, 1, 0);
	for (uint32_t offset = 0; offset <= 4; offset += 4) {
		mmio_write16(bar + WATCHDOG_RELOAD, 0x80);
		mmio_write16(bar + WATCHDOG_RELOAD, 0x86);
		mmio_write32(bar + offset, 1);
	}
	mmio_write16(bar + WATCHDOG_RELOAD, 0x80);
	mmio_write16(bar + WATCHDOG_RELOAD, 0x86);
	mmio_write16(bar + WATCHDOG_RELOAD, 0x200);
	pci_port_write(pci, WATCHDOG_LOCK, 1, 2);
	GUEST_ASSERT(POLL_UNTIL(mmio_read16(bar + WATCHDOG_RELOAD) & 0x200, 5000),
		     "it does not run out");
}

static void watchdog(struct guest_boot *boot)
{
	uint64_t rounds = cmdline_number(boot, "rounds", 6);
	struct pci_device pci;
	bool more;
	gpa_t bar;

	for (more = pci_next(&pci, true); more; more = pci_next(&pci, false))
		if (pci_read32(&pci, PCI_VENDOR) == WATCHDOG)
			break;
	if (!more)
		GUEST_SKIP("no watchdog");
	state = cmdline_number(boot, "seed", 1) * 0x9e3779b97f4a7c15ull + 'w';
	pci_enable(&pci);
	bar = pci_bar(&pci, 0, NULL);
	for (uint64_t i = 0; i < rounds; i++) {
		for (unsigned int n = 0; n < REGISTER_WRITES; n++) {
			if (any(3) == 0)
				pci_port_write(&pci, WATCHDOG_LOCK, 1, any32() & 0xfe);
			watchdog_write(bar, any(16), any32());
			write_any_width(bar + any(4096) / 4 * 4, any32());
			(void)mmio_read32(bar + any(8) * 4);
		}
		watchdog_works(&pci, bar);
		write_config(&pci);
	}
}

/* The board's small devices: any value but the ones that end the machine as they should. */
static void ports(struct guest_boot *boot)
{
	static const uint16_t at[] = {BOARD_SERIAL_PORT + 1,
				      BOARD_SERIAL_PORT + 2,
				      BOARD_SERIAL_PORT + 3,
				      BOARD_SERIAL_PORT + 4,
				      BOARD_SERIAL_PORT + 5,
				      BOARD_SERIAL_PORT + 6,
				      BOARD_SERIAL_PORT + 7,
				      0x60,
				      0x61,
				      0x70,
				      0x71,
				      0x608,
				      0x609,
				      0x60a,
				      0x60b,
				      BOARD_GED_PORT,
				      0xcf8,
				      0xcf9 + 1,
				      0xcfb};

	state = cmdline_number(boot, "seed", 1) * 0x9e3779b97f4a7c15ull;
	for (unsigned int i = 0; i < 40 * cmdline_number(boot, "rounds", 6); i++) {
		uint16_t port = at[any(ARRAY_SIZE(at))];

		switch (any(4)) {
		case 0:
			outb(port, (uint8_t)any32());
			break;
		case 1:
			(void)inb(port);
			break;
		case 2:
			(void)inl(port & 0xfffc);
			break;
		default:
			(void)inw(port & 0xfffe);
		}
	}
	serial_init();
	print("\n");
	/* What is nowhere reads as something and swallows writes. */
	mmio_write32(0xfe000000, any32());
	(void)mmio_read32(0xfe000000);
	outl(0x1230, any32());
	GUEST_ASSERT(inb(0x1230) == 0xff, "0x%x", inb(0x1230));
}

void guest_main(struct guest_boot *boot)
{
	devices = test_devices();
	guest_case("disk", disk, boot);
	guest_case("console", console, boot);
	guest_case("rng", rng, boot);
	guest_case("balloon", balloon, boot);
	guest_case("net", net, boot);
	guest_case("vsock", vsock, boot);
	guest_case("watchdog", watchdog, boot);
	guest_case("ports", ports, boot);
}

#else

#include <stdio.h>
#include <stdlib.h>

#include "guest-tests/host/harness.h"
#include "guest-tests/host/tap.h"

/* GUEST_TEST_SECONDS: that long for each device, with a seed that is printed. */
int main(int argc, char **argv)
{
	const char *seconds = getenv("GUEST_TEST_SECONDS"), *seed = getenv("GUEST_TEST_SEED");
	struct vm_config config = {
		.words = {"--balloon", "on", "--watchdog", "report", "--vsock", "3"}};
	char append[96];

	test_init(argc, argv);
	(void)tap_add_card(&config);
	file_count_up(test_file("disk"), DISK_SIZE);
	config.disks[0].path = test_file("disk");
	snprintf(append, sizeof(append), "seed=%s seconds=%s", seed ? seed : "1",
		 seconds ? seconds : "0");
	config.append = append;
	config.timeout_s = 110 + (seconds ? (unsigned int)atoi(seconds) * 7 : 0);
	printf("%s\n", append);
	return vm_judge(vm_start(&config));
}

#endif
