/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Check and repair, on a small image made here byte by byte, with one thing wrong at a time: it is
 * found, said, and mended, and what was not wrong is as it was. Images made to be endless are over
 * soon.
 */
#include <criterion/criterion.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "block/qcow2-check.h"
#include "block/qcow2-format.h"

/* The image: 4 KiB clusters, each structure one of them, guest cluster i at DATA + i. */
#define BITS     12u
#define CLUSTER  4096u
#define REFTABLE 1u
#define REFBLOCK 2u
#define L1       3u
#define L2       4u
#define DATA     5u
#define N_DATA   8u
#define END      (DATA + N_DATA)
#define ROOM     64u
#define AT(c)    ((uint64_t)(c)*CLUSTER)

static uint8_t *bytes; /* ROOM clusters */
static uint32_t n_clusters;
static struct block_file file;
static struct block_check result;
static struct error err;
static char sentences[64][400];
static uint32_t n_sentences;

static void put64(uint64_t at, uint64_t value)
{
	value = htobe64(value);
	memcpy(bytes + at, &value, 8);
}

static uint64_t get64(uint64_t at)
{
	uint64_t value;

	memcpy(&value, bytes + at, 8);
	return be64toh(value);
}

static void put32(uint64_t at, uint32_t value)
{
	value = htobe32(value);
	memcpy(bytes + at, &value, 4);
}

static void put_refcount(uint32_t cluster, uint16_t value)
{
	value = htobe16(value);
	memcpy(bytes + AT(REFBLOCK) + cluster * 2, &value, 2);
}

static uint16_t get_refcount(uint32_t cluster)
{
	uint16_t value;

	memcpy(&value, bytes + AT(REFBLOCK) + cluster * 2, 2);
	return be16toh(value);
}

static void put_header(void)
{
	struct qcow2_header header = {
		.version = 3,
		.cluster_bits = BITS,
		.refcount_order = 4,
		.size = 4 << 20,
		.l1_entries = 2,
		.l1_offset = AT(L1),
		.reftable_offset = AT(REFTABLE),
		.reftable_clusters = 1,
		.header_size = QCOW2_HEADER_V3_SIZE,
	};

	memset(bytes, 0, CLUSTER);
	cr_assert_eq(qcow2_header_build(bytes, CLUSTER, &header, "it", &err), 0, "%s", err.text);
}

static void set_up(void)
{
	bytes = calloc(ROOM, CLUSTER);
	n_clusters = END;
	put_header();
	put64(AT(REFTABLE), AT(REFBLOCK));
	put64(AT(L1), AT(L2) | QCOW2_COPIED);
	for (uint32_t i = 0; i < N_DATA; i++) {
		put64(AT(L2) + i * 8, AT(DATA + i) | QCOW2_COPIED);
		memset(bytes + AT(DATA + i), 0xa0 + i, CLUSTER);
	}
	for (uint32_t i = 0; i < END; i++)
		put_refcount(i, 1);
	file = (struct block_file){.fd = -1};
}

static void tear_down(void)
{
	block_file_close(&file);
	free(bytes);
}

TestSuite(qcow2_check, .init = set_up, .fini = tear_down, .timeout = 60);

static void on_sentence(void *arg _unused_, const char *sentence)
{
	if (n_sentences < ARRAY_SIZE(sentences))
		snprintf(sentences[n_sentences], sizeof(sentences[0]), "%s", sentence);
	n_sentences++;
}

/* Puts the bytes in a file. */
static void store(void)
{
	int fd = memfd_create("image", MFD_CLOEXEC);

	block_file_close(&file);
	cr_assert_eq(block_file_init(&file, fd, "it", &err), 0);
	cr_assert_eq(block_file_write(&file, bytes, AT(n_clusters), 0), 0);
}

/* And back. */
static void fetch(void)
{
	n_clusters = (uint32_t)((block_file_size(&file) + CLUSTER - 1) / CLUSTER);
	cr_assert_leq(n_clusters, ROOM);
	cr_assert_eq(block_file_read(&file, bytes, AT(n_clusters), 0), 0);
}

static int run(bool leaks, bool refcounts, bool entries)
{
	struct qcow2_check_options options = {
		.fix_leaks = leaks,
		.fix_refcounts = refcounts,
		.fix_entries = entries,
		.report = on_sentence,
	};

	n_sentences = 0;
	result = (struct block_check){0};
	return qcow2_check(&file, "it", &options, &result, &err);
}

static void check(uint64_t corruptions, uint64_t leaks)
{
	store();
	cr_assert_eq(run(false, false, false), 0, "%s", err.text);
	cr_assert_eq(result.corruptions, corruptions, "%lu; %s", result.corruptions, sentences[0]);
	cr_assert_eq(result.leaks, leaks, "%lu; %s", result.leaks, sentences[0]);
	if (corruptions + leaks)
		cr_assert_geq(n_sentences, 1);
}

