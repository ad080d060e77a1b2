/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between a guest that runs one command and whoever started it: the command's output to ours, its
 * end to an exit status. One poll(2) loop; what waits for a reader of our output never keeps the
 * clock or a signal waiting.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "mgmt/local/ci-report.h"
#include "mgmt/local/client.h"
#include "mgmt/local/job.h"
#include "mgmt/local/local.h"
#include "mgmt/local/prepare.h"
#include "proto/exit.h"

#define CHUNK      65536
#define WRITE_MAX  4096  /* what a pipe that is ready takes without blocking */
#define LEAVE_MS   10000 /* for a guest that powers off by itself */
#define QUIT_MS    5000  /* for a VMM that was told to end */
#define TAIL_LINES 20
#define COPY_MAX   (64ull << 20) /* bytes of a stream that are copied to a file */

enum { ON_SIGNAL, ON_PORT, ON_OUTPUT, ON_CONSOLE, ON_READY, ON_MAX };
/* How far its end has come. */
enum leaving { STAYING, LEAVING, QUITTING, KILLED };

struct attendance {
	struct job *job;
	struct prepared *prepared;
	pid_t vmm;
	int wait_status;
	bool ended, ready;
	bool own_disks; /* it may have written some: it ends by itself, to leave them clean */
	enum leaving leaving;
	uint64_t start_ms, deadline_ms; /* 0: none */
	int signal;                     /* that we were sent */
	bool timed_out, broken;
	int signal_fd; /* owned */
	struct job_parser parser;
	struct job_piece piece; /* being written; in `data` */
	bool printing[2];       /* our standard output, and error */
	size_t at, n;           /* of `data`, not yet parsed */
	char data[CHUNK];
};

/* Asks for the end, more firmly each time. */
static void leave(struct attendance *a, enum leaving step)
{
	struct error err = ERROR_NULL;

	if (step <= a->leaving)
		return;
	a->leaving = step;
	a->deadline_ms = clock_ms() + (step == LEAVING ? LEAVE_MS : QUIT_MS);
	if (step == QUITTING &&
	    client_ask(&a->prepared->dir, CONTROL_QUIT, NULL, -1, NULL, &err) < 0 &&
	    err.code != -EPIPE && err.code != -ECONNREFUSED)
		kill(a->vmm, SIGTERM);
	if (step == KILLED)
		kill(a->vmm, SIGKILL);
}

/* Nothing that the guest could still say matters. */
static void guest_done(struct attendance *a)
{
	leave(a, a->own_disks && !a->broken && !a->parser.failed ? LEAVING : QUITTING);
}

static void piece_write(struct attendance *a)
{
	struct job_piece *piece = &a->piece;
	bool *printing = &a->printing[piece->is_err];
	size_t size = MIN(piece->size, (size_t)WRITE_MAX);
	ssize_t n =
		*printing ? write(piece->is_err ? STDERR_FILENO : STDOUT_FILENO, piece->data, size)
			  : (ssize_t)piece->size;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n < 0) {
		*printing = false; /* nobody looks any more; the command goes on */
		return;
	}
	piece->data += n;
	piece->size -= n;
}

/* For reports. A copy that cannot be written is one that ends there. */
static void piece_keep(struct attendance *a)
{
	const struct job_piece *piece = &a->piece;
	struct job_kept *kept = piece->is_err ? &a->job->result.err : &a->job->result.out;
	int *copy = &a->job->copies[piece->is_err];

	if (*copy >= 0 && (kept->n >= COPY_MAX || fd_write_full(*copy, piece->data, piece->size)))
		*copy = -1;
	job_keep(kept, piece->data, piece->size);
}

/* Up to the next piece of output. */
static void parse(struct attendance *a)
{
	ssize_t used;

	if (a->piece.size || a->at == a->n)
		return;
	used = job_parser_take(&a->parser, a->data + a->at, a->n - a->at, &a->piece);
	if (used < 0) {
		a->broken = true;
		used = a->n - a->at;
	}
	a->at += used;
	if (a->piece.size)
		piece_keep(a);
	if (a->broken || a->parser.done)
		guest_done(a);
}

