/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest that sleeps until someone types, and answers. Benchmarks use it as a VM that does
 * nothing; as a test it shows that an idle guest costs no exits and still answers, before and
 * after. On its command line "ping" is answered by "pong", "end" ends it.
 */
#ifdef GUEST

#include "guest-tests/runtime/apic.h"

static void answer(struct guest_boot *boot)
{
	char line[64];

	(void)boot;
	serial_listen();
	note("ready");
	while (serial_read_line(line, sizeof(line), NO_TIMEOUT)) {
		if (strncmp(line, "end", 4) == 0)
			return;
		note("%s", strncmp(line, "ping", 5) == 0 ? "pong" : "what");
	}
}

void guest_main(struct guest_boot *boot)
{
	guest_case("answer", answer, boot);
}

#else

#include <inttypes.h>

#include "guest-tests/host/harness.h"

#define IDLE_MS    300
#define IDLE_EXITS 20

int main(int argc, char **argv)
{
	struct vm_config config = {0};
	uint64_t before = 0, after = 0;
	struct vm *vm;

	test_init(argc, argv);
	vm = vm_start(&config);
	vm_note(vm, "ready");
	vm_send(vm, "ping\n");
	vm_note(vm, "pong");
	if (!vm_is_peer())
		before = vm_exits(vm);
	CHECK(vm_is_silent(vm, IDLE_MS), "an idle guest speaks");
	if (!vm_is_peer())
		after = vm_exits(vm);
	CHECK(after - before < IDLE_EXITS, "%" PRIu64 " exits while idle", after - before);
	vm_send(vm, "ping\n");
	vm_note(vm, "pong");
	vm_send(vm, "end\n");
	return vm_judge(vm);
}

#endif
