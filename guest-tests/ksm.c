/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Page sharing over ten guests of one image: each writes the same words into the same pages, the
 * kernel's KSM finds that out, and the host gets the memory back. Judged by the kernel's own
 * figures, as "counters" hands them on, and by what the VMMs hold in all. A guest's write takes its
 * page out again, and nobody else sees it.
 */
#define FILL_MIB 16

#ifdef GUEST

#include "guest-tests/runtime/apic.h"

#define BASE 0x1000000ul /* 16 MiB: above everything of our own */

static uint64_t pages_wrong(uint64_t end, uint64_t changed)
{
	uint64_t n = 0;

	for (gpa_t at = BASE; at < end; at += PAGE_SIZE)
		n += *(volatile uint64_t *)at != (at == BASE ? changed : at);
	return n;
}

static void share(struct guest_boot *boot)
{
	uint64_t end = BASE + FILL_MIB * 0x100000ul, own = cmdline_number(boot, "own", 0);
	char line[8];

	serial_listen();
	for (gpa_t at = BASE; at < end; at += PAGE_SIZE)
		*(volatile uint64_t *)at = at;
	note("filled");
	while (serial_read_line(line, sizeof(line), NO_TIMEOUT) && strncmp(line, "end", 4) != 0) {
		*(volatile uint64_t *)BASE = own;
		note("wrong %lu", pages_wrong(end, own));
	}
}

void guest_main(struct guest_boot *boot)
{
	guest_case("share", share, boot);
}

#else

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guest-tests/host/harness.h"

#define GUESTS   10
#define DEADLINE 60 /* rounds of a second */

static const char *const knobs[] = {"sleep_millisecs", "pages_to_scan", "run"};
static char before[3][32];

static int knob(const char *name, const char *mode, char *value)
{
	char path[64];
	FILE *file;
	int ok;

	snprintf(path, sizeof(path), "/sys/kernel/mm/ksm/%s", name);
	file = fopen(path, mode);
	if (!file)
		return 0;
	ok = *mode == 'r' ? fscanf(file, "%31s", value) == 1 : fputs(value, file) >= 0;
	return fclose(file) == 0 && ok;
}

static void knobs_restore(void)
{
	for (int i = 0; i < 3; i++)
		(void)knob(knobs[i], "w", before[i]);
}

/* KSM in a hurry, as it was at the end. */
static void knobs_set(void)
{
	static char hurry[3][32] = {"10", "20000", "1"};

	for (int i = 0; i < 3; i++)
		if (!knob(knobs[i], "r", before[i]))
			test_skip("this kernel has no KSM");
	atexit(knobs_restore);
	for (int i = 0; i < 3; i++)
		if (!knob(knobs[i], "w", hurry[i]))
			test_skip("KSM can only be turned on by root");
}

static uint64_t memory_figure(struct vm *vm, const char *name)
{
	json_t *counters = vm_call(vm, "counters", NULL);
	json_t *figure = json_object_get(json_object_get(counters, "memory"), name);
	uint64_t value;

	CHECK(json_is_integer(figure), "\"counters\" has no memory figure \"%s\"", name);
	value = json_integer_value(figure);
	json_decref(counters);
	return value;
}

static uint64_t sum(struct vm **vms, const char *name)
{
	uint64_t total = 0;

	for (int i = 0; i < GUESTS; i++)
		total += memory_figure(vms[i], name);
	return total;
}

int main(int argc, char **argv)
{
	static char append[GUESTS][16];
	uint64_t filled = GUESTS * ((uint64_t)FILL_MIB << 20), held, merged = 0;
	struct vm *vms[GUESTS];

	test_init(argc, argv);
	knobs_set();
	for (int i = 0; i < GUESTS; i++) {
		struct vm_config config = {
			.memory = "34M,merge=on", .append = append[i], .timeout_s = 2 * DEADLINE};

		snprintf(append[i], sizeof(append[i]), "own=%d", i + 1);
		vms[i] = vm_start(&config);
		vm_note(vms[i], "filled");
	}
	held = sum(vms, "private-dirty");
	/* The kernel scans in its own time; there is nothing to wait for but its figures. */
	for (int i = 0; i < DEADLINE && merged < filled * 8 / 10; i++) {
		sleep(1);
		merged = sum(vms, "ksm-merging");
	}
	printf("held %" PRIu64 " MiB before, %" PRIu64 " after; merged %" PRIu64
	       " MiB, profit %" PRIu64 " MiB\n",
	       held >> 20, sum(vms, "private-dirty") >> 20, merged >> 20,
	       sum(vms, "ksm-profit") >> 20);
	CHECK(merged >= filled * 8 / 10, "only %" PRIu64 " MiB merged", merged >> 20);
	CHECK(sum(vms, "ksm-profit") >= filled / 2, "no profit");
	for (int i = 0; i < GUESTS; i++)
		vm_send(vms[i], "check\n");
	for (int i = 0; i < GUESTS; i++)
		CHECK(strcmp(vm_note(vms[i], "wrong"), "0") == 0, "guest %d sees another's write",
		      i);
	for (int i = 0; i < GUESTS; i++)
		vm_send(vms[i], "end\n");
	for (int i = 0; i < GUESTS; i++)
		CHECK(vm_judge(vms[i]) == TEST_PASS, "guest %d", i);
	return TEST_PASS;
}

#endif
