/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A JSON object for people: one line a value, keys in a column, nested objects indented.
 */
#pragma once

#include <jansson.h>
#include <stdio.h>

void tree_print(FILE *file, const json_t *object, int indent);

/* The same as JSON text, with a newline. */
int tree_print_json(const json_t *json);
