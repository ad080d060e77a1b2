/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Description and descriptors in, a board of devices out. Main thread, before and after everything
 * runs.
 */
#include "vmm/board.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>

#include "base/log.h"
#include "vmm/x86/acpi.h"
#include "vmm/x86/entry.h"
#include "vmm/x86/layout.h"
#include "vmm/x86/smbios.h"

void board_add(struct board *board, struct device *device)
{
	assert(board->n_devices < BOARD_DEVICES_MAX);
	board->devices[board->n_devices++] = device;
}

void board_remove(struct board *board, const struct device *device)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < board->n_devices; i++)
		if (board->devices[i] != device)
			board->devices[n++] = board->devices[i];
	board->n_devices = n;
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
	board_add(board, &board->serial.device);
	if ((r = power_init(&board->power, io, events, err)) < 0)
		return r;
	board_add(board, &board->power.device);
	if ((r = ged_init(&board->ged, io, irqs, err)) < 0)
		return r;
	board_add(board, &board->ged.device);
	if ((r = i8042_init(&board->i8042, io, events, err)) < 0)
		return r;
	board_add(board, &board->i8042.device);
	if ((r = rtc_init(&board->rtc, io, err)) < 0)
		return r;
	board_add(board, &board->rtc.device);
	if ((r = pvpanic_init(&board->pvpanic, io, events, err)) < 0)
		return r;
	board_add(board, &board->pvpanic.device);
	r = generation_init(&board->generation, &board->memory, LAYOUT_GENERATION, &board->ged,
			    err);
	if (r < 0)
		return r;
	board_add(board, &board->generation.device);
	return 0;
}

static int pci_setup(struct board *board, struct error *err)
{
	static const struct pci_layout layout = {
		.ecam = LAYOUT_ECAM,
		.window = LAYOUT_PCI32,
		.window_size = LAYOUT_PCI32_END - LAYOUT_PCI32,
		.ports = LAYOUT_PORT_PCI_BAR,
		.n_ports = 0x10000 - LAYOUT_PORT_PCI_BAR,
	};
	int r = pci_root_init(&board->pci, &layout, &board->io, &board->mmio, &board->kvm.irqs,
			      &board->kvm.kicks, err);

	if (r < 0)
		return r;
	board_add(board, &board->pci.device);
	r = pci_hotplug_init(&board->pci_hotplug, &board->io, &board->ged, err);
	if (r < 0)
		return r;
	board_add(board, &board->pci_hotplug.device);
	kvm_post_port(&board->kvm, PCI_PORT_ADDRESS, 4);
	kvm_post_port(&board->kvm, RTC_PORT, 1);
	return 0;
}

/* As many I/O threads as the disk or card with the most queues has, so that no two of its queues
 * share one. */
static int io_threads_setup(struct board *board, void (*worker_start)(void *), struct error *err)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < board->vm->n_disks; i++)
		n = MAX(n, board->vm->disks[i].queues);
	for (uint32_t i = 0; i < board->vm->n_nets; i++)
		n = MAX(n, board->vm->nets[i].queues);
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

static uint32_t io_loops(const struct board *board, struct loop **loops)
{
	for (uint32_t i = 0; i < board->n_io_threads; i++)
		loops[i] = board->io_threads[i].loop;
	return board->n_io_threads;
}

/* One pair's way out: what the descriptors that came for it make. */
static int pair_setup(struct board *board, uint32_t card, uint32_t pair, struct named_fds *fds,
		      struct loop *loop, struct net_options *options, struct error *err)
{
	const struct vm_net *net = &board->vm->nets[card];
	char name[NAMED_FDS_LENGTH + 8]; /* whatever the numbers */
	int fd, vhost_fd, r;

