/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `corral run`, in order: the description, the run directory and its lock, every descriptor with
 * exactly the rights it needs, the VMM, its console, its end. In: the command line. Out: the exit
 * status that says how the guest ended. Nothing stays behind of a VM that did not start, nor of one
 * that ran in the foreground.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "mgmt/local/chain.h"
#include "mgmt/local/client.h"
#include "mgmt/local/local.h"
#include "mgmt/local/nets.h"
#include "mgmt/local/open.h"
#include "mgmt/local/options.h"
#include "mgmt/local/prepare.h"
#include "mgmt/local/record.h"
#include "mgmt/local/relay.h"
#include "mgmt/local/seed.h"
#include "mgmt/local/spawn.h"
#include "mgmt/local/tree.h"

/* How the VM was last asked to end. */
enum asked { ASKED_NOTHING, ASKED_POWER, ASKED_QUIT, ASKED_KILL };

/* One start, from the description to the end. */
struct run {
	struct run_options *options;
	struct prepared *prepared;
	struct relay relay;
	pid_t vmm;
	int status; /* of the VMM, once it has ended */
	bool ready; /* the vCPUs have run */
	int asked;  /* enum asked: the strongest so far */
};

static int dry_run(const struct vm_description *vm)
{
	json_t *json = table_to_json(&vm_table, vm);
	struct grants grants;

	if (!json || json_dumpf(json, stdout, JSON_INDENT(2)) < 0 || putchar('\n') < 0 ||
	    fflush(stdout)) {
		json_decref(json);
		local_say("cannot print the description");
		return LOCAL_FAILED;
	}
	json_decref(json);
	grants_plan(&grants, vm);
	grants_print(&grants, stderr);
	chains_print(vm, stderr);
	seed_print(vm, stderr);
	nets_print(vm, stderr);
	return LOCAL_OK;
}

/* `corral run -v`: what the VMM says is in force. */
static void say_sandbox(const struct rundir *dir)
{
	struct error err = ERROR_NULL;
	json_t *sandbox;

	if (client_ask(dir, CONTROL_SANDBOX, NULL, -1, &sandbox, &err) < 0) {
		local_say("cannot ask for the sandbox: %s", err.text);
		return;
	}
	fprintf(stderr, "corral: in force for \"%s\":\n", dir->name);
	tree_print(stderr, sandbox, 2);
	json_decref(sandbox);
}

static void run_resize(void *data, uint32_t columns, uint32_t rows)
{
	struct run *run = data;
	struct error err = ERROR_NULL;

	/* A serial line has no size to tell. */
	if (!run->ready || run->options->vm.console.device != VM_CONSOLE_VIRTIO)
		return;
	if (client_ask(&run->prepared->dir, CONTROL_RESIZE,
		       json_pack("{s:I, s:I}", "columns", (json_int_t)columns, "rows",
				 (json_int_t)rows),
		       -1, NULL, &err) < 0)
		local_say("%s, ignoring", err.text);
}

/* The ready pipe: a byte once the vCPUs run, or its end. */
static bool run_side(void *data)
{
	struct run *run = data;
	char byte;

	if (read(run->prepared->ready_fd, &byte, 1) != 1)
		return false;
	run->ready = true;
	if (run->options->verbose)
		say_sandbox(&run->prepared->dir);
	relay_resize(&run->relay);
	return false;
}

/* A VMM that ends before it has answered has obeyed. Two SIGTERMs could arrive as one, so the
 * second word is another. */
static void run_quit(struct run *run)
{
	struct error err = ERROR_NULL;
	int r = client_ask(&run->prepared->dir, CONTROL_QUIT, NULL, -1, NULL, &err);

	if (r < 0 && r != -EPIPE)
		kill(run->vmm, SIGTERM);
}

/* Power button first; then at once; then without asking the VMM. */
static void run_ask_to_end(struct run *run, enum asked step)
{
	static const char *const words[] = {
		[ASKED_POWER] = "power button pressed; ends in 30 s if the guest does not, at once "
				"if asked again",
		[ASKED_QUIT] = "ending now",
		[ASKED_KILL] = "killing the VMM",
	};

	local_say("\"%s\": %s", run->prepared->dir.name, words[step]);
	if (step == ASKED_POWER)
		kill(run->vmm, SIGTERM);
	else if (step == ASKED_QUIT)
		run_quit(run);
	else
		kill(run->vmm, SIGKILL);
	run->asked = MAX(run->asked, step);
}

