/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `corral guest NAME …`: asks the program that runs in the guest (qemu-guest-agent, by its channel
 * org.qemu.guest_agent.0). In: the words after the verb. Out: what it told, or what its command
 * printed and that command's own exit status.
 */
#include "mgmt/local/guest.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "mgmt/local/agent.h"
#include "mgmt/local/client.h"
#include "mgmt/local/local.h"
#include "mgmt/local/rundir.h"
#include "mgmt/local/tree.h"

#define SYNC_MS        5000
#define FREEZE_MS      120000 /* it writes out what is not on the disks yet */
#define FIRST_WAIT_MS  10
#define LONGEST_MS     500
#define STATUS_BROKEN  125 /* as for `corral run … -- COMMAND`: the command was not judged */
#define STATUS_TIMEOUT 124

struct request {
	const char *name, *action;
	bool json;
	int timeout_s; /* exec: 0 for as long as it takes */
	int argc;      /* exec: the command */
	char **argv;
};

/* The VMM gets one end of a socket for the agent's channel; one client at a time has it. */
int guest_agent_open(struct agent *agent, const struct rundir *dir, struct error *err)
{
	int ends[2], r;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return error_set(err, -errno, "cannot make a socket: %s", strerror(errno));
	r = client_ask(dir, CONTROL_AGENT, NULL, ends[1], NULL, err);
	fd_close(ends[1]);
	agent_init(agent, ends[0], dir->name);
	return r < 0 ? r : agent_sync(agent, SYNC_MS, err);
}

/* ---- exec ---- */

static json_t *exec_arguments(const struct request *request)
{
	json_t *words = json_array();

	for (int i = 1; i < request->argc; i++)
		json_array_append_new(words, json_string(request->argv[i]));
	/* NULL for a word that is not UTF-8: the array lacks it then. */
	if (json_array_size(words) != (size_t)(request->argc - 1)) {
		json_decref(words);
		return NULL;
	}
	return json_pack("{s:s, s:o, s:b}", "path", request->argv[0], "arg", words,
			 "capture-output", 1);
}

static int exec_start(struct agent *agent, const struct request *request, json_int_t *ret_pid,
		      struct error *err)
{
	json_t *arguments = exec_arguments(request), *result, *pid;
	int r;

	if (!arguments)
		return error_set(err, -EILSEQ,
				 "cannot run \"%s\" in the guest: the words must be UTF-8",
				 request->argv[0]);
	r = agent_call(agent, "guest-exec", arguments, AGENT_TIMEOUT_MS, &result, err);
	if (r < 0)
		return r;
	pid = json_object_get(result, "pid");
	if (!json_is_integer(pid) || json_integer_value(pid) <= 0)
		r = error_set(err, -EBADMSG, "the guest agent gave the command no number");
	else
		*ret_pid = json_integer_value(pid);
	json_decref(result);
	return r;
}

static int exec_look(struct agent *agent, json_int_t pid, struct guest_status *status,
		     struct error *err)
{
	json_t *result;
	int r = agent_call(agent, "guest-exec-status", json_pack("{s:I}", "pid", pid),
			   AGENT_TIMEOUT_MS, &result, err);

	if (r < 0)
		return r;
	r = guest_status_read(result, status, err);
	json_decref(result);
	return r;
}

/* The agent tells nobody when a command ends: it is asked, less and less often. */
static int exec_wait(struct agent *agent, const struct request *request, json_int_t pid,
		     struct guest_status *status, struct error *err)
{
	int64_t end = request->timeout_s ? clock_ms() + 1000LL * request->timeout_s : INT64_MAX;
	int pause = FIRST_WAIT_MS, r;

	for (;;) {
		struct pollfd lost = {.fd = agent->fd, .events = POLLRDHUP};
		int64_t left;

		r = exec_look(agent, pid, status, err);
		if (r < 0 || status->exited)
			return r;
		left = end - clock_ms();
		if (left <= 0)
			return error_set(err, -ETIME,
					 "\"%s\" still runs in the guest after %d s, as process "
					 "%lld there",
					 request->argv[0], request->timeout_s, (long long)pid);
		poll(&lost, 1, (int)MIN((int64_t)pause, left));
		pause = MIN(2 * pause, LONGEST_MS);
	}
}

