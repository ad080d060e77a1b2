/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ioctls of /dev/kvm and of the VM. Lines and vectors are eventfds whose signals the kernel turns
 * into interrupts without us; routes change on vCPU threads under one lock.
 */
#include "vmm/kvm.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/fd.h"

int kvm_request(int fd, unsigned long request, void *argument)
{
	int r = ioctl(fd, request, argument);

	return r < 0 ? -errno : r;
}

static int plain(int fd, unsigned long request, unsigned long argument)
{
	int r = ioctl(fd, request, argument);

	return r < 0 ? -errno : r;
}

int kvm_capability(const struct kvm *kvm, int capability)
{
	int r = plain(kvm->vm_fd, KVM_CHECK_EXTENSION, capability);

	return r < 0 ? 0 : r;
}

static int line_get(struct irq_host *host, uint32_t gsi, int *ret_fd)
{
	struct kvm *kvm = container_of(host, struct kvm, irqs);
	struct kvm_irqfd irqfd = {.gsi = gsi};
	int r;

	if (gsi >= KVM_LINES)
		return -EINVAL;
	if (kvm->lines[gsi] < 0) {
		kvm->lines[gsi] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (kvm->lines[gsi] < 0)
			return -errno;
		irqfd.fd = kvm->lines[gsi];
		r = kvm_ioctl(kvm->vm_fd, KVM_IRQFD, &irqfd);
		if (r < 0)
			return r;
	}
	*ret_fd = kvm->lines[gsi];
	return 0;
}

static int msi_new(struct irq_host *host, uint32_t *ret_vector, int *ret_fd)
{
	struct kvm *kvm = container_of(host, struct kvm, irqs);
	uint32_t i = 0;
	int fd;

	while (i < KVM_VECTORS_MAX && kvm->vectors[i].fd >= 0)
		i++;
	if (i == KVM_VECTORS_MAX)
		return -ENOSPC;
	fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd < 0)
		return -errno;
	pthread_mutex_lock(&kvm->lock);
	kvm->vectors[i] = (struct kvm_vector){.fd = fd};
	kvm->n_vectors = MAX(kvm->n_vectors, i + 1);
	pthread_mutex_unlock(&kvm->lock);
	*ret_vector = i;
	*ret_fd = fd;
	return 0;
}

static int vector_assign(struct kvm *kvm, uint32_t i, bool assign)
{
	struct kvm_irqfd irqfd = {
		.fd = kvm->vectors[i].fd,
		.gsi = KVM_LINES + i,
		.flags = assign ? 0 : KVM_IRQFD_FLAG_DEASSIGN,
	};
	int r;

	if (kvm->vectors[i].assigned == assign)
		return 0;
	r = kvm_ioctl(kvm->vm_fd, KVM_IRQFD, &irqfd);
	if (r == 0)
		kvm->vectors[i].assigned = assign;
	return r;
}

static void msi_free(struct irq_host *host, uint32_t vector)
{
	struct kvm *kvm = container_of(host, struct kvm, irqs);

	pthread_mutex_lock(&kvm->lock);
	(void)vector_assign(kvm, vector, false);
	kvm->vectors[vector].fd = fd_close(kvm->vectors[vector].fd);
	pthread_mutex_unlock(&kvm->lock);
}

/* The kernel takes the whole table at once: the pins of both kinds of interrupt controller, as they
 * are when nothing was ever set, then every vector with an address. */
static int routes_update(struct kvm *kvm)
{
	struct kvm_irq_routing *routes = kvm->routes;

	routes->nr = 0;
	routes->flags = 0;
	for (uint32_t i = 0; i < KVM_LINES; i++)
		routes->entries[routes->nr++] = (struct kvm_irq_routing_entry){
			.gsi = i,
			.type = KVM_IRQ_ROUTING_IRQCHIP,
			.u.irqchip = {.irqchip = KVM_IRQCHIP_IOAPIC, .pin = i},
		};
	for (uint32_t i = 0; i < KVM_PIC_LINES; i++)
		routes->entries[routes->nr++] = (struct kvm_irq_routing_entry){
			.gsi = i,
			.type = KVM_IRQ_ROUTING_IRQCHIP,
			.u.irqchip = {.irqchip = i < 8 ? KVM_IRQCHIP_PIC_MASTER
						       : KVM_IRQCHIP_PIC_SLAVE,
				      .pin = i % 8},
		};
	for (uint32_t i = 0; i < kvm->n_vectors; i++) {
		const struct kvm_vector *vector = &kvm->vectors[i];

		if (vector->fd < 0 || !vector->address)
			continue;
		routes->entries[routes->nr++] = (struct kvm_irq_routing_entry){
			.gsi = KVM_LINES + i,
			.type = KVM_IRQ_ROUTING_MSI,
			.u.msi = {.address_lo = (uint32_t)vector->address,
				  .address_hi = vector->address >> 32,
				  .data = vector->data},
		};
	}
	return kvm_request(kvm->vm_fd, KVM_SET_GSI_ROUTING, routes);
}