static void assert_said(const char *words)
{
	for (uint32_t i = 0; i < n_sentences && i < ARRAY_SIZE(sentences); i++)
		if (strstr(sentences[i], words))
			return;
	cr_assert_fail("nobody said \"%s\" but \"%s\"", words, sentences[0]);
}

/* Repairs what was checked; another check says there is nothing. */
static void repair_all(void)
{
	uint64_t corruptions = result.corruptions, leaks = result.leaks;

	cr_assert_eq(run(true, true, true), 0, "%s", err.text);
	cr_assert_eq(result.corruptions + result.leaks, 0, "%s", sentences[0]);
	cr_assert_eq(result.fixed_corruptions, corruptions);
	cr_assert_eq(result.fixed_leaks, leaks);
	cr_assert_eq(run(false, false, false), 0);
	cr_assert_eq(result.corruptions + result.leaks, 0, "%s", sentences[0]);
	fetch();
	cr_assert_eq(get64(72), 0, "neither dirty nor corrupt");
}

/* The guest's cluster reads as it was. */
static void assert_kept(uint32_t from, uint32_t to)
{
	for (uint32_t i = from; i < to; i++) {
		uint64_t place = get64(AT(L2) + i * 8) & QCOW2_OFFSET_MASK;

		cr_assert_eq(place, AT(DATA + i), "guest cluster %u", i);
		cr_assert_eq(bytes[place], 0xa0 + i);
		cr_assert_eq(bytes[place + CLUSTER - 1], 0xa0 + i);
	}
}

Test(qcow2_check, a_good_image_is_good)
{
	check(0, 0);
	cr_assert_eq(n_sentences, 0);
	cr_assert_eq(result.allocated, N_DATA);
	cr_assert_eq(result.compressed, 0);
	cr_assert_eq(result.total, 1024);
	cr_assert_eq(result.end, AT(END));
}

Test(qcow2_check, repair_writes_nothing_to_a_good_image)
{
	uint8_t *before = malloc(AT(END));

	memcpy(before, bytes, AT(END));
	check(0, 0);
	repair_all();
	cr_assert_eq(n_clusters, END);
	cr_assert_eq(memcmp(before, bytes, AT(END)), 0);
	free(before);
}

Test(qcow2_check, leaks_are_freed)
{
	n_clusters = END + 3;
	put_refcount(END, 1);
	put_refcount(END + 1, 1);
	put_refcount(END + 2, 7);
	check(0, 3);
	assert_said("2 clusters from 0xd000 on: nothing points there, the refcount is 1");
	assert_said("1 cluster from 0xf000 on: nothing points there, the refcount is 7");
	cr_assert_eq(result.end, AT(END + 3));
	cr_assert_eq(run(true, false, false), 0);
	cr_assert_eq(result.leaks, 0);
	cr_assert_eq(result.fixed_leaks, 3);
	cr_assert_eq(result.end, AT(END));
	fetch();
	for (uint32_t i = 0; i < 3; i++)
		cr_assert_eq(get_refcount(END + i), 0);
	assert_kept(0, N_DATA);
}

Test(qcow2_check, a_refcount_too_high_is_a_leak_and_its_flag_goes_with_it)
{
	put_refcount(DATA + 2, 5);
	put64(AT(L2) + 2 * 8, AT(DATA + 2));
	check(0, 1);
	assert_said("the refcount is 5, but 1 point there");
	cr_assert_eq(run(true, false, false), 0);
	cr_assert_eq(result.leaks + result.corruptions, 0);
	fetch();
	cr_assert_eq(get64(AT(L2) + 2 * 8), AT(DATA + 2) | QCOW2_COPIED);
}

Test(qcow2_check, a_refcount_too_low_is_raised)
{
	put_refcount(DATA + 3, 0);
	put_refcount(L2, 0);
	check(4, 0); /* and a flag each */
	assert_said("the refcount is 0, but 1 point there");
	repair_all();
	cr_assert_eq(get_refcount(DATA + 3), 1);
	assert_kept(0, N_DATA);
}

Test(qcow2_check, repairing_leaks_does_nothing_else)
{
	n_clusters = END + 1;
	put_refcount(END, 1);
	put_refcount(DATA + 3, 0);
	check(2, 1);
	cr_assert_eq(run(true, false, false), 0);
	cr_assert_eq(result.corruptions, 2);
	cr_assert_eq(result.leaks, 0);
	fetch();
	cr_assert_eq(get_refcount(DATA + 3), 0);
}

Test(qcow2_check, no_space_is_freed_where_tables_are_broken)
{
	put64(AT(L2) + 8, AT(50) | QCOW2_COPIED);
	check(1, 1);
	cr_assert_eq(run(true, false, false), 0);
	cr_assert_eq(result.leaks, 1);
	assert_said("no space is freed");
}

