/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An image's store: whole transfers however the buffers are cut, aligned or not under O_DIRECT,
 * zeroes, discards, sizes, and what a recorder sees.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/macros.h"
#include "block/file.h"

#define SIZE (3u << 20)

static char path[] = "test-file-XXXXXX"; /* not in /tmp, which may be a tmpfs */
static struct block_file file;
static struct error err;
static uint8_t *data, *back, *model;

static void open_as(int flags)
{
	int fd = open(path, flags | O_CLOEXEC);

	cr_assert_geq(fd, 0, "%s", strerror(errno));
	cr_assert_eq(block_file_init(&file, fd, "x", &err), 0, "%s", err.text);
}

static void set_up(void)
{
	int fd = mkstemp(path);

	cr_assert_geq(fd, 0);
	cr_assert_eq(ftruncate(fd, SIZE), 0);
	close(fd);
	data = mmap(NULL, 3 * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	back = data + SIZE;
	model = data + 2 * SIZE;
	for (uint32_t i = 0; i < SIZE; i++)
		data[i] = (uint8_t)(i * 7 + i / 512);
	open_as(O_RDWR);
}

static void tear_down(void)
{
	block_file_close(&file);
	unlink(path);
	munmap(data, 3 * SIZE);
}

TestSuite(file, .init = set_up, .fini = tear_down, .timeout = 60);

Test(file, what_it_is)
{
	cr_assert_eq(block_file_size(&file), SIZE);
	cr_assert(file.holes);
	cr_assert_not(file.direct);
	cr_assert_not(file.block_device);
	cr_assert_eq(file.align, 1);
}

Test(file, what_is_no_store_is_refused_and_closed)
{
	struct block_file other;
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	cr_assert_eq(block_file_init(&other, fd, "nothing", &err), -EINVAL);
	cr_assert(strstr(err.text, "nothing"));
	cr_assert_eq(other.fd, -1);
	cr_assert_eq(fcntl(fd, F_GETFD), -1, "taken over");
	cr_assert_eq(block_file_init(&other, -1, "nothing", &err), -EBADF);
}

Test(file, whole_transfers_of_many_buffers)
{
	static struct iovec iov[3000];
	uint64_t at = 0;

	for (uint32_t i = 0; i < ARRAY_SIZE(iov); i++) {
		iov[i] = (struct iovec){data + at, i * 13 % 700};
		at += iov[i].iov_len;
	}
	cr_assert_eq(block_file_writev(&file, iov, ARRAY_SIZE(iov), 1000), 0, "more than IOV_MAX");
	cr_assert_eq(block_file_read(&file, back, at, 1000), 0);
	cr_assert_eq(memcmp(data, back, at), 0);
	for (uint32_t i = 0; i < ARRAY_SIZE(iov); i++)
		iov[i].iov_base = (uint8_t *)iov[i].iov_base - data + back;
	memset(back, 0, SIZE);
	cr_assert_eq(block_file_readv(&file, iov, ARRAY_SIZE(iov), 1000), 0);
	cr_assert_eq(memcmp(data, back, at), 0);
}

Test(file, nothing_is_fine)
{
	struct iovec none[2] = {{data, 0}, {NULL, 0}};

	cr_assert_eq(block_file_readv(&file, none, 2, 0), 0);
	cr_assert_eq(block_file_writev(&file, none, 2, 0), 0);
	cr_assert_eq(block_file_writev(&file, NULL, 0, 0), 0);
	cr_assert_eq(block_file_zero(&file, 0, 0, true), 0);
	cr_assert_eq(block_file_discard(&file, 0, 0), 0);
}

Test(file, past_the_end_are_zeroes)
{
	struct iovec iov[2] = {{back, 700}, {back + 700, 4096}};

	memset(back, 0xff, 8192);
	cr_assert_eq(block_file_write(&file, data, 512, SIZE - 512), 0);
	cr_assert_eq(block_file_readv(&file, iov, 2, SIZE - 512), 0);
	cr_assert_eq(memcmp(back, data, 512), 0);
	for (uint32_t i = 512; i < 4796; i++)
		cr_assert_eq(back[i], 0);
	cr_assert_eq(back[4796], 0xff);
	cr_assert_eq(block_file_read(&file, back, 512, 10ull * SIZE), 0);
}

Test(file, what_is_past_the_end_of_anything_else_is_an_error)
{
	file.holes = false;
	cr_assert_eq(block_file_read(&file, back, 1024, SIZE - 512), -EIO);
}

Test(file, errors_come_up)
{
	block_file_close(&file);
	open_as(O_RDONLY);
	cr_assert_eq(block_file_write(&file, data, 512, 0), -EBADF);
	cr_assert_lt(block_file_zero(&file, 0, 4096, false), 0);
	cr_assert_lt(block_file_discard(&file, 0, 4096), 0);
	cr_assert_lt(block_file_resize(&file, 4096), 0);
	cr_assert_eq(block_file_read(&file, back, 512, 0), 0);
}

static void check_zeroes(bool keep)
{
	struct stat st;

	cr_assert_eq(block_file_write(&file, data, SIZE, 0), 0);
	cr_assert_eq(block_file_zero(&file, 4096, 2u << 20, keep), 0);
	cr_assert_eq(block_file_read(&file, back, SIZE, 0), 0);
	cr_assert_eq(memcmp(back, data, 4096), 0);
	for (uint32_t i = 0; i < 2u << 20; i++)
		cr_assert_eq(back[4096 + i], 0);
	cr_assert_eq(memcmp(back + 4096 + (2u << 20), data + 4096 + (2u << 20),
			    SIZE - 4096 - (2u << 20)),
		     0);
	cr_assert_eq(stat(path, &st), 0);
	cr_assert(!keep || st.st_blocks * 512ull >= SIZE, "it stays allocated");
	cr_assert_eq(block_file_size(&file), SIZE);
}

Test(file, zeroes)
{
	check_zeroes(true);
	check_zeroes(false);
	cr_assert_eq(block_file_zero(&file, SIZE - 512, 1024, false), 0);
	cr_assert_eq(block_file_zero(&file, 100, 10, true), 0);
}

/* memfd is a tmpfs, which has no FALLOC_FL_ZERO_RANGE. */
Test(file, zeroes_are_written_where_there_is_no_other_way)
{
	int fd = memfd_create("x", MFD_CLOEXEC);

	block_file_close(&file);
	cr_assert_eq(ftruncate(fd, SIZE), 0);
	cr_assert_eq(block_file_init(&file, fd, "x", &err), 0);
	cr_assert_eq(block_file_write(&file, data, SIZE, 0), 0);
	cr_assert_eq(block_file_zero(&file, 700, (2u << 20) + 13, true), 0);
	cr_assert_eq(block_file_read(&file, back, SIZE, 0), 0);
	cr_assert_eq(memcmp(back, data, 700), 0);
	for (uint32_t i = 0; i < (2u << 20) + 13; i++)
		cr_assert_eq(back[700 + i], 0);
	cr_assert_eq(back[713 + (2u << 20)], data[713 + (2u << 20)]);
}

Test(file, discards_give_space_back)
{
	struct stat st;

	cr_assert_eq(block_file_write(&file, data, SIZE, 0), 0);
	cr_assert_eq(block_file_sync(&file), 0);
	cr_assert_eq(block_file_discard(&file, 1 << 20, 1 << 20), 0);
	cr_assert_eq(stat(path, &st), 0);
	cr_assert_leq(st.st_blocks * 512ull, 2u << 20);
	cr_assert_eq(block_file_size(&file), SIZE);
	cr_assert_eq(block_file_discard(&file, SIZE, 1 << 20), 0, "past the end");
}

Test(file, sizes)
{
	cr_assert_eq(block_file_resize(&file, 2 * SIZE), 0);
	cr_assert_eq(block_file_size(&file), 2 * SIZE);
	cr_assert_eq(block_file_resize(&file, 700), 0);
	cr_assert_eq(block_file_size(&file), 700);
	file.block_device = true;
	cr_assert_eq(block_file_resize(&file, 700), 0);
	cr_assert_eq(block_file_resize(&file, 701), -ENOTSUP);
}

/* O_DIRECT */

static uint64_t seed = 88172645463325252ull;

static uint32_t any(uint32_t below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)(seed >> 20) % below;
}

