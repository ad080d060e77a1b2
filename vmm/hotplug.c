/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests and ejects in; calls to the worker and to loops, steps of the board and words to those
 * who wait out. Main thread, but for the functions that say otherwise.
 */
#include "vmm/hotplug.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "vmm/board.h"

#define SECOND       UINT64_C(1000000000)
#define REMIND_EVERY SECOND         /* a guest that has not read what it was told … */
#define REMIND_FOR   (300 * SECOND) /* … may still be booting */

_Static_assert(HOTPLUG_LOOPS_MAX >= BOARD_IO_THREADS_MAX, "a call for each loop");
_Static_assert(BOARD_SLOT_DISK + VM_DISKS_MAX <= PCI_SLOTS, "a slot for each place");

static uint32_t slot_of(const struct hotplug_place *place)
{
	return BOARD_SLOT_DISK + place->number;
}

static struct disk *disk_of(const struct hotplug_place *place)
{
	return &place->hotplug->board->disks[place->number];
}

/* The one that serves the disk, so that it is closed after whatever it asked of the worker. */
static struct block_worker *worker_of(const struct hotplug_place *place)
{
	const struct board *board = place->hotplug->board;
	struct block_worker *own = board->workers[place->number];

	return own ? own : board->spare;
}

static struct virtio_device *virtio_of(const struct hotplug_place *place)
{
	return &disk_of(place)->blk.virtio;
}

static struct pci_function *function_of(const struct hotplug_place *place)
{
	return &disk_of(place)->blk.pci.function;
}

static const char *name_of(const struct hotplug_place *place)
{
	return disk_of(place)->name;
}

void hotplug_look(struct hotplug *hotplug)
{
	loop_post(&hotplug->source, 0);
}

static void wake(struct hotplug_place *place, const struct error *err)
{
	struct hotplug_waiter *waiter = take_ptr(place->waiter);

	place->deadline = 0;
	if (waiter)
		waiter->done(waiter, err);
}

static void tell(struct hotplug *hotplug, const char *event, const char *disk)
{
	if (hotplug->observer)
		hotplug->observer->happened(hotplug->observer, event, disk);
}

/* The worker. */

static void job_done(struct hotplug_place *place)
{
	atomic_store(&place->job_done, true);
	hotplug_look(place->hotplug);
}

static void on_open(struct block_job *job)
{
	struct hotplug_place *place = container_of(job, struct hotplug_place, job);
	struct board *board = place->hotplug->board;
	int r;

	r = disk_open(disk_of(place), place->description, place->number, place->fds,
		      worker_of(place), board->watcher, &place->failure);
	if (r < 0 && place->failure.code == 0)
		error_set(&place->failure, r, "cannot open disk \"%s\": %s",
			  place->description->path, strerror(-r));
	named_fds_close(place->fds);
	job_done(place);
}

static void on_close(struct block_job *job)
{
	struct hotplug_place *place = container_of(job, struct hotplug_place, job);

	disk_close(disk_of(place));
	job_done(place);
}

/* A loop's thread; main where there is none. */

static void call_done(struct hotplug_call *call)
{
	if (atomic_fetch_sub(&call->place->n_calls, 1) == 1)
		hotplug_look(call->place->hotplug);
}

static void on_attach(struct io_call *io_call)
{
	struct hotplug_call *call = container_of(io_call, struct hotplug_call, call);

	call->result = virtio_attach(virtio_of(call->place), call->loop);
	call_done(call);
}

static void on_detach(struct io_call *io_call)
{
	struct hotplug_call *call = container_of(io_call, struct hotplug_call, call);

	virtio_detach(virtio_of(call->place), call->loop);
	call_done(call);
}

/* Any of them; the device's lock is held. */
static void on_rest(struct device_waiter *waiter, struct device *device _unused_)
{
	struct hotplug_place *place = container_of(waiter, struct hotplug_place, rests);

	atomic_store(&place->at_rest, true);
	hotplug_look(place->hotplug);
}

/* The main thread again. */

