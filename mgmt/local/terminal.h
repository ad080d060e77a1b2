/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The terminal on standard input in raw mode, and back again whatever happens: a small process
 * stands by and restores it when the launcher dies without doing so itself.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>
#include <termios.h>

#include "base/macros.h"

struct terminal {
	bool raw;
	struct termios before;
	int guard_fd; /* owned: the guard acts when its other end closes unannounced */
	pid_t guard;
};

#define TERMINAL_NULL ((struct terminal){.guard_fd = -1})

/* Whether standard input is a terminal that is ours to use: we are in its foreground. */
bool terminal_usable(void);

int terminal_raw(struct terminal *terminal) __must_check;
/* Between: stop and continue of the launcher. */
void terminal_suspend(const struct terminal *terminal);
void terminal_continue(const struct terminal *terminal);
void terminal_restore(struct terminal *terminal);
