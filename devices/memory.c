/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory: mapped here, found here by guest-physical address, marked here when we write it.
 * Mapping happens on the main thread before vCPUs exist; look-ups and marks on any thread.
 */
#include "devices/memory.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fd.h"

#define SMALL_START (2u << 20)
/* Each cuts a mapping into three at most; half of what Linux allows a process by default. */
#define REMAPS_MAX 16384u

static int advise(const struct memory_region *region, const struct memory_options *options,
		  struct error *err)
{
	bool thp = options->thp && !options->merge;

	/* Without THP in the kernel there is nothing to turn on or off. */
	if (madvise(region->host, region->size, thp ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) < 0 &&
	    errno != EINVAL)
		return error_set(err, -errno, "cannot set the huge-page policy of guest memory: %s",
				 strerror(errno));
	if (options->merge && madvise(region->host, region->size, MADV_MERGEABLE) < 0)
		return error_set(err, -errno,
				 "cannot make guest memory mergeable: %s; this kernel may lack KSM "
				 "(corral doctor), start without merge=on",
				 strerror(errno));
	/* What a guest starts with are a few pages at the bottom: to clear a huge one for them
	 * costs more than all of start-up's other memory. */
	if (thp && region->start == 0)
		(void)madvise(region->host, MIN(region->size, (uint64_t)SMALL_START),
			      MADV_NOHUGEPAGE);
	/* Guest memory has no place in a core dump. */
	(void)madvise(region->host, region->size, MADV_DONTDUMP);
	if (options->prefault && madvise(region->host, region->size, MADV_POPULATE_WRITE) < 0)
		return error_set(err, -errno, "cannot prefault %llu MiB of guest memory: %s",
				 (unsigned long long)(region->size >> 20), strerror(errno));
	return 0;
}

/* Huge pages need the host address aligned as the guest's is: reserve 2 MiB more, keep the aligned
 * part. */
static void *map_aligned(uint64_t size, int flags, int fd)
{
	const uint64_t step = 2u << 20;
	uint8_t *base, *start;

	base = mmap(NULL, size + step, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		    0);
	if (base == MAP_FAILED)
		return MAP_FAILED;
	start = (uint8_t *)align_up((uintptr_t)base, step);
	if (start > base)
		munmap(base, start - base);
	if (start < base + step)
		munmap(start + size, base + step - start);
	if (mmap(start, size, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0) == MAP_FAILED) {
		munmap(start, size);
		return MAP_FAILED;
	}
	return start;
}

static int region_map(struct memory_region *region, const struct memory_options *options,
		      struct error *err)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	void *host;

	assert(options->kind != MEMORY_PRIVATE_FILE); /* snapshots will map it */
	if (options->kind == MEMORY_SHARED) {
		region->fd = memfd_create("guest-memory", MFD_CLOEXEC);
		if (region->fd < 0 || ftruncate(region->fd, region->size) < 0)
			return error_set(err, -errno, "cannot create shared guest memory: %s",
					 strerror(errno));
		flags = MAP_SHARED | MAP_NORESERVE;
	}
	host = map_aligned(region->size, flags, region->fd);
	if (host == MAP_FAILED)
		return error_set(
			err, -errno,
			"cannot map %llu MiB of guest memory: %s; give the VM less --memory",
			(unsigned long long)(region->size >> 20), strerror(errno));
	region->host = host;
	return advise(region, options, err);
}

int memory_init(struct guest_memory *memory, const struct memory_options *options,
		const struct memory_range *ranges, uint32_t n_ranges, struct error *err)
{
	*memory = (struct guest_memory){.kind = options->kind};
	assert(n_ranges <= MEMORY_REGIONS_MAX);
	for (uint32_t i = 0; i < n_ranges; i++) {
		struct memory_region *region = &memory->regions[memory->n_regions++];
		int r;

		assert(i == 0 || ranges[i].start >= ranges[i - 1].start + ranges[i - 1].size);
		*region = (struct memory_region){
			.start = ranges[i].start, .size = ranges[i].size, .fd = -1};
		r = region_map(region, options, err);
		if (r < 0) {
			memory_deinit(memory);
			return r;
		}
	}
	return 0;
}

