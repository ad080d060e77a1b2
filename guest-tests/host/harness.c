/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The child that runs the VM, its lines and the verdict. One VM a test, one thread; the child is in
 * its own process group and dies with this process whatever happens.
 */
#include "guest-tests/host/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_TIMEOUT_S 60
#define TERM_GRACE_MS     3000
#define MAX_ARGS          64
#define MAX_LINE          4096
#define MAX_FILES         96
#define VMS_MAX           16

struct vm {
	pid_t pid;
	int in_fd, out_fd; /* owned; the same one for a terminal */
	int control_fd;    /* owned; -1 until the first call */
	char control_path[128];
	uint64_t deadline_ms;
	char buffer[MAX_LINE];
	size_t n_buffered;
	char line[MAX_LINE];
	char open_case[128];
	unsigned int n_passed, n_failed, n_skipped;
	unsigned int last_id;
};

struct command {
	char *argv[MAX_ARGS];
	unsigned int n;
};

static char guest_elf[512], test_name[64], test_dir[96];
static char files[MAX_FILES][160];
static unsigned int n_files, n_starts;
static struct vm vms[VMS_MAX]; /* the first n_vms have been started; pid -1: ended */
static unsigned int n_vms;

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* --- the test itself --- */

/* Waits for the child until the deadline; true when it has been reaped. */
static bool reap(struct vm *vm, uint64_t until_ms, int *ret_status)
{
	do {
		pid_t pid = waitpid(vm->pid, ret_status, WNOHANG);

		if (pid == vm->pid) {
			vm->pid = -1;
			return true;
		}
		poll(NULL, 0, 10);
	} while (now_ms() < until_ms);
	return false;
}

/* The launcher is asked first, so that it takes its VMM with it. */
static void stop_vm(struct vm *vm)
{
	int status;

	if (vm->pid < 0)
		return;
	kill(-vm->pid, SIGTERM);
	if (!reap(vm, now_ms() + TERM_GRACE_MS, &status)) {
		kill(-vm->pid, SIGKILL);
		waitpid(vm->pid, &status, 0);
	}
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *where)
{
	(void)st;
	(void)type;
	(void)where;
	return remove(path);
}

static void clean_up(void)
{
	for (unsigned int i = 0; i < n_vms; i++)
		stop_vm(&vms[i]);
	if (test_dir[0])
		nftw(test_dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void on_signal(int signal)
{
	/* exit() is not for handlers, but kill is; the kernel ends the child by PDEATHSIG. */
	for (unsigned int i = 0; i < n_vms; i++)
		if (vms[i].pid > 0)
			kill(-vms[i].pid, SIGTERM);
	_exit(128 + signal);
}

void test_init(int argc, char **argv)
{
	const char *tmp = getenv("TMPDIR");
	const char *base = strrchr(argv[0], '/');

	if (argc < 2) {
		fprintf(stderr, "usage: %s GUEST-ELF\n", argv[0]);
		exit(2);
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	snprintf(guest_elf, sizeof(guest_elf), "%s", argv[1]);
	snprintf(test_name, sizeof(test_name), "%s", base ? base + 1 : argv[0]);
	snprintf(test_dir, sizeof(test_dir), "%s/guest-test-XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(test_dir)) {
		perror(test_dir);
		exit(TEST_FAIL);
	}
	atexit(clean_up);
	/* A VM that a failing test has to kill leaves nothing where users' VMs are. */
	CHECK(mkdir(test_file("run"), 0755) == 0, "%s: %s", test_file("run"), strerror(errno));
	setenv("CORRAL_RUN_DIRECTORY", test_file("run"), 1);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGTERM, on_signal);
	signal(SIGINT, on_signal);
	if (!vm_is_peer() && !getenv("CORRAL"))
		test_skip("CORRAL does not name the corral binary");
}

const char *test_file(const char *name)
{
	for (unsigned int i = 0; i < n_files; i++) {
		if (strcmp(files[i] + strlen(test_dir) + 1, name) == 0)
			return files[i];
	}
	CHECK(n_files < MAX_FILES, "too many files");
	snprintf(files[n_files], sizeof(files[0]), "%s/%s", test_dir, name);
	return files[n_files++];
}

void test_skip(const char *why)
{
	printf("SKIP %s\n", why);
	exit(TEST_SKIP);
}

void test_fail(const char *file, int line, const char *format, ...)
{
	va_list args;

	printf("FAIL %s:%d: ", file, line);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	exit(TEST_FAIL);
}

/* --- files --- */

void file_fill(const char *path, size_t size, uint64_t seed)
{
	FILE *f = fopen(path, "we");
	uint64_t x = seed;

	CHECK(f, "%s: %s", path, strerror(errno));
	for (size_t i = 0; i < size; i += sizeof(x)) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		fwrite(&x, 1, size - i < sizeof(x) ? size - i : sizeof(x), f);
	}
	CHECK(fclose(f) == 0, "%s: %s", path, strerror(errno));
}

void file_count_up(const char *path, size_t size)
{
	FILE *f = fopen(path, "we");

	CHECK(f, "%s: %s", path, strerror(errno));
	for (size_t i = 0; i < size; i++)
		putc((int)(i & 0xff), f);
	CHECK(fclose(f) == 0, "%s: %s", path, strerror(errno));
}

uint8_t *file_read(const char *path, size_t *ret_size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	uint8_t *data;

	CHECK(fd >= 0 && fstat(fd, &st) == 0, "%s: %s", path, strerror(errno));
	data = malloc(st.st_size);
	CHECK(data && pread(fd, data, st.st_size, 0) == st.st_size, "%s: short read", path);
	close(fd);
	*ret_size = st.st_size;
	return data;
}

void file_write_at(const char *path, uint64_t offset, const void *data, size_t len)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	CHECK(fd >= 0, "%s: %s", path, strerror(errno));
	CHECK(pwrite(fd, data, len, offset) == (ssize_t)len, "%s: short write", path);
	close(fd);
}