static int exec(struct agent *agent, const struct request *request, struct error *err)
{
	struct guest_status status = {0};
	json_int_t pid = 0;
	int r = exec_start(agent, request, &pid, err);

	if (r == 0)
		r = exec_wait(agent, request, pid, &status, err);
	if (r < 0)
		return r;
	if (fd_write_full(STDOUT_FILENO, status.out, status.out_size) < 0 ||
	    fd_write_full(STDERR_FILENO, status.err, status.err_size) < 0)
		r = error_set(err, -EIO, "cannot pass on what \"%s\" printed: %s", request->argv[0],
			      strerror(errno));
	if (r == 0 && status.truncated)
		local_say("the guest agent kept only the first part of what \"%s\" printed",
			  request->argv[0]);
	if (r == 0)
		r = status.status;
	guest_status_deinit(&status);
	return r;
}

/* ---- the rest ---- */

/* One answer of several: what the agent does not know is left out. */
static int info_part(struct agent *agent, json_t *info, const char *key, const char *command,
		     struct error *err)
{
	json_t *result;
	int r = agent_call(agent, command, NULL, AGENT_TIMEOUT_MS, &result, err);

	if (r == -EREMOTEIO)
		return 0;
	if (r == 0 && json_object_set_new(info, key, result) < 0)
		r = error_set(err, -ENOMEM, "cannot keep the guest's answers: out of memory");
	return r;
}

static int info(struct agent *agent, const struct request *request, struct error *err)
{
	static const struct {
		const char *key, *command;
	} parts[] = {
		{"agent", "guest-info"},      {"host", "guest-get-host-name"},
		{"os", "guest-get-osinfo"},   {"network", "guest-network-get-interfaces"},
		{"users", "guest-get-users"}, {"filesystems", "guest-get-fsinfo"},
	};
	json_t *all = json_object();
	int r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(parts) && r == 0; i++)
		r = info_part(agent, all, parts[i].key, parts[i].command, err);
	if (r == 0 && request->json)
		r = tree_print_json(all);
	else if (r == 0)
		guest_print_info(stdout, all);
	json_decref(all);
	return r;
}

static int network(struct agent *agent, const struct request *request, struct error *err)
{
	json_t *result;
	int r = agent_call(agent, "guest-network-get-interfaces", NULL, AGENT_TIMEOUT_MS, &result,
			   err);

	if (r < 0)
		return r;
	if (request->json)
		r = tree_print_json(result);
	else
		guest_print_network(stdout, result);
	json_decref(result);
	return r;
}

int guest_freeze(struct agent *agent, bool freezes, json_int_t *ret_n, struct error *err)
{
	json_t *result;
	int r = agent_call(agent, freezes ? "guest-fsfreeze-freeze" : "guest-fsfreeze-thaw", NULL,
			   FREEZE_MS, &result, err);

	if (r < 0)
		return r;
	if (!json_is_integer(result))
		r = error_set(err, -EBADMSG, "the guest agent did not say what it has %s",
			      freezes ? "frozen" : "thawed");
	else if (ret_n)
		*ret_n = json_integer_value(result);
	json_decref(result);
	return r;
}

static int freeze_or_thaw(struct agent *agent, const struct request *request, struct error *err)
{
	bool freezes = !strcmp(request->action, "freeze");
	json_int_t n = 0;
	int r = guest_freeze(agent, freezes, &n, err);

	if (r == 0)
		printf("%lld filesystem%s of \"%s\" %s\n", (long long)n, n == 1 ? "" : "s",
		       request->name, freezes ? "frozen" : "thawed");
	return r;
}

/* The VM may be gone before there is an answer. */
static int shutdown_guest(struct agent *agent, const struct request *request _unused_,
			  struct error *err)
{
	int r = agent_tell(agent, "guest-shutdown", json_pack("{s:s}", "mode", "powerdown"),
			   AGENT_TIMEOUT_MS, err);

	return r == -EPIPE || r == -ECONNRESET ? 0 : r;
}

