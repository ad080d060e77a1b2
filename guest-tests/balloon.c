/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory balloon: what the guest gives up by number or reports as free is gone from the VMM's
 * resident memory at once and reads as zeroes afterwards; a new size asked for on the host reaches
 * the guest, and what the guest says and counts reaches the host.
 */
#define FILL_MIB  16
#define KEEP_MIB  48 /* of 64, when the host asks */
#define STAT_FREE 4
#define FIGURE    0x1234567

#ifdef GUEST

#include "guest-tests/runtime/apic.h"
#include "guest-tests/runtime/virtio.h"

#define TIMEOUT_MS    20000
#define F_STATS       (1ull << 1)
#define F_REPORTING   (1ull << 5)
#define BASE          0x1000000ul /* above everything of our own */
#define N_PAGES       (FILL_MIB * 256u)
#define LIST          256 /* numbers of one request */
#define N_RANGES      4
#define FLOOD_SEGS    8
#define CONFIG_TARGET 0
#define CONFIG_ACTUAL 4

enum { INFLATE, DEFLATE, STATISTICS, REPORTING, N_QUEUES };

static struct virtio_device dev;
static struct virtq queues[N_QUEUES];
static uint32_t list[LIST];
static volatile unsigned int n_changes;
static uint8_t stat[10];

static void changed(void *arg)
{
	(void)arg;
	n_changes++;
}

static void start(void)
{
	virtio_begin(&dev, VIRTIO_RING_FEATURES | F_STATS | F_REPORTING);
	GUEST_ASSERT(virtio_has(&dev, F_STATS | F_REPORTING), "features 0x%lx", dev.features);
	for (unsigned int i = 0; i < N_QUEUES; i++)
		virtq_init(&queues[i], &dev, i, 0, false);
	virtio_config_irq(&dev, changed, NULL);
	virtio_driver_ok(&dev);
}

static void fill(void)
{
	for (unsigned int i = 0; i < N_PAGES; i++)
		*(volatile uint64_t *)(BASE + i * PAGE_SIZE) = i + 1;
}

static unsigned int pages_not_zero(void)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < N_PAGES; i++)
		n += *(volatile uint64_t *)(BASE + i * PAGE_SIZE) != 0;
	return n;
}

/* Says what it has done and waits until the host has looked. */
static void tell(const char *what)
{
	char line[8];

	note("%s", what);
	GUEST_ASSERT(serial_read_line(line, sizeof(line), TIMEOUT_MS), "the host has gone");
}

static void send(unsigned int queue, void *data, uint32_t len)
{
	struct virtq_seg seg = {data, len};

	virtq_add(&queues[queue], &seg, 1, 0);
	virtq_kick(&queues[queue]);
	GUEST_ASSERT(virtq_wait(&queues[queue], NULL, TIMEOUT_MS) >= 0, "queue %u", queue);
}

static void move(unsigned int queue, gpa_t from, unsigned int n)
{
	for (unsigned int done = 0; done < n;) {
		unsigned int here = n - done < LIST ? n - done : LIST;

		for (unsigned int i = 0; i < here; i++)
			list[i] = (uint32_t)(from / PAGE_SIZE) + done + i;
		send(queue, list, here * 4);
		done += here;
	}
}

static void by_number(struct guest_boot *boot)
{
	(void)boot;
	start();
	fill();
	tell("filled 1");
	move(INFLATE, BASE, N_PAGES);
	tell("given 1");
	GUEST_ASSERT(pages_not_zero() == 0, "%u pages are not zero", pages_not_zero());
	move(DEFLATE, BASE, N_PAGES);
}

static void by_range(struct guest_boot *boot)
{
	struct virtq_seg segs[N_RANGES];

	(void)boot;
	for (unsigned int i = 0; i < N_RANGES; i++)
		segs[i] = (struct virtq_seg){(void *)(BASE + i * (N_PAGES / N_RANGES) * PAGE_SIZE),
					     N_PAGES / N_RANGES * PAGE_SIZE};
	fill();
	tell("filled 2");
	virtq_add(&queues[REPORTING], segs, 0, N_RANGES);
	virtq_kick(&queues[REPORTING]);
	GUEST_ASSERT(virtq_wait(&queues[REPORTING], NULL, TIMEOUT_MS) >= 0, "no answer");
	tell("given 2");
	GUEST_ASSERT(pages_not_zero() == 0, "%u pages are not zero", pages_not_zero());
}

