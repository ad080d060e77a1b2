/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Raw images, for block.c, which opens them.
 */
#pragma once

#include "block/block.h"

extern const struct block_ops raw_ops;

/* Takes over `file`, also on failure. block.c sets what is the same for every format. */
int raw_open(struct block_image **ret_image, struct block_file *file, const struct block_open *open,
	     struct error *err) __must_check;
