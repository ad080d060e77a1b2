/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A board without KVM: eventfds that are read here instead of by the kernel.
 */
#include "devices/test-board.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/fd.h"
#include "devices/registers.h"

static int line_get(struct irq_host *host, uint32_t gsi, int *ret_fd)
{
	struct test_board *board = container_of(host, struct test_board, irqs);

	assert(gsi < TEST_BOARD_LINES);
	if (board->lines[gsi] < 0)
		board->lines[gsi] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	*ret_fd = board->lines[gsi];
	return 0;
}

static int msi_new(struct irq_host *host, uint32_t *ret_vector, int *ret_fd)
{
	struct test_board *board = container_of(host, struct test_board, irqs);

	if (board->n_vectors == TEST_BOARD_VECTORS)
		return -ENOSPC;
	*ret_vector = board->n_vectors++;
	board->vectors[*ret_vector] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	*ret_fd = board->vectors[*ret_vector];
	return 0;
}

static void msi_free(struct irq_host *host, uint32_t vector)
{
	struct test_board *board = container_of(host, struct test_board, irqs);

	board->vectors[vector] = fd_close(board->vectors[vector]);
}

static int msi_set(struct irq_host *host _unused_, uint32_t vector _unused_,
		   uint64_t address _unused_, uint32_t data _unused_, bool masked _unused_)
{
	return 0;
}

static int kick_add(struct kick_host *host, enum device_space space, gpa_t at, int fd _unused_)
{
	struct test_board *board = container_of(host, struct test_board, kicks);

	board->n_kicks[space]++;
	board->last_kick = at;
	return 0;
}

static int kick_remove(struct kick_host *host, enum device_space space, gpa_t at _unused_,
		       int fd _unused_)
{
	container_of(host, struct test_board, kicks)->n_kicks[space]--;
	return 0;
}

static const struct irq_ops irq_ops = {line_get, msi_new, msi_free, msi_set};
static const struct kick_ops kick_ops = {kick_add, kick_remove};

static void on_machine_event(struct machine_events *events, enum machine_event event)
{
	struct test_board *board = container_of(events, struct test_board, events);

	board->n_events++;
	board->last_event = event;
}

void test_board_init(struct test_board *board)
{
	*board = (struct test_board){.io.name = "io",
				     .mmio.name = "mmio",
				     .irqs.ops = &irq_ops,
				     .kicks.ops = &kick_ops,
				     .events.event = on_machine_event};
	for (uint32_t i = 0; i < TEST_BOARD_LINES; i++)
		board->lines[i] = -1;
}

void test_board_deinit(struct test_board *board)
{
	for (uint32_t i = 0; i < TEST_BOARD_LINES; i++)
		board->lines[i] = fd_close(board->lines[i]);
	for (uint32_t i = 0; i < board->n_vectors; i++)
		board->vectors[i] = fd_close(board->vectors[i]);
}

uint32_t test_board_in(struct test_board *board, uint16_t port, uint32_t len)
{
	uint32_t value = 0;

	bus_read(&board->io, port, &value, len);
	return value;
}

void test_board_out(struct test_board *board, uint16_t port, uint32_t value, uint32_t len)
{
	bus_write(&board->io, port, &value, len);
}

uint64_t test_eventfd_take(int fd)
{
	uint64_t count = 0;

	return read(fd, &count, sizeof(count)) == sizeof(count) ? count : 0;
}

uint64_t test_board_edges(struct test_board *board, uint32_t gsi)
{
	return test_eventfd_take(board->lines[gsi]);
}

void test_board_move(struct device *from, struct device *to)
{
	static uint8_t stream[65536];
	struct cursor out = cursor_writer(stream, sizeof(stream)), in;
	struct error err = ERROR_NULL;
	int r;

	r = device_save(from, &out);
	assert(r == 0);
	in = cursor_reader(stream, out.at);
	r = device_load(to, &in, &err);
	assert(r == 0);
	if (to->ops->resume)
		to->ops->resume(to);
}
