/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-console with the host's stdio behind port 0: text goes both ways in both modes of the
 * device, long and short, ports have names, and the size of the host's terminal arrives. The report
 * of this test itself goes through the port.
 */
#define LONG_LINE 3000

#ifdef GUEST

#include "guest-tests/runtime/console.h"

#include "guest-tests/runtime/apic.h"

#define TIMEOUT_MS 20000

static struct console console;
static volatile unsigned int n_config_changes;

static void write_port(const char *text, size_t len)
{
	console_write(&console, text, (uint32_t)len);
}

static void config_changed(void *arg)
{
	(void)arg;
	n_config_changes++;
}

static void start(uint64_t features)
{
	console_start(&console, features | VIRTIO_RING_FEATURES);
	print_through(write_port);
}

/* Gives every line back until "end", in pieces of whatever size they come. */
static void echo(void)
{
	static char line[LONG_LINE + 64];
	unsigned int n = 0;

	note("echo-ready");
	for (;;) {
		GUEST_ASSERT(console_read_line(&console, line, sizeof(line), TIMEOUT_MS),
			     "%u lines", n);
		if (strncmp(line, "end", 4) == 0)
			break;
		console_write(&console, "NOTE echo ", 10);
		if (line[0])
			console_write(&console, line, (uint32_t)strlen(line));
		console_write(&console, "\n", 1);
		n++;
	}
}

static void single_port(struct guest_boot *boot)
{
	(void)boot;
	echo();
}

static void emergency_write(struct guest_boot *boot)
{
	static const char text[] = "NOTE emergency\n";

	(void)boot;
	if (!virtio_has(&console.dev, CONSOLE_F_EMERG_WRITE))
		GUEST_SKIP("not offered");
	for (const char *s = text; *s; s++)
		mmio_write32(console.dev.config + CONSOLE_CONFIG_EMERG_WRITE, (uint32_t)*s);
}

static bool config_size_is(unsigned int columns, unsigned int rows)
{
	return virtio_config_read16(&console.dev, CONSOLE_CONFIG_COLUMNS) == columns &&
	       virtio_config_read16(&console.dev, CONSOLE_CONFIG_ROWS) == rows;
}

/* Without multiport the size is in the configuration, and a change of it is an interrupt. */
static void size_by_config(struct guest_boot *boot)
{
	uint64_t columns, rows;

	if (!virtio_has(&console.dev, CONSOLE_F_SIZE) || cmdline_has(boot, "peer"))
		GUEST_SKIP("the device tells no size");
	virtio_config_irq(&console.dev, config_changed, NULL);
	columns = cmdline_number(boot, "columns", 0);
	rows = cmdline_number(boot, "rows", 0);
	GUEST_ASSERT(config_size_is((unsigned int)columns, (unsigned int)rows), "%ux%u",
		     virtio_config_read16(&console.dev, CONSOLE_CONFIG_COLUMNS),
		     virtio_config_read16(&console.dev, CONSOLE_CONFIG_ROWS));
	note("resize-now 1");
	GUEST_ASSERT(WAIT_UNTIL(n_config_changes, TIMEOUT_MS), "no interrupt");
	GUEST_ASSERT(POLL_UNTIL(config_size_is((unsigned int)columns + 1, (unsigned int)rows + 2),
				TIMEOUT_MS),
		     "%ux%u", virtio_config_read16(&console.dev, CONSOLE_CONFIG_COLUMNS),
		     virtio_config_read16(&console.dev, CONSOLE_CONFIG_ROWS));
}

static void multiport(struct guest_boot *boot)
{
	(void)boot;
	start(CONSOLE_F_MULTIPORT | CONSOLE_F_SIZE);
	if (!console.multiport)
		GUEST_SKIP("not offered");
	for (unsigned int i = 0; i < CONSOLE_MAX_PORTS; i++) {
		if (console.ports[i].added)
			note("port %u %s '%s'", i,
			     console.ports[i].is_console ? "console" : "plain",
			     console.ports[i].name);
	}
	echo();
}

