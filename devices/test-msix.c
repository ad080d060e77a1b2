/* SPDX-License-Identifier: Apache-2.0 */
/*
 * MSI-X against an irq host that does what the kernel does: while a vector is not masked its
 * eventfd is read and each signal is a message.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "devices/pci.h"
#include "devices/registers.h"
#include "devices/test-board.h"

#define WINDOW    0xc0000000u
#define TABLE_AT  0x1000
#define PENDING   0x2000
#define SLOT      1
#define VECTORS   PCI_MSIX_MAX
#define CAP_ID    0x11
#define ENABLE    0x80
#define MASK_ALL  0x40
#define HOST_SIZE (2 * VECTORS + 16)

struct vector {
	int fd;
	bool masked;
	uint64_t address;
	uint32_t data;
	uint32_t n_messages;
};

static struct host {
	struct irq_host host;
	uint32_t n, n_freed, limit;
	struct vector vectors[HOST_SIZE];
} host;

static int host_new(struct irq_host *irqs _unused_, uint32_t *ret_vector, int *ret_fd)
{
	struct vector *vector = &host.vectors[host.n];

	if (host.n == host.limit)
		return -ENOSPC;
	*vector = (struct vector){.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), .masked = true};
	*ret_vector = host.n++;
	*ret_fd = vector->fd;
	return 0;
}

static void host_free(struct irq_host *irqs _unused_, uint32_t vector _unused_)
{
	host.n_freed++;
}

/* What irqfd does when something is in the eventfd. */
static void deliver(struct vector *vector)
{
	if (!vector->masked && test_eventfd_take(vector->fd))
		vector->n_messages++;
}

static int host_set(struct irq_host *irqs _unused_, uint32_t i, uint64_t address, uint32_t data,
		    bool masked)
{
	struct vector *vector = &host.vectors[i];

	cr_assert_lt(i, host.n);
	vector->address = address;
	vector->data = data;
	vector->masked = masked;
	deliver(vector);
	return 0;
}

static const struct irq_ops host_ops = {
	.msi_new = host_new, .msi_free = host_free, .msi_set = host_set};

static struct test_board board;
static struct pci_root root;
static struct pci_function function, other;

static void on_read(struct pci_function *of, uint32_t bar _unused_, uint64_t offset, void *data,
		    uint32_t len)
{
	if (offset >= PENDING)
		msix_pending_read(of, offset - PENDING, data, len);
	else if (offset >= TABLE_AT)
		msix_table_read(of, offset - TABLE_AT, data, len);
}

static void on_write(struct pci_function *of, uint32_t bar _unused_, uint64_t offset,
		     const void *data, uint32_t len)
{
	if (offset >= TABLE_AT && offset < PENDING)
		msix_table_write(of, offset - TABLE_AT, data, len);
}

static const struct pci_function_ops function_ops = {.read = on_read, .write = on_write};

static uint32_t states(struct device *device, struct device_state *ret_states)
{
	return pci_function_states(container_of(device, struct pci_function, device), ret_states);
}

static void saving(struct device *device)
{
	pci_function_saving(container_of(device, struct pci_function, device));
}

static int loaded(struct device *device, struct error *err)
{
	return pci_function_loaded(container_of(device, struct pci_function, device), err);
}

static const struct device_ops device_ops = {
	.type = "x", .states = states, .saving = saving, .loaded = loaded};

static void make(struct pci_function *of, uint32_t slot, uint32_t n)
{
	static const struct pci_ids ids = {.vendor = 0x1234, .device = 1};
	struct error err = ERROR_NULL;

	device_init(&of->device, &device_ops, "x");
	pci_function_init(of, &root, &function_ops, &ids);
	pci_add_bar(of, 0, 0x4000);
	cr_assert_eq(msix_init(of, n, 0, TABLE_AT, PENDING, &err), 0, "%s", err.text);
	cr_assert_eq(pci_plug(&root, of, slot, &err), 0, "%s", err.text);
}

