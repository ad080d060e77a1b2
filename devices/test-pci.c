/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The PCI bus with two functions that record what reaches them: configuration space through both
 * doors, BARs, what a guest may change and what a load may.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "devices/pci.h"
#include "devices/registers.h"
#include "devices/test-board.h"

#define ECAM        0xe0000000u
#define WINDOW      0xc0000000u
#define WINDOW_SIZE (1u << 20)
#define PORTS       0xc000u
#define N_PORTS     0x1000u
#define BAR_SIZE    0x4000u
#define PORT_BAR    64u
#define ENABLE      0x80000000u
#define SLOT_A      3
#define SLOT_B      31
#define SLOT_P      9

struct move {
	uint32_t bar;
	gpa_t from, to;
};

struct part {
	struct pci_function function;
	struct move moves[16];
	uint32_t n_moves;
	uint32_t n_accesses, bar, len;
	uint64_t offset, value;
};

static struct test_board board;
static struct pci_root root;
static struct part a, b, p; /* p is plugged in by those who want ports */

static void record(struct part *part, uint32_t bar, uint64_t offset, uint32_t len)
{
	part->n_accesses++;
	part->bar = bar;
	part->offset = offset;
	part->len = len;
}

static void on_read(struct pci_function *function, uint32_t bar, uint64_t offset, void *data,
		    uint32_t len)
{
	struct part *part = container_of(function, struct part, function);

	record(part, bar, offset, len);
	memset(data, part == &a ? 0xaa : 0xbb, len);
}

static void on_write(struct pci_function *function, uint32_t bar, uint64_t offset, const void *data,
		     uint32_t len)
{
	struct part *part = container_of(function, struct part, function);

	record(part, bar, offset, len);
	part->value = register_get(data, len);
}

static void on_moved(struct pci_function *function, uint32_t bar, gpa_t from, gpa_t to)
{
	struct part *part = container_of(function, struct part, function);

	if (part->n_moves < ARRAY_SIZE(part->moves))
		part->moves[part->n_moves++] = (struct move){bar, from, to};
}

static const struct pci_function_ops function_ops = {
	.read = on_read, .write = on_write, .moved = on_moved};

static uint32_t part_states(struct device *device, struct device_state *states)
{
	return pci_function_states(container_of(device, struct pci_function, device), states);
}

static int part_loaded(struct device *device, struct error *err)
{
	return pci_function_loaded(container_of(device, struct pci_function, device), err);
}

static const struct device_ops device_ops = {
	.type = "part", .states = part_states, .loaded = part_loaded};

static void part_init(struct part *part, const char *name)
{
	static const struct pci_ids ids = {
		.vendor = 0x1234,
		.device = 0x5678,
		.subsystem_vendor = 0x9abc,
		.subsystem = 0xdef0,
		.class_code = 0x018055,
		.revision = 7,
	};

	*part = (struct part){0};
	device_init(&part->function.device, &device_ops, name);
	pci_function_init(&part->function, &root, &function_ops, &ids);
	pci_add_bar(&part->function, 0, BAR_SIZE);
	pci_add_capability(&part->function, 0x09, 19);
	pci_add_capability(&part->function, 0x05, 10);
}

static void set_up(void)
{
	static const struct pci_layout layout = {.ecam = ECAM,
						 .window = WINDOW,
						 .window_size = WINDOW_SIZE,
						 .ports = PORTS,
						 .n_ports = N_PORTS};
	struct error err = ERROR_NULL;

	test_board_init(&board);
	cr_assert_eq(pci_root_init(&root, &layout, &board.io, &board.mmio, &board.irqs,
				   &board.kicks, &err),
		     0, "%s", err.text);
	part_init(&a, "a");
	part_init(&b, "b");
	cr_assert_eq(pci_plug(&root, &a.function, SLOT_A, &err), 0, "%s", err.text);
	cr_assert_eq(pci_plug(&root, &b.function, SLOT_B, &err), 0, "%s", err.text);
	a.n_moves = b.n_moves = 0;
}

static void tear_down(void)
{
	test_board_deinit(&board);
}

TestSuite(pci, .init = set_up, .fini = tear_down);

static void cf8(uint32_t bus, uint32_t slot, uint32_t function, uint32_t offset)
{
	test_board_out(&board, 0xcf8,
		       ENABLE | bus << 16 | slot << 11 | function << 8 | (offset & 0xfc), 4);
}

static uint32_t cf8_read(uint32_t slot, uint32_t offset, uint32_t len)
{
	cf8(0, slot, 0, offset);
	return test_board_in(&board, 0xcfc + (offset & 3), len);
}

static void cf8_write(uint32_t slot, uint32_t offset, uint32_t value, uint32_t len)
{
	cf8(0, slot, 0, offset);
	test_board_out(&board, 0xcfc + (offset & 3), value, len);
}

