/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `corral console NAME`: hands the VMM one end of a socket as its console and relays the other to
 * the terminal. Leaving it leaves the VM running.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "mgmt/local/client.h"
#include "mgmt/local/flags.h"
#include "mgmt/local/local.h"
#include "mgmt/local/relay.h"
#include "mgmt/local/rundir.h"

struct console {
	const struct rundir *dir; /* borrowed */
	struct relay relay;
};

static void console_ask(struct console *console, enum control_method_id method, json_t *params)
{
	struct error err = ERROR_NULL;

	if (client_ask(console->dir, method, params, -1, NULL, &err) < 0)
		local_say("%s", err.text);
}

static bool console_key(void *data, char key)
{
	if (key == 'q' || key == 'd')
		return true;
	if (key == 'p')
		console_ask(data, CONTROL_POWER_BUTTON, NULL);
	else
		local_say(RELAY_ESCAPE_NAME
			  " then q: leave the console, p: power button, " RELAY_ESCAPE_NAME
			  ": the key itself");
	return false;
}

static bool console_signal(void *data _unused_, int signal)
{
	return signal != SIGCHLD;
}

static bool console_lost(void *data)
{
	struct console *console = data;

	local_say("the console of \"%s\" has ended", console->dir->name);
	return true;
}

/* A serial console refuses: it has no size. */
static void console_resize(void *data, uint32_t columns, uint32_t rows)
{
	struct console *console = data;
	struct error err = ERROR_NULL;
	json_t *params =
		json_pack("{s:I, s:I}", "columns", (json_int_t)columns, "rows", (json_int_t)rows);

	if (client_ask(console->dir, CONTROL_RESIZE, params, -1, NULL, &err) < 0 &&
	    err.code != -EREMOTEIO)
		local_say("%s, ignoring", err.text);
}

static const struct relay_ops console_relay_ops = {
	.key = console_key,
	.signal = console_signal,
	.lost = console_lost,
	.resize = console_resize,
};

/* Gives the VMM its end. */
static int console_hand_over(const struct rundir *dir, int *ret_fd, struct error *err)
{
	int ends[2], r;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return error_set(err, -errno, "cannot make a console: %s", strerror(errno));
	r = client_ask(dir, CONTROL_CONSOLE, NULL, ends[1], NULL, err);
	fd_close(ends[1]);
	if (r < 0)
		fd_close(ends[0]);
	else
		*ret_fd = ends[0];
	return r;
}

static int console_attach(const struct rundir *dir, struct error *err)
{
	struct console console = {.dir = dir};
	sigset_t before;
	int fd = -1, r;

	relay_block_signals(&before);
	r = console_hand_over(dir, &fd, err);
	if (r < 0)
		return r;
	r = relay_init(&console.relay, fd, &console_relay_ops, &console);
	if (r < 0) {
		error_set(err, r, "cannot relay the console: %s", strerror(-r));
	} else {
		if (console.relay.terminal.raw)
			local_say("console of \"%s\"; " RELAY_ESCAPE_NAME
				  " then q leaves it, h for "
				  "help",
				  dir->name);
		relay_resize(&console.relay);
		relay_run(&console.relay);
	}
	relay_deinit(&console.relay);
	return r;
}

int verb_console(int argc, char **argv)
{
	struct error err = ERROR_NULL;
	const char *name = NULL;
	struct rundir dir;
	int r = flags_parse(NULL, 0, NULL, argc, argv, &name, &err);

	if (r >= 0 && !name)
		r = error_set(&err, -EINVAL, "which VM? `corral console NAME`");
	if (r < 0)
		return local_fail(&err, LOCAL_USAGE);
	if (rundir_open(&dir, name, &err) < 0)
		return local_fail(&err, LOCAL_FAILED);
	r = console_attach(&dir, &err);
	rundir_close(&dir);
	return r < 0 ? local_fail(&err, LOCAL_FAILED) : LOCAL_OK;
}
