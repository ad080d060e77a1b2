/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an image may have beside its disk: internal snapshots, and persistent bitmaps, which we do
 * not use but which own clusters.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2-scan.h"

#define PIECE          (64u << 10)

#define DIRECTORY_MAX  (UINT64_C(64) << 20)
#define TABLE_MAX      (UINT64_C(1) << 30)
#define BITMAPS_MAX    65535u
#define TABLE_RESERVED UINT64_C(0xff000000000001fe)

struct disk_extension {
	uint32_t type, length;
} __attribute__((packed));

struct disk_bitmaps {
	uint32_t n, reserved;
	uint64_t directory_size, directory_offset;
} __attribute__((packed));
_Static_assert(sizeof(struct disk_bitmaps) == 24, "the specification's extension");

struct disk_bitmap {
	uint64_t table_offset;
	uint32_t table_entries, flags;
	uint8_t type, granularity;
	uint16_t name_size;
	uint32_t extra_size;
} __attribute__((packed));
_Static_assert(sizeof(struct disk_bitmap) == 24, "the specification's directory entry");

/* Snapshots */

/* What an L1 table looks like. */
struct look {
	uint64_t n;        /* entries that are not empty */
	uint64_t nonsense; /* of them, that point where nothing can be */
	uint64_t tables;   /* or to L2 tables */
};

static void look_at(struct scan *scan, const uint64_t *entries, uint64_t n, struct look *look)
{
	for (uint64_t i = 0; i < n; i++) {
		uint64_t raw = be64toh(entries[i]), place = raw & QCOW2_OFFSET_MASK;

		if (!raw)
			continue;
		look->n++;
		if (!place || raw & SCAN_L1_RESERVED || place & (scan->cluster_size - 1) ||
		    place >= scan->file_size)
			look->nonsense++;
		else if (scan_owners(scan, place, 1) & COUNTS_L2)
			look->tables++;
	}
}

static int look_at_l1(struct scan *scan, const struct qcow2_snapshot *snapshot, struct look *look)
{
	uint64_t left = snapshot->l1_entries * UINT64_C(8), place = snapshot->l1_offset;
	_cleanup_(freep) uint64_t *piece = malloc(PIECE);
	int r = 0;

	*look = (struct look){0};
	if (!piece)
		return error_set(scan->err, -ENOMEM, "cannot check \"%s\": out of memory",
				 scan->name);
	for (; r >= 0 && left; left -= MIN(left, (uint64_t)PIECE), place += PIECE) {
		uint64_t here = MIN(left, (uint64_t)PIECE);

		r = scan_read(scan, piece, here, place);
		if (r == 0)
			look_at(scan, piece, here / 8, look);
	}
	return MIN(r, 0);
}

/* Where there is said to be an L2 table too: the entries of an L1 table point to L2 tables, those
 * of an L2 table to anything but them. */
static int snapshot_fault(struct scan *scan, const struct qcow2_snapshot *snapshot,
			  const char **ret_fault)
{
	uint64_t bytes = snapshot->l1_entries * UINT64_C(8);
	struct look look;
	uint32_t owners;
	int r;

	*ret_fault = qcow2_snapshot_fault(snapshot, scan->cluster_bits, scan->file_size);
	if (*ret_fault || !bytes)
		return 0;
	owners = scan_owners(scan, snapshot->l1_offset, bytes);
	if (owners & COUNTS_TABLE) {
		*ret_fault = "its L1 table lies on another table";
		return 0;
	}
	r = look_at_l1(scan, snapshot, &look);
	if (2 * look.nonsense > look.n)
		*ret_fault = "its L1 table makes no sense";
	else if (owners & COUNTS_L2 && 2 * look.tables <= look.n)
		*ret_fault = "its L1 table lies on an L2 table";
	return r;
}

static void check_extra(struct scan *scan, const struct qcow2_snapshot *snapshot)
{
	if (scan->header.version >= 3 && snapshot->extra_size < 16) {
		scan_found(scan, SCAN_SNAPSHOT, 1,
			   "snapshot \"%s\" does not say how large its disk is: repair writes the "
			   "size of today's disk",
			   snapshot->name);
		scan->rewrite_snapshots = true;
	}
	if (snapshot->extra_size > QCOW2_SNAPSHOT_EXTRA_MAX) {
		scan_found(scan, SCAN_SNAPSHOT, 1,
			   "snapshot \"%s\" has %u bytes of unknown data in its table: repair "
			   "drops them",
			   snapshot->name, snapshot->extra_size);
		scan->rewrite_snapshots = true;
	}
}