static uint64_t mmio_read(uint64_t address, uint32_t len)
{
	uint64_t value = 0;

	bus_read(&board.mmio, address, &value, len);
	return value;
}

static void mmio_write(uint64_t address, uint64_t value, uint32_t len)
{
	bus_write(&board.mmio, address, &value, len);
}

static uint64_t ecam_read(uint32_t slot, uint32_t offset, uint32_t len)
{
	return mmio_read(ECAM + (slot << 15) + offset, len);
}

Test(pci, functions_say_who_they_are)
{
	cr_assert_eq(cf8_read(SLOT_A, 0x00, 4), 0x56781234);
	cr_assert_eq(cf8_read(SLOT_A, 0x08, 4), 0x01805507);
	cr_assert_eq(cf8_read(SLOT_A, 0x2c, 4), 0xdef09abc);
	cr_assert_eq(cf8_read(0, 0x00, 4), 0x0d578086, "the host bridge");
	cr_assert_eq(cf8_read(0, 0x0a, 2), 0x0600);
}

Test(pci, configuration_is_read_at_every_alignment)
{
	for (uint32_t offset = 0; offset < PCI_CONFIG_SIZE; offset++)
		for (uint32_t len = 1; len <= 4 - (offset & 3); len *= 2) {
			uint32_t wanted = 0;

			memcpy(&wanted, &a.function.config.bytes[offset], len);
			cr_assert_eq(cf8_read(SLOT_A, offset, len), wanted, "%u bytes at 0x%x", len,
				     offset);
		}
}

Test(pci, an_access_over_the_end_of_the_data_port_reads_all_ones)
{
	cf8(0, SLOT_A, 0, 0);
	cr_assert_eq(test_board_in(&board, 0xcfd, 4), UINT32_MAX);
	cr_assert_eq(test_board_in(&board, 0xcff, 2), 0xffff);
}

Test(pci, bytes_are_written_where_they_belong)
{
	cf8_write(SLOT_A, 0x12, 0x12, 1);
	cr_assert_eq(cf8_read(SLOT_A, 0x10, 4) >> 16, 0xc012);
	cf8_write(SLOT_A, 0x13, 0xd0, 1);
	cr_assert_eq(cf8_read(SLOT_A, 0x10, 4), 0xd0120000 | (a.function.bars[0].home & 0xffff));
	cf8_write(SLOT_A, 0x3c, 0x5a, 1);
	cr_assert_eq(cf8_read(SLOT_A, 0x3c, 1), 0x5a, "the interrupt line keeps what it is told");
}

Test(pci, only_bus_0_and_function_0_are_there)
{
	for (uint32_t function = 1; function < 8; function++) {
		cf8(0, SLOT_A, function, 0);
		cr_assert_eq(test_board_in(&board, 0xcfc, 4), UINT32_MAX);
		cr_assert_eq(mmio_read(ECAM + (SLOT_A << 15) + (function << 12), 4), UINT32_MAX);
	}
	cf8(1, SLOT_A, 0, 0);
	cr_assert_eq(test_board_in(&board, 0xcfc, 4), UINT32_MAX);
	cf8(255, SLOT_A, 0, 0);
	cr_assert_eq(test_board_in(&board, 0xcfc, 2), 0xffff);
	cr_assert_eq(mmio_read(ECAM + (1 << 20), 4), UINT32_MAX, "ECAM ends with bus 0");
}

Test(pci, an_empty_slot_reads_all_ones_and_swallows_writes)
{
	cr_assert_eq(cf8_read(4, 0, 4), UINT32_MAX);
	cr_assert_eq(ecam_read(4, 0x10, 2), 0xffff);
	cf8_write(4, 0x10, 0, 4);
	cr_assert_eq(cf8_read(4, 0x10, 4), UINT32_MAX);
}

Test(pci, nothing_is_selected_without_the_enable_bit)
{
	test_board_out(&board, 0xcf8, SLOT_A << 11, 4);
	cr_assert_eq(test_board_in(&board, 0xcfc, 4), UINT32_MAX);
}

Test(pci, the_latch_takes_whole_words_only)
{
	cf8(0, SLOT_A, 0, 8);
	test_board_out(&board, 0xcf8, 0, 2);
	test_board_out(&board, 0xcfb, 0, 1);
	cr_assert_eq(test_board_in(&board, 0xcf8, 4), ENABLE | SLOT_A << 11 | 8);
	cr_assert_eq(test_board_in(&board, 0xcfb, 1), 0x80);
}

Test(pci, ecam_shows_what_cf8_shows)
{
	for (uint32_t offset = 0; offset < PCI_CONFIG_SIZE; offset += 4)
		cr_assert_eq(ecam_read(SLOT_B, offset, 4), cf8_read(SLOT_B, offset, 4), "0x%x",
			     offset);
	mmio_write(ECAM + (SLOT_B << 15) + 0x0c, 0x77, 1);
	cr_assert_eq(cf8_read(SLOT_B, 0x0c, 1), 0x77);
	cr_assert_eq(ecam_read(SLOT_B, 0, 8),
		     (uint64_t)cf8_read(SLOT_B, 4, 4) << 32 | cf8_read(SLOT_B, 0, 4));
}

