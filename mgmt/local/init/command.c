/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command in the guest: in a session of its own, its output in frames to the port, its end as
 * the last of them. Whatever processes it leaves are ended; orphans are reaped while it runs.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/poll.h>
#include <linux/signal.h>
#include <linux/wait.h>

#include "mgmt/local/init/protocol.h"
#include "mgmt/local/init/system.h"

#define SIGNAL_SET_SIZE 8
#define PIPE_BYTES      1048576 /* as large as one may get */

enum { ON_CHILD, ON_OUT, ON_ERR, ON_MAX };

struct command {
	int port;
	int out, err;     /* our ends of its pipes, -1 once closed */
	int signals;      /* a signalfd with SIGCHLD */
	int exec_failure; /* our end of the pipe that says why execve failed */
	long pid;
	int status; /* of wait4 */
	int ended;
};

/* What is read from a pipe goes where its frame is sent from. */
static char frame[JOB_HEADER_SIZE + JOB_FRAME_MAX];

static int write_all(int fd, const void *data, unsigned long size)
{
	const char *at = data;

	while (size) {
		long n = CALL3(write, fd, at, size);

		if (n == -EINTR || n == -EAGAIN)
			continue;
		if (n <= 0)
			return n < 0 ? n : -EIO;
		at += n;
		size -= n;
	}
	return 0;
}

static void put_u32(char *at, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		at[i] = value >> (8 * i);
}

static int frame_finish(int port, uint32_t type, uint32_t size)
{
	put_u32(frame, type);
	put_u32(frame + 4, size);
	return write_all(port, frame, JOB_HEADER_SIZE + size);
}

int frame_send(int port, uint32_t type, uint32_t first, const char *more)
{
	uint32_t size = text_length(more);

	put_u32(frame + JOB_HEADER_SIZE, first);
	memcpy(frame + JOB_HEADER_SIZE + 4, more, size);
	return frame_finish(port, type, 4 + size);
}

/* PATH of the job's environment, as a shell would search it. */
static long exec_search(const struct init_job *job)
{
	const char *path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
	long result = -ENOENT;

	for (const char *c = job->argv[0]; *c; c++)
		if (*c == '/')
			return CALL3(execve, job->argv[0], job->argv, job->environment);
	for (char **word = job->environment; *word; word++)
		if ((*word)[0] == 'P' && (*word)[1] == 'A' && (*word)[2] == 'T' &&
		    (*word)[3] == 'H' && (*word)[4] == '=')
			path = *word + 5;
	while (*path) {
		char file[4096] = "";
		unsigned long n = 0;
		long r;

		while (path[n] && path[n] != ':' && n < sizeof(file) - 2) {
			file[n] = path[n];
			n++;
		}
		file[n] = '\0';
		text_add(file, sizeof(file), n ? "/" : "./");
		text_add(file, sizeof(file), job->argv[0]);
		r = CALL3(execve, file, job->argv, job->environment);
		if (r != -ENOENT && r != -ENOTDIR)
			result = r;
		while (*path && *path != ':')
			path++;
		path += *path == ':';
	}
	return result;
}

static void __attribute__((noreturn))
child_run(const struct init_job *job, int out, int err, int failure)
{
	uint64_t none = 0;
	long r = CALL4(openat, AT_FDCWD, "/dev/null", O_RDONLY, 0);

	CALL1(setsid, 0);
	CALL3(dup3, r, 0, 0);
	CALL3(dup3, out, 1, 0);
	CALL3(dup3, err, 2, 0);
	CALL4(rt_sigprocmask, SIG_SETMASK, &none, 0, SIGNAL_SET_SIZE);
	r = CALL1(chdir, job->directory);
	if (r >= 0)
		r = exec_search(job);
	r = -r;
	CALL3(write, failure, &r, sizeof(r));
	for (;;)
		CALL1(exit_group, 127);
}

