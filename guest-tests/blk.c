/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks, with the host's files as the truth: the first is read whole, written, zeroed and discarded
 * in places that the host half knows; the second is read-only. The layout of what is written is in
 * the constants that both halves see.
 */
#define DISK_SIZE       (256 * 1024)
#define READONLY_SIZE   (64 * 1024)
#define DISK_SERIAL     "guest-test-serial-20" /* 20 bytes: the longest there is, without a NUL */

#define WRITE_SECTOR    100
#define WRITE_SECTORS   8
#define WRITE_SEED      0x5eed
#define BATCH_SECTOR    200
#define BATCH           16
#define SPLIT_SECTOR    300
#define ZERO_SECTOR     320
#define ZERO_SECTORS    9
#define DISCARD_SECTOR  384
#define DISCARD_SECTORS 64

#ifdef GUEST

#include "guest-tests/runtime/blk.h"

#include "guest-tests/runtime/apic.h"

#define CHUNK 16384

static struct blk disk, readonly;
static uint8_t data[CHUNK] __attribute__((aligned(16)));
static struct blk_request requests[BATCH];

static void fill(uint8_t *p, size_t len, uint64_t seed)
{
	for (size_t i = 0; i < len; i += 8)
		*(uint64_t *)(p + i) = random_next(&seed);
}

static void expect_fill(const uint8_t *p, size_t len, uint64_t seed)
{
	for (size_t i = 0; i < len; i += 8) {
		uint64_t word = random_next(&seed);

		GUEST_ASSERT(*(const uint64_t *)(p + i) == word, "byte %lu: 0x%lx, not 0x%lx", i,
			     *(const uint64_t *)(p + i), word);
	}
}

static void checksum(struct guest_boot *boot)
{
	struct fletcher sum = {0};

	(void)boot;
	blk_start(&disk, BLK_FEATURES | VIRTIO_RING_FEATURES, false);
	GUEST_ASSERT(disk.n_sectors == DISK_SIZE / BLK_SECTOR, "%lu sectors", disk.n_sectors);
	for (uint64_t at = 0; at < disk.n_sectors; at += CHUNK / BLK_SECTOR) {
		GUEST_ASSERT(blk_do(&disk.queues[0], BLK_IN, at, data, CHUNK) == BLK_OK, "%lu", at);
		fletcher_add(&sum, data, CHUNK);
	}
	note("checksum %016lx%016lx", sum.a, sum.b);
}

static void write_flush_read(struct guest_boot *boot)
{
	struct virtq *q = &disk.queues[0];
	uint32_t len = WRITE_SECTORS * BLK_SECTOR;

	(void)boot;
	GUEST_ASSERT(virtio_has(&disk.dev, BLK_F_FLUSH), "no flush");
	fill(data, len, WRITE_SEED);
	GUEST_ASSERT(blk_do(q, BLK_OUT, WRITE_SECTOR, data, len) == BLK_OK, "write");
	GUEST_ASSERT(blk_do(q, BLK_FLUSH, 0, NULL, 0) == BLK_OK, "flush");
	memset(data, 0, len);
	GUEST_ASSERT(blk_do(q, BLK_IN, WRITE_SECTOR, data, len) == BLK_OK, "read");
	expect_fill(data, len, WRITE_SEED);
}

/* Writes a batch under one kick, each request a sector, then reads it back the same way. */
static void batch(struct virtq *q, enum blk_type type, uint64_t seed)
{
	for (unsigned int i = 0; i < BATCH; i++) {
		uint8_t *p = data + i * BLK_SECTOR;

		if (type == BLK_OUT)
			fill(p, 16, seed + i);
		else
			memset(p, 0, 16);
		blk_submit(q, &requests[i], type, BATCH_SECTOR + i, p, BLK_SECTOR);
	}
	virtq_kick(q);
	for (unsigned int i = 0; i < BATCH; i++)
		GUEST_ASSERT(virtq_wait(q, NULL, BLK_TIMEOUT_MS) >= 0, "%u of %u done", i, BATCH);
	for (unsigned int i = 0; i < BATCH; i++) {
		GUEST_ASSERT(requests[i].status == BLK_OK, "request %u: %u", i, requests[i].status);
		expect_fill(data + i * BLK_SECTOR, 16, seed + i);
	}
}

/* Every mix of ring features, by interrupt and by polling, more requests than the ring has places.
 */
