/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes images, and changes what stands in a qcow2 header; compressed clusters are written here
 * too. For tools: all of it waits.
 */
#include "block/create.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2.h"

#define CLUSTER_BITS_DEFAULT 16
#define CLUSTER_BITS_LEAST   12
#define REFCOUNT_ORDER       4
#define EXTENSION_HEAD       8

/* New images */

/* In clusters, in the order of the file: header, refcount table, refcount blocks, L1 table. */
struct layout {
	uint64_t table, blocks, l1, end;
};

static uint64_t divide_up(uint64_t value, uint64_t by)
{
	return value / by + !!(value % by);
}

static struct layout lay_out(const struct qcow2_header *header, uint64_t store_size)
{
	const uint64_t size = UINT64_C(1) << header->cluster_bits;
	const uint64_t counts = size * 8 >> header->refcount_order; /* of a block */
	const uint64_t store_blocks = divide_up(divide_up(store_size, size), counts);
	struct layout layout = {
		.table = MAX(UINT64_C(1), divide_up(store_blocks * 8, size)),
		.l1 = MAX(UINT64_C(1), divide_up(header->l1_entries * UINT64_C(8), size)),
	};

	do {
		layout.blocks++;
		layout.end = 1 + layout.table + layout.blocks + layout.l1;
	} while (layout.end > layout.blocks * counts);
	return layout;
}

static int write_tables(const struct block_file *file, const struct qcow2_header *header,
			const struct layout *layout)
{
	const uint64_t size = UINT64_C(1) << header->cluster_bits;
	const uint64_t first = (1 + layout->table) * size, counts = size / 2;
	_cleanup_(freep) uint64_t *table = calloc(layout->blocks, sizeof(*table));
	_cleanup_(freep) uint16_t *block = calloc(layout->blocks, size);
	int r;

	if (!table || !block)
		return -ENOMEM;
	for (uint64_t i = 0; i < layout->blocks; i++)
		table[i] = htobe64(first + i * size);
	for (uint64_t i = 0; i < MIN(layout->end, layout->blocks * counts); i++)
		block[i] = htobe16(1);
	r = block_file_write(file, table, layout->blocks * sizeof(*table), size);
	if (r >= 0)
		r = block_file_write(file, block, layout->blocks * size, first);
	return r;
}

static int write_image(const struct block_file *file, const struct qcow2_header *header,
		       const struct layout *layout, const char *name, struct error *err)
{
	const uint64_t size = UINT64_C(1) << header->cluster_bits;
	_cleanup_(freep) void *first = calloc(1, size);
	int r = first ? 0 : -ENOMEM;

	if (r >= 0 && file->block_device)
		r = block_file_zero(file, 0, layout->end * size, true);
	else if (r >= 0)
		r = block_file_resize(file, layout->end * size);
	if (r >= 0)
		r = write_tables(file, header, layout);
	if (r >= 0) {
		r = qcow2_header_build(first, size, header, name, err);
		if (r < 0)
			return r;
		r = block_file_write(file, first, size, 0);
	}
	if (r >= 0)
		r = block_file_sync(file);
	return r < 0 ? error_set(err, r, "cannot make image \"%s\": %s", name, strerror(-r)) : 0;
}

static int create_qcow2(const struct block_file *file, const struct block_create *create,
			const char *name, struct error *err)
{
	const uint32_t bits = create->cluster_bits ? create->cluster_bits : CLUSTER_BITS_DEFAULT;
	const int64_t store = file->block_device ? block_file_size(file) : 0;
	struct qcow2_header header = {
		.version = 3,
		.cluster_bits = bits,
		.refcount_order = REFCOUNT_ORDER,
		.size = create->size,
		.compression = create->compression,
		.compatible = create->lazy_refcounts ? QCOW2_COMPATIBLE_LAZY : 0,
		.incompatible = create->compression ? QCOW2_INCOMPATIBLE_COMPRESSION : 0,
		.backing_name = (char *)create->backing_name,
		.backing_format = create->backing_name ? (char *)create->backing_format : NULL,
	};
	struct layout layout;
	uint64_t tables;

	if (bits < CLUSTER_BITS_LEAST || bits > QCOW2_CLUSTER_BITS_MAX)
		return error_set(err, -EINVAL,
				 "cannot make image \"%s\": clusters are of 4096 bytes to 2 MiB, "
				 "powers of two",
				 name);
	if (create->compression != QCOW2_ZLIB && create->compression != QCOW2_ZSTD)
		return error_set(err, -EINVAL, "cannot make image \"%s\": unknown compression",
				 name);
	tables = divide_up(create->size, UINT64_C(1) << (2 * bits - 3));
	if (tables * 8 > QCOW2_L1_BYTES_MAX)
		return error_set(err, -EFBIG,
				 "cannot make image \"%s\": %llu bytes are too many for clusters "
				 "of %llu; take larger ones",
				 name, (unsigned long long)create->size, 1ull << bits);
	header.l1_entries = (uint32_t)tables;
	layout = lay_out(&header, store < 0 ? 0 : (uint64_t)store);
	header.reftable_offset = UINT64_C(1) << bits;
	header.reftable_clusters = (uint32_t)layout.table;
	header.l1_offset = (1 + layout.table + layout.blocks) << bits;
	if (file->block_device && (layout.end << bits) > (uint64_t)store)
		return error_set(err, -ENOSPC, "cannot make image \"%s\": its device is too small",
				 name);
	return write_image(file, &header, &layout, name, err);
}

