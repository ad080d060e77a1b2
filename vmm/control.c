/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lines in, answers out. A request that waits for the machine to come to rest (pause, reset …), or
 * for a task of its own, holds up the later requests of its own connection only.
 */
#include "vmm/control.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "vmm/control-disks.h"
#include "vmm/control-hotplug.h"

/* A client this far behind in reading is dropped. */
#define BACKLOG_MAX (1u << 20)

struct control_client {
	struct control *control; /* weak */
	struct loop_source source;
	int fd;                       /* owned */
	struct control_passed passed; /* came with the request being read */
	uint64_t heard;               /* the control's count when it last said something */
	bool wants_events;
	bool hung_up;    /* to be freed when the turn's work on it is over */
	bool cycles;     /* … and is a "device-cycle", whose outcome is its own */
	json_t *waiting; /* owned: id of the request that waits for the machine, NULL: none */
	struct control_task *task; /* weak: … or for this */
	size_t n_in;
	char in[CONTROL_LINE_MAX];
	char *out; /* owned: answers not written yet */
	size_t n_out;
};

static void client_watch(struct control_client *client)
{
	/* While it waits for an answer nothing more is read from it. */
	uint32_t events = (client->waiting ? 0 : POLLIN) | (client->n_out ? POLLOUT : 0);

	loop_unwatch(&client->source);
	if (!client->hung_up && loop_watch(&client->source, client->fd, events) < 0)
		client->hung_up = true;
}

static void client_flush(struct control_client *client)
{
	while (client->n_out > 0) {
		ssize_t n =
			send(client->fd, client->out, client->n_out, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0) {
			client->hung_up |= errno != EAGAIN && errno != EINTR;
			return;
		}
		client->n_out -= n;
		memmove(client->out, client->out + n, client->n_out);
	}
	free(take_ptr(client->out));
}

/* Sends an object as one line. Takes over `object`; NULL (out of memory) drops the client. */
static void client_send(struct control_client *client, json_t *object)
{
	_cleanup_(freep) char *line = object ? json_dumps(object, JSON_COMPACT) : NULL;
	size_t length = line ? strlen(line) : 0;
	char *grown;

	json_decref(object);
	grown = line && client->n_out + length < BACKLOG_MAX
			? realloc(client->out, client->n_out + length + 1)
			: NULL;
	if (!grown) {
		client->hung_up = true;
		return;
	}
	client->out = grown;
	memcpy(client->out + client->n_out, line, length);
	client->out[client->n_out + length] = '\n';
	client->n_out += length + 1;
	client_flush(client);
}

/* Takes over `result`. */
static void answer(struct control_client *client, json_t *id, json_t *result)
{
	client_send(client,
		    json_pack("{s:O*, s:o}", "id", id, "result", result ? result : json_object()));
}

static void refuse(struct control_client *client, json_t *id, int code, const char *text)
{
	client_send(client, json_pack("{s:O*, s:{s:s, s:s}}", "id", id, "error", "code",
				      strerrorname_np(code < 0 ? -code : EINVAL), "text", text));
}

static json_t *status(struct control *control)
{
	const struct machine *machine = control->machine;
	const struct vm_description *vm = machine->board.vm;
	char address[16];
	struct control_status value = {
		.address = board_address(&machine->board, address) ? address : NULL,
		.name = vm->name,
		.state = machine->state,
		.cpus = vm->cpus,
		.memory = vm->memory.size,
		.pid = getpid(),
		.up_ms = machine_up_ms(machine),
		.resets = machine->record.resets,
		.machine = vm->machine,
		.version = CORRAL_VERSION,
	};

	return table_to_json(&control_status_table, &value);
}

static json_t *exits(const struct machine *machine)
{
	json_t *object = json_object();

	for (uint32_t i = 0; i < VCPU_EXITS; i++) {
		uint64_t sum = 0;

		for (uint32_t j = 0; j < machine->vcpus.n_vcpus; j++)
			sum += machine->vcpus.vcpus[j].exits[i];
		json_object_set_new(object, vcpu_exit_names[i], json_integer(sum));
	}
	return object;
}

static json_t *loop_figures(const struct loop *loop)
{
	struct loop_counters counters = loop_counters(loop);

	return json_pack("{s:I, s:I, s:I, s:I, s:b}", "turns", (json_int_t)counters.turns, "enters",
			 (json_int_t)counters.enters, "operations", (json_int_t)counters.operations,
			 "posts", (json_int_t)counters.posts, "io-uring", loop_has_uring(loop));
}

