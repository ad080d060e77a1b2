/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as a kernel file: whatever is loaded without complaint lies in the VM's memory, and
 * nothing lies on top of it.
 */
#include <assert.h>

#include "vmm/x86/bzimage.h"
#include "vmm/x86/kernel.h"
#include "vmm/x86/test-image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct boot_tables tables = {.rsdp = LAYOUT_ACPI};
	static struct guest_memory memory;
	struct boot_source source = {.command_line = "console=ttyS0"};
	struct boot_entry entry = {0};
	struct error err = ERROR_NULL;
	struct bzimage image;
	void *host;
	int r;

	if (memory.n_regions == 0)
		test_memory(&memory, 8 * MIB);
	r = bzimage_parse(data, size, size, &image, &err);
	assert(r == 0 || (r < 0 && err.text[0] != '\0'));
	source.kernel_fd = source.initrd_fd = test_file(data, size);
	r = kernel_load(&source, &memory, &tables, &entry, &err);
	assert(r == 0 || (r < 0 && err.text[0] != '\0'));
	if (r == 0) {
		assert(memory_translate(&memory, entry.entry, 1, &host) == 0);
		assert(memory_translate(&memory, entry.initrd, entry.initrd_size, &host) == 0);
		assert(entry.initrd >= entry.kernel_end && entry.entry < entry.kernel_end);
		assert(entry.initrd_size == size);
	}
	close(source.kernel_fd);
	return 0;
}
