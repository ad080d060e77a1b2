/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One request of the scheduler, by the thread itself, before it is sealed.
 */
#include "vmm/promptness.h"

#include <linux/sched.h>
#include <linux/sched/types.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The shortest turn the kernel grants. */
#define TURN_NS 100000

void promptness_ask(void)
{
	struct sched_attr attributes = {
		.size = sizeof(attributes),
		.sched_policy = SCHED_NORMAL,
		.sched_runtime = TURN_NS,
	};

	/* It is a wish: where it is refused everything works, a little later. */
	(void)syscall(SYS_sched_setattr, 0, &attributes, 0);
}