static void ring_features(struct guest_boot *boot)
{
	static const uint64_t mixes[] = {0, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_EVENT_IDX,
					 VIRTIO_RING_FEATURES};

	(void)boot;
	for (unsigned int i = 0; i < 2 * ARRAY_SIZE(mixes); i++) {
		blk_start(&disk, BLK_F_MQ | mixes[i / 2], i & 1);
		GUEST_ASSERT(virtio_has(&disk.dev, mixes[i / 2]), "offers 0x%lx",
			     disk.dev.features);
		/* 64 places, of which a direct request takes three: the fifth batch wraps. */
		for (unsigned int j = 0; j < 2; j++) {
			batch(&disk.queues[0], BLK_OUT, 100 * i + 10 * j + 1);
			batch(&disk.queues[0], BLK_IN, 100 * i + 10 * j + 1);
		}
		batch(&disk.queues[0], BLK_IN, 100 * i + 11);
	}
}

static void queues(struct guest_boot *boot)
{
	(void)boot;
	blk_start(&disk, BLK_FEATURES | VIRTIO_RING_FEATURES, false);
	note("queues %u", disk.n_queues);
	for (unsigned int i = 0; i < disk.n_queues; i++)
		blk_submit(&disk.queues[i], &requests[i], BLK_IN, WRITE_SECTOR + i,
			   data + i * BLK_SECTOR, BLK_SECTOR);
	for (unsigned int i = 0; i < disk.n_queues; i++)
		virtq_kick(&disk.queues[i]);
	for (unsigned int i = 0; i < disk.n_queues; i++) {
		GUEST_ASSERT(virtq_wait(&disk.queues[i], NULL, BLK_TIMEOUT_MS) >= 0, "queue %u", i);
		GUEST_ASSERT(requests[i].status == BLK_OK, "queue %u: %u", i, requests[i].status);
	}
	expect_fill(data, BLK_SECTOR, WRITE_SEED);
}

/* Header, data and status may be cut anywhere: only their lengths say what is what. */
static void odd_segments(struct guest_boot *boot)
{
	struct virtq *q = &disk.queues[0];
	struct blk_request *r = &requests[0];
	uint8_t *h = (uint8_t *)r;
	struct virtq_seg write[] = {{h, 1},          {h + 1, 15},     {data, 1},
				    {data + 1, 510}, {data + 511, 1}, {(void *)&r->status, 1}};
	struct virtq_seg read[] = {{h, 16}, {data, 3}, {data + 3, 509}, {(void *)&r->status, 1}};

	(void)boot;
	for (unsigned int round = 0; round < 2; round++) {
		blk_start(&disk, round ? VIRTIO_F_INDIRECT_DESC : 0, false);
		fill(data, BLK_SECTOR, SPLIT_SECTOR + round);
		*r = (struct blk_request){
			.type = BLK_OUT, .sector = SPLIT_SECTOR, .status = BLK_NO_ANSWER};
		virtq_add(q, write, 5, 1);
		virtq_kick(q);
		GUEST_ASSERT(virtq_wait(q, NULL, BLK_TIMEOUT_MS) >= 0, "write: no answer");
		GUEST_ASSERT(r->status == BLK_OK, "write: %u", r->status);
		memset(data, 0, BLK_SECTOR);
		*r = (struct blk_request){
			.type = BLK_IN, .sector = SPLIT_SECTOR, .status = BLK_NO_ANSWER};
		virtq_add(q, read, 1, 3);
		virtq_kick(q);
		GUEST_ASSERT(virtq_wait(q, NULL, BLK_TIMEOUT_MS) >= 0, "read: no answer");
		GUEST_ASSERT(r->status == BLK_OK, "read: %u", r->status);
		expect_fill(data, BLK_SECTOR, SPLIT_SECTOR + round);
	}
}

static void serial(struct guest_boot *boot)
{
	char id[BLK_ID_LEN] = "";

	(void)boot;
	GUEST_ASSERT(blk_do(&disk.queues[0], BLK_GET_ID, 0, id, sizeof(id)) == BLK_OK, "refused");
	GUEST_ASSERT(memcmp(id, DISK_SERIAL, sizeof(id)) == 0, "starts with '%c%c'", id[0], id[1]);
}

static void write_zeroes(struct guest_boot *boot)
{
	struct blk_range range = {ZERO_SECTOR, ZERO_SECTORS, 0};
	struct virtq *q = &disk.queues[0];

	(void)boot;
	blk_start(&disk, BLK_FEATURES | VIRTIO_RING_FEATURES, false);
	if (!virtio_has(&disk.dev, BLK_F_WRITE_ZEROES))
		GUEST_SKIP("the disk has no write-zeroes");
	GUEST_ASSERT(virtio_config_read32(&disk.dev, BLK_CONFIG_MAX_WRITE_ZEROES) >= ZERO_SECTORS,
		     "max");
	GUEST_ASSERT(blk_do(q, BLK_WRITE_ZEROES, 0, &range, sizeof(range)) == BLK_OK, "refused");
	GUEST_ASSERT(blk_do(q, BLK_IN, ZERO_SECTOR, data, ZERO_SECTORS * BLK_SECTOR) == BLK_OK,
		     "read");
	for (unsigned int i = 0; i < ZERO_SECTORS * BLK_SECTOR; i += 8)
		GUEST_ASSERT(*(uint64_t *)(data + i) == 0, "byte %u", i);
	range.sector = disk.n_sectors - 1;
	GUEST_ASSERT(blk_do(q, BLK_WRITE_ZEROES, 0, &range, sizeof(range)) == BLK_IOERR,
		     "over the end");
	range.flags = 0x80;
	range.sector = ZERO_SECTOR;
	GUEST_ASSERT(blk_do(q, BLK_WRITE_ZEROES, 0, &range, sizeof(range)) == BLK_UNSUPP,
		     "bad flag");
}

