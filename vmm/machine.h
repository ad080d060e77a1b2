/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machine put together: a board, its vCPUs, and the order in which they start, stop, rest and
 * start again. All of it on the main thread; vCPUs, loops and devices report by messages.
 *
 *   running ──stop──> vCPUs park ──> devices rest ──> whatever was wished: pause, reset, cycle, end
 *
 * A wish that arrives while the machine is on its way to rest is served when it gets there.
 */
#pragma once

#include "proto/control.h"
#include "proto/exit.h"
#include "vmm/board.h"
#include "vmm/vcpu.h"

struct machine;

/* Hears what happens, on the main thread. */
struct machine_observer {
	/* `event` is one of those in proto/control.h; `more` holds what else there is to say of it,
	 * borrowed, NULL: nothing. */
	void (*happened)(struct machine_observer *observer, const char *event, json_t *more);
	/* Every wish that was made has been served: the state stands. */
	void (*settled)(struct machine_observer *observer);
};

enum machine_wish {
	WISH_PAUSE = 1 << 0,
	WISH_RESET = 1 << 1,
	WISH_CYCLE = 1 << 2,
	WISH_END = 1 << 3,
};

#define MACHINE_RESETS_MAX     5              /* so many … */
#define MACHINE_RESETS_WINDOW  10000000000ull /* … within so many ns are a loop */
#define MACHINE_END_GRACE      5000000000ull  /* ns that devices have to come to rest at the end */
#define MACHINE_SHUTDOWN_GRACE 30000000000ull /* ns a guest has to power off after SIGTERM */

struct machine {
	struct board board;
	struct vcpu_group vcpus;
	struct loop *loop; /* borrowed: the main loop */
	struct loop_source source;
	struct vcpu_listener listener;
	struct machine_events events;
	struct device_waiter waiter;
	struct disk_watcher watcher;
	struct machine_observer *observer; /* borrowed, NULL: none */
	struct hotplug_observer disks;

	enum vm_state state;
	uint32_t wishes; /* enum machine_wish */
	bool stopping;   /* on the way to rest */
	bool at_rest;
	_Atomic uint32_t n_moving; /* devices that do not rest yet, plus one while they are asked */
	struct device *cycle;      /* weak: for WISH_CYCLE */
	struct error failure;      /* of the last cycle; the text of a fault that ends the VM */
	uint64_t started_ns, now;
	uint64_t resets[MACHINE_RESETS_MAX]; /* times of the last resets */
	bool terminating;                    /* SIGTERM came */
	bool ending; /* MACHINE_END_GRACE runs, once: asking again does not prolong it */
	bool forced; /* it ended without coming to rest: no orderly tear-down */
	/* A bit an enum machine_event: posted and not served; "crash-loaded" is heard once a life.
	 * So a guest that repeats itself cannot fill the main loop's list. */
	_Atomic uint32_t posted;

	pthread_mutex_t lock; /* the next two: a vCPU's last words */
	bool has_trouble;
	enum vcpu_trouble trouble;
	char trouble_text[200];

	struct exit_record record; /* filled in when it ends; reason EXIT_UNKNOWN until then */
	char record_text[sizeof(((struct error *)0)->text)];
};

struct machine_seals {
	int (*vcpu)(void);
	int (*io)(void);
	void (*worker)(void *);
	void (*disk)(void *);
};

/* Builds everything, threads parked and sealed. Takes what it needs out of `fds`. */
int machine_init(struct machine *machine, const struct vm_description *vm, struct named_fds *fds,
		 struct loop *loop, const struct machine_seals *seals,
		 struct error *err) __must_check;
void machine_deinit(struct machine *machine);

/* On the loop's owner, after loop_enable. */
int machine_start(struct machine *machine, struct error *err) __must_check;

/* Wishes. `settled` follows, maybe before this returns. */
void machine_pause(struct machine *machine);
void machine_resume(struct machine *machine);
void machine_reset(struct machine *machine);
/* Saves the device, brings it to power-on, loads it again. The outcome is in `failure`. */
void machine_cycle(struct machine *machine, struct device *device);
void machine_quit(struct machine *machine, const char *why);
/* The VMM itself cannot go on; only the record is made. */
void machine_fault(struct machine *machine, const char *what, int code);
void machine_power_button(struct machine *machine);
/* SIGTERM: the power button, and the end after MACHINE_SHUTDOWN_GRACE; the second time at once. */
void machine_terminate(struct machine *machine);

/* Tells the observer of what the machine did not bring about itself; takes over `more`. */
void machine_tell(struct machine *machine, const char *event, json_t *more);
bool machine_settled(const struct machine *machine);
uint64_t machine_up_ms(const struct machine *machine);
