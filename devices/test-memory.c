/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory: what lies inside, what outside, what is marked. Three regions: two that touch, one
 * far away.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "devices/memory.h"

#define PAGE  GUEST_PAGE_SIZE
#define MIB   (1u << 20)
#define FAR   (1ull << 32)
#define PAGES (4 * MIB / PAGE)
#define WORDS (PAGES / 64)

static const struct memory_range ranges[] = {{0, 4 * MIB}, {4 * MIB, 4 * MIB}, {FAR, 4 * MIB}};
static struct guest_memory memory;

static void make(struct memory_options options)
{
	struct error err = ERROR_NULL;

	cr_assert_eq(memory_init(&memory, &options, ranges, ARRAY_SIZE(ranges), &err), 0, "%s",
		     err.text);
}

static void set_up(void)
{
	make((struct memory_options){.kind = MEMORY_PRIVATE});
}

static void tear_down(void)
{
	memory_deinit(&memory);
}

TestSuite(memory, .init = set_up, .fini = tear_down);
TestSuite(memory_kind, .fini = tear_down);

static int translate(gpa_t gpa, uint64_t len)
{
	void *host;

	return memory_translate(&memory, gpa, len, &host);
}

/* Marked pages of a region since the last call, the first of them in `ret_first`. */
static uint32_t take(uint32_t region, uint32_t *ret_first)
{
	uint64_t bits[WORDS] = {0};
	uint32_t n = 0;

	memory_track_take(&memory, region, bits, WORDS);
	for (uint32_t page = PAGES; page-- > 0;) {
		if (!(bits[page / 64] & 1ull << page % 64))
			continue;
		*ret_first = page;
		n++;
	}
	return n;
}

Test(memory, total_is_the_sum_of_the_regions)
{
	cr_assert_eq(memory_total(&memory), 12ull * MIB);
}

Test(memory, host_addresses_are_aligned_to_2_mib)
{
	for (uint32_t i = 0; i < memory.n_regions; i++)
		cr_assert_eq((uintptr_t)memory.regions[i].host % (2 * MIB), 0);
}

Test(memory, a_region_is_translated_to_its_last_byte)
{
	void *host;

	cr_assert_eq(memory_translate(&memory, 4 * MIB - 1, 1, &host), 0);
	cr_assert_eq(host, memory.regions[0].host + 4 * MIB - 1);
	cr_assert_eq(memory_translate(&memory, FAR, 4 * MIB, &host), 0);
	cr_assert_eq(host, memory.regions[2].host);
}

Test(memory, one_byte_more_than_a_region_is_refused)
{
	cr_assert_eq(translate(FAR, 4 * MIB + 1), -EFAULT);
	cr_assert_eq(translate(FAR + 4 * MIB - 1, 2), -EFAULT);
	cr_assert_eq(translate(FAR + 4 * MIB, 1), -EFAULT);
	cr_assert_eq(translate(FAR - 1, 1), -EFAULT);
}

Test(memory, a_pointer_never_spans_regions)
{
	cr_assert_eq(translate(4 * MIB - 1, 2), -EFAULT);
}

Test(memory, no_length_is_refused)
{
	cr_assert_eq(translate(0, 0), -EFAULT);
	cr_assert_eq(translate(4 * MIB, 0), -EFAULT);
}

Test(memory, lengths_and_addresses_near_2_64_do_not_wrap)
{
	cr_assert_eq(translate(0, UINT64_MAX), -EFAULT);
	cr_assert_eq(translate(8, UINT64_MAX - 7), -EFAULT);
	cr_assert_eq(translate(UINT64_MAX, 1), -EFAULT);
	cr_assert_eq(translate(UINT64_MAX, 2), -EFAULT);
	cr_assert_eq(translate(UINT64_MAX - 4095, 8192), -EFAULT);
	cr_assert_eq(translate(FAR + 16, UINT64_MAX - 15), -EFAULT);
}

Test(memory, reading_and_writing_cross_regions_that_touch)
{
	char in[64], out[64];

	memset(in, 'x', sizeof(in));
	cr_assert_eq(memory_write(&memory, 4 * MIB - 32, in, sizeof(in)), 0);
	cr_assert_eq(memory.regions[0].host[4 * MIB - 1], 'x');
	cr_assert_eq(memory.regions[1].host[31], 'x');
	cr_assert_eq(memory.regions[1].host[32], 0);
	cr_assert_eq(memory_read(&memory, 4 * MIB - 32, out, sizeof(out)), 0);
	cr_assert_eq(memcmp(in, out, sizeof(in)), 0);
}