static void discard(struct guest_boot *boot)
{
	struct blk_range range = {DISCARD_SECTOR, DISCARD_SECTORS, 0};
	struct virtq *q = &disk.queues[0];

	if (!virtio_has(&disk.dev, BLK_F_DISCARD))
		GUEST_SKIP("the disk has no discard");
	GUEST_ASSERT(virtio_config_read32(&disk.dev, BLK_CONFIG_MAX_DISCARD) >= DISCARD_SECTORS,
		     "max");
	GUEST_ASSERT(blk_do(q, BLK_DISCARD, 0, &range, sizeof(range)) == BLK_OK, "refused");
	range.flags = 1; /* unmap is for write-zeroes only */
	GUEST_ASSERT(blk_do(q, BLK_DISCARD, 0, &range, sizeof(range)) == BLK_UNSUPP, "bad flag");
	range = (struct blk_range){~0ull, DISCARD_SECTORS, 0};
	GUEST_ASSERT(blk_do(q, BLK_DISCARD, 0, &range, sizeof(range)) == BLK_IOERR, "far out");
	/* QEMU wants a reset after this one. */
	range.sector = DISCARD_SECTOR;
	if (!cmdline_has(boot, "peer"))
		GUEST_ASSERT(blk_do(q, BLK_DISCARD, 0, &range, 7) == BLK_IOERR, "half a range");
}

static void refusals(struct guest_boot *boot)
{
	static const uint64_t far_out[] = {DISK_SIZE / BLK_SECTOR,
					   1ull << 32,
					   1ull << 54,
					   1ull << 55,
					   1ull << 63,
					   ~0ull,
					   ~0ull - 1};
	struct virtq *q = &disk.queues[0];
	uint64_t last = DISK_SIZE / BLK_SECTOR - 1;

	(void)boot;
	for (unsigned int i = 0; i < ARRAY_SIZE(far_out); i++) {
		GUEST_ASSERT(blk_do(q, BLK_IN, far_out[i], data, BLK_SECTOR) == BLK_IOERR, "0x%lx",
			     far_out[i]);
		GUEST_ASSERT(blk_do(q, BLK_OUT, far_out[i], data, BLK_SECTOR) == BLK_IOERR, "0x%lx",
			     far_out[i]);
	}
	GUEST_ASSERT(blk_do(q, BLK_IN, last, data, 2 * BLK_SECTOR) == BLK_IOERR, "over the end");
	GUEST_ASSERT(blk_do(q, BLK_OUT, last, data, 2 * BLK_SECTOR) == BLK_IOERR, "over the end");
	GUEST_ASSERT(blk_do(q, BLK_IN, 0, data, 100) == BLK_IOERR, "a hundred bytes");
	GUEST_ASSERT(blk_do(q, BLK_OUT, 0, data, 513) == BLK_IOERR, "a sector and a byte");
	GUEST_ASSERT(blk_do(q, (enum blk_type)99, 0, data, BLK_SECTOR) == BLK_UNSUPP, "type 99");
	/* And it still works. */
	GUEST_ASSERT(virtio_status(&disk.dev) == 0xf, "status 0x%x", virtio_status(&disk.dev));
	GUEST_ASSERT(blk_do(q, BLK_IN, WRITE_SECTOR, data, BLK_SECTOR) == BLK_OK, "after all that");
	expect_fill(data, BLK_SECTOR, WRITE_SEED);
}

static void read_only(struct guest_boot *boot)
{
	struct blk_range range = {0, 8, 0};
	struct virtq *q = &readonly.queues[0];

	(void)boot;
	GUEST_ASSERT(blk_find(&readonly, 1), "no second disk");
	blk_start(&readonly, BLK_FEATURES | VIRTIO_RING_FEATURES, false);
	GUEST_ASSERT(virtio_has(&readonly.dev, BLK_F_RO), "not read-only");
	GUEST_ASSERT(blk_do(q, BLK_IN, 0, data, CHUNK) == BLK_OK, "read");
	GUEST_ASSERT(blk_do(q, BLK_OUT, 0, data + 512, BLK_SECTOR) == BLK_IOERR, "write");
	GUEST_ASSERT(blk_do(q, BLK_WRITE_ZEROES, 0, &range, sizeof(range)) != BLK_OK, "zero");
	GUEST_ASSERT(blk_do(q, BLK_DISCARD, 0, &range, sizeof(range)) != BLK_OK, "discard");
}

