/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Wishes and messages in, orders to vCPUs and devices out. Main thread.
 */
#include "vmm/machine.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/log.h"

enum message {
	M_PARKED,
	M_RESTED,
	M_TROUBLE,
	M_EVENT,      /* + enum machine_event */
	M_DISK = 256, /* + DISK_EVENTS * number + enum disk_event */
};

#define STATE_SIZE_MAX (256u << 10) /* bytes of one device's state */

void machine_tell(struct machine *machine, const char *event, json_t *more)
{
	if (machine->observer)
		machine->observer->happened(machine->observer, event, more);
	json_decref(more);
}

static void happened(struct machine *machine, const char *event)
{
	machine_tell(machine, event, NULL);
}

bool machine_settled(const struct machine *machine)
{
	return !machine->stopping && machine->wishes == 0;
}

uint64_t machine_up_ms(const struct machine *machine)
{
	struct timespec now;

	if (!machine->started_ns)
		return 0;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (now.tv_sec * 1000000000ull + now.tv_nsec - machine->started_ns) / 1000000;
}

/* The end: the first reason stands. */
static void end(struct machine *machine, enum exit_reason reason, const char *text)
{
	if (machine->record.reason != EXIT_UNKNOWN)
		return;
	machine->record.reason = reason;
	machine->record.status = exit_status(reason);
	machine->record.ended_unix = time(NULL);
	machine->record.ran_ms = machine_up_ms(machine);
	snprintf(machine->record_text, sizeof(machine->record_text), "%s", text);
	machine->wishes |= WISH_END;
}

/* Sets out for rest, or goes on with what is already at rest. */
static void at_rest(struct machine *machine);
static void stop(struct machine *machine)
{
	if (machine->state == VM_ENDED)
		return;
	/* Storage that never answers must not keep a VM from ending. */
	if (machine->wishes & WISH_END && !machine->ending) {
		machine->ending = true;
		loop_timer(&machine->source, loop_now(machine->loop) + MACHINE_END_GRACE);
	}
	if (machine->stopping)
		return;
	if (machine->at_rest) {
		at_rest(machine);
		return;
	}
	machine->stopping = true;
	machine->state = machine->wishes & WISH_RESET ? VM_RESETTING : VM_PAUSING;
	vcpu_group_park(&machine->vcpus);
}

/* What failed before is tried again now, and told again if it fails. */
static void troubles_forget(struct board *board)
{
	for (uint32_t i = 0; i < VM_DISKS_MAX; i++)
		if (board_has_disk(board, i))
			blk_trouble_forget(&board->disks[i].blk);
}

static void run(struct machine *machine)
{
	troubles_forget(&machine->board);
	for (uint32_t i = 0; i < machine->board.n_devices; i++) {
		struct device *device = machine->board.devices[i];

		if (device->ops->resume)
			device->ops->resume(device);
	}
	machine->at_rest = false;
	machine->state = VM_RUNNING;
	vcpu_group_run(&machine->vcpus);
}

/* All that rests goes back to power-on, and the kernel is loaded anew. */
static int power_on(struct machine *machine, struct error *err)
{
	struct boot_entry entry;
	int r;

	for (uint32_t i = 0; i < machine->board.n_devices; i++) {
		struct device *device = machine->board.devices[i];

		if (device->ops->reset)
			device->ops->reset(device);
	}
	atomic_store(&machine->posted, 0);
	r = kvm_reset(&machine->board.kvm, err);
	if (r < 0)
		return r;
	r = board_load(&machine->board, &entry, err);
	return r < 0 ? r : vcpu_group_reset(&machine->vcpus, &entry, err);
}

/* True when the guest has reset too often within too short a time. */
static bool reset_loop(struct machine *machine)
{
	uint32_t n = machine->record.resets++;
	uint64_t oldest = machine->resets[n % MACHINE_RESETS_MAX];

	machine->resets[n % MACHINE_RESETS_MAX] = machine->now;
	return n >= MACHINE_RESETS_MAX && machine->now - oldest < MACHINE_RESETS_WINDOW;
}

