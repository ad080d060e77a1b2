/* SPDX-License-Identifier: Apache-2.0 */
/*
 * qcow2 images that nobody should have made: refused with a sentence that says what is wrong, or
 * used as far as they make sense; never a crash, a loop, or a write to where something else is.
 */
#include <criterion/criterion.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "block/qcow2.h"
#include "block/test-qcow2.h"

#define CLUSTER  4096u
#define SIZE     (4u << 20) /* two L2 tables */
#define FILE_MAX (64u * CLUSTER)

static uint8_t bytes[FILE_MAX], now[FILE_MAX]; /* as it was made; as it is */
static size_t n_bytes;
static uint64_t l1, l2, other_l2, reftable, refblock, data;
static struct error err;

static size_t load(uint8_t *to)
{
	char path[TEST_PATH_SIZE];
	int fd = open(test_path(path, "disk"), O_RDONLY | O_CLOEXEC);
	ssize_t n = pread(fd, to, FILE_MAX, 0);

	close(fd);
	cr_assert_geq(n, 0);
	return (size_t)n;
}

static void store(void)
{
	char path[TEST_PATH_SIZE];
	int fd = open(test_path(path, "disk"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	cr_assert_eq(fd_write_full(fd, bytes, n_bytes), 0);
	close(fd);
}

static uint64_t get64(uint64_t at)
{
	uint64_t value;

	memcpy(&value, bytes + at, 8);
	return be64toh(value);
}

static void put64(uint64_t at, uint64_t value)
{
	value = htobe64(value);
	memcpy(bytes + at, &value, 8);
}

static void put32(uint64_t at, uint32_t value)
{
	value = htobe32(value);
	memcpy(bytes + at, &value, 4);
}

static void put_refcount(uint64_t place, uint16_t value)
{
	value = htobe16(value);
	memcpy(bytes + refblock + place / CLUSTER * 2, &value, 2);
}

/* A small image of ours with eight clusters of data, and one far behind them. */
static void set_up(void)
{
	static uint8_t content[8 * CLUSTER];
	struct block_image *image;

	test_create("disk",
		    &(struct block_create){.format = "qcow2", .size = SIZE, .cluster_bits = 12});
	image = test_open("disk", "qcow2", false);
	memset(content, 0x77, sizeof(content));
	cr_assert_eq(block_write(image, content, sizeof(content), 0), 0);
	cr_assert_eq(block_write(image, content, CLUSTER, SIZE - CLUSTER), 0);
	block_close(image);
	n_bytes = load(bytes);
	cr_assert_lt(n_bytes, FILE_MAX);
	l1 = get64(40);
	reftable = get64(48);
	refblock = get64(reftable);
	l2 = get64(l1) & QCOW2_OFFSET_MASK;
	other_l2 = get64(l1 + 8) & QCOW2_OFFSET_MASK;
	data = get64(l2) & QCOW2_OFFSET_MASK;
}

TestSuite(qcow2_bad, .init = set_up, .fini = test_clean, .timeout = 60);

static int try_open(struct block_image **ret_image, bool readonly)
{
	err = ERROR_NULL;
	return test_try_open(ret_image, "disk",
			     &(struct block_open){.format = "qcow2", .readonly = readonly},
			     readonly ? O_RDONLY : O_RDWR, &err);
}

static void assert_refused(bool readonly, int code, const char *words)
{
	struct block_image *image;

	store();
	cr_assert_eq(try_open(&image, readonly), code, "for \"%s\": %s", words, err.text);
	cr_assert_eq(err.code, code);
	cr_assert(strstr(err.text, "disk"), "which image: %s", err.text);
	cr_assert(strstr(err.text, words), "\"%s\" is not in \"%s\"", words, err.text);
	cr_assert_eq(load(now), n_bytes);
	cr_assert_eq(memcmp(bytes, now, n_bytes), 0, "a refused image is not changed");
}

/* Headers */

static const struct {
	uint32_t at, size; /* of the number that is changed */
	uint64_t value;
	int code;
	const char *words;
} headers[] = {
	{0, 4, 0x51464900, -EINVAL, "does not begin like one"},
	{4, 4, 1, -ENOTSUP, "version"},
	{4, 4, 4, -ENOTSUP, "version"},
	{8, 8, 4090, -EINVAL, "backing image is not in its first cluster"},
	{20, 4, 8, -EINVAL, "clusters have an impossible size"},
	{20, 4, 22, -EINVAL, "clusters have an impossible size"},
	{24, 8, UINT64_MAX, -EINVAL, "size is out of range"},
	{24, 8, UINT64_C(1) << 40, -EINVAL, "L1 table is too small"},
	{32, 4, 1, -ENOTSUP, "encrypted"},
	{32, 4, 2, -ENOTSUP, "encrypted"},
	{36, 4, 0, -EINVAL, "L1 table is too small"},
	{36, 4, UINT32_MAX, -EINVAL, "L1 table is too large"},
	{36, 4, 4 << 20, -EINVAL, "L1 table is not in the file"},
	{40, 8, 1 << 30, -EINVAL, "L1 table is not in the file"},
	{40, 8, 0, -EINVAL, "L1 table is not in the file"},
	{40, 8, CLUSTER + 8, -EINVAL, "L1 table is not in the file"},
	{40, 8, UINT64_MAX - CLUSTER + 1, -EINVAL, "L1 table is not in the file"},
	{48, 8, 1 << 30, -EINVAL, "refcount table is not in the file"},
	{48, 8, 24, -EINVAL, "refcount table is not in the file"},
	{56, 4, 0, -EINVAL, "no refcount table"},
	{56, 4, UINT32_MAX, -EINVAL, "refcount table is too large"},
	{60, 4, UINT32_MAX, -EINVAL, "too many snapshots"},
	{60, 4, 65536, -EINVAL, "snapshot table is not in the file"},
	{72, 8, 4, -ENOTSUP, "data is in another file"},
	{72, 8, 16, -ENOTSUP, "extended L2 entries"},
	{72, 8, 32, -ENOTSUP, "a feature that is not known here, number 5"},
	{72, 8, UINT64_C(1) << 63, -ENOTSUP, "a feature that is not known here, number 63"},
	{72, 8, 8, -EINVAL, "contradicts itself about compression"},
	{96, 4, 7, -EINVAL, "refcounts have an impossible width"},
	{100, 4, 103, -EINVAL, "header has an impossible length"},
	{100, 4, 1 << 30, -EINVAL, "header has an impossible length"},
	{104, 1, 1, -EINVAL, "contradicts itself about compression"},
};

Test(qcow2_bad, headers_that_make_no_sense)
{
	for (uint32_t i = 0; i < ARRAY_SIZE(headers); i++) {
		uint8_t kept[8];

		memcpy(kept, bytes + headers[i].at, 8);
		if (headers[i].size == 8)
			put64(headers[i].at, headers[i].value);
		else if (headers[i].size == 4)
			put32(headers[i].at, (uint32_t)headers[i].value);
		else
			bytes[headers[i].at] = (uint8_t)headers[i].value;
		/* A backing image's name has a length too. */
		if (headers[i].at == 8)
			put32(16, 100);
		assert_refused(true, headers[i].code, headers[i].words);
		assert_refused(false, headers[i].code, headers[i].words);
		put32(16, 0);
		memcpy(bytes + headers[i].at, kept, 8);
	}
}

Test(qcow2_bad, an_unknown_feature_is_called_by_its_name)
{
	const uint64_t table = be32toh(*(uint32_t *)(bytes + 100));

	memset(bytes + table, 0, 200);
	put32(table, QCOW2_EXTENSION_FEATURE_NAMES);
	put32(table + 4, 48);
	bytes[table + 9] = 17;
	strcpy((char *)bytes + table + 10, "time travel\033[31m");
	put64(72, UINT64_C(1) << 17);
	assert_refused(true, -ENOTSUP, "number 17 (time travel?[31m)");
}

Test(qcow2_bad, an_extension_without_end)
{
	const uint64_t at = be32toh(*(uint32_t *)(bytes + 100));

	put32(at, 0x12345678);
	put32(at + 4, UINT32_MAX);
	assert_refused(true, -EINVAL, "extension is longer than its place");
}

Test(qcow2_bad, an_unknown_compression)
{
	put64(72, QCOW2_INCOMPATIBLE_COMPRESSION);
	bytes[104] = 9;
	assert_refused(true, -ENOTSUP, "compression is not known");
}

Test(qcow2_bad, cut_anywhere)
{
	static uint8_t buffer[16 * CLUSTER];
	size_t whole = n_bytes;

	for (n_bytes = 0; n_bytes < whole; n_bytes += n_bytes < 600 ? 7 : 509) {
		struct block_image *image;

		store();
		if (try_open(&image, true) < 0) {
			cr_assert(*err.text);
			continue;
		}
		(void)!block_read(image, buffer, sizeof(buffer), 0);
		block_close(image);
		cr_assert_eq(load(now), n_bytes);
	}
}

/* Chains */

static void make_overlay(const char *name, const char *backing, const char *format)
{
	test_create(name, &(struct block_create){.format = "qcow2",
						 .size = SIZE,
						 .backing_name = backing,
						 .backing_format = format});
}

static int try_chain(const char *name)
{
	struct block_image *image;

	err = ERROR_NULL;
	return test_try_open(&image, name,
			     &(struct block_open){.format = "qcow2", .readonly = true}, O_RDONLY,
			     &err);
}

Test(qcow2_bad, a_chain_that_comes_back)
{
	make_overlay("self", "self", "qcow2");
	cr_assert_eq(try_chain("self"), -ELOOP);
	cr_assert(strstr(err.text, "comes back"), "%s", err.text);
	make_overlay("a", "b", "qcow2");
	make_overlay("b", "c", "qcow2");
	make_overlay("c", "a", "qcow2");
	cr_assert_eq(try_chain("a"), -ELOOP);
	cr_assert(strstr(err.text, "comes back"), "%s", err.text);
}

Test(qcow2_bad, a_chain_without_end)
{
	char name[16], under[16];

	test_create("disk0", &(struct block_create){.format = "qcow2", .size = SIZE});
	for (uint32_t i = 1; i < 100; i++) {
		snprintf(name, sizeof(name), "disk%u", i);
		snprintf(under, sizeof(under), "disk%u", i - 1);
		make_overlay(name, under, "qcow2");
	}
	cr_assert_eq(try_chain("disk99"), -ELOOP);
	cr_assert(strstr(err.text, "more than 64 images"), "%s", err.text);
}

Test(qcow2_bad, a_chain_that_is_cut)
{
	make_overlay("top", "nobody", "qcow2");
	cr_assert_eq(try_chain("top"), -ENOENT);
	cr_assert(strstr(err.text, "nobody"), "%s", err.text);
	n_bytes = 3 * CLUSTER / 2;
	store();
	make_overlay("top", "disk", "qcow2");
	cr_assert_eq(try_chain("top"), -EINVAL);
	cr_assert(strstr(err.text, "\"disk\""), "%s", err.text);
}

Test(qcow2_bad, a_backing_image_that_nobody_allowed)
{
	struct block_image *image;
	char path[TEST_PATH_SIZE];
	int fd;

	make_overlay("top", "disk", "qcow2");
	fd = open(test_path(path, "top"), O_RDONLY | O_CLOEXEC);
	cr_assert_eq(
		block_open(&image, fd,
			   &(struct block_open){.format = "qcow2", .name = "top", .readonly = true},
			   &err),
		-EINVAL);
	cr_assert(strstr(err.text, "\"top\"") && strstr(err.text, "\"disk\""), "%s", err.text);
}

/* Entries */

static void assert_reads(uint64_t entry, int expected)
{
	uint8_t buffer[CLUSTER];
	struct block_image *image;

	put64(l2 + 8, entry);
	store();
	cr_assert_eq(try_open(&image, true), 0, "%s", err.text);
	cr_assert_eq(block_read(image, buffer, CLUSTER, CLUSTER), expected, "entry %lx", entry);
	cr_assert_eq(block_read(image, buffer, CLUSTER, 0), 0, "its neighbour is there");
	cr_assert_eq(buffer[0], 0x77);
	block_close(image);
}

Test(qcow2_bad, entries_that_point_nowhere)
{
	assert_reads(UINT64_C(1) << 40 | QCOW2_COPIED, -EIO);
	assert_reads(QCOW2_OFFSET_MASK, -EIO);
	assert_reads((data + 512) | QCOW2_COPIED, -EIO);
	assert_reads(l1 | QCOW2_COPIED, -EIO);
	assert_reads(reftable | QCOW2_COPIED, -EIO);
	assert_reads(QCOW2_COMPRESSED | UINT64_C(1) << 50, -EIO);
}

Test(qcow2_bad, a_table_that_is_nowhere)
{
	static const uint64_t places[] = {UINT64_C(1) << 40, 512, 0xfe00000000fff000};
	uint8_t buffer[CLUSTER];

	for (uint32_t i = 0; i < ARRAY_SIZE(places); i++) {
		struct block_image *image;

		put64(l1, places[i]);
		store();
		cr_assert_eq(try_open(&image, true), 0, "%s", err.text);
		cr_assert_eq(block_read(image, buffer, CLUSTER, 0), -EIO);
		block_close(image);
		cr_assert_eq(try_open(&image, false), 0, "%s", err.text);
		cr_assert_eq(block_write(image, buffer, CLUSTER, 0), -EIO);
		block_close(image);
	}
}

/* Writes where all that is there must stay: the guest's data but for its second cluster, and
 * tables that do not say what was written. */
static int write_around(uint64_t at)
{
	static uint8_t buffer[4 * CLUSTER];
	struct block_image *image;
	int r, flushed;

	store();
	r = try_open(&image, false);
	if (r < 0) {
		cr_assert(*err.text);
		return r;
	}
	memset(buffer, 0x33, sizeof(buffer));
	r = block_write(image, buffer, sizeof(buffer), at);
	flushed = block_flush(image);
	block_close(image);
	cr_assert_geq(load(now), n_bytes);
	return r < 0 ? r : flushed;
}

static bool has_written(uint64_t place)
{
	for (uint32_t i = 0; i + 64 <= CLUSTER; i++)
		if (now[place + i] == 0x33 && !memcmp(now + place + i, now + place + i + 1, 63))
			return true;
	return false;
}

Test(qcow2_bad, an_entry_onto_a_table_is_not_written_to)
{
	const uint64_t tables[] = {0, l1, l2, other_l2, reftable, refblock};

	for (uint32_t i = 1; i < ARRAY_SIZE(tables); i++) {
		put64(l2 + 8, tables[i] | QCOW2_COPIED);
		write_around(CLUSTER);
		for (uint32_t j = 0; j < ARRAY_SIZE(tables); j++)
			cr_assert_not(has_written(tables[j]), "%u: table %u", i, j);
	}
}

Test(qcow2_bad, refcounts_that_call_a_table_free)
{
	const uint64_t tables[] = {0, l1, l2, other_l2, reftable, refblock};

	for (uint32_t i = 0; i < ARRAY_SIZE(tables); i++) {
		put_refcount(tables[i], 0);
		/* What is not there yet wants room. */
		write_around(SIZE / 4);
		for (uint32_t j = 0; j < ARRAY_SIZE(tables); j++)
			cr_assert_not(has_written(tables[j]), "%u: table %u", i, j);
		put_refcount(tables[i], 1);
	}
}

Test(qcow2_bad, refcounts_that_call_data_free)
{
	put_refcount(data, 0);
	cr_assert_eq(write_around(0), -EIO, "a cluster that is free is nobody's to write to");
	cr_assert_not(has_written(data));
}

Test(qcow2_bad, refcount_blocks_that_are_nowhere)
{
	const uint64_t places[] = {0, UINT64_C(1) << 40, 512, l1, l2, reftable, CLUSTER * 1000};

	for (uint32_t i = 0; i < ARRAY_SIZE(places); i++) {
		put64(reftable, places[i]);
		cr_assert_lt(write_around(SIZE / 4), 0, "block at %lx", places[i]);
		cr_assert_not(has_written(l1));
		cr_assert_not(has_written(l2));
		cr_assert_not(has_written(reftable));
		cr_assert_not(has_written(0));
	}
}

/* Compressed clusters */

/* Packs `size` zeroes into the file's end and lets the second cluster be there. */
static void put_packed(uint64_t size)
{
	uint8_t *zeroes = calloc(1, size);
	size_t n;

	cr_assert_eq(compress_load(QCOW2_ZLIB, &err), 0);
	n = compress_pack(QCOW2_ZLIB, zeroes, size, bytes + n_bytes, FILE_MAX - n_bytes);
	free(zeroes);
	cr_assert_gt(n, 0);
	cr_assert_leq(n, 15 * 512);
	put64(l2 + 8, QCOW2_COMPRESSED | n_bytes | (uint64_t)((n - 1) / 512) << 58);
	n_bytes += align_up(n, 512);
}

Test(qcow2_bad, a_cluster_that_unpacks_to_far_more)
{
	uint8_t buffer[3 * CLUSTER];
	struct block_image *image;
	int r;

	put_packed(5 << 20);
	store();
	cr_assert_eq(try_open(&image, true), 0, "%s", err.text);
	memset(buffer, 0x55, sizeof(buffer));
	r = block_read(image, buffer + CLUSTER, CLUSTER, CLUSTER);
	/* A cluster of it, or none; never more. */
	cr_assert(r == 0 || r == -EIO);
	cr_assert_eq(buffer[CLUSTER - 1], 0x55);
	cr_assert_eq(buffer[2 * CLUSTER], 0x55);
	block_close(image);
}

Test(qcow2_bad, a_cluster_that_unpacks_to_less)
{
	put_packed(CLUSTER - 1);
	assert_reads(get64(l2 + 8), -EIO);
}

Test(qcow2_bad, a_packed_cluster_that_is_none)
{
	assert_reads(QCOW2_COMPRESSED | data, -EIO);
	/* As many sectors as there can be, most behind the end. */
	assert_reads(QCOW2_COMPRESSED | UINT64_C(15) << 58 | (n_bytes - 1), -EIO);
}

Test(qcow2_bad, packed_by_zstd)
{
	static const uint8_t frames[][8] = {
		{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0x01, 0x00}, /* a window of 2 GiB */
		{0x28, 0xb5, 0x2f, 0xfd, 0xff, 0xff, 0xff, 0xff},
		{0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff}, /* to be skipped, 4 GiB of it */
		{0},
	};

	put64(72, QCOW2_INCOMPATIBLE_COMPRESSION);
	bytes[104] = QCOW2_ZSTD;
	for (uint32_t i = 0; i < ARRAY_SIZE(frames); i++) {
		memcpy(bytes + data + CLUSTER, frames[i], sizeof(frames[i]));
		assert_reads(QCOW2_COMPRESSED | (data + CLUSTER), -EIO);
	}
}

/* Snapshots */

static void put_snapshots(uint32_t n, uint64_t place)
{
	put32(60, n);
	put64(64, place);
}

static void assert_no_snapshots(const char *words)
{
	struct block_snapshots snapshots;
	struct block_image *image;

	store();
	cr_assert_eq(try_open(&image, true), 0, "%s", err.text);
	cr_assert_lt(block_snapshots_read(image, &snapshots, &err), 0);
	cr_assert(strstr(err.text, words), "%s", err.text);
	cr_assert_lt(block_snapshot_view(image, "1", &err), 0);
	block_close(image);
}

Test(qcow2_bad, snapshots_of_absurd_counts)
{
	/* Rows of 0xff say that there are 64 KiB of name, and 4 GiB of more. */
	memset(bytes + data, 0xff, CLUSTER);
	put_snapshots(3, data);
	assert_no_snapshots("runs past the file's end");
	/* As many as the file has room for, were they as small as can be; they are not. */
	memset(bytes + data, 0, 7 * CLUSTER);
	memset(bytes + data + 12, 1, 4);
	put_snapshots((uint32_t)((n_bytes - data) / 40), data);
	assert_no_snapshots("runs past the file's end");
}

static void put_snapshot(uint64_t place, uint64_t table, uint32_t entries, uint64_t size)
{
	memset(bytes + place, 0, 64);
	put64(place, table);
	put32(place + 8, entries);
	put32(place + 12, 1 << 16 | 1);
	put32(place + 36, 16);
	put64(place + 48, size);
	memcpy(bytes + place + 56, "1x", 2);
	put_snapshots(1, place);
}

Test(qcow2_bad, a_snapshot_that_cannot_be_read)
{
	const struct {
		uint64_t table;
		uint32_t entries;
		uint64_t size;
	} snapshots[] = {
		{UINT64_C(1) << 40, 1, SIZE}, {l1 + 8, 1, SIZE},          {0, 1, SIZE},
		{l1, UINT32_MAX, SIZE},       {l1, 5 << 20, SIZE},        {l1, 0, SIZE},
		{l1, 1, UINT64_MAX},          {l1, 1, UINT64_C(1) << 40}, {l1, 1 << 20, SIZE},
	};

	for (uint32_t i = 0; i < ARRAY_SIZE(snapshots); i++) {
		struct block_snapshots list;
		struct block_image *image;

		put_snapshot(data + 7 * CLUSTER, snapshots[i].table, snapshots[i].entries,
			     snapshots[i].size);
		store();
		cr_assert_eq(try_open(&image, true), 0, "%s", err.text);
		cr_assert_eq(block_snapshots_read(image, &list, &err), 0);
		cr_assert_eq(list.n, 1);
		cr_assert_str_eq(list.list[0].name, "x");
		block_snapshots_free(&list);
		cr_assert_lt(block_snapshot_view(image, "x", &err), 0, "snapshot %u", i);
		cr_assert(*err.text);
		block_close(image);
	}
}

/* Repair through an image that is open */

static int repair_image(bool leaks, bool all, struct block_check *check)
{
	struct block_image *image;
	int r;

	store();
	err = ERROR_NULL;
	r = test_try_open(&image, "disk", &(struct block_open){.format = "qcow2", .repair = true},
			  O_RDWR, &err);
	if (r < 0)
		return r;
	r = block_check(image, leaks, all, NULL, NULL, NULL, check, &err);
	/* It can be used at once. */
	if (r >= 0 && !check->corruptions) {
		cr_assert_eq(block_write(image, bytes, CLUSTER, SIZE / 2), 0);
		cr_assert_eq(block_flush(image), 0);
	}
	block_close(image);
	return r;
}

static void assert_clean(void)
{
	char output[2000];

	if (test_has_qemu_img())
		cr_assert_eq(test_command(output, sizeof(output), "qemu-img check -q disk"), 0,
			     "%s", output);
}

Test(qcow2_bad, what_is_repaired_is_used_at_once)
{
	const uint64_t places[] = {0, UINT64_C(1) << 40, 512, l1, l2, reftable};
	struct block_check check;

	for (uint32_t i = 0; i < ARRAY_SIZE(places); i++) {
		put64(reftable, places[i]);
		cr_assert_eq(repair_image(false, true, &check), 0, "%s", err.text);
		cr_assert_eq(check.corruptions + check.leaks, 0);
		cr_assert_geq(check.fixed_corruptions, 1);
		assert_clean();
	}
}

Test(qcow2_bad, a_repair_of_entries_is_seen_by_the_open_image)
{
	struct block_check check;

	put64(l2 + 8, UINT64_C(1) << 40 | QCOW2_COPIED);
	cr_assert_eq(repair_image(true, false, &check), 0, "%s", err.text);
	cr_assert_eq(check.corruptions, 1);
	cr_assert_eq(repair_image(true, true, &check), 0, "%s", err.text);
	cr_assert_eq(check.corruptions + check.leaks, 0);
	cr_assert_eq(check.fixed_corruptions, 1);
	cr_assert_eq(check.fixed_leaks, 1);
	assert_clean();
}

Test(qcow2_bad, a_corrupt_image_is_only_written_after_repair)
{
	struct block_image *image;
	struct block_check check;

	put64(72, QCOW2_INCOMPATIBLE_CORRUPT);
	store();
	cr_assert_eq(try_open(&image, false), -EIO);
	cr_assert(strstr(err.text, "corral disk repair"), "%s", err.text);
	cr_assert_eq(repair_image(false, true, &check), 0);
	cr_assert_eq(try_open(&image, false), 0, "%s", err.text);
	block_close(image);
}

Test(qcow2_bad, a_dirty_image_is_only_written_after_repair)
{
	struct block_image *image;
	struct block_check check;

	put64(72, QCOW2_INCOMPATIBLE_DIRTY);
	put_refcount(data + 2 * CLUSTER, 0);
	store();
	cr_assert_eq(try_open(&image, false), -EIO);
	cr_assert(strstr(err.text, "corral disk repair"), "%s", err.text);
	/* Opening did it. */
	cr_assert_eq(repair_image(false, false, &check), 0);
	cr_assert_eq(check.corruptions + check.leaks, 0);
	cr_assert_eq(try_open(&image, false), 0, "%s", err.text);
	block_close(image);
	assert_clean();
}

Test(qcow2_bad, nothing_is_repaired_that_is_open_for_reading)
{
	struct block_image *image;
	struct block_check check;

	store();
	cr_assert_eq(try_open(&image, true), 0);
	cr_assert_eq(block_check(image, false, true, NULL, NULL, NULL, &check, &err), -EROFS);
	cr_assert_eq(block_check(image, false, false, NULL, NULL, NULL, &check, &err), 0);
	block_close(image);
}

Test(qcow2_bad, a_raw_image_is_as_large_as_it_is)
{
	struct block_image *image;
	struct block_check check;

	store();
	cr_assert_eq(test_try_open(&image, "disk",
				   &(struct block_open){.format = "raw", .readonly = true},
				   O_RDONLY, &err),
		     0);
	cr_assert_eq(block_check(image, false, false, NULL, NULL, NULL, &check, &err), 0);
	cr_assert_eq(check.end, n_bytes);
	cr_assert_eq(check.corruptions + check.leaks, 0);
	block_close(image);
}
