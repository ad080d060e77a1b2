/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Register accesses in, on vCPU threads; a deadline that moves; MACHINE_WATCHDOG out, from the
 * loop. A reload only writes the deadline down: the loop's timer stays where it is, finds the
 * deadline later than it was and sleeps on. The loop is told only of a deadline that is earlier.
 * Migrates: configuration space, the registers, what is left of the stage.
 *
 * Of the chip left out: the interrupt at the first stage's end (there are no INTx pins and no SMI),
 * and the free-running mode's repetition: it has one stage, and like the other ends once.
 */
#include "devices/watchdog.h"

#include <errno.h>
#include <string.h>

#include "base/atomic.h"
#include "base/clock.h"
#include "devices/registers.h"

#define BAR_SIZE 4096 /* the chip's has 16 bytes; a page is the least that can be mapped alone */

/* Configuration space */
#define CONFIG            0x60
#define CONFIG_BITS       0x27u
#define CONFIG_FAST       0x04u /* prescaler of 2^5 instead of 2^15 */
#define CONFIG_OUTPUT_OFF 0x20u
#define LOCK              0x68
#define LOCK_LOCKED       0x01u
#define LOCK_ENABLE       0x02u
#define LOCK_FREE_RUNNING 0x04u
#define LOCK_BITS         0x07u

/* BAR 0 */
#define PRELOAD_1        0x00
#define PRELOAD_2        0x04
#define RELOAD           0x0c
#define REGISTERS_SIZE   0x10

#define PRELOAD_MAX      0xfffffu
#define RELOAD_NOW       0x100u
#define RELOAD_TIMED_OUT 0x200u
#define UNLOCK_FIRST     0x80u
#define UNLOCK_SECOND    0x86u
#define UNLOCKED         2

#define CLOCK_NS         30 /* of the PCI bus, which it divides */
#define STAGE_MAX_NS     (((uint64_t)PRELOAD_MAX << 15) * CLOCK_NS)
/* The chip goes down to a microsecond, with which a guest could keep the loop busy. */
#define STAGE_MIN_NS 10000000u

static struct watchdog *watchdog_of(struct pci_function *function)
{
	return container_of(function, struct watchdog, function);
}

static struct watchdog *watchdog_of_device(struct device *device)
{
	return container_of(device, struct watchdog, function.device);
}

static uint64_t stage_ns(const struct watchdog *watchdog, uint8_t stage)
{
	uint32_t shift = watchdog->function.config.bytes[CONFIG] & CONFIG_FAST ? 5 : 15;
	uint64_t length = ((uint64_t)watchdog->state.preload[stage - 1] << shift) * CLOCK_NS;

	return MAX(length, (uint64_t)STAGE_MIN_NS);
}

/* From here to the next line the lock is held. */

/* One message at most is on its way, however often the guest changes its mind. */
static void deadline_set(struct watchdog *watchdog, uint64_t deadline)
{
	watchdog->deadline = deadline;
	if (deadline >= watchdog->armed || watchdog->posted)
		return;
	watchdog->posted = true;
	loop_post(&watchdog->source, 0);
}

static void stage_start(struct watchdog *watchdog, uint8_t stage, uint64_t now)
{
	watchdog->state.stage = stage;
	deadline_set(watchdog, now + stage_ns(watchdog, stage));
}

static void count_stop(struct watchdog *watchdog)
{
	watchdog->state.stage = 0;
	watchdog->deadline = UINT64_MAX;
}

static void count_start(struct watchdog *watchdog)
{
	uint8_t lock = watchdog->function.config.bytes[LOCK];

	if (lock & LOCK_ENABLE)
		stage_start(watchdog, lock & LOCK_FREE_RUNNING ? 2 : 1, clock_ns());
}

/* True: the machine has to hear of it. */
static bool stage_end(struct watchdog *watchdog, uint64_t now)
{
	if (now < watchdog->deadline)
		return false;
	if (watchdog->state.stage == 1) {
		stage_start(watchdog, 2, now);
		return false;
	}
	count_stop(watchdog);
	watchdog->state.timed_out = true;
	watchdog->n_expired++;
	return !(watchdog->function.config.bytes[CONFIG] & CONFIG_OUTPUT_OFF);
}

static void lock_write(struct watchdog *watchdog, uint8_t value)
{
	uint8_t *lock = &watchdog->function.config.bytes[LOCK];
	uint8_t changed = *lock ^ value;

	if (*lock & LOCK_LOCKED)
		return;
	*lock = value & LOCK_BITS;
	if (!(changed & LOCK_ENABLE))
		return;
	if (value & LOCK_ENABLE)
		count_start(watchdog);
	else
		count_stop(watchdog);
}