static json_t *counters(struct control *control)
{
	struct machine *machine = control->machine;
	struct board *board = &machine->board;
	json_t *devices = json_object(), *loops = json_object(), *memory = json_object();

	for (uint32_t i = 0; i < board->n_devices; i++) {
		const struct device *device = board->devices[i];
		json_t *one = json_object();

		if (device->ops->counters)
			device->ops->counters(device, one);
		if (json_object_size(one) > 0)
			json_object_set(devices, device->name, one);
		json_decref(one);
	}
	json_object_set_new(loops, "main", loop_figures(control->loop));
	for (uint32_t i = 0; i < board->n_io_threads; i++)
		json_object_set_new(loops, board->io_threads[i].name,
				    loop_figures(board->io_threads[i].loop));
	json_object_set_new(memory, "guest", json_integer(memory_total(&board->memory)));
	figures_read(control->figures, memory);
	return json_pack("{s:o, s:o, s:o, s:o}", "exits", exits(machine), "devices", devices,
			 "loops", loops, "memory", memory);
}

/* What was sent along and not taken. */
static void passed_close(struct control_passed *passed)
{
	while (passed->n_fds > 0)
		fd_close(passed->fds[--passed->n_fds]);
}

/* The socket that was sent along last, -1: it was none. Only a socket: it can be written to without
 * waiting for whoever holds its other side. */
static int passed_socket(struct control_passed *passed)
{
	struct stat st;

	if (!passed->n_fds || fstat(passed->fds[passed->n_fds - 1], &st) < 0 ||
	    !S_ISSOCK(st.st_mode))
		return -1;
	return passed->fds[--passed->n_fds];
}

static int console_attach(struct control *control, struct control_client *client, struct error *err)
{
	int fd = passed_socket(&client->passed);

	if (fd < 0)
		return error_set(err, -EBADF,
				 "cannot attach to the console: send a connected socket with the "
				 "request");
	chardev_attach(&control->machine->board.chardev, fd);
	return 0;
}

static int console_resize(struct control *control, const json_t *params, struct error *err)
{
	struct control_resize size;
	int r = table_init(&control_resize_table, &size);

	if (r == 0)
		r = table_from_json(&control_resize_table, params, &size, err);
	if (r == 0)
		virtio_console_resize(&control->machine->board.console, size.columns, size.rows);
	return r;
}

/* Another client's channel is not taken from it: its command would go unanswered. */
static int agent_attach(struct control *control, struct control_client *client, struct error *err)
{
	struct board *board = &control->machine->board;
	int fd;

	if (!board->vm->agent)
		return error_set(
			err, -ENODEV,
			"cannot reach the guest agent: the VM was made without its channel");
	if (chardev_attached(&board->agent))
		return error_set(err, -EBUSY,
				 "cannot reach the guest agent: another client is talking to it");
	fd = passed_socket(&client->passed);
	if (fd < 0)
		return error_set(err, -EBADF,
				 "cannot reach the guest agent: send a connected socket with the "
				 "request");
	chardev_attach(&board->agent, fd);
	return 0;
}

static int balloon_move(struct control *control, const json_t *params, struct error *err)
{
	struct board *board = &control->machine->board;
	struct control_balloon wanted;
	int r = table_init(&control_balloon_table, &wanted);

	if (r == 0)
		r = table_from_json(&control_balloon_table, params, &wanted, err);
	if (r == 0 && !board->vm->balloon)
		r = error_set(err, -ENODEV, "cannot move the balloon: the VM was made without one");
	if (r == 0 && wanted.size > board->vm->memory.size)
		r = error_set(err, -ERANGE,
			      "cannot move the balloon: the VM has %llu MiB, no more than that",
			      (unsigned long long)(board->vm->memory.size >> 20));
	if (r == 0)
		balloon_set(&board->balloon, wanted.size);
	return r;
}

static struct net *net_by_name(struct board *board, const char *name)
{
	for (uint32_t i = 0; i < board->n_nets; i++)
		if (name && strcmp(net_device(board->nets[i])->name, name) == 0)
			return board->nets[i];
	return NULL;
}

static int link_set(struct control *control, const json_t *params, struct error *err)
{
	struct control_link wanted;
	struct net *net;
	int r = table_init(&control_link_table, &wanted);

	if (r == 0)
		r = table_from_json(&control_link_table, params, &wanted, err);
	if (r == 0) {
		net = net_by_name(&control->machine->board, wanted.device);
		if (net)
			net_set_link(net, wanted.up);
		else
			r = error_set(err, -ENODEV, "cannot find the network card \"%s\"",
				      wanted.device);
	}
	table_deinit(&control_link_table, &wanted);
	return r;
}

