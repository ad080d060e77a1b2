/* SPDX-License-Identifier: Apache-2.0 */
/*
 * qemu-img and we, about the same images: what a check finds, what a map says, what is read; on
 * images that it made, in all their kinds, and on images bent by a seeded mutator.
 *
 * On bent images we find corruption wherever qemu-img does; after our repair both find none. Where
 * we find some and it does not:
 * - an L1 or snapshot table that runs past the file's end within its last cluster (it reads
 * zeroes);
 * - a guest cluster, or a snapshot's L1 table, on a cluster whose refcount counts both: to qemu-img
 *   that is sharing, whatever the two take it for;
 * - version 2 with the bit of zero clusters, which that version does not have.
 */
#include <criterion/criterion.h>
#include <criterion/logging.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "block/qcow2-check.h"
#include "block/qcow2-format.h"
#include "block/test-qcow2.h"

#define MUTANTS 160u

TestSuite(qcow2_oracle, .fini = test_clean, .timeout = 300);

/* What either says of an image. */
struct verdict {
	bool refused; /* not even looked at */
	uint64_t corruptions, leaks, allocated, compressed, total, end;
};

static uint64_t number(const json_t *object, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(object, key));
}

static struct verdict their_verdict(const char *name)
{
	char path[TEST_PATH_SIZE], output[64];
	struct verdict verdict = {.refused = true};
	json_t *said;

	test_command(output, sizeof(output),
		     "qemu-img check -f qcow2 --output=json %s >check.json 2>/dev/null", name);
	said = json_load_file(test_path(path, "check.json"), 0, NULL);
	if (said)
		verdict = (struct verdict){
			.corruptions = number(said, "corruptions") + number(said, "check-errors"),
			.leaks = number(said, "leaks"),
			.allocated = number(said, "allocated-clusters"),
			.compressed = number(said, "compressed-clusters"),
			.total = number(said, "total-clusters"),
			.end = number(said, "image-end-offset"),
		};
	json_decref(said);
	return verdict;
}

static struct verdict our_verdict(const char *name, bool repair)
{
	const struct qcow2_check_options options = {repair, repair, repair};
	char path[TEST_PATH_SIZE];
	struct block_check check = {0};
	struct block_file file;
	struct error err = ERROR_NULL;
	int fd = open(test_path(path, name), (repair ? O_RDWR : O_RDONLY) | O_CLOEXEC), r;

	cr_assert_eq(block_file_init(&file, fd, name, &err), 0);
	r = qcow2_check(&file, name, &options, &check, &err);
	block_file_close(&file);
	if (r < 0)
		cr_assert(err.code == r && *err.text);
	return (struct verdict){
		.refused = r < 0,
		.corruptions = check.corruptions,
		.leaks = check.leaks,
		.allocated = check.allocated,
		.compressed = check.compressed,
		.total = check.total,
		.end = check.end,
	};
}

static void assert_same_verdict(const char *name)
{
	struct verdict theirs = their_verdict(name), ours = our_verdict(name, false);

	cr_assert_not(theirs.refused);
	cr_assert_not(ours.refused);
	cr_assert_eq(ours.corruptions, theirs.corruptions);
	cr_assert_eq(ours.leaks, theirs.leaks, "%lu, %lu", ours.leaks, theirs.leaks);
	cr_assert_eq(ours.allocated, theirs.allocated, "%lu, %lu", ours.allocated,
		     theirs.allocated);
	cr_assert_eq(ours.compressed, theirs.compressed);
	cr_assert_eq(ours.total, theirs.total);
	cr_assert_eq(ours.end, theirs.end, "%lu, %lu", ours.end, theirs.end);
}

/* Maps */

/* What qemu-img says of a range that begins where `ours` does. */
static void assert_same_extent(const json_t *theirs, const struct block_extent *ours)
{
	const bool data = json_is_true(json_object_get(theirs, "data"));
	const bool zero = json_is_true(json_object_get(theirs, "zero"));
	const json_t *place = json_object_get(theirs, "offset");
	uint64_t skip = ours->offset - number(theirs, "start");

	cr_assert_eq(data, ours->kind == BLOCK_DATA || ours->kind == BLOCK_COMPRESSED, "at %lu",
		     ours->offset);
	/* Of data that is a hole in the file it may know that too. */
	if (!data)
		cr_assert(zero);
	if (ours->kind == BLOCK_ABSENT)
		return;
	cr_assert(json_is_true(json_object_get(theirs, "present")));
	cr_assert_eq(number(theirs, "depth"), ours->depth);
	if (ours->kind == BLOCK_COMPRESSED || (ours->kind == BLOCK_ZERO && !ours->place))
		cr_assert_null(place, "at %lu", ours->offset);
	else
		cr_assert_eq((uint64_t)json_integer_value(place) + skip, ours->place, "at %lu",
			     ours->offset);
}

