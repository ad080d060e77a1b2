/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtqueue round trip has no exit to user space: the kick is an ioeventfd, the interrupt an
 * irqfd. The guest does a few round trips, then many; between the two the VMM's exit counters must
 * not differ by more than what talking about it costs.
 */
#define DISK_SIZE (64 * 1024)
#define FEW       50
#define MANY      850
#define TALK      200 /* exits for two short lines each way over the serial port, generously */

#ifdef GUEST

#include "guest-tests/runtime/apic.h"
#include "guest-tests/runtime/blk.h"

#define TIMEOUT_MS 30000

static struct blk disk;

/* One request at a time, each with its own kick and its own interrupt. */
static void round_trips(unsigned int n)
{
	static struct blk_request r;
	static uint8_t sector[BLK_SECTOR];
	struct virtq *q = &disk.queues[0];
	unsigned int kicks = q->n_kicks, interrupts = q->n_interrupts;

	for (unsigned int i = 0; i < n; i++) {
		unsigned int before = q->n_interrupts;

		blk_submit(q, &r, BLK_IN, i % 64, sector, sizeof(sector));
		virtq_kick(q);
		GUEST_ASSERT(WAIT_UNTIL(q->n_interrupts != before, TIMEOUT_MS), "no interrupt");
		GUEST_ASSERT(virtq_take(q, NULL) >= 0 && r.status == BLK_OK, "status %u", r.status);
	}
	GUEST_ASSERT(q->n_kicks - kicks == n, "%u kicks", q->n_kicks - kicks);
	GUEST_ASSERT(q->n_interrupts - interrupts == n, "%u interrupts",
		     q->n_interrupts - interrupts);
}

static void wait_for_host(void)
{
	char line[8];

	GUEST_ASSERT(serial_read_line(line, sizeof(line), TIMEOUT_MS), "the host says nothing");
}

static void count(struct guest_boot *boot)
{
	(void)boot;
	GUEST_ASSERT(blk_find(&disk, 0), "no disk");
	blk_start(&disk, 0, false);
	serial_listen();
	note("at 0");
	wait_for_host();
	round_trips(FEW);
	note("at 1");
	wait_for_host();
	round_trips(MANY);
	note("at 2");
	wait_for_host();
}

void guest_main(struct guest_boot *boot)
{
	guest_case("count", count, boot);
}

#else

#include <inttypes.h>
#include <stdio.h>

#include "guest-tests/host/harness.h"

int main(int argc, char **argv)
{
	static const char *const points[] = {"at 0", "at 1", "at 2"};
	struct vm_config config = {0};
	uint64_t exits[3] = {0};
	struct vm *vm;
	int result;

	test_init(argc, argv);
	file_count_up(test_file("disk"), DISK_SIZE);
	config.disks[0].path = test_file("disk");
	vm = vm_start(&config);
	for (unsigned int i = 0; i < 3; i++) {
		vm_note(vm, points[i]);
		if (!vm_is_peer())
			exits[i] = vm_exits(vm);
		vm_send(vm, "go\n");
	}
	result = vm_judge(vm);
	if (vm_is_peer())
		test_skip("the peer counts no exits; the guest half ran");
	printf("exits: %" PRIu64 " for %d round trips, %" PRIu64 " for %d\n", exits[1] - exits[0],
	       FEW, exits[2] - exits[1], MANY);
	CHECK(exits[1] > exits[0], "the counters do not count: %" PRIu64, exits[1]);
	CHECK(exits[2] - exits[1] < exits[1] - exits[0] + TALK, "%" PRIu64 " and %" PRIu64 " exits",
	      exits[1] - exits[0], exits[2] - exits[1]);
	return result;
}

#endif
