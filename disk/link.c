/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages to bytes and back. Both processes.
 */
#include "disk/link.h"

#include <errno.h>
#include <string.h>

#include "base/cursor.h"
#include "base/fd.h"
#include "base/table.h"

static void put_text(struct cursor *out, const char *text)
{
	size_t size = text ? strlen(text) : 0;

	cursor_put_u32(out, (uint32_t)size);
	cursor_put_bytes(out, text ? text : "", size);
}

static const char *get_text(struct cursor *in, uint32_t max, uint32_t *ret_size)
{
	uint32_t size = cursor_get_u32(in);

	*ret_size = 0;
	if (size > max) {
		in->failed = true;
		return NULL;
	}
	*ret_size = size;
	return cursor_get_view(in, size);
}

static int send(int socket, const struct cursor *out, int fd)
{
	int r = cursor_status(out);

	if (r < 0)
		return r;
	r = (int)fd_send(socket, out->data, out->at, &fd, fd >= 0);
	return r < 0 ? r : 0;
}

int link_send_item(int socket, void *data, uint32_t which, const struct table *table,
		   const void *item)
{
	struct cursor out = cursor_writer(data, LINK_MESSAGE_MAX);
	int r;

	cursor_put_u8(&out, LINK_ITEM);
	cursor_put_u32(&out, which);
	r = table_encode(table, item, &out);
	return r < 0 ? r : send(socket, &out, -1);
}

int link_send_open(int socket, uint32_t file, bool writable, const char *format, const char *name)
{
	uint8_t data[LINK_NAME_MAX + 256];
	struct cursor out = cursor_writer(data, sizeof(data));

	cursor_put_u8(&out, LINK_OPEN);
	cursor_put_u32(&out, file);
	cursor_put_u8(&out, writable);
	put_text(&out, format);
	put_text(&out, name);
	return send(socket, &out, -1);
}

int link_send_text(int socket, enum link_kind kind, int code, const char *text, int fd)
{
	uint8_t data[2048];
	struct cursor out = cursor_writer(data, sizeof(data));

	cursor_put_u8(&out, kind);
	cursor_put_u32(&out, (uint32_t)code);
	put_text(&out, text);
	return send(socket, &out, fd);
}

int link_parse(const void *data, size_t size, struct link_message *ret_message)
{
	struct cursor in = cursor_reader(data, size);
	struct link_message message = {.kind = cursor_get_u8(&in)};

	switch (message.kind) {
	case LINK_ITEM:
		message.which = cursor_get_u32(&in);
		message.data_size = cursor_left(&in);
		message.data = cursor_get_view(&in, message.data_size);
		break;
	case LINK_OPEN:
		message.which = cursor_get_u32(&in);
		message.writable = cursor_get_u8(&in);
		message.format = get_text(&in, 64, &message.format_size);
		message.text = get_text(&in, LINK_NAME_MAX, &message.text_size);
		break;
	case LINK_NOTE:
	case LINK_DONE:
	case LINK_FAILED:
	case LINK_OPENED:
		message.code = (int)cursor_get_u32(&in);
		message.text = get_text(&in, 1024, &message.text_size);
		break;
	default:
		return -EBADMSG;
	}
	if (cursor_status(&in) < 0 || cursor_left(&in))
		return -EBADMSG;
	*ret_message = message;
	return 0;
}
