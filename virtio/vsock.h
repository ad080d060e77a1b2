/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The virtio socket device (virtio 1.2, 5.10), stream sockets, with UNIX sockets as the host's
 * side: no kernel module, no address shared between VMs. Packets come in from the guest, bytes come
 * in from the host's sockets; both go to the connection that the pair of ports names.
 *
 * The VMM can connect to no path, so both directions begin at one listening socket it was handed. A
 * client of that socket says one line first, and gets one line back:
 *
 *   → CONNECT port    the client becomes the stream to that port of the guest, after
 *   ← OK localport    (bytes that follow the line are the stream's already)
 *
 *   → LISTEN port     for each connection the guest makes to that port of the host (CID 2), a line
 *   ← OK port         ACCEPT localport\n, with the stream's descriptor beside it (SCM_RIGHTS), for
 *                     as long as the client stays connected and says no more
 *
 * Every other answer is a word, and the end: REFUSED (nobody in the guest listens there), SILENT
 * (the guest did not answer in time), NODRIVER (nor can it), BUSY (that port is listened on
 * already), FULL (no room for more), BAD (no line that makes sense). A port is a decimal number
 * from 0 to 2^32 - 2. A guest's connection to a port nobody listens on is reset.
 *
 * A driver that is reset, and a state that is loaded, end every connection; who listens, stays.
 */
#pragma once

#include "virtio/pci.h"

#define VSOCK_QUEUE_SIZE      256
#define VSOCK_CONNECTIONS_MAX 512 /* further ones are reset; a loop has 1024 sources */
#define VSOCK_LISTENERS_MAX   64
#define VSOCK_CLIENTS_MAX     64 /* that have not said their line yet; further ones wait */
#define VSOCK_LINE_MAX        32
#define VSOCK_BUFFER          (64u << 10) /* credit of a connection: bytes towards a slow host */

struct vsock;

/* `listen_fd` is taken over, also when it fails. Everything on `loop`. */
int vsock_new(struct vsock **ret_vsock, struct pci_root *root, uint32_t slot, const char *name,
	      struct guest_memory *memory, struct loop *loop, uint32_t cid, int listen_fd,
	      struct error *err) __must_check;
/* NULL is fine. Returns NULL. */
struct vsock *vsock_free(struct vsock *vsock);
struct device *vsock_device(struct vsock *vsock);
