/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: a command and its arguments. Out: what the guest agent returned, or one sentence. A byte 0xFF
 * ends whatever half a command or reply is under way on either side (guest-sync-delimited); what
 * comes before the reply with our own number is of others.
 */
#include "mgmt/local/agent.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/fd.h"

#define DELIMITER  '\xff'
#define FIRST_SIZE 4096
#define SYNC_MAX   0x7fffffffu /* small enough for every agent's integers */

void agent_init(struct agent *agent, int fd, const char *vm)
{
	*agent = (struct agent){.fd = fd, .vm = vm};
}

void agent_deinit(struct agent *agent)
{
	agent->fd = fd_close(agent->fd);
	free(take_ptr(agent->data));
	agent->size = agent->used = 0;
}

static int silent(const struct agent *agent, struct error *err)
{
	return error_set(err, -ETIMEDOUT,
			 "the guest agent of \"%s\" does not answer; is qemu-guest-agent running "
			 "in the guest?",
			 agent->vm);
}

static int lost(const struct agent *agent, int code, struct error *err)
{
	return error_set(err, code, "the channel to the guest agent of \"%s\" is lost: %s",
			 agent->vm, code == -EPIPE ? "the VM closed it" : strerror(-code));
}

/* ---- bytes ---- */

static int wait_for(const struct agent *agent, short events, int64_t deadline)
{
	struct pollfd ready = {.fd = agent->fd, .events = events};
	int64_t left = deadline - clock_ms();
	int r;

	if (left <= 0)
		return -ETIMEDOUT;
	r = poll(&ready, 1, (int)MIN(left, (int64_t)INT32_MAX));
	if (r < 0)
		return errno == EINTR ? 0 : -errno;
	return r == 0 ? -ETIMEDOUT : 0;
}

