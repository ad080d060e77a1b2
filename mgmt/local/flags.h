/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Command-line flags as a table: the same rows parse the words, print the help and suggest the
 * nearest flag for a mistyped one. `--flag value` and `--flag=value` are the same.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "base/macros.h"

struct flag {
	const char *name;  /* with its dashes */
	const char *value; /* what a person calls the value; NULL: takes none */
	const char *help;
	int (*set)(void *object, const struct flag *flag, const char *value, struct error *err);
	const char *key; /* for `set`: a key of a table */
	size_t offset;   /* for `set`: a member of the object */
};

/* `set` for a bool member, and for a const char * member (borrowed from argv). */
int flag_set_true(void *object, const struct flag *flag, const char *value, struct error *err);
int flag_set_word(void *object, const struct flag *flag, const char *value, struct error *err);

/*
 * Walks argv from 1. A word without a dash goes to *ret_name, if the caller takes one and has none
 * yet. Failures are -EINVAL with the sentence.
 */
int flags_parse(const struct flag *flags, size_t n_flags, void *object, int argc, char **argv,
		const char **ret_name, struct error *err) __must_check;

void flags_help(const struct flag *flags, size_t n_flags);

/* The candidate that differs least from `word`, NULL when none is near. `candidate(i)` gives NULL
 * at the end. */
const char *nearest(const char *word, const char *(*candidate)(const void *list, size_t i),
		    const void *list);