	snprintf(name, sizeof(name), VM_FD_NET "%u.%u", card, pair);
	r = take(fds, name, &fd, err);
	if (r < 0)
		return r;
	r = net->kind == VM_NET_USER
		    ? net_stream_new(&options->ports[pair], loop, fd, net->host, err)
		    : net_tap_new(&options->ports[pair], loop, fd, err);
	if (r < 0)
		return r;
	snprintf(name, sizeof(name), VM_FD_VHOST "%u.%u", card, pair);
	vhost_fd = named_fds_take(fds, name);
	/* What the kernel moves it does not limit. */
	if (net->rx_rate || net->tx_rate || net->rx_frames || net->tx_frames)
		vhost_fd = fd_close(vhost_fd);
	if (vhost_fd < 0 && net->vhost == VM_VHOST_ON)
		return error_set(err, -EBADF,
				 "cannot start: the descriptor named \"%s\" was not handed over",
				 name);
	if (vhost_fd < 0)
		return 0;
	r = vhost_net_new(&options->vhosts[pair], vhost_fd, options->ports[pair]->fd,
			  &board->memory, err);
	if (r < 0 && net->vhost != VM_VHOST_ON) {
		log_info("net%u: goes without vhost-net: %s", card, err->text);
		*err = ERROR_NULL;
		r = 0;
	}
	return r;
}

/* All pairs or none. */
static bool all_vhosts(struct vhost_net **vhosts, uint32_t n)
{
	uint32_t have = 0;

	for (uint32_t i = 0; i < n; i++)
		have += vhosts[i] != NULL;
	for (uint32_t i = 0; i < n && have < n; i++)
		vhosts[i] = vhost_net_free(vhosts[i]);
	return have == n;
}

static int net_setup(struct board *board, uint32_t card, struct named_fds *fds, struct error *err)
{
	const struct vm_net *net = &board->vm->nets[card];
	struct net_port *ports[VM_QUEUES_MAX] = {0};
	struct vhost_net *vhosts[VM_QUEUES_MAX] = {0};
	struct loop *loops[BOARD_IO_THREADS_MAX];
	char name[16];
	struct net_options options = {
		.name = name,
		.n_pairs = net->queues,
		.ports = ports,
		.vhosts = vhosts,
		.limits = {net->rx_rate, net->tx_rate, net->rx_frames, net->tx_frames},
	};
	uint32_t n_loops = io_loops(board, loops);
	int r = 0;

	snprintf(name, sizeof(name), "net%u", card);
	if (net->mac)
		r = vm_mac_parse(net->mac, options.mac);
	else
		vm_mac_make(board->vm->name, card, options.mac);
	for (uint32_t i = 0; i < net->queues && r == 0; i++)
		r = pair_setup(board, card, i, fds, loops[i % n_loops], &options, err);
	if (r < 0) {
		for (uint32_t i = 0; i < net->queues; i++) {
			vhosts[i] = vhost_net_free(vhosts[i]);
			if (ports[i])
				ports[i]->ops->free(ports[i]);
		}
		return error_prefix(err, "network card %u: ", card);
	}
	if (!all_vhosts(vhosts, net->queues))
		options.vhosts = NULL;
	r = net_new(&board->nets[card], &board->pci, BOARD_SLOT_NET + card, &board->memory, loops,
		    n_loops, &options, err);
	if (r < 0)
		return r;
	board->n_nets = card + 1;
	board_add(board, net_device(board->nets[card]));
	return 0;
}

/* The named channels: the guest agent's, then those of the description. */
static int ports_setup(struct board *board, struct named_fds *fds, struct loop *main,
		       struct error *err)
{
	const struct vm_description *vm = board->vm;
	int r = 0;

	if (vm->agent) {
		r = chardev_init_channel(&board->agent, main, err);
		if (r == 0)
			r = virtio_console_add_port(&board->console, BOARD_AGENT_PORT,
						    &board->agent, err);
	}
	for (uint32_t i = 0; i < vm->n_ports && r == 0; i++) {
		char name[16];
		int fd;

		snprintf(name, sizeof(name), VM_FD_PORT "%u", i);
		r = chardev_init_channel(&board->ports[i], main, err);
		if (r == 0)
			r = virtio_console_add_port(&board->console, vm->ports[i].name,
						    &board->ports[i], err);
		if (r == 0)
			r = take(fds, name, &fd, err);
		if (r == 0)
			chardev_attach(&board->ports[i], fd);
	}
	return r;
}

static int memory_devices_setup(struct board *board, struct loop *main, struct error *err)
{
	int r;

	if (!board->vm->balloon)
		return 0;
	r = balloon_init(&board->balloon, &board->pci, BOARD_SLOT_BALLOON, "balloon",
			 &board->memory, main, err);
	board_add(board, &board->balloon.pci.function.device);
	return r;
}

static int vsock_setup(struct board *board, struct named_fds *fds, struct loop *main,
		       struct error *err)
{
	int fd, r;

