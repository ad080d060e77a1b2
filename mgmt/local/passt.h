/* SPDX-License-Identifier: Apache-2.0 */
/*
 * passt, the program behind a network card in user mode: started with one end of a socket, it goes
 * into the background once it serves, and ends when the other end is closed, however that comes
 * about.
 */
#pragma once

#include <stdio.h>
#include <sys/types.h>

#include "base/error.h"

struct vm_net;

/* One that is starting. */
struct passt {
	uint32_t net; /* number of its card */
	pid_t pid;    /* 0 once it has been waited for */
	int words_fd; /* owned: its standard error */
};

/* *ret_fd is our end of the socket, the caller's. */
int passt_start(struct passt *passt, uint32_t i, const struct vm_net *net, int *ret_fd,
		struct error *err) __must_check;
/* Until it serves; a failure has its own words in the sentence. */
int passt_wait(struct passt *passt, struct error *err) __must_check;
/* The command line, for people. */
void passt_print(FILE *file, const struct vm_net *net);
void passt_deinit(struct passt *passt);
