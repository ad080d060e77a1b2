/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verbs of `corral` that act on this host, one function each: in come the words after the verb,
 * out comes the exit status. Also what they share: saying a failure, and text that comes from a VMM
 * made harmless for a terminal.
 */
#pragma once

#include "base/error.h"
#include "base/macros.h"

enum {
	LOCAL_OK = 0,
	LOCAL_FAILED = 1,
	LOCAL_USAGE = 2, /* wrong words on the command line */
};

int verb_run(int argc, char **argv);
int verb_ci(int argc, char **argv);
int verb_ps(int argc, char **argv);
int verb_wait(int argc, char **argv);
int verb_logs(int argc, char **argv);
int verb_console(int argc, char **argv);
int verb_pause(int argc, char **argv);
int verb_resume(int argc, char **argv);
int verb_shutdown(int argc, char **argv);
int verb_reset(int argc, char **argv);
int verb_kill(int argc, char **argv);
int verb_stats(int argc, char **argv);
int verb_vsock(int argc, char **argv);
int verb_guest(int argc, char **argv);
int verb_balloon(int argc, char **argv);
int verb_link(int argc, char **argv);
int verb_ssh(int argc, char **argv);
int verb_disk(int argc, char **argv);
int verb_doctor(int argc, char **argv);

/* The flags of `corral run` and `corral ci`, for help. */
void run_help(void);
void guest_help(void);
void ci_help(void);

/* One line on standard error: "corral: …". */
void local_say(const char *format, ...) __printf(1, 2);

/* Says the failure and returns `status`. */
int local_fail(const struct error *err, int status);

/* Control bytes become '?', in place: what a VMM writes must not steer a terminal. */
void text_harmless(char *text);

/* "512 MiB" for 536870912; whole numbers where they are, else one decimal. */
#define TEXT_SIZE_MAX 24
const char *text_size(uint64_t bytes, char buffer[TEXT_SIZE_MAX]);