void memory_deinit(struct guest_memory *memory)
{
	memory_track_stop(memory);
	for (uint32_t i = 0; i < memory->n_regions; i++) {
		struct memory_region *region = &memory->regions[i];

		if (region->host)
			munmap(region->host, region->size);
		region->fd = fd_close(region->fd);
	}
	*memory = (struct guest_memory){0};
}

uint64_t memory_total(const struct guest_memory *memory)
{
	uint64_t total = 0;

	for (uint32_t i = 0; i < memory->n_regions; i++)
		total += memory->regions[i].size;
	return total;
}

/* The region that holds `gpa`, or NULL. A handful of regions: a scan beats a search. */
static const struct memory_region *region_of(const struct guest_memory *memory, gpa_t gpa)
{
	for (uint32_t i = 0; i < memory->n_regions; i++) {
		const struct memory_region *region = &memory->regions[i];

		if (gpa - region->start < region->size)
			return region;
	}
	return NULL;
}

int memory_translate(const struct guest_memory *memory, gpa_t gpa, uint64_t len, void **ret_host)
{
	const struct memory_region *region = region_of(memory, gpa);

	if (!region || len == 0 || len > region->size - (gpa - region->start))
		return -EFAULT;
	*ret_host = region->host + (gpa - region->start);
	return 0;
}

/* Bytes from `gpa` on that exist, `len` at most, whichever regions hold them. */
static bool range_exists(const struct guest_memory *memory, gpa_t gpa, uint64_t len)
{
	while (len > 0) {
		const struct memory_region *region = region_of(memory, gpa);
		uint64_t here;

		if (!region)
			return false;
		here = MIN(len, region->size - (gpa - region->start));
		gpa += here;
		len -= here;
	}
	return true;
}

int memory_read(const struct guest_memory *memory, gpa_t gpa, void *data, uint64_t len)
{
	uint8_t *out = data;

	if (!range_exists(memory, gpa, len))
		return -EFAULT;
	while (len > 0) {
		const struct memory_region *region = region_of(memory, gpa);
		uint64_t at = gpa - region->start;
		uint64_t here = MIN(len, region->size - at);

		memcpy(out, region->host + at, here);
		out += here;
		gpa += here;
		len -= here;
	}
	return 0;
}

int memory_write(struct guest_memory *memory, gpa_t gpa, const void *data, uint64_t len)
{
	const uint8_t *in = data;

	if (!range_exists(memory, gpa, len))
		return -EFAULT;
	for (uint64_t left = len, to = gpa; left > 0;) {
		const struct memory_region *region = region_of(memory, to);
		uint64_t at = to - region->start;
		uint64_t here = MIN(left, region->size - at);

		memcpy(region->host + at, in, here);
		in += here;
		to += here;
		left -= here;
	}
	memory_mark(memory, gpa, len);
	return 0;
}

static void region_mark(_Atomic uint64_t *dirty, uint64_t first, uint64_t last)
{
	for (uint64_t page = first; page <= last; page++)
		atomic_fetch_or_explicit(&dirty[page / 64], 1ull << (page % 64),
					 memory_order_release);
}

void memory_mark(struct guest_memory *memory, gpa_t gpa, uint64_t len)
{
	while (len > 0) {
		const struct memory_region *region = region_of(memory, gpa);
		_Atomic uint64_t *dirty;
		uint64_t at, here;

		if (!region)
			return;
		at = gpa - region->start;
		here = MIN(len, region->size - at);
		dirty = atomic_load_explicit(&region->dirty, memory_order_acquire);
		if (dirty)
			region_mark(dirty, at >> GUEST_PAGE_SHIFT,
				    (at + here - 1) >> GUEST_PAGE_SHIFT);
		gpa += here;
		len -= here;
	}
}

