/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ring addresses, positions and eventfds in, ioctls to /dev/vhost-net out. The kernel keeps nothing
 * that migrates: what it knows of a queue comes back when the queue stops.
 *
 * What the kernel writes into guest memory is not marked yet. Whoever copies the memory of a
 * running guest needs that: VHOST_SET_LOG_BASE and the feature VHOST_F_LOG_ALL where features are
 * set, VHOST_VRING_F_LOG with the used ring's guest address where rings are.
 */
#include "virtio/vhost.h"

#include <assert.h>
#include <errno.h>
#include <linux/if_tun.h>
#include <linux/vhost.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/atomic.h"
#include "base/fd.h"
#include "virtio/net-header.h"
#include "virtio/net-port.h"

#define FEATURE(bit) (1ull << (bit))

/* Newer than the oldest headers we build with. virtio 1.2, 5.1.3. */
#define GUEST_USO4   54
#define GUEST_USO6   55
#define HOST_USO     56
#define GUEST_HDRLEN 59

/* What the one who serves the rings takes part in, and knows from us. */
#define RING_FEATURES                                                             \
	(FEATURE(VIRTIO_NET_F_MRG_RXBUF) | FEATURE(VIRTIO_RING_F_INDIRECT_DESC) | \
	 FEATURE(VIRTIO_RING_F_EVENT_IDX) | FEATURE(VIRTIO_F_VERSION_1))

/*
 * What goes on between the guest and the tap, or the guest and the card's other queues: the kernel
 * passes header and frame on as they are. Bits 0 to 23 are those of a network card (virtio 1.2,
 * 5.1.3) but for the one above; the rest are segmentation of UDP, a hint about headers, another
 * card standing by, speed and duplex. Hashes are not here: they would need a longer header.
 */
#define PASSED_FEATURES                                                              \
	((FEATURE(24) - 1 - FEATURE(VIRTIO_NET_F_MRG_RXBUF)) | FEATURE(GUEST_USO4) | \
	 FEATURE(GUEST_USO6) | FEATURE(HOST_USO) | FEATURE(GUEST_HDRLEN) |           \
	 FEATURE(VIRTIO_NET_F_STANDBY) | FEATURE(VIRTIO_NET_F_SPEED_DUPLEX))

enum vhost_queue { QUEUE_RECEIVES, QUEUE_TRANSMITS, QUEUES };

struct vhost_net {
	int fd;            /* owned */
	int tap_fd;        /* borrowed */
	uint64_t features; /* of RING_FEATURES, those the kernel has */
	bool runs[QUEUES]; /* loop thread */
};

static int request(const struct vhost_net *vhost, unsigned long number, void *argument)
{
	return ioctl(vhost->fd, number, argument) < 0 ? -errno : 0;
}

/* Requests about one queue that carry a descriptor, -1 for none. */
static int request_fd(const struct vhost_net *vhost, unsigned long number, uint32_t queue, int fd)
{
	struct vhost_vring_file file = {.index = queue, .fd = fd};

	return request(vhost, number, &file);
}

uint64_t vhost_net_features(const struct vhost_net *vhost)
{
	return PASSED_FEATURES | vhost->features;
}

/* The same for both queues: while one runs, nothing changes. */
static int set_features(const struct vhost_net *vhost, uint64_t features)
{
	uint64_t wanted = features & RING_FEATURES;

	if (wanted & ~vhost->features)
		return -EOPNOTSUPP;
	if (ioctl(vhost->tap_fd, TUNSETOFFLOAD, net_tun_offloads(net_offloads_of(features))) < 0)
		return -errno;
	return request(vhost, VHOST_SET_FEATURES, &wanted);
}

