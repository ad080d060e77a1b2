/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a crash leaves. A recorder keeps each change of the file and each flush while a seeded mix
 * of writes, discards, zeroes, resizes and flushes runs. Then the file is made anew as it may be
 * after a crash at every point: all that came before the last flush is there; of what came after,
 * each sector of each change is or is not, by chance. What was discarded is rubbish. (Of changes
 * to one sector the last that is there counts: no store brings back an older one.) Each such image
 * has to be without corruption, leaks being allowed, and each sector has to read as it did when the
 * guest's last flush returned, or as something written to it since.
 *
 * CORRAL_CRASH_CUTS=N: about so many cuts instead of 10,000. CORRAL_CRASH_SEED=N: other histories.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "block/qcow2-check.h"
#include "block/qcow2.h"
#include "block/test-qcow2.h"

#define CUTS     10000
#define SECTOR   BLOCK_SECTOR
#define FILE_MAX (UINT64_C(8) << 20) /* of an image file here */
#define SAMPLE   400                 /* each that many cuts qemu-img is asked too */

TestSuite(qcow2_crash, .fini = test_clean, .timeout = 600);

struct setup {
	const char *name;
	uint32_t cluster_bits;
	const char *options; /* of qemu-img create */
	const char *prepare; /* commands for qemu-io and the like, on "disk"; NULL: none */
	uint64_t size;
	bool backing, grow, sparse, faults;
	uint64_t gap; /* between the halves of what is used of the disk */
};

/* Changes of the file, in their order. */
struct change {
	enum io_kind kind;
	uint64_t offset, length;
	uint8_t *data; /* owned; IO_WRITE */
	bool failed;   /* IO_FLUSH */
};

/* What the guest did, one after the other. */
struct deed {
	enum io_kind kind;
	uint64_t from, to; /* sectors */
	uint64_t stamp;
	uint32_t begin, end; /* of `changes` */
	bool failed;         /* and the guest was told */
	bool lost;           /* perhaps: a flush failed after it, before one went well */
};

struct history {
	const struct setup *setup;
	struct block_recorder recorder;
	struct change *changes;
	uint32_t n_changes, room;
	struct deed *deeds;
	uint32_t n_deeds;
	uint8_t *first; /* the file before */
	uint64_t first_size;
	uint8_t *initial; /* the disk before */
	uint64_t sectors; /* that are used, at most */
	uint64_t random;
};

static int note(struct block_recorder *recorder, enum io_kind kind, uint64_t offset,
		uint64_t length, const struct iovec *iov, uint32_t n_iov)
{
	struct history *history = container_of(recorder, struct history, recorder);
	struct change *change;
	uint8_t *to;

	if (history->n_changes == history->room) {
		history->room = MAX(1024u, 2 * history->room);
		history->changes =
			realloc(history->changes, history->room * sizeof(*history->changes));
	}
	change = &history->changes[history->n_changes++];
	*change = (struct change){kind, offset, length, NULL, false};
	if (kind == IO_FLUSH && history->setup->faults && test_below(&history->random, 6) == 0) {
		change->failed = true;
		return -EIO;
	}
	if (kind != IO_WRITE)
		return 0;
	to = change->data = malloc(length);
	for (uint32_t i = 0; i < n_iov; i++) {
		memcpy(to, iov[i].iov_base, iov[i].iov_len);
		to += iov[i].iov_len;
	}
	return 0;
}

/* The guest's part */

static void sector_fill(uint8_t *data, uint64_t stamp, uint64_t sector)
{
	const uint64_t value = stamp ? stamp * UINT64_C(0x9e3779b97f4a7c15) ^ sector : 0;

	for (uint32_t i = 0; i < SECTOR; i += sizeof(value))
		memcpy(data + i, &value, sizeof(value));
}

static struct deed *deed_begin(struct history *history, enum io_kind kind, uint64_t from,
			       uint64_t to)
{
	struct deed *deed = &history->deeds[history->n_deeds++];

	*deed = (struct deed){.kind = kind, .from = from, .to = to, .begin = history->n_changes};
	return deed;
}

/* Where a sector is on the disk, of those that are used. */
static uint64_t on_disk(const struct history *history, uint64_t sector)
{
	const struct setup *setup = history->setup;

	return setup->gap && sector >= history->sectors / 2 ? sector + setup->gap / SECTOR : sector;
}

