/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: the network cards of a description. Out: an open descriptor for each queue pair, or one
 * sentence with the command that mends it. An interface that is not there is not made: it would be
 * on no bridge, so the guest would reach nobody and nobody would know why; and it would stay behind
 * when we are killed.
 */
#include "mgmt/local/nets.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/dying.h"
#include "mgmt/local/local.h"
#include "mgmt/local/open.h"

#define TUN_PATH   "/dev/net/tun"
#define VHOST_PATH "/dev/vhost-net"

/* Asked of the kernel: sysfs may show another network namespace than ours. */
static int interface_ask(const char *interface, unsigned long what, struct ifreq *request)
{
	_cleanup_(fd_closep) int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	snprintf(request->ifr_name, sizeof(request->ifr_name), "%s", interface);
	return ioctl(fd, what, request) < 0 ? -errno : 0;
}

static bool interface_is_up(const char *interface)
{
	struct ifreq request = {};

	return interface_ask(interface, SIOCGIFFLAGS, &request) >= 0 && request.ifr_flags & IFF_UP;
}

static bool interface_is_tap(const char *interface)
{
	struct ethtool_drvinfo info = {.cmd = ETHTOOL_GDRVINFO};
	struct ifreq request = {.ifr_data = (char *)&info};

	return interface_ask(interface, SIOCETHTOOL, &request) >= 0 &&
	       !strcmp(info.driver, "tun") && !strcmp(info.bus_info, "tap");
}

/* A tap has a carrier while somebody has it open. */
static bool interface_has_carrier(const char *interface)
{
	struct ethtool_value value = {.cmd = ETHTOOL_GLINK};
	struct ifreq request = {.ifr_data = (char *)&value};

	return interface_ask(interface, SIOCETHTOOL, &request) >= 0 && value.data;
}

static int absent_refuse(uint32_t i, const struct vm_net *net, struct error *err)
{
	const char *more = net->queues > 1 ? " multi_queue" : "";

	return error_set(
		err, -ENODEV,
		"net%u: there is no interface \"%s\"; make it and put it on a bridge: "
		"`sudo ip tuntap add dev %s mode tap user $USER vnet_hdr%s && sudo ip link set "
		"%s master BRIDGE up`, or use --net user",
		i, net->tap, net->tap, more, net->tap);
}

static int busy_refuse(uint32_t i, const struct vm_net *net, struct error *err)
{
	return error_set(
		err, -EBUSY,
		"net%u: tap \"%s\" is in use by another VM or program: give this VM one of "
		"its own",
		i, net->tap);
}

static int tap_check(uint32_t i, const struct vm_net *net, struct error *err)
{
	if (!if_nametoindex(net->tap))
		return absent_refuse(i, net, err);
	if (!interface_is_tap(net->tap))
		return error_set(err, -EINVAL,
				 "net%u: interface \"%s\" is no tap: give a VM a tap, which may be "
				 "on a bridge with it",
				 i, net->tap);
	return 0;
}

static int tun_refuse(uint32_t i, int code, struct error *err)
{
	const char *what = "";

	if (code == -ENOENT || code == -ENODEV || code == -ENXIO)
		what = "; load its module with `sudo modprobe tun`";
	else if (code == -EACCES || code == -EPERM)
		what = "; give yourself read and write rights on it";
	return error_set(err, code, "net%u: cannot open " TUN_PATH ": %s%s", i, strerror(-code),
			 what);
}

static int attach_refuse(uint32_t i, const struct vm_net *net, int code, struct error *err)
{
	if (code == -EBUSY)
		return busy_refuse(i, net, err);
	if (code == -EPERM || code == -EACCES)
		return error_set(err, code,
				 "net%u: tap \"%s\" is not yours: make it with `sudo ip tuntap add "
				 "dev %s mode tap user $USER vnet_hdr`, or run as root",
				 i, net->tap, net->tap);
	if (code == -EINVAL && net->queues > 1)
		return error_set(err, code,
				 "net%u: tap \"%s\" has one queue, not %u: make it with `sudo ip "
				 "tuntap add dev %s mode tap vnet_hdr multi_queue`",
				 i, net->tap, net->queues, net->tap);
	return error_set(err, code, "net%u: cannot use tap \"%s\": %s", i, net->tap,
			 strerror(-code));
}

static int tap_attach(const struct vm_net *net, short more, int fd)
{
	struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | more};

	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", net->tap);
	return ioctl(fd, TUNSETIFF, &request) < 0 ? -errno : 0;
}

/* One that was made with many queues opens only so, and would let us in beside whoever has it. */
static int pair_attach(uint32_t pair, const struct vm_net *net, int fd)
{
	bool busy = !pair && interface_has_carrier(net->tap);
	int r = net->queues > 1 ? -EINVAL : tap_attach(net, 0, fd);

	if (r == -EINVAL)
		r = busy ? -EBUSY : tap_attach(net, IFF_MULTI_QUEUE, fd);
	return r;
}

