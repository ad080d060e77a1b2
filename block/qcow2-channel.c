/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A loop's way through a qcow2 image. In come operations from that loop; what is mapped goes to the
 * loop's ring where it lies in the file, what is absent to a channel on the backing image, what
 * reads as zeroes is filled in here. Whatever may wait, or changes more than data, goes as a whole
 * to the image's worker, which posts it back. All but the worker's part of that (job_run) is on the
 * loop's thread: no lock, no memory but what was taken when the channel was opened. Migrates:
 * nothing; a resting channel has no request under way.
 *
 * Two things nobody may wait for with a place of the file in hand: the worker and the backing
 * channel, which may itself need the worker. qcow2_grace waits on the worker for all who hold one
 * (qcow2_enter), so a request holds its epoch for what it has on the ring and no longer.
 *
 * To those who submit, a channel is an I/O engine, hence the loop's own header.
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/atomic.h"
#include "base/loop-engine.h"
#include "block/qcow2-parts.h"
#include "block/worker.h"

#define REQUESTS_MAX 256

/* What our source is posted: something has ended that the ring does not tell. */
#define POST_ENDED 0

struct qcow2_channel;

struct request {
	struct qcow2_channel *channel; /* weak */
	struct request *next;          /* in one of the channel's lists; weak */
	union loop_cookie cookie;      /* of who is told */
	uint32_t epoch;
	uint32_t n_holding;   /* parts that are in the epoch */
	uint32_t n_unsettled; /* parts that have not ended, submitted or not */
	int32_t result;       /* of the worker */
	struct io_op op;      /* iov: borrowed from who submitted, or rows of the parts */
	uint64_t bytes;       /* READ, WRITE */
	struct block_job job;
	struct qcow2_parts parts;
};

struct request_list {
	struct request *first, **last; /* weak */
};

struct qcow2_channel {
	struct block_channel channel;
	struct qcow2 *qcow2;           /* borrowed */
	struct block_channel *backing; /* owned; NULL: none */
	struct io *io;                 /* owned */
	uint32_t file;                 /* the image's number in `io` */
	uint32_t number;               /* in qcow2->inflight */
	bool numbered;
	struct loop_source source;
	struct request *requests; /* owned mapping; pages come as they are used */
	uint32_t n_requests;      /* ever used */
	struct request *free;
	struct request_list waiting; /* found no room for some part */
	struct request_list ended;   /* to be told */
	struct request_list jobs;    /* go to the worker at the end of the turn */

	/* Between worker and loop. */
	_Atomic(struct request *) done; /* newest first */
	atomic_uint posting;            /* the worker is about to touch this channel */
};

static struct qcow2_channel *to_channel(struct block_channel *channel)
{
	return container_of(channel, struct qcow2_channel, channel);
}

static void list_init(struct request_list *list)
{
	list->first = NULL;
	list->last = &list->first;
}

static void list_add(struct request_list *list, struct request *request)
{
	request->next = NULL;
	*list->last = request;
	list->last = &request->next;
}

static struct request *list_take(struct request_list *list)
{
	struct request *first = list->first;

	list_init(list);
	return first;
}

static struct request *request_take(struct qcow2_channel *channel)
{
	struct request *request = channel->free;

	if (request)
		channel->free = request->next;
	else if (channel->n_requests < REQUESTS_MAX)
		request = &channel->requests[channel->n_requests++];
	return request;
}

static bool transfers(const struct io_op *op)
{
	return op->kind == IO_READ || op->kind == IO_WRITE;
}

/* The request is over: its place is free before its source is told, who may use it at once. */
static void request_tell(struct request *request, int32_t result)
{
	struct qcow2_channel *channel = request->channel;
	const union loop_cookie cookie = request->cookie;

	request->next = channel->free;
	channel->free = request;
	loop_deliver_io(channel->channel.loop, cookie, result);
}

/* Never from within a submission: who submits is not told before it is back. */
static void request_tell_later(struct request *request, int32_t result)
{
	struct qcow2_channel *channel = request->channel;

	request->result = result;
	if (!channel->ended.first)
		loop_post(&channel->source, POST_ENDED);
	list_add(&channel->ended, request);
}

