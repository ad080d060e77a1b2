/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tests of qcow2 share: a directory of their own, images made by us or by qemu-img, chains
 * opened by name, and the verdict of qemu-img. Not for other directories.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "block/block.h"
#include "block/create.h"

#define TEST_PATH_SIZE 128

/* One process, one directory; it is removed at the end of it. Returns `path`, the file's. */
char *test_path(char *path, const char *name);
void test_clean(void);

/* Seeded; the same everywhere. */
uint64_t test_random(uint64_t *state);
/* Below `n`. */
uint64_t test_below(uint64_t *state, uint64_t n);
void test_fill(uint64_t *state, void *data, size_t size);

/* Runs a shell command in the directory; its status. What it prints goes to `output`. */
int test_command(char *output, size_t size, const char *format, ...) __printf(3, 4);
bool test_has_qemu_img(void);
/* Fails the test unless it ends well. */
void test_qemu_img(const char *format, ...) __printf(1, 2);

/* Opens `name` of the directory with its chain. Fails the test. */
struct block_image *test_open(const char *name, const char *format, bool readonly);
struct block_image *test_open_recorded(const char *name, struct block_recorder *recorder);
/* 0, or -errno with a sentence. */
int test_try_open(struct block_image **ret_image, const char *name, const struct block_open *like,
		  int flags, struct error *err);
void test_create(const char *name, const struct block_create *create);

/* qemu-img says that the qcow2 image is in order and reads as `data`. */
void test_judge(const char *name, const uint8_t *data, uint64_t size, bool leaks_allowed);
/* qemu-img map says of each range what block_map says. */
void test_judge_map(const char *name, const char *format);