/* Numbers of no memory, of the registers, of the end of the world: nothing comes of them. */
static void nonsense(struct guest_boot *boot)
{
	(void)boot;
	for (unsigned int i = 0; i < LIST; i++)
		list[i] = 0xc0000 + i * 0x3ff;
	list[LIST - 1] = ~0u;
	send(INFLATE, list, sizeof(list));
	send(DEFLATE, list, sizeof(list));
	send(INFLATE, list, 3);
	GUEST_ASSERT(!(virtio_status(&dev) & VIRTIO_STATUS_NEEDS_RESET), "status");
}

static void target(struct guest_boot *boot)
{
	unsigned int before = n_changes;
	uint32_t wanted;

	(void)boot;
	GUEST_ASSERT(virtio_config_read32(&dev, CONFIG_TARGET) == 0, "target %u",
		     virtio_config_read32(&dev, CONFIG_TARGET));
	note("shrink me");
	GUEST_ASSERT(WAIT_UNTIL(n_changes != before, TIMEOUT_MS), "no interrupt");
	wanted = virtio_config_read32(&dev, CONFIG_TARGET);
	GUEST_ASSERT(wanted == (64 - KEEP_MIB) * 256, "target %u", wanted);
	move(INFLATE, BASE, wanted);
	mmio_write32(dev.config + CONFIG_ACTUAL, wanted);
	GUEST_ASSERT(virtio_config_read32(&dev, CONFIG_ACTUAL) == wanted, "actual %u",
		     virtio_config_read32(&dev, CONFIG_ACTUAL));
	tell("shrunk enough");
}

static void offer_statistics(uint64_t free_bytes)
{
	struct virtq_seg seg = {stat, sizeof(stat)};

	stat[0] = STAT_FREE;
	stat[1] = 0;
	memcpy(stat + 2, &free_bytes, sizeof(free_bytes));
	virtq_add(&queues[STATISTICS], &seg, 1, 0);
	virtq_kick(&queues[STATISTICS]);
}

/* Each question of the host gives the buffer back; each answer is one more than the last. */
static void statistics(struct guest_boot *boot)
{
	(void)boot;
	offer_statistics(FIGURE);
	note("counting");
	for (unsigned int i = 1; i <= 3; i++) {
		GUEST_ASSERT(virtq_wait(&queues[STATISTICS], NULL, TIMEOUT_MS) >= 0, "%u: no word",
			     i);
		offer_statistics(FIGURE + i);
	}
	tell("counted");
}

/* The ring is kept full of single pages, each of which is a discard of its own. */
static void flood(struct guest_boot *boot)
{
	struct virtq *q = &queues[INFLATE];
	struct virtq_seg segs[FLOOD_SEGS];
	char line[8];

	(void)boot;
	for (unsigned int i = 0; i < LIST; i++)
		list[i] = (uint32_t)(BASE / PAGE_SIZE) + 2 * i;
	for (unsigned int i = 0; i < FLOOD_SEGS; i++)
		segs[i] = (struct virtq_seg){list, sizeof(list)};
	note("flooding");
	while (!serial_has_input()) {
		while (virtq_take(q, NULL) >= 0)
			;
		while (q->n_free >= FLOOD_SEGS)
			virtq_add(q, segs, FLOOD_SEGS, 0);
		virtq_kick(q);
	}
	GUEST_ASSERT(serial_read_line(line, sizeof(line), TIMEOUT_MS), "no line");
	/* What is under way is served to its end. */
	GUEST_ASSERT(POLL_UNTIL(q->used->idx == q->avail->idx, TIMEOUT_MS), "it stands still");
}

void guest_main(struct guest_boot *boot)
{
	serial_listen();
	GUEST_ASSERT(virtio_find(&dev, VIRTIO_ID_BALLOON, 0), "no balloon");
	guest_case("by-number", by_number, boot);
	guest_case("by-range", by_range, boot);
	guest_case("nonsense", nonsense, boot);
	guest_case("target", target, boot);
	guest_case("statistics", statistics, boot);
	guest_case("flood", flood, boot);
}

#else

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "guest-tests/host/harness.h"

#define MIB          ((uint64_t)1 << 20)
#define SOON_MS      2000
#define QUESTIONS_MS 10000
#define CALLS        100
#ifdef CORRAL_SANITIZED
#define CALL_US 100000 /* not what is measured there */
#else
#define CALL_US 20000
#endif

static struct vm *vm;