static void transfer(struct history *history, struct block_image *image, struct deed *deed)
{
	const uint64_t n = deed->to - deed->from;
	uint8_t *data = malloc(n * SECTOR);

	deed->stamp = history->n_deeds;
	for (uint64_t i = 0; i < n; i++)
		sector_fill(data + i * SECTOR, deed->stamp, deed->from + i);
	deed->failed =
		block_write(image, data, n * SECTOR, on_disk(history, deed->from) * SECTOR) < 0;
	free(data);
}

/* A failed flush may have cost all that was written since the last good one, by whole clusters:
 * what was copied to new ones too. */
static void lose(struct history *history)
{
	const uint64_t sectors = (UINT64_C(1) << history->setup->cluster_bits) / SECTOR;

	for (uint32_t i = history->n_deeds; i-- > 0;) {
		struct deed *deed = &history->deeds[i];

		if (deed->kind == IO_FLUSH && !deed->failed && i + 1 < history->n_deeds)
			break;
		if (deed->lost || deed->kind == IO_FLUSH)
			continue;
		deed->lost = true;
		deed->from = align_down(deed->from, sectors);
		deed->to = align_up(deed->to, sectors);
	}
}

static void grow(struct history *history, struct block_image *image)
{
	struct error err = ERROR_NULL;
	uint64_t size = image->size +
			test_below(&history->random, history->sectors * SECTOR - image->size) /
				SECTOR * SECTOR;

	cr_assert_eq(block_resize(image, size, &err), 0, "%s", err.text);
}

static void do_deed(struct history *history, struct block_image *image)
{
	const uint64_t gap = history->setup->gap, sectors = (image->size - gap) / SECTOR;
	const uint64_t what = test_below(&history->random, 100);
	const uint64_t from = test_below(&history->random, sectors);
	const uint64_t most =
		history->setup->sparse || test_below(&history->random, 4) ? 16 : sectors / 2;
	const uint64_t end = gap && from < sectors / 2 ? sectors / 2 : sectors;
	const uint64_t to = from + 1 + test_below(&history->random, MIN(most, end - from));
	enum io_kind kind = what < 55   ? IO_WRITE
			    : what < 65 ? IO_DISCARD
			    : what < 73 ? IO_ZERO
			    : what < 80 ? IO_ZERO_KEEP
					: IO_FLUSH;
	struct deed *deed;

	if (what == 99 && history->setup->grow && history->sectors > sectors + 1) {
		deed = deed_begin(history, IO_READ, 0, 0);
		grow(history, image);
	} else {
		deed = deed_begin(history, kind, from, to);
		if (kind == IO_WRITE)
			transfer(history, image, deed);
		else
			deed->failed =
				block_do(image,
					 &(struct io_op){.kind = kind,
							 .offset = on_disk(history, from) * SECTOR,
							 .length = (to - from) * SECTOR}) < 0;
		cr_assert(!deed->failed || history->setup->faults);
	}
	deed->end = history->n_changes;
	for (uint32_t i = deed->begin; i < deed->end; i++)
		if (history->changes[i].failed) {
			cr_assert(deed->failed, "a failed flush was not told");
			lose(history);
		}
}

static void read_used(const struct history *history, struct block_image *image, uint8_t *data)
{
	const uint64_t half = history->sectors / 2 * SECTOR, gap = history->setup->gap;

	if (!gap) {
		cr_assert_eq(block_read(image, data, image->size, 0), 0);
		return;
	}
	cr_assert_eq(block_read(image, data, half, 0), 0);
	cr_assert_eq(block_read(image, data + half, half, half + gap), 0);
}

static uint8_t *file_read(const char *name, uint64_t *ret_size)
{
	char path[TEST_PATH_SIZE];
	FILE *file = fopen(test_path(path, name), "r");
	uint8_t *data = calloc(1, FILE_MAX);

	cr_assert(file && data);
	*ret_size = fread(data, 1, FILE_MAX, file);
	cr_assert_lt(*ret_size, FILE_MAX);
	fclose(file);
	return data;
}

