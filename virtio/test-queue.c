/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The virtqueue alone, its guest half written by hand here: chains of every shape, the arithmetic
 * of suppression, and what a guest may not do.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/fd.h"
#include "devices/test-board.h"
#include "virtio/queue.h"
#include "virtio/test-driver.h"

#define MEMORY_SIZE  (2u << 20)
#define SIZE         8
#define IOVS         16
#define DESCRIPTORS  0x1000
#define AVAILABLE    0x2000
#define USED         0x3000
#define BUFFERS      0x10000
#define INDIRECT     0x20000

#define NO_INTERRUPT 1
#define NO_NOTIFY    1
#define NEXT         TEST_DESC_NEXT
#define WRITE        TEST_DESC_WRITE

static struct guest_memory memory;
static struct virtqueue queue;
static struct test_descriptor *descriptors, *inner;
static struct test_available *available;
static struct test_used *used;
static struct iovec iov[IOVS];
static struct virtqueue_chain chain = {.iov = iov, .iov_max = IOVS};
static int call_fd;

static uint16_t *used_event(void)
{
	return &available->ring[queue.state.size];
}

static uint16_t *available_event(void)
{
	return (uint16_t *)&used->ring[queue.state.size];
}

static void *at(gpa_t gpa)
{
	return memory.regions[0].host + gpa;
}

/* As if `position` chains had gone through already. */
static void start_at(uint16_t position)
{
	queue.state.next_available = queue.state.next_used = position;
	available->index = used->index = position;
	cr_assert_eq(virtqueue_map(&queue), 0);
}

static void set_up(void)
{
	const struct memory_options options = {.kind = MEMORY_PRIVATE};
	const struct memory_range ranges[] = {{0, MEMORY_SIZE}};
	struct error err = ERROR_NULL;

	cr_assert_eq(memory_init(&memory, &options, ranges, 1, &err), 0, "%s", err.text);
	descriptors = at(DESCRIPTORS);
	available = at(AVAILABLE);
	used = at(USED);
	inner = at(INDIRECT);
	call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	queue = (struct virtqueue){
		.state = {.size = SIZE,
			  .enabled = true,
			  .descriptors = DESCRIPTORS,
			  .available = AVAILABLE,
			  .used = USED},
		.size_max = VIRTQUEUE_SIZE_MAX,
		.memory = &memory,
	};
	atomic_store(&queue.call_fd, call_fd);
	start_at(0);
}

static void tear_down(void)
{
	call_fd = fd_close(call_fd);
	memory_deinit(&memory);
}

TestSuite(queue, .init = set_up, .fini = tear_down);

static void describe(struct test_descriptor *table, uint32_t i, uint64_t address, uint32_t length,
		     uint16_t flags, uint16_t next)
{
	table[i] = (struct test_descriptor){address, length, flags, next};
}

static void offer(uint16_t head)
{
	available->ring[available->index % queue.state.size] = head;
	available->index++;
}

/* Offers a chain of one buffer that the device writes. */
static void offer_simple(uint16_t head)
{
	describe(descriptors, head, BUFFERS + 0x100 * head, 0x100, WRITE, 0);
	offer(head);
}

static void pop_simple(uint16_t head)
{
	cr_assert_eq(virtqueue_pop(&queue, &chain), 1);
	cr_assert_eq(chain.head, head);
}

/* The guest gets nothing but a broken queue for what it has offered. */
static void refused(void)
{
	cr_assert_eq(virtqueue_pop(&queue, &chain), -EBADMSG);
	cr_assert(queue.broken);
	cr_assert_eq(queue.in_flight, 0);
	cr_assert_eq(virtqueue_pop(&queue, &chain), 0, "then it is silent");
}

/* The marking of guest memory, watched: memory_mark of devices/ stands behind it. */
static uint16_t index_when_marked;
static bool index_marked;

void __real_memory_mark(struct guest_memory *of, gpa_t gpa, uint64_t len);
void __wrap_memory_mark(struct guest_memory *of, gpa_t gpa, uint64_t len);

void __wrap_memory_mark(struct guest_memory *of, gpa_t gpa, uint64_t len)
{
	if (gpa <= USED + 2 && gpa + len >= USED + 4) {
		index_marked = true;
		index_when_marked = used->index;
	}
	__real_memory_mark(of, gpa, len);
}

