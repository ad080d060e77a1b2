/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Description and descriptors in, a disk out. Backing images are handed out in the order in which
 * they were handed over: what an image says of their names opens nothing here.
 */
#include "vmm/disk.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#define LOW_SPACE_MOST (UINT64_C(1) << 30)
#define LOW_SPACE_PART 20 /* of the store */

static const char *const formats[] = {[VM_FORMAT_RAW] = "raw", [VM_FORMAT_QCOW2] = "qcow2"};

/* Hands out the images under a disk, top down. */
struct chain {
	struct block_opener opener;
	const struct disk *disk;
	const struct vm_disk *wanted;
	struct named_fds *fds;
	uint32_t next;
};

static int chain_open(struct block_opener *opener, const char *name, const char *format,
		      const char **ret_format, struct error *err)
{
	struct chain *chain = container_of(opener, struct chain, opener);
	uint32_t i = chain->next++;
	char fd_name[NAMED_FDS_LENGTH];
	int fd;

	(void)format;
	if (i >= chain->wanted->n_chain)
		return error_set(err, -EBADF,
				 "its image stands on \"%s\", which was not handed over; the disk "
				 "needs backing=allow",
				 name);
	snprintf(fd_name, sizeof(fd_name), VM_FD_DISK "%u" VM_FD_BACKING "%u", chain->disk->number,
		 i);
	fd = named_fds_take(chain->fds, fd_name);
	if (fd < 0)
		return error_set(err, -EBADF, "the descriptor named \"%s\" was not handed over",
				 fd_name);
	*ret_format = formats[chain->wanted->chain[i].format];
	return fd;
}

/* Which file the worker looks at. */
static void store_take(struct disk *disk)
{
	union disk_store store = {.fd = disk->image->file.fd};

	store.grows = strcmp(disk->image->ops->format, "raw") != 0;
	atomic_store(&disk->store, store.both);
}

int disk_open(struct disk *disk, const struct vm_disk *wanted, uint32_t number,
	      struct named_fds *fds, struct block_worker *worker, struct disk_watcher *watcher,
	      struct error *err)
{
	struct chain chain = {{chain_open}, disk, wanted, fds, 0};
	struct block_open open = {
		.format = formats[wanted->format],
		.opener = wanted->backing == VM_BACKING_ALLOW ? &chain.opener : NULL,
		.worker = worker,
		.readonly = wanted->readonly,
		.inactive = wanted->inactive,
		.no_discard = !wanted->discard,
	};
	int fd, r;

	disk->number = number;
	disk->worker = worker;
	disk->watcher = watcher;
	disk->low_space = wanted->low_space;
	disk->discard = wanted->discard;
	snprintf(disk->name, sizeof(disk->name), VM_FD_DISK "%u", number);
	fd = named_fds_take(fds, disk->name);
	if (fd < 0)
		return error_set(err, -EBADF,
				 "cannot start: the descriptor named \"%s\" was not handed over",
				 disk->name);
	disk->path = strdup(wanted->path ? wanted->path : disk->name);
	if (!disk->path) {
		fd_close(fd);
		return error_set(err, -ENOMEM, "cannot open %s: out of memory", disk->name);
	}
	open.name = disk->path;
	r = block_open(&disk->image, fd, &open, err);
	if (r == 0)
		store_take(disk);
	return r;
}

static void on_failed(struct blk_listener *listener, struct blk *blk)
{
	struct disk *disk = container_of(listener, struct disk, listener);

	(void)blk;
	disk->watcher->event(disk->watcher, disk, DISK_FAILED);
}

uint64_t disk_low_mark(uint64_t low_space, uint64_t total)
{
	return low_space ? low_space : MIN(LOW_SPACE_MOST, total / LOW_SPACE_PART);
}

/* A file that has all its blocks needs no more; how much of a device is used nobody says. */
static bool needs_room(int fd, bool grows)
{
	struct stat st;

	return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) &&
	       (grows || st.st_blocks * 512 < st.st_size);
}

