/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of a vCPU thread: park, run, exit, bus access, run. A thread is brought out of the guest
 * by `immediate_exit` and a signal whose handler does nothing; KVM_RUN then finishes the access
 * under way before it returns, so a parked vCPU's registers are whole.
 */
#include "vmm/vcpu.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/atomic.h"
#include "base/fd.h"
#include "base/log.h"

#define STACK_SIZE (128u << 10)

const char *const vcpu_exit_names[VCPU_EXITS] = {
	[VCPU_EXIT_IO] = "io",
	[VCPU_EXIT_MMIO] = "mmio",
	[VCPU_EXIT_HALT] = "halt",
	[VCPU_EXIT_SHUTDOWN] = "shutdown",
	[VCPU_EXIT_INTERRUPTED] = "interrupted",
	[VCPU_EXIT_ERROR] = "error",
	[VCPU_EXIT_OTHER] = "other",
};

static int kick_signal(void)
{
	return SIGRTMIN;
}

static void kick_handler(int signal)
{
	(void)signal;
}

/* A string instruction brings several accesses of one port in one exit. */
static void exit_io(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;

	for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
		if (run->io.direction == KVM_EXIT_IO_IN)
			bus_read(vcpu->group->io, run->io.port, data, run->io.size);
		else
			bus_write(vcpu->group->io, run->io.port, data, run->io.size);
	}
}

