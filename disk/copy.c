/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: two images. Out: the target reads as the source does. Each thread of the crew takes the next
 * piece of at most a window and reads it; one of them at a time writes what has been read. Windows
 * are as large as the largest cluster and begin at multiples of that.
 */
#include "disk/copy.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#include "disk/offload.h"
#include "disk/window.h"

#define GRAIN_MAX \
	(64u << 10) /* zeroes are looked for in pieces of this, of the cluster if that is less */
#define WINDOWS      10
#define OFFLOAD_STEP (UINT64_C(256) << 20)
#define ZERO_STEP    (UINT64_C(1) << 30)

static const struct field copy_fields[] = {
	FIELD(struct copy_item, size, FIELD_U64, "size", "Bytes of the disk"),
	FIELD(struct copy_item, copied, FIELD_U64, "copied", "Bytes read and written"),
	FIELD(struct copy_item, shared, FIELD_U64, "shared",
	      "Bytes that the file system shares or has copied by itself"),
	FIELD(struct copy_item, zeroes, FIELD_U64, "zeroes", "Bytes read that were only zeroes"),
	FIELD(struct copy_item, milliseconds, FIELD_U64, "milliseconds", "How long it took"),
};
const struct table copy_item_table =
	TABLE(struct copy_item, "copy", "What was copied", copy_fields);

enum piece_kind { PIECE_READ, PIECE_ZERO, PIECE_OFFLOAD };

struct piece {
	enum piece_kind kind;
	uint64_t offset, length;
	bool whole;     /* READ: there is data all over it */
	uint64_t place; /* OFFLOAD: in file_fd */
	int file_fd;
};

struct copy {
	const struct copy_options *options;
	struct sealed *sealed;
	struct block_image *from;
	struct window_target to;
	uint32_t grain;
	bool offloads;
	struct offload offload;
	struct window windows[WINDOWS];
	pthread_mutex_t lock;       /* guards the rest */
	pthread_cond_t room;        /* a window is free, or it has failed */
	uint64_t at;                /* all before it is taken */
	struct block_extent extent; /* the last one looked up */
	struct window *free, *first,
		*last; /* windows; those that are read and wait to be written */
	bool writing;
	struct copy_result result;
	int r;
	struct error err;
};

static int fail(struct copy *copy, int r, const char *doing, const struct block_image *image,
		uint64_t offset)
{
	pthread_mutex_lock(&copy->lock);
	if (copy->r == 0)
		copy->r = error_set(&copy->err, r, "cannot %s \"%s\" at byte %lu: %s", doing,
				    image->name, offset, strerror(-r));
	pthread_cond_broadcast(&copy->room);
	pthread_mutex_unlock(&copy->lock);
	return r;
}

static const struct block_image *image_at(const struct block_image *image, uint32_t depth)
{
	while (depth-- && image->backing)
		image = image->backing;
	return image;
}

/* Under the lock: the extent at `at`, looked up once for all its windows. */
static int look(struct copy *copy)
{
	struct block_extent *extent = &copy->extent;

	if (copy->at - extent->offset < extent->length)
		return 0;
	return block_map(copy->from, copy->at, copy->from->size - copy->at, extent);
}

/* The target has it, or need not have it. */
static bool is_passed_over(const struct copy *copy, const struct block_extent *extent)
{
	if (extent->kind == BLOCK_ABSENT)
		return copy->options->fresh || copy->options->top_only;
	return extent->kind == BLOCK_ZERO && copy->options->fresh;
}

/*
 * Under the lock: what is to be done from `at` on. Within the extent; but in a fresh target the
 * rest of the window, from the start of a grain on: what was passed over there is zeroes.
 */
static void cut_read(const struct copy *copy, uint64_t left, struct piece *piece)
{
	uint64_t end = align_down(copy->at, WINDOW) + WINDOW;
	uint64_t length = MIN(left, end - copy->at);

	*piece = (struct piece){.offset = copy->at, .length = length, .whole = true};
	if (!copy->options->fresh)
		return;
	piece->offset = align_down(copy->at, copy->grain);
	piece->length = MIN(end, copy->from->size) - piece->offset;
	piece->whole = piece->length == length;
}

