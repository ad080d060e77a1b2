/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vhost-net twice. Against a kernel that is played here, by an ioctl of our own: what is asked of
 * it in which order, and each way it may refuse. And where /dev/vhost-net is (tools/lab has it),
 * against the real one: a device of two queues, a tap in a network namespace of the test's own, and
 * a packet socket at its other side.
 */
#include <criterion/criterion.h>
#include <criterion/hooks.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/vhost.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>

/* linux/vhost.h brings numbers of bits by names that are masks with us. */
#undef VIRTIO_F_VERSION_1

#include "base/atomic.h"
#include "base/fd.h"
#include "devices/registers.h"
#include "devices/test-board.h"
#include "virtio/net-port.h"
#include "virtio/test-driver.h"
#include "virtio/vhost.h"

#define FEATURE(bit) (1ull << (bit))
#define MERGEABLE    FEATURE(VIRTIO_NET_F_MRG_RXBUF)
#define RECEIVES     0u
#define TRANSMITS    1u
#define WAIT_MS      10000

/* The kernel that is played */

static struct played {
	int fd, tap_fd;         /* requests to these two come here; 0: to the real kernel */
	int n, fail_at, reason; /* requests so far; the one to refuse, from 1 */
	uint64_t kernel_features;
	short tap_flags;

	bool owned;
	int tap_header;
	unsigned long tap_offloads;
	uint64_t features;
	struct vhost_memory_region regions[MEMORY_REGIONS_MAX];
	uint32_t n_regions;
	struct {
		uint32_t size, base;
		struct vhost_vring_addr addresses;
		int kick_fd, call_fd, tap_fd;
	} queues[2];
} played;

static int play_memory(const struct vhost_memory *table)
{
	cr_assert_leq(table->nregions, MEMORY_REGIONS_MAX);
	played.n_regions = table->nregions;
	memcpy(played.regions, table->regions, table->nregions * sizeof(table->regions[0]));
	return 0;
}

static int play_state(unsigned long request, struct vhost_vring_state *state)
{
	cr_assert_lt(state->index, 2);
	if (request == VHOST_GET_VRING_BASE) {
		cr_assert_eq(played.queues[state->index].tap_fd, -1, "it moves on");
		state->num = played.queues[state->index].base;
		return 0;
	}
	/* As the kernel has it. */
	if (played.queues[state->index].tap_fd >= 0)
		return EBUSY;
	if (request == VHOST_SET_VRING_NUM)
		played.queues[state->index].size = state->num;
	else
		played.queues[state->index].base = state->num;
	return 0;
}

static int play_file(unsigned long request, const struct vhost_vring_file *file)
{
	cr_assert_lt(file->index, 2);
	if (request == VHOST_SET_VRING_KICK)
		played.queues[file->index].kick_fd = file->fd;
	else if (request == VHOST_SET_VRING_CALL)
		played.queues[file->index].call_fd = file->fd;
	else
		played.queues[file->index].tap_fd = file->fd;
	if (request == VHOST_NET_SET_BACKEND && file->fd >= 0) {
		cr_assert_geq(played.queues[file->index].kick_fd, 0, "it runs, and hears nothing");
		cr_assert_neq(played.queues[file->index].addresses.used_user_addr, 0);
	}
	return 0;
}

static int play_tap(unsigned long request, void *argument)
{
	switch (request) {
	case TUNGETIFF:
		strcpy(((struct ifreq *)argument)->ifr_name, "played");
		((struct ifreq *)argument)->ifr_flags = played.tap_flags;
		return 0;
	case TUNSETVNETHDRSZ:
		played.tap_header = *(int *)argument;
		return 0;
	case TUNSETOFFLOAD:
		played.tap_offloads = (unsigned long)argument;
		return 0;
	default:
		cr_assert_fail("the tap is asked for 0x%lx", request);
		return EINVAL;
	}
}

static int play(unsigned long request, void *argument)
{
	cr_assert(played.owned || request == VHOST_SET_OWNER, "0x%lx before it is ours", request);
	switch (request) {
	case VHOST_SET_OWNER:
		played.owned = true;
		return 0;
	case VHOST_GET_FEATURES:
		*(uint64_t *)argument = played.kernel_features;
		return 0;
	case VHOST_SET_FEATURES:
		played.features = *(uint64_t *)argument;
		return 0;
	case VHOST_SET_MEM_TABLE:
		return play_memory(argument);
	case VHOST_SET_VRING_NUM:
	case VHOST_SET_VRING_BASE:
	case VHOST_GET_VRING_BASE:
		return play_state(request, argument);
	case VHOST_SET_VRING_ADDR:
		memcpy(&played.queues[((struct vhost_vring_addr *)argument)->index].addresses,
		       argument, sizeof(struct vhost_vring_addr));
		return 0;
	case VHOST_SET_VRING_KICK:
	case VHOST_SET_VRING_CALL:
	case VHOST_NET_SET_BACKEND:
		return play_file(request, argument);
	default:
		cr_assert_fail("vhost-net is asked for 0x%lx", request);
		return EINVAL;
	}
}

