/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is left of a host's CPUID, on hosts made by hand: an Intel and an AMD.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/macros.h"
#include "vmm/x86/cpuid.h"

#define ALL UINT32_MAX
#define SUB KVM_CPUID_FLAG_SIGNIFCANT_INDEX

/* eax, ebx, ecx, edx. Every feature there is. */
static const struct kvm_cpuid_entry2 intel[] = {
	{0x0, 0, 0, 0x20, 0x756e6547, 0x6c65746e, 0x49656e69, {0}}, /* GenuineIntel */
	{0x1, 0, 0, 0x50654, 0x11223344, ALL, ALL, {0}},
	{0x4, 0, SUB, 0xfc004121, 0x1c0003f, 63, 0, {0}},  /* L1 data, host's sharing */
	{0x4, 1, SUB, 0xfc004122, 0x1c0003f, 63, 0, {0}},  /* L1 instructions */
	{0x4, 2, SUB, 0xfc03c163, 0x2c0003f, 999, 4, {0}}, /* L3 */
	{0x4, 3, SUB, 0, 0, 0, 0, {0}},
	{0x5, 0, 0, 64, 64, 3, 0x2020, {0}},
	{0x6, 0, 0, 0, 0, 0, 0, {0}},
	{0x7, 0, SUB, 0, 0x12345678, 0x9abcdef0, 0, {0}},
	{0xa, 0, 0, 0x07300802, 0, 0, 0x603, {0}},
	{0xb, 0, SUB, 1, 2, 0x100, 0x55, {0}},
	{0xb, 1, SUB, 7, 96, 0x201, 0x55, {0}},
	{0x1f, 0, SUB, 1, 2, 0x100, 0x55, {0}},
	{0x40000000, 0, 0, 0x40000001, 0x4b4d564b, 0x564b4d56, 0x4d, {0}},
	{0x40000001, 0, 0, 0x01007efb, 0, 0, 0, {0}},
	{0x80000000, 0, 0, 0x80000008, 0, 0, 0, {0}},
	{0x80000001, 0, 0, 0, 0, 0x121, 0x2c100800, {0}},
	{0x80000007, 0, 0, 0, 0, 0, 0x100, {0}},
	{0x80000008, 0, 0, 0x302e, 0, 0x7007, 0, {0}},
};

static const struct kvm_cpuid_entry2 amd[] = {
	{0x0, 0, 0, 0x10, 0x68747541, 0x444d4163, 0x69746e65, {0}}, /* AuthenticAMD */
	{0x1, 0, 0, 0xa00f11, 0x11223344, ALL, ALL, {0}},
	{0x80000000, 0, 0, 0x8000001f, 0, 0, 0, {0}},
	{0x80000001, 0, 0, 0xa00f11, 0, ALL, ALL, {0}},
	{0x80000007, 0, 0, 0, 0, 0, 0x100, {0}},
	{0x80000008, 0, 0, 0x3030, 0, 0x707f, 0, {0}},
	{0x8000000a, 0, 0, 1, 0x8000, 0, ALL, {0}},
	{0x8000001d, 0, SUB, 0x4121, 0x1c0003f, 63, 0, {0}},
	{0x8000001d, 3, SUB, 0x3c163, 0x3c0003f, 16383, 1, {0}},
	{0x8000001e, 0, 0, 0x55, 0x1ff, 0x301, 0, {0}},
	{0x80000026, 0, SUB, 1, 2, 0x100, 0x55, {0}},
};

static union {
	struct kvm_cpuid2 head;
	uint8_t room[sizeof(struct kvm_cpuid2) +
		     CPUID_ENTRIES_MAX * sizeof(struct kvm_cpuid_entry2)];
} host, guest;

static void run(const struct kvm_cpuid_entry2 *entries, uint32_t n, struct cpuid_policy policy)
{
	host.head.nent = n;
	memcpy(host.head.entries, entries, n * sizeof(entries[0]));
	cr_assert_eq(cpuid_apply(&host.head, &policy, &guest.head, CPUID_ENTRIES_MAX), 0);
}
#define RUN(entries, ...) run((entries), ARRAY_SIZE(entries), (struct cpuid_policy){__VA_ARGS__})

/* The one entry of a leaf and subleaf. */
static struct kvm_cpuid_entry2 leaf(uint32_t function, uint32_t index)
{
	struct kvm_cpuid_entry2 found = {0};
	uint32_t n = 0;