void fletcher_add(struct fletcher *sum, const void *data, size_t len)
{
	uint64_t word;

	for (size_t i = 0; i + sizeof(word) <= len; i += sizeof(word)) {
		memcpy(&word, (const char *)data + i, sizeof(word));
		sum->a += word;
		sum->b += sum->a;
	}
}

/* --- start --- */

bool vm_is_peer(void)
{
	const char *vmm = getenv("GUEST_TEST_VMM");

	return vmm && strcmp(vmm, "qemu") == 0;
}

static void __attribute__((format(printf, 2, 3))) arg(struct command *c, const char *format, ...)
{
	va_list args;

	CHECK(c->n < MAX_ARGS - 1, "too many arguments");
	va_start(args, format);
	CHECK(vasprintf(&c->argv[c->n++], format, args) >= 0, "out of memory");
	va_end(args);
}

static void corral_disk(struct command *c, const struct vm_disk_config *d)
{
	char options[128] = "";
	size_t n = 0;

	if (d->readonly)
		n += snprintf(options + n, sizeof(options) - n, ",readonly=on");
	if (d->serial)
		n += snprintf(options + n, sizeof(options) - n, ",serial=%s", d->serial);
	if (d->n_queues)
		snprintf(options + n, sizeof(options) - n, ",queues=%u", d->n_queues);
	arg(c, "--disk");
	arg(c, "%s%s", d->path, options);
}

static void corral_command(struct command *c, const struct vm_config *config, const struct vm *vm)
{
	arg(c, "%s", getenv("CORRAL"));
	arg(c, "run");
	arg(c, "--name");
	arg(c, "gt-%.24s-%d-%u", test_name, getpid(), n_starts);
	arg(c, "--kernel");
	arg(c, "%s", guest_elf);
	arg(c, "--append");
	arg(c, "%s", config->append ? config->append : "");
	arg(c, "--cpus");
	arg(c, "%u", config->cpus ? config->cpus : 1);
	arg(c, "--memory");
	arg(c, "%s", config->memory ? config->memory : "64M");
	for (unsigned int i = 0; i < VM_MAX_DISKS && config->disks[i].path; i++)
		corral_disk(c, &config->disks[i]);
	arg(c, "--rng");
	arg(c, config->no_rng ? "off" : "on");
	arg(c, "--console");
	arg(c, config->console_virtio ? "stdio,device=virtio" : "stdio");
	arg(c, "--control");
	arg(c, "%s", vm->control_path);
	for (unsigned int i = 0; i < VM_MAX_WORDS && config->words[i]; i++)
		arg(c, "%s", config->words[i]);
}

