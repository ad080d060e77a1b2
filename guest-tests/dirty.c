/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest that rewrites `mib` MiB over and over, one word a page, each time with a new value, and
 * verifies that every page holds the value of the round before. `rounds`=0 goes on until "end"
 * comes on the serial port: the load of migration tests and benchmarks. Memory that goes back in
 * time is found at once.
 */
#ifdef GUEST

#include "guest-tests/runtime/apic.h"

#define BASE 0x1000000ul /* 16 MiB: above everything of our own */

static uint64_t verify_and_write(uint64_t end, uint64_t round)
{
	uint64_t n_wrong = 0;

	for (gpa_t at = BASE; at < end; at += PAGE_SIZE) {
		volatile uint64_t *word = (volatile uint64_t *)at;

		n_wrong += round && *word != (round ^ at);
		*word = (round + 1) ^ at;
	}
	return n_wrong;
}

static void rewrite(struct guest_boot *boot)
{
	uint64_t end = BASE + (cmdline_number(boot, "mib", 16) << 20);
	uint64_t rounds = cmdline_number(boot, "rounds", 0), round;
	char line[8];

	GUEST_ASSERT(end <= boot->ram_end, "RAM ends at 0x%lx", boot->ram_end);
	serial_listen();
	note("ready");
	for (round = 0; !rounds || round < rounds; round++) {
		uint64_t n_wrong = verify_and_write(end, round);

		GUEST_ASSERT(n_wrong == 0, "round %lu: %lu pages are wrong", round, n_wrong);
		if (serial_has_input() && serial_read_line(line, sizeof(line), NO_TIMEOUT))
			break;
	}
	note("rounds %lu", round);
}

void guest_main(struct guest_boot *boot)
{
	guest_case("rewrite", rewrite, boot);
}

#else

#include <stdlib.h>

#include "guest-tests/host/harness.h"

#define ROUNDS 4

static struct vm_config config;

/* Stopped and started again in the middle of it. */
static void run_rounds(void)
{
	struct vm *vm;
	int rounds;

	config.append = "mib=16 rounds=4";
	vm = vm_start(&config);
	vm_note(vm, "ready");
	if (!vm_is_peer()) {
		json_decref(vm_call(vm, "pause", NULL));
		json_decref(vm_call(vm, "resume", NULL));
	}
	rounds = atoi(vm_note(vm, "rounds"));
	CHECK(rounds == ROUNDS, "%d rounds", rounds);
	CHECK(vm_judge(vm) == TEST_PASS, "no verdict");
}

static int run_until_told(void)
{
	struct vm *vm;

	config.append = "mib=2 rounds=0";
	vm = vm_start(&config);
	vm_note(vm, "ready");
	vm_send(vm, "end\n");
	vm_note(vm, "rounds");
	return vm_judge(vm);
}

int main(int argc, char **argv)
{
	test_init(argc, argv);
	run_rounds();
	return run_until_told();
}

#endif