	for (uint32_t i = 0; i < guest.head.nent; i++) {
		if (guest.head.entries[i].function == function &&
		    guest.head.entries[i].index == index) {
			found = guest.head.entries[i];
			n++;
		}
	}
	cr_assert_eq(n, 1, "%u entries for leaf %#x.%u", n, function, index);
	return found;
}

static bool has(uint32_t function)
{
	for (uint32_t i = 0; i < guest.head.nent; i++)
		if (guest.head.entries[i].function == function)
			return true;
	return false;
}

static bool bit(uint32_t word, uint32_t number)
{
	return word >> number & 1;
}

Test(cpuid, hides_what_the_board_does_not_give)
{
	RUN(intel, .n_cpus = 1);
	cr_assert(!bit(leaf(1, 0).ecx, 3), "MONITOR");
	cr_assert(!bit(leaf(1, 0).ecx, 5), "VMX");
	cr_assert(!bit(leaf(1, 0).ecx, 15), "PDCM");
	cr_assert_eq(leaf(5, 0).edx, 0);
	cr_assert_eq(leaf(0xa, 0).eax, 0);
	RUN(amd, .n_cpus = 1);
	cr_assert(!bit(leaf(0x80000001, 0).ecx, 2), "SVM");
	cr_assert(!bit(leaf(0x80000001, 0).ecx, 23), "performance counters");
	cr_assert_eq(leaf(0x8000000a, 0).edx, 0);
}

Test(cpuid, says_that_it_is_a_vm)
{
	RUN(intel, .n_cpus = 1);
	cr_assert(bit(leaf(1, 0).ecx, 31), "hypervisor");
	cr_assert(bit(leaf(1, 0).ecx, 21), "x2APIC");
	cr_assert(bit(leaf(6, 0).eax, 2), "ARAT");
	cr_assert_eq(leaf(0x40000000, 0).ebx, 0x4b4d564b);
	cr_assert_eq(leaf(0x40000001, 0).eax, 0x01007efb);
}

Test(cpuid, tsc_deadline_is_what_the_capability_says)
{
	RUN(intel, .n_cpus = 1, .tsc_deadline = true);
	cr_assert(bit(leaf(1, 0).ecx, 24));
	RUN(intel, .n_cpus = 1);
	cr_assert(!bit(leaf(1, 0).ecx, 24));
}

Test(cpuid, invariant_tsc_is_told_when_asked_for_and_there)
{
	struct kvm_cpuid_entry2 without[] = {intel[0], {.function = 0x80000007}};

	RUN(intel, .n_cpus = 1);
	cr_assert_eq(leaf(0x80000007, 0).edx, 0);
	RUN(intel, .n_cpus = 1, .invariant_tsc = true);
	cr_assert_eq(leaf(0x80000007, 0).edx, 0x100);
	RUN(without, .n_cpus = 1, .invariant_tsc = true);
	cr_assert_eq(leaf(0x80000007, 0).edx, 0);
}

Test(cpuid, other_leaves_go_through)
{
	RUN(intel, .n_cpus = 4);
	cr_assert_eq(leaf(7, 0).ebx, 0x12345678);
	cr_assert_eq(leaf(7, 0).ecx, 0x9abcdef0);
	cr_assert_eq(leaf(7, 0).flags, SUB);
	cr_assert_eq(leaf(1, 0).eax, 0x50654);
	cr_assert_eq(leaf(0, 0).eax, 0x20);
}

Test(cpuid, apic_id_is_the_index_everywhere)
{
	RUN(intel, .index = 5, .n_cpus = 6);
	cr_assert_eq(leaf(1, 0).ebx, 0x05063344);
	for (uint32_t i = 0; i < 3; i++) {
		cr_assert_eq(leaf(0xb, i).edx, 5);
		cr_assert_eq(leaf(0x1f, i).edx, 5);
	}
	RUN(amd, .index = 5, .n_cpus = 6);
	cr_assert_eq(leaf(0x8000001e, 0).eax, 5);
	cr_assert_eq(leaf(0x8000001e, 0).ebx, 5);
	cr_assert_eq(leaf(0x8000001e, 0).ecx, 0);
}

