/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages from other threads to a loop's sources: a list that posters fill under a lock and the
 * owner takes whole, once a turn. The first post after that wakes the owner, the rest cost a lock.
 * A full list grows; where memory is refused the poster waits until the owner has taken the list.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/atomic.h"
#include "base/loop-engine.h"

static bool on_owner(struct loop *loop)
{
	return load_acquire(&loop->owner) == (uint64_t)pthread_self();
}

static int grow(struct loop_post_list *list, uint32_t capacity)
{
	struct loop_post *posts;

	if (capacity <= list->capacity)
		return 0;
	posts = reallocarray(list->posts, capacity, sizeof(*posts));
	if (!posts)
		return -ENOMEM;
	list->posts = posts;
	list->capacity = capacity;
	return 0;
}

int loop_reserve_posts(struct loop *loop, uint32_t n)
{
	int r;

	pthread_mutex_lock(&loop->lock);
	r = grow(&loop->filling, loop->filling.capacity + n);
	if (r >= 0)
		r = grow(&loop->draining, loop->draining.capacity + n);
	pthread_mutex_unlock(&loop->lock);
	return r;
}

void loop_wake(struct loop *loop)
{
	const uint64_t one = 1;

	/* Fails only when the counter is full, and then the owner has been woken. */
	(void)!write(loop->wake_fd, &one, sizeof(one));
}

static void make_room(struct loop *loop)
{
	struct loop_post_list *list = &loop->filling;

	while (list->n_posts == list->capacity && grow(list, list->capacity * 2) < 0) {
		/* The owner cannot wait for itself, and a lost post is a hung machine. */
		if (on_owner(loop))
			abort();
		pthread_cond_wait(&loop->drained, &loop->lock);
	}
}

void loop_post_cookie(struct loop *loop, union loop_cookie cookie, int32_t result)
{
	bool first;

	pthread_mutex_lock(&loop->lock);
	make_room(loop);
	first = !loop->filling.n_posts;
	loop->filling.posts[loop->filling.n_posts++] = (struct loop_post){cookie, result};
	store_release(&loop->posted, true);
	pthread_mutex_unlock(&loop->lock);
	/* The owner looks at `posted` before it waits. */
	if (first && !on_owner(loop))
		loop_wake(loop);
}

void loop_post(struct loop_source *source, uint32_t arg)
{
	assert(arg != LOOP_BATCH);
	loop_post_cookie(source->loop, loop_cookie(source, LOOP_POST, arg), 0);
}

void loop_stop(struct loop *loop)
{
	store_release(&loop->stopping, true);
	if (!on_owner(loop))
		loop_wake(loop);
}

static uint32_t take_posts(struct loop *loop)
{
	struct loop_post_list taken;

	pthread_mutex_lock(&loop->lock);
	taken = loop->filling;
	loop->filling = loop->draining;
	loop->filling.n_posts = 0;
	loop->draining = taken;
	store_release(&loop->posted, false);
	pthread_cond_broadcast(&loop->drained);
	pthread_mutex_unlock(&loop->lock);
	return taken.n_posts;
}

void loop_drain_posts(struct loop *loop)
{
	uint32_t n_posts;

	if (!load_acquire(&loop->posted))
		return;
	n_posts = take_posts(loop);
	loop->counters.posts += n_posts;
	for (uint32_t i = 0; i < n_posts; i++) {
		/* A copy: a call may reserve more room and so move the list. */
		const struct loop_post post = loop->draining.posts[i];
		struct loop_source *source;

		if (post.cookie.kind == LOOP_IO) {
			loop_deliver_io(loop, post.cookie, post.result);
			continue;
		}
		source = loop_cookie_source(loop, post.cookie);
		if (source)
			loop_deliver(loop, source, LOOP_POST, post.cookie.arg, 0);
	}
}