/* Chains */

Test(queue, an_empty_ring_gives_nothing)
{
	cr_assert_eq(virtqueue_pop(&queue, &chain), 0);
}

Test(queue, an_unmapped_queue_gives_nothing)
{
	offer_simple(0);
	virtqueue_unmap(&queue);
	cr_assert_eq(virtqueue_pop(&queue, &chain), 0);
	cr_assert_not(virtqueue_kicks_on(&queue));
}

Test(queue, a_direct_chain_is_followed)
{
	describe(descriptors, 5, BUFFERS, 16, NEXT, 2);
	describe(descriptors, 2, BUFFERS + 0x1000, 512, NEXT | WRITE, 7);
	describe(descriptors, 7, BUFFERS + 0x2000, 1, WRITE, 3);
	offer(5);
	cr_assert_eq(virtqueue_pop(&queue, &chain), 1);
	cr_assert_eq(chain.head, 5);
	cr_assert_eq(chain.n_out, 1);
	cr_assert_eq(chain.n_in, 2);
	cr_assert_eq(chain.out_bytes, 16);
	cr_assert_eq(chain.in_bytes, 513);
	cr_assert_eq(iov[0].iov_base, at(BUFFERS));
	cr_assert_eq(iov[1].iov_base, at(BUFFERS + 0x1000));
	cr_assert_eq(iov[2].iov_len, 1);
	cr_assert_eq(virtqueue_pop(&queue, &chain), 0, "each only once");
}

Test(queue, an_indirect_chain_is_followed)
{
	describe(inner, 0, BUFFERS, 16, NEXT, 2);
	describe(inner, 2, BUFFERS + 0x1000, 4, WRITE, 0);
	describe(descriptors, 3, INDIRECT, 48, TEST_DESC_INDIRECT, 0);
	offer(3);
	cr_assert_eq(virtqueue_pop(&queue, &chain), 1);
	cr_assert_eq(chain.head, 3);
	cr_assert_eq(chain.n_out, 1);
	cr_assert_eq(chain.n_in, 1);
	cr_assert_eq(iov[1].iov_len, 4);
}

Test(queue, direct_descriptors_may_end_in_an_indirect_one)
{
	describe(descriptors, 0, BUFFERS, 16, NEXT, 1);
	describe(descriptors, 1, INDIRECT, 16, TEST_DESC_INDIRECT, 0);
	describe(inner, 0, BUFFERS + 0x1000, 8, WRITE, 0);
	offer(0);
	cr_assert_eq(virtqueue_pop(&queue, &chain), 1);
	cr_assert_eq(chain.n_out, 1);
	cr_assert_eq(chain.n_in, 1);
}

Test(queue, the_write_flag_of_an_indirect_descriptor_means_nothing)
{
	describe(descriptors, 0, INDIRECT, 16, TEST_DESC_INDIRECT | WRITE, 0);
	describe(inner, 0, BUFFERS, 8, 0, 0);
	offer(0);
	cr_assert_eq(virtqueue_pop(&queue, &chain), 1);
	cr_assert_eq(chain.n_out, 1);
}

Test(queue, an_indirect_table_may_be_longer_than_the_ring)
{
	for (uint32_t i = 0; i < 2 * SIZE; i++)
		describe(inner, i, BUFFERS + 0x100 * i, 1, i < 2 * SIZE - 1 ? NEXT : 0, i + 1);
	describe(descriptors, 0, INDIRECT, 16 * 2 * SIZE, TEST_DESC_INDIRECT, 0);
	offer(0);
	cr_assert_eq(virtqueue_pop(&queue, &chain), 1);
	cr_assert_eq(chain.n_out, 2 * SIZE);
}

Test(queue, an_indirect_table_may_lie_anywhere)
{
	uint8_t *odd = at(INDIRECT + 3);
	struct test_descriptor one = {BUFFERS, 8, WRITE, 0};

	memcpy(odd, &one, sizeof(one));
	describe(descriptors, 0, INDIRECT + 3, 16, TEST_DESC_INDIRECT, 0);
	offer(0);
	cr_assert_eq(virtqueue_pop(&queue, &chain), 1);
	cr_assert_eq(iov[0].iov_base, at(BUFFERS));
}