/* The worker */

static int32_t run_result(const struct request *request, int r)
{
	return r < 0 || !transfers(&request->op) ? r : (int32_t)request->bytes;
}

/* On the worker. One post for as many as end before the loop looks. */
static void job_run(struct block_job *job)
{
	struct request *request = container_of(job, struct request, job);
	struct qcow2_channel *channel = request->channel;
	struct request *newest;

	request->result = run_result(request, qcow2_run(&channel->qcow2->image, &request->op));
	atomic_fetch_add_explicit(&channel->posting, 1, memory_order_relaxed);
	newest = atomic_load_explicit(&channel->done, memory_order_relaxed);
	do
		request->next = newest;
	while (!atomic_compare_exchange_weak_explicit(&channel->done, &newest, request,
						      memory_order_acq_rel, memory_order_relaxed));
	/* From here on the request is the loop's, and the channel there until `posting` says so. */
	if (!newest)
		loop_post(&channel->source, POST_ENDED);
	atomic_fetch_sub_explicit(&channel->posting, 1, memory_order_release);
}

static void hand_over(struct request *request)
{
	struct qcow2_channel *channel = request->channel;

	request->job.run = job_run;
	if (!channel->jobs.first)
		loop_batch(&channel->source);
	list_add(&channel->jobs, request);
}

static void post_jobs(struct qcow2_channel *channel)
{
	struct request *request = list_take(&channel->jobs);
	struct block_job *first = NULL, **last = &first;

	for (; request; request = request->next) {
		request->job.next = NULL;
		*last = &request->job;
		last = &request->job.next;
	}
	block_worker_post_list(channel->qcow2->image.worker, first);
}

static void tell_all(struct request *request)
{
	while (request) {
		struct request *next = request->next;

		request_tell(request, request->result);
		request = next;
	}
}

static void tell_ended(struct qcow2_channel *channel)
{
	struct request *done, *oldest = NULL;

	tell_all(list_take(&channel->ended));
	done = atomic_exchange_explicit(&channel->done, NULL, memory_order_acquire);
	while (done) {
		struct request *next = done->next;

		done->next = oldest;
		oldest = done;
		done = next;
	}
	tell_all(oldest);
}

/* Parts */

static void leave(struct request *request)
{
	qcow2_leave(request->channel->qcow2, request->channel->number, request->epoch);
}

/* All parts have ended, and hold nothing. True: for the worker. */
static bool parts_over(const struct request *request, int32_t *ret_result)
{
	bool is_short;

	if (request->op.kind == IO_FLUSH) {
		*ret_result = request->parts.list[0].result;
		return false;
	}
	*ret_result = qcow2_parts_result(&request->parts, &is_short);
	/* Either the file ends there, and the rest is zeroes, or the kernel did not feel like it.
	 */
	return is_short && request->op.kind == IO_READ;
}

/* True: it was the last. */
static bool part_settle(struct request *request, struct qcow2_part *part, int32_t result)
{
	part->result = result;
	if (part->kind == QCOW2_PART_FILE && --request->n_holding == 0)
		leave(request);
	if (part->kind == QCOW2_PART_FLUSH)
		qcow2_flush_end(request->channel->qcow2, result);
	return --request->n_unsettled == 0;
}

static void part_end(struct request *request, struct qcow2_part *part, int32_t result)
{
	if (!part_settle(request, part, result))
		return;
	if (parts_over(request, &result))
		hand_over(request);
	else
		request_tell(request, result);
}

static int part_submit(struct request *request, struct qcow2_part *part)
{
	struct qcow2_channel *channel = request->channel;
	const struct io_op op = {
		.kind = request->op.kind,
		.iov = part->iov,
		.n_iov = part->n_iov,
		.offset = part->place,
	};
	uint32_t arg = (uint32_t)(request - channel->requests) * QCOW2_PARTS_MAX +
		       (uint32_t)(part - request->parts.list);

	if (part->kind == QCOW2_PART_BACKING)
		return block_submit(channel->backing, &op, &channel->source, arg);
	return io_submit(channel->io, channel->file, &op, &channel->source, arg);
}