/* With multiport it is a message. */
static void size_by_message(struct guest_boot *boot)
{
	unsigned int columns = (unsigned int)cmdline_number(boot, "columns", 0) + 1;
	unsigned int rows = (unsigned int)cmdline_number(boot, "rows", 0) + 2;

	if (!console.multiport || !virtio_has(&console.dev, CONSOLE_F_SIZE) ||
	    cmdline_has(boot, "peer"))
		GUEST_SKIP("the device tells no size");
	GUEST_ASSERT(POLL_UNTIL((console_poll_control(&console), console.n_resizes), TIMEOUT_MS),
		     "no size at the start");
	GUEST_ASSERT(console.columns == columns && console.rows == rows, "%ux%u", console.columns,
		     console.rows);
	console.n_resizes = 0;
	note("resize-now 2");
	GUEST_ASSERT(POLL_UNTIL((console_poll_control(&console), console.n_resizes), TIMEOUT_MS),
		     "no message");
	GUEST_ASSERT(console.columns == columns + 1 && console.rows == rows + 2, "%ux%u",
		     console.columns, console.rows);
}

void guest_main(struct guest_boot *boot)
{
	GUEST_ASSERT(console_find(&console), "no console");
	start(CONSOLE_F_SIZE | CONSOLE_F_EMERG_WRITE);
	guest_case("single-port", single_port, boot);
	guest_case("emergency-write", emergency_write, boot);
	guest_case("size-by-config", size_by_config, boot);
	guest_case("multiport", multiport, boot);
	guest_case("size-by-message", size_by_message, boot);
}

#else

#include <string.h>

#include "guest-tests/host/harness.h"

static void echo_line(struct vm *vm, const char *line)
{
	const char *back;

	vm_send(vm, line);
	vm_send(vm, "\n");
	back = vm_note(vm, "echo");
	CHECK(strcmp(back, line) == 0, "sent '%s', got '%s'", line, back);
}

static void echo(struct vm *vm)
{
	static char line[LONG_LINE + 1];

	vm_note(vm, "echo-ready");
	echo_line(vm, "a");
	echo_line(vm, "");
	echo_line(vm, "some words of ordinary length, \xc3\xa4 and \t too");
	for (unsigned int i = 0; i < LONG_LINE; i++)
		line[i] = (char)('!' + i % 90);
	echo_line(vm, line);
	/* Several at once: bytes that come while the guest is busy must wait, not get lost. */
	vm_send(vm, "one\ntwo\nthree\n");
	CHECK(strcmp(vm_note(vm, "echo"), "one") == 0, "not one");
	CHECK(strcmp(vm_note(vm, "echo"), "two") == 0, "not two");
	CHECK(strcmp(vm_note(vm, "echo"), "three") == 0, "not three");
	vm_send(vm, "end\n");
}

static void expect_emergency(struct vm *vm)
{
	const char *line = vm_line(vm);

	CHECK(line && (strcmp(line, "NOTE emergency") == 0 || strncmp(line, "SKIP ", 5) == 0),
	      "the bytes of the emergency write did not come");
}

/* The guest asks for a new size where the device can tell it; then it must be the one it waits for.
 */
static bool play(struct vm *vm)
{
	static const unsigned int columns[] = {81, 82}, rows[] = {27, 29};
	const char *line = vm_line(vm);

	if (!line)
		return false;
	if (strcmp(line, "NOTE resize-now 1") == 0)
		vm_resize(vm, columns[0], rows[0]);
	else if (strcmp(line, "NOTE resize-now 2") == 0)
		vm_resize(vm, columns[1], rows[1]);
	else if (strcmp(line, "TEST emergency-write") == 0)
		expect_emergency(vm);
	else if (strcmp(line, "TEST multiport") == 0)
		echo(vm);
	return true;
}

int main(int argc, char **argv)
{
	struct vm_config config = {.append = "columns=80 rows=25", .console_virtio = true};
	struct vm *vm;

	test_init(argc, argv);
	config.on_pty = !vm_is_peer();
	vm = vm_start(&config);
	echo(vm);
	while (play(vm))
		;
	return vm_judge(vm);
}

#endif
