/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long a command takes from exec to the first byte it prints, on the same clock for whatever
 * VMM it is. In: a command. Out: one line with the nanoseconds to the first byte and to the end,
 * and the microseconds of CPU time.
 *
 *   first-byte-clock [--kill] [--vmm FILE] -- COMMAND ...
 *
 * --kill ends the command at its first byte: QEMU's microvm has no way off that our smallest guest
 * could take. --vmm takes the time from the exec of corral-vmm by `corral run` instead of from the
 * exec of the command: the launcher is then given this program as its VMM (CORRAL_VMM), which notes
 * the time and becomes FILE. The byte still comes through the launcher.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* The launcher passes on what begins with CORRAL_. */
#define VARIABLE_VMM   "CORRAL_BENCH_VMM"
#define VARIABLE_STAMP "CORRAL_BENCH_STAMP"

struct options {
	bool kill;
	const char *vmm;
	char **command;
};

static void __attribute__((noreturn)) die(const char *what)
{
	fprintf(stderr, "first-byte-clock: cannot %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

/* In the place of corral-vmm. */
static void __attribute__((noreturn)) become_vmm(const char *vmm, char **argv)
{
	int fd = open(getenv(VARIABLE_STAMP), O_WRONLY | O_CLOEXEC);
	uint64_t now = now_ns();

	if (fd < 0 || write(fd, &now, sizeof(now)) != sizeof(now))
		die("note the time");
	execv(vmm, argv);
	die(vmm);
}

static uint64_t *share_stamp(const struct options *options)
{
	char path[64], self[4096];
	uint64_t *stamp;
	ssize_t n;
	int fd = memfd_create("stamp", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, sizeof(*stamp)) < 0)
		die("make a place for the time");
	stamp = mmap(NULL, sizeof(*stamp), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (stamp == MAP_FAILED)
		die("map a place for the time");
	if (!options->vmm)
		return stamp;
	n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	if (n < 0)
		die("tell where this program is");
	self[n] = 0;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", getpid(), fd);
	setenv("CORRAL_VMM", self, 1);
	setenv(VARIABLE_VMM, options->vmm, 1);
	setenv(VARIABLE_STAMP, path, 1);
	return stamp;
}

static pid_t start(const struct options *options, uint64_t *stamp, int out)
{
	pid_t pid = vfork();

	if (pid < 0)
		die("fork");
	if (pid == 0) {
		dup2(out, STDOUT_FILENO);
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* QEMU would stay for ever */
		if (!options->vmm)
			*stamp = now_ns();
		execvp(options->command[0], options->command);
		_exit(127);
	}
	return pid;
}

/* Returns the time of the first byte, 0 if there was none. */
static uint64_t first_byte(int in)
{
	char byte;

	return read(in, &byte, 1) == 1 ? now_ns() : 0;
}

/* Returns when the command's end of the pipe is closed. */
static void drain(int in)
{
	char rest[4096];

	while (read(in, rest, sizeof(rest)) > 0)
		;
}

static uint64_t microseconds(struct timeval time)
{
	return time.tv_sec * 1000000ull + time.tv_usec;
}

static int measure(const struct options *options)
{
	uint64_t *stamp = share_stamp(options), first, end;
	struct rusage usage;
	int out[2], status;
	pid_t pid;

	if (pipe2(out, O_CLOEXEC) < 0)
		die("make a pipe");
	pid = start(options, stamp, out[1]);
	close(out[1]);
	first = first_byte(out[0]);
	if (options->kill)
		kill(pid, SIGKILL);
	drain(out[0]);
	if (wait4(pid, &status, 0, &usage) < 0)
		die("wait for the command");
	end = now_ns();
	if (!first || (!options->kill && status != 0)) {
		fprintf(stderr, "first-byte-clock: %s %s\n", options->command[0],
			first ? "failed" : "printed nothing");
		return 1;
	}
	printf("%" PRIu64 " %" PRIu64 " %" PRIu64 "\n", first - *stamp, end - *stamp,
	       microseconds(usage.ru_utime) + microseconds(usage.ru_stime));
	return 0;
}

int main(int argc, char **argv)
{
	const char *vmm = getenv(VARIABLE_VMM);
	struct options options = {0};
	int i = 1;

	if (vmm)
		become_vmm(vmm, argv);
	for (; i < argc && strcmp(argv[i], "--") != 0; i++) {
		if (strcmp(argv[i], "--kill") == 0)
			options.kill = true;
		else if (strcmp(argv[i], "--vmm") == 0 && i + 1 < argc)
			options.vmm = argv[++i];
		else
			break;
	}
	if (i + 1 >= argc || strcmp(argv[i], "--") != 0) {
		fprintf(stderr,
			"usage: first-byte-clock [--kill] [--vmm FILE] -- COMMAND [WORD...]\n");
		return 2;
	}
	options.command = argv + i + 1;
	return measure(&options);
}
