/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between a person (or a pipe) and a guest's console: standard input to the console, the console to
 * standard output, an escape key, signals and the window's size to whoever runs the relay.
 */
#pragma once

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mgmt/local/terminal.h"

#define RELAY_ESCAPE      0x1d /* Ctrl-] */
#define RELAY_ESCAPE_NAME "Ctrl-]"
#define RELAY_BUFFER      4096

/* What the relay asks of its user. True from `key`, `signal` or `lost` ends it, once all that the
 * guest has printed is out. */
struct relay_ops {
	bool (*key)(void *data, char key);      /* typed after the escape key */
	bool (*signal)(void *data, int signal); /* SIGINT, SIGTERM, SIGHUP, SIGCHLD */
	bool (*lost)(void *data);               /* the console's other end was closed */
	bool (*side)(void *data);               /* `side_fd` is ready; false: stop watching it */
	void (*resize)(void *data, uint32_t columns, uint32_t rows);
};

struct relay_buffer {
	size_t at, n;
	char data[RELAY_BUFFER];
};

struct relay {
	const struct relay_ops *ops;
	void *data;     /* for ops, weak */
	int console_fd; /* owned, -1 when there is none (any more) */
	int side_fd;    /* borrowed, -1 for none */
	int signal_fd;  /* owned */
	bool reading;   /* standard input */
	bool printing;  /* standard output takes what we write */
	bool escaped;   /* the escape key was the last typed */
	bool ending;
	struct terminal terminal;
	struct relay_buffer in, out;
};

/* Blocks the signals a relay handles; before anything is started. */
void relay_block_signals(sigset_t *ret_before);

/* Takes the console descriptor over; sets the terminal raw if it is ours. -errno. */
int relay_init(struct relay *relay, int console_fd, const struct relay_ops *ops,
	       void *data) __must_check;
void relay_run(struct relay *relay);
/* Asks for the window's size to be told, if there is one. */
void relay_resize(struct relay *relay);
/* Restores the terminal. */
void relay_deinit(struct relay *relay);