/* In the place of libc's, for all that is linked here. */
int ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	void *argument;

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	if (!played.fd || (fd != played.fd && fd != played.tap_fd))
		return (int)syscall(SYS_ioctl, fd, request, argument);
	errno = ++played.n == played.fail_at ? played.reason
		: fd == played.fd            ? play(request, argument)
					     : play_tap(request, argument);
	return errno ? -1 : 0;
}

/* A memory and a ring for it, without a device */

static struct guest_memory memory;
static struct vhost_net *vhost;
static struct virtqueue ring;
static int kick_fd;

#define RING_AT 0x10000

static void ring_set_up(void)
{
	ring = (struct virtqueue){.memory = &memory, .size_max = 256};
	ring.state = (struct virtqueue_state){
		.size = 128,
		.enabled = true,
		.descriptors = RING_AT,
		.available = RING_AT + 0x1000,
		.used = RING_AT + 0x2000,
		.next_available = 65530,
		.next_used = 65530,
	};
	cr_assert_eq(virtqueue_map(&ring), 0);
	atomic_store(&ring.call_fd, 77);
}

static void set_up_played(void)
{
	const struct memory_options options = {.kind = MEMORY_PRIVATE};
	const struct memory_range ranges[] = {{0, 1 << 20}, {1ull << 32, 2 << 20}};
	struct error err = ERROR_NULL;

	cr_assert_eq(memory_init(&memory, &options, ranges, 2, &err), 0, "%s", err.text);
	ring_set_up();
	kick_fd = eventfd(0, EFD_CLOEXEC);
	played = (struct played){
		.fd = eventfd(0, EFD_CLOEXEC),
		.tap_fd = eventfd(0, EFD_CLOEXEC),
		.reason = EIO,
		.kernel_features = UINT64_MAX,
		.tap_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR),
		.queues = {{.kick_fd = -1, .call_fd = -1, .tap_fd = -1},
			   {.kick_fd = -1, .call_fd = -1, .tap_fd = -1}},
	};
}

static void tear_down_played(void)
{
	vhost = vhost_net_free(vhost);
	kick_fd = fd_close(kick_fd);
	fd_close(played.tap_fd);
	memory_deinit(&memory);
}

TestSuite(played, .init = set_up_played, .fini = tear_down_played);

static void make(void)
{
	struct error err = ERROR_NULL;

	cr_assert_eq(vhost_net_new(&vhost, played.fd, played.tap_fd, &memory, &err), 0, "%s",
		     err.text);
}

#define ALL (MERGEABLE | VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC)

static int start(uint32_t queue)
{
	return vhost_net_start(vhost, queue, &ring, kick_fd, ALL);
}

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

Test(played, it_learns_the_memory_and_the_tap)
{
	make();
	cr_assert_eq(played.n_regions, 2);
	for (uint32_t i = 0; i < 2; i++) {
		cr_assert_eq(played.regions[i].guest_phys_addr, memory.regions[i].start);
		cr_assert_eq(played.regions[i].memory_size, memory.regions[i].size);
		cr_assert_eq(played.regions[i].userspace_addr, (uintptr_t)memory.regions[i].host);
	}
	cr_assert_eq(played.tap_header, NET_HEADER_SIZE);
}

/* Expects no: a sentence, the descriptor closed, the tap not. */
static void refused(int code)
{
	struct error err = ERROR_NULL;
	int fd = played.fd;

	cr_assert_eq(vhost_net_new(&vhost, fd, played.tap_fd, &memory, &err), code);
	cr_assert_eq(err.code, code);
	cr_assert(strstr(err.text, "vhost-net"), "%s", err.text);
	cr_assert_not(is_open(fd));
	cr_assert(is_open(played.tap_fd));
	cr_assert_null(vhost);
}

Test(played, whatever_is_refused_first_is_told)
{
	int n;

	make();
	n = played.n;
	vhost = vhost_net_free(vhost);
	for (int i = 1; i <= n; i++) {
		played.fd = eventfd(0, EFD_CLOEXEC);
		played.owned = false;
		played.n = 0;
		played.fail_at = i;
		refused(-EIO);
		cr_assert_eq(played.n, i, "it goes on after request %d was refused", i);
	}
}

