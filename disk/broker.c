/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The broker. In: a job whose words are parsed. Out: an exit status, after printing. One thread; it
 * waits for the sealed process's messages, for signals, and for the time to draw the bar.
 */
#include "disk/broker.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "disk/progress.h"
#include "disk/sealed.h"

struct broker {
	struct job *job;
	int socket; /* owned */
	pid_t child;
	struct link_page *page; /* owned mapping */
	struct progress progress;
	struct error *err;
	void *message; /* owned; LINK_MESSAGE_MAX bytes */
	bool ended;    /* it has said so */
	bool wrote;    /* backing_open gave a descriptor to write to: once a job */
};

static volatile sig_atomic_t caught; /* the signal that asks us to end, 0: none */
static volatile sig_atomic_t n_caught;

static void on_signal(int number)
{
	caught = number;
	n_caught++;
}

void disk_say(const char *format, ...)
{
	char line[1024] = "corral disk: ";
	size_t start = strlen(line), length;
	va_list list;

	va_start(list, format);
	vsnprintf(line + start, sizeof(line) - start - 1, format, list);
	va_end(list);
	text_make_printable(line);
	length = strlen(line);
	line[length] = '\n';
	if (write(STDERR_FILENO, line, length + 1) < 0)
		return; /* nobody left to tell */
}

/* A root without files: made, held, removed. Wherever a directory can be made will do. */
static int empty_directory(void)
{
	static const char *const places[] = {"/run", "/tmp", "/dev/shm", "/var/tmp"};
	char path[64];

	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		int fd;

		snprintf(path, sizeof(path), "%s/corral-disk-XXXXXX", places[i]);
		if (!mkdtemp(path))
			continue;
		fd = open(path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		rmdir(path);
		if (fd >= 0)
			return fd;
	}
	return -1;
}

/* The answer's descriptor, or the sentence why there is none. */
static int backing_refuse(const struct image_file *top, const char *name, struct error *err)
{
	return error_set(
		err, -EPERM,
		"\"%s\" stands on \"%s\", and what an image names is opened only where that "
		"was allowed: say --backing allow if you trust this image",
		top->name, name);
}

static const char *known_format(const char *text, size_t size)
{
	static const char *const formats[] = {"raw", "qcow2"};

	for (size_t i = 0; i < ARRAY_SIZE(formats); i++)
		if (strlen(formats[i]) == size && !memcmp(formats[i], text, size))
			return formats[i];
	return NULL;
}

/* What the image says; where it says nothing, what the user says. */
static int backing_format(const struct job *job, const struct image_file *top,
			  const struct link_message *ask, const char **ret_format,
			  struct error *err)
{
	if (!ask->format_size && !job->words.backing_format)
		return error_set(err, -EINVAL,
				 "\"%s\" does not say in which format \"%.*s\" is, on which it "
				 "stands: say --backing-format raw or --backing-format qcow2",
				 top->name, (int)MIN(ask->text_size, 200u), ask->text);
	*ret_format = ask->format_size ? known_format(ask->format, ask->format_size)
				       : job->words.backing_format;
	if (!*ret_format)
		return error_set(err, -ENOTSUP,
				 "\"%s\" stands on an image in format \"%.*s\": only raw and qcow2 "
				 "are known",
				 top->name, (int)ask->format_size, ask->format);
	return 0;
}

static int open_asked(struct broker *broker, const struct link_message *ask,
		      const char **ret_format, int *ret_fd, struct error *err)
{
	struct job *job = broker->job;
	char name[256];
	int r;

	if (ask->which >= DISK_FILES_MAX || !job->files[ask->which].name)
		return error_set(err, -EBADMSG, "there is no such image");
	snprintf(name, sizeof(name), "%.*s", (int)MIN(ask->text_size, 200u), ask->text);
	if (!job->words.allow_backing)
		return backing_refuse(&job->files[ask->which], name, err);
	if (ask->writable && (job->verb != &verb_commit || broker->wrote))
		return error_set(err, -EPERM, "\"%s\" may only be read", name);
	broker->wrote |= ask->writable;
	r = backing_format(job, &job->files[ask->which], ask, ret_format, err);
	if (r < 0)
		return r;
	return backing_open(&job->backing[ask->which], &job->files[ask->which], ask->text,
			    ask->text_size, ask->writable, ret_fd, err);
}

