/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Configuration space: both doors show the same, widths and odd offsets work, BARs size and decode,
 * do not overlap and are aligned, capability lists end, and a virtio function has what its
 * specification wants.
 */
#ifdef GUEST

#include "guest-tests/runtime/acpi.h"
#include "guest-tests/runtime/virtio.h"

#define VIRTIO_VENDOR  0x1af4
#define MAX_BARS       32
#define TIMEOUT_MS     20000
#define SILENCE_MS     30
#define CONFIG_ADDRESS 0xcf8

struct range {
	gpa_t start, end;
};

/* Of BARs, in memory and in I/O ports. */
static struct range bars[MAX_BARS], port_bars[MAX_BARS];
static unsigned int n_bars, n_port_bars;

static void scan(struct guest_boot *boot)
{
	struct pci_device dev;
	unsigned int n = 0;

	(void)boot;
	for (bool more = pci_next(&dev, true); more; more = pci_next(&dev, false), n++)
		note("function %x.%x %04x:%04x class 0x%06x", dev.slot, dev.function, dev.vendor,
		     dev.device, pci_read32(&dev, PCI_CLASS) >> 8);
	GUEST_ASSERT(n >= 3, "%u functions", n);
	dev = (struct pci_device){0};
	GUEST_ASSERT(pci_read8(&dev, PCI_CLASS + 3) == 0x06, "00.0 is no host bridge");
}

/* As Linux probes for configuration mechanism 1. */
static void ports(struct guest_boot *boot)
{
	struct pci_device none = {.slot = 31, .function = 6};
	uint32_t before = inl(CONFIG_ADDRESS);

	(void)boot;
	outb(CONFIG_ADDRESS + 3, 0x01);
	outl(CONFIG_ADDRESS, 0x80000000);
	GUEST_ASSERT(inl(CONFIG_ADDRESS) == 0x80000000, "0x%x", inl(CONFIG_ADDRESS));
	outl(CONFIG_ADDRESS, before);
	GUEST_ASSERT(pci_port_read(&none, 0, 4) == ~0u, "0x%x", pci_port_read(&none, 0, 4));
	GUEST_ASSERT(pci_port_read(&none, 2, 2) == 0xffff, "0x%x", pci_port_read(&none, 2, 2));
	pci_port_write(&none, 0x10, 4, 0x12345678);
}

static void compare_doors(const struct pci_device *dev)
{
	for (unsigned int offset = 0; offset < 256; offset += 4) {
		uint32_t port = pci_port_read(dev, offset, 4), ecam = pci_ecam_read(dev, offset, 4);

		GUEST_ASSERT(port == ecam, "%x.%x at 0x%x: 0x%x and 0x%x", dev->slot, dev->function,
			     offset, port, ecam);
	}
	for (unsigned int offset = 0; offset < 16; offset++) {
		uint32_t whole = pci_read32(dev, offset & ~3u) >> (offset & 3) * 8;
		uint32_t byte = pci_port_read(dev, offset, 1), ecam = pci_ecam_read(dev, offset, 1);

		GUEST_ASSERT(byte == (whole & 0xff) && ecam == byte, "0x%x: 0x%x, 0x%x of 0x%x",
			     offset, byte, ecam, whole);
		if (offset & 1)
			continue;
		GUEST_ASSERT(pci_port_read(dev, offset, 2) == (whole & 0xffff), "0x%x", offset);
		GUEST_ASSERT(pci_ecam_read(dev, offset, 2) == (whole & 0xffff), "0x%x", offset);
	}
}

static void two_doors(struct guest_boot *boot)
{
	struct pci_device dev;

	(void)boot;
	GUEST_ASSERT(acpi_info()->has_ecam, "no MCFG");
	for (bool more = pci_next(&dev, true); more; more = pci_next(&dev, false))
		compare_doors(&dev);
	dev = (struct pci_device){.slot = 31, .function = 6};
	GUEST_ASSERT(pci_ecam_read(&dev, 0, 4) == ~0u, "0x%x", pci_ecam_read(&dev, 0, 4));
}