Test(played, a_descriptor_in_use_is_told)
{
	struct error err = ERROR_NULL;

	played.fail_at = 1;
	played.reason = EBUSY;
	cr_assert_eq(vhost_net_new(&vhost, played.fd, played.tap_fd, &memory, &err), -EBUSY);
	cr_assert(strstr(err.text, "in use"), "%s", err.text);
}

Test(played, a_kernel_without_virtio_1_will_not_do)
{
	played.kernel_features = ~VIRTIO_F_VERSION_1;
	refused(-EOPNOTSUPP);
}

Test(played, a_tap_without_headers_will_not_do)
{
	played.tap_flags = (short)(IFF_TAP | IFF_NO_PI);
	refused(-EINVAL);
}

Test(played, a_tun_will_not_do)
{
	played.tap_flags = (short)(IFF_TUN | IFF_NO_PI | IFF_VNET_HDR);
	refused(-EINVAL);
}

Test(played, nothing_is_no_vhost)
{
	cr_assert_null(vhost_net_free(NULL));
	close(played.fd);
}

Test(played, it_serves_what_it_only_passes_on)
{
	const uint64_t passed = FEATURE(VIRTIO_NET_F_CSUM) | FEATURE(VIRTIO_NET_F_GUEST_TSO4) |
				FEATURE(VIRTIO_NET_F_MAC) | FEATURE(VIRTIO_NET_F_STATUS) |
				FEATURE(VIRTIO_NET_F_CTRL_VQ) | FEATURE(VIRTIO_NET_F_MQ);

	played.kernel_features = VIRTIO_F_VERSION_1;
	make();
	cr_assert_eq(vhost_net_features(vhost) & passed, passed);
	cr_assert_eq(vhost_net_features(vhost) & (ALL | VIRTIO_F_VERSION_1), VIRTIO_F_VERSION_1);
}

Test(played, it_serves_no_rings_we_do_not_know)
{
	make();
	cr_assert_eq(vhost_net_features(vhost) & ALL, ALL);
	/* Logs, headers of its own, packed rings, hashes. */
	for (uint32_t bit = 24; bit < 28; bit++)
		cr_assert_not(vhost_net_features(vhost) & FEATURE(bit), "bit %u", bit);
	for (uint32_t bit = 33; bit < 54; bit++)
		cr_assert_not(vhost_net_features(vhost) & FEATURE(bit), "bit %u", bit);
	cr_assert_not(vhost_net_features(vhost) & FEATURE(VIRTIO_NET_F_HASH_REPORT));
	cr_assert_not(vhost_net_features(vhost) & FEATURE(VIRTIO_NET_F_RSS));
}

Test(played, a_start_tells_where_the_ring_is_and_how_far)
{
	make();
	cr_assert_eq(start(TRANSMITS), 0);
	cr_assert_eq(played.features, ALL);
	cr_assert_eq(played.queues[1].size, 128);
	cr_assert_eq(played.queues[1].base, 65530);
	cr_assert_eq(played.queues[1].addresses.desc_user_addr, (uintptr_t)ring.descriptors);
	cr_assert_eq(played.queues[1].addresses.avail_user_addr, (uintptr_t)ring.available_ring);
	cr_assert_eq(played.queues[1].addresses.used_user_addr, (uintptr_t)ring.used_ring);
	cr_assert_eq(played.queues[1].addresses.flags, 0);
	cr_assert_eq(played.queues[1].kick_fd, kick_fd);
	cr_assert_eq(played.queues[1].call_fd, 77);
	cr_assert_eq(played.queues[1].tap_fd, played.tap_fd);
	cr_assert_eq(played.queues[0].tap_fd, -1);
}

Test(played, a_ring_without_interrupt_starts)
{
	make();
	atomic_store(&ring.call_fd, -1);
	cr_assert_eq(start(RECEIVES), 0);
	cr_assert_eq(played.queues[0].call_fd, -1);
	cr_assert_eq(played.queues[0].tap_fd, played.tap_fd);
}