Test(cpuid, topology_is_one_socket_of_single_threaded_cores)
{
	RUN(intel, .index = 5, .n_cpus = 6);
	cr_assert(bit(leaf(1, 0).edx, 28), "HTT");
	cr_assert_eq(leaf(0xb, 0).eax, 0);
	cr_assert_eq(leaf(0xb, 0).ebx, 1);
	cr_assert_eq(leaf(0xb, 0).ecx, 0x100);
	cr_assert_eq(leaf(0xb, 1).eax, 3);
	cr_assert_eq(leaf(0xb, 1).ebx, 6);
	cr_assert_eq(leaf(0xb, 1).ecx, 0x201);
	cr_assert_eq(leaf(0xb, 2).ebx, 0);
	cr_assert_eq(leaf(0xb, 2).ecx, 2);
	/* 8 core identifiers; L1 its own, L3 of all. */
	cr_assert_eq(leaf(4, 0).eax, 0x1c000121);
	cr_assert_eq(leaf(4, 2).eax, 0x1c01c163);
	cr_assert_eq(leaf(4, 3).eax, 0);
}

Test(cpuid, one_cpu_has_no_siblings)
{
	RUN(intel, .n_cpus = 1);
	cr_assert(!bit(leaf(1, 0).edx, 28), "HTT");
	cr_assert_eq(leaf(0xb, 1).eax, 0);
	cr_assert_eq(leaf(0xb, 1).ebx, 1);
	cr_assert_eq(leaf(4, 2).eax >> 14, 0);
	RUN(amd, .n_cpus = 1);
	cr_assert(!bit(leaf(0x80000001, 0).ecx, 1), "CmpLegacy");
	cr_assert_eq(leaf(0x80000008, 0).ecx, 0);
}

Test(cpuid, amd_counts_cores_in_its_own_leaves)
{
	RUN(amd, .index = 63, .n_cpus = 64);
	cr_assert(bit(leaf(0x80000001, 0).ecx, 1), "CmpLegacy");
	cr_assert(bit(leaf(0x80000001, 0).ecx, 22), "topology extensions");
	cr_assert_eq(leaf(0x80000008, 0).ecx, 0x603f);
	cr_assert_eq(leaf(0x8000001d, 0).eax, 0x121);
	cr_assert_eq(leaf(0x8000001d, 3).eax, 0xfc163);
	cr_assert(!has(0x80000026));
	RUN(intel, .n_cpus = 64);
	cr_assert_eq(leaf(0x80000008, 0).ecx, 0);
}

/* A host without leaf 0xb gets one: x2APIC identifiers are read from it. */
Test(cpuid, topology_leaf_is_always_there)
{
	struct kvm_cpuid_entry2 old[] = {{.function = 0, .eax = 5}, {.function = 1}};

	RUN(old, .n_cpus = 2);
	cr_assert_eq(leaf(0, 0).eax, 0xb);
	cr_assert_eq(leaf(0xb, 1).ebx, 2);
	cr_assert(!has(0x1f));
}

Test(cpuid, topology_extensions_need_their_leaf)
{
	struct kvm_cpuid_entry2 bare[] = {amd[0], amd[3]};

	RUN(bare, .n_cpus = 2);
	cr_assert(!bit(leaf(0x80000001, 0).ecx, 22));
}

Test(cpuid, too_small_a_table_is_refused)
{
	struct cpuid_policy policy = {.n_cpus = 1};

	host.head.nent = CPUID_ENTRIES_MAX - 5;
	cr_assert_eq(cpuid_apply(&host.head, &policy, &guest.head, CPUID_ENTRIES_MAX), -E2BIG);
}

/* What this host's KVM supports, changed as above, is taken by this host's KVM. */
Test(cpuid, kvm_takes_it)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm, vcpu;

	if (kvm < 0)
		cr_skip("/dev/kvm cannot be opened\n");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	cr_assert_geq(vm, 0);
	cr_assert_eq(ioctl(vm, KVM_CREATE_IRQCHIP, 0), 0);
	for (uint32_t i = 0; i < 3; i++) {
		struct cpuid_policy policy = {.index = i, .n_cpus = 3, .tsc_deadline = true};

		host.head.nent = CPUID_ENTRIES_MAX;
		cr_assert_eq(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &host), 0);
		cr_assert_eq(cpuid_apply(&host.head, &policy, &guest.head, CPUID_ENTRIES_MAX), 0);
		vcpu = ioctl(vm, KVM_CREATE_VCPU, i);
		cr_assert_geq(vcpu, 0);
		cr_assert_eq(ioctl(vcpu, KVM_SET_CPUID2, &guest), 0);
	}
}
