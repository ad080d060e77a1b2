/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the run directory and the host know of a VM's network cards.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "proto/vm.h"

struct rundir;

#define MAC_TEXT_MAX     18
#define ADDRESS_TEXT_MAX 16

/* The description a VM was started with; `vm` is to be deinitialised in any case. */
int described_read(const struct rundir *dir, struct vm_description *vm,
		   struct error *err) __must_check;
/* "52:54:00:12:34:56", given or made. */
void described_mac(const struct vm_description *vm, uint32_t net, char text[MAC_TEXT_MAX]);
/* The IPv4 address the host has last reached that card at, if it is a neighbour. */
bool described_neighbour(const char *mac, char text[ADDRESS_TEXT_MAX]);