Test(qcow2_check, wrong_flags_are_put_right)
{
	put64(AT(L2), AT(DATA));
	put64(AT(L1), AT(L2));
	check(2, 0);
	assert_said("entry 0 of the L1 table is wrong about");
	assert_said("the entry of guest offset 0x0 is wrong about");
	repair_all();
	cr_assert_eq(get64(AT(L2)), AT(DATA) | QCOW2_COPIED);
	cr_assert_eq(get64(AT(L1)), AT(L2) | QCOW2_COPIED);
}

Test(qcow2_check, an_entry_behind_the_end_is_emptied)
{
	put64(AT(L2) + 3 * 8, AT(END) | QCOW2_COPIED);
	check(1, 1);
	assert_said("guest offset 0x3000 points to 0xd000, which is behind the file's end: repair "
		    "makes it read as zeroes");
	repair_all();
	cr_assert_eq(get64(AT(L2) + 3 * 8), QCOW2_ZERO);
	assert_kept(0, 3);
	assert_kept(4, N_DATA);
}

Test(qcow2_check, in_version_2_there_are_no_zero_entries)
{
	put32(4, 2);
	memset(bytes + QCOW2_HEADER_V2_SIZE, 0, 40);
	put64(AT(L2) + 3 * 8, AT(END) | QCOW2_COPIED);
	check(1, 1);
	assert_said("repair empties it");
	repair_all();
	cr_assert_eq(get64(AT(L2) + 3 * 8), 0);
}

Test(qcow2_check, the_last_cluster_may_be_there_in_part)
{
	store();
	cr_assert_eq(block_file_resize(&file, AT(END) - CLUSTER + 1), 0);
	cr_assert_eq(run(false, false, false), 0);
	cr_assert_eq(result.corruptions + result.leaks, 0);
	cr_assert_eq(block_file_resize(&file, AT(END) - CLUSTER), 0);
	cr_assert_eq(run(false, false, false), 0);
	cr_assert_eq(result.corruptions, 1);
}

Test(qcow2_check, an_entry_within_a_cluster_is_emptied)
{
	put64(AT(L2) + 3 * 8, (AT(DATA + 3) + 512) | QCOW2_COPIED);
	check(1, 1);
	assert_said("is not where a cluster begins");
	repair_all();
	cr_assert_eq(get64(AT(L2) + 3 * 8), QCOW2_ZERO);
}

Test(qcow2_check, reserved_bits_are_cleared_and_the_data_stays)
{
	put64(AT(L2) + 3 * 8, AT(DATA + 3) | QCOW2_COPIED | 1 << 5 | UINT64_C(1) << 57);
	put64(AT(L1), AT(L2) | QCOW2_COPIED | 4);
	check(2, 0);
	assert_said("entry 0 of the L1 table (2097152 bytes from guest offset 0x0) has bits");
	assert_said("guest offset 0x3000 has bits that are reserved");
	repair_all();
	cr_assert_eq(get64(AT(L1)), AT(L2) | QCOW2_COPIED);
	assert_kept(0, N_DATA);
}

Test(qcow2_check, a_guest_cluster_on_a_table_is_taken_away)
{
	static const uint32_t tables[] = {L1, L2};

	for (uint32_t i = 0; i < ARRAY_SIZE(tables); i++) {
		put64(AT(L2) + 3 * 8, AT(tables[i]) | QCOW2_COPIED);
		put_refcount(tables[i], 2);
		store();
		cr_assert_eq(run(false, false, false), 0);
		cr_assert_geq(result.corruptions, 1);
		assert_said("guest offset 0x3000 points to");
		repair_all();
		cr_assert_eq(get64(AT(L2) + 3 * 8), QCOW2_ZERO);
		cr_assert_eq(get64(AT(L1)), AT(L2) | QCOW2_COPIED);
		assert_kept(0, 3);
		assert_kept(4, N_DATA);
		tear_down();
		set_up();
	}
}

Test(qcow2_check, a_guest_cluster_on_refcounts_gets_them_moved)
{
	put64(AT(L2) + 3 * 8, AT(REFBLOCK) | QCOW2_COPIED);
	store();
	cr_assert_eq(run(false, false, false), 0);
	assert_said("the refcount block lies on something else");
	repair_all();
	cr_assert_neq(get64(48), AT(REFTABLE));
	cr_assert_eq(get64(AT(L2) + 3 * 8), AT(REFBLOCK) | QCOW2_COPIED);
	assert_kept(0, 3);
	assert_kept(4, N_DATA);
}