Test(queue, a_full_ring_comes_out_in_order)
{
	for (uint16_t i = 0; i < SIZE; i++)
		offer_simple(SIZE - 1 - i);
	for (uint16_t i = 0; i < SIZE; i++)
		pop_simple(SIZE - 1 - i);
	cr_assert_eq(queue.in_flight, SIZE);
	cr_assert_eq(queue.n_chains, SIZE);
}

Test(queue, positions_wrap_at_2_16)
{
	start_at(0xfffe);
	for (uint16_t i = 0; i < 4; i++) {
		offer_simple(i);
		pop_simple(i);
		virtqueue_push(&queue, i, 10 + i);
	}
	virtqueue_publish(&queue);
	cr_assert_eq(used->index, 2);
	cr_assert_eq(used->ring[6].length, 10);
	cr_assert_eq(used->ring[7].length, 11);
	cr_assert_eq(used->ring[0].length, 12);
	cr_assert_eq(used->ring[1].id, 3);
}

Test(queue, a_queue_of_one_entry_works)
{
	queue.state.size = 1;
	start_at(0);
	for (int i = 0; i < 3; i++) {
		offer_simple(0);
		pop_simple(0);
		virtqueue_push(&queue, 0, 1);
		virtqueue_publish(&queue);
	}
	cr_assert_eq(used->index, 3);
}

Test(queue, unpop_puts_the_chain_back)
{
	offer_simple(4);
	offer_simple(5);
	pop_simple(4);
	virtqueue_unpop(&queue, &chain);
	cr_assert_eq(queue.in_flight, 0);
	cr_assert_eq(queue.n_chains, 0);
	pop_simple(4);
	pop_simple(5);
	virtqueue_push(&queue, 4, 0);
}

Test(queue, unpop_at_the_wrap)
{
	start_at(0);
	offer_simple(1);
	pop_simple(1);
	virtqueue_unpop(&queue, &chain);
	cr_assert_eq(queue.state.next_available, 0);
	start_at(0xffff);
	offer_simple(1);
	pop_simple(1);
	virtqueue_unpop(&queue, &chain);
	pop_simple(1);
}

Test(queue, what_is_set_aside_comes_again_by_its_head)
{
	struct virtqueue_state saved;

	offer_simple(4);
	offer_simple(5);
	pop_simple(4);
	pop_simple(5);
	virtqueue_set_aside(&queue, 4);
	virtqueue_push(&queue, 5, 0);
	cr_assert_eq(queue.in_flight, 0, "the queue may rest");
	/* As a load would leave it. */
	saved = queue.state;
	virtqueue_unmap(&queue);
	queue.state = saved;
	cr_assert_eq(virtqueue_pop_again(&queue, 4, &chain), 0, "not while it rests");
	cr_assert_eq(virtqueue_map(&queue), 0);
	cr_assert_eq(virtqueue_pop_again(&queue, 4, &chain), 1);
	cr_assert_eq(chain.head, 4);
	cr_assert_eq(chain.in_bytes, 0x100);
	cr_assert_eq(virtqueue_pop(&queue, &chain), 0, "positions stand");
	virtqueue_push(&queue, 4, 0);
	virtqueue_publish(&queue);
	cr_assert_eq(used->index, 2);
}

Test(queue, a_head_that_comes_again_is_checked)
{
	offer_simple(4);
	pop_simple(4);
	cr_assert_eq(virtqueue_pop_again(&queue, 4, &chain), -EBADMSG, "it is under way");
	virtqueue_set_aside(&queue, 4);
	queue.broken = false;
	descriptors[4].address = ~0ull;
	cr_assert_eq(virtqueue_pop_again(&queue, 4, &chain), -EBADMSG);
	queue.broken = false;
	cr_assert_eq(virtqueue_pop_again(&queue, SIZE, &chain), -EBADMSG);
	cr_assert(queue.broken);
}

