/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starts that must fail: bad files, sizes that no host has, disks and names in use, rights that are
 * missing. Each costs one line on standard error that says to what it happened and why, its exit
 * status, and leaves nothing. The guest is one that idles.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "guest-tests/host/command.h"
#include "guest-tests/host/harness.h"

#define MIB        (1024 * 1024)
#define START_MS   1000 /* for the start after a kill */
#define N_WORDS    8
#define N_SAYS     3
#define NOBODY     65534
#define GONE_MS    2000
#define VMM_FAILED 1
#define USAGE      2

static const char *corral, *elf;
static unsigned int n_wrong;

struct failure {
	const char *what;
	const char *words[N_WORDS]; /* after `corral run` */
	int status;
	const char *says[N_SAYS];
};

static void wrong(const char *what, const char *why, const struct command_result *r)
{
	printf("WRONG %s: %s: status %d: %s%s", what, why, r->status, r->out, r->err);
	n_wrong++;
}

/* One line, with all that it has to say. */
static void judge(const struct failure *f, const struct command_result *r)
{
	const char *end = strchr(r->err, '\n');

	printf("%s (%u ms): %s", f->what, r->ms, r->err);
	if (r->status != f->status)
		wrong(f->what, "the exit status", r);
	else if (r->out[0])
		wrong(f->what, "something on standard output", r);
	else if (!end || end[1])
		wrong(f->what, "not one line", r);
	else if (strncmp(r->err, "corral", 6) != 0)
		wrong(f->what, "who says so?", r);
	for (int i = 0; i < N_SAYS && f->says[i]; i++)
		if (!strstr(r->err, f->says[i]))
			wrong(f->what, f->says[i], r);
}

static void fails(const struct failure *f, pid_t running)
{
	const char *argv[N_WORDS + 3] = {corral, "run"};
	struct command_result r;

	memcpy(argv + 2, f->words, sizeof(f->words));
	command_run(&r, argv);
	judge(f, &r);
	check_nothing_stays(f->what, running, GONE_MS);
}

static const char *file_of(const char *name, const char *text)
{
	FILE *f = fopen(test_file(name), "we");

	CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0, "%s: %s", name, strerror(errno));
	return test_file(name);
}

static const char *file_of_size(const char *name, off_t size)
{
	(void)file_of(name, "");
	CHECK(truncate(test_file(name), size) == 0, "%s: %s", name, strerror(errno));
	return test_file(name);
}

static const char *file_cut(const char *name, const char *from, size_t size)
{
	size_t whole;
	uint8_t *data = file_read(from, &whole);

	(void)file_of(name, "");
	CHECK(whole > size, "%s is short", from);
	file_write_at(test_file(name), 0, data, size);
	free(data);
	return test_file(name);
}

static void bad_kernels(void)
{
	const char *text = file_of("text", "this is no kernel\n"), *empty = file_of("empty", "");
	const char *cut = file_cut("cut", elf, 8192), *head = file_cut("head", elf, 70);
	const char *gzip = file_of("gzip", "\x1f\x8b\x08 and then it is packed");
	const char *initrd = file_of_size("initrd", 100 * MIB);
	const struct failure failures[] = {
		{"kernel missing", {"--kernel", "/nowhere/k"}, 1, {"/nowhere/k", "No such file"}},
		{"kernel truncated", {"--kernel", cut}, 1, {cut, "truncated", "copy"}},
		{"kernel of a header", {"--kernel", head}, 1, {head, "truncated"}},
		{"kernel a text", {"--kernel", text}, 1, {text, "neither a bzImage nor an ELF"}},
		{"kernel empty", {"--kernel", empty}, 1, {empty, "empty"}},
		{"kernel gzip", {"--kernel", gzip}, 1, {gzip, "gzip", "unpack"}},
		{"kernel a directory", {"--kernel", "/usr"}, 1, {"\"/usr\"", "directory"}},
		{"kernel a device", {"--kernel", "/dev/null"}, 1, {"/dev/null", "regular file"}},
		{"no kernel", {NULL}, USAGE, {"--kernel"}},
		{"initrd missing",
		 {"--kernel", elf, "--initrd", "/nowhere/i"},
		 1,
		 {"/nowhere/i", "No such file"}},
		{"initrd too big",
		 {"--kernel", elf, "--initrd", initrd, "--memory", "64M"},
		 1,
		 {initrd, "initrd", "--memory"}},
	};

	for (size_t i = 0; i < sizeof(failures) / sizeof(failures[0]); i++)
		fails(&failures[i], 0);
}