Test(played, features_between_guest_and_tap_are_the_taps)
{
	static const struct {
		uint64_t features;
		unsigned long offloads;
	} cases[] = {
		{0, 0},
		{FEATURE(VIRTIO_NET_F_GUEST_TSO4), 0},
		{FEATURE(VIRTIO_NET_F_GUEST_CSUM), TUN_F_CSUM},
		{FEATURE(VIRTIO_NET_F_GUEST_CSUM) | FEATURE(VIRTIO_NET_F_GUEST_ECN), TUN_F_CSUM},
		{FEATURE(VIRTIO_NET_F_GUEST_CSUM) | FEATURE(VIRTIO_NET_F_GUEST_TSO4) |
			 FEATURE(VIRTIO_NET_F_GUEST_ECN),
		 TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO_ECN},
		{FEATURE(VIRTIO_NET_F_GUEST_CSUM) | FEATURE(VIRTIO_NET_F_GUEST_TSO6),
		 TUN_F_CSUM | TUN_F_TSO6},
		{FEATURE(VIRTIO_NET_F_GUEST_CSUM) | FEATURE(54), TUN_F_CSUM},
		{FEATURE(VIRTIO_NET_F_GUEST_CSUM) | FEATURE(54) | FEATURE(55), TUN_F_CSUM | 0x60},
	};

	make();
	for (uint32_t i = 0; i < ARRAY_SIZE(cases); i++) {
		cr_assert_eq(vhost_net_start(vhost, 0, &ring, kick_fd,
					     cases[i].features | VIRTIO_F_VERSION_1),
			     0);
		cr_assert_eq(played.tap_offloads, cases[i].offloads, "case %u", i);
		cr_assert_eq(played.features, VIRTIO_F_VERSION_1, "case %u", i);
		cr_assert_eq(vhost_net_stop(vhost, 0, &ring), 0);
	}
}

Test(played, features_the_kernel_lacks_start_nothing)
{
	played.kernel_features = ALL & ~VIRTIO_F_EVENT_IDX;
	make();
	played.n = 0;
	cr_assert_eq(start(RECEIVES), -EOPNOTSUPP);
	cr_assert_eq(played.n, 0);
}

Test(played, a_refused_start_leaves_nothing_behind)
{
	int n;

	make();
	played.n = 0;
	cr_assert_eq(start(RECEIVES), 0);
	n = played.n;
	cr_assert_eq(vhost_net_stop(vhost, RECEIVES, &ring), 0);
	for (int i = 1; i <= n; i++) {
		played.n = 0;
		played.fail_at = i;
		cr_assert_eq(start(RECEIVES), -EIO, "request %d", i);
		cr_assert_eq(played.queues[0].kick_fd, -1, "request %d", i);
		cr_assert_eq(played.queues[0].call_fd, -1, "request %d", i);
		cr_assert_eq(played.queues[0].tap_fd, -1, "request %d", i);
	}
	played.fail_at = 0;
	cr_assert_eq(start(RECEIVES), 0, "it may be tried again");
}

/* How far the kernel has come: its own position, and the index it wrote. */
static void come_to(uint16_t position)
{
	played.queues[0].base = position;
	((struct test_used *)ring.used_ring)->index = position;
}

Test(played, a_stop_brings_the_positions_back)
{
	make();
	cr_assert_eq(start(RECEIVES), 0);
	come_to(3);
	cr_assert_eq(vhost_net_stop(vhost, RECEIVES, &ring), 0);
	cr_assert_eq(ring.state.next_available, 3);
	cr_assert_eq(ring.state.next_used, 3);
	cr_assert_eq(played.queues[0].tap_fd, -1);
	cr_assert_eq(played.queues[0].kick_fd, -1);
	cr_assert_eq(played.queues[0].call_fd, -1);
}

Test(played, a_stop_that_is_refused_does_what_it_can)
{
	int n;

	make();
	cr_assert_eq(start(RECEIVES), 0);
	played.n = 0;
	cr_assert_eq(vhost_net_stop(vhost, RECEIVES, &ring), 0);
	n = played.n;
	/* The first has the kernel let go: without that there is nothing to look at. */
	for (int i = 2; i <= n; i++) {
		played.fail_at = 0;
		cr_assert_eq(start(RECEIVES), 0);
		come_to((uint16_t)(100 + i));
		played.n = 0;
		played.fail_at = i;
		cr_assert_eq(vhost_net_stop(vhost, RECEIVES, &ring), -EIO, "request %d", i);
		cr_assert_eq(played.n, n, "it gives up after request %d", i);
		cr_assert_eq(ring.state.next_available, 100 + i, "request %d", i);
		cr_assert_eq(ring.state.next_used, 100 + i, "request %d", i);
	}
}

