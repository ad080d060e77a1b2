/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program that keeps a VMM's contract towards its launcher and runs no guest: descriptors by
 * --fds, a byte on "ready", the control protocol, an exit record. What its guest does is written on
 * the kernel's command line, or in the file that should be a firmware, a word each:
 *
 *   say=TEXT    prints TEXT and a newline     flood=N    prints N bytes of 'x'
 *   fds         prints the descriptors it has  env        prints its environment
 *   end=REASON  ends with that exit record    die=N      ends by signal N
 *   fail        fails to start                 exit=N     ends with status N and no record
 *   echo        sends console input back       stubborn   ignores the power button
 *   deaf        never answers the control socket, nor SIGTERM
 *   port=HEX    writes these bytes to the first named channel, over and over with portflood=HEX
 *   has=TEXT    prints whether the initrd holds TEXT
 *   garbage     answers the control socket with what is no JSON
 *   at=ADDRESS  says in its status that the guest has that address
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "proto/control.h"
#include "proto/exit.h"
#include "proto/vm.h"

#define CLIENTS_MAX 8

struct fake {
	struct named_fds fds;
	struct vm_description vm;
	int console_fd, log_fd, control_fd, exit_fd, signal_fd, port_fd;
	int clients[CLIENTS_MAX];
	uint32_t n_clients;
	enum vm_state state;
	char *words;   /* owned: what the guest does */
	char *address; /* owned, NULL: none */
	bool stubborn, deaf, garbage, echo, pressed;
};

static void __attribute__((noreturn)) fake_end(struct fake *fake, enum exit_reason reason)
{
	char text[200];
	int n = snprintf(text, sizeof(text),
			 "{\"name\": \"%s\", \"reason\": \"%s\", \"status\": %d, \"text\": "
			 "\"the fake guest's \\u001b[31mend\", \"ran-ms\": 1, \"ended-unix\": %ld, "
			 "\"resets\": 0}",
			 fake->vm.name, exit_reason_names[reason], exit_status(reason),
			 (long)time(NULL));

	if (fd_write_full(fake->exit_fd, text, n) < 0)
		_exit(100);
	_exit(exit_status(reason));
}

static void __attribute__((format(printf, 2, 3)))
fake_print(struct fake *fake, const char *format, ...)
{
	char text[4096];
	va_list list;
	int n;

	va_start(list, format);
	n = vsnprintf(text, sizeof(text), format, list);
	va_end(list);
	if (fake->log_fd >= 0 && fd_write_full(fake->log_fd, text, n) < 0)
		_exit(101);
	if (fake->console_fd >= 0 && fd_write_full(fake->console_fd, text, n) < 0)
		fake->console_fd = fd_close(fake->console_fd);
}

/* "3 description r" … one line each; what is not in the list of names is "leaked". */
static void fake_print_fds(struct fake *fake, const char *names)
{
	static const char *const rights[] = {"r", "w", "rw", "?"};

	for (int fd = 0; fd < 256; fd++) {
		int flags = fcntl(fd, F_GETFL);
		size_t length = strcspn(names, ",");

		if (flags < 0)
			continue;
		if (fd < NAMED_FDS_FIRST) {
			fake_print(fake, "%d std\n", fd);
			continue;
		}
		fake_print(fake, "%d %.*s %s%s\n", fd, length ? (int)length : 6,
			   length ? names : "leaked", flags & O_PATH ? "p" : rights[flags & 3],
			   flags & O_DIRECT ? "d" : "");
		names += length + (names[length] == ',');
	}
}

static void fake_flood(struct fake *fake, size_t size)
{
	char data[1000];

	memset(data, 'x', sizeof(data));
	for (size_t n; size; size -= n) {
		n = MIN(size, sizeof(data));
		if (fd_write_full(fake->console_fd, data, n) < 0)
			_exit(102);
	}
}

static bool word_value(const char *word, const char *key, const char **ret_value)
{
	size_t length = strlen(key);

	*ret_value = word + length;
	return !strncmp(word, key, length);
}

static void fake_end_by_name(struct fake *fake, const char *name)
{
	for (int i = 0; exit_reason_names[i]; i++)
		if (!strcmp(exit_reason_names[i], name))
			fake_end(fake, i);
	_exit(103);
}

static void fake_die(int signum)
{
	signal(signum, SIG_DFL); /* whatever a sanitizer has made of it */
	kill(getpid(), signum);
}