Test(queue, chains_are_given_back_in_any_order)
{
	offer_simple(0);
	offer_simple(1);
	pop_simple(0);
	pop_simple(1);
	virtqueue_push(&queue, 1, 11);
	virtqueue_push(&queue, 0, 22);
	cr_assert_eq(used->index, 0, "not before it is published");
	virtqueue_publish(&queue);
	cr_assert_eq(used->index, 2);
	cr_assert_eq(used->ring[0].id, 1);
	cr_assert_eq(used->ring[0].length, 11);
	cr_assert_eq(used->ring[1].id, 0);
	cr_assert_eq(queue.in_flight, 0);
}

Test(queue, copies_cross_pieces_and_stop_at_the_end)
{
	char data[16] = "";

	describe(descriptors, 0, BUFFERS, 3, NEXT, 1);
	describe(descriptors, 1, BUFFERS + 0x100, 3, NEXT, 2);
	describe(descriptors, 2, BUFFERS + 0x200, 2, WRITE | NEXT, 3);
	describe(descriptors, 3, BUFFERS + 0x300, 2, WRITE, 0);
	memcpy(at(BUFFERS), "abcX", 4);
	memcpy(at(BUFFERS + 0x100), "defX", 4);
	offer(0);
	cr_assert_eq(virtqueue_pop(&queue, &chain), 1);
	cr_assert_eq(chain_read(&chain, 0, data, 16), 6);
	cr_assert_str_eq(data, "abcdef");
	cr_assert_eq(chain_read(&chain, 4, data, 16), 2);
	cr_assert_eq(memcmp(data, "efcdef", 6), 0);
	cr_assert_eq(chain_read(&chain, 6, data, 1), 0);
	cr_assert_eq(chain_read(&chain, UINT64_MAX, data, 1), 0);
	cr_assert_eq(chain_write(&chain, 1, "uvwxyz", 6), 3);
	cr_assert_eq(memcmp(at(BUFFERS + 0x200), "\0u\0", 3), 0);
	cr_assert_eq(memcmp(at(BUFFERS + 0x300), "vw\0", 3), 0);
}

/* Interrupts */

/* Offers, takes, gives back and publishes `n` chains at once; says whether the guest was called. */
static bool called(uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		offer_simple(i % SIZE);
	for (uint32_t i = 0; i < n; i++)
		cr_assert_eq(virtqueue_pop(&queue, &chain), 1);
	for (uint32_t i = 0; i < n; i++)
		virtqueue_push(&queue, i % SIZE, 0);
	virtqueue_publish(&queue);
	return test_eventfd_take(call_fd) > 0;
}

Test(queue, a_batch_is_one_interrupt)
{
	cr_assert(called(SIZE));
	cr_assert_eq(queue.n_calls, 1);
}

Test(queue, nothing_pushed_is_no_interrupt)
{
	virtqueue_publish(&queue);
	cr_assert_eq(test_eventfd_take(call_fd), 0);
	cr_assert(called(1));
	virtqueue_publish(&queue);
	cr_assert_eq(test_eventfd_take(call_fd), 0);
}

Test(queue, by_flag_the_guest_turns_interrupts_off)
{
	available->flags = NO_INTERRUPT;
	cr_assert_not(called(1));
	available->flags = 0;
	cr_assert(called(1));
}

Test(queue, without_a_vector_nobody_is_called)
{
	atomic_store(&queue.call_fd, -1);
	cr_assert_not(called(1));
	cr_assert_eq(used->index, 1);
}

Test(queue, by_event_the_guest_is_called_when_it_is_passed)
{
	queue.event_index = true;
	*used_event() = 2;
	cr_assert_not(called(1), "element 0");
	cr_assert_not(called(1), "element 1");
	cr_assert(called(1), "element 2");
	cr_assert_not(called(1), "element 3");
}

Test(queue, by_event_a_batch_that_passes_it_calls)
{
	queue.event_index = true;
	*used_event() = 2;
	cr_assert(called(5));
	*used_event() = 5;
	cr_assert(called(5), "its first");
	*used_event() = 14;
	cr_assert(called(5), "its last");
	*used_event() = 20;
	cr_assert_not(called(5), "one behind its last");
	*used_event() = 19;
	cr_assert_not(called(5), "one before its first");
}

