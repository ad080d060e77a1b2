/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the host half of a guest test works with: it starts a VM with the guest half as its kernel,
 * reads the lines that the guest prints, answers, asks the VMM things over its control socket, and
 * judges. Everything that goes wrong ends the test with one line saying what and with status 1; the
 * VM and the test's files go with it.
 *
 * Environment: CORRAL is the `corral` binary. GUEST_TEST_VMM=qemu runs the same guest under QEMU's
 * q35 instead (GUEST_TEST_ACCEL=tcg or kvm), as a peer; what needs a control socket is then
 * skipped.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define TEST_PASS    0
#define TEST_FAIL    1
#define TEST_SKIP    77

#define VM_MAX_DISKS 4
#define VM_MAX_WORDS 12

struct vm_disk_config {
	const char *path;
	const char *serial; /* NULL: none */
	unsigned int n_queues;
	bool readonly;
};

struct vm_config {
	unsigned int cpus;  /* 0: 1 */
	const char *memory; /* NULL: 64M */
	const char *append;
	struct vm_disk_config disks[VM_MAX_DISKS]; /* up to the first without a path */
	bool no_rng;
	bool console_virtio;    /* the console is virtio-console's port 0, not the serial port */
	bool on_pty;            /* stdio is a terminal of 80x25 */
	bool same_socket;       /* the control socket has the path it had for the VM before */
	unsigned int timeout_s; /* of the VM's whole life; 0: 60 */
	const char *words[VM_MAX_WORDS]; /* further ones for `corral run`, up to the first NULL */
	const char *stderr_path;         /* gets what is not the guest's; NULL: our own stderr */
};

struct vm;

/*
 * First thing in main(): the guest's ELF is argv[1], the test's name that of the program. VMs get a
 * run directory of the test's own, test_file("run").
 */
void test_init(int argc, char **argv);
/* A path in a directory of this test's own, which goes away with it; static memory. */
const char *test_file(const char *name);
void __attribute__((noreturn)) test_skip(const char *why);
void __attribute__((noreturn, format(printf, 3, 4)))
test_fail(const char *file, int line, const char *format, ...);

#define CHECK(cond, ...)                                                       \
	do {                                                                   \
		if (!(cond))                                                   \
			test_fail(__FILE__, __LINE__, #cond ": " __VA_ARGS__); \
	} while (0)

/* Fills a new file with bytes that the seed determines. */
void file_fill(const char *path, size_t size, uint64_t seed);
/* The same with the bytes 0, 1, 2 … 255, 0 … */
void file_count_up(const char *path, size_t size);
/* The whole file in memory that lasts as long as the test. */
uint8_t *file_read(const char *path, size_t *ret_size);
void file_write_at(const char *path, uint64_t offset, const void *data, size_t len);

struct fletcher {
	uint64_t a, b;
};
/* The same sum as the guest's. */
void fletcher_add(struct fletcher *sum, const void *data, size_t len);

/* The one place that knows how a VM is started. */
struct vm *vm_start(const struct vm_config *config);
bool vm_is_peer(void);

/* The guest's next line, without its end; NULL when the VM is gone. */
const char *vm_line(struct vm *vm);
/* Reads on to "NOTE key value" and gives the value. A guest that fails or ends first fails the
 * test. */
const char *vm_note(struct vm *vm, const char *key);
void vm_send(struct vm *vm, const char *text);
/* Whether the guest stays silent for this long. */
bool vm_is_silent(struct vm *vm, unsigned int ms);
void vm_resize(struct vm *vm, unsigned int columns, unsigned int rows);

/* The process that `corral run` is. */
pid_t vm_launcher(const struct vm *vm);
/* The VMM's process, by its own words. */
pid_t vm_vmm(struct vm *vm);
/* One more connection to the control socket, the caller's; what is read from it has 10 s to come.
 */
int vm_connect(struct vm *vm);
/* A control call that must succeed; the result is the caller's. params is consumed and may be NULL.
 */
json_t *vm_call(struct vm *vm, const char *method, json_t *params);
/* Sum of the exits to user space so far, but for the halts and signals that come with waiting. */
uint64_t vm_exits(struct vm *vm);

/* Reads on until the VM ends: its exit status, or 128 and the signal that killed it. */
int vm_status(struct vm *vm);
/* Reads on until the VM ends. PASS when it powered off and every case it began passed or skipped.
 */
int vm_judge(struct vm *vm);
/* For a guest that reports nothing: the VM just has to end with status 0. */
int vm_judge_silent(struct vm *vm);
/* As vm_judge, but the VM has to end with this status (a reset under --on-reset exit has another).
 */
int vm_judge_status(struct vm *vm, int status);
