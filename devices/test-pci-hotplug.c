/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registers of hot-plug: what is pending is read once, at any width; an eject reaches the owner
 * of the slots; what was not read moves and is told again.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "devices/pci-hotplug.h"
#include "devices/test-board.h"

static struct test_board board;
static struct ged ged;
static struct pci_hotplug hotplug;
static uint32_t ejected[64], n_ejected;

static void on_eject(struct pci_hotplug_owner *owner _unused_, uint32_t slot)
{
	cr_assert_lt(n_ejected, ARRAY_SIZE(ejected));
	ejected[n_ejected++] = slot;
}

static struct pci_hotplug_owner owner = {on_eject};

static void set_up(void)
{
	test_board_init(&board);
	cr_assert_eq(ged_init(&ged, &board.io, &board.irqs, NULL), 0);
	cr_assert_eq(pci_hotplug_init(&hotplug, &board.io, &ged, NULL), 0);
	hotplug.owner = &owner;
	n_ejected = 0;
}

static void tear_down(void)
{
	hotplug.device.ops->deinit(&hotplug.device);
	ged.device.ops->deinit(&ged.device);
	test_board_deinit(&board);
}

TestSuite(pci_hotplug, .init = set_up, .fini = tear_down);

static uint32_t in(uint32_t offset, uint32_t len)
{
	return test_board_in(&board, (uint16_t)(PCI_HOTPLUG_PORT + offset), len);
}

static void out(uint32_t offset, uint32_t value, uint32_t len)
{
	test_board_out(&board, (uint16_t)(PCI_HOTPLUG_PORT + offset), value, len);
}

static uint8_t event(void)
{
	return (uint8_t)test_board_in(&board, GED_PORT, 1);
}

Test(pci_hotplug, nothing_is_pending_at_power_on)
{
	for (uint32_t offset = 0; offset < PCI_HOTPLUG_PORT_SIZE; offset += 4)
		cr_assert_eq(in(offset, 4), 0);
	cr_assert_not(pci_hotplug_remind(&hotplug));
	cr_assert_eq(event(), 0);
}

Test(pci_hotplug, a_filled_slot_is_told_once)
{
	pci_hotplug_added(&hotplug, 9);
	cr_assert_eq(test_board_edges(&board, GED_GSI), 1);
	cr_assert_eq(event(), GED_PCI_HOTPLUG);
	cr_assert_eq(in(PCI_HOTPLUG_DOWN, 4), 0);
	cr_assert_eq(in(PCI_HOTPLUG_UP, 4), 1u << 9);
	cr_assert_eq(in(PCI_HOTPLUG_UP, 4), 0);
	cr_assert_eq(n_ejected, 0);
}

Test(pci_hotplug, a_slot_is_asked_for_once)
{
	pci_hotplug_ask(&hotplug, 31);
	cr_assert_eq(test_board_edges(&board, GED_GSI), 1);
	cr_assert_eq(event(), GED_PCI_HOTPLUG);
	cr_assert_eq(in(PCI_HOTPLUG_UP, 4), 0);
	cr_assert_eq(in(PCI_HOTPLUG_DOWN, 4), 1u << 31);
	cr_assert_eq(in(PCI_HOTPLUG_DOWN, 4), 0);
}

/* ACPICA may read a field in pieces: a piece clears what it showed and no more. */
Test(pci_hotplug, a_narrow_read_clears_its_own_bytes)
{
	for (uint32_t slot = 1; slot < 32; slot += 6) /* 1, 7, 13, 19, 25, 31 */
		pci_hotplug_ask(&hotplug, slot);
	cr_assert_eq(in(PCI_HOTPLUG_DOWN + 1, 1), 1u << (13 - 8));
	cr_assert_eq(in(PCI_HOTPLUG_DOWN + 2, 2), 0x8208);
	cr_assert_eq(in(PCI_HOTPLUG_DOWN, 4), 0x82);
	cr_assert_eq(in(PCI_HOTPLUG_DOWN, 4), 0);
}

Test(pci_hotplug, a_read_over_two_registers_takes_of_both)
{
	pci_hotplug_added(&hotplug, 24);
	pci_hotplug_added(&hotplug, 1);
	pci_hotplug_ask(&hotplug, 2);
	cr_assert_eq(in(PCI_HOTPLUG_UP + 3, 2), 0x0401);
	cr_assert_eq(in(PCI_HOTPLUG_UP, 4), 2);
	cr_assert_eq(in(PCI_HOTPLUG_DOWN, 4), 0);
}

Test(pci_hotplug, several_slots_are_told_together)
{
	pci_hotplug_added(&hotplug, 8);
	pci_hotplug_added(&hotplug, 23);
	pci_hotplug_ask(&hotplug, 10);
	cr_assert_eq(in(PCI_HOTPLUG_UP, 4), 1u << 8 | 1u << 23);
	cr_assert_eq(in(PCI_HOTPLUG_DOWN, 4), 1u << 10);
}

Test(pci_hotplug, an_eject_reaches_the_owner)
{
	out(PCI_HOTPLUG_EJECT, 1u << 12, 4);
	cr_assert_eq(n_ejected, 1);
	cr_assert_eq(ejected[0], 12);
	out(PCI_HOTPLUG_EJECT, 1u << 8 | 1u << 31 | 1, 4);
	cr_assert_eq(n_ejected, 3, "the host bridge is no slot's");
	cr_assert_eq(ejected[1], 8);
	cr_assert_eq(ejected[2], 31);
	cr_assert_eq(in(PCI_HOTPLUG_EJECT, 4), 0);
}

