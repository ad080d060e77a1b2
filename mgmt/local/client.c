/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: a method and its parameters. Out: the result object, or the VMM's refusal as a sentence that
 * is safe to print. Events in between are skipped.
 */
#include "mgmt/local/client.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/fd.h"
#include "mgmt/local/local.h"
#include "mgmt/local/rundir.h"
#include "mgmt/local/socket.h"

int client_open(struct client *client, const struct rundir *dir, struct error *err)
{
	char path[RUNDIR_PATH_MAX];
	int r = rundir_control_path(dir, path, sizeof(path));

	*client = CLIENT_NULL;
	if (r >= 0)
		r = socket_connect(path);
	if (r == -ECONNREFUSED || r == -ENOENT)
		return error_set(err, -ECONNREFUSED, "\"%s\" is not running, see `corral ps`",
				 dir->name);
	if (r < 0)
		return error_set(err, r, "cannot reach \"%s\" at \"%s\": %s", dir->name, path,
				 strerror(-r));
	client->fd = r;
	return 0;
}

void client_close(struct client *client)
{
	client->fd = fd_close(client->fd);
}

static int request_send(struct client *client, enum control_method_id method, json_t *params,
			const int *fds, size_t n_fds)
{
	_cleanup_(freep) char *line = NULL;
	json_t *request = json_pack("{s:I, s:s}", "id", (json_int_t)++client->id, "method",
				    control_methods[method].name);
	ssize_t n, size;

	if (params && json_object_set(request, "params", params) < 0)
		request = (json_decref(request), NULL);
	if (request)
		line = json_dumps(request, JSON_COMPACT);
	json_decref(request);
	if (!line)
		return -ENOMEM;
	size = strlen(line);
	line[size++] = '\n'; /* takes the place of the NUL */
	n = fd_send(client->fd, line, size, fds, n_fds);
	if (n < 0)
		return n;
	/* The socket does not block: a VMM that has not read this much is hung. */
	return n == size ? 0 : -ETIMEDOUT;
}

/* One line without its newline; what follows it is kept for the next call of the same request. */
struct reply {
	size_t used;
	char data[CONTROL_LINE_MAX + 1];
};

static int reply_read(struct client *client, struct reply *reply, int64_t deadline,
		      size_t *ret_length)
{
	for (;;) {
		char *end = memchr(reply->data, '\n', reply->used);
		struct pollfd ready = {.fd = client->fd, .events = POLLIN};
		int64_t left = deadline - clock_ms();
		ssize_t n;

		if (end) {
			*ret_length = end - reply->data;
			return 0;
		}
		if (reply->used == CONTROL_LINE_MAX)
			return -EMSGSIZE;
		if (left <= 0 || !poll(&ready, 1, left))
			return -ETIMEDOUT;
		n = recv(client->fd, reply->data + reply->used, CONTROL_LINE_MAX - reply->used,
			 MSG_DONTWAIT);
		if (!n)
			return -EPIPE;
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return -errno;
		if (n > 0)
			reply->used += n;
	}
}

static void reply_drop(struct reply *reply, size_t length)
{
	reply->used -= length + 1;
	memmove(reply->data, reply->data + length + 1, reply->used);
}

/* Reads lines until the one that answers request `client->id`. */
static int reply_find(struct client *client, json_t **ret_answer)
{
	_cleanup_(freep) struct reply *reply = malloc(sizeof(*reply));
	int64_t deadline = clock_ms() + client->timeout_ms;
	size_t length = 0;
	int r;

	if (!reply)
		return -ENOMEM;
	reply->used = 0;
	while (!(r = reply_read(client, reply, deadline, &length))) {
		json_t *line = json_loadb(reply->data, length, JSON_REJECT_DUPLICATES, NULL);

		if (!json_is_object(line)) {
			json_decref(line);
			return -EBADMSG;
		}
		if (json_integer_value(json_object_get(line, "id")) == client->id) {
			*ret_answer = line;
			return 0;
		}
		json_decref(line);
		reply_drop(reply, length);
	}
	return r;
}

/* What the VMM refuses with goes to a person: its words, without control bytes. */
static int answer_refusal(const json_t *error, struct error *err)
{
	const char *text = json_string_value(json_object_get(error, "text"));

	error_set(err, -EREMOTEIO, "%s", text ? text : "refused without a reason");
	text_harmless(err->text);
	return err->code;
}

int client_call_fds(struct client *client, enum control_method_id method, json_t *params,
		    const int *fds, size_t n_fds, json_t **ret_result, struct error *err)
{
	const char *name = control_methods[method].name;
	json_t *answer = NULL, *error, *result;
	int r = request_send(client, method, params, fds, n_fds);

	json_decref(params);
	if (r >= 0)
		r = reply_find(client, &answer);
	if (r < 0)
		return error_set(err, r, "no answer to \"%s\" from the VMM: %s", name,
				 strerror(-r));
	error = json_object_get(answer, "error");
	result = json_object_get(answer, "result");
	if (error)
		r = answer_refusal(error, err);
	else if (!json_is_object(result))
		r = error_set(err, -EBADMSG, "the VMM's answer to \"%s\" is no object", name);
	else if (ret_result)
		*ret_result = json_incref(result);
	json_decref(answer);
	return r < 0 ? r : 0;
}

int client_call(struct client *client, enum control_method_id method, json_t *params, int fd,
		json_t **ret_result, struct error *err)
{
	return client_call_fds(client, method, params, &fd, fd >= 0, ret_result, err);
}

int client_ask(const struct rundir *dir, enum control_method_id method, json_t *params, int fd,
	       json_t **ret_result, struct error *err)
{
	struct client client;
	int r = client_open(&client, dir, err);

	if (r < 0) {
		json_decref(params);
		return r;
	}
	r = client_call(&client, method, params, fd, ret_result, err);
	client_close(&client);
	return r < 0 ? error_prefix(err, "\"%s\": ", dir->name) : 0;
}
