/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What changes behind a disk while its guest uses it: its store fills up and is given room again,
 * it is snapshotted while it is written, it grows. The host's files are the truth: each image that
 * came to stand under another must stay as it was, and the last chain, made into a raw file, holds
 * what the guest says it wrote.
 */
#define TEMPLATE_SIZE (1024 * 1024)
#define DISK_SIZE     (4 * 1024 * 1024)
#define GROWN_SIZE    (6 * 1024 * 1024)
#define FULL_SIZE     (64u << 20) /* of the disk; its store has STORE_SIZE */
#define STORE_SIZE    "8m"
#define FULL_CHUNKS   192 /* of FULL_CHUNK bytes are written there: more than the store has */
#define FULL_CHUNK    65536
#define FULL_PAUSE    80 /* chunks after which the guest waits, so that low space is seen */
#define BLOCK         4096
#define N_BLOCKS      96
#define BATCH         8 /* blocks under way at a time */
#define RAW_SIZE      (256 * 1024)
#define FIRST_BLOCK   200 /* some in the template, some behind its end */

#ifdef GUEST

#include "guest-tests/runtime/apic.h"
#include "guest-tests/runtime/blk.h"

static struct blk full, raw, disk;
static uint8_t data[FULL_CHUNK] __attribute__((aligned(4096)));
static volatile unsigned int n_changes;

/* Each block is told from every other by its first words; filling it all would take too long. */
static void mark(uint8_t *p, size_t len, uint64_t number)
{
	for (size_t i = 0; i < len; i += BLOCK) {
		((uint64_t *)(p + i))[0] = number;
		((uint64_t *)(p + i))[1] = i;
	}
}

static void expect_mark(const uint8_t *p, size_t len, uint64_t number)
{
	for (size_t i = 0; i < len; i += BLOCK) {
		const uint64_t *words = (const uint64_t *)(p + i);

		GUEST_ASSERT(words[0] == number && words[1] == i, "block %lu: 0x%lx, not 0x%lx", i,
			     words[0], number);
	}
}

/* The guest asks once for each and gets an answer for each; that some had to wait it cannot see. */
static void full_store(struct guest_boot *boot)
{
	struct virtq *q = &full.queues[0];

	if (!cmdline_has(boot, "full"))
		GUEST_SKIP("the host cannot mount a small store");
	GUEST_ASSERT(blk_find(&full, 2), "no third disk");
	blk_start(&full, BLK_FEATURES | VIRTIO_RING_FEATURES, false);
	for (unsigned int i = 0; i < FULL_CHUNKS; i++) {
		if (i == FULL_PAUSE)
			sleep_ms(1300);
		mark(data, FULL_CHUNK, i + 1);
		GUEST_ASSERT(blk_do(q, BLK_OUT, i * (FULL_CHUNK / BLK_SECTOR), data, FULL_CHUNK) ==
				     BLK_OK,
			     "chunk %u", i);
		if (i % 32 == 31)
			GUEST_ASSERT(blk_do(q, BLK_FLUSH, 0, NULL, 0) == BLK_OK, "flush");
	}
	for (unsigned int i = 0; i < FULL_CHUNKS; i++) {
		GUEST_ASSERT(blk_do(q, BLK_IN, i * (FULL_CHUNK / BLK_SECTOR), data, FULL_CHUNK) ==
				     BLK_OK,
			     "chunk %u", i);
		expect_mark(data, FULL_CHUNK, i + 1);
	}
	note("filled");
}

static uint64_t block_sector(unsigned int i)
{
	return (uint64_t)(FIRST_BLOCK + i) * (BLOCK / BLK_SECTOR);
}

