/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A qcow2 image as a whole: opened, claimed and yielded, resized, closed; what its header says of
 * features; what a range of it is.
 *
 * An image opened for a move is only read until it is claimed: features that matter for writing,
 * refcounts and the clearing of bits are looked at then. After a yield all that was read is
 * forgotten, and read again by the next claim.
 */
#include <endian.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "block/qcow2-check.h"
#include "block/qcow2.h"

#define HEADER_LEAST 512u
#define L1_GROWTH(n) ((n) + (n) / 4)

int qcow2_set_corrupt(struct qcow2 *qcow2, const char *format, ...)
{
	va_list args;

	if (atomic_exchange(&qcow2->corrupt, true))
		return -EIO;
	va_start(args, format);
	vsnprintf(qcow2->trouble, sizeof(qcow2->trouble), format, args);
	va_end(args);
	if (!qcow2->image.name)
		return -EIO;
	log_error("disk \"%s\" is broken: %s; nothing is written to it any more, stop the VM and "
		  "run corral disk check",
		  qcow2->image.name, qcow2->trouble);
	return -EIO;
}

/* Header */

int qcow2_header_write(struct qcow2 *qcow2)
{
	const struct qcow2_header *header = &qcow2->header;
	uint8_t sector[BLOCK_SECTOR];
	struct qcow2_disk_header disk;
	int r = block_file_read(&qcow2->image.file, sector, sizeof(sector), 0);

	if (r < 0)
		return r;
	/* One sector: it is there as it was or as it is now. What we do not know stays. */
	memcpy(&disk, sector, sizeof(disk));
	disk.size = htobe64(header->size);
	disk.l1_entries = htobe32(header->l1_entries);
	disk.l1_offset = htobe64(header->l1_offset);
	disk.reftable_offset = htobe64(header->reftable_offset);
	disk.reftable_clusters = htobe32(header->reftable_clusters);
	if (header->version >= 3) {
		disk.incompatible = htobe64(header->incompatible);
		disk.compatible = htobe64(header->compatible);
		disk.autoclear = htobe64(header->autoclear);
	}
	memcpy(sector, &disk, sizeof(disk));
	return block_file_write(&qcow2->image.file, sector, sizeof(sector), 0);
}

/* The first cluster, or as much as there is of it. */
static int read_first(const struct block_file *file, uint64_t file_size, uint8_t **ret_data,
		      size_t *ret_n)
{
	const size_t least = MIN(file_size, (uint64_t)HEADER_LEAST);
	uint8_t first[HEADER_LEAST] = {0};
	size_t n = least;
	uint32_t bits;
	int r = block_file_read(file, first, least, 0);

	if (r < 0)
		return r;
	memcpy(&bits, first + offsetof(struct qcow2_disk_header, cluster_bits), sizeof(bits));
	bits = be32toh(bits);
	if (bits >= QCOW2_CLUSTER_BITS_MIN && bits <= QCOW2_CLUSTER_BITS_MAX)
		n = MIN(file_size, UINT64_C(1) << bits);
	*ret_data = malloc(n + 1);
	if (!*ret_data)
		return -ENOMEM;
	*ret_n = n;
	return block_file_read(file, *ret_data, n, 0);
}

static int header_read(struct qcow2 *qcow2, const char *name, struct error *err)
{
	const struct block_file *file = &qcow2->image.file;
	int64_t size = block_file_size(file);
	_cleanup_(freep) uint8_t *data = NULL;
	size_t n = 0;
	int r = size < 0 ? (int)size : read_first(file, (uint64_t)size, &data, &n);

	if (r < 0)
		return error_set(err, r, "cannot read disk \"%s\": %s", name, strerror(-r));
	qcow2_header_free(&qcow2->header);
	r = qcow2_header_parse(&qcow2->header, data, n, (uint64_t)size, name, err);
	if (r < 0)
		return r;
	qcow2->cluster_bits = qcow2->header.cluster_bits;
	qcow2->cluster_size = UINT64_C(1) << qcow2->cluster_bits;
	qcow2->slice_bits = MIN(qcow2->cluster_bits, 12u) - 3;
	qcow2->file_end = (uint64_t)size;
	qcow2->image.size = align_down(qcow2->header.size, BLOCK_SECTOR);
	qcow2->image.discard_block = (uint32_t)qcow2->cluster_size;
	return 0;
}

/* L1 table and map */

