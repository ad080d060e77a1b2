/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every operation that may wait against a model, an array of bytes, in a seeded mix over cluster
 * sizes, versions, refcount widths and backing images; qemu-img has the last word on each image.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2.h"
#include "block/test-qcow2.h"

TestSuite(qcow2_io, .fini = test_clean, .timeout = 120);

enum backing { NONE, RAW, QCOW2 };

struct setup {
	uint32_t cluster_bits, version, refcount_bits;
	enum backing backing;
	uint64_t size, backing_size;
	uint32_t slices; /* in memory; 0: as many as there are */
	uint32_t n;      /* operations */
	bool lazy;
	uint32_t full; /* of 100 changes so many find the store full */
	uint32_t seed;
};

/* One run. */
struct mix {
	const struct setup *setup;
	struct block_image *image;
	uint8_t *model, *buffer;
	uint64_t random;
	struct block_recorder recorder;
	bool room; /* the store is not full now */
	uint32_t n_refused;
};

static int note(struct block_recorder *recorder, enum io_kind kind, uint64_t offset _unused_,
		uint64_t length _unused_, const struct iovec *iov _unused_, uint32_t n_iov _unused_)
{
	struct mix *mix = container_of(recorder, struct mix, recorder);

	if (mix->room || kind == IO_DISCARD || kind == IO_FLUSH ||
	    test_below(&mix->random, 100) >= mix->setup->full)
		return 0;
	mix->n_refused++;
	return -ENOSPC;
}

/* As a VM does that is resumed after there was room again: the same request once more. */
static void until_done(struct mix *mix, const struct io_op *op)
{
	int r;

	do
		r = block_do(mix->image, op);
	while (r == -ENOSPC && mix->setup->full);
	cr_assert_eq(r, 0);
}

static void open_image(struct mix *mix)
{
	mix->image = test_open_recorded("disk", mix->setup->full ? &mix->recorder : NULL);
	cr_assert_eq(mix->image->size, mix->setup->size);
	if (mix->setup->slices)
		to_qcow2(mix->image)->slices_max = mix->setup->slices;
}

static void write_file(const char *name, const void *data, uint64_t size)
{
	char path[TEST_PATH_SIZE];
	FILE *file = fopen(test_path(path, name), "w");

	cr_assert(file);
	cr_assert_eq(fwrite(data, 1, size, file), size);
	fclose(file);
}

/* The backing image has data here and there. */
static void make_backing(struct mix *mix)
{
	const struct setup *setup = mix->setup;
	uint8_t *data = calloc(1, setup->backing_size);

	for (uint32_t i = 0; i < 20; i++) {
		uint64_t at = test_below(&mix->random, setup->backing_size);
		uint64_t size = MIN(setup->backing_size - at,
				    test_below(&mix->random, setup->backing_size / 10) + 1);

		test_fill(&mix->random, data + at, size);
	}
	write_file("backing.raw", data, setup->backing_size);
	if (setup->backing == QCOW2)
		test_qemu_img("convert -f raw -O qcow2 backing.raw backing.qcow2");
	memcpy(mix->model, data, MIN(setup->size, setup->backing_size));
	free(data);
}

static void make_image(struct mix *mix)
{
	const struct setup *setup = mix->setup;
	char backing[100] = "";

	if (setup->backing != NONE) {
		const char *format = setup->backing == RAW ? "raw" : "qcow2";

		make_backing(mix);
		snprintf(backing, sizeof(backing), "-b backing.%s -F %s", format, format);
	}
	test_qemu_img(
		"create -f qcow2 %s -o cluster_size=%u,compat=%s,refcount_bits=%u%s disk %llu",
		backing, 1u << setup->cluster_bits, setup->version == 2 ? "0.10" : "1.1",
		setup->refcount_bits, setup->lazy ? ",lazy_refcounts=on" : "",
		(unsigned long long)setup->size);
}

static void random_range(struct mix *mix, uint64_t most, uint64_t *ret_offset, uint64_t *ret_length)
{
	const uint64_t sectors = mix->setup->size / 512;
	uint64_t at = test_below(&mix->random, sectors), n;

	n = 1 + test_below(&mix->random, MIN(sectors - at, most / 512));
	if (test_below(&mix->random, 4) == 0) { /* whole clusters */
		const uint64_t cluster = (UINT64_C(1) << mix->setup->cluster_bits) / 512;

		at -= at % cluster;
		n = MIN(sectors - at, align_up(n, cluster));
	}
	if (test_below(&mix->random, 20) == 0)
		n = sectors - at; /* to the end */
	*ret_offset = at * 512;
	*ret_length = MIN(n * 512, most);
}

static void do_write(struct mix *mix)
{
	uint64_t at, n, cut;
	struct iovec iov[3];

	random_range(mix, test_below(&mix->random, 3) ? 16384 : UINT64_C(1) << 20, &at, &n);
	test_fill(&mix->random, mix->model + at, n);
	cut = test_below(&mix->random, n / 2);
	iov[0] = (struct iovec){mix->model + at, cut};
	iov[1] = (struct iovec){mix->model + at + cut, n / 2 - cut};
	iov[2] = (struct iovec){mix->model + at + n / 2, n - n / 2};
	until_done(mix, &(struct io_op){.kind = IO_WRITE, .iov = iov, .n_iov = 3, .offset = at});
}

