/* SPDX-License-Identifier: Apache-2.0 */
/* Each behaviour of the loop, under both engines. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <liburing.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fd.h"
#include "base/loop-engine.h"

#define EVENTS_MAX 64
#define MS         1000000ULL

static int engines[] = {0, 1};

static struct criterion_test_params both(void)
{
	return cr_make_param_array(int, engines, ARRAY_SIZE(engines));
}

#define BOTH(name)                              \
	ParameterizedTestParameters(loop, name) \
	{                                       \
		return both();                  \
	}                                       \
	ParameterizedTest(int *without_uring, loop, name)

/* A source that writes down what it is told, and can be given something to do then. */
struct probe {
	struct loop_source source;
	struct loop_event events[EVENTS_MAX];
	uint32_t n_events;
	void (*act)(struct probe *probe, const struct loop_event *event);
	struct probe *other;
	int fd;
};

static void on_probe(struct loop_source *source, const struct loop_event *event)
{
	struct probe *probe = container_of(source, struct probe, source);

	cr_assert(lt(u32, probe->n_events, EVENTS_MAX));
	probe->events[probe->n_events++] = *event;
	if (probe->act)
		probe->act(probe, event);
}

static void add(struct loop *loop, struct probe *probe)
{
	probe->source.on_event = on_probe;
	cr_assert(eq(int, loop_add(loop, &probe->source), 0));
}

static struct loop *make_loop(int without_uring)
{
	const struct loop_options options = {.without_uring = without_uring, .name = "test"};
	struct loop *loop = NULL;

	cr_assert(eq(int, loop_new(&loop, &options, NULL), 0));
	if (!without_uring && !loop_has_uring(loop))
		cr_skip_test("this host has no io_uring");
	return loop;
}

static struct loop *enabled_loop(int without_uring)
{
	struct loop *loop = make_loop(without_uring);

	cr_assert(eq(int, loop_enable(loop), 0));
	return loop;
}

/* Removes what the test has left, before its probes go. */
static void tear_down(struct loop *loop)
{
	for (uint32_t i = 0; i < loop->n_slots; i++) {
		struct loop_source *source = loop->slots[i].source;

		if (source && source != &loop->wake)
			loop_remove(source);
	}
	loop_free(loop);
}

static void turn(struct loop *loop, uint64_t deadline)
{
	cr_assert(eq(int, loop_turn(loop, deadline), 0));
}

static void signal_eventfd(int fd)
{
	const uint64_t one = 1;

	cr_assert(eq(int, fd_write_full(fd, &one, sizeof(one)), 0));
}

static void take_byte(struct probe *probe, const struct loop_event *event)
{
	char byte;

	if (event->result & POLLIN)
		cr_assert(eq(int, fd_read_full(probe->fd, &byte, 1), 0));
}

BOTH(watch_is_level_triggered)
{
	struct loop *loop = enabled_loop(*without_uring);
	struct probe probe = {.act = take_byte};
	int ends[2];

	cr_assert(eq(int, pipe(ends), 0));
	probe.fd = ends[0];
	add(loop, &probe);
	cr_assert(eq(int, loop_watch(&probe.source, ends[0], POLLIN), 0));
	turn(loop, 0);
	cr_assert(eq(u32, probe.n_events, 0));
	cr_assert(eq(int, fd_write_full(ends[1], "ab", 2), 0));
	turn(loop, UINT64_MAX);
	turn(loop, UINT64_MAX);
	turn(loop, 0);
	cr_assert(eq(u32, probe.n_events, 2));
	cr_assert(eq(int, probe.events[1].result, POLLIN));
	close(ends[1]);
	turn(loop, UINT64_MAX - 1);
	cr_assert(eq(int, probe.events[2].result, POLLHUP));
	tear_down(loop);
}

BOTH(watch_reports_room_to_write)
{
	struct loop *loop = enabled_loop(*without_uring);
	struct probe probe = {0};
	int ends[2];

	cr_assert(eq(int, socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0));
	add(loop, &probe);
	cr_assert(eq(int, loop_watch(&probe.source, ends[0], POLLOUT), 0));
	turn(loop, UINT64_MAX);
	cr_assert(eq(int, probe.events[0].kind, LOOP_READY));
	cr_assert(eq(int, probe.events[0].result, POLLOUT));
	tear_down(loop);
}