/* The kernel takes its position in the used ring from the ring's own index. */
static int set_ring(const struct vhost_net *vhost, uint32_t queue, const struct virtqueue *ring)
{
	struct vhost_vring_state size = {.index = queue, .num = ring->state.size};
	struct vhost_vring_state base = {.index = queue, .num = ring->state.next_available};
	struct vhost_vring_addr addresses = {
		.index = queue,
		.desc_user_addr = (uintptr_t)ring->descriptors,
		.used_user_addr = (uintptr_t)ring->used_ring,
		.avail_user_addr = (uintptr_t)ring->available_ring,
	};
	int r = request(vhost, VHOST_SET_VRING_NUM, &size);

	if (r < 0)
		return r;
	r = request(vhost, VHOST_SET_VRING_BASE, &base);
	if (r < 0)
		return r;
	return request(vhost, VHOST_SET_VRING_ADDR, &addresses);
}

/* The kernel lets go of kick and call. Both are tried; the first failure counts. */
static int release(const struct vhost_net *vhost, uint32_t queue)
{
	int kick = request_fd(vhost, VHOST_SET_VRING_KICK, queue, VHOST_FILE_UNBIND);
	int call = request_fd(vhost, VHOST_SET_VRING_CALL, queue, VHOST_FILE_UNBIND);

	return kick < 0 ? kick : call;
}

static int connect_queue(const struct vhost_net *vhost, uint32_t queue, int kick_fd, int call_fd)
{
	int r = request_fd(vhost, VHOST_SET_VRING_CALL, queue, call_fd);

	if (r < 0)
		return r;
	r = request_fd(vhost, VHOST_SET_VRING_KICK, queue, kick_fd);
	if (r < 0)
		return r;
	/* Last: from here on it runs. */
	return request_fd(vhost, VHOST_NET_SET_BACKEND, queue, vhost->tap_fd);
}

int vhost_net_start(struct vhost_net *vhost, uint32_t queue, const struct virtqueue *ring,
		    int kick_fd, uint64_t features)
{
	int r;

	assert(queue < QUEUES && !vhost->runs[queue] && ring->used_ring);
	r = set_features(vhost, features);
	if (r < 0)
		return r;
	r = set_ring(vhost, queue, ring);
	if (r < 0)
		return r;
	r = connect_queue(vhost, queue, kick_fd, atomic_load(&ring->call_fd));
	if (r < 0) {
		(void)release(vhost, queue); /* that failure is the one to tell of */
		return r;
	}
	vhost->runs[queue] = true;
	return 0;
}

/* Where the kernel has got to in the used ring: flags, then the index (virtio 1.2, 2.7.8). */
static uint16_t used_index(const struct virtqueue *ring)
{
	return load_acquire((const uint16_t *)(const void *)ring->used_ring + 1);
}

int vhost_net_stop(struct vhost_net *vhost, uint32_t queue, struct virtqueue *ring)
{
	struct vhost_vring_state base = {.index = queue};
	int unbound, known, released;

	assert(queue < QUEUES && vhost->runs[queue]);
	vhost->runs[queue] = false;
	/* Waits until the kernel's thread is done with what it took. */
	unbound = request_fd(vhost, VHOST_NET_SET_BACKEND, queue, VHOST_FILE_UNBIND);
	known = request(vhost, VHOST_GET_VRING_BASE, &base);
	released = release(vhost, queue);
	ring->state.next_used = used_index(ring);
	/* All it took it gave back, so without an answer the other position is as good. */
	ring->state.next_available = known < 0 ? ring->state.next_used : (uint16_t)base.num;
	if (unbound < 0)
		return unbound;
	return known < 0 ? known : released;
}

int vhost_net_call(struct vhost_net *vhost, uint32_t queue, int call_fd)
{
	assert(queue < QUEUES && vhost->runs[queue]);
	return request_fd(vhost, VHOST_SET_VRING_CALL, queue, call_fd);
}