static long command_start(struct command *command, const struct init_job *job)
{
	int out[2], err[2], failure[2];
	uint64_t set = 1ull << (SIGCHLD - 1);
	long r = CALL2(pipe2, out, O_CLOEXEC);

	if (r >= 0)
		r = CALL2(pipe2, err, O_CLOEXEC);
	if (r >= 0)
		r = CALL2(pipe2, failure, O_CLOEXEC);
	if (r >= 0)
		r = CALL4(rt_sigprocmask, SIG_BLOCK, &set, 0, SIGNAL_SET_SIZE);
	if (r >= 0)
		r = CALL4(signalfd4, -1, &set, SIGNAL_SET_SIZE, O_CLOEXEC | O_NONBLOCK);
	if (r < 0)
		return r;
	command->signals = r;
	r = CALL5(clone, SIGCHLD, 0, 0, 0, 0);
	if (!r)
		child_run(job, out[1], err[1], failure[1]);
	CALL1(close, out[1]);
	CALL1(close, err[1]);
	CALL1(close, failure[1]);
	command->out = out[0];
	command->err = err[0];
	command->exec_failure = failure[0];
	command->pid = r;
	return r;
}

/* Whatever has ended is reaped, so that a command which leaves thousands does not run out of
 * process numbers. */
static void reap(struct command *command)
{
	char info[128 * 4];

	while (CALL3(read, command->signals, info, sizeof(info)) > 0)
		;
	for (;;) {
		int status = 0;
		long pid = CALL4(wait4, -1, &status, WNOHANG, 0);

		if (pid <= 0)
			return;
		if (pid == command->pid) {
			command->status = status;
			command->ended = 1;
		}
	}
}

/* One buffer's worth. The end of the stream closes it. */
static void pass(struct command *command, int *fd, uint32_t type)
{
	long n = CALL3(read, *fd, frame + JOB_HEADER_SIZE, JOB_FRAME_MAX);

	if (n > 0) {
		frame_finish(command->port, type, n);
	} else if (n != -EINTR) {
		CALL1(close, *fd);
		*fd = -1;
	}
}

static void turn(struct command *command)
{
	struct pollfd fds[ON_MAX] = {
		[ON_CHILD] = {.fd = command->signals, .events = POLLIN},
		[ON_OUT] = {.fd = command->out, .events = POLLIN},
		[ON_ERR] = {.fd = command->err, .events = POLLIN},
	};

	if (CALL5(ppoll, fds, ON_MAX, 0, 0, 0) <= 0)
		return;
	if (fds[ON_OUT].revents)
		pass(command, &command->out, JOB_OUT);
	if (fds[ON_ERR].revents)
		pass(command, &command->err, JOB_ERR);
	if (fds[ON_CHILD].revents)
		reap(command);
}

/* What it had written when it ended. A daemon that keeps the pipe open is not waited for. */
static void drain(struct command *command, int *fd, uint32_t type)
{
	static const struct {
		long s, ns;
	} at_once;

	for (unsigned left = 2 * PIPE_BYTES; *fd >= 0 && left > JOB_FRAME_MAX;
	     left -= JOB_FRAME_MAX) {
		struct pollfd ready = {.fd = *fd, .events = POLLIN};

		if (CALL5(ppoll, &ready, 1, &at_once, 0, 0) <= 0)
			return;
		pass(command, fd, type);
	}
}

static void end_send(const struct command *command)
{
	uint32_t kind = JOB_EXITED, value = command->status >> 8 & 0xff;
	long failure = 0;

	if (CALL3(read, command->exec_failure, &failure, sizeof(failure)) == sizeof(failure)) {
		kind = JOB_NO_EXEC;
		value = failure;
	} else if (command->status & 0x7f) {
		kind = JOB_SIGNALED;
		value = command->status & 0x7f;
	}
	put_u32(frame + JOB_HEADER_SIZE, kind);
	put_u32(frame + JOB_HEADER_SIZE + 4, value);
	frame_finish(command->port, JOB_END, 8);
}

void command_run(int port, const struct init_job *job)
{
	struct command command = {.port = port};
	long r = command_start(&command, job);

	if (r < 0) {
		frame_send(port, JOB_FAILED, -r, "cannot start a process");
		return;
	}
	while (!command.ended)
		turn(&command);
	drain(&command, &command.out, JOB_OUT);
	drain(&command, &command.err, JOB_ERR);
	CALL2(kill, -1, SIGKILL);
	mounts_leave();
	CALL1(sync, 0);
	end_send(&command);
}