BOTH(unwatch_ends_events_and_a_new_watch_begins_afresh)
{
	struct loop *loop = enabled_loop(*without_uring);
	struct probe probe = {.act = take_byte};
	int ends[2];

	cr_assert(eq(int, pipe(ends), 0));
	probe.fd = ends[0];
	add(loop, &probe);
	cr_assert(eq(int, loop_watch(&probe.source, ends[0], POLLIN), 0));
	turn(loop, 0);
	cr_assert(eq(int, fd_write_full(ends[1], "a", 1), 0));
	loop_unwatch(&probe.source);
	turn(loop, 0);
	turn(loop, 0);
	cr_assert(eq(u32, probe.n_events, 0));
	cr_assert(eq(int, loop_watch(&probe.source, ends[0], POLLIN), 0));
	turn(loop, UINT64_MAX);
	turn(loop, 0);
	cr_assert(eq(u32, probe.n_events, 1));
	tear_down(loop);
}

BOTH(unwatch_before_the_poll_was_submitted)
{
	struct loop *loop = enabled_loop(*without_uring);
	struct probe first = {0}, second = {0};
	int fd = eventfd(1, 0), other = eventfd(0, 0);

	add(loop, &first);
	add(loop, &second);
	cr_assert(eq(int, loop_watch(&first.source, fd, POLLIN), 0));
	loop_remove(&first.source);
	/* Takes the same place in the ring's table. */
	cr_assert(eq(int, loop_watch(&second.source, other, POLLIN), 0));
	turn(loop, 0);
	turn(loop, 0);
	cr_assert(eq(u32, first.n_events, 0));
	cr_assert(eq(u32, second.n_events, 0));
	tear_down(loop);
}

BOTH(eventfd_burst_is_one_call)
{
	struct loop *loop = enabled_loop(*without_uring);
	struct probe probe = {0};
	int fd = eventfd(0, EFD_NONBLOCK);

	add(loop, &probe);
	cr_assert(eq(int, loop_watch_eventfd(&probe.source, fd), 0));
	turn(loop, 0);
	for (uint32_t round = 1; round < 4; round++) {
		for (int i = 0; i < 5; i++)
			signal_eventfd(fd);
		turn(loop, UINT64_MAX);
		turn(loop, 0);
		cr_assert(eq(u32, probe.n_events, round));
		cr_assert(eq(int, probe.events[round - 1].kind, LOOP_READY));
	}
	tear_down(loop);
}

BOTH(eventfd_signalled_before_the_watch)
{
	struct loop *loop = enabled_loop(*without_uring);
	struct probe probe = {0};
	int fd = eventfd(1, EFD_NONBLOCK);

	add(loop, &probe);
	cr_assert(eq(int, loop_watch_eventfd(&probe.source, fd), 0));
	turn(loop, UINT64_MAX);
	cr_assert(eq(u32, probe.n_events, 1));
	tear_down(loop);
}

BOTH(events_carry_the_time_of_the_turn)
{
	struct loop *loop = enabled_loop(*without_uring);
	struct probe first = {0}, second = {0};
	uint64_t before = loop_now(loop);

	add(loop, &first);
	add(loop, &second);
	loop_post(&first.source, 1);
	loop_post(&second.source, 2);
	turn(loop, UINT64_MAX);
	cr_assert(gt(u64, first.events[0].now, before));
	cr_assert(eq(u64, first.events[0].now, loop_now(loop)));
	cr_assert(eq(u64, first.events[0].now, second.events[0].now));
	tear_down(loop);
}

static uint32_t fired[EVENTS_MAX], n_fired;

static void note_firing(struct probe *probe, const struct loop_event *event)
{
	cr_assert(eq(int, event->kind, LOOP_TIMER));
	cr_assert(ge(u64, event->now, probe->source.deadline));
	fired[n_fired++] = (uint32_t)probe->fd;
}