static void template_reads(struct guest_boot *boot)
{
	struct virtq *q = &disk.queues[0];
	struct fletcher sum = {0};

	(void)boot;
	for (unsigned int at = 0; at < TEMPLATE_SIZE; at += FULL_CHUNK) {
		GUEST_ASSERT(blk_do(q, BLK_IN, at / BLK_SECTOR, data, FULL_CHUNK) == BLK_OK,
			     "read");
		fletcher_add(&sum, data, FULL_CHUNK);
	}
	note("checksum %016lx%016lx", sum.a, sum.b);
}

/* A batch under way at once, one request a block; its number in each. */
static void write_batch(struct blk *to, uint64_t sector, uint64_t number)
{
	static struct blk_request requests[BATCH];
	struct virtq *q = &to->queues[number % to->n_queues];
	uint32_t len;

	for (unsigned int i = 0; i < BATCH; i++) {
		mark(data + i * BLOCK, BLOCK, number);
		blk_submit(q, &requests[i], BLK_OUT, sector + i * (BLOCK / BLK_SECTOR),
			   data + i * BLOCK, BLOCK);
	}
	virtq_kick(q);
	for (unsigned int i = 0; i < BATCH; i++)
		GUEST_ASSERT(virtq_wait(q, &len, BLK_TIMEOUT_MS) >= 0, "batch %lu", number);
	for (unsigned int i = 0; i < BATCH; i++)
		GUEST_ASSERT(requests[i].status == BLK_OK, "batch %lu: status %u", number,
			     requests[i].status);
}

static void expect_batch(struct blk *from, uint64_t sector, uint64_t number)
{
	GUEST_ASSERT(blk_do(&from->queues[0], BLK_IN, sector, data, BATCH * BLOCK) == BLK_OK,
		     "read");
	for (unsigned int i = 0; i < BATCH; i++)
		expect_mark(data + i * BLOCK, BLOCK, number);
}

/* Round after round, until the host has taken its snapshots. */
static void snapshots(struct guest_boot *boot)
{
	const unsigned int cycle = N_BLOCKS / BATCH;
	unsigned int rounds = 0;
	char line[16];

	(void)boot;
	serial_listen();
	note("writing");
	for (; !serial_has_input(); rounds++) {
		write_batch(&disk, block_sector(rounds % cycle * BATCH), rounds + 1);
		if (rounds % 16 == 15)
			GUEST_ASSERT(blk_do(&disk.queues[0], BLK_FLUSH, 0, NULL, 0) == BLK_OK,
				     "flush");
		/* What was written longest ago. */
		if (rounds >= cycle)
			expect_batch(&disk, block_sector((rounds + 1) % cycle * BATCH),
				     rounds + 2 - cycle);
	}
	GUEST_ASSERT(serial_read_line(line, sizeof(line), 1000), "a line");
	GUEST_ASSERT(rounds > cycle, "%u rounds only", rounds);
	note("rounds %u", rounds);
}

/* A raw file comes to stand under an overlay. */
static void raw_snapshot(struct guest_boot *boot)
{
	char line[16];

	(void)boot;
	GUEST_ASSERT(blk_find(&raw, 1), "no raw disk");
	blk_start(&raw, BLK_FEATURES | VIRTIO_RING_FEATURES, false);
	write_batch(&raw, 0, 1);
	write_batch(&raw, BATCH * BLOCK / BLK_SECTOR, 2);
	note("raw-written");
	GUEST_ASSERT(serial_read_line(line, sizeof(line), 15000), "a line");
	expect_batch(&raw, 0, 1);
	write_batch(&raw, 0, 3);
	expect_batch(&raw, 0, 3);
	expect_batch(&raw, BATCH * BLOCK / BLK_SECTOR, 2);
}

static void changed(void *arg)
{
	(void)arg;
	n_changes++;
}

