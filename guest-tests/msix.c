/* SPDX-License-Identifier: Apache-2.0 */
/*
 * MSI-X with a disk behind it: one interrupt for each message, masks that hold messages back and
 * keep them pending, entries that are changed, another CPU as target, and vectors that do not
 * exist.
 */
#ifdef GUEST

#include "guest-tests/runtime/acpi.h"
#include "guest-tests/runtime/blk.h"

#define N_REQUESTS 40
#define TIMEOUT_MS 20000

static struct blk disk;
static struct virtq *q;
static struct blk_request request;
static uint8_t data[BLK_SECTOR];
static volatile unsigned int n_other;
static volatile uint32_t other_cpu;
static volatile uint32_t ap_id;

static void other(void *arg)
{
	(void)arg;
	other_cpu = apic_id();
	n_other++;
}

static void run_ap(unsigned int index)
{
	(void)index;
	ap_id = apic_id();
	for (;;)
		irq_enable_and_halt();
}

static void submit(void)
{
	blk_submit(q, &request, BLK_IN, 0, data, sizeof(data));
	virtq_kick(q);
}

/* Submits and sees it done by looking at the ring, so that an interrupt is not needed. */
static void do_quietly(void)
{
	submit();
	GUEST_ASSERT(POLL_UNTIL(virtq_has_used(q), TIMEOUT_MS), "no answer");
	(void)virtq_take(q, NULL);
	GUEST_ASSERT(request.status == BLK_OK, "status %u", request.status);
}

static void restart(void)
{
	blk_start(&disk, 0, false);
	q->n_interrupts = 0;
}

static void one_each(struct guest_boot *boot)
{
	(void)boot;
	restart();
	for (unsigned int i = 1; i <= N_REQUESTS; i++) {
		submit();
		GUEST_ASSERT(WAIT_UNTIL(q->n_interrupts >= i, TIMEOUT_MS),
			     "request %u: no interrupt", i);
		GUEST_ASSERT(virtq_take(q, NULL) >= 0, "request %u: interrupt before the ring", i);
	}
	sleep_ms(3);
	GUEST_ASSERT(q->n_interrupts == N_REQUESTS, "%u interrupts", q->n_interrupts);
}

static void check_held_back(const char *what)
{
	do_quietly();
	sleep_ms(2);
	GUEST_ASSERT(q->n_interrupts == 0, "%s: %u interrupts", what, q->n_interrupts);
	GUEST_ASSERT(POLL_UNTIL(msix_pending(&disk.dev.pci, 0), TIMEOUT_MS), "%s: not pending",
		     what);
	/* A second message on a pending vector is the same one. */
	do_quietly();
	GUEST_ASSERT(q->n_interrupts == 0, "%s: %u interrupts", what, q->n_interrupts);
}

/* QEMU on KVM lets a message that came after the pending bit was read through as a second one. */
static void check_let_go(const struct guest_boot *boot, const char *what)
{
	GUEST_ASSERT(WAIT_UNTIL(q->n_interrupts, TIMEOUT_MS), "%s: lost", what);
	sleep_ms(2);
	GUEST_ASSERT(q->n_interrupts <= (cmdline_has(boot, "peer") ? 2 : 1), "%s: %u interrupts",
		     what, q->n_interrupts);
	q->n_interrupts = 0;
	GUEST_ASSERT(!msix_pending(&disk.dev.pci, 0), "%s: still pending", what);
	do_quietly();
	GUEST_ASSERT(WAIT_UNTIL(q->n_interrupts == 1, TIMEOUT_MS), "%s: no more after", what);
}

static void entry_mask(struct guest_boot *boot)
{
	restart();
	GUEST_ASSERT(!msix_pending(&disk.dev.pci, 0), "pending before the first message");
	msix_mask(&disk.dev.pci, 0, true);
	check_held_back("entry");
	msix_mask(&disk.dev.pci, 0, false);
	check_let_go(boot, "entry");
}

