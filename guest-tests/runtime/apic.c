/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Interrupt delivery inside the guest. Registers of the local APIC are reached through MSRs where
 * CPUID offers x2APIC and through its page otherwise. An exception is a failure of the test, and is
 * reported as one with the place where it happened.
 */
#include "guest-tests/runtime/apic.h"

#include "guest-tests/runtime/acpi.h"
#include "guest-tests/runtime/layout.h"

#define MSR_APIC_BASE       0x1b
#define APIC_BASE_X2        0x400
#define APIC_BASE_ENABLE    0x800
#define MSR_X2APIC          0x800
#define CPUID_1_ECX_X2APIC  (1u << 21)
#define XAPIC_BASE          0xfee00000ull

#define SPURIOUS_VECTOR     0xff
#define FIRST_FREE_VECTOR   0x30
#define ICR_INIT            0x4500u
#define ICR_STARTUP         0x4600u
#define ICR_ASSERT          0x4000u
#define AP_START_TIMEOUT_MS 10000

struct idt_entry {
	uint16_t offset_low, selector;
	uint16_t flags, offset_mid;
	uint32_t offset_high, reserved;
};

struct irq_frame {
	uint64_t rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11;
	uint64_t vector, error;
	uint64_t rip, cs, rflags, rsp, ss;
};

struct handler {
	void (*call)(void *arg);
	void *arg;
};

extern char irq_stubs[];
extern char ap_trampoline[], ap_trampoline_end[];

static struct idt_entry idt[256] __attribute__((aligned(16)));
static struct handler handlers[256];
static unsigned int next_vector = FIRST_FREE_VECTOR;
static unsigned int stray_count;
static bool x2apic;
static uint8_t timer_vector;
static volatile bool timer_fired;

/* Used by start.S. */
char *ap_stacks;
unsigned int ap_next_index;

static void (*ap_run)(unsigned int index);
static volatile unsigned int ap_count;

void irq_dispatch(const struct irq_frame *frame);
void guest_ap_cpu(unsigned int index);

void irq_load_idt(void)
{
	struct {
		uint16_t limit;
		uint64_t base;
	} __attribute__((packed)) ptr = {sizeof(idt) - 1, (uint64_t)idt};

	__asm__ volatile("lidt %0" : : "m"(ptr) : "memory");
}

void irq_init(void)
{
	for (unsigned int i = 0; i < 256; i++) {
		uint64_t stub = (uint64_t)irq_stubs + i * IRQ_STUB_SIZE;

		idt[i].offset_low = (uint16_t)stub;
		idt[i].selector = 0x08;
		idt[i].flags = 0x8e00;
		idt[i].offset_mid = (uint16_t)(stub >> 16);
	}
	irq_load_idt();
	/* Corral's board has no PIC; on others the firmware leaves a timer tick on an exception's
	 * vector. */
	outb(0x21, 0xff);
	outb(0xa1, 0xff);
}

void irq_dispatch(const struct irq_frame *frame)
{
	const struct handler *handler = &handlers[frame->vector];
	uint64_t cr2;

	if (frame->vector < 32) {
		__asm__ volatile("mov %%cr2, %0" : "=r"(cr2));
		guest_fail(__FILE__, __LINE__, "exception", "%lu error 0x%lx at 0x%lx cr2 0x%lx",
			   frame->vector, frame->error, frame->rip, cr2);
	}
	if (frame->vector == SPURIOUS_VECTOR)
		return;
	if (handler->call)
		handler->call(handler->arg);
	else
		__atomic_fetch_add(&stray_count, 1, __ATOMIC_RELAXED);
	apic_write(APIC_REG_EOI, 0);
}

uint8_t irq_alloc(void (*call)(void *arg), void *arg)
{
	unsigned int vector = next_vector++;

	GUEST_ASSERT(vector < SPURIOUS_VECTOR, "out of vectors");
	handlers[vector] = (struct handler){call, arg};
	return (uint8_t)vector;
}

unsigned int irq_stray_count(void)
{
	return __atomic_load_n(&stray_count, __ATOMIC_RELAXED);
}

bool apic_is_x2(void)
{
	return x2apic;
}

uint32_t apic_read(uint32_t reg)
{
	if (x2apic)
		return (uint32_t)rdmsr(MSR_X2APIC + (reg >> 4));
	return mmio_read32(XAPIC_BASE + reg);
}