Test(qcow2_check, two_entries_of_one_cluster_share_it)
{
	put64(AT(L2) + 3 * 8, AT(DATA + 2) | QCOW2_COPIED);
	check(1, 1);
	repair_all();
	cr_assert_eq(get64(AT(L2) + 2 * 8), AT(DATA + 2), "to be copied before it is written");
	cr_assert_eq(get64(AT(L2) + 3 * 8), AT(DATA + 2));
	cr_assert_eq(get_refcount(DATA + 2), 2);
}

Test(qcow2_check, two_tables_that_are_one_share_it)
{
	put64(AT(L1) + 8, AT(L2) | QCOW2_COPIED);
	store();
	cr_assert_eq(run(false, false, false), 0);
	cr_assert_eq(result.corruptions, 1 + N_DATA);
	repair_all();
	cr_assert_eq(get_refcount(L2), 2);
	cr_assert_eq(get_refcount(DATA), 2);
	cr_assert_eq(get64(AT(L2)), AT(DATA));
	cr_assert_eq(get64(AT(L1)), AT(L2));
}

Test(qcow2_check, a_table_that_is_guest_data_loses)
{
	memset(bytes + AT(DATA + 2), 0x5b, CLUSTER);
	put64(AT(L1) + 8, AT(DATA + 2) | QCOW2_COPIED);
	store();
	cr_assert_eq(run(false, false, false), 0);
	assert_said("entry 1 of the L1 table (2097152 bytes from guest offset 0x200000) points to "
		    "what is guest data");
	repair_all();
	cr_assert_eq(get64(AT(L1) + 8), 0);
	cr_assert_eq(get64(AT(L2) + 2 * 8), AT(DATA + 2) | QCOW2_COPIED);
	cr_assert_eq(bytes[AT(DATA + 2)], 0x5b);
}

Test(qcow2_check, a_table_on_the_header_is_let_go)
{
	put64(AT(L1) + 8, QCOW2_COPIED);
	put64(AT(L1), AT(L1) | QCOW2_COPIED);
	store();
	cr_assert_eq(run(false, false, false), 0);
	cr_assert_geq(result.corruptions, 2);
	repair_all();
	cr_assert_eq(get64(AT(L1)), 0);
	cr_assert_eq(get64(AT(L1) + 8), 0);
}

Test(qcow2_check, compressed_clusters_count_where_they_lie)
{
	/* 2 sectors that end in the next cluster, and a third cluster's worth behind them. */
	n_clusters = END + 2;
	put_refcount(END, 2);
	put_refcount(END + 1, 1);
	put64(AT(L2) + 20 * 8, QCOW2_COMPRESSED | UINT64_C(1) << 58 | (AT(END + 1) - 512));
	put64(AT(L2) + 21 * 8, QCOW2_COMPRESSED | AT(END));
	check(0, 0);
	cr_assert_eq(result.compressed, 2);
	cr_assert_eq(result.allocated, N_DATA + 2);
	put64(AT(L2) + 21 * 8, QCOW2_COMPRESSED | QCOW2_COPIED | AT(END));
	check(1, 0);
	repair_all();
	cr_assert_eq(get64(AT(L2) + 21 * 8), QCOW2_COMPRESSED | AT(END));
	put64(AT(L2) + 21 * 8, QCOW2_COMPRESSED | AT(END + 2));
	check(1, 1);
	repair_all();
	cr_assert_eq(get64(AT(L2) + 21 * 8), QCOW2_ZERO);
}

Test(qcow2_check, missing_refcounts_are_made)
{
	put64(AT(REFTABLE), 0);
	check(12 + 1 + N_DATA, 0); /* every cluster but the block; and every flag */
	repair_all();
	cr_assert_neq(get64(48), AT(REFTABLE));
	assert_kept(0, N_DATA);
}

Test(qcow2_check, refcounts_that_are_nowhere_are_made)
{
	static const uint64_t places[] = {AT(60), AT(REFBLOCK) + 512, AT(L2), AT(REFTABLE), 0x10};

	for (uint32_t i = 0; i < ARRAY_SIZE(places); i++) {
		put64(AT(REFTABLE), places[i]);
		store();
		cr_assert_eq(run(false, false, false), 0);
		cr_assert_geq(result.corruptions, 1);
		assert_said("repair counts anew");
		repair_all();
		assert_kept(0, N_DATA);
		tear_down();
		set_up();
	}
}

Test(qcow2_check, a_refcount_table_of_one_block_again_and_again)
{
	for (uint32_t i = 1; i < CLUSTER / 8; i++)
		put64(AT(REFTABLE) + i * 8, AT(REFBLOCK));
	store();
	cr_assert_eq(run(false, false, false), 0);
	cr_assert_geq(result.corruptions, CLUSTER / 8 - 1);
	repair_all();
	assert_kept(0, N_DATA);
}