static int l1_read(const struct block_file *file, uint64_t offset, uint32_t n, uint64_t **ret_l1)
{
	uint64_t *l1 = malloc(MAX(n, 1u) * sizeof(*l1));
	int r = l1 ? block_file_read(file, l1, n * sizeof(*l1), offset) : -ENOMEM;

	if (r < 0) {
		free(l1);
		return r;
	}
	for (uint32_t i = 0; i < n; i++)
		l1[i] = be64toh(l1[i]);
	*ret_l1 = l1;
	return 0;
}

static void map_drop(struct qcow2 *qcow2)
{
	qcow2_map_close(qcow2);
	free(qcow2->l1);
	qcow2->l1 = NULL;
}

static int map_read(struct qcow2 *qcow2, const char *name, struct error *err)
{
	struct error own = ERROR_NULL;
	int r;

	map_drop(qcow2);
	r = l1_read(&qcow2->image.file, qcow2->header.l1_offset, qcow2->header.l1_entries,
		    &qcow2->l1);
	if (r < 0)
		return error_set(err, r, "cannot read the L1 table of \"%s\": %s", name,
				 strerror(-r));
	r = qcow2_map_open(qcow2, &own);
	return r < 0 ? error_set(err, r, "cannot open \"%s\": %s", name, own.text) : 0;
}

/* Becoming a writer */

/* What stands in the way of writing. -EIO: nothing does for a tool that is there to repair. */
static int check_writable(struct qcow2 *qcow2, bool repair, const char *name, struct error *err)
{
	const uint64_t bits = qcow2->header.incompatible;

	if (qcow2->image.file.align > qcow2->cluster_size)
		return error_set(err, -EINVAL,
				 "cannot write disk \"%s\": its clusters, %llu bytes, are smaller "
				 "than what its store writes past the cache, %u; open it with the "
				 "cache, or convert it",
				 name, (unsigned long long)qcow2->cluster_size,
				 qcow2->image.file.align);
	if (repair)
		return 0;
	if (bits & QCOW2_INCOMPATIBLE_CORRUPT)
		return error_set(err, -EIO,
				 "cannot write disk \"%s\": it was found to be corrupt; open it "
				 "readonly=on to rescue what is in it, or run corral disk repair",
				 name);
	if (bits & QCOW2_INCOMPATIBLE_DIRTY)
		return error_set(
			err, -EIO,
			"cannot write disk \"%s\": whoever wrote it last did not close it, "
			"and its refcounts are not to be trusted; run corral disk repair",
			name);
	return 0;
}

static int repair_dirty(struct qcow2 *qcow2, const char *name, struct error *err)
{
	int r;

	if (!(qcow2->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY))
		return 0;
	r = qcow2_repair_dirty(&qcow2->image.file, name, err);
	if (r >= 0)
		r = header_read(qcow2, name, err);
	if (r >= 0)
		r = map_read(qcow2, name, err);
	return r;
}

static int writer_begin(struct qcow2 *qcow2, bool repair, const char *name, struct error *err)
{
	struct error own = ERROR_NULL;
	int r;

	if (repair) {
		r = repair_dirty(qcow2, name, err);
		if (r < 0)
			return r;
	}
	r = qcow2_refcounts_open(qcow2, &own);
	if (r < 0)
		return error_set(err, r, "cannot write disk \"%s\": %s", name, own.text);
	/* Others' notes about content that is about to change. */
	if (qcow2->header.autoclear) {
		qcow2->header.autoclear = 0;
		r = qcow2_header_write(qcow2);
		if (r >= 0)
			r = qcow2_sync(qcow2);
		if (r < 0)
			return error_set(err, r, "cannot write disk \"%s\": %s", name,
					 strerror(-r));
	}
	return 0;
}

/* A tool that is there to repair gets the image in any case; writes fail until it is in order. */
static int become_writer(struct qcow2 *qcow2, const char *name, struct error *err)
{
	struct error own = ERROR_NULL;
	int r = check_writable(qcow2, qcow2->repair, name, err);

	if (r < 0)
		return r;
	r = writer_begin(qcow2, qcow2->repair, name, &own);
	if (r >= 0)
		return 0;
	if (!qcow2->repair || r == -ENOMEM || !qcow2->map)
		return error_set(err, r, "%s", own.text);
	qcow2_refcounts_close(qcow2);
	log_warning("%s, ignoring: it can be repaired but not written", own.text);
	return 0;
}

/* Opening and closing */

static void qcow2_free(struct qcow2 *qcow2)
{
	qcow2_refcounts_close(qcow2);
	map_drop(qcow2);
	qcow2_header_free(&qcow2->header);
	pthread_mutex_destroy(&qcow2->lock);
	free(qcow2);
}