static int snapshot_count(struct scan *scan, uint32_t i)
{
	const struct qcow2_snapshot *snapshot = &scan->snapshots.list[i];
	const char *fault;
	uint32_t owners;
	int r = snapshot_fault(scan, snapshot, &fault);

	if (r < 0)
		return r;
	if (fault) {
		scan_found(scan, SCAN_SNAPSHOT, 1,
			   "snapshot \"%s\", number %u: %s: repair forgets the snapshot",
			   snapshot->name, i, fault);
		scan->rewrite_snapshots = true;
		return 0;
	}
	scan->keep[i] = true;
	check_extra(scan, snapshot);
	if (!snapshot->l1_entries)
		return 0;
	r = scan_claim(scan, snapshot->l1_offset, snapshot->l1_entries * UINT64_C(8), COUNTS_TABLE,
		       &owners);
	if (r >= 0)
		r = scan_l1_count(scan, snapshot->l1_offset, snapshot->l1_entries, COUNTS_L2);
	return r;
}

static void forget_snapshots(struct scan *scan, const char *why)
{
	scan_found(scan, SCAN_SNAPSHOT, 1, "%s: repair forgets all snapshots", why);
	scan->forget_snapshots = true;
	qcow2_snapshots_deinit(&scan->snapshots);
}

int scan_snapshots(struct scan *scan)
{
	const struct qcow2_header *header = &scan->header;
	struct error own = ERROR_NULL;
	uint32_t owners;
	int r = qcow2_snapshots_load(scan->file, header, scan->name, &scan->snapshots, &own);

	if (!header->n_snapshots && header->snapshots_offset & (scan->cluster_size - 1))
		forget_snapshots(scan, "the header names no place for a table of snapshots");
	if (r == -EINVAL)
		forget_snapshots(scan, own.text);
	else if (r < 0)
		return error_set(scan->err, r, "%s", own.text);
	if (!scan->snapshots.n)
		return 0;
	if (scan_owners(scan, header->snapshots_offset, scan->snapshots.bytes) & COUNTS_TABLE) {
		forget_snapshots(scan, "the table of snapshots lies on the header or the L1 table");
		return 0;
	}
	scan->read += scan->snapshots.bytes;
	scan->keep = calloc(scan->snapshots.n, sizeof(*scan->keep));
	if (!scan->keep)
		return error_set(scan->err, -ENOMEM, "cannot check \"%s\": out of memory",
				 scan->name);
	r = scan_claim(scan, header->snapshots_offset, scan->snapshots.bytes, COUNTS_TABLE,
		       &owners);
	for (uint32_t i = 0; r >= 0 && i < scan->snapshots.n; i++)
		r = snapshot_count(scan, i);
	return r;
}

/* Bitmaps. 0: fine; 1: broken, which was told. */

static int bitmaps_broken(struct scan *scan, const char *what)
{
	scan_found(scan, SCAN_AUTOCLEAR, 1, "the persistent bitmaps: %s: repair forgets them all",
		   what);
	scan->drop_autoclear |= QCOW2_AUTOCLEAR_BITMAPS;
	return 1;
}

/* Takes a piece of the file, that nobody else has. */
static int take(struct scan *scan, uint64_t place, uint64_t size, const char *what)
{
	uint32_t owners;
	int r;

	if (place & (scan->cluster_size - 1) || !scan_is_in_file(scan, place, size))
		return bitmaps_broken(scan, what);
	if (scan_owners(scan, place, size))
		return bitmaps_broken(scan, "one lies on something else");
	r = scan_claim(scan, place, size, COUNTS_TABLE, &owners);
	return MIN(r, 0);
}

static int bitmap_entry(struct scan *scan, uint64_t entry)
{
	uint64_t place = entry & QCOW2_OFFSET_MASK;

	if (entry & TABLE_RESERVED)
		return bitmaps_broken(scan, "a table has bits that are reserved");
	if (!place)
		return 0;
	return take(scan, place, 1, "a table points to what is not in the file");
}

