/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Description and descriptors in, a board of devices out. Main thread, before and after everything
 * runs.
 */
#include "vmm/board.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>

#include "vmm/x86/acpi.h"
#include "vmm/x86/entry.h"
#include "vmm/x86/layout.h"
#include "vmm/x86/smbios.h"

static void add(struct board *board, struct device *device)
{
	assert(board->n_devices < BOARD_DEVICES_MAX);
	board->devices[board->n_devices++] = device;
}

static int take(struct named_fds *fds, const char *name, int *ret_fd, struct error *err)
{
	*ret_fd = named_fds_take(fds, name);
	if (*ret_fd < 0)
		return error_set(err, -EBADF,
				 "cannot start: the descriptor named \"%s\" was not handed over",
				 name);
	return 0;
}

static int memory_setup(struct board *board, struct error *err)
{
	const struct vm_memory *wanted = &board->vm->memory;
	struct memory_options options = {
		.kind = wanted->shared ? MEMORY_SHARED : MEMORY_PRIVATE,
		.merge = wanted->merge,
		.thp = wanted->thp != VM_THP_OFF,
		.prefault = wanted->prefault,
	};
	struct memory_range ranges[2];
	uint32_t n = layout_ram(wanted->size, ranges);
	struct sysinfo host;
	int r;

	/* Prefaulting more than there is would end in the host's out-of-memory killer. */
	if (wanted->prefault && sysinfo(&host) == 0 &&
	    wanted->size > (uint64_t)host.totalram * host.mem_unit)
		return error_set(
			err, -ENOMEM,
			"cannot prefault %llu MiB of guest memory: this host has %llu MiB; give "
			"the VM less --memory, or leave prefault off",
			(unsigned long long)(wanted->size >> 20),
			(unsigned long long)((uint64_t)host.totalram * host.mem_unit >> 20));
	r = memory_init(&board->memory, &options, ranges, n, err);
	return r < 0 ? r : kvm_set_memory(&board->kvm, &board->memory, err);
}

static int platform_setup(struct board *board, struct loop *main, struct machine_events *events,
			  struct error *err)
{
	struct irq_host *irqs = &board->kvm.irqs;
	bool serial = board->vm->console.device == VM_CONSOLE_SERIAL;
	struct bus *io = &board->io;
	int r;

	if ((r = serial_init(&board->serial, io, irqs, main, serial ? &board->chardev : NULL,
			     err)) < 0)
		return r;
	add(board, &board->serial.device);
	if ((r = power_init(&board->power, io, events, err)) < 0)
		return r;
	add(board, &board->power.device);
	if ((r = ged_init(&board->ged, io, irqs, err)) < 0)
		return r;
	add(board, &board->ged.device);
	if ((r = i8042_init(&board->i8042, io, events, err)) < 0)
		return r;
	add(board, &board->i8042.device);
	if ((r = rtc_init(&board->rtc, io, err)) < 0)
		return r;
	add(board, &board->rtc.device);
	if ((r = pvpanic_init(&board->pvpanic, io, events, err)) < 0)
		return r;
	add(board, &board->pvpanic.device);
	r = generation_init(&board->generation, &board->memory, LAYOUT_GENERATION, &board->ged,
			    err);
	if (r < 0)
		return r;
	add(board, &board->generation.device);
	return 0;
}

static int pci_setup(struct board *board, struct error *err)
{
	static const struct pci_layout layout = {
		.ecam = LAYOUT_ECAM,
		.window = LAYOUT_PCI32,
		.window_size = LAYOUT_PCI32_END - LAYOUT_PCI32,
	};
	int r = pci_root_init(&board->pci, &layout, &board->io, &board->mmio, &board->kvm.irqs,
			      &board->kvm.kicks, err);

	if (r < 0)
		return r;
	add(board, &board->pci.device);
	kvm_post_port(&board->kvm, PCI_PORT_ADDRESS, 4);
	kvm_post_port(&board->kvm, RTC_PORT, 1);
	return 0;
}

/* As many I/O threads as the disk with the most queues has, so that no two of its queues share one.
 */