/* What is written through one door shows through the other; read-only bytes stay. */
static void writes(struct guest_boot *boot)
{
	struct virtio_device dev;
	uint32_t id, command;

	(void)boot;
	GUEST_ASSERT(virtio_find(&dev, VIRTIO_ID_RNG, 0), "no rng");
	id = pci_read32(&dev.pci, PCI_VENDOR);
	pci_port_write(&dev.pci, PCI_VENDOR, 4, ~id);
	pci_ecam_write(&dev.pci, PCI_VENDOR, 2, 0);
	GUEST_ASSERT(pci_read32(&dev.pci, PCI_VENDOR) == id, "the vendor can be written");
	command = pci_read16(&dev.pci, PCI_COMMAND);
	pci_ecam_write(&dev.pci, PCI_COMMAND, 2, command & ~PCI_COMMAND_MASTER);
	GUEST_ASSERT(pci_read16(&dev.pci, PCI_COMMAND) == (command & ~PCI_COMMAND_MASTER), "0x%x",
		     pci_read16(&dev.pci, PCI_COMMAND));
	pci_port_write(&dev.pci, PCI_COMMAND, 2, command);
	GUEST_ASSERT(pci_ecam_read(&dev.pci, PCI_COMMAND, 2) == command, "0x%x", command);
}

static void check_bar(const struct pci_device *dev, unsigned int bar)
{
	uint64_t size;
	gpa_t gpa = pci_bar(dev, bar, &size);

	GUEST_ASSERT(size >= 16 && !(size & (size - 1)), "%x.%x BAR %u: size 0x%lx", dev->slot,
		     dev->function, bar, size);
	GUEST_ASSERT(gpa % size == 0, "%x.%x BAR %u: 0x%lx of 0x%lx", dev->slot, dev->function, bar,
		     gpa, size);
	for (unsigned int i = 0; i < n_bars; i++)
		GUEST_ASSERT(gpa >= bars[i].end || gpa + size <= bars[i].start,
			     "%x.%x BAR %u: overlaps 0x%lx", dev->slot, dev->function, bar,
			     bars[i].start);
	GUEST_ASSERT(n_bars < MAX_BARS, "too many BARs");
	bars[n_bars++] = (struct range){gpa, gpa + size};
}

static void check_port_bar(const struct pci_device *dev, unsigned int bar)
{
	unsigned int size, at = pci_port_bar(dev, bar, &size);

	/* At most 256: PCI 3.0, 6.2.5.1. */
	GUEST_ASSERT(size >= 4 && size <= 256 && !(size & (size - 1)) && at % size == 0,
		     "slot %x BAR %u: ports 0x%x, %u of them", dev->slot, bar, at, size);
	for (unsigned int i = 0; i < n_port_bars; i++)
		GUEST_ASSERT(at >= port_bars[i].end || at + size <= port_bars[i].start,
			     "slot %x BAR %u: overlaps ports 0x%lx", dev->slot, bar,
			     port_bars[i].start);
	GUEST_ASSERT(n_port_bars < MAX_BARS, "too many BARs");
	port_bars[n_port_bars++] = (struct range){at, at + size};
}

static void bar_sizes(struct guest_boot *boot)
{
	struct pci_device dev;

	(void)boot;
	for (bool more = pci_next(&dev, true); more; more = pci_next(&dev, false)) {
		for (unsigned int bar = 0; dev.vendor == VIRTIO_VENDOR && bar < 6; bar++) {
			uint32_t lo = pci_read32(&dev, PCI_BAR0 + bar * 4);

			if (lo & PCI_BAR_IS_IO) {
				check_port_bar(&dev, bar);
				continue;
			}
			if (lo & ~0xfu)
				check_bar(&dev, bar);
			if ((lo & 6) == 4)
				bar++;
		}
	}
	GUEST_ASSERT(n_bars, "no BAR");
}