static int announce(struct control *control, struct error *err)
{
	struct board *board = &control->machine->board;
	bool any = false;

	for (uint32_t i = 0; i < board->n_nets; i++)
		any |= net_announce(board->nets[i]);
	return any ? 0
		   : error_set(err, -EOPNOTSUPP,
			       "cannot have the guest announce itself: it has no card that knows "
			       "how");
}

static int device_cycle(struct control_client *client, const json_t *params, struct error *err)
{
	struct control_device_cycle value;
	struct device *device = NULL;
	int r = table_init(&control_device_cycle_table, &value);

	if (r == 0)
		r = table_from_json(&control_device_cycle_table, params, &value, err);
	if (r == 0) {
		device = board_device(&client->control->machine->board,
				      value.device ? value.device : "");
		if (!device)
			r = error_set(err, -ENODEV, "cannot cycle device \"%s\": there is none",
				      value.device ? value.device : "");
	}
	table_deinit(&control_device_cycle_table, &value);
	if (r == 0 && client->control->machine->wishes & WISH_CYCLE)
		r = error_set(err, -EBUSY, "cannot cycle device \"%s\": another is being cycled",
			      device->name);
	if (r == 0) {
		client->cycles = true;
		machine_cycle(client->control->machine, device);
	}
	return r;
}

/* Changes the machine. 0: the answer follows when it has settled. */
static int act(struct control_client *client, enum control_method_id method, const json_t *params,
	       struct error *err)
{
	struct machine *machine = client->control->machine;

	switch (method) {
	case CONTROL_PAUSE:
		machine_pause(machine);
		return 0;
	case CONTROL_RESUME:
		machine_resume(machine);
		return 0;
	case CONTROL_RESET:
		machine_reset(machine);
		return 0;
	case CONTROL_QUIT:
		machine_quit(machine, "told to end through its control socket");
		return 0;
	case CONTROL_POWER_BUTTON:
		machine_power_button(machine);
		return 0;
	case CONTROL_CONSOLE:
		return console_attach(client->control, client, err);
	case CONTROL_RESIZE:
		return console_resize(client->control, params, err);
	case CONTROL_EVENTS:
		client->wants_events = true;
		return 0;
	case CONTROL_AGENT:
		return agent_attach(client->control, client, err);
	case CONTROL_BALLOON:
		return balloon_move(client->control, params, err);
	case CONTROL_LINK:
		return link_set(client->control, params, err);
	case CONTROL_ANNOUNCE:
		return announce(client->control, err);
	case CONTROL_DEVICE_CYCLE:
		return device_cycle(client, params, err);
	case CONTROL_DISK_SNAPSHOT:
		return control_disk_snapshot(client->control, client, &client->passed, params, err);
	case CONTROL_DISK_RESIZE:
		return control_disk_resize(client->control, client, params, err);
	case CONTROL_DISK_ADD:
		return control_disk_add(client->control, client, &client->passed, params, err);
	case CONTROL_DISK_REMOVE:
		return control_disk_remove(client->control, client, params, err);
	default:
		return error_set(err, -ENOSYS, "this method only answers");
	}
}

/* Methods whose answer waits until the machine stands still, or runs. */
static bool moves(enum control_method_id method)
{
	return method == CONTROL_PAUSE || method == CONTROL_RESUME || method == CONTROL_RESET ||
	       method == CONTROL_QUIT || method == CONTROL_DEVICE_CYCLE;
}

/* Methods that look and change nothing. NULL: not one of them. */
static json_t *look(struct control *control, enum control_method_id method)
{
	switch (method) {
	case CONTROL_DESCRIBE:
		return control_describe();
	case CONTROL_STATUS:
		return status(control);
	case CONTROL_COUNTERS:
		return counters(control);
	case CONTROL_SANDBOX:
		return sandbox_describe(control->sandbox);
	case CONTROL_DISKS:
		return control_disks(control);
	default:
		return NULL;
	}
}

/* The answer to a request that changed the machine: what came of it. */
static void answer_settled(struct control_client *client, json_t *id)
{
	struct machine *machine = client->control->machine;

	bool cycled = client->cycles;

	client->cycles = false;
	if (cycled && machine->failure.code < 0) {
		refuse(client, id, machine->failure.code, machine->failure.text);
		machine->failure = ERROR_NULL;
	} else {
		answer(client, id, status(client->control));
	}
}