static void bad_sizes(void)
{
	const struct failure failures[] = {
		{"65 CPUs", {"--kernel", elf, "--cpus", "65"}, USAGE, {"cpus", "65", "64"}},
		{"no CPU", {"--kernel", elf, "--cpus", "0"}, USAGE, {"cpus", "0"}},
		{"CPUs beyond 32 bits",
		 {"--kernel", elf, "--cpus", "4294967297"},
		 USAGE,
		 {"cpus", "4294967297"}},
		{"CPUs beyond 64 bits",
		 {"--kernel", elf, "--cpus", "99999999999999999999999"},
		 USAGE,
		 {"cpus", "9999999"}},
		{"odd memory", {"--kernel", elf, "--memory", "63M"}, 1, {"memory", "63M", "2M"}},
		{"no memory", {"--kernel", elf, "--memory", "0"}, USAGE, {"--memory", "0"}},
		{"65T of memory",
		 {"--kernel", elf, "--memory", "65T"},
		 USAGE,
		 {"--memory", "65T", "64T"}},
		{"64T of memory", {"--kernel", elf, "--memory", "64T"}, 1, {"64T", "--memory"}},
		{"memory of words",
		 {"--kernel", elf, "--memory", "plenty"},
		 USAGE,
		 {"--memory", "plenty"}},
	};

	for (size_t i = 0; i < sizeof(failures) / sizeof(failures[0]); i++)
		fails(&failures[i], 0);
}

static void bad_disks(void)
{
	const char *odd = file_of_size("odd", 1000), *none = file_of("none", "");
	const char *good = file_of_size("good", 4096);
	char twice[200];
	const struct failure failures[] = {
		{"disk missing",
		 {"--kernel", elf, "--disk", "/nowhere/d"},
		 1,
		 {"/nowhere/d", "No such file"}},
		{"disk of odd size", {"--kernel", elf, "--disk", odd}, 1, {odd, "1000", "512"}},
		{"disk of no size", {"--kernel", elf, "--disk", none}, 1, {none, "empty"}},
		{"disk a directory",
		 {"--kernel", elf, "--disk", "/usr"},
		 1,
		 {"\"/usr\"", "directory"}},
		{"disk with an unknown word",
		 {"--kernel", elf, "--disk", "x,redonly=on"},
		 USAGE,
		 {"redonly", "readonly"}},
		{"a disk twice",
		 {"--kernel", elf, "--disk", good, "--disk", twice},
		 1,
		 {good, "disk0", "once"}},
	};

	snprintf(twice, sizeof(twice), "%s,readonly=on", good);
	for (size_t i = 0; i < sizeof(failures) / sizeof(failures[0]); i++)
		fails(&failures[i], 0);
}