Test(pci, there_are_no_extended_capabilities)
{
	cr_assert_eq(ecam_read(SLOT_A, 0x100, 4), 0);
	cr_assert_eq(ecam_read(SLOT_A, 0xffc, 4), 0);
	cr_assert_eq(ecam_read(SLOT_A, 0xfe, 4), 0, "nor half of one");
	mmio_write(ECAM + (SLOT_A << 15) + 0xfe, UINT32_MAX, 4);
	mmio_write(ECAM + (SLOT_A << 15) + 0x100, UINT32_MAX, 4);
	cr_assert_eq(ecam_read(SLOT_A, 0x100, 4), 0);
}

Test(pci, capabilities_form_a_list)
{
	uint32_t first = cf8_read(SLOT_A, 0x34, 1), second = cf8_read(SLOT_A, first + 1, 1);

	cr_assert(cf8_read(SLOT_A, 0x06, 2) & 0x10, "the status register says that there is one");
	cr_assert_eq(cf8_read(SLOT_A, first, 1), 0x09);
	cr_assert_eq(first % 4, 0);
	cr_assert_eq(cf8_read(SLOT_A, second, 1), 0x05);
	cr_assert_eq(second % 4, 0);
	cr_assert_geq(second, first + 19);
	cr_assert_eq(cf8_read(SLOT_A, second + 1, 1), 0);
}

Test(pci, read_only_bits_stay)
{
	uint8_t before[PCI_CONFIG_SIZE];

	memcpy(before, a.function.config.bytes, sizeof(before));
	for (uint32_t offset = 0; offset < PCI_CONFIG_SIZE; offset += 4)
		cf8_write(SLOT_A, offset, UINT32_MAX, 4);
	for (uint32_t i = 0; i < PCI_CONFIG_SIZE; i++) {
		uint8_t changed = before[i] ^ a.function.config.bytes[i];

		if (i == 0x0c || i == 0x3c || (i >= 0x10 && i < 0x14))
			continue;
		cr_assert_eq(changed & ~(i == 4 ? 0x04 : i == 5 ? 0x04 : 0), 0, "byte 0x%x", i);
	}
}

Test(pci, homes_are_aligned_and_apart)
{
	uint32_t one = cf8_read(SLOT_A, 0x10, 4), two = cf8_read(SLOT_B, 0x10, 4);

	cr_assert_eq(one % BAR_SIZE, 0);
	cr_assert_eq(two % BAR_SIZE, 0);
	cr_assert_geq(one, WINDOW);
	cr_assert_geq(two, one + BAR_SIZE);
	cr_assert(cf8_read(SLOT_A, 4, 2) & 2, "and decoded");
}

Test(pci, a_bar_access_reaches_its_function)
{
	uint32_t home = cf8_read(SLOT_B, 0x10, 4);

	cr_assert_eq(mmio_read(home + 0x124, 4), 0xbbbbbbbb);
	cr_assert_eq(b.offset, 0x124);
	cr_assert_eq(b.len, 4);
	mmio_write(home + BAR_SIZE - 8, 0x1122334455667788, 8);
	cr_assert_eq(b.value, 0x1122334455667788);
	cr_assert_eq(b.offset, BAR_SIZE - 8);
	cr_assert_eq(a.n_accesses, 0);
}

Test(pci, an_access_over_the_end_of_a_bar_reaches_nobody)
{
	uint32_t home = cf8_read(SLOT_B, 0x10, 4);

	cr_assert_eq(mmio_read(home + BAR_SIZE - 2, 4), UINT32_MAX);
	cr_assert_eq(mmio_read(home + BAR_SIZE, 4), UINT32_MAX);
	cr_assert_eq(b.n_accesses, 0);
}

Test(pci, a_bar_tells_its_size)
{
	uint32_t home = cf8_read(SLOT_A, 0x10, 4);

	cf8_write(SLOT_A, 4, 0, 2);
	cf8_write(SLOT_A, 0x10, UINT32_MAX, 4);
	cr_assert_eq(cf8_read(SLOT_A, 0x10, 4), ~(BAR_SIZE - 1));
	cf8_write(SLOT_A, 0x10, home, 4);
	cf8_write(SLOT_A, 4, 2, 2);
	cr_assert_eq(cf8_read(SLOT_A, 0x10, 4), home);
	cr_assert_eq(mmio_read(home, 1), 0xaa, "and is back where it was");
}

Test(pci, a_bar_that_is_not_there_reads_zero)
{
	cf8_write(SLOT_A, 0x14, UINT32_MAX, 4);
	cr_assert_eq(cf8_read(SLOT_A, 0x14, 4), 0);
	cf8_write(SLOT_A, 0x30, UINT32_MAX, 4);
	cr_assert_eq(cf8_read(SLOT_A, 0x30, 4), 0, "no ROM");
}