/* Only the lock register is more than bytes. Nothing that may be written lies within eight bytes of
 * it, so the rest of a wider access is dropped. */
static bool config_access(struct pci_function *function, uint32_t offset, void *data, uint32_t len,
			  bool write)
{
	if (!write || offset > LOCK || LOCK - offset >= len)
		return false;
	lock_write(watchdog_of(function), ((const uint8_t *)data)[LOCK - offset]);
	return true;
}

static void bar_read(struct pci_function *function, uint32_t bar _unused_, uint64_t offset,
		     void *data, uint32_t len)
{
	const struct watchdog_state *state = &watchdog_of(function)->state;
	const uint32_t registers[REGISTERS_SIZE / 4] = {
		htole32(state->preload[0]),
		htole32(state->preload[1]),
		0, /* no interrupt is ever active */
		htole32(state->timed_out ? RELOAD_TIMED_OUT : 0),
	};

	memset(data, 0, len);
	if (offset < REGISTERS_SIZE && len <= REGISTERS_SIZE - offset)
		memcpy(data, (const uint8_t *)registers + offset, len);
}

/* Two writes unlock the registers for the third (16.5.4). */
static bool is_unlocking(struct watchdog *watchdog, uint64_t offset, uint32_t value)
{
	struct watchdog_state *state = &watchdog->state;

	if (offset == RELOAD && value == UNLOCK_FIRST)
		state->unlock = 1;
	else if (offset == RELOAD && value == UNLOCK_SECOND && state->unlock == 1)
		state->unlock = UNLOCKED;
	else
		return false;
	return true;
}

static void bar_write(struct pci_function *function, uint32_t bar _unused_, uint64_t offset,
		      const void *data, uint32_t len)
{
	struct watchdog *watchdog = watchdog_of(function);
	struct watchdog_state *state = &watchdog->state;
	uint32_t value = (uint32_t)register_get(data, len);
	bool unlocked = state->unlock == UNLOCKED;

	if (is_unlocking(watchdog, offset, value))
		return;
	state->unlock = 0;
	if (!unlocked)
		return;
	if ((offset == PRELOAD_1 || offset == PRELOAD_2) && len == 4) {
		state->preload[offset / 4] = value & PRELOAD_MAX;
	} else if (offset == RELOAD) {
		if (value & RELOAD_NOW) {
			watchdog->n_reloads++;
			count_start(watchdog);
		}
		if (value & RELOAD_TIMED_OUT)
			state->timed_out = false;
	}
}

/* The lock is not held any more. */

static void watchdog_event(struct loop_source *source, const struct loop_event *event)
{
	struct watchdog *watchdog = container_of(source, struct watchdog, source);
	pthread_mutex_t *lock = &watchdog->function.device.lock;
	bool expired;

	pthread_mutex_lock(lock);
	if (event->kind == LOOP_POST)
		watchdog->posted = false;
	watchdog->armed = 0; /* what moves the deadline in here need not post */
	expired = stage_end(watchdog, event->now);
	watchdog->armed = watchdog->deadline;
	loop_timer(source, watchdog->armed);
	pthread_mutex_unlock(lock);
	if (expired)
		machine_event(watchdog->events, MACHINE_WATCHDOG);
}

static const struct pci_function_ops function_ops = {
	.read = bar_read,
	.write = bar_write,
	.config_access = config_access,
};

/* That it ran out survives, so that the guest learns why it was reset. */
static void watchdog_reset(struct device *device)
{
	struct watchdog *watchdog = watchdog_of_device(device);

	count_stop(watchdog);
	watchdog->state = (struct watchdog_state){.timed_out = watchdog->state.timed_out,
						  .preload = {PRELOAD_MAX, PRELOAD_MAX}};
	pci_function_reset(&watchdog->function);
}

static void watchdog_pause(struct device *device, struct device_waiter *waiter)
{
	struct watchdog *watchdog = watchdog_of_device(device);
	uint64_t now = clock_ns();

	pthread_mutex_lock(&device->lock);
	if (watchdog->deadline != UINT64_MAX)
		watchdog->state.left_ns = watchdog->deadline - MIN(now, watchdog->deadline);
	watchdog->deadline = UINT64_MAX;
	pthread_mutex_unlock(&device->lock);
	waiter->done(waiter, device);
}