static bool is_free(gpa_t start, gpa_t end)
{
	gpa_t ecam = acpi_info()->ecam;

	for (unsigned int i = 0; i < n_bars; i++) {
		if (start < bars[i].end && end > bars[i].start)
			return false;
	}
	return start >= ecam + ((acpi_info()->ecam_last_bus + 1ull) << 20) || end <= ecam;
}

static void write_bar(const struct virtio_device *dev, unsigned int bar, gpa_t gpa, uint32_t flags)
{
	pci_port_write(&dev->pci, PCI_BAR0 + bar * 4, 4, (uint32_t)gpa | flags);
	if (flags & 4)
		pci_port_write(&dev->pci, PCI_BAR0 + bar * 4 + 4, 4, (uint32_t)(gpa >> 32));
}

static unsigned int common_bar(const struct virtio_device *dev)
{
	unsigned int cap = 0;

	while ((cap = pci_find_capability(&dev->pci, PCI_CAP_VENDOR, cap))) {
		if (pci_read8(&dev->pci, cap + 3) == VIRTIO_CAP_COMMON)
			break;
	}
	return pci_read8(&dev->pci, cap + 4);
}

/* A BAR that is moved answers at its new place and no longer at the old one. */
static void bar_moves(struct guest_boot *boot)
{
	struct virtio_device dev;
	uint64_t size;
	gpa_t old, new = 0xc0000000, queues;
	unsigned int bar;
	uint32_t flags;

	(void)boot;
	GUEST_ASSERT(virtio_find(&dev, VIRTIO_ID_RNG, 0), "no rng");
	bar = common_bar(&dev);
	old = pci_bar(&dev.pci, bar, &size);
	flags = pci_read32(&dev.pci, PCI_BAR0 + bar * 4) & 0xf;
	while (!is_free(new, new + size))
		new += size;
	queues = dev.common + VIRTIO_COMMON_N_QUEUES;
	GUEST_ASSERT(mmio_read16(queues) == 1, "rng has one queue");
	write_bar(&dev, bar, new, flags);
	GUEST_ASSERT(mmio_read16(queues - old + new) == 1, "not at 0x%lx", new);
	GUEST_ASSERT(mmio_read16(queues) != 1, "still at 0x%lx", old);
	write_bar(&dev, bar, old, flags);
	GUEST_ASSERT(mmio_read16(queues) == 1, "not back at 0x%lx", old);
	/* Without memory decoding it is nowhere. */
	pci_port_write(&dev.pci, PCI_COMMAND, 2, 0);
	GUEST_ASSERT(mmio_read16(queues) != 1, "answers with decoding off");
	pci_enable(&dev.pci);
	GUEST_ASSERT(mmio_read16(queues) == 1, "gone after decoding was off");
}

static struct virtq q;

/* One buffer, of which the device has not heard. */
static void offer(struct virtio_device *dev)
{
	static uint8_t data[16];
	struct virtq_seg seg = {data, sizeof(data)};

	virtio_begin(dev, 0);
	virtq_init(&q, dev, 0, 0, true);
	/* It looks for buffers when it starts, which needs no kick, and then no more. */
	virtq_add(&q, &seg, 0, 1);
	virtio_driver_ok(dev);
	GUEST_ASSERT(virtq_wait(&q, NULL, TIMEOUT_MS) >= 0, "no answer");
	virtq_add(&q, &seg, 0, 1);
	full_barrier();
}

/* The device answers to a write of this port, or does not. */
static void rings(struct virtio_device *dev, uint16_t port, bool heard)
{
	offer(dev);
	outw(port, q.index);
	if (heard)
		GUEST_ASSERT(virtq_wait(&q, NULL, TIMEOUT_MS) >= 0, "0x%x is not heard", port);
	else
		GUEST_ASSERT(!POLL_UNTIL(virtq_has_used(&q), SILENCE_MS), "0x%x is heard", port);
}

