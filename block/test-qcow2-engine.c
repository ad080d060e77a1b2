/* SPDX-License-Identifier: Apache-2.0 */
/*
 * qcow2, one behaviour at a time: sizes, flags of the header, images that lie, stores that fail.
 */
#include <criterion/criterion.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "block/qcow2.h"
#include "block/test-qcow2.h"

TestSuite(qcow2_engine, .fini = test_clean, .timeout = 60);

#define KIB UINT64_C(1024)
#define MIB (KIB * KIB)
#define GIB (MIB * KIB)

static struct error err;

static void make(uint32_t cluster_bits, uint64_t size)
{
	test_create("disk", &(struct block_create){
				    .format = "qcow2", .size = size, .cluster_bits = cluster_bits});
}

static struct block_image *open_disk(void)
{
	return test_open("disk", "qcow2", false);
}

static int try_open(const struct block_open *how, struct block_image **ret_image)
{
	err = ERROR_NULL;
	return test_try_open(ret_image, "disk", how, how->readonly ? O_RDONLY : O_RDWR, &err);
}

static void expect_refused(const char *because, bool readonly)
{
	struct block_image *image;

	cr_assert_lt(
		try_open(&(struct block_open){.format = "qcow2", .readonly = readonly}, &image), 0);
	cr_assert(strstr(err.text, because), "\"%s\" says \"%s\"", err.text, because);
	cr_assert(strstr(err.text, "disk"), "\"%s\" names it", err.text);
}

static void patch(uint64_t offset, const void *data, size_t size)
{
	char path[TEST_PATH_SIZE];
	int fd = open(test_path(path, "disk"), O_RDWR | O_CLOEXEC);

	cr_assert_geq(fd, 0);
	cr_assert_eq(pwrite(fd, data, size, (off_t)offset), (ssize_t)size);
	close(fd);
}

static void patch64(uint64_t offset, uint64_t value)
{
	value = htobe64(value);
	patch(offset, &value, sizeof(value));
}

static uint64_t peek64(uint64_t offset)
{
	char path[TEST_PATH_SIZE];
	int fd = open(test_path(path, "disk"), O_RDONLY | O_CLOEXEC);
	uint64_t value;

	cr_assert_geq(fd, 0);
	cr_assert_eq(pread(fd, &value, sizeof(value), (off_t)offset), (ssize_t)sizeof(value));
	close(fd);
	return be64toh(value);
}

#define AT(member) offsetof(struct qcow2_disk_header, member)

static void write_pattern(struct block_image *image, uint8_t value, uint64_t size, uint64_t offset)
{
	uint8_t *data = malloc(size);

	memset(data, value, size);
	cr_assert_eq(block_write(image, data, size, offset), 0);
	free(data);
}

static void expect_pattern(struct block_image *image, uint8_t value, uint64_t size, uint64_t offset)
{
	uint8_t *data = malloc(size);

	cr_assert_eq(block_read(image, data, size, offset), 0);
	for (uint64_t i = 0; i < size; i++)
		cr_assert_eq(data[i], value, "byte %llu", (unsigned long long)(offset + i));
	free(data);
}

static int change(struct block_image *image, enum io_kind kind, uint64_t offset, uint64_t length)
{
	return block_do(image, &(struct io_op){.kind = kind, .offset = offset, .length = length});
}

static void expect_clean(void)
{
	char output[1000];

	if (test_has_qemu_img())
		cr_assert_eq(test_command(output, sizeof(output), "qemu-img check -f qcow2 disk"),
			     0, "%s", output);
}

static uint64_t file_size(void)
{
	char path[TEST_PATH_SIZE];
	struct stat st;

	cr_assert_eq(stat(test_path(path, "disk"), &st), 0);
	return (uint64_t)st.st_size;
}

/* What was there before is not seen */

