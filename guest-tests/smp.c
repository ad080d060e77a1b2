/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many CPUs: each starts by INIT and start-up IPI, is the CPU that its APIC id says, and takes part
 * in an IPI from the boot CPU to each and in one that is passed around through all of them. Then
 * all of them count at once, and the host pauses and resumes them.
 */
#define PAUSES 2

#ifdef GUEST

#include "guest-tests/runtime/acpi.h"

#define TIMEOUT_MS 20000

static unsigned int n_cpus;
static volatile uint32_t ids[MAX_CPUS];
static volatile unsigned int n_ready;
static unsigned int n_pings;
static volatile unsigned int relay_at;
static uint8_t ping_vector, relay_vector;
static volatile bool counting;
static volatile uint64_t counts[MAX_CPUS];

static void ping(void *arg)
{
	(void)arg;
	__atomic_fetch_add(&n_pings, 1, __ATOMIC_RELAXED);
}

static unsigned int own_index(void)
{
	uint32_t id = apic_id();

	for (unsigned int i = 0; i < n_cpus; i++) {
		if (ids[i] == id)
			return i;
	}
	guest_fail(__FILE__, __LINE__, "own index", "APIC id %u is unknown", id);
}

/* Each CPU passes it to the next; the last gives it back to the boot CPU. */
static void relay(void *arg)
{
	unsigned int self = own_index(), next = (self + 1) % n_cpus;

	(void)arg;
	GUEST_ASSERT(self == relay_at % n_cpus, "CPU %u, but it is at %u", self, relay_at);
	relay_at++;
	if (self)
		apic_send_ipi(ids[next], relay_vector);
}

static void run_ap(unsigned int index)
{
	ids[index] = apic_id();
	__atomic_fetch_add(&n_ready, 1, __ATOMIC_RELEASE);
	for (;;) {
		irq_enable_and_halt();
		while (counting)
			counts[index]++;
	}
}

static void start(struct guest_boot *boot)
{
	(void)boot;
	n_cpus = acpi_info()->n_cpus;
	note("cpus %u", n_cpus);
	ids[0] = apic_id();
	GUEST_ASSERT(smp_start(run_ap) == n_cpus - 1, "only %u started", n_ready + 1);
	GUEST_ASSERT(POLL_UNTIL(n_ready == n_cpus - 1, TIMEOUT_MS), "%u", n_ready);
	for (unsigned int i = 0; i < n_cpus; i++) {
		for (unsigned int j = 0; j < i; j++)
			GUEST_ASSERT(ids[i] != ids[j], "CPUs %u and %u are both %u", i, j, ids[i]);
	}
}

static void ipi_each(struct guest_boot *boot)
{
	(void)boot;
	for (unsigned int i = 1; i < n_cpus; i++)
		apic_send_ipi(ids[i], ping_vector);
	GUEST_ASSERT(POLL_UNTIL(n_pings >= n_cpus - 1, TIMEOUT_MS), "%u of %u", n_pings,
		     n_cpus - 1);
	sleep_ms(2);
	GUEST_ASSERT(n_pings == n_cpus - 1, "%u of %u", n_pings, n_cpus - 1);
}

static void ipi_relay(struct guest_boot *boot)
{
	(void)boot;
	relay_at = 1;
	apic_send_ipi(ids[1], relay_vector);
	GUEST_ASSERT(WAIT_UNTIL(relay_at == n_cpus + 1, TIMEOUT_MS), "at CPU %u", relay_at);
}

/* All but this one have counted on from what they had. */
static bool all_counted(const uint64_t *before)
{
	for (unsigned int i = 1; i < n_cpus; i++) {
		if (counts[i] == before[i])
			return false;
	}
	return true;
}

/* The host pauses and resumes between two lines; each CPU has to go on counting. */
static void busy(struct guest_boot *boot)
{
	static uint64_t before[MAX_CPUS];
	char line[8];

	(void)boot;
	serial_listen();
	counting = true;
	for (unsigned int i = 1; i < n_cpus; i++)
		apic_send_ipi(ids[i], ping_vector);
	for (unsigned int round = 0; round <= PAUSES; round++) {
		for (unsigned int i = 0; i < n_cpus; i++)
			before[i] = counts[i];
		GUEST_ASSERT(POLL_UNTIL(all_counted(before), TIMEOUT_MS), "round %u", round);
		note("busy %u", round);
		if (round < PAUSES && !cmdline_has(boot, "peer"))
			GUEST_ASSERT(serial_read_line(line, sizeof(line), TIMEOUT_MS), "no line");
	}
	counting = false;
}

void guest_main(struct guest_boot *boot)
{
	ping_vector = irq_alloc(ping, NULL);
	relay_vector = irq_alloc(relay, NULL);
	guest_case("start", start, boot);
	guest_case("ipi-each", ipi_each, boot);
	guest_case("ipi-relay", ipi_relay, boot);
	guest_case("busy", busy, boot);
}

#else

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "guest-tests/host/harness.h"

#define N_CPUS 64

static unsigned int now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (unsigned int)(t.tv_sec * 1000000 + t.tv_nsec / 1000);
}

static void expect_state(json_t *status, const char *state)
{
	const char *is = json_string_value(json_object_get(status, "state"));

	CHECK(is && strcmp(is, state) == 0, "%s, not %s", is ? is : "no state", state);
	json_decref(status);
}

/* Paused means that no CPU makes an exit or runs an instruction: the counters stand still. */
static void pause_and_resume(struct vm *vm)
{
	unsigned int start = now_us(), paused, resumed;
	uint64_t exits;

	expect_state(vm_call(vm, "pause", NULL), "paused");
	paused = now_us();
	exits = vm_exits(vm);
	CHECK(vm_exits(vm) == exits, "a paused VM makes exits");
	resumed = now_us();
	expect_state(vm_call(vm, "resume", NULL), "running");
	printf("%d busy vCPUs: paused in %u us, resumed in %u us\n", N_CPUS, paused - start,
	       now_us() - resumed);
}

int main(int argc, char **argv)
{
	struct vm_config config = {.cpus = N_CPUS};
	struct vm *vm;
	int n;

	test_init(argc, argv);
	vm = vm_start(&config);
	n = atoi(vm_note(vm, "cpus"));
	CHECK(n == N_CPUS, "the guest sees %d CPUs", n);
	for (int i = 0; i < PAUSES && !vm_is_peer(); i++) {
		vm_note(vm, "busy");
		pause_and_resume(vm);
		vm_send(vm, "go\n");
	}
	return vm_judge(vm);
}

#endif
