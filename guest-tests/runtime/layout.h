/* SPDX-License-Identifier: Apache-2.0 */
/* Where the guest's own pieces are in its memory: shared by C and assembly, so numbers only. */
#pragma once

#define AP_TRAMPOLINE   0x8000
#define AP_STACK_SHIFT  12
#define BOOT_STACK_SIZE 16384
#define IRQ_STUB_SIZE   16
