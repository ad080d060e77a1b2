/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header of a qcow2 image, from bytes and to bytes. Nothing that stands in it is trusted: what
 * passes here can be counted with, without overflow, and lies in the file.
 */
#include "block/qcow2-format.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/macros.h"

#define FEATURES_KNOWN \
	(QCOW2_INCOMPATIBLE_DIRTY | QCOW2_INCOMPATIBLE_CORRUPT | QCOW2_INCOMPATIBLE_COMPRESSION)
#define FORMAT_NAME_MAX     15
#define FEATURE_NAME_SIZE   48
#define SNAPSHOT_SIZE_LEAST UINT64_C(40)

struct extension {
	uint32_t type, length;
} __attribute__((packed));

/* What is being read. */
struct source {
	const uint8_t *data;
	size_t n;
	uint64_t file_size;
	const char *name;
	struct error *err;
};

static int broken(const struct source *source, const char *what)
{
	return error_set(source->err, -EINVAL, "cannot use \"%s\" as a qcow2 image: %s",
			 source->name, what);
}

static int not_supported(const struct source *source, const char *what)
{
	return error_set(source->err, -ENOTSUP,
			 "cannot use \"%s\": %s; qemu-img convert makes an image without it",
			 source->name, what);
}

/* `size` bytes at `offset` are in the file, the beginning of a cluster. */
static bool is_in_file(const struct source *source, const struct qcow2_header *header,
		       uint64_t offset, uint64_t size)
{
	const uint64_t mask = (UINT64_C(1) << header->cluster_bits) - 1;

	return offset && !(offset & mask) && offset <= (uint64_t)INT64_MAX &&
	       size <= source->file_size && offset <= source->file_size - size;
}

static uint32_t tables_needed(uint64_t size, uint32_t cluster_bits)
{
	const uint32_t bits = 2 * cluster_bits - 3; /* of the guest's, a table */
	const uint64_t n = (size >> bits) + !!(size & ((UINT64_C(1) << bits) - 1));

	return (uint32_t)MIN(n, (uint64_t)UINT32_MAX);
}

static int check_tables(const struct source *source, const struct qcow2_header *header)
{
	const uint64_t l1_bytes = header->l1_entries * UINT64_C(8);
	const uint64_t reftable_bytes = (uint64_t)header->reftable_clusters << header->cluster_bits;

	if (header->size > INT64_MAX)
		return broken(source, "its size is out of range");
	if (l1_bytes > QCOW2_L1_BYTES_MAX)
		return broken(source, "its L1 table is too large");
	if (header->l1_entries < tables_needed(header->size, header->cluster_bits))
		return broken(source, "its L1 table is too small for its size");
	if (header->l1_entries && !is_in_file(source, header, header->l1_offset, l1_bytes))
		return broken(source, "its L1 table is not in the file; it may have been cut off");
	if (!header->reftable_clusters)
		return broken(source, "it has no refcount table");
	if (reftable_bytes > QCOW2_REFTABLE_BYTES_MAX)
		return broken(source, "its refcount table is too large");
	if (!is_in_file(source, header, header->reftable_offset, reftable_bytes))
		return broken(source,
			      "its refcount table is not in the file; it may have been cut off");
	if (header->n_snapshots > QCOW2_SNAPSHOTS_MAX)
		return broken(source, "it has too many snapshots");
	if (header->n_snapshots && !is_in_file(source, header, header->snapshots_offset,
					       header->n_snapshots * SNAPSHOT_SIZE_LEAST))
		return broken(source, "its snapshot table is not in the file");
	return 0;
}

/* What the image calls an incompatible feature that we do not know. `name` has room for one. */
static void feature_name(const struct source *source, uint64_t offset, uint64_t end, uint32_t bit,
			 char *name)
{
	struct extension extension;

	strcpy(name, "no name");
	for (; end - offset >= sizeof(extension); offset += align_up(extension.length, 8)) {
		memcpy(&extension, source->data + offset, sizeof(extension));
		offset += sizeof(extension);
		extension.type = be32toh(extension.type);
		extension.length = be32toh(extension.length);
		if (extension.type == QCOW2_EXTENSION_END ||
		    align_up(extension.length, 8) > end - offset)
			return;
		if (extension.type != QCOW2_EXTENSION_FEATURE_NAMES)
			continue;
		for (uint64_t i = 0; i + FEATURE_NAME_SIZE <= extension.length;
		     i += FEATURE_NAME_SIZE) {
			const uint8_t *entry = source->data + offset + i;

			if (entry[0] != 0 || entry[1] != bit)
				continue;
			memcpy(name, entry + 2, FEATURE_NAME_SIZE - 2);
			name[FEATURE_NAME_SIZE - 2] = 0;
			text_make_printable(name);
			return;
		}
	}
}