Test(played, the_call_may_change)
{
	make();
	cr_assert_eq(start(TRANSMITS), 0);
	cr_assert_eq(vhost_net_call(vhost, TRANSMITS, 78), 0);
	cr_assert_eq(played.queues[1].call_fd, 78);
	cr_assert_eq(vhost_net_call(vhost, TRANSMITS, -1), 0);
	cr_assert_eq(played.queues[1].call_fd, -1);
	played.n = 0;
	played.fail_at = 1;
	cr_assert_eq(vhost_net_call(vhost, TRANSMITS, 79), -EIO);
}

Test(played, it_may_go_while_it_runs)
{
	make();
	cr_assert_eq(start(RECEIVES), 0);
	cr_assert_eq(start(TRANSMITS), 0);
	vhost = vhost_net_free(vhost);
	cr_assert_not(is_open(played.fd));
	cr_assert(is_open(played.tap_fd));
}

/* The kernel that is there */

#define TAP       "corraltap"
#define OURS      0x88b5 /* the type of our frames: for experiments, so nobody else sends it */
#define BUFFERS   16
#define DEVICE_OK (ALL | FEATURE(VIRTIO_NET_F_GUEST_CSUM))

static const struct device_ops plain_ops = {.type = "card"};

/* A card that has no more to it than its two queues, which vhost serves. */
static struct card {
	struct device device;
	struct virtio_device virtio;
	struct vhost_net *vhost;
	bool here; /* not vhost: `run` is all that happens */
	int tap_fd, socket, n_runs, n_done, call_result;
	uint32_t index; /* of the tap */
	gpa_t buffers[BUFFERS];
	uint32_t buffer_size;
} card;

static struct test_driver driver;

static bool card_offload(struct virtio_device *virtio, struct virtio_queue *queue)
{
	if (card.here)
		return false;
	cr_assert_eq(vhost_net_start(card.vhost, queue->ring.index, &queue->ring, queue->kick_fd,
				     virtio->accepted),
		     0);
	return true;
}

static void card_call_changed(struct virtio_device *virtio _unused_, struct virtio_queue *queue)
{
	card.call_result =
		vhost_net_call(card.vhost, queue->ring.index, atomic_load(&queue->ring.call_fd));
}

static void card_stop(struct virtio_device *virtio _unused_, struct virtio_queue *queue)
{
	if (queue->offloaded)
		cr_assert_eq(vhost_net_stop(card.vhost, queue->ring.index, &queue->ring), 0);
}

/* Gives chains back untouched, one a kick. */
static void card_run(struct virtio_device *virtio _unused_, struct virtio_queue *queue)
{
	struct iovec iov[4];
	struct virtqueue_chain chain = {.iov = iov, .iov_max = ARRAY_SIZE(iov)};

	card.n_runs++;
	if (queue->ring.index == TRANSMITS && virtqueue_pop(&queue->ring, &chain) > 0)
		virtqueue_push(&queue->ring, chain.head, 0);
	virtqueue_publish(&queue->ring);
	virtqueue_kicks_on(&queue->ring);
}

static const struct virtio_ops card_ops = {
	.type = "card",
	.id = 1,
	.offload = card_offload,
	.call_changed = card_call_changed,
	.run = card_run,
	.stop = card_stop,
};

static void open_tap(void)
{
	struct ifreq request = {.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)};

	card.tap_fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	cr_assert_geq(card.tap_fd, 0, "/dev/net/tun: %s", strerror(errno));
	strcpy(request.ifr_name, TAP);
	cr_assert_eq(ioctl(card.tap_fd, TUNSETIFF, &request), 0, "%s", strerror(errno));
	card.index = if_nametoindex(TAP);
}

/* The other side: sees what the guest sends, and sends to it. */
static void open_socket(void)
{
	struct sockaddr_ll address = {.sll_family = AF_PACKET,
				      .sll_protocol = htobe16(OURS),
				      .sll_ifindex = (int)card.index};
	struct ifreq request = {.ifr_flags = IFF_UP};

	card.socket = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	cr_assert_geq(card.socket, 0);
	strcpy(request.ifr_name, TAP);
	cr_assert_eq(ioctl(card.socket, SIOCSIFFLAGS, &request), 0);
	cr_assert_eq(bind(card.socket, (struct sockaddr *)&address, sizeof(address)), 0);
}

static void turn(void)
{
	test_driver_turn(&driver);
}

