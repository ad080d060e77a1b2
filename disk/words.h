/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The flags of `corral disk` as one table: it parses the words and prints each verb's help.
 * `--flag value` and `--flag=value` are the same.
 */
#pragma once

#include "disk/job.h"

/* The words after the verb; fills job->words. -EINVAL with the sentence. */
int words_parse(struct job *job, int argc, char **argv, struct error *err) __must_check;
void words_help(const struct disk_verb *verb);

/* "which format is "x" in?" where it was not said. */
int words_need_format(const char *format, const char *flag, const char *name,
		      struct error *err) __must_check;
/* A size as people write it, of whole sectors. */
int words_size(const char *text, uint64_t *ret_size, struct error *err) __must_check;
/* --cluster as a number of bits, 0: not said. */
uint32_t words_cluster_bits(const struct words *words);
