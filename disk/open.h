/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The broker's opening of files. What a user's word names is a regular file or a block device, and
 * is looked at before it is opened: opening a FIFO would wait, a tape would move. What an image
 * names is a file only, is taken relative to the image that names it, and is asked for only where
 * the user allowed it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/macros.h"

struct image_file {
	char *name; /* owned; as it was said; NULL: none */
	int fd;     /* owned */
	bool block_device;
	dev_t dev; /* who it is: of a device, the device's own number and no inode */
	ino_t ino;
};

int image_file_open(struct image_file *file, const char *name, bool writable,
		    struct error *err) __must_check;
/* A descriptor that the process was started with; taken over, also on failure. */
int image_file_take(struct image_file *file, int fd, const char *name,
		    struct error *err) __must_check;
void image_file_close(struct image_file *file);
bool image_file_same(const struct image_file *a, const struct image_file *b);

/* The images that were opened under a file so far, top first. */
#define BACKING_MAX 64
struct backing {
	char *last; /* owned; the name of the image that names the next one; NULL: none yet */
	uint32_t n;
	struct {
		dev_t dev;
		ino_t ino;
	} seen[BACKING_MAX];
};

/* Opens the image that `name`, of `size` bytes from inside the last image, names. The descriptor is
 * the caller's. */
int backing_open(struct backing *backing, const struct image_file *top, const char *name,
		 size_t size, bool writable, int *ret_fd, struct error *err) __must_check;
void backing_close(struct backing *backing);

/* How an image at `path` is to name `base`, both as a user said them: relative where it lies beside
 * or under it, so that both can be moved together; else from the root. */
int backing_name(const char *path, const char *base, char *name, size_t size,
		 struct error *err) __must_check;
