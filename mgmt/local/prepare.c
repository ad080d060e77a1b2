/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: a description. Out: the run directory with its files, and the list of descriptors a VMM is
 * started with. What the VMM and we must be able to write later (pid, exit record) gets its space
 * now, so that a full disk is told before the guest starts and not after it has ended.
 */
#include "mgmt/local/prepare.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "mgmt/local/chain.h"
#include "mgmt/local/local.h"
#include "mgmt/local/options.h"
#include "mgmt/local/seed.h"
#include "mgmt/local/socket.h"

#define PID_BLANK   "          \n"
#define RECORD_ROOM 4096
#define NAMES_TRIED 100

static int file_refuse(const struct prepared *p, const char *file, int code, struct error *err)
{
	return error_set(err, code, "cannot write \"%s/%s\": %s%s", p->dir.path, file,
			 strerror(-code),
			 code == -ENOSPC || code == -EDQUOT
				 ? "; free space there, or name another directory in "
				   "CORRAL_RUN_DIRECTORY"
				 : "");
}

/* A detached VM of an earlier process with our number may still have our own choice of name. */
static int take_name(struct prepared *p, struct run_options *options, struct error *err)
{
	int r = rundir_take(&p->dir, options->vm.name, err);

	for (int i = 2; r == -EBUSY && options->own_name && i < NAMES_TRIED; i++) {
		char name[VM_NAME_MAX + 1];

		snprintf(name, sizeof(name), "vm-%d-%d", (int)getpid(), i);
		r = table_set_text(&vm_table, &options->vm, "name", name, err);
		if (r >= 0)
			r = rundir_take(&p->dir, options->vm.name, err);
	}
	return r;
}