static void qemu_disk(struct command *c, const struct vm_disk_config *d, unsigned int i)
{
	arg(c, "-drive");
	arg(c, "if=none,id=d%u,format=raw,discard=unmap,file=%s,readonly=%s", i, d->path,
	    d->readonly ? "on" : "off");
	arg(c, "-device");
	arg(c, "virtio-blk-pci,disable-legacy=on,drive=d%u,num-queues=%u,vectors=%u,serial=%s", i,
	    d->n_queues ? d->n_queues : 1, (d->n_queues ? d->n_queues : 1) + 1,
	    d->serial ? d->serial : "none");
}

static void qemu_command(struct command *c, const struct vm_config *config)
{
	const char *accel = getenv("GUEST_TEST_ACCEL");

	arg(c, "qemu-system-x86_64");
	arg(c, "-M");
	arg(c, "q35");
	arg(c, "-accel");
	arg(c, "%s", accel ? accel : "tcg");
	arg(c, "-nodefaults");
	arg(c, "-display");
	arg(c, "none");
	arg(c, "-kernel");
	arg(c, "%s", guest_elf);
	arg(c, "-append");
	arg(c, "%s peer", config->append ? config->append : "");
	arg(c, "-smp");
	arg(c, "%u", config->cpus ? config->cpus : 1);
	arg(c, "-m");
	arg(c, "%s", config->memory ? config->memory : "64M");
	for (unsigned int i = 0; i < VM_MAX_DISKS && config->disks[i].path; i++)
		qemu_disk(c, &config->disks[i], i);
	arg(c, "-chardev");
	arg(c, "stdio,id=s,signal=off");
	arg(c, "-device");
	arg(c, "virtio-serial-pci,disable-legacy=on");
	arg(c, "-device");
	arg(c, config->console_virtio ? "virtconsole,chardev=s" : "virtserialport,nr=1,name=spare");
	if (!config->console_virtio) {
		arg(c, "-serial");
		arg(c, "chardev:s");
	}
	if (!config->no_rng) {
		arg(c, "-device");
		arg(c, "virtio-rng-pci,disable-legacy=on");
	}
}

static void __attribute__((noreturn))
run_child(struct command *c, const int *in, const int *out, const char *stderr_path)
{
	int fd = stderr_path ? open(stderr_path, O_WRONLY | O_CREAT | O_TRUNC, 0600) : -1;

	if (fd >= 0)
		dup2(fd, STDERR_FILENO);
	if (in) {
		setpgid(0, 0);
		dup2(in[0], STDIN_FILENO);
		dup2(out[1], STDOUT_FILENO);
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_DFL);
	execvp(c->argv[0], c->argv);
	dprintf(STDERR_FILENO, "cannot start %s: %s\n", c->argv[0], strerror(errno));
	_exit(127);
}

static void start_on_pipes(struct vm *vm, struct command *c, const char *stderr_path)
{
	int in[2], out[2];

	CHECK(pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0, "%s", strerror(errno));
	vm->pid = fork();
	CHECK(vm->pid >= 0, "fork: %s", strerror(errno));
	if (vm->pid == 0)
		run_child(c, in, out, stderr_path);
	close(in[0]);
	close(out[1]);
	vm->in_fd = in[1];
	vm->out_fd = out[0];
}

static void start_on_pty(struct vm *vm, struct command *c, const char *stderr_path)
{
	struct winsize size = {.ws_col = 80, .ws_row = 25};
	struct termios raw = {0};

	cfmakeraw(&raw);
	vm->pid = forkpty(&vm->out_fd, NULL, &raw, &size);
	CHECK(vm->pid >= 0, "forkpty: %s", strerror(errno));
	if (vm->pid == 0)
		run_child(c, NULL, NULL, stderr_path);
	fcntl(vm->out_fd, F_SETFD, FD_CLOEXEC);
	vm->in_fd = vm->out_fd;
}

static void close_vm(struct vm *vm)
{
	if (vm->control_fd >= 0)
		close(vm->control_fd);
	if (vm->out_fd >= 0)
		close(vm->out_fd);
	if (vm->in_fd >= 0 && vm->in_fd != vm->out_fd)
		close(vm->in_fd);
}

struct vm *vm_start(const struct vm_config *config)
{
	struct command c = {0};
	char socket_name[32];
	unsigned int place = 0;
	struct vm *vm;