BOTH(timers_fire_in_order_and_not_early)
{
	static const uint32_t order[] = {7, 2, 9, 1, 4, 0, 8, 3, 6, 5};
	struct loop *loop = enabled_loop(*without_uring);
	struct probe probes[ARRAY_SIZE(order)] = {0};
	uint64_t start = loop_now(loop);

	for (uint32_t i = 0; i < ARRAY_SIZE(order); i++) {
		probes[i].act = note_firing;
		probes[i].fd = (int)order[i];
		add(loop, &probes[i]);
		loop_timer(&probes[i].source, start + (order[i] + 1) * MS);
	}
	while (n_fired < ARRAY_SIZE(order))
		turn(loop, UINT64_MAX);
	for (uint32_t i = 0; i < n_fired; i++)
		cr_assert(eq(u32, fired[i], i));
	tear_down(loop);
}

BOTH(timer_moved_and_disarmed)
{
	struct loop *loop = enabled_loop(*without_uring);
	struct probe moved = {.act = note_firing, .fd = 1}, off = {.act = note_firing, .fd = 2};
	struct probe last = {.act = note_firing, .fd = 3};
	uint64_t start = loop_now(loop);

	add(loop, &moved);
	add(loop, &off);
	add(loop, &last);
	loop_timer(&moved.source, start + MS);
	loop_timer(&off.source, start + MS);
	loop_timer(&last.source, start + 2 * MS);
	loop_timer(&moved.source, start + 3 * MS);
	loop_timer(&off.source, UINT64_MAX);
	while (n_fired < 2)
		turn(loop, UINT64_MAX);
	cr_assert(eq(u32, fired[0], 3));
	cr_assert(eq(u32, fired[1], 1));
	cr_assert(eq(u32, off.n_events, 0));
	tear_down(loop);
}

static void ask_for_now(struct probe *probe, const struct loop_event *event _unused_)
{
	loop_timer(&probe->source, 0);
}

BOTH(timer_that_always_asks_for_now_holds_up_nobody)
{
	struct loop *loop = enabled_loop(*without_uring);
	struct probe greedy = {.act = ask_for_now}, other = {0};

	add(loop, &greedy);
	add(loop, &other);
	loop_timer(&greedy.source, 0);
	loop_timer(&other.source, 1);
	turn(loop, UINT64_MAX);
	cr_assert(eq(u32, greedy.n_events, 1));
	cr_assert(eq(u32, other.n_events, 1));
	turn(loop, UINT64_MAX);
	cr_assert(eq(u32, greedy.n_events, 2));
	tear_down(loop);
}

BOTH(turn_ends_at_its_deadline)
{
	struct loop *loop = enabled_loop(*without_uring);
	uint64_t start = loop_now(loop);

	turn(loop, start + 3 * MS);
	cr_assert(ge(u64, loop_now(loop), start + 3 * MS));
	tear_down(loop);
}

#define POSTERS 4
#define POSTS   2000

struct poster {
	pthread_t thread;
	struct loop_source *target;
	uint32_t number;
};

struct collector {
	struct loop_source source;
	uint32_t next[POSTERS];
	uint32_t n_posts;
};

static void on_collected(struct loop_source *source, const struct loop_event *event)
{
	struct collector *collector = container_of(source, struct collector, source);
	uint32_t poster = event->arg >> 24;

	cr_assert(eq(int, event->kind, LOOP_POST));
	cr_assert(eq(u32, event->arg & 0xffffff, collector->next[poster]++));
	if (++collector->n_posts == POSTERS * POSTS)
		loop_stop(source->loop);
}

static void *post_many(void *arg)
{
	const struct poster *poster = arg;

	for (uint32_t i = 0; i < POSTS; i++)
		loop_post(poster->target, poster->number << 24 | i);
	return NULL;
}

