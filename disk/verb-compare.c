/* SPDX-License-Identifier: Apache-2.0 */
/*
 * compare: do two images read the same? What is a hole in both is passed over. Where one is longer,
 * the rest must be zeroes.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "disk/sealed.h"
#include "disk/text.h"
#include "disk/words.h"
#include "disk/zeroes.h"

#define WINDOW (UINT64_C(2) << 20)

struct answer_item {
	bool same;
	uint64_t offset, size, second_size, compared;
};

static const struct field answer_fields[] = {
	FIELD(struct answer_item, same, FIELD_BOOL, "same", "Do they read the same?"),
	FIELD(struct answer_item, offset, FIELD_U64, "offset", "The first byte that differs"),
	FIELD(struct answer_item, size, FIELD_U64, "size", "Bytes of the first disk"),
	FIELD(struct answer_item, second_size, FIELD_U64, "second-size", "Bytes of the second"),
	FIELD(struct answer_item, compared, FIELD_U64, "compared",
	      "Bytes that had to be read of each"),
};
static const struct table answer_table =
	TABLE(struct answer_item, "comparison", "How two images compare", answer_fields);

/* The broker. */

static int compare_open(struct job *job, struct error *err)
{
	const struct words *words = &job->words;
	int r = words_need_format(words->format, "--format", words->names[0], err);

	if (r == 0)
		r = image_file_open(&job->files[0], words->names[0], false, err);
	return r < 0 ? r : image_file_open(&job->files[1], words->names[1], false, err);
}

static int compare_item(struct job *job, uint32_t which _unused_, const void *data,
			struct error *err)
{
	const struct answer_item *item = data;
	char first[TEXT_SIZE_MAX], second[TEXT_SIZE_MAX];
	int r;

	job->status = item->same ? DISK_OK : DISK_DIFFERENT;
	if (job->answer) {
		r = job_keep(job, NULL, &answer_table, item, err);
		if (item->same)
			json_object_del(job->answer, "offset");
		return r;
	}
	if (!item->same)
		printf("\"%s\" and \"%s\" differ at byte %lu\n", job->files[0].name,
		       job->files[1].name, item->offset);
	else if (item->size == item->second_size)
		printf("they read the same, %s\n", text_size(item->size, first));
	else
		printf("they read the same, %s and %s: the rest is zeroes\n",
		       text_size(item->size, first), text_size(item->second_size, second));
	return 0;
}

/* The sealed process. */

struct comparison {
	struct sealed *sealed;
	struct block_image *images[2];
	uint64_t end;         /* of the longer */
	pthread_mutex_t lock; /* guards the rest */
	uint64_t at;          /* all before it is taken or need not be read */
	uint64_t differs;     /* the first byte known to; `end`: none */
	uint64_t compared;
	int r;
	struct error err;
};

static int fail(struct comparison *comparison, int r, const struct block_image *image,
		uint64_t offset)
{
	pthread_mutex_lock(&comparison->lock);
	if (comparison->r == 0)
		comparison->r = error_set(&comparison->err, r, "cannot read \"%s\" at byte %lu: %s",
					  image->name, offset, strerror(-r));
	pthread_mutex_unlock(&comparison->lock);
	return r;
}

/* How far it goes on as it is at `at`, and whether there is anything to read. */
static int look(struct block_image *image, uint64_t at, uint64_t end, uint64_t *ret_length,
		bool *ret_data)
{
	struct block_extent extent = {.kind = BLOCK_ABSENT, .length = end - at};
	int r = 0;

	if (at < image->size)
		r = block_map(image, at, image->size - at, &extent);
	*ret_length = extent.length;
	*ret_data = extent.kind == BLOCK_DATA || extent.kind == BLOCK_COMPRESSED;
	return r;
}

static bool claim_locked(struct comparison *comparison, uint64_t *ret_at, uint64_t *ret_length)
{
	while (comparison->at < comparison->end && comparison->differs == comparison->end) {
		uint64_t at = comparison->at, length[2];
		bool data[2] = {false, false};
		int r = sealed_stopped(comparison->sealed, &comparison->err);

		for (int i = 0; r == 0 && i < 2; i++) {
			r = look(comparison->images[i], at, comparison->end, &length[i], &data[i]);
			if (r < 0)
				error_set(&comparison->err, r,
					  "cannot tell where \"%s\" has byte %lu: %s",
					  comparison->images[i]->name, at, strerror(-r));
		}
		if (r < 0) {
			comparison->r = r;
			return false;
		}
		if (data[0] || data[1]) {
			*ret_at = at;
			*ret_length = MIN(align_down(at, WINDOW) + WINDOW, comparison->end) - at;
			comparison->at += *ret_length;
			return true;
		}
		comparison->at += MIN(length[0], length[1]);
	}
	return false;
}