Test(queue, by_event_the_flag_means_nothing)
{
	queue.event_index = true;
	available->flags = NO_INTERRUPT;
	*used_event() = 0;
	cr_assert(called(1));
}

Test(queue, by_event_the_guest_is_called_across_2_16)
{
	queue.event_index = true;
	start_at(0xfffd);
	*used_event() = 0xffff;
	cr_assert_not(called(2), "0xfffd, 0xfffe");
	cr_assert(called(2), "0xffff, 0");
	*used_event() = 0;
	cr_assert_not(called(2), "1, 2: 0 is behind");
	start_at(0xfffe);
	*used_event() = 1;
	cr_assert(called(4), "0xfffe to 1");
	start_at(0xfffe);
	*used_event() = 2;
	cr_assert_not(called(4));
}

/* Each pair of positions near the wrap, against the definition of 2.7.7.2 by counting. */
Test(queue, by_event_all_distances_agree_with_counting)
{
	queue.event_index = true;
	for (uint32_t start = 0xfff0; start <= 0x10010; start++)
		for (uint32_t n = 1; n <= SIZE; n++)
			for (int event = -2; event < (int)SIZE + 2; event++) {
				bool inside = event >= 0 && event < (int)n;

				start_at((uint16_t)start);
				*used_event() = (uint16_t)(start + event);
				cr_assert_eq(called(n), inside, "start %x, %u, event %d", start, n,
					     event);
			}
}

/* Kicks */

Test(queue, by_flag_kicks_are_turned_off_and_on)
{
	virtqueue_kicks_off(&queue);
	cr_assert_eq(used->flags, NO_NOTIFY);
	cr_assert_not(virtqueue_kicks_on(&queue));
	cr_assert_eq(used->flags, 0);
}

Test(queue, turning_kicks_on_says_what_came_meanwhile)
{
	virtqueue_kicks_off(&queue);
	offer_simple(0);
	cr_assert(virtqueue_kicks_on(&queue));
	pop_simple(0);
	cr_assert_not(virtqueue_kicks_on(&queue));
}

Test(queue, by_event_the_next_chain_is_asked_for)
{
	queue.event_index = true;
	offer_simple(0);
	offer_simple(1);
	pop_simple(0);
	virtqueue_kicks_off(&queue);
	cr_assert_eq(used->flags, 0);
	cr_assert(virtqueue_kicks_on(&queue));
	pop_simple(1);
	cr_assert_not(virtqueue_kicks_on(&queue));
	cr_assert_eq(*available_event(), 2);
}

Test(queue, by_event_kicks_wrap)
{
	queue.event_index = true;
	start_at(0xffff);
	offer_simple(0);
	pop_simple(0);
	cr_assert_not(virtqueue_kicks_on(&queue));
	cr_assert_eq(*available_event(), 0);
}

/* Marks */

Test(queue, publishing_marks_the_used_ring)
{
	uint64_t bits[MEMORY_SIZE / GUEST_PAGE_SIZE / 64] = {0};

	cr_assert_eq(memory_track_start(&memory), 0);
	called(1);
	memory_track_take(&memory, 0, bits, ARRAY_SIZE(bits));
	cr_assert(bits[0] & 1 << USED / GUEST_PAGE_SIZE);
}

/* Marked before, the mark could be taken while the page still holds the old index. */
Test(queue, the_used_ring_is_marked_after_the_index_is_there)
{
	called(1);
	cr_assert(index_marked);
	cr_assert_eq(index_when_marked, 1);
}

/* What a guest may not do */

Test(queue, more_than_the_ring_holds)
{
	available->index = SIZE + 1;
	refused();
}

Test(queue, an_index_that_goes_back)
{
	start_at(4);
	available->index = 3;
	refused();
}

Test(queue, an_index_that_jumps_across_2_16)
{
	start_at(0xfffc);
	available->index = (uint16_t)(0xfffc + SIZE + 1);
	refused();
}

Test(queue, a_head_outside_of_the_table)
{
	offer(SIZE);
	refused();
}

Test(queue, the_greatest_head)
{
	offer(0xffff);
	refused();
}

