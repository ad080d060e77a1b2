/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What kind of file it is, who loads it, where the initrd goes, and what the guest is told: the
 * command line and, by protocol, a zero page or a start info.
 */
#include "vmm/x86/kernel.h"

#include <errno.h>
#include <string.h>

#include "vmm/x86/boot-info.h"
#include "vmm/x86/bzimage.h"
#include "vmm/x86/elf.h"
#include "vmm/x86/image.h"
#include "vmm/x86/layout.h"

/* Linux's limits, for kernels that do not say their own. */
#define COMMAND_MAX 2047
#define INITRD_MAX  0x7fffffffu

/* What is known of the kernel once it is in memory. */
struct loaded {
	struct boot_entry entry;
	uint64_t initrd_max;
	uint64_t command_max;
	bool has_header;
	struct bzimage bzimage; /* when has_header */
};

static int load_bzimage(int fd, const uint8_t *head, size_t size, uint64_t file_size,
			struct guest_memory *memory, struct loaded *ret, struct error *err)
{
	struct bzimage *image = &ret->bzimage;
	int r = bzimage_parse(head, size, file_size, image, err);

	if (r < 0)
		return r;
	ret->has_header = true;
	ret->initrd_max = image->initrd_max;
	ret->command_max = image->command_max;
	ret->entry.protocol = BOOT_LINUX64;
	ret->entry.entry = image->load + BZIMAGE_ENTRY64;
	ret->entry.kernel_end = image->load + image->init_size;
	return bzimage_load(image, fd, memory, err);
}

static int load_elf(int fd, uint64_t file_size, struct guest_memory *memory, struct loaded *ret,
		    struct error *err)
{
	struct elf_image image;
	int r = elf_parse(fd, file_size, &image, err);

	if (r < 0)
		return r;
	ret->initrd_max = INITRD_MAX;
	ret->command_max = COMMAND_MAX;
	ret->entry.protocol = image.pvh ? BOOT_PVH32 : BOOT_LINUX64;
	ret->entry.entry = image.entry;
	ret->entry.kernel_end = image.end;
	return elf_load(&image, fd, memory, err);
}

/* Files that are not kernels, by how they start; the sentence says what to do instead. */
static const struct {
	const char *magic;
	uint32_t size, offset;
	const char *looks_like;
} strangers[] = {
	{"\x1f\x8b", 2, 0, "gzip data: unpack it first (gunzip)"},
	{"\xfd"
	 "7zXZ",
	 5, 0, "xz data: unpack it first (unxz)"},
	{"\x28\xb5\x2f\xfd", 4, 0, "zstd data: unpack it first (unzstd)"},
	{"\x02\x21\x4c\x18", 4, 0, "lz4 data: unpack it first"},
	{"\x04\x22\x4d\x18", 4, 0, "lz4 data: unpack it first"},
	{"BZh", 3, 0, "bzip2 data: unpack it first (bunzip2)"},
	{"ARM\x64", 4, 56, "an arm64 kernel, this board is x86-64"},
	{"MZ", 2, 0, "a PE (EFI or Windows) program, not a Linux kernel"},
	{"QFI\xfb", 4, 0, "a qcow2 disk image; disks go to --disk"},
	{"070701", 6, 0, "a cpio archive; an initrd goes to --initrd"},
	{"!<arch>\n", 8, 0, "an archive (a Debian package?), not a kernel"},
	{"#!", 2, 0, "a script"},
	{"\x55\xaa", 2, 510, "a boot sector or disk image; disks go to --disk"},
};

static int refuse_stranger(const uint8_t *head, size_t size, struct error *err)
{
	for (size_t i = 0; i < ARRAY_SIZE(strangers); i++) {
		if (strangers[i].offset + strangers[i].size <= size &&
		    memcmp(head + strangers[i].offset, strangers[i].magic, strangers[i].size) == 0)
			return error_set(err, -ENOEXEC, "cannot load the kernel: it looks like %s",
					 strangers[i].looks_like);
	}
	return error_set(err, -ENOEXEC,
			 "cannot load the kernel: it is neither a bzImage nor an ELF file");
}

