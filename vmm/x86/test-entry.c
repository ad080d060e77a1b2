/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The entry state, proved by KVM: a vCPU set up by entry.c runs a few instructions that tell where
 * they are. Without /dev/kvm only the tables in memory are looked at.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <sys/ioctl.h>

#include "vmm/x86/entry.h"
#include "vmm/x86/test-image.h"

/* The same bytes in both modes. 32-bit: inc eax (48 is a prefix in 64-bit mode), mov. Then BX or
 * SI goes out by port 0x99, and a marker of the mode by AX. */
static const uint8_t program[] = {
	0x31, 0xc0,                               /* xor eax, eax */
	0x48, 0x90,                               /* 32: dec eax, nop; 64: rex.w nop */
	0xba, 0x99, 0x00, 0x00, 0x00,             /* mov edx, 0x99 */
	0xef,                                     /* out dx, eax */
	0x89, 0xd8,                               /* mov eax, ebx */
	0xef,                                     /* out dx, eax */
	0x89, 0xf0,                               /* mov eax, esi */
	0xef,                                     /* out dx, eax */
	0x8b, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, /* 64: mov eax, [0x200000] */
	0xf4,                                     /* hlt */
};

struct machine {
	int kvm, vm, vcpu;
	struct kvm_run *run;
};

static bool machine_new(struct guest_memory *memory, struct machine *ret)
{
	struct kvm_userspace_memory_region slot = {
		.memory_size = memory->regions[0].size,
		.userspace_addr = (uintptr_t)memory->regions[0].host,
	};
	int size;

	ret->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (ret->kvm < 0)
		return false;
	ret->vm = ioctl(ret->kvm, KVM_CREATE_VM, 0);
	cr_assert_geq(ret->vm, 0);
	cr_assert_eq(ioctl(ret->vm, KVM_SET_TSS_ADDR, 0xfffbd000), 0);
	cr_assert_eq(ioctl(ret->vm, KVM_SET_USER_MEMORY_REGION, &slot), 0);
	ret->vcpu = ioctl(ret->vm, KVM_CREATE_VCPU, 0);
	cr_assert_geq(ret->vcpu, 0);
	size = ioctl(ret->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	ret->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, ret->vcpu, 0);
	cr_assert_neq(ret->run, MAP_FAILED);
	return true;
}

static void enter(const struct machine *machine, const struct boot_entry *entry)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs;

	cr_assert_eq(ioctl(machine->vcpu, KVM_GET_SREGS, &sregs), 0);
	entry_registers(entry, &regs, &sregs);
	cr_assert_eq(ioctl(machine->vcpu, KVM_SET_SREGS, &sregs), 0);
	cr_assert_eq(ioctl(machine->vcpu, KVM_SET_REGS, &regs), 0);
}

static uint32_t next_out(const struct machine *machine, uint16_t port)
{
	const struct kvm_run *run = machine->run;

	cr_assert_eq(ioctl(machine->vcpu, KVM_RUN, 0), 0);
	cr_assert_eq(run->exit_reason, KVM_EXIT_IO, "exit %u", run->exit_reason);
	cr_assert_eq(run->io.port, port);
	return *(const uint32_t *)(const void *)((const char *)run + run->io.data_offset);
}

static void run(enum boot_protocol protocol, uint32_t mark, uint32_t ebx, uint32_t esi)
{
	struct boot_entry entry = {.protocol = protocol, .entry = MIB, .info = 0x7000};
	struct guest_memory memory;
	struct machine machine;

	test_memory(&memory, 4 * MIB);
	cr_assert_eq(memory_write(&memory, MIB, program, sizeof(program)), 0);
	cr_assert_eq(entry_prepare(&entry, &memory), 0);
	if (!machine_new(&memory, &machine))
		cr_skip("/dev/kvm cannot be opened\n");
	enter(&machine, &entry);
	cr_assert_eq(next_out(&machine, 0x99), mark);
	cr_assert_eq(next_out(&machine, 0x99), ebx);
	cr_assert_eq(next_out(&machine, 0x99), esi);
	cr_assert_eq(ioctl(machine.vcpu, KVM_RUN, 0), 0);
	cr_assert_eq(machine.run->exit_reason, KVM_EXIT_HLT);
}