static void rest_reset(struct machine *machine)
{
	struct error err = ERROR_NULL;

	/* The power button it was sent is forgotten by the reset. */
	if (machine->terminating) {
		end(machine, EXIT_QUIT,
		    "told to end by SIGTERM; the guest reset instead of powering off");
		return;
	}
	hotplug_reset(&machine->board.hotplug);
	if (power_on(machine, &err) < 0) {
		end(machine, EXIT_VMM_FAULT, err.text);
		return;
	}
	chardev_panic_forget(&machine->board.chardev);
	happened(machine, "reset");
}

/* It may have been removed on the way here. */
static bool has_device(const struct board *board, const struct device *device)
{
	for (uint32_t i = 0; i < board->n_devices; i++)
		if (board->devices[i] == device)
			return true;
	return false;
}

static int cycle(const struct board *board, struct device *device, struct error *err)
{
	_cleanup_(freep) uint8_t *bytes = malloc(STATE_SIZE_MAX);
	struct cursor out, in;
	int r;

	if (!has_device(board, device))
		return error_set(err, -ENODEV, "the device has been removed meanwhile");
	if (!bytes)
		return error_set(err, -ENOMEM, "cannot save device \"%s\": out of memory",
				 device->name);
	out = cursor_writer(bytes, STATE_SIZE_MAX);
	r = device_save(device, &out);
	if (r < 0)
		return error_set(err, r, "cannot save device \"%s\": %s", device->name,
				 strerror(-r));
	if (device->ops->reset)
		device->ops->reset(device);
	in = cursor_reader(bytes, out.at);
	return device_load(device, &in, err);
}

/* vCPUs are parked and devices rest: serve the wishes, the strongest first. */
static void at_rest(struct machine *machine)
{
	machine->stopping = false;
	machine->at_rest = true;
	if (machine->wishes & WISH_CYCLE) {
		machine->wishes &= ~WISH_CYCLE;
		machine->failure = ERROR_NULL;
		(void)cycle(&machine->board, machine->cycle, &machine->failure);
	}
	if (machine->wishes & WISH_RESET && !(machine->wishes & WISH_END)) {
		machine->wishes &= ~WISH_RESET;
		rest_reset(machine);
	}
	if (machine->wishes & WISH_END) {
		machine->wishes = 0;
		machine->state = VM_ENDED;
		happened(machine, "ended");
		loop_stop(machine->loop);
	} else if (machine->wishes & WISH_PAUSE) {
		machine->wishes &= ~WISH_PAUSE;
		machine->state = VM_PAUSED;
		happened(machine, "paused");
	} else {
		run(machine);
		happened(machine, "running");
	}
	if (machine->observer)
		machine->observer->settled(machine->observer);
}

static void device_done(struct device_waiter *waiter, struct device *device)
{
	struct machine *machine = container_of(waiter, struct machine, waiter);

	(void)device;
	if (atomic_fetch_sub(&machine->n_moving, 1) == 1)
		loop_post(&machine->source, M_RESTED);
}

/* vCPUs are parked: now the devices. */
static void parked(struct machine *machine)
{
	if (!machine->stopping)
		return; /* threads that parked when they were made */
	atomic_store(&machine->n_moving, 1);
	for (uint32_t i = 0; i < machine->board.n_devices; i++) {
		struct device *device = machine->board.devices[i];

		if (!device->ops->pause)
			continue;
		atomic_fetch_add(&machine->n_moving, 1);
		device->ops->pause(device, &machine->waiter);
	}
	device_done(&machine->waiter, NULL);
}

