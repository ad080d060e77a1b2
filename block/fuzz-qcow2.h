/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the fuzzers of qcow2 images share: a file of any bytes, and a mutator that knows where in an
 * image the words stand that matter.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* A file in memory with these bytes; the descriptor is the caller's. */
int fuzz_file(const uint8_t *data, size_t size);
/* An opener for backing images, whatever their name: a small raw one. */
struct block_opener *fuzz_opener(void);
/* Changes the image that begins at `start` of the input, or any bytes. The new size. */
size_t fuzz_mutate(uint8_t *data, size_t size, size_t max_size, unsigned int seed, size_t start);
