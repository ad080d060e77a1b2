/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state of one x86 vCPU as KVM holds it: set up once for the board, read, written back for a
 * reset. The vCPU is parked or has no thread yet. What a host's KVM does not have (XSAVE, debug
 * registers, single MSRs) is left out by its own answer, never assumed.
 */
#pragma once

#include <linux/kvm.h>

#include "vmm/kvm.h"
#include "vmm/x86/entry.h"

#define VCPU_MSRS_MAX 512

struct vcpu_state {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_fpu fpu;
	struct kvm_xcrs xcrs;
	struct kvm_mp_state mp_state;
	struct kvm_vcpu_events events;
	struct kvm_debugregs debugregs;
	struct kvm_lapic_state lapic;
	struct kvm_msrs *msrs; /* owned */
	/* Owned: struct kvm_xsave, longer where the host has more state; NULL: fpu is all. */
	void *xsave;
	bool has_xcrs, has_debugregs;
};

/* CPUID and the MSRs firmware would have set. */
int vcpu_state_setup(struct kvm *kvm, int vcpu_fd, uint32_t index, uint32_t n_vcpus,
		     struct error *err) __must_check;
int vcpu_state_get(const struct kvm *kvm, int vcpu_fd, struct vcpu_state *state,
		   struct error *err) __must_check;
int vcpu_state_set(int vcpu_fd, const struct vcpu_state *state, struct error *err) __must_check;
void vcpu_state_deinit(struct vcpu_state *state);

/* Registers for the first instruction of a loaded kernel. */
int vcpu_state_enter(int vcpu_fd, const struct boot_entry *entry, struct error *err) __must_check;