static int answer_open(struct broker *broker, const struct link_message *ask)
{
	_cleanup_(fd_closep) int fd = -1;
	struct error err = ERROR_NULL;
	const char *format = NULL;
	int r = open_asked(broker, ask, &format, &fd, &err);

	return link_send_text(broker->socket, LINK_OPENED, r, r < 0 ? err.text : format, fd);
}

/* An item comes as bytes, and is a struct again when each field has been checked. */
static int item_take(struct broker *broker, const struct link_message *message)
{
	const struct disk_verb *verb = broker->job->verb;
	const struct table *table =
		message->which < DISK_ITEMS_MAX ? verb->items[message->which] : NULL;
	struct cursor in = cursor_reader(message->data, message->data_size);
	_cleanup_(freep) void *item = table ? malloc(table->size) : NULL;
	int r;

	if (!table)
		return -EBADMSG;
	if (!item)
		return -ENOMEM;
	r = table_init(table, item);
	if (r == 0)
		r = table_decode(table, table->version, item, &in);
	if (r == 0 && (cursor_status(&in) < 0 || cursor_left(&in)))
		r = -EBADMSG;
	if (r == 0) {
		progress_wipe(&broker->progress);
		r = verb->item(broker->job, message->which, item, broker->err);
	}
	table_deinit(table, item);
	return r;
}

static int failure_take(struct broker *broker, const struct link_message *message)
{
	int code = message->code < 0 && message->code > -4096 ? message->code : -EIO;

	broker->ended = true;
	return error_set(broker->err, code, "%.*s", (int)message->text_size, message->text);
}

static int message_take(struct broker *broker, const struct link_message *message)
{
	switch (message->kind) {
	case LINK_ITEM:
		return item_take(broker, message);
	case LINK_OPEN:
		return answer_open(broker, message);
	case LINK_NOTE:
		if (broker->job->words.verbose)
			disk_say("%.*s", (int)message->text_size, message->text);
		return 0;
	case LINK_DONE:
		broker->ended = true;
		return 0;
	case LINK_FAILED:
		return failure_take(broker, message);
	default:
		return -EBADMSG;
	}
}

/* Descriptors are never sent this way: fd_receive closes them. */
static int message_receive(struct broker *broker)
{
	struct link_message message;
	size_t n_fds;
	ssize_t n = fd_receive(broker->socket, broker->message, LINK_MESSAGE_MAX, NULL, 0, &n_fds);
	int r;

	if (n == 0)
		return -EPIPE; /* it is gone */
	if (n < 0)
		return (int)n;
	r = link_parse(broker->message, (size_t)n, &message);
	if (r == 0)
		r = message_take(broker, &message);
	if (r == -EBADMSG && !broker->err->text[0])
		error_set(broker->err, r,
			  "the process that reads images said what it should not; is an image made "
			  "to harm?");
	return r;
}

/* An image that is changed where it is gets the time to come to a good end; but who asks twice
 * means it. Any image is valid wherever its writer is killed. */
static int interrupted(struct broker *broker)
{
	if (!broker->job->verb->in_place || n_caught > 1)
		return error_set(broker->err, -EINTR, "interrupted");
	atomic_store(&broker->page->stop, 1);
	return 0;
}

static int serve(struct broker *broker, const sigset_t *waiting)
{
	struct pollfd ready = {.fd = broker->socket, .events = POLLIN};
	int seen = 0;
	int r = 0;

	while (r == 0 && !broker->ended) {
		int wait = progress_wait(&broker->progress);
		struct timespec timeout = {wait / 1000, wait % 1000 * 1000000};
		int n = ppoll(&ready, 1, wait < 0 ? NULL : &timeout, waiting);

		if (n < 0 && errno != EINTR)
			r = -errno;
		if (n_caught > seen) {
			seen = n_caught;
			r = interrupted(broker);
		}
		if (r == 0 && n > 0)
			r = message_receive(broker);
		if (r == 0)
			progress_show(&broker->progress);
	}
	return r;
}

/* The process ended without a word. */
static int died(struct broker *broker, int status)
{
	if (WIFSIGNALED(status))
		return error_set(
			broker->err, -EIO,
			"the process that reads images was ended by signal %d (%s): a fault "
			"of corral's, or an image made to harm",
			WTERMSIG(status), strsignal(WTERMSIG(status)));
	return error_set(broker->err, -EIO, "the process that reads images ended too early");
}