static int check_features(const struct source *source, const struct qcow2_header *header,
			  uint64_t extensions_end)
{
	const uint64_t unknown = header->incompatible & ~(uint64_t)FEATURES_KNOWN;
	char name[FEATURE_NAME_SIZE], text[160];
	uint32_t bit;

	if (unknown & QCOW2_INCOMPATIBLE_DATA_FILE)
		return not_supported(source, "its data is in another file");
	if (unknown & QCOW2_INCOMPATIBLE_EXTENDED)
		return not_supported(source, "it has extended L2 entries");
	if (unknown) {
		bit = (uint32_t)__builtin_ctzll(unknown);
		feature_name(source, header->header_size, extensions_end, bit, name);
		snprintf(text, sizeof(text),
			 "it needs a feature that is not known here, number %u (%s)", bit, name);
		return not_supported(source, text);
	}
	return 0;
}

static int parse_compression(const struct source *source, struct qcow2_header *header)
{
	const size_t at = offsetof(struct qcow2_disk_header, compression);

	if (header->header_size > at)
		header->compression = source->data[at];
	if (!(header->incompatible & QCOW2_INCOMPATIBLE_COMPRESSION) !=
	    (header->compression == QCOW2_ZLIB))
		return broken(source, "its header contradicts itself about compression");
	if (header->compression != QCOW2_ZLIB && header->compression != QCOW2_ZSTD)
		return not_supported(source, "its compression is not known here");
	return 0;
}

static int parse_string(const struct source *source, uint64_t offset, uint64_t length,
			char **ret_text)
{
	if (memchr(source->data + offset, 0, length))
		return broken(source, "the name of its backing image is broken");
	*ret_text = strndup((const char *)source->data + offset, length);
	return *ret_text ? 0 : error_set(source->err, -ENOMEM, "out of memory");
}

/* Where extensions end, or the name of the backing image begins. */
static uint64_t extensions_end(const struct source *source, const struct qcow2_disk_header *disk)
{
	const uint64_t backing = be64toh(disk->backing_offset);

	return backing ? MIN(backing, (uint64_t)source->n) : source->n;
}

static int parse_extensions(const struct source *source, struct qcow2_header *header, uint64_t end)
{
	uint64_t offset = header->header_size;
	struct extension extension;

	while (offset < end && end - offset >= sizeof(extension)) {
		memcpy(&extension, source->data + offset, sizeof(extension));
		offset += sizeof(extension);
		extension.type = be32toh(extension.type);
		extension.length = be32toh(extension.length);
		if (extension.type == QCOW2_EXTENSION_END)
			return 0;
		if (extension.length > end - offset)
			return broken(source, "a header extension is longer than its place");
		if (extension.type == QCOW2_EXTENSION_BACKING_FORMAT && !header->backing_format) {
			int r;

			if (extension.length > FORMAT_NAME_MAX)
				return broken(source, "the format of its backing image is broken");
			r = parse_string(source, offset, extension.length, &header->backing_format);
			if (r < 0)
				return r;
		}
		offset += align_up(extension.length, 8);
	}
	return 0;
}

static int parse_backing(const struct source *source, struct qcow2_header *header,
			 const struct qcow2_disk_header *disk)
{
	const uint64_t offset = be64toh(disk->backing_offset);
	const uint32_t length = be32toh(disk->backing_size);

	if (!offset || !length)
		return 0;
	if (length > QCOW2_BACKING_NAME_MAX || offset < header->header_size || offset > source->n ||
	    length > source->n - offset)
		return broken(source, "the name of its backing image is not in its first cluster");
	return parse_string(source, offset, length, &header->backing_name);
}

static int parse_version_3(const struct source *source, struct qcow2_header *header,
			   const struct qcow2_disk_header *disk)
{
	header->incompatible = be64toh(disk->incompatible);
	header->compatible = be64toh(disk->compatible);
	header->autoclear = be64toh(disk->autoclear);
	header->refcount_order = be32toh(disk->refcount_order);
	header->header_size = be32toh(disk->header_size);
	if (header->header_size < QCOW2_HEADER_V3_SIZE || header->header_size % 8 != 0 ||
	    header->header_size > source->n)
		return broken(source, "its header has an impossible length");
	if (header->refcount_order > QCOW2_REFCOUNT_ORDER_MAX)
		return broken(source, "its refcounts have an impossible width");
	return 0;
}