static int create_in(const struct block_file *file, const struct block_create *create,
		     const char *name, struct error *err)
{
	int64_t now = block_file_size(file);
	int r;

	if (now < 0)
		return error_set(err, (int)now, "cannot examine \"%s\": %s", name,
				 strerror((int)-now));
	if (now > 0 && !file->block_device)
		return error_set(err, -EEXIST, "cannot make image \"%s\": the file is not empty",
				 name);
	if (!create->size || create->size % BLOCK_SECTOR || create->size > INT64_MAX)
		return error_set(err, -EINVAL,
				 "cannot make image \"%s\": its size is a multiple of %u, above 0",
				 name, BLOCK_SECTOR);
	if (!strcmp(create->format, "qcow2"))
		return create_qcow2(file, create, name, err);
	if (strcmp(create->format, "raw") != 0)
		return error_set(err, -EINVAL,
				 "cannot make image \"%s\" as \"%s\": formats are raw and qcow2",
				 name, create->format);
	if (file->block_device)
		return create->size <= (uint64_t)now
			       ? 0
			       : error_set(err, -ENOSPC,
					   "cannot make image \"%s\": its device is too small",
					   name);
	r = block_file_resize(file, create->size);
	if (r >= 0)
		r = block_file_sync(file);
	return r < 0 ? error_set(err, r, "cannot make image \"%s\": %s", name, strerror(-r)) : 0;
}

int block_create(int fd, const struct block_create *create, const char *name, struct error *err)
{
	/* One of our own for the file to close. */
	int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	struct block_file file;
	int r;

	if (own < 0)
		return error_set(err, -errno, "cannot make image \"%s\": %s", name,
				 strerror(errno));
	r = block_file_init(&file, own, name, err);
	if (r < 0)
		return r;
	r = create_in(&file, create, name, err);
	block_file_close(&file);
	return r;
}

/* The name of the backing image */

static uint32_t read_be32(const uint8_t *data)
{
	uint32_t value;

	memcpy(&value, data, sizeof(value));
	return be32toh(value);
}

static void write_be32(uint8_t *data, uint32_t value)
{
	value = htobe32(value);
	memcpy(data, &value, sizeof(value));
}

static size_t put_extension(uint8_t *data, size_t at, uint32_t type, const void *content,
			    size_t size)
{
	write_be32(data + at, type);
	write_be32(data + at + 4, (uint32_t)size);
	memcpy(data + at + EXTENSION_HEAD, content, size);
	return at + EXTENSION_HEAD + align_up(size, 8);
}

/* Other extensions of the old header, in their order. Returns where they end in the new one; its
 * size is the old one's, and they were parsed before. */
static size_t copy_extensions(uint8_t *data, const uint8_t *old, size_t at, size_t end)
{
	size_t to = at;

	while (end - at >= EXTENSION_HEAD && at <= end) {
		const uint32_t type = read_be32(old + at), size = read_be32(old + at + 4);

		if (type == QCOW2_EXTENSION_END || size > end - at - EXTENSION_HEAD)
			break;
		if (type != QCOW2_EXTENSION_BACKING_FORMAT)
			to = put_extension(data, to, type, old + at + EXTENSION_HEAD, size);
		at += EXTENSION_HEAD + align_up(size, 8);
	}
	return to;
}

struct rebased {
	uint8_t *data; /* a cluster */
	size_t head;   /* header and extensions end here */
	size_t name, name_size;
};