/* A method without parameters takes none. */
static const struct table no_params = {.name = "params", .size = 0};

static int params_check(enum control_method_id method, const json_t *params, struct error *err)
{
	return control_methods[method].params ? 0 : table_from_json(&no_params, params, NULL, err);
}

static void request(struct control_client *client, json_t *json)
{
	json_t *id = json_object_get(json, "id");
	const char *name = json_string_value(json_object_get(json, "method"));
	json_t *params = json_object_get(json, "params");
	json_auto_t *none = json_object();
	struct error err = ERROR_NULL;
	uint32_t method = 0;
	json_t *seen;

	while (method < CONTROL_METHODS &&
	       (!name || strcmp(control_methods[method].name, name) != 0))
		method++;
	if (method == CONTROL_METHODS) {
		refuse(client, id, -ENOSYS,
		       name ? "there is no such method; ask \"describe\""
			    : "a request is an object with a \"method\"");
		return;
	}
	if (params_check(method, params ? params : none, &err) < 0) {
		refuse(client, id, err.code, err.text);
		return;
	}
	seen = look(client->control, method);
	if (seen) {
		answer(client, id, seen);
	} else if (act(client, method, params ? params : none, &err) < 0) {
		refuse(client, id, err.code, err.text);
	} else if (client->task) {
		client->waiting = id ? json_incref(id) : json_null();
	} else if (!moves(method) || machine_settled(client->control->machine)) {
		answer_settled(client, id);
	} else {
		client->waiting = id ? json_incref(id) : json_null();
	}
}

/* Serves one whole line, if one has come in; the next has its turn after everybody else's. */
static void client_serve(struct control_client *client)
{
	char *end;

	if (!client->waiting && !client->hung_up &&
	    (end = memchr(client->in, '\n', client->n_in))) {
		size_t length = end - client->in;
		json_error_t why;
		json_t *json = json_loadb(client->in, length,
					  JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);

		client->n_in -= length + 1;
		if (json_is_object(json)) {
			request(client, json);
		} else {
			refuse(client, NULL, -EBADMSG,
			       json ? "a request is an object with a \"method\"" : why.text);
			client->hung_up = true;
		}
		json_decref(json);
		memmove(client->in, end + 1, client->n_in);
		/*
		 * A descriptor may come in together with lines before its own; once all that came
		 * has been served, nobody wanted it.
		 */
		if (client->n_in > 0)
			loop_post(&client->source, 0);
		else
			passed_close(&client->passed);
	}
}

static void client_read(struct control_client *client)
{
	struct control_passed *passed = &client->passed;
	size_t n_fds = 0;
	ssize_t n =
		fd_receive(client->fd, client->in + client->n_in, sizeof(client->in) - client->n_in,
			   passed->fds + passed->n_fds, CONTROL_PASSED_MAX - passed->n_fds, &n_fds);

	if (n == -EAGAIN || n == -EINTR)
		return;
	if (n <= 0) {
		client->hung_up = true;
		return;
	}
	passed->n_fds += n_fds;
	client->n_in += n;
	client->heard = ++client->control->n_heard;
	client_serve(client);
	if (client->n_in == sizeof(client->in)) {
		refuse(client, NULL, -EMSGSIZE, "the line is too long");
		client->hung_up = true;
	}
}

static struct control_client *client_free(struct control_client *client)
{
	if (client->source.loop)
		loop_remove(&client->source);
	if (client->task)
		client->task->client = NULL;
	fd_close(client->fd);
	passed_close(&client->passed);
	json_decref(client->waiting);
	free(client->out);
	free(client);
	return NULL;
}

/* After any work on a client: watch it for what it now waits for, or let it go. */
static void client_after(struct control_client *client)
{
	struct control *control = client->control;

	if (!client->hung_up) {
		client_watch(client);
		return;
	}
	for (uint32_t i = 0; i < CONTROL_CLIENTS_MAX; i++) {
		if (control->clients[i] != client)
			continue;
		control->clients[i] = client_free(client);
		return;
	}
}

static void client_event(struct loop_source *source, const struct loop_event *event)
{
	struct control_client *client = container_of(source, struct control_client, source);

	if (event->kind == LOOP_POST)
		client_serve(client);
	if (event->kind == LOOP_READY && event->result & POLLOUT)
		client_flush(client);
	if (event->kind == LOOP_READY && event->result & (POLLIN | POLLHUP | POLLERR)) {
		if (client->waiting)
			client->hung_up |= !!(event->result & (POLLHUP | POLLERR));
		else
			client_read(client);
	}
	client_after(client);
}