/* Words that decide how it behaves, before it says that it runs. */
static void fake_prepare(struct fake *fake, const char *word, const char *names)
{
	fake->stubborn |= !strcmp(word, "stubborn");
	fake->deaf |= !strcmp(word, "deaf");
	fake->garbage |= !strcmp(word, "garbage");
	fake->echo |= !strcmp(word, "echo");
	if (!strncmp(word, "at=", 3))
		fake->address = strdup(word + 3);
	if (!strcmp(word, "fds"))
		fake_print_fds(fake, names);
	if (!strcmp(word, "fail")) {
		fprintf(stderr, "corral-vmm: cannot load the fake kernel: it is fake\n");
		fake_end(fake, EXIT_START_FAILED);
	}
}

/* Until nobody takes it any more, if `flood`. */
static void fake_port(struct fake *fake, const char *hex, bool flood)
{
	char data[2048];
	size_t n = 0;
	unsigned byte;

	for (; sscanf(hex, "%2x", &byte) == 1 && n < sizeof(data); hex += 2)
		data[n++] = byte;
	signal(SIGPIPE, SIG_IGN);
	while (fd_write_full(fake->port_fd, data, n) >= 0 && flood)
		;
}

static void fake_has(struct fake *fake, const char *text)
{
	int fd = named_fds_take(&fake->fds, VM_FD_INITRD);
	_cleanup_(freep) char *data = NULL;
	size_t size = 0;

	if (fd < 0 || fd_read_all(fd, 16 << 20, &data, &size) < 0)
		_exit(106);
	fake_print(fake, "%s %s\n", memmem(data, size, text, strlen(text)) ? "has" : "lacks", text);
	fd_close(fd);
}

static void fake_act(struct fake *fake, const char *word)
{
	const char *value;

	if (word_value(word, "say=", &value))
		fake_print(fake, "%s\n", value);
	else if (word_value(word, "port=", &value))
		fake_port(fake, value, false);
	else if (word_value(word, "portflood=", &value))
		fake_port(fake, value, true);
	else if (word_value(word, "has=", &value))
		fake_has(fake, value);
	else if (word_value(word, "flood=", &value))
		fake_flood(fake, strtoul(value, NULL, 10));
	else if (word_value(word, "end=", &value))
		fake_end_by_name(fake, value);
	else if (word_value(word, "exit=", &value))
		_exit(atoi(value));
	else if (word_value(word, "die=", &value))
		fake_die(atoi(value));
	else if (!strcmp(word, "env"))
		for (char **entry = environ; *entry; entry++)
			fake_print(fake, "%s\n", *entry);
}

static void fake_each_word(struct fake *fake, const char *names)
{
	_cleanup_(freep) char *text = strdup(fake->words);
	char *rest = text;

	for (char *word; (word = strsep(&rest, " "));) {
		if (names)
			fake_prepare(fake, word, names);
		else
			fake_act(fake, word);
	}
}

static json_t *fake_status(const struct fake *fake)
{
	return json_pack("{s:s*, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:s, s:s}", "address",
			 fake->address, "name", fake->vm.name, "state", vm_state_names[fake->state],
			 "cpus", (json_int_t)fake->vm.cpus, "memory",
			 (json_int_t)fake->vm.memory.size, "pid", (json_int_t)getpid(), "up-ms",
			 (json_int_t)61000, "resets", (json_int_t)0, "machine", fake->vm.machine,
			 "version", "fake");
}

static json_t *fake_disk_counters(void)
{
	return json_pack("{s:i, s:i, s:[i, i, i, i, i], s:i, s:i, s:[i], s:i, s:[s], s:i, s:i}",
			 "reads", 100, "read-bytes", 409600, "read-latency", 0, 0, 60, 38, 2,
			 "writes", 3, "written-bytes", 0, "write-latency", 3, "flushes", 0,
			 "flush-latency", "\x1b", "errors", 0, "set-aside", 2);
}

static json_t *fake_counters(void)
{
	json_t *counters = json_pack(
		"{s:{s:i, s:i}, s:{s:{s:i}, s:{s:i, s:i, s:i, s:i, s:i, s:b, s:b, s:s}, "
		"s:{s:i, s:i, s:{s:i}}}, s:{s:I, s:I, s:I, s:I, s:I}}",
		"exits", "io", 3, "halt", 9, "devices", "disk0", "requests", 5, "net0", "rx-frames",
		100, "rx-bytes", 2048, "rx-calls", 40, "rx-long", 0, "tx-lost", 7, "vhost", 0,
		"link", 1, "address", "192.0.2.\x1b", "balloon", "target", 1 << 20, "actual",
		1 << 19, "statistics", "free", 3 << 20, "memory", "ksm-shared", (json_int_t)4096,
		"ksm-sharing", (json_int_t)8192, "ksm-profit", (json_int_t)-640, "private",
		(json_int_t)1048576, "guest", (json_int_t)536870912);

	json_object_set_new(json_object_get(counters, "devices"), "disk1", fake_disk_counters());
	return counters;
}

