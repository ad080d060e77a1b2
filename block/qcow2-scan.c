/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A scan's frame: the order in which tables are claimed, and what all its parts use.
 */
#include "block/qcow2-scan.h"

#include <endian.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define REPORT_MAX   1000u
#define SENTENCE_MAX 400u
#define PIECE        (64u << 10)
/* Chunks of counts: as many as a file without holes has, so many more to begin with, and one each
 * so many bytes of metadata. Entries that are as far apart as they can be need one in 8 bytes; none
 * that a program made come near. */
#define CHUNKS_LEAST    UINT64_C(0x20000)
#define BYTES_PER_CHUNK 64u

void scan_found(struct scan *scan, enum scan_class class, uint64_t n, const char *format, ...)
{
	const struct qcow2_check_options *options = scan->options;
	char text[SENTENCE_MAX];
	va_list args;

	scan->found[class] += n;
	if (scan->quiet || !options->report || scan->n_reported >= REPORT_MAX)
		return;
	if (++scan->n_reported == REPORT_MAX) {
		options->report(options->arg, "there is more; it is counted, but not listed");
		return;
	}
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	text_make_printable(text);
	options->report(options->arg, text);
}

uint64_t scan_corruptions(const struct scan *scan)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < SCAN_CLASSES; i++)
		n += i == SCAN_LEAK ? 0 : scan->found[i];
	return n;
}

int scan_progress(struct scan *scan, uint64_t n)
{
	struct block_progress *progress = scan->options->progress;

	scan->done += n;
	if (!progress || progress->at(progress, MIN(scan->done, scan->total), scan->total))
		return 0;
	return error_set(scan->err, -ECANCELED, "the check of \"%s\" was stopped", scan->name);
}

static int fail(struct scan *scan, int code)
{
	return error_set(scan->err, code, "cannot check \"%s\": %s", scan->name, strerror(-code));
}

static bool is_hole(const struct block_file *file, uint64_t place, uint64_t size)
{
	off_t data;

	if (!file->holes)
		return false;
	data = lseek(file->fd, (off_t)place, SEEK_DATA);
	return data < 0 ? errno == ENXIO : (uint64_t)data >= place + size;
}

int scan_read(struct scan *scan, void *data, uint64_t size, uint64_t place)
{
	int r;

	if (is_hole(scan->file, place, size))
		return 1;
	scan->read += size;
	scan->counts.n_max = scan->chunks_least + scan->read / BYTES_PER_CHUNK;
	r = block_file_read(scan->file, data, size, place);
	return r < 0 ? fail(scan, r) : 0;
}

bool scan_is_in_file(const struct scan *scan, uint64_t place, uint64_t size)
{
	return place < scan->file_size && size <= scan->file_size - place;
}

int scan_add(struct scan *scan, uint64_t cluster, uint32_t n, uint32_t flags, uint32_t *ret_before)
{
	int r = counts_add(&scan->counts, cluster, n, flags, ret_before);

	if (r == -EFBIG)
		return error_set(scan->err, r,
				 "cannot check \"%s\": its tables point to places so far apart "
				 "that no program can have made them",
				 scan->name);
	return r < 0 ? fail(scan, r) : 0;
}

int scan_claim(struct scan *scan, uint64_t place, uint64_t size, uint32_t flags,
	       uint32_t *ret_before)
{
	uint64_t end = (place + size + scan->cluster_size - 1) >> scan->cluster_bits;
	int r = 0;

	*ret_before = 0;
	for (uint64_t i = place >> scan->cluster_bits; r >= 0 && i < end; i++) {
		uint32_t before = 0;

		r = scan_add(scan, i, 1, flags, &before);
		*ret_before |= before & COUNTS_OWNERS;
	}
	return r;
}

uint32_t scan_owners(struct scan *scan, uint64_t place, uint64_t size)
{
	uint64_t end = (place + size + scan->cluster_size - 1) >> scan->cluster_bits;
	uint32_t owners = 0;

	for (uint64_t i = place >> scan->cluster_bits; i < end; i++) {
		const uint32_t *word = counts_find(&scan->counts, i);

		owners |= word ? *word & COUNTS_OWNERS : 0;
	}
	return owners;
}

/* The first pass over an L1 table: the L2 tables that are where one can be. */
static int l1_piece_count(struct scan *scan, const uint64_t *entries, uint64_t n, uint32_t flags)
{
	int r = 0;

	for (uint64_t i = 0; r >= 0 && i < n; i++) {
		uint64_t place = be64toh(entries[i]) & QCOW2_OFFSET_MASK;

		if (place && place < scan->file_size && !(place & (scan->cluster_size - 1)))
			r = scan_add(scan, place >> scan->cluster_bits, 1, flags, NULL);
	}
	return r;
}

