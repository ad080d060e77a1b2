/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Registers of a vCPU in and out of the kernel, piece by piece. Main thread, the vCPU parked.
 */
#include "vmm/x86/state.h"

#include <errno.h>
#include <string.h>

#include "vmm/x86/cpuid.h"

#define MSR_TSC           0x10u
#define MSR_TSC_ADJUST    0x3bu
#define MSR_MISC_ENABLE   0x1a0u
#define MSR_MTRR_DEF_TYPE 0x2ffu
#define MSR_MTRR_MASK0    0x201u
#define MTRR_RANGES       8
#define MTRR_ENABLE       (1u << 11)
#define MTRR_WRITE_BACK   6u
#define MISC_FAST_STRING  1u

static int failed(struct error *err, int code, const char *what)
{
	return error_set(err, code, "cannot set up a vCPU: KVM refused its %s: %s", what,
			 strerror(-code));
}

/* The kernel's struct ends in an array of any length; this is one with room for `n` entries. */
#define MSRS_WITH_ROOM(n)                                                                   \
	union {                                                                             \
		struct kvm_msrs head;                                                       \
		uint8_t room[sizeof(struct kvm_msrs) + (n) * sizeof(struct kvm_msr_entry)]; \
	}

static int set_msr(int fd, uint32_t index, uint64_t value)
{
	MSRS_WITH_ROOM(1) msrs = {.head = {.nmsrs = 1}};

	msrs.head.entries[0] = (struct kvm_msr_entry){.index = index, .data = value};
	return kvm_request(fd, KVM_SET_MSRS, &msrs);
}

/* What a PC's firmware leaves behind; a KVM without these registers does without. */
static void firmware_msrs(int vcpu_fd)
{
	(void)set_msr(vcpu_fd, MSR_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK);
	for (uint32_t i = 0; i < MTRR_RANGES; i++)
		(void)set_msr(vcpu_fd, MSR_MTRR_MASK0 + 2 * i, 0);
	(void)set_msr(vcpu_fd, MSR_MISC_ENABLE, MISC_FAST_STRING);
}

int vcpu_state_setup(struct kvm *kvm, int vcpu_fd, uint32_t index, uint32_t n_vcpus,
		     struct error *err)
{
	int r = cpuid_setup(kvm, vcpu_fd, index, n_vcpus, err);

	if (r < 0)
		return r;
	firmware_msrs(vcpu_fd);
	return 0;
}

/* Time goes on over a reset, so its registers are not part of the state. */
static bool is_time(uint32_t msr)
{
	return msr == MSR_TSC || msr == MSR_TSC_ADJUST;
}

/* Reads every MSR on KVM's list that this vCPU really has: a refused one is dropped and the rest go
 * on. */
static int msrs_get(const struct kvm *kvm, int vcpu_fd, struct kvm_msrs **ret_msrs)
{
	_cleanup_(freep) struct kvm_msr_list *list = NULL;
	struct kvm_msrs *msrs;
	uint32_t n = 0;

	list = calloc(1, sizeof(*list) + VCPU_MSRS_MAX * sizeof(list->indices[0]));
	msrs = calloc(1, sizeof(*msrs) + VCPU_MSRS_MAX * sizeof(msrs->entries[0]));
	if (!list || !msrs) {
		free(msrs);
		return -ENOMEM;
	}
	list->nmsrs = VCPU_MSRS_MAX;
	/* Without the list a reset would leave the last kernel's registers in force. */
	if (kvm_request(kvm->fd, KVM_GET_MSR_INDEX_LIST, list) < 0) {
		free(msrs);
		return -E2BIG;
	}
	for (uint32_t i = 0; i < list->nmsrs; i++)
		if (!is_time(list->indices[i]))
			msrs->entries[n++].index = list->indices[i];
	for (uint32_t done = 0; done < n;) {
		MSRS_WITH_ROOM(VCPU_MSRS_MAX) part = {.head = {.nmsrs = n - done}};
		int r;

		memcpy(part.head.entries, &msrs->entries[done],
		       (n - done) * sizeof(msrs->entries[0]));
		r = kvm_request(vcpu_fd, KVM_GET_MSRS, &part);
		if (r < 0)
			r = 0;
		memcpy(&msrs->entries[done], part.head.entries, r * sizeof(msrs->entries[0]));
		done += r;
		if (done < n) {
			memmove(&msrs->entries[done], &msrs->entries[done + 1],
				(n - done - 1) * sizeof(msrs->entries[0]));
			n--;
		}
	}
	msrs->nmsrs = n;
	*ret_msrs = msrs;
	return 0;
}

/* The registers beyond x87 and SSE too, where KVM has them in this form; else NULL. */
static void *xsave_get(const struct kvm *kvm, int fd)
{
	int size = kvm_capability(kvm, KVM_CAP_XSAVE2);
	void *xsave = calloc(1, MAX((size_t)size, sizeof(struct kvm_xsave)));

	if (!xsave || !kvm_capability(kvm, KVM_CAP_XSAVE) ||
	    kvm_request(fd, size > 0 ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, xsave) < 0) {
		free(xsave);
		return NULL;
	}
	return xsave;
}