Test(memory, a_write_over_the_end_writes_nothing)
{
	char data[64];

	memset(data, 'x', sizeof(data));
	cr_assert_eq(memory_write(&memory, 8 * MIB - 32, data, sizeof(data)), -EFAULT);
	cr_assert_eq(memory.regions[1].host[4 * MIB - 32], 0);
	cr_assert_eq(memory_write(&memory, UINT64_MAX - 3, data, 8), -EFAULT);
	cr_assert_eq(memory.regions[0].host[0], 0, "no wrap to address 0");
}

Test(memory, a_read_over_the_end_reads_nothing)
{
	char data[64] = "before";

	cr_assert_eq(memory_read(&memory, FAR + 4 * MIB - 32, data, sizeof(data)), -EFAULT);
	cr_assert_str_eq(data, "before");
	cr_assert_eq(memory_read(&memory, FAR - 1, data, 2), -EFAULT);
	cr_assert_str_eq(data, "before");
}

Test(memory, copying_nothing_is_fine)
{
	cr_assert_eq(memory_read(&memory, 0, NULL, 0), 0);
	cr_assert_eq(memory_write(&memory, 0, NULL, 0), 0);
}

Test(memory, nothing_is_marked_while_not_tracking)
{
	uint32_t first;

	cr_assert_eq(memory_write(&memory, 0, "x", 1), 0);
	memory_mark(&memory, 0, PAGE);
	cr_assert_eq(take(0, &first), 0);
	cr_assert_eq(memory_track_start(&memory), 0);
	cr_assert_eq(take(0, &first), 0, "what came before does not count");
}

Test(memory, a_write_marks_the_pages_it_touches)
{
	uint32_t first;

	cr_assert_eq(memory_track_start(&memory), 0);
	cr_assert_eq(memory_write(&memory, 8 * MIB - PAGE - 1, "xy", 2), 0);
	cr_assert_eq(take(1, &first), 2);
	cr_assert_eq(first, PAGES - 2);
	cr_assert_eq(take(0, &first), 0);
}

Test(memory, a_whole_page_marks_only_itself)
{
	uint32_t first;

	cr_assert_eq(memory_track_start(&memory), 0);
	memory_mark(&memory, FAR + 3 * PAGE, PAGE);
	cr_assert_eq(take(2, &first), 1);
	cr_assert_eq(first, 3);
}

Test(memory, marking_crosses_regions)
{
	uint32_t first;

	cr_assert_eq(memory_track_start(&memory), 0);
	memory_mark(&memory, 4 * MIB - 1, 2);
	cr_assert_eq(take(0, &first), 1);
	cr_assert_eq(first, PAGES - 1);
	cr_assert_eq(take(1, &first), 1);
	cr_assert_eq(first, 0);
}

Test(memory, marking_what_is_not_there_ends)
{
	uint32_t first;

	cr_assert_eq(memory_track_start(&memory), 0);
	memory_mark(&memory, 8 * MIB - 1, UINT64_MAX);
	memory_mark(&memory, UINT64_MAX, 2);
	cr_assert_eq(take(0, &first), 0);
	cr_assert_eq(take(1, &first), 1);
}

Test(memory, a_refused_write_marks_nothing)
{
	uint32_t first;

	cr_assert_eq(memory_track_start(&memory), 0);
	cr_assert_eq(memory_write(&memory, 8 * MIB - 1, "xy", 2), -EFAULT);
	cr_assert_eq(take(1, &first), 0);
}

Test(memory, taking_clears_and_keeps_what_the_caller_had)
{
	uint64_t bits[WORDS] = {[1] = 4};
	uint32_t first;

	cr_assert_eq(memory_track_start(&memory), 0);
	memory_mark(&memory, 64 * PAGE, 1);
	memory_track_take(&memory, 0, bits, WORDS);
	cr_assert_eq(bits[1], 5);
	cr_assert_eq(take(0, &first), 0);
}

Test(memory, a_host_address_marks_its_page)
{
	uint32_t first;

	cr_assert_eq(memory_track_start(&memory), 0);
	memory_mark_host(&memory, memory.regions[2].host + 5 * PAGE + 1, PAGE);
	cr_assert_eq(take(2, &first), 2);
	cr_assert_eq(first, 5);
}

Test(memory, a_host_address_elsewhere_marks_nothing)
{
	uint32_t first;

	cr_assert_eq(memory_track_start(&memory), 0);
	memory_mark_host(&memory, &first, sizeof(first));
	memory_mark_host(&memory, memory.regions[0].host - 1, 1);
	for (uint32_t i = 0; i < memory.n_regions; i++)
		cr_assert_eq(take(i, &first), 0);
}

Test(memory, tracking_that_stopped_starts_clean)
{
	uint32_t first;

	cr_assert_eq(memory_track_start(&memory), 0);
	memory_mark(&memory, 0, 1);
	memory_track_stop(&memory);
	cr_assert_eq(memory_track_start(&memory), 0);
	cr_assert_eq(take(0, &first), 0);
}