static int make_description(struct prepared *p, const struct vm_description *vm, struct error *err)
{
	json_t *json = table_to_json(&vm_table, vm);
	_cleanup_(freep) char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
	int r = text ? rundir_write(&p->dir, RUNDIR_DESCRIPTION, text, strlen(text)) : -ENOMEM;
	int fd;

	json_decref(json);
	if (r < 0)
		return file_refuse(p, RUNDIR_DESCRIPTION, r, err);
	fd = openat(p->dir.fd, RUNDIR_DESCRIPTION, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return file_refuse(p, RUNDIR_DESCRIPTION, -errno, err);
	grants_add(&p->grants, VM_FD_DESCRIPTION, fd);
	return 0;
}

/* The VMM may only write its record; we may read it too. */
static int make_record(struct prepared *p, struct error *err)
{
	int fd;

	p->exit_fd = rundir_create(&p->dir, RUNDIR_EXIT, O_RDWR);
	if (p->exit_fd < 0)
		return file_refuse(p, RUNDIR_EXIT, p->exit_fd, err);
	if (fallocate(p->exit_fd, FALLOC_FL_KEEP_SIZE, 0, RECORD_ROOM) < 0 && errno != EOPNOTSUPP)
		return file_refuse(p, RUNDIR_EXIT, -errno, err);
	fd = openat(p->dir.fd, RUNDIR_EXIT, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return file_refuse(p, RUNDIR_EXIT, -errno, err);
	grants_add(&p->grants, VM_FD_EXIT, fd);
	return 0;
}

static int make_pid(struct prepared *p, struct error *err)
{
	int r;

	p->pid_fd = rundir_create(&p->dir, RUNDIR_PID, O_WRONLY);
	r = p->pid_fd < 0 ? p->pid_fd : fd_write_full(p->pid_fd, PID_BLANK, strlen(PID_BLANK));
	return r < 0 ? file_refuse(p, RUNDIR_PID, r, err) : 0;
}

/* The empty directory that becomes the VMM's root, and the lock that says it lives. */
static int make_places(struct prepared *p, struct error *err)
{
	int empty, lock;

	if (mkdirat(p->dir.fd, RUNDIR_EMPTY, 0555) < 0)
		return file_refuse(p, RUNDIR_EMPTY, -errno, err);
	empty = openat(p->dir.fd, RUNDIR_EMPTY, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (empty < 0)
		return file_refuse(p, RUNDIR_EMPTY, -errno, err);
	grants_add(&p->grants, VM_FD_EMPTY, empty);
	lock = fcntl(p->dir.lock_fd, F_DUPFD_CLOEXEC, NAMED_FDS_FIRST);
	if (lock < 0)
		return file_refuse(p, RUNDIR_LOCK, -errno, err);
	grants_add(&p->grants, VM_FD_LOCK, lock);
	return 0;
}

static int make_control(struct prepared *p, const char *own, struct error *err)
{
	char path[PATH_MAX];
	int fd, r = 0;

	if (!own)
		snprintf(path, sizeof(path), "%s/" RUNDIR_CONTROL, p->dir.path);
	else if (own[0] == '/')
		snprintf(path, sizeof(path), "%s", own);
	else if (!getcwd(path, sizeof(path) - strlen(own) - 1))
		return error_set(err, -errno, "cannot tell where we are: %s", strerror(errno));
	else
		strcat(strcat(path, "/"), own);
	fd = socket_listen(path, err);
	if (fd < 0)
		return fd;
	grants_add(&p->grants, VM_FD_CONTROL, fd);
	if (own)
		r = rundir_write(&p->dir, RUNDIR_CONTROL_PATH, path, strlen(path));
	return r < 0 ? file_refuse(p, RUNDIR_CONTROL_PATH, r, err) : 0;
}

/* The host's side of the guest's vsock, beside the control socket. */
static int make_vsock(struct prepared *p, const struct vm_description *vm, struct error *err)
{
	char path[RUNDIR_PATH_MAX + sizeof("/" RUNDIR_VSOCK)];
	int fd;

	if (!vm->vsock_cid)
		return 0;
	snprintf(path, sizeof(path), "%s/" RUNDIR_VSOCK, p->dir.path);
	fd = socket_listen(path, err);
	if (fd < 0)
		return fd;
	grants_add(&p->grants, VM_FD_VSOCK, fd);
	return 0;
}

static int make_ready(struct prepared *p, struct error *err)
{
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0)
		return error_set(err, -errno, "cannot make a pipe: %s", strerror(errno));
	p->ready_fd = ends[0];
	grants_add(&p->grants, VM_FD_READY, ends[1]);
	return 0;
}

/* A raw pty: what the guest prints must not come back as its input before anybody looks. */
static int make_pty(struct prepared *p, struct error *err)
{
	struct termios raw;
	char name[64];
	int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);

	if (master < 0)
		return error_set(err, -errno, "cannot make a pty: %s", strerror(errno));
	grants_add(&p->grants, VM_FD_CONSOLE, master);
	if (unlockpt(master) < 0 || ptsname_r(master, name, sizeof(name)))
		return error_set(err, -errno, "cannot make a pty: %s", strerror(errno));
	p->slave_fd = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (p->slave_fd < 0 || tcgetattr(p->slave_fd, &raw) < 0)
		return error_set(err, -errno, "cannot open \"%s\": %s", name, strerror(errno));
	cfmakeraw(&raw);
	tcsetattr(p->slave_fd, TCSANOW, &raw);
	local_say("console of \"%s\" is %s", p->dir.name, name);
	return 0;
}

/* Detached, the console has its log and waits for `corral console`. */
static int make_console(struct prepared *p, const struct run_options *options, struct error *err)
{
	enum vm_console_kind kind = options->vm.console.kind;
	int ends[2], log;

	if (kind != VM_CONSOLE_STDIO && kind != VM_CONSOLE_PTY)
		return 0;
	log = rundir_create(&p->dir, RUNDIR_CONSOLE_LOG, O_WRONLY | O_APPEND);
	if (log < 0)
		return file_refuse(p, RUNDIR_CONSOLE_LOG, log, err);
	grants_add(&p->grants, VM_FD_CONSOLE_LOG, log);
	if (kind == VM_CONSOLE_PTY)
		return make_pty(p, err);
	if (options->detach || (options->job.wanted && !options->verbose))
		return 0;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return error_set(err, -errno, "cannot make a console: %s", strerror(errno));
	p->console_fd = ends[0];
	grants_add(&p->grants, VM_FD_CONSOLE, ends[1]);
	return 0;
}

/* The initrd is ours, not a file; the guest says by a port what the command prints. */
static int make_job(struct prepared *p, struct run_options *options, struct error *err)
{
	char name[NAMED_FDS_LENGTH];
	int ends[2];

	if (!options->job.wanted)
		return 0;
	grants_give(&p->grants, VM_FD_INITRD, take_fd(options->job.initrd_fd));
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return error_set(err, -errno, "cannot make a channel: %s", strerror(errno));
	options->job.port_fd = ends[0];
	snprintf(name, sizeof(name), VM_FD_PORT "%u", options->vm.n_ports - 1);
	grants_add(&p->grants, name, ends[1]);
	return 0;
}

static int make_log(struct prepared *p, bool detach, struct error *err)
{
	if (!detach)
		return 0;
	p->log_fd = rundir_create(&p->dir, RUNDIR_VMM_LOG, O_WRONLY | O_APPEND);
	return p->log_fd < 0 ? file_refuse(p, RUNDIR_VMM_LOG, p->log_fd, err) : 0;
}

static int make_all(struct prepared *p, struct run_options *options, struct error *err)
{
	int r = seed_add(&p->dir, &options->vm, err);

	if (r < 0)
		return r;
	grants_plan(&p->grants, &options->vm);
	r = make_job(p, options, err);
	if (r >= 0)
		r = grants_open(&p->grants, err);
	if (r >= 0)
		r = chains_open(&p->grants, &options->vm, err);
	if (r >= 0)
		r = nets_open(&p->nets, &p->grants, &options->vm, err);
	if (r >= 0)
		r = make_description(p, &options->vm, err);
	if (r >= 0)
		r = make_record(p, err);
	if (r >= 0)
		r = make_pid(p, err);
	if (r >= 0)
		r = make_places(p, err);
	if (r >= 0)
		r = make_control(p, options->control, err);
	if (r >= 0)
		r = make_vsock(p, &options->vm, err);
	if (r >= 0)
		r = make_ready(p, err);
	if (r >= 0)
		r = make_console(p, options, err);
	if (r >= 0)
		r = make_log(p, options->detach, err);
	if (r >= 0)
		r = nets_wait(&p->nets, err);
	return r;
}

int prepared_init(struct prepared *p, struct run_options *options, struct error *err)
{
	int r;

	*p = (struct prepared){.console_fd = -1,
			       .slave_fd = -1,
			       .ready_fd = -1,
			       .exit_fd = -1,
			       .pid_fd = -1,
			       .log_fd = STDERR_FILENO};
	r = take_name(p, options, err);
	if (r < 0)
		return r;
	r = make_all(p, options, err);
	if (r < 0) {
		grants_close(&p->grants); /* the control socket must be seen to be dead */
		rundir_remove(&p->dir);
		prepared_deinit(p);
	}
	return r;
}

void prepared_started(struct prepared *p, pid_t vmm)
{
	char text[sizeof(PID_BLANK)];

	grants_close(&p->grants);
	snprintf(text, sizeof(text), "%d\n", (int)vmm);
	if (pwrite(p->pid_fd, text, strlen(text), 0) < 0)
		local_say("cannot note the pid of \"%s\": %s, ignoring", p->dir.name,
			  strerror(errno));
	p->pid_fd = fd_close(p->pid_fd);
}

void prepared_deinit(struct prepared *p)
{
	nets_deinit(&p->nets);
	grants_close(&p->grants);
	p->console_fd = fd_close(p->console_fd);
	p->slave_fd = fd_close(p->slave_fd);
	p->ready_fd = fd_close(p->ready_fd);
	p->exit_fd = fd_close(p->exit_fd);
	p->pid_fd = fd_close(p->pid_fd);
	if (p->log_fd != STDERR_FILENO)
		p->log_fd = fd_close(p->log_fd);
	rundir_close(&p->dir);
}
