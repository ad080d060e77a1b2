/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a device needs around it in a unit test: a bus to be reached by, interrupt lines that count,
 * a machine that remembers the last event. Hosts of MSI and kicks are here for PCI functions.
 */
#pragma once

#include "devices/bus.h"
#include "devices/machine-events.h"

#define TEST_BOARD_LINES   16
#define TEST_BOARD_VECTORS 128

struct test_board {
	struct bus io, mmio;
	struct irq_host irqs;
	struct kick_host kicks;
	struct machine_events events;
	int n_events;
	enum machine_event last_event;
	int lines[TEST_BOARD_LINES]; /* owned eventfds, -1: none */
	uint32_t n_vectors;
	int vectors[TEST_BOARD_VECTORS]; /* likewise */
	uint32_t n_kicks[2];             /* registered now, by enum device_space */
	gpa_t last_kick;                 /* where the last one was registered */
};

void test_board_init(struct test_board *board);
void test_board_deinit(struct test_board *board);

uint32_t test_board_in(struct test_board *board, uint16_t port, uint32_t len);
void test_board_out(struct test_board *board, uint16_t port, uint32_t value, uint32_t len);

/* Edges on a line since the last call. */
uint64_t test_board_edges(struct test_board *board, uint32_t gsi);

/* Edges an eventfd counted since the last call. */
uint64_t test_eventfd_take(int fd);

/* Saves `from`, loads `to` with it and resumes it: they are of one kind. */
void test_board_move(struct device *from, struct device *to);