static void assert_same_map(const char *name)
{
	char path[TEST_PATH_SIZE];
	struct block_image *image = test_open(name, "qcow2", true);
	json_t *list, *entry;
	uint64_t at = 0;
	size_t i;

	test_qemu_img("map -f qcow2 --output=json %s >map.json", name);
	list = json_load_file(test_path(path, "map.json"), 0, NULL);
	json_array_foreach(list, i, entry)
	{
		uint64_t end = number(entry, "start") + number(entry, "length");

		cr_assert_eq(number(entry, "start"), at);
		while (at < end) {
			struct block_extent extent;

			cr_assert_eq(block_map(image, at, end - at, &extent), 0);
			cr_assert_eq(extent.offset, at);
			assert_same_extent(entry, &extent);
			at += extent.length;
		}
	}
	cr_assert_eq(at, image->size);
	json_decref(list);
	block_close(image);
}

/* Content */

static void assert_reads_as(struct block_image *image, const char *raw)
{
	char path[TEST_PATH_SIZE];
	const size_t piece = 1 << 20;
	uint8_t *ours = malloc(piece), *theirs = malloc(piece);
	int fd = open(test_path(path, raw), O_RDONLY | O_CLOEXEC);
	struct stat st;

	cr_assert_eq(fstat(fd, &st), 0);
	cr_assert_eq((uint64_t)st.st_size, image->size);
	for (uint64_t at = 0; at < image->size; at += piece) {
		size_t n = MIN(piece, image->size - at);

		cr_assert_eq(pread(fd, theirs, n, (off_t)at), (ssize_t)n);
		cr_assert_eq(block_read(image, ours, n, at), 0);
		cr_assert_eq(memcmp(ours, theirs, n), 0, "within 1 MiB from %lu", at);
	}
	close(fd);
	free(theirs);
	free(ours);
}

static void assert_same_content(const char *name)
{
	struct block_image *image = test_open(name, "qcow2", true);

	test_qemu_img("convert -f qcow2 -O raw %s content.raw", name);
	assert_reads_as(image, "content.raw");
	block_close(image);
}

static void assert_same_snapshots(const char *name, uint32_t n)
{
	struct block_image *image = test_open(name, "qcow2", true);
	struct block_snapshots snapshots;
	struct error err;

	cr_assert_eq(block_snapshots_read(image, &snapshots, &err), 0);
	cr_assert_eq(snapshots.n, n);
	for (uint32_t i = 0; i < n; i++) {
		const struct block_snapshot *snapshot = &snapshots.list[i];

		test_qemu_img("convert -f qcow2 -O raw -l snapshot.id=%s %s content.raw",
			      snapshot->id, name);
		cr_assert_eq(
			block_snapshot_view(image, i % 2 ? snapshot->id : snapshot->name, &err), 0,
			"%s", err.text);
		cr_assert_eq(image->size, snapshot->size);
		assert_reads_as(image, "content.raw");
	}
	cr_assert_eq(block_snapshot_view(image, "nobody", &err), -ENOENT);
	block_snapshots_free(&snapshots);
	block_close(image);
}

/* Images that they make */

struct kind {
	const char *options;
	uint64_t size;
	uint32_t cluster_bits;
	uint32_t n_snapshots;
	bool packed, backing, bitmap;
};

