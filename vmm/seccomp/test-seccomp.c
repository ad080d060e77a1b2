/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The lists as the kernel sees them: every call number, and every argument a line names, is tried
 * against each list on a real thread.
 */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "vmm/sandbox.h"
#include "vmm/seccomp/lists.h"
#include "vmm/seccomp/test-child.h"

#define CALLS_END 600 /* above the last system call of any kernel we know */
#define X32_BIT   0x40000000

struct call {
	enum sandbox_thread kind;
	long nr;
	unsigned long args[6];
};

static int make_call(const void *arg)
{
	const struct call *call = arg;
	const unsigned long *a = call->args;

	signal(SIGSEGV, SIG_DFL); /* a sanitizer would make a report of rt_sigreturn's end */
	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	CHECK(sandbox_thread(call->kind) == 0);
	syscall(call->nr, a[0], a[1], a[2], a[3], a[4], a[5]);
	syscall(SYS_exit_group, 0);
	return 1;
}

/* Arguments that do nothing, whatever the call. */
static struct call harmless(enum sandbox_thread kind, long nr)
{
	struct call call = {.kind = kind, .nr = nr};

	for (size_t i = 0; i < ARRAY_SIZE(call.args); i++)
		call.args[i] = ~0ul;
	return call;
}

static bool is_listed(const struct seccomp_list *list, long nr)
{
	for (unsigned int i = 0; i < list->n_rules; i++)
		if (list->rules[i].nr == nr)
			return true;
	return false;
}

Test(seccomp, lists_are_short)
{
	cr_expect_leq(seccomp_lists[SANDBOX_VCPU].n_own_calls, 20u);
	cr_expect_leq(seccomp_lists[SANDBOX_IO].n_own_calls, 25u);
	cr_expect_leq(seccomp_lists[SANDBOX_WORKER].n_own_calls, 25u);
	cr_expect_leq(seccomp_lists[SANDBOX_DISK].n_own_calls, 35u);
	cr_expect_leq(seccomp_lists[SANDBOX_MAIN].n_own_calls, 45u);
	cr_expect_str_eq(seccomp_lists[SANDBOX_MAIN].kind, "main");
	cr_expect_str_eq(seccomp_lists[SANDBOX_VCPU].kind, "vcpu");
	cr_expect_str_eq(seccomp_lists[SANDBOX_IO].kind, "io");
	cr_expect_str_eq(seccomp_lists[SANDBOX_WORKER].kind, "worker");
	cr_expect_str_eq(seccomp_lists[SANDBOX_DISK].kind, "disk");
}

Test(seccomp, listed_calls_pass)
{
	for (uint32_t kind = 0; kind < SANDBOX_THREADS; kind++)
		for (unsigned int i = 0; i < seccomp_lists[kind].n_rules; i++) {
			const struct seccomp_rule *rule = &seccomp_lists[kind].rules[i];
			struct call call = harmless(kind, rule->nr);

			if (rule->conditional)
				call.args[rule->arg] = rule->none_of ? 0 : rule->value;
			int status = in_child(make_call, &call);
			/* rt_sigreturn without a signal ends badly, but not by the list. */
			cr_expect(WIFEXITED(status) || WTERMSIG(status) == SIGSEGV,
				  "%s refuses %s, rule %u: status %#x", seccomp_lists[kind].kind,
				  rule->name, i, (unsigned int)status);
		}
}

/*
 * The kernel (from 6.14) shows these two to no list: they are what its own user-space probes are
 * made of, and anywhere else than in a probe they do nothing.
 */
static bool is_probe_return(long nr)
{
	return nr == 335 || nr == 336;
}

Test(seccomp, other_calls_kill)
{
	for (uint32_t kind = 0; kind < SANDBOX_THREADS; kind++)
		for (long nr = 0; nr < CALLS_END; nr++) {
			struct call call = harmless(kind, nr);

			if (is_listed(&seccomp_lists[kind], nr) || is_probe_return(nr))
				continue;
			cr_expect(was_refused(in_child(make_call, &call)), "%s allows call %ld",
				  seccomp_lists[kind].kind, nr);
		}
}