static int parse(const struct source *source, struct qcow2_header *header)
{
	struct qcow2_disk_header disk = {0};
	uint64_t end;
	int r = 0;

	memcpy(&disk, source->data, MIN(sizeof(disk), source->n));
	if (source->n < QCOW2_HEADER_V2_SIZE || be32toh(disk.magic) != QCOW2_MAGIC)
		return broken(source, "it does not begin like one; if it is a raw image, say "
				      "format=raw");
	*header = (struct qcow2_header){
		.version = be32toh(disk.version),
		.cluster_bits = be32toh(disk.cluster_bits),
		.refcount_order = 4,
		.l1_entries = be32toh(disk.l1_entries),
		.n_snapshots = be32toh(disk.n_snapshots),
		.reftable_clusters = be32toh(disk.reftable_clusters),
		.size = be64toh(disk.size),
		.l1_offset = be64toh(disk.l1_offset),
		.reftable_offset = be64toh(disk.reftable_offset),
		.snapshots_offset = be64toh(disk.snapshots_offset),
		.header_size = QCOW2_HEADER_V2_SIZE,
	};
	if (header->version != 2 && header->version != 3)
		return not_supported(source, "its version is neither 2 nor 3");
	if (header->cluster_bits < QCOW2_CLUSTER_BITS_MIN ||
	    header->cluster_bits > QCOW2_CLUSTER_BITS_MAX)
		return broken(source, "its clusters have an impossible size");
	end = extensions_end(source, &disk);
	if (header->version == 3)
		r = parse_version_3(source, header, &disk);
	if (r >= 0)
		r = check_features(source, header, MAX(end, (uint64_t)header->header_size));
	if (r >= 0 && disk.crypt_method)
		r = not_supported(source, "it is encrypted");
	if (r >= 0)
		r = parse_compression(source, header);
	if (r >= 0)
		r = check_tables(source, header);
	if (r >= 0)
		r = parse_extensions(source, header, end);
	return r < 0 ? r : parse_backing(source, header, &disk);
}

int qcow2_header_parse(struct qcow2_header *header, const void *data, size_t n, uint64_t file_size,
		       const char *name, struct error *err)
{
	struct source source = {data, n, file_size, name, err};
	uint32_t bits;
	int r;

	/* No more than the first cluster counts. */
	if (n >= QCOW2_HEADER_V2_SIZE) {
		memcpy(&bits, source.data + offsetof(struct qcow2_disk_header, cluster_bits),
		       sizeof(bits));
		bits = be32toh(bits);
		if (bits <= QCOW2_CLUSTER_BITS_MAX)
			source.n = MIN(n, (size_t)1 << bits);
	}
	*header = (struct qcow2_header){0};
	r = parse(&source, header);
	if (r < 0)
		qcow2_header_free(header);
	return r;
}

void qcow2_header_free(struct qcow2_header *header)
{
	free(header->backing_name);
	free(header->backing_format);
	*header = (struct qcow2_header){0};
}

static void fill(struct qcow2_disk_header *disk, const struct qcow2_header *header)
{
	*disk = (struct qcow2_disk_header){
		.magic = htobe32(QCOW2_MAGIC),
		.version = htobe32(header->version),
		.cluster_bits = htobe32(header->cluster_bits),
		.size = htobe64(header->size),
		.l1_entries = htobe32(header->l1_entries),
		.l1_offset = htobe64(header->l1_offset),
		.reftable_offset = htobe64(header->reftable_offset),
		.reftable_clusters = htobe32(header->reftable_clusters),
		.n_snapshots = htobe32(header->n_snapshots),
		.snapshots_offset = htobe64(header->snapshots_offset),
		.incompatible = htobe64(header->incompatible),
		.compatible = htobe64(header->compatible),
		.autoclear = htobe64(header->autoclear),
		.refcount_order = htobe32(header->refcount_order),
		.header_size = htobe32(sizeof(*disk)),
		.compression = (uint8_t)header->compression,
	};
}

int qcow2_header_build(void *data, size_t n, const struct qcow2_header *header, const char *name,
		       struct error *err)
{
	const size_t format = header->backing_format ? strlen(header->backing_format) : 0;
	const size_t backing = header->backing_name ? strlen(header->backing_name) : 0;
	struct qcow2_disk_header disk;
	size_t at = header->version == 3 ? sizeof(disk) : QCOW2_HEADER_V2_SIZE;
	const size_t end = at + (format ? sizeof(struct extension) + align_up(format, 8) : 0) +
			   sizeof(struct extension);

	if (backing > QCOW2_BACKING_NAME_MAX || format > FORMAT_NAME_MAX || end + backing > n)
		return error_set(err, -E2BIG,
				 "cannot make image \"%s\": the name of its backing image is too "
				 "long, %zu bytes",
				 name, backing);
	fill(&disk, header);
	if (backing) {
		disk.backing_offset = htobe64(end);
		disk.backing_size = htobe32((uint32_t)backing);
		memcpy((uint8_t *)data + end, header->backing_name, backing);
	}
	memcpy(data, &disk, at);
	if (format) {
		const struct extension extension = {htobe32(QCOW2_EXTENSION_BACKING_FORMAT),
						    htobe32((uint32_t)format)};

		memcpy((uint8_t *)data + at, &extension, sizeof(extension));
		memcpy((uint8_t *)data + at + sizeof(extension), header->backing_format, format);
	}
	return 0;
}
