/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzes what a reader does with a qcow2 image of any bytes: opens it, asks what its ranges are,
 * reads some, as the disk and as its snapshots, and checks it. Nothing may crash, take long or much
 * memory, or change a byte.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/create.h"
#include "block/fuzz-qcow2.h"

#define EXTENTS   40u
#define READ_SIZE 8192u
#define SNAPSHOTS 3u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed);

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed)
{
	return fuzz_mutate(data, size, max_size, seed, 0);
}

static void read_at(struct block_image *image, uint64_t offset, uint64_t length)
{
	static uint8_t buffer[READ_SIZE];

	length = MIN(length, (uint64_t)READ_SIZE) / BLOCK_SECTOR * BLOCK_SECTOR;
	(void)!block_read(image, buffer, length, offset);
}

static void read_all(struct block_image *image)
{
	uint64_t at = 0;

	for (uint32_t i = 0; i < EXTENTS && at < image->size; i++) {
		struct block_extent extent;
		int r = block_map(image, at, image->size - at, &extent);

		if (r < 0) {
			read_at(image, at, MIN((uint64_t)READ_SIZE, image->size - at));
			at += 4096;
			continue;
		}
		assert(extent.offset == at && extent.length && extent.length <= image->size - at);
		read_at(image, at, extent.length);
		at += extent.length;
	}
	if (image->size)
		read_at(image, image->size - BLOCK_SECTOR, BLOCK_SECTOR);
}

static void read_snapshots(struct block_image *image)
{
	struct block_snapshots snapshots;
	struct error err;

	if (block_snapshots_read(image, &snapshots, &err) < 0)
		return;
	for (uint32_t i = 0; i < snapshots.n && i < SNAPSHOTS; i++)
		if (block_snapshot_view(image, snapshots.list[i].id, &err) >= 0)
			read_all(image);
	block_snapshots_free(&snapshots);
}

static void on_sentence(void *arg, const char *sentence)
{
	uint32_t *n = arg;

	assert(*sentence && ++*n <= 1002);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct block_open open = {
		.format = "qcow2",
		.name = "it",
		.opener = fuzz_opener(),
		.readonly = true,
		.no_lock = true,
	};
	struct block_check check;
	struct block_image *image;
	struct error err = ERROR_NULL;
	uint32_t n = 0;
	uint8_t *now;
	int fd = fuzz_file(data, size), again = dup(fd);

	if (block_open(&image, fd, &open, &err) >= 0) {
		read_all(image);
		(void)!block_check(image, false, false, on_sentence, &n, NULL, &check, &err);
		read_snapshots(image);
		block_close(image);
	} else {
		assert(err.code < 0 && *err.text);
	}
	now = malloc(size + 1);
	assert(pread(again, now, size + 1, 0) == (ssize_t)size && !memcmp(now, data, size));
	free(now);
	close(again);
	return 0;
}