static void set_up(void)
{
	static const struct pci_layout layout = {
		.ecam = 0xe0000000, .window = WINDOW, .window_size = 1 << 20};
	struct error err = ERROR_NULL;

	host = (struct host){.host.ops = &host_ops, .limit = HOST_SIZE};
	test_board_init(&board);
	cr_assert_eq(pci_root_init(&root, &layout, &board.io, &board.mmio, &host.host, &board.kicks,
				   &err),
		     0, "%s", err.text);
	make(&function, SLOT, VECTORS);
}

static void tear_down(void)
{
	msix_deinit(&function);
	for (uint32_t i = 0; i < host.n; i++)
		close(host.vectors[i].fd);
	test_board_deinit(&board);
}

TestSuite(msix, .init = set_up, .fini = tear_down);

static void config_write(uint32_t offset, uint32_t value, uint32_t len)
{
	test_board_out(&board, 0xcf8, 0x80000000 | SLOT << 11 | (offset & 0xfc), 4);
	test_board_out(&board, 0xcfc + (offset & 3), value, len);
}

static uint32_t config_read(uint32_t offset, uint32_t len)
{
	test_board_out(&board, 0xcf8, 0x80000000 | SLOT << 11 | (offset & 0xfc), 4);
	return test_board_in(&board, 0xcfc + (offset & 3), len);
}

/* The upper byte of message control. */
static void control(uint8_t value)
{
	config_write(function.msix_offset + 3, value, 1);
}

static void bar_write(uint32_t offset, uint64_t value, uint32_t len)
{
	bus_write(&board.mmio, function.bars[0].home + offset, &value, len);
}

static uint64_t bar_read(uint32_t offset, uint32_t len)
{
	uint64_t value = 0;

	bus_read(&board.mmio, function.bars[0].home + offset, &value, len);
	return value;
}

static void set_vector(uint32_t i, uint64_t address, uint32_t data, uint32_t mask)
{
	bar_write(TABLE_AT + 16 * i, address, 8);
	bar_write(TABLE_AT + 16 * i + 8, data, 4);
	bar_write(TABLE_AT + 16 * i + 12, mask, 4);
}

static void signal_vector(uint32_t i)
{
	event_signal(msix_fd(&function, i));
	deliver(&host.vectors[i]);
}

static bool pending(uint32_t i)
{
	return bar_read(PENDING + i / 32 * 4, 4) >> i % 32 & 1;
}

Test(msix, the_capability_tells_size_and_places)
{
	uint32_t cap = function.msix_offset;

	cr_assert_eq(config_read(cap, 1), CAP_ID);
	cr_assert_eq(config_read(cap + 2, 2), VECTORS - 1, "disabled, one less than there are");
	cr_assert_eq(config_read(cap + 4, 4), TABLE_AT);
	cr_assert_eq(config_read(cap + 8, 4), PENDING);
}

Test(msix, only_enable_and_mask_can_be_written)
{
	uint32_t cap = function.msix_offset;

	config_write(cap, UINT32_MAX, 4);
	config_write(cap + 4, UINT32_MAX, 4);
	config_write(cap + 8, UINT32_MAX, 4);
	cr_assert_eq(config_read(cap + 2, 2), 0xc000 | (VECTORS - 1));
	cr_assert_eq(config_read(cap + 4, 4), TABLE_AT);
	cr_assert_eq(config_read(cap + 8, 4), PENDING);
}

Test(msix, vectors_are_masked_at_first)
{
	for (uint32_t i = 0; i < VECTORS; i++)
		cr_assert_eq(bar_read(TABLE_AT + 16 * i + 12, 4), 1);
	control(ENABLE);
	signal_vector(0);
	cr_assert_eq(host.vectors[0].n_messages, 0);
}