static void set_up_real(void)
{
	struct error err = ERROR_NULL;
	int fd = open("/dev/vhost-net", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		cr_skip_test("no /dev/vhost-net here, or no right to it: %s", strerror(errno));
	if (unshare(CLONE_NEWNET) < 0)
		cr_skip_test("no right to make a network namespace: %s", strerror(errno));
	card = (struct card){.call_result = 1, .buffer_size = 2048};
	open_tap();
	open_socket();
	test_driver_init(&driver);
	cr_assert_eq(vhost_net_new(&card.vhost, fd, card.tap_fd, &driver.memory, &err), 0, "%s",
		     err.text);
	device_init(&card.device, &plain_ops, "card");
	card.virtio.offered = vhost_net_features(card.vhost);
	cr_assert_eq(virtio_init(&card.virtio, &card_ops, &card.device, &driver.memory, 2, 64,
				 &driver.loop, 1, &err),
		     0, "%s", err.text);
}

static void tear_down_real(void)
{
	card.vhost = vhost_net_free(card.vhost);
	virtio_deinit(&card.virtio);
	test_driver_deinit(&driver);
	card.tap_fd = fd_close(card.tap_fd);
	card.socket = fd_close(card.socket);
}

TestSuite(real, .init = set_up_real, .fini = tear_down_real);

static void start_card(void)
{
	test_driver_start(&driver, &card.virtio, DEVICE_OK & card.virtio.offered);
	turn();
	cr_assert(card.virtio.queues[RECEIVES].offloaded);
	cr_assert(card.virtio.queues[TRANSMITS].offloaded);
}

static void on_done(struct device_waiter *waiter _unused_, struct device *device _unused_)
{
	card.n_done++;
}

static void pause_card(void)
{
	static struct device_waiter waiter = {on_done};
	int before = card.n_done;

	virtio_pause(&card.virtio, &waiter);
	turn();
	cr_assert_eq(card.n_done, before + 1);
}

static void resume_card(void)
{
	virtio_resume(&card.virtio);
	turn();
}

/* Buffers for what comes in, by the head of their chains. */
static void offer_buffers(uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		gpa_t gpa = test_driver_alloc(&driver, card.buffer_size, 16);
		struct test_buffer buffer = {gpa, card.buffer_size};
		uint16_t head = test_driver_add(&driver, RECEIVES, NULL, 0, &buffer, 1, false);

		cr_assert_lt(head, BUFFERS);
		card.buffers[head] = gpa;
	}
	test_driver_kick(&driver, RECEIVES);
}

static void wait_for(int fd, const char *what)
{
	struct pollfd wait = {.fd = fd, .events = POLLIN};

	cr_assert_eq(poll(&wait, 1, WAIT_MS), 1, "%s does not come", what);
}

/* The next chain the kernel gives back, waited for by its interrupt. */
static uint16_t next_chain(uint32_t queue, uint32_t *ret_length)
{
	int call_fd = driver.rings[queue].call_fd;
	uint16_t head;

	while (!test_driver_reap(&driver, queue, &head, ret_length)) {
		wait_for(call_fd, "an interrupt");
		test_eventfd_take(call_fd);
	}
	return head;
}

struct frame {
	struct ethhdr head;
	uint8_t number;
	uint8_t rest[1485];
} __attribute__((packed));

static struct frame make_frame(uint8_t number)
{
	struct frame frame = {.number = number, .head.h_proto = htobe16(OURS)};

	memset(frame.head.h_dest, 0xff, sizeof(frame.head.h_dest));
	frame.head.h_source[0] = 0x52;
	for (uint32_t i = 0; i < sizeof(frame.rest); i++)
		frame.rest[i] = (uint8_t)(number + i);
	return frame;
}

static void host_sends(uint8_t number, uint32_t size)
{
	struct frame frame = make_frame(number);

	cr_assert_eq(send(card.socket, &frame, size, 0), (ssize_t)size, "%s", strerror(errno));
}

static void guest_sends(uint8_t number)
{
	struct frame frame = make_frame(number);
	uint8_t header[NET_HEADER_SIZE] = {0};
	struct test_buffer out[2] = {test_driver_put(&driver, header, sizeof(header)),
				     test_driver_put(&driver, &frame, sizeof(frame))};

	test_driver_add(&driver, TRANSMITS, out, 2, NULL, 0, false);
	test_driver_kick(&driver, TRANSMITS);
}

static void host_has(uint8_t number)
{
	struct frame expected = make_frame(number), frame;

	wait_for(card.socket, "a frame of the guest");
	cr_assert_eq(recv(card.socket, &frame, sizeof(frame), 0), (ssize_t)sizeof(frame));
	cr_assert_arr_eq(&frame, &expected, sizeof(frame));
}

/*
 * The next frame of ours that came in, its pieces put together; others, which the host's IPv6
 * sends, go by. Returns its length and how many buffers it took.
 */
