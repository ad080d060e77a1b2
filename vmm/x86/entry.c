/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Registers and tables at the entry of a kernel. Selectors are those of the Linux boot protocol;
 * PVH leaves them open and gets the same.
 */
#include "vmm/x86/entry.h"

#include "devices/power.h"
#include "vmm/x86/layout.h"

#define SELECTOR_CODE 0x10
#define SELECTOR_DATA 0x18
#define SELECTOR_TASK 0x20
#define GDT_ENTRIES   5

#define CR0_PE        (1u << 0)
#define CR0_ET        (1u << 4)
#define CR0_PG        (1u << 31)
#define CR4_PAE       (1u << 5)
#define EFER_LME      (1u << 8)
#define EFER_LMA      (1u << 10)
#define RFLAGS_ALWAYS (1u << 1)

#define TYPE_CODE     11 /* execute, read, accessed */
#define TYPE_DATA     3  /* read, write, accessed */
#define TYPE_TASK     11 /* busy 32- or 64-bit TSS */

#define PAGE_PRESENT  (1u << 0)
#define PAGE_WRITE    (1u << 1)
#define PAGE_LARGE    (1u << 7)
#define PAGE_ENTRIES  512u
#define MAPPED_GIB    4u
#define TABLE_PAGES   (2u + MAPPED_GIB)
#define LARGE_SHIFT   21

_Static_assert(LAYOUT_PAGE_TABLES + TABLE_PAGES * GUEST_PAGE_SIZE <= LAYOUT_COMMAND_LINE,
	       "page tables end before the command line");

static struct kvm_segment segment_flat(uint16_t selector, uint8_t type, bool long_mode)
{
	return (struct kvm_segment){
		.base = 0,
		.limit = 0xffffffff,
		.selector = selector,
		.type = type,
		.present = 1,
		.dpl = 0,
		.s = 1,
		.g = 1,
		.l = long_mode,
		.db = !long_mode,
	};
}

static struct kvm_segment segment_task(void)
{
	return (struct kvm_segment){
		.base = 0,
		.limit = 0x67,
		.selector = SELECTOR_TASK,
		.type = TYPE_TASK,
		.present = 1,
	};
}

/* The eight bytes of a descriptor that says what the segment register says. */
static uint64_t descriptor(const struct kvm_segment *segment)
{
	uint32_t limit = segment->g ? segment->limit >> 12 : segment->limit;
	uint64_t access =
		segment->type | segment->s << 4 | segment->dpl << 5 | segment->present << 7;
	uint64_t flags = segment->l << 1 | segment->db << 2 | segment->g << 3;

	return (limit & 0xffff) | (segment->base & 0xffffff) << 16 | access << 40 |
	       (uint64_t)(limit >> 16) << 48 | flags << 52 | (segment->base >> 24) << 56;
}

static int gdt_write(bool long_mode, struct guest_memory *memory)
{
	struct kvm_segment code = segment_flat(SELECTOR_CODE, TYPE_CODE, long_mode);
	struct kvm_segment data = segment_flat(SELECTOR_DATA, TYPE_DATA, false);
	struct kvm_segment task = segment_task();
	uint64_t gdt[GDT_ENTRIES] = {
		[SELECTOR_CODE / 8] = descriptor(&code),
		[SELECTOR_DATA / 8] = descriptor(&data),
		[SELECTOR_TASK / 8] = descriptor(&task),
	};

	return memory_write(memory, LAYOUT_GDT, gdt, sizeof(gdt));
}

/* The first 4 GiB, one to one, in pages of 2 MiB: those need no CPUID bit. */
static int page_tables_write(struct guest_memory *memory)
{
	uint64_t table[PAGE_ENTRIES] = {LAYOUT_PAGE_TABLES + GUEST_PAGE_SIZE +
					(PAGE_PRESENT | PAGE_WRITE)};
	gpa_t at = LAYOUT_PAGE_TABLES;
	int r;

	r = memory_write(memory, at, table, sizeof(table));
	for (uint64_t i = 0; i < PAGE_ENTRIES; i++)
		table[i] = i < MAPPED_GIB ? LAYOUT_PAGE_TABLES + (2 + i) * GUEST_PAGE_SIZE +
						    (PAGE_PRESENT | PAGE_WRITE)
					  : 0;
	at += GUEST_PAGE_SIZE;
	if (r == 0)
		r = memory_write(memory, at, table, sizeof(table));
	for (uint64_t gib = 0; r == 0 && gib < MAPPED_GIB; gib++) {
		for (uint64_t i = 0; i < PAGE_ENTRIES; i++)
			table[i] = (gib * PAGE_ENTRIES + i) << LARGE_SHIFT |
				   (PAGE_PRESENT | PAGE_WRITE | PAGE_LARGE);
		at += GUEST_PAGE_SIZE;
		r = memory_write(memory, at, table, sizeof(table));
	}
	return r;
}

/* 16-bit code that asks the power device for a reset. */
static int reset_vector_write(struct guest_memory *memory)
{
	static const uint8_t code[] = {
		0xba,
		POWER_PORT & 0xff,
		POWER_PORT >> 8, /* mov dx, POWER_PORT */
		0xb0,
		POWER_RESET_VALUE, /* mov al, POWER_RESET_VALUE */
		0xee,              /* out dx, al */
		0xf4,              /* hlt */
		0xeb,
		0xfd, /* jmp to the hlt */
	};

	_Static_assert(sizeof(code) <= LAYOUT_BIOS_END - LAYOUT_RESET_VECTOR, "it is the end");
	return memory_write(memory, LAYOUT_RESET_VECTOR, code, sizeof(code));
}

int entry_prepare(const struct boot_entry *entry, struct guest_memory *memory)
{
	bool long_mode = entry->protocol == BOOT_LINUX64;
	int r = reset_vector_write(memory);

	if (r == 0)
		r = gdt_write(long_mode, memory);
	if (r == 0 && long_mode)
		r = page_tables_write(memory);
	return r;
}

void entry_registers(const struct boot_entry *entry, struct kvm_regs *regs, struct kvm_sregs *sregs)
{
	bool long_mode = entry->protocol == BOOT_LINUX64;
	struct kvm_segment data = segment_flat(SELECTOR_DATA, TYPE_DATA, false);

	*regs = (struct kvm_regs){
		.rip = entry->entry,
		.rsp = LAYOUT_STACK_TOP,
		.rflags = RFLAGS_ALWAYS,
		.rsi = long_mode ? entry->info : 0,
		.rbx = long_mode ? 0 : entry->info,
	};
	sregs->cs = segment_flat(SELECTOR_CODE, TYPE_CODE, long_mode);
	sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
	sregs->tr = segment_task();
	sregs->ldt = (struct kvm_segment){.unusable = 1};
	sregs->gdt = (struct kvm_dtable){.base = LAYOUT_GDT, .limit = GDT_ENTRIES * 8 - 1};
	sregs->idt = (struct kvm_dtable){0};
	sregs->cr0 = CR0_PE | CR0_ET | (long_mode ? CR0_PG : 0);
	sregs->cr2 = 0;
	sregs->cr3 = long_mode ? LAYOUT_PAGE_TABLES : 0;
	sregs->cr4 = long_mode ? CR4_PAE : 0;
	sregs->efer = long_mode ? EFER_LME | EFER_LMA : 0;
}