static void grows(struct guest_boot *boot)
{
	struct virtq *q = &disk.queues[0];
	uint64_t last = GROWN_SIZE / BLK_SECTOR - 1;

	(void)boot;
	GUEST_ASSERT(blk_do(q, BLK_IN, last, data, BLK_SECTOR) == BLK_IOERR, "before it grew");
	note("waiting");
	WAIT_UNTIL(n_changes > 0, 15000);
	GUEST_ASSERT(n_changes, "no interrupt");
	GUEST_ASSERT(virtio_config_read64(&disk.dev, BLK_CONFIG_CAPACITY) == last + 1,
		     "%lu sectors", virtio_config_read64(&disk.dev, BLK_CONFIG_CAPACITY));
	GUEST_ASSERT(blk_do(q, BLK_IN, last, data, BLK_SECTOR) == BLK_OK, "read");
	GUEST_ASSERT(((uint64_t *)data)[0] == 0, "not zeroes");
	mark(data, BLOCK, 0x1a57);
	GUEST_ASSERT(blk_do(q, BLK_OUT, last + 1 - BLOCK / BLK_SECTOR, data, BLOCK) == BLK_OK,
		     "write");
	GUEST_ASSERT(blk_do(q, BLK_FLUSH, 0, NULL, 0) == BLK_OK, "flush");
}

void guest_main(struct guest_boot *boot)
{
	GUEST_ASSERT(blk_find(&disk, 0), "no disk");
	blk_start(&disk, BLK_FEATURES | VIRTIO_RING_FEATURES, false);
	virtio_config_irq(&disk.dev, changed, NULL);
	guest_case("template", template_reads, boot);
	guest_case("snapshots", snapshots, boot);
	guest_case("grows", grows, boot);
	guest_case("raw-snapshot", raw_snapshot, boot);
	guest_case("full-store", full_store, boot);
}

#else

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest-tests/host/command.h"
#include "guest-tests/host/harness.h"

#define N_SNAPSHOTS 3
#define PAUSES      2 /* for want of room */

static char vm_name[64], disk_tool[600];

static void run(const char *const *argv)
{
	static struct command_result result;

	command_run(&result, argv);
	CHECK(result.status == 0, "%s %s: %s", argv[0], argv[1], result.err);
	printf("host: %s", result.out);
}

#define RUN(...)    run((const char *const[]){__VA_ARGS__, NULL})

static struct fletcher sum_of(const char *path)
{
	struct fletcher sum = {0};
	size_t size;
	uint8_t *bytes = file_read(path, &size);

	fletcher_add(&sum, bytes, size);
	free(bytes);
	return sum;
}

static const char *store;

static void expect_sum(const char *path, struct fletcher sum)
{
	struct fletcher now = sum_of(path);

	CHECK(now.a == sum.a && now.b == sum.b, "%s has changed under its overlay", path);
}

/* Before the test's files go; the VM may still have some open. */
static void store_unmount(void)
{
	(void)umount2(store, MNT_DETACH);
}

/* In a namespace of our own, so that nothing stays however we end. False: not for us. */
static bool store_mount(const char *path)
{
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return false;
	CHECK(mkdir(path, 0755) == 0, "%s: %s", path, strerror(errno));
	store = path;
	atexit(store_unmount);
	return mount("store", path, "tmpfs", 0, "size=" STORE_SIZE) == 0;
}

/* The next event of that name; others are passed over. */
static json_t *event_wait(int fd, const char *name)
{
	static char text[65536];
	static size_t used;

	for (;;) {
		char *end = memchr(text, '\n', used);
		json_t *event;
		ssize_t n;

		if (!end) {
			n = recv(fd, text + used, sizeof(text) - used, 0);
			CHECK(n > 0, "no event \"%s\" comes", name);
			used += n;
			continue;
		}
		event = json_loadb(text, end - text, 0, NULL);
		used -= end + 1 - text;
		memmove(text, end + 1, used);
		if (json_is_string(json_object_get(event, "event")) &&
		    strcmp(json_string_value(json_object_get(event, "event")), name) == 0)
			return event;
		json_decref(event);
	}
}

static const char *word(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text ? text : "";
}