	while (place < n_vms && vms[place].pid >= 0)
		place++;
	CHECK(place < VMS_MAX, "more than %d VMs at a time", VMS_MAX);
	vm = &vms[place];
	if (place < n_vms)
		close_vm(vm);
	*vm = (struct vm){.pid = -1, .in_fd = -1, .out_fd = -1, .control_fd = -1};
	n_vms = place < n_vms ? n_vms : place + 1;
	n_starts += !config->same_socket;
	snprintf(socket_name, sizeof(socket_name), "control-%u", n_starts);
	snprintf(vm->control_path, sizeof(vm->control_path), "%s", test_file(socket_name));
	vm->deadline_ms =
		now_ms() + 1000 * (config->timeout_s ? config->timeout_s : DEFAULT_TIMEOUT_S);
	if (vm_is_peer())
		qemu_command(&c, config);
	else
		corral_command(&c, config, vm);
	if (config->on_pty)
		start_on_pty(vm, &c, config->stderr_path);
	else
		start_on_pipes(vm, &c, config->stderr_path);
	for (unsigned int i = 0; i < c.n; i++)
		free(c.argv[i]);
	return vm;
}

/* --- lines --- */

/* Bytes read, 0 at the end, -1 when nothing came before the given time. */
static ssize_t read_some(struct vm *vm, uint64_t until_ms)
{
	struct pollfd p = {.fd = vm->out_fd, .events = POLLIN};
	uint64_t now = now_ms();
	ssize_t n;

	if (poll(&p, 1, until_ms > now ? (int)(until_ms - now) : 0) <= 0)
		return -1;
	CHECK(vm->n_buffered < sizeof(vm->buffer), "a line of more than %zu bytes",
	      sizeof(vm->buffer));
	n = read(vm->out_fd, vm->buffer + vm->n_buffered, sizeof(vm->buffer) - vm->n_buffered);
	/* A terminal whose other side is gone reports EIO. */
	if (n < 0 && errno == EIO)
		n = 0;
	CHECK(n >= 0, "reading from the VM: %s", strerror(errno));
	vm->n_buffered += n;
	return n;
}

static void begin_case(struct vm *vm, const char *name)
{
	/* A case that resets the machine is begun again by the same name. */
	CHECK(!vm->open_case[0] || strcmp(vm->open_case, name) == 0,
	      "case %s has no verdict, and %s begins", vm->open_case, name);
	snprintf(vm->open_case, sizeof(vm->open_case), "%s", name);
}

static void parse_line(struct vm *vm)
{
	const char *line = vm->line;

	printf("guest: %s\n", line);
	if (strncmp(line, "TEST ", 5) == 0) {
		begin_case(vm, line + 5);
		return;
	}
	if (strcmp(line, "PASS") == 0)
		vm->n_passed++;
	else if (strncmp(line, "FAIL ", 5) == 0)
		vm->n_failed++;
	else if (strncmp(line, "SKIP ", 5) == 0)
		vm->n_skipped++;
	else
		return;
	vm->open_case[0] = 0;
}

static bool take_line(struct vm *vm)
{
	char *end = memchr(vm->buffer, '\n', vm->n_buffered);
	size_t len;

	if (!end)
		return false;
	len = end - vm->buffer;
	memcpy(vm->line, vm->buffer, len);
	vm->line[len && vm->line[len - 1] == '\r' ? len - 1 : len] = 0;
	vm->n_buffered -= len + 1;
	memmove(vm->buffer, end + 1, vm->n_buffered);
	return true;
}

const char *vm_line(struct vm *vm)
{
	while (!take_line(vm)) {
		ssize_t n = read_some(vm, vm->deadline_ms);

		CHECK(n >= 0, "the guest is not done in time%s%s",
		      vm->open_case[0] ? ", in case " : "", vm->open_case);
		if (n == 0)
			return NULL;
	}
	parse_line(vm);
	return vm->line;
}

const char *vm_note(struct vm *vm, const char *key)
{
	size_t len = strlen(key);

	for (;;) {
		const char *line = vm_line(vm);

		CHECK(line, "the VM ended before it said %s", key);
		CHECK(!vm->n_failed, "the guest failed before it said %s", key);
		if (strncmp(line, "NOTE ", 5) == 0 && strncmp(line + 5, key, len) == 0 &&
		    (line[5 + len] == ' ' || line[5 + len] == 0))
			return line + 5 + len + (line[5 + len] == ' ');
	}
}

bool vm_is_silent(struct vm *vm, unsigned int ms)
{
	return vm->n_buffered == 0 && read_some(vm, now_ms() + ms) < 0;
}

void vm_send(struct vm *vm, const char *text)
{
	size_t len = strlen(text);

	CHECK(write(vm->in_fd, text, len) == (ssize_t)len, "writing to the VM: %s",
	      strerror(errno));
}