static int bitmap_table(struct scan *scan, uint64_t place, uint64_t size)
{
	_cleanup_(freep) uint64_t *piece = malloc(PIECE);
	int r = piece ? 0 : error_set(scan->err, -ENOMEM, "out of memory");

	for (; r == 0 && size; size -= MIN(size, (uint64_t)PIECE), place += PIECE) {
		uint64_t here = MIN(size, (uint64_t)PIECE);

		r = scan_read(scan, piece, here, place);
		if (r == 1) {
			r = 0;
			continue;
		}
		for (uint64_t i = 0; r == 0 && i < here / 8; i++)
			r = bitmap_entry(scan, be64toh(piece[i]));
	}
	return r;
}

static int bitmap(struct scan *scan, const struct disk_bitmap *disk)
{
	uint64_t place = be64toh(disk->table_offset);
	uint64_t size = be32toh(disk->table_entries) * UINT64_C(8);
	int r;

	if (!size)
		return 0;
	if (size > TABLE_MAX)
		return bitmaps_broken(scan, "a table is too large");
	r = take(scan, place, size, "a table is not in the file");
	return r == 0 ? bitmap_table(scan, place, size) : r;
}

static int bitmap_directory(struct scan *scan, const uint8_t *data, uint64_t size, uint32_t n)
{
	struct disk_bitmap disk;
	int r = 0;

	for (; r == 0 && n; n--) {
		uint64_t whole;

		if (size < sizeof(disk))
			return bitmaps_broken(scan, "their directory is cut off");
		memcpy(&disk, data, sizeof(disk));
		whole = align_up((uint64_t)sizeof(disk) + be32toh(disk.extra_size) +
					 be16toh(disk.name_size),
				 8);
		if (size < whole)
			return bitmaps_broken(scan, "their directory is cut off");
		r = bitmap(scan, &disk);
		data += whole;
		size -= whole;
	}
	return r;
}

static int bitmaps(struct scan *scan, const struct disk_bitmaps *disk)
{
	uint64_t place = be64toh(disk->directory_offset), size = be64toh(disk->directory_size);
	_cleanup_(freep) uint8_t *data = NULL;
	int r;

	if (size > DIRECTORY_MAX || be32toh(disk->n) > BITMAPS_MAX)
		return bitmaps_broken(scan, "there are too many");
	if (!size || !be32toh(disk->n))
		return bitmaps_broken(scan, "they are said to be there, but there are none");
	r = take(scan, place, size, "their directory is not in the file");
	if (r != 0)
		return r;
	data = malloc(size);
	if (!data)
		return error_set(scan->err, -ENOMEM, "cannot check \"%s\": out of memory",
				 scan->name);
	r = scan_read(scan, data, size, place);
	if (r == 1)
		return bitmaps_broken(scan, "their directory is empty");
	return r < 0 ? r : bitmap_directory(scan, data, size, be32toh(disk->n));
}

/* The header has been parsed: extensions are within the cluster. */
static int find_bitmaps(struct scan *scan, const uint8_t *data, uint64_t size)
{
	struct disk_extension extension;
	struct disk_bitmaps disk;

	for (uint64_t at = scan->header.header_size; at + sizeof(extension) <= size;) {
		uint64_t length;

		memcpy(&extension, data + at, sizeof(extension));
		at += sizeof(extension);
		length = be32toh(extension.length);
		if (be32toh(extension.type) == QCOW2_EXTENSION_END || length > size - at)
			return 0;
		if (be32toh(extension.type) == QCOW2_EXTENSION_BITMAPS) {
			if (length != sizeof(disk))
				return bitmaps_broken(scan, "their header has a wrong length");
			memcpy(&disk, data + at, sizeof(disk));
			return bitmaps(scan, &disk);
		}
		at += align_up(length, 8);
	}
	return 0;
}

int scan_bitmaps(struct scan *scan)
{
	int r;

	if (scan->header.version >= 3 && scan->header.autoclear & QCOW2_AUTOCLEAR_RAW) {
		scan_found(scan, SCAN_AUTOCLEAR, 1,
			   "the header says that the data is in a raw file of its own, but names "
			   "none: repair clears that");
		scan->drop_autoclear |= QCOW2_AUTOCLEAR_RAW;
	}
	/* Without the bit they are out of date, and their clusters lost. */
	if (scan->header.version < 3 || !(scan->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS))
		return 0;
	r = scan_read(scan, scan->buffer, scan->cluster_size, 0);
	return r < 0 ? r : MIN(find_bitmaps(scan, scan->buffer, scan->cluster_size), 0);
}
