/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ground of a bare-metal guest: CPU instructions, memory, text on the serial port, and the
 * report that the host half reads. A test defines guest_main(); when it returns the machine powers
 * off. Everything here keeps to what KVM's instruction emulator knows: no SSE, no mfence, no
 * rdtscp.
 */
#pragma once

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define PAGE_SIZE     4096ul

typedef uint64_t gpa_t;

struct guest_boot {
	char cmdline[256];
	gpa_t rsdp;    /* 0 when the VMM gave none */
	gpa_t ram_end; /* end of the RAM that begins at 1 MiB */
};

/* The test's own entry, called once on the boot CPU with interrupts enabled. */
void guest_main(struct guest_boot *boot);

static inline void outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void outw(uint16_t port, uint16_t value)
{
	__asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void outl(uint16_t port, uint32_t value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t inb(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

static inline uint16_t inw(uint16_t port)
{
	uint16_t value;

	__asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

static inline uint32_t inl(uint16_t port)
{
	uint32_t value;

	__asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

/* One plain mov each: an access that the compiler splits or merges is another access to a device.
 */
static inline uint8_t mmio_read8(gpa_t gpa)
{
	return *(volatile uint8_t *)gpa;
}

static inline uint16_t mmio_read16(gpa_t gpa)
{
	return *(volatile uint16_t *)gpa;
}

static inline uint32_t mmio_read32(gpa_t gpa)
{
	return *(volatile uint32_t *)gpa;
}

static inline void mmio_write8(gpa_t gpa, uint8_t value)
{
	*(volatile uint8_t *)gpa = value;
}

static inline void mmio_write16(gpa_t gpa, uint16_t value)
{
	*(volatile uint16_t *)gpa = value;
}

static inline void mmio_write32(gpa_t gpa, uint32_t value)
{
	*(volatile uint32_t *)gpa = value;
}

static inline void mmio_write64(gpa_t gpa, uint64_t value)
{
	*(volatile uint64_t *)gpa = value;
}

static inline uint64_t rdmsr(uint32_t msr)
{
	uint32_t lo, hi;

	__asm__ volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr) : "memory");
	return (uint64_t)hi << 32 | lo;
}

static inline void wrmsr(uint32_t msr, uint64_t value)
{
	__asm__ volatile("wrmsr"
			 :
			 : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32))
			 : "memory");
}

static inline uint64_t rdtsc(void)
{
	uint32_t lo, hi;

	__asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi) : : "memory");
	return (uint64_t)hi << 32 | lo;
}

struct cpuid {
	uint32_t eax, ebx, ecx, edx;
};

static inline struct cpuid cpuid(uint32_t leaf, uint32_t subleaf)
{
	struct cpuid r;

	__asm__ volatile("cpuid"
			 : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
			 : "a"(leaf), "c"(subleaf));
	return r;
}

static inline void irq_disable(void)
{
	__asm__ volatile("cli" : : : "memory");
}

static inline void irq_enable(void)
{
	__asm__ volatile("sti" : : : "memory");
}

/* No interrupt is taken between the two, so a condition checked with interrupts off is not missed.
 */
static inline void irq_enable_and_halt(void)
{
	__asm__ volatile("sti; hlt" : : : "memory");
}

static inline void cpu_relax(void)
{
	__asm__ volatile("pause" : : : "memory");
}

static inline void barrier(void)
{
	__asm__ volatile("" : : : "memory");
}

/* Orders a store before a later load. mfence is not in KVM's emulator; a locked add does the same.
 */
static inline void full_barrier(void)
{
	__asm__ volatile("lock; addl $0, (%%rsp)" : : : "memory", "cc");
}

void *memset(void *dst, int byte, size_t len);
void *memcpy(void *dst, const void *src, size_t len);
void *memmove(void *dst, const void *src, size_t len);
int memcmp(const void *a, const void *b, size_t len);
size_t strlen(const char *text);
int strncmp(const char *a, const char *b, size_t len);

/* Memory that is never given back: aligned, its contents undefined, or zeroed at 10 MiB a second.
 */
void *mem_alloc(size_t len, size_t align);
void *mem_zalloc(size_t len, size_t align);

/* Makes gpa..gpa+len reachable; below 4 GiB it always is. */
void mem_map(gpa_t gpa, uint64_t len);

/* xorshift64*: repeatable from its seed, which must not be 0. */
uint64_t random_next(uint64_t *state);

/* "key=123" or "key=0x7b" in the command line, or the default. */
uint64_t cmdline_number(const struct guest_boot *boot, const char *key, uint64_t otherwise);
bool cmdline_has(const struct guest_boot *boot, const char *word);

/* Text. Conversions: %s %c %d %u %x %p %%, with l, a width and zero padding. */
void serial_init(void);
void serial_write(const char *text, size_t len);
/* Sends all later text, the report too, through another device. */
void print_through(void (*write)(const char *text, size_t len));
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Lines from the host over the serial port's interrupt. False when none came in time. */
void serial_listen(void);
bool serial_has_input(void);
bool serial_read_line(char *ret_line, size_t size, unsigned int timeout_ms);

/*
 * The report. A case prints TEST, then PASS, FAIL or SKIP. A failed assertion ends the whole guest:
 * a machine in an unknown state proves nothing further.
 */
void guest_case(const char *name, void (*run)(struct guest_boot *boot), struct guest_boot *boot);
void guest_skip(const char *why);
void __attribute__((noreturn, format(printf, 4, 5)))
guest_fail(const char *file, int line, const char *what, const char *format, ...);

#define GUEST_ASSERT(cond, ...)                                             \
	do {                                                                \
		if (!(cond))                                                \
			guest_fail(__FILE__, __LINE__, #cond, __VA_ARGS__); \
	} while (0)

/* Leaves the function of a case that cannot run here. */
#define GUEST_SKIP(why)          \
	do {                     \
		guest_skip(why); \
		return;          \
	} while (0)

void __attribute__((noreturn)) power_off(void);
