/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ELF headers to segments: headers are read once, the copies are checked, only the copies are used.
 * Section headers are never looked at.
 */
#include "vmm/x86/elf.h"

#include <elf.h>
#include <errno.h>
#include <string.h>

#include "base/cursor.h"
#include "vmm/x86/image.h"
#include "vmm/x86/layout.h"

#define XEN_ELFNOTE_PHYS32_ENTRY 18

bool elf_is(const uint8_t *head, size_t size)
{
	return size >= SELFMAG && memcmp(head, ELFMAG, SELFMAG) == 0;
}

static int refuse(struct error *err, const char *why)
{
	return error_set(err, -ENOEXEC, "cannot load the kernel: %s", why);
}

/* CloudHv firmware calls itself a 64-bit i386 program: with a PVH note the machine may be either.
 */
static int header_check(const Elf64_Ehdr *header, struct error *err)
{
	if (header->e_ident[EI_CLASS] == ELFCLASS32)
		return refuse(err, "it is a 32-bit ELF file, a 64-bit one is needed");
	if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_ident[EI_VERSION] != EV_CURRENT)
		return refuse(err, "it is an ELF file of an unknown class");
	if (header->e_ident[EI_DATA] != ELFDATA2LSB)
		return refuse(err, "it is a big-endian ELF file");
	if (header->e_machine == EM_AARCH64)
		return refuse(err, "it is an ELF file for arm64, this board is x86-64");
	if (header->e_machine != EM_X86_64 && header->e_machine != EM_386)
		return error_set(err, -ENOEXEC,
				 "cannot load the kernel: it is an ELF file for another machine "
				 "(ELF number %u), this board is x86-64",
				 header->e_machine);
	if (header->e_type == ET_REL)
		return refuse(err, "it is an ELF object file (a module?), not a linked kernel");
	if (header->e_type != ET_EXEC && header->e_type != ET_DYN)
		return refuse(err, "it is an ELF file that is not a program");
	if (header->e_phentsize != sizeof(Elf64_Phdr) || header->e_phnum == 0 ||
	    header->e_phnum > ELF_HEADERS_MAX)
		return refuse(err, "its ELF program headers are damaged");
	return 0;
}

/* In the file from `offset` on there must be `size` bytes. */
static int in_file(uint64_t file_size, uint64_t offset, uint64_t size, struct error *err)
{
	if (offset <= file_size && size <= file_size - offset)
		return 0;
	return error_set(err, -ENOEXEC,
			 "cannot load the kernel: it is truncated, the file has %llu bytes and a "
			 "part of %llu at offset %llu; copy the file again",
			 (unsigned long long)file_size, (unsigned long long)size,
			 (unsigned long long)offset);
}

static int segment_add(struct elf_image *image, const Elf64_Phdr *program, uint64_t file_size,
		       struct error *err)
{
	struct elf_segment segment = {
		.offset = program->p_offset,
		.file_size = program->p_filesz,
		.gpa = program->p_paddr,
		.size = program->p_memsz,
		.virtual = program->p_vaddr,
	};
	int r;

	if (segment.size == 0)
		return 0;
	r = in_file(file_size, segment.offset, segment.file_size, err);
	if (r < 0)
		return r;
	if (segment.file_size > segment.size || segment.size > UINT64_MAX - segment.gpa)
		return refuse(err, "the sizes of one of its ELF segments are damaged");
	for (uint32_t i = 0; i < image->n_segments; i++) {
		const struct elf_segment *other = &image->segments[i];

		if (segment.gpa < other->gpa + other->size &&
		    other->gpa < segment.gpa + segment.size)
			return error_set(err, -ENOEXEC,
					 "cannot load the kernel: two of its ELF segments overlap "
					 "at 0x%llx",
					 (unsigned long long)MAX(segment.gpa, other->gpa));
	}
	if (image->n_segments == ELF_SEGMENTS_MAX)
		return refuse(err, "it has too many ELF segments");
	image->end = MAX(image->end, segment.gpa + segment.size);
	image->segments[image->n_segments++] = segment;
	return 0;
}

/* The next note; false at the end or when what is left makes no sense. */
static bool note_next(struct cursor *notes, uint64_t align, const char **ret_name,
		      uint32_t *ret_name_size, uint32_t *ret_type, struct cursor *ret_desc)
{
	uint32_t name_size = cursor_get_u32(notes);
	uint32_t desc_size = cursor_get_u32(notes);
	uint32_t type = cursor_get_u32(notes);
	const char *name = cursor_get_view(notes, name_size);
	const void *desc;

	cursor_get_view(notes, MIN(align_up(notes->at, align) - notes->at, cursor_left(notes)));
	desc = cursor_get_view(notes, desc_size);
	cursor_get_view(notes, MIN(align_up(notes->at, align) - notes->at, cursor_left(notes)));
	if (cursor_status(notes) < 0)
		return false;
	*ret_name = name;
	*ret_name_size = name_size;
	*ret_type = type;
	*ret_desc = cursor_reader(desc, desc_size);
	return true;
}

/* Four bytes in firmware and Xen, eight in 64-bit Linux. */
static bool note_entry(struct cursor *desc, gpa_t *ret_entry)
{
	if (desc->size == 4)
		*ret_entry = cursor_get_u32(desc);
	else if (desc->size == 8)
		*ret_entry = cursor_get_u64(desc);
	else
		return false;
	return true;
}