/* Of the VMM, as the host sees it. */
static uint64_t resident(void)
{
	uint64_t size, pages;
	char path[64];
	FILE *file;
	int n;

	snprintf(path, sizeof(path), "/proc/%d/statm", vm_vmm(vm));
	file = fopen(path, "re");
	CHECK(file, "cannot open %s", path);
	n = fscanf(file, "%" SCNu64 " %" SCNu64, &size, &pages);
	fclose(file);
	CHECK(n == 2, "%s is not readable", path);
	return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static json_int_t figure(const char *object, const char *name)
{
	json_t *counters = vm_call(vm, "counters", NULL);
	json_t *value = json_object_get(json_object_get(counters, "devices"), "balloon");
	json_int_t n;

	if (object)
		value = json_object_get(value, object);
	value = json_object_get(value, name);
	n = value ? json_integer_value(value) : -1;
	json_decref(counters);
	return n;
}

/* The guest fills its pages, gives them away, and the host has them back within two seconds. */
static void gives_back(const char *round, const char *counter)
{
	uint64_t full, now = 0;
	unsigned int ms = 0;

	CHECK(strcmp(vm_note(vm, "filled"), round) == 0, "another round");
	full = resident();
	CHECK(full >= FILL_MIB * MIB, "with full pages %llu bytes are resident",
	      (unsigned long long)full);
	vm_send(vm, "go\n");
	CHECK(strcmp(vm_note(vm, "given"), round) == 0, "another round");
	for (; ms < SOON_MS; ms += 10) {
		now = resident();
		if (now + (FILL_MIB - 1) * MIB <= full)
			break;
		poll(NULL, 0, 10);
	}
	printf("%s: %" PRIu64 " KiB resident, then %" PRIu64 " KiB after %u ms\n", counter,
	       full >> 10, now >> 10, ms);
	CHECK(ms < SOON_MS, "the pages are not the host's");
	CHECK(figure(NULL, counter) == FILL_MIB * (json_int_t)MIB, "%s: %lld", counter,
	      (long long)figure(NULL, counter));
	vm_send(vm, "go\n");
}

static void shrinks(void)
{
	json_int_t wanted = (64 - KEEP_MIB) * (json_int_t)MIB;

	vm_note(vm, "shrink");
	json_decref(
		vm_call(vm, "balloon", json_pack("{s:I}", "size", (json_int_t)(KEEP_MIB * MIB))));
	CHECK(figure(NULL, "target") == wanted, "target");
	vm_note(vm, "shrunk");
	CHECK(figure(NULL, "actual") == wanted, "actual");
	vm_send(vm, "go\n");
}

/* A look shows the last figure and asks for the next. */
static void counts(void)
{
	json_int_t is = 0;

	vm_note(vm, "counting");
	for (unsigned int ms = 0; ms < QUESTIONS_MS && is < FIGURE + 3; ms += 10) {
		is = figure("statistics", "free");
		CHECK(is == -1 || (is >= FIGURE && is <= FIGURE + 3), "free: %lld", (long long)is);
		poll(NULL, 0, 10);
	}
	CHECK(is == FIGURE + 3, "free: %lld", (long long)is);
	vm_note(vm, "counted");
	vm_send(vm, "go\n");
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static uint64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* A slow guest may take its time between two pieces of its flood. */
static void wait_for_more(json_int_t than)
{
	uint64_t end = now_us() + QUESTIONS_MS * 1000ull;

	while (figure(NULL, "given") <= than)
		CHECK(now_us() < end, "there was no flood");
}

/* The main loop serves the balloon, and others meanwhile. */
static void answers_in_a_flood(void)
{
	uint64_t us[CALLS];
	json_int_t before;

	vm_note(vm, "flooding");
	wait_for_more(figure(NULL, "given"));
	before = figure(NULL, "given");
	for (unsigned int i = 0; i < CALLS; i++) {
		uint64_t start = now_us();

		json_decref(vm_call(vm, "status", NULL));
		us[i] = now_us() - start;
	}
	wait_for_more(before);
	vm_send(vm, "enough\n");
	qsort(us, CALLS, sizeof(us[0]), compare);
	printf("answers in a flood: median %" PRIu64 " us, slowest %" PRIu64 " us\n", us[CALLS / 2],
	       us[CALLS - 1]);
	CHECK(us[CALLS / 2] < CALL_US, "the main loop is held up");
}

int main(int argc, char **argv)
{
	struct vm_config config = {.memory = "64M", .words = {"--balloon", "on"}};

	test_init(argc, argv);
	if (vm_is_peer())
		test_skip("the figures are Corral's");
	vm = vm_start(&config);
	gives_back("1", "given");
	gives_back("2", "reported");
	shrinks();
	counts();
	answers_in_a_flood();
	return vm_judge(vm);
}

#endif