void vm_resize(struct vm *vm, unsigned int columns, unsigned int rows)
{
	struct winsize size = {.ws_col = columns, .ws_row = rows};

	CHECK(ioctl(vm->out_fd, TIOCSWINSZ, &size) == 0, "resizing: %s", strerror(errno));
}

/* --- control --- */

int vm_connect(struct vm *vm)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	struct timeval timeout = {.tv_sec = 10};
	int fd;

	CHECK(strlen(vm->control_path) < sizeof(sun.sun_path), "path too long");
	memcpy(sun.sun_path, vm->control_path, strlen(vm->control_path));
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK(fd >= 0, "socket: %s", strerror(errno));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	CHECK(connect(fd, (struct sockaddr *)&sun, sizeof(sun)) == 0, "%s: %s", vm->control_path,
	      strerror(errno));
	return fd;
}

/* One line of any length up to the protocol's limit; without its end. */
static void control_read(struct vm *vm, char *ret_text, size_t size)
{
	size_t len = 0;

	for (;;) {
		ssize_t n = recv(vm->control_fd, ret_text + len, size - 1 - len, 0);

		CHECK(n > 0, "control socket: %s", n < 0 ? strerror(errno) : "closed");
		len += n;
		if (ret_text[len - 1] == '\n')
			break;
		CHECK(len < size - 1, "control reply too long");
	}
	ret_text[len - 1] = 0;
}

json_t *vm_call(struct vm *vm, const char *method, json_t *params)
{
	static char text[65536];
	json_t *call, *reply, *result;
	char *out;

	if (vm->control_fd < 0)
		vm->control_fd = vm_connect(vm);
	call = json_pack("{s:i,s:s,s:o*}", "id", (int)++vm->last_id, "method", method, "params",
			 params);
	out = json_dumps(call, JSON_COMPACT);
	CHECK(out, "cannot make a %s call", method);
	snprintf(text, sizeof(text), "%s\n", out);
	CHECK(send(vm->control_fd, text, strlen(text), 0) == (ssize_t)strlen(text), "%s: %s",
	      method, strerror(errno));
	free(out);
	json_decref(call);
	control_read(vm, text, sizeof(text));
	reply = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
	CHECK(reply && json_integer_value(json_object_get(reply, "id")) == (int)vm->last_id,
	      "%s: reply %s", method, text);
	result = json_object_get(reply, "result");
	CHECK(result, "%s: refused: %s", method, text);
	json_incref(result);
	json_decref(reply);
	return result;
}

pid_t vm_launcher(const struct vm *vm)
{
	return vm->pid;
}

pid_t vm_vmm(struct vm *vm)
{
	json_t *status = vm_call(vm, "status", NULL);
	pid_t pid = (pid_t)json_integer_value(json_object_get(status, "pid"));

	CHECK(pid > 1, "the VMM's pid is %d", pid);
	json_decref(status);
	return pid;
}

uint64_t vm_exits(struct vm *vm)
{
	json_t *counters = vm_call(vm, "counters", NULL);
	json_t *exits = json_object_get(counters, "exits"), *count;
	const char *reason;
	uint64_t sum = 0;

	CHECK(json_is_object(exits) && json_object_size(exits), "no exit counters");
	json_object_foreach(exits, reason, count)
	{
		if (strcmp(reason, "halt") != 0 && strcmp(reason, "intr") != 0)
			sum += json_integer_value(count);
	}
	json_decref(counters);
	return sum;
}

/* --- verdict --- */

int vm_status(struct vm *vm)
{
	int status;

	while (vm_line(vm))
		;
	CHECK(reap(vm, vm->deadline_ms, &status), "the VM closed its output but does not end");
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void wait_for_end(struct vm *vm, int expected)
{
	int status = vm_status(vm);

	CHECK(status == expected, "the VM ended with status %d", status);
}

int vm_judge_status(struct vm *vm, int status)
{
	wait_for_end(vm, status);
	CHECK(!vm->n_failed, "%u cases failed in the guest", vm->n_failed);
	CHECK(!vm->open_case[0], "case %s has no verdict", vm->open_case);
	CHECK(vm->n_passed + vm->n_skipped, "the guest reported nothing");
	return vm->n_passed ? TEST_PASS : TEST_SKIP;
}

int vm_judge_silent(struct vm *vm)
{
	wait_for_end(vm, 0);
	return TEST_PASS;
}

int vm_judge(struct vm *vm)
{
	return vm_judge_status(vm, 0);
}
