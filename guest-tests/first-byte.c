/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The smallest guest: its first instructions put one byte on the serial port. Then it tries every
 * way out that some VMM offers, so that a benchmark may run it under any: sleep control at 0x600
 * (ours), i8042 reset, triple fault.
 */
#ifdef GUEST

__asm__(".section .note.pvh, \"a\", @note\n"
	".balign 4\n"
	".long 4, 8, 18\n"
	".asciz \"Xen\"\n"
	".long pvh_start, 0\n"
	".text\n"
	".code32\n"
	".globl pvh_start\n"
	"pvh_start:\n"
	"	movw $0x3f8, %dx\n"
	"	movb $'!', %al\n"
	"	outb %al, %dx\n"
	"	movb $'\\n', %al\n"
	"	outb %al, %dx\n"
	"	movw $0x600, %dx\n"
	"	movb $0x34, %al\n" /* SLP_TYP 5, SLP_EN */
	"	outb %al, %dx\n"
	"	movb $0xfe, %al\n"
	"	outb %al, $0x64\n"
	"	lidt no_idt\n"
	"	movw $0xfff8, %ax\n" /* beyond the GDT; KVM's emulator knows no int3 or ud2 */
	"	movw %ax, %ds\n"
	"no_idt:\n"
	"	.long 0, 0\n");

#else

#include <string.h>

#include "guest-tests/host/harness.h"

int main(int argc, char **argv)
{
	struct vm_config config = {.no_rng = true};
	const char *line;
	struct vm *vm;

	test_init(argc, argv);
	vm = vm_start(&config);
	line = vm_line(vm);
	CHECK(line && strcmp(line, "!") == 0, "'%s'", line ? line : "nothing");
	if (vm_is_peer())
		return TEST_PASS; /* q35 has no sleep control: it resets and begins again */
	CHECK(!vm_line(vm), "more than a line");
	return vm_judge_silent(vm);
}

#endif
