/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Deadlines of a loop: one a source, in a binary heap with the earliest first. A deadline set while
 * others fire is due in the next turn at the earliest, so that a source that always asks for "now"
 * holds up nobody. Owner thread only.
 */
#include "base/loop-engine.h"

static void put(struct loop *loop, uint32_t place, struct loop_source *source)
{
	loop->timers[place] = source;
	source->timer_place = (uint16_t)place;
}

static void sift_up(struct loop *loop, uint32_t place, struct loop_source *source)
{
	while (place) {
		uint32_t parent = (place - 1) / 2;

		if (loop->timers[parent]->deadline <= source->deadline)
			break;
		put(loop, place, loop->timers[parent]);
		place = parent;
	}
	put(loop, place, source);
}

static void sift_down(struct loop *loop, uint32_t place, struct loop_source *source)
{
	for (;;) {
		uint32_t child = 2 * place + 1;

		if (child >= loop->n_timers)
			break;
		if (child + 1 < loop->n_timers &&
		    loop->timers[child + 1]->deadline < loop->timers[child]->deadline)
			child++;
		if (source->deadline <= loop->timers[child]->deadline)
			break;
		put(loop, place, loop->timers[child]);
		place = child;
	}
	put(loop, place, source);
}

static void settle(struct loop *loop, uint32_t place, struct loop_source *source)
{
	if (place && source->deadline < loop->timers[(place - 1) / 2]->deadline)
		sift_up(loop, place, source);
	else
		sift_down(loop, place, source);
}

static void disarm(struct loop *loop, struct loop_source *source)
{
	struct loop_source *last = loop->timers[--loop->n_timers];

	source->timer_armed = false;
	if (last != source)
		settle(loop, source->timer_place, last);
}

void loop_timer(struct loop_source *source, uint64_t deadline)
{
	struct loop *loop = source->loop;

	if (deadline == UINT64_MAX) {
		if (source->timer_armed)
			disarm(loop, source);
		return;
	}
	if (loop->firing)
		deadline = MAX(deadline, loop->now + 1);
	source->deadline = deadline;
	if (source->timer_armed) {
		settle(loop, source->timer_place, source);
		return;
	}
	source->timer_armed = true;
	sift_up(loop, loop->n_timers++, source);
}

uint64_t loop_next_deadline(const struct loop *loop)
{
	return loop->n_timers ? loop->timers[0]->deadline : UINT64_MAX;
}

void loop_fire_timers(struct loop *loop)
{
	loop->firing = true;
	while (loop_next_deadline(loop) <= loop->now) {
		struct loop_source *source = loop->timers[0];

		disarm(loop, source);
		loop_deliver(loop, source, LOOP_TIMER, 0, 0);
	}
	loop->firing = false;
}