static void go_direct(void)
{
	int fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);

	if (fd < 0)
		cr_skip_test("no O_DIRECT here");
	block_file_close(&file);
	cr_assert_eq(block_file_init(&file, fd, "x", &err), 0);
	cr_assert(file.direct);
	cr_assert_eq(file.align, 4096);
}

Test(file, what_is_not_aligned_goes_through_a_buffer)
{
	go_direct();
	for (uint32_t round = 0; round < 300; round++) {
		uint64_t offset = any(SIZE), length = any(any(3) ? 9000 : SIZE);
		struct iovec iov[3];
		uint64_t a, b;

		length = MIN(length, SIZE - offset);
		a = length / 3, b = length / 2;
		iov[0] = (struct iovec){data + round, a};
		iov[1] = (struct iovec){data + round + a, b};
		iov[2] = (struct iovec){data + round + a + b, length - a - b};
		if (length + round > SIZE)
			continue;
		memcpy(model + offset, data + round, length);
		cr_assert_eq(block_file_writev(&file, iov, 3, offset), 0);
		for (uint32_t i = 0; i < 3; i++)
			iov[i].iov_base = (uint8_t *)iov[i].iov_base - data + back;
		memset(back, 0, SIZE);
		cr_assert_eq(block_file_readv(&file, iov, 3, offset), 0);
		cr_assert_eq(memcmp(back + round, data + round, length), 0, "round %u", round);
	}
	cr_assert_eq(block_file_read(&file, back, SIZE, 0), 0);
	cr_assert_eq(memcmp(back, model, SIZE), 0);
	cr_assert_eq(block_file_size(&file), SIZE);
}