Test(memory_kind, shared_memory_is_seen_through_its_descriptor)
{
	char data[4] = "";

	make((struct memory_options){.kind = MEMORY_SHARED});
	for (uint32_t i = 0; i < memory.n_regions; i++) {
		struct memory_region *region = &memory.regions[i];

		cr_assert_eq(memory_write(&memory, region->start + region->size - 4, "abc", 4), 0);
		cr_assert_eq(pread(region->fd, data, 4, (off_t)region->size - 4), 4);
		cr_assert_str_eq(data, "abc");
		cr_assert_eq((uintptr_t)region->host % (2 * MIB), 0);
	}
}

Test(memory_kind, private_memory_has_no_descriptor)
{
	make((struct memory_options){.kind = MEMORY_PRIVATE});
	cr_assert_eq(memory.regions[0].fd, -1);
}

/* The flags of the mapping at `host`, from the kernel. */
static bool mapping_has(const void *host, const char *flag)
{
	FILE *maps = fopen("/proc/self/smaps", "re");
	unsigned long start, end;
	bool inside = false, found = false;
	char line[512];

	cr_assert(maps);
	while (fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = (uintptr_t)host >= start && (uintptr_t)host < end;
		else if (inside && strncmp(line, "VmFlags:", 8) == 0)
			found = strstr(line, flag);
	}
	fclose(maps);
	return found;
}

Test(memory_kind, merge_is_said_to_the_kernel)
{
	if (access("/sys/kernel/mm/ksm/run", F_OK) < 0)
		cr_skip_test("this kernel has no KSM");
	make((struct memory_options){.kind = MEMORY_PRIVATE, .merge = true, .thp = true});
	cr_assert(mapping_has(memory.regions[0].host, " mg"));
	cr_assert_not(mapping_has(memory.regions[0].host, " hg"), "merging excludes huge pages");
}

Test(memory_kind, memory_is_not_merged_unasked)
{
	make((struct memory_options){.kind = MEMORY_PRIVATE});
	cr_assert_not(mapping_has(memory.regions[0].host, " mg"));
}

Test(memory_kind, guest_memory_is_left_out_of_core_dumps)
{
	make((struct memory_options){.kind = MEMORY_PRIVATE});
	cr_assert(mapping_has(memory.regions[0].host, " dd"));
}

/* A snapshot's file as nobody maps it yet: every byte of it is 'f'. */
static void make_file(void)
{
	memory = (struct guest_memory){.kind = MEMORY_PRIVATE_FILE, .n_regions = 1};
	memory.regions[0] = (struct memory_region){
		.start = 0, .size = 4 * MIB, .fd = memfd_create("snapshot", MFD_CLOEXEC)};
	cr_assert_eq(ftruncate(memory.regions[0].fd, 4 * MIB), 0);
	memory.regions[0].host =
		mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, memory.regions[0].fd, 0);
	cr_assert_neq(memory.regions[0].host, MAP_FAILED);
	memset(memory.regions[0].host, 'f', 4 * MIB);
	cr_assert_eq(mmap(memory.regions[0].host, 4 * MIB, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_FIXED, memory.regions[0].fd, 0),
		     memory.regions[0].host);
}

static void fill(gpa_t gpa, uint64_t len)
{
	for (uint64_t at = 0; at < len; at++)
		cr_assert_eq(memory_write(&memory, gpa + at, "x", 1), 0);
}

/* Bytes in the range that are not `byte`. */
static uint64_t others(gpa_t gpa, uint64_t len, char byte)
{
	uint64_t n = 0;
	char is;

	for (uint64_t at = 0; at < len; at++) {
		cr_assert_eq(memory_read(&memory, gpa + at, &is, 1), 0);
		n += is != byte;
	}
	return n;
}

/* Whole pages of a range that begins and ends within one, and nothing else. */
static void discards_whole_pages(void)
{
	fill(8 * PAGE, 4 * PAGE);
	cr_assert_eq(memory_discard(&memory, 8 * PAGE + 1, 3 * PAGE), 0);
	cr_assert_eq(others(9 * PAGE, 2 * PAGE, 0), 0);
	cr_assert_eq(others(8 * PAGE, PAGE, 'x'), 0);
	cr_assert_eq(others(11 * PAGE, PAGE, 'x'), 0);
	fill(9 * PAGE, PAGE); /* and it is memory as before */
	cr_assert_eq(others(9 * PAGE, PAGE, 'x'), 0);
}

Test(memory_kind, private_pages_given_back_read_as_zeroes)
{
	make((struct memory_options){.kind = MEMORY_PRIVATE});
	discards_whole_pages();
}