static int events_open(struct vm *vm)
{
	static const char line[] = "{\"method\": \"events\"}\n";
	int fd = vm_connect(vm);

	CHECK(send(fd, line, strlen(line), 0) == (ssize_t)strlen(line), "%s", strerror(errno));
	return fd;
}

/* The VM has paused for want of room; it is told so in three places. */
static void expect_trouble(struct vm *vm, int events)
{
	json_t *event = event_wait(events, "disk-error"), *status, *disks;
	const json_t *full;

	CHECK(!strcmp(word(event, "disk"), "disk2") && !strcmp(word(event, "error"), "ENOSPC"),
	      "%s: %s", word(event, "disk"), word(event, "error"));
	json_decref(event);
	json_decref(event_wait(events, "paused"));
	status = vm_call(vm, "status", NULL);
	CHECK(!strcmp(word(status, "state"), "paused"), "%s", word(status, "state"));
	json_decref(status);
	disks = vm_call(vm, "disks", NULL);
	full = json_array_get(json_object_get(disks, "disks"), 2);
	CHECK(word(full, "trouble")[0], "no trouble with %s", word(full, "name"));
	json_decref(disks);
}

static void check_full_store(struct vm *vm, int events)
{
	json_t *event = event_wait(events, "disk-full-soon");

	CHECK(!strcmp(word(event, "disk"), "disk2"), "%s", word(event, "disk"));
	CHECK(json_integer_value(json_object_get(event, "free")) < 4 << 20, "free");
	json_decref(event);
	expect_trouble(vm, events);
	/* What waits is saved and loaded; and no room yet. */
	json_decref(vm_call(vm, "device-cycle", json_pack("{s:s}", "device", "disk2")));
	for (int i = 1; i < PAUSES; i++) {
		json_decref(vm_call(vm, "resume", NULL));
		expect_trouble(vm, events);
	}
	CHECK(mount(NULL, store, NULL, MS_REMOUNT, "size=64m") == 0, "%s", strerror(errno));
	json_decref(vm_call(vm, "resume", NULL));
	vm_note(vm, "filled");
}

static void check_snapshots(struct vm *vm, const char *const *files, struct fletcher *sums)
{
	for (int i = 0; i < N_SNAPSHOTS; i++) {
		RUN(getenv("CORRAL"), "disk", "snapshot", "--vm", vm_name, "disk0", files[i + 1]);
		sums[i] = sum_of(files[i]);
		usleep(300000);
	}
	vm_send(vm, "stop\n");
}

/* What was written in the rounds, and the template elsewhere. */
static void check_content(const char *path, unsigned int rounds, const uint8_t *template)
{
	size_t size;
	uint8_t *now = file_read(path, &size);
	const uint64_t *last = (const uint64_t *)(now + GROWN_SIZE - BLOCK);

	CHECK(size == GROWN_SIZE, "%zu bytes", size);
	CHECK(memcmp(now, template, FIRST_BLOCK * BLOCK) == 0, "the template's beginning");
	for (unsigned int i = 0; i < N_BLOCKS; i++) {
		const uint64_t *words = (const uint64_t *)(now + (FIRST_BLOCK + i) * BLOCK);
		unsigned int cycle = N_BLOCKS / BATCH;
		uint64_t number = (rounds - 1 - i / BATCH) / cycle * cycle + i / BATCH + 1;

		CHECK(words[0] == number && words[1] == 0, "block %u: %lu, not %lu", i, words[0],
		      number);
	}
	CHECK(last[0] == 0x1a57, "what was written behind the old end");
	free(now);
}

static void check_template(struct vm *vm, const char *template)
{
	struct fletcher sum = sum_of(template);
	const char *said = vm_note(vm, "checksum");
	char text[40];

	snprintf(text, sizeof(text), "%016lx%016lx", sum.a, sum.b);
	CHECK(strcmp(said, text) == 0, "the guest read %s, the template is %s", said, text);
}

