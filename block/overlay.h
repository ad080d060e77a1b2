/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An image in use comes to stand under a new one: what a snapshot of a running disk is. From then
 * on it is only read, and others may read it too.
 */
#pragma once

#include "block/block.h"

/*
 * `overlay` was opened for writing and without its backing. It is fit to stand on `under`: empty,
 * of the same size, and it says that it stands on something. May be asked while `under` is in use.
 */
int block_overlay_check(struct block_image *overlay, const struct block_image *under,
			struct error *err) __must_check;

/*
 * All of `under` is written and flushed, its lock becomes a shared one, it is read-only, and the
 * overlay's backing image, which owns it now. Nothing is under way; waits. On failure all is as it
 * was.
 */
int block_overlay_put(struct block_image *overlay, struct block_image *under,
		      struct error *err) __must_check;
/* The other way; the overlay was not written. It stands on nothing again, for block_close. */
int block_overlay_undo(struct block_image *overlay, struct error *err) __must_check;