Test(memory_kind, pages_of_a_huge_one_given_back_read_as_zeroes)
{
	make((struct memory_options){.kind = MEMORY_PRIVATE, .thp = true});
	discards_whole_pages();
}

Test(memory_kind, shared_pages_given_back_read_as_zeroes)
{
	make((struct memory_options){.kind = MEMORY_SHARED});
	discards_whole_pages();
}

Test(memory_kind, pages_of_a_file_given_back_read_as_zeroes)
{
	make_file();
	discards_whole_pages();
	cr_assert_eq(others(0, 8 * PAGE, 'f'), 0, "the rest is the file's");
}

/* A guest must not be able to cut its memory into so many mappings that none is left for us. */
Test(memory_kind, pages_of_a_file_are_not_mapped_anew_without_end)
{
	uint64_t mapped, n = 0;

	make_file();
	mapped = atomic_load(&memory.n_remaps);
	cr_assert_eq(memory_discard(&memory, 0, PAGE), 0);
	cr_assert_eq(atomic_load(&memory.n_remaps), mapped + 1);
	while (atomic_load(&memory.n_remaps) > n && n < 60000) {
		n = atomic_load(&memory.n_remaps);
		cr_assert_eq(memory_discard(&memory, n * 2 % PAGES * PAGE, PAGE), 0);
	}
	cr_assert_lt(n, 30000);
	discards_whole_pages();
}

static uint32_t resident(const struct memory_region *region)
{
	static unsigned char pages[PAGES];
	uint32_t n = 0;

	cr_assert_eq(mincore(region->host, PAGES * PAGE, pages), 0);
	for (uint32_t i = 0; i < PAGES; i++)
		n += pages[i] & 1;
	return n;
}

Test(memory_kind, private_pages_given_back_are_the_hosts)
{
	make((struct memory_options){.kind = MEMORY_PRIVATE});
	fill(0, 64 * PAGE);
	cr_assert_geq(resident(&memory.regions[0]), 64);
	cr_assert_eq(memory_discard(&memory, 0, 60 * PAGE), 0);
	cr_assert_eq(resident(&memory.regions[0]), 4);
}

Test(memory_kind, shared_pages_given_back_are_the_hosts)
{
	struct stat before, after;

	make((struct memory_options){.kind = MEMORY_SHARED});
	fill(0, 64 * PAGE);
	cr_assert_eq(fstat(memory.regions[0].fd, &before), 0);
	cr_assert_eq(memory_discard(&memory, 0, 60 * PAGE), 0);
	cr_assert_eq(fstat(memory.regions[0].fd, &after), 0);
	cr_assert_eq(before.st_blocks - after.st_blocks, 60 * PAGE / 512);
}

Test(memory, giving_back_crosses_regions)
{
	fill(4 * MIB - PAGE, 2 * PAGE);
	cr_assert_eq(memory_discard(&memory, 4 * MIB - PAGE, 2 * PAGE), 0);
	cr_assert_eq(others(4 * MIB - PAGE, 2 * PAGE, 0), 0);
}

Test(memory, giving_back_what_is_not_there_gives_back_nothing)
{
	fill(8 * MIB - PAGE, PAGE);
	cr_assert_eq(memory_discard(&memory, 8 * MIB - PAGE, 2 * PAGE), -EFAULT);
	cr_assert_eq(memory_discard(&memory, FAR - PAGE, PAGE), -EFAULT);
	cr_assert_eq(memory_discard(&memory, UINT64_MAX - PAGE + 1, 2 * PAGE), -EFAULT);
	cr_assert_eq(memory_discard(&memory, 8 * MIB - PAGE, UINT64_MAX), -EFAULT);
	cr_assert_eq(others(8 * MIB - PAGE, PAGE, 'x'), 0);
}

Test(memory, less_than_a_page_is_kept)
{
	fill(PAGE, 2 * PAGE);
	cr_assert_eq(memory_discard(&memory, PAGE + 1, 2 * PAGE - 2), 0);
	cr_assert_eq(memory_discard(&memory, PAGE, PAGE - 1), 0);
	cr_assert_eq(memory_discard(&memory, PAGE, 0), 0);
	cr_assert_eq(others(PAGE, 2 * PAGE, 'x'), 0);
}

Test(memory, what_a_host_address_points_at_is_given_back)
{
	fill(FAR + PAGE, 2 * PAGE);
	cr_assert_eq(memory_discard_host(&memory, memory.regions[2].host + PAGE, PAGE), 0);
	cr_assert_eq(others(FAR + PAGE, PAGE, 0), 0);
	cr_assert_eq(others(FAR + 2 * PAGE, PAGE, 'x'), 0);
	cr_assert_eq(memory_discard_host(&memory, &memory, PAGE), -EFAULT);
}