static void do_read(struct mix *mix, uint64_t at, uint64_t n)
{
	memset(mix->buffer, 0x55, n);
	cr_assert_eq(block_read(mix->image, mix->buffer, n, at), 0);
	for (uint64_t i = 0; i < n; i++)
		cr_assert_eq(mix->buffer[i], mix->model[at + i], "byte %llu",
			     (unsigned long long)(at + i));
}

/* What was discarded may be anything, but from then on it stays what it is. */
static void do_change(struct mix *mix, enum io_kind kind)
{
	struct io_op op = {.kind = kind};

	random_range(mix, mix->setup->size, &op.offset, &op.length);
	until_done(mix, &op);
	if (kind == IO_DISCARD)
		cr_assert_eq(block_read(mix->image, mix->model + op.offset, op.length, op.offset),
			     0);
	else
		memset(mix->model + op.offset, 0, op.length);
}

static void reopen(struct mix *mix)
{
	struct error err = ERROR_NULL;

	mix->room = true;
	if (test_below(&mix->random, 2)) {
		mix->image = block_close(mix->image);
		open_image(mix);
	} else {
		cr_assert_eq(block_yield(mix->image, &err), 0, "%s", err.text);
		cr_assert_eq(block_claim(mix->image, &err), 0, "%s", err.text);
	}
	mix->room = false;
}

static void step(struct mix *mix)
{
	uint64_t at, n, what = test_below(&mix->random, 100);

	if (what < 45) {
		do_write(mix);
	} else if (what < 75) {
		random_range(mix, UINT64_C(1) << 18, &at, &n);
		do_read(mix, at, n);
	} else if (what < 80) {
		do_change(mix, IO_DISCARD);
	} else if (what < 85) {
		do_change(mix, IO_ZERO);
	} else if (what < 90) {
		do_change(mix, IO_ZERO_KEEP);
	} else if (what < 98) {
		until_done(mix, &(struct io_op){.kind = IO_FLUSH});
	} else {
		reopen(mix);
	}
	cr_assert_not(atomic_load(&to_qcow2(mix->image)->corrupt));
}

static void run_mix(const struct setup *setup)
{
	struct mix mix = {.setup = setup, .random = setup->seed, .recorder.note = note};

	if (!test_has_qemu_img())
		cr_skip_test("qemu-img is not installed");
	mix.model = calloc(1, setup->size);
	mix.buffer = malloc(setup->size);
	make_image(&mix);
	open_image(&mix);
	for (uint32_t i = 0; i < setup->n; i++) {
		step(&mix);
		if (i % (setup->n / 3) == 0) {
			until_done(&mix, &(struct io_op){.kind = IO_FLUSH});
			if (!setup->lazy)
				test_judge("disk", mix.model, setup->size, false);
		}
	}
	do_read(&mix, 0, setup->size);
	mix.room = true;
	mix.image = block_close(mix.image);
	cr_assert(!setup->full || mix.n_refused);
	test_judge("disk", mix.model, setup->size, false);
	test_judge_map("disk", "qcow2");
	free(mix.model);
	free(mix.buffer);
}

#define KIB UINT64_C(1024)
#define MIB (KIB * KIB)

ParameterizedTestParameters(qcow2_io, a_mix_of_operations)
{
	static struct setup setups[] = {
		{12, 3, 16, NONE, 4 * MIB, 0, 0, 1500},
		{12, 3, 16, NONE, 4 * MIB + 512, 0, 2, 1500},
		{12, 3, 1, NONE, 4 * MIB, 0, 0, 1500},
		{12, 3, 2, RAW, 4 * MIB, 3 * MIB + 512, 0, 1500},
		{12, 3, 4, QCOW2, 4 * MIB - 1024, 6 * MIB, 3, 1500},
		{12, 2, 16, NONE, 4 * MIB, 0, 0, 1500},
		{12, 2, 16, RAW, 4 * MIB, 4 * MIB, 0, 1500},
		{9, 3, 64, NONE, 3 * MIB, 0, 0, 1500},
		{9, 3, 64, QCOW2, 3 * MIB, 3 * MIB, 20, 1500},
		{10, 3, 32, NONE, 3 * MIB, 0, 0, 1000},
		{14, 3, 8, RAW, 8 * MIB, 5 * MIB, 0, 1000},
		{16, 3, 16, NONE, 32 * MIB, 0, 0, 1500},
		{16, 3, 16, QCOW2, 16 * MIB, 9 * MIB + 512, 0, 1000},
		{16, 2, 16, QCOW2, 16 * MIB + 512, 20 * MIB, 0, 800},
		{21, 3, 16, NONE, 64 * MIB + 512, 0, 0, 500},
		{21, 3, 64, RAW, 33 * MIB, 17 * MIB + 512, 0, 300},
		{12, 3, 16, NONE, 4 * MIB, 0, 0, 1500, true},
		{16, 3, 16, RAW, 16 * MIB, 16 * MIB, 0, 800, true},
		{12, 3, 16, NONE, 4 * MIB, 0, 0, 1500, false, 10},
		{9, 3, 64, RAW, 2 * MIB, 2 * MIB, 10, 1500, false, 3},
		{13, 3, 16, QCOW2, 8 * MIB, 6 * MIB, 2, 1500, true, 10},
	};

	for (uint32_t i = 0; i < ARRAY_SIZE(setups); i++)
		setups[i].seed = i + 1;
	return cr_make_param_array(struct setup, setups, ARRAY_SIZE(setups));
}

ParameterizedTest(struct setup *setup, qcow2_io, a_mix_of_operations)
{
	run_mix(setup);
}
