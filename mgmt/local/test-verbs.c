/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Detached VMs and the verbs that act on them by name, with the fake VMM.
 */
#include <criterion/criterion.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mgmt/local/test-host.h"

static struct host host;
static struct said said;

static void init(void)
{
	host_init(&host);
}

static void deinit(void)
{
	host_deinit(&host);
}

TestSuite(verbs, .init = init, .fini = deinit, .timeout = 60);

static void detach(const char *name, const char *append)
{
	char expected[64];

	host_corral(&host, &said, "run", "--detach", "--name", name, "--kernel", host.kernel,
		    "--append", append, NULL);
	cr_assert_eq(said.status, 0, "%d: %s", said.status, said.err);
	snprintf(expected, sizeof(expected), "%s\n", name);
	cr_assert_str_eq(said.out, expected);
	cr_assert_str_empty(said.err);
}

static void ask(const char *verb, const char *name, int status)
{
	host_corral(&host, &said, verb, name, NULL);
	cr_assert_eq(said.status, status, "%s: %d: %s", verb, said.status, said.err);
}

Test(verbs, detached_vm_lives_on_and_wait_tells_its_end)
{
	detach("d", "say=hello");
	ask("pause", "d", 0);
	ask("ps", NULL, 0);
	assert_has(said.out, "paused");
	ask("resume", "d", 0);
	ask("shutdown", "d", 0);
	ask("wait", "d", 0);
	ask("logs", "d", 0);
	assert_has(said.out, "hello\nup\n");
	ask("ps", NULL, 0);
	assert_has(said.out, "ended: power-off");
}

Test(verbs, wait_blocks_until_the_end)
{
	struct running wait;

	detach("d", "echo");
	wait = host_start(&host, "wait", "d", NULL);
	ask("kill", "d", 0);
	running_end(&host, &wait, &said);
	cr_assert_eq(said.status, 7, "%d: %s", said.status, said.err);
	assert_has(said.err, "\"d\" ended (quit)");
}

/* The launcher removes its directory; who waits learns the end all the same. */
Test(verbs, wait_for_a_vm_in_the_foreground)
{
	for (int i = 0; i < 20; i++) {
		struct running vm =
			host_start(&host, "run", "--name", "f", "--kernel", host.kernel, NULL);
		struct running wait;
		struct said end;

		running_expect(&vm, "up\n");
		wait = host_start(&host, "wait", "f", NULL);
		ask("ps", NULL, 0); /* gives `wait` time on most rounds; both orders are right */
		kill(host_vmm(&host, "f"), SIGKILL);
		running_end(&host, &vm, &end);
		cr_assert_eq(end.status, 8);
		running_end(&host, &wait, &end);
		cr_assert(end.status == 8 || strstr(end.err, "no VM named"), "%d: %s", end.status,
			  end.err);
	}
}

Test(verbs, detached_start_that_fails_says_why_and_leaves_nothing)
{
	host_corral(&host, &said, "run", "--detach", "--name", "d", "--kernel", host.kernel,
		    "--append", "fail", NULL);
	cr_assert_eq(said.status, 1);
	assert_has(said.err, "\"d\" ended (start-failed): the fake guest's");
	assert_lines(said.err, 1);
	cr_assert_eq(host_left(&host), 0);
}

Test(verbs, a_vmm_nobody_waited_for)
{
	pid_t vmm;

	detach("d", "echo");
	vmm = host_vmm(&host, "d");
	kill(vmm, SIGKILL);
	process_gone(vmm);
	ask("wait", "d", 10);
	assert_has(said.err, "the VMM left no record");
	detach("d", "echo"); /* the name is free */
	ask("kill", "d", 0);
}

Test(verbs, kill_ends_a_vmm_that_does_not_answer)
{
	detach("d", "deaf");
	ask("kill", "d", 0);
	ask("wait", "d", 8);
	assert_has(said.err, "killed by SIGKILL");
	ask("kill", "d", 1);
	assert_has(said.err, "not running");
}

Test(verbs, shutdown_gives_up_on_a_stubborn_guest)
{
	detach("d", "stubborn");
	host_corral(&host, &said, "shutdown", "d", "--timeout", "1", NULL);
	cr_assert_eq(said.status, 1);
	assert_has(said.err, "has not powered off within 1 s: `corral kill d` ends it");
	ask("kill", "d", 0);
}

Test(verbs, garbage_from_a_vmm_is_refused)
{
	detach("d", "garbage");
	ask("pause", "d", 1);
	assert_has(said.err, "no answer to \"pause\"");
	ask("ps", NULL, 0);
	assert_has(said.out, "not-answering");
	ask("kill", "d", 0);
}

Test(verbs, what_the_vmm_refuses_is_said_without_control_bytes)
{
	detach("d", "echo");
	ask("reset", "d", 1);
	assert_has(said.err, "corral: \"d\": the fake VMM cannot? do that");
	ask("kill", "d", 0);
}

