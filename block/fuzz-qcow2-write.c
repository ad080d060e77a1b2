/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzes what a writer does with a qcow2 image of any bytes. The input begins with what to do: a
 * byte of flags, then four bytes an operation; the rest is the image. Nothing may crash, take long
 * or much memory; what was written reads back; an image that was in order stays so, and one that
 * was repaired is in order.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/create.h"
#include "block/fuzz-qcow2.h"
#include "block/qcow2-check.h"

#define SCRIPT     64u
#define OPERATIONS ((SCRIPT - 4) / 4)
#define WRITE_MAX  (16u << 10)
#define RANGE_MAX  (1u << 20)

enum { FLAG_REPAIR = 1, FLAG_NO_DISCARD = 2, FLAG_NO_BACKING = 4 };

enum action {
	READ,
	WRITE,
	WRITE_TOO,
	FLUSH,
	DISCARD,
	ZERO,
	ZERO_KEEP,
	RESIZE,
	PACKED,
	YIELD,
	CHECK,
	N_ACTIONS,
};

struct operation {
	uint8_t action, length, at[2];
};

static uint8_t buffer[WRITE_MAX], back[WRITE_MAX];
static bool was_good; /* else two ranges may be one cluster, and nobody knows */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed);

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed)
{
	return fuzz_mutate(data, size, max_size, seed, SCRIPT);
}

/* Corruptions, or -errno. */
static int64_t corruptions(int fd, bool repair)
{
	const struct qcow2_check_options options = {repair, repair, repair};
	struct block_check check;
	struct block_file file;
	struct error err;
	int r;

	if (block_file_init(&file, dup(fd), "it", &err) < 0)
		abort();
	r = qcow2_check(&file, "it", &options, &check, &err);
	block_file_close(&file);
	return r < 0 ? r : (int64_t)check.corruptions;
}

static uint64_t place(const struct block_image *image, const struct operation *operation)
{
	uint64_t at = operation->at[0] | operation->at[1] << 8;

	/* From the start, or now and then from the end. */
	at *= BLOCK_SECTOR;
	if (operation->length & 0x80)
		at = image->size - MIN(image->size, at + BLOCK_SECTOR);
	return at;
}

static uint64_t length(const struct operation *operation, uint64_t max)
{
	return MIN((1 + (uint64_t)(operation->length & 0x7f)) * BLOCK_SECTOR, max);
}

static void write_and_read(struct block_image *image, uint64_t at, uint64_t n, uint8_t value)
{
	memset(buffer, value, n);
	if (block_write(image, buffer, n, at) < 0 || block_read(image, back, n, at) < 0)
		return;
	assert(!was_good || !memcmp(buffer, back, n));
}

static void range(struct block_image *image, enum io_kind kind, uint64_t at, uint64_t n)
{
	uint64_t some = MIN(n, (uint64_t)WRITE_MAX);
	int r = block_do(image, &(struct io_op){.kind = kind, .offset = at, .length = n});

	if (r < 0 || kind == IO_DISCARD || block_read(image, back, some, at) < 0)
		return;
	for (uint64_t i = 0; i < some; i++)
		assert(!was_good || !back[i]);
}

static void write_packed(struct block_image *image, uint64_t at, uint8_t value)
{
	uint64_t size = image->discard_block;
	struct block_extent extent;
	uint8_t *data;

	at -= at % size;
	if (at >= image->size || size > image->size - at || size > WRITE_MAX)
		return;
	if (image->ops->extent(image, at, size, &extent) < 0 || extent.kind != BLOCK_ABSENT ||
	    extent.length < size)
		return;
	data = malloc(size);
	memset(data, value, size);
	if (block_write_packed(image, data, at) >= 0 && block_read(image, back, size, at) >= 0)
		assert(!was_good || !memcmp(data, back, size));
	free(data);
}

static void operate(struct block_image *image, const struct operation *operation)
{
	uint64_t at = place(image, operation), left = at < image->size ? image->size - at : 0;
	uint64_t n = length(operation, MIN(left, (uint64_t)WRITE_MAX));
	struct block_check check;
	struct error err;

	switch ((enum action)(operation->action % N_ACTIONS)) {
	case READ:
		(void)!block_read(image, back, n, at);
		break;
	case WRITE:
	case WRITE_TOO:
		write_and_read(image, at, n, operation->action);
		break;
	case FLUSH:
		(void)!block_flush(image);
		break;
	case DISCARD:
		range(image, IO_DISCARD, at, length(operation, MIN(left, (uint64_t)RANGE_MAX)));
		break;
	case ZERO:
		range(image, IO_ZERO, at, length(operation, MIN(left, (uint64_t)RANGE_MAX)));
		break;
	case ZERO_KEEP:
		range(image, IO_ZERO_KEEP, at, length(operation, MIN(left, (uint64_t)RANGE_MAX)));
		break;
	case RESIZE:
		/* Shrinking far would take its time by right. */
		if (image->size < UINT64_C(1) << 40)
			(void)!block_resize(image, image->size + at, &err);
		break;
	case PACKED:
		write_packed(image, at, operation->length);
		break;
	case YIELD:
		if (block_yield(image, &err) >= 0)
			(void)!block_claim(image, &err);
		break;
	case CHECK:
		(void)!block_check(image, false, operation->length & 1, NULL, NULL, NULL, &check,
				   &err);
		break;
	case N_ACTIONS:
		break;
	}
}

static void run(int fd, const uint8_t *script)
{
	const struct block_open open = {
		.format = "qcow2",
		.name = "it",
		.opener = fuzz_opener(),
		.no_lock = true,
		.no_backing = script[0] & FLAG_NO_BACKING,
		.no_discard = script[0] & FLAG_NO_DISCARD,
		.repair = script[0] & FLAG_REPAIR,
	};
	struct block_image *image;
	struct error err = ERROR_NULL;
	struct operation operation;

	if (block_open(&image, dup(fd), &open, &err) < 0) {
		assert(err.code < 0 && *err.text);
		return;
	}
	for (uint32_t i = 0; i < OPERATIONS; i++) {
		memcpy(&operation, script + 4 + i * 4, 4);
		/* Claiming may have failed. */
		if (!image->inactive)
			operate(image, &operation);
	}
	block_close(image);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int64_t after;
	int fd;

	if (size < SCRIPT)
		return 0;
	fd = fuzz_file(data + SCRIPT, size - SCRIPT);
	was_good = corruptions(fd, false) == 0;
	run(fd, data);
	after = corruptions(fd, false);
	assert(!was_good || after == 0);
	after = corruptions(fd, true);
	if (after >= 0)
		assert(after == 0 && corruptions(fd, false) == 0);
	close(fd);
	return 0;
}