Test(pci, sizing_with_decode_on_comes_home_again)
{
	uint32_t home = cf8_read(SLOT_A, 0x10, 4);

	cf8_write(SLOT_A, 0x10, UINT32_MAX, 4);
	cr_assert_eq(mmio_read(home, 4), UINT32_MAX);
	cf8_write(SLOT_A, 0x10, home, 4);
	cr_assert_eq(mmio_read(home, 4), 0xaaaaaaaa);
	cr_assert_eq(a.n_moves, 2);
	cr_assert_eq(a.moves[0].from, home);
	cr_assert_eq(a.moves[1].to, home);
}

Test(pci, a_moved_bar_answers_at_its_new_place_only)
{
	uint32_t home = cf8_read(SLOT_A, 0x10, 4), there = WINDOW + WINDOW_SIZE - BAR_SIZE;

	cf8_write(SLOT_A, 0x10, there, 4);
	cr_assert_eq(a.n_moves, 1);
	cr_assert_eq(a.moves[0].bar, 0);
	cr_assert_eq(a.moves[0].from, home);
	cr_assert_eq(a.moves[0].to, there);
	cr_assert_eq(mmio_read(home, 4), UINT32_MAX);
	cr_assert_eq(mmio_read(there + 8, 4), 0xaaaaaaaa);
	cr_assert_eq(a.offset, 8);
}

Test(pci, writing_what_is_there_moves_nothing)
{
	cf8_write(SLOT_A, 0x10, cf8_read(SLOT_A, 0x10, 4), 4);
	cf8_write(SLOT_A, 4, 6, 2);
	cr_assert_eq(a.n_moves, 0);
}

Test(pci, decode_off_silences_a_bar)
{
	uint32_t home = cf8_read(SLOT_A, 0x10, 4);

	cf8_write(SLOT_A, 4, 4, 2);
	cr_assert_eq(a.n_moves, 1);
	cr_assert_eq(a.moves[0].from, home);
	cr_assert_eq(a.moves[0].to, 0);
	cr_assert_eq(mmio_read(home, 4), UINT32_MAX);
	cf8_write(SLOT_A, 4, 6, 2);
	cr_assert_eq(a.moves[1].from, 0);
	cr_assert_eq(a.moves[1].to, home);
	cr_assert_eq(mmio_read(home, 4), 0xaaaaaaaa);
}

Test(pci, a_bar_on_top_of_another_is_no_harm)
{
	uint32_t home = cf8_read(SLOT_A, 0x10, 4), other = cf8_read(SLOT_B, 0x10, 4);

	cf8_write(SLOT_A, 0x10, other, 4);
	mmio_read(other, 4);
	cr_assert_eq(a.n_accesses + b.n_accesses, 1, "one of them answers");
	cf8_write(SLOT_A, 0x10, home, 4);
	cr_assert_eq(mmio_read(home, 4), 0xaaaaaaaa);
	cr_assert_eq(mmio_read(other, 4), 0xbbbbbbbb);
}

/* The kernel refuses a kick where another BAR has one. */
Test(pci, a_bar_is_told_of_a_place_once_it_is_free)
{
	uint32_t home = cf8_read(SLOT_A, 0x10, 4), other = cf8_read(SLOT_B, 0x10, 4);

	cf8_write(SLOT_A, 0x10, other, 4);
	cr_assert_eq(a.n_moves, 1);
	cr_assert_eq(a.moves[0].from, home);
	cr_assert_eq(a.moves[0].to, 0);
	cf8_write(SLOT_B, 0x10, home, 4);
	cr_assert_eq(b.n_moves, 1);
	cr_assert_eq(b.moves[0].to, home);
	cr_assert_eq(a.n_moves, 2);
	cr_assert_eq(a.moves[1].from, 0);
	cr_assert_eq(a.moves[1].to, other);
}

Test(pci, a_reset_tells_exchanged_bars_their_homes)
{
	uint32_t home = cf8_read(SLOT_A, 0x10, 4), other = cf8_read(SLOT_B, 0x10, 4);

	cf8_write(SLOT_A, 0x10, other, 4);
	cf8_write(SLOT_B, 0x10, home, 4);
	a.n_moves = b.n_moves = 0;
	pci_function_reset(&a.function);
	pci_function_reset(&b.function);
	cr_assert_eq(a.n_moves, 2);
	cr_assert_eq(a.moves[0].to, 0, "the other is still there");
	cr_assert_eq(a.moves[1].to, home);
	cr_assert_eq(b.n_moves, 1);
	cr_assert_eq(b.moves[0].to, other);
	cr_assert_eq(mmio_read(home, 4), 0xaaaaaaaa);
	cr_assert_eq(mmio_read(other, 4), 0xbbbbbbbb);
}