static int msi_set(struct irq_host *host, uint32_t i, uint64_t address, uint32_t data, bool masked)
{
	struct kvm *kvm = container_of(host, struct kvm, irqs);
	struct kvm_vector *vector = &kvm->vectors[i];
	int r = 0;

	pthread_mutex_lock(&kvm->lock);
	if (!masked && (vector->address != address || vector->data != data)) {
		struct kvm_vector old = *vector;

		vector->address = address;
		vector->data = data;
		r = routes_update(kvm);
		if (r < 0) /* so that the same again is not taken for done */
			*vector = old;
	}
	if (r >= 0)
		r = vector_assign(kvm, i, !masked);
	pthread_mutex_unlock(&kvm->lock);
	return r;
}

static const struct irq_ops irq_ops = {
	.line = line_get,
	.msi_new = msi_new,
	.msi_free = msi_free,
	.msi_set = msi_set,
};

/* A length of 0 matches a write of any width, and costs no decoding of the instruction. */
static int kick_set(struct kick_host *host, enum device_space space, gpa_t at, int fd,
		    uint32_t flags)
{
	struct kvm *kvm = container_of(host, struct kvm, kicks);
	struct kvm_ioeventfd kick = {.addr = at, .fd = fd, .flags = flags};

	if (space == SPACE_PORTS)
		kick.flags |= KVM_IOEVENTFD_FLAG_PIO;
	return kvm_ioctl(kvm->vm_fd, KVM_IOEVENTFD, &kick);
}

static int kick_add(struct kick_host *host, enum device_space space, gpa_t at, int fd)
{
	return kick_set(host, space, at, fd, 0);
}

static int kick_remove(struct kick_host *host, enum device_space space, gpa_t at, int fd)
{
	return kick_set(host, space, at, fd, KVM_IOEVENTFD_FLAG_DEASSIGN);
}

static const struct kick_ops kick_ops = {.add = kick_add, .remove = kick_remove};

static const struct {
	int capability;
	const char *what;
} needed[] = {
	{KVM_CAP_IRQCHIP, "an interrupt controller in the kernel"},
	{KVM_CAP_IRQFD, "irqfd"},
	{KVM_CAP_IOEVENTFD, "ioeventfd"},
	{KVM_CAP_IOEVENTFD_ANY_LENGTH, "ioeventfds of any length"},
	{KVM_CAP_IRQ_ROUTING, "interrupt routing"},
	{KVM_CAP_USER_MEMORY, "memory slots"},
	{KVM_CAP_IMMEDIATE_EXIT, "immediate exit"},
	{KVM_CAP_SIGNAL_MSI, "message-signalled interrupts"},
	{KVM_CAP_MP_STATE, "multiprocessor state"},
	{KVM_CAP_EXT_CPUID, "CPUID tables"},
};

static int capabilities_check(const struct kvm *kvm, struct error *err)
{
	for (uint32_t i = 0; i < ARRAY_SIZE(needed); i++)
		if (!kvm_capability(kvm, needed[i].capability))
			return error_set(err, -ENOTSUP,
					 "cannot use /dev/kvm: this kernel's KVM lacks %s; corral "
					 "needs Linux 6.1 or later",
					 needed[i].what);
	return 0;
}

void kvm_null(struct kvm *kvm)
{
	*kvm = (struct kvm){.fd = -1, .vm_fd = -1, .irqs = {&irq_ops}, .kicks = {&kick_ops}};
	pthread_mutex_init(&kvm->lock, NULL);
	for (uint32_t i = 0; i < KVM_LINES; i++)
		kvm->lines[i] = -1;
}

