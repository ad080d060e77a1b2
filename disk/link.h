/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the two processes say to each other: messages over a SOCK_SEQPACKET pair, read and written
 * through cursors, and a page of counters that both have mapped. The sealed side may have been
 * taken over by an image; nothing it says is believed beyond what the broker checks here.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/macros.h"

#define LINK_MESSAGE_MAX 65536
#define LINK_NAME_MAX    4096 /* of a backing file; qcow2 has 1023 */

enum link_kind {
	/* To the broker. */
	LINK_ITEM = 1, /* u32 which, the item by its table */
	LINK_OPEN,     /* u32 file, u8 writable, format, name: what that file's chain stands on */
	LINK_NOTE,     /* text: a line for --verbose */
	LINK_DONE,
	LINK_FAILED, /* i32 code, text: a sentence */
	/* To the sealed process, with a descriptor unless it failed. */
	LINK_OPENED, /* i32 code, format or sentence */
};

/* Written by the sealed process, but for `stop`. */
struct link_page {
	_Atomic uint64_t done, total; /* bytes gone through */
	_Atomic uint64_t moved;       /* bytes read and written */
	_Atomic uint32_t stop;        /* the broker asks it to come to an end */
};

/* A message as it is read: texts are borrowed from the buffer and not terminated. */
struct link_message {
	enum link_kind kind;
	uint32_t which; /* ITEM: item; OPEN: file */
	bool writable;
	int code;
	const char *text, *format; /* NOTE, FAILED, OPEN: name */
	uint32_t text_size, format_size;
	const void *data; /* ITEM */
	size_t data_size;
};

/* -EBADMSG: it is not one. */
int link_parse(const void *data, size_t size, struct link_message *ret_message) __must_check;

struct table;
/* `data` is LINK_MESSAGE_MAX bytes to work in. */
int link_send_item(int socket, void *data, uint32_t which, const struct table *table,
		   const void *item) __must_check;
int link_send_open(int socket, uint32_t file, bool writable, const char *format,
		   const char *name) __must_check;
int link_send_text(int socket, enum link_kind kind, int code, const char *text,
		   int fd) __must_check;
