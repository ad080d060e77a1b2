/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The answer to "counters" (proto/control.h) as tables for a person.
 */
#pragma once

#include <jansson.h>

#define STATS_HOST_KSM "host-ksm"

/* What the kernel says KSM does for all processes of this host together, in bytes; nothing where
 * there is no KSM. */
void stats_add_host_ksm(json_t *counters);

void stats_print(const json_t *counters);