static int load_compression(struct qcow2 *qcow2, const char *name, struct error *err)
{
	struct error own = ERROR_NULL;
	int r = compress_load(qcow2->header.compression, &own);

	/* Most images have nothing compressed by zlib: reading what is there will say so. */
	if (r < 0 && qcow2->header.compression != QCOW2_ZLIB)
		return error_set(err, r, "cannot open disk \"%s\": %s", name, own.text);
	return 0;
}

static int begin(struct qcow2 *qcow2, const struct block_open *open, struct error *err)
{
	const struct block_file *file = &qcow2->image.file;
	int r = header_read(qcow2, open->name, err);

	if (r >= 0)
		r = load_compression(qcow2, open->name, err);
	if (r >= 0)
		r = map_read(qcow2, open->name, err);
	if (r < 0)
		return r;
	qcow2->image.io_block = MAX(BLOCK_SECTOR, file->align);
	qcow2->image.can_discard = !open->readonly && !open->no_discard;
	if (!open->readonly && !open->inactive)
		r = become_writer(qcow2, open->name, err);
	return r;
}

static struct qcow2 *qcow2_new(const struct block_file *file, const struct block_open *open)
{
	struct qcow2 *qcow2 = aligned_alloc(_Alignof(struct qcow2), sizeof(*qcow2));

	if (!qcow2)
		return NULL;
	memset(qcow2, 0, sizeof(*qcow2));
	qcow2->image = (struct block_image){
		.ops = &qcow2_ops,
		.file = *file,
		.readonly = open->readonly,
		.inactive = open->inactive,
	};
	qcow2->repair = open->repair;
	qcow2->slices_max = QCOW2_CACHE_BYTES / QCOW2_SLICE_BYTES;
	pthread_mutex_init(&qcow2->lock, NULL);
	return qcow2;
}

int qcow2_open(struct block_image **ret_image, struct block_file *file,
	       const struct block_open *open, struct error *err)
{
	struct qcow2 *qcow2 = qcow2_new(file, open);
	int r;

	if (!qcow2) {
		block_file_close(file);
		return error_set(err, -ENOMEM, "cannot open disk \"%s\": out of memory",
				 open->name);
	}
	r = begin(qcow2, open, err);
	if (r < 0) {
		block_file_close(&qcow2->image.file);
		qcow2_free(qcow2);
		return r;
	}
	*ret_image = &qcow2->image;
	return 0;
}

int qcow2_settle(struct qcow2 *qcow2)
{
	int r;

	if (!qcow2->refcounts)
		return 0;
	if (atomic_load(&qcow2->corrupt))
		return atomic_load(&qcow2->dirty) ? -EIO : 0;
	r = qcow2_commit(qcow2);
	if (r < 0 || !(qcow2->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY))
		return r;
	r = qcow2_refcounts_settle(qcow2);
	if (r < 0)
		return r;
	qcow2->header.incompatible &= ~(uint64_t)QCOW2_INCOMPATIBLE_DIRTY;
	r = qcow2_header_write(qcow2);
	return r < 0 ? r : qcow2_sync(qcow2);
}

static int image_yield(struct block_image *image)
{
	struct qcow2 *qcow2 = to_qcow2(image);
	int r;

	pthread_mutex_lock(&qcow2->lock);
	r = qcow2_settle(qcow2);
	if (r >= 0 && qcow2->sync_failed)
		r = -EIO;
	if (r >= 0) {
		qcow2_forget(qcow2);
		qcow2_refcounts_close(qcow2);
		qcow2->packed_next = 0;
	}
	qcow2->sync_failed = false;
	pthread_mutex_unlock(&qcow2->lock);
	return r;
}

static int image_claim(struct block_image *image, struct error *err)
{
	struct qcow2 *qcow2 = to_qcow2(image);
	const uint32_t cluster_bits = qcow2->cluster_bits;
	int r;

	pthread_mutex_lock(&qcow2->lock);
	qcow2_refcounts_close(qcow2);
	atomic_store(&qcow2->corrupt, false);
	qcow2->trouble[0] = 0;
	r = header_read(qcow2, image->name, err);
	if (r >= 0 && qcow2->cluster_bits != cluster_bits)
		r = error_set(err, -EINVAL, "disk \"%s\" has become another image", image->name);
	if (r >= 0)
		r = map_read(qcow2, image->name, err);
	if (r >= 0 && !image->readonly)
		r = become_writer(qcow2, image->name, err);
	pthread_mutex_unlock(&qcow2->lock);
	return r;
}