BOTH(posts_of_four_threads_all_arrive_in_order)
{
	struct loop *loop = enabled_loop(*without_uring);
	struct collector collector = {.source.on_event = on_collected};
	struct poster posters[POSTERS];

	cr_assert(eq(int, loop_add(loop, &collector.source), 0));
	for (uint32_t i = 0; i < POSTERS; i++) {
		posters[i].target = &collector.source;
		posters[i].number = i;
		pthread_create(&posters[i].thread, NULL, post_many, &posters[i]);
	}
	cr_assert(eq(int, loop_run(loop), 0));
	for (uint32_t i = 0; i < POSTERS; i++) {
		pthread_join(posters[i].thread, NULL);
		cr_assert(eq(u32, collector.next[i], POSTS));
	}
	cr_assert(eq(u64, loop_counters(loop).posts, POSTERS * POSTS));
	loop_remove(&collector.source);
	tear_down(loop);
}

BOTH(post_of_the_owner_does_not_wait)
{
	struct loop *loop = enabled_loop(*without_uring);
	struct probe probe = {0};

	add(loop, &probe);
	for (uint32_t i = 0; i < 3; i++)
		loop_post(&probe.source, i);
	turn(loop, UINT64_MAX);
	cr_assert(eq(u32, probe.n_events, 3));
	cr_assert(eq(u32, probe.events[2].arg, 2));
	tear_down(loop);
}

BOTH(post_to_a_removed_source_is_dropped)
{
	struct loop *loop = enabled_loop(*without_uring);
	struct probe probe = {0};

	add(loop, &probe);
	loop_post(&probe.source, 1);
	loop_remove(&probe.source);
	add(loop, &probe);
	turn(loop, UINT64_MAX);
	cr_assert(eq(u32, probe.n_events, 0));
	tear_down(loop);
}

static void remove_both(struct probe *probe, const struct loop_event *event _unused_)
{
	loop_remove(&probe->source);
	loop_remove(&probe->other->source);
}

BOTH(source_that_removes_itself_and_another_with_an_event)
{
	struct loop *loop = enabled_loop(*without_uring);
	struct probe first = {.act = remove_both}, second = {.act = remove_both};
	int fds[2] = {eventfd(1, 0), eventfd(1, 0)};

	first.other = &second;
	second.other = &first;
	add(loop, &first);
	add(loop, &second);
	cr_assert(eq(int, loop_watch(&first.source, fds[0], POLLIN), 0));
	cr_assert(eq(int, loop_watch_eventfd(&second.source, fds[1]), 0));
	turn(loop, UINT64_MAX);
	turn(loop, 0);
	cr_assert(eq(u32, first.n_events + second.n_events, 1));
	tear_down(loop);
}

BOTH(removal_among_timers_posts_and_batch)
{
	struct loop *loop = enabled_loop(*without_uring);
	struct probe first = {.act = remove_both}, second = {.act = remove_both};

	for (int round = 0; round < 3; round++) {
		first.n_events = second.n_events = 0;
		first.other = &second;
		second.other = &first;
		add(loop, &first);
		add(loop, &second);
		for (int i = 0; i < 2; i++) {
			struct loop_source *source = i ? &second.source : &first.source;

			if (round == 0)
				loop_timer(source, 1);
			else if (round == 1)
				loop_post(source, 1);
			else
				loop_batch(source);
		}
		turn(loop, UINT64_MAX);
		turn(loop, 0);
		cr_assert(eq(u32, first.n_events + second.n_events, 1));
	}
	tear_down(loop);
}

static void ask_for_batch(struct probe *probe, const struct loop_event *event _unused_)
{
	loop_batch(&probe->source);
	if (probe->other)
		loop_batch(&probe->other->source);
}

BOTH(batch_is_one_call_after_the_events_of_the_turn)
{
	struct loop *loop = enabled_loop(*without_uring);
	struct probe device = {0}, queue = {.act = ask_for_batch, .other = &device};

	add(loop, &device);
	add(loop, &queue);
	loop_post(&queue.source, 1);
	loop_post(&queue.source, 2);
	loop_post(&device.source, 3);
	turn(loop, UINT64_MAX);
	cr_assert(eq(u32, device.n_events, 2));
	cr_assert(eq(u32, device.events[0].arg, 3));
	cr_assert(eq(int, device.events[1].kind, LOOP_POST));
	cr_assert(eq(u32, device.events[1].arg, LOOP_BATCH));
	cr_assert(eq(u32, queue.n_events, 3));
	/* What the batch call asked for is for the next turn, which does not wait. */
	turn(loop, UINT64_MAX);
	cr_assert(eq(u32, queue.n_events, 4));
	tear_down(loop);
}