static bool run_signal(void *data, int signal)
{
	struct run *run = data;

	if (signal != SIGCHLD) {
		run_ask_to_end(run, MIN(run->asked + 1, (int)ASKED_KILL));
		return false;
	}
	return waitpid(run->vmm, &run->status, WNOHANG) == run->vmm;
}

/* Only pressed, with no end by the clock: the person watches what comes of it. */
static void run_press(struct run *run)
{
	struct error err = ERROR_NULL;
	int r = client_ask(&run->prepared->dir, CONTROL_POWER_BUTTON, NULL, -1, NULL, &err);

	if (r < 0 && r != -EPIPE)
		local_say("%s", err.text);
}

static bool run_key(void *data, char key)
{
	struct run *run = data;

	if (key == 'p')
		run_press(run);
	else if (key == 'q')
		run_ask_to_end(run, run->asked < ASKED_QUIT ? ASKED_QUIT : ASKED_KILL);
	else
		local_say(RELAY_ESCAPE_NAME
			  " then p: power button, q: end the VM at once, " RELAY_ESCAPE_NAME
			  ": the key itself");
	return false;
}

/* Either the VMM is about to end, or it gave the console to somebody else. */
static bool run_lost(void *data)
{
	struct run *run = data;
	struct pollfd ended = {.fd = run->relay.signal_fd, .events = POLLIN};

	if (!poll(&ended, 1, 300))
		local_say("the console of \"%s\" was taken by `corral console`; the VM goes on",
			  run->prepared->dir.name);
	return false;
}

static const struct relay_ops run_relay_ops = {
	.key = run_key,
	.signal = run_signal,
	.lost = run_lost,
	.side = run_side,
	.resize = run_resize,
};

/* Stays with the VM until it has ended. */
static int run_attached(struct run *run, struct error *err)
{
	int r = relay_init(&run->relay, take_fd(run->prepared->console_fd), &run_relay_ops, run);

	if (r < 0) {
		kill(run->vmm, SIGKILL);
		waitpid(run->vmm, &run->status, 0);
		error_set(err, r, "cannot relay the console: %s", strerror(-r));
	} else {
		if (run->relay.terminal.raw)
			local_say("console of \"%s\"; " RELAY_ESCAPE_NAME " then h for help, q to "
				  "end the VM",
				  run->prepared->dir.name);
		run->relay.side_fd = run->prepared->ready_fd;
		relay_run(&run->relay);
	}
	relay_deinit(&run->relay);
	return r;
}

/* Waits until the vCPUs run, the VMM has given up, or somebody loses patience. */
static void run_until_ready(struct run *run, const sigset_t *before)
{
	sigset_t stop;
	struct pollfd fds[2] = {{.fd = run->prepared->ready_fd, .events = POLLIN},
				{.fd = -1, .events = POLLIN}};
	char byte;

	sigemptyset(&stop);
	sigaddset(&stop, SIGINT);
	sigaddset(&stop, SIGTERM);
	sigaddset(&stop, SIGHUP);
	fds[1].fd = signalfd(-1, &stop, SFD_CLOEXEC);
	while (poll(fds, 2, -1) < 0)
		;
	run->ready = (fds[0].revents & POLLIN) && read(run->prepared->ready_fd, &byte, 1) == 1;
	if (!run->ready && fds[1].revents)
		kill(run->vmm, SIGKILL);
	fd_close(fds[1].fd);
	if (!run->ready)
		waitpid(run->vmm, &run->status, 0);
	sigprocmask(SIG_SETMASK, before, NULL);
}