static int reap(struct broker *broker, int r)
{
	int status = 0;

	if (r < 0 && !broker->ended && r != -EPIPE)
		kill(broker->child, SIGKILL);
	while (waitpid(broker->child, &status, 0) < 0 && errno == EINTR)
		;
	if (r == -EPIPE && !broker->ended && !broker->err->text[0])
		r = died(broker, status);
	return r;
}

static int start(struct broker *broker, const sigset_t *before)
{
	_cleanup_(fd_closep) int empty = empty_directory();
	int pair[2], parent = (int)getpid();

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return error_set(broker->err, -errno, "cannot make a socket: %s", strerror(errno));
	broker->socket = pair[0];
	broker->child = fork();
	if (broker->child == 0) {
		sigprocmask(SIG_SETMASK, before, NULL);
		fd_close(pair[0]);
		sealed_main(broker->job, pair[1], broker->page, empty, parent);
	}
	fd_close(pair[1]);
	return broker->child < 0 ? error_set(broker->err, -errno, "cannot start a process: %s",
					     strerror(errno))
				 : 0;
}

static int setup(struct broker *broker)
{
	broker->page = mmap(NULL, sizeof(*broker->page), PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	broker->message = malloc(LINK_MESSAGE_MAX);
	if (broker->page == MAP_FAILED || !broker->message)
		return error_set(broker->err, -ENOMEM, "out of memory");
	return progress_init(&broker->progress, broker->job->words.progress,
			     broker->job->verb->name, broker->page, broker->err);
}

static int run(struct broker *broker)
{
	static const int asked[] = {SIGINT, SIGTERM, SIGHUP};
	struct sigaction action = {.sa_handler = on_signal};
	sigset_t set, before;
	int r = setup(broker);

	if (r < 0)
		return r;
	sigemptyset(&set);
	for (size_t i = 0; i < ARRAY_SIZE(asked); i++)
		sigaddset(&set, asked[i]);
	sigprocmask(SIG_BLOCK, &set, &before);
	for (size_t i = 0; i < ARRAY_SIZE(asked); i++)
		sigaction(asked[i], &action, NULL);
	r = broker->job->verb->open(broker->job, broker->err);
	if (r == 0)
		r = start(broker, &before);
	if (r == 0) {
		r = serve(broker, &before);
		r = reap(broker, r);
	}
	progress_end(&broker->progress);
	return r;
}

static int finish(struct broker *broker)
{
	struct job *job = broker->job;
	int r = 0;

	if (job->made.name)
		r = made_publish(&job->made, broker->err);
	if (r == 0 && job->verb->end)
		r = job->verb->end(job, broker->err);
	if (r == 0 && job->answer && json_dumpf(job->answer, stdout, JSON_INDENT(2)) < 0)
		r = error_set(broker->err, -EIO, "cannot write the answer");
	if (r == 0 && job->answer)
		putchar('\n');
	if (r == 0 && (fflush(stdout) != 0 || ferror(stdout)))
		r = error_set(broker->err, -errno, "cannot write the answer: %s", strerror(errno));
	return r;
}

static int status_of(const struct broker *broker, int r)
{
	if (r == 0)
		return broker->job->status;
	disk_say("%s%s", broker->err->text[0] ? broker->err->text : strerror(-r),
		 r == -EINTR && broker->job->made.name && !broker->job->made.in_place
			 ? ": nothing was made"
			 : "");
	if (caught && (r == -EINTR || r == -ECANCELED))
		return 128 + caught;
	return r == -EINVAL && broker->child == 0 ? DISK_USAGE : DISK_FAILED;
}

int broker_run(struct job *job)
{
	struct error err = ERROR_NULL;
	struct broker broker = {.job = job, .socket = -1, .err = &err};
	int r, status;

	signal(SIGPIPE, SIG_IGN);
	r = run(&broker);
	if (r == 0)
		r = finish(&broker);
	status = status_of(&broker, r);
	fd_close(broker.socket);
	if (broker.page && broker.page != MAP_FAILED)
		munmap(broker.page, sizeof(*broker.page));
	free(broker.message);
	return status;
}