static void history_make(struct history *history, const struct setup *setup, uint64_t seed,
			 uint32_t n_changes)
{
	struct block_image *image;
	char output[1024];

	*history = (struct history){.setup = setup, .recorder.note = note, .random = seed};
	history->sectors = setup->size / SECTOR * (setup->grow ? 3 : 1);
	if (setup->backing)
		cr_assert_eq(
			test_command(output, sizeof(output), "head -c %llu /dev/urandom >backing",
				     (unsigned long long)setup->size * (setup->grow ? 8 : 3) / 4),
			0);
	test_qemu_img("create -f qcow2 %s -o cluster_size=%u%s disk %llu",
		      setup->backing ? "-b backing -F raw" : "", 1u << setup->cluster_bits,
		      setup->options, (unsigned long long)(setup->size + setup->gap));
	if (setup->prepare)
		cr_assert_eq(test_command(output, sizeof(output), "%s", setup->prepare), 0, "%s",
			     output);
	history->first = file_read("disk", &history->first_size);
	history->initial = calloc(history->sectors, SECTOR);
	history->deeds = calloc(n_changes + 1, sizeof(*history->deeds));
	image = test_open_recorded("disk", &history->recorder);
	read_used(history, image, history->initial);
	while (history->n_changes < n_changes && history->n_deeds < n_changes)
		do_deed(history, image);
	deed_begin(history, IO_READ, 0, 0)->end = UINT32_MAX; /* the closing */
	block_close(image);
}

static void history_free(struct history *history)
{
	for (uint32_t i = 0; i < history->n_changes; i++)
		free(history->changes[i].data);
	free(history->changes);
	free(history->deeds);
	free(history->first);
	free(history->initial);
}

/* The store's part */

struct store {
	uint8_t *data; /* FILE_MAX; zeroes behind `size` */
	uint64_t size;
};

static void store_copy(struct store *to, const struct store *from)
{
	memcpy(to->data, from->data, MAX(to->size, from->size));
	to->size = from->size;
}

static void apply_bytes(struct store *store, const struct change *change, uint64_t from,
			uint64_t to)
{
	switch (change->kind) {
	case IO_WRITE:
		memcpy(store->data + from, change->data + (from - change->offset), to - from);
		store->size = MAX(store->size, to);
		break;
	case IO_DISCARD:
		to = MIN(to, store->size);
		if (from < to)
			memset(store->data + from, 0xdd, to - from);
		break;
	case IO_ZERO:
	case IO_ZERO_KEEP:
		memset(store->data + from, 0, to - from);
		store->size = MAX(store->size, to);
		break;
	default:
		break;
	}
}

enum fate { ALL, NOTHING, TORN };

static void apply(struct store *store, const struct change *change, enum fate fate,
		  uint64_t *random)
{
	const uint64_t end = MIN(change->offset + change->length, FILE_MAX);

	cr_assert(change->kind == IO_FLUSH || change->kind == IO_DISCARD ||
		  change->offset + change->length <= FILE_MAX);
	if (fate == NOTHING || change->kind == IO_FLUSH)
		return;
	if (fate == ALL) {
		apply_bytes(store, change, change->offset, end);
		return;
	}
	for (uint64_t at = change->offset; at < end;) {
		uint64_t next = MIN(end, align_down(at, SECTOR) + SECTOR);

		if (test_below(random, 2))
			apply_bytes(store, change, at, next);
		at = next;
	}
}

/* Of what is not flushed, by chance: most of it, little of it, in pieces. */
static void crash(struct store *store, const struct history *history, uint32_t from, uint32_t cut,
		  uint64_t *random)
{
	const uint64_t chance = test_below(random, 5); /* of 4: to be there */
	const bool torn = test_below(random, 2);

	for (uint32_t i = from; i < cut; i++) {
		enum fate fate = test_below(random, 4) < chance ? ALL : NOTHING;

		if (torn && test_below(random, 3) == 0)
			fate = TORN;
		apply(store, &history->changes[i], fate, random);
	}
}

/* The judge */

struct judge {
	const struct history *history;
	int fd; /* the image, in memory */
	uint8_t *disk;
	uint64_t n_cuts, n_leaks, n_repairs;
	char what[400];
};

static void report(void *arg, const char *sentence)
{
	struct judge *judge = arg;

	snprintf(judge->what, sizeof(judge->what), "%s", sentence);
}

static void check(struct judge *judge)
{
	const struct qcow2_check_options options = {.report = report, .arg = judge};
	struct block_file file = {.fd = judge->fd, .holes = true, .align = 1};
	struct block_check found;
	struct error err = ERROR_NULL;

	cr_assert_eq(qcow2_check(&file, "crash", &options, &found, &err), 0, "%s", err.text);
	judge->n_leaks += found.leaks;
	if (found.corruptions) {
		char command[200];

		snprintf(command, sizeof(command), "cp /proc/%d/fd/%d /tmp/corral-crash.qcow2",
			 getpid(), judge->fd);
		if (system(command) != 0)
			snprintf(command, sizeof(command), "not kept");
		cr_assert_fail("%llu corruptions, such as: %s",
			       (unsigned long long)found.corruptions, judge->what);
	}
}