static void fake_press(struct fake *fake)
{
	if (!fake->stubborn)
		fake_end(fake, EXIT_POWER_OFF);
	if (fake->pressed)
		fake_end(fake, EXIT_QUIT);
}

/* Says what came, with which rights the files are open, and calls it disk3. */
static json_t *fake_disk_add(struct fake *fake, const json_t *params, const int *fds, size_t n_fds)
{
	json_t *disk = json_object_get(params, "disk");
	_cleanup_(freep) char *text = json_dumps(disk, JSON_COMPACT | JSON_SORT_KEYS);

	fake_print(fake, "disk-add %s", text ? text : "");
	for (size_t i = 0; i < n_fds; i++)
		fake_print(fake, " %s%s",
			   (fcntl(fds[i], F_GETFL) & O_ACCMODE) == O_RDWR ? "rw" : "r",
			   fcntl(fds[i], F_GETFL) & O_DIRECT ? "d" : "");
	fake_print(fake, "\n");
	for (size_t i = 0; i < n_fds; i++)
		fd_close(fds[i]);
	return json_pack("{s:s, s:i}", "disk", "disk3\x1b", "slot", 11);
}

/* The result object, NULL for a method it refuses. */
static json_t *fake_method(struct fake *fake, const char *method, json_t *params, int fd)
{
	if (!strcmp(method, "status"))
		return fake_status(fake);
	if (!strcmp(method, "counters"))
		return fake_counters();
	if (!strcmp(method, "sandbox"))
		return json_pack("{s:s}", "seccomp", "fake");
	if (!strcmp(method, "balloon"))
		fake_print(fake, "balloon %lld\n",
			   json_integer_value(json_object_get(params, "size")));
	else if (!strcmp(method, "link"))
		fake_print(fake, "%s %s\n", json_string_value(json_object_get(params, "device")),
			   json_is_true(json_object_get(params, "up")) ? "plugged" : "unplugged");
	else if (!strcmp(method, "disk-remove"))
		fake_print(fake, "disk-remove %s %lld\n",
			   json_string_value(json_object_get(params, "disk")),
			   json_integer_value(json_object_get(params, "timeout-ms")));
	else if (!strcmp(method, "pause"))
		fake->state = VM_PAUSED;
	else if (!strcmp(method, "resume"))
		fake->state = VM_RUNNING;
	else if (!strcmp(method, "quit"))
		fake_end(fake, EXIT_QUIT);
	else if (!strcmp(method, "power-button"))
		fake_press(fake);
	else if (!strcmp(method, "resize"))
		fake_print(fake, "size %lldx%lld\n",
			   json_integer_value(json_object_get(params, "columns")),
			   json_integer_value(json_object_get(params, "rows")));
	else if (strcmp(method, "console"))
		return NULL;
	if (fd >= 0) {
		fd_close(fake->console_fd);
		fake->console_fd = fd;
		fake_print(fake, "hello again\n");
	}
	return json_object();
}

static void fake_answer(struct fake *fake, int client, char *line, const int *fds, size_t n_fds)
{
	json_t *request = json_loads(line, 0, NULL), *result, *answer;
	const char *method = json_string_value(json_object_get(request, "method"));
	json_t *id = json_object_get(request, "id");
	char *text;

	if (!method || !id)
		_exit(104);
	if (!strcmp(method, "disk-add"))
		result = fake_disk_add(fake, json_object_get(request, "params"), fds, n_fds);
	else
		result = fake_method(fake, method, json_object_get(request, "params"),
				     n_fds ? fds[0] : -1);
	answer = result ? json_pack("{s:O, s:o}", "id", id, "result", result)
			: json_pack("{s:O, s:{s:s, s:s}}", "id", id, "error", "code", "ENOTSUP",
				    "text", "the fake VMM cannot\x1b do that");
	text = json_dumps(answer, JSON_COMPACT);
	/* An event first, as a VMM may send one at any time. */
	dprintf(client, "{\"event\": \"fake\"}\n%s\n", fake->garbage ? "\xff{" : text);
	free(text);
	json_decref(answer);
	json_decref(request);
}

static void fake_client(struct fake *fake, uint32_t i)
{
	char line[4096];
	size_t n_fds = 0;
	int fds[4];
	ssize_t n =
		fd_receive(fake->clients[i], line, sizeof(line) - 1, fds, ARRAY_SIZE(fds), &n_fds);

	if (n <= 0) {
		fd_close(fake->clients[i]);
		fake->clients[i] = fake->clients[--fake->n_clients];
		return;
	}
	line[n] = '\0';
	fake_answer(fake, fake->clients[i], line, fds, n_fds);
}