static uint32_t guest_takes(uint8_t *data, uint32_t *ret_buffers)
{
	struct virtio_net_hdr_v1 header;
	const struct ethhdr *head = (const struct ethhdr *)(data + NET_HEADER_SIZE);
	uint32_t size, length;

	do {
		uint16_t chain = next_chain(RECEIVES, &size);

		memcpy(data, test_driver_at(&driver, card.buffers[chain]), size);
		memcpy(&header, data, sizeof(header));
		for (uint32_t i = 1; i < header.num_buffers; i++, size += length) {
			chain = next_chain(RECEIVES, &length);
			memcpy(data + size, test_driver_at(&driver, card.buffers[chain]), length);
		}
		*ret_buffers = header.num_buffers;
	} while (head->h_proto != htobe16(OURS));
	return size;
}

static void guest_has(uint8_t number, uint32_t expected_size)
{
	static uint8_t data[65536];
	struct frame expected = make_frame(number);
	uint32_t buffers, size = guest_takes(data, &buffers);

	cr_assert_eq(size, NET_HEADER_SIZE + expected_size);
	cr_assert_eq(buffers, (size + card.buffer_size - 1) / card.buffer_size);
	cr_assert_arr_eq(data + NET_HEADER_SIZE, &expected, expected_size);
}

Test(real, frames_go_both_ways)
{
	uint32_t length;

	start_card();
	offer_buffers(8);
	for (uint8_t i = 0; i < 4; i++) {
		host_sends(i, sizeof(struct frame));
		guest_has(i, sizeof(struct frame));
		guest_sends(100 + i);
		host_has(100 + i);
		next_chain(TRANSMITS, &length);
	}
	cr_assert_eq(card.n_runs, 0);
	cr_assert_eq(card.virtio.queues[TRANSMITS].ring.n_kicks, 0, "the loop hears none");
}

Test(real, a_frame_is_spread_over_small_buffers)
{
	start_card();
	card.buffer_size = 512;
	offer_buffers(12);
	host_sends(1, sizeof(struct frame));
	guest_has(1, sizeof(struct frame));
	host_sends(2, 300);
	guest_has(2, 300);
}

Test(real, what_was_offered_before_the_start_is_served)
{
	start_card();
	pause_card();
	guest_sends(1);
	guest_sends(2);
	offer_buffers(8);
	host_sends(3, 64);
	resume_card();
	host_has(1);
	host_has(2);
	guest_has(3, 64);
}

Test(real, positions_outlast_stops)
{
	uint32_t length;

	start_card();
	offer_buffers(16);
	for (uint8_t i = 0; i < 4; i++) {
		const struct virtqueue_state *out = &card.virtio.queues[TRANSMITS].ring.state;
		const struct virtqueue_state *in = &card.virtio.queues[RECEIVES].ring.state;

		guest_sends(i);
		host_has(i);
		host_sends(50 + i, 100);
		guest_has(50 + i, 100);
		next_chain(TRANSMITS, &length);
		pause_card();
		cr_assert_eq(out->next_available, i + 1);
		cr_assert_eq(out->next_used, i + 1);
		cr_assert_eq(in->next_available, in->next_used);
		cr_assert_eq(in->next_used, driver.rings[RECEIVES].used->index);
		resume_card();
	}
}

Test(real, a_queue_comes_back_here_and_goes_again)
{
	uint32_t length;

	start_card();
	guest_sends(1);
	host_has(1);
	next_chain(TRANSMITS, &length);
	pause_card();
	card.here = true;
	resume_card();
	guest_sends(2);
	turn();
	cr_assert_gt(card.n_runs, 0, "its loop is deaf");
	next_chain(TRANSMITS, &length);
	pause_card();
	card.here = false;
	resume_card();
	guest_sends(3);
	host_has(3); /* and not the second, which our run threw away */
	next_chain(TRANSMITS, &length);
	cr_assert_eq(driver.rings[TRANSMITS].used->index, 3);
}

/* As the transport does when the driver picks a vector. */
static void change_call(uint32_t queue, int fd)
{
	pthread_mutex_lock(&card.device.lock);
	atomic_store(&card.virtio.queues[queue].ring.call_fd, fd);
	virtio_queue_call_changed(&card.virtio.queues[queue]);
	pthread_mutex_unlock(&card.device.lock);
	turn();
	cr_assert_eq(card.call_result, 0);
}