static int open_backing(struct block_opener *opener _unused_, const char *name,
			const char *format _unused_, const char **ret_format, struct error *err)
{
	char path[TEST_PATH_SIZE];
	FILE *file = fopen(test_path(path, name), "r");
	int fd;

	if (!file)
		return error_set(err, -ENOENT, "no backing");
	fd = dup(fileno(file));
	fclose(file);
	*ret_format = "raw";
	return fd;
}

static uint64_t read_disk(struct judge *judge)
{
	struct block_opener opener = {.open = open_backing};
	const bool lazy = strstr(judge->history->setup->options, "lazy");
	struct block_image *image = NULL;
	struct error err = ERROR_NULL;
	uint64_t size;
	int r = block_open(&image, dup(judge->fd),
			   &(struct block_open){.format = "qcow2",
						.name = "crash",
						.opener = &opener,
						.readonly = !lazy,
						.repair = lazy},
			   &err);

	cr_assert_eq(r, 0, "%s", err.text);
	size = image->size - judge->history->setup->gap;
	cr_assert_leq(size, judge->history->sectors * SECTOR);
	read_used(judge->history, image, judge->disk);
	block_close(image);
	return size / SECTOR;
}

static bool is_version(const struct history *history, const struct deed *deed, const uint8_t *data,
		       uint64_t sector)
{
	uint8_t expected[SECTOR];

	if (!deed)
		return !memcmp(data, history->initial + sector * SECTOR, SECTOR);
	if (deed->kind == IO_DISCARD || deed->lost)
		return true;
	sector_fill(expected, deed->stamp, sector);
	return !memcmp(data, expected, SECTOR);
}

/* Newest first: what was there at the last flush that returned, or came since. */
static bool is_allowed(const struct history *history, uint32_t cut, uint32_t flushed,
		       const uint8_t *data, uint64_t sector)
{
	for (uint32_t i = history->n_deeds; i-- > 0;) {
		const struct deed *deed = &history->deeds[i];

		if (deed->begin > cut || deed->kind == IO_FLUSH || deed->kind == IO_READ ||
		    sector < deed->from || sector >= deed->to)
			continue;
		if (is_version(history, deed, data, sector))
			return true;
		if (i < flushed)
			return false;
	}
	return is_version(history, NULL, data, sector);
}

/* Deeds before this one were flushed when the crash came. */
static uint32_t last_flush(const struct history *history, uint32_t cut)
{
	for (uint32_t i = history->n_deeds; i-- > 0;)
		if (history->deeds[i].kind == IO_FLUSH && !history->deeds[i].failed &&
		    history->deeds[i].end <= cut)
			return i;
	return 0;
}

static void judge_cut(struct judge *judge, const struct store *store, uint32_t cut)
{
	const struct history *history = judge->history;
	const uint32_t flushed = last_flush(history, cut);
	const bool lazy = strstr(history->setup->options, "lazy");
	uint64_t sectors;

	cr_assert_eq(ftruncate(judge->fd, (off_t)store->size), 0);
	cr_assert_eq(pwrite(judge->fd, store->data, store->size, 0), (ssize_t)store->size);
	if (!lazy)
		check(judge);
	sectors = read_disk(judge);
	if (lazy)
		check(judge);
	for (uint64_t i = 0; i < sectors; i++)
		cr_assert(is_allowed(history, cut, flushed, judge->disk + i * SECTOR, i),
			  "cut at %u, after deed %u: sector %llu", cut, flushed,
			  (unsigned long long)i);
	if (judge->n_cuts++ % SAMPLE == 0) {
		char output[1000];
		int r = test_command(output, sizeof(output),
				     "cp /proc/%d/fd/%d cut && qemu-img check -f qcow2 cut",
				     getpid(), judge->fd);

		cr_assert(r == 0 || r == 3, "qemu-img check: %d, %s", r, output);
	}
}

static void judge_history(struct judge *judge, uint64_t *random)
{
	const struct history *history = judge->history;
	struct store flushed = {history->first, history->first_size};
	struct store store = {calloc(1, FILE_MAX), 0};
	uint32_t from = 0;

	for (uint32_t cut = 0; cut <= history->n_changes; cut++) {
		if (cut && history->changes[cut - 1].kind == IO_FLUSH) {
			/* If it failed, some of it is there and the rest is gone for good. */
			const bool failed = history->changes[cut - 1].failed;

			for (; from < cut; from++)
				apply(&flushed, &history->changes[from],
				      failed ? (enum fate)test_below(random, 3) : ALL, random);
		}
		for (uint32_t i = 0; i < (cut - from < 2 ? 1 : 2); i++) {
			store_copy(&store, &flushed);
			crash(&store, history, from, cut, random);
			judge_cut(judge, &store, cut);
		}
	}
	free(store.data);
}