/* Those that go to the backing image, or those that go to the ring. False: no room for all. */
static bool submit_some(struct request *request, bool backing)
{
	for (uint32_t i = 0; i < request->parts.n; i++) {
		struct qcow2_part *part = &request->parts.list[i];
		int r;

		if (part->submitted || (part->kind == QCOW2_PART_BACKING) != backing)
			continue;
		r = part_submit(request, part);
		if (r == -EBUSY)
			return false;
		part->submitted = true;
		if (r < 0)
			part_settle(request, part, r);
	}
	return true;
}

/*
 * The ring first, and each kind whatever became of the other: what waits for the backing image must
 * not keep back what holds an epoch.
 */
static void parts_submit(struct request *request)
{
	bool all = submit_some(request, false);
	int32_t result;

	all &= submit_some(request, true);
	if (!all) {
		list_add(&request->channel->waiting, request);
		return;
	}
	if (request->n_unsettled)
		return;
	if (parts_over(request, &result))
		hand_over(request);
	else
		request_tell_later(request, result);
}

static void continue_waiting(struct qcow2_channel *channel)
{
	struct request *request = list_take(&channel->waiting);

	while (request) {
		struct request *next = request->next;

		parts_submit(request);
		request = next;
	}
}

/* What has nothing to wait for is settled here. */
static void count_parts(struct request *request)
{
	for (uint32_t i = 0; i < request->parts.n; i++) {
		struct qcow2_part *part = &request->parts.list[i];

		if (part->kind == QCOW2_PART_ZEROES) {
			part->submitted = true;
			part->result = (int32_t)part->length;
			continue;
		}
		request->n_unsettled++;
		request->n_holding += part->kind == QCOW2_PART_FILE;
	}
}

static void start_transfer(struct request *request)
{
	struct qcow2_channel *channel = request->channel;
	struct qcow2 *qcow2 = channel->qcow2;
	bool ready = request->op.kind == IO_READ ||
		     !atomic_load_explicit(&qcow2->corrupt, memory_order_relaxed);

	request->epoch = qcow2_enter(qcow2, channel->number);
	ready = ready && qcow2_parts_find(&request->parts, qcow2, &request->op, request->bytes,
					  channel->backing);
	if (ready)
		count_parts(request);
	if (!request->n_holding)
		leave(request);
	if (ready)
		parts_submit(request);
	else
		hand_over(request);
}

/* Nothing is in memory only: then what has been written needs no more than the kernel's word. */
static void start_flush(struct request *request)
{
	if (!qcow2_flush_begin(request->channel->qcow2)) {
		hand_over(request);
		return;
	}
	request->parts.list[0] = (struct qcow2_part){.kind = QCOW2_PART_FLUSH};
	request->parts.n = request->n_unsettled = 1;
	parts_submit(request);
}

static void start(struct request *request)
{
	if (transfers(&request->op))
		start_transfer(request);
	else if (request->op.kind == IO_FLUSH)
		start_flush(request);
	else if (request->op.kind == IO_DISCARD && !request->channel->qcow2->image.can_discard)
		request_tell_later(request, 0);
	else
		hand_over(request);
}

static uint64_t op_bytes(const struct io_op *op)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < op->n_iov; i++)
		bytes += op->iov[i].iov_len;
	return bytes;
}

/* Callers see to all of it; a lookup beyond the image's end would be one beyond a table's. */
static int check(const struct block_image *image, const struct io_op *op, uint64_t length)
{
	if (op->kind == IO_FLUSH)
		return 0;
	if (!length || length > image->size || op->offset > image->size - length ||
	    (op->offset | length) % BLOCK_SECTOR != 0)
		return -EINVAL;
	/* What is not shortened has a result all the same. */
	if (op->n_iov > QCOW2_ROWS_MAX && transfers(op) && length > INT32_MAX)
		return -EINVAL;
	return op->kind != IO_READ && (image->readonly || image->inactive) ? -EROFS : 0;
}

