/* SPDX-License-Identifier: Apache-2.0 */
/* Interrupts of the guest: IDT vectors, local APIC (x2APIC where CPUID has it), IOAPIC, timer,
 * CPUs. */
#pragma once

#include "guest-tests/runtime/guest.h"

#define MAX_CPUS   256
#define NO_TIMEOUT 0

/* The timer counts nanoseconds, both in KVM and in QEMU; divided by 16 a wait may last a minute. */
#define TIMER_DIVIDE_16        0x3
#define TIMER_TICKS_PER_MS     62500u

#define LVT_MASKED             0x10000u
#define LVT_PERIODIC           0x20000u
#define LVT_TSC_DEADLINE       0x40000u

#define APIC_REG_ID            0x20
#define APIC_REG_EOI           0xb0
#define APIC_REG_SPURIOUS      0xf0
#define APIC_REG_ICR           0x300
#define APIC_REG_ICR_HIGH      0x310
#define APIC_REG_LVT_TIMER     0x320
#define APIC_REG_TIMER_INITIAL 0x380
#define APIC_REG_TIMER_CURRENT 0x390
#define APIC_REG_TIMER_DIVIDE  0x3e0

/* Every CPU calls apic_init_cpu; the boot CPU irq_init before that. */
void irq_init(void);
void irq_load_idt(void);
void apic_init_cpu(void);

/* A free vector whose interrupts call handler(arg) and are then acknowledged. */
uint8_t irq_alloc(void (*handler)(void *arg), void *arg);
/* Interrupts at vectors that nobody allocated; they are acknowledged and counted, no more. */
unsigned int irq_stray_count(void);

uint32_t apic_id(void);
bool apic_is_x2(void);
uint32_t apic_read(uint32_t reg);
void apic_write(uint32_t reg, uint32_t value);
void apic_send(uint32_t target, uint32_t command);
void apic_send_ipi(uint32_t target, uint8_t vector);

void ioapic_route(unsigned int gsi, uint8_t vector, uint32_t target);

/* The boot CPU's one-shot deadline, used by WAIT_UNTIL. */
void timer_arm(unsigned int ms);
void timer_stop(void);
bool timer_expired(void);
void sleep_ms(unsigned int ms);

/* Sleeps until cond holds or ms are over (0: for ever), re-checking after every interrupt. */
#define WAIT_UNTIL(cond, ms)                         \
	({                                           \
		bool met_;                           \
		timer_arm(ms);                       \
		for (;;) {                           \
			irq_disable();               \
			met_ = (cond);               \
			if (met_ || timer_expired()) \
				break;               \
			irq_enable_and_halt();       \
		}                                    \
		irq_enable();                        \
		timer_stop();                        \
		met_;                                \
	})

/* The same for a condition that changes without an interrupt: it is looked at every millisecond. */
#define POLL_UNTIL(cond, ms)                                          \
	({                                                            \
		bool met_ = (cond);                                   \
		for (unsigned int i_ = 0; !met_ && i_ < (ms); i_++) { \
			sleep_ms(1);                                  \
			met_ = (cond);                                \
		}                                                     \
		met_;                                                 \
	})

/* Starts every CPU of the MADT but this one, each in run(index), index from 1. Returns how many. */
unsigned int smp_start(void (*run)(unsigned int index));
