/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Violent and orderly ends from outside: launcher or VMM killed at any moment, SIGTERM once and
 * twice. Each time the name, the disk and the control socket are free for the next start at once,
 * and no process is left.
 */
#define DISK_SIZE 4096

#ifdef GUEST

#include "guest-tests/runtime/acpi.h"
#include "guest-tests/runtime/board.h"

static volatile bool pressed;

static void ged(void *arg)
{
	(void)arg;
	pressed |= inb(BOARD_GED_PORT) & BOARD_GED_POWER_BUTTON;
}

/* "obey" powers off by the button; else nothing ends it. */
static void wait(struct guest_boot *boot)
{
	ioapic_route(BOARD_GED_GSI, irq_alloc(ged, NULL), apic_id());
	note("ready");
	(void)WAIT_UNTIL(pressed, NO_TIMEOUT);
	note("pressed");
	if (!cmdline_has(boot, "obey"))
		(void)WAIT_UNTIL(false, NO_TIMEOUT);
}

void guest_main(struct guest_boot *boot)
{
	guest_case("wait", wait, boot);
}

#else

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "guest-tests/host/command.h"
#include "guest-tests/host/harness.h"

#define GONE_MS     2000
#define EARLY_KILLS 24
#define STATUS_QUIT 7
#define KILLED      8
#define VMM_FAULT   9

static struct vm_config config = {.words = {"--name", "mortal"}};

static struct vm *start(const char *mode)
{
	config.append = mode;
	return vm_start(&config);
}

static void print_said(const char *what)
{
	size_t size;
	char *said = (char *)file_read(config.stderr_path, &size);

	printf("%s: %.*s", what, (int)size, said);
	free(said);
}

static struct vm *start_ready(const char *mode)
{
	struct vm *vm = start(mode);
	const char *line;

	do {
		line = vm_line(vm);
		if (!line)
			print_said("a start that failed");
		CHECK(line, "the VM ended before it was ready");
	} while (strcmp(line, "NOTE ready") != 0);
	return vm;
}

static void check_said(const char *what, const char *words)
{
	size_t size;
	char *said = (char *)file_read(config.stderr_path, &size);

	printf("%s: %.*s", what, (int)size, said);
	CHECK(memmem(said, size, words, strlen(words)), "%s: no \"%s\" in: %.*s", what, words,
	      (int)size, said);
	free(said);
}

/* The start right after it does not wait for the VMM's end, and has its name and disk. */
static void kill_launcher(const char *what)
{
	struct vm *vm = start_ready("");
	pid_t vmm = vm_vmm(vm);

	CHECK(kill(vm_launcher(vm), SIGKILL) == 0, "%s", strerror(errno));
	CHECK(vm_status(vm) == 128 + SIGKILL, "the launcher");
	vm = start_ready("obey");
	CHECK(vm_vmm(vm) != vmm, "the old VMM still answers");
	json_decref(vm_call(vm, "power-button", NULL));
	CHECK(vm_status(vm) == 0, "the second VM");
	check_nothing_stays(what, 0, GONE_MS);
}

/* At every moment of a start: between fork and exec, before and after the VMM changes its user. */
static void kill_launcher_early(void)
{
	for (unsigned int i = 0; i < EARLY_KILLS; i++) {
		struct timespec delay = {.tv_nsec = i * 500000};
		struct vm *vm = start("");
		int status;

		ppoll(NULL, 0, &delay, NULL);
		kill(vm_launcher(vm), SIGKILL);
		status = vm_status(vm);
		if (status != 128 + SIGKILL)
			print_said("a start that failed");
		CHECK(status == 128 + SIGKILL, "status %d after %u us", status, i * 500);
	}
	/* The last start's directory is cleared by the next one, which ends in order. */
	struct vm *vm = start_ready("obey");

	json_decref(vm_call(vm, "power-button", NULL));
	CHECK(vm_status(vm) == 0, "the next VM");
	check_nothing_stays("SIGKILL of launchers at their start", 0, GONE_MS);
}

static void kill_vmm(int signal, int status, const char *words)
{
	struct vm *vm = start_ready("");

	CHECK(kill(vm_vmm(vm), signal) == 0, "%s", strerror(errno));
	CHECK(vm_status(vm) == status, "after %s", strsignal(signal));
	check_said(strsignal(signal), words);
	check_nothing_stays(strsignal(signal), 0, GONE_MS);
	vm = start_ready("obey");
	json_decref(vm_call(vm, "power-button", NULL));
	CHECK(vm_status(vm) == 0, "the VM after %s", strsignal(signal));
}

static void terminate_once(int signal)
{
	struct vm *vm = start_ready("obey");

	CHECK(kill(vm_launcher(vm), signal) == 0, "%s", strerror(errno));
	CHECK(vm_judge(vm) == TEST_PASS, "%s", strsignal(signal));
	check_said(strsignal(signal), "power button pressed");
	check_nothing_stays(strsignal(signal), 0, GONE_MS);
}

static void terminate_twice(void)
{
	struct vm *vm = start_ready("");

	CHECK(kill(vm_launcher(vm), SIGTERM) == 0, "%s", strerror(errno));
	vm_note(vm, "pressed");
	CHECK(kill(vm_launcher(vm), SIGTERM) == 0, "%s", strerror(errno));
	CHECK(vm_status(vm) == STATUS_QUIT, "two SIGTERMs");
	check_said("two SIGTERMs", "ended (quit)");
	check_nothing_stays("two SIGTERMs", 0, GONE_MS);
}

/* Not even a VMM that cannot run stays. */
static void kill_launcher_of_stopped(void)
{
	struct vm *vm = start_ready("");
	pid_t vmm = vm_vmm(vm);

	CHECK(kill(vmm, SIGSTOP) == 0, "%s", strerror(errno));
	CHECK(kill(vm_launcher(vm), SIGKILL) == 0, "%s", strerror(errno));
	CHECK(vm_status(vm) == 128 + SIGKILL, "the launcher");
	vm = start_ready("obey");
	json_decref(vm_call(vm, "power-button", NULL));
	CHECK(vm_status(vm) == 0, "the VM after a stopped one");
	check_nothing_stays("SIGKILL of the launcher of a stopped VMM", 0, GONE_MS);
}

int main(int argc, char **argv)
{
	test_init(argc, argv);
	if (vm_is_peer())
		test_skip("launcher and VMM are Corral's");
	watch_what_stays();
	file_count_up(test_file("disk"), DISK_SIZE);
	config.disks[0].path = test_file("disk");
	config.stderr_path = test_file("stderr");
	kill_launcher("SIGKILL of the launcher");
	kill_launcher_early();
	kill_vmm(SIGKILL, KILLED, "ended (killed): the VMM was killed by SIGKILL");
	kill_vmm(SIGSEGV, VMM_FAULT, "ended (vmm-fault)");
	terminate_once(SIGTERM);
	terminate_once(SIGINT);
	terminate_once(SIGHUP);
	terminate_twice();
	kill_launcher_of_stopped();
	/* And all of it once more with a control socket that has its path again and again. */
	config.same_socket = true;
	kill_vmm(SIGKILL, KILLED, "ended (killed)");
	kill_launcher("SIGKILL of the launcher, same socket");
	return TEST_PASS;
}

#endif