Test(msix, an_unmasked_vector_fires)
{
	control(ENABLE);
	set_vector(3, 0xfee01000, 0x4041, 0);
	signal_vector(3);
	cr_assert_eq(host.vectors[3].n_messages, 1);
	cr_assert_eq(host.vectors[3].address, 0xfee01000);
	cr_assert_eq(host.vectors[3].data, 0x4041);
	cr_assert_not(pending(3));
}

Test(msix, the_last_vector_works)
{
	control(ENABLE);
	set_vector(VECTORS - 1, 0xfee00000, 1, 1);
	signal_vector(VECTORS - 1);
	cr_assert(pending(VECTORS - 1));
	bar_write(TABLE_AT + 16 * (VECTORS - 1) + 12, 0, 4);
	cr_assert_eq(host.vectors[VECTORS - 1].n_messages, 1);
}

Test(msix, there_is_no_vector_behind_the_last)
{
	bar_write(TABLE_AT + 16 * VECTORS, UINT64_MAX, 8);
	cr_assert_eq(bar_read(TABLE_AT + 16 * VECTORS, 8), 0);
	cr_assert_eq(msix_fd(&function, VECTORS), -1);
	cr_assert_eq(msix_fd(&function, 0xffff), -1);
	cr_assert_geq(msix_fd(&function, VECTORS - 1), 0);
}

Test(msix, a_masked_vector_keeps_one_pending_and_fires_on_unmask)
{
	control(ENABLE);
	set_vector(2, 0xfee00000, 2, 1);
	signal_vector(2);
	signal_vector(2);
	cr_assert_eq(host.vectors[2].n_messages, 0);
	cr_assert(pending(2));
	cr_assert_not(pending(1));
	bar_write(TABLE_AT + 16 * 2 + 12, 0, 4);
	cr_assert_eq(host.vectors[2].n_messages, 1, "two signals, one message");
	cr_assert_not(pending(2));
}

Test(msix, what_was_written_while_masked_is_what_is_sent)
{
	control(ENABLE);
	set_vector(2, 0xfee00000, 2, 0);
	bar_write(TABLE_AT + 16 * 2 + 12, 1, 4);
	bar_write(TABLE_AT + 16 * 2, 0xfee07000, 4);
	bar_write(TABLE_AT + 16 * 2 + 8, 7, 4);
	signal_vector(2);
	bar_write(TABLE_AT + 16 * 2 + 12, 0, 4);
	cr_assert_eq(host.vectors[2].n_messages, 1);
	cr_assert_eq(host.vectors[2].address, 0xfee07000);
	cr_assert_eq(host.vectors[2].data, 7);
}

Test(msix, the_function_mask_holds_all_back)
{
	control(ENABLE);
	set_vector(0, 0xfee00000, 1, 0);
	set_vector(1, 0xfee00000, 2, 1);
	control(ENABLE | MASK_ALL);
	signal_vector(0);
	signal_vector(1);
	cr_assert_eq(host.vectors[0].n_messages, 0);
	cr_assert(pending(0));
	control(ENABLE);
	cr_assert_eq(host.vectors[0].n_messages, 1);
	cr_assert_eq(host.vectors[1].n_messages, 0, "its own mask stays");
	cr_assert(pending(1));
}

Test(msix, unmasking_one_under_the_function_mask_sends_nothing)
{
	control(ENABLE | MASK_ALL);
	set_vector(0, 0xfee00000, 1, 1);
	signal_vector(0);
	bar_write(TABLE_AT + 12, 0, 4);
	cr_assert_eq(host.vectors[0].n_messages, 0);
	control(ENABLE);
	cr_assert_eq(host.vectors[0].n_messages, 1);
}

Test(msix, disabled_nothing_is_sent)
{
	control(ENABLE);
	set_vector(0, 0xfee00000, 1, 0);
	control(0);
	signal_vector(0);
	cr_assert_eq(host.vectors[0].n_messages, 0);
}

