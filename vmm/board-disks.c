/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disks of a board: their workers, made before any thread is sealed; those of the start, and
 * places for those that come later. Main thread; once that runs sealed, images are closed by
 * workers, since it may not make their system calls itself.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "vmm/board.h"

static int worker_new(struct block_worker **ret_worker, const char *name, void (*start)(void *),
		      struct error *err)
{
	const struct block_worker_options options = {.name = name, .thread_start = start};

	return block_worker_new(ret_worker, &options, err);
}

/* A disk that waits for metadata has a worker of its own; the rest share the spare one. */
static int worker_for(struct board *board, uint32_t i, void (*start)(void *), struct error *err)
{
	char name[16];

	if (board->vm->disks[i].format == VM_FORMAT_RAW)
		return 0;
	snprintf(name, sizeof(name), VM_FD_DISK "%u", i);
	return worker_new(&board->workers[i], name, start, err);
}

static int disk_new(struct board *board, uint32_t i, struct named_fds *fds,
		    struct loop *const *loops, uint32_t n_loops, struct error *err)
{
	const struct vm_disk *wanted = &board->vm->disks[i];
	struct block_worker *worker = board->workers[i] ? board->workers[i] : board->spare;
	struct disk *disk = &board->disks[i];
	int r = disk_open(disk, wanted, i, fds, worker, board->watcher, err);

	if (r == 0)
		r = disk_plug(disk, wanted, &board->pci, BOARD_SLOT_DISK + i, &board->memory, loops,
			      n_loops, err);
	if (board_has_disk(board, i))
		board_add(board, &disk->blk.pci.function.device);
	return r;
}

static void close_it(void *disk)
{
	disk_close(disk);
}

bool board_has_disk(const struct board *board, uint32_t number)
{
	return board->disks && board->disks[number].blk.pci.virtio;
}

bool board_disk_is_busy(const struct board *board, uint32_t number)
{
	return disk_change_is_of(&board->change, &board->disks[number]);
}

int board_disks_init(struct board *board, struct named_fds *fds, struct loop *main,
		     struct loop *const *loops, uint32_t n_loops, void (*start)(void *),
		     struct error *err)
{
	int r = worker_new(&board->spare, "disks", start, err);

	if (r == 0)
		r = disk_change_init(&board->change, main, board->spare, err);
	board->disks = calloc(VM_DISKS_MAX, sizeof(*board->disks));
	if (r == 0 && !board->disks)
		r = error_set(err, -ENOMEM, "cannot make the disks: out of memory");
	for (uint32_t i = 0; i < board->vm->n_disks && r == 0; i++) {
		r = worker_for(board, i, start, err);
		if (r == 0)
			r = disk_new(board, i, fds, loops, n_loops, err);
	}
	return r;
}

void board_disks_deinit(struct board *board)
{
	disk_change_deinit(&board->change);
	for (uint32_t i = 0; board->disks && i < VM_DISKS_MAX; i++)
		disk_worker_do(board->disks[i].worker, close_it, &board->disks[i]);
	for (uint32_t i = 0; i < VM_DISKS_MAX; i++)
		board->workers[i] = block_worker_free(board->workers[i]);
	board->spare = block_worker_free(board->spare);
	free(take_ptr(board->disks));
}
