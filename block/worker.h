/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread that may wait, for what no loop should: cluster allocation, metadata, compressed
 * clusters. Jobs are done one after the other in the order they came. One worker serves one image
 * or several; the owner of the images makes it, before the process gives up the right to make
 * threads.
 */
#pragma once

#include "base/error.h"
#include "base/macros.h"

struct block_worker;

/* Embedded in its owner; lives until `run` has been called. */
struct block_job {
	void (*run)(struct block_job *job); /* on the worker */
	struct block_job *next;             /* the worker's */
};

struct block_worker_options {
	const char *name; /* of the thread, up to 15 letters */
	/* First in the thread, all signals blocked: where it gives up rights. It may wait there. */
	void (*thread_start)(void *arg);
	void *thread_arg;
};

int block_worker_new(struct block_worker **ret_worker, const struct block_worker_options *options,
		     struct error *err) __must_check;
/* What is queued is done first. NULL is fine. Returns NULL. */
struct block_worker *block_worker_free(struct block_worker *worker);

/* Any thread. Never fails, takes a lock for a moment, wakes the worker if it sleeps. */
void block_worker_post(struct block_worker *worker, struct block_job *job);
/* Puts the jobs of a list in one go, in its order. */
void block_worker_post_list(struct block_worker *worker, struct block_job *first);
