/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vhost-net: the host kernel serves a queue pair between the guest's rings and a tap. What comes in
 * are a started queue's addresses, its kick and call eventfds; frames never pass through here. All
 * calls on the pair's loop, but for vhost_net_new (main thread, before the seal) and free.
 */
#pragma once

#include "base/error.h"
#include "devices/memory.h"
#include "virtio/queue.h"

struct vhost_net; /* one queue pair */

/*
 * Takes the open /dev/vhost-net over, also when it fails, and `tap_fd` (borrowed) as its other end;
 * `memory` must not change any more. -EOPNOTSUPP: this kernel's vhost-net lacks what we need; the
 * sentence says what.
 */
int vhost_net_new(struct vhost_net **ret_vhost, int fd, int tap_fd, struct guest_memory *memory,
		  struct error *err) __must_check;
struct vhost_net *vhost_net_free(struct vhost_net *vhost);

/* Virtio features it can serve, of those a network card has. */
uint64_t vhost_net_features(const struct vhost_net *vhost);

/* Queue 0 receives, 1 transmits. The ring is mapped and its positions are in queue->state. */
int vhost_net_start(struct vhost_net *vhost, uint32_t queue, const struct virtqueue *ring,
		    int kick_fd, uint64_t features) __must_check;
/* Over when it returns: positions are back in the ring's state, the kick is ours again. */
int vhost_net_stop(struct vhost_net *vhost, uint32_t queue, struct virtqueue *ring) __must_check;
/* The vector's eventfd is another, -1 for none. */
int vhost_net_call(struct vhost_net *vhost, uint32_t queue, int call_fd) __must_check;