/* What qemu-io is to do, in a file. */
static void put_operations(FILE *script, uint64_t *random, const struct kind *kind)
{
	const uint64_t cluster = UINT64_C(1) << kind->cluster_bits;
	uint32_t n = 3 + (uint32_t)test_below(random, 12);

	while (n--) {
		static const uint32_t clusters[] = {0, 1, 4, 16};
		unsigned long long at = test_below(random, kind->size / 512) * 512;
		unsigned long long length =
			MAX(clusters[test_below(random, 4)] * cluster, UINT64_C(512));
		unsigned long long row = at / cluster * cluster;
		uint32_t value = 1 + (uint32_t)test_below(random, 250);

		length = MIN(length, 1ull << 20);
		length = MIN(length, (unsigned long long)kind->size - at);
		switch (test_below(random, 10)) {
		case 0:
			fprintf(script, "write -z %llu %llu\n", at, length);
			break;
		case 1:
			fprintf(script, "write -z -u %llu %llu\n", at, length);
			break;
		case 2:
			fprintf(script, "discard %llu %llu\n", at, length);
			break;
		case 3:
		case 4:
			if (kind->packed && row + cluster <= kind->size)
				fprintf(script, "write -c -P %u %llu %llu\n", value, row,
					(unsigned long long)cluster);
			break;
		default:
			fprintf(script, "write -P %u %llu %llu\n", value, at, length);
			break;
		}
	}
}

static void operate(const char *name, uint64_t *random, const struct kind *kind)
{
	char path[TEST_PATH_SIZE], output[64];
	FILE *script = fopen(test_path(path, "script"), "we");

	put_operations(script, random, kind);
	fclose(script);
	/* What was written before cannot be written compressed, which it says. */
	test_command(output, sizeof(output), "qemu-io -f qcow2 %s <script", name);
}

static void make(const char *name, const struct kind *kind, uint64_t seed)
{
	uint64_t random = seed;
	unsigned long long size = kind->size;

	if (kind->backing) {
		/* Raw at the bottom, shorter than what stands on it. */
		struct kind under = {.size = size / 2, .cluster_bits = 16};

		test_qemu_img("create -q -f raw bottom.raw %llu", size / 2);
		test_qemu_img("create -q -f qcow2 -b bottom.raw -F raw middle.qcow2");
		operate("middle.qcow2", &random, &under);
	}
	test_qemu_img("create -q -f qcow2 -o %s,cluster_size=%llu %s %s %llu", kind->options,
		      1ull << kind->cluster_bits, kind->backing ? "-b middle.qcow2 -F qcow2" : "",
		      name, size);
	operate(name, &random, kind);
	for (uint32_t i = 0; i < kind->n_snapshots; i++) {
		test_qemu_img("snapshot -c name%u %s", i, name);
		operate(name, &random, kind);
	}
	if (kind->bitmap) {
		test_qemu_img("bitmap --add %s b", name);
		operate(name, &random, kind);
	}
}

#define MIB (UINT64_C(1) << 20)

static const struct kind kinds[] = {
	{"compat=1.1", MIB, 9, .packed = true},
	{"compat=1.1", MIB, 10, 1},
	{"compat=1.1", 2 * MIB, 11, .packed = true},
	{"compat=1.1", 8 * MIB, 12, 2, .packed = true},
	{"compat=1.1", 8 * MIB, 13},
	{"compat=1.1", 8 * MIB, 14, .packed = true},
	{"compat=1.1", 8 * MIB, 15},
	{"compat=1.1", 32 * MIB, 16, 3, .packed = true},
	{"compat=1.1", 32 * MIB, 17},
	{"compat=1.1", 32 * MIB, 18, .packed = true},
	{"compat=1.1", 32 * MIB, 19},
	{"compat=1.1", 32 * MIB, 20, .packed = true},
	{"compat=1.1", 64 * MIB, 21, 1},
	{"compat=0.10", MIB, 9, 1, .packed = true},
	{"compat=0.10", 8 * MIB, 16, 2, .packed = true},
	{"compat=0.10", 8 * MIB, 12, .backing = true},
	{"compression_type=zstd", 8 * MIB, 12, .packed = true},
	{"compression_type=zstd", 8 * MIB, 16, 1, .packed = true},
	{"refcount_bits=1", MIB, 9},
	{"refcount_bits=2", MIB, 9, 2},
	{"refcount_bits=4", MIB, 10, 2, .packed = true},
	{"refcount_bits=8", MIB, 9, 1, .packed = true},
	{"refcount_bits=32", MIB, 9, 2, .packed = true},
	/* Packed, qemu-io 7.2 breaks it now and then. */
	{"refcount_bits=64", MIB, 9, 2},
	{"refcount_bits=64", 32 * MIB, 16, 1},
	{"refcount_bits=1", 32 * MIB, 16},
	{"lazy_refcounts=on", 8 * MIB, 12, 1, .packed = true},
	{"preallocation=metadata", 4 * MIB, 12},
	{"preallocation=metadata", 32 * MIB, 16, 1},
	{"preallocation=falloc", 4 * MIB, 12},
	{"preallocation=full", 4 * MIB, 16},
	{"compat=1.1", 8 * MIB, 12, 1, .packed = true, .backing = true},
	{"compat=1.1", 8 * MIB, 16, .backing = true},
	{"compat=1.1", 8 * MIB, 9, .backing = true},
	{"compat=1.1", 8 * MIB, 12, .bitmap = true},
	{"compat=1.1", 8 * MIB, 16, 1, .bitmap = true},
};