/* False: the other end is closed. */
static bool port_read(struct attendance *a)
{
	ssize_t n = recv(a->job->port_fd, a->data, sizeof(a->data), MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return true;
	if (n <= 0) {
		a->job->port_fd = fd_close(a->job->port_fd);
		return false;
	}
	a->at = 0;
	a->n = a->broken ? 0 : n; /* of one that lies the rest is thrown away */
	return true;
}

static void console_read(struct attendance *a)
{
	char data[WRITE_MAX];
	ssize_t n = recv(a->prepared->console_fd, data, sizeof(data), MSG_DONTWAIT);

	if (n > 0 && fd_write_full(STDERR_FILENO, data, n) >= 0)
		return;
	if (n >= 0 || (errno != EAGAIN && errno != EINTR))
		a->prepared->console_fd = fd_close(a->prepared->console_fd);
}

static void signals_read(struct attendance *a)
{
	struct signalfd_siginfo info;

	while (read(a->signal_fd, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGCHLD) {
			a->ended |= waitpid(a->vmm, &a->wait_status, WNOHANG) == a->vmm;
			continue;
		}
		a->signal = info.ssi_signo;
		/* Who is asked to go does not wait for readers; asked twice, for nothing. */
		a->printing[0] = a->printing[1] = false;
		leave(a, a->leaving >= QUITTING ? KILLED : QUITTING);
	}
}

static void ready_read(struct attendance *a)
{
	char byte;

	a->ready = read(a->prepared->ready_fd, &byte, 1) == 1;
	a->prepared->ready_fd = fd_close(a->prepared->ready_fd);
}

static void deadline_check(struct attendance *a)
{
	if (!a->deadline_ms || clock_ms() < a->deadline_ms || a->ended)
		return;
	if (a->leaving == STAYING)
		a->timed_out = true;
	leave(a, a->leaving == QUITTING ? KILLED : QUITTING);
}

static int patience(const struct attendance *a)
{
	uint64_t now = clock_ms();

	if (!a->deadline_ms || a->ended)
		return -1;
	return a->deadline_ms <= now ? 0 : MIN(a->deadline_ms - now, (uint64_t)INT32_MAX);
}

static void watch(const struct attendance *a, struct pollfd fds[ON_MAX])
{
	for (size_t i = 0; i < ON_MAX; i++)
		fds[i] = (struct pollfd){.fd = -1, .events = POLLIN};
	fds[ON_SIGNAL].fd = a->signal_fd;
	fds[ON_CONSOLE].fd = a->prepared->console_fd;
	fds[ON_READY].fd = a->prepared->ready_fd;
	if (a->piece.size)
		fds[ON_OUTPUT] = (struct pollfd){
			.fd = a->piece.is_err ? STDERR_FILENO : STDOUT_FILENO, .events = POLLOUT};
	else
		fds[ON_PORT].fd = a->job->port_fd;
}

static void turn(struct attendance *a)
{
	struct pollfd fds[ON_MAX];

	watch(a, fds);
	if (poll(fds, ON_MAX, patience(a)) >= 0) {
		if (fds[ON_OUTPUT].revents)
			piece_write(a);
		if (fds[ON_PORT].revents)
			port_read(a);
		if (fds[ON_CONSOLE].revents)
			console_read(a);
		if (fds[ON_READY].revents)
			ready_read(a);
		if (fds[ON_SIGNAL].revents)
			signals_read(a);
	}
	parse(a);
	deadline_check(a);
}

/* What the guest had said when its VMM ended is still in the socket. Whose time is up does not wait
 * for whoever should read it. */
static void finish(struct attendance *a)
{
	while (!a->signal &&
	       (a->piece.size || a->at < a->n || (a->job->port_fd >= 0 && port_read(a) && a->n))) {
		struct pollfd out = {.fd = a->piece.is_err ? STDERR_FILENO : STDOUT_FILENO,
				     .events = POLLOUT};
		struct pollfd fds[2] = {out, {.fd = a->signal_fd, .events = POLLIN}};

		if (a->piece.size && poll(fds, 2, a->timed_out ? 0 : -1) <= 0 && a->timed_out)
			return;
		if (fds[1].revents)
			signals_read(a);
		if (a->piece.size && fds[0].revents)
			piece_write(a);
		if (a->at == a->n)
			a->at = a->n = 0;
		parse(a);
	}
}

static bool writes_disks(const struct vm_description *vm)
{
	for (uint32_t i = 0; i < vm->n_disks; i++)
		if (!vm->disks[i].readonly)
			return true;
	return false;
}

static void watch_signals(struct attendance *a)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGCHLD);
	a->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* What was found out here; job_conclude adds what the VMM recorded. */
static void note(struct attendance *a, const char *command)
{
	struct job_result *result = &a->job->result;
	const struct job_parser *parser = &a->parser;

	result->ms = clock_ms() - a->start_ms;
	if (parser->done && !parser->failed) {
		result->outcome = JOB_ENDED;
		result->status = parser->value;
		if (parser->end == JOB_SIGNALED) {
			result->status = 128 + parser->value;
			snprintf(result->text, sizeof(result->text),
				 "\"%s\" was killed in the guest by signal %u (%s)", command,
				 parser->value, strsignal(parser->value));
		} else if (parser->end == JOB_NO_EXEC) {
			result->status = JOB_STATUS_NO_EXEC + (parser->value == ENOENT);
			snprintf(result->text, sizeof(result->text),
				 "cannot run \"%s\" in the guest%s%s: %s", command,
				 a->job->directory ? " in " : "",
				 a->job->directory ? a->job->directory : "",
				 strerror(parser->value));
		} else if (parser->value) {
			snprintf(result->text, sizeof(result->text),
				 "\"%s\" ended with status %u in the guest", command,
				 parser->value);
		}
	} else if (parser->failed) {
		result->outcome = JOB_BROKEN;
		snprintf(result->text, sizeof(result->text),
			 "the guest could not start \"%s\": %s: %s", command, parser->text,
			 strerror(parser->value));
	} else if (a->signal) {
		result->outcome = JOB_INTERRUPTED;
		result->status = 128 + a->signal;
		snprintf(result->text, sizeof(result->text), "\"%s\" was interrupted by SIG%s",
			 command, sigabbrev_np(a->signal));
	} else if (a->timed_out) {
		result->outcome = JOB_TIMED_OUT;
		snprintf(result->text, sizeof(result->text), "\"%s\" did not end within %llu s%s",
			 command, (unsigned long long)(a->job->timeout_ms / 1000),
			 parser->greeted ? "" : "; its guest had not started it yet");
	} else if (a->broken) {
		result->outcome = JOB_SILENT;
		snprintf(result->text, sizeof(result->text),
			 "the guest of \"%s\" writes to %s what is no part of the protocol",
			 command, JOB_PORT_NAME);
	}
}

