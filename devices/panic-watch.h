/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looks for a Linux kernel's last words in what it prints: stock kernels have the panic device only
 * as a module, and a panic with panic=-1 is else the same as a reboot. The guest's programs can
 * print the phrase too, and deceive nobody but whoever reads why their own guest ended.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* After a panic a kernel prints its trace and resets. What prints this much more, or says that it
 * is restarting in order, has lived on: the phrase was somebody's quotation. */
#define PANIC_REACH     65536u

#define PANIC_TEXT_SIZE 160 /* with the NUL; the rest of the line is cut */

struct panic_watch {
	enum { PANIC_LOOKING, PANIC_IN_LINE, PANIC_SEEN } state;
	uint32_t matched; /* bytes of the phrase that is looked for seen so far */
	size_t since;     /* bytes after the line */
	uint32_t length;
	char text[PANIC_TEXT_SIZE]; /* printable ASCII */
};

/* Zero-initialised. Bytes of the stream, in pieces of any size; the first panic is kept. */
void panic_watch_feed(struct panic_watch *watch, const void *data, size_t size);

/* What followed the phrase, in `text`; false if it was not there, or the kernel has lived on since.
 */
bool panic_watch_text(const struct panic_watch *watch, char text[PANIC_TEXT_SIZE]);