static void image_close(struct block_image *image)
{
	struct qcow2 *qcow2 = to_qcow2(image);
	int r = image->inactive ? 0 : qcow2_settle(qcow2);

	if (r < 0)
		log_error("cannot write out disk \"%s\": %s; what was not flushed is lost",
			  image->name ? image->name : "", strerror(-r));
	qcow2_free(qcow2);
}

int qcow2_view(struct qcow2 *qcow2, uint64_t l1_offset, uint32_t l1_entries, uint64_t size,
	       struct error *err)
{
	const uint32_t bits = 2 * qcow2->cluster_bits - 3;
	const uint64_t needed = (size >> bits) + !!(size & ((UINT64_C(1) << bits) - 1));
	const char *name = qcow2->image.name;
	int64_t file_size = block_file_size(&qcow2->image.file);
	int r;

	if (!qcow2->image.readonly || size > INT64_MAX || needed > l1_entries ||
	    l1_entries * UINT64_C(8) > QCOW2_L1_BYTES_MAX || !l1_offset ||
	    l1_offset & (qcow2->cluster_size - 1) || file_size < 0 ||
	    l1_offset > (uint64_t)file_size ||
	    l1_entries * UINT64_C(8) > (uint64_t)file_size - l1_offset)
		return error_set(err, -EINVAL, "the L1 table of a snapshot of \"%s\" is broken",
				 name);
	pthread_mutex_lock(&qcow2->lock);
	qcow2->header.l1_offset = l1_offset;
	qcow2->header.l1_entries = l1_entries;
	qcow2->header.size = size;
	qcow2->image.size = align_down(size, BLOCK_SECTOR);
	r = map_read(qcow2, name, err);
	pthread_mutex_unlock(&qcow2->lock);
	return r;
}

/* What a range is */

static enum block_extent_kind extent_kind(enum qcow2_lookup_kind kind)
{
	switch (kind) {
	case QCOW2_ZEROES:
		return BLOCK_ZERO;
	case QCOW2_MAPPED:
	case QCOW2_SHARED:
		return BLOCK_DATA;
	case QCOW2_PACKED:
		return BLOCK_COMPRESSED;
	default:
		return BLOCK_ABSENT;
	}
}

static int extent_at(struct qcow2 *qcow2, uint64_t offset, uint64_t length,
		     struct block_extent *ret_extent)
{
	struct qcow2_lookup lookup = {.kind = QCOW2_ABSENT};
	uint64_t size;
	int r;

	lookup.length = qcow2_no_table(qcow2, offset, length);
	if (!lookup.length) {
		r = qcow2_look(qcow2, offset, length, &lookup);
		if (r < 0)
			return r;
	}
	*ret_extent = (struct block_extent){
		.kind = extent_kind(lookup.kind), .offset = offset, .length = lookup.length};
	if (lookup.kind == QCOW2_PACKED)
		ret_extent->place = qcow2_packed_place(qcow2, lookup.place, &size);
	else
		ret_extent->place = lookup.place;
	return 0;
}

/* Compressed clusters make one extent wherever they lie: their places are told one by one. */
static bool extent_goes_on(const struct block_extent *first, const struct block_extent *next)
{
	if (next->kind != first->kind)
		return false;
	return first->kind == BLOCK_COMPRESSED ||
	       next->place == (first->place ? first->place + first->length : 0);
}

static int image_extent(struct block_image *image, uint64_t offset, uint64_t length,
			struct block_extent *ret_extent)
{
	struct qcow2 *qcow2 = to_qcow2(image);
	struct block_extent extent = {0}, next;
	int r;

	pthread_mutex_lock(&qcow2->lock);
	r = extent_at(qcow2, offset, length, &extent);
	while (r >= 0 && extent.length < length) {
		r = extent_at(qcow2, offset + extent.length, length - extent.length, &next);
		if (r < 0 || !extent_goes_on(&extent, &next))
			break;
		extent.length += next.length;
	}
	pthread_mutex_unlock(&qcow2->lock);
	if (!extent.length)
		return r;
	*ret_extent = extent;
	return 0;
}

/* Another size */

