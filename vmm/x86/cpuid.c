/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CPUID leaf by leaf. Sources: Intel SDM volume 2 "CPUID", AMD APM volume 3 appendix E, the
 * kernel's Documentation/virt/kvm/x86/cpuid.rst. Leaves that are not named here go through as KVM
 * gives them.
 */
#include "vmm/x86/cpuid.h"

#include <errno.h>
#include <string.h>

#include "base/macros.h"
#include "vmm/kvm.h"

#define LEAF_VENDOR         0x0u
#define LEAF_FEATURES       0x1u
#define LEAF_CACHES         0x4u
#define LEAF_MONITOR        0x5u
#define LEAF_POWER          0x6u
#define LEAF_PERFMON        0xau
#define LEAF_TOPOLOGY       0xbu
#define LEAF_TOPOLOGY2      0x1fu
#define LEAF_PERFMON2       0x23u
#define LEAF_KVM            0x40000000u
#define LEAF_KVM_FEATURES   0x40000001u
#define LEAF_AMD_FEATURES   0x80000001u
#define LEAF_AMD_POWER      0x80000007u
#define LEAF_AMD_SIZES      0x80000008u
#define LEAF_AMD_SVM        0x8000000au
#define LEAF_AMD_CACHES     0x8000001du
#define LEAF_AMD_TOPOLOGY   0x8000001eu
#define LEAF_AMD_SEV        0x8000001fu
#define LEAF_AMD_PERFMON    0x80000022u
#define LEAF_AMD_TOPOLOGY2  0x80000026u

#define ECX1_DTES64         (1u << 2)
#define ECX1_MONITOR        (1u << 3)
#define ECX1_DS_CPL         (1u << 4)
#define ECX1_VMX            (1u << 5)
#define ECX1_PDCM           (1u << 15)
#define ECX1_X2APIC         (1u << 21)
#define ECX1_TSC_DEADLINE   (1u << 24)
#define ECX1_HYPERVISOR     (1u << 31)
#define EDX1_DS             (1u << 21)
#define EDX1_HTT            (1u << 28)
#define EAX6_ARAT           (1u << 2)
#define AMD_ECX1_CMP_LEGACY (1u << 1)
#define AMD_ECX1_SVM        (1u << 2)
#define AMD_ECX1_TOPOEXT    (1u << 22)
#define AMD_ECX1_PERFMON    (1u << 23 | 1u << 24 | 1u << 28)
#define AMD_EDX7_INVARIANT  (1u << 8)

#define LEVEL_THREAD        1
#define LEVEL_CORE          2

struct topology {
	uint32_t index, n_cpus;
	uint32_t shift; /* bits of an APIC identifier that tell cores apart */
	bool amd;
};

static const struct kvm_cpuid_entry2 *find(const struct kvm_cpuid2 *table, uint32_t leaf)
{
	for (uint32_t i = 0; i < table->nent; i++)
		if (table->entries[i].function == leaf)
			return &table->entries[i];
	return NULL;
}

/* "AuthenticAMD", and "HygonGenuine" which is the same in these matters. */
static bool is_amd(const struct kvm_cpuid2 *table)
{
	const struct kvm_cpuid_entry2 *vendor = find(table, LEAF_VENDOR);
	char name[12];

	if (!vendor)
		return false;
	memcpy(name, &vendor->ebx, 4);
	memcpy(name + 4, &vendor->edx, 4);
	memcpy(name + 8, &vendor->ecx, 4);
	return memcmp(name, "AuthenticAMD", 12) == 0 || memcmp(name, "HygonGenuine", 12) == 0;
}

static void set(uint32_t *word, uint32_t bits, bool on)
{
	*word = on ? *word | bits : *word & ~bits;
}

static void clear(struct kvm_cpuid_entry2 *entry)
{
	entry->eax = entry->ebx = entry->ecx = entry->edx = 0;
}