Test(queue, a_head_that_is_in_flight)
{
	offer_simple(3);
	offer_simple(3);
	pop_simple(3);
	cr_assert_eq(virtqueue_pop(&queue, &chain), -EBADMSG);
	cr_assert(queue.broken);
	virtqueue_push(&queue, 3, 0);
	virtqueue_publish(&queue);
	cr_assert_eq(used->index, 1, "what was under way comes back");
}

Test(queue, a_head_is_free_again_once_given_back)
{
	offer_simple(3);
	pop_simple(3);
	virtqueue_push(&queue, 3, 0);
	offer_simple(3);
	pop_simple(3);
}

Test(queue, a_loop)
{
	describe(descriptors, 0, BUFFERS, 16, NEXT, 1);
	describe(descriptors, 1, BUFFERS, 16, NEXT, 0);
	offer(0);
	refused();
}

Test(queue, a_loop_in_an_indirect_table)
{
	describe(inner, 0, BUFFERS, 16, NEXT, 0);
	describe(descriptors, 0, INDIRECT, 16, TEST_DESC_INDIRECT, 0);
	offer(0);
	refused();
}

Test(queue, a_loop_in_an_indirect_table_of_great_length)
{
	describe(inner, 0, BUFFERS, 16, NEXT, 0);
	describe(descriptors, 0, INDIRECT, MEMORY_SIZE - INDIRECT, TEST_DESC_INDIRECT, 0);
	offer(0);
	refused();
}

Test(queue, a_next_outside_of_the_table)
{
	describe(descriptors, 0, BUFFERS, 16, NEXT, SIZE);
	offer(0);
	refused();
}

Test(queue, a_next_outside_of_an_indirect_table)
{
	describe(inner, 0, BUFFERS, 16, NEXT, 2);
	describe(inner, 2, BUFFERS, 16, 0, 0);
	describe(descriptors, 0, INDIRECT, 32, TEST_DESC_INDIRECT, 0);
	offer(0);
	refused();
}

Test(queue, an_indirect_table_in_an_indirect_table)
{
	describe(inner, 0, INDIRECT + 0x100, 16, TEST_DESC_INDIRECT, 0);
	describe(inner, 16, BUFFERS, 16, 0, 0);
	describe(descriptors, 0, INDIRECT, 16, TEST_DESC_INDIRECT, 0);
	offer(0);
	refused();
}

Test(queue, an_indirect_descriptor_with_a_next)
{
	describe(inner, 0, BUFFERS, 16, 0, 0);
	describe(descriptors, 0, INDIRECT, 16, TEST_DESC_INDIRECT | NEXT, 1);
	describe(descriptors, 1, BUFFERS, 16, 0, 0);
	offer(0);
	refused();
}

Test(queue, an_empty_indirect_table)
{
	describe(descriptors, 0, INDIRECT, 0, TEST_DESC_INDIRECT, 0);
	offer(0);
	refused();
}

Test(queue, half_a_descriptor_in_an_indirect_table)
{
	describe(inner, 0, BUFFERS, 16, 0, 0);
	describe(descriptors, 0, INDIRECT, 24, TEST_DESC_INDIRECT, 0);
	offer(0);
	refused();
}

Test(queue, an_indirect_table_outside_of_memory)
{
	describe(descriptors, 0, MEMORY_SIZE - 16, 32, TEST_DESC_INDIRECT, 0);
	offer(0);
	refused();
}

Test(queue, an_indirect_table_that_wraps_around)
{
	describe(descriptors, 0, UINT64_MAX - 15, 32, TEST_DESC_INDIRECT, 0);
	offer(0);
	refused();
}

Test(queue, an_empty_buffer)
{
	describe(descriptors, 0, BUFFERS, 0, WRITE, 0);
	offer(0);
	refused();
}

Test(queue, a_buffer_to_write_before_one_to_read)
{
	describe(descriptors, 0, BUFFERS, 16, WRITE | NEXT, 1);
	describe(descriptors, 1, BUFFERS, 16, 0, 0);
	offer(0);
	refused();
}

Test(queue, a_buffer_outside_of_memory)
{
	describe(descriptors, 0, MEMORY_SIZE, 1, WRITE, 0);
	offer(0);
	refused();
}

Test(queue, a_buffer_over_the_end_of_memory)
{
	describe(descriptors, 0, MEMORY_SIZE - 8, 9, WRITE, 0);
	offer(0);
	refused();
}