Test(pci, a_bar_outside_of_the_window_does_not_answer)
{
	uint32_t home = cf8_read(SLOT_A, 0x10, 4);

	cf8_write(SLOT_A, 0x10, ECAM, 4);
	cr_assert_eq(mmio_read(ECAM, 4), 0x0d578086, "ECAM stays");
	cf8_write(SLOT_A, 0x10, 0, 4);
	cr_assert_eq(mmio_read(home, 4), UINT32_MAX);
	cr_assert_eq(a.n_accesses, 0);
	cf8_write(SLOT_A, 0x10, home, 4);
	cr_assert_eq(mmio_read(home, 4), 0xaaaaaaaa);
}

Test(pci, a_taken_slot_is_refused)
{
	struct error err = ERROR_NULL;
	static struct part more;

	part_init(&more, "more");
	cr_assert_eq(pci_plug(&root, &more.function, SLOT_A, &err), -EBUSY);
	cr_assert(*err.text);
	cr_assert_eq(pci_plug(&root, &more.function, PCI_SLOTS, &err), -EBUSY);
}

Test(pci, a_full_window_is_said)
{
	struct error err = ERROR_NULL;
	static struct part large;

	part_init(&large, "large");
	pci_add_bar(&large.function, 1, WINDOW_SIZE);
	cr_assert_eq(pci_plug(&root, &large.function, 5, &err), -ENOSPC);
	cr_assert(*err.text);
	cr_assert_eq(cf8_read(5, 0, 4), UINT32_MAX);
}

static struct part extra;

static void plug_extra(bool hot)
{
	struct error err = ERROR_NULL;

	part_init(&extra, "extra");
	cr_assert_eq(hot ? pci_plug_hot(&root, &extra.function, 5, &err)
			 : pci_plug(&root, &extra.function, 5, &err),
		     0, "%s", err.text);
}

Test(pci, a_function_that_comes_late_is_nowhere)
{
	plug_extra(true);
	cr_assert_eq(cf8_read(5, 0, 4), 0x56781234);
	cr_assert_eq(cf8_read(5, 4, 2), 0, "decodes nothing");
	cr_assert_eq(cf8_read(5, 0x10, 4), 0);
	cr_assert_eq(extra.n_moves, 0);
	cr_assert_eq(mmio_read(extra.function.bars[0].home, 4), UINT32_MAX);
	cr_assert_eq(mmio_read(0, 4), UINT32_MAX);
}

Test(pci, the_guest_places_what_came_late)
{
	uint32_t there = WINDOW + WINDOW_SIZE - BAR_SIZE;

	plug_extra(true);
	cf8_write(5, 0x10, UINT32_MAX, 4);
	cr_assert_eq(cf8_read(5, 0x10, 4), ~(BAR_SIZE - 1));
	cf8_write(5, 0x10, there, 4);
	cf8_write(5, 4, 6, 2);
	cr_assert_eq(mmio_read(there + 4, 4), 0xbbbbbbbb);
	cr_assert_eq(extra.n_accesses, 1);
	cr_assert_eq(extra.n_moves, 1);
	cr_assert_eq(extra.moves[0].to, there);
}

Test(pci, what_came_late_is_at_home_after_a_reset)
{
	plug_extra(true);
	pci_function_reset(&extra.function);
	cr_assert_eq(cf8_read(5, 0x10, 4), extra.function.bars[0].home);
	cr_assert(cf8_read(5, 4, 2) & 2);
	cr_assert_eq(mmio_read(extra.function.bars[0].home, 4), 0xbbbbbbbb);
	cr_assert_neq(extra.function.bars[0].home, a.function.bars[0].home);
	cr_assert_neq(extra.function.bars[0].home, b.function.bars[0].home);
}

Test(pci, a_slot_is_empty_after_an_unplug)
{
	uint32_t home;

	plug_extra(false);
	home = cf8_read(5, 0x10, 4);
	cr_assert_eq(mmio_read(home, 4), 0xbbbbbbbb);
	extra.n_moves = 0;
	pci_unplug(&extra.function);
	cr_assert_eq(cf8_read(5, 0, 4), UINT32_MAX);
	cr_assert_eq(ecam_read(5, 0x100, 4), UINT32_MAX);
	cr_assert_eq(mmio_read(home, 4), UINT32_MAX);
	cr_assert_eq(extra.n_moves, 1, "its kicks are taken away");
	cr_assert_eq(extra.moves[0].from, home);
	cr_assert_eq(extra.moves[0].to, 0);
	plug_extra(true);
	cr_assert_eq(cf8_read(5, 0, 4), 0x56781234, "and can be filled again");
	cr_assert_eq(extra.function.bars[0].home, home);
}

