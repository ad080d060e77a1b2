/* SPDX-License-Identifier: Apache-2.0 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2-snapshots.h"

#define WINDOW    (64u << 10)
#define ALIGNMENT 8u

/* Extra data we know how to fill and read: two sizes, then an instruction count. */
#define EXTRA_SIZES  16u
#define EXTRA_ICOUNT 24u

struct disk_snapshot {
	uint64_t l1_offset;
	uint32_t l1_entries;
	uint16_t id_size, name_size;
	uint32_t seconds, nanoseconds;
	uint64_t vm_clock;
	uint32_t vm_state_size, extra_size;
} __attribute__((packed));
_Static_assert(sizeof(struct disk_snapshot) == 40, "the specification's entry");

struct disk_extra {
	uint64_t vm_state_size, disk_size, icount;
} __attribute__((packed));
_Static_assert(sizeof(struct disk_extra) == EXTRA_ICOUNT, "the specification's extra data");

/* Goes through the table by a window. */
struct reader {
	const struct block_file *file;
	uint8_t *window; /* owned */
	uint64_t start;  /* of the window, in the file */
	uint64_t at, end;
};

static int reader_get(struct reader *reader, void *data, size_t size)
{
	uint8_t *to = data;

	if (size > reader->end - reader->at)
		return -EINVAL;
	while (size) {
		uint64_t skip = reader->at - reader->start, here;

		if (reader->start == UINT64_MAX || skip >= WINDOW) {
			int r;

			reader->start = reader->at;
			skip = 0;
			r = block_file_read(reader->file, reader->window, WINDOW, reader->start);
			if (r < 0)
				return r;
		}
		here = MIN((uint64_t)size, WINDOW - skip);
		memcpy(to, reader->window + skip, here);
		to += here;
		size -= here;
		reader->at += here;
	}
	return 0;
}

static int reader_skip(struct reader *reader, uint64_t size)
{
	if (size > reader->end - reader->at)
		return -EINVAL;
	reader->at += size;
	return 0;
}

static int get_text(struct reader *reader, uint16_t size, char **ret_text)
{
	char *text = calloc(1, (size_t)size + 1);
	int r;

	if (!text)
		return -ENOMEM;
	r = reader_get(reader, text, size);
	if (r < 0)
		free(text);
	else
		*ret_text = text;
	return r;
}

static int get_extra(struct reader *reader, struct qcow2_snapshot *snapshot, uint64_t disk_size)
{
	struct disk_extra extra = {0};
	uint32_t known = MIN(snapshot->extra_size, EXTRA_ICOUNT);
	int r = reader_get(reader, &extra, known);

	if (r >= 0)
		r = reader_skip(reader, snapshot->extra_size - known);
	if (known >= 8)
		snapshot->vm_state_size = be64toh(extra.vm_state_size);
	snapshot->disk_size = known >= EXTRA_SIZES ? be64toh(extra.disk_size) : disk_size;
	snapshot->icount = known >= EXTRA_ICOUNT ? be64toh(extra.icount) : UINT64_MAX;
	return r;
}

static int get_snapshot(struct reader *reader, struct qcow2_snapshot *snapshot, uint64_t disk_size)
{
	struct disk_snapshot disk;
	int r = reader_skip(reader, -reader->at % ALIGNMENT);

	if (r >= 0)
		r = reader_get(reader, &disk, sizeof(disk));
	if (r < 0)
		return r;
	snapshot->l1_offset = be64toh(disk.l1_offset);
	snapshot->l1_entries = be32toh(disk.l1_entries);
	snapshot->seconds = be32toh(disk.seconds);
	snapshot->nanoseconds = be32toh(disk.nanoseconds);
	snapshot->vm_clock = be64toh(disk.vm_clock);
	snapshot->vm_state_size = be32toh(disk.vm_state_size);
	snapshot->extra_size = be32toh(disk.extra_size);
	r = get_extra(reader, snapshot, disk_size);
	if (r >= 0)
		r = get_text(reader, be16toh(disk.id_size), &snapshot->id);
	if (r >= 0)
		r = get_text(reader, be16toh(disk.name_size), &snapshot->name);
	return r;
}

/* The list grows with what the file really has: a header's number may lie. */
static int list_grow(struct qcow2_snapshots *snapshots, uint32_t *room)
{
	struct qcow2_snapshot *list;

	if (snapshots->n < *room)
		return 0;
	*room = MAX(*room * 2, 16u);
	list = realloc(snapshots->list, *room * sizeof(*list));
	if (!list)
		return -ENOMEM;
	snapshots->list = list;
	return 0;
}

static int load(struct reader *reader, const struct qcow2_header *header,
		struct qcow2_snapshots *snapshots)
{
	uint32_t room = 0;
	int r = 0;

	while (r >= 0 && snapshots->n < header->n_snapshots) {
		r = list_grow(snapshots, &room);
		if (r < 0)
			break;
		snapshots->list[snapshots->n] = (struct qcow2_snapshot){0};
		r = get_snapshot(reader, &snapshots->list[snapshots->n++], header->size);
	}
	return r;
}

static int refuse(int code, const char *name, const struct qcow2_header *header, const char *why,
		  struct error *err)
{
	return error_set(err, code,
			 "cannot read the snapshots of disk \"%s\": the table of %u, at 0x%llx, %s",
			 name, header->n_snapshots, (unsigned long long)header->snapshots_offset,
			 why);
}

