/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The SMBIOS structures, walked as a guest walks them.
 */
#include <criterion/criterion.h>
#include <errno.h>

#include "vmm/x86/smbios.h"
#include "vmm/x86/test-image.h"

static uint8_t table[1024];

static void encode(void)
{
	size_t used;

	memset(table, 0xee, sizeof(table));
	cr_assert_eq(smbios_encode(LAYOUT_SMBIOS, table, sizeof(table), &used), 0);
}

/* The next structure: behind the strings of this one. */
static const uint8_t *next(const uint8_t *at)
{
	at += at[1];
	while (at[0] || at[1])
		at++;
	return at + 2;
}

static const char *string(const uint8_t *at, uint32_t number)
{
	const char *text = (const char *)at + at[1];

	while (--number > 0)
		text += strlen(text) + 1;
	return text;
}

Test(smbios, anchor_finds_structures)
{
	uint32_t size;
	uint64_t where;
	uint8_t sum = 0;

	encode();
	cr_assert_eq(memcmp(table, "_SM3_", 5), 0);
	for (size_t i = 0; i < table[6]; i++)
		sum += table[i];
	cr_assert_eq(sum, 0);
	memcpy(&size, table + 12, 4);
	memcpy(&where, table + 16, 8);
	cr_assert_eq(where, LAYOUT_SMBIOS + 0x20);
	cr_assert_eq(table[0x20 + size], 0xee);
	cr_assert_neq(table[0x20 + size - 1], 0xee);
}

Test(smbios, structures_name_the_board)
{
	const uint8_t *at = table + 0x20;
	uint32_t size;

	encode();
	cr_assert_eq(at[0], 0);
	cr_assert_eq(at[1], 0x18);
	cr_assert_eq(at[0x13] & 0x10, 0x10);
	cr_assert_str_eq(string(at, at[4]), "Corral");
	at = next(at);
	cr_assert_eq(at[0], 1);
	cr_assert_eq(at[1], 0x1b);
	cr_assert_str_eq(string(at, at[4]), "Corral");
	cr_assert_str_eq(string(at, at[5]), "corral-1");
	at = next(at);
	cr_assert_eq(at[0], 127);
	memcpy(&size, table + 12, 4);
	cr_assert_eq(next(at) - (table + 0x20), size);
}

Test(smbios, too_small_a_place_is_refused)
{
	size_t used, needed;

	cr_assert_eq(smbios_encode(LAYOUT_SMBIOS, table, sizeof(table), &needed), 0);
	for (size_t size = 0; size < needed; size++)
		cr_assert_eq(smbios_encode(LAYOUT_SMBIOS, table, size, &used), -ENOSPC);
}

Test(smbios, goes_to_guest_memory)
{
	struct guest_memory memory;
	char anchor[5];

	test_memory(&memory, 2 * MIB);
	cr_assert_eq(smbios_write(&memory, NULL), 0);
	cr_assert_eq(memory_read(&memory, LAYOUT_SMBIOS, anchor, 5), 0);
	cr_assert_eq(memcmp(anchor, "_SM3_", 5), 0);
}
