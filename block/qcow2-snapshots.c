/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Internal snapshots for tools: which there are, and an image as one of them.
 */
#include "block/qcow2-snapshots.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/create.h"
#include "block/qcow2.h"

void block_snapshots_free(struct block_snapshots *snapshots)
{
	for (uint32_t i = 0; i < snapshots->n; i++) {
		free(snapshots->list[i].id);
		free(snapshots->list[i].name);
	}
	free(snapshots->list);
	*snapshots = (struct block_snapshots){0};
}

static int load(struct block_image *image, struct qcow2_snapshots *snapshots, struct error *err)
{
	*snapshots = (struct qcow2_snapshots){0};
	if (image->ops != &qcow2_ops)
		return 0;
	return qcow2_snapshots_load(&image->file, &to_qcow2(image)->header, image->name, snapshots,
				    err);
}

int block_snapshots_read(struct block_image *image, struct block_snapshots *ret_snapshots,
			 struct error *err)
{
	struct block_snapshots snapshots = {0};
	struct qcow2_snapshots all;
	int r = load(image, &all, err);

	if (r < 0)
		return r;
	if (all.n)
		snapshots.list = calloc(all.n, sizeof(*snapshots.list));
	if (all.n && !snapshots.list) {
		qcow2_snapshots_deinit(&all);
		return error_set(err, -ENOMEM, "cannot list the snapshots of \"%s\": out of memory",
				 image->name);
	}
	for (; snapshots.n < all.n; snapshots.n++) {
		struct qcow2_snapshot *from = &all.list[snapshots.n];

		snapshots.list[snapshots.n] = (struct block_snapshot){
			.id = take_ptr(from->id),
			.name = take_ptr(from->name),
			.seconds = from->seconds,
			.size = from->disk_size,
			.vm_state_size = from->vm_state_size,
		};
	}
	qcow2_snapshots_deinit(&all);
	*ret_snapshots = snapshots;
	return 0;
}

/* An id is looked for first: it is one snapshot's only, where names may repeat. */
static const struct qcow2_snapshot *find(const struct qcow2_snapshots *all, const char *id)
{
	for (uint32_t i = 0; i < all->n; i++)
		if (!strcmp(all->list[i].id, id))
			return &all->list[i];
	for (uint32_t i = 0; i < all->n; i++)
		if (!strcmp(all->list[i].name, id))
			return &all->list[i];
	return NULL;
}

static int view(struct qcow2 *qcow2, const struct qcow2_snapshot *snapshot, struct error *err)
{
	const struct block_image *image = &qcow2->image;
	int64_t size = block_file_size(&image->file);
	const char *fault;

	if (size < 0)
		return error_set(err, (int)size, "cannot read \"%s\": %s", image->name,
				 strerror((int)-size));
	fault = qcow2_snapshot_fault(snapshot, qcow2->cluster_bits, (uint64_t)size);
	if (fault)
		return error_set(err, -EINVAL, "cannot read snapshot \"%s\" of \"%s\": %s",
				 snapshot->name, image->name, fault);
	return qcow2_view(qcow2, snapshot->l1_offset, snapshot->l1_entries, snapshot->disk_size,
			  err);
}

int block_snapshot_view(struct block_image *image, const char *id, struct error *err)
{
	const struct qcow2_snapshot *snapshot;
	struct qcow2_snapshots all;
	int r;

	if (!image->readonly)
		return error_set(err, -EINVAL,
				 "cannot read a snapshot of \"%s\": it is open for writing",
				 image->name);
	r = load(image, &all, err);
	if (r < 0)
		return r;
	snapshot = find(&all, id);
	if (snapshot)
		r = view(to_qcow2(image), snapshot, err);
	else
		r = error_set(err, -ENOENT, "\"%s\" has no snapshot \"%s\"", image->name, id);
	qcow2_snapshots_deinit(&all);
	return r;
}
