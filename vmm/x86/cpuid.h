/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a vCPU says of itself: the features KVM supports on this host, minus what the board does not
 * give (nested virtualisation, MONITOR/MWAIT, performance counters, invariant TSC), with the
 * board's own topology: one socket, as many cores as vCPUs, one thread each; APIC identifier n for
 * vCPU n.
 */
#pragma once

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define CPUID_ENTRIES_MAX 256

struct kvm;

struct cpuid_policy {
	uint32_t index; /* of the vCPU */
	uint32_t n_cpus;
	bool tsc_deadline;  /* KVM_CAP_TSC_DEADLINE_TIMER: older kernels do not say it in CPUID */
	bool invariant_tsc; /* tell it if the host has it; such a VM must not move */
};

/* `ret` has room for `max` entries; -E2BIG if they are too few. */
int cpuid_apply(const struct kvm_cpuid2 *supported, const struct cpuid_policy *policy,
		struct kvm_cpuid2 *ret, uint32_t max) __must_check;

/* Asks KVM, applies the above, tells the vCPU. */
int cpuid_setup(struct kvm *kvm, int vcpu_fd, uint32_t index, uint32_t n_vcpus,
		struct error *err) __must_check;
