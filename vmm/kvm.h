/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VM as the kernel knows it: memory slots, interrupt controller, routes and eventfds.
 * Implements the contracts by which devices raise interrupts and hear kicks (devices/device.h). The
 * order of calls is the measured one: slots, interrupt controller, ioeventfds, vCPUs.
 */
#pragma once

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "devices/device.h"
#include "devices/memory.h"

#define KVM_VECTORS_MAX 1024
#define KVM_PIC_LINES   16
#define KVM_CHIPS       3  /* two 8259 and the I/O APIC */
#define KVM_LINES       24 /* pins of the I/O APIC */

/*
 * Every ioctl goes through here: the argument has the size the request was defined with, and a
 * failure comes back as -errno.
 */
int kvm_request(int fd, unsigned long request, void *argument);
#define kvm_ioctl(fd, request, argument)                                                     \
	({                                                                                   \
		_Static_assert(sizeof(*(argument)) == _IOC_SIZE(request), "wrong argument"); \
		kvm_request((fd), (request), (argument));                                    \
	})

struct kvm_vector {
	int fd;        /* owned eventfd, -1: free */
	bool assigned; /* the kernel takes the signals */
	uint64_t address;
	uint32_t data;
};

struct kvm {
	int fd;    /* owned: /dev/kvm */
	int vm_fd; /* owned */
	struct irq_host irqs;
	struct kick_host kicks;
	int lines[KVM_LINES];                /* owned eventfds, -1: not asked for */
	pthread_mutex_t lock;                /* vectors and routes; innermost */
	uint32_t n_vectors;                  /* one past the highest in use */
	struct kvm_vector *vectors;          /* owned, KVM_VECTORS_MAX */
	struct kvm_irq_routing *routes;      /* owned, scratch for one update */
	struct kvm_irqchip chips[KVM_CHIPS]; /* at power-on */
	struct kvm_cpuid2 *cpuid;            /* owned: what KVM supports here, once it was asked */
	uint32_t run_size;                   /* bytes of a vCPU's shared page */
	uint32_t vcpus_max;
};

/* Nothing yet: what kvm_deinit may be given. */
void kvm_null(struct kvm *kvm);

/* Checks the interface and its capabilities, creates an empty VM. Takes over `fd`. */
int kvm_init(struct kvm *kvm, int fd, struct error *err) __must_check;
void kvm_deinit(struct kvm *kvm);

/* Hands the regions to the kernel, one slot each, then creates the interrupt controller. */
int kvm_set_memory(struct kvm *kvm, const struct guest_memory *memory,
		   struct error *err) __must_check;

/* The interrupt controller as it was at power-on. Parked. */
int kvm_reset(struct kvm *kvm, struct error *err) __must_check;

/*
 * Writes to these ports are posted: they wait in a ring for the next exit of any vCPU instead of
 * being one. For index registers, which mean nothing before the access that follows. A KVM without
 * it goes on exiting.
 */
void kvm_post_port(const struct kvm *kvm, uint16_t port, uint32_t size);

/* KVM_CHECK_EXTENSION of the VM; 0: lacks it. */
int kvm_capability(const struct kvm *kvm, int capability);