int qcow2_snapshots_load(const struct block_file *file, const struct qcow2_header *header,
			 const char *name, struct qcow2_snapshots *ret_snapshots, struct error *err)
{
	_cleanup_(freep) uint8_t *window = NULL;
	struct qcow2_snapshots snapshots = {0};
	struct reader reader = {.file = file, .start = UINT64_MAX, .at = header->snapshots_offset};
	int64_t size = block_file_size(file);
	int r;

	*ret_snapshots = snapshots;
	if (!header->n_snapshots)
		return 0;
	if (size < 0)
		return refuse((int)size, name, header, strerror((int)-size), err);
	if (header->n_snapshots > QCOW2_SNAPSHOTS_MAX)
		return refuse(-EINVAL, name, header, "has more than 65536", err);
	if (!reader.at || reader.at & ((UINT64_C(1) << header->cluster_bits) - 1) ||
	    reader.at >= (uint64_t)size)
		return refuse(-EINVAL, name, header, "is not where a table can be", err);
	reader.end = reader.at + MIN((uint64_t)size - reader.at, QCOW2_SNAPSHOTS_BYTES_MAX);
	reader.window = window = malloc(WINDOW);
	r = window ? load(&reader, header, &snapshots) : -ENOMEM;
	if (r < 0) {
		qcow2_snapshots_deinit(&snapshots);
		return refuse(r, name, header,
			      r == -EINVAL ? "runs past the file's end, or past 64 MiB"
					   : strerror(-r),
			      err);
	}
	snapshots.bytes = reader.at - header->snapshots_offset;
	*ret_snapshots = snapshots;
	return 0;
}

void qcow2_snapshots_deinit(struct qcow2_snapshots *snapshots)
{
	for (uint32_t i = 0; i < snapshots->n; i++) {
		free(snapshots->list[i].id);
		free(snapshots->list[i].name);
	}
	free(snapshots->list);
	*snapshots = (struct qcow2_snapshots){0};
}

const char *qcow2_snapshot_fault(const struct qcow2_snapshot *snapshot, uint32_t cluster_bits,
				 uint64_t file_size)
{
	uint64_t bytes = (uint64_t)snapshot->l1_entries * 8;

	if (bytes > QCOW2_L1_BYTES_MAX)
		return "its L1 table is larger than 32 MiB";
	if (!bytes)
		return NULL;
	if (!snapshot->l1_offset || snapshot->l1_offset & ((UINT64_C(1) << cluster_bits) - 1))
		return "its L1 table does not begin with a cluster";
	if (snapshot->l1_offset > file_size || bytes > file_size - snapshot->l1_offset)
		return "its L1 table lies behind the file's end";
	return NULL;
}

static uint64_t entry_size(const struct qcow2_snapshot *snapshot)
{
	uint64_t extra = snapshot->extra_size >= EXTRA_ICOUNT ? EXTRA_ICOUNT : EXTRA_SIZES;

	return align_up(sizeof(struct disk_snapshot) + extra + strlen(snapshot->id) +
				strlen(snapshot->name),
			ALIGNMENT);
}

static uint8_t *put(uint8_t *to, const void *data, size_t size)
{
	memcpy(to, data, size);
	return to + size;
}

static void entry_encode(uint8_t *to, const struct qcow2_snapshot *snapshot)
{
	uint32_t extra_size = snapshot->extra_size >= EXTRA_ICOUNT ? EXTRA_ICOUNT : EXTRA_SIZES;
	struct disk_snapshot disk = {
		.l1_offset = htobe64(snapshot->l1_offset),
		.l1_entries = htobe32(snapshot->l1_entries),
		.id_size = htobe16((uint16_t)strlen(snapshot->id)),
		.name_size = htobe16((uint16_t)strlen(snapshot->name)),
		.seconds = htobe32(snapshot->seconds),
		.nanoseconds = htobe32(snapshot->nanoseconds),
		.vm_clock = htobe64(snapshot->vm_clock),
		.vm_state_size = htobe32((uint32_t)MIN(snapshot->vm_state_size, UINT32_MAX)),
		.extra_size = htobe32(extra_size),
	};
	struct disk_extra extra = {
		.vm_state_size = htobe64(snapshot->vm_state_size),
		.disk_size = htobe64(snapshot->disk_size),
		.icount = htobe64(snapshot->icount),
	};

	to = put(to, &disk, sizeof(disk));
	to = put(to, &extra, extra_size);
	to = put(to, snapshot->id, strlen(snapshot->id));
	put(to, snapshot->name, strlen(snapshot->name));
}

int qcow2_snapshots_encode(const struct qcow2_snapshots *snapshots, const bool *keep,
			   uint8_t **ret_data, uint64_t *ret_size)
{
	uint64_t size = 0, at = 0;
	uint8_t *data;

	for (uint32_t i = 0; i < snapshots->n; i++)
		if (!keep || keep[i])
			size += entry_size(&snapshots->list[i]);
	data = calloc(1, MAX(size, UINT64_C(1)));
	if (!data)
		return -ENOMEM;
	for (uint32_t i = 0; i < snapshots->n; i++) {
		if (keep && !keep[i])
			continue;
		entry_encode(data + at, &snapshots->list[i]);
		at += entry_size(&snapshots->list[i]);
	}
	*ret_data = data;
	*ret_size = size;
	return 0;
}