Test(qcow2_check, refcounts_too_narrow_are_widened)
{
	uint8_t *block = bytes + AT(REFBLOCK);

	memset(block, 0, CLUSTER);
	block[0] = 0xff;
	block[1] = 0x1f;
	put32(96, 0);
	check(0, 0);
	put64(AT(L2) + 3 * 8, AT(DATA + 2) | QCOW2_COPIED);
	check(1, 1);
	repair_all();
	cr_assert_eq(be32toh(*(uint32_t *)(bytes + 96)), 1);
	assert_kept(0, 2);
}

/* Snapshots */

/* One that shares all there is: L1 table and table of snapshots at the end. */
static void put_snapshot(void)
{
	uint64_t entry = AT(END + 1);

	n_clusters = END + 2;
	put32(60, 1);
	put64(64, entry);
	put64(entry, AT(END));
	put32(entry + 8, 2);
	put32(entry + 12, 1 << 16 | 5);
	put32(entry + 36, 16);
	put64(entry + 48, 4 << 20);
	memcpy(bytes + entry + 56, "1first", 6);
	put64(AT(END), AT(L2));
	put64(AT(L1), AT(L2));
	for (uint32_t i = L2; i < END; i++)
		put_refcount(i, 2);
	for (uint32_t i = 0; i < N_DATA; i++)
		put64(AT(L2) + i * 8, AT(DATA + i));
	put_refcount(END, 1);
	put_refcount(END + 1, 1);
}

Test(qcow2_check, snapshots_count_too)
{
	put_snapshot();
	check(0, 0);
	put_refcount(DATA, 1);
	check(2, 0);
	repair_all();
	cr_assert_eq(get_refcount(DATA), 2);
	assert_kept(0, N_DATA);
}

Test(qcow2_check, a_snapshot_that_is_nowhere_is_forgotten)
{
	static const uint64_t places[] = {AT(60), AT(END) + 512, AT(L1), AT(L2), 0};

	for (uint32_t i = 0; i < ARRAY_SIZE(places); i++) {
		put_snapshot();
		put64(AT(END + 1), places[i]);
		store();
		cr_assert_eq(run(false, false, false), 0);
		cr_assert_geq(result.corruptions, 1);
		assert_said("snapshot \"first\", number 0: its L1 table ");
		repair_all();
		cr_assert_eq(get64(64), 0);
		cr_assert_eq(get_refcount(DATA), 1);
		assert_kept(0, N_DATA);
		tear_down();
		set_up();
	}
}

Test(qcow2_check, other_snapshots_stay)
{
	uint64_t entry = AT(END + 1);

	put_snapshot();
	put32(60, 2);
	memcpy(bytes + entry + 64, bytes + entry, 64);
	put64(entry, AT(60));
	memcpy(bytes + entry + 64 + 56, "2other", 6);
	store();
	cr_assert_eq(run(false, false, false), 0);
	cr_assert_eq(result.corruptions, 1);
	repair_all();
	entry = get64(64);
	cr_assert_neq(entry, AT(END + 1), "the new table lies elsewhere");
	cr_assert_eq(memcmp(bytes + entry + 56, "2other", 6), 0);
	cr_assert_eq(get_refcount(DATA), 2);
}

Test(qcow2_check, a_table_of_snapshots_that_is_none)
{
	put_snapshot();
	put64(64, AT(L1));
	store();
	cr_assert_eq(run(false, false, false), 0);
	assert_said("repair forgets all snapshots");
	repair_all();
	cr_assert_eq(get64(64), 0);
	assert_kept(0, N_DATA);
}

Test(qcow2_check, an_absurd_number_of_snapshots_is_refused)
{
	put_snapshot();
	put32(60, UINT32_MAX);
	store();
	cr_assert_eq(run(false, false, false), -EINVAL);
	cr_assert(strstr(err.text, "snapshots"), "%s", err.text);
	put32(60, 65536);
	store();
	cr_assert_lt(run(false, false, false), 0);
}

Test(qcow2_check, a_snapshot_on_guest_data_is_forgotten)
{
	put_snapshot();
	put64(AT(END + 1), AT(DATA + 3));
	store();
	cr_assert_eq(run(false, false, false), 0);
	assert_said("its L1 table makes no sense");
	repair_all();
	assert_kept(0, N_DATA);
}

Test(qcow2_check, no_snapshots_are_nowhere)
{
	put64(64, 0x11);
	check(1, 0);
	repair_all();
	cr_assert_eq(get64(64), 0);
}

Test(qcow2_check, a_snapshot_that_does_not_say_its_size)
{
	put_snapshot();
	put32(AT(END + 1) + 36, 0);
	memcpy(bytes + AT(END + 1) + 40, "1first", 6);
	check(1, 0);
	repair_all();
	cr_assert_eq(get64(get64(64) + 48), 4 << 20);
}

/* Bitmaps */

