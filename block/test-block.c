/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening chains, their locks, what is where in them, resizing, and moves between two openers. A
 * format of this file's own stands for qcow2: the first sector of the file says what it stands on,
 * as "FORMAT NAME", and how its clusters of the guest are, a letter each, in the next.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "block/qcow2.h"
#include "block/raw.h"

#define CLUSTER 4096u
#define SIZE    (16 * CLUSTER)

static char dir[] = "/tmp/test-block-XXXXXX";
static struct error err;
static struct block_image *image;
static uint32_t n_open; /* of our format */
static int claim_result, yield_result, open_result;
static uint32_t n_claims, n_yields;

/* The format */

static void fake_close(struct block_image *of)
{
	struct qcow2 *fake = to_qcow2(of);

	free(fake->header.backing_name);
	free(fake->header.backing_format);
	free(fake);
	n_open--;
}

static int fake_extent(struct block_image *of, uint64_t offset, uint64_t length,
		       struct block_extent *ret_extent)
{
	uint64_t first = offset / CLUSTER, i = first, end = (offset + length - 1) / CLUSTER;
	char map[SIZE / CLUSTER];

	cr_assert_eq(pread(of->file.fd, map, sizeof(map), 512), sizeof(map));
	while (i <= end && map[i] == map[first])
		i++;
	*ret_extent = (struct block_extent){
		.kind = map[first] == 'd'   ? BLOCK_DATA
			: map[first] == 'z' ? BLOCK_ZERO
			: map[first] == 'c' ? BLOCK_COMPRESSED
					    : BLOCK_ABSENT,
		.offset = offset,
		.length = MIN(length, i * CLUSTER - offset),
	};
	return map[first] == '!' ? -EIO : 0;
}

static int fake_run(struct block_image *of _unused_, const struct io_op *op _unused_)
{
	return 0;
}

static int fake_resize(struct block_image *of _unused_, uint64_t size, struct error *e)
{
	return size > 2 * SIZE ? error_set(e, -EFBIG, "too big") : 0;
}

static int fake_claim(struct block_image *of _unused_, struct error *e)
{
	n_claims++;
	return claim_result ? error_set(e, claim_result, "cannot claim") : 0;
}

static int fake_yield(struct block_image *of _unused_)
{
	n_yields++;
	return yield_result;
}

const struct block_ops qcow2_ops = {
	.format = "qcow2",
	.run = fake_run,
	.extent = fake_extent,
	.resize = fake_resize,
	.claim = fake_claim,
	.yield = fake_yield,
	.close = fake_close,
};

int qcow2_open(struct block_image **ret_image, struct block_file *file,
	       const struct block_open *open, struct error *e)
{
	struct qcow2 *fake = calloc(1, sizeof(*fake));
	char text[512] = {0}, format[16], name[200];

	cr_assert_gt(pread(file->fd, text, sizeof(text) - 1, 0), 0);
	if (open_result < 0) {
		block_file_close(file);
		free(fake);
		return error_set(e, open_result, "cannot open fake \"%s\"", open->name);
	}
	fake->image = (struct block_image){
		.ops = &qcow2_ops, .file = *file, .size = SIZE, .io_block = BLOCK_SECTOR};
	if (sscanf(text, "%15s %199s", format, name) == 2) {
		fake->header.backing_name = strdup(name);
		fake->header.backing_format = strcmp(format, "-") ? strdup(format) : NULL;
	}
	n_open++;
	*ret_image = &fake->image;
	return 0;
}

/* Files */

static const char *path_of(const char *name)
{
	static char path[2][300];
	static int i;

	snprintf(path[i ^= 1], sizeof(path[0]), "%s/%s", dir, name);
	return path[i];
}