	if (!board->vm->vsock_cid)
		return 0;
	r = take(fds, VM_FD_VSOCK, &fd, err);
	if (r == 0)
		r = vsock_new(&board->vsock, &board->pci, BOARD_SLOT_VSOCK, "vsock", &board->memory,
			      main, board->vm->vsock_cid, fd, err);
	if (r == 0)
		board_add(board, vsock_device(board->vsock));
	return r;
}

static int watchdog_setup(struct board *board, struct loop *main, struct machine_events *events,
			  struct error *err)
{
	int r;

	if (board->vm->watchdog == VM_WATCHDOG_NONE)
		return 0;
	r = watchdog_init(&board->watchdog, &board->pci, BOARD_SLOT_WATCHDOG, "watchdog", main,
			  events, err);
	board_add(board, &board->watchdog.function.device);
	return r;
}

static int virtio_setup(struct board *board, struct named_fds *fds, struct loop *main,
			void (*disk_start)(void *), struct error *err)
{
	struct loop *loops[BOARD_IO_THREADS_MAX];
	bool console = board->vm->console.device == VM_CONSOLE_VIRTIO;
	int r;

	r = virtio_console_init(&board->console, &board->pci, BOARD_SLOT_CONSOLE, "console",
				&board->memory, main, console ? &board->chardev : NULL, err);
	board_add(board, &board->console.pci.function.device);
	if (r < 0 || (r = ports_setup(board, fds, main, err)) < 0)
		return r;
	if (board->vm->rng) {
		r = rng_init(&board->rng, &board->pci, BOARD_SLOT_RNG, "rng", &board->memory, main,
			     err);
		board_add(board, &board->rng.pci.function.device);
		if (r < 0)
			return r;
	}
	if ((r = memory_devices_setup(board, main, err)) < 0 ||
	    (r = vsock_setup(board, fds, main, err)) < 0)
		return r;
	r = board_disks_init(board, fds, main, loops, io_loops(board, loops), disk_start, err);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < board->vm->n_nets; i++) {
		r = net_setup(board, i, fds, err);
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
	       const struct board_options *options, struct error *err)
{
	struct machine_events *events = options->events;
	struct loop *main = options->main;
	int kvm_fd, r;

	board_null(board);
	board->vm = vm;
	board->watcher = options->watcher;
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
	if ((r = io_threads_setup(board, options->worker_start, err)) < 0)
		return r;
	if ((r = virtio_setup(board, fds, main, options->disk_start, err)) < 0)
		return r;
	if ((r = watchdog_setup(board, main, events, err)) < 0)
		return r;
	return hotplug_init(&board->hotplug, board, main, err);
}

bool board_address(const struct board *board, char text[16])
{
	for (uint32_t i = 0; i < board->n_nets; i++) {
		struct in_addr address = {.s_addr = net_address(board->nets[i])};

		if (address.s_addr && inet_ntop(AF_INET, &address, text, 16))
			return true;
	}
	return false;
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
		return error_prefix(
			err, "%s \"%s\"%s%s%s: ", board->vm->firmware ? "firmware" : "kernel",
			board->vm->firmware ? board->vm->firmware : board->vm->kernel,
			board->vm->initrd ? ", initrd \"" : "",
			board->vm->initrd ? board->vm->initrd : "", board->vm->initrd ? "\"" : "");
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
	hotplug_deinit(&board->hotplug);
	for (uint32_t i = board->n_devices; i-- > 0;)
		if (board->devices[i]->ops->deinit)
			board->devices[i]->ops->deinit(board->devices[i]);
	board_disks_deinit(board);
	for (uint32_t i = 0; i < board->n_io_threads; i++)
		io_thread_deinit(&board->io_threads[i]);
	board->vsock = vsock_free(board->vsock);
	for (uint32_t i = 0; i < board->n_nets; i++)
		board->nets[i] = net_free(board->nets[i]);
	if (board->chardev.source.loop)
		chardev_deinit(&board->chardev);
	if (board->agent.source.loop)
		chardev_deinit(&board->agent);
	for (uint32_t i = 0; i < VM_PORTS_MAX; i++)
		if (board->ports[i].source.loop)
			chardev_deinit(&board->ports[i]);
	memory_deinit(&board->memory);
	kvm_deinit(&board->kvm);
	board->kernel_fd = fd_close(board->kernel_fd);
	board->initrd_fd = fd_close(board->initrd_fd);
}
