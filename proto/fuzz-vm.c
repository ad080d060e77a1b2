/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzes a VM's description, as JSON text and in its binary form. One that is read and passes
 * vm_check must be written so that it reads as the same; nothing may be read that breaks a limit
 * others rely on.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "proto/vm.h"

#define STREAM_MAX (1 << 18)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t encode(const struct vm_description *vm, uint8_t *bytes)
{
	struct cursor out = cursor_writer(bytes, STREAM_MAX);
	int r = table_encode(&vm_table, vm, &out);

	assert(r == 0);
	return out.at;
}

/* What the VMM allocates or indexes by. */
static void check_limits(const struct vm_description *vm)
{
	assert(strlen(vm->name) <= VM_NAME_MAX && !strchr(vm->name, '/') && *vm->name != '.');
	assert(vm->cpus >= 1 && vm->cpus <= VM_CPUS_MAX);
	assert(vm->memory.size && vm->memory.size % (2 << 20) == 0);
	assert(!vm->memory.merge || !vm->memory.shared);
	assert(vm->n_disks <= VM_DISKS_MAX);
	for (uint32_t i = 0; i < vm->n_disks; i++)
		assert(vm->disks[i].path && vm->disks[i].queues >= 1 &&
		       vm->disks[i].queues <= VM_QUEUES_MAX);
}

static void check_round_trip(const struct vm_description *vm)
{
	static uint8_t before[STREAM_MAX], after[STREAM_MAX];
	json_auto_t *json = table_to_json(&vm_table, vm);
	_cleanup_(freep) char *text = json_dumps(json, 0);
	struct error err = ERROR_NULL;
	struct vm_description again;
	int r = table_init(&vm_table, &again);
	size_t size;

	assert(text && r == 0);
	r = table_from_text(&vm_table, text, strlen(text), "again", &again, &err);
	assert(r == 0 && vm_check(&again, &err) == 0);
	size = encode(vm, before);
	assert(encode(&again, after) == size && memcmp(before, after, size) == 0);
	table_deinit(&vm_table, &again);
}

static void check(const struct vm_description *vm)
{
	struct error err = ERROR_NULL;

	if (vm_check(vm, &err) < 0) {
		assert(err.code < 0 && *err.text);
		return;
	}
	check_limits(vm);
	check_round_trip(vm);
}

static void fuzz_json(const char *text, size_t size)
{
	struct error err = ERROR_NULL;
	struct vm_description vm;
	int r = table_init(&vm_table, &vm);

	assert(r == 0);
	r = table_from_text(&vm_table, text, size, "fuzz", &vm, &err);
	assert(r == err.code && (r == 0 || *err.text));
	if (r == 0)
		check(&vm);
	table_deinit(&vm_table, &vm);
}

static void fuzz_binary(const uint8_t *data, size_t size)
{
	struct cursor in = cursor_reader(data, size);
	struct vm_description vm;
	int r = table_init(&vm_table, &vm);

	assert(r == 0);
	r = table_decode(&vm_table, vm_table.version, &vm, &in);
	assert(r == 0 || r == -EBADMSG);
	if (r == 0)
		check(&vm);
	table_deinit(&vm_table, &vm);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	fuzz_json((const char *)data, size);
	fuzz_binary(data, size);
	return 0;
}
