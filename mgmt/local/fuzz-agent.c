/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzes what a guest agent says. The bytes come over a socket as an agent's would, are brought in
 * step and read as answers; each answer is also read as every kind there is.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "mgmt/local/agent.h"
#include "mgmt/local/guest.h"

#define BYTES_MAX 65536

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static FILE *nowhere;

static void check_sentence(int r, const struct error *err)
{
	assert(r >= 0 || (r == err->code && *err->text));
}

static void print_all(const json_t *result)
{
	struct guest_status status;
	struct error err = ERROR_NULL;
	int r = guest_status_read(result, &status, &err);

	check_sentence(r, &err);
	if (r == 0) {
		assert(status.exited || (!status.out && !status.err));
		assert(status.status >= 0 && status.status <= 255);
		guest_status_deinit(&status);
	}
	guest_print_info(nowhere, result);
	guest_print_network(nowhere, result);
}

/* Line by line, without a socket. */
static void parse(const char *text, size_t size)
{
	while (size > 0) {
		const char *end = memchr(text, '\n', size);
		size_t length = end ? (size_t)(end - text) : size;
		struct error err = ERROR_NULL;
		json_t *result = NULL;
		int r = agent_parse(text, length, "guest-x", &result, &err);

		check_sentence(r, &err);
		assert((r == 0) == (result != NULL));
		if (r == 0)
			print_all(result);
		json_decref(result);
		text += length + (end != NULL);
		size -= length + (end != NULL);
	}
}

static void decode(const uint8_t *data, size_t size)
{
	char *text = strndup((const char *)data, size);
	uint8_t *out = NULL;
	size_t n = 0;
	int r = agent_base64(text, &out, &n);

	assert(r == -EBADMSG || (r == 0 && n <= strlen(text) / 4 * 3));
	free(out);
	free(text);
}

/* The other side has said all and is gone, so nothing waits. */
static void talk(const uint8_t *data, size_t size)
{
	struct error err = ERROR_NULL;
	struct agent agent;
	json_t *result;
	int ends[2], r;

	r = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends);
	assert(r == 0);
	r = fd_write_full(ends[1], data, size);
	assert(r == 0);
	shutdown(ends[1], SHUT_WR);
	agent_init(&agent, ends[0], "vm");
	r = agent_call(&agent, "guest-x", NULL, 1000, NULL, &err);
	check_sentence(r, &err);
	for (int i = 0; i < 16 && r != -EPIPE; i++) {
		err = ERROR_NULL;
		r = i & 1 ? agent_tell(&agent, "guest-y", NULL, 1000, &err)
			  : agent_call(&agent, "guest-x", NULL, 1000, &result, &err);
		check_sentence(r, &err);
		if (r == 0 && !(i & 1))
			json_decref(result);
	}
	err = ERROR_NULL;
	r = agent_sync(&agent, 1000, &err);
	check_sentence(r, &err);
	agent_deinit(&agent);
	fd_close(ends[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!nowhere)
		nowhere = fopen("/dev/null", "w");
	assert(nowhere);
	if (size > BYTES_MAX)
		return 0;
	parse((const char *)data, size);
	decode(data, size);
	talk(data, size);
	return 0;
}