/* A quarter of the kinds. */
static void compare_kinds(uint32_t part)
{
	if (!test_has_qemu_img())
		cr_skip_test("no qemu-img here");
	for (uint32_t i = part; i < ARRAY_SIZE(kinds); i += 4) {
		const struct kind *kind = &kinds[i];

		cr_log_info("%s, clusters of 2^%u", kind->options, kind->cluster_bits);
		make("disk", kind, 4711 + i);
		assert_same_verdict("disk");
		assert_same_map("disk");
		assert_same_content("disk");
		assert_same_snapshots("disk", kind->n_snapshots);
	}
}

Test(qcow2_oracle, images_they_make_1)
{
	compare_kinds(0);
}

Test(qcow2_oracle, images_they_make_2)
{
	compare_kinds(1);
}

Test(qcow2_oracle, images_they_make_3)
{
	compare_kinds(2);
}

Test(qcow2_oracle, images_they_make_4)
{
	compare_kinds(3);
}

Test(qcow2_oracle, we_agree_on_an_image_whose_writer_died)
{
	char output[256];

	if (!test_has_qemu_img())
		cr_skip_test("no qemu-img here");
	test_qemu_img("create -q -f qcow2 -o lazy_refcounts=on disk 8M");
	test_command(output, sizeof(output),
		     "qemu-io -f qcow2 -c 'write -P 1 0 1M' -c abort disk >/dev/null");
	assert_same_verdict("disk");
	cr_assert_gt(our_verdict("disk", false).corruptions, 0);
	test_command(output, sizeof(output), "cp disk before");
	our_verdict("disk", true);
	assert_same_verdict("disk");
	cr_assert_eq(our_verdict("disk", false).corruptions, 0);
	test_qemu_img("check -q -r all before");
	test_qemu_img("compare -q disk before");
}

Test(qcow2_oracle, what_we_pack_they_unpack)
{
	static const uint32_t types[] = {QCOW2_ZLIB, QCOW2_ZSTD};
	static uint8_t data[16][65536];
	uint64_t random = 1;
	char path[TEST_PATH_SIZE];

	if (!test_has_qemu_img())
		cr_skip_test("no qemu-img here");
	/* Some that cannot be packed, some that hardly can. */
	for (uint32_t i = 0; i < 16; i++)
		test_fill(&random, data[i], i * sizeof(data[i]) / 15);
	for (uint32_t i = 0; i < ARRAY_SIZE(types); i++) {
		struct block_image *image;
		FILE *file = fopen(test_path(path, "raw"), "we");

		cr_assert_eq(fwrite(data, 1, sizeof(data), file), sizeof(data));
		fclose(file);
		test_create("disk", &(struct block_create){.format = "qcow2",
							   .size = sizeof(data),
							   .compression = types[i]});
		image = test_open("disk", "qcow2", false);
		for (uint32_t j = 0; j < 16; j++)
			cr_assert_geq(block_write_packed(image, data[j], j * sizeof(data[j])), 0);
		assert_reads_as(image, "raw");
		block_close(image);
		test_qemu_img("compare -q -f qcow2 -F raw disk raw");
		assert_same_verdict("disk");
		assert_same_map("disk");
		cr_assert_gt(our_verdict("disk", false).compressed, 8);
	}
}

/* Images that are bent */

/* An image's bytes, with where its structures are. */
struct bent {
	uint8_t *data;
	uint64_t size, cluster, random;
	uint64_t l1, reftable, snapshots, n_l1;
	uint64_t tables[64], blocks[16]; /* L2, refcounts */
	uint32_t n_tables, n_blocks;
};

static uint64_t word(const struct bent *bent, uint64_t at)
{
	uint64_t value;

	if (at + 8 > bent->size)
		return 0;
	memcpy(&value, bent->data + at, 8);
	return be64toh(value);
}

static void word_set(struct bent *bent, uint64_t at, uint64_t value)
{
	value = htobe64(value);
	if (at + 8 <= bent->size)
		memcpy(bent->data + at, &value, 8);
}

