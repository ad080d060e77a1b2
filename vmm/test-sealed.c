/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VMM's threads at work under their seals: one of each kind allocates, logs, waits and ends, and
 * main answers for all. A plain program, 0 passed, 1 failed: under a test framework malloc has
 * arenas of threads that ended long ago, which a VMM has not.
 */
#include <jansson.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>

#include "base/log.h"
#include "vmm/sandbox.h"
#include "vmm/seccomp/lists.h"
#include "vmm/seccomp/test-child.h"

static pthread_barrier_t all_parked, all_worked;
static int eventfds[SANDBOX_THREADS];

/* What libc does by itself on a sealed thread: allocate, small and large; log; wait; end. */
static void *live(void *arg)
{
	enum sandbox_thread kind = (enum sandbox_thread)(uintptr_t)arg;
	uint64_t one = 1;

	pthread_barrier_wait(&all_parked);
	if (sandbox_thread(kind) < 0)
		_exit(2);
	for (size_t size = 16; size <= 16 << 20; size *= 4) {
		char *data = malloc(size);

		if (!data)
			_exit(3);
		memset(data, 1, size);
		free(data);
	}
	log_warning("thread %u is sealed", (unsigned int)kind);
	if (write(eventfds[kind], &one, sizeof(one)) != sizeof(one))
		_exit(4);
	pthread_barrier_wait(&all_worked);
	return NULL;
}

/* Answers as the control socket does: a large object with its keys in order, and a date. */
static int answer(struct sandbox_status *status)
{
	json_t *object = sandbox_describe(status);
	json_t *lists = json_object_get(object, "lists");
	time_t now = time(NULL);
	struct tm tm;

	CHECK(object && json_array_size(lists) == SANDBOX_THREADS);
	for (size_t i = 0; i < SANDBOX_THREADS; i++) {
		json_t *list = json_array_get(lists, i);

		CHECK(json_integer_value(json_object_get(list, "threads")) == 1);
		CHECK(json_integer_value(json_object_get(list, "calls")) ==
		      seccomp_lists[i].n_calls);
	}
	for (int i = 0; i < 5000; i++) {
		char key[16];

		snprintf(key, sizeof(key), "key%d", i);
		CHECK(json_object_set_new(object, key, json_integer(i)) == 0);
	}
	char *text = json_dumps(object, JSON_SORT_KEYS);
	CHECK(text && strstr(text, "\"key4999\": 4999") && gmtime_r(&now, &tm));
	free(text);
	json_decref(object);
	return 0;
}

static int live_as_vmm(const void *arg)
{
	struct sandbox_options options = {.empty_fd = *(const int *)arg};
	struct sandbox_status status;
	struct error err = ERROR_NULL;
	pthread_t threads[SANDBOX_THREADS];
	uint64_t count;

	CHECK(sandbox_enter(&options, &status, &err) == 0);
	CHECK(pthread_barrier_init(&all_parked, NULL, SANDBOX_THREADS) == 0);
	CHECK(pthread_barrier_init(&all_worked, NULL, SANDBOX_THREADS) == 0);
	for (uintptr_t kind = SANDBOX_VCPU; kind < SANDBOX_THREADS; kind++) {
		eventfds[kind] = eventfd(0, EFD_CLOEXEC);
		CHECK(pthread_create(&threads[kind], NULL, live, (void *)kind) == 0);
	}
	CHECK(sandbox_thread(SANDBOX_MAIN) == 0);
	pthread_barrier_wait(&all_parked);
	pthread_barrier_wait(&all_worked);
	for (uint32_t kind = SANDBOX_VCPU; kind < SANDBOX_THREADS; kind++) {
		CHECK(read(eventfds[kind], &count, sizeof(count)) == sizeof(count) && count == 1);
		CHECK(pthread_join(threads[kind], NULL) == 0);
	}
	CHECK(answer(&status) == 0);
	table_deinit(&sandbox_status_table, &status);
	return 0;
}

static int live_as_users_vmm(const void *arg)
{
	CHECK(geteuid() != 0 || become_nobody() == 0);
	return live_as_vmm(arg);
}

int main(void)
{
	int empty = make_empty();
	int as_is = in_child(live_as_vmm, &empty);
	int as_user = in_child(live_as_users_vmm, &empty);

	if (!passed(as_is) || !passed(as_user))
		fprintf(stderr, "wait status as it is %#x, as a user %#x\n", (unsigned int)as_is,
			(unsigned int)as_user);
	return passed(as_is) && passed(as_user) ? 0 : 1;
}