static void take_name(struct vm *vm)
{
	json_t *status = vm_call(vm, "status", NULL);

	snprintf(vm_name, sizeof(vm_name), "%s", word(status, "name"));
	json_decref(status);
}

static const char *disk_words(const char *path, const char *words)
{
	static char text[4][700];
	static int n;

	snprintf(text[n], sizeof(text[0]), "%s,%s", path, words);
	return text[n++];
}

int main(int argc, char **argv)
{
	const char *template, *raw, *raw_overlay, *files[N_SNAPSHOTS + 1], *whole;
	struct fletcher sums[N_SNAPSHOTS], raw_sum;
	struct vm_config config = {.timeout_s = 100};
	unsigned int rounds;
	uint8_t *before;
	struct vm *vm;
	char text[40];
	size_t size;
	bool mounted;
	int events, result;

	test_init(argc, argv);
	if (vm_is_peer())
		test_skip("the peer has no such methods");
	snprintf(disk_tool, sizeof(disk_tool), "%s-disk", getenv("CORRAL"));
	mounted = store_mount(test_file("store"));
	template = test_file("template");
	file_fill(template, TEMPLATE_SIZE, 0x7e3b1a7e);
	before = file_read(template, &size);
	files[0] = test_file("disk.qcow2");
	files[1] = test_file("snapshot1.qcow2");
	files[2] = test_file("snapshot2.qcow2");
	files[3] = test_file("snapshot3.qcow2");
	whole = test_file("whole");
	snprintf(text, sizeof(text), "%d", DISK_SIZE);
	RUN(disk_tool, "create", files[0], text, "--format", "qcow2", "--base", template,
	    "--base-format", "raw");
	raw = test_file("raw");
	raw_overlay = test_file("raw-overlay.qcow2");
	file_fill(raw, RAW_SIZE, 0x4a3);
	config.disks[1].path = raw;
	config.disks[0].n_queues = 2;
	config.disks[0].path =
		disk_words(files[0], "format=qcow2,backing=allow,limit=iops:4000:bps:1G");
	if (mounted) {
		char path[600];

		snprintf(path, sizeof(path), "%s/full.qcow2", store);
		snprintf(text, sizeof(text), "%u", FULL_SIZE);
		RUN(disk_tool, "create", path, text, "--format", "qcow2");
		config.disks[2].path = disk_words(path, "format=qcow2,low-space=4M");
		config.append = "full";
	}
	vm = vm_start(&config);
	check_template(vm, template);
	take_name(vm);
	events = events_open(vm);
	vm_note(vm, "writing");
	check_snapshots(vm, files, sums);
	rounds = (unsigned int)atoi(vm_note(vm, "rounds"));
	vm_note(vm, "waiting");
	snprintf(text, sizeof(text), "%d", GROWN_SIZE);
	RUN(getenv("CORRAL"), "disk", "resize", "--vm", vm_name, "disk0", text);
	RUN(getenv("CORRAL"), "stats", vm_name);
	vm_note(vm, "raw-written");
	RUN(getenv("CORRAL"), "disk", "snapshot", "--vm", vm_name, "disk1", raw_overlay);
	raw_sum = sum_of(raw);
	vm_send(vm, "go\n");
	if (mounted)
		check_full_store(vm, events);
	result = vm_judge(vm);
	for (int i = 0; i < N_SNAPSHOTS; i++) {
		expect_sum(files[i], sums[i]);
		RUN(disk_tool, "check", files[i], "--format", "qcow2");
	}
	expect_sum(raw, raw_sum);
	RUN(disk_tool, "check", raw_overlay, "--format", "qcow2");
	RUN(disk_tool, "convert", files[N_SNAPSHOTS], whole, "--from", "qcow2", "--to", "raw",
	    "--backing", "allow");
	check_content(whole, rounds, before);
	close(events);
	free(before);
	return result;
}

#endif