static int load_image(int fd, struct guest_memory *memory, struct loaded *ret, struct error *err)
{
	uint8_t head[BZIMAGE_HEAD] = {0};
	uint64_t file_size;
	size_t size;
	int r;

	r = image_size(fd, "kernel", &file_size, err);
	if (r < 0)
		return r;
	size = MIN(file_size, (uint64_t)sizeof(head));
	r = image_read(fd, 0, head, size, "kernel", err);
	if (r < 0)
		return r;
	if (elf_is(head, size))
		return load_elf(fd, file_size, memory, ret, err);
	if (bzimage_is(head, size))
		return load_bzimage(fd, head, size, file_size, memory, ret, err);
	return refuse_stranger(head, size, err);
}

/* As high as kernel and memory allow, where it is least in the way. */
static int load_initrd(int fd, struct guest_memory *memory, struct loaded *loaded,
		       struct error *err)
{
	uint64_t low_end = image_low_end(memory);
	uint64_t top = MIN(low_end, loaded->initrd_max + 1);
	uint64_t bottom = align_up(loaded->entry.kernel_end, GUEST_PAGE_SIZE);
	uint64_t size;
	int r;

	r = image_size(fd, "initrd", &size, err);
	if (r < 0)
		return r;
	if (size > LAYOUT_HOLE || bottom + align_up(size, GUEST_PAGE_SIZE) > loaded->initrd_max + 1)
		return error_set(err, -E2BIG,
				 "cannot load the initrd: %llu MiB are more than this kernel takes",
				 (unsigned long long)(size >> 20));
	if (bottom + align_up(size, GUEST_PAGE_SIZE) > top)
		return image_too_big(memory, bottom + align_up(size, GUEST_PAGE_SIZE), "initrd",
				     err);
	loaded->entry.initrd = align_down(top - size, GUEST_PAGE_SIZE);
	loaded->entry.initrd_size = size;
	return image_load(fd, 0, memory, loaded->entry.initrd, size, "initrd", err);
}

static int put_command_line(const char *line, struct guest_memory *memory,
			    const struct loaded *loaded, struct error *err)
{
	uint64_t size = strlen(line) + 1;
	uint64_t max =
		MIN(loaded->command_max, (uint64_t)(LAYOUT_BOOT_END - LAYOUT_COMMAND_LINE - 1));

	if (size - 1 > max)
		return error_set(err, -E2BIG,
				 "the kernel command line has %llu bytes, this kernel takes at "
				 "most %llu",
				 (unsigned long long)size - 1, (unsigned long long)max);
	return memory_write(memory, LAYOUT_COMMAND_LINE, line, size);
}

static int put_info(struct guest_memory *memory, const struct boot_tables *tables,
		    struct loaded *loaded)
{
	struct boot_info info = {
		.rsdp = tables->rsdp,
		.command_line = LAYOUT_COMMAND_LINE,
		.initrd = loaded->entry.initrd,
		.initrd_size = loaded->entry.initrd_size,
		.memory_size = memory_total(memory),
	};

	if (loaded->has_header) {
		info.setup_header = loaded->bzimage.header;
		info.setup_header_size = loaded->bzimage.header_size;
	}
	if (loaded->entry.protocol == BOOT_PVH32) {
		loaded->entry.info = LAYOUT_START_INFO;
		return start_info_write(&info, memory);
	}
	loaded->entry.info = LAYOUT_ZERO_PAGE;
	return zero_page_write(&info, memory);
}

int kernel_load(const struct boot_source *source, struct guest_memory *memory,
		const struct boot_tables *tables, struct boot_entry *ret, struct error *err)
{
	struct loaded loaded = {0};
	int r;

	r = load_image(source->kernel_fd, memory, &loaded, err);
	if (r < 0)
		return r;
	if (source->initrd_fd >= 0) {
		r = load_initrd(source->initrd_fd, memory, &loaded, err);
		if (r < 0)
			return r;
	}
	r = put_command_line(source->command_line, memory, &loaded, err);
	if (r < 0)
		return r;
	r = put_info(memory, tables, &loaded);
	if (r < 0)
		return error_set(err, r, "cannot write boot data into the VM's memory: %s",
				 strerror(-r));
	*ret = loaded.entry;
	return 0;
}