int scan_l1_count(struct scan *scan, uint64_t place, uint32_t n_entries, uint32_t flags)
{
	_cleanup_(freep) uint64_t *piece = malloc(PIECE);
	uint64_t left = (uint64_t)n_entries * 8;
	int r = piece ? 0 : fail(scan, -ENOMEM);

	while (r >= 0 && left) {
		uint64_t here = MIN(left, (uint64_t)PIECE);

		r = scan_read(scan, piece, here, place);
		if (r == 0)
			r = l1_piece_count(scan, piece, here / 8, flags);
		place += here;
		left -= here;
	}
	return MIN(r, 0);
}

static bool is_table(uint32_t word)
{
	return (word & COUNTS_L2) && !(word & COUNTS_TABLE);
}

static int list_tables(struct scan *scan)
{
	uint64_t n = 0, at = 0;
	int r = counts_sort(&scan->counts);

	if (r < 0)
		return fail(scan, r);
	for (int pass = 0; pass < 2; pass++) {
		for (uint64_t i = 0; i < scan->counts.n; i++) {
			const struct counts_chunk *chunk = scan->counts.order[i];

			for (uint32_t j = 0; j < COUNTS_CHUNK; j++) {
				if (!is_table(chunk->words[j]))
					continue;
				if (pass == 0)
					n++;
				else
					scan->tables[at++] = (struct scan_table){
						.cluster = chunk->number * COUNTS_CHUNK + j,
						.n = chunk->words[j] & COUNTS_MAX,
						.index = UINT32_MAX,
					};
			}
		}
		if (pass == 0)
			scan->tables = calloc(MAX(n, UINT64_C(1)), sizeof(*scan->tables));
		if (!scan->tables)
			return fail(scan, -ENOMEM);
	}
	scan->n_tables = n;
	scan->total = 2 * n + 1;
	return 0;
}

static uint64_t stored_size(const struct scan *scan)
{
	struct stat st;

	if (!scan->file->holes || fstat(scan->file->fd, &st) < 0)
		return scan->file_size;
	return MIN((uint64_t)st.st_blocks * 512, scan->file_size);
}

static int read_header(struct scan *scan)
{
	int64_t size = block_file_size(scan->file);
	_cleanup_(freep) uint8_t *data = NULL;
	uint64_t n;
	int r;

	if (size < 0)
		return fail(scan, (int)size);
	scan->file_size = (uint64_t)size;
	n = MIN(scan->file_size, UINT64_C(1) << QCOW2_CLUSTER_BITS_MAX);
	data = malloc(MAX(n, UINT64_C(1)));
	r = data ? block_file_read(scan->file, data, n, 0) : -ENOMEM;
	if (r < 0)
		return fail(scan, r);
	r = qcow2_header_parse(&scan->header, data, n, scan->file_size, scan->name, scan->err);
	if (r < 0)
		return r;
	scan->cluster_bits = scan->header.cluster_bits;
	scan->cluster_size = UINT64_C(1) << scan->cluster_bits;
	scan->n_clusters = (scan->file_size + scan->cluster_size - 1) >> scan->cluster_bits;
	scan->chunks_least =
		CHUNKS_LEAST + (stored_size(scan) >> scan->cluster_bits) / COUNTS_CHUNK;
	scan->counts.n_max = scan->chunks_least;
	scan->buffer = malloc(scan->cluster_size);
	return scan->buffer ? 0 : fail(scan, -ENOMEM);
}

/* What there is but once, and everything is reached from. */
static int claim_active(struct scan *scan)
{
	const struct qcow2_header *header = &scan->header;
	uint32_t before = 0;
	int r = scan_claim(scan, 0, scan->cluster_size, COUNTS_TABLE, &before);

	if (r >= 0 && header->l1_entries)
		r = scan_claim(scan, header->l1_offset, header->l1_entries * UINT64_C(8),
			       COUNTS_TABLE, &before);
	if (r >= 0 && before)
		return error_set(scan->err, -EINVAL,
				 "cannot check \"%s\": its L1 table lies on its header",
				 scan->name);
	if (r >= 0 && header->l1_entries)
		r = scan_l1_count(scan, header->l1_offset, header->l1_entries,
				  COUNTS_L2 | COUNTS_ACTIVE);
	return r;
}

int scan_run(struct scan *scan)
{
	static int (*const steps[])(struct scan *) = {
		read_header,     claim_active, scan_snapshots, list_tables,
		scan_data_count, scan_bitmaps, scan_refcounts, scan_entries_judge,
	};
	int r = 0;

	for (uint32_t i = 0; r >= 0 && i < ARRAY_SIZE(steps); i++)
		r = steps[i](scan);
	return MIN(r, 0);
}

void scan_deinit(struct scan *scan)
{
	qcow2_header_free(&scan->header);
	counts_deinit(&scan->counts);
	qcow2_snapshots_deinit(&scan->snapshots);
	free(scan->tables);
	free(scan->keep);
	free(scan->reftable);
	free(scan->broken);
	free(scan->buffer);
	*scan = (struct scan){0};
}
