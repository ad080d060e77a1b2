/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The steps of a change, each posted to the main thread when the one before has ended.
 */
#include "vmm/disk-change.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/fd.h"
#include "block/overlay.h"

/* What has ended, as the source is posted. */
enum step { PREPARED, HELD, WORKED, TAKEN, UNDONE };

static uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Any thread: this step has ended. */
static void step_ended(struct disk_change *change, enum step step)
{
	loop_post(&change->source, step);
}

static struct disk_change *change_of(struct block_job *job)
{
	return container_of(job, struct disk_change, job);
}

/* The worker. */

static void overlay_drop(struct disk_change *change)
{
	change->overlay = block_close(change->overlay);
}

/* All that can be done while the guest goes on: most of what is not flushed yet is, so that the
 * rest is short. */
static void prepare(struct block_job *job)
{
	struct disk_change *change = change_of(job);
	struct disk *disk = change->disk;
	const struct block_open open = {
		.format = "qcow2",
		.name = change->path,
		.worker = disk->worker,
		.no_backing = true,
		.no_discard = !disk->discard,
	};
	int r = block_open(&change->overlay, take_fd(change->fd), &open, &change->err);

	if (r == 0)
		r = block_overlay_check(change->overlay, disk->image, &change->err);
	if (r == 0 && change->overlay->io_block > disk->blk.io_block)
		r = error_set(
			&change->err, -EINVAL,
			"cannot use overlay \"%s\": it has to be read and written in blocks of "
			"%u bytes, the guest was told %u",
			change->path, change->overlay->io_block, disk->blk.io_block);
	if (r == 0)
		r = block_flush(disk->image);
	if (r < 0 && !change->err.code)
		error_set(&change->err, r, "cannot write out disk \"%s\": %s", disk->path,
			  strerror(-r));
	if (r < 0)
		overlay_drop(change);
	step_ended(change, PREPARED);
}

static void put_overlay(struct block_job *job)
{
	struct disk_change *change = change_of(job);

	if (block_overlay_put(change->overlay, change->disk->image, &change->err) < 0)
		overlay_drop(change);
	step_ended(change, WORKED);
}

static void undo_overlay(struct block_job *job)
{
	struct disk_change *change = change_of(job);
	struct error err = ERROR_NULL;

	if (block_overlay_undo(change->overlay, &err) < 0)
		error_prefix(&change->err, "the disk is read-only now: %s: ", err.text);
	overlay_drop(change);
	step_ended(change, UNDONE);
}

static void resize(struct block_job *job)
{
	struct disk_change *change = change_of(job);

	if (block_resize(change->disk->image, change->size, &change->err) == 0)
		change->err = ERROR_NULL;
	step_ended(change, WORKED);
}

/* Loops of the disk's queues. */

static void on_rest(struct device_waiter *waiter, struct device *device)
{
	struct disk_change *change = container_of(waiter, struct disk_change, rests);

	(void)device;
	step_ended(change, HELD);
}

static void on_swapped(struct blk_swap *swap, int r)
{
	struct disk_change *change = container_of(swap, struct disk_change, swap);

	if (r < 0)
		error_set(&change->err, r, "cannot open the overlay on an I/O thread: %s",
			  strerror(-r));
	step_ended(change, TAKEN);
}

/* The main thread. */

static void run(struct disk_change *change, void (*work)(struct block_job *job))
{
	change->job.run = work;
	block_worker_post(change->worker, &change->job);
}

static void hold(struct disk_change *change)
{
	change->held_at = clock_ns();
	virtio_hold(&change->disk->blk.virtio, &change->rests);
}

static void finish(struct disk_change *change)
{
	struct disk *disk = take_ptr(change->disk);
	struct disk_change_waiter *waiter = take_ptr(change->waiter);
	uint64_t rested = 0;

	if (change->held_at) {
		virtio_release(&disk->blk.virtio);
		rested = clock_ns() - change->held_at;
	}
	free(take_ptr(change->path));
	waiter->done(waiter, disk, rested, &change->err);
	if (change->ended)
		change->ended(change);
}

/* The overlay stands on the image: the queues change over to it. */
static void take_over(struct disk_change *change)
{
	int r;

	change->swap.image = change->overlay;
	change->swap.done = on_swapped;
	r = blk_swap(&change->disk->blk, &change->swap);
	if (r == 0)
		return;
	error_set(&change->err, r, "cannot use overlay \"%s\": %s", change->path, strerror(-r));
	run(change, undo_overlay);
}

static void worked(struct disk_change *change)
{
	if (change->err.code < 0) {
		finish(change);
	} else if (change->size) {
		blk_resized(&change->disk->blk);
		finish(change);
	} else {
		take_over(change);
	}
}

