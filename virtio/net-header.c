/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Headers in, yes or no out. The host's network stack checks them again; what is refused here it
 * would refuse or have trouble with (tiny segments by the ten thousand).
 */
#include "virtio/net-header.h"

#include <linux/if_tun.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "headers are little-endian");

/* Newer than the oldest headers we build with: linux/if_tun.h. */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

/* No TCP sends less in a segment: 48 bytes of which 40 may be options. */
#define GSO_SIZE_MIN 8
/* Segments of UDP may be of any size, and are not many: 128 at most in Linux. */
#define UDP_SEGMENTS_MAX 256

/* The feature that lets a driver send, or be sent, segments of that type; 0: there is none. */
static uint64_t gso_feature(uint8_t type, bool out)
{
	switch (type) {
	case NET_GSO_TCPV4:
		return out ? NET_F_HOST_TSO4 : NET_F_GUEST_TSO4;
	case NET_GSO_TCPV6:
		return out ? NET_F_HOST_TSO6 : NET_F_GUEST_TSO6;
	case NET_GSO_UDP_L4:
		return out ? NET_F_HOST_USO : NET_F_GUEST_USO4 | NET_F_GUEST_USO6;
	default:
		return 0;
	}
}

static bool gso_check_out(const struct net_header *header, uint32_t size, uint64_t features)
{
	uint8_t type = header->gso_type & ~NET_GSO_ECN;

	if (!(gso_feature(type, true) & features))
		return false;
	if (header->gso_type & NET_GSO_ECN &&
	    (type == NET_GSO_UDP_L4 || !(features & NET_F_HOST_ECN)))
		return false;
	if (!(header->flags & NET_HEADER_NEEDS_CSUM) || header->gso_size == 0)
		return false;
	return type == NET_GSO_UDP_L4 ? size / header->gso_size <= UDP_SEGMENTS_MAX
				      : header->gso_size >= GSO_SIZE_MIN;
}

static bool csum_check_out(const struct net_header *header, uint32_t size, uint64_t features)
{
	uint32_t end = (uint32_t)header->csum_start + header->csum_offset + 2;

	return features & NET_F_CSUM && header->csum_start >= NET_ETHERNET_SIZE && end <= size;
}

bool net_header_check_out(struct net_header *header, uint32_t size, uint64_t features)
{
	header->flags &= NET_HEADER_NEEDS_CSUM; /* others are to be ignored (5.1.6.2.2) */
	header->num_buffers = 0;
	if (header->hdr_len > size)
		return false;
	if (header->flags & NET_HEADER_NEEDS_CSUM) {
		if (!csum_check_out(header, size, features))
			return false;
	} else {
		header->csum_start = header->csum_offset = 0;
	}
	if (header->gso_type == NET_GSO_NONE) {
		header->gso_size = 0;
		return true;
	}
	return gso_check_out(header, size, features);
}

bool net_header_check_in(struct net_header *header, uint64_t features)
{
	uint8_t type = header->gso_type & ~NET_GSO_ECN;

	header->flags &= NET_HEADER_NEEDS_CSUM | NET_HEADER_DATA_VALID;
	if (!(features & NET_F_GUEST_CSUM)) {
		if (header->flags & NET_HEADER_NEEDS_CSUM)
			return false;
		header->flags = 0;
	}
	if (header->gso_type == NET_GSO_NONE)
		return true;
	if (!(features & NET_F_GUEST_ECN))
		header->gso_type &= ~NET_GSO_ECN;
	return gso_feature(type, false) & features;
}

uint32_t net_offloads_of(uint64_t features)
{
	uint32_t offloads = 0;

	offloads |= features & NET_F_GUEST_CSUM ? NET_OFFLOAD_CSUM : 0;
	offloads |= features & NET_F_GUEST_TSO4 ? NET_OFFLOAD_TSO4 : 0;
	offloads |= features & NET_F_GUEST_TSO6 ? NET_OFFLOAD_TSO6 : 0;
	/* Means nothing without TCP, and a tap refuses it. */
	if (offloads & (NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6) && features & NET_F_GUEST_ECN)
		offloads |= NET_OFFLOAD_ECN;
	/* A port knows one bit for both. */
	if ((features & NET_F_GUEST_USO4) && (features & NET_F_GUEST_USO6))
		offloads |= NET_OFFLOAD_USO;
	/* Long frames lack their checksums. */
	return offloads & NET_OFFLOAD_CSUM ? offloads : 0;
}

unsigned int net_tun_offloads(uint32_t offloads)
{
	return (offloads & NET_OFFLOAD_CSUM ? TUN_F_CSUM : 0) |
	       (offloads & NET_OFFLOAD_TSO4 ? TUN_F_TSO4 : 0) |
	       (offloads & NET_OFFLOAD_TSO6 ? TUN_F_TSO6 : 0) |
	       (offloads & NET_OFFLOAD_ECN ? TUN_F_TSO_ECN : 0) |
	       (offloads & NET_OFFLOAD_USO ? TUN_F_USO4 | TUN_F_USO6 : 0);
}

bool net_mac_is_station(const uint8_t mac[6])
{
	static const uint8_t none[6];

	return !(mac[0] & 1) && memcmp(mac, none, sizeof(none)) != 0;
}

uint32_t net_arp_sender(const uint8_t *frame, const uint8_t mac[6])
{
	/* Type ARP; Ethernet, IPv4, lengths six and four; then the operation, any. */
	static const uint8_t head[] = {0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4};
	uint32_t address;

	if (memcmp(frame + 12, head, sizeof(head)) != 0 || memcmp(frame + 22, mac, 6) != 0)
		return 0;
	memcpy(&address, frame + 28, sizeof(address));
	return address;
}

/*
 * 0.0.0.0/8 is the host itself to its own kernel, as 127.0.0.0/8 is; of IPv6 it is ::, ::1, and the
 * IPv4 addresses written as such: nothing that begins with ten zero bytes goes anywhere else.
 */
bool net_head_is_for_host(const uint8_t *head, uint32_t size)
{
	static const uint8_t zeroes[10];
	const uint8_t *to4 = head + NET_ETHERNET_SIZE + 16, *to6 = head + NET_ETHERNET_SIZE + 24;
	uint16_t type = size >= NET_ETHERNET_SIZE ? (uint16_t)(head[12] << 8 | head[13]) : 0;

	if (type == 0x0800 && size >= NET_ETHERNET_SIZE + 20)
		return *to4 == 127 || *to4 == 0;
	if (type == 0x86dd && size >= NET_ETHERNET_SIZE + 40)
		return memcmp(to6, zeroes, sizeof(zeroes)) == 0;
	return false;
}
