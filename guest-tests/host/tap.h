/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tap in a network namespace of the test's own, with a network behind it that sends every frame
 * back to its sender, its header beside it as the kernel saw it.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

struct vm_config;

/* Enters a namespace of the test's own; what it would take, if that cannot be, else NULL. */
const char *tap_enter(void);
/* "tap0", up. `how`: further words of `ip tuntap add`. */
void tap_make(const char *how);
void tap_remove(void);

/* Ends with the interface, or when it is stopped. */
pid_t tap_echo_start(void);
void tap_echo_stop(pid_t pid);

/* All of that, and the words that give the VM a card there. False: it cannot be, which is said. */
bool tap_add_card(struct vm_config *config);
