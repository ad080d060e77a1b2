/* SPDX-License-Identifier: Apache-2.0 */
/* An image that comes to stand under an overlay while it is open, and back again. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fd.h"
#include "block/create.h"
#include "block/overlay.h"

#define SIZE  (1u << 20)
#define CHUNK 65536u

static struct error err;
static struct block_image *under, *overlay;
static char path[] = "/tmp/corral-overlay-XXXXXX";
static uint8_t bytes[CHUNK], got[CHUNK];

/* A file with a name, so that another may open it; locks are by open file. */
static int make_under(const char *format)
{
	const struct block_create create = {.format = format, .size = SIZE};
	int fd = mkostemp(path, O_CLOEXEC);

	cr_assert_geq(fd, 0);
	cr_assert_eq(block_create(fd, &create, "under", &err), 0, "%s", err.text);
	return fd;
}

static int make_overlay(uint64_t size, const char *backing)
{
	const struct block_create create = {
		.format = "qcow2",
		.size = size,
		.backing_name = backing,
		.backing_format = backing ? "raw" : NULL,
	};
	int fd = memfd_create("overlay", MFD_CLOEXEC);

	cr_assert_eq(block_create(fd, &create, "overlay", &err), 0, "%s", err.text);
	return fd;
}

static struct block_image *open_image(int fd, const char *format, bool alone)
{
	const struct block_open open = {.format = format, .name = "image", .no_backing = alone};
	struct block_image *image = NULL;

	cr_assert_eq(block_open(&image, fd, &open, &err), 0, "%s", err.text);
	return image;
}

static void set_up_with(const char *format)
{
	memset(bytes, 0x5a, sizeof(bytes));
	under = open_image(make_under(format), format, false);
	overlay = open_image(make_overlay(SIZE, "under"), "qcow2", true);
	cr_assert_eq(block_write(under, bytes, CHUNK, 3 * CHUNK), 0);
}

static void set_up_raw(void)
{
	set_up_with("raw");
}

static void set_up_qcow2(void)
{
	set_up_with("qcow2");
}

static void tear_down(void)
{
	overlay = block_close(overlay);
	unlink(path);
}

TestSuite(overlay_raw, .init = set_up_raw, .fini = tear_down);
TestSuite(overlay_qcow2, .init = set_up_qcow2, .fini = tear_down);

/* Can somebody else have it, and how? */
static int lock_from_outside(bool exclusive)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	int r = block_lock(fd, exclusive);

	fd_close(fd);
	return r;
}

static void put_and_write(void)
{
	cr_assert_eq(block_overlay_check(overlay, under, &err), 0, "%s", err.text);
	cr_assert_eq(block_overlay_put(overlay, under, &err), 0, "%s", err.text);
	cr_assert(under->readonly);
	cr_assert_eq(overlay->backing, under);
	cr_assert_eq(block_write(under, bytes, CHUNK, 0), -EROFS);
	cr_assert_eq(block_read(overlay, got, CHUNK, 3 * CHUNK), 0);
	cr_assert_eq(memcmp(got, bytes, CHUNK), 0, "what it had shows through");
	memset(bytes, 0x77, sizeof(bytes));
	cr_assert_eq(block_write(overlay, bytes, CHUNK, 3 * CHUNK), 0);
	cr_assert_eq(block_read(under, got, CHUNK, 3 * CHUNK), 0);
	cr_assert_eq(got[0], 0x5a, "it stays as it was");
	cr_assert_eq(block_read(overlay, got, CHUNK, 3 * CHUNK), 0);
	cr_assert_eq(got[0], 0x77);
	cr_assert_eq(lock_from_outside(false), 0, "others may read it");
	cr_assert_eq(lock_from_outside(true), -EBUSY, "but not write");
}

Test(overlay_raw, goes_on_above)
{
	cr_assert_eq(lock_from_outside(false), -EBUSY);
	put_and_write();
}

Test(overlay_qcow2, goes_on_above)
{
	put_and_write();
}

static void undo(void)
{
	cr_assert_eq(block_overlay_put(overlay, under, &err), 0, "%s", err.text);
	cr_assert_eq(block_overlay_undo(overlay, &err), 0, "%s", err.text);
	cr_assert_null(overlay->backing);
	cr_assert_not(under->readonly);
	cr_assert_eq(lock_from_outside(false), -EBUSY);
	cr_assert_eq(block_write(under, bytes, CHUNK, 5 * CHUNK), 0);
	cr_assert_eq(block_read(under, got, CHUNK, 5 * CHUNK), 0);
	cr_assert_eq(memcmp(got, bytes, CHUNK), 0);
	under = block_close(under);
}

Test(overlay_raw, comes_back)
{
	undo();
}

Test(overlay_qcow2, comes_back)
{
	undo();
}

/* What was not flushed when it was put under is in the file. */
Test(overlay_qcow2, all_of_it_is_written)
{
	struct block_image *again;
	const struct block_open how = {.format = "qcow2", .name = "again", .readonly = true};

	cr_assert_eq(block_overlay_put(overlay, under, &err), 0, "%s", err.text);
	cr_assert_eq(block_open(&again, open(path, O_RDONLY | O_CLOEXEC), &how, &err), 0, "%s",
		     err.text);
	cr_assert_eq(block_read(again, got, CHUNK, 3 * CHUNK), 0);
	cr_assert_eq(memcmp(got, bytes, CHUNK), 0);
	block_close(again);
}

static void refused(int fd, int code, const char *part)
{
	struct block_image *image = open_image(fd, "qcow2", true);

	cr_assert_eq(block_overlay_check(image, under, &err), code, "%s", err.text);
	cr_assert(strstr(err.text, part), "%s", err.text);
	block_close(image);
}

Test(overlay_raw, what_is_no_overlay_for_it_is_refused)
{
	struct block_image *used = open_image(make_overlay(SIZE, "under"), "qcow2", true);

	refused(make_overlay(SIZE, NULL), -EINVAL, "does not say that it stands on another");
	refused(make_overlay(2 * SIZE, "under"), -EINVAL, "2097152 bytes, the disk has 1048576");
	cr_assert_eq(block_write(used, bytes, CHUNK, SIZE - CHUNK), 0);
	cr_assert_eq(block_overlay_check(used, under, &err), -ENOTEMPTY);
	cr_assert_eq(block_overlay_check(under, under, &err), -EINVAL, "a raw image");
	block_close(used);
	under = block_close(under);
}
