/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: a disk's name and what is to become of it. Out: the change begun, and an answer when it is
 * over, also if who asked has gone by then.
 */
#include "vmm/control-disks.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"

struct change_task {
	struct control_task task;
	struct disk_change_waiter waiter;
};

static const char *disk_trouble(struct disk *disk, char *text, size_t size)
{
	struct blk_trouble trouble = blk_trouble(&disk->blk);

	if (!trouble.code)
		return NULL;
	snprintf(text, size, "%s: %s", blk_operation_names[trouble.operation],
		 strerror(-trouble.code));
	return text;
}

static uint32_t images_under(const struct block_image *image)
{
	uint32_t n = 0;

	while ((image = image->backing))
		n++;
	return n;
}

json_t *control_disks(struct control *control)
{
	struct board *board = &control->machine->board;
	struct control_disks value = {0};
	char troubles[VM_DISKS_MAX][100];

	for (uint32_t i = 0; i < VM_DISKS_MAX; i++) {
		struct disk *disk = &board->disks[i];

		if (!board_has_disk(board, i))
			continue;
		value.disks[value.n_disks++] = (struct control_disk){
			.name = disk->name,
			.path = disk->path,
			.format = (char *)disk->image->ops->format,
			.size = atomic_load(&disk->blk.capacity) * BLOCK_SECTOR,
			.readonly = disk->image->readonly,
			.direct = disk->image->file.direct,
			.under = images_under(disk->image),
			.trouble = (char *)disk_trouble(disk, troubles[i], sizeof(troubles[i])),
		};
	}
	return table_to_json(&control_disks_table, &value);
}

static void on_done(struct disk_change_waiter *waiter, struct disk *disk, uint64_t rested_ns,
		    const struct error *err)
{
	struct change_task *task = container_of(waiter, struct change_task, waiter);
	json_t *result = json_pack("{s:s, s:I, s:I}", "disk", disk->name, "size",
				   (json_int_t)disk->image->size, "rested-us",
				   (json_int_t)(rested_ns / 1000));

	control_task_end(&task->task, result, err);
	free(task);
}

static struct change_task *task_new(struct error *err)
{
	struct change_task *task = calloc(1, sizeof(*task));

	if (task)
		task->waiter.done = on_done;
	else
		error_set(err, -ENOMEM, "out of memory");
	return task;
}

static struct disk *disk_find(struct control *control, const char *name, struct error *err)
{
	struct board *board = &control->machine->board;

	for (uint32_t i = 0; i < VM_DISKS_MAX; i++)
		if (board_has_disk(board, i) && strcmp(board->disks[i].name, name) == 0)
			return &board->disks[i];
	error_set(err, -ENODEV, "cannot find the disk \"%s\"", name);
	return NULL;
}

/* The only one that came. */
static int passed_take(struct control_passed *passed)
{
	return passed->n_fds == 1 ? passed->fds[--passed->n_fds] : -1;
}

static int snapshot(struct control *control, struct control_passed *passed,
		    const struct control_disk_snapshot *wanted, struct change_task *task,
		    struct error *err)
{
	struct disk *disk = disk_find(control, wanted->disk, err);
	int fd;

	if (!disk)
		return err->code;
	fd = passed_take(passed);
	if (fd < 0)
		return error_set(err, -EBADF,
				 "cannot snapshot %s: send the open overlay with the request",
				 disk->name);
	return disk_change_overlay(&control->machine->board.change, disk, fd, wanted->path,
				   &task->waiter, err);
}

int control_disk_snapshot(struct control *control, struct control_client *client,
			  struct control_passed *passed, const json_t *params, struct error *err)
{
	_cleanup_(freep) struct change_task *task = task_new(err);
	struct control_disk_snapshot wanted;
	int r = task ? table_init(&control_disk_snapshot_table, &wanted) : -ENOMEM;

	if (r < 0)
		return r;
	r = table_from_json(&control_disk_snapshot_table, params, &wanted, err);
	if (r == 0)
		r = snapshot(control, passed, &wanted, task, err);
	table_deinit(&control_disk_snapshot_table, &wanted);
	if (r == 0)
		control_task_begin(&take_ptr(task)->task, client);
	return r;
}

int control_disk_resize(struct control *control, struct control_client *client,
			const json_t *params, struct error *err)
{
	_cleanup_(freep) struct change_task *task = task_new(err);
	struct control_disk_resize wanted;
	struct disk *disk;
	int r = task ? table_init(&control_disk_resize_table, &wanted) : -ENOMEM;

	if (r < 0)
		return r;
	r = table_from_json(&control_disk_resize_table, params, &wanted, err);
	disk = r == 0 ? disk_find(control, wanted.disk, err) : NULL;
	if (r == 0)
		r = disk ? disk_change_size(&control->machine->board.change, disk, wanted.size,
					    &task->waiter, err)
			 : err->code;
	table_deinit(&control_disk_resize_table, &wanted);
	if (r == 0)
		control_task_begin(&take_ptr(task)->task, client);
	return r;
}