int kvm_init(struct kvm *kvm, int fd, struct error *err)
{
	int r;

	kvm_null(kvm);
	kvm->fd = fd;
	r = plain(fd, KVM_GET_API_VERSION, 0);
	if (r != KVM_API_VERSION)
		return error_set(
			err, r < 0 ? r : -ENOTSUP,
			"cannot use the descriptor named \"kvm\": it is not /dev/kvm with API "
			"version 12");
	/* The only call of start-up that may take long: a host with KVM's huge-page recovery starts
	 * a thread. */
	do {
		r = plain(fd, KVM_CREATE_VM, 0);
	} while (r == -EINTR);
	if (r < 0)
		return error_set(err, r, "cannot create a VM in the kernel: %s", strerror(-r));
	kvm->vm_fd = r;
	r = capabilities_check(kvm, err);
	if (r < 0)
		return r;
	kvm->run_size = plain(fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	kvm->vcpus_max = kvm_capability(kvm, KVM_CAP_MAX_VCPUS);
	kvm->vectors = calloc(KVM_VECTORS_MAX, sizeof(*kvm->vectors));
	kvm->routes =
		calloc(1, sizeof(*kvm->routes) + (KVM_LINES + KVM_PIC_LINES + KVM_VECTORS_MAX) *
							 sizeof(kvm->routes->entries[0]));
	if (!kvm->vectors || !kvm->routes)
		return error_set(err, -ENOMEM, "cannot make interrupt routes: out of memory");
	for (uint32_t i = 0; i < KVM_VECTORS_MAX; i++)
		kvm->vectors[i].fd = -1;
	return 0;
}

void kvm_post_port(const struct kvm *kvm, uint16_t port, uint32_t size)
{
	struct kvm_coalesced_mmio_zone zone = {.addr = port, .size = size, .pio = 1};

	if (kvm_capability(kvm, KVM_CAP_COALESCED_PIO))
		(void)kvm_ioctl(kvm->vm_fd, KVM_REGISTER_COALESCED_MMIO, &zone);
}

int kvm_set_memory(struct kvm *kvm, const struct guest_memory *memory, struct error *err)
{
	int r;

	for (uint32_t i = 0; i < memory->n_regions; i++) {
		struct kvm_userspace_memory_region slot = {
			.slot = i,
			.guest_phys_addr = memory->regions[i].start,
			.memory_size = memory->regions[i].size,
			.userspace_addr = (uintptr_t)memory->regions[i].host,
		};

		r = kvm_ioctl(kvm->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot);
		if (r < 0) {
			char size[SIZE_TEXT_MAX];

			size_print(memory_total(memory), size);
			return error_set(
				err, r,
				"cannot give the VM %s of memory: KVM on this host refuses it: "
				"%s; give the VM less --memory",
				size, strerror(-r));
		}
	}
	/* The kernel on Intel wants three pages for itself, out of everybody's way. */
	r = plain(kvm->vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000);
	if (r < 0 && r != -EINVAL && r != -ENOTTY)
		return error_set(err, r, "cannot place KVM's own pages: %s", strerror(-r));
	r = plain(kvm->vm_fd, KVM_CREATE_IRQCHIP, 0);
	if (r < 0)
		return error_set(err, r, "cannot create the interrupt controller: %s",
				 strerror(-r));
	for (uint32_t i = 0; i < KVM_CHIPS; i++) {
		kvm->chips[i].chip_id = i;
		r = kvm_ioctl(kvm->vm_fd, KVM_GET_IRQCHIP, &kvm->chips[i]);
		if (r < 0)
			return error_set(err, r, "cannot read the interrupt controller: %s",
					 strerror(-r));
	}
	return 0;
}

int kvm_reset(struct kvm *kvm, struct error *err)
{
	for (uint32_t i = 0; i < KVM_CHIPS; i++) {
		int r = kvm_ioctl(kvm->vm_fd, KVM_SET_IRQCHIP, &kvm->chips[i]);

		if (r < 0)
			return error_set(err, r, "cannot reset the interrupt controller: %s",
					 strerror(-r));
	}
	return 0;
}

void kvm_deinit(struct kvm *kvm)
{
	for (uint32_t i = 0; kvm->vectors && i < kvm->n_vectors; i++)
		fd_close(kvm->vectors[i].fd);
	for (uint32_t i = 0; i < KVM_LINES; i++)
		kvm->lines[i] = fd_close(kvm->lines[i]);
	free(take_ptr(kvm->vectors));
	free(take_ptr(kvm->routes));
	free(take_ptr(kvm->cpuid));
	kvm->vm_fd = fd_close(kvm->vm_fd);
	kvm->fd = fd_close(kvm->fd);
}
