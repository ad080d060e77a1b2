/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as an ELF kernel: parsed segments are inside the file and apart from each other, loaded
 * ones inside the VM's memory, and the entry is inside one of them.
 */
#include <assert.h>

#include "vmm/x86/elf.h"
#include "vmm/x86/test-image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct elf_image *image, size_t size)
{
	bool entered = false;

	for (uint32_t i = 0; i < image->n_segments; i++) {
		const struct elf_segment *a = &image->segments[i];

		assert(a->offset <= size && a->file_size <= size - a->offset);
		assert(a->file_size <= a->size && a->gpa + a->size >= a->gpa);
		entered |= image->entry >= a->gpa && image->entry < a->gpa + a->file_size;
		for (uint32_t k = 0; k < i; k++) {
			const struct elf_segment *b = &image->segments[k];

			assert(a->gpa >= b->gpa + b->size || b->gpa >= a->gpa + a->size);
		}
	}
	assert(entered);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct guest_memory memory;
	struct error err = ERROR_NULL;
	struct elf_image image;
	void *host;
	int fd, r;

	if (memory.n_regions == 0)
		test_memory(&memory, 8 * MIB);
	fd = test_file(data, size);
	r = elf_parse(fd, size, &image, &err);
	assert(r == 0 || (r < 0 && err.text[0] != '\0'));
	if (r == 0) {
		check(&image, size);
		r = elf_load(&image, fd, &memory, &err);
		assert(r == 0 || (r < 0 && err.text[0] != '\0'));
	}
	if (r == 0)
		assert(memory_translate(&memory, image.entry, 1, &host) == 0);
	close(fd);
	return 0;
}
