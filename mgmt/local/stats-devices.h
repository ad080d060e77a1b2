/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The devices of a VM's counters, for a person.
 */
#pragma once

#include <jansson.h>

/* `devices`: an object of objects, from a VMM that may mean no good. */
void stats_devices_print(const json_t *devices);
