/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel as corral-init sees it: system calls without a C library, since every page that is
 * unpacked and faulted in delays the command. All return what the kernel does: -errno on failure.
 */
#pragma once

#include <asm/unistd.h>
#include <stdint.h>

static inline long system_call(long number, long a, long b, long c, long d, long e)
{
#if defined(__x86_64__)
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return result;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;

	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
			 : "memory");
	return x0;
#else
#error "corral-init knows x86-64 and arm64 only"
#endif
}

#define CALL1(name, a)       system_call(__NR_##name, (long)(a), 0, 0, 0, 0)
#define CALL2(name, a, b)    system_call(__NR_##name, (long)(a), (long)(b), 0, 0, 0)
#define CALL3(name, a, b, c) system_call(__NR_##name, (long)(a), (long)(b), (long)(c), 0, 0)
#define CALL4(name, a, b, c, d) \
	system_call(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), 0)
#define CALL5(name, a, b, c, d, e) \
	system_call(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))

/* text.c */
unsigned long text_length(const char *text);
int text_same(const char *a, const char *b);
/* Appends to what is in `text`; what does not fit is left out. */
void text_add(char *text, unsigned long size, const char *more);
/* Reads a small file; its last newline goes. The text is empty if it cannot be read. */
void text_read(const char *path, char *text, unsigned long size);
void *memcpy(void *to, const void *from, unsigned long size);
void *memset(void *to, int byte, unsigned long size);

/* devices.c */
struct guest_devices {
	char root[32]; /* "/dev/vda", empty while it was not found */
	char port[32]; /* "/dev/vport1p1" */
};

/* A socket that tells of new devices; before modules are loaded. */
int devices_watch(void);
/* Waits until both are there. -ETIMEDOUT: the kernel was silent for too long. */
int devices_find(int watch, struct guest_devices *found);

/* root.c */
struct init_job {
	char *file_system, *options, *directory;
	char **argv, **environment;
};

/* Where something went wrong; NULL while nothing has. */
struct trouble {
	const char *what; /* "cannot mount the root file system" */
	long code;        /* errno */
};

int early_mounts(struct trouble *trouble);
int modules_load(struct trouble *trouble);
int root_enter(const struct guest_devices *devices, const struct init_job *job,
	       struct trouble *trouble);
/* Unmounts the disks that the command has mounted. */
void mounts_leave(void);

/* command.c */
/* Starts the command and passes its output on until it has ended; sends how. */
void command_run(int port, const struct init_job *job);
/* A frame of a number and a text. */
int frame_send(int port, uint32_t type, uint32_t first, const char *more);