static void call_worker(struct hotplug_place *place, void (*run)(struct block_job *job))
{
	atomic_store(&place->job_done, false);
	place->job.run = run;
	block_worker_post(worker_of(place), &place->job);
}

/* A VM without I/O threads has its queues on the main loop. */
static uint32_t n_loops(const struct board *board)
{
	return MAX(board->n_io_threads, 1u);
}

static struct loop *loop_at(const struct hotplug *hotplug, uint32_t i)
{
	const struct board *board = hotplug->board;

	return board->n_io_threads ? board->io_threads[i].loop : hotplug->loop;
}

/* Each loop does its part. */
static void call_loops(struct hotplug_place *place, void (*run)(struct io_call *call))
{
	struct hotplug *hotplug = place->hotplug;
	struct board *board = hotplug->board;
	uint32_t n = n_loops(board);

	atomic_store(&place->n_calls, n);
	for (uint32_t i = 0; i < n; i++) {
		struct hotplug_call *call = &place->calls[i];

		*call = (struct hotplug_call){{run, NULL}, place, loop_at(hotplug, i), 0};
		if (board->n_io_threads)
			io_thread_call(&board->io_threads[i], &call->call);
		else
			run(&call->call);
	}
}

static int calls_result(const struct hotplug_place *place)
{
	for (uint32_t i = 0; i < n_loops(place->hotplug->board); i++)
		if (place->calls[i].result < 0)
			return place->calls[i].result;
	return 0;
}

static void description_free(struct hotplug_place *place)
{
	if (place->description)
		table_deinit(&vm_disk_table, place->description);
	free(take_ptr(place->description));
}

static void remind_from_now(struct hotplug *hotplug)
{
	uint64_t now = clock_ns();

	hotplug->remind_at = now + REMIND_EVERY;
	hotplug->remind_until = now + REMIND_FOR;
}

/* On its way out, from the back to the front. */

/* The image is free: whoever wants may open it. */
static void closed(struct hotplug_place *place)
{
	struct hotplug *hotplug = place->hotplug;
	struct error failure = place->failure;
	char name[16];

	snprintf(name, sizeof(name), "%s", name_of(place));
	*disk_of(place) = (struct disk){0};
	description_free(place);
	place->failure = ERROR_NULL;
	place->state = HOTPLUG_EMPTY;
	if (failure.code == 0) {
		log_info("%s: removed", name);
		tell(hotplug, "disk-removed", name);
	}
	wake(place, &failure);
}

/* No loop knows of it any more: the device goes, then the image with its lock. */
static void detached(struct hotplug_place *place)
{
	struct device *device = &function_of(place)->device;

	if (device->ops)
		device->ops->deinit(device);
	disk_of(place)->blk = (struct blk){0};
	place->state = HOTPLUG_CLOSING;
	call_worker(place, on_close);
}

static void detach(struct hotplug_place *place)
{
	place->state = HOTPLUG_DETACHING;
	call_loops(place, on_detach);
}

static void drained(struct hotplug_place *place)
{
	struct board *board = place->hotplug->board;

	pci_unplug(function_of(place));
	pci_hotplug_forget(&board->pci_hotplug, slot_of(place));
	board_remove(board, &function_of(place)->device);
	detach(place);
}

/* The guest has let go of it: what it has under way ends, then nothing starts any more. */
static void drain(struct hotplug_place *place)
{
	place->asked = false;
	/* Whoever changes something behind it is let finish, and has us look again. */
	place->leaving = board_disk_is_busy(place->hotplug->board, place->number);
	if (place->leaving)
		return;
	place->state = HOTPLUG_DRAINING;
	atomic_store(&place->at_rest, false);
	virtio_hold(virtio_of(place), &place->rests);
}

/* On its way in, from the back to the front. */