Test(entry, pvh_starts_in_32_bits)
{
	run(BOOT_PVH32, UINT32_MAX, 0x7000, 0);
}

Test(entry, linux_starts_in_64_bits)
{
	run(BOOT_LINUX64, 0, 0, 0x7000);
}

/* F000:FFF0 in real mode, where a restart without ACPI ends. */
Test(entry, reset_vector_resets)
{
	struct boot_entry entry = {.protocol = BOOT_PVH32, .entry = MIB, .info = 0x7000};
	struct kvm_regs regs = {.rip = 0xfff0, .rflags = 2};
	struct guest_memory memory;
	struct machine machine;
	struct kvm_sregs sregs;

	test_memory(&memory, 4 * MIB);
	cr_assert_eq(entry_prepare(&entry, &memory), 0);
	if (!machine_new(&memory, &machine))
		cr_skip("/dev/kvm cannot be opened\n");
	cr_assert_eq(ioctl(machine.vcpu, KVM_GET_SREGS, &sregs), 0);
	sregs.cs.selector = 0xf000;
	sregs.cs.base = 0xf0000;
	cr_assert_eq(ioctl(machine.vcpu, KVM_SET_SREGS, &sregs), 0);
	cr_assert_eq(ioctl(machine.vcpu, KVM_SET_REGS, &regs), 0);
	cr_assert_eq(next_out(&machine, 0x600) & 0xff, 1);
}

/* A guest reloads its segments from the GDT: it must say what the registers said. */
Test(entry, gdt_holds_flat_segments)
{
	struct boot_entry entry = {.protocol = BOOT_LINUX64, .entry = MIB, .info = 0x7000};
	struct guest_memory memory;
	uint64_t gdt[5];

	test_memory(&memory, 4 * MIB);
	cr_assert_eq(entry_prepare(&entry, &memory), 0);
	cr_assert_eq(memory_read(&memory, LAYOUT_GDT, gdt, sizeof(gdt)), 0);
	cr_assert_eq(gdt[0], 0);
	cr_assert_eq(gdt[2], 0x00af9b000000ffff);
	cr_assert_eq(gdt[3], 0x00cf93000000ffff);
	cr_assert_eq(gdt[4], 0x00008b0000000067);
	entry.protocol = BOOT_PVH32;
	cr_assert_eq(entry_prepare(&entry, &memory), 0);
	cr_assert_eq(memory_read(&memory, LAYOUT_GDT, gdt, sizeof(gdt)), 0);
	cr_assert_eq(gdt[2], 0x00cf9b000000ffff);
}

Test(entry, page_tables_map_four_gib_one_to_one)
{
	struct boot_entry entry = {.protocol = BOOT_LINUX64, .entry = MIB, .info = 0x7000};
	struct guest_memory memory;
	const uint64_t *table;

	test_memory(&memory, 4 * MIB);
	cr_assert_eq(entry_prepare(&entry, &memory), 0);
	for (uint64_t gpa = 0; gpa < LAYOUT_4G; gpa += 2 * MIB) {
		uint64_t at = LAYOUT_PAGE_TABLES;

		for (uint32_t shift = 39; shift > 21; shift -= 9) {
			cr_assert_eq(memory_translate(&memory, at, 4096, (void **)&table), 0);
			cr_assert_eq(table[gpa >> shift & 511] & 0xfff, 3);
			at = table[gpa >> shift & 511] & ~0xfffull;
		}
		cr_assert_eq(memory_translate(&memory, at, 4096, (void **)&table), 0);
		cr_assert_eq(table[gpa >> 21 & 511], gpa | 0x83);
	}
}