static int io_threads_setup(struct board *board, void (*worker_start)(void *), struct error *err)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < board->vm->n_disks; i++)
		n = MAX(n, board->vm->disks[i].queues);
	n = MIN(n, (uint32_t)BOARD_IO_THREADS_MAX);
	for (uint32_t i = 0; i < n; i++) {
		char name[16];
		int r;

		snprintf(name, sizeof(name), "io%u", i);
		board->n_io_threads = i + 1;
		r = io_thread_init(&board->io_threads[i], name, worker_start, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int disk_setup(struct board *board, uint32_t i, struct named_fds *fds, struct error *err)
{
	const struct vm_disk *disk = &board->vm->disks[i];
	struct loop *loops[BOARD_IO_THREADS_MAX];
	char name[16];
	int fd, r;

	snprintf(name, sizeof(name), VM_FD_DISK "%u", i);
	r = take(fds, name, &fd, err);
	if (r < 0)
		return r;
	r = block_open_raw(&board->images[i], fd, disk->readonly, disk->path ? disk->path : name,
			   err);
	board->n_disks = i + 1;
	if (r < 0)
		return r;
	for (uint32_t j = 0; j < board->n_io_threads; j++)
		loops[j] = board->io_threads[j].loop;
	r = blk_init(&board->disks[i], &board->pci, BOARD_SLOT_DISK + i, name, &board->memory,
		     &board->images[i], disk->serial, disk->queues, loops, board->n_io_threads,
		     err);
	add(board, &board->disks[i].pci.function.device);
	return r;
}

static int virtio_setup(struct board *board, struct named_fds *fds, struct loop *main,
			struct error *err)
{
	bool console = board->vm->console.device == VM_CONSOLE_VIRTIO;
	int r;

	r = virtio_console_init(&board->console, &board->pci, BOARD_SLOT_CONSOLE, "console",
				&board->memory, main, console ? &board->chardev : NULL, err);
	add(board, &board->console.pci.function.device);
	if (r < 0)
		return r;
	if (board->vm->rng) {
		r = rng_init(&board->rng, &board->pci, BOARD_SLOT_RNG, "rng", &board->memory, main,
			     err);
		add(board, &board->rng.pci.function.device);
		if (r < 0)
			return r;
	}
	board->disks = calloc(VM_DISKS_MAX, sizeof(*board->disks));
	if (!board->disks)
		return error_set(err, -ENOMEM, "cannot make the disks: out of memory");
	for (uint32_t i = 0; i < board->vm->n_disks; i++) {
		r = disk_setup(board, i, fds, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int console_setup(struct board *board, struct named_fds *fds, struct loop *main,
			 struct error *err)
{
	int peer = named_fds_take(fds, VM_FD_CONSOLE);
	int r = chardev_init(&board->chardev, main, named_fds_take(fds, VM_FD_CONSOLE_LOG), err);

	if (r < 0) {
		fd_close(peer);
		return r;
	}
	if (peer >= 0)
		chardev_attach(&board->chardev, peer);
	return 0;
}

void board_null(struct board *board)
{
	*board = (struct board){.kernel_fd = -1, .initrd_fd = -1};
	board->io.name = "io";
	board->mmio.name = "mmio";
	kvm_null(&board->kvm);
}

int board_init(struct board *board, const struct vm_description *vm, struct named_fds *fds,
	       struct loop *main, struct machine_events *events, void (*worker_start)(void *),
	       struct error *err)
{
	int kvm_fd, r;

	board_null(board);
	board->vm = vm;
	if ((r = take(fds, VM_FD_KERNEL, &board->kernel_fd, err)) < 0)
		return r;
	board->initrd_fd = named_fds_take(fds, VM_FD_INITRD);
	if ((r = take(fds, VM_FD_KVM, &kvm_fd, err)) < 0)
		return r;
	if ((r = kvm_init(&board->kvm, kvm_fd, err)) < 0)
		return r;
	if ((r = memory_setup(board, err)) < 0)
		return r;
	if ((r = console_setup(board, fds, main, err)) < 0)
		return r;
	if ((r = platform_setup(board, main, events, err)) < 0)
		return r;
	if ((r = pci_setup(board, err)) < 0)
		return r;
	if ((r = io_threads_setup(board, worker_start, err)) < 0)
		return r;
	return virtio_setup(board, fds, main, err);
}

int board_load(struct board *board, struct boot_entry *ret_entry, struct error *err)
{
	struct boot_source source = {
		.kernel_fd = board->kernel_fd,
		.initrd_fd = board->initrd_fd,
		.command_line = board->vm->append ? board->vm->append : "",
	};
	struct boot_tables tables = {0};
	int r;

	r = acpi_write(&board->memory, board->vm->cpus, board->devices, board->n_devices,
		       &tables.rsdp, err);
	if (r < 0)
		return r;
	r = smbios_write(&board->memory, err);
	if (r < 0)
		return r;
	r = kernel_load(&source, &board->memory, &tables, ret_entry, err);
	if (r < 0)
		return error_prefix(err, "kernel \"%s\"%s%s%s: ", board->vm->kernel,
				    board->vm->initrd ? ", initrd \"" : "",
				    board->vm->initrd ? board->vm->initrd : "",
				    board->vm->initrd ? "\"" : "");
	r = entry_prepare(ret_entry, &board->memory);
	return r < 0 ? error_set(err, r, "cannot prepare the kernel's entry: %s", strerror(-r)) : 0;
}

struct device *board_device(struct board *board, const char *name)
{
	for (uint32_t i = 0; i < board->n_devices; i++)
		if (strcmp(board->devices[i]->name, name) == 0)
			return board->devices[i];
	return NULL;
}

void board_deinit(struct board *board)
{
	for (uint32_t i = 0; i < board->n_io_threads; i++)
		io_thread_end(&board->io_threads[i]);
	for (uint32_t i = board->n_devices; i-- > 0;)
		if (board->devices[i]->ops->deinit)
			board->devices[i]->ops->deinit(board->devices[i]);
	for (uint32_t i = 0; i < board->n_disks; i++)
		block_close(&board->images[i]);
	free(take_ptr(board->disks));
	for (uint32_t i = 0; i < board->n_io_threads; i++)
		io_thread_deinit(&board->io_threads[i]);
	if (board->chardev.source.loop)
		chardev_deinit(&board->chardev);
	memory_deinit(&board->memory);
	kvm_deinit(&board->kvm);
	board->kernel_fd = fd_close(board->kernel_fd);
	board->initrd_fd = fd_close(board->initrd_fd);
}