Test(qcow2_engine, a_table_where_data_was_is_empty)
{
	struct block_image *image = NULL;

	make(14, GIB);
	cr_assert_eq(try_open(&(struct block_open){.format = "qcow2", .no_discard = true}, &image),
		     0, "%s", err.text);
	/* Each table is of four slices. What was given up is used again first. */
	write_pattern(image, 0xff, MIB, 0);
	cr_assert_eq(change(image, IO_ZERO, 0, MIB), 0);
	cr_assert_eq(block_flush(image), 0);
	for (uint64_t at = 32 * MIB; at < GIB; at += 32 * MIB)
		write_pattern(image, 1, 4096, at + 16 * MIB);
	cr_assert_eq(block_flush(image), 0);
	cr_assert_lt(file_size(), 2 * MIB, "given up clusters are used again");
	block_close(image);
	image = open_disk();
	for (uint64_t at = 32 * MIB; at < GIB; at += 32 * MIB) {
		expect_pattern(image, 0, 8 * KIB, at);
		expect_pattern(image, 1, 4096, at + 16 * MIB);
		expect_pattern(image, 0, 16 * KIB - 4096, at + 16 * MIB + 4096);
	}
	block_close(image);
	expect_clean();
}

Test(qcow2_engine, refcounts_where_rubbish_was_are_not_it)
{
	struct block_image *image;
	char output[200];

	make(13, 64 * MIB);
	/* A refcount block counts 4096 clusters: the second one lies in what is appended. */
	cr_assert_eq(test_command(output, sizeof(output), "head -c 70M /dev/urandom >>disk"), 0);
	image = open_disk();
	write_pattern(image, 7, 36 * MIB, 0);
	expect_pattern(image, 7, 36 * MIB, 0);
	block_close(image);
	expect_clean();
}

/* Sizes */

Test(qcow2_engine, a_disk_grows_beyond_its_tables)
{
	struct block_image *image;

	make(12, 64 * KIB);
	image = open_disk();
	write_pattern(image, 1, 64 * KIB, 0);
	for (uint64_t size = MIB; size <= 4 * GIB; size *= 16) {
		cr_assert_eq(block_resize(image, size, &err), 0, "%s", err.text);
		cr_assert_eq(image->size, size);
		expect_pattern(image, 0, 64 * KIB, size - 64 * KIB);
		write_pattern(image, 2, 8 * KIB, size - 8 * KIB);
	}
	expect_pattern(image, 1, 64 * KIB, 0);
	block_close(image);
	expect_clean();
	image = open_disk();
	cr_assert_eq(image->size, 4 * GIB);
	expect_pattern(image, 1, 64 * KIB, 0);
	expect_pattern(image, 2, 8 * KIB, 256 * MIB - 8 * KIB);
	expect_pattern(image, 2, 8 * KIB, 4 * GIB - 8 * KIB);
	block_close(image);
}

Test(qcow2_engine, what_was_cut_off_does_not_come_back)
{
	struct block_image *image;

	make(16, 10 * MIB);
	image = open_disk();
	write_pattern(image, 5, 10 * MIB, 0);
	cr_assert_eq(block_resize(image, 3 * MIB + 4096, &err), 0, "%s", err.text);
	cr_assert_eq(change(image, IO_READ, 0, 0), 0);
	expect_pattern(image, 5, 3 * MIB + 4096, 0);
	cr_assert_eq(block_resize(image, 20 * MIB, &err), 0, "%s", err.text);
	expect_pattern(image, 5, 3 * MIB + 4096, 0);
	expect_pattern(image, 0, 17 * MIB - 4096, 3 * MIB + 4096);
	block_close(image);
	expect_clean();
}