/* What is printed depends on whether the VMM has said it on our standard error already. */
static int run_conclude(struct run *run)
{
	const char *name = run->prepared->dir.name;
	_cleanup_(record_deinit) struct exit_record record = {};
	struct error err = ERROR_NULL;
	int r = record_read(run->prepared->exit_fd, &record, &err);
	bool said = r == 0 && record.reason == EXIT_START_FAILED && !run->options->detach;

	if (r < 0)
		local_say("%s, ignoring", err.text);
	if (r) {
		if (record_from_status(&record, name, run->status, run->ready) < 0 ||
		    record_write(run->prepared->exit_fd, &record) < 0)
			local_say("cannot record how \"%s\" ended, ignoring", name);
	}
	if (record.reason != EXIT_POWER_OFF && !said)
		local_say("\"%s\" ended (%s): %s", name, exit_reason_names[record.reason],
			  record.text ? record.text : "no more is known");
	return exit_status(record.reason);
}

/* `corral run … -- COMMAND`: its own output and status. */
static int run_command(struct run *run)
{
	struct run_options *options = run->options;
	const struct rundir *dir = &run->prepared->dir;
	_cleanup_(record_deinit) struct exit_record record = {};
	_cleanup_(fd_closep) int log = openat(dir->fd, RUNDIR_CONSOLE_LOG, O_RDONLY | O_CLOEXEC);
	struct error err = ERROR_NULL;
	int r = job_attend(&options->job, &options->vm, run->prepared, run->vmm, &run->status,
			   &run->ready);

	if (r < 0)
		local_say("cannot attend to \"%s\": %s", dir->name, strerror(-r));
	r = record_read(run->prepared->exit_fd, &record, &err);
	if (r < 0)
		local_say("%s, ignoring", err.text);
	if (r && record_from_status(&record, dir->name, run->status, run->ready) < 0)
		local_say("cannot tell how \"%s\" ended, ignoring", dir->name);
	return job_conclude(&options->job, &options->vm, &record, log);
}

static int run_started(struct run *run, const sigset_t *before, struct error *err)
{
	prepared_started(run->prepared, run->vmm);
	if (run->options->job.wanted)
		return run_command(run);
	if (run->options->detach) {
		run_until_ready(run, before);
		if (run->ready) {
			printf("%s\n", run->prepared->dir.name);
			if (run->options->verbose)
				say_sandbox(&run->prepared->dir);
			return LOCAL_OK;
		}
	} else if (run_attached(run, err) < 0) {
		local_fail(err, LOCAL_FAILED);
	}
	return run_conclude(run);
}

static int run_fail(struct run_options *options, const struct error *err)
{
	return options->job.wanted ? job_fail(&options->job, options->vm.name, err)
				   : local_fail(err, LOCAL_FAILED);
}

int run_vm(struct run_options *options)
{
	struct prepared prepared;
	struct run run = {.options = options, .prepared = &prepared};
	struct error err = ERROR_NULL;
	sigset_t before;
	int r, status = LOCAL_FAILED;

	/* Signals still end us: it may take seconds, and leaves nothing. */
	if (options->job.wanted && job_prepare(&options->job, &options->vm, &err) < 0)
		return run_fail(options, &err);
	if (!options->vm.sandbox)
		local_say("WARNING: --sandbox off: a guest that breaks out of its VMM has all the "
			  "rights you have");
	relay_block_signals(&before);
	r = prepared_init(&prepared, options, &err);
	if (r >= 0) {
		struct spawn spawn = {.grants = &prepared.grants,
				      .mask = &before,
				      .stderr_fd = prepared.log_fd,
				      .dies_with_us = !options->detach,
				      .verbose = options->verbose};

		r = spawn_vmm(&spawn, &run.vmm, &err);
	}
	if (r < 0)
		status = run_fail(options, &err);
	else
		status = run_started(&run, &before, &err);
	if (!run.ready || !options->detach)
		rundir_remove(&prepared.dir);
	prepared_deinit(&prepared);
	return status;
}

int verb_run(int argc, char **argv)
{
	struct run_options options;
	struct error err = ERROR_NULL;
	int status = options_read(&options, argc, argv, &err);

	if (status != LOCAL_OK && options.job.wanted)
		status = job_fail(&options.job, options.vm.name, &err);
	else if (status != LOCAL_OK)
		local_fail(&err, status);
	else if (options.help)
		run_help();
	else if (options.dry_run)
		status = dry_run(&options.vm);
	else
		status = run_vm(&options);
	options_deinit(&options);
	return status;
}
