/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clocks and timers: the local APIC's, TSC deadline and kvmclock where CPUID offers them, and the
 * ACPI PM timer that they are held against. A timer may be late on a busy host, but never early,
 * and fires once.
 */
#ifdef GUEST

#include "guest-tests/runtime/acpi.h"

#define PM_TIMER_PER_MS          3579u
#define PM_TIMER_MASK            0xffffffu
#define TIMEOUT_MS               20000

#define CPUID_1_ECX_TSC_DEADLINE (1u << 24)
#define MSR_TSC_DEADLINE         0x6e0

#define CPUID_KVM                0x40000000
#define KVM_FEATURE_CLOCKSOURCE2 (1u << 3)
#define MSR_KVM_SYSTEM_TIME      0x4b564d01

struct pvclock {
	uint32_t version, pad0;
	uint64_t tsc, system_ns;
	uint32_t mul;
	int8_t shift;
	uint8_t flags, pad[2];
};

static volatile unsigned int n_ticks;
static uint8_t tick_vector;
static struct pvclock clock __attribute__((aligned(64)));

static void tick(void *arg)
{
	(void)arg;
	n_ticks++;
}

static uint32_t pm_now(void)
{
	return inl(acpi_info()->pm_timer) & PM_TIMER_MASK;
}

static uint32_t pm_since(uint32_t start)
{
	return (pm_now() - start) & PM_TIMER_MASK;
}

/* The two clocks may differ by a hundredth: one may be steered by NTP. */
static bool passed(uint32_t pm_ticks, unsigned int ms)
{
	return pm_ticks >= ms * PM_TIMER_PER_MS * 99 / 100;
}

static void wait_ticks(unsigned int n)
{
	for (;;) {
		irq_disable();
		if (n_ticks >= n)
			break;
		irq_enable_and_halt();
	}
	irq_enable();
}

static void pm_timer(struct guest_boot *boot)
{
	uint32_t start;

	(void)boot;
	if (!acpi_info()->pm_timer)
		GUEST_SKIP("no PM timer");
	start = pm_now();
	sleep_ms(20);
	GUEST_ASSERT(passed(pm_since(start), 20), "%u ticks in 20 ms", pm_since(start));
}

static void lapic_one_shot(struct guest_boot *boot)
{
	uint32_t start;

	(void)boot;
	n_ticks = 0;
	apic_write(APIC_REG_LVT_TIMER, tick_vector);
	start = pm_now();
	apic_write(APIC_REG_TIMER_INITIAL, 10 * TIMER_TICKS_PER_MS);
	GUEST_ASSERT(apic_read(APIC_REG_TIMER_CURRENT) <= 10 * TIMER_TICKS_PER_MS,
		     "runs backwards");
	wait_ticks(1);
	if (acpi_info()->pm_timer)
		GUEST_ASSERT(passed(pm_since(start), 10), "%u", pm_since(start));
	GUEST_ASSERT(apic_read(APIC_REG_TIMER_CURRENT) == 0, "goes on");
	sleep_ms(15);
	GUEST_ASSERT(n_ticks == 1, "%u times", n_ticks);
}

static void lapic_periodic(struct guest_boot *boot)
{
	uint32_t start;

	(void)boot;
	n_ticks = 0;
	apic_write(APIC_REG_LVT_TIMER, LVT_PERIODIC | tick_vector);
	start = pm_now();
	apic_write(APIC_REG_TIMER_INITIAL, 5 * TIMER_TICKS_PER_MS);
	wait_ticks(5);
	apic_write(APIC_REG_TIMER_INITIAL, 0);
	if (acpi_info()->pm_timer)
		GUEST_ASSERT(passed(pm_since(start), 25), "%u", pm_since(start));
	n_ticks = 0;
	sleep_ms(12);
	/* One may have been on its way when it was stopped. */
	GUEST_ASSERT(n_ticks <= 1, "%u more after it was stopped", n_ticks);
}