Test(msix, control_written_as_a_word_or_double_word_counts)
{
	set_vector(0, 0xfee00000, 1, 0);
	config_write(function.msix_offset + 2, ENABLE << 8, 2);
	cr_assert_not(host.vectors[0].masked);
	config_write(function.msix_offset, 0, 4);
	cr_assert(host.vectors[0].masked);
	config_write(function.msix_offset, (uint32_t)ENABLE << 24, 4);
	cr_assert_not(host.vectors[0].masked);
}

Test(msix, entries_are_written_in_halves)
{
	bar_write(TABLE_AT + 16, 0xfee02000, 4);
	bar_write(TABLE_AT + 20, 0x1, 4);
	bar_write(TABLE_AT + 24, 0x4242, 4);
	cr_assert_eq(bar_read(TABLE_AT + 16, 8), 0x1fee02000);
	cr_assert_eq(bar_read(TABLE_AT + 20, 4), 1);
	cr_assert_eq(bar_read(TABLE_AT + 24, 4), 0x4242);
}

Test(msix, data_and_control_go_in_one_write)
{
	control(ENABLE);
	bar_write(TABLE_AT, 0xfee00000, 8);
	bar_write(TABLE_AT + 8, 0x31, 8);
	cr_assert_not(host.vectors[0].masked);
	cr_assert_eq(host.vectors[0].data, 0x31);
}

Test(msix, an_unmasked_vector_may_be_changed_by_halves)
{
	control(ENABLE);
	set_vector(0, 0xfee00000, 1, 0);
	bar_write(TABLE_AT + 8, 9, 4);
	cr_assert_eq(host.vectors[0].data, 9);
	bar_write(TABLE_AT, 0xfee03000, 4);
	cr_assert_eq(host.vectors[0].address, 0xfee03000);
}

Test(msix, reserved_bits_of_vector_control_read_zero)
{
	bar_write(TABLE_AT + 12, UINT32_MAX, 4);
	cr_assert_eq(bar_read(TABLE_AT + 12, 4), 1);
	bar_write(TABLE_AT + 12, 0xfffffffe, 4);
	cr_assert_eq(bar_read(TABLE_AT + 12, 4), 0);
}

Test(msix, odd_sizes_read_zero_and_write_nothing)
{
	set_vector(0, 0xfee00000, 1, 1);
	bar_write(TABLE_AT, 0x12, 1);
	bar_write(TABLE_AT + 2, 0x1234, 2);
	bar_write(TABLE_AT + 2, 0x12345678, 4);
	bar_write(TABLE_AT + 4, 0x12345678, 8);
	cr_assert_eq(bar_read(TABLE_AT, 8), 0xfee00000);
	cr_assert_eq(bar_read(TABLE_AT + 8, 4), 1);
	cr_assert_eq(bar_read(TABLE_AT, 1), 0);
	cr_assert_eq(bar_read(TABLE_AT + 3, 4), 0);
}

Test(msix, pending_bits_are_read_in_any_size)
{
	control(ENABLE);
	signal_vector(9);
	signal_vector(VECTORS - 1);
	cr_assert_eq(bar_read(PENDING, 8), 1 << 9);
	cr_assert_eq(bar_read(PENDING + 1, 1), 2);
	cr_assert_eq(bar_read(PENDING + 8, 8), 1ull << (VECTORS - 1 - 64));
	cr_assert_eq(bar_read(PENDING + 16, 8), 0);
	cr_assert_eq(bar_read(PENDING + 12, 8), 0, "over the end");
}

Test(msix, reset_masks_and_disables)
{
	control(ENABLE);
	set_vector(0, 0xfee00000, 1, 0);
	pci_function_reset(&function);
	cr_assert_eq(config_read(function.msix_offset + 2, 2), VECTORS - 1);
	cr_assert_eq(bar_read(TABLE_AT, 8), 0);
	cr_assert_eq(bar_read(TABLE_AT + 12, 4), 1);
	cr_assert(host.vectors[0].masked);
}