static void apply_features(const struct cpuid_policy *policy, struct kvm_cpuid_entry2 *entry)
{
	uint32_t count = MIN(policy->n_cpus, 255u);

	entry->ebx = (entry->ebx & 0xffff) | count << 16 | (policy->index & 0xff) << 24;
	set(&entry->ecx, ECX1_DTES64 | ECX1_DS_CPL | ECX1_PDCM, false);
	set(&entry->ecx, ECX1_MONITOR | ECX1_VMX, false);
	set(&entry->ecx, ECX1_X2APIC | ECX1_HYPERVISOR, true);
	set(&entry->ecx, ECX1_TSC_DEADLINE, policy->tsc_deadline);
	set(&entry->edx, EDX1_DS, false);
	set(&entry->edx, EDX1_HTT, policy->n_cpus > 1);
}

/* Intel's caches: the first two levels are a core's own, the third is everybody's. */
static void apply_caches(const struct topology *topology, struct kvm_cpuid_entry2 *entry)
{
	uint32_t level = entry->eax >> 5 & 7;
	uint32_t cores = (1u << topology->shift) - 1;

	if ((entry->eax & 0x1f) == 0)
		return;
	entry->eax &= 0x3fff;
	entry->eax |= (level >= 3 ? MIN(cores, 0xfffu) : 0) << 14 | MIN(cores, 0x3fu) << 26;
}

static void apply_amd_caches(const struct topology *topology, struct kvm_cpuid_entry2 *entry)
{
	uint32_t level = entry->eax >> 5 & 7;

	if ((entry->eax & 0x1f) == 0)
		return;
	entry->eax &= ~(0xfffu << 14);
	entry->eax |= (level >= 3 ? MIN(topology->n_cpus - 1, 0xfffu) : 0) << 14;
}

static void apply_amd_features(const struct topology *topology, bool has_topology,
			       struct kvm_cpuid_entry2 *entry)
{
	set(&entry->ecx, AMD_ECX1_SVM | AMD_ECX1_PERFMON, false);
	set(&entry->ecx, AMD_ECX1_CMP_LEGACY, topology->amd && topology->n_cpus > 1);
	if (!has_topology)
		set(&entry->ecx, AMD_ECX1_TOPOEXT, false);
}

/* Number of cores less one, and how many bits of the APIC identifier they take. */
static void apply_amd_sizes(const struct topology *topology, struct kvm_cpuid_entry2 *entry)
{
	entry->ecx = 0;
	if (topology->amd)
		entry->ecx = MIN(topology->n_cpus - 1, 0xffu) | topology->shift << 12;
}

static void apply_amd_topology(const struct topology *topology, struct kvm_cpuid_entry2 *entry)
{
	entry->eax = topology->index;
	entry->ebx = topology->index & 0xff; /* core; one thread in it */
	entry->ecx = 0;                      /* node 0 of one */
	entry->edx = 0;
}

static void apply(const struct cpuid_policy *policy, const struct topology *topology,
		  bool has_amd_topology, struct kvm_cpuid_entry2 *entry)
{
	switch (entry->function) {
	case LEAF_VENDOR:
		entry->eax = MAX(entry->eax, LEAF_TOPOLOGY);
		break;
	case LEAF_FEATURES:
		apply_features(policy, entry);
		break;
	case LEAF_CACHES:
		apply_caches(topology, entry);
		break;
	case LEAF_POWER:
		entry->eax |= EAX6_ARAT;
		break;
	case LEAF_MONITOR:
	case LEAF_PERFMON:
	case LEAF_PERFMON2:
	case LEAF_AMD_SVM:
	case LEAF_AMD_SEV:
	case LEAF_AMD_PERFMON:
		clear(entry);
		break;
	case LEAF_KVM:
		entry->eax = MAX(entry->eax, LEAF_KVM_FEATURES);
		break;
	case LEAF_AMD_FEATURES:
		apply_amd_features(topology, has_amd_topology, entry);
		break;
	case LEAF_AMD_POWER:
		set(&entry->edx, AMD_EDX7_INVARIANT,
		    policy->invariant_tsc && (entry->edx & AMD_EDX7_INVARIANT));
		break;
	case LEAF_AMD_SIZES:
		apply_amd_sizes(topology, entry);
		break;
	case LEAF_AMD_CACHES:
		apply_amd_caches(topology, entry);
		break;
	case LEAF_AMD_TOPOLOGY:
		apply_amd_topology(topology, entry);
		break;
	default:
		break;
	}
}

