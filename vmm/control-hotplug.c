/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks that come and go, as a client asks for them. Who waits for the guest does so in a task that
 * outlives its client if it must.
 */
#include "vmm/control-hotplug.h"

#include <errno.h>
#include <stdio.h>

#define MILLISECOND UINT64_C(1000000)

struct disk_task {
	struct control_task task;
	struct hotplug_waiter waiter;
	bool adds;
	uint32_t number;
};

static json_t *added(uint32_t number)
{
	char name[16];
	struct control_disk_added result = {.disk = name, .slot = BOARD_SLOT_DISK + number};

	snprintf(name, sizeof(name), VM_FD_DISK "%u", number);
	return table_to_json(&control_disk_added_table, &result);
}

static void on_done(struct hotplug_waiter *waiter, const struct error *err)
{
	struct disk_task *task = container_of(waiter, struct disk_task, waiter);

	control_task_end(&task->task, task->adds && err->code == 0 ? added(task->number) : NULL,
			 err);
	free(task);
}

static struct disk_task *task_new(struct error *err)
{
	struct disk_task *task = calloc(1, sizeof(*task));

	if (task)
		task->waiter.done = on_done;
	else
		error_set(err, -ENOMEM, "out of memory");
	return task;
}

int control_disk_add(struct control *control, struct control_client *client,
		     struct control_passed *passed, const json_t *params, struct error *err)
{
	_cleanup_(freep) struct disk_task *task = task_new(err);
	struct control_disk_add wanted;
	int r = task ? table_init(&control_disk_add_table, &wanted) : -ENOMEM;

	if (r < 0)
		return r;
	task->adds = true;
	r = table_from_json(&control_disk_add_table, params, &wanted, err);
	if (r == 0)
		r = hotplug_add(&control->machine->board.hotplug, &wanted.disk, passed->fds,
				passed->n_fds, &task->waiter, &task->number, err);
	table_deinit(&control_disk_add_table, &wanted);
	if (r == 0)
		control_task_begin(&take_ptr(task)->task, client);
	return r;
}

int control_disk_remove(struct control *control, struct control_client *client,
			const json_t *params, struct error *err)
{
	_cleanup_(freep) struct disk_task *task = task_new(err);
	struct hotplug *hotplug = &control->machine->board.hotplug;
	struct control_disk_remove wanted;
	int r = task ? table_init(&control_disk_remove_table, &wanted) : -ENOMEM;
	bool waits;

	if (r < 0)
		return r;
	r = table_from_json(&control_disk_remove_table, params, &wanted, err);
	waits = r == 0 && wanted.timeout_ms > 0;
	if (r == 0)
		r = hotplug_remove(hotplug, wanted.disk, wanted.timeout_ms * MILLISECOND,
				   waits ? &task->waiter : NULL, err);
	table_deinit(&control_disk_remove_table, &wanted);
	if (r == 0 && waits)
		control_task_begin(&take_ptr(task)->task, client);
	return r;
}