static void guest_reset(struct machine *machine, const char *why)
{
	char panic[CHARDEV_PANIC], text[CHARDEV_PANIC + 60];

	/* Kernels without pvpanic say it on the console and then reset. */
	serial_flush(&machine->board.serial);
	if (chardev_panic_text(&machine->board.chardev, panic)) {
		snprintf(text, sizeof(text), "the guest kernel panicked: %s", panic);
		end(machine, EXIT_PANIC, text);
	} else if (machine->board.vm->on_reset == VM_RESET_EXIT) {
		end(machine, why ? EXIT_GUEST_FAULT : EXIT_RESET, why ? why : "the guest reset");
	} else if (reset_loop(machine)) {
		snprintf(text, sizeof(text), "the guest reset %u times within %llu seconds%s%s",
			 MACHINE_RESETS_MAX + 1, MACHINE_RESETS_WINDOW / 1000000000ull,
			 why ? ", last by " : "", why ? why : "");
		end(machine, why ? EXIT_GUEST_FAULT : EXIT_RESET_LOOP, text);
	} else {
		machine->wishes |= WISH_RESET;
	}
	stop(machine);
}

static void guest_panicked(struct machine *machine)
{
	char panic[CHARDEV_PANIC], text[CHARDEV_PANIC + 60];
	bool has_words;

	serial_flush(&machine->board.serial);
	has_words = chardev_panic_text(&machine->board.chardev, panic);

	snprintf(text, sizeof(text), "the guest kernel panicked%s%s", has_words ? ": " : "",
		 has_words ? panic : "");
	end(machine, EXIT_PANIC, text);
	stop(machine);
}

static void guest_trouble(struct machine *machine)
{
	enum vcpu_trouble trouble;
	char text[200];

	pthread_mutex_lock(&machine->lock);
	trouble = machine->trouble;
	memcpy(text, machine->trouble_text, sizeof(text));
	machine->has_trouble = false;
	pthread_mutex_unlock(&machine->lock);
	if (machine->wishes & (WISH_RESET | WISH_END))
		return;
	if (trouble == VCPU_TRIPLE_FAULT) {
		guest_reset(machine, text);
		return;
	}
	end(machine, EXIT_GUEST_FAULT, text);
	stop(machine);
}

/* What the description says of a guest that no longer feeds its watchdog. */
static void watchdog_expired(struct machine *machine)
{
	happened(machine, "watchdog");
	switch ((enum vm_watchdog)machine->board.vm->watchdog) {
	case VM_WATCHDOG_RESET:
		guest_reset(machine, "the guest no longer fed its watchdog");
		break;
	case VM_WATCHDOG_POWER_OFF:
		end(machine, EXIT_WATCHDOG, "the guest no longer fed its watchdog");
		stop(machine);
		break;
	case VM_WATCHDOG_PAUSE:
		machine_pause(machine);
		break;
	case VM_WATCHDOG_NONE:
	case VM_WATCHDOG_REPORT:
		break;
	}
}

static void guest_event(struct machine *machine, enum machine_event event)
{
	if (event == MACHINE_CRASH_LOADED) {
		happened(machine, "crash-loaded");
		return;
	}
	atomic_fetch_and(&machine->posted, ~(1u << event));
	/* Of what several vCPUs say at once the first word stands. */
	if (machine->wishes & (WISH_RESET | WISH_END))
		return;
	switch (event) {
	case MACHINE_POWER_OFF:
		end(machine, EXIT_POWER_OFF, "the guest powered off");
		stop(machine);
		break;
	case MACHINE_RESET:
		guest_reset(machine, NULL);
		break;
	case MACHINE_PANIC:
		guest_panicked(machine);
		break;
	case MACHINE_WATCHDOG:
		watchdog_expired(machine);
		break;
	case MACHINE_CRASH_LOADED:
		break;
	}
}

/* A request waits for its store to be mended; the guest does not wait with it. */
static void disk_failed(struct machine *machine, struct disk *disk)
{
	struct blk_trouble trouble = blk_trouble(&disk->blk);

	if (!trouble.code) /* it has been forgotten: the VM ran again meanwhile */
		return;
	log_warning("%s \"%s\": a %s failed: %s; the VM pauses, and tries again once it is resumed",
		    disk->name, disk->path, blk_operation_names[trouble.operation],
		    strerror(-trouble.code));
	machine_tell(machine, "disk-error",
		     json_pack("{s:s, s:s, s:s, s:s}", "disk", disk->name, "operation",
			       blk_operation_names[trouble.operation], "error",
			       strerrorname_np(-trouble.code), "text", strerror(-trouble.code)));
	machine_pause(machine);
}

