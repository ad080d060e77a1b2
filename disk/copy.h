/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest data from image to image: what is a hole stays one, what is only zeroes becomes one, and
 * several pieces are under way at once. Ends with a flush.
 */
#pragma once

#include "disk/sealed.h"

struct copy_options {
	bool fresh;       /* the target reads as zeroes everywhere: holes need nothing done */
	bool top_only;    /* what the source itself has; what is under it is the target's already */
	bool packed;      /* compressed clusters; fresh only */
	uint32_t cluster; /* the target's, 0: it has none */
};

struct copy_result {
	uint64_t copied; /* bytes read and written */
	uint64_t shared; /* bytes the store shares or has copied by itself */
	uint64_t zeroes; /* bytes that were read and only zeroes */
};

int copy_image(struct sealed *sealed, struct block_image *from, struct block_image *to,
	       const struct copy_options *options, struct copy_result *ret_result,
	       struct error *err) __must_check;

/* How verbs report it. */
struct copy_item {
	uint64_t size, copied, shared, zeroes, milliseconds;
};
extern const struct table copy_item_table;