static void bent_load(struct bent *bent, const char *name, uint64_t seed)
{
	char path[TEST_PATH_SIZE];
	int fd = open(test_path(path, name), O_RDONLY | O_CLOEXEC);
	struct stat st;

	cr_assert_eq(fstat(fd, &st), 0);
	*bent = (struct bent){.size = (uint64_t)st.st_size, .random = seed};
	bent->data = malloc(bent->size);
	cr_assert_eq(pread(fd, bent->data, bent->size, 0), (ssize_t)bent->size);
	close(fd);
	bent->cluster = UINT64_C(1) << (word(bent, 16) & 31);
	bent->n_l1 = word(bent, 32) & UINT32_MAX;
	bent->l1 = word(bent, 40);
	bent->reftable = word(bent, 48);
	bent->snapshots = word(bent, 64);
	for (uint64_t i = 0; i < bent->n_l1 && bent->n_tables < ARRAY_SIZE(bent->tables); i++) {
		uint64_t place = word(bent, bent->l1 + i * 8) & QCOW2_OFFSET_MASK;

		if (place)
			bent->tables[bent->n_tables++] = place;
	}
	for (uint64_t i = 0; i < bent->cluster / 8 && bent->n_blocks < ARRAY_SIZE(bent->blocks);
	     i++) {
		uint64_t place = word(bent, bent->reftable + i * 8) & QCOW2_OFFSET_MASK;

		if (place)
			bent->blocks[bent->n_blocks++] = place;
	}
}

static uint64_t below(struct bent *bent, uint64_t n)
{
	return n ? test_below(&bent->random, n) : 0;
}

/* A place that an entry could wrongly name: tables more often than their share. */
static uint64_t wrong_place(struct bent *bent)
{
	switch (below(bent, 9)) {
	case 0:
		return bent->l1;
	case 1:
		return bent->reftable;
	case 2:
		return bent->tables[below(bent, bent->n_tables)];
	case 3:
		return bent->blocks[below(bent, bent->n_blocks)];
	case 4:
		return bent->snapshots;
	case 5:
		return bent->size / bent->cluster * bent->cluster +
		       bent->cluster * below(bent, 100);
	case 6:
		return test_random(&bent->random) & QCOW2_OFFSET_MASK;
	case 7:
		return below(bent, bent->size) / 512 * 512;
	default:
		return below(bent, bent->size / bent->cluster) * bent->cluster;
	}
}

/* An entry of an L2 table; mostly one that is used. */
static uint64_t some_entry(struct bent *bent)
{
	uint64_t at = bent->tables[below(bent, bent->n_tables)];

	for (uint32_t i = 0; i < 200; i++) {
		uint64_t entry = at + below(bent, bent->cluster / 8) * 8;

		if (word(bent, entry) || i == 199)
			return entry;
	}
	return at;
}

static uint64_t some_l1_entry(struct bent *bent)
{
	uint64_t at = bent->l1;

	if (bent->snapshots && below(bent, 2))
		at = word(bent, bent->snapshots);
	return at + below(bent, bent->n_l1) * 8;
}

static void flip(struct bent *bent, uint64_t at)
{
	word_set(bent, at, word(bent, at) ^ UINT64_C(1) << below(bent, 64));
}

static void bend(struct bent *bent)
{
	static const uint64_t flags[] = {0, QCOW2_COPIED, QCOW2_COPIED, QCOW2_ZERO,
					 QCOW2_COMPRESSED};
	static const uint8_t header[] = {24, 32, 40, 48, 56, 64, 72, 80};
	uint64_t at;

	switch (below(bent, 12)) {
	case 0:
	case 1:
	case 2:
		word_set(bent, some_entry(bent),
			 wrong_place(bent) | flags[below(bent, ARRAY_SIZE(flags))]);
		break;
	case 3:
		flip(bent, some_entry(bent));
		break;
	case 4:
		word_set(bent, some_l1_entry(bent), wrong_place(bent) | flags[below(bent, 2)]);
		break;
	case 5:
		flip(bent, some_l1_entry(bent));
		break;
	case 6:
	case 7:
		at = bent->blocks[below(bent, bent->n_blocks)];
		word_set(bent, at + below(bent, 32) * 8, test_random(&bent->random) >> 62);
		break;
	case 8:
		word_set(bent, bent->reftable + below(bent, 4) * 8, wrong_place(bent));
		break;
	case 9:
		if (bent->snapshots)
			flip(bent, bent->snapshots + below(bent, 8) * 8);
		break;
	case 10:
		bent->size -= below(bent, bent->size - 3 * bent->cluster);
		break;
	default:
		flip(bent, header[below(bent, ARRAY_SIZE(header))]);
		break;
	}
}

