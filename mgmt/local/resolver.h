/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names for a guest in user mode whose host asks a resolver on its own loopback (systemd-resolved,
 * dnsmasq), which the guest must not reach otherwise.
 */
#pragma once

#include "base/macros.h"

/* The guest's name for that resolver: passt takes questions to it, by UDP, to the host's. A
 * link-local address that its network is unlikely to have, and that its gateway is asked for. */
#define RESOLVER_ADDRESS "169.254.1.1"

/* What passt is to find in /etc/resolv.conf instead of what is there; the caller's. NULL: that
 * does. */
char *resolver_text(void);

/* For a child before its exec: only it and its descendants see `text` there. -errno. */
int resolver_put(const char *text) __must_check;
