/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The watchdog: while the guest feeds it nothing happens, also over a pause that is longer than its
 * stages; when the guest stops, what the description says happens: one run for each policy. A guest
 * that was reset finds out why.
 */
#ifdef GUEST

#include "guest-tests/runtime/apic.h"
#include "guest-tests/runtime/pci.h"

#define VENDOR     0x8086
#define DEVICE     0x25ab
#define CONFIG     0x60
#define LOCK       0x68
#define ENABLE     2
#define PRELOAD_1  0x0
#define PRELOAD_2  0x4
#define RELOAD     0xc
#define RELOAD_NOW 0x100
#define TIMED_OUT  0x200
#define SHORT      100  /* of some milliseconds each, two of them */
#define LONG       1000 /* the same */
#define FEED_MS    20
#define TIMEOUT_MS 20000

static struct pci_device dev;
static gpa_t bar;

static void find(void)
{
	for (bool more = pci_next(&dev, true); more; more = pci_next(&dev, false)) {
		if (dev.vendor != VENDOR || dev.device != DEVICE)
			continue;
		pci_enable(&dev);
		bar = pci_bar(&dev, 0, NULL);
		return;
	}
	GUEST_ASSERT(false, "no watchdog");
}

static void unlock(void)
{
	mmio_write16(bar + RELOAD, 0x80);
	mmio_write16(bar + RELOAD, 0x86);
}

static void feed(void)
{
	unlock();
	mmio_write16(bar + RELOAD, RELOAD_NOW);
}

static void start(uint32_t length)
{
	pci_port_write(&dev, CONFIG, 2, 3);
	unlock();
	mmio_write32(bar + PRELOAD_1, length);
	unlock();
	mmio_write32(bar + PRELOAD_2, length);
	pci_port_write(&dev, LOCK, 1, ENABLE);
	GUEST_ASSERT(pci_port_read(&dev, LOCK, 1) == ENABLE, "lock 0x%x",
		     pci_port_read(&dev, LOCK, 1));
	feed();
}

static bool timed_out(void)
{
	return mmio_read16(bar + RELOAD) & TIMED_OUT;
}

/* The host pauses us meanwhile, and for longer than both stages last. */
static void fed(struct guest_boot *boot)
{
	char line[16];

	(void)boot;
	start(LONG);
	note("feeding");
	while (!serial_has_input()) {
		feed();
		sleep_ms(FEED_MS);
	}
	GUEST_ASSERT(serial_read_line(line, sizeof(line), TIMEOUT_MS), "no line");
	GUEST_ASSERT(!timed_out(), "it ran out");
	pci_port_write(&dev, LOCK, 1, 0);
}

/* The same program after the reset. */
static void reset(struct guest_boot *boot)
{
	(void)boot;
	if (timed_out()) {
		GUEST_ASSERT(pci_port_read(&dev, LOCK, 1) == 0, "it counts after a reset");
		unlock();
		mmio_write16(bar + RELOAD, TIMED_OUT | RELOAD_NOW);
		GUEST_ASSERT(!timed_out(), "the flag stays");
		return;
	}
	start(SHORT);
	note("starving");
	for (;;)
		irq_enable_and_halt();
}

/* A busy guest is stopped as well as one that sleeps. */
static void starve_busy(struct guest_boot *boot)
{
	(void)boot;
	start(SHORT);
	note("starving");
	for (;;)
		cpu_relax();
}

/* The machine goes on, and the watchdog has spoken once. */
static void outlive(struct guest_boot *boot)
{
	char line[16];

	(void)boot;
	note("ready");
	GUEST_ASSERT(serial_read_line(line, sizeof(line), TIMEOUT_MS), "no line");
	start(SHORT);
	GUEST_ASSERT(serial_read_line(line, sizeof(line), TIMEOUT_MS), "no line");
	GUEST_ASSERT(timed_out(), "it did not run out");
	unlock();
	mmio_write16(bar + RELOAD, TIMED_OUT);
	GUEST_ASSERT(!timed_out(), "the flag stays");
}

void guest_main(struct guest_boot *boot)
{
	serial_listen();
	find();
	if (cmdline_has(boot, "reset"))
		guest_case("reset", reset, boot);
	else if (cmdline_has(boot, "busy"))
		guest_case("busy", starve_busy, boot);
	else if (cmdline_has(boot, "fed"))
		guest_case("fed", fed, boot);
	else
		guest_case("outlive", outlive, boot);
}