static void look(struct block_job *job)
{
	struct disk *disk = container_of(job, struct disk, look);
	const union disk_store at = {.both = atomic_load(&disk->store)};
	struct statvfs store;
	uint64_t free, mark;

	atomic_store(&disk->looking, false);
	if (!needs_room(at.fd, at.grows) || fstatvfs(at.fd, &store) < 0)
		return;
	free = (uint64_t)store.f_bavail * store.f_frsize;
	mark = disk_low_mark(disk->low_space, (uint64_t)store.f_blocks * store.f_frsize);
	atomic_store(&disk->free, free);
	if (!disk->low && free < mark) {
		disk->low = true;
		disk->watcher->event(disk->watcher, disk, DISK_LOW);
	} else if (disk->low && free >= mark + mark / 4) {
		disk->low = false;
	}
}

static void on_written(struct blk_listener *listener, struct blk *blk)
{
	struct disk *disk = container_of(listener, struct disk, listener);

	(void)blk;
	if (!atomic_exchange(&disk->looking, true))
		block_worker_post(disk->worker, &disk->look);
}

int disk_plug(struct disk *disk, const struct vm_disk *wanted, struct pci_root *root, uint32_t slot,
	      struct guest_memory *memory, struct loop *const *loops, uint32_t n_loops,
	      struct error *err)
{
	static const enum blk_on_error policies[] = {
		[VM_ERROR_FULL] = BLK_ERROR_FULL,
		[VM_ERROR_PAUSE] = BLK_ERROR_PAUSE,
		[VM_ERROR_REPORT] = BLK_ERROR_REPORT,
	};
	const struct vm_limit *limit = &wanted->limit;
	const struct blk_options options = {
		.name = disk->name,
		.image = disk->image,
		.serial = wanted->serial,
		.n_queues = wanted->queues,
		.loops = loops,
		.n_loops = n_loops,
		.limits = {{limit->iops, limit->bps},
			   {limit->read_iops, limit->read_bps},
			   {limit->write_iops, limit->write_bps}},
		.on_error = policies[wanted->on_error],
		.listener = &disk->listener,
	};

	disk->listener = (struct blk_listener){on_failed, on_written};
	disk->look.run = look;
	return blk_init(&disk->blk, root, slot, memory, &options, err);
}

void disk_close(struct disk *disk)
{
	disk->image = block_close(disk->image);
	free(take_ptr(disk->path));
}

void disk_change_image(struct disk *disk, struct block_image *image, char *path)
{
	disk->image = image;
	store_take(disk);
	free(disk->path);
	disk->path = path;
}

struct call {
	struct block_job job;
	void (*call)(void *arg);
	void *arg;
	pthread_mutex_t lock; /* done */
	pthread_cond_t changed;
	bool done;
};

static void call_run(struct block_job *job)
{
	struct call *call = container_of(job, struct call, job);

	call->call(call->arg);
	pthread_mutex_lock(&call->lock);
	call->done = true;
	pthread_cond_signal(&call->changed);
	pthread_mutex_unlock(&call->lock);
}

void disk_worker_do(struct block_worker *worker, void (*what)(void *arg), void *arg)
{
	struct call call = {
		.job.run = call_run,
		.call = what,
		.arg = arg,
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.changed = PTHREAD_COND_INITIALIZER,
	};

	if (!worker) {
		what(arg);
		return;
	}
	block_worker_post(worker, &call.job);
	pthread_mutex_lock(&call.lock);
	while (!call.done)
		pthread_cond_wait(&call.changed, &call.lock);
	pthread_mutex_unlock(&call.lock);
}

int disk_claim(struct disk *disk, struct error *err)
{
	uint64_t before = disk->image->size;
	int r = block_claim(disk->image, err);

	if (r == 0 && disk->image->size != before)
		blk_resized(&disk->blk);
	return r;
}

int disk_yield(struct disk *disk, struct error *err)
{
	return block_yield(disk->image, err);
}