static void put_bitmaps(void)
{
	n_clusters = END + 3;
	put64(88, 1);
	put32(112, QCOW2_EXTENSION_BITMAPS);
	put32(116, 24);
	put32(120, 1);
	put64(128, 32);
	put64(136, AT(END));
	put64(AT(END), AT(END + 1));
	put32(AT(END) + 8, 1);
	put32(AT(END) + 16, 1 << 24 | 16 << 16 | 1);
	put64(AT(END + 1), AT(END + 2));
	for (uint32_t i = 0; i < 3; i++)
		put_refcount(END + i, 1);
}

Test(qcow2_check, bitmaps_own_clusters)
{
	put_bitmaps();
	check(0, 0);
	put64(88, 0);
	check(0, 3); /* out of date: nobody knows of them */
}

Test(qcow2_check, broken_bitmaps_are_forgotten)
{
	static const struct {
		uint64_t at, value;
	} faults[] = {
		{AT(END), AT(60)},
		{AT(END + 1), AT(L2)},
		{136, AT(60)},
		{136, AT(L1)},
		{128, 8},
		{128, UINT64_MAX},
		{AT(END + 1), UINT64_MAX},
		{136, 17},
	};

	for (uint32_t i = 0; i < ARRAY_SIZE(faults); i++) {
		put_bitmaps();
		put64(faults[i].at, faults[i].value);
		store();
		cr_assert_eq(run(false, false, false), 0);
		cr_assert_eq(result.corruptions, 1, "%u: %s", i, sentences[0]);
		assert_said("persistent bitmaps");
		cr_assert_eq(run(true, false, false), 0);
		assert_said("no space is freed");
		cr_assert_eq(run(true, true, true), 0);
		cr_assert_eq(result.corruptions + result.leaks, 0);
		fetch();
		cr_assert_eq(get64(88), 0);
		assert_kept(0, N_DATA);
		tear_down();
		set_up();
	}
}

Test(qcow2_check, there_is_no_raw_file_of_data)
{
	put64(88, 2);
	check(1, 0);
	repair_all();
	cr_assert_eq(get64(88), 0);
}

/* Dirty images */

Test(qcow2_check, an_image_whose_writer_died_is_put_in_order)
{
	put64(72, QCOW2_INCOMPATIBLE_DIRTY);
	for (uint32_t i = 2; i < N_DATA; i++)
		put_refcount(DATA + i, 0);
	put_refcount(END, 1);
	n_clusters = END + 1;
	store();
	cr_assert_eq(qcow2_repair_dirty(&file, "it", &err), 0, "%s", err.text);
	fetch();
	cr_assert_eq(get64(72), 0);
	cr_assert_eq(get_refcount(DATA + 2), 1);
	cr_assert_eq(get_refcount(END), 0);
	assert_kept(0, N_DATA);
}

Test(qcow2_check, a_dirty_image_that_is_broken_stays_as_it_is)
{
	put64(72, QCOW2_INCOMPATIBLE_DIRTY);
	put64(AT(L2) + 8, AT(60) | QCOW2_COPIED);
	store();
	cr_assert_eq(qcow2_repair_dirty(&file, "it", &err), -EIO);
	cr_assert(strstr(err.text, "corral disk check"));
	fetch();
	cr_assert_eq(get64(72), QCOW2_INCOMPATIBLE_DIRTY);
	cr_assert_eq(get64(AT(L2) + 8), AT(60) | QCOW2_COPIED);
}

Test(qcow2_check, the_mark_of_corruption_goes_when_there_is_none)
{
	put64(72, QCOW2_INCOMPATIBLE_CORRUPT);
	check(0, 0);
	repair_all();
}

/* A crash while it is repaired */

struct log_entry {
	enum io_kind kind;
	uint64_t offset;
	uint8_t *data; /* owned */
	size_t size;
};

static struct recorder {
	struct block_recorder head;
	struct log_entry entries[256];
	uint32_t n;
} recorder;

static int on_change(struct block_recorder *head, enum io_kind kind, uint64_t offset,
		     uint64_t length, const struct iovec *iov, uint32_t n_iov)
{
	struct recorder *to = container_of(head, struct recorder, head);
	struct log_entry *entry = &to->entries[to->n++];

	cr_assert_leq(to->n, ARRAY_SIZE(to->entries));
	cr_assert(kind == IO_WRITE || kind == IO_FLUSH);
	*entry = (struct log_entry){kind, offset, NULL, length};
	if (kind == IO_WRITE) {
		cr_assert_eq(n_iov, 1);
		entry->data = malloc(length);
		memcpy(entry->data, iov->iov_base, length);
	}
	return 0;
}

/* The file as it is after a crash behind the `n`th change: a flushed one is there, others may be.
 */