static void function_mask(struct guest_boot *boot)
{
	restart();
	msix_control(&disk.dev.pci, MSIX_CONTROL_MASK_ALL, 0);
	check_held_back("function");
	msix_control(&disk.dev.pci, 0, MSIX_CONTROL_MASK_ALL);
	check_let_go(boot, "function");
}

/* A message held back by a mask goes where the entry points when the mask is lifted. */
static void reroute(struct guest_boot *boot)
{
	uint8_t vector = irq_alloc(other, NULL);

	(void)boot;
	restart();
	n_other = 0;
	msix_route(&disk.dev.pci, 0, vector, apic_id());
	do_quietly();
	GUEST_ASSERT(WAIT_UNTIL(n_other == 1, TIMEOUT_MS), "%u", n_other);
	msix_mask(&disk.dev.pci, 0, true);
	do_quietly();
	msix_route(&disk.dev.pci, 0, q->vector, apic_id());
	GUEST_ASSERT(WAIT_UNTIL(q->n_interrupts == 1, TIMEOUT_MS), "lost");
	GUEST_ASSERT(n_other == 1, "went to the old vector");
}

static void other_target(struct guest_boot *boot)
{
	uint8_t vector = irq_alloc(other, NULL);

	(void)boot;
	GUEST_ASSERT(smp_start(run_ap) == 1, "two CPUs are needed");
	GUEST_ASSERT(POLL_UNTIL(ap_id != 0, TIMEOUT_MS), "no second CPU");
	restart();
	n_other = 0;
	msix_route(&disk.dev.pci, 0, vector, ap_id);
	do_quietly();
	GUEST_ASSERT(POLL_UNTIL(n_other == 1, TIMEOUT_MS), "%u", n_other);
	GUEST_ASSERT(other_cpu == ap_id, "CPU %u, not %u", other_cpu, ap_id);
}

static void no_vector(struct guest_boot *boot)
{
	gpa_t common = disk.dev.common;

	(void)boot;
	blk_start(&disk, 0, true);
	q->n_interrupts = 0;
	do_quietly();
	sleep_ms(2);
	GUEST_ASSERT(q->n_interrupts == 0, "%u", q->n_interrupts);
	mmio_write16(common + VIRTIO_COMMON_CONFIG_VECTOR, (uint16_t)disk.dev.pci.n_vectors);
	GUEST_ASSERT(mmio_read16(common + VIRTIO_COMMON_CONFIG_VECTOR) == VIRTIO_NO_VECTOR, "0x%x",
		     mmio_read16(common + VIRTIO_COMMON_CONFIG_VECTOR));
	mmio_write16(common + VIRTIO_COMMON_QUEUE_SELECT, 0);
	mmio_write16(common + VIRTIO_COMMON_QUEUE_VECTOR, 0x7000);
	GUEST_ASSERT(mmio_read16(common + VIRTIO_COMMON_QUEUE_VECTOR) == VIRTIO_NO_VECTOR, "0x%x",
		     mmio_read16(common + VIRTIO_COMMON_QUEUE_VECTOR));
}

void guest_main(struct guest_boot *boot)
{
	GUEST_ASSERT(blk_find(&disk, 0), "no disk");
	q = &disk.queues[0];
	guest_case("one-each", one_each, boot);
	guest_case("entry-mask", entry_mask, boot);
	guest_case("function-mask", function_mask, boot);
	guest_case("reroute", reroute, boot);
	guest_case("other-target", other_target, boot);
	guest_case("no-vector", no_vector, boot);
	GUEST_ASSERT(irq_stray_count() == 0, "%u stray interrupts", irq_stray_count());
}

#else

#include "guest-tests/host/harness.h"

int main(int argc, char **argv)
{
	struct vm_config config = {.cpus = 2};

	test_init(argc, argv);
	file_fill(test_file("disk"), 65536, 1);
	config.disks[0].path = test_file("disk");
	return vm_judge(vm_start(&config));
}

#endif