static void cut(const struct copy *copy, uint64_t left, struct piece *piece)
{
	const struct block_extent *extent = &copy->extent;

	*piece = (struct piece){.offset = copy->at};
	if (extent->kind == BLOCK_ABSENT || extent->kind == BLOCK_ZERO) {
		piece->kind = PIECE_ZERO;
		piece->length = MIN(left, ZERO_STEP);
	} else if (extent->kind == BLOCK_DATA && copy->offloads &&
		   atomic_load(&copy->offload.kind) != OFFLOAD_NONE) {
		piece->kind = PIECE_OFFLOAD;
		piece->length = MIN(left, OFFLOAD_STEP);
		piece->place = extent->place + (copy->at - extent->offset);
		piece->file_fd = image_at(copy->from, extent->depth)->file.fd;
	} else {
		cut_read(copy, left, piece);
	}
}

static bool claim_locked(struct copy *copy, struct piece *piece)
{
	while (copy->r == 0 && copy->at < copy->from->size) {
		uint64_t left;

		copy->r = sealed_stopped(copy->sealed, &copy->err);
		if (copy->r == 0) {
			copy->r = look(copy);
			if (copy->r < 0)
				error_set(&copy->err, copy->r,
					  "cannot tell where \"%s\" has byte %lu: %s",
					  copy->from->name, copy->at, strerror(-copy->r));
		}
		if (copy->r < 0)
			return false;
		left = copy->extent.length - (copy->at - copy->extent.offset);
		if (!is_passed_over(copy, &copy->extent)) {
			cut(copy, left, piece);
			copy->at = piece->offset + piece->length;
			return true;
		}
		copy->at += left;
	}
	return false;
}

static bool claim(struct copy *copy, struct piece *piece)
{
	bool more;

	pthread_mutex_lock(&copy->lock);
	more = claim_locked(copy, piece);
	atomic_store_explicit(&copy->sealed->page->done, copy->at, memory_order_relaxed);
	if (copy->r < 0)
		pthread_cond_broadcast(&copy->room);
	pthread_mutex_unlock(&copy->lock);
	return more;
}

/* NULL: it has failed. */
static struct window *window_take(struct copy *copy)
{
	struct window *window = NULL;

	pthread_mutex_lock(&copy->lock);
	while (!copy->free && copy->r == 0)
		pthread_cond_wait(&copy->room, &copy->lock);
	if (copy->r == 0) {
		window = copy->free;
		copy->free = window->next;
	}
	pthread_mutex_unlock(&copy->lock);
	return window;
}

/* Under the lock. */
static void window_give(struct copy *copy, struct window *window)
{
	copy->result.copied += window->copied;
	copy->result.zeroes += window->zeroes;
	atomic_fetch_add_explicit(&copy->sealed->page->moved, window->length, memory_order_relaxed);
	window->next = copy->free;
	copy->free = window;
	pthread_cond_signal(&copy->room);
}

static int window_put(struct copy *copy, struct window *window)
{
	int r = window_write(window, &copy->to);

	return r < 0 ? fail(copy, r, "write", copy->to.image, window->failed_at) : 0;
}

/* Under the lock: who is first writes for all, until nothing waits. */
static void write_all(struct copy *copy)
{
	copy->writing = true;
	while (copy->first && copy->r == 0) {
		struct window *window = copy->first;

		copy->first = window->next;
		pthread_mutex_unlock(&copy->lock);
		(void)!window_put(copy, window);
		pthread_mutex_lock(&copy->lock);
		window_give(copy, window);
	}
	copy->writing = false;
}

/* Writers of one file wait for each other in the kernel, each for its turn on a processor too: so
 * one thread writes, and the others go back to reading. Compression is the one work that is better
 * shared. */
static void window_hand_on(struct copy *copy, struct window *window)
{
	if (copy->to.packed)
		(void)!window_put(copy, window);
	pthread_mutex_lock(&copy->lock);
	if (copy->to.packed) {
		window_give(copy, window);
	} else {
		window->next = NULL;
		if (copy->first)
			copy->last->next = window;
		else
			copy->first = window;
		copy->last = window;
		if (!copy->writing)
			write_all(copy);
	}
	pthread_mutex_unlock(&copy->lock);
}

