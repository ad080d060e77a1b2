/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory map of the board as a function of how much RAM there is, and of nothing else.
 */
#include "vmm/x86/layout.h"

#include <assert.h>

#include "base/macros.h"

uint32_t layout_ram(uint64_t size, struct memory_range ret[2])
{
	uint64_t low = MIN(size, (uint64_t)LAYOUT_HOLE);

	ret[0] = (struct memory_range){.start = 0, .size = low};
	if (size == low)
		return 1;
	ret[1] = (struct memory_range){.start = LAYOUT_4G, .size = size - low};
	return 2;
}

struct memory_range layout_pci64(uint64_t memory_size)
{
	struct memory_range ram[2];
	uint32_t n = layout_ram(memory_size, ram);
	uint64_t end = ram[n - 1].start + ram[n - 1].size;

	return (struct memory_range){
		.start = align_up(MAX(end, (uint64_t)LAYOUT_4G), LAYOUT_PCI64_SIZE),
		.size = LAYOUT_PCI64_SIZE,
	};
}

static void map_put(struct layout_entry *map, uint32_t *n, gpa_t start, gpa_t end,
		    enum layout_type type)
{
	if (end <= start)
		return;
	assert(*n < LAYOUT_MAP_MAX);
	map[(*n)++] = (struct layout_entry){.start = start, .size = end - start, .type = type};
}

uint32_t layout_map(uint64_t memory_size, struct layout_entry ret[LAYOUT_MAP_MAX])
{
	struct memory_range ram[2];
	uint32_t n_ram = layout_ram(memory_size, ram);
	uint32_t n = 0;

	map_put(ret, &n, 0, MIN(ram[0].size, (uint64_t)LAYOUT_LOW_END), LAYOUT_RAM);
	map_put(ret, &n, LAYOUT_ACPI, LAYOUT_ACPI_END, LAYOUT_ACPI_DATA);
	map_put(ret, &n, LAYOUT_GENERATION, LAYOUT_NVS_END, LAYOUT_NVS);
	map_put(ret, &n, LAYOUT_SMBIOS, LAYOUT_BIOS_END, LAYOUT_RESERVED);
	map_put(ret, &n, LAYOUT_HIGH, ram[0].size, LAYOUT_RAM);
	map_put(ret, &n, LAYOUT_ECAM, (gpa_t)LAYOUT_ECAM + LAYOUT_ECAM_SIZE, LAYOUT_RESERVED);
	if (n_ram == 2)
		map_put(ret, &n, ram[1].start, ram[1].start + ram[1].size, LAYOUT_RAM);
	return n;
}