static int rebase_header(struct rebased *rebased, const uint8_t *old, size_t size,
			 const struct qcow2_header *header, const char *name, const char *format)
{
	struct qcow2_disk_header disk;
	size_t old_name, old_end, end;

	memcpy(&disk, old, sizeof(disk));
	old_name = be64toh(disk.backing_offset);
	old_end = old_name ? old_name + be32toh(disk.backing_size) : 0;
	memcpy(rebased->data, old, header->header_size);
	end = copy_extensions(rebased->data, old, header->header_size,
			      old_name ? MIN(old_name, size) : size);
	rebased->name_size = name ? strlen(name) : 0;
	if (end + 2 * EXTENSION_HEAD + (format ? align_up(strlen(format), 8) : 0) +
		    rebased->name_size >
	    size)
		return -E2BIG;
	if (name && format)
		end = put_extension(rebased->data, end, QCOW2_EXTENSION_BACKING_FORMAT, format,
				    strlen(format));
	rebased->head = end + EXTENSION_HEAD; /* an end is zeroes */
	/* Beside the old name if there is room, so that one of the two is there at any time. */
	rebased->name = rebased->head;
	if (rebased->name < old_end && align_up(old_end, 8) + rebased->name_size <= size)
		rebased->name = align_up(old_end, 8);
	memcpy(&disk, rebased->data, sizeof(disk));
	disk.backing_offset = name ? htobe64(rebased->name) : 0;
	disk.backing_size = htobe32((uint32_t)rebased->name_size);
	memcpy(rebased->data, &disk,
	       offsetof(struct qcow2_disk_header, cluster_bits)); /* as far as it changed */
	if (name)
		memcpy(rebased->data + rebased->name, name, rebased->name_size);
	return 0;
}

/* The name first, then the sector that says where it is. */
static int write_rebased(const struct block_file *file, const struct rebased *rebased, size_t size)
{
	int r = 0;

	if (rebased->name >= BLOCK_SECTOR && rebased->head <= BLOCK_SECTOR) {
		r = block_file_write(file, rebased->data + rebased->name, rebased->name_size,
				     rebased->name);
		if (r >= 0)
			r = block_file_sync(file);
		if (r >= 0)
			r = block_file_write(file, rebased->data, BLOCK_SECTOR, 0);
		if (r >= 0)
			r = block_file_sync(file);
	}
	/* And what is left of the old name goes. */
	if (r >= 0)
		r = block_file_write(file, rebased->data, size, 0);
	return r < 0 ? r : block_file_sync(file);
}

static int set_backing(struct qcow2 *qcow2, const char *name, const char *format)
{
	const size_t size = qcow2->cluster_size;
	_cleanup_(freep) uint8_t *old = calloc(1, size), *new = calloc(1, size);
	_cleanup_(freep) char *new_name = name ? strdup(name) : NULL;
	_cleanup_(freep) char *new_format = name && format ? strdup(format) : NULL;
	struct rebased rebased = {.data = new};
	int r;

	if (!old || !new || (name && !new_name) || (name && format && !new_format))
		return -ENOMEM;
	r = qcow2_commit(qcow2);
	if (r >= 0)
		r = block_file_read(&qcow2->image.file, old, size, 0);
	if (r >= 0)
		r = rebase_header(&rebased, old, size, &qcow2->header, name, format);
	if (r >= 0)
		r = write_rebased(&qcow2->image.file, &rebased, size);
	if (r < 0)
		return r;
	free(qcow2->header.backing_name);
	free(qcow2->header.backing_format);
	qcow2->header.backing_name = take_ptr(new_name);
	qcow2->header.backing_format = take_ptr(new_format);
	return 0;
}

int block_set_backing(struct block_image *image, const char *name, const char *format,
		      struct error *err)
{
	struct qcow2 *qcow2;
	int r;

	if (image->ops != &qcow2_ops)
		return error_set(err, -ENOTSUP,
				 "cannot give \"%s\" a backing image: only qcow2 images have one",
				 image->name);
	if (image->readonly || image->inactive)
		return error_set(err, -EROFS, "cannot change \"%s\": it is not open for writing",
				 image->name);
	if (name && strlen(name) > QCOW2_BACKING_NAME_MAX)
		return error_set(err, -E2BIG,
				 "cannot give \"%s\" a backing image: its name is too long",
				 image->name);
	qcow2 = to_qcow2(image);
	pthread_mutex_lock(&qcow2->lock);
	r = qcow2->refcounts ? set_backing(qcow2, name, format) : -EIO;
	pthread_mutex_unlock(&qcow2->lock);
	return r < 0 ? error_set(err, r, "cannot change the backing image of \"%s\": %s",
				 image->name, strerror(-r))
		     : 0;
}

