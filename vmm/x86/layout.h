/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where things are in the guest-physical memory of the board "corral-1": what the loader puts there
 * before the first instruction, the tables firmware and kernels look for, and the holes between
 * RAM. These numbers are migration ABI: a new board may have others, this one may not.
 */
#pragma once

#include <stdint.h>

#include "devices/memory.h"

/* Below 1 MiB. What the loader puts below LAYOUT_BOOT_END is the guest's to overwrite once it runs.
 */
#define LAYOUT_GDT          0x500u
#define LAYOUT_START_INFO   0x6000u /* PVH: start info, module list, memory map; one page */
#define LAYOUT_ZERO_PAGE    0x7000u /* Linux: struct boot_params */
#define LAYOUT_STACK_TOP    0x9000u /* grows down to 0x8000 */
#define LAYOUT_PAGE_TABLES  0x9000u /* PML4, PDPT, one directory a GiB: six pages */
#define LAYOUT_COMMAND_LINE 0x20000u
#define LAYOUT_BOOT_END     0x30000u
#define LAYOUT_LOW_END      0xa0000u

#define LAYOUT_ACPI         0xe0000u /* RSDP first, then the tables */
#define LAYOUT_ACPI_END     0xef000u
#define LAYOUT_GENERATION   0xef000u /* VM generation id, 16 bytes alone in a page of NVS */
#define LAYOUT_NVS_END      0xf0000u
#define LAYOUT_SMBIOS       0xf0000u /* the anchor itself, then the structures */
#define LAYOUT_SMBIOS_END   0xffff0u
#define LAYOUT_RESET_VECTOR 0xffff0u /* F000:FFF0, a few instructions that reset the board */
#define LAYOUT_BIOS_END     0x100000u

#define LAYOUT_HIGH         0x100000u /* kernels start here at the lowest */

/* RAM below 4 GiB ends here at the latest; the rest of it starts at 4 GiB. */
#define LAYOUT_HOLE      0xc0000000u
#define LAYOUT_PCI32     LAYOUT_HOLE /* window of 32-bit BARs */
#define LAYOUT_PCI32_END 0xe8000000u
#define LAYOUT_ECAM      0xe8000000u /* configuration space of bus 0 */
#define LAYOUT_ECAM_SIZE 0x100000u
#define LAYOUT_IOAPIC    0xfec00000u
#define LAYOUT_LAPIC     0xfee00000u
#define LAYOUT_4G        0x100000000ull

/* The window of 64-bit BARs: above RAM, aligned to its own size, so that it does not depend on the
 * host. */
#define LAYOUT_PCI64_SIZE 0x400000000ull

/* Least RAM that leaves something above the first MiB. */
#define LAYOUT_MEMORY_MIN  0x200000u
#define LAYOUT_MEMORY_STEP 0x200000u /* sizes of VMs come in steps of this */

/* I/O ports of PCI: configuration, and where the window of I/O BARs starts (it goes to 0xffff).
 * Those of the platform devices are in their headers, and as much ABI as these. */
#define LAYOUT_PORT_PCI     0xcf8u
#define LAYOUT_PORT_PCI_BAR 0x1000u

/* Where RAM goes: one range, or two around the hole. Returns how many. `size` is page-aligned. */
uint32_t layout_ram(uint64_t size, struct memory_range ret[2]);

/* The window of 64-bit BARs for that much RAM. */
struct memory_range layout_pci64(uint64_t memory_size);

/* The memory map a guest is told. Types are those of E820, which PVH shares. */
enum layout_type { LAYOUT_RAM = 1, LAYOUT_RESERVED = 2, LAYOUT_ACPI_DATA = 3, LAYOUT_NVS = 4 };

struct layout_entry {
	gpa_t start;
	uint64_t size;
	enum layout_type type;
};

#define LAYOUT_MAP_MAX 16

/* Sorted, without overlaps. Returns how many entries there are. */
uint32_t layout_map(uint64_t memory_size, struct layout_entry ret[LAYOUT_MAP_MAX]);
