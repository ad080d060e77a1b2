/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The setup header of a bzImage, field by field with a check each; then one read into guest memory.
 * The kernel is put at its preferred address: from anywhere else it would first move itself there.
 */
#include "vmm/x86/bzimage.h"

#include <asm/bootparam.h>
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/cursor.h"
#include "vmm/x86/image.h"
#include "vmm/x86/layout.h"

#define HEADER_MAGIC    0x53726448 /* "HdrS" */
#define BOOT_FLAG       0xaa55
#define VERSION_LEAST   0x020c
#define SECTOR          512

#define FIELD_AT(field) (BZIMAGE_HEADER + offsetof(struct setup_header, field))

static_assert(FIELD_AT(header) == 0x202, "the setup header as the protocol has it");
static_assert(FIELD_AT(init_size) == 0x260, "the setup header as the protocol has it");
static_assert(sizeof(struct setup_header) <= BZIMAGE_HEADER_MAX, "it has a place in the zero page");

bool bzimage_is(const uint8_t *head, size_t size)
{
	return size >= FIELD_AT(version) && memcmp(head + FIELD_AT(header), "HdrS", 4) == 0;
}

/* Copies the header out; what an older kernel does not have stays zero. */
static int header_copy(const uint8_t *head, size_t size, struct bzimage *image,
		       struct setup_header *ret)
{
	/* The byte after the jump's opcode says how far it jumps, which is over the header. */
	size_t end = 0x202 + (size_t)head[0x201];

	end = MIN(end, (size_t)BZIMAGE_HEAD);
	if (end > size || end < FIELD_AT(init_size) + sizeof(ret->init_size))
		return -ENOEXEC;
	image->header_size = end - BZIMAGE_HEADER;
	memcpy(image->header, head + BZIMAGE_HEADER, image->header_size);
	*ret = (struct setup_header){0};
	memcpy(ret, image->header, MIN((size_t)image->header_size, sizeof(*ret)));
	return 0;
}

static int header_check(const struct setup_header *header, struct error *err)
{
	if (header->boot_flag != BOOT_FLAG || header->header != HEADER_MAGIC)
		return error_set(err, -ENOEXEC,
				 "cannot load the kernel: its boot header is "
				 "damaged");
	if (header->version < VERSION_LEAST || !(header->xloadflags & XLF_KERNEL_64))
		return error_set(err, -ENOEXEC,
				 "cannot load the kernel: it has no 64-bit entry point (boot "
				 "protocol %u.%02u); a 64-bit Linux 3.8 or later is needed",
				 header->version >> 8, header->version & 0xff);
	if (!(header->loadflags & LOADED_HIGH))
		return error_set(err, -ENOEXEC,
				 "cannot load the kernel: it is a zImage, only bzImage is known");
	return 0;
}

static int placement_check(const struct setup_header *header, const struct bzimage *image,
			   struct error *err)
{
	uint32_t align = header->kernel_alignment;

	/* A kernel that cannot be moved runs at its preferred address whatever its alignment. */
	if (header->relocatable_kernel &&
	    (align == 0 || (align & (align - 1)) != 0 || align > BZIMAGE_ALIGNMENT_MAX ||
	     image->load % align != 0))
		return error_set(err, -ENOEXEC,
				 "cannot load the kernel: its preferred address 0x%llx does not "
				 "suit its alignment 0x%x",
				 (unsigned long long)image->load, align);
	if (image->code_size <= BZIMAGE_ENTRY64 || image->init_size < image->code_size)
		return error_set(err, -ENOEXEC,
				 "cannot load the kernel: its boot header is damaged, %llu bytes "
				 "of code do not go into %llu bytes of memory",
				 (unsigned long long)image->code_size,
				 (unsigned long long)image->init_size);
	return 0;
}

/* `syssize` counts in steps of 16 bytes; what follows in the file (a signature) is not loaded. */
static int code_find(const struct setup_header *header, uint64_t file_size, struct bzimage *image,
		     struct error *err)
{
	uint64_t sectors = header->setup_sects ? header->setup_sects : 4;
	uint64_t size = (uint64_t)header->syssize * 16;
	uint64_t told;

	image->code_offset = (sectors + 1) * SECTOR;
	told = image->code_offset + size;
	if (image->code_offset >= file_size || size > align_up(file_size - image->code_offset, 16))
		return error_set(err, -ENOEXEC,
				 "cannot load the kernel: it is truncated, the file has %llu bytes "
				 "and its boot header says %llu; copy the file again",
				 (unsigned long long)file_size, (unsigned long long)told);
	image->code_size = MIN(size, file_size - image->code_offset);
	return 0;
}

int bzimage_parse(const uint8_t *head, size_t size, uint64_t file_size, struct bzimage *ret,
		  struct error *err)
{
	struct bzimage image = {0};
	struct setup_header header;
	int r;

	if (!bzimage_is(head, size))
		return error_set(err, -ENOEXEC, "cannot load the kernel: it is not a bzImage");
	if (header_copy(head, size, &image, &header) < 0)
		return error_set(err, -ENOEXEC,
				 "cannot load the kernel: its boot header is truncated or too old; "
				 "a 64-bit Linux 3.8 or later is needed");
	r = header_check(&header, err);
	if (r < 0)
		return r;
	r = code_find(&header, file_size, &image, err);
	if (r < 0)
		return r;
	image.version = header.version;
	image.load = header.pref_address;
	image.init_size = header.init_size;
	image.initrd_max = header.initrd_addr_max;
	image.command_max = header.cmdline_size;
	r = placement_check(&header, &image, err);
	if (r < 0)
		return r;
	*ret = image;
	return 0;
}

int bzimage_load(const struct bzimage *image, int fd, struct guest_memory *memory,
		 struct error *err)
{
	int r = image_check(memory, image->load, image->init_size, "kernel", err);

	if (r < 0)
		return r;
	return image_load(fd, image->code_offset, memory, image->load, image->code_size, "kernel",
			  err);
}