static void watchdog_resume(struct device *device)
{
	struct watchdog *watchdog = watchdog_of_device(device);

	pthread_mutex_lock(&device->lock);
	if (watchdog->state.stage != 0 && watchdog->deadline == UINT64_MAX)
		deadline_set(watchdog, clock_ns() + watchdog->state.left_ns);
	pthread_mutex_unlock(&device->lock);
}

static const struct field watchdog_fields[] = {
	FIELD(struct watchdog_state, preload[0], FIELD_U32, "preload-1",
	      "Length of the first stage", .max = PRELOAD_MAX),
	FIELD(struct watchdog_state, preload[1], FIELD_U32, "preload-2",
	      "Length of the second stage", .max = PRELOAD_MAX),
	FIELD(struct watchdog_state, unlock, FIELD_U8, "unlock",
	      "How far the guest is in unlocking the registers", .max = UNLOCKED),
	FIELD(struct watchdog_state, stage, FIELD_U8, "stage",
	      "The stage that counts down, 0 if none does", .max = 2),
	FIELD(struct watchdog_state, timed_out, FIELD_BOOL, "timed-out",
	      "It has run out and the guest has not acknowledged that"),
	FIELD(struct watchdog_state, left_ns, FIELD_U64, "left-ns", "Nanoseconds left of the stage",
	      .max = STAGE_MAX_NS),
};
static const struct table watchdog_table =
	TABLE(struct watchdog_state, "watchdog", "Watchdog timer", watchdog_fields);

static uint32_t watchdog_states(struct device *device, struct device_state *states)
{
	struct watchdog *watchdog = watchdog_of_device(device);
	uint32_t n = pci_function_states(&watchdog->function, states);

	states[n++] = (struct device_state){&watchdog_table, &watchdog->state};
	return n;
}

static int watchdog_loaded(struct device *device, struct error *err)
{
	struct watchdog *watchdog = watchdog_of_device(device);
	int r = pci_function_loaded(&watchdog->function, err);

	if (r < 0)
		return r;
	if (watchdog->state.stage != 0 && !(watchdog->function.config.bytes[LOCK] & LOCK_ENABLE))
		return error_set(err, -EBADMSG,
				 "cannot load %s: it counts down though it is not enabled",
				 device->name);
	watchdog->deadline = UINT64_MAX; /* until it goes on */
	return 0;
}

static void watchdog_counters(const struct device *device, json_t *into)
{
	const struct watchdog *watchdog = container_of(device, struct watchdog, function.device);

	json_object_set_new(into, "reloads",
			    json_integer((json_int_t)load_relaxed(&watchdog->n_reloads)));
	json_object_set_new(into, "expired",
			    json_integer((json_int_t)load_relaxed(&watchdog->n_expired)));
}

static void watchdog_deinit(struct device *device)
{
	struct watchdog *watchdog = watchdog_of_device(device);

	if (watchdog->source.loop)
		loop_remove(&watchdog->source);
	pthread_mutex_destroy(&device->lock);
}

static const struct device_ops device_ops = {
	.type = "watchdog",
	.reset = watchdog_reset,
	.pause = watchdog_pause,
	.resume = watchdog_resume,
	.states = watchdog_states,
	.loaded = watchdog_loaded,
	.counters = watchdog_counters,
	.deinit = watchdog_deinit,
};

int watchdog_init(struct watchdog *watchdog, struct pci_root *root, uint32_t slot, const char *name,
		  struct loop *loop, struct machine_events *events, struct error *err)
{
	static const struct pci_ids ids = {
		.vendor = 0x8086,
		.device = 0x25ab,
		.subsystem_vendor = 0x8086,
		.subsystem = 0x25ab,
		.class_code = 0x088000, /* system peripheral, other */
	};
	struct pci_function *function = &watchdog->function;
	int r;

	*watchdog = (struct watchdog){
		.events = events,
		.source.on_event = watchdog_event,
		.state.preload = {PRELOAD_MAX, PRELOAD_MAX},
		.deadline = UINT64_MAX,
		.armed = UINT64_MAX,
	};
	device_init(&function->device, &device_ops, name);
	pci_function_init(function, root, &function_ops, &ids);
	pci_add_bar(function, 0, BAR_SIZE);
	function->writable[CONFIG] = CONFIG_BITS;
	function->writable[LOCK] = LOCK_BITS;
	r = loop_add(loop, &watchdog->source);
	if (r < 0)
		return error_set(err, r, "cannot make the watchdog: %s", strerror(-r));
	return pci_plug(root, function, slot, err);
}