static void disk_event(struct machine *machine, uint32_t number, enum disk_event event)
{
	struct disk *disk = &machine->board.disks[number];

	if (!board_has_disk(&machine->board, number)) /* it has been removed */
		return;
	if (event == DISK_FAILED)
		disk_failed(machine, disk);
	else
		machine_tell(machine, "disk-full-soon",
			     json_pack("{s:s, s:I}", "disk", disk->name, "free",
				       (json_int_t)atomic_load(&disk->free)));
}

/* SIGTERM's grace is over, or that of the devices at the end. */
static void deadline(struct machine *machine)
{
	if (!(machine->wishes & WISH_END)) {
		machine_quit(machine, "the guest did not power off within 30 seconds of SIGTERM");
		return;
	}
	log_warning("devices have not come to rest within 5 seconds, ending without them");
	machine->forced = true;
	machine->state = VM_ENDED;
	loop_stop(machine->loop);
}

static void machine_message(struct loop_source *source, const struct loop_event *event)
{
	struct machine *machine = container_of(source, struct machine, source);

	machine->now = event->now;
	if (event->kind == LOOP_TIMER)
		deadline(machine);
	else if (event->arg == M_PARKED)
		parked(machine);
	else if (event->arg == M_RESTED)
		at_rest(machine);
	else if (event->arg == M_TROUBLE)
		guest_trouble(machine);
	else if (event->arg >= M_DISK)
		disk_event(machine, (event->arg - M_DISK) / DISK_EVENTS,
			   (event->arg - M_DISK) % DISK_EVENTS);
	else
		guest_event(machine, event->arg - M_EVENT);
}

static void on_disk(struct hotplug_observer *observer, const char *event, const char *disk)
{
	machine_tell(container_of(observer, struct machine, disks), event,
		     json_pack("{s:s}", "disk", disk));
}

/* Loops of queues, and workers. */
static void on_disk_event(struct disk_watcher *watcher, struct disk *disk, enum disk_event event)
{
	struct machine *machine = container_of(watcher, struct machine, watcher);

	loop_post(&machine->source, M_DISK + DISK_EVENTS * disk->number + event);
}

/* From here to the next line: vCPU threads. */

static void on_parked(struct vcpu_listener *listener)
{
	struct machine *machine = container_of(listener, struct machine, listener);

	loop_post(&machine->source, M_PARKED);
}

static void on_trouble(struct vcpu_listener *listener, enum vcpu_trouble trouble, const char *text)
{
	struct machine *machine = container_of(listener, struct machine, listener);
	bool first;

	pthread_mutex_lock(&machine->lock);
	first = !machine->has_trouble;
	if (first) {
		machine->has_trouble = true;
		machine->trouble = trouble;
		snprintf(machine->trouble_text, sizeof(machine->trouble_text), "%s", text);
	}
	pthread_mutex_unlock(&machine->lock);
	if (first)
		loop_post(&machine->source, M_TROUBLE);
}

static void on_event(struct machine_events *events, enum machine_event event)
{
	struct machine *machine = container_of(events, struct machine, events);

	/* After the others the guest is not to run on as it was. */
	if (event != MACHINE_CRASH_LOADED && event != MACHINE_WATCHDOG)
		vcpu_group_halt(&machine->vcpus);
	if (!(atomic_fetch_or(&machine->posted, 1u << event) & 1u << event))
		loop_post(&machine->source, M_EVENT + event);
}

/* The main thread again. */

void machine_pause(struct machine *machine)
{
	if (machine->state == VM_PAUSED)
		return;
	machine->wishes |= WISH_PAUSE;
	stop(machine);
}