static int pair_open(uint32_t i, uint32_t pair, const struct vm_net *net, int *ret_fd,
		     struct error *err)
{
	_cleanup_(fd_closep) int fd = open(TUN_PATH, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	int r, waited = 0;

	if (fd < 0)
		return tun_refuse(i, -errno, err);
	do
		r = pair_attach(pair, net, fd);
	while (r == -EBUSY && dying_wait(&waited));
	if (r < 0)
		return attach_refuse(i, net, r, err);
	*ret_fd = take_fd(fd);
	return 0;
}

/* "net0.1" */
static void pair_add(struct grants *grants, const char *prefix, uint8_t i, uint8_t pair, int fd)
{
	char name[NAMED_FDS_LENGTH];

	snprintf(name, sizeof(name), "%s%u.%u", prefix, i, pair);
	grants_add(grants, name, fd);
}

static void down_warn(uint32_t i, const char *tap)
{
	if (!interface_is_up(tap))
		local_say("net%u: tap \"%s\" is down, nothing passes until `sudo ip link set %s "
			  "up`",
			  i, tap, tap);
}

static int tap_open(struct grants *grants, uint32_t i, const struct vm_net *net, struct error *err)
{
	int r = tap_check(i, net, err);

	for (uint32_t pair = 0; r >= 0 && pair < net->queues; pair++) {
		int fd = -1;

		r = pair_open(i, pair, net, &fd, err);
		if (r >= 0)
			pair_add(grants, VM_FD_NET, i, pair, fd);
	}
	return r;
}

static bool fd_is_ours(const struct grants *grants, int fd)
{
	for (uint32_t g = 0; g < grants->n_grants; g++)
		if (grants->list[g].fd == fd)
			return true;
	return false;
}

/* The descriptor itself goes on: a copy that stayed with us would keep the tap in use. */
static int fd_take(struct grants *grants, uint32_t i, const struct vm_net *net, struct error *err)
{
	struct ifreq request = {};
	int flags, fd = net->fd;

	if (fd_is_ours(grants, fd) || fcntl(fd, F_GETFD) < 0)
		return error_set(
			err, -EBADF,
			"net%u: descriptor %d is not open: whoever starts corral must hand "
			"it on, and each to one card only",
			i, fd);
	if (ioctl(fd, TUNGETIFF, &request) < 0 || !(request.ifr_flags & IFF_TAP))
		return error_set(err, -EINVAL, "net%u: descriptor %d is no tap", i, fd);
	if (!(request.ifr_flags & IFF_VNET_HDR) || !(request.ifr_flags & IFF_NO_PI))
		return error_set(
			err, -EINVAL,
			"net%u: descriptor %d is a tap without a vnet header: open it with "
			"IFF_TAP | IFF_NO_PI | IFF_VNET_HDR",
			i, fd);
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
	    fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return error_set(err, -errno, "net%u: cannot use descriptor %d: %s", i, fd,
				 strerror(errno));
	pair_add(grants, VM_FD_NET, i, 0, fd);
	return 0;
}

static int vhost_refuse(uint32_t i, int code, struct error *err)
{
	const char *what = "leave out vhost=on";

	if (code == -ENOENT || code == -ENODEV || code == -ENXIO)
		what = "load its module with `sudo modprobe vhost_net`, or leave out vhost=on";
	else if (code == -EACCES || code == -EPERM)
		what = "give yourself read and write rights on it, or leave out vhost=on";
	return error_set(err, code, "net%u: cannot open " VHOST_PATH ": %s; %s", i, strerror(-code),
			 what);
}

/* With a rate to keep the frames must pass through our hands. */
static bool vhost_wanted(const struct vm_net *net)
{
	if (net->kind == VM_NET_USER || net->vhost == VM_VHOST_OFF)
		return false;
	return !net->rx_rate && !net->tx_rate && !net->rx_frames && !net->tx_frames;
}

static int vhost_open(struct grants *grants, uint32_t i, const struct vm_net *net,
		      struct error *err)
{
	if (!vhost_wanted(net))
		return 0;
	for (uint32_t pair = 0; pair < net->queues; pair++) {
		int fd = open(VHOST_PATH, O_RDWR | O_CLOEXEC);

		if (fd >= 0)
			pair_add(grants, VM_FD_VHOST, i, pair, fd);
		else if (net->vhost == VM_VHOST_ON)
			return vhost_refuse(i, -errno, err);
		else if (!pair)
			return 0;
		else
			return error_set(err, -errno, "net%u: cannot open " VHOST_PATH ": %s", i,
					 strerror(errno));
	}
	return 0;
}

static int user_open(struct nets *nets, struct grants *grants, uint32_t i, const struct vm_net *net,
		     struct error *err)
{
	int fd, r = passt_start(&nets->passts[nets->n_passts], i, net, &fd, err);

