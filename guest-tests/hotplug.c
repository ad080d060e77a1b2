/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks that come to a running guest and leave it. The guest does by hand what an operating
 * system's ACPI does: it takes the event, reads the register block, places the BARs, and ejects.
 * What it does next the host half says, a word a line. The files, their locks, the VMM's
 * descriptors and its events are the truth.
 */
#define DISK_SIZE    (64 * 1024)
#define WRITE_SECTOR 9
#define WRITE_SEED   0x4077
#define BURST        16

#ifdef GUEST

#include "guest-tests/runtime/acpi.h"
#include "guest-tests/runtime/blk.h"
#include "guest-tests/runtime/board.h"

#define TIMEOUT_MS 20000
#define PLACE      0xd0000000u
#define PORTS      0x9000u
#define CHUNK      16384

static struct blk disk;
static unsigned int slot; /* of the last disk that came */
static volatile uint8_t events;
static volatile unsigned int n_events;
static uint32_t up, down;
static uint8_t data[CHUNK] __attribute__((aligned(16)));
static struct blk_request requests[BURST];

static void ged(void *arg)
{
	(void)arg;
	events |= inb(BOARD_GED_PORT);
	n_events++;
}

/* As _EVT would: on the event both registers are read. */
static bool told(void)
{
	if (!(events & BOARD_GED_PCI_HOTPLUG))
		return false;
	irq_disable();
	events &= (uint8_t)~BOARD_GED_PCI_HOTPLUG;
	irq_enable();
	up |= inl(BOARD_HOTPLUG_UP);
	down |= inl(BOARD_HOTPLUG_DOWN);
	return true;
}

static unsigned int only_bit(uint32_t bits)
{
	unsigned int i = 0;

	GUEST_ASSERT(bits && !(bits & (bits - 1)), "slots 0x%x", bits);
	while (!(bits & 1u << i))
		i++;
	return i;
}

static bool is_up(void)
{
	(void)told();
	return up;
}

static bool is_down(void)
{
	(void)told();
	return down;
}

static struct pci_device in_slot(unsigned int number)
{
	return (struct pci_device){.slot = (uint8_t)number};
}

static bool is_there(unsigned int number)
{
	struct pci_device dev = in_slot(number);

	GUEST_ASSERT(pci_port_read(&dev, 0, 4) == pci_ecam_read(&dev, 0, 4), "the doors differ");
	return pci_read16(&dev, PCI_VENDOR) != 0xffff;
}