Test(msix, reset_clears_pending)
{
	control(ENABLE);
	signal_vector(0);
	cr_assert(pending(0));
	pci_function_reset(&function);
	cr_assert_not(pending(0));
	control(ENABLE);
	set_vector(0, 0xfee00000, 1, 0);
	cr_assert_eq(host.vectors[0].n_messages, 0, "an interrupt of the life before");
}

Test(msix, the_table_moves_with_the_state)
{
	make(&other, SLOT + 1, VECTORS);
	control(ENABLE);
	set_vector(5, 0xfee05000, 5, 0);
	test_board_move(&function.device, &other.device);
	cr_assert_not(host.vectors[VECTORS + 5].masked);
	cr_assert_eq(host.vectors[VECTORS + 5].address, 0xfee05000);
	cr_assert_eq(host.vectors[VECTORS + 5].data, 5);
	cr_assert(host.vectors[VECTORS + 4].masked);
	msix_deinit(&other);
}

/* A driver that masks a vector while it works on it would otherwise wait for ever. */
Test(msix, pending_moves_with_the_state)
{
	struct vector *vector = &host.vectors[VECTORS + 5];

	make(&other, SLOT + 1, VECTORS);
	control(ENABLE);
	set_vector(5, 0xfee05000, 5, 1);
	signal_vector(5);
	test_board_move(&function.device, &other.device);
	msix_table_write(&other, 16 * 5 + 12, &(uint32_t){0}, 4);
	deliver(vector);
	cr_assert_eq(vector->n_messages, 1);
	msix_deinit(&other);
}

Test(msix, a_table_of_another_size_is_refused)
{
	static uint8_t stream[8192];
	struct cursor out = cursor_writer(stream, sizeof(stream)), in;
	struct error err = ERROR_NULL;

	make(&other, SLOT + 1, VECTORS - 1);
	cr_assert_eq(device_save(&function.device, &out), 0);
	in = cursor_reader(stream, out.at);
	cr_assert_eq(device_load(&other.device, &in, &err), -EBADMSG);
	cr_assert(*err.text);
	msix_deinit(&other);
}

static uint8_t stream[8192];

static size_t save(void)
{
	struct cursor out = cursor_writer(stream, sizeof(stream));

	cr_assert_eq(device_save(&function.device, &out), 0);
	return out.at;
}

static int load(size_t size)
{
	struct cursor in = cursor_reader(stream, size);
	struct error err = ERROR_NULL;

	return device_load(&function.device, &in, &err);
}

/* Where the number of vectors stands in the stream: before the first of them. */
static uint8_t *stream_table(size_t size)
{
	uint8_t *name = memmem(stream, size, "msix", 5);

	cr_assert(name);
	return name + 24 + 2 + 4;
}

Test(msix, a_reset_mends_a_refused_load)
{
	size_t size = save();
	uint8_t *n = stream_table(size);

	cr_assert_eq(*n, VECTORS);
	*n = VECTORS - 1;
	cr_assert_eq(load(size), -EBADMSG);
	pci_function_reset(&function);
	cr_assert_eq(load(save()), 0);
}

Test(msix, a_load_keeps_reserved_bits_zero)
{
	size_t size = save();
	uint8_t *control = stream_table(size) + 4 + 12;

	cr_assert_eq(*control, 1);
	*control = 0xff;
	if (load(size) == 0)
		cr_assert_eq(bar_read(TABLE_AT + 12, 4), 1);
}

Test(msix, a_host_without_vectors_is_said_and_nothing_leaks)
{
	struct error err = ERROR_NULL;

	host.limit = host.n + 3;
	device_init(&other.device, &device_ops, "x");
	other.root = &root;
	cr_assert_eq(msix_init(&other, 4, 0, TABLE_AT, PENDING, &err), -ENOSPC);
	cr_assert(*err.text);
	msix_deinit(&other);
	cr_assert_eq(host.n_freed, 3);
}
