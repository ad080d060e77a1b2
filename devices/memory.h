/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory: a sorted table of regions, each one mapping. Everything that touches it from our
 * side goes through these checked accessors; what we write is marked for whoever copies the guest's
 * memory meanwhile (migration, snapshot). The table is fixed once vCPUs run; accessors take no lock
 * and may be called by any thread. The guest may write the same bytes at any moment: copy out once,
 * validate the copy, use the copy.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/error.h"
#include "base/macros.h"

typedef uint64_t gpa_t; /* guest-physical address */

#define GUEST_PAGE_SHIFT   12
#define GUEST_PAGE_SIZE    4096u
#define MEMORY_REGIONS_MAX 8

/* Kinds exclude each other; see "Guest memory" in the design. */
enum memory_kind {
	MEMORY_PRIVATE,      /* anonymous */
	MEMORY_SHARED,       /* memfd */
	MEMORY_PRIVATE_FILE, /* a snapshot's file, copy on write */
};

struct memory_options {
	enum memory_kind kind;
	bool merge; /* PRIVATE: KSM, and no THP */
	bool thp;
	bool prefault;
};

struct memory_region {
	gpa_t start;
	uint64_t size;
	uint8_t *host;                   /* owned mapping */
	_Atomic uint64_t *_Atomic dirty; /* one bit a page while tracking is on, else NULL; owned */
	int fd;                          /* SHARED: owned memfd, else -1 */
};

struct guest_memory {
	enum memory_kind kind;
	uint32_t n_regions;
	_Atomic uint32_t n_remaps; /* PRIVATE_FILE: pieces that memory_discard mapped anew */
	struct memory_region regions[MEMORY_REGIONS_MAX];
};

struct memory_range {
	gpa_t start;
	uint64_t size;
};

/* Maps `ranges` (sorted, apart, page-aligned) as guest memory of one kind. */
int memory_init(struct guest_memory *memory, const struct memory_options *options,
		const struct memory_range *ranges, uint32_t n_ranges,
		struct error *err) __must_check;
void memory_deinit(struct guest_memory *memory);

uint64_t memory_total(const struct guest_memory *memory);

/* A host pointer to [gpa, gpa+len), which must lie in one region: else -EFAULT. `len` 0 is -EFAULT.
 * Borrowed. */
int memory_translate(const struct guest_memory *memory, gpa_t gpa, uint64_t len,
		     void **ret_host) __must_check;

/* Copies, across regions if need be. -EFAULT when any byte is outside; writing is all or nothing
 * and marks. */
int memory_read(const struct guest_memory *memory, gpa_t gpa, void *data,
		uint64_t len) __must_check;
int memory_write(struct guest_memory *memory, gpa_t gpa, const void *data,
		 uint64_t len) __must_check;

/*
 * Marks pages we wrote through a translated pointer. Called when the bytes are there and before the
 * guest is told (used.idx), so that a page seen clean really was.
 */
void memory_mark(struct guest_memory *memory, gpa_t gpa, uint64_t len);

/*
 * Gives the pages wholly inside [gpa, gpa+len) back to the host; they read as zeroes afterwards,
 * whatever the kind. Not counted as written: who copies memory meanwhile may skip or send them.
 * -EFAULT when any byte is outside. Any thread that may call madvise(2).
 */
int memory_discard(struct guest_memory *memory, gpa_t gpa, uint64_t len) __must_check;

/* Tracking of our own writes: off by default, when marking costs one load. Main thread. */
int memory_track_start(struct guest_memory *memory) __must_check;
void memory_track_stop(struct guest_memory *memory);
/* Moves the marks of a region into `bits` (or-ed in) and clears them. `n_words` is (pages + 63)
 * / 64. */
void memory_track_take(struct guest_memory *memory, uint32_t region, uint64_t *bits,
		       uint64_t n_words);

/* The same by host address, for iovecs of a chain. */
void memory_mark_host(struct guest_memory *memory, const void *host, uint64_t len);
int memory_discard_host(struct guest_memory *memory, void *host, uint64_t len) __must_check;
