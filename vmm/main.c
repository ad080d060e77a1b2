/* SPDX-License-Identifier: Apache-2.0 */
/*
 * corral-vmm: one process, one VM. Descriptors and a description come in from whoever started it;
 * it gives up its rights, runs the machine, and leaves an exit record. It opens nothing by path but
 * its own figures in /proc, before the root is emptied.
 */
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "block/qcow2.h"
#include "vmm/control.h"
#include "vmm/promptness.h"

#define DESCRIPTION_MAX (1u << 20)
#define USAGE_STATUS    2

struct vmm {
	struct named_fds fds;
	struct vm_description vm;
	struct figures figures;
	struct sandbox_status sandbox;
	struct loop *loop; /* owned */
	struct machine machine;
	struct control control;
	struct loop_source signals;
	int signal_fd; /* owned, likewise the next two */
	int exit_fd;
	int ready_fd;
	int lock_fd; /* held while the process lives */
	enum log_level level;
	char prefix[VM_NAME_MAX + 20];
};

static int seal_main(void)
{
	return sandbox_thread(SANDBOX_MAIN);
}

static int seal_vcpu(void)
{
	return sandbox_thread(SANDBOX_VCPU);
}

static int seal_io(void)
{
	return sandbox_thread(SANDBOX_IO);
}

static void seal_worker(void *unused)
{
	(void)unused;
	if (sandbox_thread(SANDBOX_WORKER) < 0)
		abort(); /* a thread that cannot be sealed must not run */
}

static void seal_disk(void *unused)
{
	(void)unused;
	if (sandbox_thread(SANDBOX_DISK) < 0)
		abort(); /* a thread that cannot be sealed must not run */
}

/* The description as JSON text, checked as a user's would be. */
static int read_description(struct vmm *vmm, struct error *err)
{
	_cleanup_(fd_closep) int fd = named_fds_take(&vmm->fds, VM_FD_DESCRIPTION);
	_cleanup_(freep) char *text = NULL;
	size_t size;
	int r;

	if (fd < 0)
		return error_set(err, -EBADF,
				 "cannot start: the descriptor named \"" VM_FD_DESCRIPTION
				 "\" was not handed over; corral-vmm is started by corral run");
	r = fd_read_all(fd, DESCRIPTION_MAX, &text, &size);
	if (r < 0)
		return error_set(err, r, "cannot read the VM's description: %s", strerror(-r));
	r = table_from_text(&vm_table, text, size, "the VM's description", &vmm->vm, err);
	return r < 0 ? r : vm_check(&vmm->vm, err);
}

static bool has_control(const struct named_fds *fds)
{
	for (uint32_t i = 0; i < fds->n_fds; i++)
		if (!strcmp(fds->fds[i].name, VM_FD_CONTROL))
			return true;
	return false;
}

/*
 * Libraries are found by path, while there are paths. What is missing is said by the image that
 * needs it, which may come later, as a disk or as an overlay.
 */
static void libraries_load(const struct vm_description *vm, const struct named_fds *fds)
{
	struct error err = ERROR_NULL;
	bool wanted = has_control(fds);

	for (uint32_t i = 0; i < vm->n_disks; i++)
		wanted |= vm->disks[i].format == VM_FORMAT_QCOW2;
	for (uint32_t type = QCOW2_ZLIB; wanted && type <= QCOW2_ZSTD; type++)
		if (compress_load(type, &err) < 0)
			log_debug("%s, ignoring", err.text);
	compress_settle();
}

static void on_signal(struct loop_source *source, const struct loop_event *event)
{
	struct vmm *vmm = container_of(source, struct vmm, signals);
	struct signalfd_siginfo info;

	(void)event;
	if (read(vmm->signal_fd, &info, sizeof(info)) == sizeof(info))
		machine_terminate(&vmm->machine);
}

/* SIGTERM comes through the loop; what a terminal sends is the launcher's to judge. */
static int signals_setup(struct vmm *vmm)
{
	sigset_t blocked;

	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGTERM);
	sigaddset(&blocked, SIGRTMIN);
	if (sigprocmask(SIG_BLOCK, &blocked, NULL) < 0)
		return -errno;
	sigdelset(&blocked, SIGRTMIN);
	vmm->signal_fd = signalfd(-1, &blocked, SFD_CLOEXEC | SFD_NONBLOCK);
	return vmm->signal_fd < 0 ? -errno : 0;
}