/* Compressed clusters */

/* A cluster of their own for bytes that do not fit behind others. */
static int new_packed_cluster(struct qcow2 *qcow2, uint64_t *ret_place)
{
	uint32_t n = 1;
	bool fresh;

	return qcow2_allocate(qcow2, &n, ret_place, &fresh);
}

/* Room for `size` bytes, less than a cluster: behind others, so far as their cluster goes and on
 * into the next if that is ours too; or at the beginning of one. *ret_own: a cluster allocated for
 * it, 0: none. *ret_shared: one that counts once more, 0: none. */
static int packed_room(struct qcow2 *qcow2, size_t size, uint64_t *ret_place, uint64_t *ret_own,
		       uint64_t *ret_shared)
{
	const uint64_t next = qcow2->packed_next;
	const uint64_t shared = align_down(next, qcow2->cluster_size);
	const uint64_t end = shared + qcow2->cluster_size;
	int r = 0;

	*ret_own = *ret_shared = 0;
	if (!next || size > end - next)
		r = new_packed_cluster(qcow2, ret_own);
	if (r < 0)
		return r;
	*ret_place = *ret_own;
	if (!next || (*ret_own && *ret_own != end))
		return 0;
	r = qcow2_refcount_add(qcow2, shared, 1);
	if (r >= 0) {
		*ret_shared = shared;
		*ret_place = next;
		return 0;
	}
	/* It cannot count any higher. */
	if (r == -ERANGE)
		r = *ret_own ? 0 : new_packed_cluster(qcow2, ret_own);
	*ret_place = *ret_own;
	return r;
}

static uint64_t packed_entry(const struct qcow2 *qcow2, uint64_t place, size_t size)
{
	const uint32_t bits = 62 - (qcow2->cluster_bits - 8);
	const uint64_t sectors = ((place + size - 1) / BLOCK_SECTOR) - place / BLOCK_SECTOR;

	return QCOW2_COMPRESSED | sectors << bits | place;
}

static int write_packed(struct qcow2 *qcow2, const void *packed, size_t size, uint64_t offset)
{
	struct qcow2_slice *slice;
	uint64_t place, own, shared;
	int r = qcow2_slice_writable(qcow2, offset, &slice);

	if (r >= 0)
		r = packed_room(qcow2, size, &place, &own, &shared);
	if (r < 0)
		return r;
	r = place + size >= UINT64_C(1) << MIN(62 - (qcow2->cluster_bits - 8), 56u) ? -EFBIG : 0;
	if (r >= 0)
		r = block_file_write(&qcow2->image.file, packed, size, place);
	if (r < 0) {
		if (own)
			qcow2_unallocate(qcow2, own, 1);
		if (shared && qcow2_give_up(qcow2, shared, 1) < 0)
			return r; /* counts too high: a leak */
		return r;
	}
	qcow2_entry_set(qcow2, slice, offset, packed_entry(qcow2, place, size));
	qcow2->packed_next = (place + size) % qcow2->cluster_size ? place + size : 0;
	return qcow2_commit_if_due(qcow2);
}

int block_write_packed(struct block_image *image, const void *data, uint64_t offset)
{
	struct qcow2 *qcow2 = to_qcow2(image);
	const uint64_t size = qcow2->cluster_size;
	struct qcow2_lookup lookup = {0};
	_cleanup_(freep) void *packed = NULL;
	size_t n = 0;
	int r;

	if (image->ops != &qcow2_ops || offset & (size - 1) || offset >= image->size)
		return -EINVAL;
	if (image->readonly || image->inactive)
		return -EROFS;
	packed = malloc(size);
	if (!packed)
		return -ENOMEM;
	n = compress_pack(qcow2->header.compression, data, size, packed, size);
	pthread_mutex_lock(&qcow2->lock);
	r = qcow2_look(qcow2, offset, size, &lookup);
	if (r >= 0 && n && lookup.kind == QCOW2_ABSENT)
		r = write_packed(qcow2, packed, n, offset);
	else
		n = 0;
	pthread_mutex_unlock(&qcow2->lock);
	if (r < 0 || n)
		return r;
	return block_write(image, data, MIN(size, image->size - offset), offset);
}