/* It comes as after a cold power-on: it decodes nothing, and its BARs are nowhere. */
static void place(void)
{
	struct pci_device dev = in_slot(slot);
	uint32_t size;

	GUEST_ASSERT(is_there(slot), "nothing is in slot %u", slot);
	GUEST_ASSERT(pci_read16(&dev, PCI_COMMAND) == 0, "command 0x%x",
		     pci_read16(&dev, PCI_COMMAND));
	GUEST_ASSERT((pci_read32(&dev, PCI_BAR0) & ~0xfu) == 0, "BAR 0 is 0x%x",
		     pci_read32(&dev, PCI_BAR0));
	GUEST_ASSERT((pci_read32(&dev, PCI_BAR0 + 4) & ~3u) == 0, "BAR 1 is 0x%x",
		     pci_read32(&dev, PCI_BAR0 + 4));
	pci_port_write(&dev, PCI_BAR0, 4, ~0u);
	size = ~(pci_read32(&dev, PCI_BAR0) & ~0xfu) + 1;
	GUEST_ASSERT(size >= 4096, "BAR 0 has 0x%x", size);
	pci_port_write(&dev, PCI_BAR0, 4, PLACE + slot * 0x100000);
	if (pci_read32(&dev, PCI_BAR0 + 4) & 1)
		pci_port_write(&dev, PCI_BAR0 + 4, 4, PORTS + slot * 0x100);
	pci_port_write(&dev, PCI_COMMAND, 2,
		       PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

/* The disk's number among those there are, in the order of their slots. */
static unsigned int nth(unsigned int number)
{
	struct pci_device dev;
	unsigned int n = 0;

	for (bool more = pci_next(&dev, true); more && dev.slot < number;
	     more = pci_next(&dev, false))
		n += dev.vendor == 0x1af4 && dev.device == 0x1040 + VIRTIO_ID_BLK;
	return n;
}

static void fill(uint8_t *p, size_t len, uint64_t seed)
{
	for (size_t i = 0; i < len; i += 8)
		*(uint64_t *)(p + i) = random_next(&seed);
}

static void use(void)
{
	struct fletcher sum = {0};
	struct virtq *q = &disk.queues[0];

	GUEST_ASSERT(blk_find(&disk, nth(slot)), "no disk in slot %u", slot);
	GUEST_ASSERT(disk.dev.pci.slot == slot, "slot %u", disk.dev.pci.slot);
	blk_start(&disk, BLK_FEATURES | VIRTIO_RING_FEATURES, false);
	for (uint64_t at = 0; at < disk.n_sectors; at += CHUNK / BLK_SECTOR) {
		GUEST_ASSERT(blk_do(q, BLK_IN, at, data, CHUNK) == BLK_OK, "%lu", at);
		fletcher_add(&sum, data, CHUNK);
	}
	note("checksum %016lx%016lx", sum.a, sum.b);
	for (unsigned int i = 0; i < disk.n_queues; i++) {
		fill(data, BLK_SECTOR, WRITE_SEED + slot);
		GUEST_ASSERT(blk_do(&disk.queues[i], BLK_OUT, WRITE_SECTOR + i, data, BLK_SECTOR) ==
				     BLK_OK,
			     "write by queue %u", i);
	}
	GUEST_ASSERT(blk_do(q, BLK_FLUSH, 0, NULL, 0) == BLK_OK, "flush");
	note("used %u", disk.n_queues);
}

static void gone(unsigned int number)
{
	GUEST_ASSERT(!is_there(number), "slot %u is not empty", number);
	GUEST_ASSERT(mmio_read32(PLACE + number * 0x100000) == ~0u, "its BAR answers");
	note("ejected %u", number);
}

static void eject(unsigned int number)
{
	outl(BOARD_HOTPLUG_EJECT, 1u << number);
	gone(number);
}

/* Requests are under way when the guest lets go, and nobody resets the device. */
static void burst(void)
{
	struct virtq *q = &disk.queues[0];

	for (unsigned int i = 0; i < BURST; i++)
		blk_submit(q, &requests[i], i % 2 ? BLK_IN : BLK_OUT, 32 + i, data + i * BLK_SECTOR,
			   BLK_SECTOR);
	virtq_kick(q);
	eject(slot);
}

static unsigned int number_in(const char *line)
{
	unsigned int n = 0;

	while (*line && *line != ' ')
		line++;
	for (line += *line != 0; *line >= '0' && *line <= '9'; line++)
		n = n * 10 + (unsigned int)(*line - '0');
	return n;
}

static bool is_word(const char *line, const char *word)
{
	size_t len = strlen(word);

	return memcmp(line, word, len) == 0 && (line[len] == 0 || line[len] == ' ');
}

static void obey(const char *line)
{
	if (is_word(line, "come")) {
		GUEST_ASSERT(WAIT_UNTIL(is_up(), TIMEOUT_MS), "no disk came");
		slot = only_bit(up);
		up = 0;
		note("slot %u", slot);
	} else if (is_word(line, "place")) {
		place();
		note("placed");
	} else if (is_word(line, "use")) {
		use();
	} else if (is_word(line, "slot")) {
		slot = number_in(line);
		note("slot %u", slot);
	} else if (is_word(line, "asked")) {
		GUEST_ASSERT(WAIT_UNTIL(is_down(), TIMEOUT_MS), "nobody asked");
		note("asked %u", only_bit(down));
		down = 0;
	} else if (is_word(line, "let-go")) {
		virtio_reset(&disk.dev);
		eject(slot);
	} else if (is_word(line, "eject")) {
		eject(number_in(line));
	} else if (is_word(line, "keep")) { /* an eject that is not the guest's to make */
		outl(BOARD_HOTPLUG_EJECT, 1u << number_in(line));
		GUEST_ASSERT(is_there(number_in(line)), "it went");
		note("kept");
	} else if (is_word(line, "burst")) {
		burst();
	} else if (is_word(line, "count")) {
		note("disks %u", nth(32));
	} else if (is_word(line, "reset")) {
		reset_by_acpi();
	} else {
		GUEST_ASSERT(false, "what is %s?", line);
	}
}

static void commands(struct guest_boot *boot)
{
	char line[32];

	(void)boot;
	GUEST_ASSERT(acpi_dsdt_mentions("_EJ0") && acpi_dsdt_mentions("_SUN"), "DSDT");
	GUEST_ASSERT(inl(BOARD_HOTPLUG_UP) == 0 && inl(BOARD_HOTPLUG_DOWN) == 0, "pending");
	serial_listen();
	ioapic_route(BOARD_GED_GSI, irq_alloc(ged, NULL), apic_id());
	note("ready");
	for (;;) {
		GUEST_ASSERT(serial_read_line(line, sizeof(line), 60000), "no word from the host");
		if (is_word(line, "end"))
			return;
		obey(line);
	}
}

void guest_main(struct guest_boot *boot)
{
	guest_case("commands", commands, boot);
}

#else

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "guest-tests/host/command.h"
#include "guest-tests/host/harness.h"

#define SECTOR     512
#define FIRST_SLOT 8 /* disk0's */
#define DISKS_MAX  16
#define LINE_MAX   65536
#define FDS_MAX    4
#define SETTLE_MS  3000

static struct vm *vm;
static int control = -1, events = -1;

/* --- the control socket, with descriptors --- */

static void send_with_fds(const char *text, const int *fds, unsigned int n_fds)
{
	struct iovec iov = {.iov_base = (void *)text, .iov_len = strlen(text)};
	union {
		char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} rights = {0};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	if (n_fds) {
		struct cmsghdr *h;

		msg.msg_control = rights.bytes;
		msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		h = CMSG_FIRSTHDR(&msg);
		h->cmsg_level = SOL_SOCKET;
		h->cmsg_type = SCM_RIGHTS;
		h->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(h), fds, n_fds * sizeof(int));
	}
	CHECK(sendmsg(control, &msg, MSG_NOSIGNAL) == (ssize_t)iov.iov_len, "%s", strerror(errno));
}

static json_t *line_of(int fd)
{
	static char line[LINE_MAX];
	size_t n = 0;
	json_t *json;

	do
		CHECK(n < sizeof(line) - 1 && recv(fd, line + n, 1, 0) == 1, "no answer: %s",
		      strerror(errno));
	while (line[n++] != '\n');
	line[n] = 0;
	json = json_loads(line, JSON_REJECT_DUPLICATES, NULL);
	CHECK(json, "no JSON: %s", line);
	return json;
}

static void disk_add_fds(const char *file, const char *more, const int *fds, unsigned int n_fds)
{
	char text[1024];

	snprintf(text, sizeof(text),
		 "{\"id\":1,\"method\":\"disk-add\",\"params\":{\"disk\":{\"path\":\"%s\"%s}}}\n",
		 file, more);
	send_with_fds(text, fds, n_fds);
}

static int file_open(const char *file, int flags)
{
	int fd = open(file, flags | O_CLOEXEC);

	CHECK(fd >= 0, "%s: %s", file, strerror(errno));
	return fd;
}

static void disk_add_send(const char *file, const char *more, unsigned int n_fds)
{
	int fd = file_open(file, strstr(more, "readonly") ? O_RDONLY : O_RDWR);
	int fds[FDS_MAX] = {fd, fd, fd, fd};

	disk_add_fds(file, more, fds, n_fds);
	close(fd);
}

static void answer_ok(const char *what)
{
	json_t *answer = line_of(control);

	CHECK(json_object_get(answer, "result"), "%s: %s", what,
	      json_string_value(json_object_get(json_object_get(answer, "error"), "text")));
	json_decref(answer);
}

static void answer_refused(const char *what, const char *code, const char *words)
{
	json_t *answer = line_of(control), *error = json_object_get(answer, "error");
	const char *is = json_string_value(json_object_get(error, "code"));
	const char *says = json_string_value(json_object_get(error, "text"));

	printf("%s: %s, %s\n", what, is ? is : "accepted", says ? says : "");
	CHECK(is && strcmp(is, code) == 0 && says && strstr(says, words),
	      "%s: it should be %s and say \"%s\"", what, code, words);
	json_decref(answer);
}

static void answer_added(unsigned int number)
{
	char name[16];
	json_t *answer = line_of(control), *result = json_object_get(answer, "result");

	snprintf(name, sizeof(name), "disk%u", number);
	CHECK(result, "%s is refused: %s", name,
	      json_string_value(json_object_get(json_object_get(answer, "error"), "text")));
	CHECK(strcmp(json_string_value(json_object_get(result, "disk")), name) == 0, "it is %s",
	      json_string_value(json_object_get(result, "disk")));
	CHECK(json_integer_value(json_object_get(result, "slot")) == FIRST_SLOT + number, "slot");
	json_decref(answer);
}

static void add(const char *file, const char *more, unsigned int number)
{
	disk_add_send(file, more, 1);
	answer_added(number);
}

static void remove_send(const char *disk, unsigned int timeout_ms)
{
	char text[200];

	snprintf(text, sizeof(text),
		 "{\"id\":1,\"method\":\"disk-remove\",\"params\":{\"disk\":\"%s\",\"timeout-ms\":"
		 "%u}}\n",
		 disk, timeout_ms);
	send_with_fds(text, NULL, 0);
}

static void expect_event(const char *name, unsigned int number)
{
	json_t *event = line_of(events);
	const char *is = json_string_value(json_object_get(event, "event"));
	const char *disk = json_string_value(json_object_get(event, "disk"));
	char wanted[16];

	snprintf(wanted, sizeof(wanted), "disk%u", number);
	printf("event: %s %s\n", is ? is : "none", disk ? disk : "");
	CHECK(is && strcmp(is, name) == 0, "event %s, not %s", is ? is : "none", name);
	CHECK(disk && strcmp(disk, wanted) == 0, "of %s, not %s", disk ? disk : "none", wanted);
	json_decref(event);
}

static void expect_plain_event(const char *name)
{
	json_t *event = line_of(events);

	CHECK(strcmp(json_string_value(json_object_get(event, "event")), name) == 0, "event %s",
	      json_string_value(json_object_get(event, "event")));
	json_decref(event);
}

/* --- the guest, the files, the VMM --- */

static const char *file_of(unsigned int number)
{
	static char path[300];
	char name[16];

	snprintf(name, sizeof(name), "late%u", number);
	snprintf(path, sizeof(path), "%s", test_file(name));
	return path;
}

static unsigned int tell(const char *word, const char *key)
{
	char line[40];

	snprintf(line, sizeof(line), "%s\n", word);
	vm_send(vm, line);
	return (unsigned int)atoi(vm_note(vm, key));
}

static void tell_number(const char *word, unsigned int number, const char *key)
{
	char line[40];

	snprintf(line, sizeof(line), "%s %u", word, number);
	tell(line, key);
}

static uint64_t next_word(uint64_t *x)
{
	*x ^= *x >> 12;
	*x ^= *x << 25;
	*x ^= *x >> 27;
	return *x * 0x2545f4914f6cdd1dull;
}

static void check_written(const char *file, unsigned int slot, unsigned int n_queues)
{
	size_t size;
	uint8_t *now = file_read(file, &size);

	for (unsigned int i = 0; i < n_queues; i++) {
		uint64_t seed = WRITE_SEED + slot;

		for (unsigned int at = 0; at < SECTOR; at += 8) {
			uint64_t word = next_word(&seed);

			CHECK(memcmp(now + (WRITE_SECTOR + i) * SECTOR + at, &word, 8) == 0,
			      "byte %u of sector %u", at, WRITE_SECTOR + i);
		}
	}
	free(now);
}

/* The guest reads what is in this file, and writes. */
static void use(const char *file, unsigned int n_queues)
{
	struct fletcher sum = {0};
	char text[40];
	size_t size;
	uint8_t *before = file_read(file, &size);
	const char *said;

	fletcher_add(&sum, before, size);
	free(before);
	snprintf(text, sizeof(text), "%016lx%016lx", sum.a, sum.b);
	vm_send(vm, "use\n");
	said = vm_note(vm, "checksum");
	CHECK(strcmp(said, text) == 0, "the guest read %s, the file is %s", said, text);
	CHECK(atoi(vm_note(vm, "used")) == (int)n_queues, "queues");
}

static void use_and_check(const char *file, unsigned int slot, unsigned int n_queues)
{
	use(file, n_queues);
	check_written(file, slot, n_queues);
}

static unsigned int count_fds(pid_t pid)
{
	char path[64];
	unsigned int n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	if (!dir)
		return 0;
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

/* Nothing of a disk is left: not a descriptor, and not the lock. */
static void check_fds(unsigned int before, const char *after)
{
	unsigned int n = 0;

	for (int i = 0; i < SETTLE_MS; i++) {
		n = count_fds(vm_vmm(vm));
		if (n == before)
			return;
		poll(NULL, 0, 1);
	}
	CHECK(n == before, "after %s the VMM has %u descriptors, before it had %u", after, n,
	      before);
}

static bool has_device(const char *name)
{
	json_t *counters = vm_call(vm, "counters", NULL);
	bool has = json_object_get(json_object_get(counters, "devices"), name);

	json_decref(counters);
	return has;
}

/* --- cases --- */

static void comes(unsigned int number, const char *more, unsigned int n_queues)
{
	add(file_of(number), more, number);
	expect_event("disk-added", number);
	CHECK(tell("come", "slot") == FIRST_SLOT + number, "the wrong slot");
	tell("place", "placed");
	use_and_check(file_of(number), FIRST_SLOT + number, n_queues);
	printf("disk%u came\n", number);
}

static void goes(unsigned int number, const char *how)
{
	char name[16];

	snprintf(name, sizeof(name), "disk%u", number);
	remove_send(name, 10000);
	CHECK(tell("asked", "asked") == FIRST_SLOT + number, "another was asked for");
	CHECK(has_device(name), "it went before the guest let go");
	tell(how, "ejected");
	answer_ok("disk-remove");
	expect_event("disk-removed", number);
	CHECK(!has_device(name), "it is still there");
	printf("disk%u went (%s)\n", number, how);
}

static void comes_and_goes(void)
{
	unsigned int fds = count_fds(vm_vmm(vm));

	for (int i = 0; i < 3; i++) {
		comes(1, "", 1);
		goes(1, "let-go");
		check_fds(fds, "a disk that came and went");
	}
	comes(1, ",\"queues\":4", 4);
	goes(1, "let-go");
	check_fds(fds, "a disk of several queues");
	comes(1, "", 1);
	goes(1, "burst");
	check_fds(fds, "a disk that went with requests under way");
	/* What waits for its turn does not hold it. */
	comes(1, ",\"limit\":{\"iops\":20}", 1);
	goes(1, "burst");
	check_fds(fds, "a disk that went with requests waiting");
}

/* The guest does nothing for a while; the second request finds it as it was. */
static void keeps_it(void)
{
	comes(1, "", 1);
	remove_send("disk1", 300);
	answer_refused("a guest that keeps the disk", "ETIMEDOUT", "has not let go of disk1");
	CHECK(has_device("disk1"), "it went");
	CHECK(tell("asked", "asked") == FIRST_SLOT + 1, "it was not asked");
	use_and_check(file_of(1), FIRST_SLOT + 1, 1);
	remove_send("disk1", 0);
	answer_ok("disk-remove that does not wait");
	CHECK(tell("asked", "asked") == FIRST_SLOT + 1, "it was not asked again");
	tell("let-go", "ejected");
	expect_event("disk-removed", 1);
}

/* What the guest was asked for goes with its reset. */
static void reset_takes_it(void)
{
	comes(1, "", 1);
	remove_send("disk1", 0);
	answer_ok("disk-remove");
	CHECK(tell("count", "disks") == 2, "disks");
	vm_send(vm, "reset\n");
	expect_plain_event("reset");
	expect_plain_event("running");
	expect_event("disk-removed", 1);
	vm_note(vm, "ready");
	CHECK(tell("count", "disks") == 1, "it is there after the reset");
}

/* One that stays is at home after a reset, where a guest without firmware uses it. */
static void stays_over_a_reset(void)
{
	comes(1, "", 1);
	vm_send(vm, "reset\n");
	expect_plain_event("reset");
	expect_plain_event("running");
	vm_note(vm, "ready");
	tell_number("slot", FIRST_SLOT + 1, "slot");
	use_and_check(file_of(1), FIRST_SLOT + 1, 1);
	goes(1, "let-go");
}

static void guest_ejects_by_itself(void)
{
	tell_number("eject", FIRST_SLOT, "ejected");
	expect_event("disk-removed", 0);
	CHECK(!has_device("disk0"), "disk0 is still there");
	/* Console, rng, an empty slot and the bridge are not the guest's to give away. */
	tell_number("keep", 1, "kept");
	tell_number("keep", 2, "kept");
	tell_number("keep", 0, "kept");
	CHECK(tell("count", "disks") == 0, "disks");
	comes(0, "", 1);
}

static void refusals(void)
{
	unsigned int fds = count_fds(vm_vmm(vm));

	disk_add_send(file_of(1), "", 0);
	answer_refused("no descriptor", "EBADF", "0 descriptors");
	disk_add_send(file_of(1), "", 2);
	answer_refused("two descriptors", "EBADF", "2 descriptors");
	disk_add_send(file_of(1), ",\"queues\":9", 1);
	answer_refused("nine queues", "EINVAL", "queues");
	disk_add_send(file_of(1), ",\"serial\":\"\\u0007\"", 1);
	answer_refused("a bell", "EINVAL", "serial");
	disk_add_send("/dev/null", "", 1);
	answer_refused("no disk", "EINVAL", "neither a file nor a block device");
	disk_add_send(file_of(0), "", 1);
	answer_refused("a disk in use", "EBUSY", "another VM or tool");
	send_with_fds("{\"method\":\"disk-add\"}\n", NULL, 0);
	answer_refused("nothing", "EINVAL", "disk");
	remove_send("disk1", 10);
	answer_refused("a disk that is not there", "ENODEV", "disk1");
	remove_send("console", 10);
	answer_refused("no disk", "ENODEV", "console");
	check_fds(fds, "refusals");
}

/* All places, and one more. */
static void fills_up(void)
{
	unsigned int fds = count_fds(vm_vmm(vm));

	for (unsigned int i = 1; i < DISKS_MAX; i++) {
		add(file_of(i), i % 2 ? ",\"readonly\":true" : "", i);
		expect_event("disk-added", i);
		CHECK(tell("come", "slot") == FIRST_SLOT + i, "the wrong slot");
	}
	disk_add_send(file_of(DISKS_MAX), "", 1);
	answer_refused("one disk too many", "ENOSPC", "no more than that");
	CHECK(tell("count", "disks") == DISKS_MAX, "disks");
	for (unsigned int i = 1; i < DISKS_MAX; i++) {
		tell_number("eject", FIRST_SLOT + i, "ejected");
		expect_event("disk-removed", i);
	}
	CHECK(tell("count", "disks") == 1, "disks");
	check_fds(fds, "sixteen disks");
}

/* A client that goes away while it waits leaves nothing behind. */
static void impatient_client(void)
{
	unsigned int fds = count_fds(vm_vmm(vm)) - 1;

	disk_add_send(file_of(1), "", 1);
	close(control);
	expect_event("disk-added", 1);
	control = vm_connect(vm);
	CHECK(tell("come", "slot") == FIRST_SLOT + 1, "slot");
	tell("place", "placed");
	remove_send("disk1", 60000);
	CHECK(tell("asked", "asked") == FIRST_SLOT + 1, "slot");
	close(control);
	tell_number("eject", FIRST_SLOT + 1, "ejected");
	expect_event("disk-removed", 1);
	check_fds(fds, "a client that went away");
	control = vm_connect(vm);
}

static void paused(void)
{
	json_decref(vm_call(vm, "pause", NULL));
	expect_plain_event("paused");
	add(file_of(1), "", 1);
	expect_event("disk-added", 1);
	json_decref(vm_call(vm, "resume", NULL));
	expect_plain_event("running");
	CHECK(tell("come", "slot") == FIRST_SLOT + 1, "slot");
	tell("place", "placed");
	use_and_check(file_of(1), FIRST_SLOT + 1, 1);
	/* Saved, torn down and loaded like any other. */
	json_decref(vm_call(vm, "device-cycle", json_pack("{s:s}", "device", "disk1")));
	expect_plain_event("running");
	json_decref(vm_call(vm, "device-cycle", json_pack("{s:s}", "device", "pci-hotplug")));
	expect_plain_event("running");
	remove_send("disk1", 10000);
	CHECK(tell("asked", "asked") == FIRST_SLOT + 1, "slot");
	tell("let-go", "ejected");
	answer_ok("disk-remove");
	expect_event("disk-removed", 1);
}

static void disk_tool(const char *const *words)
{
	const char *argv[12] = {getenv("CORRAL"), "disk"};
	struct command_result result;

	for (unsigned int i = 0; words[i]; i++)
		argv[i + 2] = words[i];
	command_run(&result, argv);
	CHECK(result.status == 0, "corral disk %s: %s", words[0], result.err);
}

/* An overlay of a raw file: what is read is that file's, what is written is not. */
static void overlay(void)
{
	static char base[300], top[300], after[300];
	unsigned int fds = count_fds(vm_vmm(vm));
	const char *make[] = {"clone", base, top, "--format", "raw", NULL};
	const char *flatten[] = {"convert", top,   after,       "--from", "qcow2",
				 "--to",    "raw", "--backing", "allow",  NULL};
	char more[500];
	int both[2];

	snprintf(base, sizeof(base), "%s", file_of(2));
	snprintf(top, sizeof(top), "%s", test_file("top.qcow2"));
	snprintf(after, sizeof(after), "%s", test_file("after.raw"));
	disk_tool(make);
	both[0] = file_open(top, O_RDWR);
	both[1] = file_open(base, O_RDONLY);
	snprintf(more, sizeof(more),
		 ",\"format\":\"qcow2\",\"backing\":\"allow\",\"queues\":2,\"chain\":[{\"path\":"
		 "\"%s\",\"format\":\"raw\"}]",
		 base);
	disk_add_fds(top, more, both, 1);
	answer_refused("an image without what is under it", "EBADF", "it takes 2");
	disk_add_fds(top, more, both, 2);
	close(both[0]);
	close(both[1]);
	answer_added(1);
	expect_event("disk-added", 1);
	CHECK(tell("come", "slot") == FIRST_SLOT + 1, "slot");
	tell("place", "placed");
	use(base, 2);
	goes(1, "burst");
	check_fds(fds, "an overlay");
	disk_tool(flatten);
	check_written(after, FIRST_SLOT + 1, 2);
}

static void start(const struct vm_config *config)
{
	vm = vm_start(config);
	vm_note(vm, "ready");
	control = vm_connect(vm);
	events = vm_connect(vm);
	CHECK(send(events, "{\"method\":\"events\"}\n", 20, MSG_NOSIGNAL) == 20, "events");
	json_decref(line_of(events));
}

static void end(void)
{
	vm_send(vm, "end\n");
	CHECK(vm_judge(vm) == TEST_PASS, "the guest");
	close(control);
	close(events);
}

int main(int argc, char **argv)
{
	struct vm_config config = {0};

	test_init(argc, argv);
	if (vm_is_peer())
		test_skip("the register block is Corral's");
	for (unsigned int i = 0; i <= DISKS_MAX; i++)
		file_fill(file_of(i), DISK_SIZE, i + 1);
	file_fill(test_file("disk"), DISK_SIZE, 99);
	config.disks[0] = (struct vm_disk_config){.path = test_file("disk"), .n_queues = 2};
	start(&config);
	comes_and_goes();
	keeps_it();
	reset_takes_it();
	stays_over_a_reset();
	guest_ejects_by_itself();
	refusals();
	fills_up();
	impatient_client();
	paused();
	overlay();
	end();
	/* A VM without disks has no I/O thread: then the main loop serves them. */
	config = (struct vm_config){0};
	start(&config);
	comes(0, ",\"queues\":2", 2);
	goes(0, "burst");
	comes(0, "", 1);
	goes(0, "let-go");
	/* It ends with a disk that came late, and with one that is about to go. */
	comes(0, "", 1);
	comes(1, "", 1);
	remove_send("disk1", 60000);
	CHECK(tell("asked", "asked") == FIRST_SLOT + 1, "slot");
	end();
	return TEST_PASS;
}

#endif