int job_attend(struct job *job, const struct vm_description *vm, struct prepared *prepared,
	       pid_t vmm, int *ret_wait_status, bool *ret_ready)
{
	static struct attendance a;

	a = (struct attendance){.job = job,
				.prepared = prepared,
				.vmm = vmm,
				.own_disks = writes_disks(vm),
				.start_ms = clock_ms(),
				.printing = {!job->silent, !job->silent}};
	a.deadline_ms = job->timeout_ms ? a.start_ms + job->timeout_ms : 0;
	job->result.outcome = JOB_OUTCOMES; /* not known */
	if (job->junit && !job->result.out.data) {
		job->result.out.data = malloc(JOB_KEPT_MAX);
		job->result.err.data = malloc(JOB_KEPT_MAX);
	}
	watch_signals(&a);
	if (a.signal_fd < 0) {
		int r = -errno;

		kill(vmm, SIGKILL);
		waitpid(vmm, ret_wait_status, 0);
		return r;
	}
	while (!a.ended)
		turn(&a);
	finish(&a);
	note(&a, job->command[0]);
	fd_close(a.signal_fd);
	*ret_wait_status = a.wait_status;
	*ret_ready = a.ready;
	return 0;
}

static void note_record(struct job *job, const struct exit_record *record)
{
	struct job_result *result = &job->result;
	const char *command = job->command[0];
	const char *why = record->text ? record->text : "no more is known";

	switch (record->reason) {
	case EXIT_PANIC:
	case EXIT_GUEST_FAULT:
	case EXIT_RESET_LOOP:
	case EXIT_WATCHDOG:
		result->outcome = JOB_PANICKED;
		snprintf(result->text, sizeof(result->text), "the guest of \"%s\" died: %s",
			 command, why);
		break;
	case EXIT_POWER_OFF:
	case EXIT_RESET:
		result->outcome = JOB_SILENT;
		snprintf(result->text, sizeof(result->text),
			 "the guest of \"%s\" %s before it had said a status", command,
			 record->reason == EXIT_RESET ? "was reset" : "was powered off");
		break;
	default:
		result->outcome = JOB_BROKEN;
		snprintf(result->text, sizeof(result->text), "\"%s\" was not judged (%s): %s",
			 command, exit_reason_names[record->reason], why);
	}
}

/* What the outcome means as an exit status, where the command has none. */
static void status_set(struct job_result *result)
{
	static const int statuses[JOB_OUTCOMES] = {
		[JOB_BROKEN] = JOB_STATUS_BROKEN,
		[JOB_TIMED_OUT] = JOB_STATUS_TIMEOUT,
		[JOB_PANICKED] = JOB_STATUS_PANIC,
		[JOB_SILENT] = JOB_STATUS_SILENT,
	};

	if (statuses[result->outcome])
		result->status = statuses[result->outcome];
}

static int report(const struct job *job, const char *name)
{
	struct ci_result result = {.name = name, .job = job->result};
	struct error err = ERROR_NULL;

	result.passed = job->result.outcome == JOB_ENDED && !job->result.status;
	if (!job->junit || ci_junit_write(job->junit, name, &result, 1, &err) >= 0)
		return job->result.status;
	return local_fail(&err, JOB_STATUS_BROKEN);
}

int job_conclude(struct job *job, const struct vm_description *vm, const struct exit_record *record,
		 int log_fd)
{
	struct job_result *result = &job->result;

	if (result->outcome == JOB_OUTCOMES)
		note_record(job, record);
	status_set(result);
	if (result->text[0])
		local_say("%s", result->text);
	if (log_fd >= 0 && result->outcome == JOB_PANICKED)
		job_console_trace(log_fd);
	else if (log_fd >= 0 && result->outcome != JOB_ENDED && result->outcome != JOB_INTERRUPTED)
		job_console_tail(log_fd, TAIL_LINES);
	return report(job, vm->name);
}

int job_fail(struct job *job, const char *name, const struct error *err)
{
	job->result.outcome = JOB_BROKEN;
	snprintf(job->result.text, sizeof(job->result.text), "%s", err->text);
	status_set(&job->result);
	local_say("%s", err->text);
	return report(job, name ? name : "run");
}