static void replay(uint32_t n, uint32_t lost)
{
	uint32_t flushed = 0;

	for (uint32_t i = 0; i < n; i++)
		if (recorder.entries[i].kind == IO_FLUSH)
			flushed = i;
	store();
	for (uint32_t i = 0; i < n; i++) {
		const struct log_entry *entry = &recorder.entries[i];

		if (entry->kind != IO_WRITE || (i > flushed && lost >> (i - flushed) % 8 & 1))
			continue;
		cr_assert_eq(block_file_write(&file, entry->data, entry->size, entry->offset), 0);
	}
}

static void crash_everywhere(void)
{
	uint8_t *before = malloc(AT(ROOM));
	uint32_t clusters = n_clusters;

	memcpy(before, bytes, AT(ROOM));
	recorder = (struct recorder){.head.note = on_change};
	store();
	file.recorder = &recorder.head;
	cr_assert_eq(run(true, true, true), 0, "%s", err.text);
	cr_assert_eq(result.corruptions + result.leaks, 0);
	cr_assert_geq(recorder.n, 3);
	for (uint32_t n = 0; n <= recorder.n; n++)
		for (uint32_t lost = 0; lost < 8; lost++) {
			memcpy(bytes, before, AT(ROOM));
			n_clusters = clusters;
			replay(n, lost * 2);
			cr_assert_eq(run(true, true, true), 0, "%s", err.text);
			cr_assert_eq(result.corruptions + result.leaks, 0);
			fetch();
			assert_kept(2, N_DATA);
		}
	for (uint32_t i = 0; i < recorder.n; i++)
		free(recorder.entries[i].data);
	free(before);
}

Test(qcow2_check, a_crash_while_refcounts_are_repaired)
{
	put_refcount(DATA + 3, 0);
	put_refcount(DATA + 4, 2);
	put_refcount(END, 1);
	put64(AT(L2), AT(60));
	put64(AT(L2) + 8, AT(60));
	n_clusters = END + 1;
	crash_everywhere();
}

Test(qcow2_check, a_crash_while_refcounts_are_rebuilt)
{
	put64(AT(REFTABLE), AT(L2));
	crash_everywhere();
}

Test(qcow2_check, a_crash_while_snapshots_are_forgotten)
{
	uint64_t entry = AT(END + 1);

	put_snapshot();
	put32(60, 2);
	memcpy(bytes + entry + 64, bytes + entry, 64);
	put64(entry, AT(60));
	crash_everywhere();
}

/* Made to be endless */

static void make_sparse(uint32_t cluster_bits, uint64_t size, uint32_t l1_entries)
{
	uint64_t cluster = UINT64_C(1) << cluster_bits;
	struct qcow2_header header = {
		.version = 3,
		.cluster_bits = cluster_bits,
		.refcount_order = 4,
		.size = 1 << 20,
		.l1_entries = l1_entries,
		.l1_offset = 4 * cluster,
		.reftable_offset = cluster,
		.reftable_clusters = 1,
		.header_size = QCOW2_HEADER_V3_SIZE,
	};
	uint8_t first[512] = {0};

	file.holes = true;
	file.fd = memfd_create("image", MFD_CLOEXEC);
	file.align = 1;
	cr_assert_eq(qcow2_header_build(first, sizeof(first), &header, "it", &err), 0);
	cr_assert_eq(block_file_write(&file, first, sizeof(first), 0), 0);
	cr_assert_eq(block_file_resize(&file, size), 0);
}

static void fill_entries(uint64_t place, uint64_t n, uint64_t first, uint64_t step)
{
	uint64_t *entries = malloc(n * 8);

	for (uint64_t i = 0; i < n; i++)
		entries[i] = htobe64(first + i * step);
	cr_assert_eq(block_file_write(&file, entries, n * 8, place), 0);
	free(entries);
}

/* The largest address space the process may have from here on. Sanitizers need it all. */
static void limit_memory(uint64_t more)
{
#ifndef CORRAL_SANITIZED
	FILE *statm = fopen("/proc/self/statm", "re");
	unsigned long pages = 0;

	cr_assert_eq(fscanf(statm, "%lu", &pages), 1);
	fclose(statm);
	cr_assert_eq(
		setrlimit(RLIMIT_AS, &(struct rlimit){pages * 4096 + more, pages * 4096 + more}),
		0);
#else
	(void)more;
#endif
}

Test(qcow2_check, an_l1_table_of_lies)
{
	const uint64_t n = (32 << 20) / 8;

	make_sparse(9, UINT64_C(1) << 40, n);
	fill_entries(2048, n, UINT64_C(1) << 33, 512);
	limit_memory(256 << 20);
	cr_assert_eq(run(false, false, false), 0, "%s", err.text);
	cr_assert_geq(result.corruptions, n);
}