/* A free place; if there is none, that of the client that has been silent longest and waits for
 * nothing. */
static int client_place(struct control *control)
{
	int silent = -1;

	for (int i = 0; i < CONTROL_CLIENTS_MAX; i++) {
		const struct control_client *client = control->clients[i];

		if (!client)
			return i;
		if (!client->waiting && !client->wants_events &&
		    (silent < 0 || client->heard < control->clients[silent]->heard))
			silent = i;
	}
	if (silent >= 0)
		control->clients[silent] = client_free(control->clients[silent]);
	return silent;
}

static void client_accept(struct control *control, int fd)
{
	int i = client_place(control);
	struct control_client *client = i >= 0 ? calloc(1, sizeof(*client)) : NULL;

	if (!client) {
		fd_close(fd);
		return;
	}
	client->heard = ++control->n_heard;
	client->control = control;
	client->fd = fd;
	client->source.on_event = client_event;
	if (loop_add(control->loop, &client->source) < 0) {
		client_free(client);
		return;
	}
	control->clients[i] = client;
	client_watch(client);
}

static void listener_event(struct loop_source *source, const struct loop_event *event)
{
	struct control *control = container_of(source, struct control, listener);
	int fd;

	(void)event;
	fd = accept4(control->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd >= 0)
		client_accept(control, fd);
}

/*
 * What the machine reports may come in the middle of a request of the very client that is told, so
 * here clients are only written to; what follows from it is done in a message of their own.
 */
static void on_happened(struct machine_observer *observer, const char *event, json_t *more)
{
	struct control *control = container_of(observer, struct control, observer);

	for (uint32_t i = 0; i < CONTROL_CLIENTS_MAX; i++) {
		struct control_client *client = control->clients[i];
		json_t *line;

		if (!client || !client->wants_events)
			continue;
		line = json_pack("{s:s, s:I}", "event", event, "at_ms",
				 (json_int_t)machine_up_ms(control->machine));
		if (line && more)
			(void)json_object_update(line, more);
		client_send(client, line);
		loop_post(&client->source, 0);
	}
}

static void on_settled(struct machine_observer *observer)
{
	struct control *control = container_of(observer, struct control, observer);

	for (uint32_t i = 0; i < CONTROL_CLIENTS_MAX; i++) {
		struct control_client *client = control->clients[i];
		json_t *id = client && !client->task ? take_ptr(client->waiting) : NULL;

		if (!id)
			continue;
		answer_settled(client, id);
		json_decref(id);
		loop_post(&client->source, 0);
	}
}

void control_task_begin(struct control_task *task, struct control_client *client)
{
	task->client = client;
	client->task = task;
}

void control_task_end(struct control_task *task, json_t *result, const struct error *err)
{
	struct control_client *client = take_ptr(task->client);
	json_t *id;

	if (!client) {
		json_decref(result);
		return;
	}
	client->task = NULL;
	id = take_ptr(client->waiting);
	if (err && err->code < 0) {
		json_decref(result);
		refuse(client, id, err->code, err->text);
	} else {
		answer(client, id, result);
	}
	json_decref(id);
	loop_post(&client->source, 0);
}

int control_init(struct control *control, struct loop *loop, int fd, struct machine *machine,
		 const struct figures *figures, struct sandbox_status *sandbox, struct error *err)
{
	int r;

	*control = (struct control){.loop = loop,
				    .machine = machine,
				    .figures = figures,
				    .sandbox = sandbox,
				    .observer = {on_happened, on_settled},
				    .fd = fd};
	machine->observer = &control->observer;
	if (fd < 0)
		return 0;
	control->listener.on_event = listener_event;
	r = loop_add(loop, &control->listener);
	if (r == 0)
		r = loop_watch(&control->listener, fd, POLLIN);
	return r < 0 ? error_set(err, r, "cannot serve the control socket: %s", strerror(-r)) : 0;
}

void control_deinit(struct control *control)
{
	if (control->machine)
		control->machine->observer = NULL;
	for (uint32_t i = 0; i < CONTROL_CLIENTS_MAX; i++)
		if (control->clients[i])
			control->clients[i] = client_free(control->clients[i]);
	if (control->listener.loop)
		loop_remove(&control->listener);
	/* The ring may hold the socket a while longer; nobody shall connect to it any more. */
	if (control->fd >= 0)
		(void)shutdown(control->fd, SHUT_RDWR);
	control->fd = fd_close(control->fd);
}
