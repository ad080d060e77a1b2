/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The checks of `corral doctor`: a table of functions, each of which looks at one thing of the host
 * and says whether it is there, what follows, and what mends it.
 */
#pragma once

#include <stddef.h>

#include "base/macros.h"

enum finding_state { FINDING_OK, FINDING_LIMITED, FINDING_MISSING };

struct finding {
	enum finding_state state;
	char text[160]; /* what was seen, and what it means */
	char mend[200]; /* the command that mends it; empty when nothing needs mending */
};

struct check {
	const char *name;
	const char *purpose; /* what Corral needs it for */
	void (*look)(struct finding *finding);
	int needed; /* no VM runs without it */
};

extern const struct check doctor_checks[];
extern const size_t n_doctor_checks;

void finding_set(struct finding *finding, enum finding_state state, const char *format, ...)
	__printf(3, 4);
void finding_mend(struct finding *finding, const char *format, ...) __printf(2, 3);