Test(pci_hotplug, a_narrow_eject_means_the_slots_of_its_bytes)
{
	out(PCI_HOTPLUG_EJECT + 1, 0x02, 1);
	out(PCI_HOTPLUG_EJECT + 2, 0x8001, 2);
	cr_assert_eq(n_ejected, 3);
	cr_assert_eq(ejected[0], 9);
	cr_assert_eq(ejected[1], 16);
	cr_assert_eq(ejected[2], 31);
}

Test(pci_hotplug, other_writes_do_nothing)
{
	pci_hotplug_added(&hotplug, 9);
	out(PCI_HOTPLUG_UP, UINT32_MAX, 4);
	out(PCI_HOTPLUG_DOWN, UINT32_MAX, 4);
	out(PCI_HOTPLUG_DOWN + 2, UINT32_MAX, 4);
	out(PCI_HOTPLUG_EJECT, 0, 4);
	cr_assert_eq(n_ejected, 0);
	cr_assert_eq(in(PCI_HOTPLUG_UP, 4), 1u << 9);
}

Test(pci_hotplug, an_ejected_slot_is_no_longer_asked_for)
{
	pci_hotplug_added(&hotplug, 9);
	pci_hotplug_ask(&hotplug, 10);
	out(PCI_HOTPLUG_EJECT, 1u << 9 | 1u << 10, 4);
	cr_assert_eq(in(PCI_HOTPLUG_UP, 4), 0);
	cr_assert_eq(in(PCI_HOTPLUG_DOWN, 4), 0);
}

Test(pci_hotplug, a_slot_filled_again_is_not_asked_for)
{
	pci_hotplug_ask(&hotplug, 9);
	pci_hotplug_added(&hotplug, 9);
	cr_assert_eq(in(PCI_HOTPLUG_UP, 4), 1u << 9);
	cr_assert_eq(in(PCI_HOTPLUG_DOWN, 4), 0);
	pci_hotplug_ask(&hotplug, 9);
	pci_hotplug_forget(&hotplug, 9);
	cr_assert_eq(in(PCI_HOTPLUG_DOWN, 4), 0);
}

Test(pci_hotplug, without_an_owner_an_eject_is_ignored)
{
	hotplug.owner = NULL;
	out(PCI_HOTPLUG_EJECT, UINT32_MAX, 4);
	cr_assert_eq(n_ejected, 0);
}

/* The edge came before the guest's driver did. */
Test(pci_hotplug, what_was_not_read_is_told_again)
{
	pci_hotplug_added(&hotplug, 9);
	(void)event();
	(void)test_board_edges(&board, GED_GSI);
	cr_assert(pci_hotplug_remind(&hotplug));
	cr_assert_eq(test_board_edges(&board, GED_GSI), 1);
	cr_assert_eq(event(), GED_PCI_HOTPLUG);
	(void)in(PCI_HOTPLUG_UP, 4);
	cr_assert_not(pci_hotplug_remind(&hotplug));
	cr_assert_eq(test_board_edges(&board, GED_GSI), 0);
}

Test(pci_hotplug, a_reset_forgets)
{
	pci_hotplug_added(&hotplug, 9);
	pci_hotplug_ask(&hotplug, 10);
	hotplug.device.ops->reset(&hotplug.device);
	cr_assert_eq(in(PCI_HOTPLUG_UP, 4), 0);
	cr_assert_eq(in(PCI_HOTPLUG_DOWN, 4), 0);
}

Test(pci_hotplug, what_was_not_read_moves)
{
	static struct test_board there;
	static struct ged ged_there;
	static struct pci_hotplug to;

	test_board_init(&there);
	cr_assert_eq(ged_init(&ged_there, &there.io, &there.irqs, NULL), 0);
	cr_assert_eq(pci_hotplug_init(&to, &there.io, &ged_there, NULL), 0);
	pci_hotplug_added(&hotplug, 9);
	pci_hotplug_ask(&hotplug, 10);
	test_board_move(&hotplug.device, &to.device);
	cr_assert_eq(test_board_edges(&there, GED_GSI), 1, "and is told there");
	cr_assert_eq(test_board_in(&there, GED_PORT, 1), GED_PCI_HOTPLUG);
	cr_assert_eq(test_board_in(&there, PCI_HOTPLUG_PORT + PCI_HOTPLUG_UP, 4), 1u << 9);
	cr_assert_eq(test_board_in(&there, PCI_HOTPLUG_PORT + PCI_HOTPLUG_DOWN, 4), 1u << 10);
	to.device.ops->deinit(&to.device);
	ged_there.device.ops->deinit(&ged_there.device);
	test_board_deinit(&there);
}

Test(pci_hotplug, a_state_with_the_host_bridge_is_refused)
{
	uint8_t stream[256];
	struct cursor save = cursor_writer(stream, sizeof(stream)), load;
	struct error err = ERROR_NULL;

	hotplug.state.down = 1;
	cr_assert_eq(device_save(&hotplug.device, &save), 0);
	load = cursor_reader(stream, save.at);
	cr_assert_eq(device_load(&hotplug.device, &load, &err), -EBADMSG);
	cr_assert(strstr(err.text, "pci-hotplug"), "%s", err.text);
}

Test(pci_hotplug, it_counts)
{
	json_t *json = json_object();

	pci_hotplug_added(&hotplug, 9);
	pci_hotplug_ask(&hotplug, 9);
	pci_hotplug_ask(&hotplug, 9);
	out(PCI_HOTPLUG_EJECT, 1u << 9, 4);
	hotplug.device.ops->counters(&hotplug.device, json);
	cr_assert_eq(json_integer_value(json_object_get(json, "added")), 1);
	cr_assert_eq(json_integer_value(json_object_get(json, "asked")), 2);
	cr_assert_eq(json_integer_value(json_object_get(json, "ejected")), 1);
	json_decref(json);
}
