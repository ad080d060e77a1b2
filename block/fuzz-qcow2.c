/* SPDX-License-Identifier: Apache-2.0 */
#include "block/fuzz-qcow2.h"

#include <assert.h>
#include <endian.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "base/macros.h"
#include "block/block.h"
#include "block/qcow2-format.h"

#define BACKING_SIZE 20000 /* not a multiple of anything but sectors: rounded below */

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

void __wrap_log_line(enum log_level level, const char *format, ...) __printf(2, 3);

/* What is said of broken images is not of interest. */
void __wrap_log_line(enum log_level level _unused_, const char *format _unused_, ...)
{
}

int fuzz_file(const uint8_t *data, size_t size)
{
	int fd = memfd_create("image", MFD_CLOEXEC);

	assert(fd >= 0);
	assert(pwrite(fd, data, size, 0) == (ssize_t)size);
	return fd;
}

static int backing_open(struct block_opener *opener _unused_, const char *name _unused_,
			const char *format _unused_, const char **ret_format,
			struct error *err _unused_)
{
	static uint8_t data[BACKING_SIZE / BLOCK_SECTOR * BLOCK_SECTOR];

	memset(data, 0xba, sizeof(data));
	*ret_format = "raw";
	return fuzz_file(data, sizeof(data));
}

struct block_opener *fuzz_opener(void)
{
	static struct block_opener opener = {.open = backing_open};

	return &opener;
}

static uint32_t next(uint32_t *state)
{
	*state = *state * 1664525 + 1013904223;
	return *state >> 8;
}

static uint64_t word_get(const uint8_t *data)
{
	uint64_t word;

	memcpy(&word, data, sizeof(word));
	return be64toh(word);
}

static void word_put(uint8_t *data, uint64_t word)
{
	word = htobe64(word);
	memcpy(data, &word, sizeof(word));
}

/* Words of the header that say where something is, how large, and what the image is like. */
static size_t header_word(uint32_t *state)
{
	static const uint8_t places[] = {16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120};

	return places[next(state) % ARRAY_SIZE(places)];
}

/* An entry of some table: a place in the file or near it, with flags. */
static uint64_t entry(uint32_t *state, const uint8_t *image, size_t size)
{
	static const uint64_t flags[] = {
		0,
		0,
		QCOW2_COPIED,
		QCOW2_COPIED,
		QCOW2_COPIED | QCOW2_ZERO,
		QCOW2_ZERO,
		QCOW2_COMPRESSED,
		QCOW2_COMPRESSED | QCOW2_COPIED,
		UINT64_C(1) << 60,
	};
	uint32_t bits = (image[22] | image[23]) & 31;
	uint64_t n = (size >> bits) + 3, place = (uint64_t)(next(state) % n) << bits;

	if (next(state) % 16 == 0)
		place = (uint64_t)next(state) << next(state) % 40;
	return place | flags[next(state) % ARRAY_SIZE(flags)];
}

static void mutate_image(uint8_t *image, size_t size, uint32_t *state)
{
	size_t at = next(state) % (size / 8) * 8;

	/* One that is something already, if there is one near. */
	for (uint32_t i = 0; i < 64 && !word_get(image + at); i++)
		at = next(state) % (size / 8) * 8;
	switch (next(state) % 6) {
	case 0:
		word_put(image + at, entry(state, image, size));
		break;
	case 1:
		word_put(image + at, word_get(image + at) ^ UINT64_C(1) << next(state) % 64);
		break;
	case 2:
		image[at + next(state) % 8] += (next(state) & 1) ? 1 : 255;
		break;
	case 3:
		word_put(image + at, word_get(image + next(state) % (size / 8) * 8));
		break;
	case 4:
		at = header_word(state);
		word_put(image + at, word_get(image + at) ^ UINT64_C(1) << next(state) % 64);
		break;
	default:
		at = header_word(state);
		word_put(image + at, entry(state, image, size));
		break;
	}
}

size_t fuzz_mutate(uint8_t *data, size_t size, size_t max_size, unsigned int seed, size_t start)
{
	uint32_t state = seed, n = 1 + next(&state) % 4;

	if (size < start + 128 || next(&state) % 4 == 0)
		return LLVMFuzzerMutate(data, size, max_size);
	if (start && next(&state) % 3 == 0)
		return LLVMFuzzerMutate(data, start, start) ? size : 0;
	if (next(&state) % 32 == 0)
		return start + 128 + next(&state) % (size - start - 127);
	while (n--)
		mutate_image(data + start, size - start, &state);
	return size;
}
