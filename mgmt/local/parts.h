/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The value of a flag that holds several words, "FIRST,key=value,key": cut at the commas, each word
 * set through the table of the struct it belongs to.
 */
#pragma once

#include "base/error.h"
#include "base/table.h"

/* Cuts the next part off, up to a comma; two commas are one that belongs to the text. *rest is NULL
 * after the last. */
char *part_next(char **rest);

/* Sets "key=value" or "key"; a key the table does not have is -EINVAL, with the nearest it has. */
int part_set(const struct table *table, void *object, char *part, struct error *err);

/* All of them: FIRST is the value of `first_key`, or a word like the others if that is NULL. */
int parts_set(const struct table *table, void *object, const char *flag_name, const char *first_key,
	      const char *value, struct error *err);