/* Three subleaves: threads, cores, end. Every one says which vCPU this is. */
static void add_topology(const struct topology *topology, uint32_t leaf, struct kvm_cpuid2 *table)
{
	struct kvm_cpuid_entry2 *entry = &table->entries[table->nent];

	for (uint32_t i = 0; i < 3; i++)
		entry[i] = (struct kvm_cpuid_entry2){
			.function = leaf,
			.index = i,
			.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
			.ecx = i,
			.edx = topology->index,
		};
	entry[0].ebx = 1;
	entry[0].ecx |= LEVEL_THREAD << 8;
	entry[1].eax = topology->shift;
	entry[1].ebx = topology->n_cpus;
	entry[1].ecx |= LEVEL_CORE << 8;
	table->nent += 3;
}

/* These say the host's topology in a number of subleaves that depends on the host. */
static bool is_left_out(uint32_t leaf)
{
	return leaf == LEAF_TOPOLOGY || leaf == LEAF_TOPOLOGY2 || leaf == LEAF_AMD_TOPOLOGY2;
}

int cpuid_apply(const struct kvm_cpuid2 *supported, const struct cpuid_policy *policy,
		struct kvm_cpuid2 *ret, uint32_t max)
{
	struct topology topology = {
		.index = policy->index, .n_cpus = policy->n_cpus, .amd = is_amd(supported)};
	bool has_amd_topology = find(supported, LEAF_AMD_TOPOLOGY) != NULL;

	while (1u << topology.shift < policy->n_cpus)
		topology.shift++;
	if (supported->nent + 6 > max)
		return -E2BIG;
	ret->nent = 0;
	ret->padding = 0;
	for (uint32_t i = 0; i < supported->nent; i++) {
		struct kvm_cpuid_entry2 *entry = &ret->entries[ret->nent];

		if (is_left_out(supported->entries[i].function))
			continue;
		*entry = supported->entries[i];
		apply(policy, &topology, has_amd_topology, entry);
		ret->nent++;
	}
	add_topology(&topology, LEAF_TOPOLOGY, ret);
	if (find(supported, LEAF_TOPOLOGY2))
		add_topology(&topology, LEAF_TOPOLOGY2, ret);
	return 0;
}

static struct kvm_cpuid2 *table_new(void)
{
	struct kvm_cpuid2 *table =
		calloc(1, sizeof(*table) + CPUID_ENTRIES_MAX * sizeof(table->entries[0]));

	if (table)
		table->nent = CPUID_ENTRIES_MAX;
	return table;
}

static int no_memory(const struct cpuid_policy *policy, struct error *err)
{
	return error_set(err, -ENOMEM, "cannot set up vCPU %u: %s", policy->index,
			 strerror(ENOMEM));
}

static int tell(int vcpu_fd, const struct kvm_cpuid2 *supported, const struct cpuid_policy *policy,
		struct error *err)
{
	struct kvm_cpuid2 *table = table_new();
	int r;

	if (!table)
		return no_memory(policy, err);
	r = cpuid_apply(supported, policy, table, CPUID_ENTRIES_MAX);
	if (r == 0)
		r = kvm_request(vcpu_fd, KVM_SET_CPUID2, table);
	free(table);
	if (r < 0)
		return error_set(err, r, "cannot tell vCPU %u its features: %s", policy->index,
				 strerror(-r));
	return 0;
}

int cpuid_setup(struct kvm *kvm, int vcpu_fd, uint32_t index, uint32_t n_vcpus, struct error *err)
{
	struct cpuid_policy policy = {
		.index = index,
		.n_cpus = n_vcpus,
		.tsc_deadline = kvm_capability(kvm, KVM_CAP_TSC_DEADLINE_TIMER) > 0,
	};
	int r;

	/* Some hundred microseconds, so it is asked once for all vCPUs. */
	if (!kvm->cpuid) {
		kvm->cpuid = table_new();
		if (!kvm->cpuid)
			return no_memory(&policy, err);
		r = kvm_request(kvm->fd, KVM_GET_SUPPORTED_CPUID, kvm->cpuid);
		if (r < 0)
			return error_set(err, r, "cannot ask KVM for the features of a vCPU: %s",
					 strerror(-r));
	}
	return tell(vcpu_fd, kvm->cpuid, &policy, err);
}
