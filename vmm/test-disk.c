/* SPDX-License-Identifier: Apache-2.0 */
/* Disks by description and descriptors: what is opened as what, and what is refused. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "block/create.h"
#include "vmm/disk.h"

#define SIZE  (1u << 20)
#define CHUNK 65536u

static struct vm_disk wanted;
static struct named_fds fds;
static struct disk disk;
static struct error err;

static void set_up(void)
{
	cr_assert_eq(table_init(&vm_disk_table, &wanted), 0);
	wanted.path = strdup("/images/web.qcow2");
	wanted.format = VM_FORMAT_QCOW2;
}

static void tear_down(void)
{
	disk_close(&disk);
	named_fds_close(&fds);
	table_deinit(&vm_disk_table, &wanted);
}

TestSuite(disk, .init = set_up, .fini = tear_down);

static void hand_over(const char *name, int fd)
{
	snprintf(fds.fds[fds.n_fds].name, NAMED_FDS_LENGTH, "%s", name);
	fds.fds[fds.n_fds++].fd = fd;
}

/* An image whose `at`th chunk holds `byte`. */
static int image(const char *format, const char *backing, const char *backing_format, uint32_t at,
		 uint8_t byte)
{
	const struct block_create create = {.format = format,
					    .size = SIZE,
					    .backing_name = backing,
					    .backing_format = backing_format};
	const struct block_open how = {.format = format, .name = "image", .no_backing = true};
	int fd = memfd_create("image", MFD_CLOEXEC);
	struct block_image *open;
	uint8_t data[CHUNK];

	memset(data, byte, sizeof(data));
	cr_assert_eq(block_create(fd, &create, "image", &err), 0, "%s", err.text);
	cr_assert_eq(block_open(&open, dup(fd), &how, &err), 0, "%s", err.text);
	cr_assert_eq(block_write(open, data, sizeof(data), at * CHUNK), 0);
	block_close(open);
	return fd;
}

static uint8_t byte_at(uint32_t chunk)
{
	uint8_t sector[BLOCK_SECTOR];

	cr_assert_eq(block_read(disk.image, sector, sizeof(sector), chunk * CHUNK), 0);
	return sector[0];
}

static int open_disk(void)
{
	return disk_open(&disk, &wanted, 3, &fds, NULL, NULL, &err);
}

Test(disk, a_chain_is_handed_out_from_the_top_down)
{
	wanted.backing = VM_BACKING_ALLOW;
	wanted.n_chain = 2;
	wanted.chain[0] = (struct vm_under){strdup("/b"), VM_FORMAT_QCOW2};
	wanted.chain[1] = (struct vm_under){strdup("/c"), VM_FORMAT_RAW};
	hand_over("disk3-backing1", image("raw", NULL, NULL, 2, 0xcc));
	hand_over("disk3", image("qcow2", "no-name-of-ours", "qcow2", 0, 0xaa));
	hand_over("disk3-backing0", image("qcow2", "/etc/shadow", "raw", 1, 0xbb));
	cr_assert_eq(open_disk(), 0, "%s", err.text);
	cr_assert_str_eq(disk.name, "disk3");
	cr_assert_eq(byte_at(0), 0xaa);
	cr_assert_eq(byte_at(1), 0xbb);
	cr_assert_eq(byte_at(2), 0xcc);
	cr_assert_eq(named_fds_take(&fds, "disk3-backing0"), -1);
	cr_assert(disk.image->backing->readonly);
}

Test(disk, a_backing_image_needs_to_be_allowed)
{
	hand_over("disk3", image("qcow2", "b", "raw", 0, 1));
	hand_over("disk3-backing0", image("raw", NULL, NULL, 0, 2));
	cr_assert_lt(open_disk(), 0);
	cr_assert(strstr(err.text, "stands on \"b\""), "%s", err.text);
}

Test(disk, a_backing_image_that_did_not_come_is_named)
{
	wanted.backing = VM_BACKING_ALLOW;
	hand_over("disk3", image("qcow2", "b", "raw", 0, 1));
	cr_assert_eq(open_disk(), -EBADF);
	cr_assert(strstr(err.text, "\"b\", which was not handed over"), "%s", err.text);
}

/* The format is the description's, whatever the image says of it. */
Test(disk, a_format_is_not_guessed)
{
	wanted.format = VM_FORMAT_RAW;
	hand_over("disk3", image("qcow2", NULL, NULL, 0, 1));
	cr_assert_eq(open_disk(), 0, "%s", err.text);
	cr_assert_str_eq(disk.image->ops->format, "raw");
	cr_assert_eq(byte_at(0), 'Q');
}

Test(disk, a_descriptor_that_is_missing_is_named)
{
	cr_assert_eq(open_disk(), -EBADF);
	cr_assert(strstr(err.text, "\"disk3\" was not handed over"), "%s", err.text);
}

Test(disk, a_disk_for_a_move_is_claimed_and_yielded)
{
	int fd = image("qcow2", NULL, NULL, 0, 0x11), other = fd;
	struct block_image *writer;
	const struct block_open how = {.format = "qcow2", .name = "writer"};
	char path[64];

	wanted.inactive = true;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	other = open(path, O_RDWR | O_CLOEXEC);
	hand_over("disk3", fd);
	cr_assert_eq(open_disk(), 0, "%s", err.text);
	/* It is still somebody else's. */
	cr_assert_eq(block_open(&writer, other, &how, &err), 0, "%s", err.text);
	cr_assert_eq(disk_claim(&disk, &err), -EBUSY);
	cr_assert_eq(block_write(writer, (uint8_t[BLOCK_SECTOR]){0x22}, BLOCK_SECTOR, CHUNK), 0);
	block_close(writer);
	cr_assert_eq(disk_claim(&disk, &err), 0, "%s", err.text);
	cr_assert_eq(byte_at(1), 0x22, "what came meanwhile is seen");
	cr_assert_eq(disk_yield(&disk, &err), 0, "%s", err.text);
	cr_assert_eq(block_write(disk.image, (uint8_t[BLOCK_SECTOR]){1}, BLOCK_SECTOR, 0), -EROFS);
	cr_assert_eq(block_open(&writer, open(path, O_RDWR | O_CLOEXEC), &how, &err), 0, "%s",
		     err.text);
	block_close(writer);
}

Test(disk, little_room_is_a_twentieth_and_a_gibibyte_at_most)
{
	cr_assert_eq(disk_low_mark(0, 20 << 20), 1 << 20);
	cr_assert_eq(disk_low_mark(0, UINT64_C(1) << 45), UINT64_C(1) << 30);
	cr_assert_eq(disk_low_mark(7, 20 << 20), 7);
}

static pthread_t called_by;

static void call(void *arg)
{
	called_by = pthread_self();
	*(int *)arg = 5;
}

Test(disk, a_worker_does_it_and_the_caller_waits)
{
	const struct block_worker_options options = {.name = "test"};
	struct block_worker *worker;
	int value = 0;

	cr_assert_eq(block_worker_new(&worker, &options, &err), 0);
	disk_worker_do(worker, call, &value);
	cr_assert_eq(value, 5);
	cr_assert_not(pthread_equal(called_by, pthread_self()));
	disk_worker_do(NULL, call, &value);
	cr_assert(pthread_equal(called_by, pthread_self()));
	block_worker_free(worker);
}
