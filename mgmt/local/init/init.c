/* SPDX-License-Identifier: Apache-2.0 */
/*
 * corral-init: first process of a guest that runs one command. In: the job that the launcher left
 * in the initrd, the root disk, the port. Out: frames (protocol.h), then the guest is powered off,
 * whatever still runs in it. No C library: few pages, quickly started.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/reboot.h>

#include "mgmt/local/init/protocol.h"
#include "mgmt/local/init/system.h"

static char job_bytes[JOB_FILE_MAX + 1];
static char *job_words[2 * (JOB_WORDS_MAX + 1)];

void __attribute__((noreturn, used)) init_main(void);

static void __attribute__((noreturn)) power_off(void)
{
	for (;;)
		CALL4(reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF,
		      0);
}

static long job_read(void)
{
	long fd = CALL4(openat, AT_FDCWD, JOB_FILE, O_RDONLY, 0), n = fd, size = 0;

	while (n > 0 || (!size && n >= 0)) {
		n = CALL3(read, fd, job_bytes + size, JOB_FILE_MAX - size);
		size += n > 0 ? n : 0;
		if (!n)
			break;
	}
	if (fd >= 0)
		CALL1(close, fd);
	return n < 0 ? n : size;
}

static char *next_text(char **at)
{
	char *text = *at;

	*at += text_length(text) + 1;
	return text;
}

/* Our own launcher wrote it; the buffer's last byte is a NUL, so no text runs out of it. */
static long job_parse(struct init_job *job)
{
	long size = job_read();
	char *at = job_bytes + 8;
	uint32_t n_argv, n_environment;

	if (size < 8)
		return size < 0 ? size : -EINVAL;
	memcpy(&n_argv, job_bytes, 4);
	memcpy(&n_environment, job_bytes + 4, 4);
	if (!n_argv || n_argv > JOB_WORDS_MAX || n_environment > JOB_WORDS_MAX)
		return -EINVAL;
	job->file_system = next_text(&at);
	job->options = next_text(&at);
	job->directory = next_text(&at);
	job->argv = job_words;
	job->environment = job_words + n_argv + 1;
	for (uint32_t i = 0; i < n_argv && at < job_bytes + size; i++)
		job->argv[i] = next_text(&at);
	for (uint32_t i = 0; i < n_environment && at < job_bytes + size; i++)
		job->environment[i] = next_text(&at);
	return job->argv[0] ? 0 : -EINVAL;
}

static void number_add(char *text, unsigned long size, long number)
{
	char digits[24];
	unsigned long at = sizeof(digits) - 1;

	digits[at] = '\0';
	do
		digits[--at] = '0' + number % 10;
	while (number /= 10);
	text_add(text, size, digits + at);
}

/* To the launcher where there is a way to it, and to the console, whose end it shows. */
static void __attribute__((noreturn))
give_up(int port, const char *doing, const struct trouble *trouble)
{
	char text[JOB_TEXT_MAX] = "", line[JOB_TEXT_MAX + 64] = "corral-init: ";

	text_add(text, sizeof(text), doing);
	text_add(text, sizeof(text), " ");
	text_add(text, sizeof(text), trouble->what);
	if (port >= 0)
		frame_send(port, JOB_FAILED, trouble->code, text);
	text_add(line, sizeof(line), text);
	text_add(line, sizeof(line), ": error ");
	number_add(line, sizeof(line), trouble->code);
	text_add(line, sizeof(line), "\n");
	CALL3(write, 2, line, text_length(line));
	power_off();
}

static int port_open(const struct guest_devices *devices)
{
	long port = CALL4(openat, AT_FDCWD, devices->port, O_RDWR | O_CLOEXEC, 0);

	if (port >= 0)
		frame_send(port, JOB_HELLO, JOB_VERSION, "");
	return port;
}

static const char *missing(const struct guest_devices *devices)
{
	return devices->port[0] ? "the root disk" : "the port to the launcher";
}

void init_main(void)
{
	struct guest_devices devices = {.root = "", .port = ""};
	struct trouble trouble = {0, 0};
	struct init_job job = {0};
	int watch, port = -1;

	if (early_mounts(&trouble) < 0)
		give_up(port, "cannot mount", &trouble);
	watch = devices_watch();
	if (modules_load(&trouble) < 0)
		give_up(port, "cannot load the kernel module", &trouble);
	trouble.code = -devices_find(watch, &devices);
	if (devices.port[0])
		port = port_open(&devices);
	CALL1(close, watch);
	trouble.what = missing(&devices);
	if (trouble.code || port < 0)
		give_up(port, "cannot find", &trouble);
	trouble = (struct trouble){"the job", -job_parse(&job)};
	if (trouble.code)
		give_up(port, "cannot read", &trouble);
	if (root_enter(&devices, &job, &trouble) < 0)
		give_up(port, "cannot mount", &trouble);
	command_run(port, &job);
	power_off();
}

/* The stack comes aligned to 16 bytes from the kernel; a function expects it 8 off. */
#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tcall init_main\n");
#else
__asm__(".globl _start\n_start:\n\tb init_main\n");
#endif