static void *stop_loop(void *loop)
{
	loop_stop(loop);
	return NULL;
}

BOTH(stop_from_another_thread)
{
	struct loop *loop = enabled_loop(*without_uring);
	pthread_t thread;

	for (int i = 0; i < 20; i++) {
		pthread_create(&thread, NULL, stop_loop, loop);
		cr_assert(eq(int, loop_run(loop), 0));
		pthread_join(thread, NULL);
	}
	tear_down(loop);
}

BOTH(stop_before_run_is_not_lost)
{
	struct loop *loop = enabled_loop(*without_uring);

	loop_stop(loop);
	cr_assert(eq(int, loop_run(loop), 0));
	tear_down(loop);
}

static void *enable_and_run(void *arg)
{
	struct loop *loop = arg;

	if (loop_enable(loop) < 0 || loop_run(loop) < 0)
		return NULL;
	return loop;
}

static void stop_own_loop(struct probe *probe, const struct loop_event *event _unused_)
{
	loop_stop(probe->source.loop);
}

/* The owner has ended by then: its ring is freed by the thread that made it, which has one too. */
BOTH(loop_made_by_one_thread_and_run_by_another)
{
	struct loop *own = enabled_loop(*without_uring);
	struct loop *loop = make_loop(*without_uring);
	struct probe probe = {.act = stop_own_loop}, mine = {0};
	int fd = eventfd(0, 0);
	pthread_t thread;
	void *result;

	turn(own, 0);
	add(loop, &probe);
	cr_assert(eq(int, loop_watch_eventfd(&probe.source, fd), 0));
	pthread_create(&thread, NULL, enable_and_run, loop);
	signal_eventfd(fd);
	pthread_join(thread, &result);
	cr_assert(eq(ptr, result, loop));
	cr_assert(eq(u32, probe.n_events, 1));
	loop_remove(&probe.source);
	loop_free(loop);
	add(own, &mine);
	signal_eventfd(fd);
	cr_assert(eq(int, loop_watch(&mine.source, fd, POLLIN), 0));
	turn(own, UINT64_MAX);
	cr_assert(eq(u32, mine.n_events, 1));
	tear_down(own);
}

BOTH(slots_run_out_and_come_back)
{
	static struct loop_source sources[LOOP_SOURCES_MAX];
	struct loop *loop = enabled_loop(*without_uring);
	struct loop_source extra = {.on_event = on_probe};
	uint32_t n = 0;

	for (; n < LOOP_SOURCES_MAX; n++) {
		sources[n].on_event = on_probe;
		if (loop_add(loop, &sources[n]) < 0)
			break;
	}
	/* One is the loop's own. */
	cr_assert(eq(u32, n, LOOP_SOURCES_MAX - 1));
	cr_assert(eq(int, loop_add(loop, &extra), -ENOSPC));
	loop_remove(&sources[100]);
	cr_assert(eq(int, loop_add(loop, &extra), 0));
	loop_remove(&extra);
	for (uint32_t i = 0; i < n; i++)
		loop_remove(&sources[i]);
	tear_down(loop);
}

BOTH(slot_rests_before_it_is_used_again)
{
	struct loop *loop = enabled_loop(*without_uring);
	struct probe probe = {0};
	uint32_t first;

	add(loop, &probe);
	first = probe.source.slot;
	for (int i = 0; i < 32; i++) {
		loop_remove(&probe.source);
		add(loop, &probe);
		cr_assert(ne(u32, probe.source.slot, first));
	}
	tear_down(loop);
}