static int ping(struct agent *agent, const struct request *request, struct error *err)
{
	int r = agent_call(agent, "guest-ping", NULL, AGENT_TIMEOUT_MS, NULL, err);

	if (r == 0)
		printf("the guest agent of \"%s\" answers\n", request->name);
	return r;
}

static const struct action {
	const char *name;
	int (*run)(struct agent *agent, const struct request *request, struct error *err);
} actions[] = {
	{"info", info},
	{"exec", exec},
	{"freeze", freeze_or_thaw},
	{"thaw", freeze_or_thaw},
	{"shutdown", shutdown_guest},
	{"ping", ping},
	{"network", network},
};

static const struct action *action_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(actions); i++)
		if (!strcmp(actions[i].name, name))
			return &actions[i];
	return NULL;
}

void guest_help(void)
{
	printf("  info [--json]             agent, system, host name, addresses, users, "
	       "filesystems\n"
	       "  network [--json]          interfaces and addresses\n"
	       "  exec [--timeout S] -- CMD ARG...\n"
	       "                            runs it, prints what it printed, ends with its "
	       "status;\n"
	       "                            124: still running after S seconds, 125: not judged\n"
	       "  freeze, thaw              the guest's filesystems, for a consistent copy of its "
	       "disks\n"
	       "  shutdown                  asks the guest to power off\n"
	       "  ping                      is the agent there?\n\n"
	       "The agent is Debian's qemu-guest-agent, in a VM started with --agent on.\n");
}

static int timeout_parse(const char *text, int *ret_seconds, struct error *err)
{
	char *end = NULL;
	long value = text ? strtol(text, &end, 10) : 0;

	if (!text || end == text || *end || value < 1 || value > 86400)
		return error_set(err, -EINVAL,
				 "--timeout: \"%s\" is no number of seconds from 1 to 86400",
				 text ? text : "");
	*ret_seconds = (int)value;
	return 0;
}

/* NAME ACTION, flags, and for exec all that comes after "--". */
static int request_parse(struct request *request, int argc, char **argv, struct error *err)
{
	int r = 0;

	if (argc < 3 || !action_find(argv[2]))
		return error_set(err, -EINVAL,
				 "`corral guest NAME info|exec|freeze|thaw|shutdown|ping|network`");
	request->name = argv[1];
	request->action = argv[2];
	for (int i = 3; i < argc && r == 0 && !request->argc; i++) {
		bool exec_action = !strcmp(request->action, "exec");

		if (exec_action && !strcmp(argv[i], "--timeout")) {
			r = timeout_parse(i + 1 < argc ? argv[i + 1] : NULL, &request->timeout_s,
					  err);
			i++;
		} else if (exec_action && !strcmp(argv[i], "--") && i + 1 < argc) {
			request->argc = argc - i - 1;
			request->argv = argv + i + 1;
		} else if (!exec_action && !strcmp(argv[i], "--json")) {
			request->json = true;
		} else {
			r = error_set(err, -EINVAL,
				      "unexpected word \"%s\", see `corral help guest`", argv[i]);
		}
	}
	if (r == 0 && !strcmp(request->action, "exec") && !request->argc)
		r = error_set(err, -EINVAL,
			      "which command? `corral guest NAME exec [--timeout S] -- CMD ARG…`");
	return r;
}

int verb_guest(int argc, char **argv)
{
	struct request request = {0};
	struct error err = ERROR_NULL;
	struct agent agent = {.fd = -1};
	struct rundir dir;
	bool exec_action;
	int r = request_parse(&request, argc, argv, &err);

	if (r < 0)
		return local_fail(&err, LOCAL_USAGE);
	exec_action = !strcmp(request.action, "exec");
	r = rundir_open(&dir, request.name, &err);
	if (r < 0)
		return local_fail(&err, exec_action ? STATUS_BROKEN : LOCAL_FAILED);
	r = guest_agent_open(&agent, &dir, &err);
	if (r == 0)
		r = action_find(request.action)->run(&agent, &request, &err);
	agent_deinit(&agent);
	rundir_close(&dir);
	if (r >= 0)
		return r;
	if (!exec_action)
		return local_fail(&err, LOCAL_FAILED);
	return local_fail(&err, r == -ETIME ? STATUS_TIMEOUT : STATUS_BROKEN);
}
