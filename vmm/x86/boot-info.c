/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The zero page and the start info, written as a whole: nothing of an earlier boot stays in them.
 */
#include "vmm/x86/boot-info.h"

#include <asm/bootparam.h>
#include <assert.h>
#include <string.h>

#include "base/cursor.h"
#include "vmm/x86/layout.h"

#define HEADER_AT        offsetof(struct boot_params, hdr)
#define HEADER_MAGIC     0x53726448 /* "HdrS" */
#define HEADER_VERSION   0x020f
#define BOOT_FLAG        0xaa55
#define LOADER_UNKNOWN   0xff
#define VIDEO_NORMAL     0xffff

#define START_MAGIC      0x336ec578
#define START_VERSION    1
#define START_SIZE       56
#define START_MODULES    0x40 /* offset of the module list in the page */
#define START_MEMORY_MAP 0x80 /* offset of the memory map */

static_assert(sizeof(struct boot_params) == GUEST_PAGE_SIZE, "the zero page is a page");
static_assert(HEADER_AT == 0x1f1, "the zero page as the protocol has it");
static_assert(offsetof(struct boot_params, acpi_rsdp_addr) == 0x70, "likewise");
static_assert(offsetof(struct boot_params, e820_table) == 0x2d0, "likewise");

/* An ELF kernel brings no header: it gets the one its own bzImage would have had, as far as the
 * kernel proper looks at it. */
static void header_start(const struct boot_info *info, struct boot_params *params)
{
	if (info->setup_header) {
		memcpy((uint8_t *)params + HEADER_AT, info->setup_header, info->setup_header_size);
		return;
	}
	params->hdr.boot_flag = BOOT_FLAG;
	params->hdr.header = HEADER_MAGIC;
	params->hdr.version = HEADER_VERSION;
}

int zero_page_write(const struct boot_info *info, struct guest_memory *memory)
{
	struct layout_entry map[LAYOUT_MAP_MAX];
	uint32_t n = layout_map(info->memory_size, map);
	struct boot_params params = {0};

	header_start(info, &params);
	params.hdr.type_of_loader = LOADER_UNKNOWN;
	params.hdr.loadflags = LOADED_HIGH;
	params.hdr.vid_mode = VIDEO_NORMAL;
	params.hdr.cmd_line_ptr = info->command_line;
	params.hdr.ramdisk_image = info->initrd;
	params.hdr.ramdisk_size = info->initrd_size;
	params.hdr.setup_data = 0;
	params.acpi_rsdp_addr = info->rsdp;
	params.e820_entries = n;
	for (uint32_t i = 0; i < n; i++)
		params.e820_table[i] = (struct boot_e820_entry){
			.addr = map[i].start, .size = map[i].size, .type = map[i].type};
	return memory_write(memory, LAYOUT_ZERO_PAGE, &params, sizeof(params));
}

static void put_start(const struct boot_info *info, uint32_t n_map, struct cursor *out)
{
	bool module = info->initrd_size > 0;

	cursor_put_u32(out, START_MAGIC);
	cursor_put_u32(out, START_VERSION);
	cursor_put_u32(out, 0); /* flags */
	cursor_put_u32(out, module ? 1 : 0);
	cursor_put_u64(out, module ? LAYOUT_START_INFO + START_MODULES : 0);
	cursor_put_u64(out, info->command_line);
	cursor_put_u64(out, info->rsdp);
	cursor_put_u64(out, LAYOUT_START_INFO + START_MEMORY_MAP);
	cursor_put_u32(out, n_map);
	cursor_put_u32(out, 0);
	assert(out->at == START_SIZE);
}

int start_info_write(const struct boot_info *info, struct guest_memory *memory)
{
	struct layout_entry map[LAYOUT_MAP_MAX];
	uint32_t n = layout_map(info->memory_size, map);
	uint8_t page[LAYOUT_ZERO_PAGE - LAYOUT_START_INFO] = {0};
	struct cursor out = cursor_writer(page, sizeof(page));
	int r;

	put_start(info, n, &out);
	out.at = START_MODULES;
	cursor_put_u64(&out, info->initrd);
	cursor_put_u64(&out, info->initrd_size);
	cursor_put_u64(&out, 0); /* the module's own command line */
	cursor_put_u64(&out, 0);
	out.at = START_MEMORY_MAP;
	for (uint32_t i = 0; i < n; i++) {
		cursor_put_u64(&out, map[i].start);
		cursor_put_u64(&out, map[i].size);
		cursor_put_u32(&out, map[i].type);
		cursor_put_u32(&out, 0);
	}
	r = cursor_status(&out);
	if (r < 0)
		return r;
	return memory_write(memory, LAYOUT_START_INFO, page, sizeof(page));
}