static int notes_search(int fd, const Elf64_Phdr *program, uint64_t file_size,
			struct elf_image *image, struct error *err)
{
	uint64_t size = MIN(program->p_filesz, (uint64_t)ELF_NOTES_MAX);
	uint64_t align = program->p_align == 8 ? 8 : 4;
	_cleanup_(freep) void *data = NULL;
	struct cursor notes, desc;
	uint32_t name_size, type;
	const char *name;
	int r;

	r = in_file(file_size, program->p_offset, program->p_filesz, err);
	if (r < 0 || size == 0)
		return r;
	data = malloc(size);
	if (!data)
		return error_set(err, -ENOMEM, "cannot load the kernel: %s", strerror(ENOMEM));
	r = image_read(fd, program->p_offset, data, size, "kernel", err);
	if (r < 0)
		return r;
	notes = cursor_reader(data, size);
	while (note_next(&notes, align, &name, &name_size, &type, &desc)) {
		if (type == XEN_ELFNOTE_PHYS32_ENTRY && name_size == sizeof("Xen") &&
		    memcmp(name, "Xen", sizeof("Xen")) == 0 && note_entry(&desc, &image->entry)) {
			image->pvh = true;
			return 0;
		}
	}
	return 0;
}

static int programs_read(int fd, const Elf64_Ehdr *header, uint64_t file_size,
			 struct elf_image *image, struct error *err)
{
	Elf64_Phdr programs[ELF_HEADERS_MAX];
	uint64_t size = header->e_phnum * sizeof(programs[0]);
	int r;

	r = in_file(file_size, header->e_phoff, size, err);
	if (r < 0)
		return r;
	r = image_read(fd, header->e_phoff, programs, size, "kernel", err);
	for (uint32_t i = 0; r == 0 && i < header->e_phnum; i++) {
		if (programs[i].p_type == PT_INTERP)
			return refuse(err, "it is a program for Linux, not a kernel");
		if (programs[i].p_type == PT_LOAD)
			r = segment_add(image, &programs[i], file_size, err);
		else if (programs[i].p_type == PT_NOTE && !image->pvh)
			r = notes_search(fd, &programs[i], file_size, image, err);
	}
	if (r == 0 && image->n_segments == 0)
		return refuse(err, "it has no ELF segment to load");
	return r;
}

/* `address` inside a loaded segment, taken as physical first and as virtual second. */
static bool entry_find(const struct elf_image *image, uint64_t address, bool physical_only,
		       gpa_t *ret_entry)
{
	for (uint32_t i = 0; i < image->n_segments; i++) {
		const struct elf_segment *segment = &image->segments[i];

		if (address - segment->gpa < segment->file_size) {
			*ret_entry = address;
			return true;
		}
	}
	for (uint32_t i = 0; !physical_only && i < image->n_segments; i++) {
		const struct elf_segment *segment = &image->segments[i];

		if (address - segment->virtual < segment->file_size) {
			*ret_entry = segment->gpa + (address - segment->virtual);
			return true;
		}
	}
	return false;
}

int elf_parse(int fd, uint64_t file_size, struct elf_image *ret, struct error *err)
{
	struct elf_image image = {0};
	Elf64_Ehdr header;
	uint64_t entry;
	int r;

	if (file_size < sizeof(header))
		return refuse(err, "it is truncated within the ELF header; copy the file again");
	r = image_read(fd, 0, &header, sizeof(header), "kernel", err);
	if (r < 0)
		return r;
	if (!elf_is(header.e_ident, sizeof(header.e_ident)))
		return refuse(err, "it is not an ELF file");
	r = header_check(&header, err);
	if (r < 0)
		return r;
	r = programs_read(fd, &header, file_size, &image, err);
	if (r < 0)
		return r;
	if (!image.pvh && header.e_machine == EM_386)
		return refuse(err, "it is an ELF file for i386 without a PVH entry");
	entry = image.pvh ? image.entry : header.e_entry;
	if (!entry_find(&image, entry, image.pvh, &image.entry))
		return error_set(err, -ENOEXEC,
				 "cannot load the kernel: its entry point 0x%llx is in none of its "
				 "ELF segments",
				 (unsigned long long)entry);
	*ret = image;
	return 0;
}

int elf_load(const struct elf_image *image, int fd, struct guest_memory *memory, struct error *err)
{
	/* The end decides how much memory is asked for: it goes first. */
	if (image->end > image_low_end(memory))
		return image_too_big(memory, image->end, "kernel", err);
	for (uint32_t i = 0; i < image->n_segments; i++) {
		const struct elf_segment *segment = &image->segments[i];
		int r = image_check(memory, segment->gpa, segment->size, "kernel", err);

		if (r < 0)
			return r;
	}
	for (uint32_t i = 0; i < image->n_segments; i++) {
		const struct elf_segment *segment = &image->segments[i];
		int r = image_load(fd, segment->offset, memory, segment->gpa, segment->file_size,
				   "kernel", err);

		if (r == 0)
			r = image_clear(memory, segment->gpa + segment->file_size,
					segment->size - segment->file_size);
		if (r < 0)
			return r;
	}
	return 0;
}
