/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vCPUs: one thread each, in the guest or parked. Exits come in and become bus accesses; what ends
 * a guest is handed to the group's owner as an event. Everything but the running itself is asked by
 * the main thread while all are parked.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "base/loop.h"
#include "devices/bus.h"
#include "vmm/kvm.h"
#include "vmm/x86/state.h"

/* Why vCPUs came out to user space, for "counters". */
enum vcpu_exit {
	VCPU_EXIT_IO,
	VCPU_EXIT_MMIO,
	VCPU_EXIT_HALT,
	VCPU_EXIT_SHUTDOWN,
	VCPU_EXIT_INTERRUPTED, /* a kick of ours */
	VCPU_EXIT_ERROR,
	VCPU_EXIT_OTHER,
	VCPU_EXITS,
};
extern const char *const vcpu_exit_names[VCPU_EXITS];

enum vcpu_trouble {
	VCPU_TRIPLE_FAULT, /* what a PC takes for a reset */
	VCPU_EMULATION,    /* KVM cannot run the guest's instruction */
	VCPU_REFUSED,      /* KVM_RUN itself failed */
};

struct vcpu_group;

struct vcpu {
	struct vcpu_group *group; /* weak */
	uint32_t index;
	int fd;              /* owned */
	struct kvm_run *run; /* owned mapping */
	pthread_t thread;
	bool has_thread;
	struct vcpu_state initial;  /* at power-on; main thread */
	uint64_t exits[VCPU_EXITS]; /* written by its thread alone */
};

enum vcpu_wish { VCPU_WISH_PARK, VCPU_WISH_RUN, VCPU_WISH_END };

/* Whoever hears of the group. Called on vCPU threads, except `parked`, on whichever thread was last
 * to park. */
struct vcpu_listener {
	void (*parked)(struct vcpu_listener *listener);
	/* The group will park by itself. `text` is for a person, borrowed for the call. */
	void (*trouble)(struct vcpu_listener *listener, enum vcpu_trouble trouble,
			const char *text);
};

struct vcpu_group {
	struct kvm *kvm;                /* borrowed */
	const struct bus *io, *mmio;    /* borrowed */
	struct vcpu_listener *listener; /* borrowed */
	uint32_t n_vcpus;
	struct vcpu *vcpus; /* owned */

	/* Posted port writes, of all vCPUs in their order; NULL: KVM has no such ring. Shared with
	 * the kernel; emptied under its lock, which comes before devices'. */
	struct kvm_coalesced_mmio_ring *posted; /* borrowed: in vCPU 0's mapping */
	pthread_mutex_t posted_lock;

	pthread_mutex_t lock; /* the next three */
	pthread_cond_t changed;
	enum vcpu_wish wish;
	uint32_t n_parked;
	_Atomic bool stop; /* seen by each vCPU after every exit */
};

/* Creates the vCPUs in the kernel, with the CPUID of the board. After kvm_set_memory and
 * ioeventfds. */
int vcpu_group_init(struct vcpu_group *group, struct kvm *kvm, uint32_t n_vcpus,
		    const struct bus *io, const struct bus *mmio, struct vcpu_listener *listener,
		    struct error *err) __must_check;
/* Creates the threads, parked. Each first calls `seal`. */
int vcpu_group_threads(struct vcpu_group *group, int (*seal)(void), struct error *err) __must_check;
/* Ends and joins the threads. */
void vcpu_group_deinit(struct vcpu_group *group);

/* All of these on the main thread. */
void vcpu_group_run(struct vcpu_group *group);
/* Asks all to park; `parked` is called when they have, at once if they are. */
void vcpu_group_park(struct vcpu_group *group);
/* Power-on state; parked. The first enters by `entry`, the others wait for their start-up message.
 */
/* The same at the first start, when the vCPUs are as KVM made them. */
int vcpu_group_enter(struct vcpu_group *group, const struct boot_entry *entry,
		     struct error *err) __must_check;
int vcpu_group_reset(struct vcpu_group *group, const struct boot_entry *entry,
		     struct error *err) __must_check;

/* On a vCPU thread, inside a register access: nobody enters the guest any more. The main thread
 * follows with a park. */
static inline void vcpu_group_halt(struct vcpu_group *group)
{
	atomic_store(&group->stop, true);
}