/* Its queues are on their loops, or one of them could not be. */
static void attached(struct hotplug_place *place)
{
	struct hotplug *hotplug = place->hotplug;
	struct board *board = hotplug->board;
	int r = calls_result(place);

	if (r < 0)
		error_set(&place->failure, r, "cannot open %s on its I/O thread: %s",
			  name_of(place), strerror(-r));
	else
		r = pci_plug_hot(&board->pci, function_of(place), slot_of(place), &place->failure);
	if (r < 0) {
		detach(place);
		return;
	}
	place->state = HOTPLUG_PRESENT;
	board_add(board, &function_of(place)->device);
	pci_hotplug_added(&board->pci_hotplug, slot_of(place));
	remind_from_now(hotplug);
	log_info("%s: added in PCI slot %u", name_of(place), slot_of(place));
	tell(hotplug, "disk-added", name_of(place));
	wake(place, &ERROR_NULL);
}

/* Its image is there, or could not be opened. */
static void opened(struct hotplug_place *place)
{
	struct hotplug *hotplug = place->hotplug;
	struct board *board = hotplug->board;
	struct loop *loops[HOTPLUG_LOOPS_MAX];
	int r = place->failure.code;

	free(take_ptr(place->fds));
	for (uint32_t i = 0; i < n_loops(board); i++)
		loops[i] = loop_at(hotplug, i);
	if (r == 0) {
		virtio_of(place)->late = true;
		r = disk_plug(disk_of(place), place->description, &board->pci, slot_of(place),
			      &board->memory, loops, n_loops(board), &place->failure);
	}
	if (r < 0) {
		detached(place);
		return;
	}
	place->state = HOTPLUG_ATTACHING;
	call_loops(place, on_attach);
}

static void late(struct hotplug_place *place)
{
	struct error err = ERROR_NULL;

	if (place->state == HOTPLUG_PRESENT && !place->leaving)
		error_set(&err, -ETIMEDOUT,
			  "the guest has not let go of %s in time; it was asked to, and still "
			  "may: the event \"disk-removed\" tells. A reset of the guest takes the "
			  "disk away, too",
			  name_of(place));
	else
		error_set(&err, -ETIMEDOUT,
			  "the guest has let go of %s, but its store has not done the last "
			  "requests in time; the event \"disk-removed\" tells when it has",
			  name_of(place));
	wake(place, &err);
}

static void place_look(struct hotplug_place *place, bool ejected, uint64_t now)
{
	if (place->state == HOTPLUG_PRESENT && (ejected || place->leaving))
		drain(place);
	if (place->deadline && now >= place->deadline)
		late(place);
	if (place->state == HOTPLUG_OPENING && atomic_load(&place->job_done))
		opened(place);
	if (place->state == HOTPLUG_ATTACHING && atomic_load(&place->n_calls) == 0)
		attached(place);
	if (place->state == HOTPLUG_DRAINING && atomic_load(&place->at_rest))
		drained(place);
	if (place->state == HOTPLUG_DETACHING && atomic_load(&place->n_calls) == 0)
		detached(place);
	if (place->state == HOTPLUG_CLOSING && atomic_load(&place->job_done))
		closed(place);
}

static void remind(struct hotplug *hotplug, uint64_t now)
{
	if (!hotplug->remind_at || now < hotplug->remind_at)
		return;
	hotplug->remind_at = 0;
	if (pci_hotplug_remind(&hotplug->board->pci_hotplug) && now < hotplug->remind_until)
		hotplug->remind_at = now + REMIND_EVERY;
}

static void timer_set(struct hotplug *hotplug)
{
	uint64_t next = hotplug->remind_at ? hotplug->remind_at : UINT64_MAX;

	for (uint32_t i = 0; i < VM_DISKS_MAX; i++)
		if (hotplug->places[i].deadline)
			next = MIN(next, hotplug->places[i].deadline);
	loop_timer(&hotplug->source, next);
}

/* Whatever happened: each place goes on as far as it can. */
static void on_event(struct loop_source *source, const struct loop_event *event)
{
	struct hotplug *hotplug = container_of(source, struct hotplug, source);
	uint32_t ejected = atomic_exchange(&hotplug->ejected, 0);

	for (uint32_t i = 0; i < VM_DISKS_MAX; i++) {
		struct hotplug_place *place = &hotplug->places[i];

		place_look(place, ejected & UINT32_C(1) << slot_of(place), event->now);
	}
	remind(hotplug, event->now);
	timer_set(hotplug);
}