static void bad_descriptions(void)
{
	const char *unknown = file_of("unknown", "{\"kernel\": \"k\", \"cpu\": 1}");
	const char *type = file_of("type", "{\"kernel\": \"k\", \"cpus\": \"two\"}");
	const char *deep = file_of(
		"deep", "{\"kernel\": \"k\", \"disks\": [{\"path\": \"a\"}, {\"path\": 5}]}");
	const char *json = file_of("json", "{\"kernel\": \"k\",\n");
	const char *check = file_of("check", "{\"kernel\": \"k\", \"memory\": {\"size\": \"3M\"}}");
	const struct failure failures[] = {
		{"--config missing", {"--config", "/nowhere/c"}, 1, {"/nowhere/c", "No such file"}},
		{"--config with an unknown key", {"--config", unknown}, 1, {unknown, "cpu: "}},
		{"--config with a wrong type", {"--config", type}, 1, {type, "cpus: ", "\"two\""}},
		{"--config, further in", {"--config", deep}, 1, {deep, "disks[1].path: ", "5"}},
		{"--config cut off", {"--config", json}, 1, {json, "line 2"}},
		{"--config with a bad value", {"--config", check}, 1, {"memory.size: ", "3M"}},
		{"--config a kernel", {"--config", elf}, 1, {elf}},
		{"an unknown flag", {"--kernal", elf}, USAGE, {"--kernal", "--kernel"}},
		{"a flag without its value", {"--kernel"}, USAGE, {"--kernel"}},
		{"a bad name", {"--kernel", elf, "--name", "../x"}, 1, {"../x", "letter"}},
	};

	for (size_t i = 0; i < sizeof(failures) / sizeof(failures[0]); i++)
		fails(&failures[i], 0);
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static struct vm *hold(const char *disk, bool readonly)
{
	struct vm_config config = {.disks = {{.path = disk, .readonly = readonly}},
				   .words = {"--name", "holder"}};
	struct vm *vm = vm_start(&config);

	vm_note(vm, "ready");
	return vm;
}

static void end(struct vm *vm)
{
	vm_send(vm, "end\n");
	CHECK(vm_judge(vm) == TEST_PASS, "the VM that held the disk");
	check_nothing_stays("the end", 0, GONE_MS);
}

/* What another VM has is refused, and free again the moment that VM is gone. */
static void in_use(void)
{
	const char *disk = file_of_size("shared", MIB);
	char readonly[200];
	const struct failure failures[] = {
		{"disk that a VM writes",
		 {"--kernel", elf, "--disk", disk},
		 1,
		 {disk, "another VM"}},
		{"the same to read",
		 {"--kernel", elf, "--disk", readonly},
		 1,
		 {disk, "another VM"}},
		{"name in use", {"--kernel", elf, "--name", "holder"}, 1, {"holder", "--name"}},
	};
	const struct failure write = {
		"disk that a VM reads", {"--kernel", elf, "--disk", disk}, 1, {disk, "another VM"}};
	struct vm *vm = hold(disk, false), *reader;
	struct vm_config config = {.disks = {{.path = disk, .readonly = true}}};
	uint64_t start;

	snprintf(readonly, sizeof(readonly), "%s,readonly=on", disk);
	for (size_t i = 0; i < sizeof(failures) / sizeof(failures[0]); i++)
		fails(&failures[i], vm_launcher(vm));
	start = now_ms();
	CHECK(kill(vm_vmm(vm), SIGKILL) == 0, "%s", strerror(errno));
	CHECK(vm_status(vm) == 8, "the killed VM");
	vm = hold(disk, false);
	printf("start after SIGKILL: %u ms\n", (unsigned int)(now_ms() - start));
	CHECK(now_ms() - start < START_MS, "the start after SIGKILL");
	end(vm);
	vm = hold(disk, true);
	reader = vm_start(&config);
	vm_note(reader, "ready");
	vm_send(reader, "end\n");
	CHECK(vm_judge(reader) == TEST_PASS, "a second reader");
	fails(&write, vm_launcher(vm));
	end(vm);
}

/* A run directory on a file system that is full. */
static void full_run_directory(void)
{
	static const char *const limits[] = {"mode=755,size=4k", "mode=755,nr_inodes=4"};
	const char *run = test_file("run");
	const char *argv[] = {corral, "run", "--kernel", elf, NULL};
	const struct failure f = {"full run directory", {NULL}, 1, {"run", "No space left"}};
	struct command_result r;

	for (int i = 0; i < 2; i++) {
		if (mount("none", run, "tmpfs", 0, limits[i]) < 0) {
			printf("left out: a full run directory, %s\n", strerror(errno));
			return;
		}
		command_run(&r, argv);
		judge(&f, &r);
		check_nothing_stays(f.what, 0, GONE_MS);
		CHECK(umount(run) == 0, "%s", strerror(errno));
	}
}

/* As a user who has no rights on /dev/kvm. */
static void no_rights(void)
{
	static const char *const setpriv[] = {"setpriv", "--reuid=65534", "--regid=65534",
					      "--clear-groups"};
	const char *argv[12] = {NULL};
	struct failure f = {"no rights on /dev/kvm", {NULL}, 1, {"/dev/kvm", "denied", "group"}};
	struct command_result r;
	char program[200];
	size_t size;
	uint8_t *data;
	struct stat st;

	if (geteuid() != 0 || stat("/dev/kvm", &st) < 0 || (st.st_mode & 06)) {
		printf("left out: rights, for which this user must be root and /dev/kvm a "
		       "group's\n");
		return;
	}
	/* Somewhere that user can reach. */
	snprintf(program, sizeof(program), "%s", file_of("corral", ""));
	data = file_read(corral, &size);
	file_write_at(program, 0, data, size);
	free(data);
	CHECK(chmod(program, 0755) == 0 && chown(test_file("run"), NOBODY, NOBODY) == 0, "%s",
	      strerror(errno));
	*strrchr(program, '/') = 0;
	CHECK(chmod(program, 0711) == 0, "%s", strerror(errno));
	program[strlen(program)] = '/';
	memcpy(argv, setpriv, sizeof(setpriv));
	argv[4] = program;
	argv[5] = "run";
	argv[6] = "--kernel";
	argv[7] = program;
	command_run(&r, argv);
	judge(&f, &r);
	check_nothing_stays(f.what, 0, GONE_MS);
	CHECK(chown(test_file("run"), 0, 0) == 0, "%s", strerror(errno));
}

int main(int argc, char **argv)
{
	test_init(argc, argv);
	if (vm_is_peer())
		test_skip("the sentences are Corral's");
	corral = getenv("CORRAL");
	elf = argv[1];
	watch_what_stays();
	bad_kernels();
	bad_sizes();
	bad_disks();
	bad_descriptions();
	in_use();
	full_run_directory();
	no_rights();
	CHECK(n_wrong == 0, "%u of them", n_wrong);
	return TEST_PASS;
}
