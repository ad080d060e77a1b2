/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header in front of each frame, and the frame's own first bytes: what a guest may say there,
 * and what of it is believed. Pure; works on copies.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "virtio/net-port.h"

/* virtio 1.2, 5.1.3 */
#define NET_F_CSUM                (1ull << 0)
#define NET_F_GUEST_CSUM          (1ull << 1)
#define NET_F_CTRL_GUEST_OFFLOADS (1ull << 2)
#define NET_F_MTU                 (1ull << 3)
#define NET_F_MAC                 (1ull << 5)
#define NET_F_GUEST_TSO4          (1ull << 7)
#define NET_F_GUEST_TSO6          (1ull << 8)
#define NET_F_GUEST_ECN           (1ull << 9)
#define NET_F_HOST_TSO4           (1ull << 11)
#define NET_F_HOST_TSO6           (1ull << 12)
#define NET_F_HOST_ECN            (1ull << 13)
#define NET_F_MRG_RXBUF           (1ull << 15)
#define NET_F_STATUS              (1ull << 16)
#define NET_F_CTRL_VQ             (1ull << 17)
#define NET_F_CTRL_RX             (1ull << 18)
#define NET_F_CTRL_RX_EXTRA       (1ull << 20)
#define NET_F_GUEST_ANNOUNCE      (1ull << 21)
#define NET_F_MQ                  (1ull << 22)
#define NET_F_CTRL_MAC_ADDR       (1ull << 23)
#define NET_F_GUEST_USO4          (1ull << 54)
#define NET_F_GUEST_USO6          (1ull << 55)
#define NET_F_HOST_USO            (1ull << 56)
#define NET_F_SPEED_DUPLEX        (1ull << 63)

/* Those that CTRL_GUEST_OFFLOADS can turn on and off, and those that make long frames come in. */
#define NET_F_GUEST_LONG      (NET_F_GUEST_TSO4 | NET_F_GUEST_TSO6 | NET_F_GUEST_USO4 | NET_F_GUEST_USO6)
#define NET_F_GUEST_OFFLOADS  (NET_F_GUEST_CSUM | NET_F_GUEST_ECN | NET_F_GUEST_LONG)

#define NET_HEADER_NEEDS_CSUM 1u
#define NET_HEADER_DATA_VALID 2u

enum net_gso {
	NET_GSO_NONE = 0,
	NET_GSO_TCPV4 = 1,
	NET_GSO_TCPV6 = 4,
	NET_GSO_UDP_L4 = 5,
	NET_GSO_ECN = 0x80, /* a bit beside the TCP ones */
};

/* 5.1.6, little-endian */
struct net_header {
	uint8_t flags;
	uint8_t gso_type;
	uint16_t hdr_len;
	uint16_t gso_size;
	uint16_t csum_start;
	uint16_t csum_offset;
	uint16_t num_buffers;
};
_Static_assert(sizeof(struct net_header) == NET_HEADER_SIZE, "virtio 1.2, 5.1.6");

#define NET_ETHERNET_SIZE 14
#define NET_TAG_SIZE      4
/* An ARP packet, maybe padded to the shortest frame there is on a wire. */
#define NET_ARP_SIZE     (NET_ETHERNET_SIZE + 28)
#define NET_ARP_SIZE_MAX 64

/*
 * Is that the header of a frame of `size` bytes (itself not counted) from a driver that negotiated
 * `features`? What means nothing on the way out is cleared.
 */
bool net_header_check_out(struct net_header *header, uint32_t size, uint64_t features);
/* May a driver with these features be given it? What it did not ask to be told is cleared. */
bool net_header_check_in(struct net_header *header, uint64_t features);

/* Of a frame, as much as says where it goes: Ethernet and IPv6. */
#define NET_HEAD_SIZE (NET_ETHERNET_SIZE + 40)

/* A frame whose first bytes these are goes to the loopback, by IPv4 or IPv6. */
bool net_head_is_for_host(const uint8_t *head, uint32_t size);

/* Segmentation offloads among `features` of the guest's side, as NET_OFFLOAD_*. */
uint32_t net_offloads_of(uint64_t features);
/* The same as the kernel's TUN_F_*, for TUNSETOFFLOAD. */
unsigned int net_tun_offloads(uint32_t offloads);

/* Not a group's address, and not none. */
bool net_mac_is_station(const uint8_t mac[6]);

/* The IPv4 address that an ARP packet (NET_ARP_SIZE bytes of a frame) says its sender `mac` has,
 * network byte order; 0 if it says nothing of the kind. */
uint32_t net_arp_sender(const uint8_t *frame, const uint8_t mac[6]);