static int rights_give_up(struct vmm *vmm, struct error *err)
{
	struct sandbox_options options = {.empty_fd = named_fds_take(&vmm->fds, VM_FD_EMPTY)};
	int r;

	if (!vmm->vm.sandbox) {
		log_warning("RUNNING WITHOUT A SANDBOX, as the description asks (sandbox: off)");
		return table_init(&sandbox_status_table, &vmm->sandbox);
	}
	r = sandbox_enter(&options, &vmm->sandbox, err);
	fd_close(options.empty_fd);
	if (r == 0 && vmm->sandbox.missing)
		log_warning("the sandbox is not complete here: %s", vmm->sandbox.missing);
	return r;
}

static int vmm_start(struct vmm *vmm, struct error *err)
{
	struct loop_options options = {.name = "main", .depth = 256, .thread_start = seal_worker};
	struct machine_seals seals = {seal_vcpu, seal_io, seal_worker, seal_disk};
	int r;

	if (!vmm->vm.sandbox) {
		options.thread_start = NULL;
		seals = (struct machine_seals){0};
	}
	if ((r = loop_new(&vmm->loop, &options, err)) < 0)
		return r;
	if ((r = machine_init(&vmm->machine, &vmm->vm, &vmm->fds, vmm->loop, &seals, err)) < 0)
		return r;
	r = control_init(&vmm->control, vmm->loop, named_fds_take(&vmm->fds, VM_FD_CONTROL),
			 &vmm->machine, &vmm->figures, &vmm->sandbox, err);
	if (r < 0)
		return r;
	promptness_ask();
	if (vmm->vm.sandbox && (r = seal_main()) < 0)
		return error_set(err, r, "cannot take the system call list of the main thread: %s",
				 strerror(-r));
	vmm->signals.on_event = on_signal;
	if ((r = loop_enable(vmm->loop)) < 0 || (r = loop_add(vmm->loop, &vmm->signals)) < 0 ||
	    (r = loop_watch(&vmm->signals, vmm->signal_fd, POLLIN)) < 0)
		return error_set(err, r, "cannot start the event loop: %s", strerror(-r));
	return machine_start(&vmm->machine, err);
}

/* The record is written whole or, if the disk is full, said on standard error. */
static void leave_record(struct vmm *vmm, const struct exit_record *record)
{
	json_t *json = table_to_json(&exit_record_table, record);
	_cleanup_(freep) char *text = json ? json_dumps(json, JSON_INDENT(2)) : NULL;
	int r = text && vmm->exit_fd >= 0 ? fd_write_full(vmm->exit_fd, text, strlen(text)) : 0;

	if (r < 0)
		log_error("cannot write the exit record: %s", strerror(-r));
	json_decref(json);
}

static int vmm_failed(struct vmm *vmm, struct error *err)
{
	struct exit_record record = {
		.name = vmm->vm.name,
		.reason = EXIT_START_FAILED,
		.status = exit_status(EXIT_START_FAILED),
		.text = err->text,
		.ended_unix = time(NULL),
	};

	log_error("%s", err->text);
	leave_record(vmm, &record);
	return record.status;
}

static int vmm_run(struct vmm *vmm, struct error *err)
{
	int r;

	r = sandbox_close_others(&vmm->fds, err);
	if (r < 0)
		return r;
	vmm->exit_fd = named_fds_take(&vmm->fds, VM_FD_EXIT);
	vmm->ready_fd = named_fds_take(&vmm->fds, VM_FD_READY);
	vmm->lock_fd = named_fds_take(&vmm->fds, VM_FD_LOCK);
	if ((r = read_description(vmm, err)) < 0)
		return r;
	snprintf(vmm->prefix, sizeof(vmm->prefix), "corral-vmm[%s]", vmm->vm.name);
	log_init(vmm->prefix, vmm->level);
	if ((r = signals_setup(vmm)) < 0)
		return error_set(err, r, "cannot take signals: %s", strerror(-r));
	figures_open(&vmm->figures);
	libraries_load(&vmm->vm, &vmm->fds);
	if ((r = rights_give_up(vmm, err)) < 0)
		return r;
	if ((r = vmm_start(vmm, err)) < 0)
		return r;
	/* A launcher that is gone does not need the word. */
	if (vmm->ready_fd >= 0 && write(vmm->ready_fd, "R", 1) < 0)
		log_warning("nobody waits to hear that the VM runs, ignoring");
	vmm->ready_fd = fd_close(vmm->ready_fd);
	r = loop_run(vmm->loop);
	if (r < 0)
		machine_fault(&vmm->machine, "the kernel refuses to serve the main loop", r);
	return 0;
}