#else

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "guest-tests/host/harness.h"

#define STATUS_WATCHDOG 11
#define PAUSE_MS        2500 /* more than two stages of LONG */

static struct vm *start(const char *policy, const char *mode)
{
	struct vm_config config = {.append = mode, .words = {"--watchdog", policy}};
	struct vm *vm = vm_start(&config);

	printf("%s: %s\n", policy, mode);
	return vm;
}

/* It listens when it has answered. */
static int listen_for_events(struct vm *vm)
{
	static const char request[] = "{\"id\":1,\"method\":\"events\"}\n";
	int fd = vm_connect(vm);
	char answer;

	CHECK(write(fd, request, sizeof(request) - 1) == (ssize_t)sizeof(request) - 1, "write");
	do
		CHECK(read(fd, &answer, 1) == 1, "no answer");
	while (answer != '\n');
	return fd;
}

/* Reads lines until one names the event; each read has the harness's time. */
static void expect_event(int fd, const char *name)
{
	char text[4096], wanted[64];
	size_t n = 0;

	snprintf(wanted, sizeof(wanted), "\"event\":\"%s\"", name);
	text[0] = '\0';
	while (!strstr(text, wanted)) {
		ssize_t got = n < sizeof(text) - 1 ? read(fd, text + n, sizeof(text) - 1 - n) : 0;

		CHECK(got > 0, "no event \"%s\", only: %s", name, text);
		n += (size_t)got;
		text[n] = '\0';
	}
}

static void check_state(struct vm *vm, const char *state)
{
	json_t *status = vm_call(vm, "status", NULL);
	const char *is = json_string_value(json_object_get(status, "state"));

	CHECK(is && strcmp(is, state) == 0, "the VM is %s, not %s", is ? is : "nothing", state);
	json_decref(status);
}

static json_int_t expired(struct vm *vm)
{
	json_t *counters = vm_call(vm, "counters", NULL);
	json_t *devices = json_object_get(counters, "devices");
	json_t *n = json_object_get(json_object_get(devices, "watchdog"), "expired");
	json_int_t value = n ? json_integer_value(n) : -1;

	json_decref(counters);
	return value;
}

/* Nothing can be waited for here but time: the pause has to be longer than the stages. */
static void feeds(void)
{
	struct vm *vm = start("power-off", "fed");

	vm_note(vm, "feeding");
	json_decref(vm_call(vm, "pause", NULL));
	poll(NULL, 0, PAUSE_MS);
	check_state(vm, "paused");
	json_decref(vm_call(vm, "resume", NULL));
	vm_send(vm, "enough\n");
	CHECK(vm_judge(vm) == TEST_PASS, "fed");
}

static void powers_off(void)
{
	struct vm *vm = start("power-off", "busy");
	int status;

	vm_note(vm, "starving");
	status = vm_status(vm);
	CHECK(status == STATUS_WATCHDOG, "the VM ended with status %d", status);
}

static void pauses(void)
{
	struct vm *vm = start("pause", "outlive");
	int fd;

	vm_note(vm, "ready");
	fd = listen_for_events(vm);
	vm_send(vm, "starve\n");
	expect_event(fd, "paused");
	close(fd);
	check_state(vm, "paused");
	CHECK(expired(vm) == 1, "it expired %d times", (int)expired(vm));
	json_decref(vm_call(vm, "resume", NULL));
	vm_send(vm, "go on\n");
	CHECK(vm_judge(vm) == TEST_PASS, "pause");
}

static void reports(void)
{
	struct vm *vm = start("report", "outlive");
	int fd;

	vm_note(vm, "ready");
	fd = listen_for_events(vm);
	vm_send(vm, "starve\n");
	expect_event(fd, "watchdog");
	close(fd);
	check_state(vm, "running");
	CHECK(expired(vm) == 1, "it expired %d times", (int)expired(vm));
	vm_send(vm, "go on\n");
	CHECK(vm_judge(vm) == TEST_PASS, "report");
}

int main(int argc, char **argv)
{
	test_init(argc, argv);
	if (vm_is_peer())
		test_skip("the policies are Corral's");
	CHECK(vm_judge(start("reset", "reset")) == TEST_PASS, "reset");
	powers_off();
	pauses();
	reports();
	feeds();
	return TEST_PASS;
}

#endif
