/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The asking side of the QEMU guest agent's protocol: one JSON object a line, over a stream that
 * another client may have left half-way. The agent is a program of the guest: it may be absent,
 * slow, silent or hostile. Nothing here waits beyond a deadline or keeps more than one reply.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/macros.h"

#define AGENT_REPLY_MAX  (4u << 20) /* bytes of one line; a command's output comes as one */
#define AGENT_DEPTH_MAX  32         /* objects and lists inside each other */
#define AGENT_TIMEOUT_MS 10000      /* for what an agent answers at once */

struct agent {
	int fd;             /* owned, -1 when not connected */
	const char *vm;     /* borrowed: for sentences */
	char *data;         /* owned: what was read and not yet used */
	size_t size, used;  /* allocated; bytes in it */
	uint64_t last_sync; /* the number the agent was asked to repeat */
};

/* Takes the connected stream over. */
void agent_init(struct agent *agent, int fd, const char *vm);
void agent_deinit(struct agent *agent);

/* Throws away what the stream still holds of others, and sees whether there is an agent. */
int agent_sync(struct agent *agent, int timeout_ms, struct error *err) __must_check;

/*
 * Asks and waits for the answer. `arguments` may be NULL (a reference is taken over either way); so
 * may `ret_result`, else the caller owns what it gets. A refusal of the agent's is -EREMOTEIO with
 * its words.
 */
int agent_call(struct agent *agent, const char *command, json_t *arguments, int timeout_ms,
	       json_t **ret_result, struct error *err) __must_check;

/* For a command that answers only when it fails. */
int agent_tell(struct agent *agent, const char *command, json_t *arguments, int timeout_ms,
	       struct error *err) __must_check;

/* The parts, for tests. A line without its newline: 0 with the result, or the sentence. */
int agent_parse(const char *line, size_t length, const char *command, json_t **ret_result,
		struct error *err) __must_check;
/* Strict: groups of four, padded. The caller frees. -EBADMSG. */
int agent_base64(const char *text, uint8_t **ret_data, size_t *ret_size) __must_check;