BOTH(a_great_many_watches)
{
	static struct probe probes[300];
	struct loop *loop = enabled_loop(*without_uring);

	/* More than the submission queue holds, all ready at once. A turn need not bring them all:
	 * the kernel hands out some twenty at a time. */
	for (uint32_t i = 0; i < ARRAY_SIZE(probes); i++) {
		add(loop, &probes[i]);
		cr_assert(eq(int, loop_watch_eventfd(&probes[i].source, eventfd(1, 0)), 0));
	}
	for (uint32_t i = 0; i < ARRAY_SIZE(probes); i++) {
		while (!probes[i].n_events)
			turn(loop, UINT64_MAX);
	}
	for (uint32_t i = 0; i < ARRAY_SIZE(probes); i++) {
		cr_assert(eq(u32, probes[i].n_events, 1));
		loop_remove(&probes[i].source);
	}
	turn(loop, 0);
	tear_down(loop);
}

Test(loop, ring_enters_the_kernel_once_a_turn)
{
	struct loop *loop = enabled_loop(false);
	struct probe edge = {0}, level = {.act = take_byte};
	int fd = eventfd(0, 0), ends[2];
	uint64_t before;

	cr_assert(eq(int, pipe(ends), 0));
	level.fd = ends[0];
	add(loop, &edge);
	add(loop, &level);
	cr_assert(eq(int, loop_watch_eventfd(&edge.source, fd), 0));
	cr_assert(eq(int, loop_watch(&level.source, ends[0], POLLIN), 0));
	turn(loop, 0);
	before = loop_counters(loop).enters;
	for (int i = 0; i < 10; i++) {
		signal_eventfd(fd);
		cr_assert(eq(int, fd_write_full(ends[1], "a", 1), 0));
		turn(loop, UINT64_MAX);
	}
	cr_assert(eq(u32, edge.n_events, 10));
	cr_assert(eq(u32, level.n_events, 10));
	cr_assert(le(u64, loop_counters(loop).enters - before, 10));
	tear_down(loop);
}

/* A turn that is not to wait, with nothing queued and nothing come, makes no system call. */
Test(loop, idle_ring_turn_without_waiting_is_free)
{
	struct loop *loop = enabled_loop(false);
	uint64_t before;

	turn(loop, 0);
	before = loop_counters(loop).enters;
	turn(loop, 0);
	cr_assert(eq(u64, loop_counters(loop).enters, before));
	tear_down(loop);
}

static int ring_descriptor(void)
{
	for (int fd = 3; fd < 64; fd++) {
		char path[32], name[64] = "";

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		if (readlink(path, name, sizeof(name) - 1) > 0 && strstr(name, "[io_uring]"))
			return fd;
	}
	return -1;
}

Test(loop, ring_refuses_what_is_not_on_its_list)
{
	struct loop *loop = enabled_loop(false);
	struct probe probe = {0};
	struct io_uring_sqe *sqe;

	add(loop, &probe);
	sqe = loop_uring_operation(loop, &probe.source, 1);
	sqe->opcode = IORING_OP_NOP;
	sqe->flags = IOSQE_FIXED_FILE;
	sqe = loop_uring_operation(loop, &probe.source, 2);
	sqe->opcode = IORING_OP_READ;
	sqe->flags = 0;
	while (probe.n_events < 2)
		turn(loop, UINT64_MAX);
	cr_assert(eq(int, probe.events[0].result, -EACCES));
	cr_assert(eq(int, probe.events[1].result, -EACCES));
	cr_assert(eq(int,
		     io_uring_register((uint32_t)ring_descriptor(), IORING_REGISTER_PERSONALITY,
				       NULL, 0),
		     -EACCES));
	tear_down(loop);
}

static void forbid_io_uring(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {.len = ARRAY_SIZE(code), .filter = code};

	cr_assert(eq(int, prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0));
	cr_assert(eq(int, prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0));
}

Test(loop, falls_back_where_io_uring_is_forbidden)
{
	const struct loop_options options = {.name = "test"};
	struct probe probe = {0};
	struct loop *loop = NULL;

	forbid_io_uring();
	cr_assert(eq(int, loop_new(&loop, &options, NULL), 0));
	cr_assert(not(loop_has_uring(loop)));
	cr_assert(eq(int, loop_enable(loop), 0));
	add(loop, &probe);
	cr_assert(eq(int, loop_watch_eventfd(&probe.source, eventfd(1, 0)), 0));
	turn(loop, UINT64_MAX);
	cr_assert(eq(u32, probe.n_events, 1));
	tear_down(loop);
}
