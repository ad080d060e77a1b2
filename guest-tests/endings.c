/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ways in which a guest ends badly: each has its exit status, its reason in the record and a
 * sentence. One program, one ending a run.
 */
#ifdef GUEST

#include "guest-tests/runtime/acpi.h"
#include "guest-tests/runtime/board.h"

/* A segment beyond the GDT with no IDT to tell it to; KVM's emulator knows no int3 or ud2. */
static void triple_fault(void)
{
	static const struct {
		uint16_t limit;
		uint64_t base;
	} __attribute__((packed)) no_idt;

	__asm__ volatile("lidt %0; movw %1, %%ds" : : "m"(no_idt), "r"((uint16_t)0xfff8));
}

/* Processors know it, KVM's instruction emulator does not: a fault only where that runs us. */
static void exotic_instruction(void)
{
	static uint64_t memory[2] __attribute__((aligned(16)));

	__asm__ volatile("lock; cmpxchg16b %0"
			 : "+m"(memory)
			 : "a"(0ul), "b"(1ul), "c"(0ul), "d"(0ul)
			 : "cc", "memory");
}

void guest_main(struct guest_boot *boot)
{
	note("begins");
	if (cmdline_has(boot, "reset"))
		reset_by_acpi();
	if (cmdline_has(boot, "triple-fault"))
		triple_fault();
	if (cmdline_has(boot, "pvpanic"))
		outb(BOARD_PVPANIC_PORT, BOARD_PVPANIC_PANICKED);
	if (cmdline_has(boot, "panic-line")) {
		print("[    1.5] Kernel panic - not syncing: no \033[1mroot\n");
		print("[    1.6] Kernel panic - not syncing: the second one\n");
		reset_by_i8042();
	}
	if (cmdline_has(boot, "panic-half-line")) {
		print("Kernel panic - not syncing: cut sh");
		reset_by_acpi();
	}
	if (cmdline_has(boot, "exotic"))
		exotic_instruction();
	note("survived");
}

#else

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guest-tests/host/command.h"
#include "guest-tests/host/harness.h"

struct ending {
	const char *mode;
	const char *words[3]; /* of `corral run` */
	int status;
	const char *reason;
	const char *text; /* must be in the sentence */
	unsigned int begins;
};

static unsigned int n_wrong;

static const struct ending endings[] = {
	{"reset", {NULL}, 5, "reset-loop", "the guest reset 6 times within 10 seconds", 6},
	{"reset", {"--on-reset", "exit"}, 3, "reset", "the guest reset", 1},
	{"triple-fault", {NULL}, 6, "guest-fault", "triple fault", 6},
	{"triple-fault", {"--on-reset", "exit"}, 6, "guest-fault", "triple fault", 1},
	{"pvpanic", {NULL}, 4, "panic", "the guest kernel panicked", 1},
	{"panic-line", {NULL}, 4, "panic", "panicked: no ?[1mroot", 1},
	{"panic-line", {"--console", "none"}, 4, "panic", "panicked: no ?[1mroot", 0},
	{"panic-half-line", {NULL}, 4, "panic", "panicked: cut sh", 1},
	{"exotic", {NULL}, 6, "guest-fault", "could not emulate", 1},
};

/* Reads to the end. True: the guest got past what should have ended it. */
static bool survives(struct vm *vm, unsigned int *ret_begins)
{
	bool survived = false;

	*ret_begins = 0;
	for (const char *line = vm_line(vm); line; line = vm_line(vm)) {
		survived |= strcmp(line, "NOTE survived") == 0;
		*ret_begins += strcmp(line, "NOTE begins") == 0;
	}
	return survived;
}

/* In the foreground: the guest's lines, the launcher's sentence and the status. */
static void end_in_foreground(const struct ending *e)
{
	struct vm_config config = {.append = e->mode, .stderr_path = test_file("stderr")};
	unsigned int begins;
	struct vm *vm;
	size_t size;
	char *said;
	int status;

	memcpy(config.words, e->words, sizeof(e->words));
	vm = vm_start(&config);
	if (survives(vm, &begins)) {
		CHECK(strcmp(e->mode, "exotic") == 0, "%s: the guest goes on", e->mode);
		CHECK(vm_status(vm) == 0, "no power-off");
		printf("%s: left out, this processor runs the instruction itself\n", e->mode);
		return;
	}
	status = vm_status(vm);
	said = (char *)file_read(config.stderr_path, &size);
	printf("%s %s: status %d, began %u times: %.*s", e->mode, e->words[0] ? e->words[1] : "",
	       status, begins, (int)size, said);
	if (status != e->status || begins != e->begins ||
	    !memmem(said, size, e->text, strlen(e->text)) ||
	    !memmem(said, size, e->reason, strlen(e->reason)) ||
	    memchr(said, '\n', size) != said + size - 1) {
		printf("WRONG: status %d, %u begins, one line with \"%s\" and \"%s\" expected\n",
		       e->status, e->begins, e->reason, e->text);
		n_wrong++;
	}
	free(said);
	check_nothing_stays(e->mode, 0, 2000);
}

static void check_record(const char *name, const struct ending *e)
{
	char path[200];
	json_t *record;
	const char *text;

	snprintf(path, sizeof(path), "%s/%s/exit.json", test_file("run"), name);
	record = json_load_file(path, 0, NULL);
	CHECK(record, "%s: no record in %s", e->mode, path);
	text = json_string_value(json_object_get(record, "text"));
	CHECK(text && strstr(text, e->text), "%s: record says '%s'", e->mode, text ? text : "");
	text = json_string_value(json_object_get(record, "reason"));
	CHECK(text && strcmp(text, e->reason) == 0, "%s: reason '%s'", e->mode, text ? text : "");
	CHECK(json_integer_value(json_object_get(record, "status")) == e->status, "%s: status",
	      e->mode);
	json_decref(record);
}

/* Detached: `corral wait` and the record, which lasts. */
static void end_detached(const char *elf, const struct ending *e)
{
	const char *corral = getenv("CORRAL");
	const char *start[] = {corral,     "run", "--detach", "--name", "d",
			       "--kernel", elf,   "--append", e->mode,  NULL};
	const char *wait[] = {corral, "wait", "d", NULL};
	struct command_result r;

	command_run(&r, start);
	CHECK(r.status == 0, "%s: %d: %s", e->mode, r.status, r.err);
	command_run(&r, wait);
	CHECK(r.status == e->status, "%s: wait says %d: %s", e->mode, r.status, r.err);
	check_record("d", e);
}

int main(int argc, char **argv)
{
	test_init(argc, argv);
	if (vm_is_peer())
		test_skip("exit statuses are Corral's");
	watch_what_stays();
	for (unsigned int i = 0; i < sizeof(endings) / sizeof(endings[0]); i++)
		end_in_foreground(&endings[i]);
	end_detached(argv[1], &endings[0]);
	end_detached(argv[1], &endings[5]);
	CHECK(n_wrong == 0, "%u endings are wrong", n_wrong);
	return TEST_PASS;
}

#endif