static void fake_console(struct fake *fake)
{
	char data[512];
	ssize_t n = read(fake->console_fd, data, sizeof(data));

	if (n <= 0)
		fake->console_fd = fd_close(fake->console_fd);
	else if (fake->echo && fd_write_full(fake->console_fd, data, n) < 0)
		fake->console_fd = fd_close(fake->console_fd);
}

static void fake_signal(struct fake *fake)
{
	struct signalfd_siginfo info;

	if (read(fake->signal_fd, &info, sizeof(info)) != sizeof(info))
		_exit(105);
	fake_press(fake);
	fake->pressed = true;
	fake_print(fake, "pressed\n");
}

static void fake_turn(struct fake *fake)
{
	struct pollfd fds[3 + CLIENTS_MAX] = {{.fd = fake->signal_fd, .events = POLLIN},
					      {.fd = fake->control_fd, .events = POLLIN},
					      {.fd = fake->console_fd, .events = POLLIN}};
	uint32_t n = fake->n_clients;

	for (uint32_t i = 0; i < n; i++)
		fds[3 + i] = (struct pollfd){.fd = fake->clients[i], .events = POLLIN};
	if (poll(fds, 3 + n, -1) < 0)
		_exit(106);
	for (uint32_t i = n; i-- > 0;)
		if (fds[3 + i].revents)
			fake_client(fake, i);
	if (fds[0].revents)
		fake_signal(fake);
	if (fds[1].revents && fake->n_clients < CLIENTS_MAX)
		fake->clients[fake->n_clients++] = accept4(fake->control_fd, NULL, NULL, 0);
	if (fds[2].revents)
		fake_console(fake);
}

static void fake_read_description(struct fake *fake)
{
	struct error err = ERROR_NULL;
	char *text;
	size_t size;

	if (fd_read_all(named_fds_take(&fake->fds, VM_FD_DESCRIPTION), 1 << 20, &text, &size) < 0 ||
	    table_init(&vm_table, &fake->vm) < 0 ||
	    table_from_text(&vm_table, text, size, "description", &fake->vm, &err) < 0 ||
	    vm_check(&fake->vm, &err) < 0) {
		fprintf(stderr, "fake-vmm: %s\n", err.text);
		_exit(107);
	}
	free(text);
}

/* A firmware has no command line: its file says it. */
static void fake_read_words(struct fake *fake)
{
	int kernel = named_fds_take(&fake->fds, VM_FD_KERNEL);
	size_t size;

	if (!fake->vm.firmware)
		fake->words = strdup(fake->vm.append ? fake->vm.append : "");
	else if (fd_read_all(kernel, 4096, &fake->words, &size) < 0)
		_exit(112);
	if (!fake->words)
		_exit(113);
}

static void fake_signals(struct fake *fake)
{
	sigset_t set;

	sigprocmask(SIG_SETMASK, NULL, &set);
	if (sigismember(&set, SIGINT) || sigismember(&set, SIGPIPE))
		_exit(108); /* the launcher's mask must not reach us */
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	fake->signal_fd = signalfd(-1, &set, SFD_CLOEXEC);
}

int main(int argc, char **argv)
{
	struct fake fake = {.state = VM_RUNNING};
	struct error err = ERROR_NULL;
	char names[4096];
	int ready;

	if (argc < 3 || strcmp(argv[1], "--fds") != 0)
		return 109;
	snprintf(names, sizeof(names), "%s", argv[2]);
	if (named_fds_parse(&fake.fds, argv[2], &err) < 0) {
		fprintf(stderr, "fake-vmm: %s\n", err.text);
		return 110;
	}
	fake_read_description(&fake);
	fake_read_words(&fake);
	fake.console_fd = named_fds_take(&fake.fds, VM_FD_CONSOLE);
	fake.log_fd = named_fds_take(&fake.fds, VM_FD_CONSOLE_LOG);
	fake.control_fd = named_fds_take(&fake.fds, VM_FD_CONTROL);
	fake.exit_fd = named_fds_take(&fake.fds, VM_FD_EXIT);
	fake.port_fd = named_fds_take(&fake.fds, VM_FD_PORT "0");
	ready = named_fds_take(&fake.fds, VM_FD_READY);
	fake_each_word(&fake, names);
	fake_signals(&fake);
	if (write(ready, "R", 1) != 1)
		return 111;
	fd_close(ready);
	fake_each_word(&fake, NULL);
	fake_print(&fake, "up\n");
	while (fake.deaf)
		pause();
	for (;;)
		fake_turn(&fake);
}