/* An argument that no line of this call allows. */
Test(seccomp, other_arguments_kill)
{
	for (uint32_t kind = 0; kind < SANDBOX_THREADS; kind++)
		for (unsigned int i = 0; i < seccomp_lists[kind].n_rules; i++) {
			const struct seccomp_rule *rule = &seccomp_lists[kind].rules[i];
			struct call call = harmless(kind, rule->nr);

			if (!rule->conditional)
				continue;
			call.args[rule->arg] = rule->none_of ? rule->value : 0x7ffe;
			cr_expect(was_refused(in_child(make_call, &call)),
				  "%s allows %s with argument %#lx", seccomp_lists[kind].kind,
				  rule->name, call.args[rule->arg]);
		}
}

#ifdef __x86_64__
Test(seccomp, other_doors_to_the_kernel_kill)
{
	struct call x32 = harmless(SANDBOX_MAIN, X32_BIT | SYS_getpid);

	cr_expect(was_refused(in_child(make_call, &x32)), "the x32 door is open");
}

static int call_as_i386(const void *arg)
{
	long r;

	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	CHECK(sandbox_thread(*(const enum sandbox_thread *)arg) == 0);
	__asm__ volatile("int $0x80" : "=a"(r) : "a"(20 /* getpid */) : "memory");
	return 0;
}

Test(seccomp, i386_calls_kill)
{
	enum sandbox_thread kind = SANDBOX_MAIN;
	int status = in_child(call_as_i386, &kind);

	/* Without 32-bit support in the kernel there is no such door. */
	cr_expect(was_refused(status) || (WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV));
}
#endif

static void *do_nothing(void *arg)
{
	return arg;
}

static void try_execve(void)
{
	execve("/bin/true", (char *[]){"true", NULL}, NULL);
}
static void try_socket(void)
{
	(void)!socket(AF_INET, SOCK_STREAM, 0);
}
static void try_open(void)
{
	(void)!syscall(SYS_openat2, AT_FDCWD, "/etc/passwd", &(uint64_t[3]){0}, 24);
}
static void try_thread(void)
{
	pthread_t thread;

	(void)!pthread_create(&thread, NULL, do_nothing, NULL);
}
static void try_code(void)
{
	(void)!mprotect((void *)((uintptr_t)try_code & ~4095ul), 4096,
			PROT_READ | PROT_WRITE | PROT_EXEC);
}
static void try_ptrace(void)
{
	(void)!ptrace(PTRACE_TRACEME, 0, NULL, NULL);
}
static void try_namespace(void)
{
	(void)!unshare(CLONE_NEWUSER);
}
static void try_terminal(void)
{
	(void)!ioctl(STDERR_FILENO, TIOCSTI, "x");
}

struct attempt {
	enum sandbox_thread kind;
	void (*body)(void);
};

static int attempt(const void *arg)
{
	const struct attempt *attempt = arg;

	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	CHECK(sandbox_thread(attempt->kind) == 0);
	attempt->body();
	return 0;
}

Test(seccomp, libc_s_own_ways_kill)
{
	void (*const tries[])(void) = {try_execve, try_socket,    try_open,    try_thread,
				       try_ptrace, try_namespace, try_terminal};

	for (uint32_t kind = 0; kind < SANDBOX_THREADS; kind++) {
		for (size_t i = 0; i < ARRAY_SIZE(tries); i++) {
			struct attempt a = {kind, tries[i]};

			cr_expect(was_refused(in_child(attempt, &a)), "%s allows attempt %zu",
				  seccomp_lists[kind].kind, i);
		}
		struct attempt code = {kind, try_code};
		cr_expect(SECCOMP_SANITIZED || was_refused(in_child(attempt, &code)));
	}
}

/* An assertion that fails must say so and be SIGABRT, not look like a refused call. */
Test(seccomp, abort_is_abort)
{
	for (uint32_t kind = 0; kind < SANDBOX_THREADS; kind++) {
		struct attempt a = {kind, abort};
		int status = in_child(attempt, &a);

		cr_expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "%s: %#x",
			  seccomp_lists[kind].kind, (unsigned int)status);
	}
}
