/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The answer to "counters" (proto/control.h) as tables for a person.
 */
#pragma once

#include <jansson.h>

void stats_print(const json_t *counters);