Test(verbs, stats_names_what_is_shared)
{
	json_t *json;

	detach("d", "echo");
	ask("stats", "d", 0);
	assert_has(said.out, "KSM: saved              -640 B");
	assert_has(said.out, "guest memory            512 MiB");
	host_corral(&host, &said, "stats", "d", "--json", NULL);
	json = json_loads(said.out, 0, NULL);
	cr_assert_eq(json_integer_value(json_object_get(json_object_get(json, "exits"), "halt")),
		     9);
	json_decref(json);
	ask("kill", "d", 0);
}

Test(verbs, ps_as_json)
{
	json_t *json, *vm;

	detach("a", "echo");
	detach("b", "end=panic");
	ask("wait", "b", 4);
	host_corral(&host, &said, "ps", "--json", NULL);
	json = json_loads(said.out, 0, NULL);
	cr_assert_eq(json_array_size(json), 2, "%s", said.out);
	vm = json_array_get(json, 0);
	cr_assert_str_eq(json_string_value(json_object_get(vm, "state")), "running");
	cr_assert_eq(json_integer_value(json_object_get(vm, "pid")), host_vmm(&host, "a"));
	vm = json_array_get(json, 1);
	cr_assert_str_eq(json_string_value(json_object_get(vm, "reason")), "panic");
	json_decref(json);
	ask("kill", "a", 0);
}

Test(verbs, logs_follow_to_the_end)
{
	struct running logs;

	detach("d", "stubborn");
	logs = host_start(&host, "logs", "d", "--follow", NULL);
	running_expect(&logs, "up\n");
	kill(host_vmm(&host, "d"), SIGTERM);
	running_expect(&logs, "pressed\n");
	ask("kill", "d", 0);
	running_end(&host, &logs, &said);
	cr_assert_eq(said.status, 0, "%s", said.err);
	cr_assert_str_empty(said.out);
}

Test(verbs, logs_of_a_console_file)
{
	char console[96];
	struct stat st;

	snprintf(console, sizeof(console), "file=%s/log", host.dir);
	host_corral(&host, &said, "run", "--detach", "--name", "d", "--kernel", host.kernel,
		    "--console", console, "--append", "say=to-the-file", NULL);
	cr_assert_eq(said.status, 0, "%s", said.err);
	ask("kill", "d", 0);
	cr_assert(!stat(console + 5, &st));
	ask("logs", "d", 0);
	assert_has(said.out, "to-the-file\nup\n");
}

Test(verbs, console_is_handed_over_and_left_without_harm)
{
	struct running console;

	detach("d", "echo");
	console = host_start(&host, "console", "d", NULL);
	running_expect(&console, "hello again\n");
	cr_assert_eq(write(console.in, "ping", 4), 4);
	running_expect(&console, "ping");
	kill(console.pid, SIGTERM);
	running_end(&host, &console, &said);
	cr_assert_eq(said.status, 0);
	ask("resume", "d", 0);
	console = host_start(&host, "console", "d", NULL);
	running_expect(&console, "hello again\n");
	ask("kill", "d", 0);
	running_end(&host, &console, &said);
	assert_has(said.err, "the console of \"d\" has ended");
}

Test(verbs, a_console_taken_from_a_launcher_leaves_its_vm_running)
{
	struct running vm = host_start(&host, "run", "--name", "f", "--kernel", host.kernel,
				       "--append", "echo", NULL);
	struct running console;

	running_expect(&vm, "up\n");
	console = host_start(&host, "console", "f", NULL);
	running_expect(&console, "hello again\n");
	ask("shutdown", "f", 0);
	running_end(&host, &console, &said);
	running_end(&host, &vm, &said);
	cr_assert_eq(said.status, 0, "%d: %s", said.status, said.err);
}

/* Two verbs, two flags: all of the table answers. */
Test(verbs, help_is_there_for_all)
{
	static const char *const verbs[] = {
		"run",   "ps",   "wait",  "logs",   "console", "pause",   "resume", "shutdown",
		"reset", "kill", "stats", "doctor", "help",    "balloon", "link",   "ssh"};

	host_corral(&host, &said, NULL);
	cr_assert_eq(said.status, 0);
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
		char line[64];

		assert_has(said.out, verbs[i]);
		snprintf(line, sizeof(line), "corral %s", verbs[i]);
		{
			struct said one;

			host_corral(&host, &one, "help", verbs[i], NULL);
			cr_assert_eq(one.status, 0);
			assert_has(one.out, line);
		}
	}
}

Test(verbs, doctor_agrees_with_itself)
{
	json_t *json, *check;
	size_t i;
	int kvm = -1;

	host_corral(&host, &said, "doctor", "--json", NULL);
	json = json_loads(said.out, 0, NULL);
	cr_assert_eq(json_is_true(json_object_get(json, "able")), said.status == 0);
	json_array_foreach(json_object_get(json, "checks"), i, check)
	{
		const char *state = json_string_value(json_object_get(check, "state"));

		if (!strcmp(json_string_value(json_object_get(check, "name")), "kvm"))
			kvm = strcmp(state, "missing") != 0;
	}
	cr_assert_eq(kvm, said.status == 0);
	cr_assert_geq(i, 14);
	json_decref(json);
}
