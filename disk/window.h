/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A piece of a disk on its way from image to image: read, looked at for zeroes, written. One thread
 * at a time.
 */
#pragma once

#include "block/block.h"

#define WINDOW        (UINT64_C(2) << 20) /* no cluster is larger */
#define WINDOW_GRAIN  4096u               /* the least piece that is looked at for zeroes */
#define WINDOW_GRAINS (WINDOW / WINDOW_GRAIN)

struct window {
	char *buffer; /* borrowed; WINDOW bytes */
	uint64_t offset, length;
	uint32_t grain;           /* in pieces of which zeroes are looked for */
	bool data[WINDOW_GRAINS]; /* this grain is to be written */
	uint64_t copied, zeroes;  /* bytes that were read; of those, only zeroes */
	uint64_t failed_at;       /* where, when a function has failed */
	struct window *next;      /* its owner's */
};

/* Reads what `from` has there. `whole`: it is known to have data all over. */
int window_read(struct window *window, struct block_image *from, bool whole) __must_check;

struct window_target {
	struct block_image *image;
	bool fresh;  /* what is not written reads as zeroes */
	bool packed; /* in compressed clusters; grains are clusters */
};
int window_write(struct window *window, const struct window_target *target) __must_check;
