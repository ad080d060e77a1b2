/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An ordinary user who may open /dev/kvm runs a VM, and `corral run -v` says what holds it in: run
 * by root this test becomes nobody in the group of /dev/kvm. The guest is one that idles.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest-tests/host/command.h"
#include "guest-tests/host/harness.h"

#define NOBODY 65534

static void copy(const char *from, const char *name)
{
	size_t size;
	uint8_t *data = file_read(from, &size);
	FILE *f = fopen(test_file(name), "we");

	CHECK(f && fclose(f) == 0, "%s: %s", name, strerror(errno));
	file_write_at(test_file(name), 0, data, size);
	CHECK(chmod(test_file(name), 0755) == 0, "%s: %s", name, strerror(errno));
	free(data);
}

/* Everything the user needs is in the test's directory, and that is the user's. */
static void become_nobody(char **argv)
{
	struct stat kvm;
	char dir[200];
	FILE *script;

	CHECK(stat("/dev/kvm", &kvm) == 0, "%s", strerror(errno));
	if (!(kvm.st_mode & 06) && (kvm.st_gid == 0 || !(kvm.st_mode & 060)))
		test_skip("/dev/kvm has no group that an ordinary user could be in");
	copy(getenv("CORRAL"), "corral");
	copy(getenv("CORRAL_VMM"), "corral-vmm");
	copy(argv[1], "guest");
	setenv("CORRAL_VMM", test_file("corral-vmm"), 1);
	script = fopen(test_file("as-nobody"), "we");
	CHECK(script, "%s", strerror(errno));
	fprintf(script,
		"#!/bin/sh\nexec setpriv --reuid=%d --regid=%d --groups=%u --bounding-set=-all "
		"--no-new-privs -- %s \"$@\"\n",
		NOBODY, NOBODY, kvm.st_gid, test_file("corral"));
	CHECK(fclose(script) == 0 && chmod(test_file("as-nobody"), 0755) == 0, "%s",
	      strerror(errno));
	setenv("CORRAL", test_file("as-nobody"), 1);
	snprintf(dir, sizeof(dir), "%s", test_file("corral"));
	*strrchr(dir, '/') = 0;
	CHECK(chown(dir, NOBODY, NOBODY) == 0 && chown(test_file("run"), NOBODY, NOBODY) == 0, "%s",
	      strerror(errno));
}

static void check_sandbox(struct vm *vm)
{
	json_t *sandbox = vm_call(vm, "sandbox", NULL), *list;
	const char *user = json_string_value(json_object_get(sandbox, "user"));
	const char *missing = json_string_value(json_object_get(sandbox, "missing"));
	size_t i;

	printf("user %s, missing: %s\n", user ? user : "unknown", missing ? missing : "nothing");
	CHECK(user && atoi(user) != 0, "it runs as root");
	CHECK(json_is_true(json_object_get(sandbox, "no-new-privileges")), "no-new-privileges");
	json_array_foreach(json_object_get(sandbox, "lists"), i, list)
		CHECK(json_integer_value(json_object_get(list, "calls")) > 0, "list %zu", i);
	CHECK(i >= 3, "%zu lists of system calls", i);
	json_decref(sandbox);
}

/* -v comes from a VM that runs: its threads have their lists. */
static void check_said(const char *path)
{
	bool in_force = false, landlock = false, vcpu = false;
	FILE *f = fopen(path, "re");
	unsigned int calls, threads;
	char line[256], kind[32];

	CHECK(f, "%s", strerror(errno));
	while (fgets(line, sizeof(line), f)) {
		printf("%s", line);
		in_force |= strstr(line, "in force for") != NULL;
		landlock |= strstr(line, "landlock") != NULL;
		if (sscanf(line, " - kind %31s calls %u threads %u", kind, &calls, &threads) == 3)
			vcpu |= strcmp(kind, "vcpu") == 0 && threads == 1;
	}
	fclose(f);
	CHECK(in_force && landlock, "-v does not say what is in force");
	CHECK(vcpu, "-v does not know of the vCPU's list");
}

int main(int argc, char **argv)
{
	struct vm_config config = {.words = {"-v"}};
	struct vm *vm;

	test_init(argc, argv);
	if (vm_is_peer())
		test_skip("the rights are Corral's");
	if (access("/dev/kvm", R_OK | W_OK) < 0)
		test_skip("this user may not open /dev/kvm");
	watch_what_stays();
	if (geteuid() == 0)
		become_nobody(argv);
	config.stderr_path = test_file("stderr");
	vm = vm_start(&config);
	vm_note(vm, "ready");
	check_sandbox(vm);
	vm_send(vm, "ping\n");
	vm_note(vm, "pong");
	vm_send(vm, "end\n");
	CHECK(vm_judge(vm) == TEST_PASS, "the guest");
	check_said(config.stderr_path);
	check_nothing_stays("the end", 0, 2000);
	return TEST_PASS;
}
