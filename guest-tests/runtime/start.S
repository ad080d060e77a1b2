/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a CPU gets from its first instruction to C. The boot CPU arrives through the PVH note in 32-bit
 * mode, EBX pointing at hvm_start_info; other CPUs arrive through a start-up IPI at AP_TRAMPOLINE in
 * real mode. Both take the same page tables, which are filled in by the assembler: under KVM's
 * instruction emulator each instruction costs about a microsecond, so none is spent on building them.
 * Interrupt stubs are here too; they hand a struct irq_frame to irq_dispatch().
 */
#include "guest-tests/runtime/layout.h"

#define CR0_PE 0x1
#define CR0_PG_WP_PE 0x80010001
#define CR4_PAE 0x20
#define MSR_EFER 0xc0000080
#define EFER_LME 0x100
#define PTE_TABLE 0x3	/* present, writable */
#define PTE_2M 0x83	/* present, writable, page size */

#define SEL_CODE64 0x08
#define SEL_DATA 0x10
#define SEL_CODE32 0x18

	.section .note.pvh, "a", @note
	.balign 4
	.long 4, 8, 18		/* XEN_ELFNOTE_PHYS32_ENTRY; QEMU reads eight bytes of a 64-bit ELF's note */
	.asciz "Xen"
	.long pvh_start, 0

	.section .data.boot, "aw", @progbits
	.balign 4096
	.globl boot_pml4
boot_pml4:
	.long boot_pdpt + PTE_TABLE, 0
	.fill 511, 8, 0
	.globl boot_pdpt
boot_pdpt:
	.long boot_pd + 0x0000 + PTE_TABLE, 0
	.long boot_pd + 0x1000 + PTE_TABLE, 0
	.long boot_pd + 0x2000 + PTE_TABLE, 0
	.long boot_pd + 0x3000 + PTE_TABLE, 0
	.fill 508, 8, 0
boot_pd:
	.set page, 0
	.rept 2048
	.long page + PTE_2M, 0
	.set page, page + 0x200000
	.endr
boot_gdt:
	.quad 0
	.quad 0x00af9b000000ffff
	.quad 0x00cf93000000ffff
	.quad 0x00cf9b000000ffff
boot_gdt_ptr:
	.word . - boot_gdt - 1
	.long boot_gdt, 0

/* Turns on long mode; clobbers EAX, ECX, EDX. The caller jumps to SEL_CODE64 next. */
	.macro enter_long_mode
	movl $CR4_PAE, %eax
	movl %eax, %cr4
	movl $boot_pml4, %eax
	movl %eax, %cr3
	movl $MSR_EFER, %ecx
	rdmsr
	orl $EFER_LME, %eax
	wrmsr
	movl $CR0_PG_WP_PE, %eax
	movl %eax, %cr0
	.endm

	.macro load_data_segments
	movl $SEL_DATA, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %ss
	.endm

	.text
	.code32
	.globl pvh_start
pvh_start:
	movl $boot_stack_top, %esp
	movl %ebx, %edi
	enter_long_mode
	lgdt boot_gdt_ptr
	ljmp $SEL_CODE64, $boot_start64

ap_start32:
	load_data_segments
	enter_long_mode
	ljmp $SEL_CODE64, $ap_start64

	.code64
boot_start64:
	load_data_segments
	movl %edi, %edi
	call guest_boot_cpu
1:	hlt
	jmp 1b

ap_start64:
	movl $1, %edi
	lock xaddl %edi, ap_next_index
	movl %edi, %eax
	incl %eax
	shll $AP_STACK_SHIFT, %eax
	movq ap_stacks, %rsp
	addq %rax, %rsp
	call guest_ap_cpu
1:	cli
	hlt
	jmp 1b

/* Copied to AP_TRAMPOLINE before the first start-up IPI; CS is its segment. */
	.globl ap_trampoline, ap_trampoline_end
	.code16
ap_trampoline:
	cli
	lgdtl %cs:(ap_gdt_ptr - ap_trampoline)
	movl $CR0_PE, %eax
	movl %eax, %cr0
	ljmpl $SEL_CODE32, $ap_start32
	.balign 4
ap_gdt_ptr:
	.word 31
	.long boot_gdt
ap_trampoline_end:

/* One stub a vector, IRQ_STUB_SIZE bytes apart; those that the CPU gives no error code push a zero. */
	.code64
	.globl irq_stubs
	.balign 16
irq_stubs:
	.set vector, 0
	.rept 256
	.balign IRQ_STUB_SIZE
	.if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || \
	      vector == 29 || vector == 30)
	pushq $0
	.endif
	pushq $vector
	jmp irq_common
	.set vector, vector + 1
	.endr

irq_common:
	pushq %r11
	pushq %r10
	pushq %r9
	pushq %r8
	pushq %rdi
	pushq %rsi
	pushq %rdx
	pushq %rcx
	pushq %rax
	movq %rsp, %rdi
	cld
	call irq_dispatch
	popq %rax
	popq %rcx
	popq %rdx
	popq %rsi
	popq %rdi
	popq %r8
	popq %r9
	popq %r10
	popq %r11
	addq $16, %rsp
	iretq

	.section .bss.stack, "aw", @nobits
	.balign 16
	.skip BOOT_STACK_SIZE
boot_stack_top:

	.section .note.GNU-stack, "", @progbits
