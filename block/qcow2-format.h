/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The qcow2 format, as docs/interop/qcow2 of QEMU specifies it: what stands in the file. All
 * numbers are big-endian. And the parsing of a header, which trusts nothing and does no I/O.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define QCOW2_MAGIC              UINT32_C(0x514649fb) /* "QFI\xfb" */
#define QCOW2_HEADER_V2_SIZE     72
#define QCOW2_HEADER_V3_SIZE     104
#define QCOW2_CLUSTER_BITS_MIN   9
#define QCOW2_CLUSTER_BITS_MAX   21
#define QCOW2_BACKING_NAME_MAX   1023
#define QCOW2_SNAPSHOTS_MAX      65536
#define QCOW2_REFCOUNT_ORDER_MAX 6
/* What a header may ask us to keep: 32 MiB of L1 is 2 PiB at 64 KiB a cluster; 8 MiB of refcount
 * table likewise. */
#define QCOW2_L1_BYTES_MAX       (UINT64_C(32) << 20)
#define QCOW2_REFTABLE_BYTES_MAX (UINT64_C(8) << 20)

struct qcow2_disk_header {
	uint32_t magic, version;
	uint64_t backing_offset;
	uint32_t backing_size, cluster_bits;
	uint64_t size;
	uint32_t crypt_method, l1_entries;
	uint64_t l1_offset, reftable_offset;
	uint32_t reftable_clusters, n_snapshots;
	uint64_t snapshots_offset;
	/* Version 3. */
	uint64_t incompatible, compatible, autoclear;
	uint32_t refcount_order, header_size;
	uint8_t compression, padding[7]; /* where header_size says so */
} __attribute__((packed));
_Static_assert(sizeof(struct qcow2_disk_header) == 112, "the specification's header");

enum {
	QCOW2_INCOMPATIBLE_DIRTY = 1,       /* refcounts may be wrong */
	QCOW2_INCOMPATIBLE_CORRUPT = 2,     /* only to be read, for rescue */
	QCOW2_INCOMPATIBLE_DATA_FILE = 4,   /* not supported */
	QCOW2_INCOMPATIBLE_COMPRESSION = 8, /* the compression field counts */
	QCOW2_INCOMPATIBLE_EXTENDED = 16,   /* subclusters: not supported */
	QCOW2_COMPATIBLE_LAZY = 1,          /* lazy refcounts */
};
enum { QCOW2_ZLIB = 0, QCOW2_ZSTD = 1 };

enum {
	QCOW2_EXTENSION_END = 0,
	QCOW2_EXTENSION_BACKING_FORMAT = 0xe2792aca,
	QCOW2_EXTENSION_FEATURE_NAMES = 0x6803f857,
	QCOW2_EXTENSION_BITMAPS = 0x23852875,
	QCOW2_EXTENSION_ENCRYPTION = 0x0537be77,
	QCOW2_EXTENSION_DATA_FILE = 0x44415441,
};

#define QCOW2_OFFSET_MASK \
	UINT64_C(0x00fffffffffffe00)         /* of L1, L2 and (from bit 9) refcount tables */
#define QCOW2_COPIED     (UINT64_C(1) << 63) /* refcount is exactly 1 */
#define QCOW2_COMPRESSED (UINT64_C(1) << 62)
#define QCOW2_ZERO       (UINT64_C(1) << 0) /* L2, version 3: reads as zeroes */

/* A header that has been checked. Strings are owned. */
struct qcow2_header {
	uint32_t version, cluster_bits, refcount_order, l1_entries, n_snapshots, reftable_clusters;
	uint64_t size, l1_offset, reftable_offset, snapshots_offset;
	uint64_t incompatible, compatible, autoclear;
	uint32_t header_size, compression;
	char *backing_name;   /* NULL: none */
	char *backing_format; /* NULL: not said */
};

/*
 * `data`: the file's first `n` bytes, as many as a cluster or the file has; `file_size` to hold
 * offsets against. What cannot be used is refused with a sentence: -EINVAL not qcow2 or broken,
 * -ENOTSUP a feature that we do not have.
 */
int qcow2_header_parse(struct qcow2_header *header, const void *data, size_t n, uint64_t file_size,
		       const char *name, struct error *err) __must_check;
void qcow2_header_free(struct qcow2_header *header);

/*
 * Writes header, extensions and backing name into `data` of a cluster's size, zero before. -E2BIG
 * with a sentence if they do not fit.
 */
int qcow2_header_build(void *data, size_t n, const struct qcow2_header *header, const char *name,
		       struct error *err) __must_check;