Test(pci, a_hidden_function_cannot_be_reached)
{
	uint32_t home;

	plug_extra(false);
	home = cf8_read(5, 0x10, 4);
	cr_assert(pci_hide(&root, 5));
	cr_assert_not(pci_hide(&root, 5), "hidden already");
	cr_assert_not(pci_hide(&root, 6), "empty");
	cr_assert_not(pci_hide(&root, PCI_SLOTS));
	cr_assert_eq(cf8_read(5, 0, 4), UINT32_MAX);
	cf8_write(5, 0x10, 0, 4);
	cr_assert_eq(mmio_read(home, 4), UINT32_MAX);
	cr_assert_eq(extra.n_accesses, 0);
	cr_assert_eq(extra.function.config.bytes[0x12], home >> 16 & 0xff);
	pci_unplug(&extra.function);
}

Test(pci, who_waits_for_a_place_gets_it_from_what_leaves)
{
	uint32_t place;

	plug_extra(false);
	place = cf8_read(5, 0x10, 4);
	cf8_write(SLOT_A, 0x10, place, 4);
	cr_assert_eq(a.moves[0].to, 0, "the other is still there");
	pci_unplug(&extra.function);
	cr_assert_eq(a.n_moves, 2);
	cr_assert_eq(a.moves[1].to, place);
	cr_assert_eq(mmio_read(place, 4), 0xaaaaaaaa);
}

/* However often something comes and goes, there is room for it. */
Test(pci, homes_are_given_back)
{
	gpa_t home;

	plug_extra(false);
	home = extra.function.bars[0].home;
	for (uint32_t i = 0; i < 2 * WINDOW_SIZE / BAR_SIZE; i++) {
		pci_unplug(&extra.function);
		plug_extra(i & 1);
		cr_assert_eq(extra.function.bars[0].home, home);
	}
	pci_unplug(&extra.function);
}

#define COMINGS 2000

static _Atomic bool over;
static _Atomic uint64_t n_seen, n_missed;

/* A guest's CPU that looks at the slot by both doors and at its BAR, wherever it may be. */
static void *look(void *argument)
{
	const gpa_t place = (uintptr_t)argument;

	while (!atomic_load(&over)) {
		uint64_t id = 0, value = 0;

		bus_read(&board.mmio, ECAM + (5 << 15), &id, 4);
		if (id != UINT32_MAX && id != 0x56781234)
			return (void *)1;
		atomic_fetch_add(id == UINT32_MAX ? &n_missed : &n_seen, 1);
		value = place;
		bus_write(&board.mmio, ECAM + (5 << 15) + 0x10, &value, 4);
		value = 6;
		bus_write(&board.mmio, ECAM + (5 << 15) + 4, &value, 2);
		bus_read(&board.mmio, place, &value, 4);
		if ((uint32_t)value != UINT32_MAX && (uint32_t)value != 0xbbbbbbbb)
			return (void *)2;
	}
	return NULL;
}

/* What looks is never inside of what has been unplugged: its memory is another's at once. */
Test(pci, functions_come_and_go_under_their_users)
{
	static const gpa_t places[] = {WINDOW + WINDOW_SIZE / 2, WINDOW + WINDOW_SIZE / 4,
				       WINDOW + WINDOW_SIZE / 2};
	pthread_t threads[ARRAY_SIZE(places)];

	for (uint32_t i = 0; i < ARRAY_SIZE(places); i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, look, (void *)(uintptr_t)places[i]),
			     0);
	/* Until both were seen, and often. */
	for (uint32_t i = 0; i < COMINGS || !atomic_load(&n_seen) || !atomic_load(&n_missed); i++) {
		plug_extra(i & 1);
		if (i & 2)
			(void)pci_hide(&root, 5);
		pci_unplug(&extra.function);
		cr_assert_eq(extra.function.n_inside, 0);
		for (uint32_t k = 0; k < extra.n_moves; k++)
			cr_assert_neq(extra.moves[k].from, extra.moves[k].to);
		memset(&extra, 0x5a, sizeof(extra));
	}
	atomic_store(&over, true);
	for (uint32_t i = 0; i < ARRAY_SIZE(places); i++) {
		void *wrong;

		pthread_join(threads[i], &wrong);
		cr_assert_null(wrong, "thread %u read what nobody has", i);
	}
	cr_assert_eq(mmio_read(places[0], 4), UINT32_MAX);
}

Test(pci, reset_puts_all_back)
{
	uint32_t home = cf8_read(SLOT_A, 0x10, 4);

	cf8_write(SLOT_A, 0x10, WINDOW + WINDOW_SIZE - BAR_SIZE, 4);
	cf8_write(SLOT_A, 0x3c, 0x5a, 1);
	pci_function_reset(&a.function);
	cr_assert_eq(cf8_read(SLOT_A, 0x10, 4), home);
	cr_assert_eq(cf8_read(SLOT_A, 0x3c, 1), 0);
	cr_assert_eq(mmio_read(home, 4), 0xaaaaaaaa);
	cr_assert_eq(a.moves[1].to, home);
}

