/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command `corral`: in comes a verb with its words, out goes the exit status of the function
 * that the table names for it. Links base (without its loop) and proto and nothing else, so that a
 * start costs little.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "mgmt/local/flags.h"
#include "mgmt/local/local.h"

struct verb {
	const char *name;
	const char *words; /* after the verb, for help */
	const char *help;
	int (*run)(int argc, char **argv);
	void (*more)(void); /* what else its help says, NULL for nothing */
};

static int verb_help(int argc, char **argv);

static const struct verb verbs[] = {
	{"run",
	 "--kernel FILE|--disk FILE [FLAGS]\ncorral run --rootfs DIR|IMAGE [FLAGS] -- COMMAND "
	 "ARG...",
	 "start a VM and stay with its console, or --detach; or run a command in a guest", verb_run,
	 run_help},
	{"ci", "FILE [FLAGS]", "run a list of commands, each in a guest of its own", verb_ci,
	 ci_help},
	{"ps", "[--json]", "list the VMs of this user and how the last ones ended", verb_ps, NULL},
	{"wait", "NAME", "wait until a VM has ended; the exit status says how", verb_wait, NULL},
	{"logs", "NAME [--follow] [--vmm]", "what the guest printed; --vmm: what its VMM logged",
	 verb_logs, NULL},
	{"console", "NAME", "connect this terminal to a VM's console", verb_console, NULL},
	{"pause", "NAME", "stop a VM's processors", verb_pause, NULL},
	{"resume", "NAME", "let them run on", verb_resume, NULL},
	{"shutdown", "NAME [--timeout SECONDS]",
	 "press the power button and wait for the end (60 s)", verb_shutdown, NULL},
	{"reset", "NAME", "reset a VM at once", verb_reset, NULL},
	{"kill", "NAME", "end a VM at once, without asking the guest", verb_kill, NULL},
	{"stats", "NAME [--json]", "memory and KSM, exits by reason, devices", verb_stats, NULL},
	{"balloon", "NAME SIZE|all", "how much of its memory a guest keeps", verb_balloon, NULL},
	{"link", "NAME net0 up|down", "plug a network card in, or out", verb_link, NULL},
	{"ssh", "[USER@]NAME [-i KEY-FILE] [-- COMMAND ...]",
	 "sign in to a guest whose port 22 is forwarded", verb_ssh, NULL},
	{"guest", "NAME info|network|ping|freeze|thaw|shutdown [--json] | exec -- CMD ARG...",
	 "ask the guest's own agent; exec ends with its command's status", verb_guest, guest_help},
	{"vsock", "NAME connect PORT | listen PORT PATH|-",
	 "streams between a guest's vsock ports and this terminal or UNIX sockets", verb_vsock,
	 NULL},
	{"disk",
	 "VERB ...\ncorral disk add NAME FILE[,WORD...]\n"
	 "corral disk remove NAME DISK [--timeout SECONDS]\n"
	 "corral disk snapshot --vm NAME DISK FILE [--freeze]\n"
	 "corral disk resize --vm NAME DISK SIZE",
	 "make, convert, check and copy disk images: see `corral disk help`", verb_disk, NULL},
	{"doctor", "[--json]", "what this host has and lacks for VMs, and what mends it",
	 verb_doctor, NULL},
	{"help", "[VERB]", "this text, or a verb's own", verb_help, NULL},
};

static const char *verb_candidate(const void *list _unused_, size_t i)
{
	return i < ARRAY_SIZE(verbs) ? verbs[i].name : NULL;
}

static const struct verb *verb_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		if (!strcmp(verbs[i].name, name))
			return &verbs[i];
	return NULL;
}

static int verb_unknown(const char *name)
{
	const char *near = nearest(name, verb_candidate, NULL);

	if (near)
		local_say("unknown verb \"%.64s\", did you mean \"%s\"?", name, near);
	else
		local_say("unknown verb \"%.64s\", see `corral help`", name);
	return LOCAL_USAGE;
}

static void overview(void)
{
	printf("corral runs virtual machines on this host.\n\n"
	       "  corral doctor                              can this host run VMs?\n"
	       "  corral run --disk debian.img --net user    boot a disk; Ctrl-] then q ends it\n"
	       "  corral run --name web --detach ...         boot one and leave it running\n"
	       "  corral ps; corral console web              see it, and sit down at it\n"
	       "  corral run --rootfs DIR -- make check      run a command in a throw-away "
	       "guest\n\n"
	       "verbs:\n");
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		printf("  %-10s%s\n", verbs[i].name, verbs[i].help);
	printf("\n`corral help VERB` says more; `man corral` says all.\n");
}

static int verb_explain(const struct verb *verb)
{
	printf("corral %s %s\n  %s\n", verb->name, verb->words, verb->help);
	if (verb->more) {
		putchar('\n');
		verb->more();
	}
	return LOCAL_OK;
}

static int verb_help(int argc, char **argv)
{
	const struct verb *verb;

	if (argc < 2) {
		overview();
		return LOCAL_OK;
	}
	verb = verb_find(argv[1]);
	return verb ? verb_explain(verb) : verb_unknown(argv[1]);
}

/* A descriptor we open must never land on one of the first three because a parent closed it. */
static void std_fds_open(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", O_RDWR) < 0)
			_exit(LOCAL_FAILED);
}

int main(int argc, char **argv)
{
	const struct verb *verb;
	int status;

	std_fds_open();
	if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
		overview();
		return LOCAL_OK;
	}
	if (!strcmp(argv[1], "--version")) {
		printf("corral %s\n", CORRAL_VERSION);
		return LOCAL_OK;
	}
	verb = verb_find(argv[1]);
	if (!verb)
		return verb_unknown(argv[1]);
	if (argc == 3 && !strcmp(argv[2], "--help"))
		return verb_explain(verb);
	status = verb->run(argc - 1, argv + 1);
	if (fflush(stdout) && status == LOCAL_OK) {
		local_say("cannot write the answer: %s", strerror(errno));
		status = LOCAL_FAILED;
	}
	return status;
}