int vcpu_state_get(const struct kvm *kvm, int fd, struct vcpu_state *state, struct error *err)
{
	int r;

	*state = (struct vcpu_state){0};
	if ((r = kvm_ioctl(fd, KVM_GET_REGS, &state->regs)) < 0)
		return failed(err, r, "registers");
	if ((r = kvm_ioctl(fd, KVM_GET_SREGS, &state->sregs)) < 0)
		return failed(err, r, "system registers");
	if ((r = kvm_ioctl(fd, KVM_GET_FPU, &state->fpu)) < 0)
		return failed(err, r, "floating-point state");
	if ((r = kvm_ioctl(fd, KVM_GET_LAPIC, &state->lapic)) < 0)
		return failed(err, r, "local interrupt controller");
	if ((r = kvm_ioctl(fd, KVM_GET_MP_STATE, &state->mp_state)) < 0)
		return failed(err, r, "run state");
	if ((r = kvm_ioctl(fd, KVM_GET_VCPU_EVENTS, &state->events)) < 0)
		return failed(err, r, "pending events");
	state->xsave = xsave_get(kvm, fd);
	state->has_xcrs = kvm_ioctl(fd, KVM_GET_XCRS, &state->xcrs) == 0;
	state->has_debugregs = kvm_ioctl(fd, KVM_GET_DEBUGREGS, &state->debugregs) == 0;
	r = msrs_get(kvm, fd, &state->msrs);
	return r < 0 ? failed(err, r, "model-specific registers") : 0;
}

/* One by one after a refusal: a value that reads may not be one that writes. */
static void msrs_set(int fd, struct kvm_msrs *msrs)
{
	int r = kvm_request(fd, KVM_SET_MSRS, msrs);

	for (uint32_t i = r < 0 ? 0 : r; i < msrs->nmsrs; i++)
		(void)set_msr(fd, msrs->entries[i].index, msrs->entries[i].data);
}

int vcpu_state_set(int fd, const struct vcpu_state *state, struct error *err)
{
	struct vcpu_state copy = *state;
	struct kvm_mp_state pending;
	int r;

	/* Asking takes in a start-up message that is under way, so that it does not arrive after.
	 */
	(void)kvm_ioctl(fd, KVM_GET_MP_STATE, &pending);

	/* The local APIC's mode is in a system register, so those go first. */
	if ((r = kvm_ioctl(fd, KVM_SET_SREGS, &copy.sregs)) < 0)
		return failed(err, r, "system registers");
	if ((r = kvm_ioctl(fd, KVM_SET_REGS, &copy.regs)) < 0)
		return failed(err, r, "registers");
	r = copy.xsave ? kvm_request(fd, KVM_SET_XSAVE, copy.xsave)
		       : kvm_ioctl(fd, KVM_SET_FPU, &copy.fpu);
	if (r < 0)
		return failed(err, r, "floating-point state");
	if (copy.has_xcrs && (r = kvm_ioctl(fd, KVM_SET_XCRS, &copy.xcrs)) < 0)
		return failed(err, r, "extended control registers");
	if (copy.has_debugregs && (r = kvm_ioctl(fd, KVM_SET_DEBUGREGS, &copy.debugregs)) < 0)
		return failed(err, r, "debug registers");
	msrs_set(fd, copy.msrs);
	firmware_msrs(fd);
	if ((r = kvm_ioctl(fd, KVM_SET_LAPIC, &copy.lapic)) < 0)
		return failed(err, r, "local interrupt controller");
	if ((r = kvm_ioctl(fd, KVM_SET_VCPU_EVENTS, &copy.events)) < 0)
		return failed(err, r, "pending events");
	if ((r = kvm_ioctl(fd, KVM_SET_MP_STATE, &copy.mp_state)) < 0)
		return failed(err, r, "run state");
	return 0;
}

void vcpu_state_deinit(struct vcpu_state *state)
{
	free(take_ptr(state->msrs));
	free(take_ptr(state->xsave));
}

int vcpu_state_enter(int fd, const struct boot_entry *entry, struct error *err)
{
	struct kvm_regs regs = {0};
	struct kvm_sregs sregs;
	int r;

	if ((r = kvm_ioctl(fd, KVM_GET_SREGS, &sregs)) < 0)
		return failed(err, r, "system registers");
	entry_registers(entry, &regs, &sregs);
	if ((r = kvm_ioctl(fd, KVM_SET_SREGS, &sregs)) < 0)
		return failed(err, r, "system registers");
	if ((r = kvm_ioctl(fd, KVM_SET_REGS, &regs)) < 0)
		return failed(err, r, "registers");
	return 0;
}