Test(pci, reset_clears_the_latch)
{
	cf8(0, SLOT_A, 0, 0);
	root.device.ops->reset(&root.device);
	cr_assert_eq(test_board_in(&board, 0xcf8, 4), 0);
}

/* The bridge is a part of the root: nobody else resets it. */
Test(pci, reset_covers_the_bridge)
{
	uint32_t line = cf8_read(0, 0x3c, 1), command = cf8_read(0, 4, 2);

	cf8_write(0, 0x3c, 0x5a, 1);
	cf8_write(0, 4, 0, 2);
	root.device.ops->reset(&root.device);
	if (root.bridge.device.ops->reset)
		root.bridge.device.ops->reset(&root.bridge.device);
	cr_assert_eq(cf8_read(0, 0x3c, 1), line);
	cr_assert_eq(cf8_read(0, 4, 2), command);
}

Test(pci, the_latch_travels)
{
	static struct pci_root other;

	device_init(&other.device, root.device.ops, "pci");
	cf8(0, SLOT_A, 0, 8);
	test_board_move(&root.device, &other.device);
	cr_assert_eq(other.latch.address, root.latch.address);
}

static uint8_t stream[4096];

static int load_b(size_t size)
{
	struct cursor in = cursor_reader(stream, size);
	struct error err = ERROR_NULL;
	int r = device_load(&b.function.device, &in, &err);

	cr_assert(r == 0 || *err.text);
	return r;
}

/* Where a byte of configuration space stands in the stream of a function. */
static uint8_t *stream_config(size_t size, uint32_t offset)
{
	const uint8_t *config = memmem(stream, size, b.function.config.bytes, PCI_CONFIG_SIZE);

	cr_assert(config, "the stream has the bytes as they are");
	return &stream[config - stream + offset];
}

static size_t save_b(void)
{
	struct cursor out = cursor_writer(stream, sizeof(stream));

	cr_assert_eq(device_save(&b.function.device, &out), 0);
	return out.at;
}

Test(pci, a_moved_bar_travels)
{
	uint32_t home = cf8_read(SLOT_B, 0x10, 4), there = WINDOW + WINDOW_SIZE - BAR_SIZE;
	size_t size;

	cf8_write(SLOT_B, 0x10, there, 4);
	size = save_b();
	pci_function_reset(&b.function);
	cr_assert_eq(load_b(size), 0);
	cr_assert_eq(mmio_read(there, 1), 0xbb);
	cr_assert_eq(mmio_read(home, 1), 0xff);
}

Test(pci, a_load_that_changes_a_read_only_byte_is_refused)
{
	static const uint32_t offsets[] = {0, 2, 6, 8, 0x0e, 0x14, 0x2c, 0x34, 0x40, 0x41, 0xff};
	size_t size = save_b();

	for (uint32_t i = 0; i < ARRAY_SIZE(offsets); i++) {
		uint8_t *byte = stream_config(size, offsets[i]);

		*byte ^= 1;
		cr_assert_eq(load_b(size), -EBADMSG, "byte 0x%x", offsets[i]);
		*byte ^= 1;
		cr_assert_eq(load_b(size), 0);
	}
}

Test(pci, a_load_that_unaligns_a_bar_is_refused)
{
	size_t size = save_b();

	*stream_config(size, 0x11) |= 1;
	cr_assert_eq(load_b(size), -EBADMSG);
}

/* I/O ports: BAR 1 of `p` */

static uint32_t plug_p(void)
{
	struct error err = ERROR_NULL;

	part_init(&p, "p");
	cr_assert(pci_add_port_bar(&p.function, 1, PORT_BAR));
	cr_assert_eq(pci_plug(&root, &p.function, SLOT_P, &err), 0, "%s", err.text);
	p.n_moves = 0;
	return cf8_read(SLOT_P, 0x14, 4) & ~3u;
}

Test(pci, a_port_bar_says_so_and_has_a_home)
{
	uint32_t home = plug_p();

	cr_assert_eq(cf8_read(SLOT_P, 0x14, 4), home | 1);
	cr_assert_eq(home % PORT_BAR, 0);
	cr_assert_geq(home, PORTS);
	cr_assert_eq(cf8_read(SLOT_P, 4, 2) & 3, 3, "and both are decoded");
	cr_assert_eq(cf8_read(SLOT_A, 4, 2) & 1, 0, "a function without ports decodes none");
	cf8_write(SLOT_A, 4, 3, 2);
	cr_assert_eq(cf8_read(SLOT_A, 4, 2) & 1, 0);
}

Test(pci, a_port_bar_tells_its_size)
{
	uint32_t home = plug_p();

	cf8_write(SLOT_P, 0x14, UINT32_MAX, 4);
	cr_assert_eq(cf8_read(SLOT_P, 0x14, 4), ~(PORT_BAR - 1) | 1);
	cr_assert_eq(test_board_in(&board, home, 1), 0xff, "ports beyond 64 Ki are nowhere");
	cf8_write(SLOT_P, 0x14, home, 4);
	cr_assert_eq(test_board_in(&board, home, 1), 0xbb);
}

