/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Raw images: which descriptors make a disk, what is said of the others, and that operations do
 * what they say to the file.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "block/block.h"

#define SIZE (1u << 20)

static char path[32];
static struct block_image *image;
static struct error err;

static void set_up(void)
{
	int fd;

	snprintf(path, sizeof(path), "/tmp/test-raw-XXXXXX");
	fd = mkstemp(path);
	cr_assert_geq(fd, 0);
	cr_assert_eq(ftruncate(fd, SIZE), 0);
	close(fd);
}

static void tear_down(void)
{
	unlink(path);
}

TestSuite(raw, .init = set_up, .fini = tear_down, .timeout = 30);

static int open_fd(int fd, bool readonly, const char *name)
{
	const struct block_open how = {.format = "raw", .name = name, .readonly = readonly};

	err = ERROR_NULL;
	image = NULL;
	return block_open(&image, fd, &how, &err);
}

static int try_open(int flags, bool readonly)
{
	int fd = open(path, flags | O_CLOEXEC), r;

	cr_assert_geq(fd, 0);
	r = open_fd(fd, readonly, "the disk");
	cr_assert_eq(err.code, r);
	if (r < 0)
		cr_assert(strstr(err.text, "the disk"), "\"%s\" names it", err.text);
	return r;
}

Test(raw, a_file_is_a_disk_of_its_size)
{
	cr_assert_eq(try_open(O_RDWR, false), 0);
	cr_assert_eq(image->size, SIZE);
	cr_assert_eq(image->io_block, 512);
	cr_assert_not(image->readonly);
	cr_assert(image->can_discard);
	block_close(image);
}

Test(raw, a_read_only_disk_changes_nothing)
{
	cr_assert_eq(try_open(O_RDONLY, true), 0);
	cr_assert(image->readonly);
	cr_assert_not(image->can_discard);
	block_close(image);
}

Test(raw, a_descriptor_for_reading_is_no_writable_disk)
{
	cr_assert_eq(try_open(O_RDONLY, false), -EACCES);
	cr_assert(strstr(err.text, "readonly"), "it says what to do");
	cr_assert_eq(try_open(O_WRONLY, false), -EACCES);
}

Test(raw, sizes_are_whole_sectors)
{
	static const off_t sizes[] = {0, 1, 511, 513, SIZE + 511};

	for (uint32_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		cr_assert_eq(truncate(path, sizes[i]), 0);
		cr_assert_eq(try_open(O_RDWR, false), -EINVAL, "%lld bytes", (long long)sizes[i]);
	}
	cr_assert_eq(truncate(path, 512), 0);
	cr_assert_eq(try_open(O_RDWR, false), 0);
	block_close(image);
}

Test(raw, what_is_not_a_file_is_refused)
{
	static const char *const paths[] = {"/dev/null", "/tmp"};
	int pair[2];

	for (uint32_t i = 0; i < ARRAY_SIZE(paths); i++) {
		int fd = open(paths[i], O_RDONLY | O_CLOEXEC);

		cr_assert_eq(open_fd(fd, true, paths[i]), -EINVAL);
		cr_assert(*err.text);
	}
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	cr_assert_eq(open_fd(pair[0], false, "socket"), -EINVAL);
	close(pair[1]);
}

Test(raw, a_closed_descriptor_is_said)
{
	cr_assert_lt(open_fd(-1, false, "nothing"), 0);
	cr_assert(strstr(err.text, "nothing"));
}

Test(raw, closing_nothing_is_fine)
{
	cr_assert_null(block_close(NULL));
}

Test(raw, two_writers_are_refused)
{
	struct block_image *first;

	cr_assert_eq(try_open(O_RDWR, false), 0);
	first = image;
	cr_assert_eq(try_open(O_RDWR, false), -EBUSY);
	cr_assert_eq(try_open(O_RDONLY, true), -EBUSY);
	block_close(first);
	cr_assert_eq(try_open(O_RDWR, false), 0);
	block_close(image);
}

Test(raw, many_readers_are_welcome)
{
	struct block_image *first;

	cr_assert_eq(try_open(O_RDONLY, true), 0);
	first = image;
	cr_assert_eq(try_open(O_RDONLY, true), 0);
	block_close(image);
	block_close(first);
}

/* Operations, on both engines */

struct waiter {
	struct loop_source source;
	int32_t result;
	int n;
};

static void on_event(struct loop_source *source, const struct loop_event *event)
{
	struct waiter *waiter = container_of(source, struct waiter, source);

	if (event->kind != LOOP_IO)
		return;
	cr_assert_eq(event->arg, 77);
	waiter->result = event->result;
	waiter->n++;
}

static int32_t perform(struct loop *loop, struct block_channel *channel, const struct io_op *op)
{
	struct waiter waiter = {.source.on_event = on_event};

	cr_assert_eq(loop_add(loop, &waiter.source), 0);
	cr_assert_eq(block_submit(channel, op, &waiter.source, 77), 0);
	while (waiter.n == 0)
		cr_assert_eq(loop_turn(loop, UINT64_MAX), 0);
	loop_remove(&waiter.source);
	return waiter.result;
}

