/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SMBIOS 3.0 (DMTF DSP0134): 64-bit entry point, types 0, 1 and 127. Everything here is the same
 * for all VMs of the board; a UUID of the VM's own is not told yet.
 */
#include "vmm/x86/smbios.h"

#include <string.h>

#include "base/cursor.h"
#include "vmm/x86/layout.h"

#define ANCHOR_SIZE       24
#define ANCHOR_CHECKSUM   5
#define STRUCTURES        0x20 /* offset from the anchor */
#define SIZE_MAX_ALL      1024

#define TYPE_FIRMWARE     0
#define TYPE_SYSTEM       1
#define TYPE_END          127

#define FIRMWARE_UNKNOWN  (1u << 3) /* characteristics are not told */
#define FIRMWARE_EXT_VM   (1u << 4) /* of the second extension byte: this is a VM */
#define WAKE_POWER_SWITCH 6

static void put_header(struct cursor *out, uint8_t type, uint8_t size, uint16_t handle)
{
	cursor_put_u8(out, type);
	cursor_put_u8(out, size);
	cursor_put_u16(out, handle);
}

/* Strings of a structure, numbered from 1 by their order; an empty one ends them. */
static void put_strings(struct cursor *out, const char *const *strings, size_t n)
{
	for (size_t i = 0; i < n; i++)
		cursor_put_bytes(out, strings[i], strlen(strings[i]) + 1);
	if (n == 0)
		cursor_put_u8(out, 0);
	cursor_put_u8(out, 0);
}

static void put_firmware(struct cursor *out)
{
	static const char *const strings[] = {"Corral", "corral-1", "01/01/2025"};

	put_header(out, TYPE_FIRMWARE, 0x18, 0);
	cursor_put_u8(out, 1);  /* vendor */
	cursor_put_u8(out, 2);  /* version */
	cursor_put_u16(out, 0); /* no segment */
	cursor_put_u8(out, 3);  /* date, part of the board like the rest */
	cursor_put_u8(out, 0);  /* ROM: 64 KiB */
	cursor_put_u64(out, FIRMWARE_UNKNOWN);
	cursor_put_u8(out, 0);
	cursor_put_u8(out, FIRMWARE_EXT_VM);
	cursor_put_u8(out, 1); /* release 1.0 */
	cursor_put_u8(out, 0);
	cursor_put_u16(out, 0xffff); /* no embedded controller */
	put_strings(out, strings, ARRAY_SIZE(strings));
}

static void put_system(struct cursor *out)
{
	static const char *const strings[] = {"Corral", "corral-1"};
	static const uint8_t no_uuid[16];

	put_header(out, TYPE_SYSTEM, 0x1b, 1);
	cursor_put_u8(out, 1); /* manufacturer */
	cursor_put_u8(out, 2); /* product */
	cursor_put_u8(out, 0); /* version */
	cursor_put_u8(out, 0); /* serial number */
	cursor_put_bytes(out, no_uuid, sizeof(no_uuid));
	cursor_put_u8(out, WAKE_POWER_SWITCH);
	cursor_put_u8(out, 0); /* SKU */
	cursor_put_u8(out, 0); /* family */
	put_strings(out, strings, ARRAY_SIZE(strings));
}

static void put_anchor(uint8_t *data, uint32_t size, gpa_t structures)
{
	struct cursor out = cursor_writer(data, ANCHOR_SIZE);
	uint8_t sum = 0;

	cursor_put_bytes(&out, "_SM3_", 5);
	cursor_put_u8(&out, 0); /* checksum */
	cursor_put_u8(&out, ANCHOR_SIZE);
	cursor_put_u8(&out, 3); /* version 3.0 */
	cursor_put_u8(&out, 0);
	cursor_put_u8(&out, 0);
	cursor_put_u8(&out, 1); /* of the entry point */
	cursor_put_u8(&out, 0);
	cursor_put_u32(&out, size);
	cursor_put_u64(&out, structures);
	for (size_t i = 0; i < ANCHOR_SIZE; i++)
		sum += data[i];
	data[ANCHOR_CHECKSUM] = -sum;
}

int smbios_encode(gpa_t gpa, void *data, size_t size, size_t *ret_used)
{
	static const uint8_t zeroes[STRUCTURES];
	struct cursor out = cursor_writer(data, size);
	int r;

	cursor_put_bytes(&out, zeroes, sizeof(zeroes)); /* the anchor comes last */
	put_firmware(&out);
	put_system(&out);
	put_header(&out, TYPE_END, 4, 2);
	put_strings(&out, NULL, 0);
	r = cursor_status(&out);
	if (r < 0)
		return r;
	put_anchor(data, out.at - STRUCTURES, gpa + STRUCTURES);
	*ret_used = out.at;
	return 0;
}

int smbios_write(struct guest_memory *memory, struct error *err)
{
	uint8_t data[SIZE_MAX_ALL];
	size_t used;
	int r = smbios_encode(LAYOUT_SMBIOS, data, sizeof(data), &used);

	if (r == 0)
		r = memory_write(memory, LAYOUT_SMBIOS, data, used);
	if (r < 0)
		return error_set(err, r, "cannot put the SMBIOS tables into memory: %s",
				 strerror(-r));
	return 0;
}