/* Doorbells in ports are heard where their BAR is, and there alone. */
static void doorbells_move(struct guest_boot *boot)
{
	struct virtio_device dev;
	unsigned int bar = 0, size;
	uint16_t old, new = 0xff00;

	(void)boot;
	GUEST_ASSERT(virtio_find(&dev, VIRTIO_ID_RNG, 0), "no rng");
	if (!dev.doorbells)
		guest_skip("no doorbells in ports");
	while (!(pci_read32(&dev.pci, PCI_BAR0 + bar * 4) & PCI_BAR_IS_IO))
		bar++;
	old = pci_port_bar(&dev.pci, bar, &size);
	GUEST_ASSERT(old < new, "ports from 0x%x on", old);
	rings(&dev, old, true);
	pci_port_write(&dev.pci, PCI_BAR0 + bar * 4, 4, new);
	rings(&dev, new, true);
	rings(&dev, old, false);
	/* Without decoding of ports they are nowhere, and memory serves. */
	pci_port_write(&dev.pci, PCI_COMMAND, 2,
		       pci_read16(&dev.pci, PCI_COMMAND) & ~PCI_COMMAND_IO);
	rings(&dev, new, false);
	pci_port_write(&dev.pci, PCI_BAR0 + bar * 4, 4, old);
	pci_enable(&dev.pci);
	rings(&dev, old, true);
}

/* Who cannot do ports kicks in memory. */
static void memory_kicks(struct guest_boot *boot)
{
	struct virtio_device dev;

	(void)boot;
	GUEST_ASSERT(virtio_find(&dev, VIRTIO_ID_RNG, 0), "no rng");
	dev.doorbells = 0;
	offer(&dev);
	virtq_kick(&q);
	GUEST_ASSERT(virtq_wait(&q, NULL, TIMEOUT_MS) >= 0, "not heard");
}

static void check_msix(const struct pci_device *dev, unsigned int cap)
{
	uint32_t n = (pci_read16(dev, cap + 2) & 0x7ff) + 1;
	uint32_t table = pci_read32(dev, cap + 4), pba = pci_read32(dev, cap + 8);
	uint64_t size;

	(void)pci_bar(dev, table & 7, &size);
	GUEST_ASSERT((table & ~7u) + n * 16 <= size, "slot %x: table 0x%x of %u", dev->slot, table,
		     n);
	(void)pci_bar(dev, pba & 7, &size);
	GUEST_ASSERT((pba & ~7u) + (n + 63) / 64 * 8 <= size, "slot %x: PBA 0x%x", dev->slot, pba);
}

static unsigned int check_virtio_cap(const struct pci_device *dev, unsigned int cap)
{
	unsigned int type = pci_read8(dev, cap + 3), len = pci_read8(dev, cap + 2);
	uint32_t offset = pci_read32(dev, cap + 8), length = pci_read32(dev, cap + 12);
	unsigned int bar, n_ports_of;
	uint64_t size;

	GUEST_ASSERT(len >= (type == VIRTIO_CAP_NOTIFY || type == VIRTIO_CAP_PCI ? 20 : 16),
		     "slot %x: capability %u of %u bytes", dev->slot, type, len);
	if (type == VIRTIO_CAP_PCI)
		return 1u << type;
	bar = pci_read8(dev, cap + 4);
	if (type == VIRTIO_CAP_NOTIFY && pci_read32(dev, PCI_BAR0 + bar * 4) & PCI_BAR_IS_IO) {
		(void)pci_port_bar(dev, bar, &n_ports_of);
		size = n_ports_of;
	} else {
		(void)pci_bar(dev, bar, &size);
	}
	GUEST_ASSERT(offset <= size && length <= size - offset, "slot %x: capability %u: 0x%x+0x%x",
		     dev->slot, type, offset, length);
	if (type == VIRTIO_CAP_COMMON)
		GUEST_ASSERT(length >= VIRTIO_COMMON_SIZE && offset % 4 == 0, "0x%x", length);
	return type < 32 ? 1u << type : 0;
}