Test(qcow2_check, an_l1_table_of_lies_far_apart)
{
	const uint64_t n = (32 << 20) / 8;

	make_sparse(9, UINT64_C(1) << 60, n);
	fill_entries(2048, n, UINT64_C(1) << 33, 1 << 30);
	limit_memory(512 << 20);
	cr_assert_eq(run(false, false, false), -EFBIG, "%s", err.text);
	cr_assert(strstr(err.text, "so far apart"));
}

Test(qcow2_check, an_l1_table_of_one_table)
{
	const uint64_t n = (32 << 20) / 8;

	make_sparse(16, UINT64_C(1) << 40, n);
	fill_entries(4 << 16, n, UINT64_C(1) << 30, 0);
	fill_entries(1 << 30, 8192, UINT64_C(1) << 31, 1 << 16);
	limit_memory(128 << 20);
	cr_assert_eq(run(false, false, false), 0, "%s", err.text);
	cr_assert_geq(result.corruptions, 8192);
	cr_assert_eq(run(true, true, true), 0, "%s", err.text);
	cr_assert_eq(result.corruptions + result.leaks, 0,
		     "four million point there, and it is so");
	/* Too many to count, which is told. */
	fill_entries(1 << 30, 8192, UINT64_C(1) << 31, 0);
	cr_assert_lt(run(true, true, true), 0);
	cr_assert(strstr(err.text, "cannot repair"), "%s", err.text);
}

Test(qcow2_check, tables_that_are_each_others_data)
{
	const uint64_t n = 1 << 13;

	/* L1 points to n tables, of which each has all of them as its clusters. */
	make_sparse(12, UINT64_C(1) << 40, n);
	fill_entries(4 << 12, n, UINT64_C(1) << 30, 4096);
	for (uint64_t i = 0; i < n; i++)
		fill_entries((UINT64_C(1) << 30) + i * 4096, 512, UINT64_C(1) << 30, 4096);
	cr_assert_eq(run(false, false, false), 0, "%s", err.text);
	cr_assert_geq(result.corruptions, n * 512);
}

Test(qcow2_check, snapshots_of_one_l1_table)
{
	uint8_t *table = calloc(65536, 40);

	/* Each begins a cluster later, and goes on for 32 MiB. */
	make_sparse(12, UINT64_C(1) << 40, 1);
	for (uint32_t i = 0; i < 65536; i++) {
		uint64_t place = htobe64((UINT64_C(1) << 32) + i * UINT64_C(4096));
		uint32_t entries = htobe32((32 << 20) / 8);

		memcpy(table + i * 40, &place, 8);
		memcpy(table + i * 40 + 8, &entries, 4);
	}
	cr_assert_eq(block_file_write(&file, table, 65536 * 40, 1 << 30), 0);
	free(table);
	fill_entries(UINT64_C(1) << 32, (64 << 20) / 8, UINT64_C(1) << 33, 4096);
	cr_assert_eq(block_file_write(&file, &(uint32_t){htobe32(65536)}, 4, 60), 0);
	cr_assert_eq(block_file_write(&file, &(uint64_t){htobe64(1 << 30)}, 8, 64), 0);
	cr_assert_eq(run(false, false, false), 0, "%s", err.text);
	cr_assert_geq(result.corruptions, 65000);
	assert_said("lies on another table");
}

Test(qcow2_check, a_refcount_block_that_counts_what_is_not_there)
{
	make_sparse(16, 6 << 16, 1);
	fill_entries(1 << 16, 1, 2 << 16, 0);
	fill_entries(2 << 16, 8192, UINT64_MAX, 0);
	cr_assert_eq(run(false, false, false), 0, "%s", err.text);
	cr_assert_eq(result.leaks, 6, "what is behind the end is not looked at");
}

/* Progress */

static struct block_progress progress;
static uint64_t last_done, last_total;

static bool on_progress(struct block_progress *of _unused_, uint64_t done, uint64_t total)
{
	last_done = done;
	last_total = total;
	return false;
}

Test(qcow2_check, it_can_be_stopped)
{
	struct qcow2_check_options options = {.progress = &progress};

	progress.at = on_progress;
	store();
	cr_assert_eq(qcow2_check(&file, "it", &options, &result, &err), -ECANCELED);
	cr_assert_leq(last_done, last_total);
}

/* Not images */

Test(qcow2_check, what_is_no_image_is_refused)
{
	bytes[0] = 'X';
	store();
	cr_assert_eq(run(false, false, false), -EINVAL);
	cr_assert(strstr(err.text, "\"it\""));
	put_header();
	put64(72, UINT64_C(1) << 40);
	store();
	cr_assert_eq(run(false, false, false), -ENOTSUP);
	put_header();
	put64(40, AT(60));
	store();
	cr_assert_eq(run(false, false, false), -EINVAL);
	n_clusters = 0;
	store();
	cr_assert_eq(run(false, false, false), -EINVAL);
}