static void exit_mmio(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	if (run->mmio.is_write)
		bus_write(vcpu->group->mmio, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
	else
		bus_read(vcpu->group->mmio, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
}

static void trouble(struct vcpu *vcpu, enum vcpu_trouble what, const char *why)
{
	struct vcpu_group *group = vcpu->group;
	struct kvm_regs regs = {0};
	char text[200];

	/* Where it happened is worth a call; without an answer the line does without. */
	if (kvm_ioctl(vcpu->fd, KVM_GET_REGS, &regs) < 0)
		regs.rip = 0;
	snprintf(text, sizeof(text), "vCPU %u at 0x%llx: %s", vcpu->index, regs.rip, why);
	atomic_store(&group->stop, true);
	group->listener->trouble(group->listener, what, text);
}

static void exit_internal_error(struct vcpu *vcpu)
{
	char why[80];

	snprintf(why, sizeof(why),
		 vcpu->run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION
			 ? "KVM could not emulate the guest's instruction"
			 : "KVM reports internal error %u",
		 vcpu->run->internal.suberror);
	trouble(vcpu, VCPU_EMULATION, why);
}

/* One exit. */
static void vcpu_exit(struct vcpu *vcpu)
{
	char why[80];

	switch (vcpu->run->exit_reason) {
	case KVM_EXIT_IO:
		vcpu->exits[VCPU_EXIT_IO]++;
		exit_io(vcpu);
		break;
	case KVM_EXIT_MMIO:
		vcpu->exits[VCPU_EXIT_MMIO]++;
		exit_mmio(vcpu);
		break;
	case KVM_EXIT_HLT:
		vcpu->exits[VCPU_EXIT_HALT]++;
		break;
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		vcpu->exits[VCPU_EXIT_OTHER]++;
		break;
	case KVM_EXIT_SHUTDOWN:
		vcpu->exits[VCPU_EXIT_SHUTDOWN]++;
		trouble(vcpu, VCPU_TRIPLE_FAULT, "triple fault");
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		vcpu->exits[VCPU_EXIT_ERROR]++;
		exit_internal_error(vcpu);
		break;
	case KVM_EXIT_FAIL_ENTRY:
		vcpu->exits[VCPU_EXIT_ERROR]++;
		snprintf(why, sizeof(why),
			 "the processor refused to enter the guest, reason 0x%llx",
			 vcpu->run->fail_entry.hardware_entry_failure_reason);
		trouble(vcpu, VCPU_EMULATION, why);
		break;
	default:
		vcpu->exits[VCPU_EXIT_OTHER]++;
		snprintf(why, sizeof(why), "KVM stopped for a reason unknown to corral, %u",
			 vcpu->run->exit_reason);
		trouble(vcpu, VCPU_EMULATION, why);
	}
}

#define POSTED_MAX \
	((4096 - sizeof(struct kvm_coalesced_mmio_ring)) / sizeof(struct kvm_coalesced_mmio))

/* What was written to index ports before the exit at hand takes effect before it. */
static void posted_drain(struct vcpu_group *group)
{
	struct kvm_coalesced_mmio_ring *ring = group->posted;

	if (!ring || load_acquire(&ring->last) == load_relaxed(&ring->first))
		return;
	pthread_mutex_lock(&group->posted_lock);
	while (load_acquire(&ring->last) != ring->first) {
		const struct kvm_coalesced_mmio *write = &ring->coalesced_mmio[ring->first];

		bus_write(write->pio ? group->io : group->mmio, write->phys_addr, write->data,
			  write->len);
		store_release(&ring->first, (ring->first + 1) % POSTED_MAX);
	}
	pthread_mutex_unlock(&group->posted_lock);
}

/* In the guest, out of it, until the group is to stop. */
static void vcpu_run(struct vcpu *vcpu)
{
	while (!atomic_load_explicit(&vcpu->group->stop, memory_order_acquire)) {
		int r = ioctl(vcpu->fd, KVM_RUN, 0);

		if (r == 0) {
			posted_drain(vcpu->group);
			vcpu_exit(vcpu);
		} else if (errno == EINTR || errno == EAGAIN) {
			/* A vCPU that waits for its start-up message comes back with EAGAIN. */
			vcpu->exits[VCPU_EXIT_INTERRUPTED]++;
		} else {
			vcpu->exits[VCPU_EXIT_ERROR]++;
			trouble(vcpu, VCPU_REFUSED, strerror(errno));
		}
	}
	/*
	 * Finish the access of the last exit, so that registers and memory are whole. One that KVM
	 * hands out in pieces comes back with the next piece until it is done.
	 */
	vcpu->run->immediate_exit = 1;
	while (ioctl(vcpu->fd, KVM_RUN, 0) == 0)
		vcpu_exit(vcpu);
	posted_drain(vcpu->group);
}

/* Waits until it may run. False: the end. */
static bool vcpu_wait(struct vcpu *vcpu)
{
	struct vcpu_group *group = vcpu->group;
	bool last, run;

	pthread_mutex_lock(&group->lock);
	last = ++group->n_parked == group->n_vcpus;
	if (last && group->wish == VCPU_WISH_PARK) {
		group->listener->parked(group->listener);
		pthread_cond_broadcast(&group->changed);
	}
	while (group->wish == VCPU_WISH_PARK || (group->wish == VCPU_WISH_RUN && group->stop))
		pthread_cond_wait(&group->changed, &group->lock);
	run = group->wish == VCPU_WISH_RUN;
	group->n_parked--;
	/* Under the lock: whoever wants it out again takes the lock first, and kicks after. */
	vcpu->run->immediate_exit = 0;
	pthread_mutex_unlock(&group->lock);
	return run;
}

struct vcpu_start {
	struct vcpu *vcpu;
	int (*seal)(void);
};

static void *vcpu_thread(void *argument)
{
	struct vcpu_start start = *(struct vcpu_start *)argument;
	struct vcpu *vcpu = start.vcpu;
	sigset_t kick;
	char name[16];

	free(argument);
	/* Sealed, a thread can name nobody, itself included. */
	snprintf(name, sizeof(name), "vcpu%u", vcpu->index);
	pthread_setname_np(pthread_self(), name);
	sigemptyset(&kick);
	sigaddset(&kick, kick_signal());
	pthread_sigmask(SIG_UNBLOCK, &kick, NULL);
	if (start.seal && start.seal() < 0)
		abort(); /* a thread that cannot be sealed must not run */
	while (vcpu_wait(vcpu))
		vcpu_run(vcpu);
	return NULL;
}

static int thread_create(struct vcpu *vcpu, int (*seal)(void))
{
	struct vcpu_start *start = malloc(sizeof(*start));
	pthread_attr_t attributes;
	int r;

	if (!start)
		return -ENOMEM;
	*start = (struct vcpu_start){vcpu, seal};
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_SIZE);
	r = pthread_create(&vcpu->thread, &attributes, vcpu_thread, start);
	pthread_attr_destroy(&attributes);
	if (r != 0) {
		free(start);
		return -r;
	}
	vcpu->has_thread = true;
	return 0;
}

int vcpu_group_threads(struct vcpu_group *group, int (*seal)(void), struct error *err)
{
	struct sigaction action = {.sa_handler = kick_handler};

	sigaction(kick_signal(), &action, NULL);
	for (uint32_t i = 0; i < group->n_vcpus; i++) {
		int r = thread_create(&group->vcpus[i], seal);

		if (r < 0)
			return error_set(err, r, "cannot start the thread of vCPU %u: %s", i,
					 strerror(-r));
	}
	/* A thread that parks has been sealed. */
	pthread_mutex_lock(&group->lock);
	while (group->n_parked < group->n_vcpus)
		pthread_cond_wait(&group->changed, &group->lock);
	pthread_mutex_unlock(&group->lock);
	return 0;
}

static int vcpu_init(struct vcpu *vcpu, struct vcpu_group *group, uint32_t index, struct error *err)
{
	int r;

	*vcpu = (struct vcpu){.group = group, .index = index};
	vcpu->fd = ioctl(group->kvm->vm_fd, KVM_CREATE_VCPU, (unsigned long)index);
	if (vcpu->fd < 0)
		return error_set(err, -errno, "cannot create vCPU %u: %s", index, strerror(errno));
	vcpu->run =
		mmap(NULL, group->kvm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED) {
		vcpu->run = NULL;
		return error_set(err, -errno, "cannot map vCPU %u: %s", index, strerror(errno));
	}
	r = vcpu_state_setup(group->kvm, vcpu->fd, index, group->n_vcpus, err);
	if (r < 0)
		return r;
	return vcpu_state_get(group->kvm, vcpu->fd, &vcpu->initial, err);
}

int vcpu_group_init(struct vcpu_group *group, struct kvm *kvm, uint32_t n_vcpus,
		    const struct bus *io, const struct bus *mmio, struct vcpu_listener *listener,
		    struct error *err)
{
	uint32_t ring_page;

	*group = (struct vcpu_group){.kvm = kvm, .io = io, .mmio = mmio, .listener = listener};
	pthread_mutex_init(&group->posted_lock, NULL);
	pthread_mutex_init(&group->lock, NULL);
	pthread_cond_init(&group->changed, NULL);
	group->stop = true;
	if (n_vcpus > kvm->vcpus_max)
		return error_set(
			err, -E2BIG,
			"cannot give the VM %u vCPUs: this host's KVM allows %u; use --cpus %u "
			"or fewer",
			n_vcpus, kvm->vcpus_max, kvm->vcpus_max);
	group->vcpus = calloc(n_vcpus, sizeof(*group->vcpus));
	if (!group->vcpus)
		return error_set(err, -ENOMEM, "cannot make vCPUs: out of memory");
	group->n_vcpus = n_vcpus;
	for (uint32_t i = 0; i < n_vcpus; i++)
		group->vcpus[i].fd = -1;
	for (uint32_t i = 0; i < n_vcpus; i++) {
		int r = vcpu_init(&group->vcpus[i], group, i, err);

		if (r < 0)
			return r;
	}
	ring_page = kvm_capability(kvm, KVM_CAP_COALESCED_PIO)
			    ? kvm_capability(kvm, KVM_CAP_COALESCED_MMIO)
			    : 0;
	if (ring_page > 0 && (ring_page + 1) * 4096 <= kvm->run_size)
		group->posted = (void *)((uint8_t *)group->vcpus[0].run + ring_page * 4096);
	return 0;
}

static void kick_all(struct vcpu_group *group)
{
	for (uint32_t i = 0; i < group->n_vcpus; i++) {
		if (!group->vcpus[i].has_thread)
			continue;
		group->vcpus[i].run->immediate_exit = 1;
		pthread_kill(group->vcpus[i].thread, kick_signal());
	}
}

void vcpu_group_run(struct vcpu_group *group)
{
	/* Tells a guest that uses kvmclock that it was stopped, so that its soft-lockup watch is
	 * not misled; one that does not use it refuses. */
	for (uint32_t i = 0; i < group->n_vcpus; i++)
		(void)ioctl(group->vcpus[i].fd, KVM_KVMCLOCK_CTRL, 0);
	pthread_mutex_lock(&group->lock);
	group->wish = VCPU_WISH_RUN;
	atomic_store(&group->stop, false);
	pthread_cond_broadcast(&group->changed);
	pthread_mutex_unlock(&group->lock);
}

void vcpu_group_park(struct vcpu_group *group)
{
	bool parked;

	pthread_mutex_lock(&group->lock);
	group->wish = VCPU_WISH_PARK;
	atomic_store(&group->stop, true);
	parked = group->n_parked == group->n_vcpus;
	if (parked)
		group->listener->parked(group->listener);
	pthread_mutex_unlock(&group->lock);
	if (!parked)
		kick_all(group);
}

int vcpu_group_enter(struct vcpu_group *group, const struct boot_entry *entry, struct error *err)
{
	return vcpu_state_enter(group->vcpus[0].fd, entry, err);
}

int vcpu_group_reset(struct vcpu_group *group, const struct boot_entry *entry, struct error *err)
{
	for (uint32_t i = 0; i < group->n_vcpus; i++) {
		struct vcpu *vcpu = &group->vcpus[i];
		int r = vcpu_state_set(vcpu->fd, &vcpu->initial, err);

		if (r < 0)
			return r;
	}
	return vcpu_group_enter(group, entry, err);
}

void vcpu_group_deinit(struct vcpu_group *group)
{
	pthread_mutex_lock(&group->lock);
	group->wish = VCPU_WISH_END;
	atomic_store(&group->stop, true);
	pthread_cond_broadcast(&group->changed);
	pthread_mutex_unlock(&group->lock);
	kick_all(group);
	for (uint32_t i = 0; i < group->n_vcpus; i++) {
		struct vcpu *vcpu = &group->vcpus[i];

		if (vcpu->has_thread)
			pthread_join(vcpu->thread, NULL);
		if (vcpu->run)
			munmap(vcpu->run, group->kvm->run_size);
		vcpu_state_deinit(&vcpu->initial);
		vcpu->fd = fd_close(vcpu->fd);
	}
	free(take_ptr(group->vcpus));
	group->n_vcpus = 0;
}