/* The L1 table moves to a larger place. Nothing is dirty before and after. */
static int l1_move(struct qcow2 *qcow2, uint32_t n)
{
	struct qcow2_header *header = &qcow2->header;
	const uint64_t bytes = align_up(n * UINT64_C(8), qcow2->cluster_size);
	const uint64_t old = header->l1_offset;
	const uint64_t old_clusters =
		(header->l1_entries * UINT64_C(8) + qcow2->cluster_size - 1) >> qcow2->cluster_bits;
	_cleanup_(freep) uint64_t *table = calloc(1, bytes);
	uint64_t place, *l1;
	int r = table ? qcow2_commit(qcow2) : -ENOMEM;

	if (r >= 0)
		r = qcow2_allocate_row(qcow2, (uint32_t)(bytes >> qcow2->cluster_bits), &place);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < header->l1_entries; i++)
		table[i] = htobe64(qcow2->l1[i]);
	r = block_file_write(&qcow2->image.file, table, bytes, place);
	l1 = r < 0 ? NULL : realloc(qcow2->l1, n * sizeof(*l1));
	if (l1)
		qcow2->l1 = l1;
	else if (r >= 0)
		r = -ENOMEM;
	if (r >= 0)
		r = qcow2_map_grow(qcow2, qcow2->image.size, n);
	if (r >= 0)
		r = qcow2_commit(qcow2);
	if (r < 0) {
		qcow2_unallocate(qcow2, place, (uint32_t)(bytes >> qcow2->cluster_bits));
		return r;
	}
	memset(l1 + header->l1_entries, 0, (n - header->l1_entries) * sizeof(*l1));
	header->l1_offset = place;
	header->l1_entries = n;
	r = qcow2_header_write(qcow2);
	if (r >= 0)
		r = qcow2_sync(qcow2);
	/* Which of the two tables counts is not known any more. */
	if (r < 0)
		return qcow2_set_corrupt(qcow2, "its header could not be written: %s",
					 strerror(-r));
	return old_clusters ? qcow2_give_up(qcow2, old, (uint32_t)old_clusters) : 0;
}

/* The header says the size last: what is seen by then is zeroes. */
static int resize_to(struct qcow2 *qcow2, uint64_t size)
{
	const uint32_t bits = 2 * qcow2->cluster_bits - 3;
	const uint64_t old = qcow2->image.size;
	const uint64_t tables = (size >> bits) + !!(size & ((UINT64_C(1) << bits) - 1));
	int r = 0;

	if (tables * 8 > QCOW2_L1_BYTES_MAX)
		return -EFBIG;
	if (tables > qcow2->header.l1_entries)
		r = l1_move(qcow2, (uint32_t)MIN(L1_GROWTH(tables), QCOW2_L1_BYTES_MAX / 8));
	if (r >= 0 && size > old)
		r = qcow2_map_grow(qcow2, size, qcow2->header.l1_entries);
	if (r < 0)
		return r;
	qcow2->image.size = MAX(size, old);
	r = qcow2_clear(qcow2, MIN(size, old), MAX(size, old), size < old);
	if (r >= 0)
		r = qcow2_commit(qcow2);
	if (r >= 0) {
		qcow2->header.size = size;
		r = qcow2_header_write(qcow2);
	}
	if (r >= 0)
		r = qcow2_sync(qcow2);
	qcow2->image.size = r < 0 ? old : size;
	qcow2->header.size = qcow2->image.size;
	return r;
}

static int image_resize(struct block_image *image, uint64_t size, struct error *err)
{
	struct qcow2 *qcow2 = to_qcow2(image);
	int r;

	if (qcow2->header.n_snapshots && qcow2->header.version < 3)
		return error_set(err, -ENOTSUP,
				 "cannot resize \"%s\": it is of version 2 and has internal "
				 "snapshots, which would not know their size any more; convert it",
				 image->name);
	pthread_mutex_lock(&qcow2->lock);
	r = qcow2->refcounts ? resize_to(qcow2, size) : -EIO;
	pthread_mutex_unlock(&qcow2->lock);
	if (r == -EFBIG)
		return error_set(err, r,
				 "cannot resize \"%s\" to %llu bytes: that is too large for "
				 "clusters of %llu bytes",
				 image->name, (unsigned long long)size,
				 (unsigned long long)qcow2->cluster_size);
	if (r < 0)
		return error_set(err, r, "cannot resize \"%s\" to %llu bytes: %s", image->name,
				 (unsigned long long)size, strerror(-r));
	return 0;
}

const struct block_ops qcow2_ops = {
	.format = "qcow2",
	.channel_open = qcow2_channel_open,
	.channel_close = qcow2_channel_close,
	.submit = qcow2_submit,
	.run = qcow2_run,
	.extent = image_extent,
	.resize = image_resize,
	.claim = image_claim,
	.yield = image_yield,
	.close = image_close,
};