/* A vCPU's thread, pci-hotplug's lock held. Nothing is left to be reached when this returns. */
static void on_eject(struct pci_hotplug_owner *owner, uint32_t slot)
{
	struct hotplug *hotplug = container_of(owner, struct hotplug, owner);

	if (slot < BOARD_SLOT_DISK || slot >= BOARD_SLOT_DISK + VM_DISKS_MAX) {
		log_limited(&hotplug->complaints, LOG_LEVEL_WARNING,
			    "the guest ejects what is in PCI slot %u, which stays, ignoring", slot);
		return;
	}
	if (!pci_hide(&hotplug->board->pci, slot))
		return;
	/* One message is enough, however many slots. */
	if (!atomic_fetch_or(&hotplug->ejected, UINT32_C(1) << slot))
		hotplug_look(hotplug);
}

static struct hotplug_place *place_free(struct hotplug *hotplug)
{
	for (uint32_t i = 0; i < VM_DISKS_MAX; i++)
		if (hotplug->places[i].state == HOTPLUG_EMPTY)
			return &hotplug->places[i];
	return NULL;
}

/* The descriptors, by the names that a start would give them. */
static int fds_take(struct hotplug_place *place, int *fds, uint32_t n_fds, struct error *err)
{
	uint32_t wanted = 1 + place->description->n_chain;

	if (n_fds != wanted)
		return error_set(err, -EBADF,
				 "cannot add the disk: %u descriptors came with the request, it "
				 "takes %u: the image, then those under it",
				 n_fds, wanted);
	place->fds = calloc(1, sizeof(*place->fds));
	if (!place->fds)
		return error_set(err, -ENOMEM, "cannot add the disk: out of memory");
	place->fds->n_fds = n_fds;
	for (uint32_t i = 0; i < n_fds; i++) {
		char *name = place->fds->fds[i].name;

		if (i == 0)
			snprintf(name, NAMED_FDS_LENGTH, VM_FD_DISK "%u", place->number);
		else
			snprintf(name, NAMED_FDS_LENGTH, VM_FD_DISK "%u" VM_FD_BACKING "%u",
				 place->number, i - 1);
		place->fds->fds[i].fd = take_fd(fds[i]);
	}
	return 0;
}

/* Without io_uring an image takes threads, and a sealed VMM makes none. */
static int loops_check(const struct hotplug *hotplug, struct error *err)
{
	for (uint32_t i = 0; i < n_loops(hotplug->board); i++)
		if (!loop_has_uring(loop_at(hotplug, i)))
			return error_set(err, -EOPNOTSUPP,
					 "cannot add a disk while the VM runs: this host forbids "
					 "io_uring; give the VM the disk at its start");
	return 0;
}

int hotplug_add(struct hotplug *hotplug, struct vm_disk *description, int *fds, uint32_t n_fds,
		struct hotplug_waiter *waiter, uint32_t *ret_number, struct error *err)
{
	struct hotplug_place *place = place_free(hotplug);
	int r = loops_check(hotplug, err);

	if (r == 0 && !place)
		r = error_set(err, -ENOSPC, "cannot add the disk: the VM has %d, no more than that",
			      VM_DISKS_MAX);
	if (r < 0)
		return r;
	place->description = malloc(sizeof(*place->description));
	if (!place->description)
		return error_set(err, -ENOMEM, "cannot add the disk: out of memory");
	*place->description = *description;
	*description = (struct vm_disk){0};
	r = vm_disk_check(place->description, place->number, err);
	if (r == 0)
		r = fds_take(place, fds, n_fds, err);
	if (r < 0) {
		description_free(place);
		return r;
	}
	place->state = HOTPLUG_OPENING;
	place->waiter = waiter;
	*ret_number = place->number;
	call_worker(place, on_open);
	return 0;
}

