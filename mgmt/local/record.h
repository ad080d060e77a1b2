/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a VM ended, as its launcher or `corral wait` finds out: the VMM's own exit record, or what
 * its wait status says when it left none.
 */
#pragma once

#include <stdbool.h>

#include "base/error.h"
#include "proto/exit.h"

/* >0 outcome of record_read: the file is empty. */
#define RECORD_E_EMPTY 1

/* Reads from the start of `fd` into a record the caller deinitialises in any case. */
int record_read(int fd, struct exit_record *record, struct error *err) __must_check;

/* Fills a record from a wait status. `ran`: the VMM had said that its vCPUs run. */
int record_from_status(struct exit_record *record, const char *name, int status,
		       bool ran) __must_check;

/* Fills one for a VM whose VMM nobody waited for. */
int record_unknown(struct exit_record *record, const char *name) __must_check;

int record_write(int fd, const struct exit_record *record) __must_check;

void record_deinit(struct exit_record *record);