static void bent_store(const struct bent *bent, const char *name)
{
	char path[TEST_PATH_SIZE];
	int fd = open(test_path(path, name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	cr_assert_eq(fd_write_full(fd, bent->data, bent->size), 0);
	close(fd);
}

/* Whatever it is, it is read without harm. */
static void read_bent(const char *name)
{
	static uint8_t data[65536];
	struct block_image *image;
	struct error err = ERROR_NULL;
	uint64_t at = 0;

	if (test_try_open(&image, name, &(struct block_open){.format = "qcow2", .readonly = true},
			  O_RDONLY, &err) < 0) {
		cr_assert(*err.text);
		return;
	}
	for (uint32_t i = 0; i < 200 && at < image->size; i++) {
		struct block_extent extent;

		if (block_map(image, at, image->size - at, &extent) < 0)
			extent.length = 4096;
		extent.length = MIN(extent.length, image->size - at);
		(void)!block_read(image, data, MIN(extent.length, sizeof(data)), at);
		at += extent.length;
	}
	block_close(image);
}

/* Nor is it written with harm: what was in order stays so. */
static void write_bent(const char *name, bool was_good)
{
	static uint8_t data[8192] = {1, 2, 3};
	uint64_t random = 5;
	struct block_image *image;
	struct error err = ERROR_NULL;

	if (test_try_open(&image, name, &(struct block_open){.format = "qcow2"}, O_RDWR, &err) < 0)
		return;
	for (uint32_t i = 0; i < 10; i++) {
		uint64_t at = test_below(&random, image->size / 512) * 512;

		(void)!block_write(image, data, MIN(image->size - at, sizeof(data)), at);
	}
	(void)!block_flush(image);
	block_close(image);
	if (was_good)
		cr_assert_eq(our_verdict(name, false).corruptions, 0);
}

static void judge_bent(uint64_t seed, uint32_t *n_corrupt)
{
	char output[64];
	struct verdict theirs = their_verdict("bent"), ours = our_verdict("bent", false);

	if (theirs.corruptions || theirs.refused) {
		cr_assert(ours.corruptions || ours.refused, "mutant %lu", seed);
		++*n_corrupt;
	}
	if (!theirs.corruptions && !ours.corruptions && !theirs.refused && !ours.refused)
		cr_assert_eq(ours.leaks, theirs.leaks, "mutant %lu", seed);
	read_bent("bent");
	test_command(output, sizeof(output), "cp bent written");
	write_bent("written", !ours.refused && !ours.corruptions);
	if (ours.refused)
		return;
	ours = our_verdict("bent", true);
	cr_assert(!ours.refused && !ours.corruptions && !ours.leaks, "mutant %lu", seed);
	theirs = their_verdict("bent");
	cr_assert(!theirs.refused && !theirs.corruptions && !theirs.leaks, "mutant %lu", seed);
}

static void bend_many(uint32_t part)
{
	uint32_t n_corrupt = 0;

	if (!test_has_qemu_img())
		cr_skip_test("no qemu-img here");
	for (uint32_t i = 0; i < MUTANTS / 4; i++) {
		uint64_t seed = part * 1000 + i;
		const struct kind *kind = &kinds[seed * 7 % ARRAY_SIZE(kinds)];
		struct bent bent;

		if (kind->size > 8 * MIB || kind->backing)
			kind = &kinds[i % 4];
		make("base", kind, seed);
		bent_load(&bent, "base", seed);
		for (uint64_t n = 1 + below(&bent, 3); n; n--)
			bend(&bent);
		bent_store(&bent, "bent");
		free(bent.data);
		judge_bent(seed, &n_corrupt);
	}
	cr_assert_gt(n_corrupt, MUTANTS / 4 / 2, "the mutator bends too little");
}

Test(qcow2_oracle, bent_images_1)
{
	bend_many(1);
}

Test(qcow2_oracle, bent_images_2)
{
	bend_many(2);
}

Test(qcow2_oracle, bent_images_3)
{
	bend_many(3);
}

Test(qcow2_oracle, bent_images_4)
{
	bend_many(4);
}
