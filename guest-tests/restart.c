/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One VM after the other with the same name, disk and control socket, each started the moment the
 * one before has ended: nothing of it may be left to trip over, neither after a power-off nor after
 * quit.
 */
#define DISK_SIZE 4096

#ifdef GUEST

#include "guest-tests/runtime/apic.h"
#include "guest-tests/runtime/blk.h"

static void use_disk(struct guest_boot *boot)
{
	static struct blk disk;
	static uint8_t sector[BLK_SECTOR];

	(void)boot;
	GUEST_ASSERT(blk_find(&disk, 0), "no disk");
	blk_start(&disk, BLK_FEATURES, false);
	GUEST_ASSERT(blk_do(&disk.queues[0], BLK_OUT, 1, sector, sizeof(sector)) == BLK_OK,
		     "write");
}

void guest_main(struct guest_boot *boot)
{
	guest_case("use-disk", use_disk, boot);
	note("done");
	if (cmdline_has(boot, "stay"))
		(void)WAIT_UNTIL(false, NO_TIMEOUT);
}

#else

#include "guest-tests/host/harness.h"

#define ROUNDS      6
#define STATUS_QUIT 7

static int quit(struct vm *vm)
{
	vm_note(vm, "done");
	json_decref(vm_call(vm, "quit", NULL));
	return vm_judge_status(vm, STATUS_QUIT);
}

int main(int argc, char **argv)
{
	struct vm_config config = {.same_socket = true};

	test_init(argc, argv);
	file_count_up(test_file("disk"), DISK_SIZE);
	config.disks[0].path = test_file("disk");
	for (unsigned int i = 0; i < ROUNDS; i++) {
		bool stay = i % 2 && !vm_is_peer();
		struct vm *vm;

		config.append = stay ? "stay" : "";
		vm = vm_start(&config);
		CHECK((stay ? quit(vm) : vm_judge(vm)) == TEST_PASS, "round %u", i);
	}
	return TEST_PASS;
}

#endif