static void vmm_deinit(struct vmm *vmm)
{
	control_deinit(&vmm->control);
	if (vmm->machine.loop)
		machine_deinit(&vmm->machine);
	if (vmm->signals.loop)
		loop_remove(&vmm->signals);
	vmm->loop = loop_free(vmm->loop);
	vmm->signal_fd = fd_close(vmm->signal_fd);
	vmm->exit_fd = fd_close(vmm->exit_fd);
	vmm->ready_fd = fd_close(vmm->ready_fd);
	figures_close(&vmm->figures);
	named_fds_close(&vmm->fds);
	table_deinit(&sandbox_status_table, &vmm->sandbox);
	table_deinit(&vm_table, &vmm->vm);
}

static const char usage[] =
	"usage: corral-vmm --fds NAME[,NAME...] [--log-level error|warning|info|debug]\n"
	"Runs one VM with the descriptors it was started with: 3 is the first name, 4 the second "
	"…\n"
	"It is started by \"corral run\" and the host agent, not by hand.\n";

static const char *const log_levels[] = {
	[LOG_LEVEL_ERROR] = "error",
	[LOG_LEVEL_WARNING] = "warning",
	[LOG_LEVEL_INFO] = "info",
	[LOG_LEVEL_DEBUG] = "debug",
};

static bool parse_log_level(const char *name, enum log_level *ret_level)
{
	for (uint32_t i = 0; i < ARRAY_SIZE(log_levels); i++) {
		if (strcmp(log_levels[i], name) != 0)
			continue;
		*ret_level = i;
		return true;
	}
	return false;
}

/* Returns the list of descriptors, NULL when the words make no sense. */
static const char *parse(int argc, char **argv, enum log_level *ret_level)
{
	static const struct option options[] = {
		{"fds", required_argument, NULL, 'f'},
		{"log-level", required_argument, NULL, 'l'},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'v'},
		{0},
	};
	const char *fds = NULL;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'f') {
			fds = optarg;
		} else if (c == 'l' && parse_log_level(optarg, ret_level)) {
			continue;
		} else if (c == 'v') {
			puts("corral-vmm " CORRAL_VERSION);
			exit(0);
		} else {
			fputs(usage, c == 'h' ? stdout : stderr);
			exit(c == 'h' ? 0 : USAGE_STATUS);
		}
	}
	return optind == argc ? fds : NULL;
}

int main(int argc, char **argv)
{
	static struct vmm vmm = {.signal_fd = -1,
				 .exit_fd = -1,
				 .ready_fd = -1,
				 .lock_fd = -1,
				 .figures = {-1, -1},
				 .control = {.fd = -1}};
	enum log_level level = LOG_LEVEL_INFO;
	const char *fds = parse(argc, argv, &level);
	struct error err = ERROR_NULL;
	int status;

	if (!fds) {
		fputs(usage, stderr);
		return USAGE_STATUS;
	}
	log_init("corral-vmm", level);
	vmm.level = level;
	if (table_init(&vm_table, &vmm.vm) < 0 || named_fds_parse(&vmm.fds, fds, &err) < 0 ||
	    vmm_run(&vmm, &err) < 0) {
		status = vmm_failed(&vmm, &err);
	} else {
		leave_record(&vmm, &vmm.machine.record);
		status = vmm.machine.record.status;
		/* Locks stay with the descriptors until the kernel is done with the last write. */
		if (vmm.machine.forced)
			_exit(status);
	}
	vmm_deinit(&vmm);
	return status;
}
