/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state in which a kernel is entered: descriptor table and, for 64-bit Linux, page tables in
 * guest memory; registers of the first vCPU. The other vCPUs wait for INIT and SIPI as KVM made
 * them.
 */
#pragma once

#include <linux/kvm.h>

#include "devices/memory.h"
#include "vmm/x86/kernel.h"

/* Writes GDT and page tables, and what a PC has at its reset vector: Linux without EFI on
 * hardware-reduced ACPI restarts by a jump there, in real mode. */
int entry_prepare(const struct boot_entry *entry, struct guest_memory *memory) __must_check;

/* `sregs` as KVM_GET_SREGS gave them; what is not about the entry (APIC base) stays. `regs` is
 * overwritten. */
void entry_registers(const struct boot_entry *entry, struct kvm_regs *regs,
		     struct kvm_sregs *sregs);