static void lapic_masked(struct guest_boot *boot)
{
	(void)boot;
	n_ticks = 0;
	apic_write(APIC_REG_LVT_TIMER, LVT_MASKED | tick_vector);
	apic_write(APIC_REG_TIMER_INITIAL, TIMER_TICKS_PER_MS);
	/* Spins: the timer that would end a sleep is the one under test. */
	while (apic_read(APIC_REG_TIMER_CURRENT))
		cpu_relax();
	GUEST_ASSERT(n_ticks == 0, "%u", n_ticks);
}

/* How far the TSC gets in some milliseconds; no frequency is assumed anywhere. */
static uint64_t tsc_of_ms(unsigned int ms)
{
	uint64_t start = rdtsc();

	sleep_ms(ms);
	return rdtsc() - start;
}

static void tsc_deadline(struct guest_boot *boot)
{
	uint64_t ahead, deadline;

	(void)boot;
	if (!(cpuid(1, 0).ecx & CPUID_1_ECX_TSC_DEADLINE))
		GUEST_SKIP("CPUID has no TSC deadline");
	ahead = tsc_of_ms(5);
	n_ticks = 0;
	apic_write(APIC_REG_LVT_TIMER, LVT_TSC_DEADLINE | tick_vector);
	full_barrier();
	deadline = rdtsc() + ahead;
	wrmsr(MSR_TSC_DEADLINE, deadline);
	wait_ticks(1);
	GUEST_ASSERT(rdtsc() >= deadline, "%lu too early", deadline - rdtsc());
	GUEST_ASSERT(rdmsr(MSR_TSC_DEADLINE) == 0, "0x%lx left", rdmsr(MSR_TSC_DEADLINE));
	wrmsr(MSR_TSC_DEADLINE, 1);
	wait_ticks(2);
	wrmsr(MSR_TSC_DEADLINE, rdtsc() + ahead);
	wrmsr(MSR_TSC_DEADLINE, 0);
	sleep_ms(15);
	GUEST_ASSERT(n_ticks == 2, "%u ticks: one came though it was disarmed", n_ticks);
}

static bool has_kvm_feature(uint32_t bit)
{
	struct cpuid c = cpuid(CPUID_KVM, 0);

	return c.ebx == 0x4b4d564b && c.ecx == 0x564b4d56 && c.edx == 0x4d &&
	       (cpuid(CPUID_KVM + 1, 0).eax & bit);
}

static uint64_t kvmclock_ns(void)
{
	volatile struct pvclock *c = &clock;
	uint32_t version;
	uint64_t delta, ns;

	do {
		version = c->version;
		barrier();
		delta = rdtsc() - c->tsc;
		delta = c->shift >= 0 ? delta << c->shift : delta >> -c->shift;
		ns = c->system_ns + (uint64_t)((unsigned __int128)delta * c->mul >> 32);
		barrier();
	} while (version & 1 || version != c->version);
	return ns;
}

static void kvmclock(struct guest_boot *boot)
{
	uint64_t before, after;

	(void)boot;
	if (!has_kvm_feature(KVM_FEATURE_CLOCKSOURCE2))
		GUEST_SKIP("CPUID has no kvmclock");
	wrmsr(MSR_KVM_SYSTEM_TIME, (gpa_t)&clock | 1);
	GUEST_ASSERT(clock.version && clock.mul, "version %u mul %u", clock.version, clock.mul);
	before = kvmclock_ns();
	sleep_ms(20);
	after = kvmclock_ns();
	GUEST_ASSERT(after - before >= 19800000 && after - before < TIMEOUT_MS * 1000000ull,
		     "%lu ns", after - before);
	wrmsr(MSR_KVM_SYSTEM_TIME, 0);
}

void guest_main(struct guest_boot *boot)
{
	tick_vector = irq_alloc(tick, NULL);
	guest_case("pm-timer", pm_timer, boot);
	guest_case("lapic-one-shot", lapic_one_shot, boot);
	guest_case("lapic-periodic", lapic_periodic, boot);
	guest_case("lapic-masked", lapic_masked, boot);
	guest_case("tsc-deadline", tsc_deadline, boot);
	guest_case("kvmclock", kvmclock, boot);
}

#else

#include "guest-tests/host/harness.h"

int main(int argc, char **argv)
{
	struct vm_config config = {0};

	test_init(argc, argv);
	return vm_judge(vm_start(&config));
}

#endif