void machine_resume(struct machine *machine)
{
	machine->wishes &= ~WISH_PAUSE;
	if (machine->state == VM_PAUSED) {
		run(machine);
		happened(machine, "running");
	}
}

void machine_reset(struct machine *machine)
{
	machine->wishes |= WISH_RESET;
	if (machine->state == VM_PAUSED)
		machine->wishes |= WISH_PAUSE;
	stop(machine);
}

void machine_cycle(struct machine *machine, struct device *device)
{
	machine->cycle = device;
	machine->wishes |= WISH_CYCLE;
	if (machine->state == VM_PAUSED)
		machine->wishes |= WISH_PAUSE;
	stop(machine);
}

void machine_quit(struct machine *machine, const char *why)
{
	end(machine, EXIT_QUIT, why);
	stop(machine);
}

void machine_fault(struct machine *machine, const char *what, int code)
{
	char text[200];

	snprintf(text, sizeof(text), "%s: %s", what, strerror(-code));
	end(machine, EXIT_VMM_FAULT, text);
	machine->forced = true;
}

void machine_power_button(struct machine *machine)
{
	ged_raise(&machine->board.ged, GED_POWER_BUTTON);
	happened(machine, "power-button");
}

void machine_terminate(struct machine *machine)
{
	if (machine->terminating || machine->state == VM_PAUSED) {
		machine_quit(machine, "told to end by SIGTERM");
		return;
	}
	if (machine->ending)
		return; /* its deadline is nearer than the one below */
	machine->terminating = true;
	machine_power_button(machine);
	loop_timer(&machine->source, loop_now(machine->loop) + MACHINE_SHUTDOWN_GRACE);
}

int machine_start(struct machine *machine, struct error *err)
{
	struct boot_entry entry;
	struct timespec now;
	int r = board_load(&machine->board, &entry, err);

	if (r < 0)
		return r;
	r = vcpu_group_enter(&machine->vcpus, &entry, err);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < machine->board.n_io_threads; i++)
		io_thread_run(&machine->board.io_threads[i]);
	clock_gettime(CLOCK_MONOTONIC, &now);
	machine->started_ns = now.tv_sec * 1000000000ull + now.tv_nsec;
	run(machine);
	return 0;
}

int machine_init(struct machine *machine, const struct vm_description *vm, struct named_fds *fds,
		 struct loop *loop, const struct machine_seals *seals, struct error *err)
{
	struct board *board = &machine->board;
	const struct board_options options = {loop, &machine->events, &machine->watcher,
					      seals->worker, seals->disk};
	int r;

	machine->loop = loop;
	machine->state = VM_STARTING;
	machine->source.on_event = machine_message;
	machine->listener = (struct vcpu_listener){on_parked, on_trouble};
	machine->events.event = on_event;
	machine->waiter.done = device_done;
	machine->watcher.event = on_disk_event;
	machine->record.name = vm->name;
	machine->record.text = machine->record_text;
	board_null(board);
	pthread_mutex_init(&machine->lock, NULL);
	r = loop_add(loop, &machine->source);
	if (r < 0)
		return error_set(err, r, "cannot start: %s", strerror(-r));
	r = board_init(board, vm, fds, &options, err);
	if (r < 0)
		return r;
	machine->disks.happened = on_disk;
	board->hotplug.observer = &machine->disks;
	r = vcpu_group_init(&machine->vcpus, &board->kvm, vm->cpus, &board->io, &board->mmio,
			    &machine->listener, err);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < board->n_io_threads; i++) {
		r = io_thread_create(&board->io_threads[i], seals->io, err);
		if (r < 0)
			return r;
	}
	return vcpu_group_threads(&machine->vcpus, seals->vcpu, err);
}

void machine_deinit(struct machine *machine)
{
	if (machine->vcpus.vcpus)
		vcpu_group_deinit(&machine->vcpus);
	board_deinit(&machine->board);
	if (machine->source.loop)
		loop_remove(&machine->source);
}
