/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One command in a guest of its own: what was asked for, what is made for it before the VM starts,
 * and how it ended. Also the reading of what the guest says (init/protocol.h): the guest is
 * hostile, so nothing is allocated for it and nothing it says is believed twice.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "mgmt/local/init/protocol.h"
#include "proto/vm.h"

/* Exit statuses beside the command's own. */
enum job_status {
	JOB_STATUS_PANIC = 121,   /* the guest's kernel died */
	JOB_STATUS_SILENT = 122,  /* the guest ended and said no status */
	JOB_STATUS_TIMEOUT = 124, /* the time was up */
	JOB_STATUS_BROKEN = 125,  /* the launcher or the VMM failed: the command was not judged */
	JOB_STATUS_NO_EXEC = 126, /* found in the guest but cannot be run; 127: not found */
};

enum job_outcome {
	JOB_BROKEN,
	JOB_ENDED, /* the command has a status */
	JOB_TIMED_OUT,
	JOB_PANICKED,
	JOB_SILENT,
	JOB_INTERRUPTED, /* by a signal to the launcher */
	JOB_OUTCOMES,
};

extern const char *const job_outcome_names[]; /* "broken", "ended" … NULL-terminated */

#define JOB_ENVIRONMENT_MAX 512
#define JOB_KEPT_MAX        32768 /* bytes of output that a report quotes */

/* The last bytes of a stream. */
struct job_kept {
	char *data; /* owned, JOB_KEPT_MAX bytes; NULL: nothing is kept */
	uint64_t n; /* all that came */
};

struct job_result {
	uint32_t outcome; /* enum job_outcome */
	int status;       /* the exit status that says it */
	uint64_t ms;      /* from the start of the VMM */
	char text[500];   /* one sentence, empty where the command ended with 0 */
	struct job_kept out, err;
};

struct job {
	bool wanted;
	/* Borrowed from the command line, NULL where not given. */
	const char *rootfs, *junit, *modules, *directory;
	char **command; /* NULL-terminated */
	const char *environment[JOB_ENVIRONMENT_MAX + 1];
	uint32_t n_environment;
	uint64_t timeout_ms; /* 0: none */
	const char *image;   /* borrowed: of the directory `rootfs`, already made; NULL: not */
	bool silent;         /* its output is not ours; it is kept, and copied to the next two */
	int copies[2];       /* borrowed: files for its standard output and error, or -1 */

	/* Made before the start. */
	const char *file_system; /* of the image */
	int image_fd;            /* owned: an image made of a directory, -1 for none */
	int initrd_fd;           /* owned, -1 when handed over */
	int port_fd;             /* owned: our end of the channel */
	struct job_result result;
};

void job_init(struct job *job);
void job_deinit(struct job *job);

/* Cuts "-- COMMAND…" off; returns what argc becomes. */
int job_cut(struct job *job, int argc, char **argv);
/* Setters of its flags (mgmt/local/flags.h), all for a struct run_options. */
struct flag;
int job_set_word(void *options, const struct flag *flag, const char *value, struct error *err);
int job_set_timeout(void *options, const struct flag *flag, const char *value, struct error *err);
int job_set_environment(void *options, const struct flag *flag, const char *value,
			struct error *err);
/* "90", "90s", "5m", "1h". -EINVAL. */
int job_time_parse(const char *text, uint64_t *ret_ms) __must_check;

/* Completes the description: kernel, console, root disk, channel; checks that flags fit. */
int job_complete(struct job *job, struct vm_description *vm, struct error *err) __must_check;
/* Makes what the guest needs: image, initrd. The description is complete; may take seconds. */
int job_prepare(struct job *job, struct vm_description *vm, struct error *err) __must_check;

/* In job-run.c: stays with the VM until it has ended; the output goes to ours. */
struct prepared;
struct exit_record;
int job_attend(struct job *job, const struct vm_description *vm, struct prepared *prepared,
	       pid_t vmm, int *ret_wait_status, bool *ret_ready);
/* Says how it ended, once the record is there, and writes the report; returns the exit status. */
int job_conclude(struct job *job, const struct vm_description *vm, const struct exit_record *record,
		 int log_fd);
/* It never got as far: the sentence is said, the report written. */
int job_fail(struct job *job, const char *name, const struct error *err);

/* What the guest says. */
struct job_parser {
	uint8_t header[JOB_HEADER_SIZE];
	uint32_t n_header;
	uint32_t type, left; /* of the frame being read */
	uint8_t small[4 + JOB_TEXT_MAX];
	uint32_t n_small; /* bytes of a frame that is not output */
	bool greeted;
	bool done; /* by the next two, or `text` and `value` of a JOB_FAILED */
	bool failed;
	uint32_t end, value;
	char text[JOB_TEXT_MAX + 1];
};

/* A part of the command's output, borrowed from what was fed. */
struct job_piece {
	bool is_err;
	const uint8_t *data;
	size_t size; /* 0: none */
};

/* Reads from `data`; returns how many bytes it used (all, or up to the end of a piece), -EBADMSG
 * for what is no frame: then the guest is not to be listened to any more. */
ssize_t job_parser_take(struct job_parser *parser, const void *data, size_t size,
			struct job_piece *ret_piece) __must_check;

void job_keep(struct job_kept *kept, const void *data, size_t size);
/* A new text of what was kept, "…" before it if there was more. NULL when out of memory. */
char *job_kept_text(const struct job_kept *kept) __must_check;

/* In job-console.c: of a console's log. Both print to standard error. */
void job_console_tail(int log_fd, int lines);
/* From the first line of the kernel's complaint on. */
void job_console_trace(int log_fd);