static int32_t transfer(struct loop *loop, struct block_channel *channel, enum io_kind kind,
			void *data, uint32_t size, uint64_t offset)
{
	/* Cut unevenly, as guests do. */
	struct iovec iov[2] = {{data, 100}, {(char *)data + 100, size - 100}};
	struct io_op op = {.kind = kind, .iov = iov, .n_iov = 2, .offset = offset};

	return perform(loop, channel, &op);
}

static bool all_bytes(const uint8_t *data, uint32_t size, uint8_t value)
{
	for (uint32_t i = 0; i < size; i++)
		if (data[i] != value)
			return false;
	return true;
}

static void check_range(struct loop *loop, struct block_channel *channel, enum io_kind kind)
{
	struct io_op op = {.kind = kind, .offset = 8192, .length = 4096};
	uint8_t data[3 * 4096];
	int32_t r;

	memset(data, 0x55, sizeof(data));
	cr_assert_eq(transfer(loop, channel, IO_WRITE, data, sizeof(data), 4096), sizeof(data));
	r = perform(loop, channel, &op);
	if (r == -EOPNOTSUPP)
		return; /* what lies below has no such thing */
	cr_assert_eq(r, 0);
	cr_assert_eq(transfer(loop, channel, IO_READ, data, sizeof(data), 4096), sizeof(data));
	cr_assert(all_bytes(data, 4096, 0x55));
	cr_assert(kind == IO_DISCARD || all_bytes(data + 4096, 4096, 0));
	cr_assert(all_bytes(data + 8192, 4096, 0x55));
}

static void check_operations(bool without_uring)
{
	const struct loop_options options = {.name = "test", .without_uring = without_uring};
	struct block_channel *channel = NULL;
	uint8_t data[4096];
	struct loop *loop;
	struct stat st;

	cr_assert_eq(try_open(O_RDWR, false), 0);
	cr_assert_eq(loop_new(&loop, &options, &err), 0, "%s", err.text);
	cr_assert_eq(loop_enable(loop), 0);
	cr_assert_eq(block_channel_open(&channel, image, loop), 0);
	memset(data, 0xa5, sizeof(data));
	cr_assert_eq(transfer(loop, channel, IO_WRITE, data, sizeof(data), SIZE - 4096), 4096);
	memset(data, 0, sizeof(data));
	cr_assert_eq(transfer(loop, channel, IO_READ, data, sizeof(data), SIZE - 4096), 4096);
	cr_assert(all_bytes(data, sizeof(data), 0xa5));
	cr_assert_eq(transfer(loop, channel, IO_READ, data, sizeof(data), SIZE - 512), 512,
		     "a short read comes up as it is");
	cr_assert_eq(perform(loop, channel, &(struct io_op){.kind = IO_FLUSH}), 0);
	check_range(loop, channel, IO_DISCARD);
	check_range(loop, channel, IO_ZERO);
	check_range(loop, channel, IO_ZERO_KEEP);
	block_channel_close(channel);
	loop_free(loop);
	block_close(image);
	cr_assert_eq(stat(path, &st), 0);
	cr_assert(S_ISBLK(st.st_mode) || st.st_size == SIZE, "nothing grew or shrank");
}

Test(raw, operations_on_the_ring)
{
	check_operations(false);
}

Test(raw, operations_on_threads)
{
	check_operations(true);
}

/* Makes `path` a block device over the file. The descriptor keeps it; closing it lets it go. */
static int loop_device(void)
{
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), file, device, number;

	if (control < 0)
		cr_skip_test("no loop devices here, or no right to make one");
	number = ioctl(control, LOOP_CTL_GET_FREE);
	close(control);
	cr_assert_geq(number, 0);
	file = open(path, O_RDWR | O_CLOEXEC);
	unlink(path);
	snprintf(path, sizeof(path), "/dev/loop%d", number);
	device = open(path, O_RDWR | O_CLOEXEC);
	if (device < 0)
		cr_skip_test("loop devices have no names here");
	cr_assert_eq(ioctl(device, LOOP_SET_FD, file), 0);
	cr_assert_eq(ioctl(device, LOOP_SET_STATUS64,
			   &(struct loop_info64){.lo_flags = LO_FLAGS_AUTOCLEAR}),
		     0);
	close(file);
	return device;
}

Test(raw, a_block_device_is_a_disk_too)
{
	int device = loop_device();

	cr_assert_eq(try_open(O_RDWR, false), 0);
	cr_assert_eq(image->size, SIZE);
	cr_assert_eq(image->io_block, 512);
	block_close(image);
	check_operations(false);
	check_operations(true);
	close(device);
	path[0] = '\0'; /* nothing of ours is there to remove */
}

Test(raw, closing_no_channel_is_fine)
{
	cr_assert_null(block_channel_close(NULL));
}
