/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process that reads and writes images: what a verb's sealed half may use. It cannot open
 * anything; what an image stands on it asks the broker for.
 */
#pragma once

#include "block/block.h"
#include "disk/crew.h"
#include "disk/job.h"
#include "disk/link.h"

struct sealed {
	struct job *job; /* this process's copy */
	int socket;
	struct link_page *page;
	struct crew *crew; /* NULL for verbs without long work */
	void *message;     /* LINK_MESSAGE_MAX bytes */
};

/* In the child, right after fork. Never returns. */
_Noreturn void sealed_main(struct job *job, int socket, struct link_page *page, int empty_fd,
			   int parent);

/* How an image of the job is to be opened. */
struct sealed_open {
	const char *format;
	bool readonly, no_lock, repair;
	bool chain; /* what it stands on too, which the broker may refuse */
};
/* files[file] of the job, of which a copy of the descriptor is used. */
int sealed_image(struct sealed *sealed, uint32_t file, const struct sealed_open *open,
		 struct block_image **ret_image, struct error *err) __must_check;
/* The image under files[file], asked for by name, to be written; *ret_format: what it is. */
int sealed_backing(struct sealed *sealed, uint32_t file, const char *name, const char *format,
		   struct block_image **ret_image, struct error *err) __must_check;
/* The file that comes to be, or the device, as an image. */
int sealed_made(struct sealed *sealed, const char *format, struct block_image **ret_image,
		struct error *err) __must_check;

/* Reports an item of the verb's table `which`. */
int sealed_report(struct sealed *sealed, uint32_t which, const void *item,
		  struct error *err) __must_check;
/* The broker wants it to end: -ECANCELED with a sentence. */
int sealed_stopped(const struct sealed *sealed, struct error *err) __must_check;

void block_closep(struct block_image **image);