Test(real, another_vector_is_called)
{
	int other = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), old;
	uint32_t length;

	start_card();
	old = driver.rings[TRANSMITS].call_fd;
	guest_sends(1);
	next_chain(TRANSMITS, &length);
	test_eventfd_take(old);
	change_call(TRANSMITS, other);
	driver.rings[TRANSMITS].call_fd = other;
	guest_sends(2);
	next_chain(TRANSMITS, &length);
	cr_assert_eq(test_eventfd_take(old), 0);
	change_call(TRANSMITS, -1);
	test_eventfd_take(other);
	guest_sends(3);
	host_has(1);
	host_has(2);
	host_has(3);
	pause_card(); /* so the kernel is done with it */
	cr_assert_eq(driver.rings[TRANSMITS].used->index, 3);
	cr_assert_eq(test_eventfd_take(old), 0);
	cr_assert_eq(test_eventfd_take(other), 0);
	fd_close(old);
}

Test(real, a_reset_ends_it_and_it_starts_anew)
{
	uint32_t length;

	start_card();
	guest_sends(1);
	host_has(1);
	test_driver_reset(&driver);
	start_card();
	guest_sends(2);
	host_has(2);
	next_chain(TRANSMITS, &length);
	cr_assert_eq(driver.rings[TRANSMITS].used->index, 1);
}

Test(real, one_descriptor_serves_one_pair)
{
	struct error err = ERROR_NULL;
	struct vhost_net *second = NULL;
	int fd = open("/dev/vhost-net", O_RDWR | O_CLOEXEC);

	cr_assert_eq(ioctl(fd, VHOST_SET_OWNER, NULL), 0);
	cr_assert_eq(vhost_net_new(&second, fd, card.tap_fd, &driver.memory, &err), -EBUSY);
	cr_assert(strstr(err.text, "in use"), "%s", err.text);
	cr_assert_not(is_open(fd));
}

Test(real, what_is_no_tap_is_refused)
{
	struct error err = ERROR_NULL;
	struct vhost_net *second = NULL;
	int fd = open("/dev/vhost-net", O_RDWR | O_CLOEXEC);

	cr_assert_lt(vhost_net_new(&second, fd, card.socket, &driver.memory, &err), 0);
	cr_assert(strstr(err.text, "tap"), "%s", err.text);
	cr_assert_not(is_open(fd));
}

/* A guest's lies end its own traffic, and nothing else. */
Test(real, a_ring_full_of_lies_can_be_stopped)
{
	struct test_buffer far = {1ull << 40, 100}, endless = {0, UINT32_MAX};

	start_card();
	test_driver_add(&driver, TRANSMITS, &far, 1, NULL, 0, false);
	test_driver_add(&driver, RECEIVES, NULL, 0, &endless, 1, false);
	test_driver_kick(&driver, TRANSMITS);
	test_driver_kick(&driver, RECEIVES);
	host_sends(1, 100);
	pause_card();
	driver.rings[TRANSMITS].available->index += 0x4000;
	driver.rings[RECEIVES].available->index -= 7;
	resume_card();
	host_sends(1, 100);
	test_driver_reset(&driver);
	start_card();
	guest_sends(2);
	host_has(2);
}

static void remove_tap(void)
{
	struct {
		struct nlmsghdr head;
		struct ifinfomsg link;
	} request = {
		.head = {.nlmsg_len = sizeof(request),
			 .nlmsg_type = RTM_DELLINK,
			 .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK},
		.link = {.ifi_index = (int)card.index},
	};
	struct {
		struct nlmsghdr head;
		struct nlmsgerr error;
		uint8_t rest[256];
	} answer;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	cr_assert_eq(send(fd, &request, sizeof(request), 0), (ssize_t)sizeof(request));
	cr_assert_geq(recv(fd, &answer, sizeof(answer), 0),
		      (ssize_t)(sizeof(answer.head) + sizeof(answer.error)));
	cr_assert_eq(answer.error.error, 0, "%s", strerror(-answer.error.error));
	fd_close(fd);
}

Test(real, a_tap_that_vanishes_can_be_stopped)
{
	uint32_t length;

	start_card();
	offer_buffers(4);
	guest_sends(1);
	host_has(1);
	next_chain(TRANSMITS, &length);
	remove_tap();
	guest_sends(2);
	test_driver_reset(&driver);
	cr_assert_eq(atomic_load(&card.virtio.status), 0);
}

/* criterion's own closing line leaves skips out. */
ReportHook(POST_ALL)(struct criterion_global_stats *stats)
{
	fprintf(stderr, "%zu passed, %zu failed, %zu skipped\n", stats->tests_passed,
		stats->tests_failed + stats->tests_crashed, stats->tests_skipped);
}