/* The kernel neither adds a header nor takes one away: that is between the guest and the tap. */
static int set_up_tap(const struct vhost_net *vhost, struct error *err)
{
	int size = NET_HEADER_SIZE;
	struct ifreq tap = {0};

	if (ioctl(vhost->tap_fd, TUNGETIFF, &tap) < 0)
		return error_set(err, -errno,
				 "cannot use vhost-net: its other end is not a tap (%s)",
				 strerror(errno));
	if (!(tap.ifr_flags & IFF_TAP) || !(tap.ifr_flags & IFF_VNET_HDR))
		return error_set(err, -EINVAL,
				 "cannot use vhost-net: \"%.*s\" is not a tap with vnet header "
				 "(IFF_TAP, IFF_VNET_HDR)",
				 IFNAMSIZ, tap.ifr_name);
	if (ioctl(vhost->tap_fd, TUNSETVNETHDRSZ, &size) < 0)
		return error_set(err, -errno,
				 "cannot use vhost-net: the tap \"%.*s\" refuses a header of %d "
				 "bytes: %s",
				 IFNAMSIZ, tap.ifr_name, size, strerror(errno));
	return 0;
}

static int check_kernel(struct vhost_net *vhost, struct error *err)
{
	uint64_t features;
	int r = request(vhost, VHOST_SET_OWNER, NULL);

	if (r < 0)
		return error_set(err, r, "cannot use vhost-net: the kernel refuses to serve us: %s",
				 r == -EBUSY ? "this descriptor of it is in use already"
					     : strerror(-r));
	r = request(vhost, VHOST_GET_FEATURES, &features);
	if (r < 0)
		return error_set(err, r, "cannot use vhost-net: it does not say what it can do: %s",
				 strerror(-r));
	if (!(features & FEATURE(VIRTIO_F_VERSION_1)))
		return error_set(err, -EOPNOTSUPP,
				 "cannot use vhost-net: this kernel's lacks virtio 1.0; use "
				 "vhost=off");
	vhost->features = features & RING_FEATURES;
	return 0;
}

static int set_memory(const struct vhost_net *vhost, const struct guest_memory *memory,
		      struct error *err)
{
	_cleanup_(freep) struct vhost_memory *table = NULL;
	int r;

	table = calloc(1, sizeof(*table) + memory->n_regions * sizeof(table->regions[0]));
	if (!table)
		return error_set(err, -ENOMEM, "cannot use vhost-net: out of memory");
	table->nregions = memory->n_regions;
	for (uint32_t i = 0; i < memory->n_regions; i++) {
		const struct memory_region *region = &memory->regions[i];

		table->regions[i].guest_phys_addr = region->start;
		table->regions[i].memory_size = region->size;
		table->regions[i].userspace_addr = (uintptr_t)region->host;
	}
	r = request(vhost, VHOST_SET_MEM_TABLE, table);
	if (r < 0)
		return error_set(err, r, "cannot use vhost-net: it refuses the guest's memory: %s",
				 strerror(-r));
	return 0;
}

struct vhost_net *vhost_net_free(struct vhost_net *vhost)
{
	if (!vhost)
		return NULL;
	/* Ends what still runs, and waits for it. */
	vhost->fd = fd_close(vhost->fd);
	free(vhost);
	return NULL;
}

int vhost_net_new(struct vhost_net **ret_vhost, int fd, int tap_fd, struct guest_memory *memory,
		  struct error *err)
{
	struct vhost_net *vhost = calloc(1, sizeof(*vhost));
	int r;

	if (!vhost) {
		fd_close(fd);
		return error_set(err, -ENOMEM, "cannot use vhost-net: out of memory");
	}
	vhost->fd = fd;
	vhost->tap_fd = tap_fd;
	r = check_kernel(vhost, err);
	if (r >= 0)
		r = set_up_tap(vhost, err);
	if (r >= 0)
		r = set_memory(vhost, memory, err);
	if (r < 0) {
		vhost_net_free(vhost);
		return r;
	}
	*ret_vhost = vhost;
	return 0;
}
