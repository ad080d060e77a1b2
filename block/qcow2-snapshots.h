/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of a qcow2 image's internal snapshots: read from the file, trusting nothing, and
 * encoded again.
 */
#pragma once

#include "block/file.h"
#include "block/qcow2-format.h"

/* As much table as is read. An entry may have more to it than we know, up to so much. */
#define QCOW2_SNAPSHOTS_BYTES_MAX (UINT64_C(64) << 20)
#define QCOW2_SNAPSHOT_EXTRA_MAX  1024u

struct qcow2_snapshot {
	char *id, *name; /* owned; as they stand there */
	uint64_t l1_offset;
	uint32_t l1_entries;
	uint32_t seconds, nanoseconds; /* since 1970 */
	uint64_t vm_clock;             /* ns */
	uint64_t vm_state_size, disk_size;
	uint64_t icount;
	uint32_t extra_size; /* what its entry has beside: 16 or more say the sizes */
};

struct qcow2_snapshots {
	struct qcow2_snapshot *list; /* owned */
	uint32_t n;
	uint64_t bytes; /* of the table */
};

/*
 * -EINVAL with a sentence if the table is not all in the file, too large or makes no sense. What
 * the entries point to is not looked at.
 */
int qcow2_snapshots_load(const struct block_file *file, const struct qcow2_header *header,
			 const char *name, struct qcow2_snapshots *ret_snapshots,
			 struct error *err) __must_check;
void qcow2_snapshots_deinit(struct qcow2_snapshots *snapshots);

/* Why the snapshot's L1 table cannot be used, or NULL. */
const char *qcow2_snapshot_fault(const struct qcow2_snapshot *snapshot, uint32_t cluster_bits,
				 uint64_t file_size);

/* The table of all that `keep` says (NULL: of all), owned by the caller. */
int qcow2_snapshots_encode(const struct qcow2_snapshots *snapshots, const bool *keep,
			   uint8_t **ret_data, uint64_t *ret_size) __must_check;