static void capabilities(struct guest_boot *boot)
{
	struct pci_device dev;
	unsigned int n = 0;

	(void)boot;
	for (bool more = pci_next(&dev, true); more; more = pci_next(&dev, false)) {
		unsigned int seen = 0, cap = 0;

		if (dev.vendor != VIRTIO_VENDOR)
			continue;
		GUEST_ASSERT(dev.device >= 0x1041 && dev.device < 0x1080, "0x%x", dev.device);
		GUEST_ASSERT(pci_read8(&dev, PCI_CLASS) >= 1, "revision 0");
		while ((cap = pci_find_capability(&dev, PCI_CAP_VENDOR, cap)))
			seen |= check_virtio_cap(&dev, cap);
		GUEST_ASSERT((seen & 0x2e) == 0x2e, "slot %x: types 0x%x", dev.slot, seen);
		cap = pci_find_capability(&dev, PCI_CAP_MSIX, 0);
		GUEST_ASSERT(cap, "slot %x: no MSI-X", dev.slot);
		check_msix(&dev, cap);
		n++;
	}
	GUEST_ASSERT(n, "no virtio device");
}

/* The window in configuration space shows the same registers as the BAR. */
static void window(struct guest_boot *boot)
{
	struct virtio_device dev;
	unsigned int cap = 0, common = 0, pci = 0;
	uint32_t value;

	(void)boot;
	GUEST_ASSERT(virtio_find(&dev, VIRTIO_ID_RNG, 0), "no rng");
	while ((cap = pci_find_capability(&dev.pci, PCI_CAP_VENDOR, cap))) {
		if (pci_read8(&dev.pci, cap + 3) == VIRTIO_CAP_COMMON)
			common = cap;
		if (pci_read8(&dev.pci, cap + 3) == VIRTIO_CAP_PCI)
			pci = cap;
	}
	pci_port_write(&dev.pci, pci + 4, 1, pci_read8(&dev.pci, common + 4));
	pci_port_write(&dev.pci, pci + 8, 4,
		       pci_read32(&dev.pci, common + 8) + VIRTIO_COMMON_DEVICE_SELECT);
	pci_port_write(&dev.pci, pci + 12, 4, 4);
	pci_port_write(&dev.pci, pci + 16, 4, 1);
	GUEST_ASSERT(mmio_read32(dev.common + VIRTIO_COMMON_DEVICE_SELECT) == 1,
		     "write has no effect");
	pci_port_write(&dev.pci, pci + 8, 4,
		       pci_read32(&dev.pci, common + 8) + VIRTIO_COMMON_DEVICE_FEATURE);
	value = pci_read32(&dev.pci, pci + 16);
	GUEST_ASSERT(value == mmio_read32(dev.common + VIRTIO_COMMON_DEVICE_FEATURE) && (value & 1),
		     "0x%x", value);
	/* Beyond the BAR: anything but a fault. */
	pci_port_write(&dev.pci, pci + 8, 4, 0xfffffffc);
	(void)pci_read32(&dev.pci, pci + 16);
	pci_port_write(&dev.pci, pci + 16, 4, ~0u);
}

void guest_main(struct guest_boot *boot)
{
	guest_case("scan", scan, boot);
	guest_case("ports", ports, boot);
	guest_case("two-doors", two_doors, boot);
	guest_case("writes", writes, boot);
	guest_case("bar-sizes", bar_sizes, boot);
	guest_case("bar-moves", bar_moves, boot);
	guest_case("doorbells-move", doorbells_move, boot);
	guest_case("memory-kicks", memory_kicks, boot);
	guest_case("capabilities", capabilities, boot);
	guest_case("window", window, boot);
}

#else

#include "guest-tests/host/harness.h"

int main(int argc, char **argv)
{
	struct vm_config config = {0};

	test_init(argc, argv);
	file_fill(test_file("disk"), 65536, 1);
	config.disks[0].path = test_file("disk");
	return vm_judge(vm_start(&config));
}

#endif
