/* SPDX-License-Identifier: Apache-2.0 */
/* A qcow2 header, as it stands in a file. The sealed process. */
#pragma once

#include "block/file.h"
#include "block/qcow2-format.h"

/* A new one; the caller frees it. */
int header_read(const struct block_file *file, const char *name, struct qcow2_header **ret_header,
		struct error *err) __must_check;
void header_freep(struct qcow2_header **header);
