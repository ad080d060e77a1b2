/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A network namespace of a test's own: nothing of the host's is touched, every port is free.
 */
#pragma once

#include <criterion/criterion.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#define NETWORK_ADDRESS "192.0.2.2"
#define NETWORK_GATEWAY "192.0.2.1"

static inline void shell(const char *command)
{
	cr_assert_eq(system(command), 0, "%s", command);
}

/* With an interface that passt takes for the way out. */
static inline void network_make(void)
{
	if (geteuid() || access("/dev/net/tun", R_OK | W_OK))
		cr_skip_test("needs root and /dev/net/tun");
	cr_assert(!unshare(CLONE_NEWNET));
	shell("ip link set lo up && ip tuntap add dev up0 mode tap && ip link set up0 up && "
	      "ip addr add " NETWORK_ADDRESS "/24 dev up0 && "
	      "ip route add default via " NETWORK_GATEWAY);
}

static inline void passt_needed(void)
{
	if (system("command -v passt >/dev/null"))
		cr_skip_test("needs passt: apt install passt");
	network_make();
}