static void taken(struct disk_change *change)
{
	if (change->err.code < 0) {
		run(change, undo_overlay);
		return;
	}
	disk_change_image(change->disk, take_ptr(change->overlay), take_ptr(change->path));
	finish(change);
}

static void on_event(struct loop_source *source, const struct loop_event *event)
{
	struct disk_change *change = container_of(source, struct disk_change, source);

	switch ((enum step)event->arg) {
	case PREPARED:
		if (change->err.code < 0)
			finish(change);
		else
			hold(change);
		break;
	case HELD:
		run(change, change->size ? resize : put_overlay);
		break;
	case WORKED:
		worked(change);
		break;
	case TAKEN:
		taken(change);
		break;
	case UNDONE:
		finish(change);
		break;
	}
}

static int begin(struct disk_change *change, struct disk *disk, const char *doing,
		 struct error *err)
{
	const char *name = disk->name;

	if (change->disk)
		return error_set(err, -EBUSY, "cannot %s %s: another change of a disk is under way",
				 doing, name);
	/* Somebody else works on it: it is being removed. */
	if (disk->blk.virtio.held)
		return error_set(err, -EBUSY, "cannot %s %s: it is being removed", doing, name);
	if (disk->image->readonly)
		return error_set(err, -EROFS, "cannot %s %s: it is read-only", doing, name);
	if (disk->image->inactive)
		return error_set(err, -EBUSY, "cannot %s %s: it is another host's", doing, name);
	return 0;
}

static void begun(struct disk_change *change, struct disk *disk, struct disk_change_waiter *waiter)
{
	change->disk = disk;
	change->waiter = waiter;
	change->held_at = 0;
	change->err = ERROR_NULL;
}

/* A thread that is sealed cannot make those that stand in for io_uring. */
static int check_loops(const struct disk *disk, struct error *err)
{
	for (uint32_t i = 0; i < disk->blk.n_queues; i++)
		if (!loop_has_uring(disk->blk.virtio.queues[i].loop))
			return error_set(err, -EOPNOTSUPP,
					 "cannot snapshot %s while the VM runs: this host forbids "
					 "io_uring; stop the VM and use `corral disk snapshot`",
					 disk->name);
	return 0;
}

int disk_change_overlay(struct disk_change *change, struct disk *disk, int fd, const char *path,
			struct disk_change_waiter *waiter, struct error *err)
{
	int r = begin(change, disk, "snapshot", err);
	char *copy = NULL;

	if (r == 0)
		r = check_loops(disk, err);
	if (r == 0 && !(copy = strdup(path)))
		r = error_set(err, -ENOMEM, "cannot snapshot %s: out of memory", disk->name);
	if (r < 0) {
		fd_close(fd);
		return r;
	}
	begun(change, disk, waiter);
	change->fd = fd;
	change->path = copy;
	change->size = 0;
	run(change, prepare);
	return 0;
}

int disk_change_size(struct disk_change *change, struct disk *disk, uint64_t size,
		     struct disk_change_waiter *waiter, struct error *err)
{
	int r = begin(change, disk, "resize", err);

	if (r < 0)
		return r;
	if (size < disk->image->size || size == 0)
		return error_set(err, -EINVAL,
				 "cannot resize %s to %llu bytes: it has %llu, and a disk that is "
				 "in use only grows",
				 disk->name, (unsigned long long)size,
				 (unsigned long long)disk->image->size);
	begun(change, disk, waiter);
	change->size = size;
	hold(change);
	return 0;
}

int disk_change_init(struct disk_change *change, struct loop *loop, struct block_worker *worker,
		     struct error *err)
{
	int r;

	*change = (struct disk_change){.worker = worker, .fd = -1};
	change->source.on_event = on_event;
	change->rests.done = on_rest;
	r = loop_add(loop, &change->source);
	return r < 0 ? error_set(err, r, "cannot set up disks: %s", strerror(-r)) : 0;
}

/* The queues may have changed over without our knowing. */
static void drop(void *arg)
{
	struct disk_change *change = arg;

	if (!change->overlay)
		return;
	if (change->disk->blk.image == change->overlay) {
		disk_change_image(change->disk, take_ptr(change->overlay), take_ptr(change->path));
		return;
	}
	change->overlay->backing = NULL; /* the disk's still */
	overlay_drop(change);
}

void disk_change_deinit(struct disk_change *change)
{
	if (!change->source.loop)
		return;
	disk_worker_do(change->worker, drop, change);
	change->fd = fd_close(change->fd);
	free(take_ptr(change->path));
	loop_remove(&change->source);
}