Test(qcow2_engine, a_size_that_no_table_holds_is_refused)
{
	struct block_image *image;

	make(12, MIB);
	image = open_disk();
	cr_assert_eq(block_resize(image, UINT64_C(1) << 50, &err), -EFBIG);
	cr_assert(strstr(err.text, "4096"), "%s", err.text);
	write_pattern(image, 5, MIB, 0);
	block_close(image);
	expect_clean();
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

Test(qcow2_engine, opening_costs_what_there_is)
{
	struct block_image *image;
	uint64_t best = UINT64_MAX;

	make(16, 1024 * GIB);
	image = open_disk();
	for (uint64_t i = 0; i < 1024; i++) /* a table each */
		write_pattern(image, 1, 4096, i * GIB);
	block_close(image);
	for (uint32_t i = 0; i < 5; i++) {
		const uint64_t start = now_ns();

		image = open_disk();
		expect_pattern(image, 1, 4096, 512 * GIB);
		best = MIN(best, now_ns() - start);
		block_close(image);
	}
	cr_assert_lt(best, 5000000u, "%llu ns", (unsigned long long)best);
}

Test(qcow2_engine, a_long_discard_of_nothing_takes_no_time)
{
	struct block_image *image;
	uint64_t start;

	make(12, 1024 * GIB);
	image = open_disk();
	start = now_ns();
	cr_assert_eq(change(image, IO_DISCARD, 0, image->size), 0);
	cr_assert_eq(change(image, IO_ZERO, 512, image->size - 1024), 0);
	cr_assert_lt(now_ns() - start, 1000000000u);
	block_close(image);
	cr_assert_lt(file_size(), 8 * MIB);
}

/* Space */

Test(qcow2_engine, discarded_space_is_given_back)
{
	char path[TEST_PATH_SIZE];
	struct block_image *image;
	struct stat st;

	make(16, 64 * MIB);
	image = open_disk();
	write_pattern(image, 3, 32 * MIB, 0);
	cr_assert_eq(change(image, IO_DISCARD, MIB, 30 * MIB), 0);
	cr_assert_eq(block_flush(image), 0);
	cr_assert_eq(stat(test_path(path, "disk"), &st), 0);
	cr_assert_lt((uint64_t)st.st_blocks * 512, 4 * MIB);
	block_close(image);
	expect_clean();
}

Test(qcow2_engine, zeroes_that_keep_space_keep_it)
{
	struct block_image *image;
	struct block_extent extent;

	make(16, 8 * MIB);
	image = open_disk();
	write_pattern(image, 3, 4 * MIB, 0);
	cr_assert_eq(change(image, IO_ZERO_KEEP, 0, 4 * MIB), 0);
	expect_pattern(image, 0, 4 * MIB, 0);
	cr_assert_eq(block_map(image, 0, 8 * MIB, &extent), 0);
	cr_assert_eq(extent.kind, BLOCK_ZERO);
	cr_assert_neq(extent.place, 0);
	cr_assert_eq(extent.length, 4 * MIB);
	write_pattern(image, 4, 4096, 4096);
	expect_pattern(image, 0, 4096, 0);
	expect_pattern(image, 4, 4096, 4096);
	expect_pattern(image, 0, 64 * KIB, 8192);
	block_close(image);
	cr_assert_lt(file_size(), 5 * MIB);
	expect_clean();
}

/* Flags */

Test(qcow2_engine, a_dirty_image_is_refused_for_writing)
{
	struct block_image *image = NULL;

	make(16, MIB);
	patch64(AT(incompatible), QCOW2_INCOMPATIBLE_DIRTY);
	expect_refused("repair", false);
	cr_assert_eq(try_open(&(struct block_open){.format = "qcow2", .readonly = true}, &image),
		     0);
	block_close(image);
	cr_assert_eq(try_open(&(struct block_open){.format = "qcow2", .repair = true}, &image), 0,
		     "%s", err.text);
	write_pattern(image, 1, MIB, 0);
	block_close(image);
	cr_assert_eq(peek64(AT(incompatible)), 0);
	expect_clean();
}

Test(qcow2_engine, a_corrupt_image_is_only_read)
{
	struct block_image *image = NULL;

	make(16, MIB);
	patch64(AT(incompatible), QCOW2_INCOMPATIBLE_CORRUPT);
	expect_refused("corrupt", false);
	cr_assert_eq(try_open(&(struct block_open){.format = "qcow2", .readonly = true}, &image),
		     0);
	block_close(image);
}

Test(qcow2_engine, what_is_not_known_is_refused)
{
	make(16, MIB);
	patch64(AT(incompatible), UINT64_C(1) << 40);
	expect_refused("number 40", true);
	patch64(AT(incompatible), QCOW2_INCOMPATIBLE_EXTENDED);
	expect_refused("extended L2", true);
	patch64(AT(incompatible), QCOW2_INCOMPATIBLE_DATA_FILE);
	expect_refused("another file", true);
	patch64(AT(incompatible), QCOW2_INCOMPATIBLE_COMPRESSION);
	expect_refused("compression", true);
}

Test(qcow2_engine, notes_about_content_are_cleared_by_a_writer)
{
	make(16, MIB);
	patch64(AT(autoclear), 5);
	block_close(test_open("disk", "qcow2", true));
	cr_assert_eq(peek64(AT(autoclear)), 5);
	block_close(open_disk());
	cr_assert_eq(peek64(AT(autoclear)), 0);
}

Test(qcow2_engine, lazy_refcounts_are_announced_and_paid)
{
	struct block_image *image;

	test_create("disk", &(struct block_create){
				    .format = "qcow2", .size = 8 * MIB, .lazy_refcounts = true});
	image = open_disk();
	cr_assert_eq(peek64(AT(incompatible)), 0);
	write_pattern(image, 1, 4 * MIB, 0);
	cr_assert_eq(peek64(AT(incompatible)), QCOW2_INCOMPATIBLE_DIRTY);
	cr_assert_eq(block_flush(image), 0);
	cr_assert_eq(block_yield(image, &err), 0);
	cr_assert_eq(peek64(AT(incompatible)), 0);
	expect_clean();
	cr_assert_eq(block_claim(image, &err), 0);
	write_pattern(image, 2, 4 * MIB, 4 * MIB);
	block_close(image);
	cr_assert_eq(peek64(AT(incompatible)), 0);
	expect_clean();
}

/* A move */

Test(qcow2_engine, an_inactive_image_sees_what_was_written_when_it_is_claimed)
{
	struct block_image *source, *target = NULL;

	test_create("disk", &(struct block_create){
				    .format = "qcow2", .size = 8 * MIB, .lazy_refcounts = true});
	source = open_disk();
	write_pattern(source, 1, MIB, 0);
	cr_assert_eq(block_flush(source), 0);
	/* Dirty by now; that is looked at when it is claimed. */
	cr_assert_eq(try_open(&(struct block_open){.format = "qcow2", .inactive = true}, &target),
		     0, "%s", err.text);
	expect_pattern(target, 0, MIB, 6 * MIB);
	cr_assert_eq(block_write(target, "x", 512, 0), -EROFS);
	cr_assert_eq(block_resize(source, 16 * MIB, &err), 0);
	write_pattern(source, 2, MIB, 6 * MIB);
	cr_assert_eq(block_claim(target, &err), -EBUSY);
	cr_assert_eq(block_yield(source, &err), 0, "%s", err.text);
	cr_assert_eq(block_claim(target, &err), 0, "%s", err.text);
	cr_assert_eq(target->size, 16 * MIB);
	expect_pattern(target, 1, MIB, 0);
	expect_pattern(target, 2, MIB, 6 * MIB);
	write_pattern(target, 3, MIB, 12 * MIB);
	cr_assert_eq(block_yield(target, &err), 0);
	cr_assert_eq(block_claim(source, &err), 0, "%s", err.text);
	expect_pattern(source, 3, MIB, 12 * MIB);
	block_close(target);
	block_close(source);
	expect_clean();
}

/* Images that lie */

/* 64 KiB clusters: header, refcount table, a block, the L1 table; then the L2 table, then data. */
enum { TABLE = 1 << 16, BLOCK = 2 << 16, L1 = 3 << 16, L2 = 4 << 16, DATA = 5 << 16 };

static void make_written(void)
{
	struct block_image *image;

	make(16, 8 * MIB);
	image = open_disk();
	write_pattern(image, 1, 128 * KIB, 0);
	block_close(image);
	cr_assert_eq(peek64(L1), L2 | QCOW2_COPIED);
	cr_assert_eq(peek64(L2), DATA | QCOW2_COPIED);
}

static void expect_entry_refused(uint64_t offset, uint64_t value)
{
	uint64_t before = peek64(offset);
	struct block_image *image;
	uint8_t data[4096];

	patch64(offset, value);
	image = open_disk();
	cr_assert_eq(block_read(image, data, sizeof(data), 0), -EIO, "%#llx",
		     (unsigned long long)value);
	cr_assert_eq(block_write(image, data, sizeof(data), 0), -EIO, "%#llx",
		     (unsigned long long)value);
	block_close(image);
	cr_assert_eq(peek64(offset), value, "nothing is written over it");
	patch64(offset, before);
}

Test(qcow2_engine, entries_that_point_nowhere_are_errors)
{
	static const uint64_t places[] = {
		DATA + 512, TABLE, L1, 1 << 30, QCOW2_OFFSET_MASK, QCOW2_OFFSET_MASK - 0xffff,
	};

	make_written();
	for (uint32_t i = 0; i < ARRAY_SIZE(places); i++) {
		expect_entry_refused(L2, places[i] | QCOW2_COPIED);
		expect_entry_refused(L2, places[i] | QCOW2_COPIED | QCOW2_ZERO);
		expect_entry_refused(L1, places[i] | QCOW2_COPIED);
		expect_entry_refused(L1, places[i]);
	}
	expect_entry_refused(L2, QCOW2_COMPRESSED | 1 << 30);
	expect_entry_refused(L2, QCOW2_COMPRESSED | (QCOW2_COMPRESSED - 1));
	expect_entry_refused(L2, QCOW2_COMPRESSED | DATA);
	expect_clean();
}

Test(qcow2_engine, what_counts_as_free_is_not_written)
{
	const uint16_t zero = 0;
	static const uint64_t clusters[] = {0, 1, 2, 3, 4, 5};

	for (uint32_t i = 0; i < ARRAY_SIZE(clusters); i++) {
		struct block_image *image = NULL;
		uint8_t data[4096] = {0};
		int r;

		make_written();
		patch(BLOCK + 2 * clusters[i], &zero, sizeof(zero));
		r = try_open(&(struct block_open){.format = "qcow2"}, &image);
		if (r == 0) {
			cr_assert_eq(block_write(image, data, sizeof(data), 0), -EIO);
			cr_assert_eq(block_write(image, data, sizeof(data), 4 * MIB), -EIO);
			expect_pattern(image, 1, 128 * KIB, 0);
			cr_assert_eq(block_flush(image), 0, "there is nothing to flush");
			block_close(image);
		} else {
			cr_assert(strstr(err.text, "refcounts"), "%s", err.text);
			cr_assert_lt(clusters[i], 4u);
		}
		image = test_open("disk", "qcow2", true);
		expect_pattern(image, 1, 128 * KIB, 0);
		block_close(image);
	}
}

Test(qcow2_engine, a_cluster_that_counts_twice_is_copied)
{
	const uint16_t two = htobe16(2);
	struct block_image *image;

	make_written();
	patch(BLOCK + 2 * 5, &two, sizeof(two));
	image = open_disk();
	write_pattern(image, 2, 4096, 0);
	expect_pattern(image, 2, 4096, 0);
	expect_pattern(image, 1, 60 * KIB, 4096);
	block_close(image);
	cr_assert_neq(peek64(L2) & QCOW2_OFFSET_MASK, DATA);
}

Test(qcow2_engine, a_table_of_refcounts_that_lies_stops_writing)
{
	static const uint64_t entries[] = {1 << 30, BLOCK + 512, L1, TABLE, UINT64_MAX, 0, 1};

	for (uint32_t i = 0; i < ARRAY_SIZE(entries); i++) {
		struct block_image *image = NULL;

		make_written();
		patch64(TABLE, entries[i]);
		expect_refused("refcounts", false);
		cr_assert_eq(
			try_open(&(struct block_open){.format = "qcow2", .repair = true}, &image),
			0, "%s", err.text);
		cr_assert_eq(block_write(image, "x", 512, 0), -EIO);
		block_close(image);
		image = test_open("disk", "qcow2", true);
		expect_pattern(image, 1, 128 * KIB, 0);
		block_close(image);
	}
}

Test(qcow2_engine, a_header_that_lies_is_refused)
{
	static const struct {
		size_t at;
		uint32_t size;
		uint64_t value;
		const char *because;
	} lies[] = {
		{AT(magic), 4, 0x51464900, "does not begin like one"},
		{AT(version), 4, 4, "version"},
		{AT(version), 4, 1, "version"},
		{AT(cluster_bits), 4, 8, "clusters"},
		{AT(cluster_bits), 4, 22, "clusters"},
		{AT(cluster_bits), 4, UINT32_MAX, "clusters"},
		{AT(size), 8, UINT64_MAX, "size"},
		{AT(size), 8, INT64_MAX, "L1 table is too small"},
		{AT(crypt_method), 4, 1, "encrypted"},
		{AT(l1_entries), 4, UINT32_MAX, "L1 table is too large"},
		{AT(l1_entries), 4, 0, "L1 table is too small"},
		{AT(l1_entries), 4, 1 << 20, "L1 table is not in the file"},
		{AT(l1_offset), 8, 0, "L1 table is not in the file"},
		{AT(l1_offset), 8, 512, "L1 table is not in the file"},
		{AT(l1_offset), 8, UINT64_MAX - 0xffff, "L1 table is not in the file"},
		{AT(reftable_offset), 8, 0, "refcount table is not in the file"},
		{AT(reftable_offset), 8, UINT64_C(1) << 62, "refcount table is not in the file"},
		{AT(reftable_clusters), 4, 0, "no refcount table"},
		{AT(reftable_clusters), 4, UINT32_MAX, "refcount table is too large"},
		{AT(n_snapshots), 4, UINT32_MAX, "too many snapshots"},
		{AT(n_snapshots), 4, 1, "snapshot table is not in the file"},
		{AT(refcount_order), 4, 7, "width"},
		{AT(header_size), 4, 96, "length"},
		{AT(header_size), 4, 105, "length"},
		{AT(header_size), 4, UINT32_MAX, "length"},
		{AT(compression), 1, 1, "compression"},
		{AT(backing_offset), 8, 1 << 17, "backing image"},
	};

	make(16, 8 * MIB);
	for (uint32_t i = 0; i < ARRAY_SIZE(lies); i++) {
		const uint64_t value = htobe64(lies[i].value << (64 - 8 * lies[i].size));
		const uint32_t length = htobe32(5);

		make(16, 8 * MIB);
		patch(AT(backing_size), &length, sizeof(length));
		patch(lies[i].at, &value, lies[i].size);
		expect_refused(lies[i].because, true);
	}
}

Test(qcow2_engine, a_file_that_was_cut_off_is_refused_or_read)
{
	struct block_image *image = NULL;
	char path[TEST_PATH_SIZE];

	make_written();
	for (uint64_t size = file_size(); size > 0; size -= MIN(size, UINT64_C(7777))) {
		uint8_t data[64 * 1024];

		cr_assert_eq(truncate(test_path(path, "disk"), (off_t)size), 0);
		if (try_open(&(struct block_open){.format = "qcow2", .readonly = true}, &image) < 0)
			continue;
		(void)!block_read(image, data, sizeof(data), 64 * KIB);
		block_close(image);
	}
}

/* Stores that fail */

struct store {
	struct block_recorder recorder;
	uint32_t flushes, fail; /* the flush of this number, from 1 on */
};

static int store_note(struct block_recorder *recorder, enum io_kind kind, uint64_t offset _unused_,
		      uint64_t length _unused_, const struct iovec *iov _unused_,
		      uint32_t n_iov _unused_)
{
	struct store *store = container_of(recorder, struct store, recorder);

	return kind == IO_FLUSH && ++store->flushes == store->fail ? -EIO : 0;
}

Test(qcow2_engine, a_failed_flush_is_told_once_and_then_made_good)
{
	for (uint32_t fail = 1; fail <= 3; fail++) {
		struct store store = {.recorder.note = store_note, .fail = fail};
		struct block_image *image;

		make(16, 8 * MIB);
		image = test_open_recorded("disk", &store.recorder);
		write_pattern(image, 1, MIB, 0);
		for (uint32_t i = 1; store.flushes < fail; i++) {
			int r = block_flush(image);

			cr_assert_eq(r, store.flushes >= fail ? -EIO : 0);
			write_pattern(image, 2, MIB, MIB * i);
		}
		cr_assert_eq(block_flush(image), 0);
		block_close(image);
		expect_clean();
	}
}

/* The kernel tells a failure once for each open file: a loop's flush may have taken it away. */
Test(qcow2_engine, a_loops_failed_flush_fails_the_commit_beside_it)
{
	struct block_image *image;
	struct qcow2 *qcow2;

	make(16, 8 * MIB);
	image = open_disk();
	qcow2 = to_qcow2(image);
	cr_assert(qcow2_flush_begin(qcow2));
	write_pattern(image, 1, MIB, 0);
	cr_assert_not(qcow2_flush_begin(qcow2), "now there is something to commit");
	qcow2_flush_end(qcow2, -EIO);
	cr_assert_eq(block_flush(image), -EIO);
	cr_assert_eq(block_flush(image), 0);
	cr_assert(qcow2_flush_begin(qcow2));
	qcow2_flush_end(qcow2, 0);
	block_close(image);
	expect_clean();
}

/* Without what is under it */

Test(qcow2_engine, without_its_backing_image_no_cluster_is_made_up)
{
	struct block_image *image = NULL;

	test_create("base", &(struct block_create){.format = "qcow2", .size = MIB});
	test_create("disk", &(struct block_create){.format = "qcow2",
						   .size = MIB,
						   .backing_name = "base",
						   .backing_format = "qcow2"});
	cr_assert_eq(try_open(&(struct block_open){.format = "qcow2", .no_backing = true}, &image),
		     0, "%s", err.text);
	cr_assert_eq(block_write(image, "", 512, 512), -EIO);
	write_pattern(image, 1, 64 * KIB, 0);
	write_pattern(image, 2, 512, 512);
	block_close(image);
	expect_clean();
}

/* Making images */

Test(qcow2_engine, images_are_made_as_asked)
{
	for (uint32_t bits = 12; bits <= 21; bits++)
		for (uint64_t size = 512; size < UINT64_C(1) << 43; size *= 4096) {
			struct block_image *image;

			make(bits, size);
			expect_clean();
			image = open_disk();
			cr_assert_eq(image->size, size);
			cr_assert_eq(image->discard_block, 1u << bits);
			write_pattern(image, 9, 512, size - 512);
			expect_pattern(image, 9, 512, size - 512);
			block_close(image);
			expect_clean();
		}
}

static int try_create(const struct block_create *create)
{
	char path[TEST_PATH_SIZE];
	int fd = open(test_path(path, "disk"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), r;

	err = ERROR_NULL;
	r = block_create(fd, create, "disk", &err);
	close(fd);
	return r;
}

Test(qcow2_engine, what_cannot_be_made_is_said)
{
	char name[2000];

	memset(name, 'x', sizeof(name));
	name[1999] = 0;
	cr_assert_eq(try_create(&(struct block_create){.format = "qcow2", .size = 1000}), -EINVAL);
	cr_assert_eq(try_create(&(struct block_create){.format = "qcow2"}), -EINVAL);
	cr_assert_eq(try_create(&(struct block_create){
			     .format = "qcow2", .size = MIB, .cluster_bits = 11}),
		     -EINVAL);
	cr_assert_eq(try_create(&(struct block_create){
			     .format = "qcow2", .size = UINT64_C(1) << 52, .cluster_bits = 12}),
		     -EFBIG);
	cr_assert_eq(try_create(&(struct block_create){.format = "vdi", .size = MIB}), -EINVAL);
	cr_assert_eq(try_create(&(struct block_create){
			     .format = "qcow2", .size = MIB, .backing_name = name}),
		     -E2BIG);
	make(16, MIB);
	cr_assert_eq(block_create(open("/dev/null", O_RDWR),
				  &(struct block_create){.format = "raw", .size = MIB}, "null",
				  &err),
		     -EINVAL);
}