static bool claim(struct comparison *comparison, uint64_t *ret_at, uint64_t *ret_length)
{
	bool more = false;

	pthread_mutex_lock(&comparison->lock);
	if (comparison->r == 0)
		more = claim_locked(comparison, ret_at, ret_length);
	if (more)
		comparison->compared += *ret_length;
	atomic_store_explicit(&comparison->sealed->page->done, comparison->at,
			      memory_order_relaxed);
	atomic_store_explicit(&comparison->sealed->page->moved, comparison->compared,
			      memory_order_relaxed);
	pthread_mutex_unlock(&comparison->lock);
	return more;
}

/* Behind an image's end zeroes are read. */
static int read_window(struct block_image *image, char *buffer, uint64_t at, uint64_t length)
{
	uint64_t there = at < image->size ? MIN(length, image->size - at) : 0;

	memset(buffer + there, 0, length - there);
	return there ? block_read(image, buffer, there, at) : 0;
}

static void differ(struct comparison *comparison, uint64_t offset)
{
	pthread_mutex_lock(&comparison->lock);
	comparison->differs = MIN(comparison->differs, offset);
	pthread_mutex_unlock(&comparison->lock);
}

static int compare_window(struct comparison *comparison, char *buffers, uint64_t at,
			  uint64_t length)
{
	uint64_t i = 0;

	for (int which = 0; which < 2; which++) {
		struct block_image *image = comparison->images[which];
		int r = read_window(image, buffers + which * WINDOW, at, length);

		if (r < 0)
			return fail(comparison, r, image, at);
	}
	if (!memcmp(buffers, buffers + WINDOW, length))
		return 0;
	while (buffers[i] == buffers[WINDOW + i])
		i++;
	differ(comparison, at + i);
	return 0;
}

static void work(void *arg)
{
	struct comparison *comparison = arg;
	uint64_t at, length;
	char *buffers =
		mmap(NULL, 2 * WINDOW, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (buffers == MAP_FAILED) {
		fail(comparison, -ENOMEM, comparison->images[0], 0);
		return;
	}
	while (claim(comparison, &at, &length) &&
	       compare_window(comparison, buffers, at, length) == 0)
		;
	munmap(buffers, 2 * WINDOW);
}

static int compare_images(struct sealed *sealed, struct block_image *first,
			  struct block_image *second, struct error *err)
{
	uint64_t end = MAX(first->size, second->size);
	struct comparison comparison = {
		.sealed = sealed,
		.images = {first, second},
		.end = end,
		.differs = end,
		.lock = PTHREAD_MUTEX_INITIALIZER,
	};
	struct answer_item item = {.size = first->size, .second_size = second->size};

	atomic_store(&sealed->page->total, end);
	crew_run(sealed->crew, work, &comparison);
	if (comparison.r < 0)
		return error_set(err, comparison.r, "%s", comparison.err.text);
	item.same = comparison.differs == end;
	item.offset = item.same ? 0 : comparison.differs;
	item.compared = comparison.compared;
	return sealed_report(sealed, 0, &item, err);
}

static int compare_work(struct sealed *sealed, struct error *err)
{
	_cleanup_(block_closep) struct block_image *first = NULL;
	_cleanup_(block_closep) struct block_image *second = NULL;
	const struct words *words = &sealed->job->words;
	struct sealed_open open = {
		.format = words->format, .readonly = true, .no_lock = words->force, .chain = true};
	int r = sealed_image(sealed, 0, &open, &first, err);

	if (words->second_format)
		open.format = words->second_format;
	if (r == 0)
		r = sealed_image(sealed, 1, &open, &second, err);
	return r < 0 ? r : compare_images(sealed, first, second, err);
}

const struct disk_verb verb_compare = {
	.name = "compare",
	.words = "FILE SECOND --format FORMAT [--second FORMAT] [FLAGS]",
	.help = "do two images read the same?",
	.more = "  Where one is longer, the rest must be zeroes. What they stand on is read too, "
		"which takes\n"
		"  --backing allow. Exit status: 0 they do, 3 they do not, 1 it could not be told.",
	.flags = " format second backing backing-format force json progress verbose ",
	.names_min = 2,
	.names_max = 2,
	.crew = true,
	.items = {&answer_table},
	.open = compare_open,
	.item = compare_item,
	.work = compare_work,
};