static uint64_t from_environment(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 0) : otherwise;
}

#define KIB     UINT64_C(1024)
#define PREPARE "qemu-io -f qcow2 -c 'write -P 7 0 64k' -c 'write -P 8 100k 20k' disk"
#define RUBBISH "head -c 300000 /dev/urandom >>disk"
#define GAP     (4096 * KIB)
#define GAP_SNAPSHOT                                                                         \
	"qemu-io -f qcow2 -c 'write -P 7 0 64k' -c 'write -P 8 4160k 64k' disk && qemu-img " \
	"snapshot -c one disk"
#define SNAPSHOT PREPARE " && qemu-img snapshot -c one disk"
#define SNAPSHOTS                                                        \
	SNAPSHOT " && qemu-io -f qcow2 -c 'write -P 9 20k 60k' disk && " \
		 "qemu-img snapshot -c two disk"

static const struct setup setups[] = {
	{"plain", 12, "", NULL, 256 * KIB},
	{"prepared", 12, "", PREPARE, 256 * KIB},
	{"small clusters, wide counts", 9, ",refcount_bits=64", PREPARE, 192 * KIB},
	{"backing", 12, "", NULL, 256 * KIB, .backing = true},
	{"backing, small clusters", 10, "", PREPARE, 128 * KIB, .backing = true},
	{"snapshots", 12, "", SNAPSHOTS, 256 * KIB},
	{"snapshots, small clusters", 9, "", SNAPSHOTS, 128 * KIB},
	{"version 2", 12, ",compat=0.10", SNAPSHOT, 128 * KIB},
	{"lazy", 12, ",lazy_refcounts=on", PREPARE, 128 * KIB},
	{"growing", 9, ",refcount_bits=32", NULL, 64 * KIB, .grow = true},
	{"growing over a larger one", 10, "", NULL, 64 * KIB, .grow = true, .backing = true},
	{"rubbish behind", 9, ",refcount_bits=64", RUBBISH, 128 * KIB},
	{"failing flushes", 12, "", PREPARE, 128 * KIB, .faults = true},
	{"failing flushes, small clusters", 9, ",refcount_bits=64", SNAPSHOTS, 128 * KIB,
	 .faults = true},
	{"failing flushes, backing", 11, "", NULL, 128 * KIB, .faults = true, .backing = true},
	{"tables of two slices", 13, "", GAP_SNAPSHOT, 128 * KIB, .gap = GAP},
	{"failing flushes, tables of two slices", 13, "", GAP_SNAPSHOT, 128 * KIB, .gap = GAP,
	 .faults = true},
	{"sparse", 9, "", NULL, 384 * KIB, .sparse = true},
};

/* The test runs in a process that has its tables elsewhere: a number is what it can be given. */
ParameterizedTestParameters(qcow2_crash, every_cut_is_a_valid_image)
{
	static uint32_t numbers[ARRAY_SIZE(setups)];

	for (uint32_t i = 0; i < ARRAY_SIZE(setups); i++)
		numbers[i] = i;
	return cr_make_param_array(uint32_t, numbers, ARRAY_SIZE(numbers));
}

ParameterizedTest(uint32_t *number, qcow2_crash, every_cut_is_a_valid_image)
{
	const struct setup *setup = &setups[*number];
	const uint64_t cuts = from_environment("CORRAL_CRASH_CUTS", CUTS) / ARRAY_SIZE(setups);
	uint64_t seed = from_environment("CORRAL_CRASH_SEED", 1) * 1000 + *number;
	struct judge judge = {0};

	if (!test_has_qemu_img())
		cr_skip_test("qemu-img is not installed");
	judge.fd = memfd_create("crash", 0);
	cr_assert_geq(judge.fd, 0);
	while (judge.n_cuts < cuts) {
		struct history history;
		uint64_t random = seed;

		history_make(&history, setup, seed++, 300);
		judge.history = &history;
		judge.disk = malloc(history.sectors * SECTOR);
		judge_history(&judge, &random);
		free(judge.disk);
		history_free(&history);
	}
	cr_log_info("%s: %llu cuts, %.1f leaked clusters each", setup->name,
		    (unsigned long long)judge.n_cuts, (double)judge.n_leaks / (double)judge.n_cuts);
	close(judge.fd);
}