/*
 * The file's bytes would come back after MADV_DONTNEED: fresh zeroes are mapped over them. A guest
 * could cut its memory into more mappings than a process may have, and leave us none; so their
 * number is bounded, and what comes after is written with zeroes instead.
 */
static int pages_replace(struct guest_memory *memory, void *host, uint64_t len)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;

	if (atomic_load(&memory->n_remaps) < REMAPS_MAX &&
	    mmap(host, len, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED)
		atomic_fetch_add(&memory->n_remaps, 1);
	else
		memset(host, 0, len);
	return 0;
}

static int pages_discard(struct guest_memory *memory, void *host, uint64_t len)
{
	if (memory->kind == MEMORY_PRIVATE_FILE)
		return pages_replace(memory, host, len);
	return madvise(host, len, memory->kind == MEMORY_SHARED ? MADV_REMOVE : MADV_DONTNEED) < 0
		       ? -errno
		       : 0;
}

/*
 * Of a huge page a part is given back too: it is split for that. Where huge pages are on, the
 * kernel's khugepaged may fill the holes again later (max_ptes_none).
 */
int memory_discard(struct guest_memory *memory, gpa_t gpa, uint64_t len)
{
	gpa_t end;

	if (!range_exists(memory, gpa, len))
		return -EFAULT;
	end = align_down(gpa + len, GUEST_PAGE_SIZE);
	gpa = align_up(gpa, GUEST_PAGE_SIZE);
	while (gpa < end) {
		const struct memory_region *region = region_of(memory, gpa);
		uint64_t at = gpa - region->start;
		uint64_t here = MIN(end - gpa, region->size - at);
		int r = pages_discard(memory, region->host + at, here);

		if (r < 0)
			return r;
		gpa += here;
	}
	return 0;
}

static uint64_t region_words(const struct memory_region *region)
{
	return ((region->size >> GUEST_PAGE_SHIFT) + 63) / 64;
}

int memory_track_start(struct guest_memory *memory)
{
	for (uint32_t i = 0; i < memory->n_regions; i++) {
		struct memory_region *region = &memory->regions[i];
		_Atomic uint64_t *bits = calloc(region_words(region), sizeof(*bits));

		if (!bits) {
			memory_track_stop(memory);
			return -ENOMEM;
		}
		free(atomic_exchange(&region->dirty, bits));
	}
	return 0;
}

/* The caller has stopped every thread that could be inside memory_mark. */
void memory_track_stop(struct guest_memory *memory)
{
	for (uint32_t i = 0; i < memory->n_regions; i++)
		free(atomic_exchange(&memory->regions[i].dirty, NULL));
}

void memory_track_take(struct guest_memory *memory, uint32_t region, uint64_t *bits,
		       uint64_t n_words)
{
	_Atomic uint64_t *dirty = atomic_load(&memory->regions[region].dirty);

	for (uint64_t i = 0; dirty && i < n_words; i++) {
		if (atomic_load_explicit(&dirty[i], memory_order_relaxed))
			bits[i] |= atomic_exchange(&dirty[i], 0);
	}
}

/* The region that `host` points into, or NULL. */
static const struct memory_region *region_of_host(const struct guest_memory *memory,
						  const void *host)
{
	for (uint32_t i = 0; i < memory->n_regions; i++) {
		const struct memory_region *region = &memory->regions[i];

		if ((uintptr_t)host - (uintptr_t)region->host < region->size)
			return region;
	}
	return NULL;
}

static gpa_t gpa_of(const struct memory_region *region, const void *host)
{
	return region->start + ((uintptr_t)host - (uintptr_t)region->host);
}

void memory_mark_host(struct guest_memory *memory, const void *host, uint64_t len)
{
	const struct memory_region *region = region_of_host(memory, host);

	if (region && atomic_load_explicit(&region->dirty, memory_order_acquire))
		memory_mark(memory, gpa_of(region, host), len);
}

int memory_discard_host(struct guest_memory *memory, void *host, uint64_t len)
{
	const struct memory_region *region = region_of_host(memory, host);

	return region ? memory_discard(memory, gpa_of(region, host), len) : -EFAULT;
}
