/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The second stage of seal.h: the list of system calls, and the program for the kernel made of it.
 * A row is a call, at most one condition on an argument, and why it is needed.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "disk/seal.h"

#if defined(__x86_64__)
#define SEAL_ARCH AUDIT_ARCH_X86_64
#define X32_BIT   0x40000000u
#elif defined(__aarch64__)
#define SEAL_ARCH AUDIT_ARCH_AARCH64
#define X32_BIT   UINT32_MAX
#endif

enum condition {
	ALWAYS,
	EQUAL,   /* the argument's lower half is `value`: commands are 32 bits */
	NONE_OF, /* has no bit of it */
};

struct call {
	int nr;
	enum condition condition;
	unsigned int arg;
	uint32_t value;
};

/* Images first: they are looked at in this order. */
static const struct call calls[] = {
	{SYS_pread64},
	{SYS_pwrite64},
	{SYS_preadv},
	{SYS_pwritev},
	{SYS_lseek}, /* holes */
	{SYS_fallocate},
	{SYS_copy_file_range},
	{SYS_ioctl, EQUAL, 1, FICLONE},
	{SYS_ioctl, EQUAL, 1, FICLONERANGE},
	{SYS_fdatasync},
	{SYS_ftruncate},
	{SYS_fstat},
#ifdef SYS_newfstatat
	{SYS_newfstatat, EQUAL, 3, AT_EMPTY_PATH}, /* fstat, as newer libcs spell it */
#endif
	{SYS_fstatfs}, /* does a server copy? */
	{SYS_fcntl, EQUAL, 1, F_GETFL},
	{SYS_fcntl, EQUAL, 1, F_OFD_SETLK},
	{SYS_fcntl, EQUAL, 1, F_DUPFD_CLOEXEC},
	{SYS_ioctl, EQUAL, 1, BLKSSZGET},
	{SYS_sendmsg}, /* the broker */
	{SYS_recvmsg},
	{SYS_close},
	{SYS_futex}, /* the crew */
#ifdef SYS_poll
	{SYS_poll}, /* patience for a lock */
#endif
	{SYS_ppoll},
	{SYS_clock_gettime}, /* where it is no plain read */
	{SYS_clock_nanosleep},
	{SYS_restart_syscall},
	{SYS_rt_sigreturn},
	{SYS_rt_sigprocmask}, /* thread end, abort */
	{SYS_sched_yield},
	{SYS_mmap, NONE_OF, 2, PROT_EXEC}, /* malloc */
	{SYS_munmap},
	{SYS_mremap},
	{SYS_brk},
	{SYS_madvise, EQUAL, 2, MADV_DONTNEED},
	{SYS_madvise, EQUAL, 2, MADV_FREE},
	{SYS_madvise, EQUAL, 2, MADV_HUGEPAGE},
	{SYS_mprotect, NONE_OF, 2, PROT_EXEC}, /* malloc's arena grows */
	{SYS_sysinfo},                         /* qsort asks how much memory there is */
	{SYS_getrandom},                       /* malloc's */
	{SYS_getpid},                          /* abort */
	{SYS_gettid},
	{SYS_tgkill},
	{SYS_write}, /* libc's last words, to a descriptor that leads nowhere or to --verbose */
	{SYS_writev},
	{SYS_exit},
	{SYS_exit_group},
#ifdef CORRAL_SANITIZED /* its runtimes ask for these: not how a release is sealed */
	{SYS_mmap},
	{SYS_mprotect},
	{SYS_madvise},
	{SYS_prctl},
	{SYS_sigaltstack},
	{SYS_rt_sigaction},
	{SYS_getrusage},
	{SYS_prlimit64},
	{SYS_read},
	{SYS_readlinkat},
	{SYS_pipe2},
	{SYS_process_vm_readv},
	{SYS_getppid},
	{SYS_sched_getaffinity},
	{SYS_ioctl},
	{SYS_newfstatat},
#ifdef SYS_readlink
	{SYS_readlink},
	{SYS_pipe},
#endif
#endif
};

/* Answered with EACCES: libraries look for files of their own accord, and live without them. */
static const int refused[] = {
	SYS_openat, SYS_openat2, SYS_newfstatat,
#ifdef SYS_open
	SYS_open,   SYS_stat,    SYS_access,     SYS_readlink,
#endif
};

/* A block of up to four instructions a row. */
#define PROGRAM_MAX (8 + 5 * ARRAY_SIZE(calls) + 2 * ARRAY_SIZE(refused))

struct program {
	struct sock_filter code[PROGRAM_MAX];
	unsigned short n;
};

static void add(struct program *program, uint16_t code, uint32_t k, uint8_t yes, uint8_t no)
{
	program->code[program->n++] = (struct sock_filter){code, yes, no, k};
}

static void add_load(struct program *program, size_t offset)
{
	add(program, BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset, 0, 0);
}

static void add_answer(struct program *program, uint32_t answer)
{
	add(program, BPF_RET | BPF_K, answer, 0, 0);
}

/* Little-endian: the lower half comes first. */
static void add_call(struct program *program, const struct call *call)
{
	uint8_t skip = call->condition == ALWAYS ? 1 : 4;

	add(program, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)call->nr, 0, skip);
	if (call->condition != ALWAYS) {
		add_load(program, offsetof(struct seccomp_data, args[call->arg]));
		if (call->condition == EQUAL)
			add(program, BPF_JMP | BPF_JEQ | BPF_K, call->value, 0, 1);
		else
			add(program, BPF_JMP | BPF_JSET | BPF_K, call->value, 1, 0);
	}
	add_answer(program, SECCOMP_RET_ALLOW);
	if (call->condition != ALWAYS)
		add_load(program, offsetof(struct seccomp_data, nr));
}

static void make(struct program *program)
{
	add_load(program, offsetof(struct seccomp_data, arch));
	add(program, BPF_JMP | BPF_JEQ | BPF_K, SEAL_ARCH, 1, 0);
	add_answer(program, SECCOMP_RET_KILL_PROCESS);
	add_load(program, offsetof(struct seccomp_data, nr));
	add(program, BPF_JMP | BPF_JGE | BPF_K, X32_BIT, 0, 1);
	add_answer(program, SECCOMP_RET_KILL_PROCESS);
	for (size_t i = 0; i < ARRAY_SIZE(calls); i++)
		add_call(program, &calls[i]);
	for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
		add(program, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)refused[i], 0, 1);
		add_answer(program, SECCOMP_RET_ERRNO | EACCES);
	}
	add_answer(program, SECCOMP_RET_KILL_PROCESS);
}

int seal_calls(void)
{
	struct program program = {.n = 0};
	struct sock_fprog filter = {.filter = program.code};

	make(&program);
	filter.len = program.n;
	/* 1 and above: a thread that could not follow. */
	long r = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter);
	return r < 0 ? -errno : r > 0 ? -EBUSY : 0;
}