Test(pci, a_port_access_reaches_its_function)
{
	uint32_t home = plug_p();

	test_board_out(&board, home + 12, 0x1234, 2);
	cr_assert_eq(p.n_accesses, 1);
	cr_assert_eq(p.bar, 1);
	cr_assert_eq(p.offset, 12);
	cr_assert_eq(p.value, 0x1234);
	cr_assert_eq(test_board_in(&board, home + PORT_BAR - 4, 4), 0xbbbbbbbb);
	cr_assert_eq(test_board_in(&board, home + PORT_BAR - 1, 2), 0xffff, "half of it is beyond");
	cr_assert_eq(test_board_in(&board, home + PORT_BAR, 4), UINT32_MAX);
	cr_assert_eq(mmio_read(home, 4), UINT32_MAX, "memory of that number is another place");
	cr_assert_eq(p.n_accesses, 2);
}

Test(pci, a_moved_port_bar_answers_at_its_new_place_only)
{
	uint32_t home = plug_p(), there = PORTS + N_PORTS - PORT_BAR;

	cf8_write(SLOT_P, 0x14, there, 4);
	cr_assert_eq(p.n_moves, 1);
	cr_assert_eq(p.moves[0].bar, 1);
	cr_assert_eq(p.moves[0].from, home);
	cr_assert_eq(p.moves[0].to, there);
	cr_assert_eq(test_board_in(&board, home, 4), UINT32_MAX);
	cr_assert_eq(test_board_in(&board, there, 4), 0xbbbbbbbb);
}

Test(pci, ports_and_memory_are_decoded_apart)
{
	uint32_t home = plug_p(), memory = cf8_read(SLOT_P, 0x10, 4);

	cf8_write(SLOT_P, 4, 2, 2);
	cr_assert_eq(p.n_moves, 1);
	cr_assert_eq(p.moves[0].bar, 1);
	cr_assert_eq(p.moves[0].to, 0);
	cr_assert_eq(test_board_in(&board, home, 4), UINT32_MAX);
	cr_assert_eq(mmio_read(memory, 4), 0xbbbbbbbb);
	cf8_write(SLOT_P, 4, 1, 2);
	cr_assert_eq(test_board_in(&board, home, 4), 0xbbbbbbbb);
	cr_assert_eq(mmio_read(memory, 4), UINT32_MAX);
}

/* A kick there would take the writes of another device. */
Test(pci, a_port_bar_outside_of_the_window_does_not_answer)
{
	uint32_t home = plug_p();

	cf8_write(SLOT_P, 0x14, 0x3c0, 4);
	cr_assert_eq(p.n_moves, 1);
	cr_assert_eq(p.moves[0].from, home);
	cr_assert_eq(p.moves[0].to, 0);
	cf8_write(SLOT_P, 0x14, home, 4);
	cr_assert_eq(p.moves[1].to, home);
}

/* Of one number in two spaces neither is in the other's way. */
Test(pci, ports_and_memory_do_not_collide)
{
	uint32_t home = plug_p();

	cf8_write(SLOT_A, 0x10, home & ~(BAR_SIZE - 1), 4);
	cr_assert_eq(a.n_moves, 1);
	cr_assert_eq(a.moves[0].to, home & ~(BAR_SIZE - 1));
	cr_assert_eq(p.n_moves, 0);
}

Test(pci, a_port_bar_comes_home_with_a_reset)
{
	uint32_t home = plug_p();

	cf8_write(SLOT_P, 0x14, PORTS + N_PORTS - PORT_BAR, 4);
	cf8_write(SLOT_P, 4, 0, 2);
	pci_function_reset(&p.function);
	cr_assert_eq(cf8_read(SLOT_P, 0x14, 4), home | 1);
	cr_assert_eq(test_board_in(&board, home, 4), 0xbbbbbbbb);
}

Test(pci, ports_that_are_used_up_are_said)
{
	struct error err = ERROR_NULL;
	static struct part many[N_PORTS / 256 + 1];
	uint32_t n = 0;

	/* In slots of their own, so that nothing but the ports can run out. */
	for (; n < ARRAY_SIZE(many); n++) {
		part_init(&many[n], "many");
		cr_assert(pci_add_port_bar(&many[n].function, 1, 256));
		if (pci_plug(&root, &many[n].function, 4 + n, &err) < 0)
			break;
	}
	cr_assert_eq(n, N_PORTS / 256);
	cr_assert(*err.text);
}

Test(pci, a_board_without_ports_gives_none)
{
	static struct pci_root portless;

	part_init(&p, "p");
	p.function.root = &portless;
	cr_assert(!pci_add_port_bar(&p.function, 1, PORT_BAR));
	cr_assert_eq(p.function.bars[1].size, 0);
	cr_assert_eq(p.function.config.bytes[0x14], 0);
}