Test(file, what_is_aligned_does_not)
{
	go_direct();
	cr_assert_eq(block_file_write(&file, data, 8192, 4096), 0);
	cr_assert_eq(block_file_read(&file, back, 8192, 4096), 0);
	cr_assert_eq(memcmp(back, data, 8192), 0);
}

Test(file, zeroes_under_o_direct)
{
	go_direct();
	cr_assert_eq(block_file_write(&file, data, SIZE, 0), 0);
	cr_assert_eq(block_file_zero(&file, 700, 5000, true), 0);
	cr_assert_eq(block_file_read(&file, back, 8192, 0), 0);
	cr_assert_eq(memcmp(back, data, 700), 0);
	cr_assert_eq(back[700] | back[5699], 0);
	cr_assert_eq(back[5700], data[5700]);
	cr_assert_eq(block_file_read(&file, back, 8192, SIZE - 512), 0, "past the end, too");
	cr_assert_eq(memcmp(back, data + SIZE - 512, 512), 0);
	cr_assert_eq(back[512], 0);
}

/* The recorder */

static struct seen {
	struct block_recorder recorder;
	struct {
		enum io_kind kind;
		uint64_t offset, length;
		uint32_t n_iov;
	} list[16];
	uint32_t n, refuse_at;
	int64_t size_then;
} seen;

static int see(struct block_recorder *recorder, enum io_kind kind, uint64_t offset, uint64_t length,
	       const struct iovec *iov, uint32_t n_iov)
{
	struct seen *self = container_of(recorder, struct seen, recorder);

	cr_assert_eq(kind == IO_WRITE, iov != NULL);
	self->list[self->n].kind = kind;
	self->list[self->n].offset = offset;
	self->list[self->n].length = length;
	self->list[self->n].n_iov = n_iov;
	self->size_then = block_file_size(&file);
	return self->n++ == self->refuse_at ? -EIO : 0;
}

static void check_seen(uint32_t i, enum io_kind kind, uint64_t offset, uint64_t length)
{
	cr_assert_lt(i, seen.n);
	cr_assert_eq(seen.list[i].kind, kind);
	cr_assert_eq(seen.list[i].offset, offset);
	cr_assert_eq(seen.list[i].length, length);
}

Test(file, a_recorder_sees_each_change_once)
{
	struct iovec iov[2] = {{data, 100}, {data + 100, 200}};

	seen.recorder.note = see;
	seen.refuse_at = 100;
	file.recorder = &seen.recorder;
	cr_assert_eq(block_file_writev(&file, iov, 2, 5), 0);
	cr_assert_eq(block_file_sync(&file), 0);
	cr_assert_eq(block_file_discard(&file, 4096, 8192), 0);
	cr_assert_eq(block_file_zero(&file, 100, 200, false), 0);
	cr_assert_eq(block_file_zero(&file, 100, 200, true), 0);
	cr_assert_eq(block_file_resize(&file, SIZE + 100), 0);
	cr_assert_eq(seen.size_then, SIZE, "before it is made");
	cr_assert_eq(block_file_resize(&file, 100), 0);
	cr_assert_eq(block_file_read(&file, back, 10, 0), 0);
	cr_assert_eq(seen.n, 7);
	check_seen(0, IO_WRITE, 5, 300);
	cr_assert_eq(seen.list[0].n_iov, 2);
	check_seen(1, IO_FLUSH, 0, 0);
	check_seen(2, IO_DISCARD, 4096, 8192);
	check_seen(3, IO_ZERO, 100, 200);
	check_seen(4, IO_ZERO_KEEP, 100, 200);
	check_seen(5, IO_ZERO_KEEP, SIZE, 100);
	check_seen(6, IO_DISCARD, 100, UINT64_MAX - 100);
}

Test(file, what_a_recorder_refuses_is_not_done)
{
	seen.recorder.note = see;
	cr_assert_eq(block_file_write(&file, data, 512, 0), 0);
	file.recorder = &seen.recorder;
	for (uint32_t i = 0; i < 5; i++) {
		int r = 0;

		seen.refuse_at = seen.n = 0;
		switch (i) {
		case 0:
			r = block_file_write(&file, data + 512, 512, 0);
			break;
		case 1:
			r = block_file_sync(&file);
			break;
		case 2:
			r = block_file_discard(&file, 0, 4096);
			break;
		case 3:
			r = block_file_zero(&file, 0, 512, true);
			break;
		case 4:
			r = block_file_resize(&file, 0);
			break;
		}
		cr_assert_eq(r, -EIO, "%u", i);
	}
	cr_assert_eq(block_file_read(&file, back, 512, 0), 0);
	cr_assert_eq(memcmp(back, data, 512), 0);
	cr_assert_eq(block_file_size(&file), SIZE);
}