void apic_write(uint32_t reg, uint32_t value)
{
	if (x2apic)
		wrmsr(MSR_X2APIC + (reg >> 4), value);
	else
		mmio_write32(XAPIC_BASE + reg, value);
}

uint32_t apic_id(void)
{
	uint32_t id = apic_read(APIC_REG_ID);

	return x2apic ? id : id >> 24;
}

void apic_send(uint32_t target, uint32_t command)
{
	if (x2apic) {
		wrmsr(MSR_X2APIC + (APIC_REG_ICR >> 4), (uint64_t)target << 32 | command);
		return;
	}
	/* An interrupt handler that sends too must not come between the halves. */
	irq_disable();
	mmio_write32(XAPIC_BASE + APIC_REG_ICR_HIGH, target << 24);
	mmio_write32(XAPIC_BASE + APIC_REG_ICR, command);
	irq_enable();
}

void apic_send_ipi(uint32_t target, uint8_t vector)
{
	/* What was written before must be seen by who is interrupted; an x2APIC write does not
	 * order. */
	full_barrier();
	apic_send(target, ICR_ASSERT | vector);
}

void apic_init_cpu(void)
{
	uint64_t base = rdmsr(MSR_APIC_BASE) | APIC_BASE_ENABLE;

	if (cpuid(1, 0).ecx & CPUID_1_ECX_X2APIC) {
		/* The bits may only be set in this order. */
		wrmsr(MSR_APIC_BASE, base);
		wrmsr(MSR_APIC_BASE, base | APIC_BASE_X2);
		x2apic = true;
	} else {
		wrmsr(MSR_APIC_BASE, base);
	}
	apic_write(APIC_REG_SPURIOUS, 0x100 | SPURIOUS_VECTOR);
	apic_write(APIC_REG_TIMER_DIVIDE, TIMER_DIVIDE_16);
}

/* Edge, active high, fixed delivery. */
void ioapic_route(unsigned int gsi, uint8_t vector, uint32_t target)
{
	gpa_t base = acpi_info()->ioapic;

	mmio_write32(base, 0x10 + gsi * 2 + 1);
	mmio_write32(base + 0x10, target << 24);
	mmio_write32(base, 0x10 + gsi * 2);
	mmio_write32(base + 0x10, vector);
}

static void timer_interrupt(void *arg)
{
	(void)arg;
	timer_fired = true;
}

void timer_arm(unsigned int ms)
{
	if (!timer_vector)
		timer_vector = irq_alloc(timer_interrupt, NULL);
	timer_fired = false;
	apic_write(APIC_REG_LVT_TIMER, timer_vector);
	apic_write(APIC_REG_TIMER_INITIAL, ms * TIMER_TICKS_PER_MS);
}

void timer_stop(void)
{
	apic_write(APIC_REG_TIMER_INITIAL, 0);
}

bool timer_expired(void)
{
	return timer_fired;
}

void sleep_ms(unsigned int ms)
{
	(void)WAIT_UNTIL(false, ms);
}

void guest_ap_cpu(unsigned int index)
{
	irq_load_idt();
	apic_init_cpu();
	__atomic_fetch_add(&ap_count, 1, __ATOMIC_RELEASE);
	irq_enable();
	/* Indexes of start.S begin at 0, but CPU 0 is the boot CPU. */
	ap_run(index + 1);
}

unsigned int smp_start(void (*run)(unsigned int index))
{
	const struct acpi_info *acpi = acpi_info();
	uint32_t self = apic_id();

	ap_run = run;
	ap_stacks = mem_alloc((size_t)acpi->n_cpus << AP_STACK_SHIFT, PAGE_SIZE);
	memcpy((void *)AP_TRAMPOLINE, ap_trampoline, ap_trampoline_end - ap_trampoline);
	full_barrier();
	for (unsigned int i = 0; i < acpi->n_cpus; i++) {
		if (acpi->cpu_apic_ids[i] == self)
			continue;
		apic_send(acpi->cpu_apic_ids[i], ICR_INIT);
		apic_send(acpi->cpu_apic_ids[i], ICR_STARTUP | AP_TRAMPOLINE >> 12);
	}
	(void)POLL_UNTIL(ap_count == acpi->n_cpus - 1, AP_START_TIMEOUT_MS);
	return ap_count;
}