static void read_write(struct copy *copy, uint64_t offset, uint64_t length, bool whole)
{
	struct window *window = window_take(copy);
	int r;

	if (!window)
		return;
	window->offset = offset;
	window->length = length;
	r = window_read(window, copy->from, whole);
	if (r < 0)
		fail(copy, r, "read", copy->from, window->failed_at);
	else
		window_hand_on(copy, window);
}

static void zero_piece(struct copy *copy, const struct piece *piece)
{
	struct io_op op = {.kind = IO_ZERO, .offset = piece->offset, .length = piece->length};
	int r = block_do(copy->to.image, &op);

	if (r < 0)
		fail(copy, r, "write zeroes to", copy->to.image, piece->offset);
}

static void offload_piece(struct copy *copy, const struct piece *piece)
{
	uint64_t end = piece->offset + piece->length;

	if (offload_try(&copy->offload, piece->file_fd, piece->place, piece->offset,
			piece->length)) {
		pthread_mutex_lock(&copy->lock);
		copy->result.shared += piece->length;
		pthread_mutex_unlock(&copy->lock);
		return;
	}
	for (uint64_t at = piece->offset, next; at < end; at = next) {
		next = MIN(align_down(at, WINDOW) + WINDOW, end);
		read_write(copy, at, next - at, true);
	}
}

static void work(void *arg)
{
	struct copy *copy = arg;
	struct piece piece;

	while (claim(copy, &piece)) {
		if (piece.kind == PIECE_ZERO)
			zero_piece(copy, &piece);
		else if (piece.kind == PIECE_OFFLOAD)
			offload_piece(copy, &piece);
		else
			read_write(copy, piece.offset, piece.length, piece.whole);
	}
}

/* Only a raw file has the guest's bytes where the guest has them. */
static void prepare_offload(struct copy *copy)
{
	const struct block_image *to = copy->to.image;

	copy->offloads = !strcmp(to->ops->format, "raw") && !to->file.block_device &&
			 !copy->from->file.block_device && !to->file.direct;
	if (copy->offloads)
		offload_init(&copy->offload, copy->from->file.fd, to->file.fd);
}

static uint32_t grain_of(const struct copy_options *options)
{
	if (options->packed)
		return options->cluster;
	if (!options->fresh || options->cluster < WINDOW_GRAIN)
		return WINDOW_GRAIN;
	return MIN(options->cluster, GRAIN_MAX);
}

static int prepare(struct copy *copy, char **ret_buffers)
{
	char *buffers = mmap(NULL, WINDOWS * WINDOW, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (buffers == MAP_FAILED)
		return -ENOMEM;
	copy->grain = grain_of(copy->options);
	for (size_t i = 0; i < WINDOWS; i++) {
		copy->windows[i] = (struct window){
			.buffer = buffers + i * WINDOW, .grain = copy->grain, .next = copy->free};
		copy->free = &copy->windows[i];
	}
	prepare_offload(copy);
	*ret_buffers = buffers;
	return 0;
}

static int finish(struct copy *copy, struct error *err)
{
	struct block_image *to = copy->to.image;
	int r = copy->r;

	if (r < 0)
		return error_set(err, r, "%s", copy->err.text);
	r = block_flush(to);
	return r < 0 ? error_set(err, r, "cannot write \"%s\" to its end: %s", to->name,
				 strerror(-r))
		     : 0;
}

int copy_image(struct sealed *sealed, struct block_image *from, struct block_image *to,
	       const struct copy_options *options, struct copy_result *ret_result,
	       struct error *err)
{
	struct copy *copy = calloc(1, sizeof(*copy));
	char *buffers = NULL;
	int r = -ENOMEM;

	if (copy) {
		*copy = (struct copy){
			.options = options,
			.sealed = sealed,
			.from = from,
			.to = {to, options->fresh, options->packed},
			.lock = PTHREAD_MUTEX_INITIALIZER,
			.room = PTHREAD_COND_INITIALIZER,
		};
		r = prepare(copy, &buffers);
	}
	if (r < 0) {
		free(copy);
		return error_set(err, r, "cannot copy \"%s\": out of memory", from->name);
	}
	atomic_store(&sealed->page->total, from->size);
	crew_run(sealed->crew, work, copy);
	r = finish(copy, err);
	*ret_result = copy->result;
	munmap(buffers, WINDOWS * WINDOW);
	free(copy);
	return r;
}