void guest_main(struct guest_boot *boot)
{
	GUEST_ASSERT(blk_find(&disk, 0), "no disk");
	guest_case("checksum", checksum, boot);
	guest_case("write-flush-read", write_flush_read, boot);
	guest_case("ring-features", ring_features, boot);
	guest_case("queues", queues, boot);
	guest_case("odd-segments", odd_segments, boot);
	guest_case("serial", serial, boot);
	guest_case("write-zeroes", write_zeroes, boot);
	guest_case("discard", discard, boot);
	guest_case("refusals", refusals, boot);
	guest_case("read-only", read_only, boot);
}

#else

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guest-tests/host/harness.h"

#define SECTOR   512
#define N_QUEUES 3

static void check_checksum(const char *said, const uint8_t *image, size_t size)
{
	struct fletcher sum = {0};
	char text[40];

	fletcher_add(&sum, image, size);
	snprintf(text, sizeof(text), "%016lx%016lx", sum.a, sum.b);
	CHECK(strcmp(said, text) == 0, "the guest read %s, the file is %s", said, text);
}

/* The generator of the guest's runtime, again: a mistake in one must not hide in the other. */
static uint64_t next_word(uint64_t *x)
{
	*x ^= *x >> 12;
	*x ^= *x << 25;
	*x ^= *x >> 27;
	return *x * 0x2545f4914f6cdd1dull;
}

static void expect_words(const uint8_t *p, size_t len, uint64_t seed, const char *what)
{
	for (size_t i = 0; i < len; i += 8) {
		uint64_t word = next_word(&seed);

		CHECK(memcmp(p + i, &word, 8) == 0, "%s: byte %zu of the file", what, i);
	}
}

static bool was_touched(unsigned int sector)
{
	return (sector >= WRITE_SECTOR && sector < WRITE_SECTOR + WRITE_SECTORS) ||
	       (sector >= BATCH_SECTOR && sector < BATCH_SECTOR + BATCH) ||
	       sector == SPLIT_SECTOR ||
	       (sector >= ZERO_SECTOR && sector < ZERO_SECTOR + ZERO_SECTORS) ||
	       (sector >= DISCARD_SECTOR && sector < DISCARD_SECTOR + DISCARD_SECTORS);
}

static void check_file(const uint8_t *before)
{
	static const uint8_t zeroes[ZERO_SECTORS * SECTOR];
	size_t size;
	uint8_t *now = file_read(test_file("disk"), &size);

	CHECK(size == DISK_SIZE, "the file has %zu bytes now", size);
	expect_words(now + WRITE_SECTOR * SECTOR, WRITE_SECTORS * SECTOR, WRITE_SEED, "written");
	expect_words(now + SPLIT_SECTOR * SECTOR, SECTOR, SPLIT_SECTOR + 1, "written in pieces");
	CHECK(memcmp(now + ZERO_SECTOR * SECTOR, zeroes, sizeof(zeroes)) == 0, "zeroed");
	for (unsigned int i = 0; i < DISK_SIZE / SECTOR; i++) {
		if (!was_touched(i))
			CHECK(memcmp(now + i * SECTOR, before + i * SECTOR, SECTOR) == 0,
			      "sector %u has changed", i);
	}
	free(now);
}

int main(int argc, char **argv)
{
	struct vm_config config = {0};
	uint8_t *before, *readonly, *now;
	struct vm *vm;
	size_t size;
	int result, n;

	test_init(argc, argv);
	file_fill(test_file("disk"), DISK_SIZE, 0x1234567);
	file_fill(test_file("readonly"), READONLY_SIZE, 0x7654321);
	before = file_read(test_file("disk"), &size);
	readonly = file_read(test_file("readonly"), &size);
	config.disks[0] = (struct vm_disk_config){
		.path = test_file("disk"), .serial = DISK_SERIAL, .n_queues = N_QUEUES};
	config.disks[1] = (struct vm_disk_config){.path = test_file("readonly"), .readonly = true};
	vm = vm_start(&config);
	check_checksum(vm_note(vm, "checksum"), before, DISK_SIZE);
	n = atoi(vm_note(vm, "queues"));
	CHECK(n == N_QUEUES, "the guest sees %d queues", n);
	result = vm_judge(vm);
	check_file(before);
	now = file_read(test_file("readonly"), &size);
	CHECK(size == READONLY_SIZE && memcmp(now, readonly, size) == 0, "read-only, but changed");
	free(now);
	free(before);
	free(readonly);
	return result;
}

#endif