static struct hotplug_place *place_named(struct hotplug *hotplug, const char *disk)
{
	for (uint32_t i = 0; i < VM_DISKS_MAX; i++)
		if (board_has_disk(hotplug->board, i) &&
		    strcmp(name_of(&hotplug->places[i]), disk) == 0)
			return &hotplug->places[i];
	return NULL;
}

int hotplug_remove(struct hotplug *hotplug, const char *disk, uint64_t timeout,
		   struct hotplug_waiter *waiter, struct error *err)
{
	struct hotplug_place *place = place_named(hotplug, disk);

	if (!place)
		return error_set(err, -ENODEV, "cannot find the disk \"%s\"", disk);
	if (place->waiter)
		return error_set(err, -EBUSY, "cannot remove %s: another client waits for it",
				 disk);
	/* One that is on its way out is only waited for. */
	if (place->state == HOTPLUG_PRESENT && !place->leaving) {
		place->asked = true;
		pci_hotplug_ask(&hotplug->board->pci_hotplug, slot_of(place));
		remind_from_now(hotplug);
	}
	place->waiter = waiter;
	place->deadline = waiter ? clock_ns() + timeout : 0;
	timer_set(hotplug);
	return 0;
}

/* As a PC does it: what waits for the guest does not wait for one that starts anew. */
void hotplug_reset(struct hotplug *hotplug)
{
	for (uint32_t i = 0; i < VM_DISKS_MAX; i++) {
		struct hotplug_place *place = &hotplug->places[i];

		if (place->state != HOTPLUG_PRESENT || !place->asked)
			continue;
		(void)pci_hide(&hotplug->board->pci, slot_of(place));
		drain(place);
	}
}

static void on_changed(struct disk_change *change)
{
	hotplug_look(&container_of(change, struct board, change)->hotplug);
}

int hotplug_init(struct hotplug *hotplug, struct board *board, struct loop *loop, struct error *err)
{
	int r;

	*hotplug = (struct hotplug){.board = board, .loop = loop};
	for (uint32_t i = 0; i < VM_DISKS_MAX; i++)
		hotplug->places[i] = (struct hotplug_place){
			.hotplug = hotplug,
			.number = i,
			.state = board_has_disk(board, i) ? HOTPLUG_PRESENT : HOTPLUG_EMPTY,
			.rests.done = on_rest,
		};
	hotplug->source.on_event = on_event;
	r = loop_add(loop, &hotplug->source);
	if (r < 0)
		return error_set(err, r, "cannot set up hot-plug: %s", strerror(-r));
	hotplug->owner.eject = on_eject;
	board->pci_hotplug.owner = &hotplug->owner;
	board->change.ended = on_changed;
	return 0;
}

static void close_here(void *disk)
{
	disk_close(disk);
}

/* What is under way is undone; the worker does what it was sent before that. */
static void place_deinit(struct hotplug_place *place)
{
	struct disk *disk = disk_of(place);
	struct device *device = &function_of(place)->device;

	if (place->state == HOTPLUG_EMPTY || place->state == HOTPLUG_PRESENT ||
	    place->state == HOTPLUG_DRAINING) {
		description_free(place);
		return;
	}
	if (place->state == HOTPLUG_ATTACHING || place->state == HOTPLUG_DETACHING)
		device->ops->deinit(device);
	disk_worker_do(worker_of(place), close_here, disk);
	*disk = (struct disk){0};
	free(take_ptr(place->fds));
	description_free(place);
}

void hotplug_deinit(struct hotplug *hotplug)
{
	struct error err = ERROR_NULL;

	if (!hotplug->source.loop)
		return;
	error_set(&err, -ECANCELED, "the VM has ended");
	for (uint32_t i = 0; i < VM_DISKS_MAX; i++) {
		wake(&hotplug->places[i], &err);
		place_deinit(&hotplug->places[i]);
	}
	loop_remove(&hotplug->source);
}
