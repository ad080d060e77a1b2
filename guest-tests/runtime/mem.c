/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of the guest: the string functions that the compiler calls by itself, an allocator that
 * only hands out, and page tables for what is above the 4 GiB that start.S maps.
 */
#include "guest-tests/runtime/guest.h"

#define PTE_TABLE 0x3ull
#define PTE_2M    0x83ull
#define HUGE_SIZE 0x200000ull

extern char _end[];
extern uint64_t boot_pml4[512], boot_pdpt[512];

static uintptr_t alloc_next;

void *memset(void *dst, int byte, size_t len)
{
	void *at = dst;

	__asm__ volatile("rep stosb" : "+D"(at), "+c"(len) : "a"(byte) : "memory");
	return dst;
}

void *memcpy(void *dst, const void *src, size_t len)
{
	void *at = dst;

	__asm__ volatile("rep movsb" : "+D"(at), "+S"(src), "+c"(len) : : "memory");
	return dst;
}

void *memmove(void *dst, const void *src, size_t len)
{
	char *d = dst;
	const char *s = src;

	if (d <= s || d >= s + len)
		return memcpy(dst, src, len);
	while (len--)
		d[len] = s[len];
	return dst;
}

int memcmp(const void *a, const void *b, size_t len)
{
	const unsigned char *x = a, *y = b;

	for (size_t i = 0; i < len; i++) {
		if (x[i] != y[i])
			return x[i] - y[i];
	}
	return 0;
}

size_t strlen(const char *text)
{
	size_t len = 0;

	while (text[len])
		len++;
	return len;
}

int strncmp(const char *a, const char *b, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (a[i] != b[i])
			return (unsigned char)a[i] - (unsigned char)b[i];
		if (!a[i])
			break;
	}
	return 0;
}

void *mem_alloc(size_t len, size_t align)
{
	uintptr_t at;

	if (!alloc_next)
		alloc_next = (uintptr_t)_end;
	at = (alloc_next + align - 1) & ~(align - 1);
	alloc_next = at + len;
	return (void *)at;
}

void *mem_zalloc(size_t len, size_t align)
{
	void *p = mem_alloc(len, align);
	size_t words = (len + 7) / 8;
	void *at = p;

	/* Rounded up into the next allocation's slack is fine: nothing has been handed out there.
	 */
	__asm__ volatile("rep stosq" : "+D"(at), "+c"(words) : "a"(0ull) : "memory");
	return p;
}

static uint64_t *table_under(uint64_t *entry)
{
	if (!*entry)
		*entry = (uint64_t)mem_zalloc(PAGE_SIZE, PAGE_SIZE) | PTE_TABLE;
	return (uint64_t *)(*entry & 0x000ffffffffff000ull);
}

void mem_map(gpa_t gpa, uint64_t len)
{
	gpa_t end = gpa + len;

	for (gpa &= ~(HUGE_SIZE - 1); gpa < end; gpa += HUGE_SIZE) {
		uint64_t *pdpt, *pd;

		if (gpa < 4ull << 30)
			continue;
		pdpt = table_under(&boot_pml4[gpa >> 39 & 511]);
		pd = table_under(&pdpt[gpa >> 30 & 511]);
		pd[gpa >> 21 & 511] = gpa | PTE_2M;
	}
	__asm__ volatile("mov %%cr3, %%rax; mov %%rax, %%cr3" : : : "rax", "memory");
}

uint64_t random_next(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	*state = x;
	return x * 0x2545f4914f6cdd1dull;
}