Test(queue, a_buffer_that_wraps_around)
{
	describe(descriptors, 0, UINT64_MAX - 7, 16, WRITE, 0);
	offer(0);
	refused();
}

Test(queue, more_pieces_than_the_device_takes)
{
	for (uint32_t i = 0; i <= IOVS; i++)
		describe(inner, i, BUFFERS, 1, i < IOVS ? NEXT : 0, i + 1);
	describe(descriptors, 0, INDIRECT, 16 * (IOVS + 1), TEST_DESC_INDIRECT, 0);
	offer(0);
	refused();
}

/* Where rings may lie */

static int map(struct virtqueue_state state)
{
	virtqueue_unmap(&queue);
	queue.state = state;
	return virtqueue_map(&queue);
}

Test(queue, rings_of_every_power_of_two)
{
	struct virtqueue_state state = queue.state;

	for (uint32_t size = 0; size <= 2 * VIRTQUEUE_SIZE_MAX; size++) {
		bool good = size && size <= VIRTQUEUE_SIZE_MAX && (size & (size - 1)) == 0;

		state.descriptors = 0x10000;
		state.available = 0x20000;
		state.used = 0x30000;
		state.size = size;
		cr_assert_eq(map(state), good ? 0 : -EINVAL, "size %u", size);
	}
}

Test(queue, a_device_may_allow_less)
{
	struct virtqueue_state state = queue.state;

	queue.size_max = SIZE / 2;
	cr_assert_eq(map(state), -EINVAL);
}

Test(queue, rings_that_are_not_aligned)
{
	struct virtqueue_state state = queue.state;

	for (uint32_t off = 1; off < 16; off++) {
		struct virtqueue_state moved = state;

		moved.descriptors += off;
		cr_assert_eq(map(moved), -EINVAL);
		moved = state;
		moved.available += off;
		cr_assert_eq(map(moved), off % 2 ? -EINVAL : 0);
		moved = state;
		moved.used += off;
		cr_assert_eq(map(moved), off % 4 ? -EINVAL : 0);
	}
}

Test(queue, rings_at_the_very_end_of_memory)
{
	struct virtqueue_state state = queue.state, moved = state;

	moved.descriptors = MEMORY_SIZE - 16 * SIZE;
	cr_assert_eq(map(moved), 0);
	moved.descriptors += 16;
	cr_assert_eq(map(moved), -EINVAL);
	moved = state;
	moved.available = MEMORY_SIZE - (6 + 2 * SIZE);
	cr_assert_eq(map(moved), 0);
	moved.available += 2;
	cr_assert_eq(map(moved), -EINVAL);
	moved = state;
	moved.used = MEMORY_SIZE - (8 + 8 * SIZE);
	cr_assert_eq(map(moved), 0);
	moved.used += 4;
	cr_assert_eq(map(moved), -EINVAL, "the event word behind the ring counts");
}

Test(queue, rings_outside_of_memory)
{
	struct virtqueue_state state = queue.state, moved = state;

	moved.descriptors = UINT64_MAX - 15;
	cr_assert_eq(map(moved), -EINVAL);
	moved = state;
	moved.available = UINT64_MAX - 1;
	cr_assert_eq(map(moved), -EINVAL);
	moved = state;
	moved.used = 1ull << 40;
	cr_assert_eq(map(moved), -EINVAL);
}

Test(queue, the_last_descriptor_of_a_table_at_the_end_of_memory)
{
	queue.state.descriptors = MEMORY_SIZE - 16 * SIZE;
	descriptors = at(queue.state.descriptors);
	start_at(0);
	offer_simple(SIZE - 1);
	pop_simple(SIZE - 1);
	describe(descriptors, 0, BUFFERS, 1, NEXT, SIZE - 1);
	describe(descriptors, SIZE - 1, BUFFERS, 1, NEXT, SIZE);
	offer(0);
	cr_assert_eq(virtqueue_pop(&queue, &chain), -EBADMSG);
}

Test(queue, mapping_again_mends_a_broken_queue)
{
	offer(SIZE);
	refused();
	start_at(0);
	offer_simple(0);
	pop_simple(0);
}