static int write_all(const struct agent *agent, const char *data, size_t size, int64_t deadline)
{
	while (size > 0) {
		ssize_t n = send(agent->fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
		int r;

		if (n >= 0) {
			data += n;
			size -= (size_t)n;
			continue;
		}
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		r = wait_for(agent, POLLOUT, deadline);
		if (r < 0)
			return r;
	}
	return 0;
}

static int make_room(struct agent *agent)
{
	size_t size = agent->size ? 2 * agent->size : FIRST_SIZE;
	char *data;

	if (agent->used < agent->size)
		return 0;
	if (agent->size > AGENT_REPLY_MAX)
		return -EMSGSIZE;
	data = realloc(agent->data, size);
	if (!data)
		return -ENOMEM;
	agent->data = data;
	agent->size = size;
	return 0;
}

/* More bytes behind those there are. */
static int read_some(struct agent *agent, int64_t deadline)
{
	ssize_t n;
	int r = make_room(agent);

	if (r < 0)
		return r;
	do {
		r = wait_for(agent, POLLIN, deadline);
		if (r < 0)
			return r;
		n = recv(agent->fd, agent->data + agent->used, agent->size - agent->used,
			 MSG_DONTWAIT);
	} while (n < 0 && (errno == EAGAIN || errno == EINTR));
	if (n <= 0)
		return n < 0 ? -errno : -EPIPE;
	agent->used += (size_t)n;
	return 0;
}

static void skip(struct agent *agent, size_t n)
{
	agent->used -= n;
	memmove(agent->data, agent->data + n, agent->used);
}

/* The next line lies at the start of the data then; its length is without the newline. */
static int read_line(struct agent *agent, int64_t deadline, size_t *ret_length)
{
	size_t seen = 0;

	for (;;) {
		char *end = agent->used > seen
				    ? memchr(agent->data + seen, '\n', agent->used - seen)
				    : NULL;
		int r;

		if (end) {
			*ret_length = (size_t)(end - agent->data);
			return *ret_length > AGENT_REPLY_MAX ? -EMSGSIZE : 0;
		}
		seen = agent->used;
		r = read_some(agent, deadline);
		if (r < 0)
			return r;
	}
}

/* Drops all up to a delimiter, however much there is. */
static int skip_to_delimiter(struct agent *agent, int64_t deadline)
{
	for (;;) {
		char *at = agent->used ? memchr(agent->data, DELIMITER, agent->used) : NULL;
		int r;

		if (at) {
			skip(agent, (size_t)(at - agent->data) + 1);
			return 0;
		}
		agent->used = 0;
		r = read_some(agent, deadline);
		if (r < 0)
			return r;
	}
}

/* ---- replies ---- */

/* jansson goes as deep as the text does, up to its own two thousand. */
static bool too_deep(const char *text, size_t length)
{
	bool in_string = false;
	int depth = 0;

	for (size_t i = 0; i < length; i++) {
		if (in_string && text[i] == '\\')
			i++;
		else if (text[i] == '"')
			in_string = !in_string;
		else if (!in_string && (text[i] == '{' || text[i] == '['))
			depth++;
		else if (!in_string && (text[i] == '}' || text[i] == ']'))
			depth--;
		if (depth > AGENT_DEPTH_MAX)
			return true;
	}
	return false;
}

static int refusal(const json_t *error, const char *command, struct error *err)
{
	const char *text = json_string_value(json_object_get(error, "desc"));

	error_set(err, -EREMOTEIO, "the guest agent refused %s: %.300s", command,
		  text ? text : "it gave no reason");
	if (err)
		text_make_printable(err->text);
	return -EREMOTEIO;
}

int agent_parse(const char *line, size_t length, const char *command, json_t **ret_result,
		struct error *err)
{
	json_t *reply = NULL, *error, *result;
	int r = 0;

	if (!too_deep(line, length))
		reply = json_loadb(line, length, JSON_REJECT_DUPLICATES, NULL);
	error = json_object_get(reply, "error");
	result = json_object_get(reply, "return");
	if (error)
		r = refusal(error, command, err);
	else if (!result)
		r = error_set(err, -EBADMSG, "the guest agent's answer to %s makes no sense",
			      command);
	else if (ret_result)
		*ret_result = json_incref(result);
	json_decref(reply);
	return r;
}

static int base64_value(char c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (c >= '0' && c <= '9')
		return c - '0' + 52;
	return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Four letters, the last two of which may be padding at the end of the text: bytes, or -EBADMSG. */
static int base64_group(const char *text, bool last, uint8_t *data)
{
	int padding = last && text[3] == '=' ? 1 + (text[2] == '=') : 0;
	uint32_t bits = 0;

	for (int i = 0; i < 4; i++) {
		int value = i < 4 - padding ? base64_value(text[i]) : 0;

		if (value < 0)
			return -EBADMSG;
		bits = bits << 6 | (uint32_t)value;
	}
	for (int i = 0; i < 3 - padding; i++)
		data[i] = (uint8_t)(bits >> (16 - 8 * i));
	return 3 - padding;
}

int agent_base64(const char *text, uint8_t **ret_data, size_t *ret_size)
{
	size_t length = strlen(text), size = 0;
	_cleanup_(freep) uint8_t *data = malloc(length / 4 * 3 + 1);

	if (!data)
		return -ENOMEM;
	if (length % 4 != 0)
		return -EBADMSG;
	for (size_t i = 0; i < length; i += 4) {
		int n = base64_group(text + i, i + 4 == length, data + size);

		if (n < 0)
			return n;
		size += (size_t)n;
	}
	*ret_data = take_ptr(data);
	*ret_size = size;
	return 0;
}

/* ---- commands ---- */

static int send_command(struct agent *agent, const char *command, json_t *arguments, bool delimited,
			int64_t deadline)
{
	_cleanup_(freep) char *text = NULL;
	json_t *request = json_pack("{s:s}", "execute", command);
	int r = request ? 0 : -ENOMEM;

	if (arguments && r == 0 && json_object_set(request, "arguments", arguments) < 0)
		r = -ENOMEM;
	json_decref(arguments);
	if (r == 0)
		text = json_dumps(request, JSON_COMPACT);
	json_decref(request);
	if (!text)
		return -ENOMEM;
	if (delimited)
		r = write_all(agent, (const char[]){DELIMITER}, 1, deadline);
	if (r == 0)
		r = write_all(agent, text, strlen(text), deadline);
	return r < 0 ? r : write_all(agent, "\n", 1, deadline);
}

static int failed(const struct agent *agent, const char *command, int code, struct error *err)
{
	if (code == -EMSGSIZE)
		return error_set(err, code,
				 "the guest agent of \"%s\" answers %s with more than %u MiB",
				 agent->vm, command, AGENT_REPLY_MAX >> 20);
	return code == -ETIMEDOUT ? silent(agent, err) : lost(agent, code, err);
}

/* The line after a delimiter: 1 if it repeats our number. */
static int check_sync(struct agent *agent, int64_t deadline)
{
	json_t *result = NULL;
	size_t length;
	int r = read_line(agent, deadline, &length);

	if (r < 0)
		return r;
	r = agent_parse(agent->data, length, "guest-sync-delimited", &result, NULL) == 0 &&
	    json_is_integer(result) && (uint64_t)json_integer_value(result) == agent->last_sync;
	json_decref(result);
	if (r == 1)
		skip(agent, length + 1);
	return r;
}

/* Up to the reply with our number. What is between is skipped, a reply that is too long as well. */
static int wait_sync(struct agent *agent, int64_t deadline)
{
	int r = 0;

	while (r == 0 || r == -EMSGSIZE) {
		r = skip_to_delimiter(agent, deadline);
		if (r == 0)
			r = check_sync(agent, deadline);
	}
	return r < 0 ? r : 0;
}

static int send_sync(struct agent *agent, bool delimited, int64_t deadline)
{
	uint32_t number = 0;

	if (getrandom(&number, sizeof(number), 0) != sizeof(number))
		return -EIO;
	agent->last_sync = number & SYNC_MAX;
	return send_command(agent, "guest-sync-delimited",
			    json_pack("{s:I}", "id", (json_int_t)agent->last_sync), delimited,
			    deadline);
}

int agent_sync(struct agent *agent, int timeout_ms, struct error *err)
{
	int64_t deadline = clock_ms() + timeout_ms;
	int r = send_sync(agent, true, deadline);

	if (r == 0)
		r = wait_sync(agent, deadline);
	return r < 0 ? failed(agent, "guest-sync-delimited", r, err) : 0;
}

int agent_call(struct agent *agent, const char *command, json_t *arguments, int timeout_ms,
	       json_t **ret_result, struct error *err)
{
	int64_t deadline = clock_ms() + timeout_ms;
	int r = send_command(agent, command, arguments, false, deadline);
	size_t length;

	if (r == 0)
		r = read_line(agent, deadline, &length);
	if (r < 0)
		return failed(agent, command, r, err);
	r = agent_parse(agent->data, length, command, ret_result, err);
	skip(agent, length + 1);
	return r;
}

/* A line before the delimiter is the refusal. The command is asked without one: an agent may answer
 * that with a complaint of its own. */
int agent_tell(struct agent *agent, const char *command, json_t *arguments, int timeout_ms,
	       struct error *err)
{
	int64_t deadline = clock_ms() + timeout_ms;
	int r = send_command(agent, command, arguments, false, deadline);
	size_t length;

	if (r == 0)
		r = send_sync(agent, false, deadline);
	if (r == 0)
		r = read_line(agent, deadline, &length);
	if (r < 0)
		return failed(agent, command, r, err);
	if (agent->data[0] == DELIMITER)
		return 0;
	r = agent_parse(agent->data, length, command, NULL, err);
	skip(agent, length + 1);
	return r;
}