int qcow2_submit(struct block_channel *base, const struct io_op *op, struct loop_source *source,
		 uint32_t arg)
{
	struct qcow2_channel *channel = to_channel(base);
	const uint64_t bytes = transfers(op) ? op_bytes(op) : 0;
	struct request *request;
	int r = check(&channel->qcow2->image, op, transfers(op) ? bytes : op->length);

	if (r < 0)
		return r;
	request = request_take(channel);
	if (!request) {
		loop_wait_for_room(source);
		return -EBUSY;
	}
	request->channel = channel;
	request->cookie = loop_cookie(source, LOOP_IO, arg);
	request->n_holding = request->n_unsettled = 0;
	request->parts.n = request->parts.n_rows = 0;
	request->op = *op;
	request->bytes = qcow2_parts_shorten(&request->parts, &request->op, bytes);
	start(request);
	return 0;
}

static void channel_event(struct loop_source *source, const struct loop_event *event)
{
	struct qcow2_channel *channel = container_of(source, struct qcow2_channel, source);

	if (event->kind == LOOP_IO) {
		struct request *request = &channel->requests[event->arg / QCOW2_PARTS_MAX];

		part_end(request, &request->parts.list[event->arg % QCOW2_PARTS_MAX],
			 event->result);
	} else if (event->kind == LOOP_POST && event->arg == LOOP_BATCH) {
		continue_waiting(channel);
		post_jobs(channel);
	} else if (event->kind == LOOP_POST) {
		tell_ended(channel);
	}
}

/* The last post of the worker may have been answered before it has come back from it. */
static void wait_for_worker(struct qcow2_channel *channel)
{
	while (atomic_load_explicit(&channel->posting, memory_order_acquire))
		sched_yield();
}

void qcow2_channel_close(struct block_channel *base)
{
	struct qcow2_channel *channel = to_channel(base);

	wait_for_worker(channel);
	loop_remove(&channel->source);
	block_channel_close(channel->backing);
	if (channel->io)
		io_file_remove(channel->io, channel->file);
	io_free(channel->io);
	if (channel->numbered)
		qcow2_inflight_give(channel->qcow2, channel->number);
	if (channel->requests)
		munmap(channel->requests, sizeof(struct request) * REQUESTS_MAX);
	free(channel);
}

static int open_file(struct qcow2_channel *channel, struct block_image *image, struct loop *loop)
{
	int r = io_new(&channel->io, loop);

	if (r < 0)
		return r;
	r = io_file_add(channel->io, image->file.fd, &channel->file);
	if (r < 0)
		channel->io = io_free(channel->io);
	return r;
}

static int set_up(struct qcow2_channel *channel, struct block_image *image, struct loop *loop)
{
	int r;

	list_init(&channel->waiting);
	list_init(&channel->ended);
	list_init(&channel->jobs);
	channel->requests = mmap(NULL, sizeof(struct request) * REQUESTS_MAX,
				 PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (channel->requests == MAP_FAILED) {
		channel->requests = NULL;
		return -errno;
	}
	r = qcow2_inflight_take(channel->qcow2, &channel->number);
	if (r < 0)
		return r;
	channel->numbered = true;
	channel->source.on_event = channel_event;
	r = loop_add(loop, &channel->source);
	if (r >= 0)
		r = open_file(channel, image, loop);
	if (r >= 0 && image->backing)
		r = block_channel_open(&channel->backing, image->backing, loop);
	return r;
}

int qcow2_channel_open(struct block_channel **ret_channel, struct block_image *image,
		       struct loop *loop)
{
	struct qcow2_channel *channel = calloc(1, sizeof(*channel));
	int r;

	if (!channel)
		return -ENOMEM;
	channel->qcow2 = to_qcow2(image);
	r = set_up(channel, image, loop);
	if (r < 0) {
		qcow2_channel_close(&channel->channel);
		return r;
	}
	*ret_channel = &channel->channel;
	return 0;
}
