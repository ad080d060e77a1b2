/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files into guest memory, checked; see image.h.
 */
#include "vmm/x86/image.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/x86/layout.h"

/* One pread moves at most 2 GiB; smaller steps cost nothing and keep the arithmetic in range. */
#define IMAGE_STEP (1u << 30)

int image_size(int fd, const char *what, uint64_t *ret_size, struct error *err)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return error_set(err, -errno, "cannot read the %s: %s", what, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return error_set(err, -EINVAL, "cannot load the %s: it is not a regular file",
				 what);
	if (st.st_size == 0)
		return error_set(err, -ENOEXEC, "cannot load the %s: the file is empty", what);
	*ret_size = st.st_size;
	return 0;
}

int image_read(int fd, uint64_t offset, void *data, uint64_t len, const char *what,
	       struct error *err)
{
	uint8_t *to = data;

	while (len > 0) {
		ssize_t n = pread(fd, to, MIN(len, (uint64_t)IMAGE_STEP), offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set(err, -errno, "cannot read the %s: %s", what,
					 strerror(errno));
		if (n == 0)
			return error_set(
				err, -ENOEXEC,
				"cannot load the %s: it is truncated, %llu more bytes were "
				"expected at offset %llu; copy the file again",
				what, (unsigned long long)len, (unsigned long long)offset);
		to += n;
		offset += n;
		len -= n;
	}
	return 0;
}

int image_load(int fd, uint64_t offset, struct guest_memory *memory, gpa_t gpa, uint64_t len,
	       const char *what, struct error *err)
{
	void *host;
	int r;

	if (len == 0)
		return 0;
	r = memory_translate(memory, gpa, len, &host);
	if (r < 0)
		return error_set(err, r, "cannot load the %s: 0x%llx is not in the VM's memory",
				 what, (unsigned long long)gpa);
	r = image_read(fd, offset, host, len, what, err);
	memory_mark(memory, gpa, len);
	return r;
}

int image_clear(struct guest_memory *memory, gpa_t gpa, uint64_t len)
{
	void *host;
	int r;

	if (len == 0)
		return 0;
	r = memory_translate(memory, gpa, len, &host);
	if (r < 0)
		return r;
	memset(host, 0, len);
	memory_mark(memory, gpa, len);
	return 0;
}

gpa_t image_low_end(const struct guest_memory *memory)
{
	return memory->n_regions > 0 && memory->regions[0].start == 0 ? memory->regions[0].size : 0;
}

int image_too_big(const struct guest_memory *memory, uint64_t end, const char *what,
		  struct error *err)
{
	uint64_t has = memory_total(memory) >> 20;

	if (end > LAYOUT_HOLE)
		return error_set(err, -E2BIG,
				 "cannot load the %s: it reaches up to 0x%llx, and memory for "
				 "kernels ends at 0x%llx in a VM of any size",
				 what, (unsigned long long)end, (unsigned long long)LAYOUT_HOLE);
	end = align_up(end, LAYOUT_MEMORY_STEP) >> 20;
	return error_set(err, -E2BIG,
			 "cannot load the %s: it needs %llu MiB, the VM has %llu: give --memory "
			 "at least %lluM",
			 what, (unsigned long long)end, (unsigned long long)has,
			 (unsigned long long)end);
}

int image_check(const struct guest_memory *memory, gpa_t gpa, uint64_t len, const char *what,
		struct error *err)
{
	void *host;

	if (gpa < LAYOUT_HIGH)
		return error_set(err, -ENOEXEC,
				 "cannot load the %s: it wants to be at 0x%llx, and the first MiB "
				 "belongs to the board",
				 what, (unsigned long long)gpa);
	if (len > UINT64_MAX - gpa)
		return error_set(err, -ENOEXEC,
				 "cannot load the %s: its address 0x%llx and length 0x%llx are not "
				 "possible",
				 what, (unsigned long long)gpa, (unsigned long long)len);
	if (memory_translate(memory, gpa, len, &host) < 0)
		return image_too_big(memory, gpa + len, what, err);
	return 0;
}