static void make(const char *name, const char *stands_on, const char *map)
{
	int fd = open(path_of(name), O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	cr_assert_geq(fd, 0);
	cr_assert_eq(ftruncate(fd, SIZE), 0);
	if (stands_on)
		cr_assert_eq(pwrite(fd, stands_on, strlen(stands_on), 0), strlen(stands_on));
	if (map)
		cr_assert_eq(pwrite(fd, map, strlen(map), 512), strlen(map));
	close(fd);
}

static int open_path(const char *name, int flags)
{
	int fd = open(path_of(name), flags | O_CLOEXEC);

	cr_assert_geq(fd, 0, "%s", name);
	return fd;
}

/* Knows the names in our folder; takes the format as it is said, or "raw". */
static struct opener {
	struct block_opener opener;
	uint32_t n_asked;
	char last_name[200], last_format[16];
	bool any_format;
} opener;

static int opener_open(struct block_opener *base, const char *name, const char *format,
		       const char **ret_format, struct error *e)
{
	struct opener *self = container_of(base, struct opener, opener);
	int fd = open(path_of(name), O_RDONLY | O_CLOEXEC);

	self->n_asked++;
	snprintf(self->last_name, sizeof(self->last_name), "%s", name);
	snprintf(self->last_format, sizeof(self->last_format), "%s", format ? format : "(none)");
	*ret_format = self->any_format                     ? "vmdk"
		      : format && !strcmp(format, "qcow2") ? "qcow2"
							   : "raw";
	if (fd < 0)
		return error_set(e, -errno, "cannot open \"%s\": %s", name, strerror(errno));
	return fd;
}

static void set_up(void)
{
	cr_assert_not_null(mkdtemp(dir));
	opener.opener.open = opener_open;
}

static void tear_down(void)
{
	char command[64];

	image = block_close(image);
	cr_assert_eq(n_open, 0, "every image was closed");
	snprintf(command, sizeof(command), "rm -r %s", dir);
	cr_assert_eq(system(command), 0);
}

TestSuite(block, .init = set_up, .fini = tear_down, .timeout = 60);

static int open_how(const char *name, const struct block_open *how, struct block_image **ret)
{
	err = ERROR_NULL;
	*ret = NULL;
	return block_open(ret, open_path(name, how->readonly ? O_RDONLY : O_RDWR), how, &err);
}

static int open_chain(const char *name)
{
	const struct block_open how = {
		.format = "qcow2", .name = name, .opener = &opener.opener, .worker = (void *)&err};

	return open_how(name, &how, &image);
}

Test(block, a_chain_is_opened_to_its_end)
{
	const struct block_image *at;

	make("a", "qcow2 b", NULL);
	make("b", "qcow2 c", NULL);
	make("c", "raw d", NULL);
	make("d", NULL, NULL);
	cr_assert_eq(open_chain("a"), 0, "%s", err.text);
	cr_assert_eq(opener.n_asked, 3);
	at = image;
	cr_assert_str_eq(at->name, "a");
	cr_assert_not(at->readonly);
	for (const char *name = "bcd"; *name; name++) {
		at = at->backing;
		cr_assert_eq(at->name[0], *name);
		cr_assert(at->readonly);
		cr_assert_eq(at->worker, (void *)&err);
		cr_assert_not(at->can_discard);
	}
	cr_assert_eq(at->ops, &raw_ops);
	cr_assert_null(at->backing);
}

Test(block, the_opener_is_told_what_the_image_says)
{
	make("a", "- b", NULL);
	make("b", NULL, NULL);
	cr_assert_eq(open_chain("a"), 0, "%s", err.text);
	cr_assert_str_eq(opener.last_name, "b");
	cr_assert_str_eq(opener.last_format, "(none)", "the image does not say it");
	cr_assert_eq(image->backing->ops, &raw_ops, "so the opener does");
}

Test(block, without_an_opener_nothing_is_looked_for)
{
	struct block_open how = {.format = "qcow2", .name = "a"};

	make("a", "raw b", NULL);
	make("b", NULL, NULL);
	cr_assert_eq(open_how("a", &how, &image), -EINVAL);
	cr_assert(strstr(err.text, "\"a\"") && strstr(err.text, "\"b\""), "%s", err.text);
	how.no_backing = true;
	cr_assert_eq(open_how("a", &how, &image), 0, "%s", err.text);
	cr_assert_null(image->backing);
}

Test(block, a_missing_link_is_named)
{
	make("a", "qcow2 b", NULL);
	make("b", "raw gone", NULL);
	cr_assert_eq(open_chain("a"), -ENOENT);
	cr_assert_eq(err.code, -ENOENT);
	cr_assert(strstr(err.text, "\"a\"") && strstr(err.text, "\"b\"") &&
			  strstr(err.text, "\"gone\""),
		  "%s", err.text);
	cr_assert_null(image);
}

Test(block, loops_are_refused)
{
	make("a", "qcow2 a", NULL);
	cr_assert_eq(open_chain("a"), -ELOOP);
	make("b", "qcow2 c", NULL);
	make("c", "qcow2 d", NULL);
	make("d", "qcow2 c", NULL);
	cr_assert_eq(open_chain("b"), -ELOOP);
	cr_assert(strstr(err.text, "\"c\""), "%s", err.text);
	/* By another name. */
	make("e", "qcow2 f", NULL);
	cr_assert_eq(link(path_of("e"), path_of("f")), 0);
	cr_assert_eq(open_chain("e"), -ELOOP);
}

Test(block, a_chain_has_an_end)
{
	char name[16], on[32];

	for (uint32_t i = 0; i < BLOCK_CHAIN_MAX + 1; i++) {
		snprintf(name, sizeof(name), "i%u", i);
		snprintf(on, sizeof(on), "qcow2 i%u", i - 1);
		make(name, i ? on : NULL, NULL);
	}
	cr_assert_eq(open_chain(name), -ELOOP);
	cr_assert(strstr(err.text, "64"), "%s", err.text);
	snprintf(name, sizeof(name), "i%u", BLOCK_CHAIN_MAX - 1);
	cr_assert_eq(open_chain(name), 0, "%s", err.text);
}

Test(block, formats_are_known_by_name)
{
	struct block_open how = {.format = "vmdk", .name = "a"};

	make("a", "qcow2 b", NULL);
	make("b", NULL, NULL);
	cr_assert_eq(open_how("a", &how, &image), -EINVAL);
	cr_assert(strstr(err.text, "vmdk") && strstr(err.text, "qcow2"), "%s", err.text);
	how.format = NULL;
	cr_assert_eq(open_how("a", &how, &image), -EINVAL);
	opener.any_format = true;
	cr_assert_eq(open_chain("a"), -EINVAL);
	cr_assert(strstr(err.text, "vmdk"), "%s", err.text);
}

Test(block, what_the_format_refuses_is_passed_up)
{
	make("a", NULL, NULL);
	open_result = -ENOTSUP;
	cr_assert_eq(open_chain("a"), -ENOTSUP);
	cr_assert_str_eq(err.text, "cannot open fake \"a\"");
	open_result = 0;
	cr_assert_eq(open_chain("a"), 0, "and its lock is free again");
}

/* Locks */

Test(block, all_of_the_chain_is_locked)
{
	const struct block_open raw = {.format = "raw", .name = "x"};
	const struct block_open raw_reader = {.format = "raw", .name = "x", .readonly = true};
	const struct block_open force = {
		.format = "raw", .name = "x", .readonly = true, .no_lock = true};
	struct block_image *other;

	make("a", "raw b", NULL);
	make("b", NULL, NULL);
	cr_assert_eq(open_chain("a"), 0, "%s", err.text);
	cr_assert_eq(open_how("b", &raw, &other), -EBUSY, "nobody writes under us");
	cr_assert_eq(open_how("b", &raw_reader, &other), 0);
	block_close(other);
	cr_assert_eq(open_how("a", &raw_reader, &other), -EBUSY);
	cr_assert_eq(open_how("a", &force, &other), 0);
	block_close(other);
	image = block_close(image);
	cr_assert_eq(open_how("b", &raw, &other), 0);
	block_close(other);
}

Test(block, a_reader_of_a_chain_locks_nobody_out)
{
	const struct block_open how = {
		.format = "qcow2", .name = "a", .opener = &opener.opener, .readonly = true};
	struct block_image *other;

	make("a", "raw b", NULL);
	make("b", NULL, NULL);
	cr_assert_eq(open_how("a", &how, &image), 0);
	cr_assert_eq(open_how("a", &how, &other), 0);
	block_close(other);
	other = image;
	cr_assert_eq(open_chain("a"), -EBUSY);
	image = other;
}

/* What is where */

static void check_extent(uint64_t offset, uint64_t length, enum block_extent_kind kind,
			 uint64_t expected, uint32_t depth)
{
	struct block_extent extent;

	cr_assert_eq(block_map(image, offset, length, &extent), 0);
	cr_assert_eq(extent.offset, offset);
	cr_assert_eq(extent.kind, kind, "kind %d at %llu", extent.kind, (unsigned long long)offset);
	cr_assert_eq(extent.length, expected, "%llu bytes at %llu",
		     (unsigned long long)extent.length, (unsigned long long)offset);
	cr_assert_eq(extent.depth, depth);
}

Test(block, a_map_looks_through_the_chain)
{
	struct block_extent extent;

	make("a", "qcow2 b", "dd..z...........");
	make("b", "qcow2 c", "....dd.cc......!");
	make("c", NULL, "zzzzzzzzd.......");
	cr_assert_eq(open_chain("a"), 0);
	image->backing->backing->size = 9 * CLUSTER + 512;
	check_extent(0, SIZE, BLOCK_DATA, 2 * CLUSTER, 0);
	check_extent(512, CLUSTER, BLOCK_DATA, CLUSTER, 0);
	check_extent(2 * CLUSTER, SIZE - 2 * CLUSTER, BLOCK_ZERO, 2 * CLUSTER, 2);
	check_extent(4 * CLUSTER, SIZE - 4 * CLUSTER, BLOCK_ZERO, CLUSTER, 0);
	check_extent(5 * CLUSTER, SIZE - 5 * CLUSTER, BLOCK_DATA, CLUSTER, 1);
	check_extent(6 * CLUSTER, SIZE - 6 * CLUSTER, BLOCK_ZERO, CLUSTER, 2);
	check_extent(7 * CLUSTER, 1, BLOCK_COMPRESSED, 1, 1);
	check_extent(9 * CLUSTER, SIZE - 9 * CLUSTER, BLOCK_ABSENT, 512, 2);
	check_extent(10 * CLUSTER, SIZE - 10 * CLUSTER, BLOCK_ABSENT, 5 * CLUSTER, 2);
	cr_assert_eq(block_map(image, 15 * CLUSTER, 512, &extent), -EIO);
	cr_assert_eq(block_map(image, SIZE, 512, &extent), -EINVAL);
	cr_assert_eq(block_map(image, 0, 0, &extent), -EINVAL);
	image->backing->backing->size = SIZE;
}

/* The calls that wait */

Test(block, operations_are_checked)
{
	const struct block_open how = {.format = "raw", .name = "a"};
	uint8_t data[1024] = "hello", back[1024];

	make("a", NULL, NULL);
	cr_assert_eq(open_how("a", &how, &image), 0);
	cr_assert_eq(block_write(image, data, 1024, SIZE - 1024), 0);
	cr_assert_eq(block_flush(image), 0);
	cr_assert_eq(block_read(image, back, 1024, SIZE - 1024), 0);
	cr_assert_eq(memcmp(data, back, 1024), 0);
	cr_assert_eq(block_read(image, back, 1024, SIZE - 512), -EINVAL);
	cr_assert_eq(block_read(image, back, 100, 0), -EINVAL);
	cr_assert_eq(block_read(image, back, 512, 100), -EINVAL);
	cr_assert_eq(block_do(image, &(struct io_op){.kind = IO_ZERO, .length = SIZE + 512}),
		     -EINVAL);
	cr_assert_eq(block_do(image, &(struct io_op){.kind = IO_ZERO, .length = SIZE}), 0);
	cr_assert_eq(block_read(image, back, 512, SIZE - 1024), 0);
	cr_assert_eq(back[0], 0);
	image->readonly = true;
	cr_assert_eq(block_write(image, data, 512, 0), -EROFS);
	cr_assert_eq(block_do(image, &(struct io_op){.kind = IO_DISCARD, .length = 512}), -EROFS);
	cr_assert_eq(block_read(image, back, 512, 0), 0);
}

Test(block, sizes_are_checked_before_they_change)
{
	make("a", NULL, NULL);
	cr_assert_eq(open_chain("a"), 0);
	cr_assert_eq(block_resize(image, 100, &err), -EINVAL);
	cr_assert_eq(block_resize(image, 0, &err), -EINVAL);
	cr_assert_eq(block_resize(image, UINT64_MAX - 511, &err), -EINVAL);
	cr_assert_eq(block_resize(image, 3 * SIZE, &err), -EFBIG);
	cr_assert_eq(image->size, SIZE);
	cr_assert_eq(block_resize(image, 2 * SIZE, &err), 0);
	cr_assert_eq(image->size, 2 * SIZE);
	image->readonly = true;
	cr_assert_eq(block_resize(image, SIZE, &err), -EROFS);
}

Test(block, a_raw_image_grows_and_shrinks)
{
	const struct block_open how = {.format = "raw", .name = "a"};
	struct stat st;

	make("a", NULL, NULL);
	cr_assert_eq(open_how("a", &how, &image), 0);
	cr_assert_eq(block_resize(image, 3 * SIZE, &err), 0);
	cr_assert_eq(stat(path_of("a"), &st), 0);
	cr_assert_eq(st.st_size, 3 * SIZE);
	cr_assert_eq(block_resize(image, SIZE, &err), 0);
	cr_assert_eq(stat(path_of("a"), &st), 0);
	cr_assert_eq(st.st_size, SIZE);
	cr_assert_eq(image->size, SIZE);
}

/* Moves */

Test(block, an_image_goes_from_one_to_the_other)
{
	const struct block_open how = {
		.format = "qcow2", .name = "a", .opener = &opener.opener, .inactive = true};
	struct block_image *other;
	uint8_t data[512] = "x";

	make("a", "raw b", NULL);
	make("b", NULL, NULL);
	cr_assert_eq(open_chain("a"), 0);
	cr_assert_eq(open_how("a", &how, &other), 0, "what is inactive is not locked");
	cr_assert(other->inactive);
	cr_assert_eq(block_write(other, data, 512, 0), -EROFS);
	cr_assert_eq(block_claim(other, &err), -EBUSY);
	cr_assert(other->inactive);
	cr_assert_eq(n_claims, 0);
	yield_result = -EIO;
	cr_assert_eq(block_yield(image, &err), -EIO);
	cr_assert_not(image->inactive, "what could not be written out is still ours");
	cr_assert_eq(block_claim(other, &err), -EBUSY);
	yield_result = 0;
	cr_assert_eq(block_yield(image, &err), 0);
	cr_assert(image->inactive);
	claim_result = -EUCLEAN;
	cr_assert_eq(block_claim(other, &err), -EUCLEAN);
	cr_assert(other->inactive);
	cr_assert_eq(block_claim(image, &err), -EUCLEAN, "not busy: who failed let go of it");
	claim_result = 0;
	cr_assert_eq(block_claim(other, &err), 0);
	cr_assert_not(other->inactive);
	cr_assert_eq(block_write(other, data, 512, 0), 0);
	cr_assert_eq(block_claim(image, &err), -EBUSY);
	cr_assert_eq(block_claim(other, &err), 0, "twice is fine");
	cr_assert_eq(block_yield(image, &err), 0, "twice is fine");
	block_close(other);
}

Test(block, a_raw_image_that_was_claimed_has_the_size_it_has)
{
	const struct block_open inactive = {.format = "raw", .name = "a", .inactive = true};

	make("a", NULL, NULL);
	cr_assert_eq(open_how("a", &inactive, &image), 0);
	cr_assert_eq(truncate(path_of("a"), 4 * SIZE), 0);
	cr_assert_eq(block_claim(image, &err), 0);
	cr_assert_eq(image->size, 4 * SIZE);
	cr_assert_eq(block_yield(image, &err), 0);
}

Test(block, closing_nothing_is_fine)
{
	cr_assert_null(block_close(NULL));
}