	if (r < 0)
		return r;
	nets->n_passts++;
	pair_add(grants, VM_FD_NET, i, 0, fd);
	return 0;
}

static int forward_check(const struct vm_description *vm, uint32_t i, uint32_t f, struct error *err)
{
	const struct vm_forward *forward = &vm->nets[i].forwards[f];

	for (uint32_t j = 0; j <= i; j++)
		for (uint32_t g = 0; g < (j < i ? vm->nets[j].n_forwards : f); g++) {
			const struct vm_forward *other = &vm->nets[j].forwards[g];

			if (other->protocol == forward->protocol &&
			    other->host_port == forward->host_port)
				return error_set(err, -EINVAL,
						 "net%u: %s port %u of the host is forwarded twice",
						 i, forward->protocol == VM_TCP ? "tcp" : "udp",
						 forward->host_port);
		}
	return 0;
}

static int net_check(const struct vm_description *vm, uint32_t i, struct error *err)
{
	int r = 0;

	for (uint32_t f = 0; r >= 0 && f < vm->nets[i].n_forwards; f++)
		r = forward_check(vm, i, f, err);
	for (uint32_t j = 0; r >= 0 && j < i; j++)
		if (vm->nets[i].kind == VM_NET_TAP && vm->nets[j].kind == VM_NET_TAP &&
		    !strcmp(vm->nets[i].tap, vm->nets[j].tap))
			r = error_set(err, -EINVAL,
				      "net%u: tap \"%s\" is net%u's: give each card one of its own",
				      i, vm->nets[i].tap, j);
	return r;
}

static int net_open(struct nets *nets, struct grants *grants, uint32_t i, const struct vm_net *net,
		    struct error *err)
{
	int r;

	if (net->kind == VM_NET_USER)
		return user_open(nets, grants, i, net, err);
	r = net->kind == VM_NET_TAP ? tap_open(grants, i, net, err) : fd_take(grants, i, net, err);
	if (r >= 0)
		r = vhost_open(grants, i, net, err);
	if (r >= 0 && net->kind == VM_NET_TAP)
		down_warn(i, net->tap);
	return r;
}

int nets_open(struct nets *nets, struct grants *grants, const struct vm_description *vm,
	      struct error *err)
{
	int r = 0;

	for (uint32_t i = 0; r >= 0 && i < vm->n_nets; i++)
		r = net_check(vm, i, err);
	for (uint32_t i = 0; r >= 0 && i < vm->n_nets; i++)
		r = net_open(nets, grants, i, &vm->nets[i], err);
	return r;
}

static void net_print(const struct vm_net *net, uint32_t i, FILE *file)
{
	bool vhost = vhost_wanted(net);

	for (uint32_t pair = 0; pair < net->queues; pair++) {
		if (net->kind == VM_NET_TAP)
			fprintf(file, "  " VM_FD_NET "%u.%u   %s as tap \"%s\" (read and write)\n",
				i, pair, TUN_PATH, net->tap);
		else if (net->kind == VM_NET_FD)
			fprintf(file, "  " VM_FD_NET "%u.%u   descriptor %u, open already\n", i,
				pair, net->fd);
		else
			fprintf(file,
				"  " VM_FD_NET "%u.%u   a socket with passt at its other end\n", i,
				pair);
		if (vhost)
			fprintf(file, "  " VM_FD_VHOST "%u.%u " VHOST_PATH " (read and write%s)\n",
				i, pair, net->vhost == VM_VHOST_AUTO ? ", where there is one" : "");
	}
}

void nets_print(const struct vm_description *vm, FILE *file)
{
	bool title = false;

	for (uint32_t i = 0; i < vm->n_nets; i++)
		net_print(&vm->nets[i], i, file);
	for (uint32_t i = 0; i < vm->n_nets; i++) {
		if (vm->nets[i].kind != VM_NET_USER)
			continue;
		if (!title)
			fprintf(file, "would start:\n");
		title = true;
		fprintf(file, "  " VM_FD_NET "%u     ", i);
		passt_print(file, &vm->nets[i]);
	}
}

int nets_wait(struct nets *nets, struct error *err)
{
	int r = 0;

	for (uint32_t i = 0; r >= 0 && i < nets->n_passts; i++)
		r = passt_wait(&nets->passts[i], err);
	return r;
}

void nets_deinit(struct nets *nets)
{
	for (uint32_t i = 0; i < nets->n_passts; i++)
		passt_deinit(&nets->passts[i]);
	nets->n_passts = 0;
}
