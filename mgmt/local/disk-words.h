/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `--disk FILE[,word…]`: all words are the description's own, but for "limit", which has several
 * values in it.
 */
#pragma once

#include "base/error.h"
#include "base/macros.h"

struct vm_disk;

/* `disk` has its initial values. The sentence begins with `flag_name`. */
int disk_words_read(struct vm_disk *disk, const char *flag_name, const char *value,
		    struct error *err) __must_check;
